"""
`m17ctl coverage`: the cells of a session by column and status; on a terminal, a heat map.

The columns' map comes from the counts by minute. A symbol's line comes from raw rows: which cells apply to it and are due
comes from its counts. This module must never compute staleness: it is shown where the daemon counts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec
import typer

from ledger.columns import WINDOW_NS, Column, Flag, Status
from m17ctl.client import rows_of_slab
from m17ctl.formats import format_count, literal
from m17ctl.heatmap import heat_map, merge
from m17ctl.invocation import EXIT_FALSE, Invocation, invocation_of
from m17ctl.options import (
    ColumnsOption,
    ExitCodeOption,
    SessionArgument,
    SymbolsOption,
    parse_columns,
)
from m17ctl.render import counts_table, due, named_counts_table, sound
from m17d.protocol import BulkRequest, CoverageRequest, Range, SessionsListRequest
from m17d.replies import Counts, CountsByColumn, CoverageReply, SessionsReply

app = typer.Typer()

By = Literal["symbol", "minute", "source"]

_SYMBOL_LINES_MIN: Final = 8
_SLOT_STATUS, _SLOT_FLAGS = 1, 3
_EXAMPLE: Final = "Example: m17ctl coverage 2013-10-07 --by symbol --columns trade_ref"


@app.command("coverage", epilog=_EXAMPLE)
def coverage(
    context: typer.Context,
    session: SessionArgument,
    by: Annotated[By | None, typer.Option("--by", help="Count by symbol, minute or source too.")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="Add what the engines say about quality.")] = False,
    symbols: SymbolsOption = None,
    columns: ColumnsOption = None,
    exit_code: ExitCodeOption = False,
) -> int:
    """Count the cells of a session; on a terminal draw a map, with --by symbol one line a symbol."""
    invocation = invocation_of(context)
    wanted = parse_columns(columns or [])
    map_of_columns = by is None and invocation.terminal.is_terminal and not invocation.json
    request = CoverageRequest(session=session, by="minute" if map_of_columns else by, quality=quality, symbols=symbols)
    reply = invocation.call(request, CoverageReply)
    if wanted:
        reply = _only(reply, wanted)
    invocation.emit(reply, lambda: _lines(invocation, reply, by))
    whole = all(sound(counts) == due(counts) for counts in reply.columns.values())
    return EXIT_FALSE if exit_code and not whole else 0


def _only(reply: CoverageReply, wanted: list[Column]) -> CoverageReply:
    def kept(columns: CountsByColumn) -> CountsByColumn:
        return {column: counts for column, counts in columns.items() if column in wanted}

    parts = {
        name: {key: kept(columns) for key, columns in part.items()}
        for name in ("by_symbol", "by_minute", "by_source")
        if isinstance(part := getattr(reply, name), dict)
    }
    return msgspec.structs.replace(reply, columns=kept(reply.columns), **parts)


def _lines(invocation: Invocation, reply: CoverageReply, by: By | None) -> Iterator[str]:
    terminal = invocation.terminal
    yield (
        f"{reply.session}: {format_count(reply.windows)} windows x {format_count(reply.symbols)} symbols, "
        f"{_verdict(reply.columns)}"
    )
    yield from counts_table(reply.columns, width=terminal.width)
    for dataset, found in reply.out_of_session.items():
        counted = ", ".join(f"{name.replace('_', ' ')} {format_count(n)}" for name, n in found.items() if n)
        if not counted:
            continue
        yield f"outside the session, {dataset}: {counted}"
    if isinstance(reply.quality, dict):
        yield from quality_lines(reply.quality)
    if by is None and isinstance(reply.by_minute, dict) and reply.by_minute:
        yield ""
        yield from _columns_map(invocation, reply.by_minute)
    elif by == "symbol" and isinstance(reply.by_symbol, dict):
        yield ""
        yield from _by_symbol(invocation, reply, reply.by_symbol)
    elif by == "minute" and isinstance(reply.by_minute, dict):
        yield ""
        rows = [(invocation.local_time(int(start)), merge(list(c.values()))) for start, c in reply.by_minute.items()]
        yield from named_counts_table(rows, width=terminal.width, label="minute")
    elif by == "source" and isinstance(reply.by_source, dict):
        for source, columns in reply.by_source.items():
            if not columns:
                continue
            yield ""
            yield from counts_table(columns, width=terminal.width, label=source)


def _verdict(columns: CountsByColumn) -> str:
    broken = [column for column, counts in columns.items() if sound(counts) != due(counts)]
    return "whole" if not broken else f"not whole: {', '.join(broken)}"


def _columns_map(invocation: Invocation, by_minute: Mapping[str, CountsByColumn]) -> list[str]:
    minutes = sorted((int(start), columns) for start, columns in by_minute.items())
    names = [column for column in Column if any(column in columns for _, columns in minutes)]
    lines = [(str(name), [columns.get(name, Counts()) for _, columns in minutes]) for name in names]
    return heat_map(
        lines,
        [start for start, _ in minutes],
        zone=invocation.zone,
        width=invocation.terminal.width or 100,
        paint=invocation.terminal.paint,
    )


def _by_symbol(invocation: Invocation, reply: CoverageReply, by_symbol: Mapping[str, CountsByColumn]) -> Iterator[str]:
    terminal = invocation.terminal
    totals = {symbol: merge(list(columns.values())) for symbol, columns in by_symbol.items()}
    worst = sorted(totals, key=lambda symbol: (sound(totals[symbol]) - due(totals[symbol]), symbol))
    if not terminal.is_terminal:
        rows = [(symbol, totals[symbol]) for symbol in totals]
        yield from named_counts_table(rows, width=terminal.width, label="symbol")
        return
    shown = worst[: max(_SYMBOL_LINES_MIN, terminal.height - 8)]
    starts = _window_starts(invocation, reply.session)
    lines = [(symbol, _symbol_line(invocation, reply.session, symbol, by_symbol[symbol], starts)) for symbol in shown]
    yield from heat_map(
        lines, starts, zone=invocation.zone, width=terminal.width or 100, paint=terminal.paint, strict=True
    )
    if len(worst) > len(shown):
        yield f"the {len(shown)} with most trouble of {format_count(len(worst))}; --symbols GLOB shows others"


def _window_starts(invocation: Invocation, session: str) -> list[int]:
    """Start of each window of the session, ns UTC."""
    for day in invocation.call(SessionsListRequest(), SessionsReply).sessions:
        if day.session == session:
            return [day.open_ts + at * WINDOW_NS for at in range(day.windows)]
    return []


def _symbol_line(
    invocation: Invocation, session: str, symbol: str, columns: CountsByColumn, starts: Sequence[int]
) -> list[Counts]:
    """The counts of the symbol's cells over ``columns`` in each window of ``starts``."""
    cells: dict[Column, dict[int, tuple[int, int]]] = {column: {} for column in columns}
    for ledger in sorted({column.ledger for column in columns}):
        request = BulkRequest(ledger=ledger, range=Range(session=session, symbols=literal(symbol)))
        for piece, slab in invocation.connection.slabs(request):
            for row in rows_of_slab(piece, slab):
                for column, slot in zip(piece.columns, row.slots, strict=True):
                    if column in cells and piece.symbols.get(row.symbol_id) == symbol:
                        cells[column][row.start_ts] = (slot[_SLOT_STATUS], slot[_SLOT_FLAGS])
    # A symbol without any set cell has no rows in the answer.
    lines = [
        list(_cells([cells[column].get(start, (Status.EMPTY, 0)) for start in starts], columns[column]))
        for column in columns
    ]
    return [merge([line[at] for line in lines]) for at in range(len(starts))]


