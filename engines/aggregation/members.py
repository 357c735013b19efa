"""
What the input cells of a session say about its underlyings: by symbol, kept while the cells do not change.

An underlying's windows are made from its own cells and those of all its options, so one changed option cell would have
every option looked at again; here only the symbols that changed are. This module must never write a cell nor read a row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from engines.derivation import Upstream, upstream
from ledger.columns import SYMBOLS_MAX, Column
from ledger.content import text_hashes
from ledger.prints import set_values
from ledger.state import State

INPUTS: Final = (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF)
"""Columns that aggregates are made from; the last two are read beside the trades, row by row."""
_SYMBOLS_AT_ONCE: Final = 64
"""Some milliseconds."""


@dataclass(frozen=True, slots=True)
class MinuteSums:
    """What windows of some underlyings are summed from: arrays [units, minutes]."""

    filled: np.ndarray
    """bool: all input cells of the minute are filled."""
    filled_before: np.ndarray
    """bool: the underlying's own input cells of the minute before are."""
    traded: np.ndarray
    """bool: some trade cell of the minute has rows."""
    values: np.ndarray
    """u64: values of all input cells with rows, see :func:`ledger.prints.set_values`."""
    before: np.ndarray
    """u64: value of the underlying's cells of the minute before, 0 where no option trade could look there."""


