"""
Rows of one underlying and one session, and the samples that the aggregates describe.

Everything that can be said row by row is decided here, with numpy: which rows go in, which are left out and why, the
spot of each option trade, its dollar values. It must never look at anything but the rows it is given, and never at a
row later than the one it values.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.columns import COUNTS
from engines.aggregation.policy import AggregationPolicy

MINUTES_BACK: Final = 1
"""How many minutes before its own an option trade may take its spot from."""


class Side(IntEnum):
    """Who took the initiative; the codes of the aggressor rows."""

    UNKNOWN = 0
    BUYER = 1
    SELLER = 2


class Method(IntEnum):
    """What decided the side; the codes of the aggressor rows."""

    UNKNOWN = 0
    TOUCH = 1
    AT_OR_BEYOND = 2
    TICK_RULE = 3


@dataclass(frozen=True, slots=True)
class UnderlyingTrades:
    """Trades of the underlying in session, all arrays of one length, ordered by minute, then time, then canonically."""

    minute: NDArray[np.uint16]
    """u16[n]: minute of the session, ascending."""
    timestamp_ns: NDArray[np.int64]
    """i64[n]: SIP time, ns since the epoch, UTC, ascending."""
    price: NDArray[np.float64]
    """f64[n]: USD, finite."""
    size: NDArray[np.float64]
    """f64[n]: shares, finite."""
    sets_price: NDArray[np.bool_]
    """bool[n]: the print may set the last price; read under ``prints = "eligible"`` only."""
    cancelled: NDArray[np.bool_]
    """bool[n]: the print was cancelled; read under ``prints = "eligible"`` only."""


@dataclass(frozen=True, slots=True)
class OptionTrades:
    """Trades of all options of the underlying in session, of one length, ordered by minute, then canonically."""

    minute: NDArray[np.uint16]
    """u16[n]: minute of the session, ascending."""
    timestamp_ns: NDArray[np.int64]
    """i64[n]: SIP time, ns since the epoch, UTC."""
    is_call: NDArray[np.bool_]
    """bool[n]: call or put."""
    price: NDArray[np.float64]
    """f64[n]: USD per share, finite."""
    size: NDArray[np.float64]
    """f64[n]: contracts, finite."""
    multiplier: NDArray[np.float64]
    """f64[n]: shares per contract, finite."""
    strike: NDArray[np.float64]
    """f64[n]: USD, finite."""
    delta: NDArray[np.float64]
    """f64[n]: NaN where there is none, which counts as 0."""
    gamma: NDArray[np.float64]
    """f64[n]: per USD, NaN where there is none, which counts as 0."""
    spot: NDArray[np.float64]
    """f64[n]: the underlying's mid that the Greeks used, USD, NaN where there is none."""
    side: NDArray[np.uint8]
    """u8[n]: ``Side``."""
    method: NDArray[np.uint8]
    """u8[n]: ``Method``."""
    confidence: NDArray[np.float64]
    """f64[n]: of the side, clamped to 0..1; NaN counts as 1."""
    standard: NDArray[np.bool_]
    """bool[n]: False for adjusted deliverables, which are left out."""
    cancelled: NDArray[np.bool_]
    """bool[n]: the print was cancelled; read under ``prints = "eligible"`` only."""


@dataclass(frozen=True, slots=True)
class SessionInputs:
    """Everything that the aggregates of one underlying and one session are made from."""

    session_open_ns: int
    """Start of minute 0, ns since the epoch, UTC."""
    underlying: UnderlyingTrades
    options: OptionTrades


@dataclass(frozen=True, slots=True)
class SideSamples:
    """What the calls, or the puts, bring to the windows; m trades that went in, in canonical order."""

    offsets: NDArray[np.int64]
    """i64[minutes + 1]: the trades of minute T are ``offsets[T]:offsets[T + 1]``."""
    values: NDArray[np.float64]
    """f64[4, m]: dadvv, signed_dadvv, gadvv, signed_gadvv; no -0.0."""
    notional: NDArray[np.float64]
    """f64[m]: price * size * multiplier."""
    mix: NDArray[np.int64]
    """i64[minutes, 7]: trades below and above intrinsic, of unknown side, and by method as in ``columns.PUT_MIX``."""


