"""
One DEALER socket to the daemon's path: connected only where somebody listens, sent and read with a time limit.

ZeroMQ itself connects to a path where nobody is and waits for ever; so a bare connect asks first, which says in a millisecond
whether the path is missing, refused or forbidden. Must never send the same message twice by itself.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from typing import Final

import msgspec
import zmq

from m17ctl.errors import DaemonUnreachable, ProtocolMismatch, unreachable
from m17d.envelopes import ReplyEnvelope, decode_reply_envelope

_SOCKET_PATH_BYTES_MAX: Final = 107


class Connection:
    """The socket of one `m17ctl.client.Client`; opened by the first use, opened anew after `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.silent = False
        """Whether the last read waited in vain: then somebody should `probe` before trusting the connection."""
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._waits_ms = {zmq.SNDTIMEO: -1, zmq.RCVTIMEO: -1}

    @property
    def opened(self) -> bool:
        """Whether there is a socket."""
        return self._dealer is not None

    def open(self) -> None:
        """
        Connect, unless that is done.

        Raises:
            DaemonUnreachable: nobody listens at the path.
        """
        if self._dealer is not None:
            return
        self.probe()
        self._context = zmq.Context(1)
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        # Without IMMEDIATE a request would wait in a queue for a daemon that starts later.
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.RECONNECT_IVL, 20)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(f"ipc://{self.path}")
        self._dealer = dealer

    def probe(self) -> None:
        """
        Connect and hang up: says at once whether somebody listens.

        Raises:
            DaemonUnreachable: with path, errno and what to do.
        """
        length = len(os.fsencode(self.path))
        if length > _SOCKET_PATH_BYTES_MAX:
            raise DaemonUnreachable(
                f"socket path has {length} bytes, a Unix socket takes at most {_SOCKET_PATH_BYTES_MAX}: {self.path}",
                "use a shorter path, or a path relative to another working directory",
                path=str(self.path),
                errno=errno.ENAMETOOLONG,
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.path))
            except BlockingIOError:
                # The backlog is full: somebody listens, and is busy.
                return
            except OSError as error:
                raise unreachable(self.path, error) from None

    def broke(self) -> bool:
        """
        Whether the daemon hung up since this was last asked; ZeroMQ may have connected anew by now, to it or to another.

        A probe cannot tell: it finds the daemon that was started anew, or systemd, which listens while none runs.
        """
        broke = False
        while self._monitor is not None and self._monitor.poll(0):
            self._monitor.recv_multipart(zmq.NOBLOCK)
            broke = True
        return broke

    def send(self, frame: bytes, until: float) -> bool:
        """Send one frame; False where there was no connection until ``until`` (monotonic seconds)."""
        if self._dealer is None:
            return False
        self._wait_until(zmq.SNDTIMEO, until)
        try:
            self._dealer.send(frame)
        except zmq.Again:
            return False
        return True

    def receive(self, request_id: int, until: float) -> tuple[ReplyEnvelope, bytes] | None:
        """
        The next message for a request and its slab, or None at ``until``; messages for other requests are thrown away.

        Raises:
            ProtocolMismatch: a message that is no reply envelope.
        """
        while self._dealer is not None:
            self._wait_until(zmq.RCVTIMEO, until)
            try:
                frames = _message(self._dealer)
            except zmq.Again:
                self.silent = True
                return None
            self.silent = False
            try:
                envelope = decode_reply_envelope(frames[0])
            except msgspec.DecodeError as error:
                hint = "use the m17ctl of the daemon's version"
                raise ProtocolMismatch(f"the daemon's answer is not understood: {error}", hint) from None
            # Id 0 answers a request whose own id the daemon could not read.
            if envelope.id in (request_id, 0):
                return envelope, frames[1] if len(frames) > 1 else b""
        return None

    def _wait_until(self, option: zmq.SocketOption, until: float) -> None:
        """Let a send or a read wait until then, to the next ten milliseconds; mostly it is what it was for the last one."""
        left = until - time.monotonic()
        wait_ms = int(left * 1e2) * 10 + 10 if left > 0 else 0
        if self._dealer is not None and wait_ms != self._waits_ms[option]:
            self._dealer.setsockopt(option, wait_ms)
            self._waits_ms[option] = wait_ms

    def close(self) -> None:
        """Drop the socket."""
        if self._dealer is not None:
            self._dealer.disable_monitor()
            self._dealer.close(linger=0)
            self._dealer = None
            self._waits_ms = {zmq.SNDTIMEO: -1, zmq.RCVTIMEO: -1}
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None
        if self._context is not None:
            self._context.term()
            self._context = None


def _message(dealer: zmq.Socket[bytes]) -> list[bytes]:
    """The frames of the next message; raises zmq.Again. A frame knows whether another follows: the socket need not be asked."""
    frames = []
    while True:
        frame = dealer.recv(copy=False)
        frames.append(frame.bytes)
        if not frame.more:
            return frames
