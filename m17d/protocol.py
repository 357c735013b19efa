"""
The words on the wire: every request that the daemon answers.

A request is one of the tagged structs below (tag field ``op``); each names its reply's struct, so that a reader sees the
whole surface here. Reply shapes are in `m17d.replies` (what reads answer) and `m17d.outcomes` (what operations answer, and
the failure codes); what goes around them on the wire is in `m17d.envelopes`. `protocol.md` says the same for people and is
held to these modules by a test.

The four are the protocol's leaf: they must never import anything but msgspec, `ledger.columns` and each other, and never
open a socket.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from ledger.columns import Column, LedgerKind
from m17d import outcomes, replies
from m17d.replies import Reply

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
"""Versions of the protocol that this module speaks, both included."""

TOPICS: Final = ("slots", "task", "engine", "region", "operation", "blocked")
"""What events are about; see Events in protocol.md."""

Time = int | str
"""A point in time: integer nanoseconds UTC, or ISO text, exchange-local unless it carries an offset (the daemon resolves)."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Globs = Annotated[str, Meta(min_length=1, max_length=4096)]
Date = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
CauseText = Annotated[str, Meta(min_length=1, max_length=1000)]
Columns = Annotated[list[Column], Meta(min_length=1, max_length=11)]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Range(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """
    A selection of windows and symbols: half-open in time, within one session, all symbols where ``symbols`` is absent.

    ``symbols`` are globs over tickers, separated by commas; ``contract`` a glob over the contracts inside chains, for reads only.
    """

    session: Date
    from_ts: Time | None = None
    to_ts: Time | None = None
    symbols: Globs | None = None
    contract: Name | None = None


class ReadRequest(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="op", tag=""
):
    """A request that changes nothing; role read."""

    reply: ClassVar[type[Reply]]


class Mutation(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="op", tag=""
):
    """A request that changes something: role operate and an idempotency key, except where its ``dry_run`` is true."""

    reply: ClassVar[type[Reply]]


class HelloRequest(ReadRequest, frozen=True, tag="hello"):
    """Say who is there; ``client`` names the caller's program for the log."""

    reply = replies.HelloReply
    client: Annotated[str, Meta(max_length=256)] = ""


class PingRequest(ReadRequest, frozen=True, tag="ping"):
    """Ask whether the daemon serves requests."""

    reply = replies.PingReply


class StatusRequest(ReadRequest, frozen=True, tag="status"):
    """Ask for the whole state in one page."""

    reply = replies.StatusReply


class CoverageRequest(ReadRequest, frozen=True, tag="coverage"):
    """Count the cells of a session by column and status, also by symbol, minute or source."""

    reply = replies.CoverageReply
    session: Date
    by: Literal["symbol", "minute", "source"] | None = None
    quality: bool = False
    symbols: Globs | None = None


class RowRequest(ReadRequest, frozen=True, tag="row"):
    """Read one window of one symbol; ``at`` is any time inside it."""

    reply = replies.RowReply
    symbol: Name
    at: Time
    session: Date | None = None
    payload: bool = False


class RowsRequest(ReadRequest, frozen=True, tag="rows"):
    """Read every window of one symbol and session."""

    reply = replies.RowsReply
    symbol: Name
    session: Date
    payload: bool = False


class BulkRequest(ReadRequest, frozen=True, tag="bulk"):
    """Read rows of a range as raw slabs of about 1 MB; symbols without a set cell in the session are left out."""

    reply = replies.BulkReply
    ledger: LedgerKind
    range: Range


class GridRequest(ReadRequest, frozen=True, tag="grid"):
    """
    Count the cells of a symbol and of the options on it by column over time, for screens; of all symbols without ``symbol``.

    Each session of the span, both ends included, is cut into cells of ``step_minutes``; 390 makes one of each.
    """

    reply = replies.GridReply
    from_session: Date
    to_session: Date
    symbol: Name | None = None
    step_minutes: Annotated[int, Meta(ge=1, le=390)] = 390


class PayloadRequest(ReadRequest, frozen=True, tag="payload"):
    """Read one record of a mapping file; ``kind`` is a payload type's word."""

    reply = replies.PayloadReply
    kind: Literal["rf_rate", "trade", "quote", "aggressor", "greeks", "aggregate"]
    payload_id: Annotated[int, Meta(ge=1, le=2**32 - 1)]


class LineageRequest(ReadRequest, frozen=True, tag="lineage"):
    """Ask what a cell was made from, down to source file and rows."""

    reply = replies.LineageReply
    symbol: Name
    at: Time
    column: Column
    session: Date | None = None


class WhyRequest(ReadRequest, frozen=True, tag="why"):
    """Group the cells of a range by root cause."""

    reply = replies.WhyReply
    columns: Columns
    range: Range


class ExportRequest(ReadRequest, frozen=True, tag="export"):
    """Ask which rows of which artifacts the filled cells of a range name; ``extended`` adds rows outside the session."""

    reply = replies.ExportReply
    column: Column
    range: Range
    extended: bool = False


class WaitRequest(ReadRequest, frozen=True, tag="wait"):
    """Ask how far a range is from whole; answered at once, the client asks again until its own time is up."""

    reply = outcomes.WaitReply
    columns: Columns
    range: Range


class SymbolsListRequest(ReadRequest, frozen=True, tag="symbols_list"):
    """List the symbols whose ticker passes the glob."""

    reply = replies.SymbolsReply
    symbols: Globs | None = None


class SymbolsResolveRequest(ReadRequest, frozen=True, tag="symbols_resolve"):
    """Find a symbol's id; allocates nothing."""

    reply = replies.SymbolReply
    symbol: Name


class SessionsListRequest(ReadRequest, frozen=True, tag="sessions_list"):
    """List the sessions of the year."""

    reply = replies.SessionsReply


class DigestRequest(ReadRequest, frozen=True, tag="digest"):
    """Ask for the digest of a session's content."""

    reply = outcomes.DigestReply
    session: Date


class VerifyRequest(ReadRequest, frozen=True, tag="verify"):
    """Check cells, records and artifacts of one session, or of all."""

    reply = outcomes.VerifyReply
    session: Date | None = None


class ReportRequest(ReadRequest, frozen=True, tag="report"):
    """Ask for a session's day report."""

    reply = outcomes.ReportReply
    session: Date


class AuditRequest(ReadRequest, frozen=True, tag="audit"):
    """Read the last ``tail`` records of the operator log (0: all); ``verify`` also checks its chain."""

    reply = outcomes.AuditReply
    tail: Natural = 0
    verify: bool = False


class OperationRequest(ReadRequest, frozen=True, tag="operation"):
    """Ask what became of a mutation, by its idempotency key."""

    reply = outcomes.OperationRecord
    key: Name


class MetricsRequest(ReadRequest, frozen=True, tag="metrics"):
    """Ask for the metrics."""

    reply = outcomes.MetricsReply


class DoctorRequest(ReadRequest, frozen=True, tag="doctor"):
    """Ask what the daemon sees of its surroundings."""

    reply = outcomes.DoctorReply


class EnginesListRequest(ReadRequest, frozen=True, tag="engines_list"):
    """List the engines."""

    reply = outcomes.EnginesReply


class PriorityListRequest(ReadRequest, frozen=True, tag="priority_list"):
    """List the priority regions."""

    reply = outcomes.RegionsReply


class PriorityShowRequest(ReadRequest, frozen=True, tag="priority_show"):
    """Show one priority region."""

    reply = outcomes.RegionReply
    id: Natural


class ClearRequest(Mutation, frozen=True, tag="clear"):
    """
    Take the payloads of a range away. ``cascade`` takes the dependents too; ``accept_loss`` allows what nothing could refill.

    ``confirmed`` is the operator's yes above the threshold; ``expect`` refuses unless exactly so many cells would go.
    """

    reply = outcomes.OperationReply
    columns: Columns
    range: Range
    cause: CauseText
    dry_run: bool = False
    cascade: bool = False
    accept_loss: bool = False
    confirmed: bool = False
    expect: Natural | None = None


class RefreshRequest(Mutation, frozen=True, tag="refresh"):
    """Mark the filled cells of a range wanted: readable until remade. ``stale`` limits it to cells stale for that reason."""

    reply = outcomes.OperationReply
    columns: Columns
    range: Range
    cause: CauseText
    dry_run: bool = False
    cascade: bool = False
    accept_loss: bool = False
    confirmed: bool = False
    expect: Natural | None = None
    stale: Literal["inputs", "recipe"] | None = None


class UndoRequest(Mutation, frozen=True, tag="undo"):
    """Set back the cells that a clear or refresh took and nobody has written since."""

    reply = outcomes.UndoReply
    operation: Name
    cause: Annotated[str, Meta(max_length=1000)] = ""


class AcceptRequest(Mutation, frozen=True, tag="accept"):
    """Declare the range's missing sources absent and take its suspect cells as they are."""

    reply = outcomes.AcceptReply
    range: Range
    columns: list[Column] = []
    cause: Annotated[str, Meta(max_length=1000)] = ""
    dry_run: bool = False


class PriorityAddRequest(Mutation, frozen=True, tag="priority_add"):
    """Have a symbol's range served first; a higher ``priority`` is sooner, no ``columns`` means all."""

    reply = outcomes.RegionReply
    symbol: Name
    from_ts: Time
    to_ts: Time
    priority: Annotated[int, Meta(ge=0, le=1000)]
    columns: list[Column] = []
    session: Date | None = None


class PriorityRemoveRequest(Mutation, frozen=True, tag="priority_remove"):
    """Drop a priority region; answers it as it was."""

    reply = outcomes.RegionReply
    id: Natural


class EnginesControlRequest(Mutation, frozen=True, tag="engines_control"):
    """Pause an engine (it finishes its tasks and takes no more; holds over restarts), resume it, or retry after a failure."""

    reply = outcomes.EngineReply
    engine: Name
    action: Literal["pause", "resume", "retry"]
    cause: Annotated[str, Meta(max_length=1000)] = ""


class SessionsOpenRequest(Mutation, frozen=True, tag="sessions_open"):
    """Map a session read-write."""

    reply = replies.SessionReply
    session: Date


class BackupRequest(Mutation, frozen=True, tag="backup"):
    """Copy the state, whole and consistent, to a directory of the daemon's machine that does not exist yet."""

    reply = outcomes.BackupReply
    directory: Annotated[str, Meta(pattern=r"^/", max_length=4096)]


class GcRequest(Mutation, frozen=True, tag="gc"):
    """Remove the artifacts that no cell names, and what is as old as the config's retention."""

    reply = outcomes.GcReply
    dry_run: bool = False


class SubscribeRequest(ReadRequest, frozen=True, tag="subscribe"):
    """
    Have events of ``topics`` (none: all) sent, from ``from_seq`` of ``epoch`` on where both are given.

    The lease ends after ``lease_ms`` unless a credit request for the subscription renews it.
    """

    reply = outcomes.SubscribeReply
    topics: Annotated[list[Name], Meta(max_length=64)] = []
    from_seq: Natural | None = None
    epoch: str | None = None
    lease_ms: Annotated[int, Meta(ge=1_000, le=600_000)] = 30_000


class CreditRequest(ReadRequest, frozen=True, tag="credit"):
    """Take ``pieces`` more of the stream that request ``stream`` began, or (``pieces`` 0) renew its lease; has no reply."""

    reply = outcomes.EndReply
    stream: Natural
    pieces: Annotated[int, Meta(ge=0, le=64)] = 0


class CancelRequest(ReadRequest, frozen=True, tag="cancel"):
    """End the stream or subscription that request ``stream`` began."""

    reply = outcomes.EndReply
    stream: Natural


Request = (
    HelloRequest | PingRequest | StatusRequest | CoverageRequest | RowRequest | RowsRequest | BulkRequest | GridRequest
    | PayloadRequest | LineageRequest | WhyRequest | ExportRequest | WaitRequest
    | SymbolsListRequest | SymbolsResolveRequest | SessionsListRequest | DigestRequest | VerifyRequest | ReportRequest
    | AuditRequest | OperationRequest | MetricsRequest | DoctorRequest | EnginesListRequest
    | PriorityListRequest | PriorityShowRequest
    | ClearRequest | RefreshRequest | UndoRequest | AcceptRequest | PriorityAddRequest | PriorityRemoveRequest
    | EnginesControlRequest | SessionsOpenRequest | BackupRequest | GcRequest
    | SubscribeRequest | CreditRequest | CancelRequest
)  # fmt: skip
"""Every request. Handlers match over it and end in assert_never."""
