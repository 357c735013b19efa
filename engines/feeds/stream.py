"""
The websocket client of one asset class: connect, authenticate, subscribe, receive, and come back.

Status messages are obeyed: nothing is subscribed before ``auth_success``; ``auth_failed`` and ``max_connections`` are
answered with a long pause, not with a storm of attempts. A connection that is silent too long, or does not answer pings,
is given up. Every time without a subscribed connection is a gap. Messages leave through ``emit``, which may hold the
reader back; then the socket fills, and nothing is lost that had arrived. This module must never touch the ledger, and
never let the key into a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from engines.feeds.closed_minutes import FeedMessage, FeedState, Gap
from engines.feeds.minute_builder import GRACE_NS, RETAIN_MINUTES
from engines.feeds.retrying import RetryPolicy
from engines.feeds.stream_events import StatusEvent
from engines.feeds.stream_intake import StreamIntake
from ledger.columns import WINDOW_NS

CONTRACTS_MAX: Final = 1_000
"""Option contracts with quotes on one connection, as the service allows; its owner saw 499 to be safe with trades too."""
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
_QUEUE_FRAMES: Final = (512, 128)
_TICK_SECONDS: Final = 0.25
_KEY_CHARACTERS_MIN: Final = 8
"""Shorter ones are no keys, and would be found in any text."""
END_OF_SESSION: Final = "end_of_session"
"""Status that the replay server sends when everything was played; the feed itself never does."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """
    One connection; plain and picklable.

    Attributes:
        url: with the path of the asset class, such as ``wss://socket.massive.com/stocks``.
        key: sent in the auth message only.
        of_options: the asset class is options.
        trades, quotes: tickers to subscribe, or ``("*",)``.
        contracts_max: most option tickers of quotes and trades together; more are refused when the feed is made.
        batch_topics: topics of one subscribe message.
        handshake_seconds: from the connection to ``auth_success``.
        acknowledge_seconds: for the answers to all subscriptions; topics without one are a gap of their own.
        idle_seconds: longest silence of a subscribed connection; 0 for any.
        ping_seconds: between pings, and for their answer.
        refused_seconds: pause after ``auth_failed`` or ``max_connections``.
        backoff_max_seconds: longest pause after anything else.
        grace_ns, retain_minutes, day: see :class:`engines.feeds.minute_builder.MinuteBuilder`.
        seed: of the jitter.
    """

    url: str
    key: str
    of_options: bool
    trades: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()
    contracts_max: int = CONTRACTS_MAX
    batch_topics: int = 200
    handshake_seconds: float = 10.0
    acknowledge_seconds: float = 10.0
    idle_seconds: float = 60.0
    ping_seconds: float = 20.0
    refused_seconds: float = 60.0
    backoff_max_seconds: float = 30.0
    grace_ns: int = GRACE_NS
    retain_minutes: int = RETAIN_MINUTES
    day: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Refuse what the service would.

        Raises:
            ValueError: too many contracts, quotes of all options, or nothing to subscribe.
        """
        if not self.trades and not self.quotes:
            raise ValueError(f"{self.url}: nothing to subscribe: no trades and no quotes are named")
        if self.of_options:
            if "*" in self.quotes:
                raise ValueError(f"{self.url}: quotes of options have no wildcard; name the contracts")
            contracts = set(self.trades) | set(self.quotes)
            if len(contracts - {"*"}) > self.contracts_max:
                raise ValueError(f"{self.url}: {len(contracts)} contracts, the connection takes {self.contracts_max}")

    def __repr__(self) -> str:
        """Without the key."""
        return f"StreamSettings({self.url}, {len(self.trades)} trades, {len(self.quotes)} quotes)"

    @property
    def topics(self) -> tuple[str, ...]:
        """What is subscribed, such as ``T.AIG``, in order."""
        return tuple([f"T.{each}" for each in self.trades] + [f"Q.{each}" for each in self.quotes])


