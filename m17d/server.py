"""
The server: bytes and sockets on one thread. Takes requests off the ROUTER, asks the handler, sends what it answers.

Whatever arrives is answered or dropped and counted; nothing that a peer sends raises out of `Server.poll`. Sends never block:
what does not fit waits in bounded queues. Must never know a ledger, an engine or what a request means.

The daemon's loop::

    listening = Listening.open(path, mode=0o660, group="m17")  # early: connections wait in the kernel meanwhile
    server = Server(listening, handler, peers=Peers(operate_groups=["m17-ops"]), version="0.1.0")
    server.poller.register(worker_pipe, zmq.POLLIN)  # anything with a descriptor
    while running:
        for descriptor in server.poll(timeout_ms=50):  # serves requests, returns what else is ready
            ...
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import zmq

from m17d.envelopes import (
    FAILURE,
    Answer,
    Claimed,
    Piece,
    Refused,
    RequestEnvelope,
    Rest,
    decode_request_body,
    decode_request_envelope,
    failure_of,
    is_mutation,
    operation_of,
)
from m17d.guard import Guard, GuardLimits
from m17d.listening import Listening
from m17d.outcomes import Failure
from m17d.outgoing import Outgoing
from m17d.peers import OPERATE, READ, Context, Peer, Peers, require
from m17d.protocol import CancelRequest, CreditRequest, PingRequest, Request, SubscribeRequest
from m17d.pushing import Pushing
from m17d.replies import PingReply, Reply
from m17d.streams import Counters, EventLog, Limits, Origin
from m17d.turns import Turns

_log: Final = logging.getLogger("m17d.server")
_RETRY_MS: Final = 2
_GUARD_MS: Final = 20
_KNOCK_SECONDS: Final = 0.005
_STAY_SECONDS: Final = 0.005
"""A caller who asks one thing after another is served so long before the loop does something else."""
_STAY_MS: Final = 1
"""How long its next request is waited for."""
_NOWAIT: Final = int(zmq.NOBLOCK)
_READABLE: Final = int(zmq.POLLIN)
"""As plain numbers: to combine zmq's own enumerations takes longer than the rest of a look."""


class Handler(Protocol):
    """What the server asks. Errors with ``code``, ``hint`` and ``facts`` become failures; any other is ``internal``."""

    def handle(self, request: Request, context: Context) -> Answer:
        """Do the request. Long work is an iterator whose every step takes milliseconds."""

    def durably(self, reply: Reply) -> Iterator[Reply | Piece | Rest | None]:
        """A reply of before, given again when what was written by now is on disk."""

    def replayed(self, key: str, request: Request, peer: Peer) -> Reply | None:
        """What this peer's user was answered under the key before; raises `Refused` ``key_reused`` for another request."""

    def remember(self, key: str, request: Request, peer: Peer, reply: Reply) -> None:
        """Keep the answer under the key, over restarts; called after the effect and before the reply leaves."""

    def denied(self, request: Request, peer: Peer, claimed: Claimed) -> None:
        """Record an attempt without the role."""


