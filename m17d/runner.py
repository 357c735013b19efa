"""
The runner: plan, compute, commit. It asks engines for tasks, gives them to workers and commits what comes back.

Everything happens in the daemon's one thread, in steps of milliseconds. A region's work goes first, file passes hold at
most ``workers - 1`` places, and a worker that dies costs one task, which is tried again and then given up with the
reason. This module must never know what an engine computes, nor a socket.
"""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.contract import Batch, Deriving, Engine, Health, Listening, Retrying, Scheduled, Task, Watching
from ledger.absence import absent_symbols, families_of, suspicions
from ledger.columns import RAW_COLUMNS, Column, Flag, Source, Status
from ledger.errors import LedgerError, SpaceError
from ledger.sources import SourceState
from ledger.state import State
from m17d.committing import Counts, Seen, commit, commit_no_rows, fill_no_rows, look
from m17d.faults import ENGINE_FAULTS, PLAN_FIRST_S, PLAN_LONGEST_S, TASK_FIRST_S, TASK_LONGEST_S, Backoff
from m17d.latency import Latency
from m17d.pace import Pace, Progress
from m17d.places import Places
from m17d.pool import ATTEMPTS_MAX, Died, Done, Failed, NoRoom
from m17d.room import Room
from m17d.share import Share
from m17d.superseding import Guard
from m17d.turns import Turns

PLAN_INTERVAL_S: Final = 0.5
_LOOK_INTERVAL_S: Final = 0.05
_SETTLE_SYMBOLS: Final = 16
_PLANNED_ENOUGH_S: Final = 0.005
"""After so much planning tasks are started in the next step."""
_LIVE_AFTER_NS: Final = 15 * 60 * 10**9
"""So long after the close its last minutes are still live."""
_JUDGED_SYMBOLS: Final = 256
"""Symbols whose absence and silence are looked at without a break: some milliseconds."""


@dataclass(slots=True)
class Failure:
    """A task that was given up, until it is retried or its input changes."""

    engine: str
    key: str
    reason: str
    hint: str
    input: bool
    attempts: int
    subject: str = ""


@dataclass(slots=True)
class _Commit:
    task: Task
    batch: Batch
    seen: Seen
    counts: Counts = field(default_factory=Counts)
    steps: Iterator[str] | None = None
    since_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class EngineCounts:
    """Events of one engine since the start."""

    tasks: int = 0
    cells: int = 0
    unchanged: int = 0
    dropped: int = 0
    held_back: int = 0
    deaths: int = 0
    faults: int = 0
    """Plans that ended in a fault of the engine's code."""
    failed: int = 0
    busy_s: float = 0.0
    """Seconds of workers, of tasks that are over."""
    latency: Latency = field(default_factory=Latency)
    """From a batch handed in to its last cell set."""
    repaired: Counter[Column] = field(default_factory=Counter)
    """Cells that were cleared or wanted and hold a payload again."""
    remade: Counter[Column] = field(default_factory=Counter)
    """Filled cells that nobody cleared and that were made again."""
    remade_by_curve: Counter[int] = field(default_factory=Counter)
    """Of those, the ones made with a curve, by its payload_id."""


