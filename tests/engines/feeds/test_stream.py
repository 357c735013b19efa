"""The websocket client against a server that follows a script: statuses, silence, cuts, topics, and the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from engines.feeds.feed_messages import FEED_BEGAN, FeedCounts, FeedMessage, FeedState, Gap, SpooledRows
from engines.feeds.minute_spool import GRACE_NS
from engines.feeds.stream import StreamClient
from engines.feeds.stream_process import STATES_WAITING_MAX, Feed, Outbox, lock_folder
from engines.feeds.stream_settings import StreamSettings, Topics
from ledger.columns import Dataset
from tests.engines.feeds.test_minute_spool import CALL, at, trade

SETTINGS = StreamSettings(
    url="", key="the-secret-key", of_options=False, trades=("*",), refused_seconds=0.05, backoff_max_seconds=0.05,
    idle_seconds=0.0, free_bytes_min=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clients spool into a folder of the test, which is where they run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    server: Server, enough: Callable[[list[FeedMessage]], bool], settings: StreamSettings = SETTINGS, **more: Any
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
        client = StreamClient(replace(settings, url=server.url), emit, **more)
        task = asyncio.create_task(client.run())
        async with asyncio.timeout(120):
            await reached.wait()
            await client.stop()
            await task
    return messages


async def until(true: Callable[[], bool]) -> None:
    """Look again and again; ten seconds at most."""
    async with asyncio.timeout(120):
        while not true():  # noqa: ASYNC110  (what is waited for is state, not an event)
            await asyncio.sleep(0.02)


def states(messages: list[FeedMessage]) -> list[str]:
    """States in order, repetitions left out."""
    names = [message.state for message in messages if isinstance(message, FeedState)]
    return [name for before, name in zip([None, *names], names, strict=False) if name != before]


def rows_reached(count: int) -> Callable[[list[FeedMessage]], bool]:
    """Enough: so many rows were closed."""
    return lambda messages: sum(m.rows for m in messages if isinstance(m, SpooledRows)) >= count


def test_a_session_goes_from_connecting_to_streaming_to_ended() -> None:
    """Auth before subscribe, in that order, and the minute comes."""
    server = Server(sending(trade(1), trade(65)))
    messages = asyncio.run(run(server, rows_reached(1)))

    assert states(messages) == ["connecting", "authenticating", "subscribing", "streaming", "ended"]
    assert [each["action"] for each in server.heard] == ["auth", "subscribe"]
    closed = [m for m in messages if isinstance(m, SpooledRows)]
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
    """The gap is told when it begins, and when it is known how it ended."""
    server = Server(sending(trade(1), trade(70), close=True), sending(trade(100), trade(130), trade(190)))
    messages = asyncio.run(run(server, rows_reached(4)))

    gaps = [m for m in messages if isinstance(m, Gap) and m.reason.startswith("the server closed (1012 restart)")]
    assert [(gap.start_ns, gap.end_ns) for gap in gaps] == [
        (at(70) - GRACE_NS, None), (at(70) - GRACE_NS, at(100) + GRACE_NS),
    ]  # fmt: skip
    last = [m for m in messages if isinstance(m, FeedState)][-1]
    assert (last.counts.connections, last.counts.trades.dropped) == (2, 0)


def test_a_busy_connection_that_falls_silent_is_given_up() -> None:
    """Pongs are not enough. The next one is quiet from the beginning, and stays."""
    busy = sending(*[trade(n / 100) for n in range(100)])
    server = Server(busy, sending(trade(70), trade(130)))
    settings = replace(SETTINGS, idle_seconds=0.5)

    def quiet_for_long(messages: list[FeedMessage]) -> bool:
        told = [m for m in messages if isinstance(m, FeedState) and m.state == "streaming"]
        return server.connections == 2 and len(told) >= 4

    messages = asyncio.run(run(server, quiet_for_long, settings))

    assert any("silent for" in m.detail for m in messages if isinstance(m, FeedState))
    assert server.connections == 2


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

    settings = replace(SETTINGS, trades=("AIG", "IBM"), acknowledge_seconds=0.5)
    messages = asyncio.run(run(Server(script), lambda messages: "streaming" in states(messages), settings))

    assert Gap(0, None, "not acknowledged", ("T.IBM",)) in messages
    last = [m for m in messages if isinstance(m, FeedState) and m.state == "streaming"][-1]
    assert last.detail == "1 topics were not acknowledged, such as T.IBM"


def test_a_topic_that_is_acknowledged_after_all_has_a_gap_that_ends() -> None:
    """At the next connection; until then its windows are partial."""

    def answering(topics: str) -> Script:
        async def script(server: Server, socket: ServerConnection) -> None:
            await status(socket, ("connected", ""))
            await server.hear(socket)
            await status(socket, ("auth_success", ""))
            await server.hear(socket)
            await socket.send(json.dumps([trade(100)]))
            await status(socket, ("success", f"subscribed to: {topics}"))
            if "IBM" in topics:
                await socket.send(json.dumps([trade(130)]))
                await socket.wait_closed()
            await asyncio.sleep(1.5)
            await socket.close(1012)

        return script

    settings = replace(SETTINGS, trades=("AIG", "IBM"), acknowledge_seconds=0.5)
    messages = asyncio.run(
        run(Server(answering("T.AIG"), answering("T.AIG,T.IBM")), lambda found: len(of_ibm(found)) == 2, settings)
    )

    began, ended = of_ibm(messages)
    assert (began.end_ns, ended.start_ns, ended.end_ns) == (None, began.start_ns, at(130) + GRACE_NS)


def of_ibm(messages: list[FeedMessage]) -> list[Gap]:
    """Gaps of one topic."""
    return [m for m in messages if isinstance(m, Gap) and m.topics == ("T.IBM",)]


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
            await client.set_topics(Topics(("AIG",), ("BAC",)))
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
        await socket.send(json.dumps([trade(200)]))
        await socket.wait_closed()

    messages, server = asyncio.run(go())

    assert [(each["action"], each["params"]) for each in server.heard[2:]] == [
        ("unsubscribe", "T.IBM"), ("subscribe", "Q.BAC"),
    ]  # fmt: skip
    gaps = [m for m in messages if isinstance(m, Gap) and m.topics == ("Q.BAC",)]
    # Nobody knows how much time went by between the last event and the answer: the next event says where it ends.
    assert [gap.end_ns for gap in gaps] == [None, at(200) + GRACE_NS]


def test_more_of_a_wildcard_has_a_gap_before_it_and_is_not_asked_for_again() -> None:
    """Nobody answers, because nothing is subscribed: the next event says where the gap ends."""

    async def go() -> tuple[list[FeedMessage], Server]:
        server = Server(going_on)
        messages: list[FeedMessage] = []

        async def emit(message: FeedMessage) -> None:
            messages.append(message)

        async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            client = StreamClient(replace(SETTINGS, url=url, wanted_trades=("A*",)), emit)
            task = asyncio.create_task(client.run())
            await until(lambda: client.intake.counts.trades.unwanted >= 1)
            await client.set_topics(Topics(("*",), wanted_trades=("A*", "I*")))
            go_on.set()
            await until(lambda: any(isinstance(m, Gap) and m.topics and m.end_ns is not None for m in messages))
            await client.stop()
            await task
        return messages, server

    async def going_on(server: Server, socket: ServerConnection) -> None:
        await welcome(server, socket)
        await socket.send(json.dumps([trade(1), trade(1, sym="IBM")]))
        await go_on.wait()
        await socket.send(json.dumps([trade(70, sym="IBM"), trade(200, sym="IBM")]))
        await socket.wait_closed()

    go_on = asyncio.Event()
    messages, server = asyncio.run(go())

    assert [each["action"] for each in server.heard] == ["auth", "subscribe"]
    gaps = [m for m in messages if isinstance(m, Gap) and m.topics]
    assert [(gap.topics, gap.start_ns, gap.end_ns) for gap in gaps] == [
        (("T.I*",), 0, None), (("T.I*",), 0, at(70) + GRACE_NS),
    ]  # fmt: skip


def test_topics_that_come_while_there_is_no_connection_have_a_gap_before_them() -> None:
    """Minutes that closed before the connection was lost were closed without them."""

    async def go() -> list[FeedMessage]:
        server = Server(kicked, sending(trade(100)))
        messages: list[FeedMessage] = []

        async def emit(message: FeedMessage) -> None:
            messages.append(message)

        async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            client = StreamClient(replace(SETTINGS, url=url, trades=("AIG",), refused_seconds=3600.0), emit)
            task = asyncio.create_task(client.run())
            await until(lambda: "refused" in states(messages))
            await client.set_topics(Topics(("AIG", "IBM")))
            client.hurry()
            await until(lambda: len(of_ibm(messages)) == 2)
            await client.stop()
            await task
        return messages

    async def kicked(server: Server, socket: ServerConnection) -> None:
        await welcome(server, socket)
        await socket.send(json.dumps([trade(1), trade(70)]))
        await status(socket, ("max_connections", "another one came"))
        await socket.wait_closed()

    began, ended = of_ibm(asyncio.run(go()))

    assert (began.start_ns, began.end_ns) == (0, None)
    assert ended.end_ns == at(100) + GRACE_NS


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


def test_a_reader_that_is_stuck_costs_no_message_but_repeated_states() -> None:
    """Rows lie in files; where they lie is told in the end, and memory holds a few states."""
    import threading

    stuck = threading.Event()
    passed: list[FeedMessage] = []

    def send(message: FeedMessage) -> None:
        stuck.wait(60)
        passed.append(message)

    rows = [SpooledRows(Dataset.STOCK_TRADES, 0, str(n), 1, ("AIG",)) for n in range(500)]
    state = FeedState("streaming", "", 0, FeedCounts())

    async def go() -> Outbox:
        outbox = Outbox(send)
        for each in rows:
            await outbox.put(each)
            await outbox.put(state)
        stuck.set()
        return outbox

    asyncio.run(go()).close()

    assert [m for m in passed if isinstance(m, SpooledRows)] == rows
    assert len(passed) - len(rows) <= STATES_WAITING_MAX


@pytest.mark.parametrize("ending", ["asked", "terminated"])
def test_the_feed_is_a_process_that_says_through_a_pipe_where_minutes_lie(ending: str, tmp_path: Path) -> None:
    """Asked to stop, or terminated, it hands over what it has and ends; the pipe says so, and its folder is unlocked."""
    folder = tmp_path / "feed"

    async def go() -> tuple[list[FeedMessage], int]:
        server = Server(sending(trade(1), trade(65)))
        messages: list[FeedMessage] = []
        async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            feed = Feed(replace(SETTINGS, url=url, folder=str(folder)))
            try:
                asked = False
                async with asyncio.timeout(20):
                    while True:
                        message = await asyncio.to_thread(feed.receive, 0.1)
                        if message is not None:
                            messages.append(message)
                        if rows_reached(1)(messages) and not asked:
                            asked = True
                            assert lock_folder(folder) is None
                            feed.ask_to_stop() if ending == "asked" else os.kill(feed.pid, signal.SIGTERM)
            except EOFError:
                return messages, feed.pid
            finally:
                feed.close()

    messages, pid = asyncio.run(go())

    assert [(m.rows, m.finished) for m in messages if isinstance(m, SpooledRows)] == [(1, True), (1, False)]
    assert states(messages)[-1] == "ended"
    assert pid > 0
    assert sorted(Path(m.path).exists() for m in messages if isinstance(m, SpooledRows)) == [True, True]
    descriptor = lock_folder(folder)
    assert descriptor is not None
    os.close(descriptor)


def test_the_process_dies_with_its_parent_side(tmp_path: Path) -> None:
    """No orphan: closing both pipes ends it, connected or not."""
    settings = replace(SETTINGS, url="ws://127.0.0.1:1/options", of_options=True, trades=(CALL,), folder=str(tmp_path))
    feed = Feed(settings)
    with pytest.raises(ValueError, match="nothing to subscribe"):
        feed.set_topics(Topics())
    feed.close(timeout_seconds=10.0)

    assert not feed.is_alive


def test_an_operator_may_have_it_try_again_at_once() -> None:
    """A long pause after a refusal ends when somebody asks, and the pauses begin anew."""

    async def go() -> int:
        server = Server(refuse, refuse, sending(trade(1), trade(65)))
        messages: list[FeedMessage] = []

        async def emit(message: FeedMessage) -> None:
            messages.append(message)

        async with serve(server.serve, "127.0.0.1", 0, close_timeout=0.2) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            client = StreamClient(replace(SETTINGS, url=url, refused_seconds=3600.0), emit)
            task = asyncio.create_task(client.run())
            for attempt in (1, 2):
                await until(lambda attempt=attempt: states(messages).count("refused") == attempt)  # type: ignore[misc]
                client.hurry()
            await until(lambda: "streaming" in states(messages))
            await client.stop()
            await task
        return server.connections

    async def refuse(server: Server, socket: ServerConnection) -> None:
        await status(socket, ("connected", ""))
        await server.hear(socket)
        await status(socket, ("auth_failed", "no such key"))
        await socket.wait_closed()

    assert asyncio.run(go()) == 3


def test_refusals_are_answered_with_pauses_that_grow() -> None:
    """Sixty seconds, then twice as long, at most ten minutes: no hammering."""
    from engines.feeds.stream import _End

    async def emit(_: FeedMessage) -> None: ...

    client = StreamClient(replace(SETTINGS, url="ws://x", refused_seconds=60.0), emit)
    pauses = [client._pause(_End("auth_failed", refused=True), 0) for _ in range(6)]

    assert pauses == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]


@pytest.mark.parametrize(
    ("code", "wait", "state"),
    [(429, "3", "waiting"), (429, "a date", "waiting"), (500, "", "waiting"), (503, "soon", "waiting"),
     (401, "", "refused"), (403, "3", "refused")],
)  # fmt: skip
def test_a_handshake_that_is_refused_by_http_is_tried_again_when_the_server_asks(
    code: int, wait: str, state: str
) -> None:
    """Retry-After, seconds or a date, is obeyed; without it the usual pause holds; a key that is refused is not hurried."""
    if wait == "a date":
        wait = formatdate(time.time() + 100, usegmt=True)
    from websockets.datastructures import Headers
    from websockets.http11 import Request, Response

    async def go() -> list[FeedState]:
        states: list[FeedState] = []

        async def emit(message: FeedMessage) -> None:
            if isinstance(message, FeedState):
                states.append(message)

        def refuse(_: ServerConnection, __: Request) -> Response:
            return Response(code, "no", Headers({"Retry-After": wait} if wait else {}), b"")

        async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
            url = f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            client = StreamClient(replace(SETTINGS, url=url, refused_seconds=70.0), emit)
            task = asyncio.create_task(client.run())
            await until(lambda: any("next attempt in" in one.detail for one in states))
            await client.stop()
            await task
        return [one for one in states if "next attempt in" in one.detail]

    said = asyncio.run(go())[0]

    assert (said.state, f"HTTP {code}" in said.detail) == (state, True)
    assert said.detail.startswith("auth_failed") == (state == "refused")
    pause = float(said.detail.rpartition("next attempt in ")[2].split()[0])
    if state == "refused":
        assert pause == 70.0
    elif wait == "3":
        assert pause == 3.0
    elif "GMT" in wait:
        # What is left of a hundred seconds, however long the machine took to ask.
        assert 1.0 < pause <= 100.0
    else:
        assert pause < 1.0


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody vouches for."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@contextlib.contextmanager
def listening(context: ssl.SSLContext) -> Iterator[int]:
    """A port with TLS, on a thread."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = server.accept()
                with contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True):
                    pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def test_a_certificate_that_nobody_vouches_for_is_said_to_be_the_reason(tmp_path: Path) -> None:
    """The connection is not made, and not given up either."""
    context = self_signed(tmp_path)

    async def go() -> list[str]:
        details: list[str] = []

        async def emit(message: FeedMessage) -> None:
            if isinstance(message, FeedState) and message.state == "waiting":
                details.append(message.detail)

        async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, ssl=context) as listening:
            url = f"wss://localhost:{next(iter(listening.sockets)).getsockname()[1]}/stocks"
            client = StreamClient(replace(SETTINGS, url=url), emit)
            task = asyncio.create_task(client.run())
            await until(lambda: len(details) >= 2)
            await client.stop()
            await task
        return details

    assert all("SSLCertVerificationError" in detail and "next attempt in" in detail for detail in asyncio.run(go()))


