"""The feed that engines share: topics that come later have a gap in every listener before any window can be judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines import live_feed
from engines.feeds.feed_messages import SUBSCRIBED_LATER, ClosedThrough, FeedMessage, Gap
from engines.feeds.stream_settings import StreamSettings, Topics
from engines.live_feed import FeedOptions, LiveFeed
from engines.live_topics import Wish
from ledger.columns import Column

OPTIONS = FeedOptions(grace_s=2.0, idle_timeout_s=60.0, refused_pause_s=60.0, contracts_max=1000)
CLOSED_NS = 1_381_153_800_000_000_000


class Process:
    """A feed process that does nothing but say what it is told to say."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.asked: list[Topics] = []
        self.says: list[FeedMessage] = []
        self.dies = False

    def set_topics(self, topics: Topics) -> None:
        """Note them."""
        self.asked.append(topics)

    def receive(self) -> FeedMessage | None:
        """The next message."""
        if not self.says and self.dies:
            raise EOFError
        return self.says.pop(0) if self.says else None

    def close(self) -> None:
        """Nothing is held."""


class Listener:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def hear(self, message: Any, *, of_options: bool) -> None:
        """Note it."""
        assert of_options
        self.heard.append(message)


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LiveFeed, Listener, list[Process]]:
    """A feed of options whose process runs and that has closed a minute; who listens, and its processes."""
    processes: list[Process] = []

    def start(settings: StreamSettings) -> Process:
        processes.append(Process(settings))
        return processes[-1]

    monkeypatch.setattr(live_feed, "Feed", start)
    feed = LiveFeed("ws://127.0.0.1:1/options", "a-key", tmp_path / "feeds", OPTIONS, lambda *_: None)
    listener = Listener()
    feed.join(listener, Column.QUOTE_REF, {True: Wish(("O:A",))}, OPTIONS)
    feed.pump()
    processes[0].says.append(ClosedThrough(CLOSED_NS))
    feed.pump()
    return feed, listener, processes


def test_a_topic_that_comes_later_is_known_not_to_be_known_at_once(
    listening: tuple[LiveFeed, Listener, list[Process]],
) -> None:
    """Before its process says a word; what was asked for from the beginning has no such gap."""
    feed, listener, (process,) = listening
    assert listener.heard == [ClosedThrough(CLOSED_NS)]
    feed.ask(Column.QUOTE_REF, {True: Wish(("O:A", "O:B", "O:C"))})
    assert listener.heard[1:] == [Gap(0, None, SUBSCRIBED_LATER, ("Q.O:B", "Q.O:C"))]
    assert process.asked[-1].quotes == ("O:A", "O:B", "O:C")
    feed.ask(Column.QUOTE_REF, {True: Wish(("O:A", "O:B", "O:C"))})
    assert len(listener.heard) == 2


def test_what_a_wildcard_brought_and_nobody_kept_is_known_not_to_be_known(
    listening: tuple[LiveFeed, Listener, list[Process]],
) -> None:
    """The topic stays the same, and what is kept of it grows: windows before are not known of what comes later."""
    feed, listener, (process,) = listening
    feed.ask(Column.TRADE_REF, {True: Wish(("*",), ("O:A*",))})
    feed.ask(Column.TRADE_REF, {True: Wish(("*",), ("O:A*", "O:B*"))})
    assert listener.heard[2:] == [Gap(0, None, SUBSCRIBED_LATER, ("T.O:B*",))]
    assert process.asked[-1].wanted_trades == ("O:A*", "O:B*")
    feed.ask(Column.TRADE_REF, {True: Wish(("*",), ("O:B*",))})
    assert len(listener.heard) == 3, "giving up a glob makes no gap"
    feed.ask(Column.TRADE_REF, {True: Wish(("*",))})
    assert listener.heard[3:] == [Gap(0, None, SUBSCRIBED_LATER, ("T.*",))]
    feed.ask(Column.TRADE_REF, {True: Wish(("*",), ("O:A*",))})
    assert len(listener.heard) == 4, "all was kept before"


def test_a_topic_that_comes_while_no_process_runs_is_not_known_up_to_where_the_last_one_came(
    listening: tuple[LiveFeed, Listener, list[Process]],
) -> None:
    """The next process begins there, and has a gap of its own until its first event."""
    feed, listener, processes = listening
    processes[0].dies = True
    feed.pump()
    feed.ask(Column.QUOTE_REF, {True: Wish(("O:A", "O:B"))})
    assert listener.heard[1:] == [Gap(0, CLOSED_NS, SUBSCRIBED_LATER, ("Q.O:B",))]
    feed.retry()
    feed.pump()
    assert processes[1].settings.resume_ns == CLOSED_NS
    assert processes[1].settings.quotes == ("O:A", "O:B")
