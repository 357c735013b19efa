"""
The metrics of cells: counts, shares, lags and quality, all from what measuring says at one moment.

This module must never look at a session itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from ledger.columns import RAW_COLUMNS, Column
from ledger.state import State
from m17d.measuring import InUse, Measuring, as_counts, open_sessions, totals
from m17d.quality import Quality

STATUSES: Final = ("empty", "pending", "filled", "cleared", "not_applicable", "not_due")
"""They partition windows x universe."""
DUE: Final = ("empty", "pending", "filled", "cleared")
QUALITIES: Final = ("no_data", "suspect", "stale")
"""Parts of filled."""


class CellFamilies:
    """The families of one state's cells."""

    def __init__(self, state: State, measuring: Measuring) -> None:
        self._measuring = measuring
        self._gathered: tuple[InUse, dict[tuple[Column, bool], float]] | None = None
        self._aggressor = Quality(
            state, Column.AGGRESSOR_REF, ("observation_count", "missing", "stale", "unknown_side", "tied")
        )
        self._greeks = Quality(state, Column.GREEKS_REF, ("observation_count", "usable_rows"))

    def gather(self) -> Iterator[None]:
        """
        Measure for the next `families`, in steps of milliseconds; a session is of one moment, another one of a later.

        Beside a backfill every session has moved since the last time, and each column's oldest open cell is searched anew.
        """
        in_use: InUse = []
        for session in self._measuring.names():
            yield from self._measuring.opening(session)
            if (found := self._measuring.readable(session)) is not None:
                in_use.append((session, found))
            yield
        lags: dict[tuple[Column, bool], float] = {}
        for column, having_open in zip(Column, open_sessions(in_use), strict=True):
            for ready in (False, True)[: 1 + (column not in RAW_COLUMNS)]:
                lags[column, ready] = 0.0
                for at in having_open.tolist():
                    if in_use[at][1].is_known_whole(column, ready=ready):
                        continue
                    lags[column, ready] = self._measuring.lag_minutes(column, [in_use[at]], ready=ready)
                    yield
                    if lags[column, ready]:
                        break
        self._gathered = in_use, lags

    def families(self) -> Iterator[Metric]:
        """Every family, of what was gathered since the last time, or of now."""
        if self._gathered is None:
            for _ in self.gather():
                pass
        assert self._gathered is not None
        (in_use, lags), self._gathered = self._gathered, None
        yield from self._counts(in_use)
        yield from self._lags(lags)
        yield from self._quality(in_use)

    def _counts(self, in_use: InUse) -> Iterator[Metric]:
        slots = GaugeMetricFamily(
            "m17_slots",
            "Cells by column and status over the sessions in use; the numbers of: m17ctl status.",
            labels=["column", "status"],
        )
        parts = GaugeMetricFamily(
            "m17_filled_slots",
            "Filled cells that are no_data (known to have no rows), suspect or stale; suspect ones want: m17ctl why.",
            labels=["column", "quality"],
        )
        shares = GaugeMetricFamily(
            "m17_slot_ratio",
            "Share of the due, applicable cells of a column that have the status; absent while none is due.",
            labels=["column", "status"],
        )
        whole = GaugeMetricFamily(
            "m17_whole_ratio",
            "Share of the due, applicable cells that are filled, fresh and not suspect; 1 is whole.",
            labels=["column"],
        )
        for column, counts in as_counts(totals(in_use)).items():
            for name in STATUSES:
                slots.add_metric([column.value, name], counts[name])
            for name in QUALITIES:
                parts.add_metric([column.value, name], counts[name])
            due = sum(counts[name] for name in DUE)
            if due:
                for name in DUE:
                    shares.add_metric([column.value, name], counts[name] / due)
                sound = max(0, counts["filled"] - counts["suspect"] - counts["stale"])
                whole.add_metric([column.value], sound / due)
        yield from (slots, parts, shares, whole)
        yield GaugeMetricFamily(
            "m17_sessions_in_use",
            "Sessions that have a source or a set cell; counts are over these.",
            value=len(in_use),
        )

    def _lags(self, lags: dict[tuple[Column, bool], float]) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "m17_window_lag_minutes",
            "Minutes since the end of the oldest due window that is empty, pending or cleared, by column; 0 where none is.",
            labels=["column"],
        )
        behind = GaugeMetricFamily(
            "m17_dependency_lag_minutes",
            "The same among cells of derived columns whose inputs are all filled: how far their own engine is behind.",
            labels=["column"],
        )
        for (column, ready), minutes in lags.items():
            (behind if ready else lag).add_metric([column.value], minutes)
        yield from (lag, behind)

    def _quality(self, in_use: InUse) -> Iterator[Metric]:
        """Shares of rows of the newest session that has them; absent while they are being counted for the first time."""
        found = self._aggressor.sums(in_use)
        if found and found["observation_count"]:
            rows = found["observation_count"]
            covered = rows - found["missing"] - found["stale"]
            yield _share("m17_nbbo_coverage_ratio", "Share of trades that met a quote in force", covered / rows)
            yield _share(
                "m17_unknown_aggressor_ratio", "Share of trades whose side is unknown", found["unknown_side"] / rows
            )
            yield _share(
                "m17_tied_trades_ratio", "Share of trades with the exact time of a quote", found["tied"] / rows
            )
        found = self._greeks.sums(in_use)
        if found and found["observation_count"]:
            usable = found["usable_rows"] / found["observation_count"]
            yield _share(
                "m17_usable_greeks_ratio", "Share of option trades with implied volatility and all Greeks", usable
            )


def _share(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        name, f"{what}, in the newest session that has any; absent while it is counted.", value=value
    )
