"""
The file that `m17ctl repair` takes: one operation a line, read and checked whole before the first is done.

::

    {"op": "pause", "engine": "quote", "cause": "vendor outage"}
    {
        "op": "clear",
        "columns": ["trade_ref"],
        "session": "2013-10-07",
        "from": "10:15",
        "to": "10:40",
        "symbols": "AIG",
        "cause": "bad prints",
    }
    {"op": "priority", "symbol": "AIG", "session": "2013-10-07", "from": "10:15", "to": "10:40", "priority": 900}
    {"op": "resume", "engine": "quote"}
    {"op": "wait", "columns": ["trade_ref"], "session": "2013-10-07", "symbols": "AIG", "timeout": 600}

Fields are the words of the command line; a range may also be the protocol's ``range`` object. Empty lines and lines that
begin with # are skipped. An operation's idempotency key comes from the file's content and its line, so that the same file,
run again, does nothing twice. This module must never talk to the daemon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from m17ctl.formats import parse_date, parse_time
from m17ctl.invocation import CommandFailed
from m17d.envelopes import REQUESTS
from m17d.protocol import Request

OPERATIONS: Final = {
    "clear": "clear",
    "refresh": "refresh",
    "undo": "undo",
    "accept": "accept",
    "priority": "priority_add",
    "pause": "engines_control",
    "resume": "engines_control",
    "retry": "engines_control",
    "wait": "wait",
}
"""What a line's ``op`` says to the operation of the protocol."""
_ALIASES: Final = {"column": "columns", "name": "engine", "priority_add": "priority"}
_RANGE_FIELDS: Final = {"session": "session", "from": "from_ts", "to": "to_ts", "symbols": "symbols"}
_TIMES: Final = ("from", "to")
_NOT_TO_SAY: Final = frozenset({"dry_run", "confirmed", "action", "op"})
_WITH_RANGE: Final = ("clear", "refresh", "accept", "wait")


class Operation(NamedTuple):
    """One line: its number from 1, its word, its request, its key and, for a wait, its seconds (None: without end)."""

    line: int
    op: str
    request: Request
    key: str
    timeout_s: float | None


class _Unfit(Exception):
    """The line cannot be done; the text says why."""


def parse_repair(content: bytes, *, run: str = "", cause: str = "") -> list[Operation]:
    """
    The operations of a file.

    Args:
        content: the file, UTF-8.
        run: another name makes other keys, so that the same file is done anew.
        cause: for lines that give none.

    Raises:
        CommandFailed: code ``bad_request``; names every line that cannot be done (the first ten).
    """
    digest = hashlib.sha256(run.encode() + b"\0" + content).hexdigest()[:24]
    operations: list[Operation] = []
    unfit: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        try:
            operations.append(_parse_line(number, text, f"repair-{digest}-{number}", cause))
        except _Unfit as error:
            unfit.append(f"line {number}: {error}")
    if unfit:
        more = f"; and {len(unfit) - 10} more" if len(unfit) > 10 else ""
        raise CommandFailed("bad_request", "; ".join(unfit[:10]) + more, "nothing was done; correct the file")
    if not operations:
        raise CommandFailed(
            "nothing_selected", "the file has no operation", "one JSON object a line: see m17ctl repair --help"
        )
    return operations


def _parse_line(number: int, text: bytes, key: str, cause: str) -> Operation:
    try:
        given = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Unfit(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise _Unfit("not a JSON object")
    fields = {_ALIASES.get(name.replace("-", "_"), name.replace("-", "_")): value for name, value in given.items()}
    op = fields.pop("op", None)
    op = _ALIASES.get(op, op) if isinstance(op, str) else op
    if not isinstance(op, str) or op not in OPERATIONS:
        raise _Unfit(f"op {op!r} is not one of {', '.join(OPERATIONS)}")
    if forbidden := sorted(_NOT_TO_SAY & fields.keys()):
        raise _Unfit(f"{forbidden[0]} cannot be given in a file")
    timeout_s = _timeout(fields.pop("timeout", None)) if op == "wait" else None
    body = _body(op, fields)
    if cause and op not in {"wait", "priority"}:
        body.setdefault("cause", cause)
    try:
        return Operation(number, op, msgspec.convert(body, REQUESTS[OPERATIONS[op]]), key, timeout_s)
    except msgspec.ValidationError as error:
        raise _Unfit(f"{op}: {error}") from None


def _body(op: str, fields: dict[str, Any]) -> dict[str, Any]:
    if op in _WITH_RANGE:
        inner = fields.pop("range", None) or {}
        if not isinstance(inner, Mapping):
            raise _Unfit("range is not an object")
        inner = {name.removesuffix("_ts"): value for name, value in inner.items()}
        inner |= {name: fields.pop(name) for name in _RANGE_FIELDS if name in fields}
        _check_times(inner)
        if unknown := sorted(inner.keys() - _RANGE_FIELDS.keys()):
            raise _Unfit(f"range has no field {unknown[0]!r}")
        fields["range"] = {_RANGE_FIELDS[name]: value for name, value in inner.items()}
    elif op == "priority":
        _check_times(fields)
        fields |= {f"{name}_ts": fields.pop(name) for name in _TIMES if name in fields}
    elif op in ("pause", "resume", "retry"):
        fields["action"] = op
    if isinstance(fields.get("columns"), str):
        fields["columns"] = [part for part in fields["columns"].split(",") if part]
    if op in ("clear", "refresh"):
        # The file is the operator's word.
        fields["confirmed"] = True
    return {"op": OPERATIONS[op], **fields}


def _check_times(fields: dict[str, Any]) -> None:
    for name in (*_TIMES, "session"):
        parse: Callable[[str], int | str] = parse_date if name == "session" else parse_time
        if isinstance(fields.get(name), str):
            try:
                fields[name] = parse(fields[name])
            except ValueError as error:
                raise _Unfit(f"{name}: {error}") from None


def _timeout(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise _Unfit("timeout is a number of seconds")
    return float(value)
