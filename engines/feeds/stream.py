"""
The websocket client of one asset class: connect, authenticate, subscribe, receive, and come back.

Status messages are obeyed: nothing is subscribed before ``auth_success``; ``auth_failed`` and ``max_connections`` are
answered with a long pause that grows, not with a storm of attempts. A connection that is silent too long although it was
busy, or does not answer pings, is given up. Every time without a subscribed connection is a gap. This module must never
touch the ledger, and never let the key into a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from engines.feeds.feed_messages import FEED_BEGAN, SUBSCRIBED_LATER, FeedMessage, FeedState, Gap
from engines.feeds.retrying import RetryPolicy, retry_after_seconds
from engines.feeds.stream_events import StatusEvent
from engines.feeds.stream_intake import StreamIntake
from engines.feeds.stream_settings import StreamSettings, Topics, topics_of_later
from ledger.columns import WINDOW_NS

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
_QUEUE_FRAMES: Final = (512, 128)
_TICK_SECONDS: Final = 0.25
_LATE_TICKS: Final = 4
_SILENCE_EVENTS: Final = 20
"""Events that a connection would have brought, had it gone on as before: so many make a silence one."""
_REFUSED_MAX_SECONDS: Final = 600.0
_RETRY_AFTER_MAX_SECONDS: Final = 120.0
_LIVE_DELAY_NS: Final = 3_600_000_000_000
"""Events that are later than this behind the clock are not live, and the clock says nothing about them."""
_CLOCK_AHEAD_NS: Final = 5_000_000_000
_KEY_CHARACTERS_MIN: Final = 8
"""Shorter ones are no keys, and would be found in any text."""
END_OF_SESSION: Final = "end_of_session"
"""Status that the replay server sends when everything was played; the feed itself never does."""


class _Lost(Exception):
    """The connection is over; the text says why. ``refused``: by the service, which an attempt soon would not change."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class _End:
    """Why a connection ended, whether the service refused it, and how long it asked to stay away."""

    reason: str
    refused: bool = False
    retry_after_seconds: float = 0.0


def _end_of(refusal: InvalidStatus) -> _End:
    """What a handshake that HTTP refused means: 401 and 403 are the key's, all else may pass."""
    response = refusal.response
    reason = f"the server answers HTTP {response.status_code}"
    if response.status_code in (401, 403):
        return _End(f"auth_failed: {reason}", refused=True)
    asked = retry_after_seconds(response.headers.get("Retry-After"))
    return _End(reason if asked is None else f"{reason}; it asks for {asked:.0f} s", retry_after_seconds=asked or 0.0)


Emit = Callable[[FeedMessage], Awaitable[None]]