@dataclass(frozen=True, slots=True)
class SessionSamples:
    """The samples of a session, by minute."""

    underlying_offsets: NDArray[np.int64]
    """i64[minutes + 1]: into ``dollar_value``."""
    dollar_value: NDArray[np.float64]
    """f64[k]: |price * size| of the underlying's trades that went in."""
    prices: NDArray[np.float64]
    """f64[minutes, 4]: open, high, low, close of each minute, NaN where no print sets one."""
    puts: SideSamples
    calls: SideSamples
    counts: NDArray[np.int64]
    """i64[minutes, 10]: as ``columns.COUNTS``."""
    underlying_rows: NDArray[np.int64]
    """i64[minutes + 1]: first row of each minute among the underlying's trades, cancelled ones included."""
    option_rows: NDArray[np.int64]
    """i64[minutes + 1]: first row of each minute among the option trades, left-out ones included."""


def samples_of(inputs: SessionInputs, minutes_in_session: int, policy: AggregationPolicy) -> SessionSamples:
    """
    Decide row by row what goes in, and value it.

    An option trade is left out for the first of these reasons that holds: cancelled (under ``eligible`` only), adjusted
    deliverable, no spot. Its spot is the mid that its Greeks used, else the price of the underlying's last trade at or
    before its time, if that lies in the same minute or the one before.

    Raises:
        ValueError: arrays of unequal length, rows out of order or out of session, unknown codes, values not finite.
    """
    _check(inputs, minutes_in_session)
    under, options = inputs.underlying, inputs.options
    eligible = policy.prints == "eligible"
    under_in = ~under.cancelled if eligible else np.ones(len(under.price), dtype=np.bool_)
    sets_price = under_in & under.sets_price if eligible else under_in

    spot, from_last = _spots(under, options, sets_price)
    cancelled = options.cancelled if eligible else np.zeros(len(options.price), dtype=np.bool_)
    nonstandard = ~cancelled & ~options.standard
    no_spot = ~cancelled & options.standard & np.isnan(spot)
    used = ~cancelled & options.standard & ~no_spot

    def per_minute(rows: NDArray[np.bool_], minute: NDArray[np.uint16]) -> NDArray[np.int64]:
        return np.bincount(minute[rows], minlength=minutes_in_session).astype(np.int64)

    by_reason = {
        "underlying_trades": per_minute(under_in, under.minute),
        "underlying_left_out_cancelled": per_minute(~under_in, under.minute),
        "puts": per_minute(used & ~options.is_call, options.minute),
        "calls": per_minute(used & options.is_call, options.minute),
        "spot_from_last_trade": per_minute(used & from_last, options.minute),
        "null_delta": per_minute(used & np.isnan(options.delta), options.minute),
        "null_gamma": per_minute(used & np.isnan(options.gamma), options.minute),
        "left_out_cancelled": per_minute(cancelled, options.minute),
        "left_out_nonstandard": per_minute(nonstandard, options.minute),
        "left_out_no_spot": per_minute(no_spot, options.minute),
    }
    dollar_value = np.abs(under.price[under_in] * under.size[under_in])
    if not np.isfinite(dollar_value).all():
        raise ValueError("underlying: price * size of a trade is not a finite number; reject absurd rows at intake")
    return SessionSamples(
        underlying_offsets=_offsets(under.minute[under_in], minutes_in_session),
        dollar_value=dollar_value,
        prices=_minute_prices(under, sets_price, minutes_in_session),
        puts=_side_samples(options, spot, used & ~options.is_call, minutes_in_session),
        calls=_side_samples(options, spot, used & options.is_call, minutes_in_session),
        counts=np.stack([by_reason[name] for name in COUNTS], axis=1),
        underlying_rows=_offsets(under.minute, minutes_in_session),
        option_rows=_offsets(options.minute, minutes_in_session),
    )


def _offsets(minute: NDArray[np.uint16], minutes_in_session: int) -> NDArray[np.int64]:
    return np.searchsorted(minute, np.arange(minutes_in_session + 1)).astype(np.int64)


