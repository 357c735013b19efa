"""
`m17ctl sessions` and `digest`: the trading days of the year, and what a day's content comes to.

This module must never hash anything itself: a digest is the daemon's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import typer

from m17ctl.formats import format_time
from m17ctl.invocation import Invocation, invocation_of
from m17ctl.options import SessionArgument
from m17ctl.render import fields, table
from m17d.outcomes import DigestReply
from m17d.protocol import DigestRequest, SessionsListRequest, SessionsOpenRequest
from m17d.replies import SessionReply, SessionsReply

app = typer.Typer()
sessions_app = typer.Typer(help="List the sessions of the year, or map one.", no_args_is_help=True)


@sessions_app.command("list", epilog="Example: m17ctl --json sessions list")
def list_(context: typer.Context) -> None:
    """List the sessions of the year."""
    invocation = invocation_of(context)
    reply = invocation.call(SessionsListRequest(), SessionsReply)
    invocation.emit(reply.sessions, lambda: _lines(invocation, reply.sessions))


@sessions_app.command("open", epilog="Example: m17ctl sessions open 2013-10-07")
def open_(context: typer.Context, session: SessionArgument) -> None:
    """Map a session read-write."""
    invocation = invocation_of(context)
    reply = invocation.call(SessionsOpenRequest(session=session), SessionReply)
    invocation.emit(reply, lambda: _lines(invocation, [reply]))


def _lines(invocation: Invocation, sessions: Sequence[SessionReply]) -> list[str]:
    zone = invocation.zone
    rows = [
        [
            session.session,
            str(session.session_seq),
            str(session.windows),
            format_time(session.open_ts, zone)[11:],
            format_time(session.close_ts, zone)[11:],
            session.mapped.replace("_", " "),
            ", ".join(f"{number} {state}" for state, number in Counter(session.sources.values()).items()),
        ]
        for session in sessions
    ]
    headers = ("session", "seq", "windows", "open", "close", "mapped", "sources")
    return table(headers, rows, width=invocation.terminal.width, right="lrr")


@app.command("digest", epilog="Example: m17ctl digest 2013-10-07")
def digest(context: typer.Context, session: SessionArgument) -> None:
    """Show the SHA-256 of a session's content, whole and by column."""
    invocation = invocation_of(context)
    reply = invocation.call(DigestRequest(session=session), DigestReply, long=True)
    invocation.emit(reply, lambda: _digest_lines(reply))


def _digest_lines(reply: DigestReply) -> Iterator[str]:
    yield from fields([(reply.session, reply.digest), *((str(c), text) for c, text in reply.columns.items())])
