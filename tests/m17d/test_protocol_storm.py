"""
The protocol under everything: each struct there and back, any frames at all, and several clients against a model.

The model is a set of keys: whatever is lost, repeated, reordered or cut off by a restart, every key is done at most once, a
key that was answered exactly once, and all its answers are the same.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from m17d.envelopes import (
    REPLIES,
    REQUESTS,
    ReplyEnvelope,
    decode_reply_body,
    decode_reply_envelope,
    decode_request_body,
    decode_request_envelope,
    encode_body,
    encode_reply,
    encode_request,
)
from m17d.outcomes import Failure, OperationReply
from m17d.protocol import ClearRequest, PingRequest, Range, SubscribeRequest
from tests.m17d.wire_daemon import ThreadDaemon, in_thread
from tests.m17d.wire_structs import struct_of

WAIT_MS = 20_000


@pytest.mark.parametrize("operation", REQUESTS)
def test_every_request_comes_back_as_it_went(operation: str) -> None:
    """Whatever its fields hold, as long as they hold what their types allow."""

    @settings(max_examples=15)
    @given(struct_of(REQUESTS[operation]), st.integers(1, 2**63 - 1))
    def there_and_back(request: Any, number: int) -> None:
        envelope = decode_request_envelope(encode_request(request, number, key="k", credit=3))
        assert (envelope.id, envelope.key, envelope.credit) == (number, "k", 3)
        assert decode_request_body(envelope) == request

    there_and_back()


@pytest.mark.parametrize("kind", REPLIES)
def test_every_reply_comes_back_as_it_went(kind: str) -> None:
    """The same of what the daemon says."""

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(struct_of(REPLIES[kind]))
    def there_and_back(body: Any) -> None:
        sent = ReplyEnvelope(
            id=7, kind=kind, body=encode_body(body), version="1", protocol_min=1, protocol_max=1, piece=2
        )
        envelope = decode_reply_envelope(encode_reply(sent))
        assert (envelope.id, envelope.kind, envelope.piece) == (7, kind, 2)
        assert decode_reply_body(envelope) == body

    there_and_back()


class Dealer:
    """A bare client of a path."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{path}")
        self.number = 0

    def send(self, request: Any, **envelope: Any) -> int:
        """Send a request; its id."""
        self.number += 1
        self.socket.send(encode_request(request, self.number, **envelope))
        return self.number

    def receive(self, wait_ms: int) -> tuple[ReplyEnvelope, Any] | None:
        """The next message, or None."""
        if not self.socket.poll(wait_ms):
            return None
        envelope = decode_reply_envelope(self.socket.recv_multipart()[0])
        return envelope, decode_reply_body(envelope)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A served socket; a thread that died of what it got fails the module."""
    with in_thread(tmp_path_factory.mktemp("frames")) as running:
        yield running


def frames() -> st.SearchStrategy[list[bytes]]:
    """Bytes of no meaning, and requests with pieces exchanged."""
    good = encode_request(PingRequest(), 5)
    bent = st.tuples(st.integers(0, len(good) - 1), st.binary(max_size=4)).map(
        lambda cut: good[: cut[0]] + cut[1] + good[cut[0] + len(cut[1]) :]
    )
    return st.lists(st.binary(max_size=64) | bent | st.just(good) | st.just(b""), min_size=1, max_size=9)


def test_no_list_of_frames_escapes(daemon: ThreadDaemon) -> None:
    """After whatever frames, the next request on the same connection is answered, and the daemon's thread lives."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = Dealer(context, daemon.path)

    @settings(max_examples=200)
    @given(frames())
    def swallow(message: list[bytes]) -> None:
        dealer.socket.send_multipart(message)
        asked = dealer.send(PingRequest())
        while True:
            assert dealer.socket.poll(WAIT_MS), message
            found = decode_reply_envelope(dealer.socket.recv_multipart()[-1])
            if (found.id, found.kind) == (asked, "ping"):
                break

    try:
        swallow()
    finally:
        dealer.socket.close()
        context.term()
    assert daemon.error is None


