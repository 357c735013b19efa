"""
`m17ctl refill` and `wait`: have a range remade first, and stay until it is whole.

Refill is refresh, region and wait in one; what it ordered goes on when it is interrupted. This module must never call a
range whole that the daemon does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from ledger.columns import Column
from m17ctl.commands.causes import cause_lines
from m17ctl.commands.ranges import cells_text, operation_lines, perform
from m17ctl.errors import DaemonUnreachable, RemoteFailure, TimedOut
from m17ctl.formats import format_count, format_duration
from m17ctl.invocation import EXIT_FALSE, Invocation, invocation_of
from m17ctl.options import (
    CauseOption,
    ColumnsArgument,
    ColumnsOption,
    DryRunOption,
    ExpectOption,
    FromOption,
    MoreColumns,
    SessionOption,
    SymbolsOption,
    ToOption,
    YesOption,
    make_range,
    parse_columns,
    range_words,
)
from m17ctl.render import progress_line
from m17d.outcomes import OperationReply, RegionReply, WaitReply
from m17d.protocol import (
    PriorityAddRequest,
    Range,
    RefreshRequest,
    SessionsListRequest,
    SymbolsListRequest,
    WaitRequest,
)
from m17d.replies import SessionsReply, SymbolsReply

app = typer.Typer()

REGIONS_MAX: Final = 200
"""More symbols than this get no regions: what is almost everything cannot go first."""
DEFAULT_PRIORITY: Final = 500
_ASK_AGAIN_FIRST_SECONDS: Final = 0.1
_ASK_AGAIN_SECONDS_MAX: Final = 1.0
_RESTART_SECONDS: Final = 30.0
"""How long a wait outlives a daemon that restarts."""

WaitTimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after so long, exit 3; never where absent."),
]

_REFILL_EXAMPLE = (
    "Example: m17ctl refill trade_ref quote_ref --session 2013-10-07 --from 10:15 --to 10:40 --symbols AIG --cause gap"
)


@app.command("refill", epilog=_REFILL_EXAMPLE)
def refill(
    context: typer.Context,
    columns: ColumnsArgument,
    session: SessionOption,
    cause: CauseOption,
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    priority: Annotated[
        int, typer.Option("--priority", metavar="N", min=0, max=1000, help="Higher is sooner.")
    ] = DEFAULT_PRIORITY,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    expect: ExpectOption = None,
    timeout: WaitTimeoutOption = None,
) -> int:
    """Have a range remade before everything else, and wait until it is whole; exit 3 if it is not in time."""
    invocation = invocation_of(context)
    wanted = parse_columns(columns)
    asked = make_range(session, from_, to, symbols)
    request = RefreshRequest(columns=wanted, range=asked, cause=cause, dry_run=dry_run)
    operation = _refresh(invocation, request, yes=yes, expect=expect)
    if dry_run:
        if operation is not None:
            invocation.emit(operation, lambda: operation_lines(operation, "refresh"))
        return 0
    regions = _add_regions(invocation, wanted, asked, priority)
    if not invocation.json:
        _say_ordered(invocation, operation, regions)
    try:
        answer = wait_until_whole(invocation, WaitRequest(columns=wanted, range=asked), timeout)
    except KeyboardInterrupt:
        columns_text = ",".join(wanted)
        invocation.terminal.complain(
            f"the work goes on; wait again with: m17ctl wait {range_words(asked)} --columns {columns_text}"
        )
        raise
    result: dict[str, Any] = {"operation": operation, "regions": regions, "wait": answer}
    invocation.emit(result, lambda: wait_lines(invocation, answer))
    return 0 if answer.whole else EXIT_FALSE


def _refresh(
    invocation: Invocation, request: RefreshRequest, *, yes: bool, expect: int | None
) -> OperationReply | None:
    """The refresh's answer; None where no cell of the range is filled, so that there is nothing to mark."""
    try:
        return perform(invocation, request, yes=yes, expect=expect)
    except RemoteFailure as error:
        if error.code == "nothing_selected" and expect is None:
            return None
        raise


