"""A bucket's files by a clock of the test's own: what is listed, brought, kept and held back, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.contract import Batch, Task
from engines.feeds.object_store import ObjectFacts
from engines.pauses import Trouble
from engines.raw_bucket import BucketFiles
from engines.raw_fetch import Downloaded, Listed, target_of
from engines.raw_files import Need, SourceConfig, UpstreamFile
from ledger.columns import Column, Dataset
from tests.engines.planning import TestContext, made_state

MIB = 1 << 20
TRADES = Dataset.STOCK_TRADES
SESSIONS = ["2013-10-04", "2013-10-07", "2013-10-08"]


class Desk:
    """Bucket files over a state, and a bucket that is a dictionary."""

    def __init__(self, directory: Path, **keys: Any) -> None:
        self.state, self.clock = made_state(directory)
        self.config = SourceConfig(source="s3://flatfiles", **keys)
        self.objects: dict[str, ObjectFacts] = {}
        self.open()

    def open(self) -> None:
        """A daemon starts."""
        self.files = BucketFiles("trade_flatfile", Column.TRADE_REF, (TRADES,), self.config)
        self.files.start(TestContext(self.state))

    def at(self, when: str) -> None:
        """Set the clock."""
        self.clock.time_ns = self.state.calendar.parse_time(when)

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.time_ns += round(seconds * 1e9)

    def put(self, session: str, size: int, etag: str = "a") -> None:
        """An object appears, or another in its place."""
        name = f"{TRADES.value}/{session[:4]}/{session[5:7]}/{session}.csv.gz"
        self.objects[name] = ObjectFacts(name, size, f'"{etag}"', 0)

    def plan(self, *needs: tuple[str, int]) -> list[Task]:
        """Tasks for all sessions, and for files of sessions with a priority."""
        found = []
        for session, priority in needs:
            file = self.files.find(TRADES, session)
            assert file is not None
            found.append(Need(file, priority))
        return self.files.tasks(SESSIONS, found, 10)

    def list_all(self) -> list[str]:
        """Do what is due of listing; the prefixes."""
        listed: list[str] = []
        for task in self.plan():
            listed += task.arguments.prefixes
            for path in task.arguments.remove:
                Path(path).unlink()
            found = {
                prefix: tuple(facts for name, facts in sorted(self.objects.items()) if name.startswith(prefix))
                for prefix in task.arguments.prefixes
            }
            self.end(task, Listed(found))
        return listed

    def end(self, task: Task, report: Listed | Downloaded) -> None:
        """A task is over."""
        self.files.started(task)
        self.files.ended(task)
        self.files.finished(task, report)

    def bring(self, task: Task) -> None:
        """Do a download."""
        self.files.started(task)
        for path in task.arguments.remove:
            Path(path).unlink()
        target = Path(target_of(task.arguments.target, task.arguments.etag))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.truncate(task.arguments.size)
        os.utime(target, ns=(self.clock.time_ns, self.clock.time_ns))
        facts = ObjectFacts(task.arguments.name, task.arguments.size, task.arguments.etag, 0)
        self.files.ended(task)
        self.files.finished(task, Downloaded(facts, str(target), task.arguments.size))

    def causes(self) -> list[tuple[str, str]]:
        """What is held back: session and cause."""
        return [(one.session, one.cause) for one in self.files.waiting()]

    def kept(self) -> list[str]:
        """Sessions whose file is kept."""
        folder = self.state.downloads / "trade_flatfile"
        return sorted(path.name[-len("2013-10-07-a.csv.gz") : -len("-a.csv.gz")] for path in folder.glob("*.csv.gz"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Files of three sessions, after the last one's publication, with room for two and a half of them."""
    made = Desk(tmp_path / "ledger.state", download_budget_gib=2.5 / 1024)
    for session in SESSIONS:
        made.put(session, MIB)
    made.at("2013-10-09T20:00")
    yield made
    made.state.close()


