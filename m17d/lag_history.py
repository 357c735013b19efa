"""
Lag history: how far each column lay behind over the last minutes, for whoever asks for the status.

A sample every half minute of what the metrics say now; kept in memory, lost at a restart. This module must never compute a
lag itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from ledger.columns import Column
from m17d.measuring import InUse, Measuring

SAMPLES: Final = 40
"""How many are kept; one every half minute makes twenty minutes."""


class LagHistory:
    """Samples of the window lag by column, in minutes, oldest first."""

    def __init__(self, measuring: Measuring) -> None:
        self._measuring = measuring
        self._samples: deque[dict[Column, float]] = deque(maxlen=SAMPLES)

    def sample(self) -> Iterator[None]:
        """Take one, in steps of milliseconds; begun every half minute."""
        in_use: InUse = []
        for session in self._measuring.names():
            yield from self._measuring.opening(session)
            if (found := self._measuring.readable(session)) is not None:
                in_use.append((session, found))
            yield
        lags: dict[Column, float] = {}
        for column in Column:
            if lag := self._lag(column, in_use):
                lags[column] = lag
            yield
        self._samples.append(lags)

    def until_now(self, in_use: InUse) -> dict[Column, list[float]]:
        """Columns that lay behind at some time, each with its samples and, last, the lag of this moment."""
        taken = [*self._samples, self._now(in_use)]
        behind = [column for column in Column if any(one.get(column) for one in taken)]
        return {column: [one.get(column, 0.0) for one in taken] for column in behind}

    def _now(self, in_use: InUse) -> dict[Column, float]:
        return {column: lag for column in Column if (lag := self._lag(column, in_use))}

    def _lag(self, column: Column, in_use: InUse) -> float:
        return round(self._measuring.lag_minutes(column, in_use), 1)
