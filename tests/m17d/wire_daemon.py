"""
A daemon of the wire alone, for tests: the real server over a handler that remembers its answers in a file.

Runs in a thread (`in_thread`) or as a process of its own (``python wire_daemon.py SOCKET JOURNAL [DESCRIPTORS]``), which can
be killed and starved. Its ledger is one number, counted up by every clear.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ledger.columns import Column, LedgerKind
from m17d.envelopes import Answer, Claimed, Piece, Refused, operation_of
from m17d.listening import Listening
from m17d.outcomes import BackupReply, MetricsReply, OperationReply, Progress, Refillable
from m17d.peers import Context, Peer, Peers
from m17d.protocol import (
    BackupRequest,
    BulkRequest,
    ClearRequest,
    HelloRequest,
    MetricsRequest,
    ReportRequest,
    Request,
    RowRequest,
    SessionsListRequest,
)
from m17d.replies import BulkReply, HelloReply, Reply, RowReply, SessionReply, SessionsReply
from m17d.server import Server
from m17d.streams import Limits

SLAB_ROWS = 390 * 16
BULK_PIECES = 40


class CountingHandler:
    """Answers a few requests; every mutation is one line of the journal, effect and answer together."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.applied = 0
        self.denials: list[tuple[int, str]] = []
        self.stepped = 0
        self.answers: dict[tuple[int, str], tuple[bytes, bytes]] = {}
        if journal.exists():
            for line in journal.read_text().splitlines():
                entry = json.loads(line)
                self.applied += 1
                self.answers[entry["uid"], entry["key"]] = (
                    bytes.fromhex(entry["request"]),
                    bytes.fromhex(entry["reply"]),
                )

    def handle(self, request: Request, context: Context) -> Answer:
        """Answer one request."""
        match request:
            case HelloRequest():
                return HelloReply(
                    version="test",
                    protocol_min=1,
                    protocol_max=1,
                    pid=os.getpid(),
                    state_dir="",
                    year=2013,
                    exchange="XNYS",
                    option_rows="chain",
                    operator=context.peer.operator,
                    roles=sorted(context.peer.roles),
                )
            case RowRequest(symbol="NOSUCH"):
                raise Refused(
                    "unknown_symbol", "no symbol NOSUCH", "list them with: m17ctl symbols list", symbol="NOSUCH"
                )
            case RowRequest():
                return RowReply(
                    symbol=request.symbol,
                    symbol_id=1,
                    minute_idx=0,
                    window_id="2013:0:0",
                    start_ts=0,
                    end_ts=1,
                    slots={},
                )
            case ClearRequest():
                return self._clear(request, context)
            case BulkRequest():
                return self._bulk()
            case BackupRequest():
                return self._backup(request)
            case MetricsRequest():
                return MetricsReply(text=str(self.applied))
            case SessionsListRequest():
                session = SessionReply(session="2013-10-07", session_seq=0, windows=390, open_ts=0, close_ts=1)
                return SessionsReply(sessions=[session] * 20_000)
            case ReportRequest():
                raise ValueError("a secret of the inside")
            case _:
                raise Refused("not_found", f"nothing for {operation_of(request)} here")

    def _clear(self, request: ClearRequest, context: Context) -> OperationReply:
        counts = dict.fromkeys(request.columns, 1)
        reply = OperationReply(
            operation=f"op-{self.applied + 1}",
            cleared=counts,
            untouched={},
            dependents={},
            refillable=Refillable(),
            dry_run=request.dry_run,
        )
        if not request.dry_run:
            self.applied += 1
            self.remember(context.key, request, context.peer, reply)
        return reply

    def _bulk(self) -> Iterator[Piece]:
        slab = bytes(160 * SLAB_ROWS)
        for piece in range(BULK_PIECES):
            self.stepped += 1
            yield Piece(
                BulkReply(
                    ledger=LedgerKind.TRADE,
                    session="2013-10-07",
                    symbols={piece: "AIG"},
                    rows=SLAB_ROWS,
                    row_bytes=160,
                    row_format="<HHIqq8x" + "4B3Iq2I" * 4,
                    columns=[Column.RF_RATE_REF, Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF],
                ),
                slab,
            )

    def _backup(self, request: BackupRequest) -> Iterator[Reply | None]:
        for done in range(50):
            self.stepped += 1
            time.sleep(0.04)
            yield Progress(done=done, total=50, unit="files")
        self.applied += 1
        yield BackupReply(directory=request.directory, files=50, bytes=1, seconds=2.0)
        # The end of it takes its time: what has been said must not have left before it is remembered.
        time.sleep(0.01)
        yield None

    def durably(self, reply: Reply) -> Iterator[Piece]:
        """The answer again; a line of the journal is as durable as it gets."""
        yield Piece(reply, durable=True)

    def replayed(self, key: str, request: Request, peer: Peer) -> Reply | None:
        """The answer given under the key before."""
        earlier = self.answers.get((peer.uid, key))
        if earlier is None:
            return None
        if earlier[0] != msgspec.msgpack.encode(request):
            raise Refused("key_reused", "this key belongs to another request")
        return msgspec.msgpack.decode(earlier[1], type=request.reply)

    def remember(self, key: str, request: Request, peer: Peer, reply: Reply) -> None:
        """Write the answer down once."""
        if (peer.uid, key) in self.answers:
            return
        encoded = msgspec.msgpack.encode(request), msgspec.msgpack.encode(reply)
        self.answers[peer.uid, key] = encoded
        entry = {"uid": peer.uid, "key": key, "request": encoded[0].hex(), "reply": encoded[1].hex()}
        with self.journal.open("a") as journal:
            journal.write(json.dumps(entry) + "\n")

    def denied(self, request: Request, peer: Peer, claimed: Claimed) -> None:
        """Note the attempt."""
        self.denials.append((peer.uid, operation_of(request)))


