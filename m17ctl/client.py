"""
The client: one connection to a daemon, for the commands here and for other people's programs.

::

    from m17ctl.client import Client
    from m17d.protocol import RowRequest

    with Client("/run/m17/m17d.sock") as client:
        row = client.call(RowRequest(symbol="AIG", at="2013-10-07T09:31"))

    ClientError                .code  .hint  .facts  .exit_code
    ├─ DaemonUnreachable       nobody answers at the path; nothing was done
    ├─ TimedOut                no answer in time; nothing was asked to change
    │   └─ OutcomeUnknown      a mutation was sent and not answered; .key finds out
    ├─ ProtocolMismatch        the two do not speak the same version; nothing was done
    └─ RemoteFailure           the daemon refused, and says why

A connection is checked with a bare connect first, because ZeroMQ waits for ever for a daemon that is not there. Every request
has a deadline, every mutation an idempotency key under which it is sent again until it is answered. Starts with msgspec and
zmq alone: must never import numpy, typer or anything of the daemon but the protocol's modules.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from m17ctl.connection import Connection
from m17ctl.errors import (
    ClientError,
    DaemonUnreachable,
    OutcomeUnknown,
    ProtocolMismatch,
    RemoteFailure,
    TimedOut,
)
from m17ctl.slabs import SlabRow, rows_of_slab, slab_dtype
from m17d.envelopes import (
    END,
    EVENT,
    FAILURE,
    PROGRESS,
    Claimed,
    ReplyEnvelope,
    decode_reply_body,
    encode_request,
    is_mutation,
    join_pieces,
)
from m17d.outcomes import Event, Failure, Progress, SubscribeReply
from m17d.protocol import CancelRequest, CreditRequest, GridRequest, Request, SubscribeRequest
from m17d.replies import BulkReply, GridReply, Reply

__all__ = [
    "Client",
    "ClientError",
    "DaemonUnreachable",
    "OutcomeUnknown",
    "ProtocolMismatch",
    "RemoteFailure",
    "SlabRow",
    "TimedOut",
    "rows_of_slab",
    "slab_dtype",
]

SOCKET_VARIABLE: Final = "M17_SOCKET"
DEFAULT_SOCKET: Final = "ledger.state/m17d.sock"
CREDIT: Final = 8
"""Pieces of a stream on their way at once."""
_RESEND_FIRST_SECONDS: Final = 0.5
_RESEND_SECONDS_MAX: Final = 4.0
_PROBE_SECONDS: Final = 0.25


class Client:
    """
    A connection to the daemon; use it as a context manager, from one thread.

    Args:
        socket_path: the daemon's socket; None takes `M17_SOCKET`, else ``ledger.state/m17d.sock``.
        timeout_s: how long a call may take in all, sending again included.
    """

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, timeout_s: float = 10.0) -> None:
        self.path = Path(socket_path or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)
        self.timeout_s = timeout_s
        self.claimed = Claimed(ssh=os.environ.get("SSH_CONNECTION", ""), sudo=os.environ.get("SUDO_USER", ""))
        self.daemon_version = ""
        self.last_key = ""
        self.last_envelope: ReplyEnvelope | None = None
        self._next_id = 0
        self._connection = Connection(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        self._connection.close()

    def call(
        self,
        request: Request,
        *,
        key: str | None = None,
        durable: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Any:
        """
        Ask, and wait for the whole answer.

        Args:
            request: any struct of `m17d.protocol`.
            key: idempotency key of a mutation; None makes one (kept in ``last_key``).
            durable: wait until the effect is on disk.
            timeout_s: instead of the client's own.
            on_progress: called with each `Progress` of a long request.

        Returns:
            The request's reply struct; the pieces of a streamed answer are joined.

        Raises:
            ClientError: see the tree above.
        """
        found = self._exchange(request, key, durable, timeout_s, on_progress, whole=True)
        pieces = [reply for reply, _ in found]
        return pieces[0] if len(pieces) == 1 else join_pieces(pieces)

    def stream(
        self,
        request: Request,
        *,
        key: str | None = None,
        durable: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Reply]:
        """
        Ask, and yield the pieces of the answer as they come; each piece renews the deadline.

        Raises:
            ClientError: as `call`; `DaemonUnreachable` also where the daemon goes away in the middle of a read's answer.
        """
        for reply, _ in self._exchange(request, key, durable, timeout_s, on_progress):
            yield reply

    def slabs(self, request: Request, *, timeout_s: float | None = None) -> Iterator[tuple[BulkReply, bytes]]:
        """Ask for raw rows; yields each piece with its slab, for `rows_of_slab` or, with `slab_dtype`, numpy."""
        for reply, slab in self._exchange(request, None, False, timeout_s, None):
            if isinstance(reply, BulkReply):
                yield reply, slab

    def grids(self, request: GridRequest, *, timeout_s: float | None = None) -> Iterator[tuple[GridReply, bytes]]:
        """Ask for counts over time; yields each session with its slab of u32."""
        for reply, slab in self._exchange(request, None, False, timeout_s, None):
            if isinstance(reply, GridReply):
                yield reply, slab

    def subscribe(
        self,
        *topics: str,
        from_seq: int | None = None,
        epoch: str | None = None,
        lease_s: float = 30.0,
        idle_s: float | None = None,
    ) -> Iterator[SubscribeReply | Event]:
        """
        Yield the subscription's reply and then events, without end; stop by closing the iterator.

        Args:
            topics: which events; none means all.
            from_seq, epoch: go on after an interruption, with the last event's number plus one.
            lease_s: how long the daemon keeps sending to a client it does not hear from.
            idle_s: end after so long without an event; None waits for ever.

        Raises:
            ClientError: as in `call`; `DaemonUnreachable` when the daemon goes away.
        """
        request = SubscribeRequest(
            topics=list(topics), from_seq=from_seq, epoch=epoch, lease_ms=max(1_000, int(lease_s * 1e3))
        )
        request_id, connection = self._take_id(), self._connection
        connection.open()
        connection.send(encode_request(request, request_id, claimed=self.claimed), time.monotonic() + self.timeout_s)
        heard_at = time.monotonic()
        renew_at = heard_at + lease_s / 3
        try:
            while True:
                end_at = float("inf") if idle_s is None else heard_at + idle_s
                found = connection.receive(request_id, min(renew_at, end_at))
                now = time.monotonic()
                if found is not None:
                    heard_at = now
                    body = self._body(found[0])
                    if isinstance(body, (SubscribeReply, Event)):
                        yield body
                elif now >= end_at:
                    return
                if now >= renew_at:
                    connection.probe()
                    connection.send(encode_request(CreditRequest(stream=request_id), self._take_id()), now + 1.0)
                    renew_at = now + lease_s / 3
        finally:
            self._cancel(request_id)

    def _exchange(
        self,
        request: Request,
        key: str | None,
        durable: bool,
        timeout_s: float | None,
        on_progress: Callable[[Progress], None] | None,
        *,
        whole: bool = False,
    ) -> Iterator[tuple[Reply, bytes]]:
        """The messages of an answer; ``whole`` when they are of use only together, so that they may begin anew."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        conversation = _Conversation(
            self._take_id(), (key or secrets.token_hex(16)) if is_mutation(request) else "", limit, time.monotonic()
        )
        conversation.whole = whole or bool(conversation.key)
        self.last_key = conversation.key
        try:
            while not conversation.ended:
                frames = self._next_message(conversation, request, durable)
                envelope = frames[0]
                body = self._body(envelope, conversation)
                if isinstance(body, Progress):
                    if on_progress is not None:
                        on_progress(body)
                elif envelope.kind == END:
                    conversation.ended = True
                else:
                    self._renew(conversation, envelope)
                    if not conversation.whole:
                        yield body, frames[1]
                    elif envelope.more:
                        conversation.kept.append((body, frames[1]))
                    else:
                        # A mutation sent again is answered at once, and that stands for all pieces before it.
                        conversation.kept = [(body, frames[1])]
                conversation.heard(envelope)
            yield from conversation.kept
        finally:
            if not conversation.ended:
                self._cancel(conversation.id)

    def _next_message(
        self, conversation: _Conversation, request: Request, durable: bool
    ) -> tuple[ReplyEnvelope, bytes]:
        """The next message of a conversation, sending the request (again) whenever that is due."""
        connection = self._connection
        while True:
            now = time.monotonic()
            if now >= conversation.until:
                raise self._timed_out(conversation)
            slice_end = min(conversation.until, now + _PROBE_SECONDS)
            if connection.silent and connection.broke():
                self._begin_anew(conversation, now)
            if not self._daemon_there(conversation):
                time.sleep(min(0.02, slice_end - now))
                continue
            if now >= conversation.send_at and (conversation.key or not conversation.streaming):
                sent = connection.send(self._encoded(conversation, request, durable, now), slice_end)
                conversation.sending(now, sent)
                connection.silent = not sent
                if not sent:
                    continue
                # What broke before this was sent takes nothing of it away.
                connection.broke()
            found = connection.receive(conversation.id, slice_end)
            if found is not None and not conversation.repeated(found[0]):
                self.daemon_version = found[0].version
                self.last_envelope = found[0]
                return found

    def _begin_anew(self, conversation: _Conversation, now: float) -> None:
        """The connection broke: what was sent over it and not answered is sent again at once."""
        if conversation.streaming and not conversation.key:
            if not conversation.whole:
                text = f"the daemon at {self.path} went away in the middle of its answer"
                raise DaemonUnreachable(text, "nothing was changed; ask again", path=str(self.path))
            # Pieces of two answers do not fit together. What the old one had sent may still come, under the old number.
            conversation.id, conversation.kept = self._take_id(), []
        conversation.begin_anew(now)

    def _encoded(self, conversation: _Conversation, request: Request, durable: bool, now: float) -> bytes:
        left_ms = int((conversation.until - now) * 1e3)
        return encode_request(
            request,
            conversation.id,
            deadline_ms=time.time_ns() // 1_000_000 + left_ms,
            key=conversation.key,
            durable=durable,
            credit=CREDIT,
            claimed=self.claimed,
        )

    def _daemon_there(self, conversation: _Conversation) -> bool:
        """Whether to go on with the connection; once something was sent, a daemon that went away is waited for."""
        connection = self._connection
        if connection.opened and not connection.silent:
            return True
        try:
            connection.open()
            connection.probe()
        except DaemonUnreachable as error:
            if not conversation.sent:
                raise
            conversation.away = error
            return False
        conversation.away = None
        return True

    def _body(self, envelope: ReplyEnvelope, conversation: _Conversation | None = None) -> Reply:
        try:
            body = decode_reply_body(envelope)
        except msgspec.DecodeError as error:
            hint = "use the m17ctl of the daemon's version"
            text = f"the answer of m17d {envelope.version} is not understood: {error}"
            raise ProtocolMismatch(text, hint, version=envelope.version) from None
        if isinstance(body, Failure):
            if conversation is not None:
                conversation.ended = True
            if body.code in ("protocol_version", "unsupported_operation"):
                facts = {"version": envelope.version, "min": envelope.protocol_min, "max": envelope.protocol_max}
                raise ProtocolMismatch(f"m17d {envelope.version}: {body.message}", body.hint, **facts)
            raise RemoteFailure(body)
        return body

    def _renew(self, conversation: _Conversation, envelope: ReplyEnvelope) -> None:
        if not envelope.more:
            return
        conversation.taken += 1
        if conversation.taken >= CREDIT // 2:
            credit = encode_request(CreditRequest(stream=conversation.id, pieces=conversation.taken), self._take_id())
            if self._connection.send(credit, time.monotonic() + 1.0):
                conversation.taken = 0

    def _cancel(self, request_id: int) -> None:
        self._connection.send(encode_request(CancelRequest(stream=request_id), self._take_id()), time.monotonic())

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _timed_out(self, conversation: _Conversation) -> ClientError:
        waited = f"no answer from {self.path} within {conversation.limit:g} s"
        if conversation.sent and conversation.key:
            hint = f"it may have been done; sent again with the same key it is never done twice: {conversation.key}"
            return OutcomeUnknown(
                f"{waited}: outcome unknown, idempotency key {conversation.key}", hint, key=conversation.key
            )
        if conversation.away is not None:
            return conversation.away
        return TimedOut(
            waited, "nothing was changed; the daemon may be busy or stopped: m17ctl status, or a longer --timeout"
        )


