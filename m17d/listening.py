"""
The daemon's own listening descriptor: made, published, handed to ZeroMQ, guarded.

Binding an ipc path through ZeroMQ steals it from a daemon that serves it, and ZeroMQ's listener aborts the process when
descriptors run out. So the descriptor is ours: bound under a temporary name, given mode and group, renamed into place, and
handed over as a duplicate (``ZMQ_USE_FD``). A socket that systemd passes is used as it is.

The duplicate is also a valve. ZeroMQ accepts from a descriptor's number; while another socket that nobody can reach stands
behind that number, it finds nothing to accept, and connections wait in the kernel. Connections that are open stay open.

Must never know what travels over the socket.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import grp
import os
import resource
import select
import socket
import stat
import struct
import tempfile
import termios
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import zmq

SOCKET_PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket that Linux takes, without the closing zero."""
BACKLOG_MAX: Final = 512
"""Connections that wait in the kernel while the daemon recovers or has taken its listener back; fewer where descriptors are."""
DESCRIPTORS_WANTED: Final = 4_096
"""Limit of descriptors that a daemon of a year and its clients are at ease with: two files a session, one a connection."""
DESCRIPTORS_SAFE: Final = 1_024
"""Least limit with which a daemon has stood a flood of connections on a loaded machine."""
_GREETING_SECONDS: Final = 10.0
_SYSTEMD_FIRST_DESCRIPTOR: Final = 3
_CREDENTIALS: Final = struct.Struct("=3i")


class ListeningError(Exception):
    """The socket cannot be offered; ``code``, ``hint`` and ``facts`` as in the ledger's errors."""

    code: ClassVar[str] = "state"

    def __init__(self, message: str, hint: str, **facts: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.facts: dict[str, Any] = facts


class Connection(NamedTuple):
    """An accepted connection: our descriptor, the peer's process, and the bytes that wait to be read from it."""

    descriptor: int
    pid: int
    pending_bytes: int


class Listening:
    """A Unix socket that listens at ``path``; made by `Listening.open`."""

    def __init__(self, own: socket.socket, path: Path, *, owned: bool) -> None:
        self._socket = own
        self._name = own.getsockname()
        self._nobody = _unreachable_socket()
        self._handed = -1
        self._admitting = False
        self._identity = _identity(path) if owned else None
        self.path = path
        own.setblocking(False)

    @classmethod
    def open(cls, path: Path, *, mode: int = 0o660, group: str | None = None) -> Listening:
        """
        Listen at ``path``: on systemd's socket where one was passed, else on a new one, renamed into place.

        Raises:
            ListeningError: path too long, path served by another process, unknown group, or a system call that failed.
        """
        passed = _passed_by_systemd(os.environ)
        if passed is not None:
            return cls(passed, Path(passed.getsockname()), owned=False)
        check_socket_path(path)
        _refuse_if_served(path)
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _publish(own, path, mode, group)
            return cls(own, path, owned=True)
        except BaseException:
            own.close()
            raise

    @property
    def admitting(self) -> bool:
        """Whether ZeroMQ accepts connections now; if not, they wait in the kernel."""
        return self._admitting

    def attach(self, router: zmq.Socket[bytes]) -> None:
        """
        Hand a duplicate of the descriptor to the router, which accepts from now on and closes it in the end.

        Raises:
            ListeningError: the router accepts nobody.
        """
        self._handed = os.dup(self._socket.fileno())
        router.setsockopt(zmq.USE_FD, self._handed)
        router.bind(f"ipc://{self._name}")
        self._admitting = True
        # ZeroMQ registers the descriptor from a thread of its own, some time after bind; were the valve closed by then, it
        # would watch the wrong socket for ever. It has registered once it greets somebody.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
                first.settimeout(_GREETING_SECONDS)
                first.connect(str(self.path))
                greeting = first.recv(1)
        except OSError as error:
            raise self._deaf(str(error)) from None
        if not greeting:
            raise self._deaf("it hung up")

    def admit(self, admitting: bool) -> None:
        """Open or close the valve; takes effect at once. It must be open when the router is closed."""
        if admitting != self._admitting:
            behind = self._socket if admitting else self._nobody
            os.dup2(behind.fileno(), self._handed, inheritable=False)
            self._admitting = admitting

    def fileno(self) -> int:
        """The descriptor; readable while a connection waits to be accepted."""
        return self._socket.fileno()

    def lowest_free_descriptor(self) -> int:
        """The number that the next descriptor gets: what runs out, exactly, and the cheapest thing to ask."""
        number = os.dup(self._socket.fileno())
        os.close(number)
        return number

    def connections(self, *, waiting: bool = False) -> list[Connection]:
        """
        Every accepted connection, or those with input that waits to be read.

        Only asked while the valve is closed: then no number is given out twice meanwhile.
        """
        found = []
        pending = array.array("i", [0])
        for number in _readable(_descriptors()) if waiting else _descriptors():
            peer = self._accepted(number)
            if peer is None:
                continue
            try:
                pid, _, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                fcntl.ioctl(number, termios.FIONREAD, pending)
                found.append(Connection(number, pid, pending[0]))
            except OSError:
                continue
            finally:
                peer.detach()
        return found

    def hang_up(self, connections: list[Connection]) -> int:
        """End connections; ZeroMQ sees them closed and frees what it holds for them. Returns how many."""
        ended = 0
        for connection in connections:
            peer = self._accepted(connection.descriptor)
            if peer is not None:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
                    ended += 1
                peer.detach()
        return ended

    def _deaf(self, reason: str) -> ListeningError:
        text = f"a first connection to {self.path} was not answered: {reason}"
        return ListeningError(
            text, "see that this user may open the socket it made (mode and group)", path=str(self.path)
        )

    def _accepted(self, number: int) -> socket.SocketType | None:
        """A view of a descriptor that is an accepted connection of ours; the caller detaches it."""
        # Told what it is, it does not ask the kernel: with a thousand connections all waited for that.
        try:
            peer = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, number)
        except OSError:
            return None
        try:
            if peer.getsockname() == self._name and not peer.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return peer
        except OSError:
            pass
        peer.detach()
        return None

    def close(self) -> None:
        """Stop listening and remove the path, unless another process has put its own there."""
        self._socket.close()
        self._nobody.close()
        if self._identity is not None and _identity(self.path) == self._identity:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


