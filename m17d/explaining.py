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

from engines.contract import Doubting, Waiting
from ledger.columns import AGGREGATE_MINUTES, RAW_COLUMNS, UPSTREAM, Column, Flag, Status
from ledger.coverage import Planes, with_options
from ledger.retention import RETIRING, retired_cells
from ledger.state import State
from m17d import protocol, replies
from m17d.behind import Said, behind_inputs, said_behind, without_column
from m17d.reading import Reading, Selection
from m17d.remedies import COLUMNS, RANGE, WAIT, Place, fitted, refill, waiting_remedy
from m17d.runner import Runner
from m17d.unusable import Unusable

_RETIRED: Final = "its rows were removed by age; checksum and counts stay"
_READ_AGAIN: Final = refill("rows are wanted again")
_COLUMN_WORDS: Final = frozenset(column.value for column in Column)
_SET: Final = frozenset(
    {"filled", "lagging", "no_data", "retired", "not_applicable", "stale", "recipe", "suspect", "partial", "wanted"}
)
"""Causes of cells that hold something, so that nothing waits for them."""


@dataclass(slots=True)
class _Group:
    columns: dict[Column, None]
    cells: int
    symbols: set[int]
    first: int
    last: int
    remedy: str
    detail: str
    rows: dict[str, int]
    place: Place


