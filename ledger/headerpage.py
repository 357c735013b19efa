"""
The header page of a session file as bytes: whose file it is, and the counts that were right when it was last clean.

This module must never open a file.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import numpy as np

from ledger.columns import SYMBOLS_MAX, LedgerKind
from ledger.errors import ChecksumMismatch, DamagedFile, FileVersionMismatch, NotALedgerFile
from ledger.layout import (
    COLUMNS_OF,
    COUNTS_OFFSET,
    FLAG_COUNT,
    FORMAT_VERSION,
    PAGE,
    ROW_BYTES,
    ROWS_COUNTS,
    ROWS_IDENTITY,
    ROWS_MAGIC,
)
from ledger.slots import SessionPlace


def encode_page(kind: LedgerKind, place: SessionPlace, counts: bytes) -> bytes:
    """The page up to the end of its counts; zeros follow."""
    page = np.zeros(1, dtype=ROWS_IDENTITY)
    page["magic"], page["version"] = ROWS_MAGIC, FORMAT_VERSION
    page["year"], page["session_seq"] = place.year, place.session_seq
    page["minutes"], page["columns"] = place.minutes, len(COLUMNS_OF[kind])
    page["symbols_max"], page["row_bytes"] = SYMBOLS_MAX, ROW_BYTES[kind]
    page["open_ns"], page["ledger"], page["date"] = place.open_ns, kind.value, place.date
    page["crc"] = zlib.crc32(page.tobytes()[16:])
    return page.tobytes().ljust(COUNTS_OFFSET, b"\0") + counts


def check_page(page: bytes, path: Path, kind: LedgerKind, place: SessionPlace) -> None:
    """
    Refuse the page of anything but that session of that ledger.

    Raises:
        DamagedFile: it is cut short, or another session's.
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch: as its first bytes say.
    """
    if len(page) < PAGE:
        raise DamagedFile(f"{path}: {len(page)} bytes, shorter than its header page: it was truncated", path=str(path))
    found = np.frombuffer(page, dtype=ROWS_IDENTITY, count=1)[0]
    if page[: len(ROWS_MAGIC)] != ROWS_MAGIC:
        raise NotALedgerFile(f"{path}: not a file of rows (magic {page[:8]!r})", path=str(path))
    if found["version"] != FORMAT_VERSION:
        text = f"{path}: format version {found['version']}, this M17 reads {FORMAT_VERSION}"
        raise FileVersionMismatch(text, path=str(path), found=int(found["version"]), expected=FORMAT_VERSION)
    if found["crc"] != zlib.crc32(page[16 : ROWS_IDENTITY.itemsize]):
        raise ChecksumMismatch(f"{path}: the checksum of its header page does not fit", path=str(path))
    expected = encode_page(kind, place, b"")[: ROWS_IDENTITY.itemsize]
    if page[: ROWS_IDENTITY.itemsize] != expected:
        ours = np.frombuffer(expected, dtype=ROWS_IDENTITY)[0]
        names = [name for name in ROWS_IDENTITY.names or () if found[name] != ours[name]]
        text = f"{path}: it is the file of another session or ledger (differs in {', '.join(names)})"
        raise DamagedFile(text, path=str(path))


def counts_in(page: bytes) -> np.void | None:
    """The page's counts, None where their checksum does not fit."""
    stored: np.void = np.frombuffer(page, dtype=ROWS_COUNTS, count=1, offset=COUNTS_OFFSET)[0]
    return stored if stored["crc"] == zlib.crc32(stored.tobytes()[4:]) else None


def has_stray_bytes(page: bytes) -> bool:
    """True where bytes stand between identity and counts, or behind them."""
    return any(page[ROWS_IDENTITY.itemsize : COUNTS_OFFSET]) or any(page[COUNTS_OFFSET + ROWS_COUNTS.itemsize : PAGE])


def encode_counts(status: np.ndarray, flags: np.ndarray, *, clean: bool) -> bytes:
    """
    The counts of a header page.

    Args:
        status, flags: i64[columns, 4] and i64[columns, 5].
        clean: counts and rows agree; without it a reader counts for himself.
    """
    page = np.zeros(1, dtype=ROWS_COUNTS)
    page["clean"] = int(clean)
    page["status"][0, : len(status)] = status
    page["flags"][0, : len(flags)] = flags
    page["crc"] = zlib.crc32(page.tobytes()[4:])
    return page.tobytes()


NO_COUNTS: Final = encode_counts(np.zeros((0, 4)), np.zeros((0, FLAG_COUNT)), clean=False)
"""Counts that claim nothing."""
