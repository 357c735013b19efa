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
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import numpy as np

from ledger.columns import Column, Dataset, Source

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task:
    """
    One unit of work, at most about 5 s of it unless ``heavy``.

    ``compute`` is ``package.module:function``; it is called in a worker with ``arguments`` and a :class:`Workplace`.
    Where it is empty there is nothing to compute: ``arguments`` is a list of :class:`NoRowsCells` that the daemon sets.
    """

    engine: str
    key: str
    """Names the work; no two tasks of one key run at once, of whatever engine."""
    session: str
    compute: str
    arguments: Any
    heavy: bool = False
    """A file pass: counts against the places kept for them and may take minutes."""
    remote: bool = False
    """Waits for a network: runs in one of the places kept for that (``fetchers``), beside the workers."""
    priority: int = 0
    """Of the highest region the task serves; 0 is default work."""
    makes_files: bool = True
    """False where it only reads: no start number is spent on its name."""
    symbols: tuple[int, ...] | None = None
    """Symbol ids whose cells it may set; None where they are not known before the source is read."""
    cells: int = 0
    """How many cells it is expected to fill, for progress."""
    minutes: tuple[int, int] | None = None
    """Windows of the session [first, last) that it may set; None for all."""
    subject: str = ""
    """What it is about, where that may be tried under another key: its success takes earlier failures of it away."""


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


RECORD_OFFSET: Final = 16
"""Where the record stands in a staged cell, so that records, like cells, are whole 64-bit words."""


@dataclass(frozen=True, slots=True)
class CellBlock:
    """
    The cells of one column that a batch fills, staged in a file the daemon maps.

    ``path`` is an ``.npy`` of :func:`engines.staging.cell_dtype` [n]: ``symbol`` u2 (index into ``symbols``), ``minute``
    u2 (from the open), ``inputs`` u4, ``flags`` u1 and ``record`` (the kind's record dtype; its ``artifact_id`` is 1 +
    the index into the batch's artifacts, 0 for none). With ``fill_no_rows`` every other window of its symbols has no rows.
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
    source: Source = Source.NONE


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
class Retry:
    """An attempt to come after failures in a row; ns UTC."""

    first_failed_ns: int
    due_ns: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something an engine cannot do now: its cause in a word, where, and why."""

    cause: str
    """
    ``waiting``: not there yet. ``damaged``: not readable. ``refused``: the symbol cap. ``unreachable``, ``denied``: the
    place it comes from does not answer, or not to these credentials. ``quiet``: held back while the exchange is open.
    ``budget``: no room for a download.
    """
    column: Column
    session: str
    detail: str
    symbols: tuple[int, ...] | None = None
    """None where it concerns every symbol that the engine covers in the session."""
    retry: Retry | None = None
    """When the engine tries again by itself; None where only a change can help: a file that comes, another key, room."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Filled cells of a session that are not what they should be: the cause in a word, and why."""

    column: Column
    cause: str
    detail: str
    first_minute: int = 0
    last_minute: int | None = None
    """Exclusive; None for the session's end."""


@dataclass(frozen=True, slots=True)
class Number:
    """
    One number that an engine gives to the metrics: shown as ``m17_<name>{engine="...", <labels>}``.

    ``name`` is lower case with its unit last (``feed_lag_seconds``); a counter's name is a plural noun without ``_total``
    (``feed_drops``), its value counts up from the engine's start, counted where the thing happens. ``help`` is a sentence
    for an operator: what it is, and what it means when it grows. Label values are words of a small fixed set, never a
    symbol, a path or a time: an engine has at most :data:`SERIES_MAX` series. Numbers of several engines that mean the
    same have the same name, help and label names: what every feed counts is in :mod:`engines.feed_numbers`.
    """

    name: str
    help: str
    value: float
    counter: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


SERIES_MAX: Final = 64
"""Series that one engine may have in the metrics; more are left out, and ``m17_metrics_left_out`` counts them."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that derived rows say of themselves; arrays [n], one entry per record."""

    word: str
    """Such as ``no_underlying``; a column of counts has this name."""
    text: str
    """For operators: what it means and where to look."""
    rows: np.ndarray
    """i64: rows of each record that it holds for."""
    spoils: bool
    """True where a row with it is of no use, or may be for this reason."""
    input: Column | None = None
    """The upstream column whose cells may be the cause, such as quotes that are not there."""


