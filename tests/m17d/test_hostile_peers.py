"""
Hostile peers: whatever one process sends, or does not read, another client is served meanwhile and memory stays bounded.

Beside every one of them a bystander in a process of its own asks all the time; what it waited and what the daemon grew is
printed (``pytest -s``). The bounds are for a loaded machine; on a quiet one nobody waits more than 25 ms.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import zmq

from m17ctl.client import Client
from m17d.envelopes import decode_reply_body, decode_reply_envelope, encode_request
from m17d.guard import Guard, GuardLimits
from m17d.listening import Connection, Listening
from m17d.protocol import BulkRequest, ClearRequest, HelloRequest, MetricsRequest, PingRequest, Range, SubscribeRequest
from m17d.replies import HelloReply
from tests.m17d import flat_files
from tests.m17d.bystander import Seen, bystander
from tests.m17d.daemon_process import running, socket_of
from tests.m17d.wire_daemon import as_another_user, in_thread, open_to_others, start_process, stop_process

GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\x00") + b"\x00" * 32
MEMORY_GROWTH_MAX = 100 << 20
WAIT_MAX_MS = 10_000
DAY = Range(session="2013-10-07")
ROOT = Path(__file__).resolve().parents[2]
READS_ONE_PIECE_AND_DIES = """
import os, signal, sys
from m17ctl.client import Client
from m17d.protocol import BulkRequest, Range
next(Client(sys.argv[1], 60).slabs(BulkRequest(ledger="trade", range=Range(session="2013-10-07"))))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A daemon in a process of its own, and a bystander; it must live to the end and leave in good order."""
    process = start_process(tmp_path)
    with bystander(tmp_path / "d.sock", process.pid) as seen:
        yield process, tmp_path / "d.sock"
    assert process.poll() is None
    assert stop_process(process) == 0
    judge(seen, request.node.name)


def judge(seen: Seen, what: str) -> None:
    """Print what a bystander saw, and hold it to the bounds."""
    print(f"\n{what}: {seen}")
    assert seen.grown_bytes < MEMORY_GROWTH_MAX
    assert seen.worst_ms < WAIT_MAX_MS


def raw(path: Path) -> socket.socket:
    """A bare connection."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(60)
    peer.connect(str(path))
    return peer


def ready(**properties: str) -> bytes:
    """A ZMTP 3 READY command with properties of our choice."""
    pairs = {"Socket-Type": "DEALER", **properties}
    body = b"\x05READY" + b"".join(
        bytes([len(name)]) + name.encode() + struct.pack(">I", len(value)) + value.encode("latin-1")
        for name, value in ((name.replace("_", "-"), value) for name, value in pairs.items())
    )
    return bytes([4, len(body)]) + body


def shaken(path: Path, **properties: str) -> socket.socket:
    """A hand-made ZMTP connection after its handshake."""
    peer = raw(path)
    peer.sendall(GREETING)
    read_exactly(peer, 64)
    peer.sendall(ready(**properties))
    head = read_exactly(peer, 2)
    read_exactly(peer, head[1])
    return peer


def read_exactly(peer: socket.socket, size: int) -> bytes:
    """So many bytes."""
    found = b""
    while len(found) < size:
        piece = peer.recv(size - len(found))
        assert piece
        found += piece
    return found


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Resident memory of the daemon."""
    fields = Path(f"/proc/{process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


def served(path: Path, timeout_s: float = 240) -> float:
    """Another client asks and is answered; seconds that took."""
    with Client(path, timeout_s) as client:
        started = time.perf_counter()
        client.call(PingRequest())
        return time.perf_counter() - started


def test_garbage_bytes_end_their_own_connection_only(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Random bytes before and after the handshake: the daemon goes on."""
    process, path = daemon
    for number in range(50):
        with raw(path) as peer:
            peer.sendall(bytes((number * 31 + at * 7) % 256 for at in range(500)))
        with shaken(path) as peer:
            peer.sendall(b"\xff" * 100 + bytes(range(256)))
    assert served(path) < WAIT_MAX_MS / 1e3
    assert process.poll() is None


