"""
Option chains of the synthetic session: contracts with a planted volatility, priced from their stock's mid.

Model: European Black-Scholes-Merton without dividends, ACT/365 in seconds, time to the close of the last weekday on or
before the expiry date, rate linear in the log discount factor between the tenors of the curve that holds (M17's own
definitions, so a solver that follows them finds the planted volatility again). It must never read a clock, write a
file, or import an engine: what it plants is there to check them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, time, timedelta
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from engines.feeds.synthetic_market import (
    MINUTE_NS,
    QUOTE_AGE_MAX_NS,
    Floats,
    Integers,
    QuoteRows,
    SessionClock,
    StockProfile,
    Texts,
    local_ns,
    minute_index,
    scaled,
)

YEAR_SECONDS: Final = 31_536_000
TENORS: Final = (
    ("yield_1_month", 1 / 12, 3.70),
    ("yield_3_month", 0.25, 3.68),
    ("yield_6_month", 0.5, 3.62),
    ("yield_1_year", 1.0, 3.52),
    ("yield_2_year", 2.0, 3.45),
    ("yield_3_year", 3.0, 3.46),
    ("yield_5_year", 5.0, 3.58),
    ("yield_7_year", 7.0, 3.78),
    ("yield_10_year", 10.0, 4.02),
    ("yield_20_year", 20.0, 4.60),
    ("yield_30_year", 30.0, 4.65),
)
"""Field name upstream, tenor in years, percent of the oldest curve."""

_STRIKES_EACH_SIDE: Final = 4
_QUOTES_PER_CHAIN: Final = 26_000
_TRADES_PER_CHAIN: Final = 3_000
_QUOTE_DELAY_MAX_NS: Final = 400_000_000
_TRADED_PRICE_MIN: Final = 0.10
_EXCHANGES: Final = np.array([302, 308, 312, 316, 323], dtype=np.int64)
_CONDITIONS: Final = np.array(["209"] * 7 + ["219", "227", "232"])


@dataclass(frozen=True, slots=True)
class Contract:
    """One option contract; strike in dollars, times UTC epoch nanoseconds, volatility per year as a fraction."""

    ticker: str
    underlying: str
    right: str
    strike: float
    expiry_date: str
    expiry_ns: int
    implied_volatility: float


@dataclass(frozen=True, slots=True)
class OptionQuoteRows:
    """Quotes of a chain in order of contract, then time; arrays [n]; prices in cents, sizes in contracts."""

    contract: Integers
    sip_timestamp: Integers
    bid_cents: Integers
    ask_cents: Integers
    bid_size: Integers
    ask_size: Integers
    exchange: Integers
    trade_limit_ns: Integers
    """A trade before this time sees this quote and the stock quote it was made from."""
    spot: Floats


@dataclass(frozen=True, slots=True)
class OptionTradeRows:
    """
    Trades of a chain in order of contract, then time; arrays [n].

    ``placement`` is ``touch`` (at the quoted bid or ask) or ``model`` (the model's price at the planted volatility,
    with eight decimals; its side is the nearer one). ``spot`` and ``rate`` are what the model's price stands on.
    """

    contract: Integers
    sip_timestamp: Integers
    price: Floats
    size: Integers
    conditions: Texts
    exchange: Integers
    side: Texts
    placement: Texts
    spot: Floats
    rate: Floats


@dataclass(frozen=True, slots=True)
class Chain:
    """All contracts of one root with their rows; ``contract`` in the rows counts in ``contracts``."""

    root: str
    contracts: tuple[Contract, ...]
    quotes: OptionQuoteRows
    trades: OptionTradeRows


def make_curves(clock: SessionClock) -> dict[str, dict[str, float]]:
    """
    Par yields in percent by date, oldest first: the ten weekdays before the session, and the session's own date.

    Levels differ from day to day by far more than rounding, so that a run that took the wrong day's curve shows.
    """
    days = [clock.session]
    while len(days) < 11:
        days.append(previous_weekday(days[-1]))
    shifts = (0.0, 0.02, -0.03, 0.01, 0.04, -0.02, 0.03, 0.05, -0.04, 0.22, 0.61)
    return {
        day.isoformat(): {name: round(percent + shift, 2) for name, _, percent in TENORS}
        for day, shift in zip(reversed(days), shifts, strict=True)
    }


def previous_weekday(day: date) -> date:
    """The last Monday to Friday before a date."""
    day -= timedelta(days=1)
    while day.weekday() >= 5:
        day -= timedelta(days=1)
    return day


def curve_rate(curve: dict[str, float], years: ArrayLike) -> Floats:
    """Continuously compounded rate (fraction per year) at times in years: linear in -rate x time, flat outside."""
    tenors = np.array([tenor for _, tenor, _ in TENORS])
    rates = np.array([curve[name] for name, _, _ in TENORS]) / 100
    at = np.clip(np.asarray(years, dtype=np.float64), tenors[0], tenors[-1])
    return np.asarray(np.interp(at, tenors, tenors * rates) / at, dtype=np.float64)


def black_scholes_price(
    spot: ArrayLike, strike: ArrayLike, years: ArrayLike, rate: ArrayLike, volatility: ArrayLike, call: ArrayLike
) -> Floats:
    """
    Price of a European option without dividends, dollars, float64 of the broadcast shape.

    Source: Black and Scholes (1973), Merton (1973). Reference code, clear rather than fast.
    """
    spot, strike, years, rate, volatility = (np.asarray(x, np.float64) for x in (spot, strike, years, rate, volatility))
    total = volatility * np.sqrt(years)
    d1 = (np.log(spot / strike) + rate * years) / total + total / 2
    sign = np.where(np.asarray(call), 1.0, -1.0)
    discounted = strike * np.exp(-rate * years)
    return sign * (spot * _normal_cdf(sign * d1) - discounted * _normal_cdf(sign * (d1 - total)))


def _normal_cdf(x: Floats) -> Floats:
    values = np.ravel(np.asarray(x, dtype=np.float64)) / -math.sqrt(2.0)
    return np.array([0.5 * math.erfc(value) for value in values.tolist()]).reshape(np.shape(x))


def expiry_dates(session: date) -> tuple[date, date, date]:
    """The next Friday, the next third Friday behind it, and the Saturday behind the third Friday after that."""
    weekly = session + timedelta(days=(4 - session.weekday()) % 7 or 7)
    monthly = _third_friday(weekly)
    return weekly, monthly, _third_friday(monthly) + timedelta(days=1)


def _third_friday(after: date) -> date:
    """The first third Friday of a month that lies behind a date."""
    first = after.replace(day=1)
    while True:
        third = first + timedelta(days=(4 - first.weekday()) % 7 + 14)
        if third > after:
            return third
        first = (first + timedelta(days=32)).replace(day=1)


def make_contracts(root: str, spot: float, session: date) -> tuple[Contract, ...]:
    """The chain of a stock around its opening mid, in the order of their tickers: three expiries, nine strikes."""
    contracts = []
    for expiry, relative_step in zip(expiry_dates(session), (0.008, 0.02, 0.04), strict=True):
        step = min((0.5, 1.0, 2.5, 5.0, 10.0), key=lambda choice: abs(choice - relative_step * spot))
        last_session = expiry if expiry.weekday() < 5 else previous_weekday(expiry)
        expiry_ns = local_ns(last_session, time(16))
        for rank in range(-_STRIKES_EACH_SIDE, _STRIKES_EACH_SIDE + 1):
            strike = (round(spot / step) + rank) * step
            moneyness = math.log(strike / spot)
            smile = 0.26 - 0.35 * moneyness + 2.4 * moneyness**2 + 0.25 / (5 + (expiry - session).days)
            for right in "CP":
                ticker = f"O:{root}{expiry:%y%m%d}{right}{round(strike * 1000):08d}"
                # Puts a little above calls: every contract keeps a volatility of its own.
                volatility = round(smile + (0.002 if right == "P" else 0.0), 4)
                contracts.append(Contract(ticker, root, right, strike, expiry.isoformat(), expiry_ns, volatility))
    return tuple(sorted(contracts, key=lambda contract: contract.ticker))


class ChainModel:
    """Prices the contracts of one chain under one curve; contracts are given by their position in the chain."""

    def __init__(self, contracts: tuple[Contract, ...], curve: dict[str, float]) -> None:
        self._strike = np.array([contract.strike for contract in contracts])
        self._expiry_ns = np.array([contract.expiry_ns for contract in contracts], dtype=np.int64)
        self._volatility = np.array([contract.implied_volatility for contract in contracts])
        self._call = np.array([contract.right == "C" for contract in contracts])
        self._curve = curve

    def years(self, contract: Integers, at_ns: Integers) -> Floats:
        """Time to expiry in years, ACT/365."""
        return np.asarray((self._expiry_ns[contract] - at_ns) / 1e9 / YEAR_SECONDS, dtype=np.float64)

    def rate(self, contract: Integers, at_ns: Integers) -> Floats:
        """Rate to expiry, fraction per year."""
        return curve_rate(self._curve, self.years(contract, at_ns))

    def price(self, contract: Integers, at_ns: Integers, spot: Floats) -> Floats:
        """Model price in dollars at the planted volatility."""
        return black_scholes_price(
            spot,
            self._strike[contract],
            self.years(contract, at_ns),
            self.rate(contract, at_ns),
            self._volatility[contract],
            self._call[contract],
        )


def make_chain(
    profile: StockProfile,
    clock: SessionClock,
    stock: QuoteRows,
    curve: dict[str, float],
    rng: np.random.Generator,
    scale: float,
) -> Chain:
    """The chain of one stock: contracts, quotes around the model's price, trades on those quotes."""
    first = int(np.searchsorted(stock.sip_timestamp, clock.open_ns))
    spot = (int(stock.bid_cents[first]) + int(stock.ask_cents[first])) / 200
    contracts = make_contracts(profile.ticker, spot, clock.session)
    model = ChainModel(contracts, curve)
    quotes = _make_quotes(profile, clock, stock, model, len(contracts), rng, scale)
    return Chain(profile.ticker, contracts, quotes, _make_trades(profile, model, quotes, rng, scale))


