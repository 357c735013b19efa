"""
Closing: where the small files ended when the state was last closed in order, kept in the file ``closed``.

A small file ends with its last good record. Behind a crash that end may be torn, and is cut; behind an orderly close it
may not: then something else cut, extended or changed the file, and the state is refused with nothing written. The file
is removed, durably, before anything else is written, and made anew when everything is closed. This module must never
know what is in a small file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger.errors import DamagedFile, StateError
from ledger.files import HEADER_BYTES, PathLike, System, decode_header, encode_header, read_whole, write_atomically

FILE_NAME: Final = "closed"
FILE_VERSION: Final = 1
_HINT: Final = "restore the file from a backup; or, to go on with what is there, remove the file named closed"


@dataclass(frozen=True, slots=True)
class Closed:
    """Where the files ended."""

    lengths: dict[str, int]
    """Name, relative to the state directory -> bytes."""
    audit: tuple[int, str]
    """Sequence number and hash of the last line of the audit log."""


def read_closed(directory: PathLike, system: System) -> Closed | None:
    """
    What the last orderly close said; None after a crash, or while a daemon has the state open.

    Raises:
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
        SpaceError: the file system refused.
    """
    path = Path(directory) / FILE_NAME
    data = read_whole(system, path)
    if data is None:
        return None
    try:
        facts = decode_header(data, FILE_NAME, FILE_VERSION, path)
        if len(data) != HEADER_BYTES:
            raise DamagedFile(f"{path}: {len(data)} bytes, expected {HEADER_BYTES}: it was extended", path=str(path))
    except StateError as error:
        error.hint = "remove the file: the state is then opened as after a crash, and looked through"
        raise
    seq, chain = facts["audit"]
    return Closed(dict(facts["lengths"]), (int(seq), str(chain)))


def write_closed(directory: PathLike, system: System, closed: Closed) -> None:
    """Say that everything was closed, and where it ended; durable when it returns. Raises :class:`SpaceError`."""
    facts = {"lengths": dict(sorted(closed.lengths.items())), "audit": list(closed.audit)}
    write_atomically(system, Path(directory) / FILE_NAME, encode_header(FILE_NAME, FILE_VERSION, facts))


def remove_closed(directory: PathLike, system: System) -> None:
    """Take it back, durably, before the first write. Raises :class:`SpaceError`."""
    system.unlink(Path(directory) / FILE_NAME)
    system.fsync_directory(directory)


def check_end(path: Path, *, size: int, good: int, closed: int | None) -> None:
    """
    Refuse a file that does not end where it was closed.

    Args:
        size: bytes of the file now.
        good: bytes up to the end of its last good record.
        closed: what :class:`Closed` says of it; None where it says nothing.

    Raises:
        DamagedFile: names both lengths.
    """
    if closed is None or size == good == closed:
        return
    change = "was truncated" if size < closed else "was extended" if size > closed else "changed in its last record"
    text = f"{path}: {size} bytes, the last good record ends at {good}, it was closed with {closed}: it {change}"
    raise DamagedFile(text, hint=_HINT, path=str(path), size=size, closed=closed)
