"""
Which filled cells were made from given cells, all the way up: what a clear with cascade takes, and counts before it does.

Known from the meaning of the columns alone, so that it holds whether an engine is configured or not. This module must
never write a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ledger.columns import AGGREGATE_MINUTES, Column, Flag, Status, SymbolClass

if TYPE_CHECKING:
    from ledger.state import State

Masks = dict[Column, np.ndarray]
"""Column -> bool[symbols of the year, minutes]."""


def dependents(state: State, session_seq: int, cells: Masks) -> Masks:
    """
    The filled derived cells that were made from some cells, directly or over others.

    A cell without rows was made from its trade inputs alone, so quotes, curves and Greeks do not touch it.

    Args:
        cells: by column, bool[symbols of the year, minutes].

    Returns:
        the same, for derived columns that have any; cells of ``cells`` themselves may be among them.
    """
    symbols, minutes = len(state.symbols), int(state.calendar.minutes[session_seq])
    none = np.zeros((symbols, minutes), dtype=bool)
    trades, quotes, rates = (
        cells.get(column, none) for column in (Column.TRADE_REF, Column.QUOTE_REF, Column.RF_RATE_REF)
    )
    underlying = np.array([state.underlying_id(one) for one in range(symbols)], dtype=np.int64)
    options = np.array(
        [state.class_of(one) in (SymbolClass.CHAIN, SymbolClass.CONTRACT) for one in range(symbols)], dtype=bool
    )
    found: Masks = {}

    def take(column: Column, through_trades: np.ndarray, through_others: np.ndarray) -> np.ndarray:
        filled, with_rows = _filled(state, session_seq, column)
        mask: np.ndarray = (through_trades & filled) | (through_others & with_rows)
        if mask.any():
            found[column] = mask
        return mask | cells.get(column, none)

    held = quotes | _later(quotes)
    aggressors = take(Column.AGGRESSOR_REF, trades, held)
    of_options = options[:, None]
    greeks = take(Column.GREEKS_REF, trades & of_options, (rates | held[underlying]) & of_options)
    # An option trade without a mid takes the underlying's last trade, of its own minute or the one before.
    touched, valued = none.copy(), none.copy()
    np.logical_or.at(touched, underlying, trades)
    np.logical_or.at(valued, underlying, aggressors | greeks)
    valued[~options] |= _later(trades[~options])
    for column, length in AGGREGATE_MINUTES.items():
        take(column, _windows(touched, length), _windows(valued, length))
    return found


def _filled(state: State, session_seq: int, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """(filled, filled with rows), bool[symbols, minutes] each."""
    symbols, minutes = len(state.symbols), int(state.calendar.minutes[session_seq])
    ledger = state.ledger_of(column)
    if not ledger.exists(session_seq):
        none = np.zeros((symbols, minutes), dtype=bool)
        return none, none
    rows = ledger.session(session_seq)
    index = rows.column_index(column)
    filled = rows.status[index, :symbols, :minutes] == Status.FILLED
    return filled, filled & (rows.flags[index, :symbols, :minutes] & np.uint8(Flag.NO_ROWS) == 0)


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
