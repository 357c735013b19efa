"""
Gridding: cells counted by column over time, for screens: a year by session, a session by minute, as raw numbers.

One symbol and the options on it cost a look at two blocks a session, also where the session is not mapped: its file is
looked into, and not mapped for it. Everything together comes from what measuring holds. This module must never map a
session, nor change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from ledger.columns import WINDOW_NS, Column, Flag, Status
from ledger.coverage import COUNT_NAMES, applicable, sessions_in_use
from ledger.errors import ChecksumMismatch, LedgerError
from ledger.layout import COLUMNS_OF
from ledger.rows import SessionRows
from ledger.state import State
from m17d import protocol, replies
from m17d.envelopes import Piece, Refused
from m17d.measuring import Measuring, served
from m17d.reading import Reading

_STATES: Final = 6
_HELD: Final = 2048
"""Pieces that are kept: a year for several symbols."""

Signature = tuple[object, ...]


class Gridding:
    """Answers ``grid`` over one state; keeps pieces until their session moves."""

    def __init__(self, state: State, reading: Reading) -> None:
        self.state = state
        self.reading = reading
        self.measuring: Measuring = reading.measuring
        self._held: dict[tuple[str | None, str, int], tuple[Signature, Piece | None]] = {}

    def grid(self, request: protocol.GridRequest) -> Iterator[Piece | None]:
        """One piece a session in use, ascending; None between those where there is nothing to say."""
        calendar = self.state.calendar
        first, last = calendar.session_seq(request.from_session), calendar.session_seq(request.to_session)
        if first > last:
            raise Refused(
                "bad_request",
                f"{request.from_session} lies behind {request.to_session}",
                "give the earlier session first",
            )
        groups = self._groups(request.symbol)
        for session in sessions_in_use(self.state):
            if request.from_session <= session <= request.to_session:
                try:
                    piece = self._piece(request.symbol, groups, session, request.step_minutes)
                except LedgerError:
                    # Its file cannot be read: the status says why, and the others are shown.
                    piece = None
                yield piece

    def _groups(self, symbol: str | None) -> dict[str, np.ndarray]:
        """The symbol itself, and the options on it; raises UnknownSymbol."""
        if symbol is None:
            return {}
        own = self.state.symbols.resolve(symbol)
        underlyings = self.state.symbol_facts()[1]
        on_it = np.flatnonzero(underlyings == own)
        return {"own": np.array([own]), "options": on_it[on_it != own]}

    def _piece(self, symbol: str | None, groups: dict[str, np.ndarray], session: str, step: int) -> Piece | None:
        key, signature = (symbol, session, step), self.measuring.signature(session)
        held = self._held.pop(key, None)
        if held is None or held[0] != signature:
            made = self._whole(session) if symbol is None and step >= self._minutes(session) else None
            held = (signature, made or self._counted(groups or {"all": self.state.universe(session)}, session, step))
        self._held[key] = held
        while len(self._held) > _HELD:
            del self._held[next(iter(self._held))]
        return held[1]

    def _minutes(self, session: str) -> int:
        return int(self.state.calendar.minutes[self.state.calendar.session_seq(session)])

    def _whole(self, session: str) -> Piece | None:
        universe = self.state.universe(session)
        if not len(universe):
            return None
        return self._as_piece(session, {"all": len(universe)}, self.measuring.session(session).counts[None, :, None, :])

    def _as_piece(self, session: str, sizes: dict[str, int], counts: np.ndarray) -> Piece:
        """``counts`` i64[groups, columns, cells, 9]."""
        calendar = self.state.calendar
        seq = calendar.session_seq(session)
        reply = replies.GridReply(
            session=session,
            open_ts=int(calendar.open_ns[seq]),
            windows=int(calendar.minutes[seq]),
            groups=sizes,
            columns=list(Column),
            cells=counts.shape[2],
        )
        return Piece(reply, counts.astype("<u4").tobytes())

    # ---- counting

    def _counted(self, groups: dict[str, np.ndarray], session: str, step: int) -> Piece | None:
        universe, _, _ = self.measuring.universe(session)
        present = {name: np.intersect1d(ids, universe, assume_unique=True) for name, ids in groups.items()}
        if not any(len(ids) for ids in present.values()):
            return None
        minutes, seq = self._minutes(session), self.state.calendar.session_seq(session)
        counts = np.zeros((len(present), len(Column), -(-minutes // step), len(COUNT_NAMES)), dtype=np.int64)
        at = 0
        for ledger in (self.state.trade, self.state.enrichment):
            with ledger.look(seq) as rows:
                for column in COLUMNS_OF[ledger.kind]:
                    for group, ids in enumerate(present.values()):
                        if len(ids):
                            counts[group, at] = self._count(rows, session, column, ids, step)
                    at += 1
        return self._as_piece(session, {name: len(ids) for name, ids in present.items()}, counts)

    def _count(self, rows: SessionRows | None, session: str, column: Column, ids: np.ndarray, step: int) -> np.ndarray:
        """i64[cells, 9]: COUNTS of some symbols of the universe in each cell of ``step`` minutes."""
        minutes, seq = self._minutes(session), self.state.calendar.session_seq(session)
        status, flags = _cells(rows, column, ids, minutes)
        universe, words, options = self.measuring.universe(session)
        position = np.searchsorted(universe, ids)
        applies = applicable(column, words[position], options[position])
        ends = int(self.state.calendar.open_ns[seq]) + np.arange(1, minutes + 1) * WINDOW_NS
        due = served(self.reading.covers(session, column), ids)[:, None] & (ends <= self.state.system.now_ns())
        unset = status == Status.EMPTY
        shown = np.where(unset, np.where(applies[:, None], np.where(due, 0, 5), 4), status)
        cell = np.broadcast_to(np.arange(minutes) // step, shown.shape)
        cells = -(-minutes // step)
        counted = np.bincount((cell * _STATES + shown).reshape(-1), minlength=cells * _STATES).reshape(cells, _STATES)
        filled = status == Status.FILLED
        parts = [filled & (flags & np.uint8(flag) != 0) for flag in (Flag.NO_ROWS, Flag.SUSPECT)]
        stale = self._is_mapped(session) and column not in (Column.RF_RATE_REF, Column.TRADE_REF, Column.QUOTE_REF)
        parts.append(filled & self.reading.stale(session, column, ids) if stale else np.zeros_like(filled))
        of_filled = [np.bincount(cell[part], minlength=cells) for part in parts]
        return np.concatenate([counted, np.array(of_filled).T], axis=1)

    def _is_mapped(self, session: str) -> bool:
        """True where asking for stale cells maps nothing."""
        seq = self.state.calendar.session_seq(session)
        return all(
            seq in ledger.mapped() or not ledger.exists(seq) for ledger in (self.state.trade, self.state.enrichment)
        )


def _cells(rows: SessionRows | None, column: Column, ids: np.ndarray, minutes: int) -> tuple[np.ndarray, np.ndarray]:
    """u8[n, minutes], statuses and flags; a cell whose seal is broken shows as empty, as it will be once mapped."""
    if rows is None:
        return np.zeros((len(ids), minutes), dtype=np.uint8), np.zeros((len(ids), minutes), dtype=np.uint8)
    if not rows.readonly:
        index = rows.column_index(column)
        return rows.status[index, ids, :minutes], rows.flags[index, ids, :minutes]
    try:
        slots = rows.slots(column, ids)
    except ChecksumMismatch:
        return np.zeros((len(ids), minutes), dtype=np.uint8), np.zeros((len(ids), minutes), dtype=np.uint8)
    return slots["status"], slots["flags"]