@dataclass(frozen=True, slots=True)
class RowQuality:
    """What records of one derived column say of their rows; arrays i64[n]."""

    rows: np.ndarray
    usable: np.ndarray
    remarks: list[Remark]
    """The more specific ones first."""


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
        """
        Outstanding priority regions that need cells of the column, highest first.

        One for each symbol: a region for derived cells comes with the symbols whose cells these are made from.
        """

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """
        Filled cells of a derived column that its engine is about to make again, because their inputs changed.

        Whoever is made from them waits, so that one change makes it again once. bool[n, minutes]; None for no cell.
        """

    def is_settled(self, session: str, column: Column, symbol_ids: np.ndarray) -> bool:
        """Whether :meth:`changing` would answer at once; where not, its engine has looked a little further."""

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """The one object of a key for all engines of this daemon, made by the first that asks, closed after the last stops."""


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
class Watching(Protocol):
    """What an engine that keeps account of its tasks at work can also do."""

    def started(self, task: Task) -> None:
        """The task was given to a worker, or to the commit."""

    def ended(self, task: Task) -> None:
        """The task is over: committed, failed, or its worker died."""


@runtime_checkable
class Listening(Protocol):
    """What an engine that listens to a feed can also do."""

    def descriptors(self) -> list[int]:
        """Descriptors that are readable when something waits to be heard."""

    def listen(self) -> bool:
        """Take what waits, without waiting for more; True where it may mean work. Called at every step, paused or not."""

    def expects(self) -> bool:
        """True while the feed may bring work by itself, so that no task does not mean no work."""


@runtime_checkable
class Deriving(Watching, Protocol):
    """What an engine that makes cells from cells can also do; see ``engines.derived``."""

    def is_looking(self) -> bool:
        """True while it has not looked at everything that changed, so that no task does not mean no work."""

    def is_planning(self) -> bool:
        """True while it has begun to plan and has no task to offer yet: it should be asked again at once."""

    @property
    def on_demand(self) -> bool:
        """Whether its cells wait for a region that activates them."""

    def cells_left(self) -> int:
        """Cells that could be made now, as far as it has looked, and those of tasks at work."""

    def stale(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: filled cells whose inputs are all filled and whose print is not what it would be now."""

    def known_stale(self, session: str) -> tuple[int, dict[Column, int]]:
        """(a number that changes with what is known, stale cells by column as last judged); judges nothing, and is cheap."""

    def judge_a_little(self) -> None:
        """Judge what moved, for a few milliseconds: for whoever wants to know while the engine is not asked to plan."""

    def stale_by_recipe(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: those of the stale cells that another recipe made."""

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """bool[n, minutes]: the stale cells that it is going to make again unasked; None for no cell."""

    def is_settled(self, session: str, symbol_ids: np.ndarray) -> bool:
        """Whether it knows which cells of some symbols it will make again; where not, it has looked at some more of them."""

    def quality(self, column: Column, records: np.ndarray) -> RowQuality:
        """What records of a column, those without rows left out, say of their rows."""

    def recipe(self, session: str, column: Column, symbol_id: int) -> tuple[int, str]:
        """The print of the recipe that a cell would be made by now, and its settings in words."""


@runtime_checkable
class Doubting(Protocol):
    """What an engine can also do whose cells may be filled and yet not what they should be."""

    def doubts(self, session: str) -> list[Doubt]:
        """What is doubtful about its filled cells of a session, the first that fits a cell first."""


@runtime_checkable
class Scheduled(Protocol):
    """What an engine can also do that comes to cover a session as time passes or topics change, without any write."""

    def covering(self, session: str) -> int:
        """A number that changes whenever ``covers`` may answer another way; cheap, asked for every session at every count."""


@runtime_checkable
class Refilling(Protocol):
    """What an engine of a raw column that can fetch single windows can also do."""

    def refills(self, session: str, column: Column) -> bool:
        """Whether windows of a session can be fetched again now, without a file of the session."""

    def lacks_file(self, session: str, dataset: Dataset) -> bool:
        """Whether it is known that the file of a session is not there now, whatever was read of it before."""


@runtime_checkable
class Retrying(Protocol):
    """What an engine that pauses by itself after failures can also do."""

    def retry(self) -> None:
        """Try again at once whatever it has put off; an operator asks for it."""


@runtime_checkable
class Numbered(Protocol):
    """
    What an engine that counts its own events can also do; the runner counts tasks, cells and deaths for all.

    State is not counted by events: what planes, records and header counts can tell is derived from them in the daemon.
    """

    def numbers(self) -> list[Number]:
        """Its numbers now, at most SERIES_MAX; called at every scrape in the daemon, so it only reads what is held."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """What an engine's folder exports as ``ENGINE``."""

    name: str
    writes: tuple[Column, ...]
    build: str
    """``package.module:Class``; called with the engine's config table (a mapping) and the config file's folder."""
    summary: str


Build = Callable[[Mapping[str, Any], Path], Engine]
