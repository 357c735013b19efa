"""Supervision: states with reason and since, what failed is tried again by itself, and nobody starves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.contract import Batch, Health, Task, Workplace
from ledger.state import State, create_state, open_state
from m17d import runner as runner_module
from m17d.faults import Backoff
from m17d.places import Places
from m17d.pool import Pool
from m17d.runner import Runner
from m17d.share import Share

LIVE, OLD = "2013-10-08", "2013-10-07"


def task(key: str, session: str = OLD, priority: int = 0) -> Task:
    """A task of nothing."""
    compute = "tests.m17d.test_supervision:nothing"
    return Task("nbbo", key, session, compute, None, priority=priority, makes_files=False)


def nothing(task: Task, workplace: Workplace) -> Batch:
    """An empty batch, at once."""
    return Batch()


def started(share: Share, waiting: list[Task], starts: int) -> list[Task]:
    """The first so many tasks that would start, one at a time, of kinds that never run out."""
    found = []
    for _ in range(starts):
        first = share.order(waiting, LIVE)[0]
        share.started(first, LIVE)
        found.append(first)
    return found


def test_repairs_and_live_minutes_share_the_starts_while_both_wait() -> None:
    """Half each, however high the priority; either has all where the other has nothing; backfill comes last."""
    repairs = [task(f"r{number}", priority=1000) for number in range(8)]
    live = [task(f"l{number}", LIVE) for number in range(8)]
    backfill = [task("b")]
    both = started(Share(), backfill + repairs + live, 20)
    assert sum(one.priority > 0 for one in both) == sum(one.session == LIVE for one in both) == 10
    assert {one.priority for one in started(Share(), backfill + repairs, 5)} == {1000}
    order = Share().order(backfill + repairs[:2] + live[:3], LIVE)
    assert [one.key for one in order] == ["l0", "r0", "l1", "r1", "b", "l2"]
    # A region over minutes of today is a repair, not live work.
    today = [task("t", LIVE, priority=5)]
    assert Share().order(today + live[:1], LIVE)[0].key == "l0"
    assert Share().order([*repairs, *live], "")[0] is repairs[0]


def test_pauses_double_up_to_a_limit_and_end_with_success() -> None:
    """By name; a success begins anew."""
    backoff = Backoff(1.0, 5.0)
    assert [backoff.failed("a", now_s=10.0) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.rests("a", 14.9) and not backoff.rests("a", 15.0) and not backoff.rests("b", 10.0)
    assert backoff.left_s("a", 12.0) == 3.0
    backoff.forget("a")
    assert not backoff.rests("a", 10.0) and backoff.failed("a", 10.0) == 1.0


class Faulty:
    """An engine with one task whose plan has a fault until it is mended."""

    name, writes = "nbbo", ()

    def __init__(self) -> None:
        self.mended, self.asked, self.done = False, 0, 0

    def plan(self, limit: int) -> list[Task]:
        self.asked += 1
        if not self.mended:
            raise KeyError("nowhere")
        return [] if self.done else [task("only")]

    def finished(self, one: Task, batch: Batch) -> None:
        self.done += 1

    def health(self) -> Health:
        return Health("idle")

    def backlog(self) -> int:
        return 0

    def stop(self) -> None:
        """Nothing is held."""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """An open state."""
    create_state(tmp_path / "state", year=2013)
    with open_state(tmp_path / "state") as opened:
        yield opened


def runner_of(state: State, engine: Any, lines: list[str]) -> Runner:
    """A runner of one engine with one worker."""
    pools = [
        Pool(1, artifact_root=state.artifact_root, temporary=state.temporary, batch_prefix=lambda: "000001")
        for _ in range(2)
    ]
    return Runner(state, {"nbbo": engine}, Places(*pools), lambda level, line: lines.append(f"{level} {line}"))


def step_until(runner: Runner, condition: Any, timeout_s: float = 240) -> None:
    """Step until something is so."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        runner.step()