def test_months_are_listed_once_and_again_when_due(desk: Desk) -> None:
    """One request for the month of all three; nothing is known before it, and young months are asked for more often."""
    assert desk.files.find(TRADES, SESSIONS[0]) is None
    assert desk.list_all() == ["us_stocks_sip/trades_v1/2013/10"]
    found = desk.files.find(TRADES, "2013-10-07")
    assert found == UpstreamFile(
        TRADES, "2013-10-07", "s3://flatfiles/us_stocks_sip/trades_v1/2013/10/2013-10-07.csv.gz", MIB, '"a"'
    )
    assert desk.list_all() == []
    desk.later(299)
    assert desk.list_all() == []
    desk.later(2)
    assert desk.list_all() == ["us_stocks_sip/trades_v1/2013/10"]
    desk.at("2013-12-20T20:00")
    assert len(desk.list_all()) == 1
    desk.later(301)
    assert desk.list_all() == []
    desk.later(24 * 300)
    assert len(desk.list_all()) == 1


def test_a_file_that_is_not_there_is_known_not_to_be(desk: Desk) -> None:
    """An answer too."""
    desk.list_all()
    found = desk.files.find(TRADES, "2013-10-09")
    assert found is not None
    assert not found.exists


def test_default_work_waits_for_the_close_and_a_region_goes_through_capped(desk: Desk) -> None:
    """From 15 minutes before the open; the task knows when quiet hours begin, and what it may use of the line then."""
    desk.at("2013-10-09T09:14")
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    assert task.remote
    assert task.arguments.quiet[0][0] == desk.state.calendar.parse_time("2013-10-09T09:15")
    assert task.arguments.quiet_bytes_per_s is None

    desk.at("2013-10-09T09:15")
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 5), ("2013-10-08", 0))
    assert (task.session, task.priority) == ("2013-10-07", 5)
    assert task.arguments.quiet_bytes_per_s == 8 * MIB
    assert desk.causes() == [("2013-10-08", "quiet")]
    health = desk.files.health()
    assert health is not None
    assert health.state == "paused"
    assert "2013-10-09T16:00" in health.detail

    desk.at("2013-10-09T16:00")
    desk.list_all()
    assert len(desk.plan(("2013-10-07", 0), ("2013-10-08", 0))) == 2
    assert desk.causes() == []


def test_quiet_hours_can_be_switched_off(tmp_path: Path) -> None:
    """For a line of one's own."""
    desk = Desk(tmp_path / "ledger.state", quiet_hours=False)
    desk.put("2013-10-07", MIB)
    desk.at("2013-10-09T12:00")
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    assert task.arguments.quiet == ()
    desk.state.close()


def test_the_budget_holds_downloads_back_until_files_are_no_longer_needed(desk: Desk) -> None:
    """Running downloads count; a file that is needed is not removed, one that is not makes room."""
    desk.list_all()
    first, second = desk.plan(*((session, 0) for session in SESSIONS))
    assert desk.causes() == [("2013-10-08", "budget")]
    health = desk.files.health()
    assert health is not None
    assert (health.state, "download_budget_gib" in health.detail) == ("paused", True)
    desk.files.started(first)
    desk.files.started(second)
    assert {task.key for task in desk.plan(*((session, 0) for session in SESSIONS))} == {first.key, second.key}
    desk.bring(first)
    desk.bring(second)

    assert desk.plan(*((session, 0) for session in SESSIONS)) == []
    assert desk.causes() == [("2013-10-08", "budget")]
    (third,) = desk.plan(("2013-10-07", 0), ("2013-10-08", 0))
    assert [Path(path).name[-20:] for path in third.arguments.remove] == ["-2013-10-04-a.csv.gz"]
    desk.bring(third)
    assert desk.kept() == ["2013-10-07", "2013-10-08"]


def test_a_file_larger_than_the_budget_says_so(tmp_path: Path) -> None:
    """It waits for the operator, and nothing is removed for it."""
    desk = Desk(tmp_path / "ledger.state", download_budget_gib=2.5 / 1024)
    desk.put("2013-10-04", MIB)
    desk.put("2013-10-07", 3 * MIB)
    desk.at("2013-10-09T20:00")
    desk.list_all()
    (task,) = desk.plan(("2013-10-04", 0))
    desk.bring(task)
    assert desk.plan(("2013-10-07", 0)) == []
    assert desk.causes() == [("2013-10-07", "budget")]
    assert desk.kept() == ["2013-10-04"]
    desk.state.close()


