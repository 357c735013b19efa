"""
What engines that make cells from cells share: which cells to make, in what order, in tasks of what size.

Planning costs what changed: per session the engine remembers how often each symbol was written, and judges again only
the units that a change touches. A unit is taken when all its open cells are ready, or when nothing has touched it for a
moment, so that a batch under commit is not planned in shreds. Cells whose trade inputs have no rows are filled by the
daemon itself. This module must never compute rows, nor import what workers need.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from engines.contract import Batch, Context, Health, NoRowsCells, RowQuality, Task, Waiting
from engines.derivation import Cells, Derivation, joined, pieces
from engines.looking import Look, Open
from engines.offers import Offers
from engines.scope import Covered, Scope
from ledger.columns import SYMBOLS_MAX, Column
from ledger.regions import touches
from ledger.state import State

UNITS_AT_ONCE: Final = 64
"""Units whose cells may go into one task."""
_QUIET_S: Final = 0.3
_LATE_S: Final = 1.0
"""A unit that is written to without end is judged after so long."""
_SIFTED_MIN: Final = 256
_SIFT_S: Final = 0.3
"""A sift costs milliseconds, a unit's judgement a tenth of one."""
_JUDGE_S: Final = 0.001
_PLAN_S: Final = 0.002
"""How long one call plans; what it has begun goes on at the next."""
_OVER: Final = object()


