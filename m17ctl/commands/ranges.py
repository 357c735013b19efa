"""
`m17ctl clear`, `refresh`, `undo` and `accept`: what an operator does to a range of cells.

Much is never taken without a yes: above the daemon's threshold the dry run's counts are shown and a question is asked on a terminal;
elsewhere ``--yes`` or ``--expect N`` must be given. This module must never decide what could be refilled: the daemon does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
import typer

from ledger.columns import Column
from m17ctl.errors import RemoteFailure
from m17ctl.formats import format_count
from m17ctl.invocation import EXIT_CONFLICT, EXIT_FAILED, CommandFailed, Invocation, invocation_of
from m17ctl.options import (
    CauseOption,
    ColumnsArgument,
    ColumnsOption,
    DryRunOption,
    ExpectOption,
    FromOption,
    OptionalCause,
    SessionOption,
    SymbolsOption,
    ToOption,
    YesOption,
    make_range,
    parse_columns,
)
from m17d.outcomes import AcceptReply, OperationReply, UndoReply
from m17d.protocol import AcceptRequest, ClearRequest, RefreshRequest, UndoRequest

app = typer.Typer()

CascadeOption = Annotated[bool, typer.Option("--cascade", help="Take what was made from them too.")]
LossOption = Annotated[bool, typer.Option("--accept-loss", help="Take cells that nothing could refill, too.")]
StaleOption = Annotated[
    Literal["inputs", "recipe"] | None,
    typer.Option("--stale", help="Only cells that are stale for this reason."),
]

_CLEAR_EXAMPLE = "Example: m17ctl clear trade_ref --session 2013-10-07 --symbols AIG --cause 'bad prints' --dry-run"


@app.command("clear", epilog=_CLEAR_EXAMPLE)
def clear(
    context: typer.Context,
    columns: ColumnsArgument,
    session: SessionOption,
    cause: CauseOption,
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    dry_run: DryRunOption = False,
    cascade: CascadeOption = False,
    yes: YesOption = False,
    expect: ExpectOption = None,
    accept_loss: LossOption = False,
) -> None:
    """Take the payloads of a range away; readers see a hole until the engines refill it."""
    invocation = invocation_of(context)
    request = ClearRequest(
        columns=parse_columns(columns),
        range=make_range(session, from_, to, symbols),
        cause=cause,
        dry_run=dry_run,
        cascade=cascade,
        accept_loss=accept_loss,
    )
    reply = perform(invocation, request, yes=yes, expect=expect)
    invocation.emit(reply, lambda: operation_lines(reply, "clear"))


@app.command(
    "refresh", epilog="Example: m17ctl refresh greeks_ref --session 2013-10-07 --cause 'new carry' --stale recipe"
)
def refresh(
    context: typer.Context,
    columns: ColumnsArgument,
    session: SessionOption,
    cause: CauseOption,
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    dry_run: DryRunOption = False,
    cascade: CascadeOption = False,
    yes: YesOption = False,
    expect: ExpectOption = None,
    accept_loss: LossOption = False,
    stale: StaleOption = None,
) -> None:
    """Mark the filled cells of a range wanted; each stays readable until its new payload replaces it."""
    invocation = invocation_of(context)
    request = RefreshRequest(
        columns=parse_columns(columns),
        range=make_range(session, from_, to, symbols),
        cause=cause,
        dry_run=dry_run,
        cascade=cascade,
        accept_loss=accept_loss,
        stale=stale,
    )
    reply = perform(invocation, request, yes=yes, expect=expect)
    invocation.emit(reply, lambda: operation_lines(reply, "refresh"))


def perform(
    invocation: Invocation, request: ClearRequest | RefreshRequest, *, yes: bool, expect: int | None
) -> OperationReply:
    """
    Send a clear or refresh, with a yes where one is needed.

    Raises:
        CommandFailed: code ``confirm_required``, where nobody could be asked or the answer was no.
        ClientError: see `m17ctl.client`.
    """
    if request.dry_run:
        return invocation.call(msgspec.structs.replace(request, expect=expect), OperationReply)
    if yes or expect is not None:
        return invocation.call(msgspec.structs.replace(request, confirmed=True, expect=expect), OperationReply)
    try:
        return invocation.call(request, OperationReply)
    except RemoteFailure as error:
        # How many are too many to go unasked is the daemon's to say, in one place.
        if error.code != "confirm_required":
            raise
    preview = invocation.call(msgspec.structs.replace(request, dry_run=True), OperationReply)
    return _ask_and_send(invocation, request, preview)


def _ask_and_send(
    invocation: Invocation, request: ClearRequest | RefreshRequest, preview: OperationReply
) -> OperationReply:
    verb = "clear" if isinstance(request, ClearRequest) else "refresh"
    cells = sum(preview.cleared.values())
    if not invocation.terminal.interactive:
        hint = f"look with --dry-run, then pass --yes, or --expect {cells} to be sure that nothing else goes"
        text = f"{verb} would take {format_count(cells)} cells, and nobody is here to say yes"
        raise CommandFailed("confirm_required", text, hint)
    for line in operation_lines(preview, verb):
        invocation.terminal.complain(line)
    if not invocation.terminal.confirm(f"{verb} {format_count(cells)} cells?"):
        raise CommandFailed("confirm_required", "nothing was changed", "the answer was no")
    return invocation.call(msgspec.structs.replace(request, confirmed=True), OperationReply)


def operation_lines(reply: OperationReply, verb: str) -> Iterator[str]:
    """A clear or refresh for people: what went, what lies behind it, from where it can be refilled, how to undo it."""
    done = {"clear": ("cleared", "would clear"), "refresh": ("marked wanted", "would mark wanted")}[verb]
    yield f"{done[1] if reply.dry_run else done[0]}: {cells_text(reply.cleared)}"
    if any(reply.untouched.values()):
        yield f"left as they are: {cells_text(reply.untouched)}"
    if any(reply.dependents.values()):
        yield f"made from them: {cells_text(reply.dependents)}"
    places = {
        "flat files": reply.refillable.flat_file,
        "REST": reply.refillable.rest,
        "other cells": reply.refillable.derived,
        "nowhere": reply.refillable.none,
    }
    known = ", ".join(f"{place} {format_count(count)}" for place, count in places.items() if count)
    if known:
        yield f"can be refilled from: {known}"
    if not reply.dry_run:
        yield f"operation {reply.operation}; take it back with: m17ctl undo {reply.operation}"


def cells_text(cells: Mapping[Column, int]) -> str:
    """``11,400 cells (trade_ref 5,700, quote_ref 5,700)``."""
    total = sum(cells.values())
    parts = ", ".join(f"{column} {format_count(count)}" for column, count in cells.items() if count)
    return f"{format_count(total)} {'cell' if total == 1 else 'cells'}{f' ({parts})' if parts else ''}"


@app.command("undo", epilog="Example: m17ctl undo 2013-000017")
def undo(
    context: typer.Context,
    operation: Annotated[str, typer.Argument(metavar="OPERATION", help="The operation a clear or refresh answered.")],
    cause: OptionalCause = "",
) -> int:
    """Set back what a clear or refresh took and nobody has written since; exit 1 if only some, 5 if none."""
    invocation = invocation_of(context)
    reply = invocation.call(UndoRequest(operation=operation, cause=cause), UndoReply)
    invocation.emit(reply, lambda: undo_lines(reply))
    return undo_exit_code(reply)


def undo_lines(reply: UndoReply) -> Iterator[str]:
    """An undo for people."""
    yield f"restored: {cells_text(reply.restored)}"
    if any(reply.skipped.values()):
        yield f"written since, left alone: {cells_text(reply.skipped)}"


def undo_exit_code(reply: UndoReply) -> int:
    """0 where everything was restored, 1 where some was, 5 where nothing was."""
    if not any(reply.restored.values()):
        return EXIT_CONFLICT
    return EXIT_FAILED if any(reply.skipped.values()) else 0


@app.command(
    "accept", epilog="Example: m17ctl accept --session 2013-10-08 --symbols SPY --cause 'vendor has no quotes'"
)
def accept(
    context: typer.Context,
    session: SessionOption,
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    columns: ColumnsOption = None,
    cause: OptionalCause = "",
    dry_run: DryRunOption = False,
) -> None:
    """Declare missing sources absent, and take suspect cells of a range as they are."""
    invocation = invocation_of(context)
    request = AcceptRequest(
        range=make_range(session, from_, to, symbols),
        columns=parse_columns(columns or []),
        cause=cause,
        dry_run=dry_run,
    )
    reply = invocation.call(request, AcceptReply)
    invocation.emit(reply, lambda: _accept_lines(reply))


def _accept_lines(reply: AcceptReply) -> Iterator[str]:
    yield f"{'would accept' if reply.dry_run else 'accepted'}: {cells_text(reply.accepted)}"
    for source in reply.sources:
        yield f"declared absent: {source.dataset} {source.session}"
    if not reply.dry_run:
        yield f"operation {reply.operation}"
