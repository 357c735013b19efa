"""
`m17ctl row`, `rows` and `payload`: cells as they are, and the records they name.

This module must never summarise: what is not set shows as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from typing import Annotated, Any, Literal

import typer
from msgspec import UNSET

from m17ctl.formats import encode_json, format_time, parse_time
from m17ctl.invocation import Invocation, invocation_of
from m17ctl.options import OptionalSession, SessionArgument, SymbolArgument, TimeArgument
from m17ctl.render import busy_columns, fields, shorten, table
from m17d.protocol import PayloadRequest, RowRequest, RowsRequest
from m17d.replies import PayloadReply, RowReply, RowsReply, SlotReply

app = typer.Typer()

PayloadOption = Annotated[bool, typer.Option("--payload", help="With the record that each filled cell names.")]
KindArgument = Annotated[
    Literal["rf_rate", "trade", "quote", "aggressor", "greeks", "aggregate"],
    typer.Argument(metavar="KIND", help="rf_rate, trade, quote, aggressor, greeks or aggregate."),
]

_HEADERS = ("column", "status", "source", "flags", "payload", "version", "checksum", "inputs", "updated")
_RIGHT = "lllllr"
_LETTERS = {"empty": "-", "pending": "P", "filled": "F", "cleared": "C"}
_STATUS_COLORS = {"filled": "whole", "pending": "pending", "cleared": "trouble", "empty": "quiet"}


@app.command("row", epilog="Example: m17ctl row AIG 2013-10-07T09:31 --payload")
def row(
    context: typer.Context,
    symbol: SymbolArgument,
    time: TimeArgument,
    session: OptionalSession = None,
    payload: PayloadOption = False,
) -> None:
    """Show one minute of one symbol: every column's cell."""
    invocation = invocation_of(context)
    reply = invocation.call(RowRequest(symbol=symbol, at=parse_time(time), session=session, payload=payload), RowReply)
    invocation.emit(reply, lambda: row_lines(invocation, reply))


def row_lines(invocation: Invocation, reply: RowReply) -> Iterator[str]:
    """One window for people: its address, a line a column, the records behind them where they were asked for."""
    zone = invocation.zone
    start = format_time(reply.start_ts, zone)
    yield (
        f"{reply.symbol} (id {reply.symbol_id})  {start} to {format_time(reply.end_ts, zone)[11:]}  "
        f"window {reply.window_id}, minute {reply.minute_idx}"
    )
    yield ""
    lines = _slot_table(reply, zone, invocation.terminal.width)
    yield lines[0]
    for line, slot in zip(lines[1:], reply.slots.values(), strict=True):
        yield invocation.terminal.paint(line, _STATUS_COLORS.get(slot.status))
    for column, slot in reply.slots.items():
        if slot.payload is not UNSET:
            yield ""
            yield f"{column}:"
            yield from (f"  {line}" for line in record_lines(invocation, slot.payload))


def _slot_table(reply: RowReply, zone: tzinfo, width: int | None) -> list[str]:
    """The cells, one a line; where the terminal is narrow, shorter words and fewer columns, but no number that is cut."""
    lines = table(
        _HEADERS, [_slot_words(column, slot, zone) for column, slot in reply.slots.items()], width=None, right=_RIGHT
    )
    if width is None or max(map(len, lines)) <= width:
        return lines
    headers = [*_HEADERS[:5], "v", *_HEADERS[6:]]
    rows = [_slot_words(column, slot, zone) for column, slot in reply.slots.items()]
    for row in rows:
        # The column says which kind of payload it is; the year is seldom in doubt.
        row[4], row[8] = row[4].rpartition(" ")[2], row[8][5:16].replace("T", " ")
    shown = busy_columns(headers, rows, always=3)
    for left_out in ((), (7,), (7, 8)):
        kept = [at for at in shown if at not in left_out]
        right = "".join(_RIGHT[at : at + 1] or "l" for at in kept)
        lines = table([headers[at] for at in kept], [[row[at] for at in kept] for row in rows], width=None, right=right)
        if max(map(len, lines)) <= width:
            return lines
    return [shorten(line, width) for line in lines]


