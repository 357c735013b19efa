"""The client: a daemon that is not there, that dies and comes back, that is too slow, too new; streams and events."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from ledger.columns import Column, LedgerKind
from m17ctl.client import (
    Client,
    DaemonUnreachable,
    OutcomeUnknown,
    ProtocolMismatch,
    RemoteFailure,
    TimedOut,
    rows_of_slab,
    slab_dtype,
)
from m17d.envelopes import ReplyEnvelope, encode_body, encode_reply
from m17d.outcomes import AcceptReply, EndReply, Event, Progress, SubscribeReply, WaitReply
from m17d.protocol import (
    AcceptRequest,
    BackupRequest,
    BulkRequest,
    ClearRequest,
    MetricsRequest,
    PingRequest,
    Range,
    RowRequest,
    SessionsListRequest,
    WaitRequest,
)
from m17d.replies import ROW_HEADER_FORMAT, SLOT_FORMAT, BulkReply, PingReply, RowReply, SourceReply
from tests.m17d.wire_daemon import (
    BULK_PIECES,
    SLAB_ROWS,
    ThreadDaemon,
    as_another_user,
    in_thread,
    open_to_others,
    start_process,
    stop_process,
)

DAY = Range(session="2013-10-07")
CLEAR = ClearRequest(columns=["trade_ref"], range=DAY, cause="test")  # type: ignore[list-item]
BULK = BulkRequest(ledger="trade", range=DAY)  # type: ignore[arg-type]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ThreadDaemon]:
    """A served socket."""
    with in_thread(tmp_path) as running:
        yield running


def answering(path: Path, reply: dict[str, object] | None) -> threading.Thread:
    """A daemon of another version: answers one request with a hand-made envelope, or never."""
    ready = threading.Event()

    def serve() -> None:
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 500)
        router.bind(f"ipc://{path}")
        ready.set()
        if router.poll(60_000):
            frames = router.recv_multipart()
            request = msgspec.msgpack.decode(frames[-1])
            if reply is not None:
                router.send_multipart([frames[0], msgspec.msgpack.encode({"id": request["id"], **reply})])
            # Until the client has left: what it has not read yet is lost when the connection breaks under it.
            router.poll(1_500)
        router.close()
        context.term()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait(60)
    return thread


def test_missing_socket_is_reported_at_once_with_path_errno_and_remedy(tmp_path: Path) -> None:
    """Nobody waits for a daemon that is not there."""
    with Client(tmp_path / "none.sock", timeout_s=86_400) as client, pytest.raises(DaemonUnreachable) as failure:
        client.call(PingRequest())
    assert failure.value.exit_code == 7
    assert failure.value.facts == {"path": str(tmp_path / "none.sock"), "errno": 2}
    assert str(tmp_path) in str(failure.value)
    assert "m17d run" in failure.value.hint


def test_socket_that_nobody_listens_on_is_told_from_a_missing_one(tmp_path: Path) -> None:
    """What a kill leaves behind: refused, not missing."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "d.sock"))
    with Client(tmp_path / "d.sock") as client, pytest.raises(DaemonUnreachable, match="errno 111") as failure:
        client.call(PingRequest())
    assert "no daemon listens" in failure.value.hint


def test_socket_without_permission_says_so(tmp_path: Path) -> None:
    """A user outside the group is told that, not that the daemon is down."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")

    def work() -> str:
        try:
            Client(daemon.path, 60).call(PingRequest())
        except DaemonUnreachable as failure:
            return f"{failure.facts['errno']} {failure.hint}"
        return "it was allowed"

    open_to_others(tmp_path)
    with in_thread(tmp_path) as daemon:
        assert as_another_user(65_533, work).startswith("13 this user may not open the socket")


def test_path_that_is_too_long_names_its_length(tmp_path: Path) -> None:
    """The limit is explained, not the system's EINVAL."""
    with Client(tmp_path / ("x" * 120)) as client, pytest.raises(DaemonUnreachable, match="at most 107"):
        client.call(PingRequest())


def test_call_returns_the_reply_struct(daemon: ThreadDaemon) -> None:
    """A request in, its reply out, on one connection as often as wanted."""
    with Client(daemon.path) as client:
        assert isinstance(client.call(PingRequest()), PingReply)
        row = client.call(RowRequest(symbol="AIG", at="2013-10-07T09:31"))
        assert isinstance(row, RowReply)
        assert client.daemon_version == "test"


