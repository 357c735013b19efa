"""
The report of a day: what is asked of the daemon, and the page that is made of the answers.

Figures out of artifacts are read on this side. This module must never change anything, and the page must never need a
network.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, tzinfo
from typing import TYPE_CHECKING

from ledger.columns import Column
from m17ctl.errors import RemoteFailure
from m17ctl.formats import format_count, format_share
from m17ctl.invocation import Invocation
from m17ctl.render import due, sound
from m17ctl.report import cells
from m17ctl.report.markup import Markup, page, shown, tile, tiles
from m17d.outcomes import DigestReply, ReportReply
from m17d.protocol import DigestRequest, ExportRequest, HelloRequest, Range, ReportRequest
from m17d.replies import ExportReply, HelloReply

if TYPE_CHECKING:
    from m17ctl.artifacts_day import DayFigures


def figures_of(invocation: Invocation, session: str) -> DayFigures:
    """Figures of a session out of its artifacts; progress shows on a terminal."""
    from m17ctl.artifacts_day import day_figures

    aggressor, greeks, aggregates = (
        _rows_of(invocation, column, session) for column in (Column.AGGRESSOR_REF, Column.GREEKS_REF, Column.AGGS_1M)
    )
    return day_figures(aggressor, greeks, aggregates, invocation.show_progress)


def _rows_of(invocation: Invocation, column: Column, session: str) -> Iterator[ExportReply]:
    try:
        yield from invocation.stream(ExportRequest(column=column, range=Range(session=session)), ExportReply)
    except RemoteFailure as error:
        # A session without a symbol, or one whose column holds nothing, has a report nevertheless.
        if error.code != "nothing_selected":
            raise


def report_of(invocation: Invocation, session: str) -> ReportReply:
    """What the ledger knows of the session."""
    return invocation.call(ReportRequest(session=session), ReportReply, long=True)


def html_of(invocation: Invocation, reply: ReportReply, figures: DayFigures) -> str:
    """The page."""
    hello = invocation.call(HelloRequest(client="m17ctl report"), HelloReply)
    digest = invocation.call(DigestRequest(session=reply.session), DigestReply, long=True).digest
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    foot = f"Made {made} by m17d {hello.version} from {hello.state_dir}. Content of the session when it was made: sha256 {digest}"
    return render(reply, figures, zone=invocation.zone, exchange=hello.exchange, foot=foot)


def render(reply: ReportReply, figures: DayFigures, *, zone: tzinfo, exchange: str, foot: str) -> str:
    """The page from its parts; ``foot`` is its last line."""
    from m17ctl.report import market

    day = date.fromisoformat(reply.session)
    minutes = reply.coverage.by_minute
    open_ts = min((int(start) for start in minutes), default=0) if isinstance(minutes, dict) else 0
    parts = [
        _head(reply, figures, day, exchange),
        cells.coverage_map(reply, zone),
        cells.causes(reply, zone),
        cells.columns_table(reply),
        cells.usable(reply),
        cells.lags(reply, zone),
        cells.operations(reply, zone),
        cells.sources(reply),
        market.prints(figures),
        market.sides(figures, open_ts, zone),
        market.skews(figures, reply.session),
        market.movers(figures),
        Markup(f"<footer>{shown(foot)}</footer>"),
    ]
    return page(f"M17 {reply.session}", "".join(parts))


def _head(reply: ReportReply, figures: DayFigures, day: date, exchange: str) -> Markup:
    coverage = reply.coverage
    whole, total = (sum(count(one) for one in coverage.columns.values()) for count in (sound, due))
    wrong = sum(cause.cells for cause in reply.causes if cause.cause != "no_data")
    suspect = sum(one.suspect for one in coverage.columns.values())
    partial = sum(reply.facts.get("partial", {}).values())
    unknown, trades = (sum(getattr(one, key) for one in figures.sides) for key in ("unknown", "trades"))
    volume = {asset: sum(one.size for one in figures.prints if one.asset == asset) for asset in ("stocks", "options")}
    subtitle = f"{exchange}, {coverage.windows:,} windows x {coverage.symbols:,} symbols"
    good = whole == total and not wrong
    return Markup(
        f'<header><h1>{day:%A}, {day.isoformat()}</h1><div class="sub">M17 day report: {shown(subtitle)}</div>'
        f'<div class="verdict{"" if good else " bad"}">{shown(reply.verdict)}</div>'
        + tiles(
            tile(format_share(whole, total), "of due cells whole", "good" if whole == total else "bad"),
            tile(format_count(suspect), "suspect cells", "bad" if suspect else ""),
            tile(format_count(partial), "partial cells", "bad" if partial else ""),
            tile(format_count(trades), "trades in the session"),
            tile(format_share(unknown, trades), "of them: side unknown"),
            tile(f"{volume['stocks']:,.0f}", "shares traded"),
            tile(f"{volume['options']:,.0f}", "contracts traded"),
        )
        + "</header>"
    )
