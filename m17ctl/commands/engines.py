"""
`m17ctl engines`: what the engines do, and pause, resume, retry.

This module must never wait for an engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import typer

from m17ctl.formats import format_count, format_duration, format_share
from m17ctl.invocation import Invocation, invocation_of
from m17ctl.options import OptionalCause
from m17ctl.render import busy_columns, table
from m17d.outcomes import EngineReply, EnginesReply
from m17d.protocol import EnginesControlRequest, EnginesListRequest

engines_app = typer.Typer(help="List the engines; pause, resume or retry one.", no_args_is_help=True)

_MINUTE_NS: Final = 60 * 10**9

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The engine, such as trade_flatfile.")]


@engines_app.command("list", epilog="Example: m17ctl --json engines list")
def list_(context: typer.Context) -> None:
    """List the engines that run, with state, reason, progress and the time that is left."""
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
    today = invocation.local_time(time.time_ns())[:10]
    rows = [
        [
            engine.name,
            engine.state,
            format_count(engine.backlog),
            *_progress(engine),
            _since(invocation, engine.since_ns, today),
            str(engine.restarts),
            _detail(engine),
        ]
        for engine in engines
    ]
    headers = ("engine", "state", "backlog", "done", "left", "since", "restarts", "detail")
    chosen = busy_columns(headers, rows, always=3)
    right = "".join("llrrrlrl"[at] for at in chosen)
    cells = [[row[at] for at in chosen] for row in rows]
    return table(
        [headers[at] for at in chosen], cells, width=invocation.terminal.width, right=right, keep=len(chosen) - 1
    )


def _since(invocation: Invocation, since_ns: int, today: str) -> str:
    """A time of today, else a date: what tells one engine from another, in little room."""
    text = invocation.local_time(since_ns // _MINUTE_NS * _MINUTE_NS) if since_ns else ""
    return text[11:] if text[:10] == today else text[:10]


def _progress(engine: EngineReply) -> tuple[str, str]:
    """How far a working engine is, and how long the rest will take."""
    if not engine.total or engine.done == engine.total:
        return "", ""
    left = "" if engine.eta_s is None else format_duration(engine.eta_s)
    return f"{format_share(engine.done, engine.total)} of {format_count(engine.total)} {engine.unit}", left


def _detail(engine: EngineReply) -> str:
    if not engine.paused_by or engine.paused_by in engine.detail:
        return engine.detail
    return f"{engine.detail} paused by {engine.paused_by}".strip()
