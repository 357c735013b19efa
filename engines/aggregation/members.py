"""
What the input cells of a session say about its underlyings: by symbol, kept while the cells do not change.

An underlying's windows are made from its own cells and those of all its options, so one changed option cell would have
every option looked at again; here only the symbols that changed are. This module must never write a cell nor read a row.
"""

from __future__ import annotations

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
_SYMBOLS_AT_ONCE: Final = 512


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
        self._known = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._changes = np.zeros((2, SYMBOLS_MAX), dtype=np.uint32)
        self._mapped = (0, 0)
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

    def _refresh(self, symbol_ids: np.ndarray) -> None:
        """Look again at those of the symbols whose cells were written to."""
        state, now = self._state, np.zeros((2, len(symbol_ids)), dtype=np.uint32)
        mapped = [0, 0]
        for at, ledger in enumerate((state.trade, state.enrichment)):
            if ledger.exists(self._seq):
                rows = ledger.session(self._seq)
                now[at], mapped[at] = rows.changes[symbol_ids], id(rows)
        if (mapped[0], mapped[1]) != self._mapped:
            self._known[:] = False
            self._mapped = (mapped[0], mapped[1])
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
        self._filled[symbol_ids] = trades.filled & aggressors.filled & greeks.filled
        self._traded[symbol_ids] = trades.counts
        self._values[symbol_ids] = of_trades + of_aggressors + values("greeks", greeks)
        self._spots[symbol_ids] = of_trades + of_aggressors if self._spot_from_aggressors else of_trades
