"""
The feed as a process of its own: a websocket on one side, a pipe of closed minutes on the other.

The process is spawned, ends when its control pipe closes, and never holds more than a bounded amount of what the other
side has not taken: when that is full the reader waits, and only when the other side takes nothing for long a minute is
dropped, counted, and told as a gap. This module must never start a thread in the process that uses a feed.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Final

from engines.feeds.closed_minutes import ClosedMinute, FeedMessage, FeedState, Gap
from engines.feeds.stream import StreamClient, StreamSettings

OUTBOX_BYTES: Final = 256 * 1024 * 1024
"""Closed minutes that wait for the other side, at most."""
OUTBOX_SECONDS: Final = 30.0
"""How long the reader waits for room before a minute is dropped."""


class Outbox:
    """
    Messages on their way to a pipe; a thread writes them, so that a slow reader does not stop the socket's pings.

    Args:
        send: writes one message; may block.
        bytes_max: see :data:`OUTBOX_BYTES`.
        wait_seconds: see :data:`OUTBOX_SECONDS`.
    """

    def __init__(
        self,
        send: Callable[[FeedMessage], None],
        *,
        bytes_max: int = OUTBOX_BYTES,
        wait_seconds: float = OUTBOX_SECONDS,
    ) -> None:
        self._send = send
        self._bytes_max = bytes_max
        self._wait_seconds = wait_seconds
        self._queue: queue.SimpleQueue[FeedMessage | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bytes = 0
        self._broken = False
        self.rows_dropped = 0
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    async def put(self, message: FeedMessage) -> None:
        """Hand a message to the writer, waiting for room; see the module's docstring for when there is none."""
        if isinstance(message, ClosedMinute):
            deadline = time.monotonic() + self._wait_seconds
            while self._bytes > self._bytes_max and not self._broken and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the writer is a thread: an asyncio event would need its loop
            if self._bytes > self._bytes_max:
                self.rows_dropped += message.rows
                message = Gap(message.start_ns, message.end_ns - 1, f"dropped {message.rows} rows: the reader is stuck")
        if isinstance(message, FeedState):
            message.counts.rows_dropped = self.rows_dropped
        with self._lock:
            self._bytes += _weight(message)
        self._queue.put(message)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Write what is left and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout_seconds)

    def _write(self) -> None:
        while (message := self._queue.get()) is not None:
            if not self._broken:
                try:
                    self._send(message)
                except OSError:
                    self._broken = True
            with self._lock:
                self._bytes -= _weight(message)


def _weight(message: FeedMessage) -> int:
    return message.bytes if isinstance(message, ClosedMinute) else 0


class Feed:
    """
    A running feed, as the process that uses it sees it.

    Attributes:
        connection: readable (``fileno``, ``poll``) when a message waits.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        control, self._control = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(settings, theirs, control), name="m17-feed", daemon=True)
        self._process.start()
        theirs.close()
        control.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def receive(self, timeout_seconds: float = 0.0) -> FeedMessage | None:
        """
        The next message, or None where none comes in time.

        Raises:
            EOFError: the process ended and everything was read.
        """
        if not self.connection.poll(timeout_seconds):
            return None
        message: FeedMessage = self.connection.recv()
        return message

    def set_topics(self, trades: tuple[str, ...], quotes: tuple[str, ...]) -> None:
        """
        Subscribe to these from now on.

        Raises:
            ValueError: as :class:`engines.feeds.stream.StreamSettings`; nothing was sent.
            OSError: the process is gone.
        """
        replace(self._settings, trades=trades, quotes=quotes)
        self._control.send((trades, quotes))

    def ask_to_stop(self) -> None:
        """The process hands over what it has, then ends; read on until EOFError."""
        with contextlib.suppress(OSError):
            self._control.close()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End the process, by force if it must be; what was not read is lost."""
        self.ask_to_stop()
        self.connection.close()
        self._process.join(timeout_seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _main(settings: StreamSettings, out: Connection, control: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox = Outbox(out.send)
    try:
        asyncio.run(_run(settings, outbox, control))
    finally:
        outbox.close()
        out.close()


async def _run(settings: StreamSettings, outbox: Outbox, control: Connection) -> None:
    loop = asyncio.get_running_loop()
    client = StreamClient(settings, outbox.put)
    tasks: set[asyncio.Task[None]] = set()

    def begin(task: asyncio.Task[None]) -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_control() -> None:
        try:
            trades, quotes = control.recv()
        except (EOFError, OSError):
            loop.remove_reader(control.fileno())
            begin(loop.create_task(client.stop()))
            return
        begin(loop.create_task(client.set_topics(trades, quotes)))

    loop.add_reader(control.fileno(), on_control)
    loop.add_signal_handler(signal.SIGTERM, lambda: begin(loop.create_task(client.stop())))
    await client.run()
