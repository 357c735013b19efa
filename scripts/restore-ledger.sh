#!/usr/bin/env bash
# Restore an archive of archive-ledger.sh to a new directory: checksum, unpack beside it, verify, then rename.
# usage: restore-ledger.sh ARCHIVE.tar.zst NEW_STATE_DIR
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 ARCHIVE.tar.zst NEW_STATE_DIR" >&2; exit 2; }
archive=$1 target=$2
here=$(cd "$(dirname "$0")/.." && pwd)
bin="$here/.venv/bin"
[ -x "$bin/python" ] || bin=$(dirname "$(command -v m17d || echo /usr/bin/m17d)")
[ ! -e "$target" ] || { echo "$0: $target exists; restore to a new directory, then rename" >&2; exit 1; }
[ -f "$archive.sha256" ] || { echo "$0: $archive.sha256 is missing; without it nothing is restored" >&2; exit 1; }
(cd "$(dirname "$archive")" && sha256sum --check --status "$(basename "$archive").sha256") || {
    echo "$0: the checksum of $archive does not fit; nothing was restored" >&2
    exit 1
}
part=$target.restoring
rm -rf "$part"
mkdir -p "$part"
trap 'rm -rf "$part"' EXIT
"$bin/python" -c 'import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(sys.stdin.buffer, sys.stdout.buffer)' <"$archive" |
    tar --sparse -C "$part" -xf -
mkdir -p "$part/temporary"
"$bin/m17d" verify --state "$part" || {
    echo "$0: what $archive holds does not verify; nothing was restored" >&2
    exit 1
}
mv "$part" "$target"
echo "restored $archive to $target"
