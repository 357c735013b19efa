"""The threads beside the view: which jobs they do, what happens when the daemon goes away; and the jobs on a real session."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import pytest

import ledger
from ledger.columns import AGGREGATE_MINUTES, Column
from m17ctl.client import Client
from m17ctl.errors import DaemonUnreachable, RemoteFailure
from m17ctl.tui import answers, deeds, questions
from m17ctl.tui.pump import Connected, Failed, Lane, Pump
from m17d.outcomes import Event, Failure, SubscribeReply
from m17d.protocol import ClearRequest, Range
from tests.filled_state import SESSION, copy_of, filled, needs_data

WAIT_S = 120


@dataclass
class Work:
    """A job for tests: says that it began, waits to be let go on, and counts its results."""

    key: str
    began: threading.Event
    go_on: threading.Event
    results: int = 1
    error: Exception | None = None

    def run(self, client: Any, emit: Callable[[object], bool]) -> None:
        for number in range(self.results):
            self.began.set()
            assert self.go_on.wait(WAIT_S)
            if self.error is not None:
                raise self.error
            if not emit((self.key, number)):
                return


class Nobody:
    """A connection that is only closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def work(key: str, results: int = 1, error: Exception | None = None, *, held: bool = False) -> Work:
    one = Work(key, threading.Event(), threading.Event(), results, error)
    if not held:
        one.go_on.set()
    return one


@pytest.fixture
def lane() -> Iterator[tuple[Lane, queue.Queue[Any], Nobody]]:
    """A lane over nobody, and what it delivers."""
    delivered: queue.Queue[Any] = queue.Queue()
    nobody = Nobody()
    one = Lane(lambda: nobody, delivered.put, "test")  # type: ignore[arg-type,return-value]
    one.start()
    yield one, delivered, nobody
    one.stop()


def take(delivered: queue.Queue[Any], count: int) -> list[Any]:
    """The next results, connections left out."""
    found: list[Any] = []
    while len(found) < count:
        one = delivered.get(timeout=WAIT_S)
        if not isinstance(one, Connected):
            found.append(one)
    return found


def test_the_newest_of_each_key_is_done_in_order(lane: tuple[Lane, queue.Queue[Any], Nobody]) -> None:
    """Who pages fast skips frames; other keys wait their turn."""
    one, delivered, _ = lane
    first = work("frame", held=True)
    one.submit(first)
    assert first.began.wait(WAIT_S)
    skipped, newest, other = work("why"), work("why"), work("engines")
    for job in (skipped, other, newest):
        one.submit(job)
    first.go_on.set()

    assert take(delivered, 3) == [("frame", 0), ("engines", 0), ("why", 0)]
    assert not skipped.began.is_set()


def test_a_running_job_stops_where_a_newer_one_of_its_key_came(lane: tuple[Lane, queue.Queue[Any], Nobody]) -> None:
    """Half a year of another symbol is not waited for."""
    one, delivered, _ = lane
    old, new = work("grid", 1000, held=True), work("grid", 2)
    one.submit(old)
    assert old.began.wait(WAIT_S)
    one.submit(new)
    old.go_on.set()

    assert take(delivered, 2) == [("grid", 0), ("grid", 1)]
    assert delivered.empty()


def test_dropped_jobs_deliver_nothing(lane: tuple[Lane, queue.Queue[Any], Nobody]) -> None:
    """The symbol was left."""
    one, delivered, _ = lane
    running = work("grid", 5, held=True)
    one.submit(running)
    assert running.began.wait(WAIT_S)
    one.submit(work("prices"))
    one.drop()
    running.go_on.set()
    one.submit(work("last"))

    assert take(delivered, 1) == [("last", 0)]


def test_a_failure_is_told_and_the_lane_goes_on(lane: tuple[Lane, queue.Queue[Any], Nobody]) -> None:
    """A refusal says that the daemon is there; no daemon says that it is not, once, and again when it is back."""
    one, delivered, nobody = lane
    refused = RemoteFailure(Failure(code="bad_request", message="no", hint="do this"))
    gone = DaemonUnreachable("no daemon at x", "start it")
    for job in (work("a", error=refused), work("b", error=gone), work("c", error=gone), work("d"),
                work("e", error=OSError(13, "Permission denied"))):  # fmt: skip
        one.submit(job)
    found = [delivered.get(timeout=WAIT_S) for _ in range(8)]

    assert [state.there for state in found if isinstance(state, Connected)] == [True, False, True]
    failed = [one for one in found if isinstance(one, Failed)]
    assert [(one.job.key, one.message, one.hint) for one in failed] == [
        ("a", "no", "do this"),
        ("b", "no daemon at x", "start it"),
        ("c", "no daemon at x", "start it"),
        ("e", "Permission denied", "the artifacts must be readable from here"),
    ]
    assert nobody.closed == 2, "a connection that failed is made anew"


