"""
Every way a call to the daemon fails, drawn as a tree; each error carries code, hint, facts and its exit code.

::

    ClientError                .code  .hint  .facts  .exit_code
    ├─ DaemonUnreachable       nobody answers at the path; nothing was done
    │   └─ NotAllowed          the socket is there and this user may not open it
    ├─ TimedOut                no answer in time; nothing was asked to change
    │   └─ OutcomeUnknown      a mutation was sent and not answered; .key finds out
    ├─ ProtocolMismatch        the two do not speak the same version; nothing was done
    └─ RemoteFailure           the daemon refused, and says why

Must never import anything but the protocol's modules.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Final

from m17d.outcomes import EXIT_CODES, Failure

_START: Final = "start it with: m17d run --config m17.toml (or: systemctl status m17d)"


class ClientError(Exception):
    """Root of the client's errors; never raised itself."""

    code: str = "internal"

    def __init__(self, message: str, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.facts: dict[str, Any] = facts

    @property
    def exit_code(self) -> int:
        """What `m17ctl` exits with."""
        return EXIT_CODES.get(self.code, 1)


class DaemonUnreachable(ClientError):
    """Nobody answers at the socket's path; ``facts`` has path and errno."""

    code = "daemon_unreachable"


class NotAllowed(DaemonUnreachable):
    """The socket is there and this user may not open it."""

    code = "permission_denied"


class TimedOut(ClientError):
    """No answer before the deadline."""

    code = "timed_out"


class OutcomeUnknown(TimedOut):
    """A mutation was sent and not answered in time: it may have been done. ``key`` asks, or sends it again safely."""

    code = "outcome_unknown"

    def __init__(self, message: str, hint: str, *, key: str) -> None:
        super().__init__(message, hint, key=key)
        self.key = key


class ProtocolMismatch(ClientError):
    """Client and daemon do not speak the same version of the protocol, or the daemon does not know the operation."""

    code = "protocol_mismatch"


class RemoteFailure(ClientError):
    """The daemon refused; ``code`` is one of `m17d.outcomes.EXIT_CODES`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, failure.hint, **failure.facts)
        self.code = failure.code
        self.message = failure.message


def unreachable(path: Path, error: OSError) -> DaemonUnreachable:
    """The error for a connect that failed: path, errno and what to do."""
    hint = _START
    if error.errno == errno.ENOENT:
        hint = f"there is no socket; {_START}, or name another with --socket"
    elif error.errno == errno.ECONNREFUSED:
        hint = f"the socket is there but no daemon listens on it; {_START}"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "this user may not open the socket; ask to be added to its group (ls -l shows it)"
    elif error.errno == errno.ENOTSOCK:
        hint = "the path is no socket; name another with --socket"
    text = f"no daemon at {path}: {error.strerror} (errno {error.errno})"
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAllowed(f"{path}: {error.strerror} (errno {error.errno})", hint, path=str(path), errno=error.errno)
    return DaemonUnreachable(text, hint, path=str(path), errno=error.errno)
