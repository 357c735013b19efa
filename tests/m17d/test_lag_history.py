"""The lags that status shows are those that the metrics say, kept for some minutes."""

from __future__ import annotations

from typing import cast

from ledger.columns import Column
from m17d.lag_history import SAMPLES, LagHistory
from m17d.measuring import InUse, Measuring


class Behind:
    """Measuring that says what it is told."""

    def __init__(self) -> None:
        self.lags: dict[Column, float] = {}

    def names(self) -> list[str]:
        return []

    def lag_minutes(self, column: Column, in_use: InUse, *, ready: bool = False) -> float:
        del in_use, ready
        return self.lags.get(column, 0.0)


def test_samples_end_with_now_and_columns_that_never_lay_behind_are_left_out() -> None:
    """Oldest first; one that is whole again ends in 0; no more samples than are kept."""
    measuring = Behind()
    history = LagHistory(cast("Measuring", measuring))
    assert history.until_now([]) == {}
    measuring.lags = {Column.TRADE_REF: 2.04}
    list(history.sample())
    measuring.lags = {Column.QUOTE_REF: 1.5}
    assert history.until_now([]) == {Column.TRADE_REF: [2.0, 0.0], Column.QUOTE_REF: [0.0, 1.5]}
    for _ in range(SAMPLES):
        list(history.sample())
    assert history.until_now([]) == {Column.QUOTE_REF: [1.5] * (SAMPLES + 1)}
