"""
Turns: which steps of the daemon's loop took longest, by name, lately.

Requests wait for the step that runs when they come, so its length is what an operator feels. Whoever does a step says what it
was and how long it took, as it was felt: time without a processor or waiting for a disk is in it. This module must never
look at what a step does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SLOW_S: Final = 0.025
"""Longest that somebody should have to wait for somebody else."""
_WINDOW_S: Final = 60.0


class Turns:
    """Lengths of steps, the longest of the last minute or two by name."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._since_s = monotonic()
        self._longest_s: dict[str, float] = {}
        self._before_s: dict[str, float] = {}
        self.slow: Counter[str] = Counter()
        """Steps longer than :data:`SLOW_S` since the start, by name."""

    def took(self, step: str, seconds: float) -> None:
        """A step of this name took so long."""
        if seconds > self._longest_s.get(step, 0.0):
            self._longest_s[step] = seconds
        if seconds > SLOW_S:
            self.slow[step] += 1

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done within; a step that raises counts, too."""
        began_s = self._monotonic()
        try:
            yield
        finally:
            self.took(name, self._monotonic() - began_s)

    def longest(self) -> dict[str, float]:
        """Step -> the longest of its name in the last minute or two, in seconds; the longest of all first."""
        if self._monotonic() - self._since_s > _WINDOW_S:
            self._turn_over()
        found = dict(self._before_s)
        for step, seconds in self._longest_s.items():
            found[step] = max(seconds, found.get(step, 0.0))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _turn_over(self) -> None:
        stale = self._monotonic() - self._since_s > 2 * _WINDOW_S
        self._before_s = {} if stale else self._longest_s
        self._longest_s, self._since_s = {}, self._monotonic()
