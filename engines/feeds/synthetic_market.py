"""
Stocks of the synthetic session: a random-walk market with quotes, trades and their true aggressor side.

Everything is drawn from a seeded PCG64 through ``Generator.random`` alone, so equal arguments give equal arrays. Prices
of quotes are whole cents, so that a quote's text and its number are the same thing. It must never read a clock, write
a file, or know what an engine makes of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, datetime, time
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

NEW_YORK: Final = ZoneInfo("America/New_York")
MINUTE_NS: Final = 60_000_000_000
MINUTES: Final = 390
QUOTE_AGE_MAX_NS: Final = 900_000_000
"""Every attributed trade follows its quote within this time, below the one second at which a quote counts as stale."""
MILLISECOND_NS: Final = 1_000_000

_PRE_MARKET_NS: Final = 90 * MINUTE_NS
_AFTER_HOURS_NS: Final = 60 * MINUTE_NS
_OFF_EXCHANGE: Final = 4
_EXCHANGES: Final = np.array([11, 12, 8, 10, 19], dtype=np.int64)
_STEP_PROBABILITY: Final = 0.15

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Texts = NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class SessionClock:
    """Bounds of one session, UTC epoch nanoseconds, half-open."""

    session: date
    open_ns: int
    close_ns: int


@dataclass(frozen=True, slots=True)
class StockProfile:
    """What makes one stock of the session; counts are rows at scale 1, prices cents, times nanoseconds."""

    ticker: str
    first_bid_cents: int
    quotes: int
    trades: int
    tape: int
    unit_ns: int
    """Resolution of its times: 1, or a millisecond."""
    spread_cents_max: int
    trades_every_minutes: int
    """At least one trade in every so many minutes."""
    has_options: bool
    ties: bool = False
    """Quotes may share a timestamp, and trades theirs with a quote."""
    locked_share: float = 0.0
    """Share of its quotes with bid equal to ask."""
    cancelled_block: bool = False


@dataclass(frozen=True, slots=True)
class QuoteRows:
    """Quotes of one stock in time order; all arrays int64 [n]: nanoseconds, cents, shares, exchange ids."""

    sip_timestamp: Integers
    participant_timestamp: Integers
    bid_cents: Integers
    ask_cents: Integers
    bid_size: Integers
    ask_size: Integers
    bid_exchange: Integers
    ask_exchange: Integers


@dataclass(frozen=True, slots=True)
class TradeRows:
    """
    Trades of one stock in time order, arrays [n].

    ``side`` is who really took liquidity: ``B``, ``S``, or ``U`` where nobody did. ``placement`` says where the price
    lies in the quote that stood: ``touch``, ``inside`` (nearer to the planted side), ``mid``, ``derived``, ``auction``,
    ``cancelled``.
    """

    sip_timestamp: Integers
    participant_timestamp: Integers
    price: Floats
    size: Integers
    conditions: Texts
    correction: Texts
    exchange: Integers
    side: Texts
    placement: Texts

    def take(self, index: Integers | Booleans) -> TradeRows:
        """The rows that ``index`` selects, in its order."""
        return TradeRows(*(getattr(self, field.name)[index] for field in fields(self)))


STOCKS: Final = (
    StockProfile("ACME", 12_000, 30_000, 9_000, 1, 1, 3, 5, True),
    StockProfile("BORE", 4_850, 18_000, 6_000, 3, MILLISECOND_NS, 2, 5, True),
    StockProfile("CALX", 20_500, 16_000, 4_500, 3, 1, 6, 5, True),
    StockProfile("DUNE", 3_120, 14_000, 5_000, 1, MILLISECOND_NS, 2, 1, False, ties=True),
    StockProfile("ELMO", 7_740, 4_000, 700, 3, 1, 4, 5, False, locked_share=0.004, cancelled_block=True),
)


def session_clock(session: str) -> SessionClock:
    """
    Regular hours of a date, 09:30 to 16:00 exchange-local New York.

    Args:
        session: ISO date; a weekday. Holidays and early closes are not known here.

    Raises:
        ValueError: no ISO date, or a Saturday or Sunday.
    """
    day = date.fromisoformat(session)
    if day.weekday() >= 5:
        raise ValueError(f"session {session} is a {day:%A}: give a weekday")
    return SessionClock(day, local_ns(day, time(9, 30)), local_ns(day, time(16)))


def local_ns(day: date, at: time) -> int:
    """UTC epoch nanoseconds of an exchange-local New York date and time of whole seconds."""
    return int(datetime.combine(day, at, tzinfo=NEW_YORK).timestamp()) * 1_000_000_000


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for one part of the session, so that no part shifts another's draws."""
    return np.random.Generator(np.random.PCG64([seed, *stream]))