def test_malformed_requests_are_answered_with_a_failure(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Frames that are no request get bad_request, and the connection stays usable."""
    _, path = daemon
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(f"ipc://{path}")
    for frames in ([b""], [b"\xc1"], [b"\x80"], [b"a", b"b"], [b"a"] * 40, [b"", b""], [b"\xdf\xff\xff\xff\xff"]):
        dealer.send_multipart(frames)
        assert dealer.poll(60_000)
        assert b"bad_request" in dealer.recv_multipart()[-1]
    dealer.send(encode_request(PingRequest(), 7))
    assert dealer.poll(60_000)
    dealer.close()
    context.term()


def test_frame_larger_than_the_limit_drops_the_connection(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """A frame that announces gigabytes reserves nothing."""
    process, path = daemon
    before = resident_bytes(process)
    for announced in (8 << 30, 1 << 62, 1 << 20):
        with shaken(path) as peer:
            peer.sendall(b"\x02" + struct.pack(">Q", announced) + b"x" * 1000)
            assert peer.recv(1) == b""
    assert served(path) < WAIT_MAX_MS / 1e3
    assert resident_bytes(process) - before < 20 << 20


def test_endless_multipart_is_cut_off_before_it_fills_memory(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Frames that always announce another: the peer is hung up on, others are served, memory stays within bounds."""
    process, path = daemon
    before, most, worst = resident_bytes(process), 0, 0.0
    frame = b"\x03" + struct.pack(">Q", 60_000) + b"x" * 60_000
    with shaken(path) as peer, Client(path, 60) as other:
        other.call(PingRequest())
        hung_up = False
        for number in range(20_000):
            try:
                peer.sendall(frame)
            except (BrokenPipeError, ConnectionResetError):
                hung_up = True
                break
            if number % 100 == 0:
                most = max(most, resident_bytes(process) - before)
                started = time.perf_counter()
                other.call(PingRequest())
                worst = max(worst, time.perf_counter() - started)
    print(f"memory grew by {most >> 20} MiB at most, the other client waited {worst * 1e3:.1f} ms at worst")
    assert hung_up
    assert most < MEMORY_GROWTH_MAX
    assert served(path) < WAIT_MAX_MS / 1e3


def test_half_open_connections_are_dropped(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Connections that never say a word are closed by the daemon."""
    _, path = daemon
    silent = [raw(path) for _ in range(100)]
    assert served(path) < WAIT_MAX_MS / 1e3
    for peer in silent:
        peer.settimeout(60)
        while peer.recv(100):
            pass
        peer.close()


def flood(path: Path, connections: int, held_max: int) -> None:
    """Open connections from a process of their own, as fast as they are taken, and keep the last of them open."""
    flooder = os.fork()
    if flooder == 0:
        held: list[socket.socket] = []
        for _ in range(connections):
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.setblocking(False)
            try:
                peer.connect(str(path))
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                os._exit(1)
            held.append(peer)
            if len(held) > held_max:
                held.pop(0).close()
        os._exit(0)
    assert os.waitpid(flooder, 0)[1] == 0


def test_descriptor_flood_neither_kills_nor_locks_out(tmp_path: Path) -> None:
    """More connections than the daemon has descriptors: it lives, and serves another process during and after the flood."""
    process = start_process(tmp_path, descriptors=1_024)
    path = tmp_path / "d.sock"
    with bystander(path, process.pid) as seen:
        flood(path, 5_000, 900)
    assert process.poll() is None
    assert served(path) < WAIT_MAX_MS / 1e3
    assert stop_process(process) == 0
    judge(seen, "a flood of connections")


def test_real_daemon_with_few_descriptors_raises_its_limit_and_stands_a_flood(tmp_path: Path) -> None:
    """Started with a soft limit of 256, as a shell may give it: it takes what it may have, and the flood is one of many."""
    flat_files.write(tmp_path, "2013-05-01", flat_files.packed(flat_files.good_lines("2013-05-01")))
    flat_files.write_config(tmp_path, ["2013-05-01"])
    with running(tmp_path, until="cells set", descriptors=256) as process:
        limit = int(Path(f"/proc/{process.pid}/limits").read_text().split("Max open files")[1].split()[0])
        assert limit > 256
        with bystander(socket_of(tmp_path), process.pid) as seen:
            flood(socket_of(tmp_path), 5_000, 900)
        assert process.poll() is None
    judge(seen, "a flood of connections to a daemon of 256 descriptors")


class Crowded:
    """A listener whose process has so many descriptors, of which so many are peers'."""

    def __init__(self, next_number: int, peers: int) -> None:
        self.next_number, self.admitting, self.hung_up = next_number, True, 0
        self.peers = [Connection(number, 4_242, 0) for number in range(peers)]

    def admit(self, admitting: bool) -> None:
        self.admitting = admitting

    def lowest_free_descriptor(self) -> int:
        return self.next_number

    def connections(self, *, waiting: bool = False) -> list[Connection]:
        return [] if waiting else self.peers

    def hang_up(self, connections: list[Connection]) -> int:
        self.hung_up += len(connections)
        return len(connections)


def test_files_of_the_daemon_are_not_held_against_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A year of sessions has hundreds of files open; who asks is admitted, until peers themselves are too many."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 1_024))
    for next_number, peers, admitted in (
        (600, 5, True),
        (600, 127, True),
        (600, 129, False),
        (767, 5, True),
        (768, 5, False),
    ):
        listening = Crowded(next_number, peers)
        Guard(cast("Listening", listening), GuardLimits()).open()
        assert listening.admitting is admitted, (next_number, peers)
        assert listening.hung_up == (peers if not admitted and peers > 32 else 0)


def test_client_that_does_not_read_costs_bounded_memory(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Streams and replies that nobody reads wait within bounds while others are served."""
    process, path = daemon
    before = resident_bytes(process)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.RCVBUF, 4096)):
        dealer.setsockopt(option, value)
    dealer.connect(f"ipc://{path}")
    for number in range(1, 60):
        dealer.send(encode_request(BulkRequest(ledger="trade", range=DAY), number, credit=64))
    for number in range(100, 3_000):
        dealer.send(encode_request(PingRequest(), number))
    waits = [served(path) for _ in range(20)]
    grown = resident_bytes(process) - before
    print(f"memory grew by {grown >> 20} MiB, another client waited {max(waits) * 1e3:.1f} ms at worst")
    assert grown < MEMORY_GROWTH_MAX
    dealer.close()
    context.term()


def test_subscriber_that_does_not_read_loses_events_not_memory(tmp_path: Path) -> None:
    """A flood of events to a subscriber that sleeps: bounded, counted, and the next event says how many are missing."""
    with in_thread(tmp_path) as daemon:
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.connect(f"ipc://{daemon.path}")
        dealer.send(encode_request(SubscribeRequest(), 1))
        time.sleep(0.1)
        daemon.publish("cells", 50_000)
        deadline = time.monotonic() + 120
        while daemon.published and time.monotonic() < deadline:
            time.sleep(0.02)
        assert served(daemon.path) < WAIT_MAX_MS / 1e3
        assert daemon.server is not None
        assert daemon.server.counters.events_lost > 10_000
        dealer.close()
        context.term()


def test_claimed_identity_and_address_are_not_believed(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Properties that a client sends about itself do not reach its roles: the kernel's word does."""
    _, path = daemon
    peer = shaken(path, Peer_Address="localhost:4242:4242:1", User_Id="root", X_Role="operate")
    request = encode_request(HelloRequest(), 5)
    peer.sendall(bytes([0, len(request)]) + request)
    head = read_exactly(peer, 2)
    assert head[0] in (0, 2)
    size = head[1] if head[0] == 0 else struct.unpack(">Q", head[1:] + read_exactly(peer, 7))[0]
    hello = decode_reply_body(decode_reply_envelope(read_exactly(peer, size)))
    assert isinstance(hello, HelloReply)
    assert (hello.operator.uid, hello.operator.pid) == (os.getuid(), os.getpid())
    peer.close()


def test_route_of_a_departed_operator_carries_no_rights(tmp_path: Path) -> None:
    """A second process that takes the first one's routing id is judged by its own credentials."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    clear = ClearRequest(columns=["trade_ref"], range=DAY, cause="test")

    def ask(key: str) -> bytes:
        with shaken(daemon.path, Identity="\x00\x00\x00\x00\x07") as peer:
            request = encode_request(clear, 1, key=key)
            peer.sendall(bytes([0, len(request)]) + request)
            return peer.recv(1_000)

    open_to_others(tmp_path)
    with in_thread(tmp_path) as daemon:
        os.chmod(daemon.path, 0o666)
        assert b"op-1" in ask("first")
        time.sleep(0.2)
        assert "permission_denied" in as_another_user(65_533, lambda: ask("second").decode("latin-1"))
        assert daemon.handler.applied == 1
        assert daemon.handler.denials == [(65_533, "clear")]


def test_client_killed_in_the_middle_of_a_stream_frees_it(tmp_path: Path) -> None:
    """A reader that dies takes its stream with it; the next client is served."""
    with in_thread(tmp_path) as daemon:
        # A process of its own, not a fork: this one has threads.
        done = subprocess.run([sys.executable, "-c", READS_ONE_PIECE_AND_DIES, str(daemon.path)], cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL
        assert served(daemon.path) < WAIT_MAX_MS / 1e3
        assert daemon.handler.stepped < 40


def killed(work: Callable[[], object]) -> None:
    """A process that is killed behind its last word."""
    peer = os.fork()
    if peer == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(peer, 0)[1] == signal.SIGKILL


def test_clients_killed_in_the_middle_of_a_request_harm_nobody(daemon: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Dead behind half a frame, behind a mutation, within a stream: others are served, and the mutations are done once."""
    _, path = daemon

    def half_a_frame() -> None:
        peer = shaken(path)
        peer.sendall(b"\x02" + struct.pack(">Q", 60_000) + b"x" * 30_000)

    def unanswered(request: bytes) -> None:
        peer = shaken(path)
        peer.sendall(bytes([0, len(request)]) + request)

    clear = ClearRequest(columns=["trade_ref"], range=DAY, cause="test")
    for number in range(20):
        killed(half_a_frame)
        killed(lambda: unanswered(encode_request(clear, 1, key=f"killed-{number}")))  # noqa: B023 - done at once
        killed(lambda: unanswered(encode_request(BulkRequest(ledger="trade", range=DAY), 1, credit=64)))
    with Client(path, 60) as client:
        for number in range(20):
            client.call(clear, key=f"killed-{number}")
        assert int(client.call(MetricsRequest()).text) == 20


def test_a_thousand_clients_at_once_are_all_answered(tmp_path: Path) -> None:
    """A thousand connections from one process: every one gets its own answer, and whoever was there first is served."""
    process = start_process(tmp_path, descriptors=16_384)
    path = tmp_path / "d.sock"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4_096:
        pytest.skip(f"this process may have {hard} descriptors; a thousand clients need 4,096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 1_023)
    dealers = []
    try:
        with bystander(path, process.pid) as seen:
            for number in range(1, 1_001):
                dealer = context.socket(zmq.DEALER)
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(f"ipc://{path}")
                dealer.send(encode_request(PingRequest(), number))
                dealers.append(dealer)
            for dealer in dealers:
                assert dealer.poll(30_000)
                assert b"ping" in dealer.recv()
    finally:
        for dealer in dealers:
            dealer.close()
        context.term()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stop_process(process) == 0
    judge(seen, "a thousand clients")
