"""
`m17ctl audit` and `operation`: who did what, and what became of one request.

This module must never hide a record: what it does not know it prints as it is,
and --json leaves nothing out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer
from msgspec import UNSET

from m17ctl.formats import encode_json, format_count
from m17ctl.invocation import EXIT_FAILED, Invocation, invocation_of
from m17d.outcomes import AuditReply, OperationRecord
from m17d.protocol import AuditRequest, OperationRequest

app = typer.Typer()

_SHOWN: Final = frozenset({"ts", "operator", "op", "operation", "range", "cells", "cause", "result", "claimed"})
_LEFT_TO_JSON: Final = frozenset({"seq", "digest", "hash", "previous_hash"})
"""What proves a record, and tells people nothing; --json has it."""


@app.command("audit", epilog="Example: m17ctl audit --tail 20")
def audit(
    context: typer.Context,
    tail: Annotated[int, typer.Option("--tail", metavar="N", min=0, help="Only the last N records; 0 means all.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain too; exit 1 where it is broken.")] = False,
) -> int:
    """List the operator log, oldest first; with --json one object a line."""
    invocation = invocation_of(context)
    chain = ""
    for piece in invocation.stream(AuditRequest(tail=tail, verify=verify), AuditReply):
        for record in piece.records:
            if invocation.json:
                invocation.terminal.write_bytes(encode_json(record))
            else:
                _write_record(invocation, record)
        chain = chain if piece.chain is UNSET else piece.chain
    if not verify:
        return 0
    # One record a line is what readers of standard output count on.
    invocation.terminal.complain(
        encode_json({"chain": chain}).decode() if invocation.json else f"chain: {chain or 'not checked'}"
    )
    return 0 if chain == "intact" else EXIT_FAILED


def _write_record(invocation: Invocation, record: Mapping[str, Any]) -> None:
    """One line; on a terminal that is too narrow what was done goes below who did it."""
    head, text = _record_words(invocation, record)
    terminal = invocation.terminal
    if terminal.width is None or len(head) + 2 + len(text) <= terminal.width:
        terminal.line(f"{head}  {text}".rstrip())
        return
    terminal.line(head)
    terminal.line(f"  {text}")


def _record_words(invocation: Invocation, record: Mapping[str, Any]) -> tuple[str, str]:
    """(when, who and what; on what, why and with what result)."""
    operator = record.get("operator")
    who = _who(operator) if isinstance(operator, Mapping) else str(operator or "m17d")
    ts = record.get("ts")
    when = invocation.local_time(ts // 10**9 * 10**9) if isinstance(ts, int) else "-"
    parts = [str(record.get("operation") or ""), _range_text(invocation, record.get("range"))]
    cells = record.get("cells")
    if isinstance(cells, Mapping) and cells:
        parts.append(", ".join(f"{column} {format_count(number)} cells" for column, number in cells.items()))
    parts += [f"cause: {record['cause']}" if record.get("cause") else "", str(record.get("result") or "")]
    parts += [
        f"{name}={value if isinstance(value, str) and ' ' not in value else encode_json(value).decode()}"
        for name, value in record.items()
        if name not in _SHOWN and name not in _LEFT_TO_JSON and value not in (None, "", {}, [])
    ]
    claimed = record.get("claimed")
    if isinstance(claimed, Mapping):
        parts += [f"{name} {value}" for name, value in claimed.items() if name != "key"]
    return f"{when}  {who}  {record.get('op', '-')}", "; ".join(part for part in parts if part)


def _range_text(invocation: Invocation, given: object) -> str:
    """A record's range in words; times as people read them."""
    if not isinstance(given, Mapping):
        return "" if given is None else str(given)
    words = []
    for name, value in given.items():
        if value in (None, "", []):
            continue
        shown = invocation.local_time(value) if name in ("from", "to") and isinstance(value, int) else value
        shown = ", ".join(map(str, shown)) if isinstance(shown, list) else shown
        words.append(str(shown) if name in ("session", "symbol", "symbols", "columns") else f"{name} {shown}")
    return " ".join(words)


def _who(operator: Mapping[str, Any]) -> str:
    return str(operator.get("user") or f"uid {operator.get('uid', '?')}")


@app.command("operation", epilog="Example: m17ctl operation 5f0c9a...   (the key that exit code 8 printed)")
def operation(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The idempotency key of a mutation.")],
) -> None:
    """Say what became of a mutation whose answer did not arrive; exit 6 where it was never done."""
    invocation = invocation_of(context)
    reply = invocation.call(OperationRequest(key=key), OperationRecord)
    invocation.emit(reply, lambda: _operation_lines(invocation, reply))


def _operation_lines(invocation: Invocation, reply: OperationRecord) -> Iterator[str]:
    who = reply.operator.user or f"uid {reply.operator.uid}"
    yield f"{reply.outcome}: {reply.op} {reply.operation}, {invocation.local_time(reply.ts)}, by {who}"
    yield encode_json(reply.reply).decode()
