"""
Worker processes: spawned, one task at a time each, joined to the daemon by a pipe and gone when it closes.

A worker that dies costs its task, never the daemon. The pool is polled from the daemon's one thread through the pipes'
descriptors. This module must never know a ledger or a socket.
"""

from __future__ import annotations

import contextlib
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

_STOP_WAIT_S: Final = 5.0
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


class Pool:
    """At most ``size`` workers, started when first needed; ``batch_prefix`` makes names unique for this daemon start."""

    def __init__(self, size: int, *, artifact_root: Path, temporary: Path, batch_prefix: Callable[[], str]) -> None:
        self.size = size
        self.deaths = 0
        self.finished = 0
        self._workplace = (artifact_root, temporary)
        self._batch_prefix = batch_prefix
        self._sequence = 0
        self._spawn = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

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
        # A dead worker's death is seen, and the task tried again, at the next collect.
        with contextlib.suppress(OSError):
            worker.pipe.send((task, name))
        return name

    def _hire(self) -> _Worker:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=_work, args=(theirs, *self._workplace), daemon=True, name="m17d worker")
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def collect(self) -> list[Done | Failed | Died]:
        """What came back since the last call; never waits."""
        results: list[Done | Failed | Died] = []
        for worker in list(self._workers):
            results.extend(self._drain(worker))
        return results

    def _drain(self, worker: _Worker) -> list[Done | Failed | Died]:
        results: list[Done | Failed | Died] = []
        try:
            while worker.pipe.poll():
                kind, body = pickle.loads(worker.pipe.recv_bytes())
                if kind == "progress":
                    worker.done, worker.total = body
                    continue
                task, worker.task = worker.task, None
                assert task is not None
                self.finished += 1
                results.append(Done(task, body) if kind == "done" else Failed(task, *body))
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


def _work(pipe: Connection, artifact_root: Path, temporary: Path) -> None:
    """A worker's whole life: take a task, compute, answer, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("POLARS_MAX_THREADS", "2")
    while True:
        try:
            task, name = pipe.recv()
        except (EOFError, OSError):
            sys.exit(0)

        def progress(done: int, total: int) -> None:
            pipe.send_bytes(pickle.dumps(("progress", (done, total))))

        try:
            pipe.send_bytes(
                pickle.dumps(compute(task, Workplace(artifact_root, temporary, name, progress)), protocol=5)
            )
        except OSError:
            sys.exit(0)


def compute(task: Task, workplace: Workplace) -> tuple[str, Any]:
    """
    Run one task here; what a worker does, and what tests and other places may do inline.

    Returns:
        ("done", Batch) or ("failed", (reason, hint, input, report)).
    """
    module_name, function_name = task.compute.split(":")
    function = getattr(importlib.import_module(module_name), function_name)
    try:
        return "done", function(task, workplace)
    except TaskFailed as failure:
        return "failed", (failure.reason, failure.hint, True, failure.report)
    except Exception as error:  # noqa: BLE001 - the one broad except around one engine step
        reason = f"{type(error).__name__}: {error}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return "failed", (
            f"{reason} (in {Path(last.filename).name}:{last.lineno})",
            "this is a fault of M17",
            False,
            None,
        )
