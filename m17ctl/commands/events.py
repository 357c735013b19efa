"""
`m17ctl watch` and `metrics`: what happens, as it happens, and what is counted.

This module must never drop an event.
"""

from __future__ import annotations

from typing import Annotated

import typer

from m17ctl.formats import encode_json
from m17ctl.invocation import invocation_of
from m17d.outcomes import Event, MetricsReply
from m17d.protocol import MetricsRequest

app = typer.Typer()


@app.command("watch", epilog="Example: m17ctl --json watch --topics engine,region | jq .")
def watch(
    context: typer.Context,
    topics: Annotated[
        list[str] | None, typer.Option("--topics", metavar="TOPIC,...", help="Only these; all where absent.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="End after N events.")] = None,
    idle: Annotated[
        float | None, typer.Option("--idle", metavar="SECONDS", min=0.1, help="End after so long without an event.")
    ] = None,
) -> None:
    """Print events as they happen, until interrupted; with --json one object a line."""
    invocation = invocation_of(context)
    wanted = [part for text in topics or [] for part in text.split(",") if part]
    zone = None if invocation.json else invocation.zone
    seen = 0
    for event in invocation.connection.subscribe(*wanted, idle_s=idle):
        if not isinstance(event, Event):
            if event.resync:
                invocation.terminal.complain("m17ctl: earlier events are gone; read the state with: m17ctl status")
            continue
        if zone is None:
            invocation.emit_line(event)
        else:
            facts = " ".join(f"{name}={_text(value)}" for name, value in event.facts.items())
            invocation.terminal.line(f"{invocation.local_time(event.ts)}  {event.topic}  {facts}".rstrip())
            invocation.terminal.flush()
            if event.lost:
                invocation.terminal.complain(f"m17ctl: {event.lost} events before this one were lost")
        seen += 1
        if seen == count:
            return


def _text(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else encode_json(value).decode()


@app.command("metrics", epilog="Example: m17ctl metrics | grep m17_cells")
def metrics(context: typer.Context) -> None:
    """Print the metrics in the Prometheus text format."""
    invocation = invocation_of(context)
    reply = invocation.call(MetricsRequest(), MetricsReply)
    invocation.emit(reply, reply.text.splitlines)
