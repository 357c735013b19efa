"""
European Black-Scholes-Merton with a continuous yield: price, implied volatility and Greeks of one option, compiled.

Everything is computed on the out-of-the-money side, where no digits cancel, in the normalised form of Black's formula

    b(x, v) = e^(x/2) N(x/v + v/2) - e^(-x/2) N(x/v - v/2),   x = -|ln(F/K)|,  v = sigma sqrt(tau),
    out-of-the-money price = sqrt(S e^(-q tau) K e^(-r tau)) b(x, v)

and, with h = x/v and t = v/2, b = phi(h) e^(-t^2/2) [Y(h + t) - Y(h - t)], where Y(z) = N(z)/phi(z) is Mills' ratio: the
difference keeps its relative precision in the far tail and for the last second of an option's life. The objective
functions and third-order (Householder) steps of the solver are those of P. Jaeckel, "Let's Be Rational", Wilmott, 2015;
the starting values are M17's own, and every step is kept inside a bracket. Formulas of the Greeks: E. G. Haug, The
Complete Guide to Option Pricing Formulas, chapter 2. The continued fraction of Mills' ratio: Abramowitz and Stegun 26.2.14.

This module imports numba, so it must be imported in workers only; it must never use fastmath or parallel loops, because
rows are compared bit for bit.
"""

from __future__ import annotations

import math
from typing import Final

from engines.compiled import njit

SOLVED: Final = 0
"""The fast steps settled."""
BISECTED: Final = 1
"""They did not; plain bisection finished."""
UNSOLVED: Final = 2
"""Neither settled."""

_HOUSEHOLDER_STEPS: Final = 24
_BISECTION_STEPS: Final = 1100
_STEP_DONE: Final = 3e-5
_SQRT_HALF: Final = math.sqrt(0.5)
_SQRT_TWO_PI: Final = math.sqrt(2.0 * math.pi)
_SQRT_HALF_PI: Final = math.sqrt(0.5 * math.pi)
_LN_SQRT_TWO_PI: Final = 0.5 * math.log(2.0 * math.pi)
_SERIES_T: Final = 0.1
_FRACTION_Z: Final = -8.0
_ASYMPTOTE_H: Final = -50.0
_TURN_MIN: Final = 1e-150


@njit(cache=True, error_model="numpy")
def normal_density(z: float) -> float:
    """Density of the standard normal distribution."""
    return math.exp(-0.5 * z * z) / _SQRT_TWO_PI


@njit(cache=True, error_model="numpy")
def normal_cdf(z: float) -> float:
    """Standard normal distribution function, with full relative precision in the lower tail."""
    return 0.5 * math.erfc(-z * _SQRT_HALF)


@njit(cache=True, error_model="numpy")
def mills_and_slope(z: float) -> tuple[float, float]:
    """
    Y(z) = N(z)/phi(z) and its slope Y'(z) = 1 + z Y(z), for z <= 0.

    Below -8 both come from the 14th convergent of the continued fraction, whose error is below 1e-15 there; so the slope,
    which falls like 1/z^2, is not the difference of two numbers near 1.
    """
    if z > _FRACTION_Z:
        mills = _SQRT_HALF_PI * math.erfc(-z * _SQRT_HALF) * math.exp(0.5 * z * z)
        return mills, 1.0 + z * mills
    w = 1.0 / (z * z)
    lower = (
        (((((2027025.0 * w + 4729725.0) * w + 2837835.0) * w + 675675.0) * w + 75075.0) * w + 4095.0) * w + 105.0
    ) * w
    upper = (
        (((((645120.0 * w + 3133935.0) * w + 2336040.0) * w + 611415.0) * w + 71280.0) * w + 3993.0) * w + 104.0
    ) * w
    slope = ((((((1381905.0 * w + 1595790.0) * w + 501795.0) * w + 64260.0) * w + 3795.0) * w + 102.0) * w + 1.0) * w
    return (upper + 1.0) / (lower + 1.0) / -z, slope / (lower + 1.0)


@njit(cache=True, error_model="numpy")
def mills_difference(h: float, t: float) -> float:
    """
    Y(h + t) - Y(h - t) for h <= 0 < t, where h + t <= 0 or t <= 0.1; always positive.

    For t <= 0.1 it is the odd part of the Taylor series in t, from the recurrence Y^(n+1) = n Y^(n-1) + h Y^(n). Below
    h = -50 no price that a float can hold lies, so there the leading term is enough to steer the solver.
    """
    if h < _ASYMPTOTE_H:
        return 2.0 * t / ((h - t) * (h + t))
    if t > _SERIES_T:
        return mills_and_slope(h + t)[0] - mills_and_slope(h - t)[0]
    y0, y1 = mills_and_slope(h)
    y2 = y0 + h * y1
    y3 = 2.0 * y1 + h * y2
    y4 = 3.0 * y2 + h * y3
    y5 = 4.0 * y3 + h * y4
    y6 = 5.0 * y4 + h * y5
    y7 = 6.0 * y5 + h * y6
    y8 = 7.0 * y6 + h * y7
    y9 = 8.0 * y7 + h * y8
    y11 = 10.0 * y9 + h * (9.0 * y8 + h * y9)
    s = t * t
    tail = s / 20.0 * (y5 + s / 42.0 * (y7 + s / 72.0 * (y9 + s / 110.0 * y11)))
    return 2.0 * t * (y1 + s / 6.0 * (y3 + tail))