def _cells(cells: list[tuple[int, int]], totals: Counts) -> Iterator[Counts]:
    """The counts of each window of one cell; of the unset ones, those that are due come first in time."""
    due_left, not_due_left = totals.empty, totals.not_due
    for status, flags in cells:
        if status == Status.FILLED:
            no_rows, suspect = bool(flags & Flag.NO_ROWS), bool(flags & Flag.SUSPECT)
            yield Counts(filled=1, no_data=int(no_rows), suspect=int(suspect))
        elif status == Status.PENDING:
            yield Counts(pending=1)
        elif status == Status.CLEARED:
            yield Counts(cleared=1)
        elif due_left > 0:
            due_left -= 1
            yield Counts(empty=1)
        elif not_due_left > 0:
            not_due_left -= 1
            yield Counts(not_due=1)
        else:
            yield Counts(not_applicable=1)


def quality_lines(quality: dict[str, dict[str, int]]) -> Iterator[str]:
    """Rows by column, of derived ones how many are usable and what the others lack."""
    for column, counts in quality.items():
        line = f"{column}: {format_count(counts['rows'])} rows"
        if "usable_rows" in counts:
            others = {word: number for word, number in counts.items() if word not in ("rows", "usable_rows")}
            line += f", {format_count(counts['usable_rows'])} usable"
            line += "".join(f"; {word} {format_count(number)}" for word, number in others.items())
        yield line