class _Lost(Exception):
    """The connection is over; the text says why, ``pause_seconds`` how long to stay away, None for the usual."""

    def __init__(self, reason: str, pause_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


Emit = Callable[[FeedMessage], Awaitable[None]]


class StreamClient:
    """
    Keeps one connection up until it is stopped.

    Args:
        settings: what to connect to.
        emit: takes the messages in order; awaited, so it may hold the reader back.
        clock: monotonic seconds.
    """

    def __init__(self, settings: StreamSettings, emit: Emit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._emit = emit
        self._clock = clock
        self._intake = StreamIntake(
            of_options=settings.of_options, grace_ns=settings.grace_ns, retain_minutes=settings.retain_minutes,
            day=settings.day,
        )  # fmt: skip
        self._policy = RetryPolicy(base_seconds=0.5, max_seconds=settings.backoff_max_seconds, seed=settings.seed)
        self._state, self._detail = "connecting", ""
        self._told: tuple[str, str] | None = None
        self._socket: ClientConnection | None = None
        self._unacknowledged: set[str] = set()
        self._late_topics: tuple[str, ...] = ()
        self._subscribed_at: float | None = None
        self._topics_sent = False
        self._last_frame_at = self._last_event_at = clock()
        self._last_told_at = clock()
        self._played_out = False
        self._close_reason = ""
        self._stopping = asyncio.Event()
        self._emitting = asyncio.Lock()

    @property
    def intake(self) -> StreamIntake:
        """What was received so far."""
        return self._intake

    async def run(self) -> None:
        """Connect and receive until :meth:`stop`; then hand over what is left, unfinished minutes marked as such."""
        await self._lose("the feed began")
        ticker = asyncio.create_task(self._tick())
        attempt = 0
        try:
            while not self._stopping.is_set():
                events_before = self._intake.counts.rows
                reason, pause_seconds = await self._connected()
                await self._lose("stopped" if self._stopping.is_set() else reason)
                if self._stopping.is_set():
                    break
                if self._intake.counts.rows > events_before:
                    attempt = 0
                pause = self._policy.pause_seconds(attempt) if pause_seconds is None else pause_seconds
                attempt += 1
                state = "waiting" if pause_seconds is None else "refused"
                await self._say(state, f"{reason}; next attempt in {pause:.1f} s")
                await self._sleep(pause)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            for minute in self._intake.finish():
                await self._emit(minute)
            await self._say("ended", "stopped")

    async def stop(self) -> None:
        """End :meth:`run` soon."""
        self._stopping.set()
        if self._socket is not None:
            await self._socket.close()

    async def set_topics(self, trades: tuple[str, ...], quotes: tuple[str, ...]) -> None:
        """
        Subscribe to other tickers from now on: new ones are asked for, others given up. New topics have a gap before.

        Raises:
            ValueError: as :class:`StreamSettings`.
        """
        before = self._settings.topics
        self._settings = replace(self._settings, trades=trades, quotes=quotes)
        after = self._settings.topics
        new, gone = [each for each in after if each not in set(before)], [each for each in before if each not in after]
        if self._socket is None or not self._topics_sent:
            return
        await self._send_topics(self._socket, "unsubscribe", gone)
        if new:
            self._late_topics = tuple(new)
            await self._emit(Gap(0, None, "subscribed later", self._late_topics))
            self._unacknowledged |= set(new)
            self._subscribed_at = self._clock()
            await self._send_topics(self._socket, "subscribe", new)

    async def _connected(self) -> tuple[str, float | None]:
        """One connection from its beginning to its end; why it ended, and how long to stay away (None: the usual)."""
        await self._say("connecting", self._settings.url)
        self._subscribed_at, self._close_reason, self._played_out, self._topics_sent = None, "", False, False
        try:
            async with connect(
                self._settings.url,
                compression=None,
                max_size=FRAME_BYTES_MAX,
                max_queue=_QUEUE_FRAMES,
                open_timeout=self._settings.handshake_seconds,
                ping_interval=self._settings.ping_seconds,
                ping_timeout=self._settings.ping_seconds,
                close_timeout=1.0,
                user_agent_header="m17",
            ) as socket:
                self._socket = socket
                self._intake.counts.connections += 1
                self._last_frame_at = self._clock()
                try:
                    await self._receive(socket)
                finally:
                    self._socket = None
                    self._intake.counts.disconnections += 1
        except _Lost as lost:
            return str(lost), lost.pause_seconds
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else None
            said = closed.rcvd.reason if closed.rcvd is not None else ""
            ending = (
                "the connection broke" if code is None else f"the server closed ({code}{' ' + said if said else ''})"
            )
            return self._close_reason or ending, None
        except TimeoutError:
            return f"no answer within {self._settings.handshake_seconds:.0f} s", None
        except (InvalidHandshake, InvalidURI, OSError) as error:
            return f"{type(error).__name__}: {error}", None
        return self._close_reason or "the connection ended", None

    async def _receive(self, socket: ClientConnection) -> None:
        async with asyncio.timeout(self._settings.handshake_seconds):
            await self._say("authenticating", "")
            while self._state == "authenticating":
                for status in self._intake.frame(await socket.recv(decode=False)):
                    await self._obey(socket, status)
        await self._subscribe(socket)
        intake = self._intake
        while True:
            frame = await socket.recv(decode=False)
            self._last_frame_at = self._clock()
            for status in intake.frame(frame):
                await self._obey(socket, status)
            if intake.is_due:
                await self._hand_over()

    async def _subscribe(self, socket: ClientConnection) -> None:
        topics = list(self._settings.topics)
        self._unacknowledged, self._topics_sent = set(topics), True
        self._subscribed_at = self._clock()
        self._last_frame_at = self._clock()
        await self._send_topics(socket, "subscribe", topics)

    async def _send_topics(self, socket: ClientConnection, action: str, topics: list[str]) -> None:
        size = self._settings.batch_topics
        for begin in range(0, len(topics), size):
            params = ",".join(topics[begin : begin + size])
            await socket.send(msgspec.json.encode({"action": action, "params": params}).decode())

    async def _obey(self, socket: ClientConnection, status: StatusEvent) -> None:
        key = self._settings.key
        message = status.message.replace(key, "***") if len(key) >= _KEY_CHARACTERS_MIN else status.message
        match status.status:
            case "connected":
                await socket.send(msgspec.json.encode({"action": "auth", "params": self._settings.key}).decode())
            case "auth_success":
                await self._say("subscribing", f"{len(self._settings.topics)} topics")
            case "auth_failed":
                raise _Lost(f"auth_failed: {message or 'no reason given'}", self._settings.refused_seconds)
            case "max_connections":
                raise _Lost(f"max_connections: {message or 'no reason given'}", self._settings.refused_seconds)
            case "success":
                await self._acknowledged(message)
            case "slow_consumer" | "force_disconnect":
                self._close_reason = f"{status.status}: {message}"
            case "error":
                await self._say(self._state, f"the server says: {message}")
            case "end_of_session":
                self._intake.flush()
                self._played_out = True
                last = self._intake.watermark_ns
                await self._hand_over(last - last % WINDOW_NS + WINDOW_NS + self._settings.grace_ns)
            case _:
                await self._say(self._state, f"{status.status}: {message}")

    async def _acknowledged(self, message: str) -> None:
        for topic in message.partition("subscribed to:")[2].replace(" ", "").split(","):
            self._unacknowledged.discard(topic)
        if not self._unacknowledged and self._subscribed_at is not None:
            await self._all_subscribed()

    async def _all_subscribed(self) -> None:
        self._subscribed_at = None
        self._intake.subscribed()
        if self._late_topics:
            await self._emit(Gap(0, self._intake.watermark_ns, "subscribed later", self._late_topics))
            self._late_topics = ()
        await self._say("streaming", f"{len(self._settings.topics)} topics")

    async def _tick(self) -> None:
        """What happens by the clock: idle minutes close, silence ends a connection, the state is told once a second."""
        rows, at = 0, self._clock()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._intake.flush()
            now = self._clock()
            if self._intake.counts.rows != rows:
                rows, at = self._intake.counts.rows, now
            watermark = self._intake.watermark_ns
            if watermark:
                await self._hand_over(watermark + round((now - at) * 1e9))
            await self._give_up_on_silence(now)
            if now - self._last_told_at >= 1.0:
                await self._say(self._state, self._detail, again=True)

    async def _give_up_on_silence(self, now: float) -> None:
        socket, settings = self._socket, self._settings
        if self._subscribed_at is not None and now - self._subscribed_at > settings.acknowledge_seconds:
            missing = tuple(sorted(self._unacknowledged))
            await self._emit(Gap(0, None, "not acknowledged", missing))
            self._unacknowledged = set()
            await self._all_subscribed()
            self._detail = f"{len(missing)} topics were not acknowledged, such as {missing[0]}"
        silent = now - self._last_frame_at
        streaming = self._state == "streaming" and not self._played_out
        if socket is not None and streaming and settings.idle_seconds and silent > settings.idle_seconds:
            self._close_reason = f"silent for {silent:.0f} s"
            await socket.close()

    async def _hand_over(self, watermark_ns: int | None = None) -> None:
        async with self._emitting:
            for gap in self._intake.ended_gaps():
                await self._emit(gap)
            for minute in self._intake.due(watermark_ns):
                await self._emit(minute)

    async def _lose(self, reason: str) -> None:
        began = self._intake.lost(reason)
        for gap in [*self._intake.ended_gaps(), *([began] if began is not None else [])]:
            await self._emit(gap)

    async def _say(self, state: str, detail: str, *, again: bool = False) -> None:
        self._state, self._detail = state, detail
        if (state, detail) == self._told and not again:
            return
        self._told, self._last_told_at = (state, detail), self._clock()
        counts = replace(self._intake.counts, rejected=dict(self._intake.counts.rejected))
        await self._emit(FeedState(state, detail, max(0, self._intake.watermark_ns - self._settings.grace_ns), counts))

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