class Runner:
    """
    Runs the engines of one state.

    Args:
        log: called with level and one line.
    """

    def __init__(
        self,
        state: State,
        engines: dict[str, Engine],
        pool: Places,
        log: Callable[[str, str], None],
        guard: Guard | None = None,
    ) -> None:
        self.state = state
        self.guard = guard or Guard(state)
        self.engines = engines
        self.deriving = {name: engine for name, engine in engines.items() if isinstance(engine, Deriving)}
        """Those that make cells from cells; to ask a Protocol at every turn would cost 50 us."""
        self.watching = {name: engine for name, engine in engines.items() if isinstance(engine, Watching)}
        """Those that keep account of their tasks at work."""
        self.scheduled = {name: engine for name, engine in engines.items() if isinstance(engine, Scheduled)}
        """Those that cover more as time passes."""
        self.pool = pool
        self.turns = Turns()
        """Lengths of the steps of the daemon's loop; those of the runner are told here."""
        self.counts = {name: EngineCounts() for name in engines}
        self._paces = {name: Pace(engine) for name, engine in engines.items()}
        self.settled = Counts()
        """What settling did: cells without data that no engine's task sets."""
        self.failures: dict[str, Failure] = {}
        self.paused: dict[str, str] = {}
        """Engine -> why."""
        self.room = Room(log)
        self.room.on_change = lambda reason: self.on_change("blocked", {"reason": reason})
        self.trouble: dict[str, str] = {}
        """Engine -> why it cannot plan, such as a damaged session file."""
        self.refused: dict[str, None] = {}
        """Symbols that the cap refused."""
        self.on_change: Callable[[str, dict[str, Any]], object] = lambda _kind, _facts: None
        self._log = log
        self._listening = {name: engine for name, engine in engines.items() if isinstance(engine, Listening)}
        self._attempts: dict[str, int] = {}
        self._task_rests = Backoff(TASK_FIRST_S, TASK_LONGEST_S)
        self._plan_rests = Backoff(PLAN_FIRST_S, PLAN_LONGEST_S)
        self._share = Share()
        self._since: dict[str, tuple[str, int]] = {}
        self._asked: set[str] = set()
        self._started_ns = state.system.now_ns()
        self._seen: dict[str, Seen] = {}
        self._began_s: dict[str, float] = {}
        self._commits: deque[_Commit] = deque()
        self._settling: Iterator[str] | None = None
        self._unsettled: dict[str, None] = {}
        self._settles = ""
        self._planned_s = 0.0
        self._waits_for_sync = False
        self._plans_on = False
        self._deferred = False

    @property
    def blocked(self) -> str:
        """Why nothing is written now, such as a full disk; empty while all is well."""
        return self.room.reason

    # ---- one step of everything

    def step(self, budget_s: float = 0.005) -> bool:
        """
        Do what is due for about ``budget_s`` seconds.

        Returns:
            True where there is more to do at once, False where only a pipe, the flusher or the clock can bring work.
        """
        self._plans_on = False
        with self.turns.step("collect"):
            self._collect()
        with self.turns.step("listen"):
            self._listen()
        if self.room.rests or not self.room.pay():
            self._waits_for_sync = False
            return False
        end = time.monotonic() + budget_s
        busy = self._continue_commits(end)
        if not busy:
            busy = self._settle(end)
        busy = self._open_on(end) or busy
        if time.monotonic() >= self._planned_s or self.pool.idle_places():
            self._start_tasks()
        return (busy and not self._waits_for_sync) or (self._plans_on and self.pool.workers.idle_places() > 0)

    def is_idle(self) -> bool:
        """True when nothing runs, nothing waits to be committed or settled, and no engine has a task."""
        if self.pool.running() or self._commits or self._settling or self._unsettled:
            return False
        return not (self._candidates(1) or self._is_looking() or self._expects() or self.state.is_opening)

    def _open_on(self, end: float) -> bool:
        """Map sessions that somebody asked for; True where there are such."""
        if not self.state.is_opening:
            return False
        # Whoever needs a session that cannot be mapped meets the error himself.
        with self.turns.step("open"), contextlib.suppress(LedgerError):
            self.state.open_on(end)
        return True

    def _listen(self) -> None:
        """Let engines that listen take what waits, so that nothing waits in a pipe; paused ones keep it for later."""
        for engine in self._listening.values():
            if engine.listen():
                self._planned_s = 0.0

    def _expects(self) -> bool:
        """True while a feed of an engine that runs may bring work by itself."""
        return any(one.expects() for name, one in self._listening.items() if name not in self.paused | self.trouble)

    def _is_looking(self) -> bool:
        """True while an engine that runs may still come upon work."""
        idle = self.paused | self.trouble
        return any(engine.is_looking() for name, engine in self.deriving.items() if name not in idle)

    def _is_planning(self) -> bool:
        """True while an engine that runs is on the way to a task."""
        idle = self.paused | self.trouble
        return any(engine.is_planning() for name, engine in self.deriving.items() if name not in idle)

    def descriptors(self) -> list[int]:
        """Descriptors that bring work, for the daemon's poll."""
        return [*self.pool.descriptors(), *(one for engine in self._listening.values() for one in engine.descriptors())]

    # ---- tasks

    def _candidates(self, limit: int) -> list[Task]:
        taken = {task.key for task in self.pool.running()} | {one.task.key for one in self._commits}
        tasks: list[Task] = []
        for name, engine in self.engines.items():
            if name in self.paused:
                continue
            for task in self._plan(name, engine, limit + len(taken) + len(self.failures)):
                if task.key not in taken and self._may_try(task.key):
                    tasks.append(task)
                    # Engines that share something may both have planned it.
                    taken.add(task.key)
        return self._share.order(tasks, self._live_session())

    def _may_try(self, key: str) -> bool:
        """Whether a task has not failed, or has rested after a failure that was not its input's."""
        failure = self.failures.get(key)
        return failure is None or not (failure.input or self._task_rests.rests(key, time.monotonic()))

    def _live_session(self) -> str:
        """The session that is open now, or closed a moment ago; empty for none."""
        calendar, now_ns = self.state.calendar, self.state.system.now_ns()
        found = calendar.sessions_between(*[calendar.session_on(now_ns)] * 2)
        if not found:
            return ""
        seq = calendar.session_seq(found[0])
        return found[0] if int(calendar.open_ns[seq]) <= now_ns < calendar.close_ns(seq) + _LIVE_AFTER_NS else ""

    def _plan(self, name: str, engine: Engine, limit: int) -> list[Task]:
        """What an engine would do next; a session it cannot read costs that engine, never the daemon."""
        now_s = time.monotonic()
        self._asked.add(name)
        if self._plan_rests.rests(name, now_s):
            return []
        try:
            with self.turns.step(f"plan {name}"):
                tasks = engine.plan(limit)
        except LedgerError as error:
            if self.trouble.get(name) != str(error):
                self._log("error", f"{name}: {error}; {error.hint}")
            self.trouble[name] = str(error)
            return []
        except ENGINE_FAULTS as error:
            pause_s = self._plan_rests.failed(name, now_s)
            self.counts[name].faults += 1
            self.trouble[name] = f"a fault in its plan, {type(error).__name__}: {error}"
            where = traceback.format_exc(limit=-3).strip().replace("\n", " | ")
            self._log("error", f"{name}: {self.trouble[name]}; planned again in {pause_s:.0f} s; {where}")
            return []
        self.trouble.pop(name, None)
        self._plan_rests.forget(name)
        return tasks

    def _start_tasks(self) -> None:
        places = self.pool.idle_places()
        now_s = time.monotonic()
        if self.room.rests or not places or now_s < self._planned_s:
            return
        # A batch that waits for the disk holds memory and staging space, so new work waits behind it.
        if self.is_behind():
            return
        started = 0
        candidates = self._candidates(places)
        if not candidates and not self._commits and not self.pool.running():
            # Nobody is left who could find out that there is room.
            self.room.succeeded()
        if candidates and not self._deferred and time.monotonic() - now_s > _PLANNED_ENOUGH_S:
            # What was planned stays on offer: first whoever asks meanwhile.
            self._deferred = self._plans_on = True
            return
        self._deferred = False
        for task in candidates:
            if not task.compute:
                self._start_commit(task)
                continue
            if started == places:
                break
            if not self.pool.has_room(task, urgent=self._is_urgent(task)):
                continue
            try:
                with self.turns.step(f"look {task.engine}"):
                    seen = look(self.state, self.engines[task.engine].writes, task.session, task.symbols, task.minutes)
                with self.turns.step(f"start {task.engine}"):
                    self.pool.start(task)
            except SpaceError as error:
                self.room.refused(error)
                break
            self._seen[task.key] = seen
            self._share.started(task, self._live_session())
            self._began_s[task.key] = time.monotonic()
            self._tell_started(task)
            started += 1
        self._plans_on = not started and (self._is_planning() or self.state.is_opening)
        if not started and not self._plans_on:
            self._planned_s = now_s + (_LOOK_INTERVAL_S if self._is_looking() else PLAN_INTERVAL_S)

    def _is_urgent(self, task: Task) -> bool:
        """Whether a region asked for it, or it is a minute that has just closed."""
        return task.priority > 0 or (not task.heavy and task.session == self._live_session())

    def _start_commit(self, task: Task) -> None:
        """A task with nothing to compute goes to the commit at once."""
        self._commits.append(_Commit(task, Batch(), Seen({})))
        self._tell_started(task)

    def _tell_started(self, task: Task) -> None:
        counts = self.counts[task.engine]
        self._paces[task.engine].began(time.monotonic(), counts.cells + counts.unchanged, counts.tasks)
        if task.engine in self.watching:
            self.watching[task.engine].started(task)
        self.on_change("task", {"engine": task.engine, "key": task.key, "state": "started"})

    def _tell_ended(self, task: Task) -> None:
        if task.engine in self.watching:
            self.watching[task.engine].ended(task)
        running = [one for one in self.pool.running() if one.engine == task.engine]
        self._paces[task.engine].ended(len(running) + sum(one.task.engine == task.engine for one in self._commits))

    def progress(self, name: str) -> Progress | None:
        """How far an engine is in what it has to do; None where it has nothing to do."""
        counts = self.counts[name]
        shares = [done / total if total else 0.0 for task, done, total in self.running() if task.engine == name]
        return self._paces[name].progress(time.monotonic(), counts.cells + counts.unchanged, counts.tasks, shares)

    def _collect(self) -> None:
        for result in self.pool.collect():
            self._planned_s = 0.0
            seen = self._seen.pop(result.task.key)
            self.counts[result.task.engine].busy_s += time.monotonic() - self._began_s.pop(result.task.key)
            if isinstance(result, Done):
                self._attempts.pop(result.task.key, None)
                self._commits.append(_Commit(result.task, result.batch, seen))
                continue
            self._tell_ended(result.task)
            if isinstance(result, NoRoom):
                self.room.refused(result.error)
            elif isinstance(result, Died):
                self._died(result)
            else:
                self._failed(result)

    def _died(self, result: Died) -> None:
        task = result.task
        self.counts[task.engine].deaths += 1
        attempts = self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
        reason = f"its worker died with exit code {result.exit_code}, {attempts} of {ATTEMPTS_MAX} times"
        self._log("warning", f"{task.engine}: {task.key}: {reason}")
        if attempts >= ATTEMPTS_MAX:
            self._give_up(task, reason, "retry it with: m17ctl engines retry " + task.engine, False, None)

    def _failed(self, result: Failed) -> None:
        if result.input:
            self._give_up(result.task, result.reason, result.hint, True, result.report)
            return
        attempts = self._attempts[result.task.key] = self._attempts.get(result.task.key, 0) + 1
        if attempts >= ATTEMPTS_MAX:
            self._give_up(result.task, result.reason, result.hint, False, result.report)

    def _give_up(self, task: Task, reason: str, hint: str, input_at_fault: bool, report: Any) -> None:
        attempts = self._attempts.pop(task.key, 1)
        self.counts[task.engine].failed += 1
        self.failures[task.key] = Failure(task.engine, task.key, reason, hint, input_at_fault, attempts, task.subject)
        if not input_at_fault:
            pause_s = self._task_rests.failed(task.key, time.monotonic())
            hint = f"it is tried again in {pause_s:.0f} s" + (f"; {hint}" if hint else "")
        self._log("error", f"{task.engine}: {reason}" + (f"; {hint}" if hint else ""))
        self.room.note(lambda: self.engines[task.engine].failed(task, reason, report))
        self.on_change("task", {"engine": task.engine, "key": task.key, "state": "failed", "reason": reason})

    def _forgive(self, task: Task) -> None:
        """Forget failures of what a task was about, such as a damaged file that was replaced by a good one."""
        over = [
            key
            for key, failure in self.failures.items()
            if key == task.key or (task.subject and (failure.engine, failure.subject) == (task.engine, task.subject))
        ]
        for key in over:
            del self.failures[key]
            self._task_rests.forget(key)

    def retry(self, name: str) -> int:
        """Forget the failures of an engine, so that its tasks are tried again; how many there were."""
        mine = [key for key, failure in self.failures.items() if failure.engine == name]
        for key in mine:
            del self.failures[key]
            self._task_rests.forget(key)
        self._plan_rests.forget(name)
        engine = self.engines[name]
        if isinstance(engine, Retrying):
            engine.retry()
        self._planned_s = 0.0
        return len(mine)

    def wake(self) -> None:
        """Plan at the next step: an operator changed something."""
        self._planned_s = 0.0

    # ---- commits

    def _continue_commits(self, end: float) -> bool:
        self._waits_for_sync = False
        while self._commits:
            one = self._commits[0]
            if one.steps is None:
                one.counts = Counts()
                one.steps = (
                    commit(self.state, one.task, one.batch, one.seen, one.counts, self.guard)
                    if one.task.compute
                    else commit_no_rows(self.state, one.task, one.counts)
                )
            try:
                with self.turns.step(f"commit {one.task.engine}"):
                    progress = next(one.steps)
            except StopIteration:
                self._commits.popleft()
                with self.turns.step(f"finish {one.task.engine}"):
                    self._committed(one)
                continue
            except SpaceError as error:
                # The batch is kept and committed again, whole.
                one.steps = None
                self.room.refused(error)
                return False
            if progress == "sync":
                self._waits_for_sync = True
                return True
            if time.monotonic() >= end:
                return True
        return False

    def _committed(self, one: _Commit) -> None:
        task, counts = one.task, one.counts
        totals = self.counts[task.engine]
        totals.tasks += 1
        totals.cells += counts.applied
        totals.unchanged += counts.unchanged
        totals.dropped += counts.conflicts + counts.outranked
        totals.held_back += counts.held_back
        totals.latency.took(time.monotonic() - one.since_s)
        totals.repaired += counts.repaired
        totals.remade += counts.remade
        totals.remade_by_curve += counts.remade_by_curve
        if counts.refused:
            self.refused.update(dict.fromkeys(counts.refused))
            named = ", ".join(counts.refused[:5])
            self._log(
                "error",
                f"{task.engine}: symbol cap {self.state.symbols.symbols_max} reached: "
                f"{len(counts.refused)} new symbols refused ({named}); rows of known symbols were kept",
            )
        self._tell_ended(task)
        self.room.note(lambda: self.engines[task.engine].finished(task, one.batch))
        self.room.succeeded()
        self._forgive(task)
        self._planned_s = 0.0
        if task.compute and not one.batch.blocks and not one.batch.spans:
            # It brought something into the engine's hands: a file, a list, curves. No cell could have changed.
            return
        if any(column in RAW_COLUMNS for column in self.engines[task.engine].writes):
            self._unsettled[task.session] = None
        self._log(
            "info",
            f"{task.engine}: {task.key}: {counts.applied} cells set, {counts.unchanged} unchanged"
            + (f", {counts.conflicts + counts.outranked} dropped" if counts.conflicts + counts.outranked else "")
            + (f", {counts.held_back} not superseded: far fewer rows than they have" if counts.held_back else ""),
        )
        facts = {"engine": task.engine, "key": task.key, "state": "done", "session": task.session}
        self.on_change("task", {**facts, "cells": counts.applied})
        self._tell_changed(counts, task.session, task.engine)

    def _tell_changed(self, counts: Counts, session: str, by: str) -> None:
        """Say which cells a writer set."""
        for column, changed in counts.changed.items():
            self.on_change("slots", changed.facts(self.state, session, column, by))
        counts.changed.clear()

    # ---- no data is data

    def settle_later(self, session: str) -> None:
        """Look again, soon, which cells of a session have no data and which are suspect."""
        self._unsettled[session] = None

    def settle_now(self) -> None:
        """Settle what waits, however long it takes: nobody would know of it after an end in order."""
        self._settle(math.inf)

    def _settle(self, end: float) -> bool:
        while self._settling or self._unsettled:
            if self._settling is None:
                session = self._settles = next(iter(self._unsettled))
                del self._unsettled[session]
                self._settling = settle(self.state, session, self.settled, self.guard)
            try:
                with self.turns.step("settle"):
                    next(self._settling)
            except StopIteration:
                self._settling = None
                self._planned_s = 0.0
                self._tell_changed(self.settled, self._settles, "settling")
                continue
            except SpaceError as error:
                self._settling = None
                self._unsettled[self._settles] = None
                self.room.refused(error)
                return False
            except LedgerError as error:
                self._settling = None
                self._log("error", f"settling {self._settles}: {error}; {error.hint}")
                continue
            if time.monotonic() >= end:
                return True
        return False

    # ---- health

    def health(self, name: str) -> Health:
        """State of one engine in words, with the reason."""
        if name in self.paused:
            return Health("paused", self.paused[name])
        failures = [failure for failure in self.failures.values() if failure.engine == name]
        running = [task for task in self.pool.running() if task.engine == name]
        running += [one.task for one in self._commits if one.task.engine == name]
        for failure in failures:
            if not failure.input:
                return Health("failed", failure.reason + _again(self._task_rests.left_s(failure.key, time.monotonic())))
        if name in self.trouble:
            left_s = self._plan_rests.left_s(name, time.monotonic())
            return Health("failed" if left_s else "degraded", self.trouble[name] + _again(left_s))
        own = self.engines[name].health()
        if own.state == "failed":
            return own
        if failures or own.state == "degraded":
            return Health("degraded", failures[-1].reason if failures else own.detail)
        if self.blocked:
            return Health("paused", self.blocked)
        if self.is_behind():
            return Health("degraded", f"{len(self._commits)} batches wait to be written: the disk is slow")
        if running:
            return Health("running", ", ".join(task.key for task in running))
        return own if name in self._asked else Health("starting", "it has not been asked for work yet")

    def is_behind(self) -> bool:
        """Whether so many batches wait for the disk that no new work starts."""
        return len(self._commits) > 2 * self.pool.workers.size

    def since_ns(self, name: str) -> int:
        """Since when an engine is in its state, ns UTC: as :meth:`note_states` saw it, or now where it changed since."""
        state, since_ns = self._since.get(name, ("starting", self._started_ns))
        return since_ns if state == self.health(name).state else self.state.system.now_ns()

    def note_states(self) -> Iterator[tuple[str, str, Health]]:
        """Engines whose state is another than when this was last asked, with the state before; called every second."""
        for name in self.engines:
            health = self.health(name)
            before = self._since.get(name, ("starting", 0))[0]
            if before != health.state:
                self._since[name] = health.state, self.state.system.now_ns()
                yield name, before, health

    def busy_s(self, name: str) -> float:
        """Seconds that workers have spent on tasks of an engine since the start, running ones included."""
        now_s = time.monotonic()
        running = [task for task in self.pool.running() if task.engine == name]
        return self.counts[name].busy_s + sum(now_s - self._began_s[task.key] for task in running)

    def artifacts_in_work(self) -> list[str]:
        """URIs of artifacts that were handed in and whose cells are not all set."""
        return [made.uri for one in self._commits for made in one.batch.artifacts]

    def running(self) -> list[tuple[Task, int, int]]:
        """Tasks in work with (done, total) in the task's own unit; committing ones are at their total."""
        progress = self.pool.progress()
        tasks = [(task, *progress[task.key]) for task in self.pool.running()]
        return tasks + [(one.task, 1, 1) for one in self._commits]

    def stop(self) -> None:
        """End workers, then engines; what was not committed is made again at the next start."""
        self.pool.stop()
        for engine in self.engines.values():
            engine.stop()
        for batch in (one.batch for one in self._commits):
            for block in batch.blocks:
                Path(block.path).unlink(missing_ok=True)


