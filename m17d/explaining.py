"""
Explaining: why the cells of a range are as they are, grouped by root cause, with a command to paste for each.

Pure reading: a cell's own status first, then what its engine waits for, then what lies upstream. This module must never
change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from engines.contract import Waiting
from ledger.columns import AGGREGATE_MINUTES, RAW_COLUMNS, UPSTREAM, Column, Flag, Status
from ledger.coverage import Planes, with_options
from ledger.state import State
from m17d import protocol, replies
from m17d.reading import Reading, Selection
from m17d.runner import Runner

_RANGE: Final = "{range}"
_COLUMN_WORDS: Final = frozenset(column.value for column in Column)
"""Stands in a remedy for the range of the cells that it is for."""


@dataclass(slots=True)
class _Group:
    columns: dict[Column, None]
    cells: int
    symbols: set[int]
    first: int
    last: int
    remedy: str
    detail: str


class Explaining:
    """Answers ``why`` over one state."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading

    def why(self, request: protocol.WhyRequest) -> Iterator[replies.WhyReply | None]:
        """Groups of cells by root cause, the largest first; yields None between steps."""
        selection = self.reading.select(request.range)
        universe = self.state.universe(selection.session)
        options = with_options(self.state, universe)[np.searchsorted(universe, selection.symbol_ids)]
        groups: dict[tuple[str, str], _Group] = {}
        for column in request.columns:
            cells = self.reading.planes(selection.session, column, selection.symbol_ids, options)
            self._explain(selection, column, cells, groups)
            yield None
        found = sorted(groups.items(), key=lambda item: (-item[1].cells, item[0]))
        yield replies.WhyReply(
            groups=[
                replies.Cause(
                    cause=cause,
                    columns=[column for column in Column if column in group.columns],
                    cells=group.cells,
                    symbols=len(group.symbols),
                    first=group.first,
                    last=group.last,
                    remedy=group.remedy.replace(_RANGE, self._range_words(selection, group)),
                    detail=group.detail,
                )
                for (cause, _), group in found
            ]
        )

    def _range_words(self, selection: Selection, group: _Group) -> str:
        """The options that select a group's cells: session, times where they are not the whole session, one symbol."""
        calendar = self.state.calendar
        words = [f"--session {selection.session}"]
        open_ns, close_ns = int(calendar.open_ns[selection.seq]), calendar.close_ns(selection.seq)
        if (group.first, group.last + 60_000_000_000) != (open_ns, close_ns):
            first, last = (calendar.format_time(ts)[11:16] for ts in (group.first, group.last + 60_000_000_000))
            words.append(f"--from {first} --to {last}")
        if len(group.symbols) == 1:
            words.append(f"--symbols '{self.state.symbols.name(next(iter(group.symbols)))}'")
        return " ".join(words)

    def _explain(
        self,
        selection: Selection,
        column: Column,
        cells: Planes,
        groups: dict[tuple[str, str], _Group],
    ) -> None:
        window = np.s_[:, selection.first : selection.last]
        state = cells.state[window]
        left = np.ones(state.shape, dtype=bool)
        for cause, mask, detail, remedy in self._causes(selection, column, cells):
            chosen = left & mask[window]
            if chosen.any():
                self._add(selection, column, chosen, cause, detail, remedy, groups)
                left &= ~chosen

    def _causes(
        self, selection: Selection, column: Column, cells: Planes
    ) -> Iterator[tuple[str, np.ndarray, str, str]]:
        """(cause, mask over all minutes, detail, remedy), the first that fits a cell wins."""
        state = cells.state
        words = _RANGE
        flags = self._flags(selection, column)
        filled = state == Status.FILLED
        yield "not_applicable", state == 4, "no engine could ever fill these cells", ""
        suspect = filled & cells.suspect
        never = suspect.all(axis=1)[:, None]
        yield (
            "suspect",
            suspect & never,
            ("not one row in a complete source, although the symbol's other data is there: look at the source"),
            f"m17ctl accept {words}",
        )
        yield (
            "suspect",
            suspect & ~never,
            ("silent while the symbol's other data went on: look at the source"),
            f"m17ctl accept {words}",
        )
        yield (
            "partial",
            filled & (flags & np.uint8(Flag.PARTIAL) != 0),
            "a gap of the feed overlaps",
            (f"m17ctl refill {column.value} {words} --cause 'feed gap'"),
        )
        yield "wanted", filled & (flags & np.uint8(Flag.WANTED) != 0), "a refresh was asked for and is not done", ""
        if cells.stale.any():
            by_recipe = self.reading.stale(selection.session, column, cells.symbol_ids, True)
            yield (
                "recipe",
                filled & cells.stale & by_recipe,
                "made by another recipe; only the newest sessions are made again unasked",
                f"m17ctl refresh {column.value} {words} --stale recipe --cause 'new recipe'",
            )
            yield "stale", filled & cells.stale, "made from inputs that have changed since; it is planned again", ""
        yield "no_data", filled & cells.no_data, "the complete source has no rows there", ""
        yield "filled", filled, "", ""
        yield "pending", state == Status.PENDING, "an engine is at work on these cells", "m17ctl engines list"
        unset = (state == Status.EMPTY) | (state == Status.CLEARED) | (state == 5)
        yield from self._waits(selection, column, unset)
        yield from self._upstream(selection, column, unset & (state != 5))
        yield "not_due", state == 5, self._not_due(column), ""
        yield (
            "cleared",
            state == Status.CLEARED,
            "cleared on purpose; the engine fills these cells again",
            ("m17ctl wait " + words + f" --columns {column.value} --timeout 600"),
        )
        yield "planned", state == Status.EMPTY, "its engine has not come to these cells yet", "m17ctl engines list"

    def _flags(self, selection: Selection, column: Column) -> np.ndarray:
        ledger = self.state.ledger_of(column)
        minutes = int(self.state.calendar.minutes[selection.seq])
        if not ledger.exists(selection.seq):
            return np.zeros((len(selection.symbol_ids), minutes), dtype=np.uint8)
        rows = ledger.session(selection.seq)
        flags: np.ndarray = rows.flags[rows.column_index(column), selection.symbol_ids, :minutes]
        return flags

    def _not_due(self, column: Column) -> str:
        if not any(column in engine.writes for engine in self.runner.engines.values()):
            return f"no engine that fills {column.value} is configured"
        return "the window is not over, or the engine's sessions and symbols leave these cells out"

    def _waits(
        self, selection: Selection, column: Column, unset: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, str, str]]:
        """What the engines of the column say they wait for."""
        for name, engine in self.runner.engines.items():
            if column not in engine.writes:
                continue
            if name in self.runner.paused:
                yield "paused", unset, f"{name}: {self.runner.paused[name]}", f"m17ctl engines resume {name}"
            for waiting in engine.waiting(selection.session):
                if waiting.column is column:
                    mask = unset & self._of(waiting, selection)[:, None]
                    yield waiting.cause, mask, waiting.detail, _remedy(waiting, name)
        if self.runner.blocked:
            yield "blocked", unset, self.runner.blocked, "m17ctl doctor"

    @staticmethod
    def _of(waiting: Waiting, selection: Selection) -> np.ndarray:
        if waiting.symbols is None:
            return np.ones(len(selection.symbol_ids), dtype=bool)
        return np.isin(selection.symbol_ids, np.array(waiting.symbols, dtype=np.int64))

    def _upstream(
        self, selection: Selection, column: Column, unset: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, str, str]]:
        """For a derived cell that is not filled: the root cause of the first input that is not filled."""
        if column in RAW_COLUMNS or not unset.any():
            return
        for source in UPSTREAM[column]:
            inputs, row = self._inputs(selection, column, source)
            universe = self.state.universe(selection.session)
            those = with_options(self.state, universe)[np.searchsorted(universe, inputs.symbol_ids)]
            cells = self.reading.planes(selection.session, source, inputs.symbol_ids, those)
            missing = (cells.state != Status.FILLED) & (cells.state != 4)
            if not missing.any():
                continue
            for cause, mask, detail, remedy in self._causes(inputs, source, cells):
                if cause not in (
                    "filled",
                    "no_data",
                    "not_applicable",
                    "stale",
                    "recipe",
                    "suspect",
                    "partial",
                    "wanted",
                ):
                    behind = behind_inputs(column, source, missing & mask, row, len(selection.symbol_ids))
                    said = detail if detail.split(":")[0] in _COLUMN_WORDS else f"{source.value}: {detail}"
                    yield cause, unset & behind, said, remedy

    def _inputs(self, selection: Selection, column: Column, source: Column) -> tuple[Selection, np.ndarray]:
        """The symbols whose cells of ``source`` are inputs, and for each the row of the selection that it belongs to."""
        own = np.arange(len(selection.symbol_ids))
        if column is Column.GREEKS_REF and source is Column.QUOTE_REF:
            ids = np.array([self.state.underlying_id(int(one)) for one in selection.symbol_ids], dtype=np.int64)
            return replace(selection, symbol_ids=ids), own
        if column not in AGGREGATE_MINUTES:
            return selection, own
        universe = self.state.universe(selection.session)
        under = np.array([self.state.underlying_id(int(one)) for one in universe], dtype=np.int64)
        mine = np.isin(under, selection.symbol_ids)
        order = np.argsort(selection.symbol_ids, kind="stable")
        row = order[np.searchsorted(selection.symbol_ids[order], under[mine])]
        return replace(selection, symbol_ids=universe[mine]), row

    def _add(
        self,
        selection: Selection,
        column: Column,
        chosen: np.ndarray,
        cause: str,
        detail: str,
        remedy: str,
        groups: dict[tuple[str, str], _Group],
    ) -> None:
        symbols, minutes = np.nonzero(chosen)
        open_ns = int(self.state.calendar.open_ns[selection.seq])
        first = open_ns + (selection.first + int(minutes.min())) * 60_000_000_000
        last = open_ns + (selection.first + int(minutes.max())) * 60_000_000_000
        group = groups.setdefault((cause, detail), _Group({}, 0, set(), first, last, remedy, detail))
        group.columns[column] = None
        group.cells += len(symbols)
        group.symbols.update(selection.symbol_ids[np.unique(symbols)].tolist())
        group.first, group.last = min(group.first, first), max(group.last, last)


def behind_inputs(column: Column, source: Column, cells: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """
    Which cells of a column lie behind some cells of one of its inputs.

    Args:
        cells: bool[inputs, minutes].
        row: i64[inputs], the symbol of the result that each input belongs to.
        count: symbols of the result.

    Returns:
        bool[count, minutes].
    """
    result = np.zeros((count, cells.shape[1]), dtype=bool)
    np.logical_or.at(result, row, cells)
    if source is Column.QUOTE_REF:
        result[:, 1:] |= result[:, :-1].copy()
    if column in AGGREGATE_MINUTES:
        total = np.zeros((count, cells.shape[1] + 1), dtype=np.int32)
        np.cumsum(result, axis=1, out=total[:, 1:])
        starts = np.arange(cells.shape[1])
        result = total[:, np.minimum(starts + AGGREGATE_MINUTES[column], cells.shape[1])] > total[:, starts]
    return result


def _remedy(waiting: Waiting, engine: str) -> str:
    if waiting.cause == "waiting":
        return f"m17ctl accept {_RANGE}"
    if waiting.cause == "refused":
        return "m17ctl symbols list"
    return f"m17ctl engines retry {engine}"
