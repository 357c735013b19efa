"""Price, implied volatility and Greeks of one option against published values, closed forms and an independent library."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import QuantLib
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr

from engines.greeks.flags import GreeksFlag
from engines.greeks.kernel import implied_volatility
from engines.greeks.pricing import (
    BISECTED,
    SOLVED,
    _bisected,
    bsm_greeks,
    bsm_price,
    implied_total_volatility,
    mills_and_slope,
    mills_difference,
    normalised_price,
)

SECOND_YEARS = 1.0 / 31_536_000.0

# E. G. Haug, Option Pricing Formulas, McGraw-Hill 1998, pages 2-8, 24 and 27:
# call, strike, spot, carry, rate, years, volatility, printed value
HAUG_SINGLE = [
    (True, 65.0, 60.0, 0.0, 0.08, 0.25, 0.30, 2.1334),
    (False, 95.0, 100.0, 0.05, 0.10, 0.5, 0.20, 2.4648),
    (False, 19.0, 19.0, 0.10, 0.10, 0.75, 0.28, 1.7011),
    (True, 19.0, 19.0, 0.10, 0.10, 0.75, 0.28, 1.7011),
    (True, 1.60, 1.56, 0.08, 0.06, 0.5, 0.12, 0.0291),
    (False, 70.0, 75.0, 0.05, 0.10, 0.5, 0.35, 4.0870),
    (True, 40.0, 42.0, 0.08, 0.04, 0.75, 0.35, 5.0975),
]
# Futures options of page 24, strike 100, rate 10 %: years, volatility, then calls and puts at futures of 90, 100, 110.
HAUG_FUTURES = [
    (0.1, 0.15, (0.0205, 1.8734, 9.9413), (9.9210, 1.8734, 0.0408)),
    (0.1, 0.25, (0.3150, 3.1217, 10.3556), (10.2155, 3.1217, 0.4551)),
    (0.1, 0.35, (0.9474, 4.3693, 11.1381), (10.8479, 4.3693, 1.2376)),
    (0.5, 0.15, (0.8069, 4.0232, 10.5769), (10.3192, 4.0232, 1.0646)),
    (0.5, 0.25, (2.7026, 6.6997, 12.7857), (12.2149, 6.6997, 3.2734)),
    (0.5, 0.35, (4.9329, 9.3679, 15.3086), (14.4452, 9.3679, 5.7963)),
]
HAUG = HAUG_SINGLE + [
    (is_call, 100.0, future, 0.10, 0.10, years, volatility, value)
    for years, volatility, calls, puts in HAUG_FUTURES
    for is_call, row in ((True, calls), (False, puts))
    for future, value in zip((90.0, 100.0, 110.0), row, strict=True)
]
# Pages 11-16: which Greek, call, strike, spot, carry, rate, years, volatility, printed value
HAUG_GREEKS = [
    ("delta", True, 100.0, 105.0, 0.10, 0.10, 0.5, 0.36, 0.5946),
    ("delta", False, 100.0, 105.0, 0.10, 0.10, 0.5, 0.36, -0.3566),
    ("gamma", True, 60.0, 55.0, 0.0, 0.10, 0.75, 0.30, 0.0278),
    ("gamma", False, 60.0, 55.0, 0.0, 0.10, 0.75, 0.30, 0.0278),
    ("vega", True, 60.0, 55.0, 0.0, 0.10, 0.75, 0.30, 18.9358),
    ("vega", False, 60.0, 55.0, 0.0, 0.10, 0.75, 0.30, 18.9358),
    ("theta", False, 405.0, 430.0, 0.05, 0.07, 1.0 / 12.0, 0.20, -31.1924),
    ("rho", True, 75.0, 72.0, 0.0, 0.09, 1.0, 0.19, 38.7325),
]
GREEKS = ("delta", "gamma", "vega", "theta", "rho")
# Spot, strike, years, rate, carry, volatility, call, and the price computed with 60 digits.
DEEP = [
    ((100.0, 100.0, SECOND_YEARS, 0.05, 0.0, 0.01, True), 7.1119925739793256e-5),
    ((100.0, 100.001, SECOND_YEARS, 0.05, 0.0, 0.01, True), 2.9487594395951678e-13),
    ((100.0, 150.0, 0.1, 0.02, 0.0, 0.2, True), 1.0307060610146806e-10),
    ((100.0, 20.0, 1.0, -0.02, 0.03, 0.15, False), 8.1092615276903953e-26),
    ((4000.0, 400.0, 10.0, 0.20, 0.01, 5.0, False), 54.134113294643931),
]


class Grid:
    """Options drawn over the whole range the kernel is meant for; the same ones on every run."""

    def __init__(self, count: int, deviations: float) -> None:
        random = np.random.default_rng(20131007)
        self.tau = np.exp(random.uniform(math.log(SECOND_YEARS), math.log(10.0), count))
        self.volatility = np.exp(random.uniform(math.log(0.01), math.log(5.0), count))
        self.rate = random.uniform(-0.02, 0.20, count)
        self.carry = np.where(random.random(count) < 0.5, 0.0, random.uniform(-0.02, 0.08, count))
        self.call = random.random(count) < 0.5
        self.spot = np.exp(random.uniform(0.0, math.log(5000.0), count))
        distance = random.uniform(-deviations, deviations, count) * (random.random(count) < 0.95)
        self.total = self.volatility * np.sqrt(self.tau)
        forward = self.spot * np.exp((self.rate - self.carry) * self.tau)
        self.strike = np.clip(forward * np.exp(-distance * self.total), self.spot * 1e-4, self.spot * 1e4)
        self.values = _values(
            self.spot, self.strike, self.tau, self.rate, self.carry, self.volatility, self.call, np.empty((6, count))
        )


@njit(error_model="numpy")
def _values(
    spot: NDArray[np.float64],
    strike: NDArray[np.float64],
    tau: NDArray[np.float64],
    rate: NDArray[np.float64],
    carry: NDArray[np.float64],
    volatility: NDArray[np.float64],
    call: NDArray[np.bool_],
    out: NDArray[np.float64],
) -> NDArray[np.float64]:
    for i in range(spot.size):
        out[0, i] = bsm_price(spot[i], strike[i], tau[i], rate[i], carry[i], volatility[i], call[i])
        greeks = bsm_greeks(spot[i], strike[i], tau[i], rate[i], carry[i], volatility[i], call[i])
        out[1, i], out[2, i], out[3, i], out[4, i], out[5, i] = greeks
    return out


@njit(error_model="numpy")
def _solved(
    spot: NDArray[np.float64],
    strike: NDArray[np.float64],
    tau: NDArray[np.float64],
    rate: NDArray[np.float64],
    carry: NDArray[np.float64],
    price: NDArray[np.float64],
    call: NDArray[np.bool_],
    out: NDArray[np.float64],
    flags: NDArray[np.int64],
) -> None:
    for i in range(spot.size):
        out[i], flags[i] = implied_volatility(spot[i], strike[i], tau[i], rate[i], carry[i], price[i], call[i])


@pytest.mark.parametrize("row", HAUG)
def test_price_agrees_with_haug_to_the_printed_digits(row: tuple[Any, ...]) -> None:
    """All 43 published prices, within half of the last printed digit (one of them is printed truncated)."""
    is_call, strike, spot, carry, rate, years, volatility, printed = row
    assert bsm_price(spot, strike, years, rate, carry, volatility, is_call) == pytest.approx(printed, abs=6e-5)


def test_haug_table_is_complete() -> None:
    """Seven single values and six rows of six."""
    assert len(HAUG) == 43


@pytest.mark.parametrize("row", HAUG_GREEKS)
def test_greeks_agree_with_haug_to_the_printed_digits(row: tuple[Any, ...]) -> None:
    """Published delta, gamma, vega per 1.00, theta per year and rho per 1.00."""
    name, is_call, strike, spot, carry, rate, years, volatility, printed = row
    greeks = dict(zip(GREEKS, bsm_greeks(spot, strike, years, rate, carry, volatility, is_call), strict=True))
    assert greeks[name] == pytest.approx(printed, abs=6e-5)


def test_prices_and_greeks_agree_with_the_closed_forms_where_those_keep_their_digits() -> None:
    """The textbook formulas with an independent normal distribution, on options of at least an hour near the money."""
    grid = Grid(20_000, 3.0)
    root = np.sqrt(grid.tau)
    first = (np.log(grid.spot / grid.strike) + (grid.rate - grid.carry) * grid.tau) / grid.total + 0.5 * grid.total
    second, sign = first - grid.total, np.where(grid.call, 1.0, -1.0)
    forward, discounted = grid.spot * np.exp(-grid.carry * grid.tau), grid.strike * np.exp(-grid.rate * grid.tau)
    density = np.exp(-0.5 * first * first) / math.sqrt(2.0 * math.pi)
    share, exercise = ndtr(sign * first), ndtr(sign * second)
    decay = -0.5 * forward * density * grid.volatility / root
    expected = [
        sign * (forward * share - discounted * exercise),
        sign * share * forward / grid.spot,
        density * forward / grid.spot / (grid.spot * grid.total),
        forward * density * root,
        decay + sign * (grid.carry * forward * share - grid.rate * discounted * exercise),
        sign * grid.strike * grid.tau * np.exp(-grid.rate * grid.tau) * exercise,
    ]
    keeps = (grid.total > 1e-3) & (expected[0] > 1e-3 * np.minimum(grid.spot, grid.strike))
    assert keeps.sum() > 5_000
    for name, ours, theirs in zip(("price", *GREEKS), grid.values, expected, strict=True):
        # Theta crosses zero, so it is measured against its first term.
        size = np.maximum(np.abs(theirs), np.abs(decay)) if name == "theta" else np.abs(theirs)
        assert np.max(np.abs(ours - theirs)[keeps] / size[keeps]) < 1e-9, name


def exactly(grid: Grid, i: int) -> list[mpmath.mpf]:
    """Price and Greeks of one option of the grid by the textbook formulas with 50 digits."""
    with mpmath.workdps(50):
        spot, strike, tau, rate, carry, volatility = (
            mpmath.mpf(float(column[i]))
            for column in (grid.spot, grid.strike, grid.tau, grid.rate, grid.carry, grid.volatility)
        )
        sign, root = (1 if grid.call[i] else -1), mpmath.sqrt(tau)
        first = (mpmath.log(spot / strike) + (rate - carry) * tau) / (volatility * root) + volatility * root / 2
        forward, discounted = spot * mpmath.exp(-carry * tau), strike * mpmath.exp(-rate * tau)
        share, exercise = mpmath.ncdf(sign * first), mpmath.ncdf(sign * (first - volatility * root))
        vega = forward * mpmath.npdf(first) * root
        return [
            sign * (forward * share - discounted * exercise),
            sign * forward / spot * share,
            vega / (spot * spot * volatility * tau),
            vega,
            sign * (carry * forward * share - rate * discounted * exercise) - vega * volatility / (2 * tau),
            sign * tau * discounted * exercise,
        ]


def sizes(values: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """What an error of each value is measured against: itself, but theta, which crosses zero, at least its first term."""
    size = np.abs(values)
    size[4] = np.maximum(size[4], 0.5 * values[3] * grid.volatility / grid.tau)
    return size


def test_every_digit_is_right_over_the_whole_range() -> None:
    """Against 50-digit arithmetic, wherever on the grid, the far tails included: price and all Greeks within 1e-11."""
    grid = Grid(150_000, 6.0)
    chosen = np.random.default_rng(7).choice(grid.spot.size, 1_500, replace=False)
    exact = np.array([[float(value) for value in exactly(grid, i)] for i in chosen]).T
    errors = np.abs(grid.values[:, chosen] - exact) / sizes(grid.values, grid)[:, chosen]
    assert errors.max() < 1e-11


def test_prices_and_greeks_agree_with_quantlib() -> None:
    """
    An independent library on 150,000 options of a second to ten years, rates of -2 to 20 %, volatility of 1 to 500 %.

    Prices within 1e-9 of each other wherever the price carries the information: where it is at least a millionth of the
    legs that the library subtracts to get it. Its Greeks lose digits elsewhere too (a small delta is 1 minus nearly 1, a
    logarithm of nearly 1 is divided by the volatility of a second), so where they differ 50-digit arithmetic decides.
    """
    grid = Grid(150_000, 6.0)
    theirs = with_quantlib(grid)
    discounted = grid.strike * np.exp(-grid.rate * grid.tau), grid.spot * np.exp(-grid.carry * grid.tau)
    tells = grid.values[0] > 1e-6 * np.maximum(*discounted)
    assert tells.sum() > 100_000
    errors = np.abs(grid.values - theirs) / sizes(grid.values, grid)
    assert errors[0, tells].max() < 1e-9
    assert ((errors[1:] < 1e-9) & tells).sum(axis=1).min() > 100_000
    at, which = np.nonzero((errors[1:] >= 1e-9) & tells)
    for value, i in list(zip(at + 1, which, strict=True))[::10]:
        exact = exactly(grid, i)[value]
        size = sizes(grid.values, grid)[value, i]
        assert abs(grid.values[value, i] - exact) < 1e-11 * size
        assert abs(theirs[value, i] - exact) > 1e-10 * size, "the library is right and M17 is not"


def with_quantlib(grid: Grid) -> NDArray[np.float64]:
    """f64[6, n]: price, delta, gamma, vega, theta and rho by ``BlackCalculator``."""
    found = np.empty_like(grid.values)
    forwards, discounts = grid.spot * np.exp((grid.rate - grid.carry) * grid.tau), np.exp(-grid.rate * grid.tau)
    columns = (grid.spot, grid.strike, forwards, discounts, grid.total, grid.tau, grid.call)
    for i, (spot, strike, forward, discount, total, tau, call) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        payoff = QuantLib.PlainVanillaPayoff(QuantLib.Option.Call if call else QuantLib.Option.Put, strike)
        black = QuantLib.BlackCalculator(payoff, forward, total, discount)
        greeks = (black.delta(spot), black.gamma(spot), black.vega(tau), black.theta(spot, tau), black.rho(tau))
        found[:, i] = (black.value(), *greeks)
    return found


def test_put_call_parity_holds_over_the_whole_range() -> None:
    """C - P = S e^(-q t) - K e^(-r t), and the deltas differ by e^(-q t), from one second to ten years."""
    grid = Grid(20_000, 8.0)
    both = [
        _values(
            grid.spot,
            grid.strike,
            grid.tau,
            grid.rate,
            grid.carry,
            grid.volatility,
            np.full(grid.spot.size, is_call),
            np.empty((6, grid.spot.size)),
        )
        for is_call in (True, False)
    ]
    growth = np.exp(-grid.carry * grid.tau)
    parity = grid.spot * growth - grid.strike * np.exp(-grid.rate * grid.tau)
    assert np.max(np.abs(both[0][0] - both[1][0] - parity) / (grid.spot + grid.strike)) < 1e-14
    assert np.max(np.abs(both[0][1] - both[1][1] - growth)) < 1e-14
    assert np.array_equal(both[0][2:4], both[1][2:4])


@pytest.mark.parametrize(("arguments", "expected"), DEEP)
def test_far_tails_keep_their_relative_precision(arguments: tuple[Any, ...], expected: float) -> None:
    """One second to expiry, many standard deviations out of the money, ten years at 500 %."""
    assert bsm_price(*arguments) == pytest.approx(expected, rel=1e-11, abs=0.0)


def test_mills_ratio_joins_smoothly_where_its_method_changes() -> None:
    """Ratio, slope and difference agree on both sides of -8 and of t = 0.1."""
    assert mills_and_slope(-8.0 - 1e-13) == pytest.approx(mills_and_slope(-8.0 + 1e-13), rel=2e-12)
    for h in (-0.2, -1.0, -5.0, -7.95, -12.0, -30.0):
        below, above = mills_difference(h, 0.1), mills_difference(h, 0.1 * (1.0 + 1e-14))
        assert below == pytest.approx(above, rel=1e-11)


def test_implied_volatility_comes_back_wherever_the_price_determines_it() -> None:
    """Within 1e-10 where a float holds that many digits of it, within its resolution elsewhere; the rest is VEGA_TINY."""
    grid = Grid(60_000, 8.0)
    price, vega = grid.values[0], grid.values[3]
    found, flags = np.empty(price.size), np.empty(price.size, dtype=np.int64)
    _solved(grid.spot, grid.strike, grid.tau, grid.rate, grid.carry, price, grid.call, found, flags)
    assert set(np.unique(flags)) == {0, int(GreeksFlag.VEGA_TINY | GreeksFlag.NO_IV)}
    error = np.abs(found - grid.volatility)
    with np.errstate(divide="ignore"):
        resolution = 2.0**-52 * np.maximum(price, np.abs(grid.spot - grid.strike)) / vega
    allows = resolution < 1e-11
    assert allows.sum() > 30_000
    assert not np.any(flags[allows])
    assert error[allows].max() < 1e-10
    solved = flags == 0
    assert np.max(error[solved] / (4.0 * resolution[solved] + 1e-13)) < 1.0
    assert np.min(resolution[~solved]) > 1e-8


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-12.0, 0.0),
    st.floats(1e-6, 12.0),
)
def test_total_volatility_round_trip(x: float, v: float) -> None:
    """Whatever moneyness and total volatility, the solver returns the latter from the normalised price."""
    beta = normalised_price(x, v)
    if not 1e-280 < beta < math.exp(0.5 * x) * (1.0 - 1e-9):
        return
    found, outcome = implied_total_volatility(x, beta)
    slope = math.exp(-0.5 * (x * x / (v * v) + 0.25 * v * v)) / math.sqrt(2.0 * math.pi)
    assert outcome == SOLVED
    assert found == pytest.approx(v, rel=1e-12, abs=8.0 * 2.0**-52 * beta / slope)


def test_bisection_finishes_what_the_fast_steps_leave() -> None:
    """The fallback alone recovers a volatility to the last digits from the widest bracket."""
    for x, v in ((-0.5, 0.3), (-1e-8, 1e-5), (0.0, 0.2), (-3.0, 6.0)):
        found, outcome = _bisected(x, normalised_price(x, v), 1e-9, 50.0)
        assert outcome == BISECTED
        assert found == pytest.approx(v, rel=1e-11)
