"""The server: roles, deadlines, keys, streams, subscriptions, and the socket file itself."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
import zmq

from m17ctl.client import Client, RemoteFailure
from m17d.envelopes import decode_reply_body, decode_reply_envelope, encode_request
from m17d.listening import Connection, Listening, ListeningError, greediest
from m17d.outcomes import Event, Failure, SubscribeReply
from m17d.peers import OPERATE, OVERFLOW_UID, READ, Peers, roles_for
from m17d.protocol import (
    BackupRequest,
    BulkRequest,
    CancelRequest,
    ClearRequest,
    CreditRequest,
    GcRequest,
    HelloRequest,
    MetricsRequest,
    PingRequest,
    Range,
    ReportRequest,
    Request,
    RowRequest,
    SessionsListRequest,
    SubscribeRequest,
)
from m17d.replies import PingReply
from m17d.server import Server
from m17d.streams import PROGRESS_SECONDS_MIN, Limits
from tests.m17d.wire_daemon import (
    BULK_PIECES,
    CountingHandler,
    ThreadDaemon,
    as_another_user,
    in_thread,
    open_to_others,
)

DAY = Range(session="2013-10-07")
CLEAR = ClearRequest(columns=["trade_ref"], range=DAY, cause="test")  # type: ignore[list-item]
BULK = BulkRequest(ledger="trade", range=DAY)  # type: ignore[arg-type]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ThreadDaemon]:
    """A served socket."""
    with in_thread(tmp_path) as running:
        yield running


@pytest.fixture
def wire(daemon: ThreadDaemon) -> Iterator[Wire]:
    """A bare DEALER on it."""
    with Wire(daemon.path) as bare:
        yield bare


class Wire:
    """A bare DEALER socket: sends what it is told, receives envelope and body."""

    def __init__(self, path: Path, kind: int = zmq.DEALER) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def send(self, request: Request, request_id: int, **envelope: Any) -> None:
        """Send a request."""
        self.socket.send(encode_request(request, request_id, **envelope))

    def receive(self, timeout_ms: int = 60_000) -> Any:
        """The next envelope and body, or None."""
        if not self.socket.poll(timeout_ms):
            return None
        envelope = decode_reply_envelope(self.socket.recv_multipart()[0])
        return envelope, decode_reply_body(envelope)

    def drain(self, quiet_ms: int = 1_000) -> list[Any]:
        """Everything that comes until it is quiet, longer than a busy machine keeps a process waiting."""
        found = []
        while (message := self.receive(quiet_ms)) is not None:
            found.append(message)
        return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within some seconds."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_reply_carries_id_version_and_kind(wire: Wire) -> None:
    """A caller can tell what it is an answer to."""
    wire.send(PingRequest(), 77)
    envelope, body = wire.receive()
    assert (envelope.id, envelope.kind, envelope.version) == (77, "ping", "test")
    assert (envelope.protocol_min, envelope.protocol_max, envelope.more) == (1, 1, False)
    assert isinstance(body, PingReply)


def test_req_socket_gets_its_frames_back(daemon: ThreadDaemon) -> None:
    """A REQ with correlation drops every reply whose envelope was not echoed whole."""
    with Wire(daemon.path, zmq.REQ) as request:
        request.socket.setsockopt(zmq.REQ_CORRELATE, 1)
        request.send(PingRequest(), 1)
        assert request.receive()[0].kind == "ping"


def test_deadline_that_has_passed_does_nothing(daemon: ThreadDaemon, wire: Wire) -> None:
    """A clear that arrives after its caller has gone is not done."""
    wire.send(CLEAR, 1, key="late", deadline_ms=time.time_ns() // 1_000_000 - 50)
    assert wire.receive()[1].code == "deadline_expired"
    assert daemon.handler.applied == 0


def test_error_inside_is_internal_without_a_word_of_it(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """No traceback and no text of an unforeseen error leaves; the log has them."""
    wire.send(ReportRequest(session="2013-10-07"), 1)
    failure = wire.receive()[1]
    assert isinstance(failure, Failure)
    assert failure.code == "internal"
    assert "secret" not in failure.message + failure.hint
    assert "a secret of the inside" in caplog.text


def test_mutation_without_key_is_refused(daemon: ThreadDaemon, wire: Wire) -> None:
    """Without a key it could not be told from its repetition."""
    wire.send(CLEAR, 1)
    assert wire.receive()[1].code == "bad_request"
    assert daemon.handler.applied == 0


def test_mutation_sent_twice_is_done_once_and_answered_the_same(daemon: ThreadDaemon, wire: Wire) -> None:
    """The second answer is the first, marked as replayed."""
    wire.send(CLEAR, 1, key="one")
    wire.send(CLEAR, 2, key="one")
    first, second = wire.receive(), wire.receive()
    assert first[1] == second[1]
    assert (first[0].replayed, second[0].replayed) == (False, True)
    assert daemon.handler.applied == 1


def test_key_is_remembered_over_a_restart(tmp_path: Path) -> None:
    """Another daemon on the same journal answers the same and does nothing."""
    answers = []
    for _ in range(2):
        with in_thread(tmp_path) as daemon, Wire(daemon.path) as wire:
            wire.send(CLEAR, 1, key="one")
            answers.append(wire.receive()[1])
            assert daemon.handler.applied == 1
    assert answers[0] == answers[1]


def test_key_of_another_request_is_refused(wire: Wire) -> None:
    """A key names one request for good."""
    wire.send(CLEAR, 1, key="one")
    wire.send(GcRequest(), 2, key="one")
    assert wire.receive()[1].operation == "op-1"
    assert wire.receive()[1].code == "key_reused"


def test_long_mutation_that_is_sent_again_answers_the_newcomer(daemon: ThreadDaemon, wire: Wire) -> None:
    """A backup under way is not begun twice; whoever asks last gets its answer."""
    wire.send(BackupRequest(directory="/b"), 1, key="one")
    assert wire.receive()[0].kind == "progress"
    with Wire(daemon.path) as second:
        second.send(BackupRequest(directory="/b"), 9, key="one")
        kinds = [(envelope.id, envelope.kind) for envelope, _ in second.drain(3_000)]
    assert kinds[-2:] == [(9, "backup"), (9, "end")]
    assert daemon.handler.applied == 1


def test_no_piece_of_a_mutation_leaves_before_it_is_remembered(daemon: ThreadDaemon, wire: Wire) -> None:
    """Whoever has heard a piece does not ask again, so a daemon killed behind it must know the answer."""
    wire.send(BackupRequest(directory="/b"), 1, key="one")
    while (envelope := wire.receive()[0]).kind == "progress":
        pass
    assert envelope.kind == "backup"
    assert [key for _, key in daemon.handler.answers] == ["one"]


def test_long_mutation_goes_on_without_its_reader(daemon: ThreadDaemon) -> None:
    """What a mutation does must not depend on who is listening."""
    with Wire(daemon.path) as wire:
        wire.send(BackupRequest(directory="/b"), 1, key="one")
        assert wire.receive()[0].kind == "progress"
    assert eventually(lambda: bool(daemon.handler.answers))
    assert daemon.handler.applied == 1
    with Wire(daemon.path) as wire:
        wire.send(BackupRequest(directory="/b"), 1, key="one")
        envelope, body = wire.receive()
        assert envelope.replayed
        assert body.files == 50


def test_stream_stops_at_its_credit_and_goes_on_with_more(wire: Wire) -> None:
    """Three pieces for a credit of three; the rest when asked for, numbered, then the end."""
    wire.send(BULK, 5, credit=3)
    assert [envelope.piece for envelope, _ in wire.drain()] == [0, 1, 2]
    wire.send(CreditRequest(stream=5, pieces=64), 6)
    rest = wire.drain()
    assert [envelope.piece for envelope, _ in rest] == [*range(3, BULK_PIECES + 1)]
    assert (rest[-1][0].kind, rest[-1][0].more) == ("end", False)


def test_cancelled_stream_ends_and_steps_no_further(daemon: ThreadDaemon, wire: Wire) -> None:
    """A reader that has seen enough says so."""
    wire.send(BULK, 5, credit=1)
    assert wire.receive()[0].kind == "bulk"
    wire.send(CancelRequest(stream=5), 6)
    assert [envelope.kind for envelope, _ in wire.drain()] == ["end"]
    assert daemon.handler.stepped <= 3
    wire.send(CancelRequest(stream=5), 7)
    assert wire.receive()[1].code == "not_found"


def test_streams_of_one_client_are_bounded(wire: Wire) -> None:
    """The fifth stream of a client is refused, the others go on."""
    for number in range(1, 6):
        wire.send(BULK, number, credit=1)
    codes = [body.code for _, body in wire.drain() if isinstance(body, Failure)]
    assert codes == ["busy"]


def test_request_sent_twice_is_streamed_once(daemon: ThreadDaemon, wire: Wire) -> None:
    """A repetition of a read that is being answered is ignored."""
    wire.send(BULK, 5, credit=2)
    wire.send(BULK, 5, credit=2)
    assert len(wire.drain()) == 2
    assert daemon.handler.stepped == 3


def test_answer_larger_than_any_queue_arrives_whole(wire: Wire) -> None:
    """One large reply is no stream and still arrives."""
    wire.send(SessionsListRequest(), 1)
    assert len(wire.receive()[1].sessions) == 20_000


def test_more_requests_than_the_socket_holds_are_all_answered(wire: Wire) -> None:
    """A client that pipelines and reads late loses nothing within the bounds."""
    for number in range(1, 501):
        wire.send(RowRequest(symbol="AIG", at=0), number)
    time.sleep(0.3)
    assert [envelope.id for envelope, _ in wire.drain()] == [*range(1, 501)]


def test_reads_are_served_while_a_stream_is_sent(daemon: ThreadDaemon, wire: Wire) -> None:
    """A stream takes its turns, not the daemon."""
    wire.send(BULK, 1, credit=64)
    with Client(daemon.path, 60) as client:
        assert client.call(MetricsRequest()).text == "0"
    assert len(wire.drain()) == BULK_PIECES + 1


def test_subscriber_gets_numbered_events_of_its_topics(daemon: ThreadDaemon, wire: Wire) -> None:
    """Only wanted topics, numbers as published."""
    wire.send(SubscribeRequest(topics=["cells"]), 1)
    begun = wire.receive()[1]
    assert isinstance(begun, SubscribeReply)
    daemon.publish("engines", 1)
    assert eventually(lambda: not daemon.published)
    daemon.publish("cells", 2)
    events = [body for _, body in wire.drain()]
    assert [(event.seq, event.topic, event.lost) for event in events] == [(2, "cells", 0), (3, "cells", 0)]


def test_subscriber_goes_on_where_it_was_or_is_told_to_read_anew(daemon: ThreadDaemon, wire: Wire) -> None:
    """Kept events are sent again; another epoch cannot be continued."""
    daemon.publish("cells", 3)
    assert eventually(lambda: not daemon.published)
    wire.send(SubscribeRequest(), 1)
    epoch = wire.receive()[1].epoch
    wire.send(SubscribeRequest(from_seq=2, epoch=epoch), 2)
    messages = wire.drain()
    assert not messages[0][1].resync
    assert [body.seq for _, body in messages[1:]] == [2, 3]
    wire.send(SubscribeRequest(from_seq=2, epoch="another"), 3)
    assert wire.receive()[1].resync


def test_subscription_ends_with_its_lease(tmp_path: Path) -> None:
    """A client that is not heard from is sent nothing more; a credit request renews."""
    with in_thread(tmp_path) as daemon, Wire(daemon.path) as wire:
        wire.send(SubscribeRequest(lease_ms=4_000), 1)
        wire.send(SubscribeRequest(lease_ms=4_000), 2)
        assert (wire.receive()[0].id, wire.receive()[0].id) == (1, 2)
        time.sleep(2.5)
        wire.send(CreditRequest(stream=2), 3)
        time.sleep(2.0)
        daemon.publish("cells", 1)
        assert [envelope.id for envelope, _ in wire.drain()] == [2]
        wire.send(CreditRequest(stream=1), 4)
        envelope, body = wire.receive()
        assert (envelope.id, body.code) == (1, "not_found")


def test_lost_events_are_counted_in_the_next(tmp_path: Path) -> None:
    """Of ten events through a queue of four the last four arrive, and the first of them says what is missing."""
    from m17d.streams import Origin, Subscription

    peer = Peers().of("localhost:0:0:1")
    assert peer is not None
    subscription = Subscription(Origin(b"r", [], peer), frozenset(), 1.0, 0.0, 4)
    dropped = sum(subscription.offer(Event(seq=number, ts=0, topic="cells")) for number in range(10))
    sent = []
    while (event := subscription.head()) is not None:
        sent.append((event.seq, event.lost))
        subscription.sent()
    assert dropped == 6
    assert sent == [(6, 6), (7, 0), (8, 0), (9, 0)]


def test_progress_does_not_cost_credit_and_is_rare(wire: Wire) -> None:
    """Fifty steps in two seconds are a few messages of progress, and the answer comes with a credit of one."""
    began_s, kinds = time.monotonic(), [""]
    wire.send(BackupRequest(directory="/b"), 1, key="one", credit=1)
    while kinds[-1] != "end":
        kinds.append(wire.receive()[0].kind)
    assert 1 <= kinds.count("progress") <= (time.monotonic() - began_s) / PROGRESS_SECONDS_MIN + 1
    assert kinds[-2:] == ["backup", "end"]


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "expected"),
    [
        (0, 0, [], {READ, OPERATE}),
        (900, 900, [], {READ, OPERATE}),
        (1000, 1000, [1000], {READ}),
        (1001, 1001, [], {READ, OPERATE}),
        (1000, 50, [], {READ, OPERATE}),
        (1000, 1000, [1000, 50], {READ, OPERATE}),
        (OVERFLOW_UID, 50, [50], {READ}),
    ],
)
def test_roles_follow_user_and_groups(uid: int, gid: int, groups: list[int], expected: set[str]) -> None:
    """Root, the daemon's own, configured users and groups operate; the overflow user never."""
    assert roles_for(uid, gid, groups, operate_uids=[1001], operate_gids=[50], daemon_uid=900) == expected


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:1:2", "localhost:a:b:c", "localhost:1:2:3:", "x:-1:2:3"]
)
def test_address_of_another_form_is_nobody(address: str) -> None:
    """Only what the kernel's credentials look like is a peer."""
    assert Peers().of(address) is None


