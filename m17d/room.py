"""
Room: why nothing can be written just now, and what is done once it can.

A full disk, a used-up quota or a disk that can only be read pauses the engines; every few seconds one attempt is made, and
the first that succeeds ends the pause. Work that an engine has to note down meanwhile is owed, and done first. This module
must never drop what is owed, nor know what it is.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ledger.errors import SpaceError, StateFull, StateReadOnly, from_os_error

_RETRY_FULL_S: Final = 2.0
_RETRY_OTHER_S: Final = 20.0
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Room:
    """
    Whether the runner may write.

    Args:
        log: called with level and one line, once for each reason.
    """

    def __init__(self, log: Callable[[str, str], None]) -> None:
        self.reason = ""
        """Why nothing is written, such as a full disk; empty while all is well."""
        self.on_change: Callable[[str], object] = lambda _reason: None
        self._log = log
        self._resume_s = 0.0
        self._owed: deque[Callable[[], object]] = deque()

    @property
    def rests(self) -> bool:
        """True while no attempt is due."""
        return bool(self.reason) and time.monotonic() < self._resume_s

    def refused(self, error: SpaceError) -> None:
        """The file system refused: pause, and try again when there may be room."""
        wait_s = _RETRY_FULL_S if isinstance(error, StateFull) else _RETRY_OTHER_S
        self._resume_s = time.monotonic() + wait_s
        if not self.reason:
            self._log("error", f"engines pause: {error}; {error.hint}")
        if self.reason != str(error):
            self.reason = str(error)
            self.on_change(self.reason)

    def succeeded(self) -> None:
        """Something was written: the pause is over."""
        if self.reason and not self._owed:
            self.reason = ""
            self._log("info", "there is room again: engines go on")
            self.on_change("")

    def note(self, work: Callable[[], object]) -> None:
        """Have something noted down: now, or before anything else once there is room."""
        self._owed.append(work)
        self.pay()

    def pay(self) -> bool:
        """Do what is owed, in order; True when nothing is owed any more."""
        while self._owed:
            try:
                self._owed[0]()
            except SpaceError as error:
                self.refused(error)
                return False
            self._owed.popleft()
        return True


def no_room(error: BaseException) -> SpaceError | None:
    """The file system's refusal behind an error of a worker; None where it is something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StateFull | StateReadOnly):
            return seen
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return from_os_error(seen, "write", seen.filename or "a file of a worker")
        seen = seen.__cause__ or seen.__context__
    # Polars has no class for it.
    return StateFull(f"a worker: {error}") if "No space left on device" in str(error) else None
