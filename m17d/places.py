"""
Places: where tasks run. The workers, and beside them a few processes for tasks that wait for a network, and one in reserve.

A download at the end of a slow line may take an hour and hardly any CPU; among the workers it would keep files from being
read. This module must never know what a task does.
"""

from __future__ import annotations

from engines.contract import Task
from m17d.pool import Died, Done, Failed, NoRoom, Pool


class Places:
    """
    The workers and the fetchers as one.

    Args:
        workers: compute; file passes hold at most one place less than there are, so that small tasks go on beside them. A
            pass that a region asked for, which reads few symbols, may take the last place: it must not wait for one that
            takes minutes.
        fetchers: run tasks that are ``remote``.
        reserve: where there is one worker, a place for urgent tasks while that is taken, by a file for minutes perhaps; its
            process is started when it is first needed. None where there are more workers.
    """

    def __init__(self, workers: Pool, fetchers: Pool, reserve: Pool | None = None) -> None:
        self.workers = workers
        self.fetchers = fetchers
        self.reserve = reserve
        self._pools = (workers, fetchers) if reserve is None else (workers, fetchers, reserve)

    def idle_places(self) -> int:
        """How many tasks could start now, of both kinds together."""
        return sum(pool.idle_places() for pool in self._pools)

    def has_room(self, task: Task, *, urgent: bool = False) -> bool:
        """Whether this task could start now; ``urgent``: somebody waits for it, so that it may have the reserve."""
        if task.remote:
            return self.fetchers.idle_places() > 0
        if not self.workers.idle_places():
            return urgent and self.reserve is not None and self.reserve.idle_places() > 0
        passes = [one for one in self.workers.running() if one.heavy]
        if not task.heavy or len(passes) < max(1, self.workers.size - 1):
            return True
        return task.priority > 0 and not any(one.priority > 0 for one in passes)

    def start(self, task: Task) -> str:
        """Give a task that has room to a process; see :meth:`m17d.pool.Pool.start`."""
        if task.remote:
            return self.fetchers.start(task)
        if self.reserve is not None and not self.workers.idle_places():
            return self.reserve.start(task)
        return self.workers.start(task)

    def running(self) -> list[Task]:
        """Tasks in work."""
        return [task for pool in self._pools for task in pool.running()]

    def progress(self) -> dict[str, tuple[int, int]]:
        """Task key -> (done, total) as last reported."""
        return {key: value for pool in self._pools for key, value in pool.progress().items()}

    def collect(self) -> list[Done | Failed | NoRoom | Died]:
        """What came back since the last call; never waits."""
        return [result for pool in self._pools for result in pool.collect()]

    def descriptors(self) -> list[int]:
        """Descriptors to poll for reading."""
        return [descriptor for pool in self._pools for descriptor in pool.descriptors()]

    def stop(self) -> None:
        """End all processes."""
        for pool in self._pools:
            pool.stop()
