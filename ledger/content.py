"""
Content hashes: 64 bits over kind, window, counts and rows in canonical column and row order.

A hash is a pure function of what the rows say, never of a payload id, batch, URI, source, version or clock, so equal
content has an equal checksum however and whenever it was made. This module must never read a file or import anything
but numpy and the standard library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from ledger.columns import PayloadKind

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_A: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B: Final = np.uint64(0x94D049BB133111EB)
_NULL: Final = np.uint64(0xA5A5F00DDEADBEEF)
_MASK: Final = (1 << 64) - 1
_ROWS_AT_ONCE: Final = 8192


def mix(values: np.ndarray) -> np.ndarray:
    """
    The finaliser of SplitMix64 (Steele, Lea, Flood 2014), elementwise.

    Args:
        values: u64[n].

    Returns:
        u64[n], a fresh array.
    """
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _MIX_A
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_B
    mixed ^= mixed >> np.uint64(31)
    return mixed


def text_hash(text: str) -> int:
    """64-bit hash of a string: the first eight bytes of its BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def text_hashes(values: Iterable[str]) -> np.ndarray:
    """u64[n], :func:`text_hash` of each string; meant for the few unique values of a column."""
    return np.array([text_hash(value) for value in values], dtype=np.uint64)


def column_bits(values: np.ndarray) -> np.ndarray:
    """
    A column as 64-bit patterns that are equal exactly where the values are.

    Args:
        values: integers, booleans, or floats of any width, shape [n]; -0.0 counts as 0.0, every NaN as one null.

    Returns:
        u64[n].
    """
    if values.dtype.kind == "f":
        floats = values.astype(np.float64, copy=True)
        floats += 0.0  # turns -0.0 into 0.0
        bits = floats.view(np.uint64)
        bits[np.isnan(floats)] = _NULL
        return bits
    if values.dtype.kind == "u":
        return values.astype(np.uint64)
    return values.astype(np.int64).view(np.uint64)


def row_hashes(columns: Sequence[np.ndarray]) -> np.ndarray:
    """
    One hash per row over the hashed columns in their canonical order.

    Args:
        columns: arrays of one length [n]; strings as their :func:`text_hashes`.

    Returns:
        u64[n].
    """
    hashes = np.empty(len(columns[0]), dtype=np.uint64)
    # In pieces that stay in the cache: every column costs a dozen passes.
    for first in range(0, len(hashes), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        state = np.full(len(hashes[part]), _GOLDEN, dtype=np.uint64)
        for column in columns:
            state ^= column_bits(column[part])
            state *= _MIX_A
            state ^= state >> np.uint64(29)
            state += _GOLDEN
        hashes[part] = mix(state)
    return hashes


def cell_hashes(
    kind: PayloadKind, start_ts: np.ndarray, row_start: np.ndarray, row_count: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """
    One content hash per cell from the hashes of its rows.

    Args:
        kind: payload kind of the cells.
        start_ts: i64[n], window starts in ns since epoch UTC.
        row_start: i64[n], first row of each cell in ``rows``.
        row_count: i64[n], rows of each cell; 0 is allowed.
        rows: u64[m], :func:`row_hashes` in canonical row order.

    Returns:
        u64[n]; order within a cell matters, what lies outside it does not.
    """
    starts, counts = row_start.astype(np.int64), row_count.astype(np.int64)
    sums = np.zeros(len(starts), dtype=np.uint64)
    filled = np.flatnonzero(counts)
    if len(filled):
        ends = np.cumsum(counts[filled])
        first = ends - counts[filled]
        total, before = int(ends[-1]), starts[filled]
        ordinal = np.arange(total, dtype=np.int64)
        ordinal -= np.repeat(first, counts[filled])
        if (before - first == before[0]).all():
            # Cells that lie one behind the other, as nearly all do: nothing has to be gathered.
            salted = rows[int(before[0]) : int(before[0]) + total].copy()
        else:
            salted = rows[ordinal + np.repeat(before, counts[filled])]
        for start in range(0, total, _ROWS_AT_ONCE):
            part = salted[start : start + _ROWS_AT_ONCE]
            part += ordinal[start : start + _ROWS_AT_ONCE].view(np.uint64) * _GOLDEN
            part[:] = mix(part)
        sums[filled] = np.add.reduceat(salted, first)
    head = mix(start_ts.astype(np.int64).view(np.uint64) + np.uint64(int(kind) * int(_GOLDEN) & _MASK))
    return mix(sums ^ mix(head + counts.astype(np.uint64) * _MIX_B))


def no_rows_hash(kind: PayloadKind) -> int:
    """The content hash of the no-rows record of a kind: window 0, count 0; a constant per kind."""
    zero = np.zeros(1, dtype=np.int64)
    return int(cell_hashes(kind, zero, zero, zero, np.zeros(0, dtype=np.uint64))[0])


def checksum_of(hashes: np.ndarray) -> np.ndarray:
    """u32[n], the first (upper) 32 bits of 64-bit content hashes; what a slot carries."""
    return (hashes >> np.uint64(32)).astype(np.uint32)
