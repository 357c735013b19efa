"""
What version 1 of the protocol said, byte for byte, is understood for as long as the number is 1.

``golden/v1.ndjson`` was written once, when the release was made: one message a line, its side, its kind, its frame in hex.
It is never written again; a release that adds operations or fields adds lines or a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from m17d.envelopes import REPLIES, REQUESTS, decode_reply_body, decode_reply_envelope, decode_request_envelope
from m17d.envelopes import decode_request_body as decode_body
from m17d.outcomes import EXIT_CODES
from tests.m17d.wire_daemon import ThreadDaemon, in_thread

LINES = [json.loads(line) for line in (Path(__file__).parent / "golden" / "v1.ndjson").read_text().splitlines()]
REQUEST_LINES = [line for line in LINES if line["side"] == "request"]
REPLY_LINES = [line for line in LINES if line["side"] == "reply"]


def frame(line: dict[str, Any]) -> bytes:
    """The message's bytes."""
    return bytes.fromhex(line["frame"])


def names(lines: list[dict[str, Any]]) -> list[str]:
    """Kinds, for the test's name."""
    return [line["kind"] for line in lines]


def lost(before: Any, after: Any, place: str = "") -> list[str]:
    """Places of a message that are gone, renamed or changed in what it says now; additions are none."""
    if isinstance(before, dict) and isinstance(after, dict):
        gone = [f"{place}.{name}" for name in before if name not in after]
        return gone + [
            fault for name in before if name in after for fault in lost(before[name], after[name], f"{place}.{name}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [fault for at, one in enumerate(before) for fault in lost(one, after[at], f"{place}[{at}]")]
    return [] if before == after and type(before) is type(after) else [f"{place}: {before!r} became {after!r}"]


def test_every_operation_and_reply_of_the_release_is_there() -> None:
    """Operations and kinds may be added to those of version 1, never taken away."""
    assert {line["kind"] for line in REQUEST_LINES} <= set(REQUESTS)
    assert {line["kind"] for line in REPLY_LINES} <= set(REPLIES)
    assert len(REQUEST_LINES) >= 39 and len(REPLY_LINES) >= 39


@pytest.mark.parametrize("line", REQUEST_LINES, ids=names(REQUEST_LINES))
def test_a_request_of_an_old_client_means_what_it_meant(line: dict[str, Any]) -> None:
    """Every field it sent is read, with its value."""
    envelope = decode_request_envelope(frame(line))
    request = decode_body(envelope)
    sent = msgspec.msgpack.decode(frame(line))
    assert (envelope.id, envelope.key, envelope.deadline_ms) == (sent["id"], sent.get("key", ""), sent["deadline_ms"])
    assert isinstance(request, REQUESTS[line["kind"]])
    full = {
        "op": line["kind"],
        **{name: msgspec.to_builtins(getattr(request, name)) for name in request.__struct_fields__},
    }
    assert lost(sent["body"], full) == []


@pytest.mark.parametrize("line", REPLY_LINES, ids=names(REPLY_LINES))
def test_a_reply_of_now_has_all_that_an_old_client_reads(line: dict[str, Any]) -> None:
    """Read by the client of now and sent again by the daemon of now, no field of it is gone or another."""
    envelope = decode_reply_envelope(frame(line))
    body = decode_reply_body(envelope)
    sent = msgspec.msgpack.decode(frame(line))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode({**msgspec.structs.asdict(envelope), "body": body}))
    assert lost(sent, again) == []
    if line["kind"] == "failure":
        assert EXIT_CODES[sent["body"]["code"]] == line["exit_code"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadDaemon]:
    """A served socket."""
    with in_thread(tmp_path_factory.mktemp("golden")) as running:
        yield running


def test_the_server_of_now_answers_every_request_of_an_old_client(daemon: ThreadDaemon) -> None:
    """With the operation's own reply or a failure that is about the thing asked, never about the asking."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(f"ipc://{daemon.path}")
    try:
        for line in REQUEST_LINES:
            # The deadlines of then have passed; nothing else of the bytes is touched.
            sent = msgspec.msgpack.decode(frame(line))
            dealer.send(msgspec.msgpack.encode({**sent, "deadline_ms": 0}))
            if line["kind"] == "credit":
                continue
            assert dealer.poll(60_000), line["kind"]
            while True:
                envelope = decode_reply_envelope(dealer.recv_multipart()[0])
                if envelope.id == sent["id"]:
                    break
            body = decode_reply_body(envelope)
            code = getattr(body, "code", "")
            assert code not in ("bad_request", "unsupported_operation", "protocol_version"), (line["kind"], body)
    finally:
        dealer.close()
        context.term()
