"""
The Greeks kernel: spot, time, rate, implied volatility and Greeks of every option trade on one underlying.

A pure function of its arrays: no ledger, no clock, no state between trades. It imports numba, so it must be imported in
workers only, never by the daemon; it must never use fastmath or parallel loops, because rows are compared bit for bit.

A cell of minute T is made from the trades of T and the underlying's quotes of T and T-1 (for the first window: of the 60 s
before the open). A trade never sees a quote before the start of T-1, however many cells and quotes are passed together:
such a quote counts as missing, not as stale, and the result does not depend on how cells are cut into batches.

The model is European (Black-Scholes-Merton) also where exercise is American; dividends are a continuous yield.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.compiled import njit
from engines.greeks.arrays import AGE_NONE, GreeksColumns, OptionTrades, UnderlyingQuotes
from engines.greeks.curve import Curve
from engines.greeks.flags import BLOCKING, GreeksFlag
from engines.greeks.policy import GreeksSettings
from engines.greeks.pricing import BISECTED, UNSOLVED, bsm_greeks, implied_total_volatility, log_moneyness
from ledger.columns import WINDOW_NS

YEAR_NS: Final = 31_536_000_000_000_000
"""365 days: time to expiry is ACT/365."""
# numba freezes module-level numbers into the compiled code; enum attributes it would box.
_NO_UNDERLYING: Final = int(GreeksFlag.NO_UNDERLYING)
_NO_IV: Final = int(GreeksFlag.NO_IV)
_TIME_EXPIRED: Final = int(GreeksFlag.TIME_EXPIRED)
_NO_TREASURY: Final = int(GreeksFlag.NO_TREASURY)
_CROSSED_MARKET: Final = int(GreeksFlag.CROSSED_MARKET)
_LOCKED_MARKET: Final = int(GreeksFlag.LOCKED_MARKET)
_BAD_RATIO: Final = int(GreeksFlag.BAD_RATIO)
_MID_NONPOS: Final = int(GreeksFlag.MID_NONPOS)
_NBBO_STALE: Final = int(GreeksFlag.NBBO_STALE)
_IV_NEWTON_FAIL: Final = int(GreeksFlag.IV_NEWTON_FAIL)
_PRICE_BELOW_INTRINSIC: Final = int(GreeksFlag.PRICE_BELOW_INTRINSIC)
_RATE_EXTRAP: Final = int(GreeksFlag.RATE_EXTRAP)
_TAU_CLAMPED: Final = int(GreeksFlag.TAU_CLAMPED)
_IV_BISECT_FAIL: Final = int(GreeksFlag.IV_BISECT_FAIL)
_VEGA_TINY: Final = int(GreeksFlag.VEGA_TINY)
_NONSTANDARD: Final = int(GreeksFlag.NONSTANDARD)
_PRICE_ABOVE_BOUND: Final = int(GreeksFlag.PRICE_ABOVE_BOUND)
_IV_OUT_OF_RANGE: Final = int(GreeksFlag.IV_OUT_OF_RANGE)
_NO_PRICE: Final = int(GreeksFlag.NO_PRICE)
_BLOCKING: Final = int(BLOCKING)
_BISECTED: Final = int(BISECTED)
_UNSOLVED: Final = int(UNSOLVED)
_WINDOW_NS: Final = int(WINDOW_NS)
_SECOND_NS: Final = 1_000_000_000
_AGE_TOLERANCE_NS: Final = 1_000
_TIME_MIN: Final = -(2**63)
_TIME_MAX: Final = 2**63 - 1
_LOCKED_WIDTH: Final = 1e-6
_MACHINE_EPSILON: Final = 2.0**-52
_RATIO_MIN: Final = 1e-6
_RATIO_MAX: Final = 1e6
_EXPONENT_MAX: Final = 50.0
_INTRINSIC_TOLERANCE: Final = 1e-4
_VOLATILITY_RESOLUTION: Final = 1e-6
_VALUES: Final = 11


def compute_greeks(
    trades: OptionTrades,
    quotes: UnderlyingQuotes,
    curve: Curve,
    net_carry: float,
    settings: GreeksSettings,
) -> GreeksColumns:
    """
    Spot, implied volatility and Greeks of option trades on one underlying under one curve.

    Args:
        trades: the trades of any number of cells of the same underlying and curve.
        quotes: the underlying's quotes from the minute before the first trade's on; empty where there are none.
        curve: the curve in force; empty for none.
        net_carry: continuous yield of the underlying in force, per year as a decimal.
        settings: the policies.

    Raises:
        ValueError: arrays of a group differ in length, quotes are not in time order, or ``net_carry`` is not finite.
    """
    _check(trades, quotes, net_carry)
    count = trades.price.size
    values = np.zeros((_VALUES, count), dtype=np.float64)
    spot_ts = np.zeros(count, dtype=np.int64)
    spot_age = np.full(count, AGE_NONE, dtype=np.int64)
    flags = np.zeros(count, dtype=np.uint32)
    limit = settings.staleness_ns + _AGE_TOLERANCE_NS if settings.staleness_ns else 0
    _spots(
        np.ascontiguousarray(trades.sip_timestamp_ns, dtype=np.int64),
        np.ascontiguousarray(quotes.sip_timestamp_ns, dtype=np.int64),
        np.ascontiguousarray(quotes.bid, dtype=np.float64),
        np.ascontiguousarray(quotes.ask, dtype=np.float64),
        limit,
        values,
        spot_ts,
        spot_age,
        flags,
    )
    _rows(
        np.ascontiguousarray(trades.sip_timestamp_ns, dtype=np.int64),
        np.ascontiguousarray(trades.price, dtype=np.float64),
        np.ascontiguousarray(trades.strike, dtype=np.float64),
        np.ascontiguousarray(trades.is_call, dtype=np.bool_),
        np.ascontiguousarray(trades.expiry_ns, dtype=np.int64),
        np.ascontiguousarray(trades.standard, dtype=np.bool_),
        np.ascontiguousarray(curve.tenor_years, dtype=np.float64),
        np.ascontiguousarray(curve.rates, dtype=np.float64),
        float(net_carry),
        float(settings.iv_min),
        float(settings.iv_max),
        settings.intrinsic == "undiscounted",
        values,
        flags,
    )
    if trades.expiry_estimated is not None:
        flags[trades.expiry_estimated] |= np.uint32(GreeksFlag.EXPIRY_ESTIMATED)
    usable = (flags & np.uint32(_BLOCKING)) == 0
    return GreeksColumns(
        iv=values[0],
        delta=values[1],
        gamma=values[2],
        vega=values[3],
        theta=values[4],
        rho=values[5],
        tau_years=values[6],
        rate=values[7],
        spot=values[8],
        spot_bid=values[9],
        spot_ask=values[10],
        spot_ts=spot_ts,
        spot_age_ns=spot_age,
        flags=flags,
        usable=usable,
    )


def _check(trades: OptionTrades, quotes: UnderlyingQuotes, net_carry: float) -> None:
    for name, group in (("trades", trades), ("quotes", quotes)):
        sizes = {np.shape(column) for column in group if column is not None}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            raise ValueError(
                f"{name}: all arrays must be one-dimensional and of one length, found shapes {sorted(sizes)}"
            )
    if np.any(quotes.sip_timestamp_ns[1:] < quotes.sip_timestamp_ns[:-1]):
        position = int(np.argmax(quotes.sip_timestamp_ns[1:] < quotes.sip_timestamp_ns[:-1])) + 1
        raise ValueError(f"quotes: not in time order at position {position}; sort them by time, then sequence")
    if not math.isfinite(net_carry):
        raise ValueError(f"net_carry must be finite, found {net_carry}")


@njit(cache=True, error_model="numpy")
def _last_at_or_before(times: NDArray[np.int64], moment: int, hint: int) -> int:
    """Position of the last entry not after ``moment``, -1 where there is none; gallops forward from ``hint``."""
    low, high = -1, times.size
    if 0 <= hint < high and times[hint] <= moment:
        low = hint
        stride = 1
        while low + stride < high:
            if times[low + stride] > moment:
                high = low + stride
                break
            low += stride
            stride *= 2
    elif 0 <= hint < high:
        high = hint
    while high - low > 1:
        middle = (low + high) // 2
        if times[middle] <= moment:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, error_model="numpy")
def _mid(bid: float, ask: float) -> tuple[float, int]:
    """The mid of a quote, 0 and the flags where it has none; one side alone is taken as it is, a locked market too."""
    has_bid, has_ask = 0.0 < bid < math.inf, 0.0 < ask < math.inf
    if has_bid and has_ask:
        if bid > ask:
            return 0.0, _NO_UNDERLYING | (_LOCKED_MARKET if bid - ask <= _LOCKED_WIDTH else _CROSSED_MARKET)
        return 0.5 * bid + 0.5 * ask, 0
    if has_bid:
        return bid, 0
    if has_ask:
        return ask, 0
    return 0.0, _NO_UNDERLYING | _MID_NONPOS


@njit(cache=True, error_model="numpy")
def _spots(
    trade_ts: NDArray[np.int64],
    quote_ts: NDArray[np.int64],
    bids: NDArray[np.float64],
    asks: NDArray[np.float64],
    age_limit_ns: int,
    values: NDArray[np.float64],
    spot_ts: NDArray[np.int64],
    spot_age: NDArray[np.int64],
    flags: NDArray[np.uint32],
) -> None:
    """Fill spot, spot_bid, spot_ask (rows 8, 9, 10 of ``values``), spot_ts, spot_age and the flags about them."""
    position = -1
    for i in range(trade_ts.size):
        moment = trade_ts[i]
        position = _last_at_or_before(quote_ts, moment, position)
        # Compiled integers may not overflow, not even to be noticed afterwards.
        earliest = moment - moment % _WINDOW_NS - _WINDOW_NS if moment > _TIME_MIN + 2 * _WINDOW_NS else _TIME_MIN
        if position < 0 or quote_ts[position] < earliest:
            flags[i] = _NO_UNDERLYING
            continue
        age = moment - quote_ts[position]
        values[9, i], values[10, i] = bids[position], asks[position]
        if not math.isfinite(values[9, i]):
            values[9, i] = 0.0
        if not math.isfinite(values[10, i]):
            values[10, i] = 0.0
        spot_ts[i], spot_age[i] = quote_ts[position], age
        if age > age_limit_ns:
            flags[i] = _NO_UNDERLYING | _NBBO_STALE
            continue
        values[8, i], flags[i] = _mid(bids[position], asks[position])


@njit(cache=True, error_model="numpy")
def _zero_rate(tenors: NDArray[np.float64], rates: NDArray[np.float64], tau: float) -> tuple[float, int]:
    """Compiled twin of ``curve.zero_rate``: the rate, and RATE_EXTRAP beyond the last tenor."""
    if tau <= tenors[0]:
        return rates[0], 0
    above = 1
    while above < tenors.size and tenors[above] < tau:
        above += 1
    if above == tenors.size:
        return rates[above - 1], _RATE_EXTRAP
    left, right = tenors[above - 1], tenors[above]
    weight = (tau - left) / (right - left)
    return (rates[above - 1] * left * (1.0 - weight) + rates[above] * right * weight) / tau, 0


@njit(cache=True, error_model="numpy")
def implied_volatility(
    spot: float, strike: float, tau: float, rate: float, carry: float, price: float, is_call: bool
) -> tuple[float, int]:
    """
    Volatility per 1.00 that gives ``price``, and the flags about it; 0 with NO_IV where there is none.

    Args:
        spot, strike, price: dollars, positive, spot / strike in [1e-6, 1e6].
        tau: years, positive.
        rate, carry: continuously compounded per year; times ``tau`` at most 50.
        is_call: call or put.
    """
    x = log_moneyness(spot, strike, rate, carry, tau)
    forward, discounted = spot * math.exp(-carry * tau), strike * math.exp(-rate * tau)
    scale = math.sqrt(forward) * math.sqrt(discounted)
    worth, noise = price, _MACHINE_EPSILON * price
    if is_call == (x > 0.0):
        # In the money: put-call parity leaves the time value, and the rounding of the price stays behind in it.
        parity = discounted * math.expm1(x) if is_call else forward * math.expm1(-x)
        worth = price - parity
        noise += _MACHINE_EPSILON * parity
        if worth <= 0.0:
            return 0.0, _NO_IV | (_VEGA_TINY if worth >= -4.0 * noise else _PRICE_BELOW_INTRINSIC)
    beta, bound = worth / scale, math.exp(-0.5 * abs(x))
    if not 0.0 < beta < bound:
        touching = beta <= bound + 4.0 * (noise / scale + _MACHINE_EPSILON * bound)
        return 0.0, _NO_IV | (_VEGA_TINY if touching else _PRICE_ABOVE_BOUND)
    v, outcome = implied_total_volatility(-abs(x), beta)
    root = math.sqrt(tau)
    upper = x / v + 0.5 * v
    vega = forward * math.exp(-0.5 * upper * upper) * root * 0.3989422804014327
    if outcome == _UNSOLVED:
        return 0.0, _NO_IV | _IV_NEWTON_FAIL | _IV_BISECT_FAIL
    if not noise < _VOLATILITY_RESOLUTION * vega:
        return 0.0, _NO_IV | _VEGA_TINY
    return v / root, (_IV_NEWTON_FAIL if outcome == _BISECTED else 0)


@njit(cache=True, error_model="numpy")
def _time_and_rate(
    moment: int, expiry: int, tenors: NDArray[np.float64], rates: NDArray[np.float64]
) -> tuple[float, float, int]:
    """Years to expiry, the rate for them, and their flags; 0 years with TIME_EXPIRED at or after the expiry."""
    if expiry <= moment:
        return 0.0, 0.0, _TIME_EXPIRED
    left = expiry - moment if moment >= 0 or expiry <= _TIME_MAX + moment else _TIME_MAX
    flag = 0
    if left < _SECOND_NS:
        left = _SECOND_NS
        flag = _TAU_CLAMPED
    tau = left / YEAR_NS
    rate, extrapolated = _zero_rate(tenors, rates, tau)
    return tau, rate, flag | extrapolated


@njit(cache=True, error_model="numpy")
def _rows(
    trade_ts: NDArray[np.int64],
    prices: NDArray[np.float64],
    strikes: NDArray[np.float64],
    calls: NDArray[np.bool_],
    expiries: NDArray[np.int64],
    standard: NDArray[np.bool_],
    tenors: NDArray[np.float64],
    rates: NDArray[np.float64],
    carry: float,
    iv_min: float,
    iv_max: float,
    undiscounted: bool,
    values: NDArray[np.float64],
    flags: NDArray[np.uint32],
) -> None:
    """Fill iv, delta, gamma, vega, theta, rho, tau, rate (rows 0 to 7 of ``values``) and the remaining flags."""
    for i in range(trade_ts.size):
        if not standard[i] or tenors.size == 0:
            flags[i] = (0 if standard[i] else _NONSTANDARD) | (0 if tenors.size else _NO_TREASURY)
            continue
        spot, strike, price, is_call = values[8, i], strikes[i], prices[i], calls[i]
        if flags[i] & _NO_UNDERLYING:
            continue
        if not (0.0 < strike < math.inf and _RATIO_MIN <= spot / strike <= _RATIO_MAX):
            flags[i] |= _BAD_RATIO
            continue
        tau, rate, about_time = _time_and_rate(trade_ts[i], expiries[i], tenors, rates)
        values[6, i], values[7, i] = tau, rate
        flags[i] |= about_time
        if about_time & _TIME_EXPIRED:
            continue
        if not (abs(rate * tau) <= _EXPONENT_MAX and abs(carry * tau) <= _EXPONENT_MAX):
            flags[i] |= _BAD_RATIO
            continue
        if not 0.0 < price < math.inf:
            flags[i] |= _NO_PRICE | _NO_IV
            continue
        intrinsic = max(spot - strike, 0.0) if is_call else max(strike - spot, 0.0)
        if undiscounted and price < intrinsic - _INTRINSIC_TOLERANCE:
            flags[i] |= _PRICE_BELOW_INTRINSIC | _NO_IV
            continue
        volatility, about_iv = implied_volatility(spot, strike, tau, rate, carry, price, is_call)
        if not (about_iv & _NO_IV) and not iv_min <= volatility <= iv_max:
            about_iv |= _IV_OUT_OF_RANGE | _NO_IV
        flags[i] |= about_iv
        if about_iv & _NO_IV:
            continue
        delta, gamma, vega, theta, rho = bsm_greeks(spot, strike, tau, rate, carry, volatility, is_call)
        if not math.isfinite(delta + gamma + vega + theta + rho):
            flags[i] |= _BAD_RATIO | _NO_IV
            continue
        values[0, i], values[1, i], values[2, i] = volatility, delta, gamma
        values[3, i], values[4, i], values[5, i] = vega, theta, rho