class StreamClient:
    """
    Keeps one connection up until it is stopped.

    Args:
        settings: what to connect to.
        emit: takes the messages in order; awaited.
        clock: monotonic seconds.
        wall_ns: ns UTC.
    """

    def __init__(
        self,
        settings: StreamSettings,
        emit: Emit,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._emit = emit
        self._clock = clock
        self._wall_ns = wall_ns
        self._intake = StreamIntake(
            Path(settings.folder), of_options=settings.of_options, grace_ns=settings.grace_ns, day=settings.day,
            free_bytes_min=settings.free_bytes_min, wanted_trades=settings.wanted_trades,
            wanted_quotes=settings.wanted_quotes, resume_ns=settings.resume_ns,
        )  # fmt: skip
        self._policy = RetryPolicy(base_seconds=0.5, max_seconds=settings.backoff_max_seconds, seed=settings.seed)
        self._refusals = 0
        self._state, self._detail = "connecting", ""
        self._told: tuple[str, str] | None = None
        self._socket: ClientConnection | None = None
        self._unacknowledged: set[str] = set()
        self._late: list[Gap] = []
        """Of topics that were asked for on a connection that was up; they end when all are acknowledged."""
        self._missing: Gap | None = None
        self._asked: set[str] = set()
        self._subscribed_at: float | None = None
        self._topics_sent = False
        self._delay_ns: int | None = None
        self._events_per_second = 0.0
        self._last_frame_at = clock()
        self._last_told_at = clock()
        self._close_reason = ""
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._emitting = asyncio.Lock()

    @property
    def intake(self) -> StreamIntake:
        """What was received so far."""
        return self._intake

    async def run(self) -> None:
        """Connect and receive until :meth:`stop`; then hand over what is left, unfinished minutes marked as such."""
        await self._lose(FEED_BEGAN)
        ticker = asyncio.create_task(self._tick())
        attempt = 0
        try:
            while not self._stopping.is_set():
                events_before = self._intake.counts.rows
                end = await self._connected()
                await self._lose("stopped" if self._stopping.is_set() else end.reason)
                if self._stopping.is_set():
                    break
                if self._intake.counts.rows > events_before:
                    attempt = self._refusals = 0
                pause = self._pause(end, attempt)
                attempt += 1
                state = "refused" if end.refused else "waiting"
                await self._say(state, f"{end.reason}; next attempt in {pause:.1f} s")
                await self._rest(pause)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            for left in self._intake.finish():
                await self._emit(left)
            await self._say("ended", "stopped")

    def _pause(self, end: _End, attempt: int) -> float:
        """How long to stay away, seconds."""
        if end.refused:
            self._refusals += 1
            wait = min(self._settings.refused_seconds * 2.0 ** (self._refusals - 1), _REFUSED_MAX_SECONDS)
            return max(wait, self._settings.refused_seconds)
        return max(self._policy.pause_seconds(attempt), min(end.retry_after_seconds, _RETRY_AFTER_MAX_SECONDS))

    async def stop(self) -> None:
        """End :meth:`run` soon."""
        self._stopping.set()
        self._hurry.set()
        if self._socket is not None:
            await self._socket.close()

    def hurry(self) -> None:
        """Try again now, if it waits between attempts: an operator asks for it."""
        self._refusals = 0
        self._hurry.set()

    async def set_topics(self, topics: Topics) -> None:
        """
        Subscribe to other tickers from now on: new ones are asked for, others given up.

        New topics have a gap before, and so has what a wildcard brought before and nobody kept.

        Raises:
            ValueError: as :class:`engines.feeds.stream_settings.StreamSettings`.
        """
        before, later = self._settings.topics, topics_of_later(self._settings.asked, topics)
        self._settings = self._settings.with_topics(topics)
        self._intake.want(topics.wanted_trades, topics.wanted_quotes)
        after = self._settings.topics
        new, gone = [each for each in after if each not in set(before)], [each for each in before if each not in after]
        if later:
            # Whether there is a connection or not: windows before are closed, or will be, without these.
            self._late.append(Gap(0, None, SUBSCRIBED_LATER, later))
            await self._emit(self._late[-1])
        if self._socket is None or not self._topics_sent:
            return
        await self._send_topics(self._socket, "unsubscribe", gone)
        if new:
            self._unacknowledged |= set(new)
            self._asked = set(new)
            self._subscribed_at = self._clock()
            await self._send_topics(self._socket, "subscribe", new)
        elif later and self._subscribed_at is None:
            # More of what comes anyway is kept: nobody answers to that.
            await self._all_subscribed()

    async def _connected(self) -> _End:
        """One connection from its beginning to its end."""
        await self._say("connecting", self._settings.url)
        self._subscribed_at, self._close_reason, self._topics_sent = None, "", False
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
            return _End(str(lost), lost.refused)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else None
            said = closed.rcvd.reason if closed.rcvd is not None else ""
            ending = (
                "the connection broke" if code is None else f"the server closed ({code}{' ' + said if said else ''})"
            )
            return _End(self._close_reason or ending)
        except TimeoutError:
            return _End(f"no answer within {self._settings.handshake_seconds:.0f} s")
        except InvalidStatus as refusal:
            return _end_of(refusal)
        except (InvalidHandshake, InvalidURI, OSError) as error:
            return _End(f"{type(error).__name__}: {error}")
        return _End(self._close_reason or "the connection ended")

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
        self._unacknowledged, self._asked, self._topics_sent = set(topics), set(topics), True
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
                raise _Lost(f"auth_failed: {message or 'no reason given'}", refused=True)
            case "max_connections":
                raise _Lost(f"max_connections: {message or 'no reason given'}", refused=True)
            case "success":
                await self._acknowledged(message)
            case "slow_consumer" | "force_disconnect":
                self._close_reason = f"{status.status}: {message}"
            case "error":
                await self._say(self._state, f"the server says: {message}")
            case "end_of_session":
                self._intake.flush()
                last = self._intake.watermark_ns
                await self._hand_over(last - last % WINDOW_NS + WINDOW_NS + self._settings.grace_ns, late=True)
                await self._say("played", message)
            case _:
                await self._say(self._state, f"{status.status}: {message}")

    async def _acknowledged(self, message: str) -> None:
        for topic in message.partition("subscribed to:")[2].replace(" ", "").split(","):
            self._unacknowledged.discard(topic)
        if not self._unacknowledged and self._subscribed_at is not None:
            if self._missing is not None and self._asked.issuperset(self._missing.topics or ()):
                self._late.append(self._missing)
                self._missing = None
            await self._all_subscribed()

    async def _all_subscribed(self, problem: str = "") -> None:
        self._subscribed_at = None
        at = self._clock()

        def since(event_ns: int) -> int:
            return round((self._clock() - at) * 1e9) if self._is_live(self._wall_ns() - event_ns) else 0

        late, self._late = self._late, []
        self._intake.subscribed(self._now_ns(), since, late)
        await self._say("streaming", problem or f"{len(self._settings.topics)} topics")

    def _now_ns(self) -> int | None:
        """Event time now by the clock, ns UTC; None where events are not live or none came, so that it says nothing."""
        return None if self._delay_ns is None else self._wall_ns() - self._delay_ns

    @staticmethod
    def _is_live(delay_ns: int) -> bool:
        """Whether events that are so far behind the clock are live, so that time passes for them as by the clock."""
        return -_CLOCK_AHEAD_NS <= delay_ns <= _LIVE_DELAY_NS

    def _measure(self, rows: int, seconds: float) -> None:
        """How far events are behind the clock, and how many come; called when some came."""
        delay = self._wall_ns() - self._intake.watermark_ns
        self._delay_ns = delay if self._is_live(delay) else None
        share = min(1.0, seconds / max(self._settings.idle_seconds, seconds))
        self._events_per_second += share * (rows / seconds - self._events_per_second)

    async def _tick(self) -> None:
        """What happens by the clock: idle minutes close, silence ends a connection, the state is told once a second."""
        rows, at, ticks = 0, self._clock(), 0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            ticks += 1
            self._intake.flush()
            now = self._clock()
            came = self._intake.counts.rows - rows
            if came:
                self._measure(came, max(now - at, 1e-3))
                rows, at = self._intake.counts.rows, now
            watermark = self._intake.watermark_ns
            if watermark:
                await self._hand_over(watermark + round((now - at) * 1e9), late=ticks % _LATE_TICKS == 0)
            await self._give_up_on_silence(now)
            if now - self._last_told_at >= 1.0:
                await self._say(self._state, self._detail, again=True)

    async def _give_up_on_silence(self, now: float) -> None:
        socket, settings = self._socket, self._settings
        if self._subscribed_at is not None and now - self._subscribed_at > settings.acknowledge_seconds:
            missing = tuple(sorted(self._unacknowledged))
            since_ns = max(0, self._intake.watermark_ns - settings.grace_ns)
            self._missing = Gap(since_ns, None, "not acknowledged", missing)
            await self._emit(self._missing)
            self._unacknowledged = set()
            await self._all_subscribed(f"{len(missing)} topics were not acknowledged, such as {missing[0]}")
        silent = now - self._last_frame_at
        if socket is None or self._state != "streaming" or not settings.idle_seconds or silent <= settings.idle_seconds:
            return
        # A few quiet contracts may be silent for an hour; only what was busy and falls silent is broken.
        if self._events_per_second * settings.idle_seconds >= _SILENCE_EVENTS:
            self._events_per_second = 0.0
            self._close_reason = f"silent for {silent:.0f} s"
            await socket.close()

    async def _hand_over(self, watermark_ns: int | None = None, *, late: bool = False) -> None:
        async with self._emitting:
            for message in self._intake.due(watermark_ns, late=late):
                await self._emit(message)

    async def _lose(self, reason: str) -> None:
        async with self._emitting:
            began = self._intake.lost(reason)
            for message in self._intake.due():
                await self._emit(message)
            if began is not None:
                await self._emit(began)

    async def _say(self, state: str, detail: str, *, again: bool = False) -> None:
        self._state, self._detail = state, detail
        if (state, detail) == self._told and not again:
            return
        self._told, self._last_told_at = (state, detail), self._clock()
        await self._emit(FeedState(state, detail, self._intake.watermark_ns, self._intake.counts.copy()))

    async def _rest(self, seconds: float) -> None:
        self._hurry.clear()
        if self._stopping.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
