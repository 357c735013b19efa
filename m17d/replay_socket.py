"""
The replay server's websocket side: the feed's protocol, and one player per connection.

``connected``, auth, subscribe with answers per topic, unsubscribe, wildcards, events in JSON arrays; one connection per
key and asset class. Where a connection ends other than by the client's wish, the next one of the key goes on, so that
nothing is missing but what a ``cut`` takes away. This module must never read a file.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from m17d.replay_faults import Faults
from m17d.replay_market import Rows, Tape

SLICE_EVENTS: Final = 20_000
CONTRACTS_MAX: Final = 1_000
_AUTH_SECONDS: Final = 10.0
_REWIND_NS: Final = 5_000_000_000
_GARBAGE: Final = (
    b"this is no JSON", b'[{"ev":"T","sym":"AIG"', b'{"ev":"status"}', b'[{"ev":"Q","sym":7,"t":"noon"}]', b"\xff\xfe\x00",
    b'[{"ev":"AM","sym":"AIG","v":1}]', b"[]",
)  # fmt: skip
"""Frames that a client must survive; binary ones are sent as binary."""


class Clock:
    """
    Market time. It starts with the first subscription.

    Args:
        start_ns: market time at the start, ns UTC.
        speed: market seconds a second; None plays as fast as it goes.
    """

    def __init__(self, start_ns: int, speed: float | None) -> None:
        self._start_ns = start_ns
        self._speed = speed
        self._began: float | None = None

    @property
    def is_free(self) -> bool:
        """Whether events are sent as fast as they are taken."""
        return self._speed is None

    def start(self) -> None:
        """Let time run, if it does not yet."""
        if self._began is None:
            self._began = time.monotonic()

    def now_ns(self) -> int:
        """Market time, ns UTC; the start until it runs, the end of time when free."""
        if self._speed is None:
            return 2**62
        if self._began is None:
            return self._start_ns
        return self._start_ns + round((time.monotonic() - self._began) * self._speed * 1e9)


@dataclass(slots=True)
class Cursor:
    """How far a key's connections have come: the next event, and the faults that were made."""

    position: int
    marks_done: int = 0
    frames: int = 0
    taken: bool = False


class Subscription(msgspec.Struct):
    """A client's message."""

    action: str
    params: str = ""


_MESSAGE: Final = msgspec.json.Decoder(Subscription)


