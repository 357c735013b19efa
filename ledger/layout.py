"""
The bytes: slots, rows, blocks, header pages and the seal, each asserted where it is declared.

Everything is little-endian. A slot is 32 bytes and never crosses a cache line, a sector or a page; a block holds the
390 rows of one symbol and begins on a page. This module must never read or write a file.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ledger.columns import (
    ENRICHMENT_COLUMNS,
    MINUTES_PER_SESSION,
    SYMBOLS_MAX,
    TRADE_COLUMNS,
    Column,
    LedgerKind,
)

FORMAT_VERSION: Final = 1
"""Version of every file of the state directory; another version is refused."""
ROW_SCHEMA_VERSION: Final = 1
PAGE: Final = 4096
SLOT_BYTES: Final = 32
ROW_HEADER_BYTES: Final = 32

SLOT: Final = np.dtype(
    [
        ("payload_type", "u1"),
        ("status", "u1"),
        ("source", "u1"),
        ("flags", "u1"),
        ("payload_id", "<u4"),
        ("version", "<u4"),
        ("checksum", "<u4"),
        ("last_updated_ns", "<i8"),
        ("inputs", "<u4"),
        ("seal", "<u4"),
    ]
)
assert SLOT.itemsize == SLOT_BYTES
SLOT_STRUCT: Final = "<BBBBIIIqII"
"""The slot for the struct module, in field order."""

_HEADER_FIELDS: Final = [
    ("symbol_id", "<u2"),
    ("schema_version", "<u2"),
    ("minute_idx", "<u4"),
    ("start_ts", "<i8"),
    ("end_ts", "<i8"),
    ("reserved", "<u8"),
]
TRADE_ROW: Final = np.dtype([*_HEADER_FIELDS, *((str(column), SLOT) for column in TRADE_COLUMNS)])
ENRICHMENT_ROW: Final = np.dtype([*_HEADER_FIELDS, *((str(column), SLOT) for column in ENRICHMENT_COLUMNS)])
assert TRADE_ROW.itemsize == 160
assert ENRICHMENT_ROW.itemsize == 256
ROW_DTYPE: Final = {LedgerKind.TRADE: TRADE_ROW, LedgerKind.ENRICHMENT: ENRICHMENT_ROW}
ROW_BYTES: Final = {kind: dtype.itemsize for kind, dtype in ROW_DTYPE.items()}
COLUMNS_OF: Final[dict[LedgerKind, tuple[Column, ...]]] = {
    LedgerKind.TRADE: TRADE_COLUMNS,
    LedgerKind.ENRICHMENT: ENRICHMENT_COLUMNS,
}


def _block_bytes(kind: LedgerKind) -> int:
    pages = -(-MINUTES_PER_SESSION * ROW_BYTES[kind] // PAGE)
    return pages * PAGE


BLOCK_BYTES: Final = {kind: _block_bytes(kind) for kind in LedgerKind}
assert BLOCK_BYTES[LedgerKind.TRADE] == 64 * 1024
assert BLOCK_BYTES[LedgerKind.ENRICHMENT] == 100 * 1024
FILE_BYTES: Final = {kind: PAGE + SYMBOLS_MAX * BLOCK_BYTES[kind] for kind in LedgerKind}

SLOT_OFFSET: Final = {
    column: ROW_HEADER_BYTES + SLOT_BYTES * column.slot_index for column in (*TRADE_COLUMNS, *ENRICHMENT_COLUMNS)
}
"""Offset in bytes of each column's slot inside its row."""
assert all(ROW_DTYPE[column.ledger].fields[str(column)][1] == offset for column, offset in SLOT_OFFSET.items())  # type: ignore[index]

SEAL_K0: Final = 0x9E3779B97F4A7C15
SEAL_K1: Final = 0xC2B2AE3D27D4EB4F
SEAL_K2: Final = 0x165667B19E3779F9
SEAL_K3: Final = 0xD6E8FEB86659FD93
SEAL_CONSTANTS: Final = (SEAL_K0, SEAL_K1, SEAL_K2, SEAL_K3)
"""Odd 64-bit constants; also written into the ``format`` file for foreign clients."""
assert all(constant % 2 == 1 for constant in SEAL_CONSTANTS)
_MASK: Final = (1 << 64) - 1


def seal(w0: int, w1: int, w2: int, inputs: int) -> int:
    """
    The seal of one slot: the upper 32 bits of w0*K0 + w1*K1 + w2*K2 + w3*K3 mod 2**64.

    Args:
        w0, w1, w2: the slot's first three 64-bit words.
        inputs: low half of the fourth word; the seal itself counts as 0.
    """
    return ((w0 * SEAL_K0 + w1 * SEAL_K1 + w2 * SEAL_K2 + inputs * SEAL_K3) & _MASK) >> 32


def seals(words: np.ndarray) -> np.ndarray:
    """
    The seals of many slots.

    Args:
        words: u64[..., 4], the slots as words; the seal in them is ignored.

    Returns:
        u64[...] holding 32-bit seals, a fresh array.
    """
    total: np.ndarray = words[..., 0] * np.uint64(SEAL_K0)
    total += words[..., 1] * np.uint64(SEAL_K1)
    total += words[..., 2] * np.uint64(SEAL_K2)
    total += (words[..., 3] & np.uint64(0xFFFFFFFF)) * np.uint64(SEAL_K3)
    total >>= np.uint64(32)
    return total


# ---- header page of a session file: identity first, then the counts the flusher writes

ROWS_MAGIC: Final = b"M17ROWS\0"
ROWS_IDENTITY: Final = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("crc", "<u4"),
        ("year", "<u2"),
        ("session_seq", "<u2"),
        ("minutes", "<u2"),
        ("columns", "<u2"),
        ("symbols_max", "<u4"),
        ("row_bytes", "<u4"),
        ("open_ns", "<i8"),
        ("ledger", "S16"),
        ("date", "S16"),
    ]
)
COUNTS_OFFSET: Final = 1024
FLAG_COUNT: Final = 5
ROWS_COUNTS: Final = np.dtype(
    [
        ("crc", "<u4"),
        ("clean", "<u4"),
        ("status", "<u4", (7, 4)),
        ("flags", "<u4", (7, FLAG_COUNT)),
    ]
)
"""Counts of statuses and of flags per column over reserved blocks; empty counts only cells of reserved blocks."""
assert COUNTS_OFFSET + ROWS_COUNTS.itemsize <= PAGE
assert ROWS_IDENTITY.itemsize <= COUNTS_OFFSET
