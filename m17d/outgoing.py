"""
Outgoing messages: envelopes around replies, sends that never block, and the bounded boxes of what did not fit.

A client that does not read costs its box and nothing more; when the box is full or old, what is in it is dropped and counted.
Must never wait, and never decide what to answer.
"""

from __future__ import annotations

import time
from typing import Final

import zmq

from m17d.envelopes import ReplyEnvelope, encode_body, encode_reply
from m17d.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from m17d.replies import Reply
from m17d.streams import Counters, Limits, Origin, Outbox

Frames = list[bytes | memoryview]
_COPY_BELOW_BYTES: Final = 64 << 10
_NOWAIT: Final = int(zmq.NOBLOCK)
_NOWAIT_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
"""As plain numbers: to combine zmq's own enumerations for every frame takes longer than to send it."""


class Outgoing:
    """Everything that leaves through one ROUTER socket."""

    def __init__(self, router: zmq.Socket[bytes], version: str, limits: Limits, counters: Counters) -> None:
        self._router = router
        self._version = version
        self._limits = limits
        self._counters = counters
        self._outboxes: dict[bytes, Outbox] = {}
        self._boxed_bytes = 0
        self.gone: set[bytes] = set()
        """Routes that turned out to lead nowhere; whoever holds something for them takes it from here."""

    @property
    def waiting(self) -> bool:
        """Whether messages wait for room in the socket."""
        return bool(self._outboxes)

    def reply(
        self,
        origin: Origin,
        kind: str,
        body: Reply,
        slab: bytes | memoryview | None = None,
        *,
        durable: bool = False,
        replayed: bool = False,
        more: bool = False,
    ) -> None:
        """Send a reply now, or as soon as its reader makes room."""
        frames = self.frames(origin, kind, body, slab, durable=durable, replayed=replayed, more=more)
        if origin.route not in self._outboxes and self.send(origin.route, frames):
            return
        self._box(origin, frames)

    def frames(
        self,
        origin: Origin,
        kind: str,
        body: Reply,
        slab: bytes | memoryview | None = None,
        *,
        durable: bool = False,
        replayed: bool = False,
        more: bool = False,
        piece: int = 0,
    ) -> Frames:
        """The frames of a reply, without the route: what the request asked to have echoed, the envelope, the slab."""
        envelope = ReplyEnvelope(
            id=origin.id,
            kind=kind,
            body=encode_body(body),
            version=self._version,
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            durable=durable,
            replayed=replayed,
            more=more,
            piece=piece,
        )
        head: Frames = [*origin.prefix, encode_reply(envelope)]
        return head if slab is None else [*head, slab]

    def send(self, route: bytes, frames: Frames) -> bool:
        """Send if there is room; True also where nobody is there any more, since then nothing is left to do."""
        last, router = frames[-1], self._router
        try:
            router.send(route, _NOWAIT_MORE)
            for frame in frames[:-1]:
                router.send(frame, _NOWAIT_MORE)
            router.send(last, _NOWAIT, copy=len(last) < _COPY_BELOW_BYTES)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.gone.add(route)
        return True

    def disown(self, route: bytes, origin: Origin) -> None:
        """Drop what waits for a route that now belongs to another process."""
        box = self._outboxes.get(route)
        if box is not None and not origin.same_process(box.peer):
            self._drop(route)

    def flush(self) -> None:
        """Send what waits, as far as there is room; drop what nobody has read for too long."""
        if not self._outboxes:
            return
        now = time.monotonic()
        for route in list(self._outboxes):
            box = self._outboxes[route]
            while box.messages and self.send(route, box.messages[0]):
                self._boxed_bytes -= box.pop()
                box.since = now
            if not box.messages:
                del self._outboxes[route]
            elif route in self.gone or now - box.since > self._limits.outbox_seconds:
                self._drop(route)

    def _box(self, origin: Origin, frames: Frames) -> None:
        box = self._outboxes.get(origin.route)
        if box is None:
            box = self._outboxes[origin.route] = Outbox(origin.peer, time.monotonic())
        limits, size = self._limits, sum(len(frame) for frame in frames)
        full = len(box.messages) >= limits.outbox_messages or box.held_bytes + size > limits.outbox_bytes
        # One answer larger than the box still goes through when nothing else waits.
        if (full and box.messages) or self._boxed_bytes + size > limits.outboxes_bytes:
            self._counters.replies_dropped += 1
            if not box.messages:
                del self._outboxes[origin.route]
            return
        box.push(frames, size)
        self._boxed_bytes += size

    def _drop(self, route: bytes) -> None:
        box = self._outboxes.pop(route)
        self._counters.replies_dropped += len(box.messages)
        self._boxed_bytes -= box.held_bytes