def _add_regions(invocation: Invocation, columns: list[Column], asked: Range, priority: int) -> list[RegionReply]:
    symbols = invocation.call(SymbolsListRequest(symbols=asked.symbols), SymbolsReply).symbols
    if len(symbols) > REGIONS_MAX:
        invocation.terminal.complain(
            f"m17ctl: {format_count(len(symbols))} symbols are served in their usual turn "
            f"(regions are made for at most {REGIONS_MAX}); narrow it with --symbols to have it first"
        )
        return []
    from_ts, to_ts = asked.from_ts, asked.to_ts
    if from_ts is None or to_ts is None:
        sessions = invocation.call(SessionsListRequest(), SessionsReply).sessions
        for day in sessions:
            if day.session == asked.session:
                from_ts = day.open_ts if from_ts is None else from_ts
                to_ts = day.close_ts if to_ts is None else to_ts
    regions: list[RegionReply] = []
    for symbol in symbols:
        if from_ts is None or to_ts is None:
            break
        request = PriorityAddRequest(
            symbol=symbol.symbol,
            from_ts=from_ts,
            to_ts=to_ts,
            priority=priority,
            columns=columns,
            session=asked.session,
        )
        try:
            regions.append(invocation.call(request, RegionReply))
        except RemoteFailure as error:
            # The cells are wanted already; without its region a symbol is only served later.
            invocation.terminal.complain(f"m17ctl: no region for {symbol.symbol}: {error}")
    return regions


def _say_ordered(invocation: Invocation, operation: OperationReply | None, regions: list[RegionReply]) -> None:
    if operation is not None:
        invocation.terminal.line(f"marked wanted: {cells_text(operation.cleared)}, operation {operation.operation}")
    if regions:
        ids = [region.id for region in regions]
        text = f"region {ids[0]}" if len(ids) == 1 else f"{len(ids)} regions ({ids[0]} to {ids[-1]})"
        invocation.terminal.line(f"{text} at priority {regions[0].priority}")
    invocation.terminal.flush()


@app.command(
    "wait", epilog="Example: m17ctl wait --session 2013-10-07 --symbols AIG --columns trade_ref,quote_ref --timeout 600"
)
def wait(
    context: typer.Context,
    session: SessionOption,
    more: MoreColumns = None,
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    columns: ColumnsOption = None,
    timeout: WaitTimeoutOption = None,
) -> int:
    """Wait until every due, applicable cell of a range is filled, fresh and not suspect; exit 3 if not in time."""
    invocation = invocation_of(context)
    wanted = parse_columns([*(columns or []), *(more or [])]) or list(Column)
    request = WaitRequest(columns=wanted, range=make_range(session, from_, to, symbols))
    answer = wait_until_whole(invocation, request, timeout)
    invocation.emit(answer, lambda: wait_lines(invocation, answer))
    return 0 if answer.whole else EXIT_FALSE


def wait_until_whole(invocation: Invocation, request: WaitRequest, timeout_s: float | None) -> WaitReply:
    """
    Ask until the range is whole or the time is up; the last answer.

    A daemon that goes away after its first answer is waited for, as long as a restart may take.

    Raises:
        ClientError: see `m17ctl.client`.
    """
    began = invocation.now()
    until = None if timeout_s is None else began + timeout_s
    last: WaitReply | None = None
    heard, first_left, pause = began, 0, _ASK_AGAIN_FIRST_SECONDS
    while True:
        now = invocation.now()
        try:
            # The first question is answered even with a timeout of nothing.
            limit = None if until is None or last is None else max(0.05, until - now)
            last = invocation.call(request, WaitReply, timeout_s=limit)
            heard = now = invocation.now()
            left = sum(last.remaining.values())
            first_left = max(first_left, left)
            invocation.terminal.progress(_progress(last, first_left, now - began))
        except (DaemonUnreachable, TimedOut):
            if last is None or now - heard > _RESTART_SECONDS:
                raise
            invocation.terminal.progress("no answer from the daemon; it may be restarting")
        if last.whole or (until is not None and now >= until):
            invocation.terminal.end_progress()
            return last
        invocation.sleep(pause if until is None else max(0.0, min(pause, until - now)))
        pause = min(pause * 1.5, _ASK_AGAIN_SECONDS_MAX)


def _progress(answer: WaitReply, first_left: int, seconds: float) -> str:
    done = first_left - sum(answer.remaining.values())
    causes = ", ".join(cause.cause for cause in answer.blocked)
    detail = f"blocked: {causes}" if causes else ""
    return progress_line(done, first_left, unit="cells", seconds=seconds, eta_s=answer.eta_s, detail=detail)


def wait_lines(invocation: Invocation, answer: WaitReply) -> Iterator[str]:
    """How far a range is, for people: what is left, what stands in the way and what to do about it."""
    if answer.whole:
        yield f"whole: {format_count(answer.cells)} cells"
        return
    yield f"not whole: {cells_text(answer.remaining)} of {format_count(answer.cells)} left"
    if answer.eta_s is not None:
        yield f"about {format_duration(answer.eta_s)} left at the speed so far"
    if any(answer.suspect.values()):
        yield f"suspect: {cells_text(answer.suspect)}"
    if answer.blocked:
        yield from cause_lines(invocation, answer.blocked)
