"""
Taking: clear and refresh over a range, with what would go said before it goes.

Slots that go are kept first, synced, in ``audit/undo``, and one record of the whole is audited before it is answered. What
fits into one piece is looked at, kept and taken in one step, so that no two operations take the same cell. More goes
piece by piece: a thread keeps a piece while requests are served, then what nobody has changed meanwhile is taken in the
step that looks, and the rest is struck out of the undo; no two operations have a piece between keeping and taking. The
answer counts what was taken. This module must never know a socket.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ledger.audit import Operator as AuditOperator
from ledger.columns import Column, Flag, Status
from ledger.dependents import Masks, dependents
from ledger.errors import AddressError, LedgerError
from ledger.rows import SessionRows
from ledger.state import State
from ledger.undo import CELLS_PER_FRAME, UndoFile, remove_undo, write_undo
from m17d import outcomes, protocol
from m17d.changed import Changed
from m17d.envelopes import Refused, Rest
from m17d.peers import Context
from m17d.reading import Reading, Selection
from m17d.refilling import Refilling
from m17d.remembering import remembered_facts
from m17d.runner import Runner
from m17d.unfinished import Unfinished, take_back

CONFIRM_CELLS: Final = 10_000
"""A clear of more cells needs the operator's yes."""
_SYMBOLS_AT_ONCE: Final = 256
_WAITING: Final = Rest(0.001)
_ORDER: Final = {column: number for number, column in enumerate(Column)}


@dataclass(frozen=True, slots=True)
class _Cells:
    """Cells of one column as they were seen: arrays [n], SLOT[n]."""

    column: Column
    rows: SessionRows
    symbol_ids: np.ndarray
    minutes: np.ndarray
    slots: np.ndarray

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, where: np.ndarray) -> _Cells:
        return _Cells(self.column, self.rows, self.symbol_ids[where], self.minutes[where], self.slots[where])