class Members:
    """
    The members of every underlying in one session, and what their cells add to prints.

    Args:
        state: the open state.
        session_seq: the session.
        spot_from_aggressors: whether the aggressor rows of the minute before decide which print is the spot.
    """

    def __init__(self, state: State, session_seq: int, *, spot_from_aggressors: bool) -> None:
        self._state = state
        self._seq = session_seq
        self._spot_from_aggressors = spot_from_aggressors
        shape = (SYMBOLS_MAX, int(state.calendar.minutes[session_seq]))
        # Zeros that nobody has touched cost no memory.
        self._filled, self._traded = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        self._values, self._spots = np.zeros(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)
        self._cells: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._known = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._changes = np.zeros((2, SYMBOLS_MAX), dtype=np.uint32)
        self._mapped: tuple[int, ...] = (0, 0)
        self._universe = np.zeros(0, dtype=np.int64)
        self._options: dict[int, np.ndarray] = {}

    def options(self, unit: int) -> np.ndarray:
        """i64[n], the options of an underlying in the session's universe, ascending by name."""
        universe = self._state.universe(self._state.calendar.date(self._seq))
        if universe is not self._universe:
            found: dict[int, list[int]] = {}
            for one in universe.tolist():
                underlying = self._state.underlying_id(one)
                if underlying != one:
                    found.setdefault(underlying, []).append(one)
            name = self._state.symbols.name
            self._options = {key: np.array(sorted(ids, key=name), dtype=np.int64) for key, ids in found.items()}
            self._universe = universe
        return self._options.get(unit, np.zeros(0, dtype=np.int64))

    def sums(self, units: np.ndarray) -> MinuteSums:
        """The minutes of some underlyings as they are now; raises LedgerError where the session cannot be read."""
        options = [self.options(int(unit)) for unit in units]
        self._refresh(np.unique(np.concatenate([units, *options])))
        filled, traded, values = self._filled[units], self._traded[units], self._values[units]
        before = np.zeros_like(values)
        filled_before = np.ones_like(filled)
        filled_before[:, 1:] = filled[:, :-1]
        for at, mine in enumerate(options):
            if len(mine):
                with_options = self._traded[mine].any(axis=0)
                before[at, 1:] = np.where(with_options[1:], self._spots[units[at], :-1], np.uint64(0))
                filled[at] &= self._filled[mine].all(axis=0)
                traded[at] |= with_options
                values[at] += self._values[mine].sum(axis=0, dtype=np.uint64)
            else:
                filled_before[at] = True
        return MinuteSums(filled, filled_before, traded, values, before)

    def look(self, units: np.ndarray, until_s: float) -> bool:
        """Look at the members of some underlyings, so that :meth:`sums` has little to do; False where time ran out before."""
        late = self._late(np.unique(np.concatenate([units, *(self.options(int(unit)) for unit in units)])))
        for start in range(0, len(late), _SYMBOLS_AT_ONCE):
            if start and time.monotonic() >= until_s:
                return False
            self._refresh(late[start : start + _SYMBOLS_AT_ONCE])
        return True

    def cells(self, symbol_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        The trade cells with rows of some symbols, as they are now, and the cells made from them.

        Returns:
            i64[n] index of the symbol, i64[n] minute, u32[n, 3] payload ids by INPUTS, 0 where a cell has no rows; in
            the order of the symbols, then of minutes.
        """
        self._refresh(symbol_ids)
        found = [self._cells[one] for one in symbol_ids.tolist()]
        at = np.repeat(np.arange(len(found)), [len(minutes) for minutes, _ in found])
        minutes = [np.zeros(0, dtype=np.int16), *(one[0] for one in found)]
        ids = [np.zeros((0, len(INPUTS)), dtype=np.uint32), *(one[1] for one in found)]
        return at, np.concatenate(minutes).astype(np.int64), np.concatenate(ids)

    def mark(self) -> tuple[int, ...]:
        """What changes whenever an input or the universe does."""
        state = self._state
        marks = [state.sources.generation, len(state.symbols)]
        for ledger in (state.trade, state.enrichment):
            if ledger.exists(self._seq):
                rows = ledger.session(self._seq)
                marks += [id(rows), rows.change_count]
            else:
                marks += [0, 0]
        return tuple(marks)

    def _late(self, symbol_ids: np.ndarray) -> np.ndarray:
        """Those of the symbols whose cells were written to since they were looked at."""
        now, mapped = self._now(symbol_ids)
        if mapped != self._mapped:
            return symbol_ids
        return symbol_ids[~self._known[symbol_ids] | (now != self._changes[:, symbol_ids]).any(axis=0)]

    def _now(self, symbol_ids: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """(u32[2, n] how often the symbols were written to in either ledger, what is another one when it is mapped again)."""
        now, mapped = np.zeros((2, len(symbol_ids)), dtype=np.uint32), [0, 0]
        for at, ledger in enumerate((self._state.trade, self._state.enrichment)):
            if ledger.exists(self._seq):
                rows = ledger.session(self._seq)
                now[at], mapped[at] = rows.changes[symbol_ids], id(rows)
        return now, tuple(mapped)

    def _refresh(self, symbol_ids: np.ndarray) -> None:
        """Look again at those of the symbols whose cells were written to."""
        now, mapped = self._now(symbol_ids)
        if mapped != self._mapped:
            self._known[:] = False
            self._mapped = mapped
        late = ~self._known[symbol_ids] | (now != self._changes[:, symbol_ids]).any(axis=0)
        changed = symbol_ids[late]
        for start in range(0, len(changed), _SYMBOLS_AT_ONCE):
            self._look(changed[start : start + _SYMBOLS_AT_ONCE])
        self._changes[:, changed] = now[:, late]
        self._known[changed] = True

    def _look(self, symbol_ids: np.ndarray) -> None:
        hashes = text_hashes(self._state.symbols.name(int(one)) for one in symbol_ids)
        trades, aggressors, greeks = (upstream(self._state, self._seq, column, symbol_ids) for column in INPUTS)

        def values(role: str, cells: Upstream) -> np.ndarray:
            return set_values(role, hashes, cells.checksum, cells.counts)

        of_trades, of_aggressors = values("trade", trades), values("aggressor", aggressors)
        at, minute = np.nonzero(trades.counts)
        ids = np.stack([one.payload_ids[at, minute] for one in (trades, aggressors, greeks)], axis=1)
        ends = np.cumsum(np.count_nonzero(trades.counts, axis=1))
        for position, (symbol_id, end) in enumerate(zip(symbol_ids.tolist(), ends.tolist(), strict=True)):
            mine = slice(int(ends[position - 1]) if position else 0, end)
            self._cells[symbol_id] = minute[mine].astype(np.int16), ids[mine].copy()
        self._filled[symbol_ids] = trades.filled & aggressors.filled & greeks.filled
        self._traded[symbol_ids] = trades.counts
        self._values[symbol_ids] = of_trades + of_aggressors + values("greeks", greeks)
        self._spots[symbol_ids] = of_trades + of_aggressors if self._spot_from_aggressors else of_trades
