"""
The runner: plan, compute, commit. It asks engines for tasks, gives them to workers and commits what comes back.

Everything happens in the daemon's one thread, in steps of milliseconds. A region's work goes first, file passes hold at
most ``workers - 1`` places, and a worker that dies costs one task, which is tried again and then given up with the
reason. This module must never know what an engine computes, nor a socket.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.contract import Batch, Deriving, Engine, Health, Task
from ledger.absence import absent_symbols, suspicions
from ledger.columns import RAW_COLUMNS, Flag, Source
from ledger.errors import LedgerError, SpaceError, StateFull
from ledger.state import State
from m17d.committing import Counts, Seen, commit, commit_no_rows, fill_no_rows, look
from m17d.pool import ATTEMPTS_MAX, Died, Done, Failed, Pool

PLAN_INTERVAL_S: Final = 0.5
_RETRY_FULL_S: Final = 2.0
_LOOK_INTERVAL_S: Final = 0.05
_SETTLE_SYMBOLS: Final = 16


@dataclass(slots=True)
class Failure:
    """A task that was given up, until it is retried or its input changes."""

    engine: str
    key: str
    reason: str
    hint: str
    input: bool
    attempts: int


@dataclass(slots=True)
class _Commit:
    task: Task
    batch: Batch
    seen: Seen
    counts: Counts = field(default_factory=Counts)
    steps: Iterator[str] | None = None


@dataclass(slots=True)
class EngineCounts:
    """Events of one engine since the start."""

    tasks: int = 0
    cells: int = 0
    unchanged: int = 0
    dropped: int = 0
    deaths: int = 0
    since_s: float = 0.0


class Runner:
    """
    Runs the engines of one state.

    Args:
        log: called with level and one line.
    """

    def __init__(self, state: State, engines: dict[str, Engine], pool: Pool, log: Callable[[str, str], None]) -> None:
        self.state = state
        self.engines = engines
        self.pool = pool
        self.counts = {name: EngineCounts() for name in engines}
        self.failures: dict[str, Failure] = {}
        self.paused: dict[str, str] = {}
        """Engine -> why."""
        self.blocked = ""
        """Why nothing is committed now, such as a full disk."""
        self.trouble: dict[str, str] = {}
        """Engine -> why it cannot plan, such as a damaged session file."""
        self.refused: dict[str, None] = {}
        """Symbols that the cap refused."""
        self.on_change: Callable[[str, dict[str, Any]], object] = lambda _kind, _facts: None
        self._log = log
        self._attempts: dict[str, int] = {}
        self._seen: dict[str, Seen] = {}
        self._commits: deque[_Commit] = deque()
        self._settling: Iterator[str] | None = None
        self._unsettled: dict[str, None] = {}
        self._planned_s = 0.0
        self._resume_s = 0.0
        self._waits_for_sync = False

    # ---- one step of everything

    def step(self, budget_s: float = 0.005) -> bool:
        """
        Do what is due for about ``budget_s`` seconds.

        Returns:
            True where there is more to do at once, False where only a pipe, the flusher or the clock can bring work.
        """
        self._collect()
        end = time.monotonic() + budget_s
        busy = self._continue_commits(end)
        if not busy:
            busy = self._settle(end)
        if time.monotonic() >= self._planned_s or self.pool.idle_places():
            self._start_tasks()
        return busy and not self._waits_for_sync

    def is_idle(self) -> bool:
        """True when nothing runs, nothing waits to be committed or settled, and no engine has a task."""
        if self.pool.running() or self._commits or self._settling or self._unsettled:
            return False
        return not self._candidates(1) and not self._is_looking()

    def _is_looking(self) -> bool:
        """True while an engine that runs may still come upon work."""
        engines = [engine for name, engine in self.engines.items() if name not in self.paused | self.trouble]
        return any(engine.is_looking() for engine in engines if isinstance(engine, Deriving))

    def descriptors(self) -> list[int]:
        """Descriptors that bring work, for the daemon's poll."""
        return self.pool.descriptors()

    # ---- tasks

    def _candidates(self, limit: int) -> list[Task]:
        taken = {task.key for task in self.pool.running()} | {one.task.key for one in self._commits}
        tasks: list[Task] = []
        for name, engine in self.engines.items():
            if name in self.paused:
                continue
            for task in self._plan(name, engine, limit + len(taken) + len(self.failures)):
                if task.key not in taken and task.key not in self.failures:
                    tasks.append(task)
        return sorted(tasks, key=lambda task: -task.priority)

    def _plan(self, name: str, engine: Engine, limit: int) -> list[Task]:
        """What an engine would do next; a session it cannot read costs that engine, never the daemon."""
        try:
            tasks = engine.plan(limit)
        except LedgerError as error:
            if self.trouble.get(name) != str(error):
                self._log("error", f"{name}: {error}; {error.hint}")
            self.trouble[name] = str(error)
            return []
        self.trouble.pop(name, None)
        return tasks

    def _start_tasks(self) -> None:
        places = self.pool.idle_places()
        now_s = time.monotonic()
        if self.blocked or not places or now_s < self._planned_s:
            return
        # A batch that waits for the disk holds memory and staging space, so new work waits behind it.
        if len(self._commits) > 2 * self.pool.size:
            return
        heavy = sum(task.heavy for task in self.pool.running())
        heavy_max = max(1, self.pool.size - 1)
        started = 0
        for task in self._candidates(places):
            if not task.compute:
                self._start_commit(task)
                continue
            if started == places:
                break
            if task.heavy and heavy >= heavy_max:
                continue
            self._seen[task.key] = look(self.state, self.engines[task.engine].writes, task.session, task.symbols)
            self.pool.start(task)
            self._tell_started(task)
            heavy += task.heavy
            started += 1
        if not started:
            self._planned_s = now_s + (_LOOK_INTERVAL_S if self._is_looking() else PLAN_INTERVAL_S)

    def _start_commit(self, task: Task) -> None:
        """A task with nothing to compute goes to the commit at once."""
        self._commits.append(_Commit(task, Batch(), Seen({})))
        self._tell_started(task)

    def _tell_started(self, task: Task) -> None:
        engine = self.engines[task.engine]
        if isinstance(engine, Deriving):
            engine.started(task)
        self.on_change("task", {"engine": task.engine, "key": task.key, "state": "started"})

    def _tell_ended(self, task: Task) -> None:
        engine = self.engines[task.engine]
        if isinstance(engine, Deriving):
            engine.ended(task)

    def _collect(self) -> None:
        for result in self.pool.collect():
            self._planned_s = 0.0
            seen = self._seen.pop(result.task.key)
            if isinstance(result, Done):
                self._attempts.pop(result.task.key, None)
                self._commits.append(_Commit(result.task, result.batch, seen))
                continue
            self._tell_ended(result.task)
            if isinstance(result, Died):
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
        self.failures[task.key] = Failure(task.engine, task.key, reason, hint, input_at_fault, attempts)
        self._log("error", f"{task.engine}: {reason}" + (f"; {hint}" if hint else ""))
        self.engines[task.engine].failed(task, reason, report)
        self.on_change("task", {"engine": task.engine, "key": task.key, "state": "failed", "reason": reason})

    def retry(self, name: str) -> int:
        """Forget the failures of an engine, so that its tasks are tried again; how many there were."""
        mine = [key for key, failure in self.failures.items() if failure.engine == name]
        for key in mine:
            del self.failures[key]
        self._planned_s = 0.0
        return len(mine)

    def wake(self) -> None:
        """Plan at the next step: an operator changed something."""
        self._planned_s = 0.0

    # ---- commits

    def _continue_commits(self, end: float) -> bool:
        self._waits_for_sync = False
        if self.blocked:
            if time.monotonic() < self._resume_s:
                return False
            self._unblock()
        while self._commits:
            one = self._commits[0]
            if one.steps is None:
                one.counts = Counts()
                one.steps = (
                    commit(self.state, one.task, one.batch, one.seen, one.counts)
                    if one.task.compute
                    else commit_no_rows(self.state, one.task, one.counts)
                )
            try:
                progress = next(one.steps)
            except StopIteration:
                self._commits.popleft()
                self._committed(one)
                continue
            except SpaceError as error:
                self._block(one, error)
                return False
            if progress == "sync":
                self._waits_for_sync = True
                return True
            if time.monotonic() >= end:
                return True
        return False

    def _block(self, one: _Commit, error: SpaceError) -> None:
        """Stop committing: the batch is kept and committed again, whole, when there may be room."""
        one.steps = None
        self.blocked = str(error)
        self._resume_s = time.monotonic() + (_RETRY_FULL_S if isinstance(error, StateFull) else 10 * _RETRY_FULL_S)
        self._log("error", f"engines pause: {error}; {error.hint}")
        self.on_change("blocked", {"reason": self.blocked})

    def _unblock(self) -> None:
        self._log("info", "engines try to go on")
        self.blocked = ""

    def _committed(self, one: _Commit) -> None:
        task, counts = one.task, one.counts
        totals = self.counts[task.engine]
        totals.tasks += 1
        totals.cells += counts.applied
        totals.unchanged += counts.unchanged
        totals.dropped += counts.conflicts + counts.outranked
        if counts.refused:
            self.refused.update(dict.fromkeys(counts.refused))
            named = ", ".join(counts.refused[:5])
            self._log(
                "error",
                f"{task.engine}: symbol cap {self.state.symbols.symbols_max} reached: "
                f"{len(counts.refused)} new symbols refused ({named}); rows of known symbols were kept",
            )
        self._tell_ended(task)
        self.engines[task.engine].finished(task, one.batch)
        if any(column in RAW_COLUMNS for column in self.engines[task.engine].writes):
            self._unsettled[task.session] = None
        self._planned_s = 0.0
        self._log(
            "info",
            f"{task.engine}: {task.key}: {counts.applied} cells set, {counts.unchanged} unchanged"
            + (f", {counts.conflicts + counts.outranked} dropped" if counts.conflicts + counts.outranked else ""),
        )
        facts = {"engine": task.engine, "key": task.key, "state": "done", "session": task.session}
        self.on_change("task", {**facts, "cells": counts.applied})

    # ---- no data is data

    def settle_later(self, session: str) -> None:
        """Look again, soon, which cells of a session have no data and which are suspect."""
        self._unsettled[session] = None

    def _settle(self, end: float) -> bool:
        while self._settling or self._unsettled:
            if self._settling is None:
                session = next(iter(self._unsettled))
                del self._unsettled[session]
                self._settling = settle(self.state, session)
            try:
                next(self._settling)
            except StopIteration:
                self._settling = None
                self._planned_s = 0.0
                continue
            except SpaceError as error:
                self._settling = None
                self.blocked, self._resume_s = str(error), time.monotonic() + _RETRY_FULL_S
                return False
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
        if any(not failure.input for failure in failures):
            return Health("failed", failures[-1].reason)
        if name in self.trouble:
            return Health("degraded", self.trouble[name])
        own = self.engines[name].health()
        if failures or own.state == "degraded":
            return Health("degraded", failures[-1].reason if failures else own.detail)
        if self.blocked:
            return Health("paused", self.blocked)
        if running:
            return Health("running", ", ".join(task.key for task in running))
        return own

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


