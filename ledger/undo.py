"""
Undo: the slots that an operation took away, compressed and synced before they go, in ``audit/undo/OPERATION``.

One version per cell is kept as well, the one the operation left: undo gives a cell back only while nobody has written
it since. A large operation keeps its cells piece by piece, each before it goes; until it is finished the header counts
no cells, and whatever a crash tore behind the last whole piece was never taken. This module must never decide what is
given back; it keeps bytes.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import zstandard
from numpy.typing import ArrayLike, NDArray

from ledger.audit import FOLDER
from ledger.errors import AddressError, DamagedFile, SpaceError
from ledger.files import (
    HEADER_BYTES,
    TEMPORARY_SUFFIX,
    PathLike,
    System,
    decode_header,
    encode_frame,
    encode_header,
    frame_at,
    write_atomically,
)
from ledger.layout import SLOT, SLOT_BYTES

UNDO_FOLDER: Final = "undo"
FILE_KIND: Final = "undo"
FILE_VERSION: Final = 1
OPEN_FOLDER: Final = Path(FOLDER) / "open"
"""Marks of operations that have begun and are not answered; only theirs may be unfinished."""
CELLS_PER_FRAME: Final = 1 << 14
"""Cells compressed at a time: what one step of a reader takes."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,119}", re.ASCII)
_FIELDS: Final = (("column", "<u1"), ("symbol_id", "<u2"), ("minute_idx", "<u4"), ("version", "<u4"))
_NOT_TAKEN: Final = "not_taken"
_SECTOR_BYTES: Final = 512
"""A header's facts fit into it, so that it is replaced at one blow."""
_CELL_BYTES: Final = sum(np.dtype(kind).itemsize for _, kind in _FIELDS) + SLOT_BYTES


@dataclass(frozen=True, slots=True)
class UndoCells:
    """The cells of one operation; arrays of one length, in the order they were given."""

    facts: dict[str, Any]
    """What the operation was: op, range, cause, time, ..."""
    column: NDArray[np.uint8]
    """Position of the column in :class:`ledger.columns.Column`, from 0."""
    symbol_id: NDArray[np.uint16]
    minute_idx: NDArray[np.uint32]
    version: NDArray[np.uint32]
    """The version each cell had after the operation."""
    slots: NDArray[np.void]
    """:data:`ledger.layout.SLOT` array: the slots as they were before."""

    def __len__(self) -> int:
        return len(self.column)


