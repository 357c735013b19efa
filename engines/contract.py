"""
What an engine is: it plans tasks from cells, computes batches from tasks in worker processes, and the daemon commits.

``plan`` runs in the daemon and reads planes and prints; ``compute`` runs in a spawned worker, is a pure picklable
function ``task -> batch`` and knows no ledger state, no clock and no randomness; the commit is the runner's. This module
must never import anything of the house but ``ledger.columns``, and never touch a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ledger.columns import Column, Source


@dataclass(frozen=True, slots=True)
class Task:
    """
    One unit of work, at most about 5 s of it unless ``heavy``.

    ``compute`` is ``package.module:function``; it is called in a worker with ``arguments`` and a :class:`Workplace`.
    Where it is empty there is nothing to compute: ``arguments`` is a list of :class:`NoRowsCells` that the daemon sets.
    """

    engine: str
    key: str
    """Names the work; no two tasks of one key run at once."""
    session: str
    compute: str
    arguments: Any
    heavy: bool = False
    """A file pass: counts against the places kept for them and may take minutes."""
    priority: int = 0
    """Of the highest region the task serves; 0 is default work."""
    makes_files: bool = True
    """False where it only reads: no start number is spent on its name."""
    symbols: tuple[int, ...] | None = None
    """Symbol ids whose cells it may set; None where they are not known before the source is read."""
    cells: int = 0
    """How many cells it is expected to fill, for progress."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a worker may use of the outside: where artifacts and spilled rows go, and how to report progress."""

    artifact_root: Path
    temporary: Path
    batch_name: str
    """Unique for this daemon start and task; every file the task makes carries it."""
    progress: Callable[[int, int], None]
    """``progress(done, total)`` in the task's own unit, bytes for file passes."""


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One finished, synced and renamed artifact."""

    uri: str
    """Relative to the artifact root."""
    checksum: int
    bytes: int
    rows: int
    column: Column


@dataclass(frozen=True, slots=True)
class CellBlock:
    """
    The cells of one column that a batch fills, staged in a file the daemon maps.

    ``path`` is an ``.npy`` of a structured array [n] with ``symbol`` u2 (index into ``symbols``), ``minute`` u2 (from
    the open), ``inputs`` u4, ``flags`` u1 and ``record`` (the kind's record dtype; its ``artifact_id`` is 1 + the index
    into the batch's artifacts, 0 for none). With ``fill_no_rows`` every other window of the block's symbols has no rows.
    """

    column: Column
    symbols: list[str]
    path: Path
    count: int
    source: Source = Source.NONE
    fill_no_rows: bool = False


@dataclass(frozen=True, slots=True)
class CellSpan:
    """
    One record over a rectangle of cells: some symbols by the minutes [first_minute, last_minute) of the session.

    ``record`` is an array [1] of the column's record dtype; where the mapping file already has one of that content hash
    it is named again instead of appended.
    """

    column: Column
    symbols: list[str]
    first_minute: int
    last_minute: int
    record: np.ndarray
    inputs: int = 0
    source: Source = Source.NONE


@dataclass(frozen=True, slots=True)
class NoRowsCells:
    """
    Cells of one column that have no rows, whatever a worker would compute; arrays [n].

    ``symbol_ids`` and ``minutes`` i64 (minutes from the open), ``inputs`` u32 prints, ``versions`` u32 as the plan saw
    them, ``flags`` u8 beside the no-rows flag.
    """

    column: Column
    symbol_ids: np.ndarray
    minutes: np.ndarray
    inputs: np.ndarray
    versions: np.ndarray
    flags: np.ndarray


@dataclass(frozen=True, slots=True)
class Batch:
    """What a task made. ``report`` is the engine's own, picklable, and comes back to :meth:`Engine.finished`."""

    blocks: list[CellBlock] = field(default_factory=list)
    artifacts: list[ArtifactFile] = field(default_factory=list)
    spans: list[CellSpan] = field(default_factory=list)
    report: Any = None


class TaskFailed(Exception):
    """Raised by ``compute`` for input that cannot be used: what, where and what to do. Never retried unchanged."""

    def __init__(self, reason: str, *, hint: str = "", report: Any = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.report = report

    def __reduce__(self) -> Any:
        return (_restore_failure, (self.reason, self.hint, self.report))


def _restore_failure(reason: str, hint: str, report: Any) -> TaskFailed:
    return TaskFailed(reason, hint=hint, report=report)


@dataclass(frozen=True, slots=True)
class Health:
    """State of an engine in words: starting, running, idle, paused, degraded or failed; and why."""

    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something an engine cannot do now: its cause in a word (waiting, damaged, refused ...), where, and why."""

    cause: str
    column: Column
    session: str
    detail: str
    symbols: tuple[int, ...] | None = None
    """None where it concerns every symbol that the engine covers in the session."""


class Context(Protocol):
    """What the daemon hands to an engine."""

    @property
    def state(self) -> Any:
        """The open :class:`ledger.state.State`."""

    @property
    def start_number(self) -> int:
        """Number of this daemon start; names artifacts."""

    @property
    def auto_recompute_sessions(self) -> int:
        """How many of the newest sessions are remade unasked when a recipe changes."""

    def log(self, level: str, message: str) -> None:
        """One line of the daemon's log; level info, warning or error."""

    def regions(self, column: Column) -> list[Any]:
        """Outstanding priority regions that name the column, highest first."""


class Engine(Protocol):
    """One engine; a plain class, no base."""

    name: str
    writes: tuple[Column, ...]

    def start(self, context: Context) -> None:
        """Take the context; called once, before anything else."""

    def stop(self) -> None:
        """Let go of everything; called once, last."""

    def health(self) -> Health:
        """How it is, from what it last saw."""

    def describe_priority_hooks(self) -> list[str]:
        """In words, how regions change what the engine does; for operators."""

    def plan(self, limit: int) -> list[Task]:
        """At most ``limit`` tasks that could run now, best first; cheap when nothing changed."""

    def finished(self, task: Task, batch: Batch) -> None:
        """The batch's cells are set; called in the daemon."""

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """The task failed for good; called in the daemon."""

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols], for which symbols of the session this engine should fill the column; None for none."""

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """What it cannot do now and why."""

    def backlog(self) -> int:
        """Tasks that it knows of and that have not been done, running ones included; an estimate."""


@runtime_checkable
class Deriving(Protocol):
    """What an engine that makes cells from cells can also do; see ``engines.derived``."""

    def is_looking(self) -> bool:
        """True while it has not looked at everything that changed, so that no task does not mean no work."""

    def started(self, task: Task) -> None:
        """The task was given to a worker, or to the commit."""

    def ended(self, task: Task) -> None:
        """The task is over: committed, failed, or its worker died."""

    def stale(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: filled cells whose inputs are all filled and whose print is not what it would be now."""

    def stale_by_recipe(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: those of the stale cells that another recipe made."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """What an engine's folder exports as ``ENGINE``."""

    name: str
    writes: tuple[Column, ...]
    build: str
    """``package.module:Class``; called with the engine's config table (a mapping) and the config file's folder."""
    summary: str


Build = Callable[[Mapping[str, Any], Path], Engine]
