"""
Benchmark: implied volatility and four Greeks, options per second on one core, against vollib and QuantLib.

Both libraries are called as their documentation shows, one option at a time; M17 through ``compute_greeks``, looking up
the spot included. Same options, same run, medians of five. Growth is shown on a quarter and a half of the options.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.greeks.arrays import OptionTrades, UnderlyingQuotes
from engines.greeks.curve import Curve
from engines.greeks.kernel import YEAR_NS, compute_greeks
from engines.greeks.policy import GreeksSettings
from engines.greeks.pricing import bsm_price

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 5
REACH = {"greeks_vs_vollib": 50.0, "greeks_vs_quantlib": 10.0}
SPOT, RATE, CARRY = 100.0, 0.03, 0.01
NOW = 1_402_061_400_000_000_000


class Options(NamedTuple):
    """Options of a day to two years, within three standard deviations, worth at least a cent."""

    strike: NDArray[np.float64]
    days: NDArray[np.int64]
    call: NDArray[np.bool_]
    price: NDArray[np.float64]
    volatility: NDArray[np.float64]


def measure() -> list[dict[str, Any]]:
    """One dict per key of the table of numbers to reach: name, value, unit, reach, ok (None if not measured), detail."""
    options = _options(200_000)
    return [
        _compare("greeks_vs_vollib", "vollib", options, 1_000, _vollib),
        _compare("greeks_vs_quantlib", "QuantLib", options, 10_000, _quantlib),
    ]


def _options(count: int) -> Options:
    random = np.random.default_rng(1)
    days = random.integers(1, 730, count)
    call = random.random(count) < 0.5
    volatility = random.uniform(0.1, 0.8, count)
    total = volatility * np.sqrt(days / 365.0)
    strike = np.round(SPOT * np.exp(random.uniform(-3.0, 3.0, count) * total), 2)
    terms = zip(strike.tolist(), days.tolist(), volatility.tolist(), call.tolist(), strict=True)
    price = np.array([bsm_price(SPOT, k, d / 365.0, RATE, CARRY, v, c) for k, d, v, c in terms])
    # The libraries raise where the time value is lost in rounding; that is not what is measured.
    parity = SPOT * np.exp(-CARRY * days / 365.0) - strike * np.exp(-RATE * days / 365.0)
    keep = price - np.maximum(np.where(call, parity, -parity), 0.0) > 0.01
    return Options(strike[keep], days[keep], call[keep], price[keep], volatility[keep])


def _compare(
    name: str, module: str, options: Options, sample: int, theirs: Callable[[Options, int], float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "value": None, "unit": "ratio", "reach": REACH[name], "ok": None}
    try:
        importlib.import_module(module)
    except ImportError:
        return {**row, "detail": f"not measured: {module} is not installed (it comes with the bench extra)"}
    _ours(options)
    speeds = [(_ours(options), theirs(options, sample)) for _ in range(REPEATS)]
    ours, other = (statistics.median(side) for side in zip(*speeds, strict=True))
    detail = {"ours_options_per_s": round(ours), "theirs_options_per_s": round(other), "repeats": REPEATS, "cores": 1}
    for share in (4, 2, 1):
        some = Options._make(column[: options.price.size // share] for column in options)
        detail[f"seconds_of_{some.price.size}"] = round(some.price.size / max(_ours(some) for _ in range(REPEATS)), 4)
    return {**row, "value": round(ours / other, 1), "ok": ours / other >= REACH[name], "detail": detail}


def _ours(options: Options) -> float:
    count = options.price.size
    moments = NOW + np.arange(count, dtype=np.int64) * 1_000
    quotes = UnderlyingQuotes(NOW + np.arange(0, count * 1_000, 100_000), *np.full((2, (count + 99) // 100), SPOT))
    trades = OptionTrades(
        moments,
        options.price,
        options.strike,
        options.call,
        moments + options.days * (int(YEAR_NS) // 365),
        np.ones(count, dtype=np.bool_),
    )
    curve = Curve(np.array([0.25, 1.0, 5.0]), np.full(3, RATE))
    start = time.perf_counter()
    columns = compute_greeks(trades, quotes, curve, CARRY, GreeksSettings())
    elapsed = time.perf_counter() - start
    if not columns.usable.all() or np.max(np.abs(columns.iv - options.volatility)) > 1e-9:
        raise RuntimeError("the kernel did not recover the volatilities; the figure would be worthless")
    return count / elapsed


def _vollib(options: Options, sample: int) -> float:
    iv: Any = importlib.import_module("vollib.black_scholes_merton.implied_volatility").implied_volatility
    greeks: Any = importlib.import_module("vollib.black_scholes_merton.greeks.analytical")
    terms = list(zip(*(column[:sample].tolist() for column in options[:4]), strict=True))
    start = time.perf_counter()
    for strike, days, call, price in terms:
        right, tau = ("c" if call else "p"), days / 365.0
        volatility = iv(price, SPOT, strike, tau, RATE, CARRY, right)
        greeks.delta(right, SPOT, strike, tau, RATE, volatility, CARRY)
        greeks.gamma(right, SPOT, strike, tau, RATE, volatility, CARRY)
        greeks.vega(right, SPOT, strike, tau, RATE, volatility, CARRY)
        greeks.theta(right, SPOT, strike, tau, RATE, volatility, CARRY)
    return sample / (time.perf_counter() - start)


def _quantlib(options: Options, sample: int) -> float:
    library: Any = importlib.import_module("QuantLib")
    call_side, put_side = library.Option.Call, library.Option.Put
    payoff_of, calculator_of = library.PlainVanillaPayoff, library.BlackCalculator
    deviation_of = library.blackFormulaImpliedStdDevLiRS
    terms = list(zip(*(column[:sample].tolist() for column in options[:4]), strict=True))
    start = time.perf_counter()
    for strike, days, call, price in terms:
        tau = days / 365.0
        payoff = payoff_of(call_side if call else put_side, strike)
        forward, discount = SPOT * math.exp((RATE - CARRY) * tau), math.exp(-RATE * tau)
        calculator = calculator_of(payoff, forward, deviation_of(payoff, forward, price, discount), discount)
        calculator.delta(SPOT)
        calculator.gamma(SPOT)
        calculator.vega(tau)
        calculator.theta(SPOT, tau)
    return sample / (time.perf_counter() - start)


if __name__ == "__main__":
    for result in measure():
        print(result)
