"""
Quality: how many rows of the newest session are usable, cell by cell, and only of cells that changed.

Sums of the counts that records hold. A first look at a large session is spread over several calls; until it is whole, it
says nothing rather than something incomplete. This module must never read an artifact.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, SYMBOLS_MAX, Column, Flag, Status
from ledger.coverage import mark
from ledger.rows import SessionRows
from ledger.state import State
from m17d.measuring import InUse

_SYMBOLS_AT_ONCE: Final = 16
_SECONDS: Final = 0.004
"""How long one call looks."""


class Quality:
    """
    Sums over the records of one derived column, of the newest session that has rows in it.

    Args:
        fields: names of counts in the column's records.
    """

    def __init__(self, state: State, column: Column, fields: tuple[str, ...]) -> None:
        self._state = state
        self._column = column
        self._fields = fields
        self._session = ""
        self._marks: set[Any] = set()
        self._forget()

    def _forget(self) -> None:
        self._ids = np.zeros((SYMBOLS_MAX, MINUTES_PER_SESSION), dtype=np.uint32)
        self._changes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        self._sums = np.zeros(len(self._fields), dtype=np.int64)
        self._marks.clear()

    def sums(self, in_use: InUse) -> dict[str, int] | None:
        """The sums by field; None where no session has rows, or while they are being looked at for the first time."""
        session = next((name for name, measured in reversed(in_use) if measured.with_rows(self._column)), "")
        if not session:
            return None
        if session != self._session:
            self._session = session
            self._forget()
        ledger, seq = self._state.ledger_of(self._column), self._state.calendar.session_seq(session)
        before = mark(ledger, seq)
        if before not in self._marks:
            if not self._look(ledger.session(seq), time.monotonic() + _SECONDS):
                return None
            # One that was mapped for this and dropped since is known by its file's mark, and not mapped again.
            self._marks = {before, mark(ledger, seq)}
        return dict(zip(self._fields, self._sums.tolist(), strict=True))

    def _look(self, rows: SessionRows, until_s: float) -> bool:
        """Take in symbols that were written to; True where all were."""
        changed = np.flatnonzero(rows.reserved & (rows.changes + np.uint32(1) != self._changes))
        for start in range(0, len(changed), _SYMBOLS_AT_ONCE):
            some = changed[start : start + _SYMBOLS_AT_ONCE]
            changes = rows.changes[some] + np.uint32(1)
            slots = rows.slots(self._column, some)
            with_rows = (slots["status"] == Status.FILLED) & (slots["flags"] & np.uint8(Flag.NO_ROWS) == 0)
            ids = np.where(with_rows, slots["payload_id"], 0)
            held = self._ids[some, : ids.shape[1]]
            moved = ids != held
            self._sums += self._sum(ids[moved]) - self._sum(held[moved])
            self._ids[some, : ids.shape[1]] = ids
            self._changes[some] = changes
            if time.monotonic() >= until_s and start + _SYMBOLS_AT_ONCE < len(changed):
                return False
        return True

    def _sum(self, payload_ids: np.ndarray) -> np.ndarray:
        records = self._state.maps[self._column.payload_kind].get_many(payload_ids[payload_ids > 0])
        return np.array([int(records[name].sum(dtype=np.int64)) for name in self._fields], dtype=np.int64)
