"""`m17ctl watch`: what passes, what is said in words, where it goes on, and what a restart does to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from m17ctl.errors import DaemonUnreachable
from m17d.outcomes import Event, SubscribeReply
from m17d.protocol import TOPICS, SubscribeRequest
from tests.m17ctl.fakes import MINUTE_NS, OPEN_NS, m17ctl

HALF = {"first": OPEN_NS, "last": OPEN_NS + 29 * MINUTE_NS}
EVENTS = [
    Event(seq=4, ts=OPEN_NS, topic="slots", facts={
        "column": "trade_ref", "session": "2013-10-07", "by": "trade_flatfile", "cells": 11_400,
        "symbols": ["AIG", "BAC", "IBM", "SPY"], "symbols_total": 380, **HALF}),
    Event(seq=5, ts=OPEN_NS, topic="slots", facts={
        "column": "quote_ref", "session": "2013-10-08", "by": "clear", "cells": 30, "symbols": ["IBM"], "symbols_total": 1,
        **HALF}),
    Event(seq=6, ts=OPEN_NS, topic="engine", facts={"engine": "nbbo", "before": "idle", "state": "failed", "detail": "why"}),
    Event(seq=7, ts=OPEN_NS, topic="region", facts={
        "id": 3, "symbol": "IBM", "state": "active", "complete": 120, "minutes": 390}),
    Event(seq=8, ts=OPEN_NS, topic="task", facts={
        "engine": "nbbo", "key": "nbbo 2013-10-07 AIG", "state": "done", "session": "2013-10-07", "cells": 390}),
    Event(seq=9, ts=OPEN_NS, topic="operation", facts={
        "op": "clear", "key": "k1", "user": "ana", "session": "2013-10-07", "operation": "op-1"}),
    Event(seq=12, ts=OPEN_NS, topic="later", facts={"new": 1, "word": "two words"}, lost=2),
]  # fmt: skip


def begin(resync: bool = False, epoch: str = "e1", seq: int = 4) -> SubscribeReply:
    return SubscribeReply(epoch=epoch, seq=seq, lease_ms=30_000, resync=resync)


def test_events_in_words() -> None:
    """One line each: what, of whom, how much; a topic of a newer daemon by its facts."""
    ran = m17ctl(lambda request: [begin(resync=True), *EVENTS], "watch")

    assert ran.code == 0
    assert [line.removeprefix("2013-10-07T09:30:00.000  ") for line in ran.out.splitlines()] == [
        "slots      trade_ref 2013-10-07 AIG, BAC, IBM and 377 more: 11,400 cells set by trade_flatfile, 09:30 to 09:59",
        "slots      quote_ref 2013-10-08 IBM: 30 cells cleared, 09:30 to 09:59",
        "engine     nbbo: idle -> failed (why)",
        "region     #3 IBM active, 120 of 390 windows whole",
        "task       nbbo done: nbbo 2013-10-07 AIG, 390 cells",
        "operation  clear op-1 2013-10-07 by ana, key k1",
        'later      new=1 word="two words"',
    ]
    assert "2 events before this one were lost" in ran.err
    assert "earlier events are gone" in ran.err


def test_json_lines_say_where_to_go_on() -> None:
    """Epoch and number of every event; --count ends it."""
    ran = m17ctl(lambda request: [begin(), *EVENTS], "--json", "watch", "--topics", "slots,region", "--count", "2")

    assert ran.asked == [SubscribeRequest(topics=["slots", "region"])]
    assert [(one["epoch"], one["seq"]) for one in map(json.loads, ran.out.splitlines())] == [("e1", 4), ("e1", 5)]
    ran = m17ctl(lambda request: [begin()], "watch", "--from-seq", "5", "--epoch", "e1")
    assert ran.asked == [SubscribeRequest(topics=[], from_seq=5, epoch="e1")]


@pytest.mark.parametrize(
    ("options", "seqs"),
    [
        (("--engine", "nbbo"), [6, 8]),
        (("--engine", "trade_flatfile"), [4]),
        (("--session", "2013-10-07"), [4, 8, 9]),
        (("--symbols", "IBM"), [4, 5, 7]),
        (("--symbols", "AI?"), [4]),
        (("--symbols", "ZZZ", "--session", "2013-10-07"), [4]),
        (("--engine", "nbbo", "--session", "2013-10-08"), []),
    ],
)
def test_filters(options: tuple[str, ...], seqs: list[int]) -> None:
    """An event that names eight of many symbols may be about any; one that names none is about none."""
    ran = m17ctl(lambda request: [begin(), *EVENTS], "--json", "watch", *options)

    assert [json.loads(line)["seq"] for line in ran.out.splitlines()] == seqs


def test_the_next_run_goes_on_where_the_file_says(tmp_path: Path) -> None:
    """Filtered events count as seen; the file is replaced whole."""
    file = tmp_path / "position"
    m17ctl(lambda request: [begin(), *EVENTS], "watch", "--resume", str(file), "--engine", "nbbo")
    assert json.loads(file.read_text()) == {"epoch": "e1", "seq": 13}
    assert [one.name for one in tmp_path.iterdir()] == ["position"]

    ran = m17ctl(lambda request: [begin(seq=20)], "watch", "--resume", str(file))
    assert ran.asked == [SubscribeRequest(topics=[], from_seq=13, epoch="e1")]
    assert json.loads(file.read_text()) == {"epoch": "e1", "seq": 13}, "events behind the answer are still to come"

    ran = m17ctl(lambda request: [begin(resync=True, epoch="e2", seq=1)], "watch", "--resume", str(file))
    assert "earlier events are gone" in ran.err
    assert json.loads(file.read_text()) == {"epoch": "e2", "seq": 1}


def test_a_file_that_is_no_position_is_refused(tmp_path: Path) -> None:
    """It could be anybody's."""
    file = tmp_path / "notes.txt"
    file.write_text("buy milk")
    ran = m17ctl(lambda request: [begin()], "watch", "--resume", str(file))
    assert (ran.code, ran.asked) == (2, [])
    assert "holds no position" in ran.err
    assert file.read_text() == "buy milk"


def test_a_restart_of_the_daemon_is_waited_for() -> None:
    """The stream goes on behind the last event; a daemon that was never there is a failure at once."""
    gone = DaemonUnreachable("no daemon at x", "start it")
    runs: list[list[Any]] = [[begin(), EVENTS[0], gone], [gone], [begin(resync=True, epoch="e2", seq=1), EVENTS[1]]]
    ran = m17ctl(lambda request: runs.pop(0), "--json", "watch")

    assert ran.code == 0
    assert [(one["epoch"], one["seq"]) for one in map(json.loads, ran.out.splitlines())] == [("e1", 4), ("e2", 5)]
    asked = [one for one in ran.asked if isinstance(one, SubscribeRequest)]
    assert [(one.from_seq, one.epoch) for one in asked] == [(None, None), (5, "e1"), (5, "e1")]
    assert "the daemon went away" in ran.err
    assert m17ctl(lambda request: [gone], "watch").code == 7


@pytest.mark.parametrize(
    "words",
    [("--topics", "cells"), ("--from-seq", "3"), ("--epoch", "e"), ("--session", "today")],
)
def test_what_makes_no_sense_is_a_usage_error(words: tuple[str, ...]) -> None:
    """Before anybody is asked."""
    ran = m17ctl(lambda request: [begin()], "watch", *words)
    assert (ran.code, ran.asked) == (2, [])


def test_help_names_every_topic(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to guess."""
    m17ctl(lambda request: [], "watch", "--help")
    text = capsys.readouterr().out
    assert all(topic in text for topic in TOPICS)
