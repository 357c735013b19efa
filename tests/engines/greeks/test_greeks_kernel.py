"""The Greeks kernel row by row: spot, staleness, time, every flag, and no NaN whatever comes in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.greeks.arrays import AGE_NONE, GreeksColumns, OptionTrades, UnderlyingQuotes
from engines.greeks.curve import NO_CURVE, Curve, curve_of, zero_rate
from engines.greeks.flags import BLOCKING, FLAGS_KNOWN, GreeksFlag
from engines.greeks.kernel import YEAR_NS, _zero_rate, compute_greeks
from engines.greeks.policy import GreeksSettings
from engines.greeks.pricing import bsm_price

OPEN = 1_402_061_400_000_000_000
"""2014-06-06 09:30 New York."""
MINUTE = 60_000_000_000
NOW = OPEN + 10 * MINUTE + 5_000_000_000
YEAR = int(YEAR_NS)
FLAT = Curve(np.array([1.0, 2.0]), np.array([0.05, 0.05]))
SETTINGS = GreeksSettings()
F = GreeksFlag


def trades(*rows: dict[str, Any]) -> OptionTrades:
    """Trades from what differs from a call at the money with a year to go."""
    plain = {"ts": NOW, "price": 10.0, "strike": 100.0, "call": True, "expiry": NOW + YEAR, "standard": True}
    full = [{**plain, **row} for row in rows]
    return OptionTrades(
        np.array([row["ts"] for row in full], dtype=np.int64),
        np.array([row["price"] for row in full], dtype=np.float64),
        np.array([row["strike"] for row in full], dtype=np.float64),
        np.array([row["call"] for row in full], dtype=np.bool_),
        np.array([row["expiry"] for row in full], dtype=np.int64),
        np.array([row["standard"] for row in full], dtype=np.bool_),
    )


def quotes(*rows: tuple[int, float, float]) -> UnderlyingQuotes:
    """Quotes from (time, bid, ask)."""
    return UnderlyingQuotes(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.float64),
        np.array([row[2] for row in rows], dtype=np.float64),
    )


QUOTED = quotes((NOW - 1_000_000, 99.9, 100.1))


def one(
    row: dict[str, Any] | None = None,
    quoted: UnderlyingQuotes = QUOTED,
    curve: Curve = FLAT,
    carry: float = 0.0,
    policy: GreeksSettings = SETTINGS,
) -> GreeksColumns:
    """The columns of a single trade."""
    return compute_greeks(trades(row or {}), quoted, curve, carry, policy)


def flag(columns: GreeksColumns) -> GreeksFlag:
    """The flags of the only row."""
    assert bool(columns.usable[0]) == (not int(columns.flags[0]) & BLOCKING)
    return F(int(columns.flags[0]))


def test_a_plain_trade_gets_its_volatility_and_greeks() -> None:
    """The volatility reprices the trade, spot is the mid, time and rate are reported, nothing is flagged."""
    columns = one(carry=0.01)
    assert flag(columns) == F.NONE and columns.usable[0]
    assert (columns.spot[0], columns.spot_bid[0], columns.spot_ask[0]) == (100.0, 99.9, 100.1)
    assert (columns.spot_ts[0], columns.spot_age_ns[0]) == (NOW - 1_000_000, 1_000_000)
    assert (columns.tau_years[0], columns.rate[0]) == (1.0, 0.05)
    price = bsm_price(100.0, 100.0, 1.0, 0.05, 0.01, columns.iv[0], True)
    assert price == pytest.approx(10.0, rel=1e-14)
    step = 1e-4
    slope = (bsm_price(100.0 + step, 100.0, 1.0, 0.05, 0.01, columns.iv[0], True) - price) / step
    assert columns.delta[0] == pytest.approx(slope, abs=1e-5)
    assert columns.theta[0] < 0.0 < min(columns.gamma[0], columns.vega[0], columns.rho[0])


def test_dtypes_and_order_of_the_columns() -> None:
    """One entry per trade, in the order of the trades, in the documented types."""
    columns = compute_greeks(trades({"price": 9.0}, {"price": 11.0}, {"price": 10.0}), QUOTED, FLAT, 0.0, SETTINGS)
    assert [column.dtype.name for column in columns] == ["float64"] * 11 + ["int64", "int64", "uint32", "bool"]
    assert {column.shape for column in columns} == {(3,)}
    assert columns.iv[0] < columns.iv[2] < columns.iv[1]
    empty = compute_greeks(trades(), QUOTED, FLAT, 0.0, SETTINGS)
    assert {column.shape for column in empty} == {(0,)}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"standard": False}, F.NONSTANDARD),
        ({"expiry": NOW}, F.TIME_EXPIRED),
        ({"expiry": NOW - 1}, F.TIME_EXPIRED),
        ({"strike": 0.0}, F.BAD_RATIO),
        ({"strike": -5.0}, F.BAD_RATIO),
        ({"strike": 1.01e8}, F.BAD_RATIO),
        ({"strike": 0.99e-4}, F.BAD_RATIO),
        ({"price": 0.0}, F.NO_PRICE | F.NO_IV),
        ({"price": -1.0}, F.NO_PRICE | F.NO_IV),
        ({"price": 4.8}, F.PRICE_BELOW_INTRINSIC | F.NO_IV),
        ({"price": 100.0}, F.VEGA_TINY | F.NO_IV),
        ({"price": 100.01}, F.PRICE_ABOVE_BOUND | F.NO_IV),
        ({"price": 1e300}, F.PRICE_ABOVE_BOUND | F.NO_IV),
        ({"price": 96.0, "call": False}, F.PRICE_ABOVE_BOUND | F.NO_IV),
        ({"price": 99.999999}, F.IV_OUT_OF_RANGE | F.NO_IV),
        ({"expiry": NOW + 3 * YEAR, "price": 20.0}, F.RATE_EXTRAP),
        ({"expiry": NOW + 999_999_999, "strike": 100.01, "price": 0.01}, F.TAU_CLAMPED),
        ({"expiry": NOW + 1_000_000_000, "strike": 100.01, "price": 0.01}, F.NONE),
    ],
)
def test_what_is_wrong_with_a_trade_is_said_by_its_flags(row: dict[str, Any], expected: GreeksFlag) -> None:
    """Each reason has its own bit, values are zero where there are none, and remarks keep the values."""
    columns = one(row)
    assert flag(columns) == expected
    assert columns.usable[0] == (columns.iv[0] > 0.0) == (columns.vega[0] > 0.0)
    assert columns.spot[0] == 100.0


@pytest.mark.parametrize(
    ("bid", "ask", "spot", "expected"),
    [
        (99.0, 101.0, 100.0, F.NONE),
        (100.0, 100.0, 100.0, F.NONE),
        (0.0, 100.0, 100.0, F.NONE),
        (100.0, 0.0, 100.0, F.NONE),
        (100.0, -1.0, 100.0, F.NONE),
        (100.0, 99.99, 0.0, F.CROSSED_MARKET | F.NO_UNDERLYING),
        (100.0, 99.9999995, 0.0, F.LOCKED_MARKET | F.NO_UNDERLYING),
        (0.0, 0.0, 0.0, F.MID_NONPOS | F.NO_UNDERLYING),
        (math.nan, math.inf, 0.0, F.MID_NONPOS | F.NO_UNDERLYING),
    ],
)
def test_spot_from_every_kind_of_quote(bid: float, ask: float, spot: float, expected: GreeksFlag) -> None:
    """Mid of two sides, one side alone, an exactly locked market; crossed and empty ones give none."""
    columns = one(quoted=quotes((NOW, bid, ask)))
    assert (columns.spot[0], flag(columns)) == (spot, expected)
    assert columns.spot_age_ns[0] == 0
    assert np.isfinite([columns.spot_bid[0], columns.spot_ask[0]]).all()


@pytest.mark.parametrize(
    ("age_ns", "staleness_ms", "expected"),
    [
        (1_000_000_000, 1000, F.NONE),
        (1_000_001_000, 1000, F.NONE),
        (1_000_001_001, 1000, F.NBBO_STALE | F.NO_UNDERLYING),
        (0, 0, F.NONE),
        (1, 0, F.NBBO_STALE | F.NO_UNDERLYING),
        (60_000_000_000, 60_000, F.NONE),
        (65_000_000_000, 60_000, F.NBBO_STALE | F.NO_UNDERLYING),
        (65_000_000_001, 60_000, F.NO_UNDERLYING),
    ],
)
def test_staleness_at_its_limits(age_ns: int, staleness_ms: int, expected: GreeksFlag) -> None:
    """One microsecond of tolerance, none at limit 0; a quote before the minute before the trade's is missing, not stale."""
    columns = one(quoted=quotes((NOW - age_ns, 99.0, 101.0)), policy=GreeksSettings(staleness_ms=staleness_ms))
    assert flag(columns) == expected
    assert columns.spot_age_ns[0] == (AGE_NONE if expected == F.NO_UNDERLYING else age_ns)
    assert columns.spot[0] == (0.0 if expected else 100.0)


