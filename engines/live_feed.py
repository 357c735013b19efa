"""
The connections to one service, shared by the engines that listen to it: one feed process an asset class.

The service lets an account have one connection an asset class, so the engine of trades and the engine of quotes share it
and never meet: each says what it wants and hears what comes. A feed process that dies is started again with a growing
pause, and what it left on disk is handed over as rows of minutes that are not whole. This module must never know a cell.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from engines.feed_numbers import FeedNumbers
from engines.feeds.feed_messages import SUBSCRIBED_LATER, ClosedThrough, FeedMessage, FeedState, Gap, SpooledRows
from engines.feeds.spool_blocks import OPEN_SUFFIX, SUFFIX, read_name
from engines.feeds.spooled_rows import look_into
from engines.feeds.stream_process import Feed, lock_folder
from engines.feeds.stream_settings import StreamSettings, Topics, topics_of_later
from engines.live_topics import Wish
from ledger.columns import Column

ASSET_CLASSES: Final = ("stocks", "options")
_MESSAGES_AT_ONCE: Final = 200
_RESTART_S: Final = 0.5
_RESTART_MAX_S: Final = 30.0
_HEALTHY_S: Final = 60.0
_LEFTOVERS_S: Final = 1.0
_GIVEN_UP_S: Final = 150.0
"""How long a feed may fail before a run until idle stops waiting for it."""


class Listener(Protocol):
    """An engine, as the feed sees it."""

    def hear(self, message: SpooledRows | ClosedThrough | FeedMessage, *, of_options: bool) -> None:
        """Take a message of one of its connections; rows are of its column."""


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """How a service is listened to; see :class:`engines.feeds.stream.StreamSettings`."""

    grace_s: float
    idle_timeout_s: float
    refused_pause_s: float
    contracts_max: int


@dataclass(slots=True)
class Line:
    """One connection: who listens, how it is, and what was counted over restarts of its process."""

    of_options: bool
    url: str
    wishes: dict[Column, Wish] = field(default_factory=dict)
    listeners: dict[Column, Listener] = field(default_factory=dict)
    feed: Feed | None = None
    folder: Path = Path()
    told: set[str] = field(default_factory=set)
    asked: Topics = field(default_factory=Topics)
    """What was asked for last."""
    state: FeedState | None = None
    problem: str = ""
    """Why there is no process now."""
    refused: str = ""
    """Why there will be none: what is asked for is more than a connection takes."""
    closed_ns: int = 0
    numbers: dict[Column, FeedNumbers] = field(default_factory=dict)
    earlier: dict[Column, FeedNumbers] = field(default_factory=dict)
    """Counts of processes that ended."""
    deaths: int = 0
    started_s: float = 0.0
    start_at_s: float = 0.0
    pause_s: float = _RESTART_S
    failing_since_s: float | None = None

    @property
    def is_streaming(self) -> bool:
        """Whether events can come now."""
        return self.state is not None and self.state.state in ("streaming", "played")


class LiveFeed:
    """
    The connections to one service under one key.

    Args:
        address: of the service, ``wss://host``; with ``/stocks`` or ``/options`` behind it only that asset class.
        key: sent to it.
        folder: where feed processes may write.
        options: how it is listened to.
        log: takes level and line.
    """

    def __init__(
        self, address: str, key: str, folder: Path, options: FeedOptions, log: Callable[[str, str], None]
    ) -> None:
        self._key = key
        self._folder = folder
        self._options = options
        self._log = log
        base, only = _split(address)
        self.lines = {
            name == "options": Line(name == "options", f"{base}/{name}") for name in ASSET_CLASSES if only in ("", name)
        }
        self._starts = 0
        self._folders: set[Path] = set()
        self._leftovers_s = 0.0
        self._leftovers_done = False
        self._closed = False

    def join(self, listener: Listener, column: Column, wishes: dict[bool, Wish], options: FeedOptions) -> None:
        """
        Listen for a column's rows, by asset class (True: options); before :meth:`pump` is called first.

        What the listeners say of how to listen is joined: the longer times and the lower limit hold.
        """
        own = self._options
        self._options = FeedOptions(
            max(own.grace_s, options.grace_s),
            max(own.idle_timeout_s, options.idle_timeout_s),
            max(own.refused_pause_s, options.refused_pause_s),
            min(own.contracts_max, options.contracts_max),
        )
        for line in self.lines.values():
            line.listeners[column] = listener
            line.numbers[column], line.earlier[column] = FeedNumbers(), FeedNumbers()
        self.ask(column, wishes)

    def ask(self, column: Column, wishes: dict[bool, Wish]) -> None:
        """Ask for other topics from now on; what cannot be had all together leaves the connection as it is, refused."""
        for of_options, wish in wishes.items():
            line = self.lines.get(of_options)
            if line is None:
                continue
            line.wishes[column] = wish
            if not wish.tickers:
                del line.wishes[column]
            line.refused = ""
            if not line.wishes:
                continue
            try:
                settings = self._settings(line)
            except ValueError as error:
                line.refused = str(error)
                continue
            self._note_new(line, settings.asked)
            if line.feed is not None:
                line.feed.set_topics(settings.asked)

    def _note_new(self, line: Line, asked: Topics) -> None:
        """
        Tell listeners at once what comes later than other rows: windows that were over before are not known of it.

        The feed says the same, and when it ends, but a moment later, and windows without rows are filled in that moment.
        """
        new, line.asked = topics_of_later(line.asked, asked), asked
        if new and (line.feed is not None or line.closed_ns):
            gap = Gap(0, None if line.feed is not None else line.closed_ns, SUBSCRIBED_LATER, new)
            for listener in line.listeners.values():
                listener.hear(gap, of_options=line.of_options)

    def _settings(self, line: Line) -> StreamSettings:
        trades, quotes = (line.wishes.get(column, Wish()) for column in (Column.TRADE_REF, Column.QUOTE_REF))
        return StreamSettings(
            line.url,
            self._key,
            line.of_options,
            trades.tickers,
            quotes.tickers,
            wanted_trades=trades.globs,
            wanted_quotes=quotes.globs,
            folder=str(line.folder),
            contracts_max=self._options.contracts_max,
            idle_seconds=self._options.idle_timeout_s,
            refused_seconds=self._options.refused_pause_s,
            grace_ns=round(self._options.grace_s * 1e9),
            resume_ns=line.closed_ns,
            seed=int(line.of_options),
        )

    # ---- at every step of the daemon

    def descriptors(self) -> list[int]:
        """Descriptors that are readable when something waits."""
        return [line.feed.connection.fileno() for line in self.lines.values() if line.feed is not None]

    def pump(self) -> bool:
        """Start what should run and hand out what waits; never waits. True where something was handed out."""
        if self._closed:
            return False
        now_s = time.monotonic()
        came = False
        for line in self.lines.values():
            if line.feed is None:
                if line.wishes and not line.refused and now_s >= line.start_at_s:
                    self._start(line, now_s)
                continue
            came |= self._drain(line, now_s)
        if not self._leftovers_done and now_s >= self._leftovers_s:
            self._leftovers_s = now_s + _LEFTOVERS_S
            came |= self._take_leftovers()
        return came

    def _start(self, line: Line, now_s: float) -> None:
        self._starts += 1
        name = f"{os.getpid()}-{self._starts}-{'options' if line.of_options else 'stocks'}"
        line.folder, line.told = self._folder / name, set()
        self._folders.add(line.folder)
        try:
            line.folder.mkdir(parents=True)
            line.feed = Feed(self._settings(line))
        except OSError as error:
            self._put_off(line, now_s, f"the feed process does not start: {error}")
            return
        line.problem, line.started_s = "", now_s

    def _put_off(self, line: Line, now_s: float, problem: str) -> None:
        if now_s - line.started_s > _HEALTHY_S:
            line.pause_s = _RESTART_S
        line.problem = f"{problem}; it starts again in {line.pause_s:.1f} s"
        line.start_at_s, line.pause_s = now_s + line.pause_s, min(2 * line.pause_s, _RESTART_MAX_S)
        line.failing_since_s = line.failing_since_s or now_s
        self._log("warning", f"{line.url}: {line.problem}")

    def _drain(self, line: Line, now_s: float) -> bool:
        assert line.feed is not None
        came = 0
        try:
            while came < _MESSAGES_AT_ONCE and (message := line.feed.receive()) is not None:
                came += 1
                self._take(line, message, now_s)
        except (EOFError, OSError):
            self._ended(line, now_s)
            return True
        return bool(came)

    def _take(self, line: Line, message: FeedMessage, now_s: float) -> None:
        if isinstance(message, SpooledRows):
            line.told.add(message.path)
            listener = line.listeners.get(message.dataset.column)
            if listener is None:
                Path(message.path).unlink(missing_ok=True)
            else:
                listener.hear(message, of_options=line.of_options)
            return
        if isinstance(message, FeedState):
            self._note(line, message, now_s)
        elif isinstance(message, ClosedThrough):
            line.closed_ns = max(line.closed_ns, message.ns)
        for listener in line.listeners.values():
            listener.hear(message, of_options=line.of_options)

    def _note(self, line: Line, state: FeedState, now_s: float) -> None:
        before = line.state
        line.state = state
        if state.state in ("streaming", "played"):
            line.failing_since_s = None
        elif state.state in ("waiting", "refused"):
            line.failing_since_s = line.failing_since_s or now_s
        if before is None or (before.state, before.detail) != (state.state, state.detail):
            level = "warning" if state.state in ("waiting", "refused") else "info"
            self._log(level, f"{line.url}: {state.state}" + (f": {state.detail}" if state.detail else ""))
        for column, numbers in line.numbers.items():
            _sum(numbers, line.earlier[column], state, column, connected=line.is_streaming)

    def _ended(self, line: Line, now_s: float) -> None:
        """The process is gone: what it did not tell of is handed over, and another one starts after a pause."""
        assert line.feed is not None
        line.feed.close()
        line.feed = None
        for column, numbers in line.numbers.items():
            line.earlier[column] = FeedNumbers(numbers.events, dict(numbers.drops), numbers.reconnects + 1)
            numbers.connected = False
        line.state = None
        line.deaths += 1
        self._put_off(line, now_s, "the feed process died")
        self._take_folder(line.folder, line.told)

    # ---- what dead feeds left

    def _take_leftovers(self) -> bool:
        """Hand over what feeds of an earlier daemon left, once nobody writes there any more."""
        folders = [one for one in sorted(self._folder.glob("*")) if one.is_dir() and one not in self._folders]
        came, busy = False, False
        for folder in folders:
            descriptor = lock_folder(folder)
            if descriptor is None:
                busy |= folder.exists()
                continue
            os.close(descriptor)
            came |= self._take_folder(folder, set())
        self._leftovers_done = not busy
        return came

    def _take_folder(self, folder: Path, told: set[str]) -> bool:
        """Rows of a folder that nobody writes to any more, but for files that were told of already."""
        came = False
        for path in sorted(folder.glob("*")):
            if str(path) in told:
                continue
            try:
                dataset, start_ns = read_name(path.name.removesuffix(OPEN_SUFFIX).removesuffix(SUFFIX))
                rows, tickers = look_into(path, dataset)
            except (ValueError, OSError):
                rows, tickers, dataset, start_ns = 0, (), None, 0
            line = None if dataset is None else self.lines.get(dataset.of_options)
            listener = None if line is None or dataset is None else line.listeners.get(dataset.column)
            if not rows or listener is None or line is None or dataset is None:
                path.unlink(missing_ok=True)
                continue
            message = SpooledRows(dataset, start_ns, str(path), rows, tickers, late=False, finished=False)
            listener.hear(message, of_options=line.of_options)
            came = True
        if not any(folder.glob("*")):
            shutil.rmtree(folder, ignore_errors=True)
        return came

    # ---- for the engines

    def retry(self) -> None:
        """Try again now whatever waits."""
        for line in self.lines.values():
            line.start_at_s = 0.0
            if line.feed is not None:
                line.feed.hurry()

    def expects(self) -> bool:
        """Whether rows may come by themselves: not where all was played, or where nothing answers for a while."""
        return any(line.wishes and not line.refused and self._expects(line) for line in self.lines.values())

    @staticmethod
    def _expects(line: Line) -> bool:
        state = line.state
        if state is not None and (state.state == "played" or is_denied(state)):
            return False
        since = line.failing_since_s
        return since is None or time.monotonic() - since < _GIVEN_UP_S

    def close(self) -> None:
        """End the processes; what they have not handed over stays on disk for the next daemon."""
        self._closed = True
        for line in self.lines.values():
            if line.feed is not None:
                line.feed.ask_to_stop()
        for line in self.lines.values():
            if line.feed is not None:
                line.feed.close()
                line.feed = None


def is_denied(state: FeedState) -> bool:
    """Whether the service does not take the key, which no attempt will change."""
    return state.state == "refused" and state.detail.startswith("auth_failed")


def _split(address: str) -> tuple[str, str]:
    """An address without its asset class, and that."""
    parts = urlsplit(address)
    path = parts.path.rstrip("/")
    for name in ASSET_CLASSES:
        if path.endswith(f"/{name}"):
            return f"{parts.scheme}://{parts.netloc}{path.removesuffix(f'/{name}')}", name
    return f"{parts.scheme}://{parts.netloc}{path}", ""


def _sum(numbers: FeedNumbers, earlier: FeedNumbers, state: FeedState, column: Column, *, connected: bool) -> None:
    """What all processes of a line counted of one column; what is unreadable is everybody's."""
    counts = state.counts
    mine = counts.trades if column is Column.TRADE_REF else counts.quotes
    rejected = sum(mine.rejected.values())
    drops = {
        "no_room": mine.dropped,
        "rejected": rejected,
        "unreadable": counts.frames_unreadable + counts.events_unreadable,
    }
    numbers.events = earlier.events + mine.rows + mine.unwanted + mine.dropped + rejected
    numbers.drops.update({reason: earlier.drops.get(reason, 0) + count for reason, count in drops.items()})
    numbers.reconnects = earlier.reconnects + max(0, counts.connections - 1)
    numbers.connected = connected
    numbers.newest_ns = max(numbers.newest_ns, state.newest_ns)
