"""Operations that a daemon's end interrupted: taken back, or answered to whoever asks again; never done twice."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ledger import sessionfile
from ledger.columns import Column, Flag, Status
from ledger.errors import StateFull
from ledger.undo import UndoFile
from m17d import choosing, opening, protocol, taking
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.envelopes import Rest
from m17d.outcomes import OperationReply
from m17d.peers import Context, Peer
from tests.ledger.states import copied
from tests.m17d import flat_files
from tests.m17d.test_daemon import start, wait_for

SESSION = "2013-05-01"
ME = Peer(os.getuid(), os.getgid(), os.getpid(), "me", frozenset({"read", "operate"}))
TICKERS = tuple(f"T{number:03d}" for number in range(80))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state of 80 stocks, filled; made once and copied."""
    root = tmp_path_factory.mktemp("filled")
    flat_files.write(root, SESSION, flat_files.packed(flat_files.good_lines(SESSION, TICKERS)))
    flat_files.write_config(root, [SESSION])
    done = flat_files.run(root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def root(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(filled, tmp_path / "r")


def opened(root: Path) -> Daemon:
    """A daemon that does not run: no engine refills what is cleared."""
    return Daemon(read_config(root / "m17.toml"), logging.getLogger("m17d-test"))


def request_of(op: str) -> protocol.ClearRequest | protocol.RefreshRequest:
    """An operation over all cells of the session, 31,200 of them: several steps."""
    kind = protocol.ClearRequest if op == "clear" else protocol.RefreshRequest
    return kind(columns=[Column.TRADE_REF], range=protocol.Range(session=SESSION), cause="test", confirmed=True)


def steps(daemon: Daemon, op: str) -> Iterator[Any]:
    """The operation's steps, as the server takes them."""
    answer = daemon.handlers.handle(request_of(op), Context(ME, "the-key"))
    assert isinstance(answer, Iterator)
    return answer


def changed(daemon: Daemon) -> int:
    """Cells that are not filled and free of marks."""
    rows = daemon.state.trade.session(daemon.state.calendar.session_seq(SESSION))
    index, count = rows.column_index(Column.TRADE_REF), len(daemon.state.symbols)
    status, flags = rows.status[index, :count], rows.flags[index, :count]
    return int(np.count_nonzero((status[:, :390] != Status.FILLED) | (flags[:, :390] & 2 != 0)))


@pytest.mark.parametrize("op", ["clear", "refresh"])
def test_operation_that_was_interrupted_is_taken_back_as_if_it_had_never_been_sent(root: Path, op: str) -> None:
    """Not one cell stays taken, it is audited as recovery, and sent again it is done whole, once."""
    daemon = opened(root)
    at_work = steps(daemon, op)
    while not changed(daemon):
        assert not isinstance(next(at_work), OperationReply)
    assert 0 < changed(daemon) < 31_200
    daemon.close()
    again = opened(root)
    try:
        assert [line for line in again.handlers.found if "was interrupted" in line]
        assert changed(again) == 0
        assert again.handlers.replayed("the-key", request_of(op), ME) is None
        *_, reply = steps(again, op)
        assert isinstance(reply, OperationReply)
        assert reply.cleared == {Column.TRADE_REF: 31_200} and changed(again) == 31_200
        ops = [record.op for record in again.state.audit.tail(100)]
        assert ops == ["recovery", op]
    finally:
        again.close()


@pytest.mark.parametrize("op", ["clear", "refresh"])
def test_operation_that_was_done_and_not_answered_is_answered_when_it_is_sent_again(root: Path, op: str) -> None:
    """The audit holds it, so it was done; the answer is the one that was due, and nothing is done again."""
    daemon = opened(root)
    *_, reply = steps(daemon, op)
    daemon.close()
    again = opened(root)
    try:
        assert [line for line in again.handlers.found if "not answered" in line]
        assert again.handlers.replayed("the-key", request_of(op), ME) == reply
        assert changed(again) == 31_200
        assert len(again.state.audit.tail(100)) == 1
    finally:
        again.close()
    third = opened(root)
    assert third.handlers.found == []
    third.close()


@pytest.mark.parametrize("op", ["clear", "refresh"])
def test_cell_that_changes_between_keeping_and_taking_stays_and_is_struck_out(root: Path, op: str) -> None:
    """An engine sets a cell while the thread keeps it: it is not taken, not counted, and undo does not touch it."""
    daemon = opened(root)
    rows = daemon.state.trade.session(daemon.state.calendar.session_seq(SESSION))
    kept = np.array([7]), np.array([11])
    operation = steps(daemon, op)
    for step in operation:
        if isinstance(step, Rest):
            rows.flag_many(Column.TRADE_REF, *kept, add=Flag.PARTIAL, now_ns=rows.now_ns())
        elif step is not None:
            reply = step
    version = int(rows.versions(Column.TRADE_REF, *kept)[0])

    assert reply.cleared == {Column.TRADE_REF: len(TICKERS) * 390 - 1}
    assert changed(daemon) == len(TICKERS) * 390 - 1
    undo = protocol.UndoRequest(operation=reply.operation, cause="test")
    *_, undone = daemon.handlers.handle(undo, Context(ME, "another-key"))  # type: ignore[misc]
    assert undone.restored == {Column.TRADE_REF: len(TICKERS) * 390 - 1}
    assert undone.skipped == {Column.TRADE_REF: 0}
    assert changed(daemon) == 0
    assert int(rows.versions(Column.TRADE_REF, *kept)[0]) == version
    daemon.close()


def test_engines_are_asked_once_for_an_operation_of_many_pieces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose cells would be made again takes a look at every symbol, and every piece counts with the same answer."""
    asked = []
    daemon = opened(root)
    engine = daemon.runner.engines["trade_flatfile"]
    whole = type(engine).covers

    def covers(self: Any, session: str, column: Column) -> np.ndarray | None:
        asked.append(column)
        return whole(self, session, column)

    monkeypatch.setattr(choosing, "CELLS_PER_FRAME", 390)
    monkeypatch.setattr(type(engine), "covers", covers)
    *_, reply = steps(daemon, "clear")
    assert reply.refillable.flat_file == reply.cleared[Column.TRADE_REF] == 31_200
    assert asked == [Column.TRADE_REF]
    daemon.close()


@pytest.mark.parametrize("op", ["clear", "refresh"])
def test_small_operation_has_its_turn_in_the_middle_of_a_large_one(
    root: Path, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its few cells are taken between two pieces of the large one, and each cell is taken and counted by one of them."""
    monkeypatch.setattr(choosing, "CELLS_PER_FRAME", 390)
    monkeypatch.setattr(taking, "_PIECES_KEPT", 1)
    daemon = opened(root)
    large = steps(daemon, op)
    while not changed(daemon):
        next(large)
    few = msgspec.structs.replace(request_of(op), range=protocol.Range(session=SESSION, symbols="T079"))
    small = daemon.handlers.handle(few, Context(ME, "another-key"))
    assert isinstance(small, Iterator)
    first: Any = None
    while first is None:
        assert not isinstance(next(large), OperationReply), "the small one waits for the end"
        first = next((step for step in [next(small)] if isinstance(step, OperationReply)), None)
    *_, second = large
    assert first.cleared == {Column.TRADE_REF: 390}
    assert second.cleared == {Column.TRADE_REF: 31_200 - 390}
    assert changed(daemon) == 31_200
    daemon.close()


def test_operation_that_fails_in_the_middle_is_taken_back_step_by_step(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the second sync: whoever asked is told, nothing is cleared, and others are served meanwhile."""
    daemon = opened(root)
    monkeypatch.setattr(taking, "_PIECES_KEPT", 1)
    kept = []

    def keep(file: UndoFile, **cells: Any) -> None:
        if kept:
            raise StateFull("no room")
        kept.append(whole(file, **cells))

    whole = UndoFile.keep
    monkeypatch.setattr(UndoFile, "keep", keep)
    seen = []

    def work_through() -> None:
        for _ in steps(daemon, "clear"):
            seen.append(changed(daemon))

    with pytest.raises(StateFull):
        work_through()

    assert max(seen) > 0
    assert changed(daemon) == 0
    assert seen.index(max(seen)) < len(seen) - 2, "taking back was one step"
    assert not list((root / "ledger.state" / "audit" / "open").iterdir())
    daemon.close()


def test_request_about_a_session_that_is_not_mapped_waits_for_it_in_steps(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are served between them; a cell that is already mapped is answered at once."""
    monkeypatch.setattr(sessionfile, "_LOADED_AT_ONCE", 4)
    monkeypatch.setattr(opening, "STEP_S", 0.0)
    daemon = opened(root)
    seq = daemon.state.calendar.session_seq(SESSION)
    wait = protocol.WaitRequest(columns=[Column.TRADE_REF], range=protocol.Range(session=SESSION))
    answer = daemon.handlers.handle(wait, Context(ME))
    assert isinstance(answer, Iterator)
    assert seq not in daemon.state.trade.mapped()
    taken = list(answer)
    assert len(taken) > len(TICKERS) // 4
    assert taken[-1].whole
    assert seq in daemon.state.trade.mapped()
    coverage = protocol.CoverageRequest(session=SESSION)
    assert not isinstance(daemon.handlers.handle(coverage, Context(ME)), Iterator)
    daemon.close()


def test_two_operations_at_once_have_two_names(root: Path) -> None:
    """What each takes is kept apart, so that each can be undone."""
    daemon = opened(root)
    try:
        one, other = steps(daemon, "refresh"), steps(daemon, "clear")
        for _ in range(4):
            next(one)
            next(other)
        replies = [next(step for step in rest if isinstance(step, OperationReply)) for rest in (one, other)]
        assert replies[0].operation != replies[1].operation
    finally:
        daemon.close()


def test_region_that_was_raised_and_not_answered_is_not_raised_twice(root: Path) -> None:
    """The same key by the same user is the same region."""
    daemon = opened(root)
    try:
        request = protocol.PriorityAddRequest(
            symbol="T000", from_ts="10:00", to_ts="10:30", session=SESSION, priority=5, columns=[Column.TRADE_REF]
        )
        first, second = (daemon.handlers.handle(request, Context(ME, "the-key")) for _ in range(2))
        assert first.id == second.id  # type: ignore[union-attr]
        other = daemon.handlers.handle(request, Context(ME, "another-key"))
        assert other.id != first.id  # type: ignore[union-attr]
    finally:
        daemon.close()


# ---- kills


OPERATIONS = [
    {"op": "clear", "columns": ["trade_ref"], "session": SESSION, "symbols": "T00?", "cause": "storm"},
    {"op": "priority", "symbol": "T001", "session": SESSION, "from": "10:00", "to": "10:30", "priority": 7},
    {"op": "refresh", "columns": ["trade_ref"], "session": SESSION, "symbols": "T07?", "cause": "storm"},
    {"op": "clear", "columns": ["trade_ref"], "session": SESSION, "symbols": "T0[3-6]?", "cause": "storm"},
    {"op": "pause", "engine": "trade_flatfile", "cause": "storm"},
    {"op": "resume", "engine": "trade_flatfile"},
    {"op": "wait", "columns": ["trade_ref"], "session": SESSION, "timeout": 60},
]


def storm(root: Path, kills: int) -> None:
    """Run the file again and again, kill client or daemon anywhere, and count what was done."""
    (root / "ops.ndjson").write_text("".join(json.dumps(one) + "\n" for one in OPERATIONS))
    chance = random.Random(17)
    daemon = start(root)
    try:
        wait_for(daemon, root, "serving on", timeout_s=120)
        killed = 0
        for number in range(kills * 4):
            if killed >= kills:
                break
            while True:
                command = [sys.executable, "-m", "m17ctl", "--socket", "ledger.state/m17d.sock"]
                client = subprocess.Popen(
                    [*command, "repair", "ops.ndjson", "--run", str(number)],
                    cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                try:
                    if killed < kills:
                        time.sleep(chance.uniform(0.15, 0.6))
                        victim = daemon if chance.random() < 0.7 else client
                        if client.poll() is None:
                            victim.send_signal(signal.SIGKILL)
                            killed += 1
                            if victim is daemon:
                                daemon.wait(120)
                                daemon = start(root)
                                wait_for(daemon, root, "serving on", timeout_s=120)
                    said, complaint = client.communicate(timeout=120)
                finally:
                    client.kill()
                if client.returncode == 0:
                    break
                assert client.returncode in (7, 8, -signal.SIGKILL), said + complaint
        assert killed >= kills
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(120) == 0
    finally:
        daemon.kill()
        daemon.wait()
    done: Counter[tuple[str, str]] = Counter()
    for path in sorted((root / "ledger.state" / "audit").glob("audit*.log")):
        for record in map(json.loads, path.read_text().splitlines()):
            if record["op"] in ("clear", "refresh"):
                done[record["op"], record["claimed"]["key"]] += 1
    keys = Counter(op for op, _ in done)
    print(f"{killed} kills over {keys['refresh']} runs of the file; {keys['clear']} clears, each once")
    assert set(done.values()) == {1}
    assert keys["clear"] == 2 * keys["refresh"]
    last = opened(root)
    try:
        regions = Counter(region.key for region in last.state.regions.list(everything=True))
        assert set(regions.values()) == {1} and len(regions) == keys["refresh"]
        assert last.state.audit.verify() == []
        assert changed(last) == 0
    finally:
        last.close()


def test_file_of_operations_killed_anywhere_and_run_again_does_each_once(root: Path) -> None:
    """Client and daemon are killed in turn; every clear, refresh and region is there once, and the session is whole."""
    storm(root, 3)


@pytest.mark.slow
def test_file_of_operations_over_200_kills(root: Path) -> None:
    """The same, 200 kills."""
    storm(root, 200)
