"""
Patience: how long a run until idle waits for sources that do not answer, and which of their next attempts it waits for.

A source that fails is left alone for a while and tried again by its engine; a run that ended meanwhile would leave undone
what a few seconds more had brought. What an attempt alone does not change (keys, names, damage, a full disk) is not waited
for. This module must never try anything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from engines.contract import Engine, Waiting

_SECOND_NS: Final = 1_000_000_000


class Patience:
    """
    Looks at what engines wait for.

    Args:
        patience_s: an attempt is waited for where it is due at most so long after the first failure in a row.
        log: takes level and line.
    """

    def __init__(self, patience_s: float, log: Callable[[str, str], None]) -> None:
        self._patience_ns = round(patience_s * _SECOND_NS)
        self._log = log
        self._said_ns = 0

    def waits(self, engines: Iterable[Engine], now_ns: int) -> bool:
        """Whether an attempt is to come that is worth waiting for; each wait is said once."""
        due = min(self._worthwhile(engines, now_ns), key=lambda one: one[0], default=None)
        if due is None:
            return False
        due_ns, waiting = due
        if due_ns > self._said_ns:
            self._said_ns = due_ns
            self._log("info", f"not idle yet: tried again in {(due_ns - now_ns) / _SECOND_NS:.0f} s: {waiting.detail}")
        return True

    def _worthwhile(self, engines: Iterable[Engine], now_ns: int) -> Iterator[tuple[int, Waiting]]:
        for engine in engines:
            for one in engine.waiting():
                retry = one.retry
                if retry is not None and now_ns < retry.due_ns <= retry.first_failed_ns + self._patience_ns:
                    yield retry.due_ns, one
