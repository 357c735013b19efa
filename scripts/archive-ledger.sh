#!/usr/bin/env bash
# Archive a state directory for cron: a zstd tar of its sparse files, with its checksum beside it.
# usage: archive-ledger.sh STATE_DIR ARCHIVE.tar.zst
# While m17d runs the state is copied through `m17ctl backup` first (which verifies the copy); otherwise the
# directory is locked as m17d would lock it, so that none starts meanwhile.
set -euo pipefail     # a tar that fails in the middle of a pipe fails the archive
[ $# -eq 2 ] || { echo "usage: $0 STATE_DIR ARCHIVE.tar.zst" >&2; exit 2; }
state=$(cd "$1" && pwd) || exit 1
archive=$2
here=$(cd "$(dirname "$0")/.." && pwd)
bin="$here/.venv/bin"
[ -x "$bin/python" ] || bin=$(dirname "$(command -v m17ctl || echo /usr/bin/m17ctl)")
[ -f "$state/format" ] || { echo "$0: $state holds no state (no file named format)" >&2; exit 1; }
case $archive in /*) ;; *) archive=$PWD/$archive ;; esac
part=$archive.part
trap 'rm -rf "$part" "${copy:-/nonexistent}"' EXIT

pack() { # DIRECTORY: its files into $part; only data extents are read
    tar --sparse --exclude='*.sock' --exclude='./temporary/*' -C "$1" -cf - . |
        "$bin/python" -c 'import sys, zstandard; zstandard.ZstdCompressor(level=3, threads=-1).copy_stream(sys.stdin.buffer, sys.stdout.buffer)' >"$part"
}

unpack() { # its tar stream, from $part
    "$bin/python" -c 'import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(sys.stdin.buffer, sys.stdout.buffer)' <"$part"
}

if flock --nonblock "$state" true; then
    # Held while tar runs: an m17d that starts meanwhile says who holds the state, and exits.
    exec 9<"$state"
    flock --nonblock 9
    pack "$state"
else
    copy=$(mktemp -d "$(dirname "$archive")/.m17-backup.XXXXXX")
    rmdir "$copy"
    "$bin/m17ctl" --socket "${M17_SOCKET:-$state/m17d.sock}" --timeout 3600 backup "$copy" >&2
    pack "$copy"
fi
# Read once more before it is called an archive: whole as a stream, and whole as a tar.
unpack | tar --sparse -tf - >/dev/null || {
    echo "$0: what was written does not read as an archive; $archive was not made" >&2
    exit 1
}
sync "$part"
sum=$(sha256sum "$part" | cut -d' ' -f1)
printf '%s  %s\n' "$sum" "$(basename "$archive")" >"$archive.sha256"
mv "$part" "$archive"
echo "archived $state to $archive ($(du -h "$archive" | cut -f1))"
