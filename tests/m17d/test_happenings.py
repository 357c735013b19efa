"""What happens in a daemon becomes events: cells set, cleared and given back, engines that change state, regions that get on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.columns import Column
from m17d import protocol
from m17d.daemon import Daemon
from tests.m17d import flat_files
from tests.m17d.test_exposition import ask, running, work

SESSION = "2013-05-01"
TRADES = [Column.TRADE_REF]
Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Two stocks with trades, engines at rest."""
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(tmp_path, [SESSION])
    yield from running(tmp_path)


@pytest.fixture
def events(daemon: Daemon) -> Events:
    """Everything that is published from now on."""
    found: Events = []
    publish = daemon.server.publish

    def keep(topic: str, facts: dict[str, Any]) -> int:
        found.append((topic, facts))
        return publish(topic, facts)

    daemon.runner.on_change = daemon.handlers.changing.taking.on_change = keep
    daemon.handlers.publish = keep  # type: ignore[assignment]
    daemon.handlers.retire_regions()
    found.clear()
    return found


def of(events: Events, topic: str, **facts: object) -> Events:
    """Those of a topic with these facts."""
    return [one for one in events if one[0] == topic and facts.items() <= one[1].items()]


def test_cells_that_change_are_one_event_a_column(daemon: Daemon, events: Events) -> None:
    """Cleared, then filled again by their engine; with symbols, windows and how many."""
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:30", symbols="AAA")
    ask(daemon, protocol.ClearRequest(columns=TRADES, range=chosen, cause="test"))
    open_ns = flat_files.open_ns(SESSION)
    ((_, cleared),) = of(events, "slots", by="clear")
    assert cleared == {
        "column": "trade_ref",
        "session": SESSION,
        "by": "clear",
        "cells": 30,
        "symbols": ["AAA"],
        "symbols_total": 1,
        "first": open_ns + 30 * 60 * 10**9,
        "last": open_ns + 59 * 60 * 10**9,
    }

    work(daemon)
    assert sum(one["cells"] for _, one in of(events, "slots", by="trade_flatfile")) == 30
    assert {one["symbols"][0] for _, one in of(events, "slots", by="trade_flatfile")} == {"AAA"}
    assert of(events, "task", state="done", session=SESSION)


def test_a_refresh_and_its_undo_are_events(daemon: Daemon, events: Events) -> None:
    """What was asked for again, and what was taken back of it."""
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:10")
    daemon.runner.paused["trade_flatfile"] = "test"
    operation = ask(daemon, protocol.RefreshRequest(columns=TRADES, range=chosen, cause="test")).operation
    ask(daemon, protocol.UndoRequest(operation=operation))

    assert [(one["by"], one["cells"], one["symbols_total"]) for _, one in of(events, "slots")] == [
        ("refresh", 20, 2),
        ("undo", 20, 2),
    ]


def test_engines_and_regions_say_when_they_move(daemon: Daemon, events: Events) -> None:
    """A pause and its end; a region that gets on, and is whole."""
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:30", symbols="AAA")
    ask(daemon, protocol.EnginesControlRequest(engine="trade_flatfile", action="pause", cause="test"))
    daemon.handlers.retire_regions()
    ask(daemon, protocol.ClearRequest(columns=TRADES, range=chosen, cause="test"))
    region = ask(
        daemon,
        protocol.PriorityAddRequest(symbol="AAA", from_ts=f"{SESSION}T09:30", to_ts=f"{SESSION}T10:30", priority=5),
    )
    daemon.handlers.retire_regions()
    ask(daemon, protocol.EnginesControlRequest(engine="trade_flatfile", action="resume"))
    work(daemon)
    daemon.handlers.retire_regions()

    states = [(one["before"], one["state"]) for _, one in of(events, "engine", engine="trade_flatfile")]
    assert states[:2] == [("idle", "paused"), ("paused", "idle")]
    seen = [(one["state"], one["complete"], one["minutes"]) for _, one in of(events, "region", id=region.id)]
    assert seen[0] == ("stuck", 30, 60)
    assert seen[-1] == ("complete", 60, 60)