def _make_quotes(
    profile: StockProfile,
    clock: SessionClock,
    stock: QuoteRows,
    model: ChainModel,
    contracts: int,
    rng: np.random.Generator,
    scale: float,
) -> OptionQuoteRows:
    at = stock.sip_timestamp
    minutes = minute_index(at, clock)
    following = np.append(at[1:], at[-1] + MINUTE_NS)
    minute_end = clock.open_ns + (minutes + 1) * MINUTE_NS
    limit = np.minimum(np.minimum(following, minute_end), at + QUOTE_AGE_MAX_NS)
    room = (limit - at) // profile.unit_ns
    # Room for a quote and a trade behind it while the stock's quote stands; nothing outside the session.
    usable = np.flatnonzero((minutes >= 0) & (minutes < 390) & (room >= 4))
    starts = np.searchsorted(minutes[usable], np.unique(minutes[usable]))
    count = scaled(_QUOTES_PER_CHAIN, scale)
    drawn = usable[np.concatenate((starts, (rng.random(count) * usable.size).astype(np.int64)))]
    chosen = (rng.random(drawn.size) * contracts).astype(np.int64)
    # At most one quote of a contract on one stock quote, so that a trade behind it sees no other.
    unique = np.unique(chosen * at.size + drawn)
    contract, source = unique // at.size, unique % at.size
    reach = np.minimum(room[source] - 3, _QUOTE_DELAY_MAX_NS // profile.unit_ns)
    times = at[source] + (1 + (rng.random(source.size) ** 3 * reach).astype(np.int64)) * profile.unit_ns
    spot = (stock.bid_cents[source] + stock.ask_cents[source]) / 200
    cents = model.price(contract, times, spot) * 100
    tick = np.where(cents < 300, 1, 5)
    half = np.maximum(1.0, 0.015 * cents) * (0.6 + 0.8 * rng.random(source.size)) + 0.5
    bid = np.maximum(np.floor((cents - half) / tick).astype(np.int64), 0) * tick
    ask = np.ceil((cents + half) / tick).astype(np.int64) * tick
    sizes = 1 + (rng.random((2, source.size)) ** 2 * 120).astype(np.int64)
    sizes[0] = np.where(bid == 0, 0, sizes[0])
    exchange = _EXCHANGES[(rng.random(source.size) * _EXCHANGES.size).astype(np.int64)]
    return OptionQuoteRows(contract, times, bid, ask, sizes[0], sizes[1], exchange, limit[source], spot)


def _make_trades(
    profile: StockProfile, model: ChainModel, quotes: OptionQuoteRows, rng: np.random.Generator, scale: float
) -> OptionTradeRows:
    worth = np.flatnonzero((quotes.bid_cents > 0) & (quotes.ask_cents > _TRADED_PRICE_MIN * 100))
    wanted = min(scaled(_TRADES_PER_CHAIN, scale), worth.size)
    hit = np.sort(worth[np.argsort(rng.random(worth.size), kind="stable")[:wanted]])
    own = quotes.sip_timestamp[hit]
    room = (quotes.trade_limit_ns[hit] - own) // profile.unit_ns - 1
    times = own + (1 + (rng.random(hit.size) ** 2 * (room - 1)).astype(np.int64)) * profile.unit_ns
    bid, ask = quotes.bid_cents[hit] / 100, quotes.ask_cents[hit] / 100
    theory = np.round(model.price(quotes.contract[hit], times, quotes.spot[hit]), 8)
    at_model = (rng.random(hit.size) < 0.25) & (theory > bid + 0.001) & (theory < ask - 0.001)
    buyer = np.where(at_model, theory - bid >= ask - theory, rng.random(hit.size) < 0.5)
    price = np.where(at_model, theory, np.where(buyer, ask, bid))
    size = 1 + (rng.random(hit.size) ** 4 * 60).astype(np.int64)
    conditions = _CONDITIONS[(rng.random(hit.size) * _CONDITIONS.size).astype(np.int64)]
    # Some prints come twice, equal in everything the feed sends.
    row = np.repeat(np.arange(hit.size), 1 + (rng.random(hit.size) < 0.01))
    return OptionTradeRows(
        quotes.contract[hit][row],
        times[row],
        price[row],
        size[row],
        conditions[row],
        quotes.exchange[hit][row],
        np.where(buyer, "B", "S")[row],
        np.where(at_model, "model", "touch")[row],
        quotes.spot[hit][row],
        model.rate(quotes.contract[hit], times)[row],
    )
