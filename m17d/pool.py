"""
Worker processes: spawned, one task at a time each, joined to the daemon by a pipe and gone when it closes.

A worker that dies costs its task, never the daemon; short of memory, the kernel takes a worker first, and one that has grown
fat by a large task leaves after it. The pool is polled from the daemon's one thread through the pipes'
descriptors. This module must never know a ledger or a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from engines.contract import Batch, Task, TaskFailed, Workplace
from ledger.errors import SpaceError
from m17d.room import no_room

_STOP_WAIT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that this process gets when the thread that started it ends."""
_NICENESS: Final = 5
"""Of workers: the daemon's one thread, for which people wait, has the processor first."""
_PIPE_BYTES: Final = 32 << 10
"""Longer messages go through a file: nobody waits in a pipe for a process that is starting, or has no processor."""
_RESIDENT_MAX: Final = 1 << 30
"""Bytes of memory with which a worker leaves after its task, so that what a large task took is not kept for small ones."""
_OOM_SCORE: Final = 500
"""Added to a worker's score by which the kernel chooses what to kill when memory runs out."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3): sizes from which memory at the end of the heap is given back, and from which an allocation is mapped by itself."""
_KEPT_BYTES: Final = 32 << 20
"""The largest that mallopt takes for the latter."""
ATTEMPTS_MAX: Final = 3
"""Times a task is tried when its worker dies, before it is given up."""


@dataclass(frozen=True, slots=True)
class Done:
    """A task came back with its batch."""

    task: Task
    batch: Batch


@dataclass(frozen=True, slots=True)
class Failed:
    """A task came back without: ``input`` is True where its input is at fault, False where the code or worker is."""

    task: Task
    reason: str
    hint: str
    input: bool
    report: Any = None


@dataclass(frozen=True, slots=True)
class NoRoom:
    """A task came back without because the file system refused; it is nobody's fault, and tried again when there is room."""

    task: Task
    error: SpaceError


@dataclass(frozen=True, slots=True)
class Died:
    """The worker of a task died (killed, out of memory); the task may be tried again."""

    task: Task
    exit_code: int | None


@dataclass(slots=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    task: Task | None = None
    done: int = 0
    total: int = 0
    leaves: bool = False
    """It has said that it ends after the answer to this task."""


class Pool:
    """At most ``size`` workers, started when first needed; ``batch_prefix`` makes names unique for this daemon start."""

    def __init__(self, size: int, *, artifact_root: Path, temporary: Path, batch_prefix: Callable[[], str]) -> None:
        self.size = size
        self.deaths = 0
        self.finished = 0
        self._workplace = (artifact_root, temporary)
        self._batch_prefix = batch_prefix
        self._sequence = 0
        self._given = 0
        self._spawn = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._leaving: list[multiprocessing.process.BaseProcess] = []

    def idle_places(self) -> int:
        """How many tasks could start now."""
        return self.size - len(self.running())

    def running(self) -> list[Task]:
        """Tasks in work, oldest first."""
        return [worker.task for worker in self._workers if worker.task is not None]

    def progress(self) -> dict[str, tuple[int, int]]:
        """Task key -> (done, total) as last reported."""
        return {worker.task.key: (worker.done, worker.total) for worker in self._workers if worker.task is not None}

    def descriptors(self) -> list[int]:
        """Descriptors to poll for reading."""
        return [worker.pipe.fileno() for worker in self._workers]

    def start(self, task: Task) -> str:
        """
        Give a task to a worker.

        Returns:
            the batch name that its files carry.
        """
        assert self.idle_places() > 0, "pool: a task was started with every place taken"
        worker = next((one for one in self._workers if one.task is None), None)
        if worker is None:
            worker = self._hire()
        name = ""
        if task.makes_files:
            self._sequence += 1
            name = f"{self._batch_prefix()}-{self._sequence:06d}"
        worker.task, worker.done, worker.total = task, 0, 0
        self._given += 1
        # A dead worker's death is seen, and the task tried again, at the next collect.
        with contextlib.suppress(OSError):
            _send(worker.pipe, (task, name), self._workplace[1] / f"task-{os.getpid()}-{id(self)}-{self._given}")
        return name

    def _hire(self) -> _Worker:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=_work, args=(theirs, *self._workplace), daemon=True, name="m17d worker")
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def collect(self) -> list[Done | Failed | NoRoom | Died]:
        """What came back since the last call; never waits."""
        results: list[Done | Failed | NoRoom | Died] = []
        for worker in list(self._workers):
            results.extend(self._drain(worker))
        self._leaving = [one for one in self._leaving if one.is_alive()]
        return results

    def _drain(self, worker: _Worker) -> list[Done | Failed | NoRoom | Died]:
        results: list[Done | Failed | NoRoom | Died] = []
        try:
            while worker.pipe.poll():
                kind, body = _received(worker.pipe)
                if kind == "leaves":
                    worker.leaves = True
                    continue
                if kind == "progress":
                    worker.done, worker.total = body
                    continue
                task, worker.task = worker.task, None
                assert task is not None
                self.finished += 1
                results.append(result_of(task, kind, body))
                if worker.leaves:
                    worker.pipe.close()
                    self._workers.remove(worker)
                    self._leaving.append(worker.process)
                    break
        except (EOFError, OSError):
            worker.process.join(_STOP_WAIT_S)
            worker.pipe.close()
            self._workers.remove(worker)
            if worker.task is not None:
                self.deaths += 1
                results.append(Died(worker.task, worker.process.exitcode))
        return results

    def stop(self) -> None:
        """End all workers: close their pipes, then terminate, then kill."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.process.join(_STOP_WAIT_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()
        for process in self._leaving:
            process.join(_STOP_WAIT_S)
        self._leaving.clear()


def result_of(task: Task, kind: str, body: Any) -> Done | Failed | NoRoom:
    """What :func:`compute` answered, with its task."""
    if kind == "done":
        return Done(task, body)
    return NoRoom(task, body) if kind == "no_room" else Failed(task, *body)


def _work(pipe: Connection, artifact_root: Path, temporary: Path) -> None:
    """A worker's whole life: take a task, compute, answer, until the pipe closes."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _be_killed_first()
    os.nice(_NICENESS)
    answers = 0
    os.environ.setdefault("POLARS_MAX_THREADS", "2")
    _keep_memory()
    while True:
        try:
            task, name = _received(pipe)
        except (EOFError, OSError):
            sys.exit(0)
        answers += 1

        def progress(done: int, total: int) -> None:
            pipe.send_bytes(pickle.dumps(("progress", (done, total))))

        try:
            answer = compute(task, Workplace(artifact_root, temporary, name, progress))
            leaves = _resident_bytes() > _RESIDENT_MAX
            # Said before the answer, so that nobody is given a task that nobody would take.
            if leaves:
                pipe.send_bytes(pickle.dumps(("leaves", None)))
            _send(pipe, answer, temporary / f"answer-{os.getpid()}-{answers}")
            if leaves:
                sys.exit(0)
        except OSError:
            sys.exit(0)


