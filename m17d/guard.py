"""
The guard of the socket: keeps a flood of connections or of half a message from taking the daemon's descriptors or memory.

ZeroMQ's listener aborts the process when descriptors run out, and a message whose frames never end is held in memory with no
bound (the limit of size is per frame, the high-water mark counts whole messages). Neither can be configured away. So the
descriptors are watched by the number that the next one gets, memory by the process's anonymous pages; when either grows, the
connections that caused it are ended; while descriptors are scarce nobody new is admitted.

Must never end a connection while neither is scarce.
"""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from m17d.listening import Listening, greediest

GUARD_SECONDS: Final = 0.02
"""How often the guard looks."""
_PAGE: Final = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """
    When the guard acts.

    No connection is admitted while the next descriptor's number is at or above ``full_share`` of the limit, but not below
    ``full_least`` nor above ``full_most``. What lies between there and the limit is what a flood can take while this process
    waits for a processor: a limit of 1,024 has held on a loaded machine, 256 has not.
    Then processes that hold more than ``connections_per_process`` lose theirs. ``memory_growth_bytes`` is anonymous memory gained since the guard last found no
    connection with input waiting; ``pending_bytes`` is input waiting in one connection that makes it a suspect.
    """

    full_share: float = 0.125
    full_least: int = 48
    full_most: int = 4_096
    connections_per_process: int = 32
    memory_growth_bytes: int = 32 << 20
    pending_bytes: int = 32 << 10


class Guard:
    """Watches one listener: `open` before every wait of the loop, `close` after it; both mostly return at once."""

    def __init__(
        self, listening: Listening, limits: GuardLimits, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._listening = listening
        self._limits = limits
        self._monotonic = monotonic
        self._full_mark = min(max(int(soft * limits.full_share), limits.full_least), limits.full_most)
        self._memory_base = anonymous_bytes()
        self._next = 0.0
        self.connections_ended = 0

    def close(self) -> None:
        """Admit nobody while the daemon is busy: a flood would be accepted unseen meanwhile."""
        self._listening.admit(False)

    def open(self) -> None:
        """Before the loop waits: admit, unless something is scarce."""
        now = self._monotonic()
        due = now >= self._next
        full = self._listening.lowest_free_descriptor() >= self._full_mark
        if full or due:
            # What is looked at must not change under our eyes.
            self._listening.admit(False)
        if due:
            self._next = now + GUARD_SECONDS
            if full:
                held = self._listening.connections()
                self.connections_ended += self._listening.hang_up(greediest(held, self._limits.connections_per_process))
            self._look_at_memory()
        if not full:
            self._listening.admit(True)

    def _look_at_memory(self) -> None:
        anonymous = anonymous_bytes()
        if anonymous - self._memory_base <= self._limits.memory_growth_bytes:
            self._memory_base = min(self._memory_base, anonymous)
            return
        suspects = [held for held in self._listening.connections() if held.pending_bytes >= self._limits.pending_bytes]
        if not suspects:
            # The growth is the daemon's own: planes, batches, an answer on its way.
            self._memory_base = anonymous
            return
        self.connections_ended += self._listening.hang_up(suspects)
        _return_free_memory()


def anonymous_bytes() -> int:
    """Bytes of this process's resident memory that no file stands behind."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        fields = statm.read().split()
    return (int(fields[1]) - int(fields[2])) * _PAGE


def _return_free_memory() -> None:
    # What the ended connections held is freed into malloc's lists; without this it would count as growth for ever.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