class ThreadDaemon:
    """The server in a thread of this process; ``server`` and ``handler`` may be looked at while it runs."""

    def __init__(self, path: Path, journal: Path, limits: Limits | None = None, peers: Peers | None = None) -> None:
        self.path = path
        self.handler = CountingHandler(journal)
        self.server: Server | None = None
        self.error: BaseException | None = None
        self.published: list[tuple[str, int]] = []
        self._limits = limits
        self._peers = peers
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def publish(self, topic: str, count: int) -> None:
        """Have the daemon's thread publish events."""
        self.published.append((topic, count))

    def _run(self) -> None:
        listening = Listening.open(self.path)
        try:
            self.server = Server(listening, self.handler, version="test", limits=self._limits, peers=self._peers)
            self._ready.set()
            while not self._stop.is_set():
                self.server.poll(5)
                while self.published:
                    topic, count = self.published.pop()
                    for number in range(count):
                        self.server.publish(topic, {"number": number})
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._ready.set()
            if self.server is not None:
                self.server.close()
            listening.close()

    def start(self) -> None:
        """Start and wait until it serves."""
        self._thread.start()
        self._ready.wait(60)

    def stop(self) -> None:
        """End it; a daemon that died of an error fails the test."""
        self._stop.set()
        self._thread.join(60)
        if self.error is not None:
            raise AssertionError("the daemon's thread died") from self.error


@contextlib.contextmanager
def in_thread(directory: Path, limits: Limits | None = None, peers: Peers | None = None) -> Iterator[ThreadDaemon]:
    """A served socket ``directory/d.sock``."""
    daemon = ThreadDaemon(directory / "d.sock", directory / "journal", limits, peers)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


def start_process(directory: Path, descriptors: int = 0) -> subprocess.Popen[bytes]:
    """A served socket ``directory/d.sock`` in a process of its own; returns once it listens."""
    root = str(Path(__file__).resolve().parents[2])
    arguments = [sys.executable, __file__, str(directory / "d.sock"), str(directory / "journal"), str(descriptors)]
    environment = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    return process


def stop_process(process: subprocess.Popen[bytes]) -> int:
    """End it in good order; returns its exit code."""
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    assert process.stdout is not None
    process.stdout.close()
    return code


def as_another_user(uid: int, work: Callable[[], str]) -> str:
    """What ``work`` returns in a child process of another user; the caller must be root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def open_to_others(directory: Path) -> None:
    """Let other users reach a test's directory."""
    for place in (directory, *directory.parents):
        if place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o005 == 0o005:
            continue
        os.chmod(place, 0o755)


def main() -> None:
    """Serve until SIGTERM."""
    path, journal, descriptors = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    listening = Listening.open(path)
    server = Server(listening, CountingHandler(journal), version="test")
    print("listening", flush=True)
    while not stopped:
        server.poll(20)
    server.close()
    listening.close()


if __name__ == "__main__":
    main()
