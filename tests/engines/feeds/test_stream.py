"""The websocket client against a server that follows a script: statuses, silence, cuts, topics, and the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from engines.feeds.closed_minutes import ClosedMinute, FeedMessage, FeedState, Gap
from engines.feeds.stream import StreamClient, StreamSettings
from engines.feeds.stream_process import Feed, Outbox
from tests.engines.feeds.test_minute_builder import CALL, intake, trade

SETTINGS = StreamSettings(
    url="", key="the-secret-key", of_options=False, trades=("*",), refused_seconds=0.05, backoff_max_seconds=0.05,
    idle_seconds=0.0,
)  # fmt: skip
Script = Callable[["Server", ServerConnection], Awaitable[None]]


class Server:
    """One script per connection; remembers what clients said."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.heard: list[dict[str, Any]] = []
        self.connections = 0
        self.url = ""

    async def serve(self, socket: ServerConnection) -> None:
        self.connections += 1
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        with contextlib.suppress(ConnectionClosed):
            await script(self, socket)

    async def hear(self, socket: ServerConnection) -> dict[str, Any]:
        """The next message of the client."""
        self.heard.append(json.loads(await socket.recv()))
        return self.heard[-1]


async def status(socket: ServerConnection, *pairs: tuple[str, str]) -> None:
    """Send statuses in one frame."""
    await socket.send(json.dumps([{"ev": "status", "status": name, "message": text} for name, text in pairs]))


async def welcome(server: Server, socket: ServerConnection) -> None:
    """Authenticate and acknowledge one subscribe message."""
    await status(socket, ("connected", "Connected Successfully"))
    assert (await server.hear(socket))["params"] == SETTINGS.key
    await status(socket, ("auth_success", "authenticated"))
    topics = (await server.hear(socket))["params"].split(",")
    await status(socket, *[("success", f"subscribed to: {topic}") for topic in topics])


def sending(*events: dict[str, Any], close: bool = False) -> Script:
    """A connection that is welcomed, gets the events, and stays or is closed."""

    async def script(server: Server, socket: ServerConnection) -> None:
        await welcome(server, socket)
        if events:
            await socket.send(json.dumps(events))
        if close:
            await socket.close(1012, "restart")
        await socket.wait_closed()

    return script


async def run(
    server: Server, enough: Callable[[list[FeedMessage]], bool], settings: StreamSettings = SETTINGS
) -> list[FeedMessage]:
    """Messages of a client until there are enough, and those of its end."""
    messages: list[FeedMessage] = []
    reached = asyncio.Event()

    async def emit(message: FeedMessage) -> None:
        messages.append(message)
        if enough(messages):
            reached.set()

    async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
        server.url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
        client = StreamClient(replace(settings, url=server.url), emit)
        task = asyncio.create_task(client.run())
        async with asyncio.timeout(10):
            await reached.wait()
            await client.stop()
            await task
    return messages


