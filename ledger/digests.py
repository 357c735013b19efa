"""
Digests: one SHA-256 that two ledgers share exactly when they hold the same content for a session.

Over (column, symbol name, minute, status, no-rows and short flags, 64-bit content hash) in that order over the universe;
no source, version, id, clock or partial flag. This module must never write a cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from ledger.columns import Column, Flag, Status

if TYPE_CHECKING:
    from ledger.state import State

_CELL: Final = np.dtype([("minute", "<u2"), ("status", "u1"), ("flags", "u1"), ("content_hash", "<u8")])
_SYMBOLS_AT_ONCE: Final = 64


def column_digest(state: State, session: str, column: Column) -> Iterator[str | None]:
    """
    The digest of one column; yields None after each few symbols and the hexadecimal digest last.

    Symbols are hashed in the order of their names, so ids, given in order of appearance, do not matter.
    """
    seq = state.calendar.session_seq(session)
    ledger = state.ledger_of(column)
    digest = hashlib.sha256(column.value.encode())
    names = sorted((state.symbols.name(int(one)), int(one)) for one in state.universe(session))
    minutes = int(state.calendar.minutes[seq])
    rows = ledger.session(seq) if ledger.exists(seq) else None
    for start in range(0, len(names), _SYMBOLS_AT_ONCE):
        some = names[start : start + _SYMBOLS_AT_ONCE]
        cells = np.zeros((len(some), minutes), dtype=_CELL)
        cells["minute"] = np.arange(minutes)
        if rows is not None:
            slots = rows.slots(column, np.array([symbol_id for _, symbol_id in some], dtype=np.int64))
            filled = slots["status"] == Status.FILLED
            records = state.maps[column.payload_kind].get_many(slots["payload_id"][filled])
            cells["status"] = slots["status"]
            cells["flags"] = np.where(filled, slots["flags"] & np.uint8(Flag.NO_ROWS | Flag.SHORT), 0)
            cells["content_hash"][filled] = records["content_hash"]
        for (name, _), line in zip(some, cells, strict=True):
            digest.update(name.encode() + b"\0")
            digest.update(line.tobytes())
        yield None
    yield digest.hexdigest()


def session_digest(state: State, session: str) -> Iterator[tuple[str, dict[Column, str]] | None]:
    """The digest of a session; yields None between steps and (digest, digest by column) last."""
    columns: dict[Column, str] = {}
    for column in Column:
        for step in column_digest(state, session, column):
            if step is not None:
                columns[column] = step
            else:
                yield None
    whole = hashlib.sha256("".join(f"{column.value} {columns[column]}\n" for column in Column).encode())
    yield whole.hexdigest(), columns
