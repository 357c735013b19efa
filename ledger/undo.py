"""
Undo: the slots that an operation took away, compressed and synced before they go, in ``audit/undo/OPERATION``.

One version per cell is kept as well, the one the operation left: undo gives a cell back only while nobody has written
it since. This module must never decide that; it keeps bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
    read_frames,
    read_whole,
    write_atomically,
)
from ledger.layout import SLOT, SLOT_BYTES

UNDO_FOLDER: Final = "undo"
FILE_KIND: Final = "undo"
FILE_VERSION: Final = 1
CELLS_PER_FRAME: Final = 1 << 18
"""Cells compressed at a time; bounds memory to about 12 MB over the arrays themselves."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,119}", re.ASCII)
_FIELDS: Final = (("column", "<u1"), ("symbol_id", "<u2"), ("minute_idx", "<u4"), ("version", "<u4"))
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
    Keep what the operation takes away; durable when it returns. Returns the file's size in bytes.

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
    path = _path(directory, operation)
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
    compressor = zstandard.ZstdCompressor(level=3)
    frames = [encode_frame(json.dumps(dict(facts), sort_keys=True).encode())]
    for first in range(0, count, CELLS_PER_FRAME):
        part = slice(first, first + CELLS_PER_FRAME)
        # Slots byte by byte (all first bytes, then all second ones ...): neighbours are alike, and compress.
        pieces = [values[part].tobytes() for values in cells.values()] + [matrix[part].T.tobytes()]
        frames.append(encode_frame(compressor.compress(b"".join(pieces))))
    header = encode_header(FILE_KIND, FILE_VERSION, {"operation": operation, "cells": count})
    system.make_directory(path.parent.parent)
    system.make_directory(path.parent)
    data = b"".join((header, *frames))
    write_atomically(system, path, data)
    return len(data)


def read_undo(directory: PathLike, system: System, operation: str) -> UndoCells:
    """
    What :func:`write_undo` kept.

    Raises:
        AddressError: there is nothing kept of the operation.
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
        SpaceError: the file system refused.
    """
    path = _path(directory, operation)
    data = read_whole(system, path)
    if data is None:
        raise _nothing_kept(operation)
    header = decode_header(data, FILE_KIND, FILE_VERSION, path)
    if header.get("operation") != operation:
        raise DamagedFile(f"{path} is of operation {header.get('operation')}", path=str(path))
    payloads, length = read_frames(data, path, start=HEADER_BYTES)
    parts = [_unpack(payload, path) for payload in payloads[1:]]
    if not payloads or length != len(data) or sum(len(part["column"]) for part in parts) != header.get("cells"):
        raise DamagedFile(f"{path} does not hold the {header.get('cells')} cells of its header", path=str(path))
    whole = {
        name: np.concatenate([np.empty(0, dtype=kind), *(part[name] for part in parts)])
        for name, kind in (*_FIELDS, ("slots", SLOT))
    }
    return UndoCells(json.loads(payloads[0]), **whole)


def list_undo(directory: PathLike, system: System) -> list[str]:
    """Names of the operations that something is kept of, sorted."""
    names = system.list_directory(Path(directory) / FOLDER / UNDO_FOLDER)
    return [name for name in names if not name.endswith(TEMPORARY_SUFFIX) and _NAME.fullmatch(name)]


def remove_undo(directory: PathLike, system: System, operation: str) -> None:
    """Forget what is kept of the operation, durably; raises :class:`AddressError` when nothing is."""
    path = _path(directory, operation)
    try:
        system.unlink(path)
    except SpaceError as error:
        if operation in list_undo(directory, system):
            raise
        raise _nothing_kept(operation) from error
    system.fsync_directory(path.parent)


def _path(directory: PathLike, operation: str) -> Path:
    if not _NAME.fullmatch(operation) or operation.endswith(TEMPORARY_SUFFIX):
        hint = "list the operations with: m17ctl audit"
        raise AddressError(f"{operation!r} cannot be the name of an operation", hint=hint, operation=operation)
    return Path(directory) / FOLDER / UNDO_FOLDER / operation


def _nothing_kept(operation: str) -> AddressError:
    hint = "list the operations with: m17ctl audit"
    return AddressError(f"nothing is kept of operation {operation}", hint=hint, operation=operation)


def _unpack(payload: bytes, path: Path) -> dict[str, NDArray[Any]]:
    try:
        data = zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise DamagedFile(f"{path}: a part of it cannot be decompressed: {error}", path=str(path)) from error
    count, rest = divmod(len(data), _CELL_BYTES)
    if rest:
        raise DamagedFile(f"{path}: a part of it holds no whole number of cells", path=str(path))
    found: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, kind in _FIELDS:
        found[name] = np.frombuffer(data, dtype=kind, count=count, offset=offset)
        offset += found[name].nbytes
    planes = np.frombuffer(data, dtype=np.uint8, offset=offset).reshape(SLOT_BYTES, count)
    found["slots"] = np.ascontiguousarray(planes.T).reshape(-1).view(SLOT)
    return found
