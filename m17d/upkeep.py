"""
Upkeep: verify, backup and collection.

Long work is done in steps between requests. A backup is reported as done only after another process has verified it.
This module must never remove anything that a cell names.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ledger.backup import Copied, backup, finish
from ledger.check import Checked, verify
from ledger.collection import DAY_NS, Collected, collect
from ledger.retention import RETIRING, sessions_before
from ledger.state import State
from m17d import outcomes, protocol
from m17d.config import Config
from m17d.envelopes import Refused, Rest
from m17d.peers import Context
from m17d.runner import Runner
from m17d.runway import Runway
from m17d.taking import audit_operator, claimed

_REST: Final = Rest(0.02)
"""Between two looks at the process that verifies."""
_COLLECTION: Final = "a collection"
_STEPS_A_WORD: Final = 64
"""Steps of long work from one word on how far it is to the next."""


class Upkeep:
    """Answers the requests of upkeep over one state."""

    def __init__(self, state: State, runner: Runner, config: Config, runway: Runway) -> None:
        self.runway = runway
        self.state = state
        self.runner = runner
        self.config = config
        self._busy = ""

    def verify(self, request: protocol.VerifyRequest) -> Iterator[outcomes.VerifyReply | outcomes.Progress | None]:
        """Walk one session, or everything, between requests; says how far it is."""
        checked, started_s = Checked(), time.monotonic()
        for number, _ in enumerate(verify(self.state, checked, request.session)):
            yield _walked(checked) if number % _STEPS_A_WORD == 0 else None
        yield verify_reply(checked, time.monotonic() - started_s)

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

    def backup(
        self, request: protocol.BackupRequest
    ) -> Iterator[outcomes.BackupReply | outcomes.Progress | Rest | None]:
        """Copy the state, have the copy verified by another process, and only then call it done."""
        target, copied, started_s = Path(request.directory), Copied(), time.monotonic()
        if target == self.state.directory or self.state.directory in target.parents:
            raise Refused("bad_request", f"{target} lies inside the state", "choose a directory elsewhere")
        with self._alone("a backup"):
            for number, _ in enumerate(backup(self.state, target, copied)):
                said = number % _STEPS_A_WORD == _STEPS_A_WORD - 1
                yield outcomes.Progress(done=copied.bytes, unit="bytes", detail="copying") if said else None
            yield from self._verified(target)
            finish(self.state, target)
        yield outcomes.BackupReply(
            directory=str(target),
            files=copied.files,
            bytes=copied.bytes,
            seconds=round(time.monotonic() - started_s, 3),
        )

    @staticmethod
    def _verified(target: Path) -> Iterator[outcomes.Progress | Rest]:
        command = [sys.executable, "-m", "m17d", "verify", "--state", str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with process:
            while process.poll() is None:
                yield outcomes.Progress(done=0, unit="files", detail="verifying the copy")
                yield _REST
            said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise Refused(
                "state",
                f"the copy in {target} does not verify: {said.strip()[:500]}",
                "look with: m17ctl verify",
                directory=str(target),
            )

    def collect(self, request: protocol.GcRequest, context: Context) -> Iterator[outcomes.GcReply | None]:
        """Remove artifacts that nothing names and that are older than the retention, undos as old, and quotes by their age."""
        result, retention, now_ns = Collected(), self.config.retention, self.state.system.now_ns()
        steps = collect(
            self.state,
            older_than_ns=now_ns - retention.superseded_days * DAY_NS,
            # Fetchers' batches carry a letter behind the number.
            current_prefix=f"{self.state.take_start_number():06d}-",
            dry_run=request.dry_run,
            result=result,
            retire_sessions=self._retired_by(now_ns),
            in_work=self.runner.artifacts_in_work,
        )
        with self._alone(_COLLECTION):
            for _ in steps:
                yield None
        removed = outcomes.Orphans(files=result.files, bytes=result.bytes, records=result.records)
        retired = outcomes.Orphans(
            files=result.retired_files, bytes=result.retired_bytes, records=result.retired_records
        )
        if not request.dry_run:
            self.state.audit.append(
                "gc",
                audit_operator(context),
                claimed=claimed(context),
                cells={RETIRING.value: retired.records},
                result=f"removed {removed.files} files that no cell named, {retired.files} of quotes by age, "
                f"forgot {result.undos} undos",
            )
        yield outcomes.GcReply(removed=removed, retired=retired, undos=result.undos, dry_run=request.dry_run)

    def _retired_by(self, now_ns: int) -> list[str]:
        """Sessions whose quotes are as old as the config keeps them, but for those that a task reads now."""
        days = self.config.retention.quotes_days
        if days is None:
            return []
        read = {task.session for task, _, _ in self.runner.running()}
        return [one for one in sessions_before(self.state, now_ns - days * DAY_NS) if one not in read]

    @property
    def is_collecting(self) -> bool:
        """True while a collection runs: what a kept undo names must stay named."""
        return self._busy == _COLLECTION


def _walked(checked: Checked) -> outcomes.Progress:
    found = f"{len(checked.findings):,} findings so far" if checked.findings else ""
    return outcomes.Progress(
        done=checked.bytes, total=max(checked.bytes, checked.bytes_total), unit="bytes", detail=found
    )


def verify_reply(checked: Checked, seconds: float) -> outcomes.VerifyReply:
    """What a walk found in so many seconds, as the wire shows it."""
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
        bytes=checked.bytes,
        seconds=round(seconds, 3),
    )
