"""
Upkeep: verify, backup, collection and what the daemon sees of its surroundings.

Long work is done in steps between requests. A backup is reported as done only after another process has verified it.
This module must never remove anything that a cell names.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ledger.backup import Copied, backup, finish
from ledger.check import Checked, verify
from ledger.collection import DAY_NS, Collected, collect
from ledger.state import State
from m17d import outcomes, protocol
from m17d.config import Config
from m17d.envelopes import Refused
from m17d.runner import Runner

_FILES_MIN: Final = 4096
_FREE_MIN_BYTES: Final = 2 << 30
_COPY_ON_WRITE: Final = frozenset({"btrfs", "zfs"})


class Upkeep:
    """Answers the requests of upkeep over one state."""

    def __init__(self, state: State, runner: Runner, config: Config) -> None:
        self.state = state
        self.runner = runner
        self.config = config
        self._busy = ""

    def verify(self, request: protocol.VerifyRequest) -> Iterator[outcomes.VerifyReply | None]:
        """Walk one session, or everything, between requests."""
        checked = Checked()
        for _ in verify(self.state, checked, request.session):
            yield None
        yield verify_reply(checked)

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Backup and collection exclude each other: a copy must not lose an artifact that it is about to copy."""
        if self._busy:
            raise Refused("busy", f"{self._busy} is running", "wait for it to end, then try again")
        self._busy = what
        try:
            yield
        finally:
            self._busy = ""

    def backup(self, request: protocol.BackupRequest) -> Iterator[outcomes.BackupReply | outcomes.Progress | None]:
        """Copy the state, have the copy verified by another process, and only then call it done."""
        target, copied, started_s = Path(request.directory), Copied(), time.monotonic()
        if target == self.state.directory or self.state.directory in target.parents:
            raise Refused("bad_request", f"{target} lies inside the state", "choose a directory elsewhere")
        with self._alone("a backup"):
            for number, _ in enumerate(backup(self.state, target, copied)):
                yield (
                    outcomes.Progress(done=copied.bytes, unit="bytes", detail="copying") if number % 64 == 63 else None
                )
            yield from self._verified(target)
            finish(target)
        yield outcomes.BackupReply(
            directory=str(target),
            files=copied.files,
            bytes=copied.bytes,
            seconds=round(time.monotonic() - started_s, 3),
        )

    @staticmethod
    def _verified(target: Path) -> Iterator[outcomes.Progress | None]:
        command = [sys.executable, "-m", "m17d", "verify", "--state", str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with process:
            while process.poll() is None:
                yield outcomes.Progress(done=0, unit="files", detail="verifying the copy")
                time.sleep(0.002)
            said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise Refused(
                "state",
                f"the copy in {target} does not verify: {said.strip()[:500]}",
                "look with: m17ctl verify",
                directory=str(target),
            )

    def collect(self, request: protocol.GcRequest) -> Iterator[outcomes.GcReply | None]:
        """Remove artifacts that nothing names and that are older than the retention."""
        result = Collected()
        keep_ns = self.config.retention.superseded_days * DAY_NS
        steps = collect(
            self.state,
            older_than_ns=self.state.system.now_ns() - keep_ns,
            current_prefix=f"{self.state.take_start_number():06d}-",
            dry_run=request.dry_run,
            result=result,
        )
        with self._alone("a collection"):
            for _ in steps:
                yield None
        removed = outcomes.Orphans(files=result.files, bytes=result.bytes, records=result.records)
        yield outcomes.GcReply(removed=removed, dry_run=request.dry_run)

    def doctor(self) -> outcomes.DoctorReply:
        """Limits, permissions, file system, space, clock and versions, with what is wrong of them."""
        directory = self.state.directory
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        usage = shutil.disk_usage(directory)
        kind = file_system_kind(directory)
        facts: dict[str, Any] = {
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "uid": os.getuid(),
            "cores": len(os.sched_getaffinity(0)),
            "workers": self.runner.pool.size,
            "open_files_limit": files,
            "open_files": len(os.listdir("/proc/self/fd")),
            "state_dir": str(directory),
            "state_dir_mode": f"{directory.stat().st_mode & 0o7777:04o}",
            "file_system": kind,
            "free_bytes": usage.free,
            "now_ns": self.state.system.now_ns(),
            "repairs": len(self.state.repairs),
        }
        findings = []
        if files < _FILES_MIN:
            findings.append(
                outcomes.Finding(
                    code="open_files_limit",
                    message=f"at most {files} open files; a flood of connections would use them up",
                    hint="set LimitNOFILE=65536 in the unit, or ulimit -n 65536",
                )
            )
        if usage.free < _FREE_MIN_BYTES:
            findings.append(
                outcomes.Finding(
                    code="space",
                    message=f"{usage.free >> 20} MiB are free",
                    hint="make room on the file system",
                    where=str(directory),
                )
            )
        if kind in _COPY_ON_WRITE:
            findings.append(
                outcomes.Finding(
                    code="file_system",
                    message=f"{kind} copies on write: reserved blocks can still run out of space",
                    hint="use ext4 or xfs, or set nodatacow on the state directory",
                    where=str(directory),
                )
            )
        if directory.stat().st_mode & 0o002:
            findings.append(
                outcomes.Finding(
                    code="permissions",
                    message="anybody may write the state directory",
                    hint=f"chmod o-w {directory}",
                    where=str(directory),
                )
            )
        return outcomes.DoctorReply(facts=facts, findings=findings)


def verify_reply(checked: Checked) -> outcomes.VerifyReply:
    """What a walk found, as the wire shows it."""
    return outcomes.VerifyReply(
        slots=checked.slots,
        payloads=checked.payloads,
        artifacts=checked.artifacts,
        orphans=outcomes.Orphans(
            files=checked.orphan_files, bytes=checked.orphan_bytes, records=checked.orphan_records
        ),
        findings=[
            outcomes.Finding(code=one.code, message=one.message, hint=one.hint, where=one.where)
            for one in checked.findings
        ],
    )


def file_system_kind(path: Path) -> str:
    """The type of the file system a path lies on, from /proc/self/mounts; empty where it cannot be told."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    resolved = str(path.resolve())
    for line in lines:
        fields = line.split()
        mount = fields[1].replace("\\040", " ")
        if (resolved == mount or resolved.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind
