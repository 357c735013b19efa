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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from m17d.listening import Connection, Listening, greediest

GUARD_SECONDS: Final = 0.02
"""How often the guard looks."""
SUSPICION_SECONDS: Final = 0.002
"""How often it looks while it wonders whose the growth is."""
_PAGE: Final = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """
    When the guard acts.

    Connections may take ``full_share`` of the limit of descriptors, but not fewer than ``full_least`` nor more than
    ``full_most``, beside those that the daemon has for itself; nobody is admitted beyond, nor when less than ``kept_share`` of
    the limit is left. What lies between there and the limit is what a flood can take while this process waits for a processor:
    a limit of 1,024 has held on a loaded machine, 256 has not, so the daemon raises what it starts with.
    Then processes that hold more than ``connections_per_process`` lose theirs. ``memory_growth_bytes`` is anonymous memory gained since the guard last found no
    connection with input waiting. Then every connection's input is looked at ``looks`` times; one that had some waiting in
    ``looks_guilty`` of them, or ``pending_bytes`` at once, is ended. A peer that feeds half a message slowly enough to be seen
    less often than that is left to the service manager's limit of memory.
    """

    full_share: float = 0.125
    full_least: int = 48
    full_most: int = 4_096
    kept_share: float = 0.25
    connections_per_process: int = 32
    memory_growth_bytes: int = 32 << 20
    pending_bytes: int = 32 << 10
    looks: int = 12
    looks_guilty: int = 3


class Guard:
    """Watches one listener: `open` before every wait of the loop, `close` after it; both mostly return at once."""

    def __init__(
        self, listening: Listening, limits: GuardLimits, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._listening = listening
        self._limits = limits
        self._monotonic = monotonic
        self._room = min(max(int(soft * limits.full_share), limits.full_least), limits.full_most)
        self._most = soft - int(soft * limits.kept_share)
        self._full_mark = min(self._room, self._most)
        self._memory_base = anonymous_bytes()
        self._next = 0.0
        self._looks = 0
        self._seen: Counter[Connection] = Counter()
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
            if full:
                full = self._make_room()
            self._look_at_memory()
            self._next = now + (SUSPICION_SECONDS if self.suspicious else GUARD_SECONDS)
        if not full:
            self._listening.admit(True)

    def _make_room(self) -> bool:
        """Whether it is connections that took the descriptors, or hardly any is left; those of the greedy are ended then."""
        held = self._listening.connections()
        # Files of a year are many; only what peers took is held against them.
        own = self._listening.lowest_free_descriptor() - len(held)
        self._full_mark = min(own + self._room, self._most)
        if self._listening.lowest_free_descriptor() < self._full_mark:
            return False
        self.connections_ended += self._listening.hang_up(greediest(held, self._limits.connections_per_process))
        return True

    @property
    def suspicious(self) -> bool:
        """Whether memory has grown and it is not known yet for whom; then the loop should turn every few milliseconds."""
        return self._looks > 0

    def _look_at_memory(self) -> None:
        anonymous, limits = anonymous_bytes(), self._limits
        if anonymous - self._memory_base <= limits.memory_growth_bytes:
            self._memory_base = min(self._memory_base, anonymous)
            self._forget()
            return
        self._looks += 1
        waiting = [held for held in self._listening.connections(waiting=True) if held.pending_bytes]
        self._seen.update(held._replace(pending_bytes=0) for held in waiting)
        guilty = [held for held in waiting if held.pending_bytes >= limits.pending_bytes]
        guilty += [held for held, times in self._seen.items() if times >= limits.looks_guilty]
        if guilty:
            self.connections_ended += self._listening.hang_up(guilty)
            _return_free_memory()
            self._forget()
        elif self._looks >= limits.looks:
            # The growth is the daemon's own: planes, batches, an answer on its way.
            self._memory_base = anonymous
            self._forget()

    def _forget(self) -> None:
        self._looks = 0
        self._seen.clear()


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
