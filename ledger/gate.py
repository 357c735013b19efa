"""
The gate: after a sync that failed nobody writes any more.

When ``fdatasync`` fails, the kernel may have dropped the pages it could not write, and a second call may say that all
is well. So the first failed sync (for any reason but a full disk) closes the gate of its state for good: every later
write is refused with what went wrong first, reads go on. This module must never open the gate again; a restart does.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any, Final

from ledger.errors import StateReadOnly
from ledger.files import System

_SYNCS: Final = frozenset({"fdatasync", "fsync"})
_WRITES: Final = frozenset({"pwrite", "fallocate", "rename", "unlink", "ftruncate", "mkdir"}) | _SYNCS
_WRITING: Final = os.O_CREAT | os.O_TRUNC
_PAGES_STAY_DIRTY: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EINTR})


class GatedSystem(System):
    """A system behind a gate; ``failure`` says which sync closed it, None while it is open."""

    def __init__(self, inner: System) -> None:
        super().__init__()
        self._inner = inner
        self.failure: StateReadOnly | None = None
        # A setter asks for the time a million times a second: straight to the clock where nobody stands in for it.
        self.clock: Callable[[], int] = time.time_ns if type(inner).now_ns is System.now_ns else inner.now_ns

    def attempt(self, call: str, *arguments: Any) -> Any:
        """One system call of the inner system; a writing one is refused (EROFS) when the gate is closed."""
        if self.failure is not None and (call in _WRITES or (call == "open" and arguments[1] & _WRITING)):
            raise OSError(errno.EROFS, f"refused, because earlier {self.failure}")
        try:
            return self._inner.attempt(call, *arguments)
        except OSError as error:
            if call in _SYNCS and error.errno not in _PAGES_STAY_DIRTY and self.failure is None:
                path = self.path_of(arguments[0])
                text = f"{call} on {path} failed: {error.strerror or error} (errno {error.errno})"
                self.failure = StateReadOnly(text, call=call, path=path, errno=error.errno)
            raise

    @property
    def inner(self) -> System:
        """The system without the gate: for files that are not the state's, such as a copy of it on another disk."""
        return self._inner

    def now_ns(self) -> int:
        """The inner system's clock."""
        return self._inner.now_ns()

    def must_be_open(self) -> None:
        """Raises :class:`StateReadOnly` when a sync failed; for stores into a mapping, which are no system calls."""
        if self.failure is not None:
            raise StateReadOnly(f"refused, because earlier {self.failure}", **self.failure.facts)


def gated(system: System) -> GatedSystem:
    """The system behind a gate: itself where it has one."""
    return system if isinstance(system, GatedSystem) else GatedSystem(system)
