"""
`m17ctl repair`: the operations of a file, in order, one result line each.

A line that fails does not stop those behind it (an engine that was paused must be resumed); a daemon that is gone does, and
one that lets this user change nothing.
This module must never do an operation before the whole file was checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from m17ctl.commands.ranges import undo_exit_code
from m17ctl.commands.refill import wait_until_whole
from m17ctl.errors import ClientError, DaemonUnreachable, OutcomeUnknown, ProtocolMismatch
from m17ctl.invocation import EXIT_FAILED, Invocation, error_object, invocation_of
from m17ctl.options import DryRunOption
from m17ctl.repairs import Operation, parse_repair
from m17d.envelopes import REPLIES, operation_of
from m17d.outcomes import UndoReply
from m17d.protocol import ClearRequest, RefreshRequest, WaitRequest

app = typer.Typer()

DENIED: Final = "permission_denied"

_HELP = """
Do the operations of a file (- for standard input), in order; one JSON object in and one out a line.

The whole file is checked first. Run again after an interruption, the same file does nothing twice. Operations: clear,
refresh, undo, accept, priority, pause, resume, retry, wait; fields are the words of the command line:

\b
  {"op": "pause", "engine": "quote", "cause": "vendor outage"}
  {"op": "refresh", "columns": ["trade_ref"], "session": "2013-10-07", "from": "10:15", "to": "10:40",
   "symbols": "AIG", "cause": "gap"}          (on one line)
  {"op": "priority", "symbol": "AIG", "session": "2013-10-07", "from": "10:15", "to": "10:40", "priority": 900}
  {"op": "undo", "operation": "OPERATION"}
  {"op": "resume", "engine": "quote"}
  {"op": "wait", "columns": ["trade_ref"], "session": "2013-10-07", "symbols": "AIG", "timeout": 600}
"""


@app.command(
    "repair",
    help=_HELP,
    short_help="Do the operations of a file, each once.",
    epilog="Example: m17ctl repair monday.ndjson",
)
def repair(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="NDJSON, one operation a line.")],
    cause: Annotated[str, typer.Option("--cause", metavar="TEXT", help="For lines that give none.")] = "",
    run: Annotated[str, typer.Option("--run", metavar="NAME", help="A new name does the same file anew.")] = "",
    stop: Annotated[bool, typer.Option("--stop", help="Stop at the first operation that fails.")] = False,
    dry_run: DryRunOption = False,
) -> int:
    """Do the operations of a file; see `_HELP`."""
    invocation = invocation_of(context)
    content = invocation.terminal.read_all() if file == "-" else Path(file).read_bytes()
    operations = parse_repair(content, run=run, cause=cause)
    failed = False
    for at, operation in enumerate(operations):
        try:
            result = _preview(invocation, operation) if dry_run else _do(invocation, operation)
        except KeyboardInterrupt:
            _say_resumable(invocation, operations[at:])
            raise
        except ClientError as error:
            invocation.emit_line(_failure(operation, error))
            if isinstance(error, (DaemonUnreachable, OutcomeUnknown, ProtocolMismatch)) or error.code == DENIED:
                _say_resumable(invocation, operations[at:])
                return error.exit_code
            failed = True
            if stop:
                break
            continue
        invocation.emit_line(result)
        if not result["ok"]:
            failed = True
            if stop:
                break
    return EXIT_FAILED if failed else 0


def _do(invocation: Invocation, operation: Operation) -> dict[str, Any]:
    if isinstance(operation.request, WaitRequest):
        answer = wait_until_whole(invocation, operation.request, operation.timeout_s)
        return _result(operation, answer.whole, result=answer)
    reply = invocation.call(operation.request, REPLIES[operation_of(operation.request)], key=operation.key, long=True)
    envelope = invocation.connection.last_envelope
    replayed = envelope is not None and envelope.replayed
    ok = undo_exit_code(reply) == 0 if isinstance(reply, UndoReply) else True
    return _result(operation, ok, key=operation.key, replayed=replayed, result=reply)


def _preview(invocation: Invocation, operation: Operation) -> dict[str, Any]:
    if isinstance(operation.request, (ClearRequest, RefreshRequest)):
        request = msgspec.structs.replace(operation.request, dry_run=True)
        return _result(operation, True, result=invocation.call(request, REPLIES[operation_of(request)]))
    return _result(operation, True, result=None)


def _result(operation: Operation, ok: bool, **facts: Any) -> dict[str, Any]:
    return {"line": operation.line, "op": operation.op, "ok": ok, **facts}


def _failure(operation: Operation, error: ClientError) -> dict[str, Any]:
    key = {} if isinstance(operation.request, WaitRequest) else {"key": operation.key}
    return _result(operation, False, **key, error=error_object(error))


def _say_resumable(invocation: Invocation, left: list[Operation]) -> None:
    invocation.terminal.complain(
        f"m17ctl: stopped at line {left[0].line}, {len(left)} of the operations left; "
        "run the same file again: what was done is not done twice"
    )
