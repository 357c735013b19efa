"""
Backup: a copy of a running state that is closed under reference, made in short steps.

Rows go first, block by block with every seal checked, then the small files, then the maps, then the artifacts that the
maps knew by then. So whatever a copied row names was copied after it. Row files stay sparse, and a repeated backup
copies what changed. This module must never change the state it copies, nor call a copy done: whoever verified it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, LedgerKind
from ledger.errors import ChecksumMismatch, StateExists, from_os_error
from ledger.layout import (
    BLOCK_BYTES,
    COLUMNS_OF,
    COUNTS_OFFSET,
    FILE_BYTES,
    PAGE,
    ROW_BYTES,
    ROWS_COUNTS,
    seals,
)
from ledger.state import State

MARKER: Final = "backup.incomplete"
"""While it is there the directory is no state: the copy was not finished, or not verified."""
_STEP_BYTES: Final = 1 << 20
_SMALL: Final = ("calendar", "symbol-map.bin", "sources", "regions", "paused", "accepted")


@dataclass(slots=True)
class Copied:
    """What a backup wrote; what an earlier one had left there is not counted."""

    files: int = 0
    bytes: int = 0


def backup(state: State, target: Path, copied: Copied) -> Iterator[None]:
    """
    Copy a state into a directory, new or holding an earlier backup of the same state; yields between short steps.

    The marker stays until the caller has verified the copy and calls :func:`finish`.

    Raises:
        StateExists: the directory holds something else.
        ChecksumMismatch: a seal of the state is broken; verify and repair it first.
        SpaceError: the file system refused; the marker stays.
    """
    _prepare(state, target)
    for ledger in (state.trade, state.enrichment):
        for seq in ledger.existing():
            path = ledger.path(seq)
            yield from _copy_rows(path, target / ledger.kind.value / path.name, ledger.kind, copied)
    for name in _SMALL:
        yield from _copy_file(state.directory / name, target / name, copied)
    for folder in ("audit", "audit/undo", "maps"):
        for path in sorted((state.directory / folder).iterdir()):
            if path.is_file():
                yield from _copy_file(path, target / folder / path.name, copied)
    for artifact in state.artifacts.all():
        source, place = state.artifact_root / artifact.uri, target / "artifacts" / artifact.uri
        # An artifact's name is never used twice, so one of the right size is the same file.
        if source.exists() and not (place.exists() and place.stat().st_size == artifact.bytes):
            yield from _copy_file(source, place, copied)
    yield from _copy_file(state.directory / "format", target / "format", copied)
    for folder, _, _ in os.walk(target):
        _sync_folder(Path(folder))


def finish(target: Path) -> None:
    """Take the marker away: the copy was verified."""
    (target / MARKER).unlink()
    _sync_folder(target)


def _prepare(state: State, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()) and not (target / MARKER).exists():
            theirs = target / "format"
            if not theirs.exists() or theirs.read_bytes() != (state.directory / "format").read_bytes():
                raise StateExists(
                    f"{target} is not empty and is no backup of this state", hint="choose a new directory"
                )
        (target / MARKER).touch()
        for folder in ("trade", "enrichment", "maps", "audit/undo", "artifacts", "temporary"):
            (target / folder).mkdir(parents=True, exist_ok=True)
        _sync_folder(target)
    except OSError as error:
        raise from_os_error(error, "mkdir", target) from error


def _copy_rows(source: Path, target: Path, kind: LedgerKind, copied: Copied) -> Iterator[None]:
    """One session file, block by block; a block equal to the earlier copy's is left alone."""
    size = BLOCK_BYTES[kind]
    try:
        with source.open("rb") as reader, target.open("r+b" if target.exists() else "w+b") as writer:
            writer.truncate(FILE_BYTES[kind])
            # Counts are of another moment than the blocks, so the copy carries none and is counted when it is opened.
            header = os.pread(reader.fileno(), COUNTS_OFFSET, 0)
            os.pwrite(writer.fileno(), header + bytes(ROWS_COUNTS.itemsize), 0)
            for index in _data_blocks(reader.fileno(), kind):
                offset = PAGE + index * size
                data = os.pread(reader.fileno(), size, offset)
                _check_seals(data, source, kind, index)
                if os.pread(writer.fileno(), size, offset) != data:
                    os.pwrite(writer.fileno(), data, offset)
                    copied.bytes += size
                yield
            os.fsync(writer.fileno())
            copied.files += 1
    except OSError as error:
        raise from_os_error(error, "write", target) from error


def _data_blocks(descriptor: int, kind: LedgerKind) -> Iterator[int]:
    """Indices of the blocks that hold data, from the file system's extents."""
    size, offset, last = BLOCK_BYTES[kind], PAGE, -1
    while offset < FILE_BYTES[kind]:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        for index in range(max(start - PAGE, 0) // size, -(-(end - PAGE) // size)):
            if index > last:
                last = index
                yield index
        offset = end


def _check_seals(data: bytes, path: Path, kind: LedgerKind, index: int) -> None:
    """The copying thread is the writing one, so a seal that does not fit is damage, never a write in progress."""
    words = np.frombuffer(data, dtype="<u8", count=MINUTES_PER_SESSION * ROW_BYTES[kind] // 8)
    slots = words.reshape(MINUTES_PER_SESSION, len(COLUMNS_OF[kind]) + 1, 4)[:, 1:, :]
    broken = np.argwhere(seals(slots) != slots[:, :, 3] >> np.uint64(32))
    if len(broken):
        minute, column = (int(one) for one in broken[0])
        raise ChecksumMismatch(
            f"{path}: the seal of {COLUMNS_OF[kind][column]} at symbol_id {index}, minute {minute} is broken; "
            "nothing damaged is backed up",
            hint="look with: m17ctl verify; then clear the cell",
        )


def _copy_file(source: Path, target: Path, copied: Copied) -> Iterator[None]:
    """A whole file, in steps, under a temporary name; what is appended meanwhile is copied up to the size at the start."""
    if not source.exists():
        return
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, part.open("wb") as writer:
            left = os.fstat(reader.fileno()).st_size
            while left and (piece := reader.read(min(_STEP_BYTES, left))):
                writer.write(piece)
                left -= len(piece)
                copied.bytes += len(piece)
                yield
            writer.flush()
            os.fsync(writer.fileno())
        part.replace(target)
        copied.files += 1
    except OSError as error:
        raise from_os_error(error, "write", target) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