class SeveralClients(RuleBasedStateMachine):
    """Three clients with mutations under shared keys; replies may be left unread, and the daemon restarted, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="m17-storm-"))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.daemon: ThreadDaemon | None = None
        self.dealers: list[Dealer] = []
        self.asked: dict[str, ClearRequest] = {}
        self.told: dict[str, OperationReply] = {}
        self.open: dict[tuple[int, int], str] = {}

    @initialize()
    def begin(self) -> None:
        """Start the daemon and three clients."""
        self.daemon = ThreadDaemon(self.folder / "d.sock", self.folder / "journal")
        self.daemon.start()
        self.dealers = [Dealer(self.context, self.folder / "d.sock") for _ in range(3)]

    def _request(self, cause: str) -> ClearRequest:
        return ClearRequest(columns=["trade_ref"], range=Range(session="2013-10-07"), cause=cause)

    def _hear(self, client: int, envelope: ReplyEnvelope, body: Any) -> None:
        key = self.open.pop((client, envelope.id), None)
        if key is None or isinstance(body, Failure):
            assert key is None, f"{key}: {body}"
            return
        assert isinstance(body, OperationReply)
        assert self.told.setdefault(key, body) == body, "two answers under one key differ"

    @rule(client=st.integers(0, 2), key=st.integers(0, 9))
    def mutate(self, client: int, key: int) -> None:
        """Send a mutation, new or one that somebody sent before, and do not wait."""
        name = f"key-{key}"
        request = self.asked.setdefault(name, self._request(name))
        number = self.dealers[client].send(request, key=name)
        self.open[client, number] = name

    @rule(client=st.integers(0, 2))
    def read(self, client: int) -> None:
        """Read whatever has come to a client."""
        while (found := self.dealers[client].receive(0)) is not None:
            self._hear(client, *found)

    @rule(client=st.integers(0, 2), key=st.integers(0, 9))
    def settle(self, client: int, key: int) -> None:
        """Send a mutation until it is answered, as a client does that has to know."""
        name = f"key-{key}"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            self.mutate(client, key)
            end = time.monotonic() + 2
            while time.monotonic() < end and (found := self.dealers[client].receive(500)) is not None:
                self._hear(client, *found)
                if name in self.told and not any(one == name for one in self.open.values()):
                    return
            if name in self.told:
                return
        raise AssertionError(f"{name} was never answered")

    @rule(client=st.integers(0, 2))
    def steal(self, client: int) -> None:
        """Use a key for something else: refused where it is known, whoever asks."""
        if not self.told:
            return
        name = next(iter(self.told))
        number = self.dealers[client].send(self._request("something else"), key=name)
        until = time.monotonic() + 60
        while time.monotonic() < until and (found := self.dealers[client].receive(WAIT_MS)) is not None:
            if found[0].id == number:
                assert isinstance(found[1], Failure) and found[1].code == "key_reused"
                return
            self._hear(client, *found)
        raise AssertionError("a stolen key was not answered")

    @rule(client=st.integers(0, 2))
    def late(self, client: int) -> None:
        """A mutation whose deadline has passed is not done."""
        number = self.dealers[client].send(self._request("late"), key=f"late-{client}", deadline_ms=1)
        until = time.monotonic() + 60
        while time.monotonic() < until and (found := self.dealers[client].receive(WAIT_MS)) is not None:
            if found[0].id == number:
                assert isinstance(found[1], Failure) and found[1].code == "deadline_expired"
                return
            self._hear(client, *found)
        raise AssertionError("a late request was not answered")

    @rule(client=st.integers(0, 2))
    def follow(self, client: int) -> None:
        """Subscribe, which changes nothing for anybody else."""
        self.dealers[client].send(SubscribeRequest(topics=["cells"], lease_ms=1_000))

    @precondition(lambda self: self.daemon is not None)
    @rule(client=st.integers(0, 2))
    def leave(self, client: int) -> None:
        """A client goes without a word, and comes back as another."""
        self.dealers[client].socket.close()
        self.open = {place: key for place, key in self.open.items() if place[0] != client}
        self.dealers[client] = Dealer(self.context, self.folder / "d.sock")

    @rule()
    def restart(self) -> None:
        """The daemon goes and comes back; what was on its way is lost."""
        assert self.daemon is not None
        self.daemon.stop()
        self.daemon = ThreadDaemon(self.folder / "d.sock", self.folder / "journal")
        self.daemon.start()
        # Answers to what the old one had may be lost; a client sends again under another number.
        self.open.clear()

    @invariant()
    def each_key_at_most_once(self) -> None:
        """What the daemon did is what was asked, no key twice, none of those that were answered missing."""
        if self.daemon is None:
            return
        done = [key for _, key in self.daemon.handler.answers]
        assert len(set(done)) == len(done) == self.daemon.handler.applied
        assert set(self.told) <= set(done) <= set(self.asked)

    def teardown(self) -> None:
        """End everything; an error of the daemon's thread is the test's."""
        for dealer in self.dealers:
            dealer.socket.close()
        self.context.term()
        if self.daemon is not None:
            self.daemon.stop()
        shutil.rmtree(self.folder)


class TestSeveralClients(SeveralClients.TestCase):  # type: ignore[misc, name-defined]
    """A few short histories."""

    settings = settings(max_examples=6, stateful_step_count=15, deadline=None)


@pytest.mark.slow
class TestSeveralClientsLong(SeveralClients.TestCase):  # type: ignore[misc, name-defined]
    """Many long ones."""

    settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