@njit(cache=True, error_model="numpy")
def normalised_price(x: float, v: float) -> float:
    """b(x, v), the out-of-the-money price over sqrt(S e^(-q tau) K e^(-r tau)), for x <= 0 < v."""
    h, t = x / v, 0.5 * v
    if t <= _SERIES_T or h + t <= 0.0:
        return math.exp(-0.5 * (h * h + t * t)) / _SQRT_TWO_PI * mills_difference(h, t)
    return math.exp(0.5 * x) * normal_cdf(h + t) - math.exp(-0.5 * x) * normal_cdf(h - t)


@njit(cache=True, error_model="numpy")
def _householder(newton: float, second: float, third: float) -> float:
    """Third-order Householder step from the Newton step and the ratios f''/f' and f'''/f'; the Newton step if unusable."""
    step = newton * (1.0 + 0.5 * second * newton) / (1.0 + newton * (second + third * newton / 6.0))
    if 0.125 < step / newton < 8.0:
        return step
    return newton


@njit(cache=True, error_model="numpy")
def _bisected(x: float, beta: float, low: float, high: float) -> tuple[float, int]:
    """Plain bisection of b(x, v) = beta on a bracket, to the last digit."""
    for _ in range(_BISECTION_STEPS):
        middle = 0.5 * (low + high)
        if middle <= low or middle >= high:
            return middle, BISECTED
        if normalised_price(x, middle) < beta:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high), UNSOLVED


@njit(cache=True, error_model="numpy")
def _start_below(x: float, beta: float, turn: float, power: float, fall: float) -> float:
    """
    Starting value below the inflection, where ln b has fallen by ``fall`` and d ln b / d ln v was ``power``.

    Near the money it solves b = v/sqrt(2 pi) + x/2 + x^2/(2 v sqrt(2 pi)); in the wing it takes ln b as -x^2/2 v^2 plus a
    multiple of ln v, fitted to value and slope at the inflection.
    """
    middle = _SQRT_TWO_PI * (beta - 0.5 * x)
    inside = middle * middle - 2.0 * x * x
    if inside > 0.0:
        return min(0.5 * (middle + math.sqrt(inside)), turn)
    u_turn = -0.5 / x
    scale = 2.0 / (x * x)
    logs = min(max(power + 0.5 * x, 0.0), 3.0)
    u = u_turn + scale * fall
    u = max(u_turn + scale * (fall - 0.5 * logs * math.log(u / u_turn)), u_turn)
    return 1.0 / math.sqrt(u)


@njit(cache=True, error_model="numpy")
def _solve_below(x: float, beta: float, turn: float, mills_turn: float, price_turn: float) -> tuple[float, int]:
    """Solve b = beta below the inflection ``turn`` = sqrt(2|x|), by 1/ln b, which is nearly quadratic in v in the wing."""
    goal = math.log(beta)
    v = _start_below(x, beta, turn, turn / mills_turn, math.log(price_turn) - goal)
    low, high = 0.0, turn
    for _ in range(_HOUSEHOLDER_STEPS):
        h, t = x / v, 0.5 * v
        mills = mills_difference(h, t)
        level = math.log(mills) - 0.5 * (h * h + t * t) - _LN_SQRT_TWO_PI
        if level < goal:
            low = v
        else:
            high = v
        rate = 1.0 / mills
        bend = (h * h - t * t) / v
        newton = (goal - level) * level / goal * mills
        second = bend - rate * (1.0 + 2.0 / level)
        third = bend * bend - 3.0 * h * h / (v * v) - 0.25
        third += 2.0 * rate * rate * (1.0 + 3.0 / level * (1.0 + 1.0 / level)) - 3.0 * bend * rate * (1.0 + 2.0 / level)
        step = _householder(newton, second, third)
        moved = v + step
        if abs(step) <= _STEP_DONE * v:
            return moved, SOLVED
        v = moved if low < moved < high else 0.5 * (low + high)
    return _bisected(x, beta, low, high)


@njit(cache=True, error_model="numpy")
def _tail_start(x: float, turn: float, gap: float) -> float:
    """v at which a multiple of N(-v/2), fitted at the inflection, leaves ``gap`` to the upper bound (A and S 26.2.23)."""
    gap_turn = math.exp(0.5 * x) * 0.5 + math.exp(-0.5 * x) * normal_cdf(-turn)
    share = min(gap * normal_cdf(-0.5 * turn) / gap_turn, 0.5)
    s = math.sqrt(-2.0 * math.log(share))
    top = 2.515517 + s * (0.802853 + s * 0.010328)
    return 2.0 * (s - top / (1.0 + s * (1.432788 + s * (0.189269 + s * 0.001308))))


