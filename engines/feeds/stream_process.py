"""
The feed as a process of its own: a websocket on one side, a pipe of small messages on the other.

The process is spawned and ends when its control pipe closes. Rows go to files; through the pipe goes only where they lie,
so that a reader that is busy costs the feed a queue of small messages. The folder of the files is locked while the
process lives: who finds it unlocked may take what a dead feed left. This module must never start a thread in the process
that uses a feed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from engines.feeds.feed_messages import FeedMessage, FeedState
from engines.feeds.stream_settings import StreamSettings, Topics

STATES_WAITING_MAX: Final = 100
"""Messages in the queue beyond which the feed's state is not told again: the reader has enough to read."""


class Outbox:
    """
    Messages on their way to a pipe; a thread writes them, so that a slow reader does not stop the socket's pings.

    Args:
        send: writes one message; may block.
    """

    def __init__(self, send: Callable[[FeedMessage], None]) -> None:
        self._send = send
        self._queue: queue.SimpleQueue[FeedMessage | None] = queue.SimpleQueue()
        self._broken = False
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    async def put(self, message: FeedMessage) -> None:
        """Hand a message to the writer."""
        if isinstance(message, FeedState) and self._queue.qsize() > STATES_WAITING_MAX:
            return
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

    def set_topics(self, topics: Topics) -> None:
        """
        Subscribe to these from now on.

        Raises:
            ValueError: as :class:`engines.feeds.stream_settings.StreamSettings`; nothing was sent.
        """
        self._settings.with_topics(topics)
        with contextlib.suppress(OSError):
            self._control.send(topics)

    def hurry(self) -> None:
        """Try again now, if it waits between attempts."""
        with contextlib.suppress(OSError):
            self._control.send(None)

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
    folder = lock_folder(Path(settings.folder), make=True)
    outbox = Outbox(out.send)
    try:
        asyncio.run(_run(settings, outbox, control))
    finally:
        outbox.close()
        out.close()
        if folder is not None:
            os.close(folder)


def lock_folder(folder: Path, *, make: bool = False) -> int | None:
    """
    Take the lock of a feed's folder.

    Returns:
        a descriptor that holds it until it is closed; None where another process has it, or the folder is gone.

    Raises:
        OSError: it cannot be made or opened.
    """
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


async def _run(settings: StreamSettings, outbox: Outbox, control: Connection) -> None:
    # Here and not above: whoever starts the process does without the websocket.
    from engines.feeds.stream import StreamClient

    loop = asyncio.get_running_loop()
    client = StreamClient(settings, outbox.put)
    tasks: set[asyncio.Task[None]] = set()

    def begin(task: asyncio.Task[None]) -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_control() -> None:
        try:
            topics = control.recv()
        except (EOFError, OSError):
            loop.remove_reader(control.fileno())
            begin(loop.create_task(client.stop()))
            return
        if topics is None:
            client.hurry()
        else:
            begin(loop.create_task(client.set_topics(topics)))

    loop.add_reader(control.fileno(), on_control)
    loop.add_signal_handler(signal.SIGTERM, lambda: begin(loop.create_task(client.stop())))
    await client.run()
