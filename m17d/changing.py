"""
Changing: clear, refresh, undo and accept over a range, with what would go said before it goes.

Slots that go are kept first, synced, in ``audit/undo``, and every change is audited before it is answered. Big ranges
are worked through in steps, so that requests are served meanwhile. This module must never know a socket.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from ledger.absence import dataset_of
from ledger.audit import Operator as AuditOperator
from ledger.columns import RAW_COLUMNS, Column, Flag, Status
from ledger.dependents import Masks, dependents
from ledger.rows import SessionRows
from ledger.sources import SourceRecord, SourceState
from ledger.state import State
from ledger.undo import read_undo, remove_undo, write_undo
from m17d import outcomes, protocol
from m17d.envelopes import Refused
from m17d.peers import Context
from m17d.reading import Reading, Selection, source_reply
from m17d.runner import Runner

CONFIRM_CELLS: Final = 10_000
"""A clear of more cells needs the operator's yes."""
_STEP_SYMBOLS: Final = 64


@dataclass(slots=True)
class _Taken:
    """Cells of one column that an operation takes: arrays [n]."""

    column: Column
    rows: SessionRows
    symbol_ids: np.ndarray
    minutes: np.ndarray
    slots: np.ndarray
    untouched: int


@dataclass(slots=True)
class _Plan:
    taken: list[_Taken] = field(default_factory=list)
    dependents: dict[Column, int] = field(default_factory=dict)
    refillable: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("flat_file", "rest", "derived", "none"), 0)
    )

    @property
    def cells(self) -> int:
        return sum(len(one.symbol_ids) for one in self.taken)


