"""
`m17ctl engines`: what the engines do, and pause, resume, retry.

This module must never wait for an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from m17ctl.formats import format_count
from m17ctl.invocation import Invocation, invocation_of
from m17ctl.options import OptionalCause
from m17ctl.render import table
from m17d.outcomes import EngineReply, EnginesReply
from m17d.protocol import EnginesControlRequest, EnginesListRequest

engines_app = typer.Typer(help="List the engines; pause, resume or retry one.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The engine, such as trade_flatfile.")]


@engines_app.command("list", epilog="Example: m17ctl --json engines list")
def list_(context: typer.Context) -> None:
    """List the engines that run, with state, reason and backlog."""
    invocation = invocation_of(context)
    reply = invocation.call(EnginesListRequest(), EnginesReply)
    invocation.emit(reply.engines, lambda: _lines(invocation, reply.engines))


@engines_app.command("pause", epilog="Example: m17ctl engines pause quote --cause 'vendor outage'")
def pause(context: typer.Context, name: NameArgument, cause: OptionalCause = "") -> None:
    """Let an engine finish its tasks and take no more; holds over restarts."""
    _control(invocation_of(context), name, "pause", cause)


@engines_app.command("resume", epilog="Example: m17ctl engines resume quote")
def resume(context: typer.Context, name: NameArgument, cause: OptionalCause = "") -> None:
    """Let a paused engine work again."""
    _control(invocation_of(context), name, "resume", cause)


@engines_app.command("retry", epilog="Example: m17ctl engines retry trade_flatfile")
def retry(context: typer.Context, name: NameArgument, cause: OptionalCause = "") -> None:
    """Let a failed engine, or one that waits after a failure, try again now."""
    _control(invocation_of(context), name, "retry", cause)


def _control(invocation: Invocation, name: str, action: Literal["pause", "resume", "retry"], cause: str) -> None:
    request = EnginesControlRequest(engine=name, action=action, cause=cause)
    reply = invocation.call(request, EngineReply)
    invocation.emit(reply, lambda: _lines(invocation, [reply]))


def _lines(invocation: Invocation, engines: Sequence[EngineReply]) -> list[str]:
    rows = [
        [
            engine.name,
            engine.state,
            format_count(engine.backlog),
            invocation.local_time(engine.since_ns // 10**9 * 10**9) if engine.since_ns else "",
            str(engine.restarts),
            _detail(engine),
        ]
        for engine in engines
    ]
    headers = ("engine", "state", "backlog", "since", "restarts", "detail")
    return table(headers, rows, width=invocation.terminal.width, right="llrlr")


def _detail(engine: EngineReply) -> str:
    if not engine.paused_by or engine.paused_by in engine.detail:
        return engine.detail
    return f"{engine.detail} paused by {engine.paused_by}".strip()