class _Conversation:
    """One request and its answer: when to send it again, when to give up, what has come so far."""

    def __init__(self, request_id: int, key: str, limit: float, now: float) -> None:
        self.id = request_id
        self.key = key
        self.limit = limit
        self.until = now + limit
        self.send_at = now
        self.sent = False
        self.streaming = False
        self.whole = False
        """Whether nothing of the answer was given away yet, so that another may stand for it."""
        self.kept: list[tuple[Reply, bytes]] = []
        self.ended = False
        self.away: DaemonUnreachable | None = None
        self.taken = 0
        self._pause = _RESEND_FIRST_SECONDS
        self._piece = -1

    def sending(self, now: float, sent: bool) -> None:
        """The request has left (or could not): when is the next time."""
        self.sent = self.sent or sent
        self.send_at = now + self._pause if sent else now
        self._pause = min(self._pause * 2, _RESEND_SECONDS_MAX) if sent else self._pause

    def begin_anew(self, now: float) -> None:
        """Send again now, and for a read expect the first piece; of a mutation's answer the pieces that came are good."""
        self.send_at, self._pause = now, _RESEND_FIRST_SECONDS
        if not self.key:
            self.streaming, self.taken, self._piece = False, 0, -1

    def repeated(self, envelope: ReplyEnvelope) -> bool:
        """Whether this piece has come before, because the request was sent twice."""
        if not envelope.more or envelope.kind in (PROGRESS, FAILURE, EVENT):
            return False
        return envelope.piece <= self._piece

    def heard(self, envelope: ReplyEnvelope) -> None:
        """A message has come: the daemon is at work on it, so the deadline counts from here."""
        if not envelope.more:
            self.ended = True
            return
        if envelope.kind != PROGRESS:
            self._piece = envelope.piece
            self.streaming = True
        self.until = time.monotonic() + self.limit
