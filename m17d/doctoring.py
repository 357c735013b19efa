"""
Doctoring: what the daemon sees of its surroundings, and what of it will be trouble: limits, permissions, file system, room,
clock and versions.

One function for each thing that may be wrong. This module must never change anything.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ledger.state import State
from m17d.outcomes import DoctorReply, Finding
from m17d.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from m17d.runner import Runner
from m17d.runway import SHORT_DAYS, Runway

_FILES_MIN: Final = 4096
_PROCESSES_MIN: Final = 256
_FREE_MIN_BYTES: Final = 2 << 30
_MEMORY_MIN_BYTES: Final = 4 << 30
_CLOCK_TOLERANCE_NS: Final = 10**9
_FILE_SYSTEMS: Final = (
    (
        frozenset({"btrfs", "zfs"}),
        "copies on write: reserved blocks can still run out of space",
        "use ext4 or xfs, or set nodatacow on the state directory",
    ),
    (
        frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}),
        "is of a network: locks, maps and syncs are not what they are on a disk",
        "keep the state on a local ext4 or xfs, and artifacts wherever you like",
    ),
    (
        frozenset({"tmpfs", "ramfs"}),
        "is memory: the state is gone with the next restart of the machine",
        "keep the state on ext4 or xfs",
    ),
)
"""Kinds that are no place for a state, what is wrong with them, and what to do."""
_STEPS_SHOWN: Final = 4
_PACKAGES: Final = ("numpy", "msgspec", "pyzmq", "polars", "numba")


class Doctoring:
    """
    Looks around one daemon.

    Args:
        runway: how much room there is.
        running: the version of M17 that runs.
    """

    def __init__(self, state: State, runner: Runner, runway: Runway, *, running: str) -> None:
        self.state = state
        self.runner = runner
        self.running = running
        self.runway = runway

    def doctor(self) -> DoctorReply:
        """Facts, and what is wrong of them."""
        directory, pool = self.state.directory, self.runner.pool
        space = self.runway.look()
        facts: dict[str, Any] = {
            "m17": self.running,
            "protocol": f"{PROTOCOL_MIN} to {PROTOCOL_MAX}",
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "pid": os.getpid(),
            "uid": os.getuid(),
            "cores": len(os.sched_getaffinity(0)),
            "workers": pool.workers.size,
            "fetchers": pool.fetchers.size,
            "open_files_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "open_files": len(os.listdir("/proc/self/fd")),
            "processes_limit": resource.getrlimit(resource.RLIMIT_NPROC)[0],
            "memory_max_bytes": memory_max(),
            "state_dir": str(directory),
            "state_dir_mode": f"{directory.stat().st_mode & 0o7777:04o}",
            "file_system": file_system_kind(directory),
            "free_bytes": space.free_bytes,
            "session_bytes": "no session is filled yet" if space.session_bytes is None else space.session_bytes,
            "runway_days": "no history yet" if space.runway_days is None else space.runway_days,
            "now_ns": self.state.system.now_ns(),
            "repairs": len(self.state.repairs),
            "longest_steps": self._longest_steps(),
        }
        return DoctorReply(facts=facts, findings=list(self._findings(facts)))

    def _longest_steps(self) -> str:
        """What the loop did longest in the last minute or two: so long whoever asked meanwhile waited."""
        longest = list(self.runner.turns.longest().items())[:_STEPS_SHOWN]
        return ", ".join(f"{step} {seconds * 1e3:.1f} ms" for step, seconds in longest) or "none yet"

    def _findings(self, facts: dict[str, Any]) -> Iterator[Finding]:
        yield from _limits(facts)
        yield from _room(facts)
        yield from _file_system(facts)
        yield from self._permissions()
        yield from self._clock(facts["now_ns"])
        yield from self._versions()

    def _permissions(self) -> Iterator[Finding]:
        directory = self.state.directory
        for path in (directory, directory / "audit"):
            if path.stat().st_mode & 0o002:
                yield Finding(
                    code="permissions",
                    message=f"anybody may write {path}",
                    hint=f"chmod o-w {path}",
                    where=str(path),
                )

    def _clock(self, now_ns: int) -> Iterator[Finding]:
        newest = [record.ts_ns for record in self.state.audit.tail(1)]
        if newest and newest[0] > now_ns + _CLOCK_TOLERANCE_NS:
            behind_s = (newest[0] - now_ns) / 1e9
            yield Finding(
                code="clock",
                message=f"the clock is {behind_s:.0f} s behind the newest audit record: it was set back",
                hint="set the clock right (chronyc tracking); what is due, lags and deadlines follow it",
            )

    def _versions(self) -> Iterator[Finding]:
        installed = _version("m17")
        if installed != self.running:
            yield Finding(
                code="version",
                message=f"version {self.running} runs, {installed} is installed",
                hint="restart the daemon: systemctl restart m17d",
            )


def _limits(facts: dict[str, Any]) -> Iterator[Finding]:
    if facts["open_files_limit"] < _FILES_MIN:
        yield Finding(
            code="open_files_limit",
            message=f"at most {facts['open_files_limit']} open files; a flood of connections would use them up",
            hint="set LimitNOFILE=65536 in the unit, or ulimit -n 65536",
        )
    if 0 <= facts["processes_limit"] < _PROCESSES_MIN:
        yield Finding(
            code="processes_limit",
            message=f"at most {facts['processes_limit']} processes of this user; workers and feeds need some each",
            hint="set LimitNPROC=4096 in the unit, or ulimit -u 4096",
        )
    if facts["memory_max_bytes"] is not None and facts["memory_max_bytes"] < _MEMORY_MIN_BYTES:
        yield Finding(
            code="memory",
            message=f"at most {facts['memory_max_bytes'] >> 20} MiB of memory for the daemon and its workers",
            hint="set MemoryMax=16G in the unit, or fewer workers in [runner]",
        )


def _room(facts: dict[str, Any]) -> Iterator[Finding]:
    where, days = facts["state_dir"], facts["runway_days"]
    if facts["free_bytes"] < _FREE_MIN_BYTES:
        yield Finding(
            code="space",
            message=f"{facts['free_bytes'] >> 20} MiB are free",
            hint="make room on the file system",
            where=where,
        )
    elif not isinstance(days, str) and days < SHORT_DAYS:
        yield Finding(
            code="runway",
            message=f"room for {days:.1f} more trading days, at what the newest took",
            hint="make room, or remove with [retention] and m17ctl gc",
            where=where,
        )


def _file_system(facts: dict[str, Any]) -> Iterator[Finding]:
    kind = facts["file_system"]
    for kinds, fault, hint in _FILE_SYSTEMS:
        if kind in kinds:
            yield Finding(code="file_system", message=f"{kind} {fault}", hint=hint, where=facts["state_dir"])


def memory_max() -> int | None:
    """Bytes that the control group of this process may use; None for no limit, or none that can be read."""
    try:
        group = next(
            line.rpartition(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
        )
        said = Path("/sys/fs/cgroup", group.lstrip("/"), "memory.max").read_text().strip()
    except (OSError, StopIteration):
        return None
    return int(said) if said.isdigit() and int(said) < sys.maxsize else None


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