def _keep_memory() -> None:
    """
    Let the allocators keep pages that they would give back and ask for again with every chunk.

    A pass takes and frees the same large arrays over and over; each return costs a fault a page when they are wanted again.
    """
    os.environ.setdefault(
        "_RJEM_MALLOC_CONF", "dirty_decay_ms:10000,muzzy_decay_ms:10000"
    )  # of polars, read when it is loaded
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_MMAP_THRESHOLD, _KEPT_BYTES), (_M_TRIM_THRESHOLD, 4 * _KEPT_BYTES)):
            mallopt(option, value)


def _send(pipe: Connection, message: Any, path: Path) -> None:
    """Give a message to the other side; a long one in a file, of which only the name goes through the pipe."""
    data = pickle.dumps(message, protocol=5)
    if len(data) > _PIPE_BYTES:
        # Without room for a file, through the pipe after all: whoever reads slowly is waited for.
        with contextlib.suppress(OSError):
            path.write_bytes(data)
            data = pickle.dumps(path)
    pipe.send_bytes(data)


def _received(pipe: Connection) -> Any:
    """What the other side gave; raises EOFError, OSError."""
    message = pickle.loads(pipe.recv_bytes())
    if isinstance(message, Path):
        path, message = message, pickle.loads(message.read_bytes())
        path.unlink()
    return message


def _be_killed_first() -> None:
    """Ask the kernel to take this process before the daemon when memory runs out; it may always be asked for more."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


def _resident_bytes() -> int:
    """Memory of this process that is in use, 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _end_with_parent() -> None:
    """
    Be killed when the daemon is, which closes no pipe that a worker in the middle of its task would look at.

    What it leaves under temporary names is removed at the next start; the next download finds its part unlocked.
    """
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and parent.pid != os.getppid():
        sys.exit(0)


def compute(task: Task, workplace: Workplace) -> tuple[str, Any]:
    """
    Run one task here; what a worker does, and what tests and other places may do inline.

    Returns:
        ("done", Batch), ("failed", (reason, hint, input, report)) or ("no_room", SpaceError).
    """
    module_name, function_name = task.compute.split(":")
    function = getattr(importlib.import_module(module_name), function_name)
    try:
        return "done", function(task, workplace)
    except TaskFailed as failure:
        return "failed", (failure.reason, failure.hint, True, failure.report)
    except Exception as error:  # noqa: BLE001 - the one broad except around one engine step
        refused = no_room(error)
        if refused is not None:
            return "no_room", refused
        reason = f"{type(error).__name__}: {error}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return "failed", (
            f"{reason} (in {Path(last.filename).name}:{last.lineno})",
            "this is a fault of M17",
            False,
            None,
        )