async def until(true: Callable[[], bool]) -> None:
    """Look again and again; ten seconds at most."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  (what is waited for is state, not an event)
            await asyncio.sleep(0.02)


def states(messages: list[FeedMessage]) -> list[str]:
    """States in order, repetitions left out."""
    names = [message.state for message in messages if isinstance(message, FeedState)]
    return [name for before, name in zip([None, *names], names, strict=False) if name != before]


def rows_reached(count: int) -> Callable[[list[FeedMessage]], bool]:
    """Enough: so many rows were closed."""
    return lambda messages: sum(m.rows for m in messages if isinstance(m, ClosedMinute)) >= count


def test_a_session_goes_from_connecting_to_streaming_to_ended() -> None:
    """Auth before subscribe, in that order, and the minute comes."""
    server = Server(sending(trade(1), trade(65)))
    messages = asyncio.run(run(server, rows_reached(1)))

    assert states(messages) == ["connecting", "authenticating", "subscribing", "streaming", "ended"]
    assert [each["action"] for each in server.heard] == ["auth", "subscribe"]
    closed = [m for m in messages if isinstance(m, ClosedMinute)]
    assert [(m.rows, m.finished) for m in closed] == [(1, True), (1, False)]
    assert "the-secret-key" not in str(messages)
    assert "the-secret-key" not in repr(SETTINGS)


@pytest.mark.parametrize("word", ["auth_failed", "max_connections"])
def test_a_refusal_is_obeyed_and_left_by_itself(word: str) -> None:
    """Nothing is subscribed, the reason is told without the key, and the next attempt streams."""

    async def refuse(server: Server, socket: ServerConnection) -> None:
        await status(socket, ("connected", ""))
        await server.hear(socket)
        await status(socket, (word, "no: the-secret-key"))
        await socket.wait_closed()

    server = Server(refuse, sending(trade(1), trade(65)))
    messages = asyncio.run(run(server, rows_reached(1)))

    refused = next(m for m in messages if isinstance(m, FeedState) and m.state == "refused")
    assert refused.detail.startswith(f"{word}: no: ***; next attempt in")
    assert [each["action"] for each in server.heard] == ["auth", "auth", "subscribe"]


def test_a_disconnection_is_a_gap_and_the_client_comes_back() -> None:
    """The gap lasts from the last event to the first one after it, and its minutes are partial."""
    server = Server(sending(trade(1), trade(70), close=True), sending(trade(100), trade(130), trade(190)))
    messages = asyncio.run(run(server, rows_reached(4)))

    gaps = [m for m in messages if isinstance(m, Gap) and m.reason.startswith("the server closed (1012 restart)")]
    assert [(gap.start_ns, gap.end_ns) for gap in gaps] == [
        (trade(70)["t"] * 10**6, None), (trade(70)["t"] * 10**6, trade(100)["t"] * 10**6),
    ]  # fmt: skip
    closed = {m.start_ns // 60_000_000_000: m.partial for m in messages if isinstance(m, ClosedMinute) and m.finished}
    assert list(closed.values()) == [True, True, False]
    last = [m for m in messages if isinstance(m, FeedState)][-1]
    assert (last.counts.connections, last.counts.rows_dropped) == (2, 0)


def test_a_silent_connection_is_given_up() -> None:
    """Pongs are not enough."""
    server = Server(sending(trade(1)), sending(trade(70), trade(130)))
    messages = asyncio.run(run(server, rows_reached(2), replace(SETTINGS, idle_seconds=0.3)))

    assert any("silent for" in m.detail for m in messages if isinstance(m, FeedState))
    assert server.connections >= 2


def test_a_server_that_says_nothing_is_left() -> None:
    """The handshake has a deadline."""

    async def nothing(_: Server, socket: ServerConnection) -> None:
        await socket.wait_closed()

    server = Server(nothing, sending(trade(1), trade(65)))
    messages = asyncio.run(run(server, rows_reached(1), replace(SETTINGS, handshake_seconds=0.2)))

    assert any("no answer within" in m.detail for m in messages if isinstance(m, FeedState))


def test_nobody_there_and_no_name_are_told_and_tried_again() -> None:
    """A state in words, attempts without end, pauses between them."""

    async def go(url: str) -> list[FeedMessage]:
        messages: list[FeedMessage] = []

        async def emit(message: FeedMessage) -> None:
            messages.append(message)

        client = StreamClient(replace(SETTINGS, url=url), emit)
        task = asyncio.create_task(client.run())
        await until(lambda: sum(isinstance(m, FeedState) and m.state == "waiting" for m in messages) >= 3)
        await client.stop()
        await task
        return messages

    for url, said in (("ws://127.0.0.1:1/stocks", "onnect"), ("ws://no.such.host.invalid/stocks", "gaierror")):
        waiting = [m.detail for m in asyncio.run(go(url)) if isinstance(m, FeedState) and m.state == "waiting"]
        assert all(said in detail and "next attempt in" in detail for detail in waiting)


def test_topics_are_subscribed_in_batches() -> None:
    """No message is longer than the batch; the order is that of the settings."""

    async def script(server: Server, socket: ServerConnection) -> None:
        await status(socket, ("connected", ""))
        await server.hear(socket)
        await status(socket, ("auth_success", ""))
        while True:
            topics = (await server.hear(socket))["params"].split(",")
            await status(socket, *[("success", f"subscribed to: {topic}") for topic in topics])

    server = Server(script)
    settings = replace(SETTINGS, trades=tuple(f"A{n}" for n in range(5)), quotes=("A0",), batch_topics=4)
    asyncio.run(run(server, lambda messages: "streaming" in states(messages), settings))

    assert [each["params"] for each in server.heard[1:]] == ["T.A0,T.A1,T.A2,T.A3", "T.A4,Q.A0"]


def test_topics_without_an_answer_are_a_gap_of_their_own() -> None:
    """The others stream; the missing ones are named."""

    async def script(server: Server, socket: ServerConnection) -> None:
        await status(socket, ("connected", ""))
        await server.hear(socket)
        await status(socket, ("auth_success", ""))
        await server.hear(socket)
        await status(socket, ("success", "subscribed to: T.AIG"), ("error", "not entitled: T.IBM"))
        await socket.wait_closed()

    settings = replace(SETTINGS, trades=("AIG", "IBM"), acknowledge_seconds=0.1)
    messages = asyncio.run(run(Server(script), lambda messages: "streaming" in states(messages), settings))

    assert Gap(0, None, "not acknowledged", ("T.IBM",)) in messages


def test_new_topics_are_asked_for_and_have_a_gap_before_them() -> None:
    """Old ones that are not wanted any more are given up."""

    async def go() -> tuple[list[FeedMessage], Server]:
        server = Server(changing)
        messages: list[FeedMessage] = []

        async def emit(message: FeedMessage) -> None:
            messages.append(message)

        async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            client = StreamClient(replace(SETTINGS, url=url, trades=("AIG", "IBM")), emit)
            task = asyncio.create_task(client.run())
            await until(lambda: client.intake.counts.rows >= 1)
            await client.set_topics(("AIG",), ("BAC",))
            await until(lambda: any(isinstance(m, Gap) and m.topics and m.end_ns is not None for m in messages))
            await client.stop()
            await task
        return messages, server

    async def changing(server: Server, socket: ServerConnection) -> None:
        await welcome(server, socket)
        await socket.send(json.dumps([trade(1)]))
        await server.hear(socket)
        await server.hear(socket)
        await status(socket, ("success", "unsubscribed to: T.IBM"), ("success", "subscribed to: Q.BAC"))
        await socket.wait_closed()

    messages, server = asyncio.run(go())

    assert [(each["action"], each["params"]) for each in server.heard[2:]] == [
        ("unsubscribe", "T.IBM"), ("subscribe", "Q.BAC"),
    ]  # fmt: skip
    gaps = [m for m in messages if isinstance(m, Gap) and m.topics == ("Q.BAC",)]
    assert [gap.end_ns for gap in gaps] == [None, trade(1)["t"] * 10**6]


@pytest.mark.parametrize(
    ("of_options", "trades", "quotes", "said"),
    [
        (False, (), (), "nothing to subscribe"),
        (True, (), ("*",), "no wildcard"),
        (True, ("*",), tuple(f"O:A{n}" for n in range(1001)), "1000"),
    ],
)
def test_settings_that_the_service_would_refuse_are_refused(
    of_options: bool, trades: tuple[str, ...], quotes: tuple[str, ...], said: str
) -> None:
    """Before a connection is made."""
    with pytest.raises(ValueError, match=said):
        StreamSettings("ws://x", "k", of_options, trades, quotes)


def test_a_reader_that_is_stuck_costs_a_counted_minute_and_a_gap() -> None:
    """Room is waited for first; then the minute is dropped, told, and counted; messages after it pass."""
    import threading

    stuck = threading.Event()
    passed: list[FeedMessage] = []

    def send(message: FeedMessage) -> None:
        stuck.wait(5)
        passed.append(message)

    closed = next(iter(intake(trade(1), trade(2), trade(65)).due()))

    async def go() -> Outbox:
        outbox = Outbox(send, bytes_max=1, wait_seconds=0.05)
        await outbox.put(closed)
        await outbox.put(closed)
        stuck.set()
        return outbox

    outbox = asyncio.run(go())
    outbox.close()

    assert outbox.rows_dropped == 2
    assert passed[0] is closed
    assert isinstance(passed[1], Gap)
    assert (passed[1].start_ns, passed[1].end_ns) == (closed.start_ns, closed.end_ns - 1)


@pytest.mark.parametrize("ending", ["asked", "terminated"])
def test_the_feed_is_a_process_that_hands_minutes_through_a_pipe(ending: str) -> None:
    """Asked to stop, or terminated, it hands over what it has and ends; the pipe says so."""

    async def go() -> tuple[list[FeedMessage], int]:
        server = Server(sending(trade(1), trade(65)))
        messages: list[FeedMessage] = []
        async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            feed = Feed(replace(SETTINGS, url=url))
            try:
                asked = False
                async with asyncio.timeout(20):
                    while True:
                        message = await asyncio.to_thread(feed.receive, 0.1)
                        if message is not None:
                            messages.append(message)
                        if rows_reached(1)(messages) and not asked:
                            asked = True
                            feed.ask_to_stop() if ending == "asked" else os.kill(feed.pid, signal.SIGTERM)
            except EOFError:
                return messages, feed.pid
            finally:
                feed.close()

    messages, pid = asyncio.run(go())

    assert [(m.rows, m.finished) for m in messages if isinstance(m, ClosedMinute)] == [(1, True), (1, False)]
    assert states(messages)[-1] == "ended"
    assert pid > 0


def test_the_process_dies_with_its_parent_side() -> None:
    """No orphan: closing both pipes ends it, connected or not."""
    feed = Feed(replace(SETTINGS, url="ws://127.0.0.1:1/options", of_options=True, trades=(CALL,)))
    with pytest.raises(ValueError, match="nothing to subscribe"):
        feed.set_topics((), ())
    feed.close(timeout_seconds=10.0)

    assert not feed.is_alive