@dataclass(slots=True)
class _Plan:
    """What a request is about, and what it has taken so far."""

    request: protocol.ClearRequest | protocol.RefreshRequest
    selection: Selection
    clearing: bool
    chosen: Masks = field(default_factory=dict)
    """The cells that the range itself names."""
    behind: Masks = field(default_factory=dict)
    """The cells that were made from them."""
    dependents: dict[Column, int] = field(default_factory=dict)
    """Cells behind them that stay."""
    selected: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """bool[symbols of the year]: the symbols of the range."""
    refillable: Counter[str] = field(default_factory=Counter)
    changed: dict[Column, Changed] = field(default_factory=dict)
    inside: Counter[Column] = field(default_factory=Counter)
    """Cells taken inside the range."""
    checksums: Any = field(default_factory=hashlib.sha256)

    def mask(self, column: Column, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n, minutes]: the cells of some symbols that go."""
        masks = [self.chosen.get(column), self.behind.get(column) if self.request.cascade else None]
        found = [mask[symbol_ids] for mask in masks if mask is not None]
        return found[0] if len(found) == 1 else found[0] | found[1]

    @property
    def columns(self) -> list[Column]:
        """Whose cells go, in the order of the words."""
        behind = self.behind if self.request.cascade else {}
        return [column for column in Column if column in self.chosen or column in behind]


class Taking:
    """Does the clears and refreshes of one state."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading
        self.refilling = Refilling(state, runner.engines)
        self.unfinished = Unfinished(state)
        self.running: set[str] = set()
        """Operations that are in the middle of it."""
        self.events: dict[str, Counter[Column]] = {"clear": Counter(), "refresh": Counter()}
        self.on_change: Callable[[str, dict[str, Any]], object] = lambda _topic, _facts: None
        self.is_collecting: Callable[[], bool] = lambda: False
        self._named = 0
        self._keeping = False

    def name(self) -> str:
        """A name for an operation: one behind the audit log's end and every name that is in use."""
        seq, _ = self.state.audit.head
        self._named = max(seq, self._named) + 1
        return f"op-{self._named:08d}"

    def take(
        self, request: protocol.ClearRequest | protocol.RefreshRequest, context: Context
    ) -> Iterator[outcomes.OperationReply | Rest | None]:
        """Clear a range, or mark it wanted; yields None between steps and the reply last."""
        plan = _Plan(request, self.reading.select(request.range), isinstance(request, protocol.ClearRequest))
        yield from self._choose(plan)
        pieces = yield from self._pieces(plan)
        yield from self._turn()
        # What fits into one piece is looked at again in the step that takes it.
        seen = [self._look(plan, *part) for part in pieces[0]] if len(pieces) == 1 else []
        for one in seen:
            self._count(plan, one)
        for column, symbol_ids in (part for piece in pieces for part in piece) if not seen else ():
            self._note(plan, column, *_cells_of(symbol_ids, plan.mask(column, symbol_ids)))
            yield None
        cells = sum(changed.cells for changed in plan.changed.values())
        self._judge(plan, cells)
        if request.dry_run:
            yield self._reply(plan, "", dry_run=True)
            return
        operation = self.name()
        if len(pieces) > 1:
            yield from self._take_pieces(plan, operation, pieces, context)
        elif cells:
            self._take_at_once(plan, operation, seen, context)
        reply = self._reply(plan, operation, dry_run=False)
        self._audit(plan, operation, context)
        by = "clear" if plan.clearing else "refresh"
        for column, changed in plan.changed.items():
            if changed.cells:
                self.on_change("slots", changed.facts(self.state, plan.selection.session, column, by))
        if self.state.flusher is not None:
            self.state.flusher.wrote(urgent=True)
        # Symbols that a complete source does not have are filled again without reading it.
        self.runner.settle_later(plan.selection.session)
        self.runner.wake()
        yield reply

    # ---- which cells

    def _choose(self, plan: _Plan) -> Iterator[None]:
        """The cells that the range names, and those behind them."""
        seq, selection = plan.selection.seq, plan.selection
        shape = len(self.state.symbols), int(self.state.calendar.minutes[seq])
        for column in plan.request.columns:
            mask = plan.chosen[column] = np.zeros(shape, dtype=bool)
            if not self.state.ledger_of(column).exists(seq):
                continue
            window = slice(selection.first, selection.last)
            for start in range(0, len(selection.symbol_ids), _SYMBOLS_AT_ONCE):
                some = selection.symbol_ids[start : start + _SYMBOLS_AT_ONCE]
                mask[some, window] = self._takeable(plan, column, some, named=True)[:, window]
                yield None
        for _ in dependents(self.state, seq, plan.chosen, plan.behind):
            yield None
        plan.selected = np.zeros(shape[0], dtype=bool)
        plan.selected[selection.symbol_ids] = True
        for column, mask in plan.behind.items():
            if not plan.request.cascade:
                plan.dependents[column] = int(np.count_nonzero(mask & ~plan.chosen.get(column, np.False_)))
            yield None

    def _takeable(self, plan: _Plan, column: Column, symbol_ids: np.ndarray, *, named: bool) -> np.ndarray:
        """bool[n, minutes]: cells that the operation would change now; ``named``: because the range names them."""
        minutes = int(self.state.calendar.minutes[plan.selection.seq])
        rows = self.state.ledger_of(column).session(plan.selection.seq)
        index = rows.column_index(column)
        status = rows.status[index, symbol_ids, :minutes]
        found: np.ndarray = status == Status.FILLED
        if plan.clearing:
            found |= status == Status.PENDING
        else:
            found &= rows.flags[index, symbol_ids, :minutes] & np.uint8(Flag.WANTED) == 0
        stale = getattr(plan.request, "stale", None)
        if named and stale is not None:
            found &= self.reading.stale(plan.selection.session, column, symbol_ids, stale == "recipe")
        return found

    def _pieces(self, plan: _Plan) -> Generator[None, None, list[list[tuple[Column, np.ndarray]]]]:
        """Pieces, each a list of (column, i64[n] symbols) that together have at most so many cells; yields between steps."""
        pieces: list[list[tuple[Column, np.ndarray]]] = []
        room = 0
        everyone = np.arange(len(self.state.symbols))
        for column in plan.columns:
            if not self.state.ledger_of(column).exists(plan.selection.seq):
                continue
            counts = [
                np.count_nonzero(plan.mask(column, everyone[start : start + 1024]), axis=1)
                for start in range(0, len(everyone), 1024)
            ]
            yield None
            total = np.concatenate([np.zeros(0, dtype=np.int64), *counts])
            symbol_ids = np.flatnonzero(total)
            total = total[symbol_ids].cumsum()
            first = before = 0
            while first < len(symbol_ids):
                if not pieces or total[first] - before > room:
                    pieces.append([])
                    room = CELLS_PER_FRAME
                last = int(np.searchsorted(total, before + room, side="right"))
                pieces[-1].append((column, symbol_ids[first:last]))
                room -= int(total[last - 1]) - before
                first, before = last, int(total[last - 1])
        return pieces

    def _look(self, plan: _Plan, column: Column, symbol_ids: np.ndarray) -> _Cells:
        """The cells of some symbols that go, as they are now."""
        rows = self.state.ledger_of(column).session(plan.selection.seq)
        mask = plan.mask(column, symbol_ids) & self._takeable(plan, column, symbol_ids, named=False)
        if getattr(plan.request, "stale", None) is not None and column in plan.chosen:
            named = self._takeable(plan, column, symbol_ids, named=True)
            mask &= ~plan.chosen[column][symbol_ids] | named
        ids, minutes = _cells_of(symbol_ids, mask)
        return _Cells(column, rows, ids, minutes, rows.slots(column, ids, minutes))

    def _note(self, plan: _Plan, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray) -> None:
        """Count cells that were taken, or would be, and from where they would come again."""
        plan.refillable += self.refilling.origins(plan.selection.session, column, symbol_ids, minutes)
        plan.changed.setdefault(column, Changed()).note(symbol_ids, minutes)
        if column in plan.chosen:
            selection = plan.selection
            inside = plan.selected[symbol_ids]
            inside &= (minutes >= selection.first) & (minutes < selection.last)
            plan.inside[column] += int(np.count_nonzero(inside))

    # ---- taking them

    def _take_at_once(self, plan: _Plan, operation: str, seen: list[_Cells], context: Context) -> None:
        """Keep and take what fits into one piece, and was counted."""
        reply = self._reply(plan, operation, dry_run=False)
        self.unfinished.begin(operation, remembered_facts(context.key, plan.request, context.peer, reply))
        try:
            facts = self._facts(plan)
            write_undo(self.state.directory, self.state.system, operation, facts, **_kept(seen))
        except LedgerError:
            self.unfinished.end(operation)
            raise
        for one in seen:
            self._change(plan, one)

    def _take_pieces(
        self, plan: _Plan, operation: str, pieces: list[list[tuple[Column, np.ndarray]]], context: Context
    ) -> Iterator[Rest | None]:
        """Keep and take piece after piece; a failure takes back what was taken before it."""
        state = self.state
        # What was counted is what would go; from here on it is what goes.
        for counted in (plan.refillable, plan.changed, plan.inside):
            counted.clear()
        self.unfinished.begin(operation, {})
        self.running.add(operation)
        try:
            file = UndoFile(state.directory, state.system, operation, self._facts(plan))
            try:
                for piece in pieces:
                    yield from self._take_piece(plan, file, piece)
                file.finish()
            finally:
                file.close()
            reply = self._reply(plan, operation, dry_run=False)
            self.unfinished.begin(operation, remembered_facts(context.key, plan.request, context.peer, reply))
        except LedgerError:
            try:
                take_back(state, operation)
            except AddressError:
                pass  # not even the file could be made
            else:
                if not self.is_collecting():
                    remove_undo(state.directory, state.system, operation)
            self.unfinished.end(operation)
            raise
        finally:
            self.running.discard(operation)

    def _take_piece(self, plan: _Plan, file: UndoFile, piece: list[tuple[Column, np.ndarray]]) -> Iterator[Rest | None]:
        yield from self._turn()
        self._keeping = True
        try:
            first, seen = file.kept, [self._look(plan, *part) for part in piece]
            kept = _kept(seen)
            if not len(kept["version"]):
                return
            yield from _in_thread(lambda: file.keep(**kept))
            same = [one.rows.slots(one.column, one.symbol_ids, one.minutes)["version"] == one.slots["version"]
                    for one in seen]  # fmt: skip
            changed_since = np.flatnonzero(~np.concatenate(same))
            if len(changed_since):
                file.take_out(first + changed_since)
            for one, mine in zip(seen, same, strict=True):
                taken = one if mine.all() else one.part(mine)
                self._change(plan, taken)
                self._count(plan, taken)
        finally:
            self._keeping = False
        yield None

    def _turn(self) -> Iterator[Rest]:
        """Wait until no other operation has cells between keeping and taking."""
        while self._keeping:
            yield _WAITING

    def _change(self, plan: _Plan, cells: _Cells) -> None:
        where = cells.symbol_ids, cells.minutes
        if plan.clearing:
            cells.rows.clear_many(cells.column, *where, now_ns=cells.rows.now_ns())
        else:
            cells.rows.flag_many(cells.column, *where, add=Flag.WANTED, now_ns=cells.rows.now_ns())
        self.events["clear" if plan.clearing else "refresh"][cells.column] += len(cells)

    def _count(self, plan: _Plan, cells: _Cells) -> None:
        self._note(plan, cells.column, cells.symbol_ids, cells.minutes)
        plan.checksums.update(np.ascontiguousarray(cells.slots["checksum"]).tobytes())

    # ---- what is said

    @staticmethod
    def _judge(plan: _Plan, cells: int) -> None:
        request = plan.request
        if request.expect is not None and request.expect != cells:
            raise Refused(
                "expectation_failed",
                f"{cells} cells would go, {request.expect} were expected; nothing was changed",
                "look with --dry-run",
            )
        if isinstance(request, protocol.ClearRequest) and not request.accept_loss and not request.dry_run:
            lost = plan.refillable["none"]
            if lost:
                raise Refused(
                    "would_lose_data",
                    f"{lost} of {cells} cells could be refilled from nowhere; nothing was changed",
                    "pass --accept-loss if that is really wanted",
                )
        if cells > CONFIRM_CELLS and not request.confirmed and not request.dry_run and request.expect is None:
            raise Refused(
                "confirm_required",
                f"{cells} cells would go; nothing was changed",
                "look with --dry-run, then pass --yes or --expect N",
                cells=cells,
            )

    @staticmethod
    def _facts(plan: _Plan) -> dict[str, Any]:
        request = plan.request
        return {"op": request.__struct_config__.tag, "session": request.range.session, "cause": request.cause}

    def _taken(self, plan: _Plan) -> dict[Column, int]:
        """Cells taken by column, of those whose ledger has the session."""
        columns = [column for column in plan.columns if self.state.ledger_of(column).exists(plan.selection.seq)]
        return {column: plan.changed[column].cells if column in plan.changed else 0 for column in columns}

    def _audit(self, plan: _Plan, operation: str, context: Context) -> None:
        request = plan.request
        self.state.audit.append(
            "clear" if plan.clearing else "refresh",
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
            cells={column.value: number for column, number in self._taken(plan).items()},
            cause=request.cause,
            result="done",
            digest=plan.checksums.hexdigest(),
        )

    def _reply(self, plan: _Plan, operation: str, *, dry_run: bool) -> outcomes.OperationReply:
        taken, selection = self._taken(plan), plan.selection
        selected = len(selection.symbol_ids) * selection.minutes
        return outcomes.OperationReply(
            operation=operation,
            cleared=taken,
            untouched={column: selected - plan.inside[column] if column in plan.chosen else 0 for column in taken},
            dependents=plan.dependents,
            refillable=outcomes.Refillable(
                **{origin: plan.refillable[origin] for origin in ("flat_file", "rest", "derived", "none")}
            ),
            dry_run=dry_run,
        )


