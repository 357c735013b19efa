"""Every system call fails once, in every way: the state is the one before or the one after, and the error says where."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.audit import Operator
from ledger.backup import Copied, backup, finish
from ledger.calendar import load_calendar
from ledger.collection import Collected, collect
from ledger.columns import Column, Flag
from ledger.content import checksum_of
from ledger.errors import SpaceError, StateExists, StateMissing, StateReadOnly
from ledger.files import System
from ledger.maps import Artifact, PayloadMap
from ledger.records import RECORD_RETIRED
from ledger.retention import Retired, retire
from ledger.sources import SourceRecord, SourceState
from ledger.state import State, create_state, open_state
from ledger.undo import list_undo, read_undo, remove_undo, write_undo
from tests.ledger.conftest import FaultySystem
from tests.ledger.states import (
    EARLY_CLOSE,
    SESSION,
    add_rows,
    append,
    content,
    content_of,
    copied,
    findings,
    first_minute,
    hashes,
    in_memory,
    put,
    write_rows,
)

FAULTS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, "short")
SYNCS = ("fdatasync", "fsync")
GONE_NS = 1 << 62
ANN = Operator(uid=1000, user="ann")

Step = Callable[[State], Any]


@dataclass(frozen=True)
class Story:
    """Steps that an open state goes through; a failure may leave it behind any one of them, never inside one."""

    steps: tuple[Step, ...]
    setting: Callable[[Path], None] | None = None
    """What the directory holds before, made with a system that works."""


def cells(*pairs: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    at = np.array(pairs)
    return at[:, 0], at[:, 1]


def set_one(state: State) -> None:
    minute = first_minute(state)
    payload_id = int(append(state, Column.TRADE_REF.payload_kind, hashes(7, 1))[0])
    state.maps[Column.TRADE_REF.payload_kind].sync()
    state.trade.set_trade_ref(
        1, minute + 3, Column.TRADE_REF.payload_kind, payload_id, int(hashes(7, 1)[0] >> np.uint64(32))
    )


def set_many(state: State) -> None:
    symbols, minutes = np.repeat([0, 1, 3], 70), np.tile(np.arange(70), 3) + first_minute(state, EARLY_CLOSE)
    put(state, Column.GREEKS_REF, symbols, minutes, 8)


def filled(directory: Path) -> None:
    with open_state(directory) as state:
        put(state, Column.TRADE_REF, *cells((0, first_minute(state)), (0, first_minute(state) + 1)), 1)


def clear(state: State) -> None:
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    rows.clear_many(Column.TRADE_REF, *cells((0, 0), (0, 1)), now_ns=rows.now_ns())


def keep(state: State) -> None:
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    slots = rows.slots(Column.TRADE_REF, *cells((0, 0), (0, 1)))
    write_undo(
        state.directory, state.system, "op-1", {}, column=[1, 1], symbol_id=[0, 0],
        minute_idx=[first_minute(state), first_minute(state) + 1], version=slots["version"] + 1, slots=slots,
    )  # fmt: skip


def undo(state: State) -> None:
    kept = read_undo(state.directory, state.system, "op-1")
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    rows.restore_many(Column.TRADE_REF, *cells((0, 0), (0, 1)), kept.slots, kept.version, now_ns=rows.now_ns())


def forget(state: State) -> None:
    if "op-1" in list_undo(state.directory, state.system):
        remove_undo(state.directory, state.system, "op-1")


def refresh(state: State) -> None:
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    rows.flag_many(Column.TRADE_REF, *cells((0, 0), (0, 1)), add=Flag.WANTED, now_ns=rows.now_ns())


def add_artifact(state: State, name: str = "a.parquet") -> None:
    (state.artifact_root / name).write_bytes(b"rows")
    if state.artifacts.by_uri(name) is None:
        state.artifacts.append(
            Artifact(artifact_id=0, uri=name, checksum=0, bytes=4, rows=1, column="", session="", engine="")
        )


def many_regions(directory: Path) -> None:
    """So many changes that the next open for writing rewrites the file."""
    with open_state(directory) as state:
        region = state.regions.add(symbol="AIG", symbol_id=0, start_ts=1, end_ts=2, priority=1)
        state.regions.complete(region.id)
        state.regions.remove(region.id)


def add_region(state: State) -> None:
    state.regions.add(symbol="TWX", symbol_id=1, start_ts=1, end_ts=2, priority=5)


def put_source(state: State, rows: int) -> None:
    state.sources.put(
        SourceRecord(dataset="us_stocks_sip/trades_v1", session=SESSION, state=SourceState.COMPLETE, rows=rows)
    )


def audit(state: State) -> None:
    state.audit.append("clear", ANN, cause="x" * 200)


def small_log(state: State) -> None:
    """The next line puts the log aside."""
    state.audit._rotate_bytes = 1


def flush(state: State) -> None:
    """Through the flusher, as the daemon does."""
    assert state.flusher is not None
    generation = state.flusher.wrote(urgent=True)
    with state.flusher._wanted:
        pass
    while not state.flusher.durable(generation):
        if state.flusher.full is not None:
            full, state.flusher.full = state.flusher.full, None
            raise full


def torn(directory: Path) -> None:
    """A crash left a bit of everything half-written: rows, records, artifacts, sources, regions, audit, symbols."""
    filled(directory)
    with open_state(directory) as state:
        put(state, Column.QUOTE_REF, *cells((0, first_minute(state)), (0, first_minute(state) + 1)), 1)
    os.unlink(directory / "closed")
    minute_offset = 4096 + 32 + 32
    with (directory / "trade" / f"{SESSION}.rows").open("r+b") as file:
        file.seek(minute_offset + 12)
        file.write(b"\xff")
        file.seek(1024)
        file.write(bytes(64))
    for name in ("sources", "regions", "maps/artifacts.map", "audit/audit.log"):
        with (directory / name).open("ab") as file:
            file.write(b"\x20\0\0\0torn")
    with (directory / "maps" / "trade.map").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff")
    with (directory / "maps" / "quote.map").open("r+b") as file:
        file.seek(4096)
        file.write(PayloadMap._mark(clean=False, reserved=1000, next_id=2))
        file.truncate(8192 + 2 * 64 + 30)
    with (directory / "symbol-map.bin").open("r+b") as file:
        file.seek(4096 + 4 * 32)
        file.write(b"\3to")


def run_backup(state: State) -> None:
    target, done = state.directory.parent / "copy", Copied()
    for _ in backup(state, target, done):
        pass
    finish(state, target)


def run_collection(state: State) -> None:
    for _ in collect(state, older_than_ns=GONE_NS, current_prefix="x", dry_run=False, result=Collected()):
        pass


def with_quotes(directory: Path) -> None:
    """Quotes whose rows are in a file."""
    with open_state(directory) as state:
        ids = append(state, Column.QUOTE_REF.payload_kind, hashes(4, 9), add_rows(state, "quotes.parquet", 9))
        minutes, sums = first_minute(state) + np.arange(9), checksum_of(hashes(4, 9))
        state.trade.set_quote_ref(np.zeros(9, int), minutes, Column.QUOTE_REF.payload_kind, ids, sums)


def mark_retired(state: State) -> None:
    for _ in retire(state, [SESSION], Retired(), dry_run=False):
        pass


def reread(state: State) -> None:
    """Retired records that find their rows in a new file."""
    payloads = state.maps[Column.QUOTE_REF.payload_kind]
    ids = np.arange(payloads.clean_next_id - 9, payloads.clean_next_id)
    records = payloads.get_many(ids)
    records["record_flags"] &= ~np.uint8(RECORD_RETIRED)
    records["artifact_id"] = add_rows(state, "again.parquet", 9)
    payloads.relocate(ids, records)


STORIES = {
    "open and close": Story(()),
    "open what a crash tore": Story((lambda state: state.trade.session(192),), torn),
    "allocate": Story((lambda state: state.allocate(["NEW"]), lambda state: state.allocate([f"S{n}" for n in range(40)]))),
    "set one": Story((set_one, flush)),
    "set many": Story((set_many,)),
    "keep, clear, undo": Story((keep, clear, undo, forget), filled),
    "refresh": Story((refresh, flush), filled),
    "drop idle sessions": Story((clear, lambda state: state.trade.drop_idle(idle_ns=-GONE_NS)), filled),
    "audit": Story((audit, small_log, audit, audit)),
    "regions": Story((add_region, lambda state: state.regions.complete(2), lambda state: state.regions.remove(2)), many_regions),
    "activations": Story(
        (lambda state: state.regions.activate(symbol="AIG", symbol_id=0, first_session=SESSION, last_session=SESSION),)
    ),
    "sources": Story(tuple(lambda state, rows=rows: put_source(state, rows) for rows in range(4))),
    "artifacts": Story((add_artifact, lambda state: add_artifact(state, "b.parquet"))),
    "start number": Story((lambda state: state.take_start_number(),)),
    "backup": Story((run_backup,), filled),
    "collect": Story((add_artifact, run_collection)),
    "retire": Story(
        (
            mark_retired,
            run_collection,
            lambda state: write_rows(state, "again.parquet"),
            lambda state: add_rows(state, "again.parquet", 9),
            reread,
        ),
        with_quotes,
    ),
}  # fmt: skip


class Tries:
    """Runs one story again and again, each time with another call failing; counts what happened."""

    def __init__(self, template: Path, name: str, counts: Counter[str]) -> None:
        self.story = STORIES[name]
        self.name = name
        self.counts = counts
        self.folder = Path(tempfile.mkdtemp(prefix="m17-calls-", dir=in_memory()))
        self.ground = copied(template, self.folder / "ground")
        if self.story.setting is not None:
            self.story.setting(self.ground)
        self.allowed = [self._undisturbed(count) for count in range(len(self.story.steps) + 1)]

    def _fresh(self) -> Path:
        for name in ("ledger.state", "copy"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return copied(self.ground, self.folder / "ledger.state")

    def _undisturbed(self, count: int) -> dict[str, Any]:
        directory = self._fresh()
        with open_state(directory, system=FaultySystem(), flush_interval_s=3600) as state:
            for step in self.story.steps[:count]:
                step(state)
        return content_of(directory)

    def run(self, fail_at: int, fault: int | str) -> bool:
        """Fail one call; False when the story has fewer calls."""
        directory, system = self._fresh(), FaultySystem(fail_at, fault)
        before = open_descriptors()
        raised = self._play(directory, system)
        if not system.fired:
            assert raised is None
            assert content_of(directory) == self.allowed[-1]
            return False
        if raised is not None:
            raised.__traceback__ = raised.__context__ = None  # it holds on to what was being opened
        call = system.calls[fail_at - 1]
        where = f"{self.name}: call {fail_at} ({call}) fails with {fault}"
        self.counts[f"{call} {errno.errorcode[fault] if isinstance(fault, int) else fault}"] += 1
        if raised is not None:
            assert isinstance(raised, SpaceError), where
            assert raised.facts["call"] == call, where
            assert raised.facts["path"].startswith(str(self.folder)), where
            assert raised.facts["errno"] == fault, where
            assert raised.hint, where
        found = content_of(directory)
        if fault in (errno.EINTR, "short"):
            assert raised is None, where
            assert found == self.allowed[-1], where
        assert found in self.allowed, where
        assert findings(directory) == [], where
        if call != "close":
            assert open_descriptors() == before, where
        return True

    def _play(self, directory: Path, system: FaultySystem) -> SpaceError | None:
        raised: SpaceError | None = None
        try:
            state = open_state(directory, system=system, flush_interval_s=3600)
        except SpaceError as error:
            # The fault is over: the next try goes through.
            open_state(directory, system=system, flush_interval_s=3600).close()
            return error
        try:
            with state:
                for step in self.story.steps:
                    try:
                        step(state)
                    except SpaceError as error:
                        raised = error
                        if state.failure is not None:
                            self._refuses_writes(state)
                            break
                        step(state)
                if state.failure is None:
                    assert content(state) == self.allowed[-1]
        except SpaceError as error:
            assert raised is None
            raised = error
        return raised

    @staticmethod
    def _refuses_writes(state: State) -> None:
        """After a failed sync nothing is written any more, and everything is read."""
        assert content(state)
        for step in (set_many, audit, add_region, lambda state: state.allocate(["LATER"])):
            with pytest.raises(StateReadOnly):
                step(state)
        assert content(state)

    def close(self) -> None:
        shutil.rmtree(self.folder)


def open_descriptors() -> int:
    """How many this process has; mappings that nobody holds any more are let go first."""
    gc.collect(1)
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def tries(template: Path) -> Iterator[Callable[[str], Tries]]:
    """Makes the runs of a story."""
    made: list[Tries] = []

    def make(name: str) -> Tries:
        made.append(Tries(template, name, Counter()))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def quick_calendar(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's calendar; computing one takes half a second."""
    known = load_calendar(template, System())
    monkeypatch.setattr("ledger.creation.make_calendar", lambda _exchange, _year: known)


