"""
The handlers: every request to its answer. One match over the whole surface, ending in ``assert_never``.

They translate between the wire and the rooms that know: reading, explaining, changing, the runner. This module must
never know a socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, assert_never

from ledger.sources import SourceRecord, SourceState
from ledger.state import State
from m17d import opening, outcomes, protocol, replies
from m17d.changing import Changing
from m17d.config import Config
from m17d.daily import report, shown
from m17d.denials import Denials
from m17d.doctoring import Doctoring
from m17d.durability import when_durable
from m17d.envelopes import Answer, Claimed, Piece, Rest, operation_of
from m17d.explaining import Explaining
from m17d.exposition import Events, Exposition
from m17d.gridding import Gridding
from m17d.happenings import Happenings
from m17d.latency import Latency
from m17d.peers import Context, Peer
from m17d.protocol import PROTOCOL_MAX, PROTOCOL_MIN, Request
from m17d.reading import Reading
from m17d.remembering import Remembering
from m17d.runner import Runner
from m17d.supervising import Supervising
from m17d.taking import audit_operator
from m17d.taking import claimed as claims
from m17d.tracing import Tracing
from m17d.upkeep import Upkeep
from m17d.wholeness import Wholeness, facts_of

Change = (
    protocol.ClearRequest | protocol.RefreshRequest | protocol.UndoRequest | protocol.AcceptRequest
    | protocol.PriorityAddRequest | protocol.PriorityRemoveRequest | protocol.EnginesControlRequest
    | protocol.SessionsOpenRequest | protocol.BackupRequest | protocol.GcRequest
)  # fmt: skip
"""Requests that change something."""
Care = (
    protocol.AuditRequest | protocol.OperationRequest | protocol.EnginesListRequest | protocol.PriorityListRequest
    | protocol.PriorityShowRequest | protocol.MetricsRequest | protocol.DoctorRequest | protocol.VerifyRequest
    | protocol.ReportRequest | protocol.SubscribeRequest | protocol.CreditRequest | protocol.CancelRequest
)  # fmt: skip
"""Requests about the daemon itself."""
_READY: Final = object()


class Handlers:
    """Answers requests over one state; see :class:`m17d.server.Handler`."""

    def __init__(self, state: State, runner: Runner, config: Config, *, version: str) -> None:
        self.state = state
        self.runner = runner
        self.config = config
        self.version = version
        self.publish: Callable[[str, dict[str, Any]], object] = lambda _topic, _facts: None
        self.reading = Reading(state, runner, version=version)
        self.explaining = Explaining(state, runner, self.reading)
        self.gridding = Gridding(state, self.reading)
        self.changing = Changing(state, runner, self.reading)
        self.wholeness = Wholeness(state, runner, self.reading, self.explaining)
        self.happenings = Happenings(runner, self.wholeness)
        self.requests: dict[str, Latency] = {}
        events = Events(operator=self.changing.events, requests=self.requests, turns=runner.turns)
        self.exposition = Exposition(state, runner, self.reading, self.wholeness, events, version=version)
        self.tracing = Tracing(state, self.reading)
        self.upkeep = Upkeep(state, runner, config, self.reading.runway)
        self.changing.taking.is_collecting = lambda: self.upkeep.is_collecting
        self.doctoring = Doctoring(state, runner, self.reading.runway, running=version)
        self.remembering = Remembering(state)
        self.denials = Denials(state)
        self.supervising = Supervising(state, runner)
        self.found = self.changing.taking.unfinished.settle(self.remembering)
        """What an earlier process left undone and was set right, a line each."""

    # ---- what the server asks

    def durably(self, reply: replies.Reply) -> Iterator[replies.Reply | Piece | Rest | None]:
        """A reply that was given before, when what is written by now is on disk."""
        return when_durable(self.state, lambda: reply)

    def handle(self, request: Request, context: Context) -> Answer:
        """The answer to one request; raises LedgerError or Refused."""
        began_s = time.perf_counter()
        try:
            steps = self._opening(request)
            if next(steps, _READY) is not _READY:
                return opening.answered_after(steps, lambda: self._answer(request, context))
            return self._answer(request, context)
        finally:
            operation = operation_of(request)
            took_s = time.perf_counter() - began_s
            latency = self.requests.get(operation)
            if latency is None:
                latency = self.requests[operation] = Latency()
            latency.took(took_s)
            self.runner.turns.took(f"request {operation}", took_s)

    def _opening(self, request: Request) -> Iterator[None]:
        """Map what a request has to look at; yields between steps."""
        seq = opening.session_seq_of(self.state, request)
        if seq is not None:
            yield from opening.mapped(self.state, seq)
        elif isinstance(request, protocol.StatusRequest):
            for session in self.reading.measuring.names():
                yield from self.reading.measuring.opening(session)

    def _answer(self, request: Request, context: Context) -> Answer:
        match request:
            case protocol.RowRequest():
                # First, because nothing is asked so often or answered so soon.
                return self.reading.row(request)
            case protocol.HelloRequest():
                return self._hello(context)
            case protocol.PingRequest():
                return replies.PingReply(now_ns=self.state.system.now_ns())
            case protocol.StatusRequest():
                return self.reading.status()
            case protocol.CoverageRequest():
                return self.reading.coverage(request)
            case protocol.RowsRequest():
                return self.reading.rows(request)
            case protocol.BulkRequest():
                return self.reading.bulk(request)
            case protocol.GridRequest():
                return self.gridding.grid(request)
            case protocol.PayloadRequest():
                return self.reading.payload(request)
            case protocol.WhyRequest():
                return self.explaining.why(request)
            case protocol.LineageRequest():
                return self.tracing.lineage(request)
            case protocol.ExportRequest():
                return self.reading.export(request)
            case protocol.WaitRequest():
                return self.wholeness.wait(request)
            case protocol.SymbolsListRequest():
                return self.reading.symbols(request.symbols)
            case protocol.SymbolsResolveRequest():
                return self.reading.symbol(self.state.symbols.resolve(request.symbol))
            case protocol.SessionsListRequest():
                return self.reading.sessions()
            case protocol.DigestRequest():
                return self.reading.digest(request.session)
            case _:
                return self._change_or_look_after(request, context)

    def _metrics(self) -> Iterator[outcomes.MetricsReply | None]:
        yield from self.exposition.gather()
        yield outcomes.MetricsReply(text=self.exposition.text())

    def _change_or_look_after(self, request: Change | Care, context: Context) -> Answer:
        if not isinstance(request, Change):
            return self._look_after(request, context)
        if context.durable:
            return when_durable(self.state, lambda: self._change(request, context))
        return self._change(request, context)

    def _look_after(self, request: Care, context: Context) -> Answer:
        """The reads about the daemon itself rather than its cells."""
        match request:
            case protocol.AuditRequest():
                return self._audit(request)
            case protocol.OperationRequest():
                return self.remembering.record(request.key, context.peer)
            case protocol.EnginesListRequest():
                return self.reading.engines()
            case protocol.PriorityListRequest():
                return self.wholeness.regions()
            case protocol.PriorityShowRequest():
                return self.wholeness.show(request.id)
            case protocol.MetricsRequest():
                return self._metrics()
            case protocol.DoctorRequest():
                return self.doctoring.doctor()
            case protocol.VerifyRequest():
                return self.upkeep.verify(request)
            case protocol.ReportRequest():
                return report(self.state, self.reading, self.explaining, request.session)
            case protocol.SubscribeRequest() | protocol.CreditRequest() | protocol.CancelRequest():
                raise AssertionError("the server answers these itself")
            case _:
                assert_never(request)

    def _change(self, request: Change, context: Context) -> Answer:
        """The requests that change something; the server has checked role and key."""
        match request:
            case protocol.ClearRequest() | protocol.RefreshRequest():
                return self.changing.taking.take(request, context)
            case protocol.UndoRequest():
                return self.changing.undo(request, context)
            case protocol.AcceptRequest():
                return self.changing.accept(request, context)
            case protocol.PriorityAddRequest():
                return self._priority(self.wholeness.add(request, context), "priority add", context)
            case protocol.PriorityRemoveRequest():
                return self._priority(self.wholeness.remove(request.id), "priority rm", context)
            case protocol.EnginesControlRequest():
                return self._control(request, context)
            case protocol.SessionsOpenRequest():
                return self._open_session(request)
            case protocol.BackupRequest():
                return self.upkeep.backup(request)
            case protocol.GcRequest():
                return self.upkeep.collect(request, context)
            case _:
                assert_never(request)

    def replayed(self, key: str, request: Request, peer: Peer) -> replies.Reply | None:
        """What was answered under the key before; raises Refused key_reused."""
        return self.remembering.replayed(key, request, peer)

    def remember(self, key: str, request: Request, peer: Peer, reply: replies.Reply) -> None:
        """Keep the answer under the key, over restarts."""
        self.remembering.remember(key, request, peer, reply)
        if isinstance(reply, outcomes.OperationReply):
            self.changing.taking.unfinished.end(reply.operation)
        facts = {"op": operation_of(request), "key": key, "user": peer.user}
        self.publish("operation", facts | _about(request, reply))

    def denied(self, request: Request, peer: Peer, claimed: Claimed) -> None:
        """Audit an attempt without the role."""
        context = Context(peer, claimed=claimed)
        self.denials.note(operation_of(request), audit_operator(context), claims(context))

    # ---- small answers

    def _hello(self, context: Context) -> replies.HelloReply:
        import os

        return replies.HelloReply(
            version=self.version,
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            pid=os.getpid(),
            state_dir=str(self.state.directory),
            year=self.state.year,
            exchange=self.state.exchange,
            option_rows=self.state.option_rows.value,
            operator=context.peer.operator,
            roles=sorted(context.peer.roles),
        )

    def _audit(self, request: protocol.AuditRequest) -> outcomes.AuditReply:
        records = [shown(record) for record in self.state.audit.tail(request.tail or 1 << 30)]
        if not request.verify:
            return outcomes.AuditReply(records=records)
        findings = self.state.audit.verify()
        chain = "intact" if not findings else f"broken at {findings[0]}"
        return outcomes.AuditReply(records=records, chain=chain)

    def _control(self, request: protocol.EnginesControlRequest, context: Context) -> outcomes.EngineReply:
        self.reading.engine(request.engine)
        user = context.peer.user or str(context.peer.uid)
        if request.action == "pause":
            self.supervising.pause(request.engine, f"by {user}" + (f": {request.cause}" if request.cause else ""))
        elif request.action == "resume":
            self.supervising.resume(request.engine)
        else:
            self.runner.retry(request.engine)
        self.runner.wake()
        self.state.audit.append(
            f"engines {request.action}",
            audit_operator(context),
            claimed=claims(context),
            where={"engine": request.engine},
            cause=request.cause,
            result="done",
        )
        return self.reading.engine(request.engine)

    def _open_session(self, request: protocol.SessionsOpenRequest) -> replies.SessionReply:
        seq = self.state.calendar.session_seq(request.session)
        for ledger in (self.state.trade, self.state.enrichment):
            ledger.session(seq)
        return self.reading.session(request.session)

    # ---- what the daemon asks

    def _priority(self, region: outcomes.RegionReply, op: str, context: Context) -> outcomes.RegionReply:
        where = {"symbol": region.symbol, "from": region.start_ts, "to": region.end_ts, "region": region.id}
        self.state.audit.append(
            op, audit_operator(context), claimed=claims(context), where=where, result=f"priority {region.priority}"
        )
        self.publish("region", facts_of(region))
        return region

    def retire_regions(self) -> list[outcomes.RegionReply]:
        """Retire the regions that are whole, and say which, and what moved by itself; called every second."""
        retired = self.wholeness.retire()
        for region in retired:
            self.publish("region", facts_of(region))
        for topic, facts in self.happenings.moved():
            self.publish(topic, facts)
        return retired

    def housekeeping(self) -> Iterator[None]:
        """
        Drop idle sessions, write down who tried in vain and how far columns lie behind; begun every half minute.

        Yields between steps of milliseconds: beside a backfill every session is counted anew.
        """
        self.denials.settle()
        yield from self.reading.lag_history.sample()
        for ledger in (self.state.trade, self.state.enrichment):
            ledger.drop_idle()

    def damaged_sources(self) -> list[SourceRecord]:
        """Sources that cannot be read."""
        return [record for record in self.state.sources.all() if record.state is SourceState.DAMAGED]

    def what_is_left(self) -> list[str]:
        """For the end of a run until idle: the verdict, and what is waiting, damaged, refused, failed or suspect."""
        status = self.reading.status()
        lines = [f"m17: {status.verdict}"]
        lines += [f"suspect: {counts.suspect:,} cells of {column.value}" for column, counts in status.columns.items()
                  if counts.suspect]  # fmt: skip
        lines += [
            f"{waiting.cause}: {waiting.column.value} {waiting.session}: {waiting.detail}"
            for engine in self.runner.engines.values()
            for waiting in engine.waiting()
        ]
        return lines + status.warnings


def _about(request: Request, reply: replies.Reply) -> dict[str, str | int]:
    """What a mutation was about, for whoever watches."""
    found: dict[str, str | int] = {}
    match request:
        case protocol.ClearRequest() | protocol.RefreshRequest() | protocol.AcceptRequest():
            found["session"] = request.range.session
        case protocol.SessionsOpenRequest():
            found["session"] = request.session
        case protocol.EnginesControlRequest():
            found |= {"engine": request.engine, "action": request.action}
        case protocol.PriorityAddRequest():
            found["symbol"] = request.symbol
        case protocol.PriorityRemoveRequest():
            found["region"] = request.id
        case _:
            pass
    if isinstance(reply, outcomes.OperationReply | outcomes.UndoReply):
        found["operation"] = reply.operation
    return found
