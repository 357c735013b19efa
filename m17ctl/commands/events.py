"""
`m17ctl watch` and `metrics`: what happens, as it happens, and what is counted.

This module must never drop an event.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from m17ctl.commands.watching import Position, Wanted, Watch, kept_position, words_of
from m17ctl.invocation import invocation_of
from m17ctl.options import check_date
from m17d.outcomes import MetricsReply
from m17d.protocol import TOPICS, MetricsRequest

app = typer.Typer()


def _check_topics(value: list[str] | None) -> list[str] | None:
    for text in value or []:
        unknown = sorted({part for part in text.split(",") if part} - set(TOPICS))
        if unknown:
            raise typer.BadParameter(f"{unknown[0]!r} is no topic; topics are {', '.join(TOPICS)}")
    return value


@app.command(
    "watch", epilog="Example: m17ctl --json watch --topics slots,region --session 2013-10-07 --resume ~/m17.pos"
)
def watch(
    context: typer.Context,
    topics: Annotated[
        list[str] | None,
        typer.Option("--topics", metavar="TOPIC,...", help="Only these topics.", callback=_check_topics),
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", metavar="NAME", help="Only events of this engine.")] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="DATE", help="Only events of this session.", callback=check_date),
    ] = None,
    symbols: Annotated[
        str | None, typer.Option("--symbols", metavar="GLOB", help="Only events that may be about such symbols.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FILE", help="Go on where the run that kept this file ended; keep it."),
    ] = None,
    from_seq: Annotated[
        int | None, typer.Option("--from-seq", metavar="N", min=0, help="Begin with this event, with --epoch.")
    ] = None,
    epoch: Annotated[
        str | None, typer.Option("--epoch", metavar="EPOCH", help="The start of the daemon that counts so.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="End after N events.")] = None,
    idle: Annotated[
        float | None, typer.Option("--idle", metavar="SECONDS", min=0.1, help="End after so long without an event.")
    ] = None,
) -> None:
    """
    Print what happens, as it happens, until interrupted; with --json one object a line. Goes on over a restart.

    Topics: slots (cells that changed), task, engine (states), region, operation, blocked.
    """
    invocation = invocation_of(context)
    if (from_seq is None) != (epoch is None):
        raise typer.BadParameter("--from-seq and --epoch go together: both are in every line of --json")
    begin = Position(epoch, from_seq) if epoch is not None and from_seq is not None else None
    if resume is not None:
        begin = kept_position(resume) or begin
    wanted = [part for text in topics or [] for part in text.split(",") if part]
    passing, seen = Wanted(engine, session, symbols), 0
    run = Watch(invocation, wanted, begin, resume, idle)
    for event in run.events():
        if not passing.passes(event):
            continue
        if invocation.json:
            invocation.emit_line({"epoch": run.epoch, **msgspec.to_builtins(event)})
        else:
            invocation.terminal.line(words_of(invocation, event))
            invocation.terminal.flush()
        seen += 1
        if seen == count:
            return


@app.command("metrics", epilog="Example: m17ctl metrics | grep m17_cells")
def metrics(context: typer.Context) -> None:
    """Print the metrics in the Prometheus text format."""
    invocation = invocation_of(context)
    reply = invocation.call(MetricsRequest(), MetricsReply)
    invocation.emit(reply, reply.text.splitlines)