@njit(cache=True, error_model="numpy")
def _solve_above(x: float, beta: float, turn: float, price_turn: float, slope_turn: float) -> tuple[float, int]:
    """Solve b = beta above the inflection: b itself up to half its bound, then the logarithm of the gap to the bound."""
    bound = math.exp(0.5 * x)
    gap_goal = bound - beta
    by_gap = beta > 0.5 * bound
    lead = (beta - price_turn) / slope_turn
    low, high = turn, math.inf
    v = max(_tail_start(x, turn, gap_goal), turn + lead) if by_gap else turn + lead + lead * lead * lead / 24.0
    for _ in range(_HOUSEHOLDER_STEPS):
        h, t = x / v, 0.5 * v
        slope = math.exp(-0.5 * (h * h + t * t)) / _SQRT_TWO_PI
        bend = (h * h - t * t) / v
        third = bend * bend - 3.0 * h * h / (v * v) - 0.25
        if by_gap:
            gap = bound * normal_cdf(-(h + t)) + normal_cdf(h - t) / bound
            short = gap > gap_goal
            rate = slope / gap
            newton = math.log(gap / gap_goal) / rate
            step = _householder(newton, bend + rate, third + rate * (2.0 * rate + 3.0 * bend))
        else:
            price = normalised_price(x, v)
            short = price < beta
            step = _householder((beta - price) / slope, bend, third)
        if short:
            low = v
        else:
            high = v
        moved = v + step
        if abs(step) <= _STEP_DONE * v:
            return moved, SOLVED
        if not low < moved < high:
            moved = 0.5 * (low + high) if high < math.inf else 2.0 * low + 1.0
        v = moved
    if high == math.inf:
        return v, UNSOLVED
    return _bisected(x, beta, low, high)


@njit(cache=True, error_model="numpy")
def implied_total_volatility(x: float, beta: float) -> tuple[float, int]:
    """
    v = sigma sqrt(tau) with b(x, v) = beta, and SOLVED, BISECTED or UNSOLVED.

    Args:
        x: -|ln(F/K)|, at most 0 and above -1000.
        beta: normalised out-of-the-money price, strictly between 0 and e^(x/2).
    """
    turn = math.sqrt(-2.0 * x)
    if turn < _TURN_MIN:
        return _solve_above(0.0, beta, 0.0, 0.0, 1.0 / _SQRT_TWO_PI)
    slope_turn = math.exp(0.5 * x) / _SQRT_TWO_PI
    mills_turn = mills_difference(-0.5 * turn, 0.5 * turn)
    price_turn = slope_turn * mills_turn
    if beta < price_turn:
        return _solve_below(x, beta, turn, mills_turn, price_turn)
    return _solve_above(x, beta, turn, price_turn, slope_turn)


@njit(cache=True, error_model="numpy")
def log_moneyness(spot: float, strike: float, rate: float, carry: float, tau: float) -> float:
    """ln(F/K) = ln(S/K) + (r - q) tau, with full relative precision near the money."""
    ratio = spot / strike
    if 0.5 < ratio < 2.0:
        return math.log1p((spot - strike) / strike) + (rate - carry) * tau
    return math.log(ratio) + (rate - carry) * tau


@njit(cache=True, error_model="numpy")
def bsm_price(
    spot: float, strike: float, tau: float, rate: float, carry: float, volatility: float, is_call: bool
) -> float:
    """
    Price of a European option (Haug, 1.1.3), dollars.

    Args:
        spot, strike: dollars, positive.
        tau: years, positive.
        rate, carry: continuously compounded per year, as decimals.
        volatility: per 1.00, positive.
        is_call: call or put.
    """
    x = log_moneyness(spot, strike, rate, carry, tau)
    forward, discounted = spot * math.exp(-carry * tau), strike * math.exp(-rate * tau)
    scale = math.sqrt(forward) * math.sqrt(discounted)
    price = scale * normalised_price(-abs(x), volatility * math.sqrt(tau))
    if is_call and x > 0.0:
        return price + discounted * math.expm1(x)
    if not is_call and x < 0.0:
        return price + forward * math.expm1(-x)
    return price


@njit(cache=True, error_model="numpy")
def bsm_greeks(
    spot: float, strike: float, tau: float, rate: float, carry: float, volatility: float, is_call: bool
) -> tuple[float, float, float, float, float]:
    """
    Delta, gamma per $1, vega per 1.00 of volatility, theta per year, rho per 1.00 of rate (Haug, 2.1, 2.3 to 2.5, 2.7).

    Arguments as :func:`bsm_price`.
    """
    root = math.sqrt(tau)
    v = volatility * root
    h = log_moneyness(spot, strike, rate, carry, tau) / v
    first, second = h + 0.5 * v, h - 0.5 * v
    growth = math.exp(-carry * tau)
    forward, discounted = spot * growth, strike * math.exp(-rate * tau)
    density = normal_density(first)
    vega = forward * density * root
    gamma = growth * density / (spot * v)
    decay = -0.5 * forward * density * volatility / root
    sign = 1.0 if is_call else -1.0
    share, exercise = normal_cdf(sign * first), normal_cdf(sign * second)
    theta = decay + sign * (carry * forward * share - rate * discounted * exercise)
    return sign * growth * share, gamma, vega, theta, sign * tau * discounted * exercise