def _cells_of(symbol_ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at, minutes = np.nonzero(mask)
    return symbol_ids[at], minutes


def _kept(seen: list[_Cells]) -> dict[str, np.ndarray]:
    """The arguments of an undo: the cells as they are, and the versions that they will have."""
    slots = np.concatenate([one.slots for one in seen])
    firsts = [one.rows.place.session_seq * 390 for one in seen]
    return {
        "column": np.concatenate([np.full(len(one), _ORDER[one.column], dtype=np.uint8) for one in seen]),
        "symbol_id": np.concatenate([one.symbol_ids for one in seen]).astype(np.uint16),
        "minute_idx": np.concatenate([one.minutes + first for one, first in zip(seen, firsts, strict=True)]).astype(
            np.uint32
        ),
        "slots": slots,
        "version": slots["version"] + np.uint32(1),
    }


def _in_thread(work: Callable[[], object]) -> Iterator[Rest]:
    """Do something that waits for the disk, while the loop goes on; raises what it raises."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except LedgerError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="keep")
    thread.start()
    try:
        while thread.is_alive():
            yield _WAITING
    finally:
        thread.join()
    if failed:
        raise failed[0]


def audit_operator(context: Context) -> AuditOperator:
    """The kernel's word on who asks, for the audit log."""
    peer = context.peer
    return AuditOperator(uid=peer.uid, gid=peer.gid, pid=peer.pid, user=peer.user)


def claimed(context: Context) -> dict[str, str]:
    """What the caller says of itself, for the audit log."""
    pairs = (("ssh", context.claimed.ssh), ("sudo", context.claimed.sudo), ("key", context.key))
    return {name: value for name, value in pairs if value}