@dataclass(slots=True, eq=False)
class Channel:
    """
    One asset class.

    Attributes:
        tape: its events.
        clock: the server's.
        key: the only key taken; '' takes any.
        faults: what goes wrong.
        cut_ns: from and to in ns UTC of what is never sent, or None.
        frame_events: events of one frame.
        settle_seconds: quiet after the last subscription before the play goes on.
        first: position that a new key begins at.
    """

    tape: Tape
    of_options: bool
    clock: Clock
    key: str
    faults: Faults
    cut_ns: tuple[int, int] | None
    frame_events: int
    settle_seconds: float
    first: int = 0
    cursors: dict[str, Cursor] = field(default_factory=dict)
    events_sent: int = 0
    handshakes: int = 0
    marks: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find where on the tape the faults lie."""
        self.marks = _marks(self.tape, self.first, self.faults, self.cut_ns)

    @property
    def is_cut(self) -> bool:
        """Whether connections are refused right now."""
        if self.cut_ns is None or self.clock.is_free:
            return False
        return self.cut_ns[0] <= self.clock.now_ns() < self.cut_ns[1]

    async def serve(self, socket: ServerConnection) -> None:
        """One connection from its beginning to its end."""
        player = _Player(self, socket)
        try:
            await player.run()
        except ConnectionClosed:
            return
        finally:
            player.leave()


def _marks(tape: Tape, first: int, faults: Faults, cut_ns: tuple[int, int] | None) -> list[tuple[int, str]]:
    """Positions before which a fault is made, ascending."""
    marks: list[tuple[int, str]] = []
    times = tape.play_ns[first:]
    for name in ("disconnect", "abort", "kick", "stall"):
        every = round(getattr(faults, name) * 1e9)
        if every and len(times):
            periods = (times - times[0]) // every
            marks += [(first + int(at) + 1, name) for at in np.flatnonzero(np.diff(periods))]
    if cut_ns is not None:
        begin = int(np.searchsorted(tape.play_ns, cut_ns[0]))
        if begin < len(tape):
            marks.append((begin, "cut"))
    return sorted(marks)


class _Player:
    def __init__(self, channel: Channel, socket: ServerConnection) -> None:
        self._channel = channel
        self._socket = socket
        self._key = ""
        self._cursor: Cursor | None = None
        self._ended_by_us = False
        self._topics: dict[str, set[str]] = {"T": set(), "Q": set()}
        self._wanted: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None
        self._changed_at = 0.0
        self._subscribed = asyncio.Event()
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        await self._status("connected", "Connected Successfully")
        async with asyncio.timeout(_AUTH_SECONDS) as limit:
            if not await self._authenticated():
                return
            limit.reschedule(None)
        playing = asyncio.create_task(self._play_to_the_end())
        try:
            async for message in self._socket:
                await self._take(message)
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)

    def leave(self) -> None:
        """The connection is over: free its place; a client that said goodbye begins anew next time."""
        if self._cursor is None:
            return
        self._cursor.taken = False
        if not self._ended_by_us and self._socket.close_code in (1000, 1001):
            self._channel.cursors.pop(self._key, None)

    async def _authenticated(self) -> bool:
        channel = self._channel
        while True:
            message = await self._parsed(await self._socket.recv())
            if message is None:
                continue
            if message.action != "auth":
                await self._status("error", "not authenticated")
                continue
            if not message.params or (channel.key and message.params != channel.key):
                await self._status("auth_failed", "authentication failed")
                await self._close(1008, "authentication failed")
                return False
            self._key = message.params
            cursor = channel.cursors.setdefault(self._key, Cursor(channel.first))
            if cursor.taken:
                await self._status("max_connections", "Maximum number of websocket connections exceeded")
                await self._close(1008, "max connections")
                return False
            cursor.taken, self._cursor = True, cursor
            await self._status("auth_success", "authenticated")
            return True

    async def _parsed(self, message: str | bytes) -> Subscription | None:
        try:
            return _MESSAGE.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await self._status("error", f"not a message: {error}")
            return None

    async def _take(self, raw: str | bytes) -> None:
        message = await self._parsed(raw)
        if message is None:
            return
        if message.action not in ("subscribe", "unsubscribe"):
            await self._status("error", f"unknown action {message.action!r}")
            return
        # No frame between the change and its answer: from the answer on, every event of a topic is sent.
        async with self._sending:
            answers = []
            for topic in filter(None, (each.strip() for each in message.params.split(","))):
                refusal = self._change(topic, subscribe=message.action == "subscribe")
                if refusal:
                    answers.append({"ev": "status", "status": "error", "message": refusal})
                else:
                    answers.append({"ev": "status", "status": "success", "message": f"{message.action}d to: {topic}"})
            self._wanted, self._changed_at = None, time.monotonic()
            if answers:
                await self._socket.send(msgspec.json.encode(answers).decode())
        if any(self._topics.values()):
            self._subscribed.set()

    def _change(self, topic: str, *, subscribe: bool) -> str:
        """Add or remove a topic; why not, or ''."""
        kind, _, ticker = topic.partition(".")
        if kind not in self._topics or not ticker:
            return f"invalid topic: {topic}"
        if not subscribe:
            self._topics[kind].discard(ticker)
            return ""
        if self._channel.of_options and kind == "Q":
            if ticker == "*":
                return "quotes of options have no wildcard"
            if len(self._topics["Q"]) >= CONTRACTS_MAX:
                return f"too many contracts: {topic} is beyond {CONTRACTS_MAX}"
        self._topics[kind].add(ticker)
        return ""

    async def _play_to_the_end(self) -> None:
        try:
            await self._play()
        except ConnectionClosed:
            return
        except Exception:
            await self._close(1011, "the replay failed")
            raise

    async def _play(self) -> None:
        cursor, channel = self._cursor, self._channel
        assert cursor is not None
        await self._subscribed.wait()
        tape = channel.tape
        while True:
            while (left := self._changed_at + channel.settle_seconds - time.monotonic()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(left)  # later subscriptions move the end
            channel.clock.start()
            while cursor.marks_done < len(channel.marks) and channel.marks[cursor.marks_done][0] < cursor.position:
                cursor.marks_done += 1
            now = channel.clock.now_ns()
            upto = len(tape) if channel.clock.is_free else int(np.searchsorted(tape.play_ns, now, "right"))
            mark = channel.marks[cursor.marks_done] if cursor.marks_done < len(channel.marks) else (len(tape) + 1, "")
            end = min(cursor.position + SLICE_EVENTS, upto, mark[0])
            if end > cursor.position:
                await self._send(cursor, end)
            if cursor.position == mark[0] and mark[0] <= upto:
                cursor.marks_done += 1
                if await self._fault(cursor, mark[1]):
                    return
            elif cursor.position >= len(tape):
                await self._status("end_of_session", "everything was played")
                return
            elif end >= upto:
                await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(0)

    async def _send(self, cursor: Cursor, end: int) -> None:
        channel, faults = self._channel, self._channel.faults
        if self._wanted is None:
            self._wanted = (self._mask("T", channel.tape.trades), self._mask("Q", channel.tape.quotes))
        wanted = self._wanted
        texts, at = channel.tape.texts(cursor.position, end, *wanted)
        size = channel.frame_events
        for begin in range(0, len(texts), size):
            batch, places = texts[begin : begin + size], at[begin : begin + size]
            if faults.duplicate:
                twice = (places + 1) % faults.duplicate == 0
                batch = [
                    text for text, again in zip(batch, twice.tolist(), strict=True) for text in [text] * (1 + again)
                ]
            async with self._sending:
                if self._wanted is not wanted:
                    return
                await self._send_garbage(cursor)
                await self._socket.send(f"[{','.join(batch)}]")
            channel.events_sent += len(batch)
            cursor.position = int(places[-1]) + 1
        cursor.position = end

    async def _send_garbage(self, cursor: Cursor) -> None:
        cursor.frames += 1
        every = self._channel.faults.garbage
        if every and cursor.frames % every == 0:
            garbage = _GARBAGE[cursor.frames // every % len(_GARBAGE)]
            await self._socket.send(garbage if b"\xff" in garbage else garbage.decode())

    def _mask(self, kind: str, rows: Rows) -> NDArray[np.bool_]:
        topics = self._topics[kind]
        return np.array(["*" in topics or ticker in topics for ticker in rows.tickers], np.bool_)

    async def _fault(self, cursor: Cursor, name: str) -> bool:
        """Make a fault; True when the connection is over."""
        tape = self._channel.tape
        match name:
            case "stall":
                # Who gives up on the silence goes on where it was, whatever it says at the end.
                self._ended_by_us = True
                await asyncio.sleep(self._channel.faults.stall_amount)
                self._ended_by_us = False
                return False
            case "disconnect":
                await self._close(1012, "service restart")
            case "kick":
                await self._status("max_connections", "Maximum number of websocket connections exceeded")
                await self._close(1008, "max connections")
            case "abort":
                before = tape.play_ns[cursor.position] - _REWIND_NS
                cursor.position = max(self._channel.first, int(np.searchsorted(tape.play_ns, before)))
                self._ended_by_us = True
                self._socket.transport.abort()
            case "cut":
                assert self._channel.cut_ns is not None
                cursor.position = int(np.searchsorted(tape.play_ns, self._channel.cut_ns[1]))
                await self._close(1012, "cut")
            case _:
                raise AssertionError(f"no such fault: {name}")
        return True

    async def _close(self, code: int, reason: str) -> None:
        self._ended_by_us = True
        await self._socket.close(code, reason)

    async def _status(self, status: str, message: str) -> None:
        body = [{"ev": "status", "status": status, "message": message}]
        await self._socket.send(msgspec.json.encode(body).decode())
