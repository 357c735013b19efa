"""
`m17ctl verify`, `backup`, `gc` and `doctor`: whether the state is sound, copies of it, what nobody needs, what surrounds it.

This module must never touch the state directory: the daemon does.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from m17ctl.client import DEFAULT_SOCKET, SOCKET_VARIABLE
from m17ctl.errors import DaemonUnreachable
from m17ctl.formats import encode_json, format_bytes, format_count, format_duration
from m17ctl.invocation import EXIT_FAILED, Invocation, error_object, invocation_of
from m17ctl.options import DryRunOption, check_date
from m17ctl.render import fields
from m17d.outcomes import BackupReply, DoctorReply, Finding, GcReply, VerifyReply
from m17d.protocol import BackupRequest, DoctorRequest, GcRequest, VerifyRequest

app = typer.Typer()


@app.command("verify", epilog="Example: m17ctl verify 2013-10-07")
def verify(
    context: typer.Context,
    session: Annotated[
        str | None, typer.Argument(metavar="[SESSION]", help="All sessions where absent.", callback=check_date)
    ] = None,
) -> int:
    """Check cells, records and artifacts against each other; exit 1 when something is wrong."""
    invocation = invocation_of(context)
    reply = invocation.call(VerifyRequest(session=session), VerifyReply, long=True)
    invocation.emit(reply, lambda: _verify_lines(invocation, reply))
    return EXIT_FAILED if reply.findings else 0


def _verify_lines(invocation: Invocation, reply: VerifyReply) -> Iterator[str]:
    checked = (
        f"{format_count(reply.slots)} slots, {format_count(reply.payloads)} payloads, "
        f"{format_count(reply.artifacts)} artifacts: {format_bytes(reply.bytes)} in {_took(reply.seconds)}"
    )
    if not reply.findings:
        yield invocation.terminal.paint(f"sound: {checked}", "whole")
    else:
        count = len(reply.findings)
        yield invocation.terminal.paint(f"{count} {'finding' if count == 1 else 'findings'} in {checked}", "trouble")
        yield from _finding_lines(invocation, reply.findings)
    orphans = reply.orphans
    if orphans.files or orphans.records:
        what_to_do = "; remove old files with: m17ctl gc" if orphans.files else "; records stay where they are"
        yield (
            f"no cell names {format_count(orphans.files)} files ({format_bytes(orphans.bytes)}) and "
            f"{format_count(orphans.records)} records{what_to_do}"
        )


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)


def _finding_lines(invocation: Invocation, findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        where = f" ({finding.where})" if finding.where else ""
        yield f"{invocation.terminal.paint(finding.code, 'bold')}: {finding.message}{where}"
        if finding.hint:
            yield f"  {finding.hint}"


@app.command("backup", epilog="Example: m17ctl backup /backups/2013-10-07")
def backup(
    context: typer.Context,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="On the daemon's machine; must not exist yet.")],
) -> None:
    """Copy the state, whole and consistent, while the daemon runs."""
    invocation = invocation_of(context)
    request = BackupRequest(directory=os.path.abspath(os.path.expanduser(directory)))
    reply = invocation.call(request, BackupReply, long=True)
    invocation.emit(
        reply,
        lambda: [_backup_line(reply)],
    )


def _backup_line(reply: BackupReply) -> str:
    copied = f"copied {format_count(reply.files)} files, {format_bytes(reply.bytes)}"
    return f"{copied}, to {reply.directory} in {format_duration(reply.seconds)}"


@app.command("gc", epilog="Example: m17ctl gc --dry-run")
def gc(context: typer.Context, dry_run: DryRunOption = False) -> None:
    """Remove the artifacts that no cell names, undos as old as superseded_days, and quotes as old as quotes_days."""
    invocation = invocation_of(context)
    reply = invocation.call(GcRequest(dry_run=dry_run), GcReply, long=True)
    invocation.emit(
        reply,
        lambda: _gc_lines(reply),
    )


def _gc_lines(reply: GcReply) -> Iterator[str]:
    verb = "would remove" if reply.dry_run else "removed"
    files = f"{format_count(reply.removed.files)} files ({format_bytes(reply.removed.bytes)})"
    yield f"{verb} {files} that no cell names"
    if reply.retired.records or reply.retired.files:
        files = f"{format_count(reply.retired.files)} files ({format_bytes(reply.retired.bytes)})"
        yield (
            f"{verb} {files} of quotes by their age; "
            f"{format_count(reply.retired.records)} cells stay filled, without rows"
        )
    if reply.undos:
        forget = "would forget" if reply.dry_run else "forgot"
        yield f"{forget} {format_count(reply.undos)} operations that are too old to be undone"


@app.command("doctor", epilog="Example: m17ctl doctor")
def doctor(context: typer.Context) -> int:
    """Look at socket, permissions, limits, space and versions; says what to do, also while the daemon is down."""
    invocation = invocation_of(context)
    path = Path(invocation.socket or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)
    socket_facts = _socket_facts(path)
    try:
        reply = invocation.call(DoctorRequest(), DoctorReply, long=True)
        exit_code = EXIT_FAILED if reply.findings else 0
    except DaemonUnreachable as error:
        found = error_object(error)
        finding = Finding(code=error.code, message=str(error), hint=found["hint"], where=str(path))
        reply = DoctorReply(facts={}, findings=[finding])
        exit_code = error.exit_code
    whole = DoctorReply(facts={**socket_facts, **reply.facts}, findings=reply.findings)
    invocation.emit(whole, lambda: _doctor_lines(invocation, whole))
    return exit_code


def _doctor_lines(invocation: Invocation, reply: DoctorReply) -> Iterator[str]:
    yield from fields(
        [
            (name.replace("_", " "), _fact(invocation, name, value))
            for name, value in reply.facts.items()
            if value is not None
        ]
    )
    yield ""
    yield from _finding_lines(invocation, reply.findings)
    if not reply.findings:
        yield invocation.terminal.paint("nothing to complain about", "whole")


def _fact(invocation: Invocation, name: str, value: object) -> str:
    """A fact as people read it: by the unit that its name ends in."""
    if isinstance(value, int) and name.endswith("bytes"):
        return format_bytes(value)
    if isinstance(value, int) and name.endswith("_ns"):
        return invocation.local_time(value // 10**9 * 10**9)
    return value if isinstance(value, str) else encode_json(value).decode()


def _socket_facts(path: Path) -> dict[str, str]:
    """What this side sees of the socket; needs no daemon."""
    facts = {"socket": str(path)}
    try:
        found = path.stat()
    except OSError as error:
        facts["socket_state"] = error.strerror or str(error)
        return facts
    facts["socket_state"] = "a socket" if stat.S_ISSOCK(found.st_mode) else "not a socket"
    if stat.S_ISSOCK(found.st_mode) and not _somebody_listens(path):
        facts["socket_state"] = "stale: a socket that nobody listens on; the next daemon replaces it"
    facts["socket_mode"] = f"{stat.S_IMODE(found.st_mode):04o}, uid {found.st_uid}, gid {found.st_gid}"
    return facts


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno != errno.ECONNREFUSED
    return True
