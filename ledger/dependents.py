"""
Which filled cells were made from given cells, all the way up: what a clear with cascade takes, and counts before it does.

Known from the meaning of the columns alone, so that it holds whether an engine is configured or not. Only symbols that
may be touched are looked at, some at a time. This module must never write a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from ledger.columns import AGGREGATE_MINUTES, Column, Flag, Status, SymbolClass

if TYPE_CHECKING:
    from ledger.state import State

Masks = dict[Column, np.ndarray]
"""Column -> bool[symbols of the year, minutes]."""
_SYMBOLS_AT_ONCE: Final = 128


def dependents(state: State, session_seq: int, cells: Masks, found: Masks) -> Iterator[None]:
    """
    The filled derived cells that were made from some cells, directly or over others; yields between short steps.

    A cell without rows was made from its trade inputs alone, so quotes, curves and Greeks do not touch it.

    Args:
        cells: by column, bool[symbols of the year, minutes].
        found: gets the same, for derived columns that have any; cells of ``cells`` themselves may be among them.
    """
    symbols, minutes = len(state.symbols), int(state.calendar.minutes[session_seq])
    none = np.zeros((symbols, minutes), dtype=bool)
    trades, quotes, rates, sides, greeks = (
        cells.get(column, none)
        for column in (
            Column.TRADE_REF, Column.QUOTE_REF, Column.RF_RATE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF,
        )
    )  # fmt: skip
    words, underlying = state.symbol_facts()
    options: np.ndarray = (words == SymbolClass.CHAIN.value) | (words == SymbolClass.CONTRACT.value)

    def take(column: Column, symbol_ids: np.ndarray, through_trades: np.ndarray, others: np.ndarray) -> np.ndarray:
        filled, with_rows = _filled(state, session_seq, column, symbol_ids)
        mask: np.ndarray = (through_trades & filled) | (others & with_rows)
        if mask.any():
            found.setdefault(column, np.zeros((symbols, minutes), dtype=bool))[symbol_ids] = mask
        return mask

    # An option trade without a mid takes the underlying's last trade, of its own minute or the one before.
    touched, valued = np.zeros_like(none), np.zeros_like(none)
    quoted = np.asarray(quotes.any(axis=1))
    near = quoted | (options & quoted[underlying])
    for given in (trades, rates, sides, greeks):
        if given is not none:
            near |= given.any(axis=1)
    for some in _chunks(np.flatnonzero(near)):
        held, mine = quotes[some] | _later(quotes[some]), options[some][:, None]
        above = quotes[underlying[some]]
        above = (rates[some] | above | _later(above)) & mine
        worth = take(Column.AGGRESSOR_REF, some, trades[some], held) | sides[some]
        worth |= take(Column.GREEKS_REF, some, trades[some] & mine, above) | greeks[some]
        worth |= _later(trades[some]) & ~mine
        _gather_up(touched, underlying[some], trades[some])
        _gather_up(valued, underlying[some], worth)
        yield
    for some in _chunks(np.flatnonzero(touched.any(axis=1) | valued.any(axis=1))):
        for column, length in AGGREGATE_MINUTES.items():
            take(column, some, _windows(touched[some], length), _windows(valued[some], length))
        yield


def _chunks(symbol_ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(symbol_ids), _SYMBOLS_AT_ONCE):
        yield symbol_ids[start : start + _SYMBOLS_AT_ONCE]


def _gather_up(total: np.ndarray, owners: np.ndarray, cells: np.ndarray) -> None:
    """Add cells to those of the symbols that they belong to; several may belong to one."""
    order = np.argsort(owners, kind="stable")
    named, starts = np.unique(owners[order], return_index=True)
    total[named] |= np.logical_or.reduceat(cells[order], starts, axis=0)


def _filled(state: State, session_seq: int, column: Column, symbol_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(filled, filled with rows), bool[n, minutes] each."""
    minutes = int(state.calendar.minutes[session_seq])
    ledger = state.ledger_of(column)
    if not ledger.exists(session_seq):
        none = np.zeros((len(symbol_ids), minutes), dtype=bool)
        return none, none
    rows = ledger.session(session_seq)
    index = rows.column_index(column)
    filled = rows.status[index, symbol_ids, :minutes] == Status.FILLED
    return filled, filled & (rows.flags[index, symbol_ids, :minutes] & np.uint8(Flag.NO_ROWS) == 0)


def _later(cells: np.ndarray) -> np.ndarray:
    """The minutes after the cells'."""
    later = np.zeros_like(cells)
    later[:, 1:] = cells[:, :-1]
    return later


def _windows(cells: np.ndarray, length: int) -> np.ndarray:
    """Minutes at which a window of ``length`` minutes starts that contains one of the cells."""
    total = np.zeros((cells.shape[0], cells.shape[1] + 1), dtype=np.int32)
    np.cumsum(cells, axis=1, out=total[:, 1:])
    starts = np.arange(cells.shape[1])
    ends = np.minimum(starts + length, cells.shape[1])
    inside: np.ndarray = total[:, ends] > total[:, starts]
    return inside
