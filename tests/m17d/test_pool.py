"""The pool: a worker that dies costs one task, that one is tried elsewhere and then given up, and memory is let go."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.contract import Batch, Health, Task, TaskFailed, Workplace
from ledger.state import State, create_state, open_state
from m17d import pool as pool_module
from m17d.places import Places
from m17d.pool import ATTEMPTS_MAX, Died, Done, Failed, Pool
from m17d.runner import Runner


def report(task: Task, workplace: Workplace) -> Batch:
    """Which process worked, beside what it was told to do first: ``die``, ``grow``, ``refuse``, ``break``."""
    what = task.arguments
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        raise TaskFailed("the input is of no use", hint="look at it", report=3)
    if what == "break":
        raise ZeroDivisionError("a fault")
    if what.startswith("long"):
        return Batch(report=(os.nice(0), what * 2))
    if what == "grow":
        held = np.ones(40_000_000)
        return Batch(report=(os.getpid(), float(held[-1])))
    workplace.progress(1, 2)
    return Batch(report=(os.getpid(), int(Path("/proc/self/oom_score_adj").read_text())))


def task(key: str, what: str = "") -> Task:
    """A task of this file."""
    return Task("nbbo", key, "2013-10-07", "tests.m17d.test_pool:report", what, makes_files=False)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """Two workers."""
    made = Pool(2, artifact_root=tmp_path, temporary=tmp_path, batch_prefix=lambda: "000001")
    yield made
    made.stop()


def answer(pool: Pool, timeout_s: float = 240) -> Done | Failed | Died:
    """The next answer of any worker."""
    import select

    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = pool.collect()
        if found:
            assert len(found) == 1
            return found[0]
        select.select(pool.descriptors(), [], [], 0.2)
    raise AssertionError("no answer came")


def test_a_killed_worker_costs_its_task_alone_and_another_takes_its_place(pool: Pool) -> None:
    """The one beside it goes on; the next task finds a worker; the kernel would take workers first."""
    pool.start(task("a"))
    first = answer(pool)
    assert isinstance(first, Done)
    pool.start(task("b", "die"))
    died = answer(pool)
    assert isinstance(died, Died) and (died.task.key, died.exit_code) == ("b", -signal.SIGKILL)
    assert pool.idle_places() == 2 and pool.deaths == 1
    pool.start(task("c"))
    second = answer(pool)
    assert isinstance(second, Done)
    assert second.batch.report[0] != first.batch.report[0]
    assert second.batch.report[1] >= 500


def test_what_fails_says_whose_fault_it_is(pool: Pool) -> None:
    """An input at fault keeps hint and report; a fault of the code names its place, and the worker lives on."""
    pool.start(task("a", "refuse"))
    refused = answer(pool)
    assert isinstance(refused, Failed)
    assert (refused.reason, refused.hint, refused.input, refused.report) == (
        "the input is of no use",
        "look at it",
        True,
        3,
    )
    pool.start(task("b", "break"))
    broken = answer(pool)
    assert isinstance(broken, Failed) and not broken.input
    assert broken.reason.startswith("ZeroDivisionError: a fault (in test_pool.py:")
    pool.start(task("c"))
    assert isinstance(answer(pool), Done)


def test_a_worker_stays_while_its_memory_is_below_the_limit(tmp_path: Path) -> None:
    """A task of 320 MB is no reason to start another process."""
    assert pool_module._RESIDENT_MAX == 1 << 30
    made = Pool(1, artifact_root=tmp_path, temporary=tmp_path, batch_prefix=lambda: "000001")
    try:
        made.start(task("a"))
        small = answer(made)
        made.start(task("b", "grow"))
        grown = answer(made)
        made.start(task("c"))
        again = answer(made)
    finally:
        made.stop()
    assert isinstance(small, Done) and isinstance(grown, Done) and isinstance(again, Done)
    assert small.batch.report[0] == grown.batch.report[0] == again.batch.report[0]


def test_a_worker_above_the_limit_leaves_after_its_answer_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of nothing each task has a worker of its own: no task is lost on the way out, and no death counted."""
    monkeypatch.setattr(pool_module, "_work", work_with_no_room)
    made = Pool(1, artifact_root=tmp_path, temporary=tmp_path, batch_prefix=lambda: "000001")
    try:
        pids = []
        for number in range(3):
            made.start(task(str(number)))
            found = answer(made)
            assert isinstance(found, Done)
            pids.append(found.batch.report[0])
    finally:
        made.stop()
    assert len(set(pids)) == 3 and made.deaths == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def work_with_no_room(*arguments: Any) -> None:
    """A worker's life where any memory is too much."""
    pool_module._RESIDENT_MAX = 0  # type: ignore[misc]
    ORIGINAL_WORK(*arguments)


ORIGINAL_WORK = pool_module._work


class OneTask:
    """An engine with one task, offered for as long as it has not failed for good."""

    name, writes = "nbbo", ()

    def __init__(self, what: str) -> None:
        self.what = what
        self.given_up: list[str] = []

    def plan(self, limit: int) -> list[Task]:
        return [] if self.given_up else [task("only", self.what)]

    def failed(self, one: Task, reason: str, report: Any) -> None:
        self.given_up.append(reason)

    def health(self) -> Health:
        return Health("idle")

    def backlog(self) -> int:
        return 0 if self.given_up else 1

    def stop(self) -> None:
        """Nothing is held."""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """An open state."""
    create_state(tmp_path / "state", year=2013)
    with open_state(tmp_path / "state") as opened:
        yield opened


def test_a_task_whose_workers_die_is_tried_elsewhere_and_then_given_up_with_the_reason(state: State) -> None:
    """Three workers, then the engine is told, health says failed and why, retry lets it try again; the daemon lives."""
    engine = OneTask("die")
    made = Pool(2, artifact_root=state.artifact_root, temporary=state.temporary, batch_prefix=lambda: "000001")
    none = Pool(1, artifact_root=state.artifact_root, temporary=state.temporary, batch_prefix=lambda: "000001")
    lines: list[str] = []
    runner = Runner(state, {"nbbo": engine}, Places(made, none), lambda level, line: lines.append(f"{level} {line}"))  # type: ignore[dict-item]
    try:
        end = time.monotonic() + 240
        while not engine.given_up:
            assert time.monotonic() < end
            runner.step()
        assert engine.given_up == [f"its worker died with exit code -9, {ATTEMPTS_MAX} of {ATTEMPTS_MAX} times"]
        assert made.deaths == runner.counts["nbbo"].deaths == ATTEMPTS_MAX
        health = runner.health("nbbo")
        assert health.state == "failed" and health.detail.startswith(f"{engine.given_up[0]}; tried again in ")
        assert sum(line.startswith("warning nbbo: only: its worker died") for line in lines) == ATTEMPTS_MAX
        assert lines[-1].endswith("retry it with: m17ctl engines retry nbbo")
        assert runner.retry("nbbo") == 1 and not runner.failures
    finally:
        runner.stop()


def test_long_tasks_and_answers_wait_for_nobody_and_leave_nothing_behind(pool: Pool, tmp_path: Path) -> None:
    """Far more than a pipe holds is given to a process that has not begun to read; workers stand behind the daemon."""
    what = "long" * 1_000_000
    started = time.monotonic()
    pool.start(task("first", what))
    handed_s = time.monotonic() - started
    found = answer(pool)
    assert isinstance(found, Done)
    assert found.batch.report == (min(os.nice(0) + 5, 19), what * 2)
    assert not list(tmp_path.glob("task-*")) + list(tmp_path.glob("answer-*"))
    print(f"handed over in {handed_s * 1e3:.0f} ms")