def _spots(
    under: UnderlyingTrades, options: OptionTrades, sets_price: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Spot of each option trade, NaN where there is none, and whether it is the underlying's last trade."""
    has_mid = np.isfinite(options.spot) & (options.spot > 0.0)
    spot = np.where(has_mid, options.spot, np.nan)
    rows = np.flatnonzero(~has_mid)
    price, minute = under.price[sets_price], under.minute[sets_price].astype(np.int64)
    if len(rows) and len(price):
        last = np.searchsorted(under.timestamp_ns[sets_price], options.timestamp_ns[rows], side="right") - 1
        own_minute = options.minute[rows].astype(np.int64)
        found = (last >= 0) & (minute[last] >= own_minute - MINUTES_BACK) & (minute[last] <= own_minute)
        found &= price[last] > 0.0
        spot[rows[found]] = price[last[found]]
    return spot, ~has_mid & ~np.isnan(spot)


def _minute_prices(
    under: UnderlyingTrades, sets_price: NDArray[np.bool_], minutes_in_session: int
) -> NDArray[np.float64]:
    """Open, high, low, close of each minute."""
    prices = np.full((minutes_in_session, 4), np.nan)
    price = under.price[sets_price]
    offsets = _offsets(under.minute[sets_price], minutes_in_session)
    minutes = np.flatnonzero(np.diff(offsets))
    if len(minutes):
        first = offsets[minutes]
        prices[minutes, 0] = price[first]
        prices[minutes, 1] = np.maximum.reduceat(price, first)
        prices[minutes, 2] = np.minimum.reduceat(price, first)
        prices[minutes, 3] = price[offsets[minutes + 1] - 1]
    return prices


def _side_samples(
    options: OptionTrades, spot: NDArray[np.float64], rows: NDArray[np.bool_], minutes_in_session: int
) -> SideSamples:
    """Value the chosen rows: the formulas of the flow quantities."""
    minute, price, spot = options.minute[rows], options.price[rows], spot[rows]
    side, method, is_call = options.side[rows], options.method[rows], options.is_call[rows]
    quantity = options.size[rows] * options.multiplier[rows]
    confidence = options.confidence[rows]
    confidence = np.clip(np.where(np.isnan(confidence), 1.0, confidence), 0.0, 1.0)
    bought = np.where(side == Side.BUYER, confidence, np.where(side == Side.SELLER, 1.0 - confidence, 0.5))
    factor = 2.0 * bought - 1.0
    delta = np.abs(np.nan_to_num(options.delta[rows], nan=0.0))
    gamma = np.abs(np.nan_to_num(options.gamma[rows], nan=0.0))
    dadvv = delta * spot * quantity
    gadvv = gamma * spot * spot * quantity
    # Adding 0.0 turns -0.0 into 0.0: equal values must be equal bytes, whatever order a merge meets them in.
    values = np.stack([dadvv, factor * dadvv, gadvv, factor * gadvv]) + 0.0

    exercise = np.where(is_call, spot - options.strike[rows], options.strike[rows] - spot)
    intrinsic = np.maximum(exercise, 0.0)
    kinds = [price < intrinsic, price > intrinsic, side == Side.UNKNOWN]
    kinds += [method == Method.TOUCH, method == Method.AT_OR_BEYOND, method == Method.TICK_RULE]
    kinds += [method == Method.UNKNOWN]
    mix = np.stack([np.bincount(minute[kind], minlength=minutes_in_session) for kind in kinds], axis=1)
    samples = SideSamples(_offsets(minute, minutes_in_session), values, price * quantity, mix.astype(np.int64))
    for what, array in (("delta or gamma value", values), ("notional", samples.notional)):
        if not np.isfinite(array).all():
            raise ValueError(f"options: the {what} of a trade is not a finite number; reject absurd rows at intake")
    return samples


def _check(inputs: SessionInputs, minutes_in_session: int) -> None:
    """Refuse rows that the rest would silently misread."""
    if minutes_in_session < 1:
        raise ValueError(f"minutes_in_session = {minutes_in_session}: a session has at least one minute")
    for name, trades in (("underlying", inputs.underlying), ("options", inputs.options)):
        arrays = {field.name: getattr(trades, field.name) for field in fields(trades)}
        lengths = {column: len(array) for column, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{name}: arrays of unequal length: {lengths}; pass one entry per trade in each")
        minute = arrays["minute"]
        if len(minute) == 0:
            continue
        if int(minute[-1]) >= minutes_in_session:
            raise ValueError(
                f"{name}: minute {int(minute[-1])} of a session of {minutes_in_session}; pass its rows only"
            )
        if (minute[1:] < minute[:-1]).any():
            row = int(np.argmax(minute[1:] < minute[:-1])) + 1
            raise ValueError(f"{name}: row {row} has an earlier minute than the row before; sort by minute")
        for column in {"price", "size", "multiplier", "strike"} & arrays.keys():
            if not np.isfinite(arrays[column]).all():
                row = int(np.argmin(np.isfinite(arrays[column])))
                raise ValueError(f"{name}: {column} of row {row} is not a finite number; reject such rows at intake")
    times = inputs.underlying.timestamp_ns
    if (times[1:] < times[:-1]).any():
        row = int(np.argmax(times[1:] < times[:-1])) + 1
        raise ValueError(f"underlying: row {row} is earlier than the row before; sort by time within the minute")
    for column, words in (("side", Side), ("method", Method)):
        codes = getattr(inputs.options, column)
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(words):
            raise ValueError(
                f"options: {column} has codes from {codes.min()} to {codes.max()}; known are {list(words)}"
            )
