"""
Lock: one process at a time writes a state directory, and whoever comes second is told who holds it.

The lock is taken on the directory itself, because a lock file can be unlinked. This module must never write anything.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ledger.errors import StateLocked, StateMissing, from_os_error


def lock_directory(directory: Path) -> int:
    """
    Take the directory's lock; the descriptor that holds it, for the caller to close.

    Raises:
        StateLocked: another process holds it; the message names it.
        StateMissing: there is no such directory.
        SpaceError: it cannot be opened.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StateMissing(f"{directory} does not exist") from error
    except OSError as error:
        raise from_os_error(error, "open", directory) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(os.fstat(descriptor))
        os.close(descriptor)
        raise StateLocked(f"{directory} is held by {holder}", directory=str(directory)) from error
    return descriptor


def _holder(status: os.stat_result) -> str:
    """Which process holds the flock of a file, from /proc/locks."""
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return "another process"
    for line in lines:
        fields = line.split()
        if "FLOCK" in fields and place in fields:
            pid = fields[4]
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                name = ""
            return f"process {pid}" + (f" ({name})" if name else "")
    return "another process"
