"""
Pace: how far an engine is in what it has to do, and when it will be done at the speed it had so far; the same of a range
that somebody waits for.

An engine's stretch of work begins with its first task and ends when nothing is left; within it, what is done and what is left
are counted in cells where the engine knows them, in tasks where it does not. This module must never plan anything.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from engines.contract import Deriving, Engine

_RANGES_KEPT: Final = 256
_TELLING_S: Final = 30.0
_FORGOTTEN_S: Final = 60.0
"""A range that nobody asked about for so long begins anew."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an engine is; ``eta_s`` is None before a hundredth is done, or half a minute has passed."""

    done: int
    total: int
    unit: str
    """``cells`` or ``tasks``."""
    eta_s: float | None


class Pace:
    """One engine's stretch of work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._deriving = engine if isinstance(engine, Deriving) else None
        self._began_s: float | None = None
        self._cells = self._tasks = 0

    def began(self, now_s: float, cells: int, tasks: int) -> None:
        """A task was given out; ``cells`` and ``tasks`` are what the engine had done since the daemon's start."""
        if self._began_s is None:
            self._began_s, self._cells, self._tasks = now_s, cells, tasks

    def ended(self, running: int) -> None:
        """A task is over, and so many of the engine's are still at work."""
        if not running and not self._engine.backlog():
            self._began_s = None

    def progress(self, now_s: float, cells: int, tasks: int, shares: list[float]) -> Progress | None:
        """
        How far it is; None where it has nothing to do.

        Args:
            cells, tasks: done since the daemon's start.
            shares: of each task at work, how much of it is done, 0 to 1.
        """
        if self._began_s is None:
            return None
        if self._deriving is not None:
            done, left, unit = float(cells - self._cells), float(self._deriving.cells_left()), "cells"
        else:
            done = tasks - self._tasks + sum(shares)
            left, unit = max(float(max(self._engine.backlog(), len(shares))) - sum(shares), 0.0), "tasks"
        elapsed_s = now_s - self._began_s
        # The first cells are set while tables are still built and kernels loaded: their speed says hours of a minute.
        tells = done > 0 and elapsed_s > 0 and (99 * done >= left or elapsed_s >= _TELLING_S)
        eta_s = round(elapsed_s * left / done, 1) if tells else None
        return Progress(int(done), int(round(done + left)), unit, eta_s)


@dataclass(slots=True)
class _Shrinking:
    began_s: float
    most: int
    asked_s: float


class RangePaces:
    """How fast what is left of ranges shrinks, as far as it was asked about."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Shrinking] = {}

    def eta_s(self, key: Hashable, left: int, now_s: float) -> float | None:
        """
        When the range will be whole at the speed since it was first asked about; None before anything of it was done.

        Args:
            key: which range and columns.
            left: their cells that are not whole now; 0 forgets the range.
        """
        known = self._known.pop(key, None)
        if not left:
            return None
        # More is left than before: somebody asked for more of it, and the clock begins again.
        if known is None or left > known.most or now_s - known.asked_s > _FORGOTTEN_S:
            known = _Shrinking(now_s, left, now_s)
        known.asked_s = now_s
        self._known[key] = known
        while len(self._known) > _RANGES_KEPT:
            del self._known[next(iter(self._known))]
        done, elapsed_s = known.most - left, now_s - known.began_s
        return round(elapsed_s * left / done, 1) if done > 0 and elapsed_s > 0 else None
