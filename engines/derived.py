"""
What engines that make cells from cells share: which cells to make, in what order, in tasks of what size.

Planning costs what changed: per session the engine remembers how often each symbol was written, and judges again only
the units that a change touches. A unit is taken when all its open cells are ready, or when nothing has touched it for a
moment, so that a batch under commit is not planned in shreds. Cells whose trade inputs have no rows are filled by the
daemon itself. This module must never compute rows, nor import what workers need.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from engines.contract import Batch, Context, Health, NoRowsCells, Task, Waiting
from engines.derivation import Cells, Derivation
from engines.looking import Look, Open
from ledger.absence import matches
from ledger.columns import Column
from ledger.state import State

UNITS_AT_ONCE: Final = 64
ROWS_MAX: Final = 4_000_000
"""Rows that one task reads and writes, about 5 s of work."""
CELLS_MAX: Final = 65_536
_QUIET_S: Final = 0.3
_JUDGE_S: Final = 0.004
_PLAN_S: Final = 0.008


class DerivedEngine:
    """
    One derived engine: a derivation, planned.

    Args:
        derivation: what is this engine's own.
        globs: symbols to work on; empty for all.
    """

    def __init__(self, derivation: Derivation, globs: list[str]) -> None:
        self.name = derivation.name
        self.writes = derivation.writes
        self.derivation = derivation
        self._globs = globs
        self._looks: dict[str, Look] = {}
        self._sessions: list[str] = []
        self._generation = -1
        self._covered = np.zeros(0, dtype=bool)
        self._offered: dict[str, list[Cells]] = {}
        self._running: dict[str, tuple[str, list[Cells]]] = {}
        self._alone: set[tuple[str, int]] = set()

    # ---- the engine

    def start(self, context: Context) -> None:
        """Take the context."""
        self._context = context
        self._state: State = context.state
        self.derivation.start(context)

    def stop(self) -> None:
        """Nothing is held."""

    def health(self) -> Health:
        """Idle, with how many symbols wait for inputs."""
        open_units = sum(len(look.open) for look in self._looks.values())
        return Health("idle", f"{open_units} symbols with work" if open_units else "")

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return ["symbols of a region go first in its session, then newer sessions before older ones"]

    def backlog(self) -> int:
        """Symbols of sessions with cells that could be made now, and tasks that run."""
        return len(self._running) + sum(len(look.open) for look in self._looks.values())

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: applicable ones that pass the globs, in every session."""
        del session
        if column not in self.writes:
            return None
        count = len(self._state.symbols)
        if len(self._covered) < count:
            fresh = np.arange(len(self._covered), count, dtype=np.int64)
            passes = np.array([matches(self._globs, self._state.symbols.name(int(one))) for one in fresh], dtype=bool)
            self._covered = np.concatenate([self._covered, passes & self.derivation.applies(fresh)])
        return self._covered

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Nothing of its own: what its cells wait for lies upstream, where ``why`` looks."""
        del session
        return []

    def finished(self, task: Task, batch: Batch) -> None:
        """The commit has changed the cells, which is seen at the next look."""

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """Units of a task that failed are tried alone from now on, so that one costs the others nothing."""
        del reason, report
        self._alone.update((task.session, one) for one in task.symbols or ())

    def started(self, task: Task) -> None:
        """Its cells are under way."""
        self._running[task.key] = (task.session, self._offered.pop(task.key))

    def ended(self, task: Task) -> None:
        """Its cells are no longer under way; they are judged again."""
        session, made = self._running.pop(task.key)
        for cells in made:
            self._looks[session].forget(np.unique(cells.symbol_ids))

    # ---- looking

    def is_looking(self) -> bool:
        """True while changes were not judged, or units that changed a moment ago wait for the moment to pass."""
        self._notice()
        now_s = time.monotonic()
        return any(look.has_unjudged() or look.waits(now_s - _QUIET_S) for look in self._looks.values())

    def _notice(self) -> None:
        """See which sessions there are and which symbols were written to since."""
        state = self._state
        if state.sources.generation != self._generation:
            self._generation = state.sources.generation
            self._sessions = sorted(state.sources.sessions(), reverse=True)
            for session in self._sessions:
                look = self._looks.setdefault(session, Look(state.calendar.session_seq(session)))
                look.set_units(self._units(session))
        now_s = time.monotonic()
        for session in self._sessions:
            look = self._looks[session]
            for ledger in (state.trade, state.enrichment):
                rows = ledger.mapped().get(look.seq)
                if rows is not None and look.moved(rows):
                    changed = look.changed(rows)
                    if len(changed):
                        look.touch(self.derivation.affected(changed), now_s)

    def _units(self, session: str) -> np.ndarray:
        universe = self._state.universe(session)
        covered = self.covers(session, self.writes[0])
        assert covered is not None
        units: np.ndarray = universe[covered[universe]] if len(universe) else universe
        return units

    def _judge(self, until_s: float) -> None:
        """Judge units that a change touched, newest session first, for a few milliseconds."""
        for session in self._sessions:
            look = self._looks[session]
            while look.has_unjudged():
                self._judge_units(session, look, look.unjudged(UNITS_AT_ONCE))
                if time.monotonic() >= until_s:
                    return

    def _judge_units(self, session: str, look: Look, units: np.ndarray) -> list[Open]:
        """Note what is open and what is stale among some units; the open cells by column."""
        found = []
        unasked = session in self._sessions[: self._context.auto_recompute_sessions]
        for column in self.writes:
            judged = self.derivation.judge(look.seq, column, units)
            ledger = self._state.ledger_of(column)
            rows = ledger.session(look.seq) if ledger.exists(look.seq) else None
            one = Open.find(self._state, rows, column, units, judged, unasked=unasked)
            found.append(one)
        look.note(units, found)
        return found

    def stale(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: filled cells whose inputs are all filled and whose print is not what it would be now."""
        return self._read(session, column, symbol_ids, "stale")

    def stale_by_recipe(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: those of the stale cells that another recipe made."""
        return self._read(session, column, symbol_ids, "by_recipe")

    def _read(self, session: str, column: Column, symbol_ids: np.ndarray, what: str) -> np.ndarray:
        """A plane of the cells, judged now where something moved."""
        seq = self._state.calendar.session_seq(session)
        plane = np.zeros((len(symbol_ids), int(self._state.calendar.minutes[seq])), dtype=bool)
        self._notice()
        look, covered = self._looks.get(session), self.covers(session, column)
        if look is None or covered is None:
            return plane
        mine = np.flatnonzero(covered[symbol_ids])
        late = look.unjudged_of(symbol_ids[mine])
        for start in range(0, len(late), UNITS_AT_ONCE):
            self._judge_units(session, look, late[start : start + UNITS_AT_ONCE])
        for position in mine:
            marks = look.marks(int(symbol_ids[position]), column, what)
            if marks is not None:
                plane[position] = marks
        return plane

    # ---- planning

    def plan(self, limit: int) -> list[Task]:
        """Tasks that could run now: regions first, then the newest session."""
        now_s = time.monotonic()
        self._notice()
        self._judge(now_s + _JUDGE_S)
        self._offered.clear()
        tasks: list[Task] = []
        regions = self._regions()
        order = sorted(regions, key=lambda session: -max(regions[session].values()))
        order += [session for session in self._sessions if session not in regions]
        for session in order:
            for task in self._tasks(session, regions.get(session, {}), now_s - _QUIET_S):
                tasks.append(task)
                # Making a task judges its units again; what is left comes at the next call, milliseconds later.
                if len(tasks) >= limit or time.monotonic() - now_s > _PLAN_S:
                    return tasks
        return tasks

    def _regions(self) -> dict[str, dict[int, int]]:
        """Session -> unit -> highest priority of the regions that touch it."""
        found: dict[str, dict[int, int]] = {}
        for column in self.writes:
            for region in self._context.regions(column):
                session = self._state.calendar.session_on(region.start_ts)
                if session in self._looks:
                    units = found.setdefault(session, {})
                    units[region.symbol_id] = max(units.get(region.symbol_id, region.priority), region.priority)
        return found

    def _tasks(self, session: str, regions: dict[int, int], quiet_s: float) -> Iterator[Task]:
        look = self._looks[session]
        ready = look.ready(quiet_s)
        ready.sort(key=lambda unit: (-regions.get(unit, 0), unit))
        alone = [unit for unit in ready if (session, unit) in self._alone or unit in regions]
        rest = [unit for unit in ready if (session, unit) not in self._alone and unit not in regions]
        groups = [[unit] for unit in alone]
        groups += [rest[start : start + UNITS_AT_ONCE] for start in range(0, len(rest), UNITS_AT_ONCE)]
        for group in groups:
            priority = max(regions.get(unit, 0) for unit in group)
            yield from self._tasks_of(session, look, np.array(sorted(group), dtype=np.int64), priority)

    def _tasks_of(self, session: str, look: Look, units: np.ndarray, priority: int) -> Iterator[Task]:
        """The tasks of some units: what has no rows at once, the rest in pieces of bounded weight."""
        empty: list[NoRowsCells] = []
        made: list[Cells] = []
        for one in self._judge_units(session, look, units):
            one.leave_out(self._under_way(session, one.column, units, one.work.shape))
            no_rows = one.no_rows()
            if len(no_rows.minutes):
                empty.append(no_rows)
            cells = one.cells()
            if len(cells):
                made.append(cells)
        if empty:
            cells_of = [Cells(one.column, one.symbol_ids, one.minutes, one.inputs) for one in empty]
            yield self._task(session, "no rows", "", empty, cells_of, priority)
        weights = [self.derivation.weigh(look.seq, cells) for cells in made]
        for piece in _pieces(made, weights, divisible=self.derivation.divisible):
            arguments = self.derivation.arguments(session, piece)
            yield self._task(session, "", self.derivation.compute, arguments, piece, priority)

    def _task(self, session: str, what: str, compute: str, arguments: Any, made: list[Cells], priority: int) -> Task:
        symbols = np.unique(np.concatenate([cells.symbol_ids for cells in made]))
        cells_total = sum(len(cells) for cells in made)
        check = 0
        for cells in made:
            for array in (cells.symbol_ids, cells.minutes, cells.prints):
                check = zlib.crc32(np.ascontiguousarray(array).tobytes(), check)
        names = self._state.symbols.name(int(symbols[0])) + (
            f" and {len(symbols) - 1} more" if len(symbols) > 1 else ""
        )
        # The check is over the prints: a task that failed is not tried again until its inputs change.
        key = f"{self.name} {session} {names}{' ' + what if what else ''}: {cells_total} cells ({check:08x})"
        self._offered[key] = made
        return Task(
            engine=self.name,
            key=key,
            session=session,
            compute=compute,
            arguments=arguments,
            priority=priority,
            symbols=tuple(int(one) for one in symbols),
            cells=cells_total,
        )

    def _under_way(self, session: str, column: Column, units: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """bool[units, minutes]: cells of tasks that run."""
        busy = np.zeros(shape, dtype=bool)
        for where, made in self._running.values():
            for cells in made:
                if where == session and cells.column is column:
                    mine = np.isin(cells.symbol_ids, units)
                    busy[np.searchsorted(units, cells.symbol_ids[mine]), cells.minutes[mine]] = True
        return busy


def _pieces(made: list[Cells], weights: list[np.ndarray], *, divisible: bool) -> Iterator[list[Cells]]:
    """Cells by columns in pieces of at most ROWS_MAX rows and CELLS_MAX cells, whole units together where they fit."""
    made = [cells.part(weight >= 0) for cells, weight in zip(made, weights, strict=True)]
    weights = [weight[weight >= 0] for weight in weights]
    made, weights = [cells for cells in made if len(cells)], [weight for weight in weights if len(weight)]
    if not made:
        return
    units = np.unique(np.concatenate([cells.symbol_ids for cells in made]))
    rows, count = np.zeros(len(units), dtype=np.int64), np.zeros(len(units), dtype=np.int64)
    for cells, weight in zip(made, weights, strict=True):
        at = np.searchsorted(units, cells.symbol_ids)
        np.add.at(rows, at, weight)
        np.add.at(count, at, 1)
    start = 0
    while start < len(units):
        end = start + 1
        while (
            end < len(units) and rows[start : end + 1].sum() <= ROWS_MAX and count[start : end + 1].sum() <= CELLS_MAX
        ):
            end += 1
        piece = [cells.part(np.isin(cells.symbol_ids, units[start:end])) for cells in made]
        piece = [cells for cells in piece if len(cells)]
        if divisible and end == start + 1 and rows[start] > ROWS_MAX and len(piece) == 1:
            mine = weights[0][np.isin(made[0].symbol_ids, units[start:end])]
            yield from _divided(piece[0], mine)
        else:
            yield piece
        start = end


def _divided(cells: Cells, weight: np.ndarray) -> Iterator[list[Cells]]:
    """The cells of one heavy unit in runs of minutes; a single cell is never divided."""
    run = np.cumsum(weight) // ROWS_MAX
    for one in np.unique(run):
        yield [cells.part(run == one)]
