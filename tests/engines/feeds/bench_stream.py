"""
Websocket events to closed minutes, as a share of decoding the same frames and nothing else.

The whole way of a feed: a server in a process of its own sends the frames, the feed's client receives them over a socket,
decodes them, makes columns, spools minutes to disk and closes them; then each minute is read back as the typed frame, every
row once, that a worker begins with. The clock runs from the subscription to the last frame read back.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from engines.feeds.feed_messages import FeedMessage, FeedState, SpooledRows
from engines.feeds.spooled_rows import Spooled
from engines.feeds.stream import StreamClient
from engines.feeds.stream_events import FRAME
from engines.feeds.stream_settings import StreamSettings
from tests.bench.registry import in_turns

EVENTS = 400_000
EVENTS_PER_FRAME = 50
TICKERS = 1_000
REACH = 0.3
_START_MS = 1_381_152_600_000


def frames(events: int = EVENTS) -> list[bytes]:
    """Frames of four quotes to a trade over five minutes; the same bytes every time."""
    made, state, frame = [], 1, []
    for number in range(events):
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        pick = state >> 33
        ticker, millisecond = f"SYM{pick % TICKERS}", _START_MS + number * 300_000 // events
        price = 10 + (pick % 9_000) / 100
        if pick % 5 == 0:
            frame.append(
                {"ev": "T", "sym": ticker, "x": 11, "i": str(number), "z": 1, "p": price, "s": 100,
                 "c": [12, 14, 41][: pick % 4], "t": millisecond, "q": number + 1}
            )  # fmt: skip
        else:
            frame.append(
                {"ev": "Q", "sym": ticker, "bx": 11, "bp": price, "bs": 3, "ax": 12, "ap": price + 0.01, "as": 5, "c": 1,
                 "t": millisecond, "q": number + 1, "z": 1}
            )  # fmt: skip
        if len(frame) == EVENTS_PER_FRAME:
            made.append(json.dumps(frame, separators=(",", ":")).encode())
            frame = []
    return made


def serve(frames: list[bytes], told: Connection) -> None:
    """A server that sends the frames to whoever subscribes; a process of its own, killed at the end."""
    from websockets.asyncio.server import ServerConnection
    from websockets.asyncio.server import serve as listen

    def status(word: str, message: str = "") -> str:
        return json.dumps([{"ev": "status", "status": word, "message": message}])

    async def play(socket: ServerConnection) -> None:
        await socket.send(status("connected"))
        await socket.recv()
        await socket.send(status("auth_success"))
        topics = json.loads(await socket.recv())["params"].split(",")
        for topic in topics:
            await socket.send(status("success", f"subscribed to: {topic}"))
        for frame in frames:
            await socket.send(frame, text=True)
        await socket.send(status("end_of_session"))
        await socket.wait_closed()

    async def run() -> None:
        async with listen(play, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=0.1) as server:
            told.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.Event().wait()

    asyncio.run(run())


def closed_rows(port: int) -> int:
    """Rows of all closed minutes, read back."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        closed = asyncio.run(_closed(port, folder))
        rows = 0
        for one in closed:
            spooled = Spooled([Path(one.path)], one.dataset)
            rows += spooled.frame(np.ones(len(spooled.tickers), np.bool_)).height
        return rows


async def _closed(port: int, folder: str) -> list[SpooledRows]:
    found: list[SpooledRows] = []
    played = asyncio.Event()

    async def emit(message: FeedMessage) -> None:
        if isinstance(message, SpooledRows):
            found.append(message)
        elif isinstance(message, FeedState) and message.state == "played":
            played.set()

    settings = StreamSettings(
        f"ws://127.0.0.1:{port}/stocks", "k", of_options=False, trades=("*",), quotes=("*",), folder=folder
    )
    client = StreamClient(settings, emit)
    task = asyncio.create_task(client.run())
    await played.wait()
    await client.stop()
    await task
    return found


def measure() -> dict[str, Any]:
    """The share of events a second that is left once minutes are made of the events."""
    received = frames()
    events = len(received) * EVENTS_PER_FRAME
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(received, theirs), daemon=True)
    server.start()
    try:
        port = ours.recv()
        whole_rows = closed_rows(port)
        decoded, whole = in_turns(lambda: [FRAME.decode(frame) for frame in received], lambda: closed_rows(port))
    finally:
        server.kill()
        server.join()
    value = decoded / whole
    return {
        "name": "stream_vs_decode",
        "value": value,
        "unit": "share",
        "reach": REACH,
        "ok": value >= REACH and whole_rows == events,
        "detail": {
            "decode_events_per_s": round(events / decoded),
            "closed_events_per_s": round(events / whole),
            "events": events,
        },
    }