def test_live_events_end_a_gap_when_the_topics_are_subscribed() -> None:
    """Events of now say how late they are; then the clock knows event time, and a quiet stock is not a broken one."""
    now = trade(30)["t"] * 10**6

    async def script(server: Server, socket: ServerConnection) -> None:
        await welcome(server, socket)
        await asyncio.sleep(0.3)
        await socket.send(json.dumps([trade(10)]))
        await asyncio.sleep(0.6)
        await socket.close(1012)

    began_ns = time.monotonic_ns()
    messages = asyncio.run(
        run(Server(script, sending()), lambda found: sum(isinstance(m, Gap) for m in found) == 4, wall_ns=lambda: now)
    )
    passed_ns = time.monotonic_ns() - began_ns

    began, ended, cut, resumed, _ = [m for m in messages if isinstance(m, Gap)]
    assert (began, began.reason) == (Gap(0, None, FEED_BEGAN), ended.reason)
    # Subscribed before the event, by 0.3 s and at most by all that has passed, and the gap ends a grace after that.
    assert ended.end_ns is not None
    assert at(10) + GRACE_NS - passed_ns < ended.end_ns < at(10) + GRACE_NS
    assert (cut.start_ns, cut.end_ns) == (at(10) - GRACE_NS, None)
    # Events are 20 s late by the clock that stands still, so that event time is still that of the last one.
    assert (resumed.start_ns, resumed.end_ns) == (cut.start_ns, at(10) + GRACE_NS)