def test_fault_in_a_plan_costs_that_engine_alone_and_it_is_planned_again_by_itself(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed with the reason and since when; after the pause it is asked again, and works once it is mended."""
    monkeypatch.setattr(runner_module, "PLAN_FIRST_S", 0.05)
    engine, lines = Faulty(), list[str]()
    runner = runner_of(state, engine, lines)
    try:
        assert runner.health("nbbo").state == "starting"
        assert runner.since_ns("nbbo") > 0
        step_until(runner, lambda: engine.asked >= 1)
        health = runner.health("nbbo")
        assert health.state == "failed" and "KeyError: 'nowhere'" in health.detail and "tried again in" in health.detail
        assert "test_supervision.py" in lines[0] and lines[0].startswith("error nbbo: a fault in its plan")
        ((name, before, _),) = runner.note_states()
        assert (name, before) == ("nbbo", "starting")
        first = runner.since_ns("nbbo")
        assert list(runner.note_states()) == [] and runner.since_ns("nbbo") == first
        step_until(runner, lambda: engine.asked >= 2)
        engine.mended = True
        step_until(runner, lambda: engine.done == 1)
        assert runner.health("nbbo").state == "idle" and not runner.trouble
        assert runner.counts["nbbo"].faults >= 2
        assert runner.since_ns("nbbo") > first and [one[1] for one in runner.note_states()] == ["failed"]
        assert runner.since_ns("nbbo") > first
    finally:
        runner.stop()


class DiesOnce(Faulty):
    """An engine whose task's worker is broken until it is mended."""

    def plan(self, limit: int) -> list[Task]:
        broken = Task("nbbo", "only", OLD, "tests.m17d.test_supervision:gone", None, makes_files=False)
        return [] if self.done else [task("only") if self.mended else broken]

    def failed(self, one: Task, reason: str, report: Any) -> None:
        self.asked += 1


def test_task_that_was_given_up_is_tried_again_by_itself_after_a_pause(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operator is needed where the fault was not the input's; its success takes the failure away."""
    monkeypatch.setattr(runner_module, "TASK_FIRST_S", 0.2)
    engine, lines = DiesOnce(), list[str]()
    runner = runner_of(state, engine, lines)
    try:
        step_until(runner, lambda: engine.asked == 1)
        assert runner.health("nbbo").state == "failed"
        engine.mended = True
        step_until(runner, lambda: engine.done == 1)
        assert not runner.failures and runner.health("nbbo").state == "idle"
    finally:
        runner.stop()


class Occupied:
    """Workers of which some are at work."""

    def __init__(self, size: int, *tasks: Task) -> None:
        self.size = size
        self._tasks = list(tasks)

    def idle_places(self) -> int:
        return self.size - len(self._tasks)

    def running(self) -> list[Task]:
        return self._tasks


def file_pass(key: str, priority: int = 0) -> Task:
    """A pass over a file."""
    return Task("trade_flatfile", key, OLD, "a:b", None, heavy=True, priority=priority)


def test_pass_of_a_repair_does_not_wait_for_one_that_takes_minutes() -> None:
    """It may take the place that is kept for small tasks; two of them may not, nor may a pass that nobody asked for."""
    none: Any = Occupied(0)
    busy: Any = Occupied(2, file_pass("backfill"))
    assert not Places(busy, none).has_room(file_pass("another"))
    assert Places(busy, none).has_room(task("small"))
    assert Places(busy, none).has_room(file_pass("repair", priority=5))
    three: Any = Occupied(4, file_pass("backfill"), file_pass("more"), file_pass("repair", priority=5))
    assert not Places(three, none).has_room(file_pass("second", priority=9))
    assert not Places(Occupied(1, file_pass("backfill")), none).has_room(file_pass("repair", priority=5))  # type: ignore[arg-type]


def test_with_one_worker_a_repair_and_a_closed_minute_have_the_reserve() -> None:
    """While a file is read for minutes: nothing else does, and not two of them; a free worker comes first."""
    none = Occupied(0)
    busy: Any = Occupied(1, file_pass("backfill"))
    places = Places(busy, none, Occupied(1))  # type: ignore[arg-type]
    assert places.has_room(file_pass("repair", priority=5), urgent=True)
    assert places.has_room(task("minute"), urgent=True)
    assert not places.has_room(task("small"))
    taken = Places(busy, none, Occupied(1, task("first", priority=5)))  # type: ignore[arg-type]
    assert not taken.has_room(task("second", priority=5), urgent=True)
    assert Places(Occupied(1), none, Occupied(1)).has_room(task("small"))  # type: ignore[arg-type]
