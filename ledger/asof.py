"""
Aggregates as one could have known them: joined backward on the time they became available, never on their start.

A window ``[T, T + w)`` is named after its start, but nobody could know it before its end; joined on its start it would
tell the future. This is the one reader that joins, so that no user has to remember. It must never look at a row whose
``available_ns`` lies after the time it is joined to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ledger.columns import AGGREGATE_MINUTES, Column
from ledger.frames import scan

if TYPE_CHECKING:
    import polars

    from ledger.state import State

KEYS: Final = ("window_start_ns", "window_end_ns", "available_ns", "covered_minutes", "short")
"""What every joined row says of its window, beside the metrics."""


def join_aggregates(
    state: State,
    frame: polars.DataFrame | polars.LazyFrame,
    column: Column | str,
    *,
    on: str = "sip_timestamp",
    by: str = "symbol",
    metrics: Sequence[str] | None = None,
    sessions: Any = None,
    short: bool = False,
    max_age_ns: int | None = None,
) -> polars.LazyFrame:
    """
    Each row of a frame with the newest aggregates of its symbol that were available at its time.

    A window ending exactly at a row's time is available: it holds what came before that time and nothing of it. Where
    several windows became available at once (short ones, at the close), the one that covers most minutes is taken.
    A window without any trade has no row, so an older one is found; its keys tell, and ``max_age_ns`` bounds it.

    Args:
        frame: rows with a time and the symbol of an underlying (options stand on their underlying's symbol).
        column: one of ``aggs_1m`` .. ``aggs_4h``.
        on: name of the frame's time, i64 ns since the epoch, UTC.
        by: name of the frame's symbol.
        metrics: names of aggregate columns, such as ``puts_dadvv_total``; None for all.
        sessions: as in ``scan``: a date, dates, or None for all that exist.
        short: whether windows clipped at the close may be found too.
        max_age_ns: the oldest ``available_ns`` before a row's time that is still taken; None for any.

    Returns:
        the frame's rows in their order, and behind its columns ``<column>_<name>`` for KEYS and metrics, null where no
        window was available.

    Raises:
        ValueError: the column is no aggregate, or a metric is not in its rows.
        UnknownSession, StateError: as ``scan``.
    """
    import polars as pl

    column = Column(column)
    if column not in AGGREGATE_MINUTES:
        raise ValueError(f"{column.value} is no aggregate: use one of {', '.join(AGGREGATE_MINUTES)}")
    left = frame.lazy()
    rows = scan(state, column, sessions=sessions)
    known = rows.collect_schema().names()
    if "short" not in known:
        names = [*KEYS, *(metrics or ())]
        return left.with_columns(pl.lit(None).alias(f"{column.value}_{name}") for name in names)
    held = known[known.index("short") + 1 : known.index("session")]
    wanted = list(metrics) if metrics is not None else held
    unknown = [name for name in wanted if name not in held]
    if unknown:
        raise ValueError(f"{column.value} has no {', '.join(unknown)}: see the fields of its artifacts")
    if not short:
        rows = rows.filter(~pl.col("short"))
    right = rows.sort("available_ns", "covered_minutes").select(
        pl.col("symbol").cast(pl.String).alias("__symbol"),
        pl.col("available_ns").alias("__available"),
        *(pl.col(name).alias(f"{column.value}_{name}") for name in (*KEYS, *wanted)),
    )
    joined = (
        left.with_row_index("__row")
        .with_columns(pl.col(by).cast(pl.String).alias("__symbol"), pl.col(on).cast(pl.Int64).alias("__time"))
        .sort("__time", maintain_order=True)
        .join_asof(
            right,
            left_on="__time",
            right_on="__available",
            by="__symbol",
            strategy="backward",
            tolerance=max_age_ns,
            check_sortedness=False,
        )
        .sort("__row")
    )
    return joined.drop("__row", "__symbol", "__time", "__available", strict=False)
