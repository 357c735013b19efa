"""
The flusher: one thread that syncs, in order and in groups: kind maps, then rows (symbols and artifacts.map sync themselves).

Whoever writes calls :meth:`Flusher.wrote` and may wait for the returned generation. After a failed sync the pages' fate
is unknown, so the flusher stops for good and the state is read-only. This module must never write anything itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from ledger.errors import SpaceError, StateFull

GROUP_GAP_S: Final = 0.002
"""Shortest time from the end of one group to the begin of the next."""
_LOOK_S: Final = 0.05


class Flusher:
    """
    Groups syncs. ``sync_maps`` and ``sync_rows`` are called on the flusher's thread, in that order, for each group.

    Args:
        interval_s: longest time that something written stays unsynced when nobody asks.
    """

    def __init__(
        self,
        sync_maps: Callable[[], None],
        sync_rows: Callable[[], None],
        *,
        interval_s: float,
        on_group: Callable[[], None],
    ) -> None:
        self._sync_maps = sync_maps
        self._sync_rows = sync_rows
        self._interval_s = interval_s
        self._on_group = on_group
        self._wanted = threading.Condition()
        self._ended = threading.Condition()
        self._written = 0
        self._maps_durable = 0
        self._durable = 0
        self._ended_s = 0.0
        self._urgent = False
        self._stopping = False
        self.groups = 0
        self.failure: SpaceError | None = None
        self.full: StateFull | None = None
        """Why the last group is not durable yet; None when it is. It is tried again after each interval."""
        self._thread = threading.Thread(target=self._run, name="m17 flusher", daemon=True)
        self._thread.start()

    def wrote(self, *, urgent: bool = False) -> int:
        """Say that something was written; the generation to wait for. ``urgent`` starts a group at once."""
        with self._wanted:
            self._written += 1
            if urgent:
                self._urgent = True
                self._wanted.notify()
            return self._written

    def maps_durable(self, generation: int) -> bool:
        """True when the records of that generation are on disk; raises the failure if syncing failed."""
        self._raise_failure()
        return self._maps_durable >= generation

    def durable(self, generation: int) -> bool:
        """True when everything of that generation is on disk; raises the failure if syncing failed."""
        self._raise_failure()
        return self._durable >= generation

    def wait(self, generation: int, timeout_s: float | None = None) -> None:
        """
        Block until everything of that generation is on disk.

        Raises:
            StateFull, TimeoutError: not in time, for want of room or of an answer.
            SpaceError: syncing failed for good.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.durable(generation):
            if end is not None and time.monotonic() >= end:
                raise self.full or TimeoutError(f"not on disk after {timeout_s} s")
            with self._ended:
                self._ended.wait(timeout=_LOOK_S)

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        while True:
            self._rest()
            with self._wanted:
                self._wanted.wait_for(lambda: self._urgent or self._stopping, timeout=self._interval_s)
                generation, self._urgent = self._written, False
                if generation == self._durable:
                    if self._stopping:
                        return
                    continue
            try:
                self._sync_maps()
                self._maps_durable = generation
                self._on_group()
                self._sync_rows()
            except StateFull as error:
                # The pages stay dirty and the next group tries again, when there may be room.
                self.full = error
                self._tell()
                if self._stopping:
                    return
                continue
            except SpaceError as error:
                self.failure = error
                self._tell()
                return
            self._durable = generation
            self._ended_s = time.monotonic()
            self.full = None
            self.groups += 1
            self._tell()

    def _tell(self) -> None:
        """A group is over, one way or the other."""
        with self._ended:
            self._ended.notify_all()
        self._on_group()

    def _rest(self) -> None:
        """Let a moment pass between groups, so that what is written back to back shares one sync, and its cost."""
        if not self._stopping:
            time.sleep(max(0.0, self._ended_s + GROUP_GAP_S - time.monotonic()))

    def stop(self) -> None:
        """Sync what is left and end the thread; raises nothing, the failure stays readable."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()
        self._thread.join()