def made_again(directory: Path, system: FaultySystem) -> SpaceError | None:
    """Make a state, and again where that failed; what the failure was."""
    try:
        create_state(directory, year=2013, symbols=["AIG", "TWX"], system=system)
    except SpaceError as error:
        if (directory / "format").exists():
            with pytest.raises(StateExists):
                create_state(directory, year=2013, system=System())
        else:
            with pytest.raises(StateMissing):
                open_state(directory)
            create_state(directory, year=2013, symbols=["AIG", "TWX"], system=System())
        return error
    return None


def make_with(fail_at: int, fault: int | str) -> bool:
    """Make a state with one call failing; False when the making has fewer calls."""
    folder = Path(tempfile.mkdtemp(prefix="m17-made-", dir=in_memory()))
    directory, system = folder / "some" / "where", FaultySystem(fail_at, fault)
    raised = made_again(directory, system)
    assert content_of(directory)["symbols"] == ["AIG", "TWX"]
    shutil.rmtree(folder)
    if raised is not None:
        assert raised.facts["call"] == system.calls[fail_at - 1]
        assert raised.facts["path"].startswith(str(folder))
    return system.fired


@pytest.mark.usefixtures("quick_calendar")
def test_making_a_state_fails_whole_and_is_made_again() -> None:
    """At a failing call there is no state, or the whole one; the same call again makes it."""
    assert all(make_with(fail_at, FAULTS[fail_at % len(FAULTS)]) for fail_at in range(1, 100, 7))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_calendar")
def test_making_a_state_fails_at_every_call_in_every_way() -> None:
    """Every call, every fault, until none fires."""
    for fault in FAULTS:
        fail_at = 1
        while make_with(fail_at, fault):
            fail_at += 1


@pytest.mark.parametrize("name", STORIES)
def test_a_failing_call_leaves_the_state_before_or_after(tries: Callable[[str], Tries], name: str) -> None:
    """A few calls of each story, each fault in turn."""
    story = tries(name)
    for turn, fail_at in enumerate(range(1 + len(name) % 5, 10_000, 9)):
        if not story.run(fail_at, FAULTS[turn % len(FAULTS)]):
            break
    assert sum(story.counts.values()) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_every_call_fails_in_every_way(
    tries: Callable[[str], Tries], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every call of every story, every fault, until none fires."""
    story = tries(name)
    for fault in FAULTS:
        fail_at = 1
        while story.run(fail_at, fault):
            fail_at += 1
    with capsys.disabled():
        print(f"\n{name}: {sum(story.counts.values())} failed calls: {dict(sorted(story.counts.items()))}")