class Changing:
    """Does the mutations over ranges of cells."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading

    # ---- clear and refresh

    def take(
        self, request: protocol.ClearRequest | protocol.RefreshRequest, context: Context
    ) -> Iterator[outcomes.OperationReply | None]:
        """Clear a range, or mark it wanted; yields None between steps and the reply last."""
        clearing = isinstance(request, protocol.ClearRequest)
        selection = self.reading.select(request.range)
        plan = _Plan()
        chosen: Masks = {}
        for column in request.columns:
            chosen[column] = self._choose(selection, column, clearing=clearing, stale=getattr(request, "stale", None))
            yield None
        behind = dependents(self.state, selection.seq, chosen)
        yield None
        self._plan_taken(selection, chosen, behind if request.cascade else {}, plan)
        for column, mask in behind.items():
            if not request.cascade:
                plan.dependents[column] = int(np.count_nonzero(mask & ~chosen.get(column, np.False_)))
        yield None
        self._judge(request, plan, clearing=clearing)
        if request.dry_run:
            yield self._reply("", plan, dry_run=True)
            return
        operation = self._name(context)
        if clearing:
            self._keep(operation, request, plan)
            yield None
        yield from self._apply(plan, clearing=clearing)
        if not clearing:
            self._keep(operation, request, plan)
        self._audit("clear" if clearing else "refresh", context, operation, request, plan)
        # Symbols that a complete source does not have are filled again without reading it.
        self.runner.settle_later(selection.session)
        self.runner.wake()
        yield self._reply(operation, plan, dry_run=False)

    def _choose(self, selection: Selection, column: Column, *, clearing: bool, stale: str | None) -> np.ndarray:
        """bool[symbols, minutes]: the cells of a column that the range itself names and the operation would change."""
        minutes = int(self.state.calendar.minutes[selection.seq])
        mask = np.zeros((len(self.state.symbols), minutes), dtype=bool)
        ledger = self.state.ledger_of(column)
        if not ledger.exists(selection.seq):
            return mask
        rows = ledger.session(selection.seq)
        index, window = rows.column_index(column), slice(selection.first, selection.last)
        status = rows.status[index, selection.symbol_ids, window]
        wanted = status == Status.FILLED
        if clearing:
            wanted |= status == Status.PENDING
        else:
            wanted &= rows.flags[index, selection.symbol_ids, window] & np.uint8(Flag.WANTED) == 0
        if stale is not None:
            marked = self.reading.stale(selection.session, column, selection.symbol_ids, stale == "recipe")
            wanted &= marked[:, window]
        mask[selection.symbol_ids, window] = wanted
        return mask

    def _plan_taken(self, selection: Selection, chosen: Masks, behind: Masks, plan: _Plan) -> None:
        """The cells that go: those of the range, and those behind them."""
        for column in Column:
            ledger = self.state.ledger_of(column)
            if (column not in chosen and column not in behind) or not ledger.exists(selection.seq):
                continue
            mask = chosen[column] if column in chosen else behind[column]
            if column in chosen and column in behind:
                mask = mask | behind[column]
            symbol_ids, minutes = np.nonzero(mask)
            rows = ledger.session(selection.seq)
            untouched = 0
            if column in chosen:
                inside = int(np.count_nonzero(mask[selection.symbol_ids, selection.first : selection.last]))
                untouched = len(selection.symbol_ids) * selection.minutes - inside
            slots = rows.slots(column, symbol_ids, minutes)
            plan.taken.append(_Taken(column, rows, symbol_ids, minutes, slots, untouched))
            self._count_refillable(selection.session, column, symbol_ids, plan)

    def _count_refillable(self, session: str, column: Column, symbol_ids: np.ndarray, plan: _Plan) -> None:
        """From where each cell could be made again: its source's file, REST, other cells, or nowhere."""
        served = self._served(session, column)
        if column not in RAW_COLUMNS:
            known = served[symbol_ids] if len(symbol_ids) else np.zeros(0, dtype=bool)
            plan.refillable["derived"] += int(known.sum())
            plan.refillable["none"] += int((~known).sum())
            return
        for symbol_id in np.unique(symbol_ids):
            count = int((symbol_ids == symbol_id).sum())
            plan.refillable[self._origin(session, column, int(symbol_id), served)] += count

    def _served(self, session: str, column: Column) -> np.ndarray:
        served = np.zeros(self.state.symbols.symbols_max, dtype=bool)
        for engine in self.runner.engines.values():
            covers = engine.covers(session, column) if column in engine.writes else None
            if covers is not None:
                served[: len(covers)] |= covers
        return served

    def _origin(self, session: str, column: Column, symbol_id: int, served: np.ndarray) -> str:
        if not served[symbol_id]:
            return "none"
        if column is Column.RF_RATE_REF:
            return "rest"
        dataset = dataset_of(column, self.state.class_of(symbol_id))
        record = self.state.sources.get(dataset.value, session) if dataset else None
        if record is not None and record.state in (SourceState.COMPLETE, SourceState.ABSENT):
            return "flat_file"
        return "none"

    @staticmethod
    def _judge(request: protocol.ClearRequest | protocol.RefreshRequest, plan: _Plan, *, clearing: bool) -> None:
        if request.expect is not None and request.expect != plan.cells:
            raise Refused(
                "expectation_failed",
                f"{plan.cells} cells would go, {request.expect} were expected; nothing was changed",
                "look with --dry-run",
            )
        if clearing and plan.refillable["none"] and not request.accept_loss and not request.dry_run:
            raise Refused(
                "would_lose_data",
                f"{plan.refillable['none']} of {plan.cells} cells could be refilled from nowhere; nothing was changed",
                "pass --accept-loss if that is really wanted",
            )
        if plan.cells > CONFIRM_CELLS and not request.confirmed and not request.dry_run and request.expect is None:
            raise Refused(
                "confirm_required",
                f"{plan.cells} cells would go; nothing was changed",
                "look with --dry-run, then pass --yes or --expect N",
                cells=plan.cells,
            )

    def _name(self, context: Context) -> str:
        """The operation's name: the next record of the audit log, so that it is never given twice."""
        del context
        seq, _ = self.state.audit.head
        return f"op-{seq + 1:08d}"

    def _keep(self, operation: str, request: protocol.ClearRequest | protocol.RefreshRequest, plan: _Plan) -> None:
        taken = [one for one in plan.taken if len(one.symbol_ids)]
        if not taken:
            return
        columns = np.concatenate(
            [np.full(len(one.symbol_ids), list(Column).index(one.column), dtype=np.uint8) for one in taken]
        )
        offsets = [np.full(len(one.minutes), one.rows.place.session_seq * 390, dtype=np.int64) for one in taken]
        minute_idx = np.concatenate([offset + one.minutes for offset, one in zip(offsets, taken, strict=True)])
        slots = np.concatenate([one.slots for one in taken])
        after = slots["version"] + np.uint32(1)
        write_undo(
            self.state.directory,
            self.state.system,
            operation,
            {"op": request.__struct_config__.tag, "session": request.range.session, "cause": request.cause},
            column=columns,
            symbol_id=np.concatenate([one.symbol_ids for one in taken]).astype(np.uint16),
            minute_idx=minute_idx.astype(np.uint32),
            slots=slots,
            version=after,
        )

    def _apply(self, plan: _Plan, *, clearing: bool) -> Iterator[None]:
        for one in plan.taken:
            for part in _parts(one.symbol_ids):
                now_ns = one.rows.now_ns()
                cells = one.symbol_ids[part], one.minutes[part]
                if clearing:
                    one.rows.clear_many(one.column, *cells, now_ns=now_ns)
                else:
                    one.rows.flag_many(one.column, *cells, add=Flag.WANTED, now_ns=now_ns)
                yield None
        if self.state.flusher is not None:
            self.state.flusher.wrote(urgent=True)

    def _audit(
        self,
        op: str,
        context: Context,
        operation: str,
        request: protocol.ClearRequest | protocol.RefreshRequest,
        plan: _Plan,
    ) -> None:
        checksums = np.concatenate([one.slots["checksum"] for one in plan.taken] or [np.zeros(0, dtype=np.uint32)])
        self.state.audit.append(
            op,
            audit_operator(context),
            claimed=claimed(context),
            operation=operation,
            where={
                "session": request.range.session,
                "from": request.range.from_ts,
                "to": request.range.to_ts,
                "symbols": request.range.symbols,
                "columns": [column.value for column in request.columns],
            },
            cells={one.column.value: len(one.symbol_ids) for one in plan.taken},
            cause=request.cause,
            result="done",
            digest=hashlib.sha256(checksums.tobytes()).hexdigest(),
        )

    @staticmethod
    def _reply(operation: str, plan: _Plan, *, dry_run: bool) -> outcomes.OperationReply:
        return outcomes.OperationReply(
            operation=operation,
            cleared={one.column: len(one.symbol_ids) for one in plan.taken},
            untouched={one.column: one.untouched for one in plan.taken},
            dependents=plan.dependents,
            refillable=outcomes.Refillable(**plan.refillable),
            dry_run=dry_run,
        )

    # ---- undo

    def undo(self, request: protocol.UndoRequest, context: Context) -> Iterator[outcomes.UndoReply | None]:
        """Set back what an operation took, where nobody wrote since."""
        kept = read_undo(self.state.directory, self.state.system, request.operation)
        restored: dict[Column, int] = {}
        skipped: dict[Column, int] = {}
        refreshed = kept.facts.get("op") == "refresh"
        for index in np.unique(kept.column):
            column = list(Column)[int(index)]
            mine = np.flatnonzero(kept.column == index)
            ledger = self.state.ledger_of(column)
            rows = ledger.session(int(kept.minute_idx[mine[0]]) // 390)
            done = 0
            for start in range(0, len(mine), 16_384):
                some = mine[start : start + 16_384]
                symbol_ids = kept.symbol_id[some].astype(np.int64)
                minutes = kept.minute_idx[some].astype(np.int64) % 390
                done += self._set_back(rows, column, symbol_ids, minutes, kept, some, refreshed=refreshed)
                yield None
            restored[column], skipped[column] = done, len(mine) - done
        self.state.audit.append(
            "undo",
            audit_operator(context),
            claimed=claimed(context),
            operation=request.operation,
            cells={column.value: number for column, number in restored.items()},
            cause=request.cause,
            result=f"{sum(restored.values())} restored, {sum(skipped.values())} skipped",
        )
        if not sum(skipped.values()):
            remove_undo(self.state.directory, self.state.system, request.operation)
        if self.state.flusher is not None:
            self.state.flusher.wrote(urgent=True)
        self.runner.wake()
        yield outcomes.UndoReply(operation=request.operation, restored=restored, skipped=skipped)

    @staticmethod
    def _set_back(
        rows: SessionRows,
        column: Column,
        symbol_ids: np.ndarray,
        minutes: np.ndarray,
        kept: Any,
        some: np.ndarray,
        *,
        refreshed: bool,
    ) -> int:
        now_ns = rows.now_ns()
        if refreshed:
            same = rows.slots(column, symbol_ids, minutes)["version"] == kept.version[some]
            changed = rows.flag_many(column, symbol_ids[same], minutes[same], remove=Flag.WANTED, now_ns=now_ns)
            return int(changed.sum())
        done = rows.restore_many(column, symbol_ids, minutes, kept.slots[some], kept.version[some], now_ns=now_ns)
        return int(done.sum())

    # ---- accept

    def accept(self, request: protocol.AcceptRequest, context: Context) -> Iterator[outcomes.AcceptReply | None]:
        """Declare missing sources of the range absent; take suspect cells as they are."""
        selection = self.reading.select(request.range)
        columns = [
            column for column in (request.columns or RAW_COLUMNS) if column in (Column.TRADE_REF, Column.QUOTE_REF)
        ]
        accepted: dict[Column, int] = {}
        sources = []
        for column in columns:
            cells = 0
            for dataset, symbol_ids in self._by_dataset(selection, column).items():
                record = self.state.sources.get(dataset, selection.session)
                if record is not None and record.state is SourceState.WAITING:
                    changed = msgspec.structs.replace(record, state=SourceState.ABSENT, reason="accepted as absent")
                    sources.append(source_reply(changed))
                    cells += len(symbol_ids) * selection.minutes
                    if not request.dry_run:
                        self.state.sources.put(changed)
                elif record is not None:
                    cells += self._take_as_it_is(selection, column, record, symbol_ids, dry_run=request.dry_run)
                yield None
            if cells:
                accepted[column] = cells
        if not accepted:
            raise Refused("nothing_selected", "nothing in the range is waited for or suspect", "look with: m17ctl why")
        operation = "" if request.dry_run else self._name(context)
        if not request.dry_run:
            self.state.audit.append(
                "accept",
                audit_operator(context),
                claimed=claimed(context),
                operation=operation,
                where={"session": selection.session, "symbols": request.range.symbols},
                cells={column.value: number for column, number in accepted.items()},
                cause=request.cause,
                result=", ".join(f"{source.dataset} absent" for source in sources) or "done",
            )
            self.runner.settle_later(selection.session)
            self.runner.wake()
        yield outcomes.AcceptReply(operation=operation, accepted=accepted, sources=sources, dry_run=request.dry_run)

    def _by_dataset(self, selection: Selection, column: Column) -> dict[str, np.ndarray]:
        found: dict[str, list[int]] = {}
        for symbol_id in selection.symbol_ids.tolist():
            dataset = dataset_of(column, self.state.class_of(symbol_id))
            if dataset is not None:
                found.setdefault(dataset.value, []).append(symbol_id)
        return {dataset: np.array(ids, dtype=np.int64) for dataset, ids in found.items()}

    def _take_as_it_is(
        self, selection: Selection, column: Column, record: SourceRecord, symbol_ids: np.ndarray, *, dry_run: bool
    ) -> int:
        """Take away suspicion from the range's cells, for as long as their source stays the same."""
        if not self.state.trade.exists(selection.seq):
            return 0
        rows = self.state.trade.session(selection.seq)
        flags = rows.flags[rows.column_index(column), symbol_ids, selection.first : selection.last]
        at, minutes = np.nonzero(flags & np.uint8(Flag.SUSPECT))
        if len(at) and not dry_run:
            spans = [(int(one), selection.first, selection.last) for one in symbol_ids[np.unique(at)]]
            self.state.sources.put(msgspec.structs.replace(record, accepted=sorted({*record.accepted, *spans})))
            rows.flag_many(column, symbol_ids[at], minutes + selection.first, remove=Flag.SUSPECT, now_ns=rows.now_ns())
        return len(at)


def _parts(symbol_ids: np.ndarray) -> Iterator[slice]:
    """Slices of about 25,000 cells."""
    for start in itertools.count(0, _STEP_SYMBOLS * 390):
        if start >= len(symbol_ids):
            return
        yield slice(start, start + _STEP_SYMBOLS * 390)


def audit_operator(context: Context) -> AuditOperator:
    """The kernel's word on who asks, for the audit log."""
    peer = context.peer
    return AuditOperator(uid=peer.uid, gid=peer.gid, pid=peer.pid, user=peer.user)


def claimed(context: Context) -> dict[str, str]:
    """What the caller says of itself, for the audit log."""
    pairs = (("ssh", context.claimed.ssh), ("sudo", context.claimed.sudo), ("key", context.key))
    return {name: value for name, value in pairs if value}
