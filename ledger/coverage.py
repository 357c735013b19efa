"""
Coverage: how the cells of a session partition, column by column.

Every cell of windows x universe counts once as empty, pending, filled, cleared, not_applicable or not_due; no_data,
suspect and stale are parts of filled. Counted from planes, never from events. This module must never write a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ledger.columns import (
    AGGREGATE_MINUTES,
    Column,
    Flag,
    Source,
    Status,
    SymbolClass,
)

if TYPE_CHECKING:
    from ledger.rows import SessionRows
    from ledger.state import State

COUNT_NAMES = (
    "empty",
    "pending",
    "filled",
    "cleared",
    "not_applicable",
    "not_due",
    "no_data",
    "suspect",
    "stale",
)
Counted = dict[str, int]
"""One COUNTS object: the nine names with their numbers."""


def applicable(column: Column, classes: np.ndarray, has_options: np.ndarray) -> np.ndarray:
    """
    Which symbols a column applies to: whether any engine could ever fill it.

    Args:
        classes: SymbolClass words [n].
        has_options: bool[n], True where options of the symbol are in the session's universe.

    Returns:
        bool[n].
    """
    stock, index = classes == SymbolClass.STOCK.value, classes == SymbolClass.INDEX.value
    option = ~stock & ~index
    if column is Column.RF_RATE_REF:
        applies: np.ndarray = option | has_options
    elif column is Column.GREEKS_REF:
        applies = option
    elif column in AGGREGATE_MINUTES:
        applies = ~option
    else:
        applies = ~index
    return applies


def class_words(state: State, universe: np.ndarray) -> np.ndarray:
    """SymbolClass words [n] of symbols."""
    return np.array([state.class_of(int(symbol_id)).value for symbol_id in universe], dtype="U8")


def with_options(state: State, universe: np.ndarray) -> np.ndarray:
    """bool[n], True where an option of the symbol is in the universe too."""
    underlyings = {state.underlying_id(int(one)) for one in universe if state.underlying_id(int(one)) != int(one)}
    return np.array([int(one) in underlyings for one in universe], dtype=bool)


@dataclass(frozen=True, slots=True)
class Planes:
    """
    The cells of one column of a session over some symbols; arrays bool or u8 [n, minutes].

    ``state`` holds the index into the first six of :data:`COUNT_NAMES`; the others are parts of filled.
    """

    column: Column
    symbol_ids: np.ndarray
    state: np.ndarray
    no_data: np.ndarray
    suspect: np.ndarray
    stale: np.ndarray

    def count(self, where: Any = ...) -> Counted:
        """Counts over all cells, or over those that an index into [n, minutes] chooses (a row, a column, a mask)."""
        counts = np.bincount(self.state[where].reshape(-1), minlength=6)
        totals = [int(np.count_nonzero(part[where])) for part in (self.no_data, self.suspect, self.stale)]
        return dict(zip(COUNT_NAMES, [*map(int, counts[:6]), *totals], strict=True))


def planes(
    state: State,
    session: str,
    column: Column,
    symbol_ids: np.ndarray,
    *,
    covered: np.ndarray | None,
    has_options: np.ndarray,
    now_ns: int,
    stale: np.ndarray | None = None,
) -> Planes:
    """
    The cells of a column over some symbols of a session's universe.

    Args:
        symbol_ids: i64[n].
        covered: bool[symbols of the year], which symbols a configured engine should fill; None for none.
        has_options: bool[n], see :func:`with_options`.
        now_ns: windows that end after it are not due.
        stale: bool[n, minutes], from whoever knows the prints; None for none.
    """
    seq = state.calendar.session_seq(session)
    ledger = state.ledger_of(column)
    minutes = int(state.calendar.minutes[seq])
    shape = (len(symbol_ids), minutes)
    status, flags = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    if ledger.exists(seq):
        status, flags = _status_and_flags(ledger.session(seq), column, symbol_ids)
    ends = state.calendar.start_ts_array(state.calendar.windows(seq)) + 60_000_000_000
    applies = applicable(column, class_words(state, symbol_ids), has_options)
    served = np.zeros(len(symbol_ids), dtype=bool)
    if covered is not None:
        known = symbol_ids < len(covered)
        served[known] = covered[symbol_ids[known]]
    due = served[:, None] & (ends <= now_ns)[None, :]
    unset = status == Status.EMPTY
    result = status.copy()
    result[unset & ~due] = 5
    result[unset & ~applies[:, None]] = 4
    filled = status == Status.FILLED
    return Planes(
        column,
        symbol_ids,
        result,
        filled & (flags & np.uint8(Flag.NO_ROWS) != 0),
        filled & (flags & np.uint8(Flag.SUSPECT) != 0),
        np.zeros(shape, dtype=bool) if stale is None else stale & filled,
    )


def _status_and_flags(rows: SessionRows, column: Column, symbol_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index, minutes = rows.column_index(column), rows.place.minutes
    return rows.status[index, symbol_ids, :minutes], rows.flags[index, symbol_ids, :minutes]


def sources_of(state: State, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
    """u8[n, minutes], the :class:`Source` of each filled cell; 255 where a cell is not filled."""
    seq = state.calendar.session_seq(session)
    ledger = state.ledger_of(column)
    if not ledger.exists(seq):
        return np.full((len(symbol_ids), int(state.calendar.minutes[seq])), 255, dtype=np.uint8)
    slots = ledger.session(seq).slots(column, symbol_ids)
    result: np.ndarray = np.where(slots["status"] == Status.FILLED, slots["source"], 255).astype(np.uint8)
    return result


def sessions_in_use(state: State) -> list[str]:
    """Sessions that have a source record or a set cell, ascending."""
    names = set(state.sources.sessions())
    for ledger in (state.trade, state.enrichment):
        names.update(state.calendar.date(seq) for seq in ledger.existing())
    return sorted(names)



SOURCE_WORDS = {int(source): source.word for source in Source}
