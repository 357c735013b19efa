"""
The table of input cells in the footer of an aggregates' artifact: which payload of which cell each window was made from.

A window has too many inputs for its record, so the record names a run of this table. It lies in the Parquet footer as two
key-value entries, where any reader of Parquet finds it; :func:`read_table` finds it without one, because the daemon, which
answers what a cell was made from, loads none. This module must never write a file.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import zstandard

from ledger.columns import Column
from ledger.errors import ChecksumMismatch, UnknownPayload

INPUT: Final = np.dtype([("symbol", "<u2"), ("minute", "<u2"), ("column", "u1"), ("payload_id", "<u4")])
"""One input cell: symbol as an index into the table's names, minute of the session, column as position in ``Column``."""
COLUMNS: Final = tuple(Column)
_ROWS_KEY: Final = "m17.inputs"
_NAMES_KEY: Final = "m17.input_symbols"
_MAGIC: Final = b"PAR1"
_TAIL_BYTES: Final = 8


class InputTable(NamedTuple):
    """The input cells of one artifact, ascending by underlying, then minute."""

    rows: np.ndarray
    """INPUT[n]."""
    symbols: list[str]


def footer_entries(rows: np.ndarray, symbols: Sequence[str]) -> dict[str, str]:
    """The table as key-value metadata of a Parquet file."""
    packed = base64.b64encode(zstandard.compress(np.ascontiguousarray(rows, dtype=INPUT).tobytes()))
    return {_ROWS_KEY: packed.decode(), _NAMES_KEY: json.dumps(list(symbols))}


def read_table(path: Path) -> InputTable:
    """
    The table of an artifact.

    Raises:
        UnknownPayload: the file is missing, or has no such table.
        ChecksumMismatch: the file is not whole, or the table cannot be unpacked.
    """
    hint = "clear the range and let the engines fill it again"
    try:
        footer = _footer(path)
    except FileNotFoundError as error:
        raise UnknownPayload(f"{path} is missing", hint=hint, path=str(path)) from error
    packed, names = (_entry(footer, key) for key in (_ROWS_KEY, _NAMES_KEY))
    if packed is None or names is None:
        raise UnknownPayload(f"{path} names no input cells", hint=hint, path=str(path))
    try:
        rows = np.frombuffer(zstandard.decompress(base64.b64decode(packed, validate=True)), dtype=INPUT)
        symbols = [str(name) for name in json.loads(names)]
    except (ValueError, zstandard.ZstdError) as error:
        raise ChecksumMismatch(f"{path}: its table of input cells is damaged: {error}", path=str(path)) from error
    return InputTable(rows, symbols)


def _footer(path: Path) -> bytes:
    """The bytes of a Parquet file's footer: the metadata between its last row group and its last eight bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - _TAIL_BYTES:
            raise ChecksumMismatch(f"{path} is no whole Parquet file", path=str(path))
        file.seek(size - _TAIL_BYTES - length)
        return file.read(length)


def _entry(footer: bytes, key: str) -> bytes | None:
    """
    The value of a key in the footer's key-value metadata, None where there is none.

    In Thrift's compact protocol an entry is a structure of two texts: 0x18 (field 1, a text), length and bytes of the key,
    0x18 again (the next field, a text), length and bytes of the value; lengths are seven bits a byte, low ones first.
    """
    start = b"\x18" + bytes([len(key)]) + key.encode() + b"\x18"
    at = footer.rfind(start)
    if at < 0:
        return None
    at += len(start)
    length = shift = 0
    while footer[at] & 0x80:
        length |= (footer[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    length |= footer[at] << shift
    return footer[at + 1 : at + 1 + length]