def test_reader_may_look_and_try_but_not_change(tmp_path: Path) -> None:
    """An unprivileged user gets the dry run, and permission_denied for the change, which is recorded."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")

    def work() -> str:
        with Client(daemon.path, 60) as client:
            roles = client.call(HelloRequest()).roles
            looked = client.call(msgspec.structs.replace(CLEAR, dry_run=True)).dry_run
            try:
                client.call(CLEAR)
            except RemoteFailure as failure:
                return f"{roles} {looked} {failure.code} {failure.exit_code}"
        return "it was allowed"

    open_to_others(tmp_path)
    with in_thread(tmp_path) as daemon:
        os.chmod(daemon.path, 0o666)
        assert as_another_user(65_533, work) == "['read'] True permission_denied 4"
        assert daemon.handler.denials == [(65_533, "clear")]
        assert daemon.handler.applied == 0


def test_socket_has_its_mode_and_disappears_at_the_end(tmp_path: Path) -> None:
    """Exact mode whatever the umask; no file is left."""
    with in_thread(tmp_path) as daemon:
        assert stat.S_IMODE(daemon.path.stat().st_mode) == 0o660
        assert [entry.name for entry in tmp_path.iterdir()] == ["d.sock"]
    assert not (tmp_path / "d.sock").exists()


def test_path_that_is_served_is_not_stolen(daemon: ThreadDaemon) -> None:
    """The second listener names the first one's process and leaves it alone."""
    with pytest.raises(ListeningError, match=f"pid {os.getpid()}"):
        Listening.open(daemon.path)
    with Client(daemon.path, 60) as client:
        assert client.call(HelloRequest()).pid == os.getpid()


