"""
The other half of the replies: what operations, supervision and upkeep answer, and the frames that any request may get.

Same conventions as `m17d.replies`. Part of the protocol's leaf: it must never import anything but msgspec, `ledger.columns`
and `m17d.replies`.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET, UnsetType, field

from ledger.columns import Column
from m17d.replies import Cause, CellsByColumn, CoverageReply, Operator, Reply, SourceReply

EXIT_CODES: Final[dict[str, int]] = {
    # the request itself
    "bad_request": 2,
    "unsupported_operation": 9,
    "protocol_version": 9,
    "permission_denied": 4,
    "deadline_expired": 8,
    "busy": 1,
    "internal": 1,
    # what it named
    "not_found": 6,
    "nothing_selected": 6,
    "address": 6,
    "unknown_symbol": 6,
    "minute_out_of_session": 6,
    "unknown_session": 6,
    "unknown_payload": 6,
    "rows_retired": 6,
    # refused as unsafe, or in conflict
    "confirm_required": 5,
    "expectation_failed": 5,
    "key_reused": 5,
    "slot": 5,
    "version_conflict": 5,
    "rank_conflict": 5,
    "payload_kind_not_allowed": 5,
    "would_lose_data": 5,
    # the state, the disk, a numbering that is used up
    "ledger": 1,
    "state": 1,
    "state_locked": 5,
    "state_missing": 6,
    "state_exists": 5,
    "state_mismatch": 5,
    "not_a_ledger_file": 1,
    "file_version_mismatch": 1,
    "checksum_mismatch": 1,
    "damaged_file": 1,
    "space": 1,
    "state_full": 1,
    "state_read_only": 1,
    "state_fault": 1,
    "capacity": 1,
    "symbol_cap_reached": 1,
    "payload_ids_exhausted": 1,
    # said by the client, never sent
    "daemon_unreachable": 7,
    "timed_out": 8,
    "outcome_unknown": 8,
    "protocol_mismatch": 9,
}
"""Failure code to exit code of `m17ctl`. A code that is not here exits 1."""


class Failure(Reply, frozen=True, kw_only=True):
    """The request was not done. ``code`` is one of `m17d.protocol.EXIT_CODES`, ``facts`` are what the message was made from."""

    code: str
    message: str
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Progress(Reply, frozen=True, kw_only=True):
    """A long request is still at work: ``done`` of ``total`` (0 where unknown) ``unit`` (a plural noun)."""

    done: int
    total: int = 0
    unit: str = "cells"
    detail: str = ""
    eta_s: float | None = None


class EngineReply(Reply, frozen=True, kw_only=True):
    """
    An engine in full. ``facts`` are the engine's own counters.

    While it works, ``done`` of ``total`` (in ``unit``: cells or tasks) says how far it is in what it has to do, and
    ``eta_s`` when it will be done at the speed it had so far.
    """

    name: str
    state: str
    detail: str = ""
    backlog: int = 0
    since_ns: int = 0
    reads: list[Column] = field(default_factory=list)
    writes: list[Column] = field(default_factory=list)
    restarts: int = 0
    paused_by: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    eta_s: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class EnginesReply(Reply, frozen=True, kw_only=True):
    """All engines that run; `engines list` prints the list."""

    engines: list[EngineReply]


class Refillable(Reply, frozen=True, kw_only=True):
    """From where the cells could be filled again."""

    flat_file: int = 0
    rest: int = 0
    derived: int = 0
    none: int = 0


class OperationReply(Reply, frozen=True, kw_only=True):
    """What a clear or refresh took (``cleared``: cells cleared, or marked wanted by a refresh) and what lies behind it."""

    operation: str
    cleared: CellsByColumn
    untouched: CellsByColumn
    dependents: CellsByColumn
    refillable: Refillable
    dry_run: bool = False


class UndoReply(Reply, frozen=True, kw_only=True):
    """Cells set back, and cells that changed since and were left alone."""

    operation: str
    restored: CellsByColumn
    skipped: CellsByColumn


class AcceptReply(Reply, frozen=True, kw_only=True):
    """Sources declared absent, and suspect or superseded cells taken as they are."""

    operation: str
    accepted: CellsByColumn
    sources: list[SourceReply] = field(default_factory=list)
    dry_run: bool = False


class OperationRecord(Reply, frozen=True, kw_only=True):
    """What became of a mutation: ``outcome`` is applied or failed; ``reply`` is what was answered then."""

    key: str
    operation: str
    op: str
    ts: int
    outcome: str
    operator: Operator
    reply: dict[str, Any] = field(default_factory=dict)


class RegionReply(Reply, frozen=True, kw_only=True):
    """
    A priority region: ``minutes`` windows in it, ``complete`` of them whole; state is active, complete or stuck.

    ``whole`` says how many windows are whole by column; those that are not due or not applicable are in none.
    """

    id: int
    symbol: str
    start_ts: int
    end_ts: int
    priority: int
    columns: list[Column]
    minutes: int
    complete: int
    state: str
    operator: str
    whole: CellsByColumn = field(default_factory=dict)


class RegionsReply(Reply, frozen=True, kw_only=True):
    """All regions, first served first; `priority list` prints the list."""

    regions: list[RegionReply]


class WaitReply(Reply, frozen=True, kw_only=True):
    """How far a range is: whole when nothing remains. Counts are due, applicable cells that are not filled, fresh and sound."""

    whole: bool
    cells: int
    remaining: CellsByColumn
    suspect: CellsByColumn = field(default_factory=dict)
    blocked: list[Cause] = field(default_factory=list)
    eta_s: float | None = None


class Orphans(Reply, frozen=True, kw_only=True):
    """What no cell names: artifact files, their bytes, records."""

    files: int = 0
    bytes: int = 0
    records: int = 0


class Finding(Reply, frozen=True, kw_only=True):
    """Something wrong, where, and what to do."""

    code: str
    message: str
    hint: str = ""
    where: str = ""


class VerifyReply(Reply, frozen=True, kw_only=True):
    """What was checked and what was found; orphans are no findings. ``bytes`` of rows, records and artifacts were read."""

    slots: int
    payloads: int
    artifacts: int
    orphans: Orphans
    findings: list[Finding]
    bytes: int = 0
    seconds: float = 0.0


class DigestReply(Reply, frozen=True, kw_only=True):
    """SHA-256 of a session's content, in hexadecimal, whole and by column."""

    session: str
    digest: str
    columns: dict[Column, str]