def test_the_age_of_a_quote_never_wraps() -> None:
    """71.6 minutes are not a fresh quote again, and times at the ends of the range overflow nothing."""
    for age in (2**32 * 1000, 2**32 * 1000 + 5, NOW):
        assert flag(one(quoted=quotes((NOW - age, 99.0, 101.0)))) == F.NO_UNDERLYING
    ends = quotes((-(2**63), 99.0, 101.0), (2**63 - 1, 99.0, 101.0))
    for moment in (-(2**63), -1, 0, 2**63 - 1):
        columns = one({"ts": moment, "expiry": 2**63 - 1}, quoted=ends)
        assert all(np.isfinite(column).all() for column in columns)
    assert one({"ts": -(2**62), "expiry": 2**63 - 1}, quoted=quotes((-(2**62), 1.0, 1.0))).tau_years[0] > 200.0


def test_quote_at_the_trades_time_counts_and_the_last_of_equal_times_holds() -> None:
    """At or before; later quotes are never seen."""
    columns = one(quoted=quotes((NOW - 5, 90.0, 90.2), (NOW, 99.0, 101.0), (NOW, 103.0, 105.0), (NOW + 1, 1.0, 2.0)))
    assert columns.spot[0] == 104.0
    assert flag(one(quoted=quotes((NOW + 1, 99.0, 101.0)))) == F.NO_UNDERLYING
    assert flag(one(quoted=quotes())) == F.NO_UNDERLYING


