"""
One run of `m17ctl`: its terminal, its connection, and how results and failures leave it.

Every command gets the invocation from its context. The connection is made at the first request; a test injects another
way to connect, as one injects a transport. This module must never know what a command is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import tzinfo
from typing import Any, Final, Protocol, TypeVar

import typer

from m17ctl.errors import ClientError
from m17ctl.formats import encode_json, format_time, zone_of
from m17ctl.render import progress_line
from m17ctl.terminal import Terminal
from m17d.envelopes import ReplyEnvelope
from m17d.outcomes import Event, Progress, SubscribeReply
from m17d.protocol import HelloRequest, Request
from m17d.replies import BulkReply, HelloReply, Reply

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
LONG_TIMEOUT_SECONDS: Final = 600.0
"""For requests that walk everything (verify, backup, digest) where ``--timeout`` says nothing else."""
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_FALSE: Final = 3
EXIT_CONFLICT: Final = 5

R = TypeVar("R", bound=Reply)


class Connection(Protocol):
    """What commands need of `m17ctl.client.Client`; tests have another."""

    last_key: str
    last_envelope: ReplyEnvelope | None

    def call(
        self,
        request: Request,
        *,
        key: str | None = None,
        durable: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Any:
        """Ask, and wait for the whole answer."""

    def stream(
        self,
        request: Request,
        *,
        key: str | None = None,
        durable: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Reply]:
        """Ask, and yield the pieces of the answer."""

    def slabs(self, request: Request, *, timeout_s: float | None = None) -> Iterator[tuple[BulkReply, bytes]]:
        """Ask for raw rows."""

    def subscribe(
        self,
        *topics: str,
        from_seq: int | None = None,
        epoch: str | None = None,
        lease_s: float = 30.0,
        idle_s: float | None = None,
    ) -> Iterator[SubscribeReply | Event]:
        """Yield the subscription's reply and then events."""

    def close(self) -> None:
        """Drop the connection."""


class CommandFailed(ClientError):
    """A command's own refusal or failure; ``code`` is one of `m17d.outcomes.EXIT_CODES` or exits 1."""

    def __init__(self, code: str, message: str, hint: str = "", **facts: Any) -> None:
        super().__init__(message, hint, **facts)
        self.code = code


class Invocation:
    """
    What a command works with.

    Args:
        terminal: where the operator reads.
        connect: makes the connection from socket path (None: the default) and seconds.
        json: whether results and failures are JSON.
    """

    def __init__(
        self, terminal: Terminal, connect: Callable[[str | None, float], Connection], *, json: bool = False
    ) -> None:
        self.terminal = terminal
        self.json = json
        self.socket: str | None = None
        self.timeout_s: float | None = None
        self.now: Callable[[], float] = time.monotonic
        self.sleep: Callable[[float], None] = time.sleep
        self._connect = connect
        self._connection: Connection | None = None
        self._zone: tzinfo | None = None
        self._began_s, self._done = self.now(), 0

    @property
    def connection(self) -> Connection:
        """The connection to the daemon, made when first needed."""
        if self._connection is None:
            self._connection = self._connect(self.socket, self.timeout_s or DEFAULT_TIMEOUT_SECONDS)
        return self._connection

    @property
    def zone(self) -> tzinfo:
        """The zone in which the exchange's times are shown to people."""
        if self._zone is None:
            self._zone = zone_of(self.call(HelloRequest(client="m17ctl"), HelloReply).exchange)
        return self._zone

    def close(self) -> None:
        """Drop the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(
        self,
        request: Request,
        expected: type[R],
        *,
        key: str | None = None,
        long: bool = False,
        timeout_s: float | None = None,
    ) -> R:
        """
        Ask the daemon; progress of a long request shows on a terminal. ``timeout_s`` shortens the request's own limit.

        Raises:
            ClientError: see `m17ctl.client`.
        """
        self._began_s, self._done = self.now(), 0
        reply = self.connection.call(
            request,
            key=key,
            timeout_s=self._limit(long) if timeout_s is None else min(timeout_s, self._limit(long)),
            on_progress=self.show_progress if long else None,
        )
        self.terminal.end_progress()
        return _checked(reply, expected)

    def stream(self, request: Request, expected: type[R]) -> Iterator[R]:
        """
        Ask the daemon, and yield the pieces of its answer as they come; raises as `call`.

        Nothing else can be asked meanwhile: a call reads past the pieces that arrive before its own reply. So the zone, which
        people's lines need, is known before.
        """
        if not self.json:
            _ = self.zone
        for reply in self.connection.stream(request, timeout_s=self._limit(False)):
            yield _checked(reply, expected)

    def show_progress(self, progress: Progress) -> None:
        """Show what a long request or this side's own work reports: how far, how fast, how long still."""
        if self.terminal.shows_progress:
            if progress.done < self._done:
                self._began_s = self.now()
            self._done = progress.done
            line = progress_line(
                progress.done,
                progress.total,
                unit=progress.unit,
                seconds=self.now() - self._began_s,
                eta_s=progress.eta_s,
                detail=progress.detail,
            )
            self.terminal.progress(line)

    def local_time(self, ts_ns: int) -> str:
        """A time for people, in the exchange's zone."""
        return format_time(ts_ns, self.zone)

    def emit(self, value: Any, text: Callable[[], Iterable[str]]) -> None:
        """Write a result: ``value`` as one line of JSON, or the lines that ``text`` makes."""
        if self.json:
            self.terminal.write_bytes(encode_json(value))
            return
        for line in text():
            self.terminal.line(line)

    def emit_line(self, value: Any) -> None:
        """Write one line of NDJSON, at once."""
        self.terminal.write_bytes(encode_json(value))
        self.terminal.flush()

    def fail(self, code: str, message: str, hint: str = "") -> None:
        """Write a failure to standard error: one line and a hint, or with ``--json`` one object."""
        if self.json:
            error = {"code": code, "message": message, "hint": hint}
            self.terminal.complain(encode_json({"error": error}).decode())
            return
        self.terminal.complain(f"m17ctl: {' '.join(message.split())}")
        if hint:
            self.terminal.complain(f"  hint: {hint}")

    def _limit(self, long: bool) -> float:
        return self.timeout_s or (LONG_TIMEOUT_SECONDS if long else DEFAULT_TIMEOUT_SECONDS)


def invocation_of(context: typer.Context) -> Invocation:
    """The invocation that a command's context carries."""
    invocation = context.find_root().obj
    if not isinstance(invocation, Invocation):
        raise TypeError("the context carries no invocation")
    return invocation


def error_object(error: ClientError) -> dict[str, str]:
    """The failure as JSON shows it."""
    return {"code": error.code, "message": str(error), "hint": error.hint}


def _checked(reply: Any, expected: type[R]) -> R:
    if not isinstance(reply, expected):
        text = f"the daemon answered {type(reply).__name__} where {expected.__name__} was due"
        raise CommandFailed("protocol_mismatch", text, "use the m17ctl of the daemon's version")
    return reply