class AuditReply(Reply, frozen=True, kw_only=True):
    """Records of the log, oldest first, each with ts, operator, op; ``chain`` is intact or broken at a record, if asked."""

    records: list[dict[str, Any]]
    chain: str | UnsetType = UNSET


class MetricsReply(Reply, frozen=True, kw_only=True):
    """The Prometheus exposition."""

    text: str


class BackupReply(Reply, frozen=True, kw_only=True):
    """What was copied."""

    directory: str
    files: int
    bytes: int
    seconds: float


class GcReply(Reply, frozen=True, kw_only=True):
    """
    What was removed, or would be: what no cell named, and quotes by their age (``records``: of cells that stay).

    ``undos`` operations were too old to be undone, and are forgotten.
    """

    removed: Orphans
    retired: Orphans = field(default_factory=Orphans)
    undos: int = 0
    dry_run: bool


class ReportReply(Reply, frozen=True, kw_only=True):
    """A session's day report: coverage, sources, root causes, operations."""

    session: str
    verdict: str
    coverage: CoverageReply
    sources: list[SourceReply] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    operations: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class DoctorReply(Reply, frozen=True, kw_only=True):
    """What the daemon sees of its surroundings: limits, permissions, file system, space, clock."""

    facts: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)


class SubscribeReply(Reply, frozen=True, kw_only=True):
    """The subscription stands from ``seq`` on; ``resync`` says that events before it cannot be had again: read the state."""

    epoch: str
    seq: int
    lease_ms: int
    resync: bool = False


class Event(Reply, frozen=True, kw_only=True):
    """Something happened. ``seq`` counts events of this daemon's start; ``lost`` is how many were dropped just before it."""

    seq: int
    ts: int
    topic: str
    facts: dict[str, Any] = field(default_factory=dict)
    lost: int = 0


class EndReply(Reply, frozen=True, kw_only=True):
    """Nothing further: the answer to cancel and credit where one is due, and to the end of a stream without a last piece."""