class Explaining:
    """Answers ``why`` over one state."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading
        reading.measuring.blocked = self.behind
        self.unusable = Unusable(state, reading, self._inputs)

    def why(self, request: protocol.WhyRequest, *, rows: bool = True) -> Iterator[replies.WhyReply | None]:
        """Groups of cells by root cause, the largest first, rows of filled ones looked at where asked; None between steps."""
        selection = self.reading.select(request.range)
        groups: dict[tuple[str, str], _Group] = {}
        for column in request.columns:
            cells = self._planes(selection.session, column, selection.symbol_ids)
            for _ in self._explain(selection, column, cells, groups, rows=rows):
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
                    remedy=self._remedy(selection, request.range.symbols, group),
                    detail=group.detail,
                    rows=group.rows,
                )
                for (cause, _), group in found
            ]
        )

    def _remedy(self, selection: Selection, asked: str | None, group: _Group) -> str:
        """The command of a group, for its cells or for those behind them."""
        return fitted(
            self.state, group.remedy, selection.session, group.place, asked=asked, chosen=selection.symbol_ids
        )

    def _explain(
        self,
        selection: Selection,
        column: Column,
        cells: Planes,
        groups: dict[tuple[str, str], _Group],
        *,
        rows: bool,
    ) -> Iterator[None]:
        """Give every cell of the range to the first cause that fits it, in steps."""
        window = np.zeros(cells.state.shape, dtype=bool)
        window[:, selection.first : selection.last] = True
        left = window
        for said in self._causes(selection, column, cells, rows=rows):
            if said is None:
                yield
                continue
            chosen = left & said.cells
            if chosen.any():
                self._add(selection, column, chosen, said, groups)
                left = left & ~chosen
        yield

    def _causes(
        self, selection: Selection, column: Column, cells: Planes, *, rows: bool = True
    ) -> Iterator[Said | None]:
        """The first that fits a cell wins, the rows of filled ones looked at where asked; None between steps."""
        state = cells.state
        filled = state == Status.FILLED
        yield Said("not_applicable", state == 4, "no engine could ever fill these cells", "")
        yield from self._doubts(selection, column, cells, filled)
        partly: list[Said] = []
        for quality in self.unusable.causes(selection, column, filled & ~cells.no_data) if rows else ():
            # Cells of no use at all are said to be, with the input to blame, whatever else may be said against it.
            if quality is None or quality.cause == "unusable":
                yield quality
            else:
                partly.append(quality)
        yield from self._doubts_behind(selection, column, filled)
        for engine in self.runner.engines.values():
            for doubt in engine.doubts(selection.session) if isinstance(engine, Doubting) else ():
                if doubt.column is column:
                    of_minutes = np.zeros(filled.shape, dtype=bool)
                    of_minutes[:, doubt.first_minute : doubt.last_minute] = True
                    yield Said(doubt.cause, filled & of_minutes, doubt.detail, "")
        yield Said("no_data", filled & cells.no_data, "the complete source has no rows there", "")
        if rows and column is RETIRING and filled.any():
            retired = retired_cells(self.state, selection.session, selection.symbol_ids)
            yield Said("retired", filled & retired, _RETIRED, _READ_AGAIN)
        yield from partly
        yield Said("filled", filled, "", "")
        yield Said("pending", state == Status.PENDING, "an engine is at work on these cells", WAIT)
        unset = (state == Status.EMPTY) | (state == Status.CLEARED) | (state == 5)
        yield from self._waits(selection, column, unset)
        yield from self._upstream(selection, column, unset & (state != 5))
        yield self._not_due(column, state == 5)
        yield Said(
            "cleared",
            state == Status.CLEARED,
            "cleared on purpose; the engine fills these cells again",
            WAIT,
        )
        yield Said(
            "planned",
            state == Status.EMPTY,
            "its engine has not come to these cells yet; to have them first:",
            refill("needed first"),
        )

    def _doubts(self, selection: Selection, column: Column, cells: Planes, filled: np.ndarray) -> Iterator[Said]:
        """What can be said against filled cells whatever their rows are."""
        yield from self._unsound(selection, column, cells, filled)
        wanted = filled & (self._flags(selection, column) & np.uint8(Flag.WANTED) != 0)
        yield Said("wanted", wanted, "a refresh was asked for and is not done", WAIT)
        if cells.stale.any():
            by_recipe = self.reading.stale(selection.session, column, cells.symbol_ids, True)
            yield Said(
                "recipe",
                filled & cells.stale & by_recipe,
                "made by another recipe; only the newest sessions are made again unasked",
                f"m17ctl refresh {COLUMNS} {RANGE} --stale recipe --cause 'new recipe'",
            )
            text = "made from inputs that have changed since; it is planned again"
            yield Said("stale", filled & cells.stale, text, WAIT)

    def _unsound(self, selection: Selection, column: Column, cells: Planes, filled: np.ndarray) -> Iterator[Said]:
        """Suspect and partial cells."""
        yield from self._suspicions(cells, filled)
        partial = filled & (self._flags(selection, column) & np.uint8(Flag.PARTIAL) != 0)
        yield Said("partial", partial, "a gap of the feed overlaps", refill("feed gap"))

    @staticmethod
    def _suspicions(cells: Planes, filled: np.ndarray) -> Iterator[Said]:
        """Suspect cells by the reason why they are."""
        remedy = f"m17ctl accept {RANGE} --columns {COLUMNS} --cause 'looked at'"
        suspect = filled & cells.suspect
        never = suspect.all(axis=1)[:, None]
        look = "a corrected file is read by itself; to take the cells as they are:"
        fewer = f"the better source has far fewer rows than the window holds, which stay: {look}"
        yield Said("suspect", suspect & ~cells.no_data, fewer, remedy)
        none = f"not one row in a complete source, although the symbol's other data is there: {look}"
        yield Said("suspect", suspect & never, none, remedy)
        silent = f"silent while the symbol's other data went on: {look}"
        yield Said("suspect", suspect & ~never, silent, remedy)

    def _doubts_behind(self, selection: Selection, column: Column, filled: np.ndarray) -> Iterator[Said]:
        """Filled derived cells that stand on suspect or partial ones: those are what has to be looked at."""
        for source in UPSTREAM[column] if filled.any() else ():
            inputs, row = self._inputs(selection, column, source)
            cells = self._planes(selection.session, source, inputs.symbol_ids)
            there = cells.state == Status.FILLED
            own = self._unsound(inputs, source, cells, there)
            for said in (*own, *self._doubts_behind(inputs, source, there)):
                if said.cells.any():
                    yield said_behind(column, source, said, inputs.symbol_ids, row, filled)

    def doubtful(self, selection: Selection, column: Column) -> np.ndarray:
        """bool[symbols of the selection, minutes]: filled cells that stand on suspect or partial ones."""
        filled = self._planes(selection.session, column, selection.symbol_ids).state == Status.FILLED
        found = np.zeros(filled.shape, dtype=bool)
        for said in self._doubts_behind(selection, column, filled):
            found |= said.cells
        return found

    def _planes(self, session: str, column: Column, symbol_ids: np.ndarray, *, judged: bool = True) -> Planes:
        universe = self.state.universe(session)
        options = with_options(self.state, universe)[np.searchsorted(universe, symbol_ids)]
        return self.reading.planes(session, column, symbol_ids, options, judged=judged)

    def _flags(self, selection: Selection, column: Column) -> np.ndarray:
        ledger = self.state.ledger_of(column)
        minutes = int(self.state.calendar.minutes[selection.seq])
        if not ledger.exists(selection.seq):
            return np.zeros((len(selection.symbol_ids), minutes), dtype=np.uint8)
        rows = ledger.session(selection.seq)
        flags: np.ndarray = rows.flags[rows.column_index(column), selection.symbol_ids, :minutes]
        return flags

    def _not_due(self, column: Column, cells: np.ndarray) -> Said:
        """What is said of cells that nobody should have filled by now."""
        if not any(column in engine.writes for engine in self.runner.engines.values()):
            return Said("not_due", cells, f"no engine that fills {column.value} is configured", "")
        if any(column in engine.writes and engine.on_demand for engine in self.runner.deriving.values()):
            text = "nobody asked for them: the engine works on demand, where a region was raised once"
            return Said("not_due", cells, text, refill("wanted"))
        text = "the window is not over, or the engine's sessions and symbols leave these cells out"
        return Said("not_due", cells, text, "")

    def _waits(self, selection: Selection, column: Column, unset: np.ndarray) -> Iterator[Said]:
        """What the engines of the column say they wait for."""
        for name, engine in self.runner.engines.items():
            if column not in engine.writes:
                continue
            if name in self.runner.paused:
                yield Said("paused", unset, f"{name}: {self.runner.paused[name]}", f"m17ctl engines resume {name}")
            for waiting in engine.waiting(selection.session):
                if waiting.column is column:
                    mask = unset & self._of(waiting, selection)[:, None]
                    yield Said(waiting.cause, mask, waiting.detail, waiting_remedy(waiting, name))
        if self.runner.blocked:
            yield Said("blocked", unset, self.runner.blocked, "m17ctl doctor")

    @staticmethod
    def _of(waiting: Waiting, selection: Selection) -> np.ndarray:
        if waiting.symbols is None:
            return np.ones(len(selection.symbol_ids), dtype=bool)
        return np.isin(selection.symbol_ids, np.array(waiting.symbols, dtype=np.int64))

    def _upstream(self, selection: Selection, column: Column, unset: np.ndarray) -> Iterator[Said]:
        """For a derived cell that is not filled: the root cause of the first input that is not filled."""
        if column in RAW_COLUMNS or not unset.any():
            return
        for source in UPSTREAM[column]:
            inputs, row, cells, missing = self._missing(selection, column, source)
            if not missing.any():
                continue
            for said in self._causes(inputs, source, cells, rows=False):
                if said is not None and said.cause not in _SET:
                    lacking = said._replace(cells=missing & said.cells)
                    yield said_behind(column, source, lacking, inputs.symbol_ids, row, unset)
        if RETIRING in UPSTREAM[column]:
            inputs, row = self._inputs(selection, column, RETIRING)
            lost = retired_cells(self.state, selection.session, inputs.symbol_ids)
            yield said_behind(
                column, RETIRING, Said("retired", lost, _RETIRED, _READ_AGAIN), inputs.symbol_ids, row, unset
            )

    def behind(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: cells of a derived column, of some symbols of the universe, with an input that is not filled."""
        seq = self.state.calendar.session_seq(session)
        selection = Selection(session, seq, symbol_ids, 0, int(self.state.calendar.minutes[seq]), None)
        found = np.zeros((len(symbol_ids), selection.minutes), dtype=bool)
        for source in UPSTREAM[column]:
            _, row, _, missing = self._missing(selection, column, source, judged=False)
            found |= behind_inputs(column, source, missing, row, len(symbol_ids))
        return found

    def _missing(
        self, selection: Selection, column: Column, source: Column, *, judged: bool = True
    ) -> tuple[Selection, np.ndarray, Planes, np.ndarray]:
        """The inputs of one source, the row of the selection that each belongs to, their cells, and which are not filled."""
        inputs, row = self._inputs(selection, column, source)
        cells = self._planes(selection.session, source, inputs.symbol_ids, judged=judged)
        return inputs, row, cells, (cells.state != Status.FILLED) & (cells.state != 4)

    def _inputs(self, selection: Selection, column: Column, source: Column) -> tuple[Selection, np.ndarray]:
        """The symbols whose cells of ``source`` are inputs, and for each the row of the selection that it belongs to."""
        own = np.arange(len(selection.symbol_ids))
        if column is Column.GREEKS_REF and source is Column.QUOTE_REF:
            return replace(selection, symbol_ids=self.state.symbol_facts()[1][selection.symbol_ids]), own
        if column not in AGGREGATE_MINUTES:
            return selection, own
        universe = self.state.universe(selection.session)
        under = self.state.symbol_facts()[1][universe]
        mine = np.isin(under, selection.symbol_ids)
        order = np.argsort(selection.symbol_ids, kind="stable")
        row = order[np.searchsorted(selection.symbol_ids[order], under[mine])]
        return replace(selection, symbol_ids=universe[mine]), row

    def _add(
        self,
        selection: Selection,
        column: Column,
        chosen: np.ndarray,
        said: Said,
        groups: dict[tuple[str, str], _Group],
    ) -> None:
        symbols, minutes = np.nonzero(chosen)
        open_ns = int(self.state.calendar.open_ns[selection.seq])
        first, last = (open_ns + int(minute) * 60_000_000_000 for minute in (minutes.min(), minutes.max()))
        # One root cause is one group, whether its own cells are asked about or those behind them.
        group = groups.setdefault(
            (said.cause, without_column(said.detail)),
            _Group({}, 0, set(), first, last, said.remedy, said.detail, {}, Place()),
        )
        if said.roots is None:
            group.place.add(column, selection.symbol_ids, chosen)
        else:
            group.place.add_roots(column, chosen, said.roots)
        group.columns[column] = None
        group.cells += len(symbols)
        group.symbols.update(selection.symbol_ids[np.unique(symbols)].tolist())
        group.first, group.last = min(group.first, first), max(group.last, last)
        for word, number in (said.quality.inside(chosen).sums() if said.quality else {}).items():
            group.rows[word] = group.rows.get(word, 0) + number