class UndoFile:
    """
    What one operation takes, written while it goes on.

    Args (of the constructor):
        directory: the state directory.
        system: makes the system calls.
        operation: its name, which is the file's name.
        facts: JSON values; no limit on their size.

    Raises:
        AddressError: ``operation`` cannot be a file's name.
        SpaceError: the file system refused; the constructor leaves no file then.
    """

    def __init__(self, directory: PathLike, system: System, operation: str, facts: Mapping[str, Any]) -> None:
        self.path = undo_path(directory, operation)
        self._system, self._operation = system, operation
        self.cells = 0
        """Kept, without those that were not taken in the end."""
        self._kept = 0
        data = _header(operation, None) + encode_frame(json.dumps(dict(facts), sort_keys=True).encode())
        system.make_directory(self.path.parent.parent)
        system.make_directory(self.path.parent)
        write_atomically(system, self.path, data)
        self._end = len(data)
        self._descriptor = system.open(self.path, os.O_RDWR)

    def keep(
        self,
        *,
        column: ArrayLike,
        symbol_id: ArrayLike,
        minute_idx: ArrayLike,
        version: ArrayLike,
        slots: NDArray[np.void] | bytes,
    ) -> None:
        """
        Keep a piece, durably; see :func:`write_undo`. May run in a thread of its own, one at a time.

        Raises:
            ValueError: the arrays have different lengths, or a number does not fit its type.
            SpaceError: the file system refused; a reader does not see the piece, or sees it whole.
        """
        count, frames = _frames(column, symbol_id, minute_idx, version, slots)
        self._append(b"".join(frames))
        self._kept += count
        self.cells += count

    def take_out(self, positions: NDArray[np.int64]) -> None:
        """
        Cells of the last piece that are not taken after all, durably, before the others go.

        Args:
            positions: i64[n], counted over all cells kept so far.
        """
        self._append(encode_frame(json.dumps({_NOT_TAKEN: positions.tolist()}).encode()))
        self.cells -= len(positions)

    @property
    def kept(self) -> int:
        """Cells kept, with those taken out again."""
        return self._kept

    def _append(self, data: bytes) -> None:
        self._system.pwrite(self._descriptor, data, self._end)
        self._system.fdatasync(self._descriptor)
        self._end += len(data)

    def finish(self) -> None:
        """Say in the header how many cells there are, durably; a reader that finds fewer or more calls it damaged."""
        self._system.pwrite(self._descriptor, _header(self._operation, self.cells)[:_SECTOR_BYTES], 0)
        self._system.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file, finished or not."""
        self._system.close(self._descriptor)


def write_undo(
    directory: PathLike,
    system: System,
    operation: str,
    facts: Mapping[str, Any],
    *,
    column: ArrayLike,
    symbol_id: ArrayLike,
    minute_idx: ArrayLike,
    version: ArrayLike,
    slots: NDArray[np.void] | bytes,
) -> int:
    """
    Keep all that an operation takes away at once; durable when it returns. Returns the file's size in bytes.

    Args:
        directory: the state directory.
        system: makes the system calls.
        operation: its name, which is the file's name.
        facts: JSON values; no limit on their size.
        column, symbol_id, minute_idx, version: see :class:`UndoCells`.
        slots: 32 bytes a cell.

    Raises:
        AddressError: ``operation`` cannot be a file's name.
        ValueError: the arrays have different lengths, or a number does not fit its type.
        SpaceError: the file system refused; nothing was kept.
    """
    path = undo_path(directory, operation)
    count, frames = _frames(column, symbol_id, minute_idx, version, slots)
    first = encode_frame(json.dumps(dict(facts), sort_keys=True).encode())
    system.make_directory(path.parent.parent)
    system.make_directory(path.parent)
    data = b"".join((_header(operation, count), first, *frames))
    write_atomically(system, path, data)
    return len(data)


def _header(operation: str, cells: int | None) -> bytes:
    return encode_header(FILE_KIND, FILE_VERSION, {"operation": operation, "cells": cells})


def _frames(
    column: ArrayLike, symbol_id: ArrayLike, minute_idx: ArrayLike, version: ArrayLike, slots: NDArray[np.void] | bytes
) -> tuple[int, list[bytes]]:
    cells: dict[str, NDArray[Any]] = {}
    for (name, kind), values in zip(_FIELDS, (column, symbol_id, minute_idx, version), strict=True):
        given = np.asarray(values)
        cells[name] = given.astype(kind)
        if not np.array_equal(cells[name], given):
            raise ValueError(f"a value of {name} does not fit {kind}")
    flat = np.frombuffer(slots if isinstance(slots, bytes) else np.ascontiguousarray(slots).tobytes(), dtype=np.uint8)
    count = flat.size // SLOT_BYTES
    if flat.size % SLOT_BYTES or any(values.shape != (count,) for values in cells.values()):
        shapes = [values.shape for values in cells.values()]
        raise ValueError(f"{flat.size} bytes of slots do not fit arrays of the shapes {shapes}")
    matrix = flat.reshape(count, SLOT_BYTES)
    compressor = zstandard.ZstdCompressor(level=1)
    frames = []
    for first in range(0, count, CELLS_PER_FRAME):
        part = slice(first, first + CELLS_PER_FRAME)
        # Slots byte by byte (all first bytes, then all second ones ...): neighbours are alike, and compress.
        pieces = [values[part].tobytes() for values in cells.values()] + [matrix[part].T.tobytes()]
        frames.append(encode_frame(compressor.compress(b"".join(pieces))))
    return count, frames


class UndoReader:
    """
    What is kept of an operation, read frame by frame; :meth:`check` walks all of it before the first cell is believed.

    Raises (constructor and methods):
        AddressError: there is nothing kept of the operation.
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
        SpaceError: the file system refused.
    """

    def __init__(self, directory: PathLike, system: System, operation: str) -> None:
        self.path = undo_path(directory, operation)
        self._system = system
        try:
            self._descriptor = system.open(self.path, os.O_RDONLY)
        except SpaceError as error:
            if error.facts["errno"] == errno.ENOENT:
                raise _nothing_kept(operation) from error
            raise
        self.finished = False
        """False while the operation goes on, or where it was interrupted."""
        self.facts: dict[str, Any] = {}
        self.cells = 0
        self._operation = operation
        self._frames: list[tuple[int, int]] = []
        self._not_taken = np.zeros(0, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._system.close(self._descriptor)

    def check(self) -> Iterator[None]:
        """Walk the whole file; yields between frames. Must be done before :meth:`pieces`."""
        path, size = self.path, self._system.size(self._descriptor)
        header = decode_header(self._system.pread(self._descriptor, HEADER_BYTES, 0), FILE_KIND, FILE_VERSION, path)
        if header.get("operation") != self._operation:
            raise DamagedFile(f"{path} is of operation {header.get('operation')}", path=str(path))
        kept, not_taken, offset = 0, list[int](), HEADER_BYTES
        while (found := frame_at(self._system, self._descriptor, offset, size)) is not None:
            payload, end = found
            if offset == HEADER_BYTES:
                self.facts = json.loads(payload)
            elif payload.startswith(b"{"):
                not_taken += json.loads(payload)[_NOT_TAKEN]
            else:
                self._frames.append((offset, kept))
                kept += _cells_in(payload, path)
            offset = end
            yield
        self._not_taken = np.array(not_taken, dtype=np.int64)
        self.cells, count = kept - len(not_taken), header.get("cells")
        self.finished = count is not None
        if offset == HEADER_BYTES or (self.finished and (offset != size or count != self.cells)):
            raise DamagedFile(f"{path} does not hold the {count} cells of its header", path=str(path))

    def pieces(self) -> Iterator[UndoCells]:
        """The cells, a frame at a time."""
        size = self._system.size(self._descriptor)
        for offset, first in self._frames:
            found = frame_at(self._system, self._descriptor, offset, size)
            if found is None:
                raise DamagedFile(f"{self.path}: the frame at byte {offset} changed", path=str(self.path))
            part = _unpack(found[0], self.path)
            out = self._not_taken[(self._not_taken >= first) & (self._not_taken < first + len(part["column"]))] - first
            if len(out):
                part = {name: np.delete(values, out) for name, values in part.items()}
            yield UndoCells(self.facts, **part)


def read_undo(directory: PathLike, system: System, operation: str) -> UndoCells:
    """What is kept of an operation, all at once; of an unfinished one, what it has taken. Raises as :class:`UndoReader`."""
    with UndoReader(directory, system, operation) as reader:
        for _ in reader.check():
            pass
        parts = list(reader.pieces())
        whole = {
            name: np.concatenate([np.empty(0, dtype=kind), *(getattr(part, name) for part in parts)])
            for name, kind in (*_FIELDS, ("slots", SLOT))
        }
        return UndoCells(reader.facts, **whole)


def list_undo(directory: PathLike, system: System) -> list[str]:
    """Names of the operations that something is kept of, sorted."""
    names = system.list_directory(Path(directory) / FOLDER / UNDO_FOLDER)
    return [name for name in names if not name.endswith(TEMPORARY_SUFFIX) and _NAME.fullmatch(name)]


def remove_undo(directory: PathLike, system: System, operation: str) -> None:
    """Forget what is kept of the operation, durably; raises :class:`AddressError` when nothing is."""
    path = undo_path(directory, operation)
    try:
        system.unlink(path)
    except SpaceError as error:
        if operation in list_undo(directory, system):
            raise
        raise _nothing_kept(operation) from error
    system.fsync_directory(path.parent)


def undo_path(directory: PathLike, operation: str) -> Path:
    """The file of an operation; raises :class:`AddressError` for a name that no operation can have."""
    if not _NAME.fullmatch(operation) or operation.endswith(TEMPORARY_SUFFIX):
        hint = "list the operations with: m17ctl audit"
        raise AddressError(f"{operation!r} cannot be the name of an operation", hint=hint, operation=operation)
    return Path(directory) / FOLDER / UNDO_FOLDER / operation


def _nothing_kept(operation: str) -> AddressError:
    hint = "list the operations with: m17ctl audit"
    return AddressError(f"nothing is kept of operation {operation}", hint=hint, operation=operation)


def _cells_in(payload: bytes, path: Path) -> int:
    """Cells of a frame, from its size as zstandard says it; the frame's own checksum has held."""
    try:
        count, rest = divmod(zstandard.frame_content_size(payload), _CELL_BYTES)
    except zstandard.ZstdError as error:
        raise DamagedFile(f"{path}: a part of it cannot be decompressed: {error}", path=str(path)) from error
    if rest or count < 0:
        raise DamagedFile(f"{path}: a part of it holds no whole number of cells", path=str(path))
    return count


def _unpack(payload: bytes, path: Path) -> dict[str, NDArray[Any]]:
    count = _cells_in(payload, path)
    try:
        data = zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise DamagedFile(f"{path}: a part of it cannot be decompressed: {error}", path=str(path)) from error
    found: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, kind in _FIELDS:
        found[name] = np.frombuffer(data, dtype=kind, count=count, offset=offset)
        offset += found[name].nbytes
    planes = np.frombuffer(data, dtype=np.uint8, offset=offset).reshape(SLOT_BYTES, count)
    found["slots"] = np.ascontiguousarray(planes.T).reshape(-1).view(SLOT)
    return found
