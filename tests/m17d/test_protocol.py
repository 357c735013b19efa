"""The words on the wire: every struct round-trips, every input decodes or is refused, every code has its exit code."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import errors
from ledger.columns import Column
from m17d.envelopes import (
    REPLIES,
    REQUESTS,
    Claimed,
    Refused,
    ReplyEnvelope,
    decode_reply_body,
    decode_reply_envelope,
    decode_request_body,
    decode_request_envelope,
    encode_body,
    encode_reply,
    encode_request,
    failure_of,
    is_mutation,
    join_pieces,
)
from m17d.outcomes import EXIT_CODES
from m17d.protocol import (
    PROTOCOL_MAX,
    ClearRequest,
    EnginesControlRequest,
    GcRequest,
    Mutation,
    PriorityAddRequest,
    Range,
    RefreshRequest,
    Request,
    RowRequest,
)
from m17d.replies import RowsReply, SymbolReply, SymbolsReply, WhyReply

NAMES = st.text(min_size=1, max_size=20)
TIMES = st.one_of(st.integers(min_value=-(2**63), max_value=2**63 - 1), NAMES)
RANGES = st.builds(Range, session=st.just("2013-10-07"), from_ts=TIMES | st.none(), to_ts=TIMES | st.none())
COLUMNS = st.lists(st.sampled_from(list(Column)), min_size=1, max_size=11)
GENERATED = st.one_of(
    st.builds(RowRequest, symbol=NAMES, at=TIMES, payload=st.booleans()),
    st.builds(ClearRequest, columns=COLUMNS, range=RANGES, cause=NAMES, dry_run=st.booleans()),
    st.builds(RefreshRequest, columns=COLUMNS, range=RANGES, cause=NAMES, stale=st.sampled_from([None, "recipe"])),
    st.builds(PriorityAddRequest, symbol=NAMES, from_ts=TIMES, to_ts=TIMES, priority=st.integers(0, 1000)),
    st.builds(EnginesControlRequest, engine=NAMES, action=st.sampled_from(["pause", "resume", "retry"])),
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def all_errors(root: type[errors.LedgerError]) -> list[type[errors.LedgerError]]:
    """The class and everything below it."""
    return [root, *(leaf for child in root.__subclasses__() for leaf in all_errors(child))]


def refused_code(frame: bytes) -> str:
    """The code with which a frame is refused, or empty where it decodes."""
    try:
        decode_request_body(decode_request_envelope(frame))
    except Refused as refusal:
        return refusal.code
    return ""


@settings(max_examples=50, deadline=None)
@given(GENERATED, st.integers(1, 2**53), st.text(max_size=50))
def test_request_survives_its_envelope(request: Request, request_id: int, key: str) -> None:
    """What is sent is what arrives, envelope and body."""
    frame = encode_request(request, request_id, key=key, deadline_ms=5, durable=True, claimed=Claimed(ssh="a b"))
    envelope = decode_request_envelope(frame)
    assert (envelope.id, envelope.key, envelope.deadline_ms, envelope.durable) == (request_id, key, 5, True)
    assert envelope.claimed == Claimed(ssh="a b")
    assert decode_request_body(envelope) == request


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_never_raised(frame: bytes) -> None:
    """Whatever the bytes, the only exception is Refused."""
    assert refused_code(frame) in ("bad_request", "protocol_version", "unsupported_operation")


@settings(max_examples=50, deadline=None)
@given(JUNK, st.sampled_from([*REQUESTS, "nonsense", 3]))
def test_arbitrary_values_in_a_body_are_refused_never_raised(junk: Any, operation: Any) -> None:
    """A well-formed envelope around junk: refused, or by chance a request."""
    body = {**junk, "op": operation} if isinstance(junk, dict) else junk
    frame = msgspec.msgpack.encode({"protocol": PROTOCOL_MAX, "id": 1, "body": body})
    assert refused_code(frame) in ("", "bad_request", "unsupported_operation")


def test_deeply_nested_body_is_refused() -> None:
    """Nesting deeper than any stack is an answer, not a crash."""
    envelope = msgspec.msgpack.encode({"protocol": 1, "id": 1, "body": 0})[:-1]
    assert refused_code(envelope + b"\x91" * 60_000 + b"\x00") == "bad_request"


def test_other_version_and_unknown_operation_are_told_apart() -> None:
    """Version comes before operation, operation before fields."""
    body = {"op": "teleport", "to": "Mars"}
    assert refused_code(msgspec.msgpack.encode({"protocol": 99, "id": 1, "body": body})) == "protocol_version"
    assert refused_code(msgspec.msgpack.encode({"protocol": 1, "id": 1, "body": body})) == "unsupported_operation"
    assert refused_code(msgspec.msgpack.encode({"protocol": 1, "id": 1, "body": {"op": "row"}})) == "bad_request"


def test_misspelled_field_of_a_mutation_is_refused() -> None:
    """A dry_run that is misspelled must not become a clear."""
    clear = msgspec.to_builtins(ClearRequest(columns=[Column.TRADE_REF], range=Range(session="2013-10-07"), cause="x"))
    frame = msgspec.msgpack.encode({"protocol": 1, "id": 1, "body": {**clear, "dryrun": True}})
    assert refused_code(frame) == "bad_request"


def test_fields_of_a_later_version_in_an_envelope_are_ignored() -> None:
    """An envelope may grow; a newer reply is still read."""
    newer = {"protocol": 1, "id": 4, "body": {"op": "ping"}, "colour": "blue"}
    assert refused_code(msgspec.msgpack.encode(newer)) == ""
    reply = {"id": 4, "kind": "ping", "body": {"now_ns": 1, "zone": "UTC"}, "version": "9", "shard": 3}
    reply |= {"protocol_min": 1, "protocol_max": 9}
    decoded = decode_reply_body(decode_reply_envelope(msgspec.msgpack.encode(reply)))
    assert msgspec.to_builtins(decoded) == {"now_ns": 1}


def test_reply_without_shape_of_its_kind_is_a_decode_error() -> None:
    """A kind that this version does not know is an error of the decoder, not of the reader."""
    envelope = ReplyEnvelope(
        id=1, kind="novel", body=encode_body(WhyReply(groups=[])), version="9", protocol_min=1, protocol_max=1
    )
    with pytest.raises(msgspec.DecodeError, match="novel"):
        decode_reply_body(decode_reply_envelope(encode_reply(envelope)))


def test_golden_row_request_is_what_version_one_sent() -> None:
    """Bytes of a released message: they must be understood for as long as the version is spoken."""
    golden = bytes.fromhex(
        "84a870726f746f636f6c01a2696407a4626f647983a26f70a3726f77a673796d626f6ca3414947a26174"
        "b0323031332d31302d30375430393a3331ab646561646c696e655f6d7300"
    )
    assert decode_request_body(decode_request_envelope(golden)) == RowRequest(symbol="AIG", at="2013-10-07T09:31")


def test_mutations_need_a_key_except_dry_runs() -> None:
    """A dry run changes nothing, so reading suffices."""
    assert is_mutation(GcRequest())
    assert not is_mutation(GcRequest(dry_run=True))
    assert not is_mutation(RowRequest(symbol="A", at=0))
    changing = {name for name, kind in REQUESTS.items() if issubclass(kind, Mutation)}
    assert {"clear", "refresh", "undo", "accept", "backup", "gc", "engines_control"} < changing


def test_every_error_of_the_ledger_has_an_exit_code() -> None:
    """A code that the table does not know would leave as an internal error."""
    assert {error.code for error in all_errors(errors.LedgerError)} <= set(EXIT_CODES)


def test_exit_codes_follow_the_meaning_of_their_failures() -> None:
    """The codes that scripts rely on most."""
    expected = {"permission_denied": 4, "version_conflict": 5, "would_lose_data": 5, "unknown_symbol": 6}
    expected |= {"daemon_unreachable": 7, "outcome_unknown": 8, "protocol_mismatch": 9, "bad_request": 2, "internal": 1}
    assert expected.items() <= EXIT_CODES.items()


def test_ledger_error_becomes_a_failure_with_its_facts() -> None:
    """Code, hint and facts travel; values that cannot be encoded travel as text."""
    failure = failure_of(errors.VersionConflict(3, 4, column=Column.TRADE_REF, seen={2, 1}, where=object))
    assert failure is not None
    assert (failure.code, failure.facts["expected"], failure.facts["actual"]) == ("version_conflict", 3, 4)
    assert failure.facts["column"] == "trade_ref"
    assert msgspec.msgpack.decode(encode_body(failure), type=REPLIES["failure"]) == failure
    assert failure_of(ValueError("secret")) is None


def test_pieces_are_joined_in_order() -> None:
    """Lists one behind the other; no piece is no reply."""
    pieces = [
        SymbolsReply(symbols=[SymbolReply(symbol=name, symbol_id=at, underlying=name)]) for at, name in enumerate("AB")
    ]
    joined = join_pieces(pieces)
    assert isinstance(joined, SymbolsReply)
    assert [symbol.symbol for symbol in joined.symbols] == ["A", "B"]
    assert join_pieces([RowsReply(rows=[])]) == RowsReply(rows=[])
    with pytest.raises(ValueError, match="no piece"):
        join_pieces([])


def test_protocol_and_client_start_without_numpy() -> None:
    """A short command must not pay for arrays."""
    program = (
        "import sys, m17ctl.client, m17d.protocol; print([m for m in ('numpy', 'polars', 'typer') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