class DerivedEngine:
    """
    One derived engine: a derivation, planned.

    Attributes:
        settle_s: a unit is judged when nothing has touched it for so long.
        units_a_step: units looked at without a break, some milliseconds.
        units_a_weighing: units whose cells are weighed without a break.

    Args:
        derivation: what is this engine's own.
        scope: which symbols to work on, and whether only where a region asks.
    """

    settle_s = 0.0
    units_a_step = 32
    units_a_weighing = 32

    def __init__(self, derivation: Derivation, scope: Scope) -> None:
        self.name = derivation.name
        self.writes = derivation.writes
        self.derivation = derivation
        self._scope = scope
        self._looks: dict[str, Look] = {}
        self._sessions: list[str] = []
        self._generation = (-1, 0)
        self._making: Iterator[None] | None = None
        self._asked: dict[str, dict[int, int]] = {}
        self._alone: set[tuple[str, int]] = set()

    # ---- the engine

    def start(self, context: Context) -> None:
        """Take the context."""
        self._context = context
        self._state: State = context.state
        self._offers = Offers(self.name, self.derivation.compute, self._state)
        self.derivation.start(context)
        self._covered = Covered(self._scope, self._state, self.derivation.applies)

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
        return self._offers.backlog() + sum(len(look.open) for look in self._looks.values())

    def cells_left(self) -> int:
        """Cells that could be made now, as far as it has looked, and those of tasks at work."""
        return self._offers.cells() + sum(work for look in self._looks.values() for work, _ in look.open.values())

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: applicable ones that pass the globs, and on demand only those that a region activated."""
        return self._covered.mask(session, column) if column in self.writes else None

    @property
    def on_demand(self) -> bool:
        """Whether its cells wait for a region that activates them."""
        return self._covered.on_demand

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
        self._offers.started(task)
        self._looks[task.session].begin(task.symbols or ())

    def ended(self, task: Task) -> None:
        """Its cells are no longer under way; they are judged again."""
        self._offers.ended(task)
        self._looks[task.session].end(task.symbols or ())

    # ---- looking

    def is_looking(self) -> bool:
        """True while changes were not judged, or units that changed a moment ago wait for the moment to pass."""
        self._notice()
        if self._making is not None:
            return True
        now_s = time.monotonic()
        return any(look.has_unjudged() or look.waits(now_s - _QUIET_S) for look in self._looks.values())

    def is_planning(self) -> bool:
        """True while it has begun to make tasks and has none yet."""
        return self._making is not None and not self._offers.made

    def _notice(self) -> None:
        """See which sessions there are and which symbols were written to since."""
        state = self._state
        generation = (state.sources.generation, len(state.regions.activations) if self.on_demand else 0)
        if generation != self._generation:
            self._generation = generation
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
        covered = np.logical_or.reduce([self._covered.mask(session, column) for column in self.writes])
        units: np.ndarray = universe[covered[universe]] if len(universe) else universe
        return units

    def _judge(self, until_s: float) -> None:
        """Judge units that a change touched, newest session first, for a few milliseconds."""
        for session in self._sessions:
            look = self._looks[session]
            if look.has_unjudged() and not self._state.open_some(look.seq, until_s):
                return
            now_s = time.monotonic()
            self._sift(look, now_s)
            while len(units := look.unjudged(self.units_a_step, now_s - self.settle_s, now_s - _LATE_S)):
                if not self._may_judge(session, look, units, until_s):
                    return
                self._judge_units(session, look, units)
                now_s = time.monotonic()
                if now_s >= until_s:
                    return

    def _sift(self, look: Look, now_s: float) -> None:
        """Many units at once, as after a file that is the first of two: one look at the planes instead of at each."""
        if now_s - look.sifted_s < _SIFT_S:
            return
        units = look.unjudged(SYMBOLS_MAX, now_s - self.settle_s, now_s - _LATE_S)
        if len(units) < _SIFTED_MIN:
            return
        look.sifted_s = now_s
        at_rest = self.derivation.at_rest(look.seq, units)
        if at_rest is not None:
            look.pass_over(units[at_rest])

    def _may_judge(self, session: str, look: Look, units: np.ndarray, until_s: float) -> bool:
        """Whether units can be judged in a moment; False where more must be looked at first, which went on meanwhile."""
        del session, look, units, until_s
        return True

    def _judge_units(self, session: str, look: Look, units: np.ndarray) -> list[Open]:
        """Note what is open and what is stale among some units; the open cells by column."""
        found = []
        unasked = self._remakes_recipes(session)
        for column in self.writes:
            judged = self.derivation.judge(look.seq, column, units)
            ledger = self._state.ledger_of(column)
            rows = ledger.session(look.seq) if ledger.exists(look.seq) else None
            one = Open.find(self._state, rows, column, units, judged, unasked=unasked)
            if self.on_demand:
                one.keep_only(self._covered.mask(session, column)[units])
            found.append(one)
        look.note(units, found)
        return found

    def _remakes_recipes(self, session: str) -> bool:
        """Whether cells of another recipe are remade unasked: in the newest sessions."""
        return session in self._sessions[: self._context.auto_recompute_sessions]

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """bool[n, minutes]: the stale cells that it is going to make again unasked; None for no cell."""
        self._notice()
        look = self._looks.get(session)
        if look is None:
            return None
        self._judge_late(session, look, symbol_ids)
        return look.changing(column, symbol_ids, unasked=self._remakes_recipes(session))

    def is_settled(self, session: str, symbol_ids: np.ndarray) -> bool:
        """Whether it knows which cells of some symbols it will make again; where not, it has looked at some more of them."""
        self._notice()
        look = self._looks.get(session)
        if look is None:
            return True
        late = look.unjudged_of(symbol_ids)
        if len(late):
            self._judge_units(session, look, late[:UNITS_AT_ONCE])
        return len(late) <= UNITS_AT_ONCE

    def _judge_late(self, session: str, look: Look, symbol_ids: np.ndarray) -> None:
        """Judge now those of the symbols that something moved under."""
        late = look.unjudged_of(symbol_ids)
        for start in range(0, len(late), UNITS_AT_ONCE):
            self._judge_units(session, look, late[start : start + UNITS_AT_ONCE])

    def stale(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: filled cells whose inputs are all filled and whose print is not what it would be now."""
        return self._read(session, column, symbol_ids, "stale")

    def known_stale(self, session: str) -> tuple[int, dict[Column, int]]:
        """(a number that changes with what is known, stale cells by column as last judged); judges nothing."""
        look = self._looks.get(session)
        return (0, {}) if look is None else (look.generation, look.stale_cells())

    def judge_a_little(self) -> None:
        """Judge what moved, for a few milliseconds: for whoever wants to know while the engine is not asked to plan."""
        self._notice()
        self._judge(time.monotonic() + _JUDGE_S)

    def stale_by_recipe(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: those of the stale cells that another recipe made."""
        return self._read(session, column, symbol_ids, "by_recipe")

    def quality(self, column: Column, records: np.ndarray) -> RowQuality:
        """What records of a column say of their rows."""
        return self.derivation.quality(column, records)

    def recipe(self, session: str, column: Column, symbol_id: int) -> tuple[int, str]:
        """The print of the recipe that a cell would be made by now, and its settings in words."""
        return self.derivation.recipe_of(self._state.calendar.session_seq(session), column, symbol_id)

    def _read(self, session: str, column: Column, symbol_ids: np.ndarray, what: str) -> np.ndarray:
        """A plane of the cells, judged now where something moved."""
        seq = self._state.calendar.session_seq(session)
        plane = np.zeros((len(symbol_ids), int(self._state.calendar.minutes[seq])), dtype=bool)
        self._notice()
        look, covered = self._looks.get(session), self.covers(session, column)
        if look is None or covered is None:
            return plane
        mine = np.flatnonzero(covered[symbol_ids])
        self._judge_late(session, look, symbol_ids[mine])
        for position in mine:
            marks = look.marks(int(symbol_ids[position]), column, what)
            if marks is not None:
                plane[position] = marks
        return plane

    # ---- planning

    def plan(self, limit: int) -> list[Task]:
        """
        Tasks that could run now: regions first, then the newest session.

        Planning takes turns of milliseconds: a call may return fewer than there are, or none, and :meth:`is_looking` says
        so. Tasks that were made stay offered until they start, or something moves under them.
        """
        now_s = time.monotonic()
        self._notice()
        self._withdraw()
        self._judge(now_s + _JUDGE_S)
        until_s = time.monotonic() + _PLAN_S
        while len(self._offers.made) < limit:
            if self._making is None:
                self._making = self._make(now_s - _QUIET_S)
            if next(self._making, _OVER) is _OVER:
                self._making = None
                break
            if time.monotonic() > until_s:
                break
        # Once more: what was begun at an earlier call may have had its inputs cleared under it half way.
        self._drop(self._moved())
        return self._offers.made[:limit]

    def _withdraw(self) -> None:
        """Forget tasks whose units moved since they were made, and all that is not begun when other regions are asked for."""
        regions = self._regions()
        if regions == self._asked:
            self._drop(self._moved())
            return
        self._asked, self._making = regions, None
        self._drop(list(self._offers.made))

    def _moved(self) -> list[Task]:
        """Tasks with a unit that something moved under since it was judged: their rows may be those of other inputs."""
        begun_s = self._offers.begun_s
        return [
            task
            for task in self._offers.made
            if self._looks[task.session].touched_since(task.symbols or (), begun_s(task))
        ]

    def _drop(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._offers.drop(task)
            self._looks[task.session].postpone(task.symbols or ())

    def _make(self, quiet_s: float) -> Iterator[None]:
        """Offer every task there is now, best first, with pauses where it may be left alone for a while."""
        regions = self._asked
        order = sorted(regions, key=lambda session: -max(regions[session].values()))
        order += [session for session in self._sessions if session not in regions]
        for session in order:
            yield from self._tasks_in(session, regions.get(session, {}), quiet_s)

    def _regions(self) -> dict[str, dict[int, int]]:
        """Session -> unit -> highest priority of the regions that touch it."""
        found: dict[str, dict[int, int]] = {}
        calendar = self._state.calendar
        for column in self.writes:
            for region in self._context.regions(column):
                first, last = (calendar.session_on(ts) for ts in (region.start_ts, region.end_ts - 1))
                for session in calendar.sessions_between(first, last):
                    if session in self._looks and touches(region, calendar, session):
                        units = found.setdefault(session, {})
                        units[region.symbol_id] = max(units.get(region.symbol_id, region.priority), region.priority)
        return found

    def _tasks_in(self, session: str, regions: dict[int, int], quiet_s: float) -> Iterator[None]:
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

    def _tasks_of(self, session: str, look: Look, units: np.ndarray, priority: int) -> Iterator[None]:
        """The tasks of some units: what has no rows at once, the rest in pieces of bounded weight."""
        begun_s = time.monotonic()
        judged: list[tuple[np.ndarray, np.ndarray]] = []
        empty: list[NoRowsCells] = []
        found: dict[Column, list[Cells]] = {}
        weights: dict[Column, list[np.ndarray]] = {}
        for start in range(0, len(units), self.units_a_step):
            some = units[start : start + self.units_a_step]
            if not self._may_judge(session, look, some, begun_s):
                look.postpone(some)
                yield
                continue
            opened = self._judge_units(session, look, some)
            judged.append((some, look.notes[some]))
            for one in opened:
                one.leave_out(self._offers.under_way(session, one.column, some, one.work.shape))
                no_rows = one.no_rows()
                if len(no_rows.minutes):
                    empty.append(no_rows)
                for cells in one.cells().by_units(self.units_a_weighing):
                    found.setdefault(one.column, []).append(cells)
                    weights.setdefault(one.column, []).append(self.derivation.weigh(look.seq, cells))
                    yield
            yield
        if empty:
            self._offers.offer_no_rows(session, empty, priority, begun_s)
            yield
        made = [joined(parts) for parts in found.values()]
        for piece in self._cut(made, [np.concatenate(parts) for parts in weights.values()]):
            yield
            arguments = yield from self.derivation.arguments(session, piece)
            self._offers.offer(session, arguments, piece, priority, begun_s)
            yield
        for some, notes in judged:
            look.taken(some, notes)

    def _cut(self, made: list[Cells], weights: list[np.ndarray]) -> Iterator[list[Cells]]:
        """Cells as the tasks are to have them."""
        return pieces(made, weights, divisible=self.derivation.divisible)
