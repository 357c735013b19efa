"""
What outlives one turn of the daemon's loop: streamed answers and subscriptions, each with a bound on what it may hold.

A stream is a handler's iterator and the credit its reader has left; a subscription is a short queue of events and a count of
those that did not fit. Pure bookkeeping: this module must never touch a socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from m17d.envelopes import Piece
from m17d.outcomes import Event
from m17d.peers import Peer
from m17d.protocol import Request

PROGRESS_SECONDS_MIN: Final = 0.2
"""Progress is sent at most this often per stream."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what peers may take; every queue has one."""

    frame_bytes: int = 64 << 10
    frames: int = 4
    send_high_water: int = 16
    receive_high_water: int = 256
    requests_per_turn: int = 256
    turn_ms: float = 10.0
    streams_per_client: int = 4
    streams: int = 256
    credit: int = 64
    subscriptions_per_client: int = 4
    subscriptions: int = 1024
    events_per_subscriber: int = 256
    events_kept: int = 4096
    outbox_messages: int = 1024
    outbox_bytes: int = 4 << 20
    outboxes_bytes: int = 32 << 20
    outbox_seconds: float = 30.0
    stream_idle_seconds: float = 30.0
    handshake_ms: int = 2_000
    heartbeat_ms: int = 5_000
    heartbeat_timeout_ms: int = 15_000


@dataclass(slots=True)
class Counters:
    """What happened at the socket since the start."""

    requests: int = 0
    malformed: int = 0
    unidentified: int = 0
    failures: int = 0
    internal: int = 0
    replies_dropped: int = 0
    events_lost: int = 0


@dataclass(slots=True)
class Origin:
    """Where a request came from and what its answer must carry: route, frames to echo, id, operation, idempotency key."""

    route: bytes
    prefix: list[bytes]
    peer: Peer
    id: int = 0
    operation: str = ""
    key: str = ""
    request: Request | None = None

    def same_process(self, peer: Peer) -> bool:
        """Whether the peer is the process this request came from."""
        return (self.peer.uid, self.peer.gid, self.peer.pid) == (peer.uid, peer.gid, peer.pid)


@dataclass(slots=True)
class Stream:
    """
    An answer in pieces. ``held`` is a piece that waits for credit or for room in the socket, ``later`` those behind it: all of a
    mutation, since none of them leaves before the whole is remembered.
    """

    origin: Origin
    iterator: Iterator[Any]
    credit: int
    touched: float
    pieces: list[Piece] = field(default_factory=list)
    """Of a mutation, what it has said so far."""
    held: list[bytes | memoryview] | None = None
    later: deque[list[bytes | memoryview]] = field(default_factory=deque)
    sent: int = 0
    exhausted: bool = False
    detached: bool = False
    durable: bool = False
    replayed: bool = False
    progressed: float = 0.0
    rests_until: float = 0.0

    def may_report(self, now: float) -> bool:
        """Whether progress may be sent again; counts it as sent."""
        if now - self.progressed < PROGRESS_SECONDS_MIN:
            return False
        self.progressed = now
        return True

    @property
    def runnable(self) -> bool:
        """Whether another turn gets this stream any further."""
        return self.held is None or self.credit > 0 or self.exhausted or self.detached


@dataclass(slots=True)
class Subscription:
    """Events on their way to one subscriber, at most ``events_max`` of them; what does not fit is counted in ``lost``."""

    origin: Origin
    topics: frozenset[str]
    lease_seconds: float
    until: float
    events_max: int
    queue: deque[Event] = field(default_factory=deque)
    lost: int = 0

    def offer(self, event: Event) -> int:
        """Queue an event if its topic is wanted, dropping the oldest where there is no room; returns how many were dropped."""
        if self.topics and event.topic not in self.topics:
            return 0
        dropped = 0
        if len(self.queue) >= self.events_max:
            self.queue.popleft()
            self.lost += 1
            dropped = 1
        self.queue.append(event)
        return dropped

    def head(self) -> Event | None:
        """The next event to send, with the count of those lost before it; it stays queued until `sent`."""
        if not self.queue:
            return None
        event = self.queue[0]
        if not self.lost:
            return event
        return Event(seq=event.seq, ts=event.ts, topic=event.topic, facts=event.facts, lost=self.lost)

    def sent(self) -> None:
        """The event that `head` gave has left."""
        self.queue.popleft()
        self.lost = 0


class EventLog:
    """The last events of this start, numbered from 1, so that a subscriber can go on where it was."""

    def __init__(self, epoch: str, kept_max: int) -> None:
        self.epoch = epoch
        self.seq = 0
        self._kept: deque[Event] = deque(maxlen=kept_max)

    def append(self, topic: str, ts: int, facts: dict[str, Any]) -> Event:
        """Number an event and keep it."""
        self.seq += 1
        event = Event(seq=self.seq, ts=ts, topic=topic, facts=facts)
        self._kept.append(event)
        return event

    def since(self, seq: int, epoch: str) -> list[Event] | None:
        """Events from ``seq`` on; None where some of them are not kept any more, or ``epoch`` was another start."""
        if epoch != self.epoch or seq > self.seq + 1:
            return None
        oldest = self._kept[0].seq if self._kept else self.seq + 1
        if seq < oldest:
            return None
        return [event for event in self._kept if event.seq >= seq]


@dataclass(slots=True)
class Outbox:
    """Replies to one client that did not fit into its socket yet."""

    peer: Peer
    since: float
    messages: deque[list[bytes | memoryview]] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)
    held_bytes: int = 0

    def push(self, frames: list[bytes | memoryview], size: int) -> None:
        """Queue a message of ``size`` bytes."""
        self.messages.append(frames)
        self.sizes.append(size)
        self.held_bytes += size

    def pop(self) -> int:
        """The first message has left; returns its size."""
        self.messages.popleft()
        size = self.sizes.popleft()
        self.held_bytes -= size
        return size
