"""Benchmark: the aggressor kernel against polars ``join_asof`` and the same rule in expressions, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import polars as pl

from engines.nbbo.arrays import OFFSET_NULL, AggressorColumns, QuoteArrays, TradeArrays
from engines.nbbo.kernel import classify
from engines.nbbo.policy import Method, NbboPolicy, QuoteState, Side

REACH: Final = 4.0
ROUNDS: Final = 5
TRADES: Final = 2_000_000
QUOTES: Final = 8_000_000
INSTRUMENTS: Final = 200
OPEN_NS: Final = 1_381_152_600_000_000_000
SESSION_MS: Final = 23_400_000
POLICY: Final = NbboPolicy(staleness_ms=5000)


def measure() -> dict[str, Any]:
    """
    Time both sides on 2 M trades and 8 M quotes of 200 instruments; the kernel uses one thread, polars all of them.

    Returns:
        name, value (times faster, medians of five, alternating), unit, reach, ok, detail (both sides in trades/s).

    Raises:
        AssertionError: the two sides disagree about a trade; a benchmark of two different things is worth nothing.
    """
    trades, quotes = market(TRADES, QUOTES, INSTRUMENTS)
    frames = (
        pl.DataFrame(trades._asdict()).with_columns(pl.col("previous_price").fill_nan(None)),
        pl.DataFrame(quotes._asdict()),
    )
    _assert_equal(classify(trades, quotes, POLICY), with_polars(*frames))
    kernel_s, polars_s = [], []
    for _ in range(ROUNDS):
        kernel_s.append(_seconds(lambda: classify(trades, quotes, POLICY)))
        polars_s.append(_seconds(lambda: with_polars(*frames)))
    kernel, polars = statistics.median(kernel_s), statistics.median(polars_s)
    value = polars / kernel
    growth = {f"kernel_s_at_{TRADES // share}": _kernel_s(share) for share in (4, 2, 1)}
    return {
        "name": "aggressor_vs_polars",
        "value": round(value, 2),
        "unit": "times faster",
        "reach": REACH,
        "ok": value >= REACH,
        "detail": {
            "kernel_trades_per_s": round(TRADES / kernel),
            "polars_trades_per_s": round(TRADES / polars),
            "polars_threads": pl.thread_pool_size(),
            "trades": TRADES,
            "quotes": QUOTES,
            "instruments": INSTRUMENTS,
            **growth,
        },
    }


def _kernel_s(share: int) -> float:
    """Median time of the kernel on one of so many parts of the rows."""
    trades, quotes = market(TRADES // share, QUOTES // share, INSTRUMENTS)
    return round(statistics.median(_seconds(lambda: classify(trades, quotes, POLICY)) for _ in range(ROUNDS)), 4)


def market(trades: int, quotes: int, instruments: int) -> tuple[TradeArrays, QuoteArrays]:
    """A seeded day: millisecond times, a walking mid, penny spreads of which some are locked or crossed."""
    rng = np.random.default_rng(17)
    quote_instrument, quote_ts = _times(rng, quotes, instruments)
    trade_instrument, trade_ts = _times(rng, trades, instruments)
    cents = 5000 + np.cumsum(rng.integers(-1, 2, quotes)) % 3000
    spread = rng.choice(np.array([-1, 0, 1, 1, 1, 1, 2, 2, 3, 5]), quotes)
    size = rng.integers(1, 50, quotes).astype(np.float64)
    book = QuoteArrays(quote_instrument, quote_ts, cents / 100.0, (cents + spread) / 100.0, size, size[::-1].copy())
    near = np.minimum(np.arange(trades) * (quotes // trades), quotes - 1)
    price = (cents[near] * 2 + rng.integers(-2, 5, trades)) / 200.0
    previous = np.where(np.diff(trade_instrument, prepend=-1) != 0, np.nan, np.roll(price, 1))
    return TradeArrays(trade_instrument, trade_ts, price, previous), book


def with_polars(trades: pl.DataFrame, quotes: pl.DataFrame) -> pl.DataFrame:
    """The same columns by ``join_asof`` and the nearest-side rule in expressions; one lazy query."""
    quotes = quotes.with_columns(
        quote_ts_ns=pl.col("sip_timestamp_ns"), quote_index=pl.int_range(pl.len(), dtype=pl.Int64)
    )
    joined = trades.lazy().join_asof(
        quotes.lazy(),
        on="sip_timestamp_ns",
        by="instrument",
        strategy="backward",
        tolerance=POLICY.staleness_ns + 999,
        check_sortedness=False,
    )
    price, bid, ask, epsilon = pl.col("price"), pl.col("bid"), pl.col("ask"), POLICY.epsilon
    mid, delta = (bid + ask) / 2, pl.col("price") - pl.col("previous_price")
    crossed, locked = (ask > 0) & (bid > ask), (ask > 0) & (bid == ask)
    state = (
        pl.when(bid.is_null())
        .then(int(QuoteState.NONE))
        .when(crossed)
        .then(int(QuoteState.CROSSED))
        .when(locked)
        .then(int(QuoteState.LOCKED))
        .otherwise(int(QuoteState.NORMAL))
    )
    at_mid = (price - mid).abs() <= 4 * float(np.finfo(np.float64).eps) * ask.abs()
    offset = (price - mid) / mid * 10_000
    rounded = (offset.abs() + 0.5).floor() * offset.sign()
    by_quote = pl.when((ask > bid) & (pl.col("quote_state") == int(QuoteState.NORMAL)))
    touch_ask, touch_bid = price >= ask - epsilon, price <= bid + epsilon
    buyer, seller = pl.lit(int(Side.BUYER), pl.Int8), pl.lit(int(Side.SELLER), pl.Int8)
    tick = pl.when(delta > epsilon).then(buyer).when(delta < -epsilon).then(seller).otherwise(pl.lit(0, pl.Int8))
    side = by_quote.then(
        pl.when(touch_ask)
        .then(buyer)
        .when(touch_bid)
        .then(seller)
        .when(at_mid | (price > mid))
        .then(buyer)
        .otherwise(seller)
    ).otherwise(tick)
    method = by_quote.then(
        pl.when(touch_ask | touch_bid).then(int(Method.NBBO_TOUCH)).otherwise(int(Method.NBBO_AT_OR_BEYOND))
    ).otherwise(pl.when(pl.col("side") == 0).then(int(Method.UNKNOWN)).otherwise(int(Method.TICK_RULE)))
    return (
        joined.with_columns(quote_state=state.cast(pl.Int8))
        .with_columns(side=side)
        .with_columns(method=method.cast(pl.Int8))
        .with_columns(
            offset_mid_bp=rounded.cast(pl.Int32),
            confidence=pl.col("method").replace_strict([0, 1, 2, 3], [0.0, 1.0, 0.7, 0.5], return_dtype=pl.Float64),
            quote_age_ns=pl.col("sip_timestamp_ns") - pl.col("quote_ts_ns"),
            quote_tied=pl.col("sip_timestamp_ns") == pl.col("quote_ts_ns"),
            exact_mid=by_quote.then(at_mid).otherwise(pl.lit(False)),
        )
        .collect()
    )


def _times(rng: np.random.Generator, rows: int, instruments: int) -> tuple[np.ndarray, np.ndarray]:
    """Instrument codes and SIP times of a day, sorted by both."""
    instrument = np.sort(rng.integers(0, instruments, rows)).astype(np.int32)
    sip_timestamp_ns = OPEN_NS + rng.integers(0, SESSION_MS, rows) * 1_000_000
    order = np.lexsort((sip_timestamp_ns, instrument))
    return instrument[order], sip_timestamp_ns[order]


def _assert_equal(columns: AggressorColumns, frame: pl.DataFrame) -> None:
    """Every column the two sides share has the same values."""
    nulls = {"offset_mid_bp": OFFSET_NULL, "quote_index": -1, "quote_age_ns": -1, "quote_ts_ns": 0}
    for name, array in columns._asdict().items():
        if name == "quote_stale":
            continue
        other = frame[name]
        if name in nulls:
            other = other.fill_null(nulls[name])
        elif array.dtype == np.bool_:
            other = other.fill_null(False)
        elif array.dtype == np.float64:
            other = other.fill_null(float("nan"))
        np.testing.assert_array_equal(array, other.to_numpy(), err_msg=name)


def _seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(measure())
