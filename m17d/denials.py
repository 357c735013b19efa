"""
Denials: attempts without the role, in the audit log, so that one who tries all day neither fills nor stalls it.

The first of a minute are written one by one, the others as a number. This module must never decide who may do what.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ledger.audit import Operator
from ledger.state import State

WRITTEN_A_MINUTE: Final = 10
"""Attempts of one user that are written singly."""
_WINDOW_S: Final = 60.0


@dataclass(slots=True)
class _Tried:
    operator: Operator
    until_s: float
    written: int = 0
    more: int = 0


class Denials:
    """Attempts of users without the role operate."""

    def __init__(self, state: State, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._monotonic = monotonic
        self._tried: dict[int, _Tried] = {}

    def note(self, operation: str, operator: Operator, claimed: dict[str, str]) -> None:
        """One attempt."""
        self.settle()
        tried = self._tried.get(operator.uid)
        if tried is None:
            tried = self._tried[operator.uid] = _Tried(operator, self._monotonic() + _WINDOW_S)
        if tried.written >= WRITTEN_A_MINUTE:
            tried.more += 1
            return
        tried.written += 1
        # Nothing was done that would have to be proved; the next group syncs it.
        self._state.audit.append(
            operation, operator, claimed=claimed, result="denied: role operate needed", durable=False
        )

    def settle(self) -> None:
        """Write the numbers of minutes that are over; called by whoever looks after the daemon, too."""
        now_s = self._monotonic()
        for uid in [uid for uid, tried in self._tried.items() if now_s >= tried.until_s]:
            tried = self._tried.pop(uid)
            if tried.more:
                result = f"denied: role operate needed, {tried.more} more attempts within a minute"
                self._state.audit.append("denied", tried.operator, result=result)
