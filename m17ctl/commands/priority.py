"""
`m17ctl priority`: which regions the engines serve first.

This module must never order them itself: the daemon does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from m17ctl.formats import parse_time
from m17ctl.invocation import Invocation, invocation_of
from m17ctl.options import (
    ColumnsOption,
    MoreColumns,
    OptionalSession,
    SymbolArgument,
    check_time,
    parse_columns,
)
from m17ctl.render import table
from m17d.outcomes import RegionReply, RegionsReply
from m17d.protocol import (
    PriorityAddRequest,
    PriorityListRequest,
    PriorityRemoveRequest,
    PriorityShowRequest,
)

priority_app = typer.Typer(help="Have regions served first: add, list, show or remove them.", no_args_is_help=True)

IdArgument = Annotated[int, typer.Argument(metavar="ID", min=0, help="The region's id.")]


@priority_app.command("add", epilog="Example: m17ctl priority add AIG 2013-10-07T10:15 2013-10-07T10:40 --priority 900")
def add(
    context: typer.Context,
    symbol: SymbolArgument,
    from_: Annotated[str, typer.Argument(metavar="FROM", help="Start, included.", callback=check_time)],
    to: Annotated[str, typer.Argument(metavar="TO", help="End, not included.", callback=check_time)],
    priority: Annotated[int, typer.Option("--priority", metavar="N", min=0, max=1000, help="Higher is sooner.")],
    more: MoreColumns = None,
    columns: ColumnsOption = None,
    session: OptionalSession = None,
) -> None:
    """Have a symbol's range served before everything of lower priority."""
    invocation = invocation_of(context)
    request = PriorityAddRequest(
        symbol=symbol,
        from_ts=parse_time(from_),
        to_ts=parse_time(to),
        priority=priority,
        columns=parse_columns([*(columns or []), *(more or [])]),
        session=session,
    )
    reply = invocation.call(request, RegionReply)
    invocation.emit(reply, lambda: region_lines(invocation, [reply]))


@priority_app.command("list", epilog="Example: m17ctl priority list")
def list_(context: typer.Context) -> None:
    """List the regions, first served first."""
    invocation = invocation_of(context)
    reply = invocation.call(PriorityListRequest(), RegionsReply)
    invocation.emit(reply.regions, lambda: region_lines(invocation, reply.regions))


@priority_app.command("show", epilog="Example: m17ctl priority show 3")
def show(context: typer.Context, region: IdArgument) -> None:
    """Show one region and how far it is."""
    invocation = invocation_of(context)
    reply = invocation.call(PriorityShowRequest(id=region), RegionReply)
    invocation.emit(reply, lambda: region_lines(invocation, [reply]))


@priority_app.command("rm", epilog="Example: m17ctl priority rm 3")
def remove(context: typer.Context, region: IdArgument) -> None:
    """Remove a region; its cells are served in their usual turn."""
    invocation = invocation_of(context)
    reply = invocation.call(PriorityRemoveRequest(id=region), RegionReply)
    invocation.emit(reply, lambda: region_lines(invocation, [reply]))


def region_lines(invocation: Invocation, regions: Sequence[RegionReply]) -> list[str]:
    """Regions for people, with progress by minute."""
    if not regions:
        return ["no regions"]
    width = invocation.terminal.width
    rows = [
        [
            str(region.id),
            str(region.priority),
            region.symbol,
            invocation.local_time(region.start_ts),
            _end(invocation, region),
            f"{region.complete}/{region.minutes}",
            region.state,
            region.operator,
            " ".join(_columns(region)) or "all",
        ]
        for region in regions
    ]
    headers = ("id", "priority", "symbol", "from", "to", "minutes", "state", "operator", "columns")
    lines = table(headers, rows, width=None, right="rrlllr")
    if width is None or max(map(len, lines)) <= width:
        return lines
    # Who and which columns go below: times that are cut say nothing.
    head, *lines = table(headers[:7], [row[:7] for row in rows], width=width, right="rrlllr", keep=6)
    return [
        head,
        *(part for line, row in zip(lines, rows, strict=True) for part in (line, f"    by {row[7]}: {row[8]}")),
    ]


def _end(invocation: Invocation, region: RegionReply) -> str:
    """The region's end, without the date where that is the start's."""
    start, end = (invocation.local_time(ts) for ts in (region.start_ts, region.end_ts))
    return end[11:] if start[:11] == end[:11] else end


def _columns(region: RegionReply) -> list[str]:
    """Its columns; while it is at work, with how many windows of each are whole."""
    if region.state == "complete" or len(set(region.whole.values())) <= 1:
        return [column.value for column in region.columns]
    return [f"{column.value} {region.whole.get(column, 0)}" for column in region.columns]