def _slot_words(column: str, slot: SlotReply, zone: tzinfo) -> list[str]:
    return [
        str(column),
        slot.status,
        "" if slot.source == "none" else slot.source,
        " ".join(slot.flags),
        f"{slot.payload_type} {slot.payload_id}" if slot.payload_id else "",
        str(slot.version) if slot.version else "",
        f"{slot.checksum:08x}" if slot.checksum else "",
        f"{slot.inputs:08x}" if slot.inputs else "",
        format_time(slot.last_updated_ns // 10**9 * 10**9, zone) if slot.last_updated_ns else "",
    ]


def record_lines(invocation: Invocation, record: Any) -> list[str]:
    """A record's fields for people; what ends in _ts or _ns is a time."""
    return fields([(name, _value(invocation, name, value)) for name, value in record.items()])


def _value(invocation: Invocation, name: str, value: object) -> str:
    is_time = name.endswith(("_ts", "_ns")) and isinstance(value, int) and not isinstance(value, bool)
    if is_time and isinstance(value, int) and value > 10**17:
        return invocation.local_time(value)
    return value if isinstance(value, str) else encode_json(value).decode()


@app.command("rows", epilog="Example: m17ctl --json rows AIG 2013-10-07 | head -1")
def rows(
    context: typer.Context, symbol: SymbolArgument, session: SessionArgument, payload: PayloadOption = False
) -> None:
    """List every minute of one symbol and session; with --json one object a line."""
    invocation = invocation_of(context)
    request = RowsRequest(symbol=symbol, session=session, payload=payload)
    headed = False
    for piece in invocation.stream(request, RowsReply):
        for window in piece.rows:
            if invocation.json:
                invocation.terminal.write_bytes(encode_json(window))
                continue
            if not headed:
                headed = True
                invocation.terminal.line("time   " + "  ".join(str(column) for column in window.slots))
            invocation.terminal.line(_window_line(invocation, window))
            if payload:
                _write_payloads(invocation, window)
    if not invocation.json and headed:
        invocation.terminal.line(
            "F filled, - empty, P pending, C cleared; n no rows, w wanted, p partial, s short, ! suspect"
        )


_FLAG_LETTERS = {"no_rows": "n", "wanted": "w", "partial": "p", "short": "s", "suspect": "!"}


def _window_line(invocation: Invocation, window: RowReply) -> str:
    cells = [_cell_text(slot).ljust(len(column)) for column, slot in window.slots.items()]
    return f"{format_time(window.start_ts, invocation.zone)[11:16]}  {'  '.join(cells)}".rstrip()


def _cell_text(slot: SlotReply) -> str:
    flags = "".join(_FLAG_LETTERS.get(flag, "?") for flag in slot.flags)
    version = f" v{slot.version}" if slot.version else ""
    return f"{_LETTERS.get(slot.status, '?')}{flags}{version}"


def _write_payloads(invocation: Invocation, window: RowReply) -> None:
    for column, slot in window.slots.items():
        if slot.payload is not UNSET:
            invocation.terminal.line(f"       {column} {encode_json(slot.payload).decode()}")


@app.command("payload", epilog="Example: m17ctl payload trade 17")
def payload_(
    context: typer.Context,
    kind: KindArgument,
    payload_id: Annotated[int, typer.Argument(metavar="ID", min=1, max=2**32 - 1, help="The payload_id of a cell.")],
) -> None:
    """Show one record of a mapping file."""
    invocation = invocation_of(context)
    reply = invocation.call(PayloadRequest(kind=kind, payload_id=payload_id), PayloadReply)
    invocation.emit(reply.record, lambda: record_lines(invocation, reply.record))
