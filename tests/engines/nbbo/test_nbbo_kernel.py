"""The aggressor kernel: the decision table case by case, ages, ties, instruments, counts, and what is refused."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from engines.nbbo.arrays import OFFSET_NULL, QuoteArrays, TradeArrays
from engines.nbbo.kernel import classify, count_cells
from engines.nbbo.policy import Method, NbboPolicy, QuoteState, Rule, Side

MS = 1_000_000
MINUTE = 60_000 * MS
OPEN = 1_381_152_600_000 * MS
NAN = math.nan
RULES = [rule.value for rule in Rule]


def _trades(*rows: tuple[int, int, float, float]) -> TradeArrays:
    """Trades from (instrument, ns after the open, price, previous price)."""
    instrument, ts, price, previous = zip(*rows, strict=True) if rows else ((), (), (), ())
    return TradeArrays(
        np.array(instrument, np.int32),
        OPEN + np.array(ts, np.int64),
        np.array(price, np.float64),
        np.array(previous, np.float64),
    )


def _quotes(*rows: tuple[int, int, float, float]) -> QuoteArrays:
    """Quotes from (instrument, ns after the open, bid, ask); sizes are made of the row number."""
    instrument, ts, bid, ask = zip(*rows, strict=True) if rows else ((), (), (), ())
    size = np.arange(1, len(rows) + 1, dtype=np.float64)
    return QuoteArrays(
        np.array(instrument, np.int32),
        OPEN + np.array(ts, np.int64),
        np.array(bid, np.float64),
        np.array(ask, np.float64),
        size,
        size * 10,
    )


def _row(
    price: float,
    quote: tuple[float, float] | None,
    previous: float = NAN,
    age_ns: int = 0,
    **policy: object,
) -> dict[str, Any]:
    """Columns of one trade against one quote."""
    quotes = _quotes((0, MINUTE - age_ns, *quote)) if quote else _quotes()
    columns = classify(_trades((0, MINUTE, price, previous)), quotes, msgspec.convert(policy, NbboPolicy))
    return {name: array[0].item() for name, array in columns._asdict().items()}


def _verdict(row: dict[str, Any]) -> tuple[Side, Method, float]:
    return Side(row["side"]), Method(row["method"]), row["confidence"]


BUY_TOUCH = (Side.BUYER, Method.NBBO_TOUCH, 1.0)
SELL_TOUCH = (Side.SELLER, Method.NBBO_TOUCH, 1.0)
BUY_INSIDE = (Side.BUYER, Method.NBBO_AT_OR_BEYOND, 0.7)
SELL_INSIDE = (Side.SELLER, Method.NBBO_AT_OR_BEYOND, 0.7)
BUY_TICK = (Side.BUYER, Method.TICK_RULE, 0.5)
SELL_TICK = (Side.SELLER, Method.TICK_RULE, 0.5)
NOTHING = (Side.UNKNOWN, Method.UNKNOWN, 0.0)


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (10.10, BUY_TOUCH),
        (10.20, BUY_TOUCH),
        (10.00, SELL_TOUCH),
        (9.90, SELL_TOUCH),
        (10.08, BUY_INSIDE),
        (10.02, SELL_INSIDE),
        (10.05, BUY_INSIDE),
        (10.09991, BUY_TOUCH),
        (10.09989, BUY_INSIDE),
        (10.00009, SELL_TOUCH),
        (10.00011, SELL_INSIDE),
    ],
)
def test_nearest_side_against_a_normal_quote(price: float, expected: tuple[Side, Method, float]) -> None:
    """Touch with tolerance, else the nearer side, the mid to the buyer; the tick rule is not asked."""
    assert _verdict(_row(price, (10.00, 10.10), previous=99.0)) == expected


@pytest.mark.parametrize("cents", range(1001, 1400, 7))
@pytest.mark.parametrize("spread", [1, 3, 5])
def test_exact_mid_is_buyer_whatever_the_last_bit(cents: int, spread: int) -> None:
    """Half-cent prices are the mid although their binary form may differ from it by one bit."""
    row = _row((2 * cents + spread) / 200, (cents / 100, (cents + spread) / 100))
    assert _verdict(row) == BUY_INSIDE and row["exact_mid"] is True


def test_price_next_to_the_mid_is_not_the_mid() -> None:
    """A hundredth of a cent off is off."""
    above, below = _row(13.8051, (13.80, 13.81)), _row(13.8049, (13.80, 13.81))
    assert _verdict(above) == BUY_INSIDE and _verdict(below) == SELL_INSIDE
    assert above["exact_mid"] is below["exact_mid"] is False


def test_spread_below_twice_epsilon_asks_the_ask_first() -> None:
    """Both touches hold; the buyer wins."""
    assert _verdict(_row(1.00, (1.00, 1.0001))) == BUY_TOUCH


@pytest.mark.parametrize(
    ("policy", "price", "previous", "expected"),
    [
        ("nearest-side-mid-unknown", 10.05, 10.00, NOTHING),
        ("nearest-side-mid-unknown", 10.06, NAN, BUY_INSIDE),
        ("nearest-side-mid-unknown", 10.10, NAN, BUY_TOUCH),
        ("touch-only", 10.08, NAN, NOTHING),
        ("touch-only", 10.08, 10.09, SELL_TICK),
        ("touch-only", 10.05, 10.00, BUY_TICK),
        ("touch-only", 10.00, 9.00, SELL_TOUCH),
        ("lee-ready", 10.06, 10.09, BUY_INSIDE),
        ("lee-ready", 10.04, 10.00, SELL_INSIDE),
        ("lee-ready", 10.10, 10.20, BUY_TOUCH),
        ("lee-ready", 10.05, 10.00, BUY_TICK),
        ("lee-ready", 10.05, 10.08, SELL_TICK),
        ("lee-ready", 10.05, 10.05, NOTHING),
    ],
)
def test_other_policies(policy: str, price: float, previous: float, expected: tuple[Side, Method, float]) -> None:
    """What each policy does inside the spread, at the mid and at the touch."""
    assert _verdict(_row(price, (10.00, 10.10), previous, policy=policy)) == expected


@pytest.mark.parametrize("policy", ["touch-only", "lee-ready"])
def test_tick_rule_off_leaves_the_undecided_unknown(policy: str) -> None:
    """Without the tick rule nothing but the quote decides."""
    assert _verdict(_row(10.05, (10.00, 10.10), 9.0, policy=policy, tick_rule=False)) == NOTHING


@pytest.mark.parametrize(
    ("quote", "state"),
    [((10.10, 10.10), QuoteState.LOCKED), ((10.20, 10.10), QuoteState.CROSSED), ((0.0, 0.0), QuoteState.NORMAL)],
)
@pytest.mark.parametrize("policy", RULES)
def test_unactionable_quote_keeps_the_snapshot_and_asks_the_tick_rule(
    quote: tuple[float, float], state: QuoteState, policy: str
) -> None:
    """Locked, crossed and 0/0 quotes are shown but decide nothing."""
    row = _row(10.10, quote, previous=10.00, policy=policy)
    assert _verdict(row) == BUY_TICK and row["quote_state"] == state
    assert (row["bid"], row["ask"], row["bid_size"], row["ask_size"]) == (*quote, 1.0, 10.0)
    assert _verdict(_row(10.10, quote, previous=10.00, policy=policy, tick_rule=False)) == NOTHING


def test_zero_bid_with_positive_ask_is_actionable() -> None:
    """A bid of 0 is a normal quote: far out-of-the-money options have it all day."""
    assert _verdict(_row(0.05, (0.0, 0.05))) == BUY_TOUCH
    assert _verdict(_row(0.01, (0.0, 0.05))) == SELL_INSIDE
    assert _row(0.01, (0.0, 0.05))["offset_mid_bp"] == -6000


@pytest.mark.parametrize(("previous", "expected"), [(9.9998, BUY_TICK), (10.0002, SELL_TICK), (10.00005, NOTHING)])
def test_tick_rule_without_quote(previous: float, expected: tuple[Side, Method, float]) -> None:
    """The change must exceed epsilon; equal prices stay unknown."""
    row = _row(10.0, None, previous)
    assert _verdict(row) == expected
    assert (row["quote_index"], row["quote_ts_ns"], row["quote_age_ns"]) == (-1, 0, -1)
    assert row["offset_mid_bp"] == OFFSET_NULL and math.isnan(row["bid"]) and row["quote_state"] == QuoteState.NONE


def test_offset_rounds_half_away_from_zero() -> None:
    """Half a basis point counts outward on both sides; a locked quote's offset comes with the tick rule."""
    assert [_row(price, (9_999.0, 10_001.0))["offset_mid_bp"] for price in (10_000.5, 9_999.5, 10_000.4)] == [1, -1, 0]
    assert _row(10.2, (10.0, 10.0))["offset_mid_bp"] == 200
    assert _row(10.2, (10.0, 10.0), tick_rule=False)["offset_mid_bp"] == OFFSET_NULL
    assert _row(1e9, (1e-8, 2e-8))["offset_mid_bp"] == 2**31 - 1
    assert _row(1e300, (1e-8, 2e-8))["offset_mid_bp"] == OFFSET_NULL


