"""
Faults: what went wrong in engines, how often, and when it is tried again by itself.

A task that failed for a reason that is not its input (a worker that died, a fault of the code) is tried again after half a
minute, then after twice as long each time, up to half an hour; an engine whose plan fails likewise, from a second on. Input that
cannot be used waits for another input. This module must never try anything itself.
"""

from __future__ import annotations

from typing import Final

ENGINE_FAULTS: Final = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a fault in an engine's code raises; it costs that engine, not the daemon. An AssertionError ends the daemon."""
TASK_FIRST_S: Final = 30.0
TASK_LONGEST_S: Final = 1800.0
PLAN_FIRST_S: Final = 1.0
PLAN_LONGEST_S: Final = 60.0


class Backoff:
    """
    Pauses that double, by name, until what is named succeeds.

    Args:
        first_s, longest_s: the first pause, and what no pause is longer than; seconds.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self.first_s = first_s
        self.longest_s = longest_s
        self._rounds: dict[str, int] = {}
        self._again_s: dict[str, float] = {}

    def failed(self, name: str, now_s: float) -> float:
        """Another failure: how many seconds it rests now."""
        rounds = self._rounds[name] = self._rounds.get(name, 0) + 1
        pause_s = min(self.first_s * 2.0 ** min(rounds - 1, 20), self.longest_s)
        self._again_s[name] = now_s + pause_s
        return pause_s

    def rests(self, name: str, now_s: float) -> bool:
        """Whether it is not to be tried yet."""
        return now_s < self._again_s.get(name, 0.0)

    def forget(self, name: str) -> None:
        """It succeeded, or an operator wants it tried now."""
        self._rounds.pop(name, None)
        self._again_s.pop(name, None)

    def left_s(self, name: str, now_s: float) -> float:
        """Seconds until it is tried again; 0 where it does not rest."""
        return max(0.0, self._again_s.get(name, 0.0) - now_s)
