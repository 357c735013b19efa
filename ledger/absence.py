"""
No data is data, but absence is not innocence: which cells of a session have no rows, and which of those are suspect.

Pure rules over planes and source records: the same planes give the same answer in whatever order sources came. This
module must never write a cell; the daemon applies what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from ledger.columns import Column, Dataset, Flag, Status, SymbolClass
from ledger.sources import SourceRecord, SourceState

if TYPE_CHECKING:
    from ledger.rows import SessionRows
    from ledger.state import State

SILENT_MINUTES: Final = 15
"""A silence this long is suspect while the symbol's other dataset goes on."""
ACTIVE_MINUTES: Final = 5
"""The other dataset goes on when it has rows in at least this many minutes of the silence."""

_DATASETS: Final = {
    (Column.TRADE_REF, False): Dataset.STOCK_TRADES,
    (Column.QUOTE_REF, False): Dataset.STOCK_QUOTES,
    (Column.TRADE_REF, True): Dataset.OPTION_TRADES,
    (Column.QUOTE_REF, True): Dataset.OPTION_QUOTES,
}


def dataset_of(column: Column, symbol_class: SymbolClass) -> Dataset | None:
    """The flat-file dataset whose rows fill a raw column of a symbol; None where no dataset covers it."""
    if symbol_class is SymbolClass.INDEX or column not in (Column.TRADE_REF, Column.QUOTE_REF):
        return None
    return _DATASETS[column, symbol_class in (SymbolClass.CHAIN, SymbolClass.CONTRACT)]


def matches(globs: list[str], symbol: str) -> bool:
    """True where a symbol passes a list of globs; an empty list lets all pass."""
    return not globs or any(fnmatchcase(symbol, pattern) for pattern in globs)


@dataclass(frozen=True, slots=True)
class Absent:
    """Symbols of one column that their complete source does not have: all their windows have no rows."""

    column: Column
    symbol_ids: np.ndarray
    suspect: bool
    """True where the source was accepted as absent."""


def absent_symbols(state: State, session: str, universe: np.ndarray) -> list[Absent]:
    """
    Symbols of the universe that a complete (or accepted as absent) source covers and has no row of in session.

    Args:
        universe: i64[n] symbol ids, ascending.
    """
    found: list[Absent] = []
    classes = [state.class_of(int(symbol_id)) for symbol_id in universe]
    for (column, of_options), dataset in _DATASETS.items():
        record = state.sources.get(dataset.value, session)
        if record is None or record.state not in (SourceState.COMPLETE, SourceState.ABSENT):
            continue
        rows = record.symbol_rows()
        present = set(rows["symbol_id"][rows["rows_in"] > 0].tolist())
        named = set(rows["symbol_id"].tolist())
        chosen = [
            symbol_id
            for symbol_id, symbol_class in zip(universe.tolist(), classes, strict=True)
            if _is_of(symbol_class, of_options)
            and symbol_id not in present
            and (symbol_id in named or matches(record.globs, state.symbols.name(symbol_id)))
        ]
        if chosen:
            accepted = record.state is SourceState.ABSENT
            found.append(Absent(column, np.array(chosen, dtype=np.int64), accepted))
    return found


def families_of(state: State, universe: np.ndarray, symbols_max: int) -> list[np.ndarray]:
    """
    The universe in parts that can be judged one by one: a stock and its options are never apart.

    Args:
        universe: i64[n] symbol ids, ascending.
        symbols_max: symbols of a part; a family that has more is a part of its own.

    Returns:
        Arrays of symbol ids, each ascending; together the universe.
    """
    if not len(universe):
        return []
    heads = np.array([state.underlying_id(symbol_id) for symbol_id in universe.tolist()], dtype=np.int64)
    order = np.argsort(heads, kind="stable")
    starts = np.append(np.flatnonzero(np.diff(heads[order], prepend=-1)), len(order))
    parts, begin = [], 0
    for first, end in pairwise(starts.tolist()):
        if end - begin > symbols_max and first > begin:
            parts.append(np.sort(universe[order[begin:first]]))
            begin = first
    return [*parts, np.sort(universe[order[begin:]])]


def _is_of(symbol_class: SymbolClass, of_options: bool) -> bool:
    if of_options:
        return symbol_class in (SymbolClass.CHAIN, SymbolClass.CONTRACT)
    return symbol_class is SymbolClass.STOCK