def test_stale_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    """What a kill left is taken over; what is no socket is somebody's."""
    stale, taken = tmp_path / "stale", tmp_path / "taken"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    Listening.open(stale).close()
    taken.write_text("notes")
    with pytest.raises(ListeningError, match="is no socket"):
        Listening.open(taken)
    assert taken.read_text() == "notes"


def test_path_of_107_bytes_serves_and_of_108_is_refused(tmp_path: Path) -> None:
    """The limit is the system's, and the message names length and remedy."""
    room = 107 - len(os.fsencode(tmp_path)) - 1
    longest = tmp_path / ("s" * room)
    listening = Listening.open(longest)
    server = Server(listening, CountingHandler(tmp_path / "j"))
    server.close()
    listening.close()
    with pytest.raises(ListeningError, match="108 bytes") as refused:
        Listening.open(tmp_path / ("s" * (room + 1)))
    assert "shorter" in refused.value.hint


@pytest.mark.parametrize(("path", "words"), [("missing/d.sock", "No such file"), ("d.sock", "no group")])
def test_socket_that_cannot_be_made_says_why(tmp_path: Path, path: str, words: str) -> None:
    """A missing directory, an unknown group."""
    with pytest.raises(ListeningError, match=words):
        Listening.open(tmp_path / path, group="no-such-group" if words == "no group" else None)


