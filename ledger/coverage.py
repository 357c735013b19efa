"""
Coverage: how the cells of a session partition, column by column.

Every cell of windows x universe counts once as empty, pending, filled, cleared, not_applicable or not_due; no_data,
suspect and stale are parts of filled. Counted from planes, never from events. This module must never write a cell.
"""

from __future__ import annotations

import os
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
from ledger.layout import COLUMNS_OF, FLAG_COUNT

if TYPE_CHECKING:
    from ledger.ledgers import Ledger
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
    words: np.ndarray = state.symbol_facts()[0][universe]
    return words


def with_options(state: State, universe: np.ndarray) -> np.ndarray:
    """bool[n], True where an option of the symbol is in the universe too."""
    underlyings = state.symbol_facts()[1][universe]
    found: np.ndarray = np.isin(universe, underlyings[underlyings != universe])
    return found


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


def mark(ledger: Ledger, session_seq: int) -> tuple[int, ...]:
    """What changes whenever the session's cells do: a count for a mapped session, the file's time for one that is not."""
    rows = ledger.mapped().get(session_seq)
    if rows is not None:
        return (1, id(rows), rows.change_count)
    try:
        status = os.stat(ledger.file_name(session_seq))
    except FileNotFoundError:
        return (0,)
    return (2, status.st_ino, status.st_mtime_ns)


def stored_counts(ledger: Ledger, session_seq: int) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Counts of a session that is not mapped, from its header page.

    Returns:
        i64[columns, 4] statuses and i64[columns, 5] flags over reserved blocks; zeros where there is no file; None where
        the session is mapped, or its counts cannot be trusted.
    """
    columns = len(COLUMNS_OF[ledger.kind])
    if session_seq in ledger.mapped():
        return None
    if not ledger.exists(session_seq):
        return np.zeros((columns, 4), dtype=np.int64), np.zeros((columns, FLAG_COUNT), dtype=np.int64)
    stored = ledger.stored_counts(session_seq)
    if stored is None:
        return None
    return stored["status"][:columns].astype(np.int64), stored["flags"][:columns].astype(np.int64)


def counts_unmapped(
    state: State, ledger: Ledger, session: str, covers: dict[Column, np.ndarray | None], *, now_ns: int
) -> dict[Column, Counted] | None:
    """
    COUNTS of the columns of one ledger in a session from its header page alone, so that a year is counted without mapping it.

    Exact while cells that are not applicable or not covered are unset, which no engine ever changes. Stale cells are not
    known without the planes and count 0.

    Args:
        covers: by column, bool[symbols of the year] that a configured engine should fill; None for none.
        now_ns: windows that end after it are not due.

    Returns:
        None where the session is mapped, or its counts are not clean.
    """
    seq = state.calendar.session_seq(session)
    stored = stored_counts(ledger, seq)
    if stored is None:
        return None
    universe = state.universe(session)
    minutes = int(state.calendar.minutes[seq])
    due = int(np.clip((now_ns - int(state.calendar.open_ns[seq])) // 60_000_000_000, 0, minutes))
    words, options = class_words(state, universe), with_options(state, universe)
    result: dict[Column, Counted] = {}
    for index, column in enumerate(COLUMNS_OF[ledger.kind]):
        _, pending, filled, cleared = (int(one) for one in stored[0][index])
        applies = applicable(column, words, options)
        cover = covers.get(column)
        served = np.zeros(len(universe), dtype=bool) if cover is None else cover[universe]
        left = len(universe) * minutes - pending - filled - cleared
        not_applicable = min(left, int((~applies).sum()) * minutes)
        late = int((applies & ~served).sum()) * minutes + int((applies & served).sum()) * (minutes - due)
        not_due = min(left - not_applicable, late)
        numbers = (left - not_applicable - not_due, pending, filled, cleared, not_applicable, not_due)
        parts = (int(stored[1][index, 0]), int(stored[1][index, 4]), 0)
        result[column] = dict(zip(COUNT_NAMES, (*numbers, *parts), strict=True))
    return result