@pytest.mark.parametrize(
    ("age_ns", "staleness_ms", "in_force"),
    [
        (1000 * MS, 1000, True),
        (1000 * MS + 999, 1000, True),
        (1000 * MS + 1_000, 1000, False),
        (1000 * MS - 1_000, 1000, True),
        (MS, 1, True),
        (MS + 1_000, 1, False),
        (MINUTE, 60_000, True),
        (MINUTE + 1, 60_000, False),
    ],
)
def test_staleness_limit_is_inclusive_to_the_microsecond(age_ns: int, staleness_ms: int, in_force: bool) -> None:
    """A quote at the limit is in force, one microsecond older is stale; at 60 s not one nanosecond more is an input."""
    row = _row(10.1, (10.0, 10.1), age_ns=age_ns, staleness_ms=staleness_ms)
    assert (row["quote_index"] == 0) is in_force
    assert row["quote_stale"] is (not in_force and age_ns <= MINUTE)
    assert row["quote_age_ns"] == (age_ns if in_force else -1)


def test_age_of_71_minutes_does_not_wrap() -> None:
    """2**32 microseconds later the old quote is old, not fresh."""
    trades = _trades((0, (2**32 + 5) * 1000, 10.1, NAN))
    assert classify(trades, _quotes((0, 0, 10.0, 10.1)), NbboPolicy()).quote_index[0] == -1