def test_spots_agree_with_a_search_for_every_trade_in_any_order() -> None:
    """Galloping from the trade before finds what a plain search finds, over shuffled trades and tied quotes."""
    random = np.random.default_rng(5)
    times = np.sort(OPEN + random.integers(0, 20, 3000) * 1_000_000_000)
    mids = random.uniform(90.0, 110.0, times.size)
    at = OPEN + random.integers(-1_000_000_000, 30_000_000_000, 2000)
    options = trades(*({"ts": int(moment)} for moment in at))
    columns = compute_greeks(
        options, UnderlyingQuotes(times, mids, mids), FLAT, 0.0, GreeksSettings(staleness_ms=60_000)
    )
    positions = np.searchsorted(times, at, side="right") - 1
    expected = np.where(positions < 0, 0.0, mids[positions])
    assert np.array_equal(columns.spot, expected)


def test_cutting_cells_into_batches_changes_nothing() -> None:
    """Each minute computed alone, from the quotes of itself and the minute before, gives the rows of the whole."""
    random = np.random.default_rng(11)
    times = np.sort(OPEN + random.integers(0, 10 * MINUTE, 60))
    bids = random.uniform(99.0, 100.0, times.size)
    at = OPEN + random.integers(0, 10 * MINUTE, 300)
    options = trades(*({"ts": int(moment), "expiry": NOW + YEAR} for moment in at))
    policy = GreeksSettings(staleness_ms=30_000)
    whole = compute_greeks(options, UnderlyingQuotes(times, bids, bids + 0.1), FLAT, 0.0, policy)
    for minute in range(10):
        start = OPEN + minute * MINUTE
        mine = (at >= start) & (at < start + MINUTE)
        near = (times >= start - MINUTE) & (times < start + MINUTE)
        cell = [{"ts": int(moment), "expiry": NOW + YEAR} for moment in at[mine]]
        part = compute_greeks(
            trades(*cell),
            UnderlyingQuotes(times[near], bids[near], bids[near] + 0.1),
            FLAT,
            0.0,
            policy,
        )
        for left, right in zip(whole, part, strict=True):
            assert np.array_equal(left[mine], right)