# ---- a real session over a real socket


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon over the filled session."""
    from tests.m17d.test_derived_sessions import served

    place = copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("pump"))
    with served(place):
        yield place


@pytest.fixture
def pump(folder: Path) -> Iterator[tuple[Pump, queue.Queue[Any]]]:
    """A pump over that daemon."""
    delivered: queue.Queue[Any] = queue.Queue()
    one = Pump(lambda: Client(folder / "ledger.state" / "m17d.sock"), delivered.put)
    one.start()
    yield one, delivered
    one.stop()


def wait_for(delivered: queue.Queue[Any], kind: type, keep: Callable[[Any], bool] = lambda _: True) -> Any:
    """The first result of a kind; failures fail."""
    while True:
        one = delivered.get(timeout=WAIT_S)
        assert not isinstance(one, Failed), one
        if isinstance(one, kind) and keep(one):
            return one


@needs_data
def test_a_symbol_its_counts_and_its_prices(pump: tuple[Pump, queue.Queue[Any]], folder: Path) -> None:
    """Options by underlying; counts by minute; the middle price of each window as a scan of the rows finds it."""
    one, delivered = pump
    one.submit(questions.SymbolJob("AAPL"))
    found = wait_for(delivered, answers.SymbolResult)
    assert (found.underlying, found.options) == ("AAPL", ("O:AAPL",))

    one.submit(questions.GridJob("AAPL", (SESSION,), 1))
    grid = wait_for(delivered, answers.GridResult)
    assert (grid.session, grid.grid.cells, grid.grid.groups) == (SESSION, 390, {"own": 1, "options": 1})
    assert wait_for(delivered, answers.GridEnd).sessions == (SESSION,)

    one.submit(questions.PriceJob("AAPL", ("2014-06-05", SESSION), 30))
    prices = wait_for(delivered, answers.PriceResult, lambda result: result.session == SESSION).prices
    assert wait_for(delivered, answers.PriceResult).prices == {}, "a session without the symbol has no price"
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        rows = state.scan("trade_ref", symbols="AAPL", sessions=SESSION).select("minute", "price").collect()
    middle = rows.group_by("minute").agg(polars.col("price").median()).sort("minute")
    expected = dict(zip(middle["minute"].to_list(), middle["price"].to_list(), strict=True))
    last = {minute // 30: minute for minute in expected}
    assert prices == {minute: expected[minute] for minute in last.values()}


@needs_data
def test_a_frame_is_the_row_of_its_cell(pump: tuple[Pump, queue.Queue[Any]], folder: Path) -> None:
    """Every column of the artifact, for each window; a cell that is none says what it is."""
    one, delivered = pump
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        seq = state.calendar.session_seq(SESSION)
        start = int(state.calendar.open_ns[seq]) + 65 * 60 * 10**9
        for column in AGGREGATE_MINUTES:
            one.submit(questions.FrameJob("AAPL", column, SESSION, start))
            found = wait_for(delivered, answers.FrameResult)
            rows = state.scan(column, symbols="AAPL", sessions=SESSION).filter(polars.col("minute") == 65).collect()
            assert found.row is not None
            assert found.row["window_start_ns"] == start
            same = {name: value for name, value in found.row.items() if name in rows.columns}
            assert same == {name: rows[name][0] for name in same}
            assert len(same) > 160
    one.submit(questions.FrameJob("AAPL", Column.GREEKS_REF, SESSION, start))
    assert (wait_for(delivered, answers.FrameResult).row, True) == (None, True)


@needs_data
def test_what_is_done_elsewhere_arrives_as_events(pump: tuple[Pump, queue.Queue[Any]], folder: Path) -> None:
    """Another client's clear is an event here, and so is the engine's repair."""
    _, delivered = pump
    wait_for(delivered, SubscribeReply)
    chosen = Range(session=SESSION, from_ts="10:00", to_ts="10:10", symbols="TWX")
    with Client(folder / "ledger.state" / "m17d.sock") as client:
        client.call(ClearRequest(columns=[Column.TRADE_REF], range=chosen, cause="elsewhere"))
    wait_for(delivered, Event, lambda event: event.topic == "operation")
    done = wait_for(delivered, Event, lambda event: event.facts.get("state") == "done")
    assert done.facts["session"] == SESSION


@needs_data
def test_a_clear_that_was_looked_at_is_refused_where_something_moved(pump: tuple[Pump, queue.Queue[Any]]) -> None:
    """What was shown is what is expected."""
    one, delivered = pump
    chosen = (Range(session=SESSION, from_ts="11:00", to_ts="11:10", symbols="TWX"),)
    one.submit(deeds.ClearJob((Column.QUOTE_REF,), chosen, "look", dry_run=True))
    looked = wait_for(delivered, answers.ClearResult)
    assert sum(looked.replies[0].cleared.values()) == 10
    one.submit(deeds.ClearJob((Column.QUOTE_REF,), chosen, "test", dry_run=False, expect=(11,)))
    failed = delivered.get(timeout=WAIT_S)
    while not isinstance(failed, Failed):
        failed = delivered.get(timeout=WAIT_S)
    assert "10 cells would go, 11 were expected" in failed.message
