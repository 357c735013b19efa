"""
What goes around requests and replies on the wire: envelopes, their codecs, and how pieces of an answer are joined.

A message is one envelope frame (msgpack) and, behind some replies, one raw slab. The body of an envelope is decoded in a
second step, so that a request of another version or an unknown operation can still be answered with its id.

Part of the protocol's leaf (see `m17d.protocol`): it must never open a socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, NamedTuple, get_args

import msgspec
from msgspec import UNSET, Meta, Raw

from ledger.columns import Column
from m17d.outcomes import EXIT_CODES, EndReply, Event, Failure, Progress
from m17d.protocol import PROTOCOL_MAX, PROTOCOL_MIN, Mutation, Request
from m17d.replies import Reply

FAILURE: Final = "failure"
PROGRESS: Final = "progress"
EVENT: Final = "event"
END: Final = "end"
"""Kinds of reply that are no operation's own."""


class Refused(Exception):
    """
    A handler's refusal; the server answers with ``failure``.

    Raised with a code of `EXIT_CODES`, a sentence, what the operator can do, and the values the sentence was made from.
    """

    def __init__(self, code: str, message: str, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.facts: dict[str, Any] = facts


class Piece(NamedTuple):
    """What a handler answers where a bare reply is not enough: the raw slab behind it, and whether it is on disk by now."""

    body: Reply
    slab: bytes | memoryview | None = None
    durable: bool = False


class Rest(NamedTuple):
    """What a streamed answer yields while it waits for something else: it is stepped again after so long, not at once."""

    seconds: float


Answer = Reply | Piece | Iterator[Reply | Piece | Rest | None]
"""
What a handler answers: a reply, or an iterator that is stepped once a turn of the daemon's loop. An iterator yields replies
and pieces, `Progress`, None for "worked a little, nothing to say", or `Rest`; the pieces joined are the reply.
"""


class Claimed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the caller says about who is behind it: recorded beside the kernel's word, never believed."""

    ssh: str = ""
    sudo: str = ""


class RequestEnvelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    Around a request.

    ``id`` is the caller's own number of the request; ``deadline_ms`` is UTC milliseconds since 1970 after which the caller no
    longer waits (0: no deadline); ``key`` the idempotency key; ``durable`` asks that the reply wait for the disk; ``credit``
    is how many pieces of a streamed answer may be sent before the caller asks for more.
    """

    protocol: int
    id: int
    body: Raw
    deadline_ms: int = 0
    key: Annotated[str, Meta(max_length=256)] = ""
    durable: bool = False
    credit: int = 8
    claimed: Claimed | None = None


class ReplyEnvelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    Around a reply.

    ``kind`` is the request's ``op``, or failure, progress, event, end; ``more`` says that further pieces follow, numbered by
    ``piece``; ``replayed`` that the mutation had been done before under this key; ``durable`` that it is on disk.
    """

    id: int
    kind: str
    body: Raw
    version: str
    protocol_min: int
    protocol_max: int
    durable: bool = False
    replayed: bool = False
    more: bool = False
    piece: int = 0


REQUESTS: Final[dict[str, type[Request]]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Request)}
"""Operation to request struct."""
OPERATIONS: Final[dict[type, str]] = {kind: operation for operation, kind in REQUESTS.items()}
"""Request struct to operation."""
REPLIES: Final[dict[str, type[Reply]]] = {
    **{operation: kind.reply for operation, kind in REQUESTS.items()},
    FAILURE: Failure,
    PROGRESS: Progress,
    EVENT: Event,
    END: EndReply,
}
"""Kind of reply to reply struct."""

_encoder = msgspec.msgpack.Encoder()
_request_envelope: msgspec.msgpack.Decoder[RequestEnvelope] = msgspec.msgpack.Decoder(RequestEnvelope)
_reply_envelope: msgspec.msgpack.Decoder[ReplyEnvelope] = msgspec.msgpack.Decoder(ReplyEnvelope)
_request_body: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_bodies: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {}


class _Tagged(msgspec.Struct, frozen=True):
    op: str = ""


_tag_only: msgspec.msgpack.Decoder[_Tagged] = msgspec.msgpack.Decoder(_Tagged)


def is_mutation(request: Request) -> bool:
    """Whether the request needs the role operate and an idempotency key: a mutation that is not a dry run."""
    return isinstance(request, Mutation) and not getattr(request, "dry_run", False)


def operation_of(request: Request) -> str:
    """The request's operation: its tag."""
    return OPERATIONS[type(request)]


