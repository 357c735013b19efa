"""
Sections of the report about the market: print classes, sides, volatilities at the money, movers.

Pure: figures in, markup out. This module must never read an artifact.
"""

from __future__ import annotations

from datetime import date, tzinfo
from itertools import groupby
from typing import Final

from m17ctl.artifacts_day import NEAR, DayFigures, Mover, Sides, Skew
from m17ctl.formats import format_clock, format_count, format_share
from m17ctl.report.markup import Markup, heading, section, sentence, table
from m17ctl.report.svg import BLUE, ORANGE, PURPLE, VERMILION, Dot, bars, dots, lines_over, spark

_UNDERLYINGS: Final = 6
"""How many get a chart of their own."""
_MOVERS: Final = 20
_DOUBTS: Final = (
    ("side unknown", VERMILION, "unknown"),
    ("tied with a quote", BLUE, "tied"),
    ("quote stale", ORANGE, "stale"),
    ("at the exact mid", PURPLE, "exact_mid"),
)
"""Name, colour and field of each line."""


def prints(figures: DayFigures) -> Markup:
    """Volume by print class."""
    rows, charts = [], []
    for asset, group in groupby(figures.prints, key=lambda one: one.asset):
        found = list(group)
        volume, trades = sum(one.size for one in found), sum(one.trades for one in found)
        unit = "shares" if asset == "stocks" else "contracts"
        for one in found:
            words = one.print_class.replace("_", " ")
            rows.append(
                [
                    asset,
                    words,
                    format_count(one.trades),
                    format_share(one.trades, trades),
                    f"{one.size:,.0f}",
                    _share(one.size, volume),
                ]
            )
        labelled = [
            (one.print_class.replace("_", " "), one.size, f"{one.size:,.0f} {unit}, {_share(one.size, volume)}")
            for one in found
        ]
        charts += [heading(f"{asset}, {unit}"), bars(labelled, f"volume of {asset} by print class")]
    headers = ["asset", "class", "trades", "share", "volume", "share"]
    return section(
        "Volume by print class",
        "Trades of the session by what their condition codes make of them.",
        *(charts or [sentence("No trade of the session has a side yet.")]),
        table(headers, rows, right="llrrrr", key="prints") if rows else "",
    )


def _share(part: float, whole: float) -> str:
    return format_share(round(part), round(whole))


def sides(figures: DayFigures, open_ts: int, zone: tzinfo) -> Markup:
    """Shares of tied and unknown-side trades."""
    charts, rows = [], []
    for asset, group in groupby(figures.sides, key=lambda one: one.asset):
        found = list(group)
        total = _total(found)
        counts = [total.trades, total.unknown, total.tied, total.stale, total.exact_mid]
        rows.append(
            [asset, format_count(counts[0]), *(f"{format_count(n)} ({format_share(n, counts[0])})" for n in counts[1:])]
        )
        clocks = [format_clock(open_ts + one.minute * 60_000_000_000, zone) for one in found]
        series = [(name, color, [getattr(one, key) / one.trades for one in found]) for name, color, key in _DOUBTS]
        charts.append(heading(f"{asset}, share of trades by half hour"))
        charts.append(lines_over(series, clocks, f"shares of {asset} trades without a clear side"))
    headers = ["asset", "trades", "side unknown", "tied with a quote", "quote stale", "at the exact mid"]
    return section(
        "Tied and unknown sides",
        "Tied: a quote carries the same time as the trade, so that quote_tie decides. Unknown: no rule gave a side.",
        table(headers, rows, right="lrrrrr", key="sides")
        if rows
        else sentence("No trade of the session has a side yet."),
        *charts,
    )


def _total(found: list[Sides]) -> Sides:
    sums = {
        name: sum(getattr(one, name) for one in found) for name in ("trades", "unknown", "tied", "stale", "exact_mid")
    }
    return Sides(asset=found[0].asset, minute=0, **sums)


def skews(figures: DayFigures, session: str) -> Markup:
    """Call minus put volatility at the money by expiry."""
    day = date.fromisoformat(session)
    by_name = {name: list(group) for name, group in groupby(figures.skews, key=lambda one: one.underlying)}
    largest = sorted(by_name, key=lambda name: -sum(one.trades for one in by_name[name]))[:_UNDERLYINGS]
    charts = []
    for name in largest:
        most = max(one.trades for one in by_name[name])
        points = [
            Dot(_place(day, one), 100 * one.difference, (one.trades / most) ** 0.5, _tip(one)) for one in by_name[name]
        ]
        ticks = [(_place(day, one), one.expiry) for one in by_name[name]]
        charts.append(heading(name))
        charts.append(dots(points, ticks, " pt", f"call minus put volatility of {name} by expiry"))
    rows = [
        [one.underlying, one.expiry, format_count((date.fromisoformat(one.expiry) - day).days), format_count(one.strikes), format_count(one.trades),
         f"{one.call:.2%}".replace("%", " %"), f"{one.put:.2%}".replace("%", " %"), f"{100 * one.difference:+.2f}"]
        for name in largest
        for one in by_name[name]
    ]  # fmt: skip
    headers = ["underlying", "expiry", "days", "strikes", "trades", "calls", "puts", "calls - puts, points"]
    left_out = len(by_name) - len(largest)
    return section(
        "At the money: call minus put volatility by expiry",
        f"Strikes within {NEAR:.0%} of the spot with usable trades of both sides. A slope over expiries says that the carry is wrong: look at net_carry.",
        *(charts or [sentence("No strike at the money has usable trades of calls and puts.")]),
        table(headers, rows, right="llrrrrrr", key="skews") if rows else "",
        sentence(f"{format_count(left_out)} further underlyings with fewer trades are left out.") if left_out else "",
    )


def _place(day: date, one: Skew) -> float:
    """Near expiries apart, far ones close: the square root of the days."""
    return float(max(0, (date.fromisoformat(one.expiry) - day).days)) ** 0.5


def _tip(one: Skew) -> str:
    return f"{one.expiry}: calls {one.call:.2%}, puts {one.put:.2%}, {100 * one.difference:+.2f} points, {one.trades:,} trades at {one.strikes} strikes"


def movers(figures: DayFigures) -> Markup:
    """The underlyings with the largest flow."""
    rows = [_mover_row(one) for one in figures.movers[:_MOVERS]]
    headers = ["underlying", "net", "stock", "calls", "puts", "so far, by half hour", "first", "last", "change"]
    return section(
        "Top movers in flow",
        "USD that buyers took less what sellers gave: stock at its price, options at the delta of the underlying. Net = stock + calls - puts.",
        table(headers, rows, right="lrrrrlrrr", key="movers") if rows else sentence("No flow is known."),
    )


def _mover_row(one: Mover) -> list[str]:
    change = f"{one.last / one.first - 1:+.2%}".replace("%", " %") if one.first else "-"
    path = spark(one.path, f"{one.underlying}: flow so far at the end of each half hour")
    prices = [f"{price:,.2f}" if price else "-" for price in (one.first, one.last)]
    return [one.underlying, *(usd(value) for value in (one.net, one.stock, one.calls, one.puts)), path, *prices, change]


def usd(value: float) -> str:
    """``+1.48 bn``, ``-350.2 k``, ``0``; four digits are enough to look at."""
    if not value:
        return "0"
    for unit, name in ((1e9, " bn"), (1e6, " m"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:+,.2f}{name}"
    return f"{value:+,.0f}"
