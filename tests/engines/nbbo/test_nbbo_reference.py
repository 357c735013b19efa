"""The aggressor kernel against the decision table in plain Python, row by row, on random markets."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.nbbo.arrays import OFFSET_NULL, QuoteArrays, TradeArrays
from engines.nbbo.kernel import classify
from engines.nbbo.policy import Method, NbboPolicy, QuoteState, Rule, Side

MS = 1_000_000
MINUTE_NS = 60_000 * MS
OPEN_NS = 1_381_152_600_000 * MS


def classify_slowly(trades: TradeArrays, quotes: QuoteArrays, policy: NbboPolicy) -> list[dict[str, Any]]:
    """One dict per trade, by column name; None where the kernel has a null."""
    return [_one(trades, i, quotes, policy) for i in range(len(trades.price))]


def _one(trades: TradeArrays, i: int, quotes: QuoteArrays, policy: NbboPolicy) -> dict[str, Any]:
    now, instrument = int(trades.sip_timestamp_ns[i]), int(trades.instrument[i])
    price, previous = float(trades.price[i]), float(trades.previous_price[i])
    times = {
        j: int(quotes.sip_timestamp_ns[j]) for j in range(len(quotes.bid)) if int(quotes.instrument[j]) == instrument
    }
    inputs = {j: t for j, t in times.items() if t >= (now // MINUTE_NS - 1) * MINUTE_NS}
    before = [j for j, t in inputs.items() if t < now or (t == now and policy.quote_tie == "at-or-before")]
    quote = before[-1] if before and (now - inputs[before[-1]]) // 1_000 <= policy.staleness_ms * 1_000 else None
    row: dict[str, Any] = {
        "side": Side.UNKNOWN,
        "method": Method.UNKNOWN,
        "confidence": 0.0,
        "offset_mid_bp": None,
        "bid": math.nan,
        "ask": math.nan,
        "bid_size": math.nan,
        "ask_size": math.nan,
        "quote_ts_ns": 0,
        "quote_age_ns": -1,
        "quote_state": QuoteState.NONE,
        "quote_index": -1,
        "quote_tied": now in times.values(),
        "quote_stale": bool(before) and quote is None,
        "exact_mid": False,
    }
    if quote is not None:
        bid, ask = float(quotes.bid[quote]), float(quotes.ask[quote])
        row |= {"bid": bid, "ask": ask, "quote_index": quote, "quote_ts_ns": times[quote]}
        row |= {"bid_size": float(quotes.bid_size[quote]), "ask_size": float(quotes.ask_size[quote])}
        row |= {"quote_age_ns": now - times[quote], "quote_state": QuoteState.NORMAL}
        if ask > 0 and bid > ask:
            row["quote_state"] = QuoteState.CROSSED
        elif ask > 0 and bid == ask:
            row["quote_state"] = QuoteState.LOCKED
    _decide(row, price, previous, policy)
    return row


def _decide(row: dict[str, Any], price: float, previous: float, policy: NbboPolicy) -> None:
    bid, ask, epsilon = row["bid"], row["ask"], policy.epsilon
    actionable = row["quote_state"] == QuoteState.NORMAL and math.isfinite(bid) and math.isfinite(ask) and ask > bid
    ask_the_tick_rule = policy.tick_rule
    if actionable:
        row["offset_mid_bp"] = offset(price, bid, ask)
        # The decimal numbers that were meant, exactly: prices in the tests have at most four places.
        against_mid = _decimal(price) * 2 - _decimal(bid) - _decimal(ask)
        row["exact_mid"] = against_mid == 0
        if policy.policy == "lee-ready":
            if against_mid != 0:
                touch = price >= ask - epsilon or price <= bid + epsilon
                _set(row, Side.BUYER if against_mid > 0 else Side.SELLER, touch)
        elif price >= ask - epsilon:
            _set(row, Side.BUYER, True)
        elif price <= bid + epsilon:
            _set(row, Side.SELLER, True)
        elif policy.policy == "nearest-side-mid-unknown" and against_mid == 0:
            ask_the_tick_rule = False
        elif policy.policy != "touch-only":
            _set(row, Side.BUYER if against_mid >= 0 else Side.SELLER, False)
        if policy.policy == "nearest-side-mid-unknown" and against_mid == 0:
            ask_the_tick_rule = False
    if row["side"] == Side.UNKNOWN and ask_the_tick_rule:
        if price - previous > epsilon:
            row |= {"side": Side.BUYER, "method": Method.TICK_RULE, "confidence": 0.5}
        elif price - previous < -epsilon:
            row |= {"side": Side.SELLER, "method": Method.TICK_RULE, "confidence": 0.5}
        if row["offset_mid_bp"] is None and row["quote_index"] >= 0:
            row["offset_mid_bp"] = offset(price, bid, ask)
    if row["offset_mid_bp"] is None:
        row["offset_mid_bp"] = OFFSET_NULL


def offset(price: float, bid: float, ask: float) -> int | None:
    """Basis points from the mid, half away from zero."""
    mid = (bid + ask) / 2 if ask > 0 else bid if bid > 0 else 0.0
    exact = (price - mid) / mid * 10_000 if mid else math.nan
    if not math.isfinite(exact):
        return None
    magnitude = abs(Fraction(exact)) + Fraction(1, 2)
    rounded = min(math.floor(magnitude), 2**31 - 1)
    return rounded if exact > 0 else -rounded


def _decimal(price: float) -> Fraction:
    return Fraction(round(Fraction(price) * 10_000), 10_000)


def _set(row: dict[str, Any], side: Side, touch: bool) -> None:
    row["side"] = side
    row["method"] = Method.NBBO_TOUCH if touch else Method.NBBO_AT_OR_BEYOND
    row["confidence"] = 1.0 if touch else 0.7


_TIMES = st.integers(0, 50).map(lambda step: step * 2_500 * MS)
_CENTS = st.integers(0, 12)


@st.composite
def _markets(draw: st.DrawFn) -> tuple[TradeArrays, QuoteArrays]:
    """Two minutes, three instruments, coarse times and prices so that ties, locks and mids are common."""
    quotes = sorted(
        draw(st.lists(st.tuples(st.integers(0, 2), _TIMES, _CENTS, _CENTS), max_size=25)), key=lambda row: row[:2]
    )
    trades = sorted(
        draw(st.lists(st.tuples(st.integers(0, 2), _TIMES, st.integers(0, 24), st.integers(-1, 24)), max_size=25))
    )
    instrument, ts, price, previous = np.array(trades, np.int64).reshape(-1, 4).T
    book_instrument, book_ts, bid, ask = np.array(quotes, np.int64).reshape(-1, 4).T
    size = np.arange(len(quotes), dtype=np.float64)
    return (
        TradeArrays(
            instrument.astype(np.int32), OPEN_NS + ts, price / 200, np.where(previous < 0, np.nan, previous / 200)
        ),
        QuoteArrays(book_instrument.astype(np.int32), OPEN_NS + book_ts, bid / 100, ask / 100, size, size + 0.5),
    )


_POLICIES = st.builds(
    NbboPolicy,
    policy=st.sampled_from([rule.value for rule in Rule]),
    staleness_ms=st.sampled_from([1, 2500, 5000, 60_000]),
    quote_tie=st.sampled_from(["at-or-before", "before"]),
    tick_rule=st.booleans(),
)


@settings(deadline=None, max_examples=50)
@given(market=_markets(), policy=_POLICIES)
def test_kernel_equals_the_reference(market: tuple[TradeArrays, QuoteArrays], policy: NbboPolicy) -> None:
    """Every column of every trade."""
    columns = classify(*market, policy)
    rows = classify_slowly(*market, policy)
    for name, array in columns._asdict().items():
        np.testing.assert_array_equal(array, np.array([row[name] for row in rows], array.dtype), err_msg=name)


@settings(deadline=None, max_examples=50)
@given(market=_markets(), policy=_POLICIES)
def test_cell_alone_equals_cell_in_a_batch(market: tuple[TradeArrays, QuoteArrays], policy: NbboPolicy) -> None:
    """Recomputed from the quotes of T and T-1 only, a minute's rows are the same bits; so a cell is a pure function."""
    trades, quotes = market
    together = classify(trades, quotes, policy)
    for minute in np.unique(trades.sip_timestamp_ns // MINUTE_NS):
        mine = trades.sip_timestamp_ns // MINUTE_NS == minute
        inputs = np.isin(quotes.sip_timestamp_ns // MINUTE_NS, (minute, minute - 1))
        own: list[NDArray[Any]] = [array[mine] for array in trades]
        book: list[NDArray[Any]] = [array[inputs] for array in quotes]
        alone = classify(TradeArrays(*own), QuoteArrays(*book), policy)
        for name, array in alone._asdict().items():
            moved = np.append(np.flatnonzero(inputs), -1)[array] if name == "quote_index" else array
            np.testing.assert_array_equal(moved, getattr(together, name)[mine], err_msg=name)


@pytest.mark.parametrize(("rule", "tie"), list(zip(Rule, ["at-or-before", "before"] * 2, strict=True)))
def test_blocks_of_many_trades_equal_the_reference(rule: Rule, tie: str) -> None:
    """Long runs are searched in four parts at once, with vector instructions over values that are no prices at all."""
    policy = msgspec.convert({"policy": rule.value, "quote_tie": tie, "staleness_ms": 500}, NbboPolicy)
    rng = np.random.default_rng(5)
    # Dense and sparse, more than one block, without quotes, with quotes that all come too late or too early.
    trade_counts, quote_counts = (300, 4200, 90, 80, 1, 3, 65), (150, 20, 250, 0, 10, 20, 30)
    starts = (0, 0, 0, 0, 0, 30_000, -200_000)
    trade_ts = [np.sort(rng.integers(0, 9000, count)) for count in trade_counts]
    quote_ts = [
        np.sort(rng.integers(start, start + 9000, count)) for start, count in zip(starts, quote_counts, strict=True)
    ]
    odd = np.array([math.nan, math.inf, -math.inf, 0.0, -0.01, 1e300])
    size = sum(quote_counts)
    bid = rng.integers(0, 12, size) / 100
    ask = bid + rng.integers(-1, 4, size) / 100
    for side in (bid, ask):
        at = rng.random(size) < 0.1
        side[at] = rng.choice(odd, int(at.sum()))
    price = rng.integers(0, 24, sum(trade_counts)) / 200
    price[rng.random(len(price)) < 0.02] = 1e12
    trades = TradeArrays(
        np.repeat(np.arange(7, dtype=np.int32), trade_counts),
        OPEN_NS + np.concatenate(trade_ts) * 7 * MS,
        price,
        np.where(rng.random(len(price)) < 0.1, math.nan, np.roll(price, 1)),
    )
    quotes = QuoteArrays(
        np.repeat(np.arange(7, dtype=np.int32), quote_counts),
        OPEN_NS + np.concatenate(quote_ts) * 7 * MS,
        bid,
        ask,
        rng.random(size),
        rng.random(size),
    )
    columns = classify(trades, quotes, policy)
    rows = classify_slowly(trades, quotes, policy)
    for name, array in columns._asdict().items():
        np.testing.assert_array_equal(array, np.array([row[name] for row in rows], array.dtype), err_msg=name)