def encode_request(
    request: Request,
    request_id: int,
    *,
    deadline_ms: int = 0,
    key: str = "",
    durable: bool = False,
    credit: int = 8,
    claimed: Claimed | None = None,
) -> bytes:
    """The envelope frame of a request; see `RequestEnvelope` for the fields."""
    return _encoder.encode(
        RequestEnvelope(
            protocol=PROTOCOL_MAX,
            id=request_id,
            body=Raw(_encoder.encode(request)),
            deadline_ms=deadline_ms,
            key=key,
            durable=durable,
            credit=credit,
            claimed=claimed,
        )
    )


def decode_request_envelope(frame: bytes) -> RequestEnvelope:
    """
    The envelope of a request, its body still encoded.

    Raises:
        Refused: ``bad_request`` where the frame is no envelope.
    """
    try:
        return _request_envelope.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad_request", f"not a request envelope: {error}", "see protocol.md, Transport") from None


def decode_request_body(envelope: RequestEnvelope) -> Request:
    """
    The request inside an envelope.

    Raises:
        Refused: ``protocol_version``, ``unsupported_operation`` or ``bad_request``, tested in this order.
    """
    if not PROTOCOL_MIN <= envelope.protocol <= PROTOCOL_MAX:
        raise Refused(
            "protocol_version",
            f"request speaks protocol {envelope.protocol}, this daemon {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            "use the m17ctl of the daemon's version",
        )
    try:
        return _request_body.decode(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        operation = _operation_in(envelope.body)
        if operation and operation not in REQUESTS:
            hint = "use the m17ctl of the daemon's version"
            raise Refused("unsupported_operation", f"no operation {operation[:64]!r}", hint) from None
        raise Refused("bad_request", f"{operation or 'request'}: {error}", "see protocol.md, Requests") from None


def _operation_in(body: Raw) -> str:
    try:
        return _tag_only.decode(body).op
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def encode_body(body: Reply) -> Raw:
    """A reply's struct, encoded, to be put in an envelope."""
    return Raw(_encoder.encode(body))


def encode_reply(envelope: ReplyEnvelope) -> bytes:
    """The envelope frame of a reply."""
    return _encoder.encode(envelope)


def decode_reply_envelope(frame: bytes) -> ReplyEnvelope:
    """
    The envelope of a reply, its body still encoded.

    Raises:
        msgspec.DecodeError: the frame is no reply envelope.
    """
    return _reply_envelope.decode(frame)


def decode_reply_body(envelope: ReplyEnvelope) -> Reply:
    """
    The reply inside an envelope.

    Raises:
        msgspec.DecodeError: the body is not what its kind says, or the kind is unknown.
    """
    decoder = _reply_bodies.get(envelope.kind)
    if decoder is None:
        kind = REPLIES.get(envelope.kind)
        if kind is None:
            raise msgspec.DecodeError(f"unknown kind of reply {envelope.kind!r}")
        decoder = _reply_bodies[envelope.kind] = msgspec.msgpack.Decoder(kind)
    reply: Reply = decoder.decode(envelope.body)
    return reply


def join_pieces(pieces: Iterable[Reply]) -> Reply:
    """
    One reply from the pieces of a streamed answer: lists one behind the other, mappings merged, the rest from the last.

    Not for `BulkReply`, `GridReply` and `ExportReply`, whose pieces stand alone.

    Raises:
        ValueError: there is no piece.
    """
    joined: dict[str, Any] = {}
    last: Reply | None = None
    for last in pieces:
        for name in last.__struct_fields__:
            value, so_far = getattr(last, name), joined.get(name)
            if isinstance(value, list) and isinstance(so_far, list):
                value = so_far + value
            elif isinstance(value, dict) and isinstance(so_far, dict):
                value = so_far | value
            elif value is UNSET and so_far is not None:
                value = so_far
            joined[name] = value
    if last is None:
        raise ValueError("no piece to join")
    return type(last)(**joined)


def failure_of(error: BaseException) -> Failure | None:
    """
    The failure that an error stands for, or None for an error that names no code.

    Any exception with ``code`` (one of `EXIT_CODES`), ``hint`` and ``facts`` will do: `Refused` and the ledger's errors.
    """
    code = getattr(error, "code", None)
    if not isinstance(code, str) or code not in EXIT_CODES:
        return None
    facts = getattr(error, "facts", {})
    return Failure(
        code=code,
        message=str(error),
        hint=str(getattr(error, "hint", "")),
        facts={str(name): _plain(value) for name, value in facts.items()},
    )


def _plain(value: object) -> object:
    if isinstance(value, Column):
        return value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        plain = [_plain(item) for item in value]
        return sorted(plain, key=str) if isinstance(value, (set, frozenset)) else plain
    return {str(name): _plain(item) for name, item in value.items()} if isinstance(value, dict) else str(value)