def silences(quiet: np.ndarray, active: np.ndarray) -> np.ndarray:
    """
    Minutes that lie in a suspicious silence.

    Args:
        quiet: bool[n, minutes], True where the series has no rows.
        active: bool[n, minutes], True where the symbol's other dataset has rows.

    Returns:
        bool[n, minutes]: True in runs of quiet minutes that are at least 15 long or reach the last minute, and in which
        the other dataset has rows in at least 5.
    """
    count, minutes = quiet.shape
    result = np.zeros_like(quiet)
    if not count or not minutes:
        return result
    padded = np.zeros((count, minutes + 2), dtype=np.int8)
    padded[:, 1:-1] = quiet
    change = np.diff(padded, axis=1)
    symbol, start = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    total = np.zeros((count, minutes + 1), dtype=np.int64)
    total[:, 1:] = np.cumsum(active, axis=1)
    long_enough = (end - start >= SILENT_MINUTES) | (end == minutes)
    keep = long_enough & (total[symbol, end] - total[symbol, start] >= ACTIVE_MINUTES)
    for one, first, last in zip(symbol[keep], start[keep], end[keep], strict=True):
        result[one, first:last] = True
    return result


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Flag changes of one column: cells to mark suspect and cells that no longer are; arrays of equal lengths."""

    column: Column
    add: tuple[np.ndarray, np.ndarray]
    remove: tuple[np.ndarray, np.ndarray]


def suspicions(state: State, session: str, rows: SessionRows, universe: np.ndarray) -> list[Suspicion]:
    """
    Which no-rows cells of the session should be suspect and are not, or are and should not be.

    Args:
        rows: the session of the trade ledger, mapped for writing.
        universe: i64[n] symbol ids, ascending.
    """
    minutes = rows.place.minutes
    planes = {column: _with_rows(rows, column, universe, minutes) for column in (Column.TRADE_REF, Column.QUOTE_REF)}
    wanted = {column: np.zeros((len(universe), minutes), dtype=bool) for column in planes}
    classes = [state.class_of(int(symbol_id)) for symbol_id in universe]
    stocks = np.array([one is SymbolClass.STOCK for one in classes], dtype=bool)
    roots = _roots(state, universe, classes)
    trades, quotes = planes[Column.TRADE_REF], planes[Column.QUOTE_REF]
    # Stocks: each dataset against the other.
    wanted[Column.QUOTE_REF][stocks] |= silences(~quotes[stocks], trades[stocks])
    wanted[Column.TRADE_REF][stocks] |= silences(~trades[stocks], quotes[stocks])
    never = trades.any(axis=1) & ~quotes.any(axis=1)
    wanted[Column.QUOTE_REF][stocks & never] = True
    for underlying, members in roots:
        root_trades, root_quotes = trades[members].any(axis=0), quotes[members].any(axis=0)
        silent = silences(~root_quotes[None, :], root_trades[None, :])[0]
        if root_trades.any() and not root_quotes.any():
            silent = np.ones(minutes, dtype=bool)
        wanted[Column.QUOTE_REF][members] |= silent[None, :]
        at = np.searchsorted(universe, underlying)
        known = at < len(universe) and universe[at] == underlying and stocks[at]
        if known and root_trades.any() and root_quotes.any() and not quotes[at].any():
            wanted[Column.QUOTE_REF][at] = True
    return [_difference(state, session, rows, universe, column, wanted[column]) for column in planes]


def _with_rows(rows: SessionRows, column: Column, universe: np.ndarray, minutes: int) -> np.ndarray:
    index = rows.column_index(column)
    filled = rows.status[index, universe, :minutes] == Status.FILLED
    result: np.ndarray = filled & (rows.flags[index, universe, :minutes] & np.uint8(Flag.NO_ROWS) == 0)
    return result


def _roots(state: State, universe: np.ndarray, classes: list[SymbolClass]) -> list[tuple[int, np.ndarray]]:
    """(underlying id, positions in the universe) of every option root, in order of first position."""
    from ledger.roots import option_root

    groups: dict[str, list[int]] = {}
    for position, symbol_class in enumerate(classes):
        if symbol_class is SymbolClass.CHAIN:
            groups.setdefault(state.symbols.name(int(universe[position])).removeprefix("O:"), []).append(position)
        elif symbol_class is SymbolClass.CONTRACT:
            groups.setdefault(option_root(state.symbols.name(int(universe[position]))), []).append(position)
    return [
        (state.underlying_id(int(universe[members[0]])), np.array(members, dtype=np.int64))
        for members in groups.values()
    ]


def _difference(
    state: State, session: str, rows: SessionRows, universe: np.ndarray, column: Column, wanted: np.ndarray
) -> Suspicion:
    minutes, index = rows.place.minutes, rows.column_index(column)
    flags = rows.flags[index, universe, :minutes]
    no_rows = (rows.status[index, universe, :minutes] == Status.FILLED) & (flags & np.uint8(Flag.NO_ROWS) != 0)
    judged = np.zeros(len(universe), dtype=bool)
    records: dict[Dataset | None, SourceRecord | None] = {None: None}
    for position, symbol_id in enumerate(universe.tolist()):
        dataset = dataset_of(column, state.class_of(symbol_id))
        if dataset not in records:
            records[dataset] = state.sources.get(dataset.value, session) if dataset else None
        record = records[dataset]
        # Cells of a source that was accepted as absent stay suspect; a waiting source makes nothing suspect.
        judged[position] = record is not None and record.state is SourceState.COMPLETE
    accepted = _accepted(records, universe, wanted.shape)
    wanted = wanted & ~accepted
    suspect = flags & np.uint8(Flag.SUSPECT) != 0
    add = np.nonzero(no_rows & wanted & ~suspect & judged[:, None])
    # A cell with rows is suspect where its complete source has far fewer; that is said when the source is read.
    remove = np.nonzero((no_rows & ~wanted | accepted) & suspect & judged[:, None])
    return Suspicion(column, (universe[add[0]], add[1]), (universe[remove[0]], remove[1]))


def _accepted(
    records: dict[Dataset | None, SourceRecord | None], universe: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """bool[n, minutes], cells that an operator took as they are."""
    mask = np.zeros(shape, dtype=bool)
    for record in records.values():
        for symbol_id, first, last in record.accepted if record is not None else ():
            at = int(np.searchsorted(universe, symbol_id))
            if at < len(universe) and universe[at] == symbol_id:
                mask[at, first:last] = True
    return mask
