"""
`m17ctl tui` and `report`: the larger screens, where they are installed.

This module must never import them at start.
"""

from __future__ import annotations

import importlib

import typer

from m17ctl.invocation import invocation_of
from m17ctl.options import SessionArgument
from m17d.outcomes import ReportReply
from m17d.protocol import ReportRequest

app = typer.Typer()


@app.command("tui", epilog="Example: m17ctl tui")
def tui(context: typer.Context) -> int:
    """Open the full-screen view."""
    code = importlib.import_module("m17ctl.tui").run(invocation_of(context))
    return code if isinstance(code, int) else 0


@app.command("report", epilog="Example: m17ctl report 2013-10-07")
def report(context: typer.Context, session: SessionArgument) -> None:
    """Report on a session: coverage, sources, root causes, operations."""
    invocation = invocation_of(context)
    reply = invocation.call(ReportRequest(session=session), ReportReply, long=True)
    invocation.emit(reply, lambda: importlib.import_module("m17ctl.report").lines(invocation, reply))