def test_quote_before_minute_t_minus_1_is_missing_not_stale() -> None:
    """Such a quote is no input of the cell, so seeing it or not must give the same row."""
    trades = _trades((0, 3 * MINUTE + 30 * MS, 10.1, NAN))
    for ts, stale in ((2 * MINUTE, True), (2 * MINUTE - 1, False)):
        columns = classify(trades, _quotes((0, ts, 10.0, 10.1)), NbboPolicy(staleness_ms=1000))
        counts = count_cells(columns, np.array([0]), np.array([1]))
        assert bool(columns.quote_stale[0]) is stale
        assert (int(counts.stale[0]), int(counts.missing[0])) == (int(stale), int(not stale))


@pytest.mark.parametrize(("tie", "index"), [("at-or-before", 2), ("before", 0)])
def test_ties_of_trade_and_quotes(tie: Literal["at-or-before", "before"], index: int) -> None:
    """Of quotes with equal time the last one holds; `before` takes none of them; both say that there was a tie."""
    quotes = _quotes((0, 0, 10.0, 10.1), (0, 5, 10.1, 10.2), (0, 5, 10.2, 10.3), (0, 6, 11.0, 11.1))
    columns = classify(_trades((0, 5, 10.2, NAN), (0, 5, 10.2, NAN)), quotes, NbboPolicy(quote_tie=tie))
    assert columns.quote_index.tolist() == [index, index] and columns.quote_tied.tolist() == [True, True]


