"""
`m17ctl why` and `lineage`: why cells are as they are, and what one was made from.

This module must never guess a cause or a remedy: both are the daemon's.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final

import typer

from ledger.columns import Column
from m17ctl.formats import format_count, parse_time
from m17ctl.invocation import EXIT_FALSE, Invocation, invocation_of
from m17ctl.options import (
    AnyColumnsArgument,
    ColumnArgument,
    ContractOption,
    ExitCodeOption,
    FromOption,
    OptionalSession,
    SessionOption,
    SymbolArgument,
    SymbolsOption,
    TimeArgument,
    ToOption,
    make_range,
    parse_columns,
)
from m17ctl.render import tree
from m17d.protocol import LineageRequest, WhyRequest
from m17d.replies import Cause, LineageCell, LineageReply, WhyReply

app = typer.Typer()

QUIET_CAUSES: Final = frozenset({"filled", "no_data", "not_applicable", "not_due"})
"""Causes that are no trouble: nothing stands behind them that could be repaired."""
WORTH_CAUSES: Final = frozenset({"unusable", "partly_usable"})
"""Causes that tell what filled cells are worth: worth reading, but no work that is left."""


@app.command("why", epilog="Example: m17ctl why trade_ref quote_ref --session 2013-10-07 --from 10:15 --to 10:40")
def why(
    context: typer.Context,
    session: SessionOption,
    columns: AnyColumnsArgument = None,
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    contract: ContractOption = None,
    exit_code: ExitCodeOption = False,
) -> int:
    """Group the cells of a range by root cause, each with a command to paste."""
    invocation = invocation_of(context)
    request = WhyRequest(
        columns=parse_columns(columns or []) or list(Column), range=make_range(session, from_, to, symbols, contract)
    )
    reply = invocation.call(request, WhyReply)
    invocation.emit(reply.groups, lambda: cause_lines(invocation, reply.groups))
    settled = QUIET_CAUSES | WORTH_CAUSES
    return EXIT_FALSE if exit_code and any(group.cause not in settled for group in reply.groups) else 0


def cause_lines(invocation: Invocation, groups: Sequence[Cause]) -> Iterator[str]:
    """Root causes for people: one paragraph each, the command to paste last; what is no trouble in one line."""
    troubles = [group for group in groups if group.cause not in QUIET_CAUSES]
    if not any(group.cause not in WORTH_CAUSES for group in troubles):
        yield "nothing to repair: every due, applicable cell of the range is filled, fresh and not suspect"
    for group in troubles:
        cells = "1 cell" if group.cells == 1 else f"{format_count(group.cells)} cells"
        symbols = "1 symbol" if group.symbols == 1 else f"{format_count(group.symbols)} symbols"
        first, last = invocation.local_time(group.first), invocation.local_time(group.last)
        span = first if first == last else f"{first} to {last[11:] if last[:10] == first[:10] else last}"
        yield f"{invocation.terminal.paint(group.cause, 'bold')}: {cells} of {symbols}, {span}"
        yield f"  {', '.join(group.columns)}"
        if group.detail:
            yield f"  {group.detail}"
        if group.rows:
            lacking = [f"{word} {format_count(n)}" for word, n in group.rows.items() if word not in ("rows", "usable")]
            usable, rows = (format_count(group.rows.get(word, 0)) for word in ("usable", "rows"))
            yield f"  {usable} of {rows} rows usable: {', '.join(lacking)}"
        if group.remedy:
            yield f"  {invocation.terminal.paint(group.remedy, 'pending')}"
    quiet: dict[str, int] = {}
    for group in groups:
        if group.cause in QUIET_CAUSES:
            quiet[group.cause] = quiet.get(group.cause, 0) + group.cells
    if quiet:
        cells_by_cause = (f"{cause.replace('_', ' ')} {format_count(cells)}" for cause, cells in quiet.items())
        yield f"no trouble: {', '.join(cells_by_cause)}"


@app.command("lineage", epilog="Example: m17ctl lineage AIG 2013-10-07T09:31 aggressor_ref")
def lineage(
    context: typer.Context,
    symbol: SymbolArgument,
    time: TimeArgument,
    column: ColumnArgument,
    session: OptionalSession = None,
) -> None:
    """Show what a cell was made from, down to source file and rows."""
    invocation = invocation_of(context)
    request = LineageRequest(symbol=symbol, at=parse_time(time), column=Column(column), session=session)
    reply = invocation.call(request, LineageReply)
    invocation.emit(reply, lambda: _lineage_lines(invocation, reply))


def _lineage_lines(invocation: Invocation, reply: LineageReply) -> Iterator[str]:
    yield from _cell_lines(invocation, reply.cell)
    if reply.left_out:
        yield f"{format_count(reply.left_out)} further cells are not shown: ask for a shorter window"
    if not reply.complete:
        yield "not complete: a cell marked 'changed since' is not the one it was made from"


def _cell_lines(invocation: Invocation, cell: LineageCell) -> list[str]:
    label = f"{cell.column} {cell.symbol} {invocation.local_time(cell.start_ts)}  {cell.status}"
    if cell.payload_id:
        label += f"  payload {cell.payload_id} v{cell.version}, checksum {cell.checksum:08x}"
    if not cell.current:
        label += "  changed since"
    below: list[list[str]] = []
    if cell.recipe:
        below.append([f"recipe {cell.recipe}"])
    if cell.artifact_uri:
        below.append([f"artifact {cell.artifact_uri}"])
    if cell.curve_date:
        below.append([f"curve of {cell.curve_date}"])
    if cell.source is not None:
        below.append([f"source {cell.source.dataset} {cell.source.session}  {cell.source.uri}"])
        if cell.record_count or cell.lead_rows:
            rows = f"{format_count(cell.record_count)} of its rows: {cell.symbol}"
            if cell.record_count:
                rows += f", SIP time {_precisely(invocation, cell.first_ts)} to {_precisely(invocation, cell.last_ts)}"
            if cell.lead_rows:
                rows += f", and {format_count(cell.lead_rows)} of the minute before the open"
            below[-1].append(rows)
    below.extend(_cell_lines(invocation, upstream) for upstream in cell.inputs)
    return tree(label, below)


def _precisely(invocation: Invocation, ts: int) -> str:
    """A time of day in nanoseconds, so that rows can be found by it."""
    seconds, ns = divmod(ts, 1_000_000_000)
    return f"{datetime.datetime.fromtimestamp(seconds, invocation.zone):%H:%M:%S}.{ns:09d}"