class Server:
    """Serves one listening socket; see the module's docstring for its place in the daemon's loop."""

    def __init__(
        self,
        listening: Listening,
        handler: Handler,
        *,
        peers: Peers | None = None,
        version: str = "0",
        limits: Limits | None = None,
        turns: Turns | None = None,
        guard_limits: GuardLimits | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters = Counters()
        self.limits = limits or Limits()
        self.guard = Guard(listening, guard_limits or GuardLimits())
        self.poller = zmq.Poller()
        self._handler = handler
        self._peers = peers or Peers()
        self._clock_ns = clock_ns
        self._listening = listening
        self._watched = -1
        self._unread = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        self._router = self._open_router()
        self._outgoing = Outgoing(self._router, version, self.limits, self.counters)
        events = EventLog(secrets.token_hex(8), self.limits.events_kept)
        self._pushing = Pushing(
            self._outgoing, self._attempt, handler.remember, events, self.limits, self.counters, turns or Turns()
        )
        listening.attach(self._router)
        self.poller.register(self._router, zmq.POLLIN)

    def poll(self, timeout_ms: int) -> list[Any]:
        """
        One turn: wait at most ``timeout_ms`` for anything in `poller`, serve requests, push streams and events.

        With time to wait, whoever was served is waited for a moment: the next request of a caller who asks one after another
        then costs no turn of the daemon's loop.

        Returns:
            What else is ready: the descriptors and sockets that others registered in `poller`.
        """
        others, served = self._turn(timeout_ms)
        if timeout_ms > _STAY_MS:
            until = time.monotonic() + _STAY_SECONDS
            while served and not others and time.monotonic() < until:
                others, served = self._turn(_STAY_MS)
        return others

    def _turn(self, timeout_ms: int) -> tuple[list[Any], bool]:
        """Wait, serve, push; returns what else is ready, and whether there was a request."""
        before = self.counters.requests
        ready = self._wait(timeout_ms)
        self.guard.close()
        if self._unread or self._router in ready:
            self._receive()
        self._pushing.turn()
        self._outgoing.flush()
        others = [item for item in ready if item is not self._router and item != self._watched]
        return others, self.counters.requests > before

    def publish(self, topic: str, facts: dict[str, Any]) -> int:
        """Tell every subscriber of the topic; returns the event's number. Never blocks, never grows without bound."""
        return self._pushing.publish(topic, self._clock_ns(), facts)

    def close(self) -> None:
        """End streams, give replies in flight a moment, close the router. The listening socket is its owner's to close."""
        self._pushing.close()
        self._watch(-1)
        self.poller.unregister(self._router)
        self._listening.admit(True)
        self._router.close(linger=200)
        self._context.term()

    def _open_router(self) -> zmq.Socket[bytes]:
        limits = self.limits
        router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.SNDHWM, limits.send_high_water),
            (zmq.RCVHWM, limits.receive_high_water),
            (zmq.MAXMSGSIZE, limits.frame_bytes),
            (zmq.HANDSHAKE_IVL, limits.handshake_ms),
            (zmq.HEARTBEAT_IVL, limits.heartbeat_ms),
            (zmq.HEARTBEAT_TIMEOUT, limits.heartbeat_timeout_ms),
            (zmq.LINGER, 0),
        ):
            router.setsockopt(option, value)
        return router

    def _wait(self, timeout_ms: int) -> dict[Any, int]:
        """Wait with the guard's valve open; being woken by every connection keeps the guard ahead of a flood."""
        knocked_until = 0.0
        while True:
            self.guard.open()
            # A queue that has to wait outside would wake us for ever.
            self._watch(self._listening.fileno() if self._listening.admitting else -1)
            ready = dict(self.poller.poll(self._wait_ms(timeout_ms)))
            if len(ready) != 1 or self._watched not in ready:
                return ready
            # Only a knock: ZeroMQ's thread needs the valve open for a moment to let it in.
            knocked_until = knocked_until or time.monotonic() + _KNOCK_SECONDS
            if time.monotonic() > knocked_until:
                return ready

    def _watch(self, descriptor: int) -> None:
        if descriptor == self._watched:
            return
        if self._watched >= 0:
            self.poller.unregister(self._watched)
        if descriptor >= 0:
            self.poller.register(descriptor, zmq.POLLIN)
        self._watched = descriptor

    def _wait_ms(self, timeout_ms: int) -> int:
        if self._unread or self._pushing.busy:
            return 0
        if self._outgoing.waiting or self._pushing.waiting:
            return min(timeout_ms, _RETRY_MS)
        if self.guard.suspicious:
            return min(timeout_ms, _RETRY_MS)
        # The guard has to look even when nobody asks for anything.
        return min(timeout_ms, _GUARD_MS)

    def _receive(self) -> None:
        until = time.monotonic() + self.limits.turn_ms / 1e3
        self._unread = True
        router = self._router
        for number in range(self.limits.requests_per_turn):
            # Mostly one waits, and to be told that no other does costs three times as much as to look.
            if number == 1 and not int(router.getsockopt(zmq.EVENTS)) & _READABLE:
                self._unread = False
                return
            try:
                first = router.recv(_NOWAIT, copy=False)
            except zmq.Again:
                self._unread = False
                return
            route, address = first.bytes, _address(first)
            frames = self._rest_of_message() if first.more else []
            peer = self._peers.of(address)
            if peer is None:
                self.counters.unidentified += 1
                continue
            origin = Origin(route, [], peer)
            self._pushing.disown(route, origin)
            self._outgoing.disown(route, origin)
            self._serve(origin, frames)
            if time.monotonic() > until:
                return

    def _rest_of_message(self) -> list[bytes]:
        frames: list[bytes] = []
        while True:
            frame = self._router.recv(_NOWAIT, copy=False)
            if len(frames) <= self.limits.frames:
                frames.append(frame.bytes)
            if not frame.more:
                return frames

    def _serve(self, origin: Origin, frames: list[bytes]) -> None:
        self.counters.requests += 1

        def work() -> None:
            if not frames or len(frames) > self.limits.frames:
                raise Refused("bad_request", "a request is one envelope frame", "see protocol.md, Transport")
            # A REQ socket puts an empty frame before the envelope (and an id before that); it wants them back.
            split = frames.index(b"", 0, 2) + 1 if b"" in frames[:2] and len(frames) > 1 else 0
            origin.prefix = frames[:split]
            if len(frames) != split + 1:
                raise Refused("bad_request", "a request is one envelope frame", "see protocol.md, Transport")
            envelope = decode_request_envelope(frames[split])
            origin.id, origin.key = envelope.id, envelope.key
            origin.request = request = decode_request_body(envelope)
            origin.operation = operation_of(request)
            self._dispatch(origin, envelope, request)

        self._attempt(origin, work)

    def _attempt(self, origin: Origin, work: Callable[[], None]) -> bool:
        """Do a piece of work for one request; its error becomes the request's answer. The only broad except of the server."""
        try:
            work()
            return True
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, the other requests go on
            failure = failure_of(error)
            if failure is None:
                self.counters.internal += 1
                _log.exception("request %s %s of uid %s failed", origin.operation, origin.id, origin.peer.uid)
                hint = "the daemon's log has the traceback; please report it"
                failure = Failure(code="internal", message=f"{type(error).__name__} in the daemon", hint=hint)
            self._fail(origin, failure)
            return False

    def _fail(self, origin: Origin, failure: Failure) -> None:
        self.counters.failures += 1
        if failure.code in ("bad_request", "protocol_version", "unsupported_operation"):
            self.counters.malformed += 1
        self._outgoing.reply(origin, FAILURE, failure)

    def _dispatch(self, origin: Origin, envelope: RequestEnvelope, request: Request) -> None:
        now_ms = self._clock_ns() // 1_000_000
        if envelope.deadline_ms and now_ms > envelope.deadline_ms:
            late = now_ms - envelope.deadline_ms
            hint = "nothing was done; ask again, or check that both clocks agree"
            raise Refused("deadline_expired", f"the deadline had passed by {late} ms on arrival", hint, late_ms=late)
        if isinstance(request, PingRequest):
            self._outgoing.reply(origin, "ping", PingReply(now_ns=self._clock_ns()))
        elif isinstance(request, CreditRequest):
            self._pushing.credit(origin, request)
        elif isinstance(request, CancelRequest):
            self._pushing.cancel(origin, request)
        elif isinstance(request, SubscribeRequest):
            self._pushing.subscribe(origin, request)
        else:
            self._ask_handler(origin, envelope, request)

    def _ask_handler(self, origin: Origin, envelope: RequestEnvelope, request: Request) -> None:
        mutates, peer, claimed = is_mutation(request), origin.peer, envelope.claimed or Claimed()
        if mutates and OPERATE not in peer.roles:
            self._handler.denied(request, peer, claimed)
        require(peer, OPERATE if mutates else READ, origin.operation)
        if mutates:
            if not envelope.key:
                hint = "send a new random key with every mutation, and the same key when sending it again"
                raise Refused("bad_request", f"{origin.operation} without an idempotency key", hint)
            if self._pushing.join_running(origin):
                return
            earlier = self._handler.replayed(envelope.key, request, peer)
            if earlier is not None:
                if envelope.durable:
                    self._pushing.start(origin, self._handler.durably(earlier), envelope.credit, replayed=True)
                else:
                    self._outgoing.reply(origin, origin.operation, earlier, replayed=True)
                return
        else:
            origin.key = ""
            if self._pushing.running(origin):
                return
        answer = self._handler.handle(
            request, Context(peer, origin.key, envelope.durable, envelope.deadline_ms, claimed)
        )
        if isinstance(answer, Iterator):
            self._pushing.start(origin, answer, envelope.credit)
            return
        piece = answer if isinstance(answer, Piece) else Piece(answer)
        if origin.key:
            self._handler.remember(origin.key, request, peer, piece.body)
        self._outgoing.reply(origin, origin.operation, piece.body, slab=piece.slab, durable=piece.durable)


def _address(frame: zmq.Frame) -> str:
    """What libzmq says of the peer of this frame; empty where it says nothing."""
    try:
        address = frame.get("Peer-Address")
    except zmq.ZMQError:
        return ""
    return address if isinstance(address, str) else ""
