"""
`m17ctl status`: what is wrong now, in one page whose first line is the verdict.

This module must never decide what is wrong: the daemon's verdict and counts do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import typer

from ledger.columns import Column
from m17ctl.formats import format_bytes, format_count, format_duration
from m17ctl.invocation import EXIT_FALSE, Invocation, invocation_of
from m17ctl.options import ExitCodeOption
from m17ctl.render import busy_columns, counts_table, due, sound, sparkline, table
from m17d.protocol import StatusRequest
from m17d.replies import SourceReply, Space, StatusReply

app = typer.Typer()

_QUIET_SOURCES = ("complete", "open")
_SOURCES_SHOWN = 20
_STATE_COLORS = {
    "failed": "trouble",
    "degraded": "trouble",
    "damaged": "trouble",
    "paused": "partial",
    "waiting": "partial",
}


@app.command("status", epilog="Example: m17ctl status --exit-code && echo all is well")
def status(context: typer.Context, exit_code: ExitCodeOption = False) -> int:
    """Show the verdict, the cells by column, the engines and the sources."""
    invocation = invocation_of(context)
    reply = invocation.call(StatusRequest(), StatusReply)
    invocation.emit(reply, lambda: status_lines(invocation, reply))
    return EXIT_FALSE if exit_code and not is_well(reply) else 0


def is_well(reply: StatusReply) -> bool:
    """Whether every due, applicable cell is sound, every engine works and no source is damaged or waiting."""
    return (
        all(sound(counts) == due(counts) for counts in reply.columns.values())
        and not any(engine.state in ("failed", "degraded") for engine in reply.engines.values())
        and not any(source.state in ("damaged", "waiting") for source in reply.sources)
    )


def status_lines(invocation: Invocation, reply: StatusReply) -> Iterator[str]:
    """The page for people: verdict, warnings, columns, engines, sources."""
    terminal = invocation.terminal
    yield terminal.paint(reply.verdict, "whole" if is_well(reply) else "trouble")
    if reply.look:
        yield f"look closer with: {reply.look}"
    yield from (terminal.paint(f"warning: {warning}", "partial") for warning in reply.warnings)
    yield (
        f"m17d {reply.version}, pid {reply.pid}, up {format_duration(reply.uptime_s)}; {reply.state_dir}, "
        f"year {reply.year}, {format_count(reply.symbols)} of {format_count(reply.symbols_max)} symbols"
    )
    yield _space_line(reply.space)
    if reply.columns:
        yield ""
        yield from counts_table(reply.columns, width=terminal.width)
    if reply.lags:
        yield ""
        yield from lag_lines(invocation, reply.lags)
    if reply.engines:
        yield ""
        rows = [
            [name, engine.state, format_count(engine.backlog), engine.detail] for name, engine in reply.engines.items()
        ]
        lines = table(("engine", "state", "backlog", "detail"), rows, width=terminal.width, right="llr")
        yield lines[0]
        for line, row in zip(lines[1:], rows, strict=True):
            yield terminal.paint(line, _STATE_COLORS.get(row[1]))
    if reply.sources:
        yield ""
        yield from source_lines(invocation, reply.sources)


def _space_line(space: Space) -> str:
    """Room, and for how long it is enough."""
    free = f"{format_bytes(space.free_bytes)} free"
    if space.runway_days is None or space.session_bytes is None:
        return f"{free}; for how long is not known before a session is filled"
    each = format_bytes(space.session_bytes)
    return f"{free}, room for {format_count(int(space.runway_days))} more trading days at {each} each"


def lag_lines(invocation: Invocation, lags: Mapping[Column, list[float]]) -> list[str]:
    """How far columns lie behind, now and over the last minutes, a sample every half minute."""
    minutes = max(len(samples) for samples in lags.values()) // 2
    rows = [
        [column.value, format_duration(60 * samples[-1]), format_duration(60 * max(samples)), sparkline(samples)]
        for column, samples in lags.items()
    ]
    headers = ("behind", "now", "at most", f"last {minutes} min" if minutes else "trend")
    return table(headers, rows, width=invocation.terminal.width, right="lrr")


def source_lines(invocation: Invocation, sources: list[SourceReply]) -> Iterator[str]:
    """The sources for people, those in trouble first; the rest is counted where there are many."""
    terminal = invocation.terminal
    ordered = sorted(sources, key=lambda source: (source.state in _QUIET_SOURCES, source.session, source.dataset))
    shown = ordered[:_SOURCES_SHOWN]
    rows = [
        [
            source.session,
            source.dataset,
            source.state,
            format_count(source.rows),
            format_count(sum(source.rejected.values())),
            format_count(source.out_of_session.get("rows", 0)),
            format_bytes(source.bytes) if source.bytes else "",
        ]
        for source in shown
    ]
    headers = ("session", "source", "state", "rows", "rejected", "outside", "size")
    chosen = busy_columns(headers, rows, always=3)
    right = "".join("lllrrrr"[at] for at in chosen)
    cells = [[row[at] for at in chosen] for row in rows]
    lines = table([headers[at] for at in chosen], cells, width=terminal.width, right=right, keep=3)
    yield lines[0]
    for line, source in zip(lines[1:], shown, strict=True):
        yield terminal.paint(line, _STATE_COLORS.get(source.state))
        if source.detail:
            yield f"  {source.detail}"
    if len(ordered) > len(shown):
        yield f"and {len(ordered) - len(shown)} more (m17ctl --json status has all)"
