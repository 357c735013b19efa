"""
Figures of one session out of its artifacts: print classes, sides, volatilities at the money, flow.

The daemon names the rows; they are read block by block, only the columns that are asked for, and summed, so that memory is
bounded by a block, but for the implied volatilities near the money. Polars is imported inside the functions. This module must
never list a directory of artifacts, and never round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from m17ctl.artifacts import Run, Selection, read_blocks, schema_of
from m17d.outcomes import Progress
from m17d.replies import ExportReply

if TYPE_CHECKING:
    import polars

OnProgress = Callable[[Progress], None]

NEAR: Final = 0.03
"""A strike is at the money where it lies within this share of the spot at the time of the trade."""
HALF_HOUR: Final = 30
_OPTION: Final = "O:"
_TICKER_TAIL: Final = 15
"""Characters of a contract's ticker behind the root: yymmdd, C or P, strike in thousandths."""

_TRADE_COLUMNS: Final = (
    *("symbol", "minute", "price", "size", "print_class", "sets_price", "side"),
    *("quote_tied", "quote_stale", "exact_mid", "sip_timestamp"),
)


class Prints(msgspec.Struct, frozen=True):
    """Trades of the session by asset (``stocks`` or ``options``) and print class; ``size`` in shares or contracts."""

    asset: str
    print_class: str
    trades: int
    size: float


class Sides(msgspec.Struct, frozen=True):
    """What is known of the sides of trades in a half hour that begins ``minute`` minutes after the open."""

    asset: str
    minute: int
    trades: int
    unknown: int
    tied: int
    stale: int
    exact_mid: int


class Skew(msgspec.Struct, frozen=True):
    """
    Implied volatilities of calls and puts at the money of one expiry.

    Strikes within `NEAR` of the spot that have usable trades of both: the median of each, averaged over ``strikes`` with
    the smaller of both numbers of trades as weight; ``trades`` is the sum of the weights. Volatilities are fractions.
    """

    underlying: str
    expiry: str
    strikes: int
    trades: int
    call: float
    put: float

    @property
    def difference(self) -> float:
        """Call minus put."""
        return self.call - self.put


class Mover(msgspec.Struct, frozen=True):
    """
    Flow of an underlying in USD: what buyers took less what sellers gave.

    ``stock`` is price x size of the stock's trades (cancelled ones left out); ``calls`` and ``puts`` are price of the
    underlying x delta x contracts, a bought put being positive. ``path`` has the sum over both so far, bought puts
    counted against, at the end of each half hour. ``first`` and ``last`` are prices of trades that set prices, 0 without.
    """

    underlying: str
    stock: float
    calls: float
    puts: float
    first: float
    last: float
    path: list[float]

    @property
    def net(self) -> float:
        """Bought exposure to a rise: stock and calls, less puts."""
        return self.stock + self.calls - self.puts


class DayFigures(msgspec.Struct, frozen=True):
    """All of them, each list in the order in which people read it."""

    prints: list[Prints]
    sides: list[Sides]
    skews: list[Skew]
    movers: list[Mover]


def day_figures(
    aggressor: Iterable[ExportReply],
    greeks: Iterable[ExportReply],
    aggregates: Iterable[ExportReply],
    on_progress: OnProgress,
) -> DayFigures:
    """
    The figures of a session, from the daemon's answers to exports of ``aggressor_ref``, ``greeks_ref`` and ``aggs_1m``.

    Raises:
        CommandFailed: code ``damaged_file``, where an artifact cannot be read.
    """
    runs = [_runs(pieces) for pieces in (aggressor, greeks, aggregates)]
    total, done = sum(run.rows for some in runs for run in some), 0

    def read(rows: int) -> None:
        nonlocal done
        done += rows
        on_progress(Progress(done=done, total=total, unit="rows"))

    prints, sides, stock = _trades(runs[0], read)
    return DayFigures(prints, sides, _skews(runs[1], read), _movers(stock, _flows(runs[2], read)))


def _runs(pieces: Iterable[ExportReply]) -> list[Run]:
    selection = Selection()
    for piece in pieces:
        selection.add(piece)
    return selection.ordered()


def _frames(runs: list[Run], names: tuple[str, ...], read: Callable[[int], None]) -> Iterable[polars.DataFrame]:
    if not runs:
        return
    known = schema_of(runs)
    for frame in read_blocks(runs, {name: known[name] for name in names}):
        yield frame
        read(frame.height)


def _total(parts: list[polars.DataFrame], keys: tuple[str, ...]) -> polars.DataFrame | None:
    """Sums of the sums, ordered by the keys."""
    import polars

    if not parts:
        return None
    return polars.concat(parts).group_by(keys).sum().sort(keys)