def test_connection_outlives_a_restart_between_calls(tmp_path: Path) -> None:
    """A long-lived client notices neither the end nor the start; in between it says that nobody is there."""
    with Client(tmp_path / "d.sock", 60) as client:
        with in_thread(tmp_path):
            client.call(PingRequest())
        with pytest.raises(DaemonUnreachable):
            client.call(PingRequest())
        with in_thread(tmp_path):
            assert isinstance(client.call(PingRequest()), PingReply)


def test_read_without_answer_times_out_and_changed_nothing(tmp_path: Path) -> None:
    """A daemon that hangs: exit 8, no key, since nothing can have happened."""
    thread = answering(tmp_path / "d.sock", None)
    with Client(tmp_path / "d.sock", 0.4) as client, pytest.raises(TimedOut) as failure:
        client.call(PingRequest())
    assert failure.value.exit_code == 8
    assert not isinstance(failure.value, OutcomeUnknown)
    thread.join(60)


def test_mutation_without_answer_is_unknown_and_prints_its_key(tmp_path: Path) -> None:
    """The key is in the message: with it the operator finds out."""
    thread = answering(tmp_path / "d.sock", None)
    with Client(tmp_path / "d.sock", 0.7) as client, pytest.raises(OutcomeUnknown) as failure:
        client.call(CLEAR, key="my-key")
    assert (failure.value.exit_code, failure.value.key) == (8, "my-key")
    assert "my-key" in str(failure.value)
    thread.join(60)


def test_answer_of_another_protocol_is_a_mismatch(tmp_path: Path) -> None:
    """A kind of reply that this client has never heard of, and a version it does not speak: exit 9."""
    versions = {"version": "9.0", "protocol_min": 5, "protocol_max": 6}
    refusal = {"code": "protocol_version", "message": "speaks 1", "hint": "update"}
    for number, reply in enumerate(({"kind": "novel", "body": {}}, {"kind": "failure", "body": refusal})):
        path = tmp_path / f"{number}.sock"
        thread = answering(path, {**versions, **reply})
        with Client(path, 60) as client, pytest.raises(ProtocolMismatch, match=r"9\.0") as failure:
            client.call(PingRequest())
        assert failure.value.exit_code == 9
        thread.join(60)


def test_mutation_gets_a_new_key_each_time(daemon: ThreadDaemon) -> None:
    """Two clears are two operations; the same key is one."""
    with Client(daemon.path) as client:
        first = client.call(CLEAR)
        key = client.last_key
        second = client.call(CLEAR)
        again = client.call(CLEAR, key=key)
    assert first.operation != second.operation
    assert again == first
    assert client.last_envelope is not None
    assert client.last_envelope.replayed


def test_mutations_survive_kills_exactly_once(tmp_path: Path) -> None:
    """The daemon is killed every tenth of a second: each operation is applied once, and the client never gives up."""
    stop = threading.Event()
    processes = [start_process(tmp_path)]

    def killer() -> None:
        while not stop.wait(0.12):
            processes[-1].kill()
            processes[-1].wait()
            (out := processes[-1].stdout) and out.close()
            processes.append(start_process(tmp_path))

    thread = threading.Thread(target=killer)
    thread.start()
    operations = set()
    try:
        with Client(tmp_path / "d.sock", 120) as client:
            until = time.monotonic() + 120
            while (len(processes) < 12 or len(operations) < 20) and time.monotonic() < until:
                try:
                    operations.add(client.call(CLEAR).operation)
                except DaemonUnreachable:
                    time.sleep(0.02)
    finally:
        stop.set()
        thread.join()
    with Client(tmp_path / "d.sock", 120) as client:
        applied = int(client.call(MetricsRequest()).text)
    stop_process(processes[-1])
    assert len(processes) >= 12
    assert applied == len(operations) >= 20


