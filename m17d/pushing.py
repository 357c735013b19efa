"""
Pushing: streamed answers against credit, and events to subscribers, a little every turn of the daemon's loop.

A read whose reader is gone ends; a mutation goes on to its end without one, because what it does must not depend on who is
listening. Must never step a handler's iterator outside the server's guarded call, so that an error ends one stream only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from m17d.envelopes import END, EVENT, PROGRESS, Piece, Refused, Rest, join_pieces
from m17d.outcomes import EndReply, Progress, SubscribeReply
from m17d.outgoing import Outgoing
from m17d.peers import Peer
from m17d.protocol import CancelRequest, CreditRequest, Request, SubscribeRequest
from m17d.replies import Reply
from m17d.streams import Counters, EventLog, Limits, Origin, Stream, Subscription
from m17d.turns import Turns

Attempt = Callable[[Origin, Callable[[], None]], bool]
Remember = Callable[[str, Request, Peer, Reply], None]
Place = tuple[bytes, int]
_ENDED: Final = object()
_PIECES_PER_TURN: Final = 8
_STREAM_SECONDS: Final = 0.002


class Pushing:
    """The streams and subscriptions of one server, by route and the id of the request that began them."""

    def __init__(
        self,
        outgoing: Outgoing,
        attempt: Attempt,
        remember: Remember,
        events: EventLog,
        limits: Limits,
        counters: Counters,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._outgoing = outgoing
        self._attempt = attempt
        self._remember = remember
        self._limits = limits
        self._counters = counters
        self._events = events
        self._streams: dict[Place, Stream] = {}
        self._subscriptions: dict[Place, Subscription] = {}

    @property
    def busy(self) -> bool:
        """Whether a stream can go on at once."""
        if not self._streams:
            return False
        now = time.monotonic()
        return any(stream.held is None and stream.rests_until <= now for stream in self._streams.values())

    @property
    def waiting(self) -> bool:
        """Whether something only waits for room in the socket, or rests for a moment."""
        if not self._streams and not self._subscriptions:
            return False
        queued = any(subscription.queue for subscription in self._subscriptions.values())
        return queued or any(stream.runnable for stream in self._streams.values())

    def start(
        self, origin: Origin, iterator: Iterator[Reply | Piece | Rest | None], credit: int, *, replayed: bool = False
    ) -> None:
        """
        Begin a streamed answer; ``replayed``: of a mutation that was done before, so that it is not remembered again.

        Raises:
            Refused: ``busy`` where the client or the server has as many streams as it may; the iterator is closed.
        """
        of_client = sum(1 for route, _ in self._streams if route == origin.route)
        if of_client >= self._limits.streams_per_client or len(self._streams) >= self._limits.streams:
            _close(iterator)
            raise Refused("busy", f"{of_client} streams of this client are open", "read them to the end, or cancel one")
        credit = max(1, min(credit, self._limits.credit))
        self._streams[origin.route, origin.id] = Stream(origin, iterator, credit, time.monotonic(), replayed=replayed)

    def running(self, origin: Origin) -> bool:
        """Whether this very request is being answered already: its caller sent it twice to be sure."""
        return (origin.route, origin.id) in self._streams

    def join_running(self, origin: Origin) -> bool:
        """
        Answer a mutation that was sent again while the first is still at work: the newcomer gets the first's answer.

        Raises:
            Refused: ``key_reused`` where the key belongs to a running mutation that is not the same.
        """
        for place, stream in self._streams.items():
            running = stream.origin
            if running.key == origin.key and running.peer.uid == origin.peer.uid:
                if running.request != origin.request:
                    raise Refused("key_reused", "this key belongs to another request", "use a new key", key=origin.key)
                del self._streams[place]
                stream.origin, stream.detached, stream.touched = origin, False, time.monotonic()
                if stream.exhausted:
                    # Some of it may have gone to the place it was asked from before: the newcomer has to get all of it.
                    self._frame_answer(stream)
                self._streams[origin.route, origin.id] = stream
                return True
        return False

    def credit(self, origin: Origin, request: CreditRequest) -> None:
        """
        Give a stream more credit, or a subscription more time.

        More credit for a stream that has ended needs no answer; a lease that cannot be renewed does, under the subscription's
        own id, so that the subscriber knows that it must subscribe again.

        Raises:
            Refused: ``not_found`` where a lease is to be renewed and there is none.
        """
        place, now = (origin.route, request.stream), time.monotonic()
        stream, subscription = self._streams.get(place), self._subscriptions.get(place)
        if stream is not None:
            stream.credit = min(stream.credit + request.pieces, self._limits.credit)
            stream.touched = now
        if subscription is not None:
            subscription.until = now + subscription.lease_seconds
        if stream is None and subscription is None and not request.pieces:
            origin.id = request.stream
            raise Refused("not_found", f"no subscription {request.stream}", "subscribe again from the next event on")

    def cancel(self, origin: Origin, request: CancelRequest) -> None:
        """End a stream or subscription; a mutation is left alone by its reader, not undone."""
        place = (origin.route, request.stream)
        known = place in self._streams or place in self._subscriptions
        self._leave(place)
        self._subscriptions.pop(place, None)
        if not known:
            raise Refused("not_found", f"no stream {request.stream}", "it has ended already")
        self._outgoing.reply(origin, END, EndReply())

    def subscribe(self, origin: Origin, request: SubscribeRequest) -> None:
        """
        Begin a subscription, with the events since ``from_seq`` where they are still kept.

        Raises:
            Refused: ``busy`` where the client or the server has as many subscriptions as it may.
        """
        of_client = sum(1 for route, _ in self._subscriptions if route == origin.route)
        if of_client >= self._limits.subscriptions_per_client or len(self._subscriptions) >= self._limits.subscriptions:
            raise Refused("busy", f"{of_client} subscriptions of this client are open", "cancel one")
        lease, most = request.lease_ms / 1e3, self._limits.events_per_subscriber
        subscription = Subscription(origin, frozenset(request.topics), lease, time.monotonic() + lease, most)
        missed = [] if request.from_seq is None else self._events.since(request.from_seq, request.epoch or "")
        for event in missed or ():
            self._counters.events_lost += subscription.offer(event)
        self._subscriptions[origin.route, origin.id] = subscription
        reply = SubscribeReply(
            epoch=self._events.epoch, seq=self._events.seq + 1, lease_ms=request.lease_ms, resync=missed is None
        )
        self._outgoing.reply(origin, origin.operation, reply, more=True)

    def publish(self, topic: str, ts: int, facts: dict[str, Any]) -> int:
        """Number an event and queue it for its subscribers."""
        event = self._events.append(topic, ts, facts)
        for subscription in self._subscriptions.values():
            self._counters.events_lost += subscription.offer(event)
        return event.seq

    def disown(self, route: bytes, origin: Origin) -> None:
        """End what another process began under the same route: a client may choose its route, so it is not believed."""
        if not self._streams and not self._subscriptions:
            return
        for place in [place for place in self._streams if place[0] == route]:
            if not origin.same_process(self._streams[place].origin.peer):
                self._leave(place)
        for place in [place for place in self._subscriptions if place[0] == route]:
            if not origin.same_process(self._subscriptions[place].origin.peer):
                del self._subscriptions[place]

    def turn(self) -> None:
        """Every stream one step, every subscriber what it takes, within the turn's time."""
        if not self._streams and not self._subscriptions:
            self._outgoing.gone.clear()
            return
        for route in self._outgoing.gone:
            for place in [place for place in self._streams if place[0] == route]:
                self._leave(place)
            for place in [place for place in self._subscriptions if place[0] == route]:
                del self._subscriptions[place]
        self._outgoing.gone.clear()
        until = time.monotonic() + self._limits.turn_ms / 1e3
        for place, stream in list(self._streams.items()):
            now = time.monotonic()
            if now > until:
                # The rest comes first in the next turn.
                self._streams[place] = self._streams.pop(place)
            else:
                self._advance(place, stream, now)
        if self._subscriptions:
            self._send_events(time.monotonic())

    def close(self) -> None:
        """End every stream."""
        for stream in self._streams.values():
            _close(stream.iterator)
        self._streams.clear()
        self._subscriptions.clear()

    def _advance(self, place: Place, stream: Stream, now: float) -> None:
        idle = not stream.credit and now - stream.touched > self._limits.stream_idle_seconds
        if idle and not stream.detached:
            self._leave(place)
            if place not in self._streams:
                return
        failed = False
        for _ in range(_PIECES_PER_TURN):
            if failed or not stream.runnable or (stream.exhausted and stream.held is None) or stream.rests_until > now:
                break
            failed = not self._attempt(stream.origin, lambda: self._step(stream, now))
            # One slow step, or no room in the socket: the others' turn.
            if stream.held is not None or time.monotonic() - now > _STREAM_SECONDS:
                break
        if failed or (stream.exhausted and stream.held is None):
            self._streams.pop(place, None)
            _close(stream.iterator)

    def _step(self, stream: Stream, now: float) -> None:
        if stream.held is None and not self._next_piece(stream, now):
            return
        if stream.detached:
            stream.held = None
            stream.later.clear()
            return
        allowed = stream.credit > 0 or stream.exhausted
        if stream.held is not None and allowed and self._outgoing.send(stream.origin.route, stream.held):
            stream.held = stream.later.popleft() if stream.later else None
            stream.credit -= not stream.exhausted

    def _next_piece(self, stream: Stream, now: float) -> bool:
        """Step the iterator; whether there is a piece to send now."""
        origin = stream.origin
        with self._turns.step(f"stream {origin.operation}"):
            item: Any = next(stream.iterator, _ENDED)
        if item is None:
            return False
        if isinstance(item, Rest):
            stream.rests_until = time.monotonic() + item.seconds
            return False
        if isinstance(item, Progress):
            if stream.may_report(now) and not stream.detached:
                self._outgoing.reply(origin, PROGRESS, item, more=True)
            return False
        if item is _ENDED:
            stream.exhausted = True
            if origin.key and origin.request is not None and not stream.replayed:
                self._remember(
                    origin.key, origin.request, origin.peer, join_pieces([one.body for one in stream.pieces])
                )
            self._frame_answer(stream)
            return True
        piece = item if isinstance(item, Piece) else Piece(item)
        if origin.key:
            # Who has heard a piece does not ask again: a daemon killed before it has remembered would leave him waiting.
            stream.pieces.append(piece)
            return False
        stream.held = self._framed(stream, piece)
        return True

    def _frame_answer(self, stream: Stream) -> None:
        """Hold the end of an answer, before it the pieces that were kept for it, for the reader that there is now."""
        if stream.pieces:
            stream.sent = 0
        frames = [self._framed(stream, one) for one in stream.pieces]
        end = self._outgoing.frames(
            stream.origin, END, EndReply(), durable=stream.durable, replayed=stream.replayed, piece=stream.sent
        )
        stream.held, *later = *frames, end
        stream.later = deque(later)

    def _framed(self, stream: Stream, piece: Piece) -> list[bytes | memoryview]:
        """A piece as it goes to the reader that the stream has now."""
        stream.durable = piece.durable
        frames = self._outgoing.frames(
            stream.origin,
            stream.origin.operation,
            piece.body,
            piece.slab,
            durable=piece.durable,
            replayed=stream.replayed,
            more=True,
            piece=stream.sent,
        )
        stream.sent += 1
        return frames

    def _leave(self, place: Place) -> None:
        """The reader is gone: a read ends, a mutation goes on without one."""
        stream = self._streams.get(place)
        if stream is None:
            return
        if stream.origin.key:
            stream.detached = True
            return
        del self._streams[place]
        _close(stream.iterator)

    def _send_events(self, now: float) -> None:
        for place, subscription in list(self._subscriptions.items()):
            if now > subscription.until:
                del self._subscriptions[place]
                continue
            origin = subscription.origin
            while (event := subscription.head()) is not None:
                if not self._outgoing.send(origin.route, self._outgoing.frames(origin, EVENT, event, more=True)):
                    break
                subscription.sent()


def _close(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