def test_files_are_kept_for_repairs_for_some_days(desk: Desk) -> None:
    """And over restarts; then the next listing removes them."""
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    desk.bring(task)
    desk.open()
    desk.later(2.9 * 86_400)
    desk.list_all()
    file = desk.files.find(TRADES, "2013-10-07")
    assert file is not None
    assert desk.files.path(file) is not None
    desk.later(0.2 * 86_400)
    desk.list_all()
    assert desk.files.path(file) is None
    assert desk.kept() == []


def test_a_replaced_object_is_another_file(desk: Desk) -> None:
    """The kept one is no longer its bytes, and is removed; so is a part of it."""
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    desk.bring(task)
    part = Path(target_of(task.arguments.target.replace("10-07", "10-08"), '"a"') + ".part")
    part.write_bytes(b"half")
    for session in ("2013-10-07", "2013-10-08"):
        desk.put(session, 2 * MIB, "b")
    desk.later(301)
    desk.list_all()
    file = desk.files.find(TRADES, "2013-10-07")
    assert file is not None
    assert desk.files.path(file) is None
    desk.list_all()
    assert list((desk.state.downloads / "trade_flatfile").glob("*")) == []


def test_trouble_with_the_bucket_is_a_pause_that_grows_and_ends_by_itself(desk: Desk) -> None:
    """Bounded, visible with its reason and the time of the next attempt, and over when the place answers."""
    pauses = []
    for _ in range(8):
        (task,) = desk.plan()
        desk.end(task, Listed({}, Trouble("denied", "s3://flatfiles: refuses the credentials", "check them")))
        assert desk.plan() == []
        begun = desk.clock.time_ns
        while not desk.plan():
            desk.later(1)
        pauses.append((desk.clock.time_ns - begun) / 1e9)
    assert pauses[0] < 20
    assert pauses == sorted(pauses[:5]) + pauses[5:]
    assert max(pauses) <= 300 * 1.25 + 1
    health = desk.files.health()
    assert health is not None
    assert health.state == "degraded"
    assert "check them" in health.detail
    assert "failed 8 times" in health.detail
    assert set(desk.causes()) == {("2013-10-08", "denied")}
    assert desk.list_all()
    assert desk.files.health() is None
    assert desk.causes() == []


def test_an_operator_does_not_wait_for_the_pause(desk: Desk) -> None:
    """Retry asks at once."""
    (task,) = desk.plan()
    desk.end(task, Listed({}, Trouble("unreachable", "nobody listens")))
    assert desk.plan() == []
    desk.files.retry()
    assert len(desk.plan()) == 1


def test_what_the_place_asks_to_wait_is_waited(desk: Desk) -> None:
    """Where it is longer than the pause."""
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    desk.end(task, Downloaded(ObjectFacts("", MIB, '"a"', 0), trouble=Trouble("unreachable", "busy", "", 250.0)))
    desk.later(249)
    assert desk.plan(("2013-10-07", 0)) == []
    assert desk.causes() == [("2013-10-07", "unreachable")]
    desk.later(2)
    assert len(desk.plan(("2013-10-07", 0))) == 1


def test_an_object_that_changed_on_the_way_is_listed_again(desk: Desk) -> None:
    """What the listing said is over."""
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    desk.end(task, Downloaded(None, trouble=Trouble("missing", "no such object")))
    assert desk.list_all() == ["us_stocks_sip/trades_v1/2013/10"]


def test_a_damaged_object_is_said_to_be_one(desk: Desk) -> None:
    """Waiting would not help: only another object will."""
    desk.list_all()
    (task,) = desk.plan(("2013-10-07", 0))
    report = Downloaded(ObjectFacts("", MIB, '"a"', 0), trouble=Trouble("damaged", "cut short"))
    found = desk.files.finished(task, report)
    assert found is not None
    assert (found[0].session, found[0].etag, found[1]) == ("2013-10-07", '"a"', "cut short")


def test_batches_of_fetches_have_no_cells(desk: Desk) -> None:
    """They spend no start number and map no session."""
    (task,) = desk.plan()
    assert (task.symbols, task.makes_files) == ((), False)
    assert Batch(report=Listed()).blocks == []