def test_without_a_curve_every_trade_says_so_and_nothing_else() -> None:
    """The spot is still there, for the aggregates; adjusted deliverables keep their flag."""
    columns = one(curve=NO_CURVE)
    assert (flag(columns), columns.spot[0], columns.iv[0]) == (F.NO_TREASURY, 100.0, 0.0)
    assert flag(one({"standard": False}, curve=NO_CURVE)) == F.NO_TREASURY | F.NONSTANDARD
    assert flag(one(quoted=quotes(), curve=NO_CURVE)) == F.NO_TREASURY


def test_extreme_rates_are_out_of_proportion_not_an_overflow() -> None:
    """Rate or carry times years beyond 50 gives BAD_RATIO."""
    absurd = Curve(np.array([1.0]), np.array([1e300]))
    assert flag(one(curve=absurd)) == F.BAD_RATIO
    assert flag(one(carry=-1e308)) == F.BAD_RATIO


def test_estimated_expiries_are_marked_and_keep_their_values() -> None:
    """EXPIRY_ESTIMATED is a remark."""
    columns = compute_greeks(
        trades({}, {})._replace(expiry_estimated=np.array([True, False])), QUOTED, FLAT, 0.0, SETTINGS
    )
    assert columns.flags.tolist() == [F.EXPIRY_ESTIMATED, 0]
    assert columns.usable.all() and columns.iv[0] == columns.iv[1]


def test_intrinsic_rule_is_solvability_unless_the_predecessors_is_asked_for() -> None:
    """A put between its discounted bound and K - S has a volatility; ``undiscounted`` takes it away."""
    put = {"call": False, "strike": 120.0, "price": 17.0}
    columns = one(put)
    assert flag(columns) == F.NONE
    assert bsm_price(100.0, 120.0, 1.0, 0.05, 0.0, columns.iv[0], False) == pytest.approx(17.0, rel=1e-13)
    undiscounted = GreeksSettings(intrinsic="undiscounted")
    assert flag(one(put, policy=undiscounted)) == F.PRICE_BELOW_INTRINSIC | F.NO_IV
    at_limit = {**put, "price": 20.0 - 0.9e-4}
    assert flag(one(at_limit, policy=undiscounted)) == F.NONE
    call = {"strike": 80.0, "price": 22.0}
    for policy in (SETTINGS, undiscounted):
        assert flag(one(call, policy=policy)) == F.PRICE_BELOW_INTRINSIC | F.NO_IV


def test_a_price_at_parity_says_nothing_about_volatility() -> None:
    """Without rates, a deep call at exactly S - K is VEGA_TINY, a cent lower is below intrinsic, a cent higher solves."""
    nothing = Curve(np.array([1.0]), np.array([0.0]))
    expected = {30.0: F.VEGA_TINY | F.NO_IV, 29.99: F.PRICE_BELOW_INTRINSIC | F.NO_IV, 30.01: F.NONE}
    for price, flags in expected.items():
        assert flag(one({"strike": 70.0, "price": price}, curve=nothing)) == flags