def _again(left_s: float) -> str:
    return f"; tried again in {left_s:.0f} s" if left_s else ""


_CONCLUDED: Final = (SourceState.COMPLETE, SourceState.ABSENT)
"""States of a source that say something of symbols that it does not have."""


def sessions_not_closed(state: State) -> list[str]:
    """
    Sessions with a concluded source that were changed and not closed in order, ascending; asked before any is mapped.

    A daemon that is killed between the cells of a file and :func:`settle` leaves them to be settled by the next one: their
    sources are complete, so that no engine would come back to them.
    """
    sessions = sorted({record.session for record in state.sources.all() if record.state in _CONCLUDED})
    return [one for one in sessions if state.trade.counts(state.calendar.session_seq(one)) is None]


def settle(state: State, session: str, counts: Counts, guard: Guard) -> Iterator[str]:
    """
    Fill the cells of symbols that a complete source does not have, then set suspicion right; in steps.

    A source that was accepted as absent says nothing of cells that another one filled.

    Raises:
        SpaceError: the file system refused; calling again goes on where it stopped.
    """
    universe = state.universe(session)
    # A stream that is open proves nothing: neither absence nor silence of its symbols.
    if not len(universe) or not any(record.state in _CONCLUDED for record in state.sources.for_session(session)):
        return
    rows = state.trade.session(state.calendar.session_seq(session))
    minutes = np.arange(rows.place.minutes)
    families = families_of(state, universe, _JUDGED_SYMBOLS)
    for family in families:
        yield "step"
        for absent in absent_symbols(state, session, family):
            for start in range(0, len(absent.symbol_ids), _SETTLE_SYMBOLS):
                some = absent.symbol_ids[start : start + _SETTLE_SYMBOLS]
                cells = np.repeat(some, len(minutes)), np.tile(minutes, len(some))
                if absent.suspect:
                    unset = rows.status[rows.column_index(absent.column), cells[0], cells[1]] != Status.FILLED
                    cells = cells[0][unset], cells[1][unset]
                fill_no_rows(rows, absent.column, *cells, Source.FLAT_FILE, None, counts, guard, suspect=absent.suspect)
                yield "step"
    for family in families:
        yield "step"
        for change in suspicions(state, session, rows, family):
            for (symbol_ids, changed), add in ((change.add, True), (change.remove, False)):
                for start in range(0, len(symbol_ids), 4096):
                    part = slice(start, start + 4096)
                    flags = {"add": Flag.SUSPECT} if add else {"remove": Flag.SUSPECT}
                    rows.flag_many(change.column, symbol_ids[part], changed[part], now_ns=rows.now_ns(), **flags)
                    yield "step"
    if state.flusher is not None:
        state.flusher.wrote()