def test_mutation_whose_daemon_dies_between_the_answer_and_its_end_is_asked_again(tmp_path: Path) -> None:
    """A piece came, then another daemon: the same key is sent to it, and its answer stands for the piece."""
    path, keys = tmp_path / "d.sock", []
    listens = threading.Event()
    reply = AcceptReply(
        operation="op-1",
        accepted={Column.TRADE_REF: 1},
        sources=[SourceReply(dataset="x", session="2013-10-07", state="absent")],
        dry_run=False,
    )

    def serve() -> None:
        for more in (True, False):
            context = zmq.Context()
            router = context.socket(zmq.ROUTER)
            router.setsockopt(zmq.LINGER, 500)
            router.bind(f"ipc://{path}")
            listens.set()
            assert router.poll(120_000)
            route, frame = router.recv_multipart()
            request = msgspec.msgpack.decode(frame)
            keys.append(request["key"])
            envelope = ReplyEnvelope(
                id=request["id"], kind="accept", body=encode_body(reply), version="test", protocol_min=1,
                protocol_max=1, more=more, replayed=not more,
            )  # fmt: skip
            router.send_multipart([route, encode_reply(envelope)])
            if more:
                # Long enough for the piece to be read; what is behind it never comes.
                time.sleep(0.2)
            else:
                done.wait(120)
            router.close()
            context.term()

    done = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    assert listens.wait(120)
    with Client(path, 120) as client:
        answer = client.call(AcceptRequest(range=DAY, cause="test"))
        done.set()
        thread.join()
    assert answer == reply
    assert len(keys) == 2
    assert len(set(keys)) == 1


@contextlib.contextmanager
def one_after_the_other(path: Path, answers: list[list[WaitReply | EndReply]]) -> Iterator[list[dict[str, Any]]]:
    """Daemons at one path, each for one request: it gives its answers, all but an end with more to come, and dies. Gives the requests."""
    listens, done = threading.Event(), threading.Event()
    asked: list[dict[str, Any]] = []

    def answer(router: zmq.Socket[bytes], replies: list[WaitReply | EndReply]) -> None:
        route, frame = router.recv_multipart()
        request = msgspec.msgpack.decode(frame)
        if request["body"]["op"] == "cancel":
            return
        asked.append(request)
        for piece, reply in enumerate(replies):
            ends = isinstance(reply, EndReply)
            envelope = ReplyEnvelope(
                id=request["id"], kind="end" if ends else "wait", body=encode_body(reply), version="test",
                protocol_min=1, protocol_max=1, more=not ends, piece=piece,
            )  # fmt: skip
            router.send_multipart([route, encode_reply(envelope)])

    def serve() -> None:
        for number, replies in enumerate(answers, 1):
            context = zmq.Context()
            router = context.socket(zmq.ROUTER)
            router.setsockopt(zmq.LINGER, 60_000)
            router.bind(f"ipc://{path}")
            listens.set()
            while len(asked) < number and not done.is_set():
                if router.poll(100):
                    answer(router, replies)
            # Long enough for the pieces to be read; what is behind them never comes.
            done.wait(0.2 if number < len(answers) else 120)
            router.close()
            context.term()

    thread = threading.Thread(target=serve)
    thread.start()
    assert listens.wait(120)
    try:
        yield asked
    finally:
        done.set()
        thread.join()


WAIT = WaitRequest(columns=[Column.TRADE_REF], range=DAY)


def part(cells: int) -> WaitReply:
    """A piece of an answer."""
    return WaitReply(whole=False, cells=cells, remaining={list(Column)[cells]: 1})


def test_read_whose_daemon_dies_before_the_end_of_its_answer_is_asked_again(tmp_path: Path) -> None:
    """Pieces came, then another daemon, as between a wait's answer and its end: its answer is taken, and nothing of the first."""
    path = tmp_path / "d.sock"
    answers = [[part(1), part(2)], [part(3), part(4), EndReply()]]
    with one_after_the_other(path, answers) as asked, Client(path, 120) as client:
        answer = client.call(WAIT)
    assert (answer.cells, set(answer.remaining)) == (4, set(list(Column)[3:5]))
    assert [one["body"]["op"] for one in asked] == ["wait", "wait"]
    assert len({one["id"] for one in asked}) == 2


def test_stream_whose_daemon_dies_ends_with_an_error_where_it_had_given_pieces_away(tmp_path: Path) -> None:
    """Nobody could tell what belongs together; it says so when it sees it, and the next call is answered."""
    path = tmp_path / "d.sock"
    with one_after_the_other(path, [[part(1)], [part(2), EndReply()]]), Client(path, 3_600) as client:
        pieces = client.stream(WAIT)
        assert next(pieces) == part(1)
        with pytest.raises(DaemonUnreachable, match="went away in the middle of its answer"):
            next(pieces)
        assert list(client.stream(WAIT)) == [part(2)]