def check_socket_path(path: Path) -> None:
    """
    Refuse a path that no Unix socket can have.

    Raises:
        ListeningError: the path has more than 107 bytes.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES_MAX:
        raise ListeningError(
            f"socket path has {length} bytes, a Unix socket takes at most {SOCKET_PATH_BYTES_MAX}: {path}",
            "give it a shorter path, such as /run/m17/m17d.sock",
            length=length,
            path=str(path),
        )


def raise_descriptor_limit() -> int:
    """Raise this process's limit of descriptors as far as it may be raised; returns the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_WANTED:
        # Only root may; for others the service manager's limit is the one to raise.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, DESCRIPTORS_WANTED))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, DESCRIPTORS_WANTED) if hard == resource.RLIM_INFINITY else hard
    if wanted != soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def greediest(connections: list[Connection], each_max: int) -> list[Connection]:
    """The connections of every process that holds more than ``each_max`` of them."""
    held = Counter(connection.pid for connection in connections)
    return [connection for connection in connections if held[connection.pid] > each_max]


def _publish(own: socket.socket, path: Path, mode: int, group: str | None) -> None:
    # The temporary name is as long as the real one, so that a path of 107 bytes still works.
    temporary = path.with_name(path.name[:-1] + ("~" if path.name[-1] != "~" else "^"))
    group_id = _group_id(group)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        own.bind(str(temporary))
        os.chmod(temporary, mode)
        if group_id is not None:
            os.chown(temporary, -1, group_id)
        # What waits is accepted in one go, faster than any guard can look.
        own.listen(max(8, min(BACKLOG_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)))
        os.rename(temporary, path)
    except OSError as error:
        raise ListeningError(
            f"cannot listen at {path}: {error.strerror} (errno {error.errno})",
            "make the directory, give this user write permission there, or set another socket path",
            path=str(path),
            errno=error.errno,
        ) from None


def _refuse_if_served(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ListeningError(
            f"{path} exists and is no socket", "move it away, or set another socket path", path=str(path)
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pid = 0
        except OSError:
            return
        else:
            pid = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    raise ListeningError(
        f"{path} is served by another process (pid {pid})",
        "stop that process, or set another socket path",
        path=str(path),
        pid=pid,
    )


def _group_id(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ListeningError(
            f"no group {group!r} on this machine", "make the group, or set another", group=group
        ) from None


def _passed_by_systemd(environment: Mapping[str, str]) -> socket.socket | None:
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS", "0") == "0":
        return None
    passed = socket.socket(fileno=_SYSTEMD_FIRST_DESCRIPTOR)
    listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listens:
        raise ListeningError(
            "systemd passed no listening Unix stream socket", "use ListenStream=/path in the socket unit"
        )
    os.set_inheritable(_SYSTEMD_FIRST_DESCRIPTOR, False)
    return passed


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _readable(descriptors: list[int]) -> list[int]:
    """Those with input, asked all at once: of a thousand connections hardly any has some, and a look at each takes long."""
    poll = select.poll()
    for number in descriptors:
        poll.register(number, select.POLLIN)
    return [number for number, events in poll.poll(0) if events & select.POLLIN]


def _unreachable_socket() -> socket.socket:
    """A listening socket without a name in any file system: accepting from it finds nobody, ever."""
    nobody = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with tempfile.TemporaryDirectory(prefix="m17-") as directory:
        nobody.bind(f"{directory}/s")
    nobody.listen(1)
    nobody.setblocking(False)
    return nobody
