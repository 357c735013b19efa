"""What tests of planning build on: a state with a clock of the test's own, and a context without a daemon."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from engines.contract import Batch, Engine, Task, Watching, Workplace
from engines.derivation import Steps
from ledger.columns import Column, OptionRows
from ledger.files import System
from ledger.state import State, create_state, open_state
from m17d.committing import Counts, commit, look
from m17d.pool import compute
from m17d.superseding import Guard
from tests.ledger.states import copied

T = TypeVar("T")


class Clock(System):
    """A system whose time is what the test says, ns UTC."""

    def __init__(self, now_ns: int = 0) -> None:
        super().__init__()
        self.time_ns = now_ns

    def now_ns(self) -> int:
        """The time that was set."""
        return self.time_ns


@dataclass
class TestContext:
    """An engine's context; regions and log lines are lists."""

    __test__ = False

    state: State
    start_number: int = 1
    auto_recompute_sessions: int = 5
    asked: list[Any] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)

    objects: dict[str, Any] = field(default_factory=dict)

    def shared(self, key: str, make: Any) -> Any:
        """The one object of a key."""
        if key not in self.objects:
            self.objects[key] = make()
        return self.objects[key]

    def close(self) -> None:
        """Close what was shared."""
        for one in self.objects.values():
            one.close()

    def log(self, level: str, message: str) -> None:
        """Keep the line."""
        self.lines.append((level, message))

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """Nothing above is about to change."""

    def is_settled(self, session: str, column: Column, symbol_ids: np.ndarray) -> bool:
        """Nothing above changes."""
        return True

    def regions(self, column: Column) -> list[Any]:
        """Those of the test that name the column."""
        return [region for region in self.asked if not region.columns or column in region.columns]


_TEMPLATES: dict[OptionRows, Path] = {}


def made_state(directory: Path, *, option_rows: OptionRows = OptionRows.CHAIN) -> tuple[State, Clock]:
    """An open state of 2013 and its clock, which stands at the beginning of the year."""
    if option_rows not in _TEMPLATES:
        # Copied, not made again: a calendar takes a second.
        _TEMPLATES[option_rows] = Path(tempfile.mkdtemp(prefix="m17-template-")) / "ledger.state"
        atexit.register(shutil.rmtree, _TEMPLATES[option_rows].parent, ignore_errors=True)
        create_state(_TEMPLATES[option_rows], year=2013, option_rows=option_rows)
    copied(_TEMPLATES[option_rows], directory)
    clock = Clock()
    state = open_state(directory, system=clock, flush_interval_s=3600)
    clock.time_ns = state.calendar.parse_time("2013-01-01")
    return state, clock


def done(task: Task, state: State, name: str = "test-1") -> Batch:
    """Run a task here, as a process of the daemon would; its failure is the test's."""
    workplace = Workplace(state.artifact_root, state.temporary, name, lambda _done, _total: None)
    kind, body = compute(task, workplace)
    assert kind == "done", body
    batch: Batch = body
    return batch


def at_once(steps: Steps[T]) -> T:
    """The result of work that pauses, without its pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as over:
            result: T = over.value
            return result


def fetched(function: str, arguments: Any) -> Any:
    """What a fetcher reports of its arguments, run here."""
    task = Task("test", "test", "2013-01-02", f"engines.raw_fetch:{function}", arguments, remote=True)
    kind, body = compute(task, Workplace(Path(), Path(), "", lambda _done, _total: None))
    assert kind == "done", body
    return body.report


def work_off(engine: Engine, state: State, guard: Guard | None = None, *, limit: int = 200) -> list[Task]:
    """Plan, compute and commit, one task after the other, until the engine has none; what was done."""
    watching = engine if isinstance(engine, Watching) else None
    made: list[Task] = []
    while tasks := engine.plan(4):
        task = tasks[0]
        seen = look(state, engine.writes, task.session, task.symbols)
        if watching is not None:
            watching.started(task)
        batch = done(task, state, f"test-{len(made):04d}-{id(engine) % 9973}")
        counts = Counts()
        for _ in commit(state, task, batch, seen, counts, guard or Guard(state)):
            pass
        if watching is not None:
            watching.ended(task)
        engine.finished(task, batch)
        made.append(task)
        assert len(made) < limit, [one.key for one in made[-5:]]
    return made
