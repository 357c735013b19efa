"""
Latencies: how long things took, in a few buckets, counted where they end.

This module must never look at a clock; whoever measures says how long it was.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
"""Upper bounds of the buckets in seconds, included; a last one has no bound."""


class Latency:
    """A histogram of durations since the start of the daemon."""

    __slots__ = ("_buckets", "sum_s")

    def __init__(self) -> None:
        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def took(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, how many were no longer), ascending, the last bound ``+Inf``; as Prometheus has it."""
        names = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
        total, found = 0, []
        for name, number in zip(names, self._buckets, strict=True):
            total += number
            found.append((name, float(total)))
        return found