def test_socket_passed_by_systemd_is_used(tmp_path: Path) -> None:
    """With LISTEN_FDS the descriptor 3 is served, and its path is left to systemd."""
    path = tmp_path / "s.sock"
    program = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(8); os.dup2(s.fileno(), 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "sys.argv = ['x', '/nonexistent/d.sock', sys.argv[2], '0']\n"
        "from tests.m17d.wire_daemon import main; main()\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    arguments = [sys.executable, "-c", program, str(path), str(tmp_path / "journal")]
    with subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        with Client(path, 60) as client:
            assert client.call(HelloRequest()).pid == process.pid
        process.terminate()
    assert process.returncode == 0
    assert path.exists()


def test_valve_keeps_newcomers_waiting_and_lets_them_in(tmp_path: Path) -> None:
    """Closed, a connection waits and open ones go on; open again, it is greeted."""
    listening = Listening.open(tmp_path / "d.sock")
    server = Server(listening, CountingHandler(tmp_path / "j"))
    listening.admit(False)
    with socket.socket(socket.AF_UNIX) as newcomer:
        newcomer.connect(str(tmp_path / "d.sock"))
        newcomer.settimeout(0.2)
        with pytest.raises(TimeoutError):
            newcomer.recv(1)
        listening.admit(True)
        newcomer.settimeout(60)
        assert newcomer.recv(1) == b"\xff"
    server.close()
    listening.close()


def test_greediest_are_those_of_processes_above_the_bound() -> None:
    """Whoever holds few connections keeps them."""
    held = [Connection(number, 7 if number < 5 else 100 + number, 0) for number in range(8)]
    assert [connection.descriptor for connection in greediest(held, 4)] == [0, 1, 2, 3, 4]


def test_other_descriptors_in_the_poller_are_reported(tmp_path: Path) -> None:
    """The daemon's one loop waits for its workers' pipes too."""
    listening = Listening.open(tmp_path / "d.sock")
    server = Server(listening, CountingHandler(tmp_path / "j"), limits=Limits())
    reader, writer = os.pipe()
    server.poller.register(reader, zmq.POLLIN)
    assert server.poll(10) == []
    os.write(writer, b"x")
    assert server.poll(60_000) == [reader]
    server.poller.unregister(reader)
    server.close()
    listening.close()
    os.close(reader)
    os.close(writer)


def test_refusal_of_a_handler_keeps_its_code_hint_and_facts(daemon: ThreadDaemon) -> None:
    """The operator reads what the handler knew."""
    with Client(daemon.path, 60) as client, pytest.raises(RemoteFailure) as refused:
        client.call(RowRequest(symbol="NOSUCH", at=0))
    assert (refused.value.code, refused.value.exit_code) == ("unknown_symbol", 6)
    assert refused.value.facts == {"symbol": "NOSUCH"}
    assert "symbols list" in refused.value.hint