def test_volatility_bounds_are_settings() -> None:
    """A volatility outside them is found and refused by name."""
    narrow = GreeksSettings(iv_min=0.3, iv_max=0.5)
    assert flag(one(policy=narrow)) == F.IV_OUT_OF_RANGE | F.NO_IV
    assert flag(one({"price": 40.0}, policy=narrow)) == F.IV_OUT_OF_RANGE | F.NO_IV
    assert flag(one({"price": 18.0}, policy=narrow)) == F.NONE


def test_compiled_and_plain_curve_agree() -> None:
    """The kernel's rate is the documented one, at, between and beyond the tenors."""
    curve = curve_of([10, 12, 15, 25, 40, 80, 110, 160, 200, 230, 270, 300])
    for tau in (1e-9, 1 / 12, 0.1, 0.25, 0.5, 0.75, 1.0, 4.2, 29.999, 30.0, 31.0):
        rate, extrapolated = zero_rate(curve, tau)
        compiled, flags = _zero_rate(curve.tenor_years, curve.rates, tau)
        assert compiled == pytest.approx(rate, rel=1e-15)
        assert flags == (F.RATE_EXTRAP if extrapolated else 0)


@pytest.mark.parametrize(
    ("options", "quoted", "carry", "message"),
    [
        (trades({}), quotes((5, 1.0, 2.0), (4, 1.0, 2.0)), 0.0, "quotes: not in time order at position 1"),
        (trades({})._replace(price=np.zeros(2)), QUOTED, 0.0, "trades: all arrays must be"),
        (trades({}), QUOTED._replace(bid=np.zeros((1, 1))), 0.0, "quotes: all arrays must be"),
        (trades({}), QUOTED, math.nan, "net_carry must be finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    options: OptionTrades, quoted: UnderlyingQuotes, carry: float, message: str
) -> None:
    """Mistakes of the caller are errors, not rows."""
    with pytest.raises(ValueError, match=message):
        compute_greeks(options, quoted, FLAT, carry, SETTINGS)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
NEAR = st.one_of(FINITE, st.floats(0.0, 300.0), st.sampled_from([0.0, 5e-324, 1e-300, 1e300, 100.0]))
TIMES = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(NOW, NOW + 3 * YEAR))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(TIMES, NEAR, NEAR, st.booleans(), TIMES), min_size=1, max_size=20),
    NEAR,
    NEAR,
    st.floats(-1e300, 1e300),
    st.one_of(FINITE, st.floats(-0.1, 0.3)),
)
def test_no_finite_input_gives_nan_a_warning_or_an_exception(
    rows: list[tuple[int, float, float, bool, int]], bid: float, ask: float, carry: float, rate: float
) -> None:
    """Whatever finite numbers come in, every output is finite and every unusable row says why."""
    keys = ("ts", "price", "strike", "call", "expiry")
    options = trades(*(dict(zip(keys, row, strict=True)) for row in rows))
    curve = Curve(np.array([0.5, 2.0]), np.array([rate, rate / 2.0]))
    quoted = UnderlyingQuotes(np.sort(options.sip_timestamp_ns), np.full(len(rows), bid), np.full(len(rows), ask))
    for policy in (SETTINGS, GreeksSettings(intrinsic="undiscounted", iv_min=1e-6, iv_max=100.0)):
        columns = compute_greeks(options, quoted, curve, carry, policy)
        assert all(np.isfinite(column).all() for column in columns)
        assert not np.any(columns.flags & ~np.uint32(FLAGS_KNOWN))
        assert np.array_equal(columns.usable, (columns.flags & np.uint32(BLOCKING)) == 0)
        assert np.array_equal(columns.usable, columns.iv > 0.0)
        assert np.all(columns.delta[~columns.usable] == 0.0)