def _trades(
    runs: list[Run], read: Callable[[int], None]
) -> tuple[list[Prints], list[Sides], dict[str, dict[str, Any]]]:
    """Prints and sides; and of each stock its signed flow by half hour (``path``) and its ``first`` and ``last`` price."""
    import polars
    from polars import col

    classes, sides, flows, prices = [], [], [], []
    sign = polars.when(col("side") == "buyer").then(1.0).when(col("side") == "seller").then(-1.0).otherwise(0.0)
    for frame in _frames(runs, _TRADE_COLUMNS, read):
        option = col("symbol").str.starts_with(_OPTION)
        rows = frame.with_columns(
            asset=polars.when(option).then(polars.lit("options")).otherwise(polars.lit("stocks")),
            slot=col("minute").cast(polars.Int64) // HALF_HOUR,
        )
        classes.append(
            rows.group_by("asset", "print_class").agg(trades=polars.len().cast(polars.Int64), size=col("size").sum())
        )
        counts = {
            "unknown": col("side") == "unknown",
            "tied": col("quote_tied"),
            "stale": col("quote_stale"),
            "exact_mid": col("exact_mid"),
        }
        sums = {name: found.sum().cast(polars.Int64) for name, found in counts.items()}
        sides.append(rows.group_by("asset", "slot").agg(trades=polars.len().cast(polars.Int64), **sums))
        stock = rows.filter(~option)
        flow = (sign * col("price") * col("size")).filter(col("print_class") != "cancelled").sum()
        flows.append(stock.group_by("symbol", "slot").agg(flow=flow))
        last = stock.filter("sets_price").sort("sip_timestamp", maintain_order=True)
        ends = {"first_ts": col("sip_timestamp").first(), "first": col("price").first()}
        ends |= {"last_ts": col("sip_timestamp").last(), "last": col("price").last()}
        prices.append(last.group_by("symbol").agg(**ends))
    found = _total(classes, ("asset", "print_class"))
    prints = (
        []
        if found is None
        else [Prints(**row) for row in found.sort("asset", "trades", descending=[True, True]).to_dicts()]
    )
    halves = _total(sides, ("asset", "slot"))
    known = [] if halves is None else [Sides(minute=row.pop("slot") * HALF_HOUR, **row) for row in halves.to_dicts()]
    return prints, known, _stocks(_total(flows, ("symbol", "slot")), prices)


def _stocks(flows: polars.DataFrame | None, prices: list[polars.DataFrame]) -> dict[str, dict[str, Any]]:
    import polars
    from polars import col

    stocks: dict[str, dict[str, Any]] = {}
    for row in [] if flows is None else flows.iter_rows(named=True):
        stocks.setdefault(row["symbol"], {"path": {}, "first": 0.0, "last": 0.0})["path"][row["slot"]] = row["flow"]
    if prices:
        first, last = col("first").sort_by("first_ts").first(), col("last").sort_by("last_ts").last()
        for row in polars.concat(prices).group_by("symbol").agg(first, last).iter_rows(named=True):
            stocks[row["symbol"]] |= row
    return stocks


def _skews(runs: list[Run], read: Callable[[int], None]) -> list[Skew]:
    """Expiries by underlying, the nearest first; those without a strike that has both are left out."""
    import polars
    from polars import col

    near = []
    for frame in _frames(runs, ("symbol", "ticker", "iv", "spot", "usable"), read):
        tail = col("ticker").str.slice(-_TICKER_TAIL)
        rows = frame.filter("usable").select(
            underlying=col("symbol").str.strip_prefix(_OPTION),
            expiry=tail.str.slice(0, 6).str.to_date("%y%m%d"),
            right=tail.str.slice(6, 1),
            strike=tail.str.slice(7).cast(polars.Float64) / 1000,
            iv="iv",
            spot="spot",
        )
        near.append(rows.filter((col("strike") / col("spot") - 1).abs() <= NEAR).drop("spot"))
    if not near:
        return []
    keys = ["underlying", "expiry", "strike"]
    each = polars.concat(near).group_by(*keys, "right").agg(col("iv").median(), trades=polars.len().cast(polars.Int64))
    call, put = (each.filter(col("right") == right).drop("right") for right in "CP")
    both = call.join(put, on=keys, suffix="_put").with_columns(weight=polars.min_horizontal("trades", "trades_put"))

    def mean(name: str) -> polars.Expr:
        return (col(name) * col("weight")).sum() / col("weight").sum()

    found = both.sort(keys).group_by("underlying", "expiry", maintain_order=True)
    rows = found.agg(strikes=polars.len(), trades=col("weight").sum(), call=mean("iv"), put=mean("iv_put"))
    return [Skew(**row) for row in rows.with_columns(col("expiry").dt.to_string()).to_dicts()]


def _flows(runs: list[Run], read: Callable[[int], None]) -> dict[tuple[str, int], tuple[float, float]]:
    """(underlying, half hour) -> signed delta-adjusted value of calls and of puts, from windows of a minute."""
    from polars import col

    parts = []
    for frame in _frames(runs, ("symbol", "minute", "calls_signed_dadvv_total", "puts_signed_dadvv_total"), read):
        slots = frame.with_columns(slot=col("minute").cast(int) // HALF_HOUR)
        calls, puts = (col(f"{side}_signed_dadvv_total").fill_null(0.0).sum().alias(side) for side in ("calls", "puts"))
        parts.append(slots.group_by("symbol", "slot").agg(calls, puts))
    found = _total(parts, ("symbol", "slot"))
    rows = [] if found is None else found.iter_rows(named=True)
    return {(row["symbol"], row["slot"]): (row["calls"], row["puts"]) for row in rows}


def _movers(stocks: dict[str, dict[str, Any]], options: dict[tuple[str, int], tuple[float, float]]) -> list[Mover]:
    """Every underlying with flow, the largest first."""
    slots = 1 + max(
        [slot for one in stocks.values() for slot in one["path"]] + [slot for _, slot in options], default=-1
    )
    movers = []
    for name in sorted({*stocks, *(name for name, _ in options)}):
        stock = stocks.get(name, {"path": {}, "first": 0.0, "last": 0.0})
        both = [options.get((name, slot), (0.0, 0.0)) for slot in range(slots)]
        path, sofar = [], 0.0
        for slot, (calls, puts) in enumerate(both):
            sofar += stock["path"].get(slot, 0.0) + calls - puts
            path.append(sofar)
        calls, puts = (sum(each[side] for each in both) for side in (0, 1))
        movers.append(Mover(name, sum(stock["path"].values()), calls, puts, stock["first"], stock["last"], path))
    return sorted(movers, key=lambda mover: (-abs(mover.net), mover.underlying))