def test_request_that_a_daemon_took_along_is_sent_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it would have been sent again anyhow, which is in an hour here."""
    monkeypatch.setattr("m17ctl.client._RESEND_FIRST_SECONDS", 3_600.0)
    path = tmp_path / "d.sock"
    with one_after_the_other(path, [[], [part(1), EndReply()]]) as asked, Client(path, 120) as client:
        assert client.call(WAIT) == part(1)
    assert len(asked) == 2


def test_stream_yields_pieces_and_slabs_unpack(daemon: ThreadDaemon) -> None:
    """Every piece once, in order, each with the slab it announces."""
    with Client(daemon.path) as client:
        pieces = list(client.slabs(BULK))
    assert [next(iter(reply.symbols)) for reply, _ in pieces] == [*range(BULK_PIECES)]
    rows = list(rows_of_slab(*pieces[0]))
    assert len(rows) == SLAB_ROWS
    assert (len(rows[0].slots), len(rows[0].slots[0])) == (4, 10)
    with pytest.raises(ValueError, match="announced"):
        next(rows_of_slab(pieces[0][0], b"short"))


def test_numpy_reads_a_slab_as_the_tuples_do() -> None:
    """Every field of random rows of both ledgers is the same by either way, and a slab of another size is refused."""
    for ledger in LedgerKind:
        columns = [column for column in Column if column.ledger is ledger]
        row_format = ROW_HEADER_FORMAT + SLOT_FORMAT * len(columns)
        size = struct.calcsize(row_format)
        slab = random.Random(17).randbytes(5 * size)
        reply = BulkReply(
            ledger=ledger,
            session="2013-10-07",
            rows=5,
            row_bytes=size,
            row_format=row_format,
            columns=columns,
            symbols={},
        )
        found = np.frombuffer(slab, dtype=slab_dtype(reply, slab))
        for row, tuples in zip(found, rows_of_slab(reply, slab), strict=True):
            assert (row["symbol_id"], row["minute_idx"], row["start_ts"], row["end_ts"]) == tuples[:4]
            assert [tuple(row[column].tolist()) for column in columns] == list(tuples.slots)
        with pytest.raises(ValueError, match="announced"):
            slab_dtype(reply, slab[1:])


def test_stream_that_is_left_early_is_cancelled(daemon: ThreadDaemon) -> None:
    """Breaking out of the loop stops the daemon's work on it, and the connection goes on."""
    with Client(daemon.path) as client:
        for _ in client.slabs(BULK):
            break
        assert isinstance(client.call(PingRequest()), PingReply)
    assert daemon.handler.stepped < BULK_PIECES


def test_progress_is_reported_and_renews_the_deadline(daemon: ThreadDaemon) -> None:
    """A long request may take longer than the timeout, as long as it is heard of."""
    seen: list[Progress] = []
    with Client(daemon.path) as client:
        done = client.call(BackupRequest(directory="/b"), timeout_s=1.9, on_progress=seen.append)
    assert done.files == 50
    assert seen
    assert seen[0].unit == "files"


def test_subscription_yields_events_until_idle(daemon: ThreadDaemon) -> None:
    """First how it stands, then what happens."""
    with Client(daemon.path) as client:
        events = client.subscribe("cells", idle_s=0.5)
        begun = next(events)
        assert isinstance(begun, SubscribeReply)
        daemon.publish("cells", 3)
        numbers = [event.seq for event in events if isinstance(event, Event)]
    assert numbers == [1, 2, 3]


def test_failure_in_the_middle_keeps_the_connection(daemon: ThreadDaemon) -> None:
    """A refusal is an answer: the next call works."""
    with Client(daemon.path) as client:
        with pytest.raises(RemoteFailure) as failure:
            client.call(RowRequest(symbol="NOSUCH", at=0))
        assert failure.value.exit_code == 6
        assert len(client.call(SessionsListRequest()).sessions) == 20_000


def test_socket_comes_from_the_environment(daemon: ThreadDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """M17_SOCKET stands in where no path is given."""
    monkeypatch.setenv("M17_SOCKET", str(daemon.path))
    with Client() as client:
        assert isinstance(client.call(PingRequest()), PingReply)
