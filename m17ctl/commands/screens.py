"""
`m17ctl tui` and `m17ctl report`: the larger screens.

What draws them is imported when they are named. This module must never import them, nor polars, at start.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from m17ctl.formats import format_bytes
from m17ctl.invocation import CommandFailed, invocation_of
from m17ctl.options import SessionArgument

app = typer.Typer()


@app.command("tui", epilog="Example: m17ctl tui")
def tui(context: typer.Context) -> int:
    """Open the full-screen view."""
    code = importlib.import_module("m17ctl.tui.app").run(invocation_of(context))
    return code if isinstance(code, int) else 0


@app.command("report", epilog="Example: m17ctl report 2013-10-07 --out monday.html")
def report(
    context: typer.Context,
    session: SessionArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page.  [default: m17-SESSION.html in this directory]"),
    ] = None,
) -> None:
    """
    Write a session's report: one HTML page that opens without a network.

    With --json it prints what the page is made of, and writes the page only with --out.
    """
    day = importlib.import_module("m17ctl.report.day")
    invocation = invocation_of(context)
    path = out or (None if invocation.json else Path(f"m17-{session}.html"))
    if path is not None and not path.absolute().parent.is_dir():
        raise CommandFailed("not_found", f"no directory {path.absolute().parent}", "make it first")
    reply = day.report_of(invocation, session)
    figures = day.figures_of(invocation, session)
    invocation.terminal.end_progress()
    size = 0
    if path is not None:
        text = day.html_of(invocation, reply, figures)
        size = path.write_text(text, encoding="utf-8")
    facts = {**reply.facts, "figures": msgspec.to_builtins(figures)}
    invocation.emit(
        msgspec.structs.replace(reply, facts=facts),
        lambda: [f"{session}: {reply.verdict}", f"{path}: {format_bytes(size)}"],
    )