def settle(state: State, session: str) -> Iterator[str]:
    """
    Fill the cells of symbols that a complete source does not have, then set suspicion right; in steps.

    Raises:
        SpaceError: the file system refused; calling again goes on where it stopped.
    """
    universe = state.universe(session)
    if not len(universe):
        return
    rows = state.trade.session(state.calendar.session_seq(session))
    minutes = np.arange(rows.place.minutes)
    counts = Counts()
    for absent in absent_symbols(state, session, universe):
        for start in range(0, len(absent.symbol_ids), _SETTLE_SYMBOLS):
            some = absent.symbol_ids[start : start + _SETTLE_SYMBOLS]
            cells = np.repeat(some, len(minutes)), np.tile(minutes, len(some))
            fill_no_rows(rows, absent.column, *cells, Source.FLAT_FILE, None, counts, suspect=absent.suspect)
            yield "step"
    yield "step"
    for change in suspicions(state, session, rows, universe):
        for (symbol_ids, changed), add in ((change.add, True), (change.remove, False)):
            for start in range(0, len(symbol_ids), 4096):
                part = slice(start, start + 4096)
                flags = {"add": Flag.SUSPECT} if add else {"remove": Flag.SUSPECT}
                rows.flag_many(change.column, symbol_ids[part], changed[part], now_ns=rows.now_ns(), **flags)
                yield "step"
    if state.flusher is not None:
        state.flusher.wrote()