def scaled(count: int, scale: float) -> int:
    """A row count at a scale, at least 1."""
    return max(1, round(count * scale))


def minute_index(times_ns: Integers, clock: SessionClock) -> Integers:
    """Minute of the session of each time, int64; below 0 or from 390 outside regular hours."""
    return (times_ns - clock.open_ns) // MINUTE_NS


def make_quotes(profile: StockProfile, clock: SessionClock, rng: np.random.Generator, scale: float) -> QuoteRows:
    """Quotes of a stock from 08:00 to 17:00, at least one in every minute of the session."""
    times = _quote_times(profile, clock, rng, scale)
    count = times.size
    minutes = minute_index(times, clock)
    step = rng.random(count)
    bid = profile.first_bid_cents + np.cumsum(
        (step > 1 - _STEP_PROBABILITY).astype(np.int64) - (step < _STEP_PROBABILITY)
    )
    # A long walk must not reach zero, where a bid would stop being one.
    bid = np.maximum(bid, profile.first_bid_cents // 2)
    spread = 1 + (rng.random(count) ** 2 * profile.spread_cents_max).astype(np.int64)
    outside = (minutes < 0) | (minutes >= MINUTES)
    spread[outside] *= 3
    # The first quote of a minute is never locked: the trades that every few minutes need stand on it.
    first_of_minute = np.concatenate(([True], minutes[1:] != minutes[:-1]))
    spread[(rng.random(count) < profile.locked_share) & ~first_of_minute] = 0
    ask = bid + spread
    sizes = 100 * (1 + (rng.random((2, count)) ** 3 * 30).astype(np.int64))
    exchanges = _EXCHANGES[(rng.random((2, count)) * _EXCHANGES.size).astype(np.int64)]
    # Before anybody bids the feed shows a side of zeros.
    bid[0] = sizes[0, 0] = exchanges[0, 0] = 0
    participant = times - _latency(rng, count, profile)
    return QuoteRows(times, participant, bid, ask, sizes[0], sizes[1], exchanges[0], exchanges[1])


def make_trades(
    profile: StockProfile, clock: SessionClock, quotes: QuoteRows, rng: np.random.Generator, scale: float
) -> TradeRows:
    """
    Trades of a stock: each stands on one quote, in that quote's minute and at most 0.9 s after it.

    Auction prints and a cancelled block, which stand on no quote, are added. Where times do not tie, the quote that a
    trade stands on is the last one at or before it.
    """
    index = _quotes_hit(profile, clock, quotes, rng, scale)
    times = _trade_times(profile, clock, quotes, index, rng)
    repeats = 1 + (rng.random(index.size) < 0.015)
    rows = _print_trades(profile, clock, quotes, np.repeat(index, repeats), np.repeat(times, repeats), rng)
    rows = _joined(rows, _special_prints(profile, clock, quotes))
    return rows.take(np.argsort(rows.sip_timestamp, kind="stable"))


def _session_times(clock: SessionClock, count: int, rng: np.random.Generator) -> Integers:
    """``count`` times in the session, busiest at open and close (a parabola, four times the noon rate)."""
    edges = np.arange(MINUTES + 1)
    weight = 1 + 3 * (2 * (edges[:-1] + 0.5) / MINUTES - 1) ** 2
    cumulative = np.concatenate(([0.0], np.cumsum(weight)))
    position = np.interp(rng.random(count) * cumulative[-1], cumulative, edges.astype(np.float64))
    times: Integers = clock.open_ns + (position * MINUTE_NS).astype(np.int64)
    return times


def _quote_times(profile: StockProfile, clock: SessionClock, rng: np.random.Generator, scale: float) -> Integers:
    count = scaled(profile.quotes, scale)
    extra = max(8, count // 50)
    every_minute = clock.open_ns + ((np.arange(MINUTES) + 0.95 * rng.random(MINUTES)) * MINUTE_NS).astype(np.int64)
    session = np.concatenate((_session_times(clock, max(0, count - MINUTES), rng), every_minute))
    before = clock.open_ns - 1 - (rng.random(extra) ** 2 * _PRE_MARKET_NS).astype(np.int64)
    # Two in the last seconds before the open, so that the opening trades have a quote that is not stale.
    before = np.concatenate((before, clock.open_ns - np.array([20_000_000_007, 300_000_011])))
    after = clock.close_ns + (rng.random(extra) ** 2 * _AFTER_HOURS_NS).astype(np.int64)
    times = np.concatenate((before, session, after)) // profile.unit_ns * profile.unit_ns
    return np.sort(times) if profile.ties else np.unique(times)


def _latency(rng: np.random.Generator, count: int, profile: StockProfile) -> Integers:
    """How long before the SIP the participant had it; 0 where times are milliseconds, as in the older feeds."""
    latency = 80_000 + (rng.random(count) ** 3 * 900_000).astype(np.int64)
    return latency if profile.unit_ns == 1 else np.zeros(count, dtype=np.int64)


def _quotes_hit(
    profile: StockProfile, clock: SessionClock, quotes: QuoteRows, rng: np.random.Generator, scale: float
) -> Integers:
    """Positions of the quotes that trades stand on, session and extended hours, in time order."""
    count = scaled(profile.trades, scale)
    at = quotes.sip_timestamp
    drawn = np.searchsorted(at, _session_times(clock, count, rng), "right") - 1
    extended = np.flatnonzero((at < clock.open_ns) | (at >= clock.close_ns))
    drawn = np.concatenate((drawn, extended[(rng.random(max(4, count // 40)) * extended.size).astype(np.int64)]))
    drawn = drawn[(quotes.bid_cents[drawn] > 0) & (quotes.ask_cents[drawn] > quotes.bid_cents[drawn])]
    starts = np.arange(0, MINUTES, profile.trades_every_minutes)
    minutes = starts + (rng.random(starts.size) * profile.trades_every_minutes).astype(np.int64)
    regular = np.searchsorted(at, clock.open_ns + minutes * MINUTE_NS, "left")
    return np.sort(np.concatenate((drawn, regular)))


def _trade_times(
    profile: StockProfile, clock: SessionClock, quotes: QuoteRows, index: Integers, rng: np.random.Generator
) -> Integers:
    at = quotes.sip_timestamp
    following = np.append(at[1:], at[-1] + MINUTE_NS)[index]
    own = at[index]
    minute_end = own - (own - clock.open_ns) % MINUTE_NS + MINUTE_NS
    limit = np.minimum(np.minimum(following, minute_end), own + QUOTE_AGE_MAX_NS)
    room = (limit - own) // profile.unit_ns - 1
    offset = np.where(room >= 1, 1 + (rng.random(index.size) ** 2 * room).astype(np.int64), 0)
    offset = np.minimum(offset, np.maximum(room, 0)) * profile.unit_ns
    tie = rng.random(index.size)
    if profile.ties:
        reachable = (following < minute_end) & (following - own <= QUOTE_AGE_MAX_NS)
        offset = np.where(tie < 0.35, 0, offset)
        offset = np.where((tie > 0.85) & reachable, following - own, offset)
    return np.asarray(own + offset, dtype=np.int64)


def _print_trades(
    profile: StockProfile,
    clock: SessionClock,
    quotes: QuoteRows,
    index: Integers,
    times: Integers,
    rng: np.random.Generator,
) -> TradeRows:
    count = index.size
    bid, ask = quotes.bid_cents[index], quotes.ask_cents[index]
    buyer = rng.random(count) < 0.5
    kind = rng.random(count)
    inside = (kind > 0.80) & (kind <= 0.90) & (ask - bid >= 3)
    mid = (kind > 0.90) & (kind <= 0.97)
    derived = kind > 0.97
    cents = np.where(buyer, ask - inside, bid + inside).astype(np.float64)
    cents = np.where(mid, (bid + ask) / 2, cents)
    cents = np.where(derived, bid + np.round((rng.random(count) - 0.5) * 40), cents)
    odd = rng.random(count) < 0.22
    size = np.where(
        odd, 1 + (rng.random(count) * 99).astype(np.int64), 100 * (1 + (rng.random(count) ** 4 * 20).astype(np.int64))
    )
    sweep = rng.random(count)
    conditions = np.where(derived, "10", np.select([mid, sweep < 0.2, sweep < 0.3], ["", "14", "14,41"], ""))
    conditions = _with_condition(conditions, odd, "37")
    minutes = minute_index(times, clock)
    conditions = _with_condition(conditions, (minutes < 0) | (minutes >= MINUTES), "12")
    exchange = np.where(buyer, quotes.ask_exchange[index], quotes.bid_exchange[index])
    exchange = np.where(mid | derived, _OFF_EXCHANGE, exchange)
    side = np.where(derived, "U", np.where(buyer, "B", "S"))
    placement = np.select([derived, mid, inside], ["derived", "mid", "inside"], "touch")
    participant = times - _latency(rng, count, profile)
    correction = np.full(count, "")
    return TradeRows(times, participant, cents / 100, size, conditions, correction, exchange, side, placement)


def _with_condition(conditions: Texts, where: Booleans, code: str) -> Texts:
    """Add a code in front of the others where asked; codes of one print are a comma list."""
    joined = np.where(conditions == "", code, np.char.add(f"{code},", conditions))
    return np.where(where, joined, conditions)


def _special_prints(profile: StockProfile, clock: SessionClock, quotes: QuoteRows) -> TradeRows:
    """Auction and official prices of open (in the session) and close (behind it), and the cancelled block."""
    second = 1_000_000_000
    opening, closing = clock.open_ns + 412_000_000, clock.close_ns + 236_000_000
    times = [opening, opening + 3_000_000, closing, closing + 5_000_000]
    sizes = [18_400, 18_400, 42_700, 42_700]
    conditions, corrections, placements = ["17", "16", "19", "15"], [""] * 4, ["auction"] * 4
    primary = 10 if profile.tape == 1 else 12
    exchanges = [primary] * 4
    if profile.cancelled_block:
        times.append(clock.open_ns + 135 * MINUTE_NS + 12 * second + 345_678_901)
        sizes.append(250_000)
        conditions.append("9,41")
        corrections.append("8")
        placements.append("cancelled")
        exchanges.append(_OFF_EXCHANGE)
    at = np.array(times, dtype=np.int64)
    standing = np.searchsorted(quotes.sip_timestamp, at, "right") - 1
    price = (quotes.bid_cents[standing] + quotes.ask_cents[standing]) // 2 / 100
    # The block was struck far off the market: whoever fails to leave it out moves the minute's high and its volume.
    price = np.where(np.array(placements) == "cancelled", np.round(price * 1.04, 2), price)
    return TradeRows(
        at,
        at.copy(),
        price,
        np.array(sizes, dtype=np.int64),
        np.array(conditions),
        np.array(corrections),
        np.array(exchanges, dtype=np.int64),
        np.full(at.size, "U"),
        np.array(placements),
    )


def _joined(first: TradeRows, second: TradeRows) -> TradeRows:
    return TradeRows(
        *(np.concatenate((getattr(first, field.name), getattr(second, field.name))) for field in fields(first))
    )
