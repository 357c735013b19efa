"""
One session of one dataset, as a live engine sees it: which windows are over, which a gap overlaps, what is still empty.

This module must never start a task or know a connection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from engines.contract import NoRowsCells
from engines.feeds.feed_messages import FEED_BEGAN, Gap
from engines.feeds.session_window import SessionWindow
from engines.live_partial import PartialWindows
from engines.live_prices import LivePrices
from engines.live_source import LiveSource
from ledger.columns import WINDOW_NS, Column, Dataset, Flag, OptionRows, Source, Status
from ledger.layout import SLOT
from ledger.state import State

_CELLS_MAX: Final = 65_536
_GAPS_MAX: Final = 4_096
"""Gaps that are kept; older ones are joined to one, which makes more partial and never less."""


def window_of(state: State, session: str) -> SessionWindow:
    """The times of a session; raises UnknownSession."""
    from datetime import date, timedelta

    seq = state.calendar.session_seq(session)
    next_day = (date.fromisoformat(session) + timedelta(days=1)).isoformat()
    # The local day ends at the next local midnight, 23, 24 or 25 hours later.
    start, end = state.calendar.parse_time(session), state.calendar.parse_time(next_day)
    return SessionWindow(session, int(state.calendar.open_ns[seq]), int(state.calendar.minutes[seq]), start, end)


class LiveSession:
    """
    One session of one dataset.

    Args:
        source: its record.
    """

    def __init__(self, state: State, dataset: Dataset, session: str, source: LiveSource) -> None:
        self.dataset = dataset
        self.session = session
        self.source = source
        self.window = window_of(state, session)
        self.seq = state.calendar.session_seq(session)
        self.closed = 0
        """Windows that are over: what they had was handed over."""
        self.prices = LivePrices(self.window.minutes) if dataset.column is Column.TRADE_REF else None
        self.failed: set[int] = set()
        """Minutes of tasks that were given up: their cells are not said to have no rows."""
        self._state = state
        self._gaps: list[Gap] = []
        self._filled: tuple[int, ...] = ()

    @property
    def column(self) -> Column:
        """What its rows fill."""
        return self.dataset.column

    def minute(self, ts_ns: int) -> int:
        """Signed minute from the open."""
        return (ts_ns - self.window.open_ns) // WINDOW_NS

    def slots(self, symbol_ids: np.ndarray, minutes: np.ndarray) -> np.ndarray:
        """SLOT[n], its cells; empty ones where it has no file yet."""
        ledger = self._state.ledger_of(self.column)
        if not ledger.exists(self.seq) or not len(symbol_ids):
            return np.zeros(len(symbol_ids), dtype=SLOT)
        return ledger.session(self.seq).slots(self.column, symbol_ids, minutes)

    # ---- gaps

    def take_gap(self, gap: Gap) -> None:
        """A gap began, or ended: the one of its start, reason and topics. A feed that begins ends those of feeds before."""
        if gap.reason == FEED_BEGAN and gap.end_ns is None:
            self._gaps = [
                replace(one, end_ns=max(one.start_ns, gap.start_ns)) if one.end_ns is None else one
                for one in self._gaps
            ]
        same = [
            index
            for index, one in enumerate(self._gaps)
            if (one.start_ns, one.reason, one.topics, one.end_ns) == (gap.start_ns, gap.reason, gap.topics, None)
        ]
        if same:
            self._gaps[same[-1]] = gap
            return
        self._gaps.append(gap)
        if len(self._gaps) > _GAPS_MAX:
            first, second, *rest = self._gaps
            ends = (first.end_ns, second.end_ns)
            end = None if None in ends else max(one for one in ends if one is not None)
            self._gaps = [Gap(min(first.start_ns, second.start_ns), end, "several gaps"), *rest]

    def partial(self, option_rows: OptionRows) -> PartialWindows:
        """Windows that a gap overlaps."""
        starts = self.window.open_ns + np.arange(self.window.minutes, dtype=np.int64) * WINDOW_NS
        ends = starts + WINDOW_NS
        if self.column is Column.QUOTE_REF:
            # The first window's cell has the quotes of the 60 s before it, too.
            starts[0] -= WINDOW_NS
        found = PartialWindows.of_minutes(self.window.minutes)
        for gap in self._gaps:
            mask = gap.start_ns < ends
            if gap.end_ns is not None:
                mask &= gap.end_ns >= starts
            if mask.any():
                for ticker in (None,) if gap.topics is None else self._tickers(gap.topics):
                    found.add(ticker, mask, option_rows)
        return found

    def _tickers(self, topics: tuple[str, ...]) -> list[str]:
        kind = "T." if self.column is Column.TRADE_REF else "Q."
        return [topic.removeprefix(kind) for topic in topics if topic.startswith(kind)]

    # ---- cells without rows

    def without_rows(self, covered: np.ndarray, upto: int, option_rows: OptionRows) -> NoRowsCells | None:
        """
        Empty cells of windows that are over, whose rows would have come: they have none.

        Args:
            covered: bool[symbols], those that the connection brings.
            upto: windows before it, in which nothing is left to be done, are judged.

        Returns:
            None where there are none, at most about 65,000 at once.
        """
        state, column = self._state, self.column
        ledger = state.ledger_of(column)
        universe = state.universe(self.session)
        symbol_ids = universe[covered[universe]] if len(universe) else universe
        if not len(symbol_ids) or upto <= 0:
            return None
        rows = ledger.session(self.seq)
        signature = (rows.change_count, id(rows), upto, len(symbol_ids), len(self.failed))
        if signature == self._filled:
            return None
        empty = rows.status[rows.column_index(column), symbol_ids, :upto] == Status.EMPTY
        failed = [minute for minute in self.failed if 0 <= minute < upto]
        empty[:, failed] = False
        at, minutes = np.nonzero(empty)
        if not len(at):
            self._filled = signature
            return None
        at, minutes = at[:_CELLS_MAX], minutes[:_CELLS_MAX]
        partial = self.partial(option_rows)
        ids = symbol_ids[at]
        flags = partial.everywhere[minutes]
        if partial.of_symbol or partial.of_glob:
            for symbol_id in np.unique(ids).tolist():
                mask = partial.own(state.symbols.name(symbol_id))
                if mask is not None:
                    mine = ids == symbol_id
                    flags[mine] |= mask[minutes[mine]]
        return NoRowsCells(
            column, ids, minutes, np.zeros(len(ids), dtype=np.uint32), rows.slots(column, ids, minutes)["version"],
            np.where(flags, np.uint8(Flag.PARTIAL), np.uint8(0)), Source.WEBSOCKET,
        )  # fmt: skip