def test_instruments_do_not_see_each_other() -> None:
    """Instruments without quotes, without trades, and at both ends."""
    quotes = _quotes((1, 0, 1.0, 1.1), (2, 0, 2.0, 2.1), (4, 0, 4.0, 4.1))
    trades = _trades(*((code, MS, code + 0.1, NAN) for code in (0, 1, 3, 4, 5)))
    columns = classify(trades, quotes, NbboPolicy())
    assert columns.quote_index.tolist() == [-1, 0, -1, 2, -1]
    assert not columns.quote_tied.any() and not columns.quote_stale.any()


def test_no_trades_and_no_quotes() -> None:
    """Empty in, empty out."""
    assert classify(_trades(), _quotes((0, 0, 1.0, 1.1)), NbboPolicy()).side.size == 0
    assert classify(_trades((0, 0, 1.0, NAN)), _quotes(), NbboPolicy()).side.tolist() == [Side.UNKNOWN]


def test_counts_per_cell() -> None:
    """Each counter in its own cell, one empty cell, and one with two trades."""
    rows = [((0, 10.1, 10.1), 10.1), ((0, 10.2, 10.1), 10.1), ((0, 10.0, 10.1), 10.05), ((0, 10.0, 10.1), 10.1)]
    quotes = _quotes(*((i, 0, bid, ask) for i, ((_, bid, ask), _) in enumerate(rows)))
    times = [1, 1, 1, 0]
    trades = _trades(*((i, times[i], price, NAN) for i, (_, price) in enumerate(rows)), (4, 0, 1.0, NAN))
    columns = classify(trades, quotes, NbboPolicy())
    counts = count_cells(columns, np.array([0, 1, 1, 2, 4]), np.array([1, 0, 1, 2, 1]))
    assert {name: array.tolist() for name, array in counts._asdict().items()} == {
        "locked": [1, 0, 0, 0, 0],
        "crossed": [0, 0, 1, 0, 0],
        "stale": [0, 0, 0, 0, 0],
        "missing": [0, 0, 0, 0, 1],
        "tied": [0, 0, 0, 1, 0],
        "exact_mid": [0, 0, 0, 1, 0],
        "unknown_side": [1, 0, 1, 0, 1],
        "usable": [0, 0, 0, 2, 0],
    }


def test_bad_arrays_are_refused_with_their_place() -> None:
    """Disorder and unequal lengths would give wrong rows silently."""
    good = _quotes((0, 0, 1.0, 1.1))
    with pytest.raises(ValueError, match="trades: row 1 is out of order"):
        classify(_trades((1, 0, 1.0, NAN), (0, 0, 1.0, NAN)), good, NbboPolicy())
    with pytest.raises(ValueError, match="quotes: row 2 is out of order"):
        classify(_trades(), _quotes((0, 1, 1.0, 1.1), (0, 2, 1.0, 1.1), (0, 1, 1.0, 1.1)), NbboPolicy())
    with pytest.raises(ValueError, match="one length"):
        classify(_trades(), good._replace(bid=np.zeros(2)), NbboPolicy())
    columns = classify(_trades((0, 0, 1.0, NAN)), good, NbboPolicy())
    with pytest.raises(ValueError, match="beyond the 1 trades"):
        count_cells(columns, np.array([0]), np.array([2]))


def test_policy_refuses_values_out_of_range_and_floors_epsilon() -> None:
    """Made in Python or decoded from a config, a bad value is named."""
    for bad in ({"staleness_ms": 60_001}, {"staleness_ms": 0}, {"epsilon": NAN}, {"policy": "best"}, {"prints": "x"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            NbboPolicy(**bad)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, NbboPolicy)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"stale_ms": 5}, NbboPolicy)
    assert NbboPolicy(epsilon=0.0).recipe() == NbboPolicy(epsilon=1e-6).recipe()
