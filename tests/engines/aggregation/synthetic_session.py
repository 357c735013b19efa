"""Rows of one made-up underlying and session for the tests and the benchmark of the aggregates; seeded, never random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.inputs import OptionTrades, SessionInputs, UnderlyingTrades

SESSION_OPEN_NS = 1_381_152_600_000_000_000
"""2013-10-07 09:30 New York."""
_MINUTE_NS = 60_000_000_000


def _times(generator: np.random.Generator, rows: int, minutes: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    weights = 1.0 + 1.5 * np.linspace(-1.0, 1.0, minutes) ** 2
    minute = np.sort(generator.choice(minutes, rows, p=weights / weights.sum())).astype(np.uint16)
    time = SESSION_OPEN_NS + minute.astype(np.int64) * _MINUTE_NS + generator.integers(0, _MINUTE_NS, rows)
    # A tenth share a time, as prints do.
    time = np.where(generator.random(rows) < 0.1, time // 1_000_000_000 * 1_000_000_000, time)
    return minute, np.sort(time)


def session(
    option_rows: int, underlying_rows: int, minutes: int = 390, seed: int = 1, holes: float = 0.0
) -> SessionInputs:
    """Trades busier at open and close; ``holes`` is the share of option rows without spot, of those without delta ..."""
    generator = np.random.Generator(np.random.PCG64([seed, option_rows, underlying_rows]))
    minute, time = _times(generator, underlying_rows, minutes)
    price = np.round(100.0 * np.exp(np.cumsum(generator.normal(0.0, 1e-4, underlying_rows))), 2)
    size = 100.0 * np.ceil(generator.lognormal(0.0, 1.0, underlying_rows))
    sets_price, cancelled = generator.random(underlying_rows) > 0.05, generator.random(underlying_rows) < 0.01
    underlying = UnderlyingTrades(minute, time, price, size, sets_price, cancelled)

    minute, time = _times(generator, option_rows, minutes)
    spot = np.round(100.0 * np.exp(generator.normal(0.0, 0.005, option_rows)), 3)
    strike = 100.0 + 2.5 * np.round(generator.normal(0.0, 4.0, option_rows))
    is_call = generator.random(option_rows) < 0.6
    call_delta = 1.0 / (1.0 + np.exp((strike - spot) / 6.0))
    side = generator.choice(3, option_rows, p=[0.1, 0.45, 0.45]).astype(np.uint8)
    method = np.where(side == 0, 0, generator.choice([1, 2, 3], option_rows)).astype(np.uint8)

    def hole() -> NDArray[np.bool_]:
        return generator.random(option_rows) < holes

    intrinsic = np.maximum(np.where(is_call, spot - strike, strike - spot), 0.0)
    options = OptionTrades(
        minute=minute,
        timestamp_ns=time,
        is_call=is_call,
        price=np.asarray(
            np.round(np.maximum(intrinsic + generator.normal(1.0, 1.0, option_rows), 0.01), 2), np.float64
        ),
        size=np.ceil(generator.lognormal(1.0, 1.3, option_rows)),
        multiplier=np.full(option_rows, 100.0),
        strike=strike,
        delta=np.where(hole(), np.nan, np.where(is_call, call_delta, call_delta - 1.0)),
        gamma=np.where(hole(), np.nan, 0.04 * np.exp(-0.5 * ((spot - strike) / 10.0) ** 2)),
        spot=np.where(hole(), np.nan, spot),
        side=side,
        method=method,
        confidence=np.where(hole(), np.nan, np.array([0.0, 1.0, 0.7, 0.5])[method]),
        standard=~hole(),
        cancelled=hole(),
    )
    return SessionInputs(SESSION_OPEN_NS, underlying, options)
