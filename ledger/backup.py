"""
Backup: a copy of a running state that is closed under reference, made in short steps.

Rows go first, block by block with every seal checked, then the small files, then the maps, then the artifacts that the
maps knew by then. So whatever a copied row names was copied after it. Row files stay sparse, and a repeated backup
writes what changed. This module must never change the state it copies, nor call a copy done: whoever verified it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ledger.closing import FILE_NAME as CLOSED_FILE
from ledger.columns import MINUTES_PER_SESSION, LedgerKind
from ledger.creation import ARTIFACTS_FILE, FOLDERS, FORMAT_FILE, UNVERIFIED_FILE
from ledger.errors import ChecksumMismatch, StateExists
from ledger.files import System, read_whole
from ledger.headerpage import NO_COUNTS
from ledger.layout import (
    BLOCK_BYTES,
    COLUMNS_OF,
    COUNTS_OFFSET,
    FILE_BYTES,
    PAGE,
    ROW_BYTES,
    seals,
)
from ledger.state import State
from ledger.undo import OPEN_FOLDER

_STEP_BYTES: Final = 1 << 20
_SMALL: Final = ("calendar", "symbol-map.bin", "sources", "regions", "paused")
_PART_SUFFIX: Final = ".part"
_GROWING: Final = ".map"


@dataclass(slots=True)
class Copied:
    """What a backup wrote; what an earlier one had left there is not counted."""

    files: int = 0
    bytes: int = 0


def backup(state: State, target: Path, copied: Copied) -> Iterator[None]:
    """
    Copy a state into a directory, new or holding an earlier backup of the same state; yields between short steps.

    The marker stays until the caller has verified the copy and calls :func:`finish`. A state that a failed sync made
    read-only can be copied too.

    Raises:
        StateExists: the directory holds something else.
        ChecksumMismatch: a seal of the state is broken; verify and repair it first.
        SpaceError: the file system refused; the marker stays.
    """
    yield from _Backup(state, target, copied).steps()


def finish(state: State, target: Path) -> None:
    """Take the marker away: the copy was verified. Raises :class:`SpaceError`."""
    system = state.system.inner
    system.unlink(target / UNVERIFIED_FILE)
    system.fsync_directory(target)


class _Backup:
    """One run. Writes go round the state's gate: the copy's disk is another matter than the state's."""

    def __init__(self, state: State, target: Path, copied: Copied) -> None:
        self.state = state
        self.target = target
        self.copied = copied
        self.system: System = state.system.inner

    def steps(self) -> Iterator[None]:
        state, source = self.state, self.state.directory
        self._begin()
        for ledger in (state.trade, state.enrichment):
            for seq in ledger.existing():
                path = ledger.path(seq)
                yield from self._copy_rows(path, self.target / ledger.kind.value / path.name, ledger.kind)
        for name in _SMALL:
            yield from self._copy_file(source / name, self.target / name)
        for folder in (OPEN_FOLDER.as_posix(), "audit", "audit/undo", "maps"):
            names = self.system.list_directory(source / folder)
            if names:
                self.system.make_directory(self.target / folder)
            for name in names:
                if (source / folder / name).is_file():
                    copy = self._copy_over if name.endswith(_GROWING) else self._copy_file
                    yield from copy(source / folder / name, self.target / folder / name)
        for artifact in state.artifacts.all():
            original, place = state.artifact_root / artifact.uri, self.target / "artifacts" / artifact.uri
            # An artifact's name is never used twice, so one of the right size is the same file.
            if original.exists() and not (place.exists() and place.stat().st_size == artifact.bytes):
                yield from self._copy_file(original, place)
        yield from self._copy_file(source / FORMAT_FILE, self.target / FORMAT_FILE)
        for folder, _, _ in os.walk(self.target):
            self.system.fsync_directory(folder)

    # ---- is it the place

    def _begin(self) -> None:
        system, target = self.system, self.target
        names = system.list_directory(target)
        if names and not self._is_earlier_copy(names):
            raise StateExists(f"{target} is not empty and is no backup of this state", hint="choose a new directory")
        for folder in (*reversed(target.absolute().parents), target):
            if not folder.exists():
                system.make_directory(folder)
        system.close(system.open(target / UNVERIFIED_FILE, os.O_RDWR | os.O_CREAT))
        system.fsync_directory(target)
        for folder in (target / name for name in FOLDERS):
            system.make_directory(folder)
        if CLOSED_FILE in names:
            system.unlink(target / CLOSED_FILE)

    def _is_earlier_copy(self, names: list[str]) -> bool:
        """An unfinished copy, or one whose identity is the state's and whose list of artifacts is where it began."""
        if FORMAT_FILE not in names:
            return UNVERIFIED_FILE in names
        theirs, ours = (read_whole(self.system, root / FORMAT_FILE) for root in (self.target, self.state.directory))
        if theirs != ours:
            return False
        theirs, ours = (read_whole(self.system, root / ARTIFACTS_FILE) for root in (self.target, self.state.directory))
        return theirs is None or (ours is not None and ours.startswith(theirs))

    # ---- copying

    def _copy_rows(self, source: Path, target: Path, kind: LedgerKind) -> Iterator[None]:
        """One session file, block by block; a block equal to the earlier copy's is left alone."""
        system, size, last = self.system, BLOCK_BYTES[kind], -1
        with ExitStack() as opened:
            reader, writer = self._open(source, os.O_RDONLY, opened), self._open(target, os.O_RDWR | os.O_CREAT, opened)
            system.ftruncate(writer, FILE_BYTES[kind])
            # Counts are of another moment than the blocks, so the copy carries none and is counted when it is opened.
            system.pwrite(writer, system.pread(reader, COUNTS_OFFSET, 0) + NO_COUNTS, 0)
            for start, end in system.extents(reader, PAGE, FILE_BYTES[kind]):
                for index in range(max((start - PAGE) // size, last + 1), -(-(end - PAGE) // size)):
                    offset, last = PAGE + index * size, index
                    data = system.pread(reader, size, offset)
                    _check_seals(data, source, kind, index)
                    if system.pread(writer, size, offset) != data:
                        system.pwrite(writer, data, offset)
                        self.copied.bytes += size
                    yield
            system.fdatasync(writer)
        self.copied.files += 1

    def _copy_over(self, source: Path, target: Path) -> Iterator[None]:
        """A large file that grows: only what differs from the earlier copy is written, in place."""
        system = self.system
        with ExitStack() as opened:
            reader, writer = self._open(source, os.O_RDONLY, opened), self._open(target, os.O_RDWR | os.O_CREAT, opened)
            size = system.size(reader)
            system.ftruncate(writer, size)
            for data, hole in system.extents(reader, 0, size):
                for offset in range(data, hole, _STEP_BYTES):
                    length = min(_STEP_BYTES, hole - offset)
                    piece = system.pread(reader, length, offset)
                    if system.pread(writer, length, offset) != piece:
                        self.copied.bytes += system.pwrite(writer, piece, offset)
                    yield
            system.fdatasync(writer)
        self.copied.files += 1

    def _copy_file(self, source: Path, target: Path) -> Iterator[None]:
        """A whole file, in steps, under a temporary name, up to the size that it has at the start."""
        if not source.exists():
            return
        system, part = self.system, target.with_name(target.name + _PART_SUFFIX)
        for folder in (*reversed(target.relative_to(self.target).parents),):
            system.make_directory(self.target / folder)
        with ExitStack() as opened:
            reader = self._open(source, os.O_RDONLY, opened)
            writer = self._open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, opened)
            size = system.size(reader)
            for offset in range(0, size, _STEP_BYTES):
                data = system.pread(reader, min(_STEP_BYTES, size - offset), offset)
                self.copied.bytes += system.pwrite(writer, data, offset)
                yield
            system.fdatasync(writer)
        system.rename(part, target)
        self.copied.files += 1

    def _open(self, path: Path, flags: int, opened: ExitStack) -> int:
        descriptor = self.system.open(path, flags)
        opened.callback(self.system.close, descriptor)
        return descriptor


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
