"""
Taking: clear and refresh over a range, with what would go said before it goes.

Slots that go are kept first, synced, in ``audit/undo``, and one record of the whole is audited before it is answered. What
fits into one piece is looked at, kept and taken in one step, so that no two operations take the same cell. More goes a few
pieces at a time: a thread keeps them while requests are served, then what nobody has changed meanwhile is taken piece by
piece, and the rest is struck out of the undo; no two operations have pieces between keeping and taking. The answer counts
what was taken. This module must never know a socket.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from ledger.audit import Operator as AuditOperator
from ledger.columns import Column, Flag
from ledger.errors import AddressError, LedgerError
from ledger.state import State
from ledger.undo import UndoFile, remove_undo, write_undo
from m17d import outcomes, protocol
from m17d.choosing import Cells, Choosing, Piece, Plan, cells_of, kept_of
from m17d.envelopes import Refused, Rest
from m17d.peers import Context
from m17d.reading import Reading
from m17d.refilling import Refilling
from m17d.remembering import remembered_facts
from m17d.runner import Runner
from m17d.unfinished import Unfinished, take_back

CONFIRM_CELLS: Final = 10_000
"""A clear of more cells needs the operator's yes."""
_PIECES_KEPT: Final = 4
"""Pieces that are synced together."""
_WAITING: Final = Rest(0.001)
_OFFERS: Final = 20
"""So often an operation looks whether those who wait for their turn have had it."""


class Taking:
    """Does the clears and refreshes of one state."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading
        self._choosing = Choosing(state, reading, Refilling(state, runner.engines))
        self.unfinished = Unfinished(state)
        self.running: set[str] = set()
        """Operations that are in the middle of it."""
        self.events: dict[str, Counter[Column]] = {"clear": Counter(), "refresh": Counter()}
        self.on_change: Callable[[str, dict[str, Any]], object] = lambda _topic, _facts: None
        self.is_collecting: Callable[[], bool] = lambda: False
        self._named = 0
        self._keeping = False
        self._asking = 0
        """Operations that wait for their turn."""

    def name(self) -> str:
        """A name for an operation: one behind the audit log's end and every name that is in use."""
        seq, _ = self.state.audit.head
        self._named = max(seq, self._named) + 1
        return f"op-{self._named:08d}"

    def take(
        self, request: protocol.ClearRequest | protocol.RefreshRequest, context: Context
    ) -> Iterator[outcomes.OperationReply | Rest | None]:
        """Clear a range, or mark it wanted; yields None between steps and the reply last."""
        plan = Plan(request, self.reading.select(request.range), isinstance(request, protocol.ClearRequest))
        yield from self._choosing.choose(plan)
        pieces = yield from self._choosing.pieces(plan)
        yield from self._turn()
        # What fits into one piece is looked at again in the step that takes it.
        seen = [self._choosing.look(plan, *part) for part in pieces[0]] if len(pieces) == 1 else []
        for one in seen:
            self._count(plan, one)
        for column, symbol_ids in (part for piece in pieces for part in piece) if not seen else ():
            self._choosing.note(plan, column, *cells_of(symbol_ids, plan.mask(column, symbol_ids)))
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

    # ---- taking what was chosen

    def _take_at_once(self, plan: Plan, operation: str, seen: Sequence[Cells], context: Context) -> None:
        """Keep and take what fits into one piece, and was counted."""
        reply = self._reply(plan, operation, dry_run=False)
        self.unfinished.begin(operation, remembered_facts(context.key, plan.request, context.peer, reply))
        try:
            facts = self._facts(plan)
            write_undo(self.state.directory, self.state.system, operation, facts, **kept_of(seen))
        except LedgerError:
            self.unfinished.end(operation)
            raise
        for one in seen:
            self._change(plan, one)

    def _take_pieces(self, plan: Plan, operation: str, pieces: list[Piece], context: Context) -> Iterator[Rest | None]:
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
                for first in range(0, len(pieces), _PIECES_KEPT):
                    yield from self._take_some(plan, file, pieces[first : first + _PIECES_KEPT])
                    yield from self._offer()
                file.finish()
            finally:
                file.close()
            reply = self._reply(plan, operation, dry_run=False)
            self.unfinished.begin(operation, remembered_facts(context.key, plan.request, context.peer, reply))
        except LedgerError:
            try:
                for _ in take_back(state, operation):
                    yield None
            except AddressError:
                pass  # not even the file could be made
            else:
                if not self.is_collecting():
                    remove_undo(state.directory, state.system, operation)
            self.unfinished.end(operation)
            raise
        finally:
            self.running.discard(operation)

    def _take_some(self, plan: Plan, file: UndoFile, pieces: list[Piece]) -> Iterator[Rest | None]:
        yield from self._turn()
        self._keeping = True
        try:
            seen: list[Cells] = []
            for part in (part for piece in pieces for part in piece):
                looked = self._choosing.look(plan, *part)
                seen += [looked] if len(looked) else []
                yield None
            if not seen:
                return
            first = file.kept
            yield from _in_thread(lambda: file.keep(**kept_of(seen)))
            for one in seen:
                self._take_kept(plan, file, first, one)
                first += len(one)
                yield None
        finally:
            self._keeping = False

    def _take_kept(self, plan: Plan, file: UndoFile, first: int, cells: Cells) -> None:
        """Take what nobody has changed since it was looked at; ``first`` is its place in the undo."""
        same = cells.rows.versions(cells.column, cells.symbol_ids, cells.minutes) == cells.slots["version"]
        if not same.all():
            file.take_out(first + np.flatnonzero(~same))
            cells = cells.part(same)
        self._change(plan, cells)
        self._count(plan, cells)

    def _turn(self) -> Iterator[Rest]:
        """Wait until no other operation has cells between keeping and taking."""
        self._asking += 1
        try:
            while self._keeping:
                yield _WAITING
        finally:
            self._asking -= 1

    def _offer(self) -> Iterator[Rest]:
        """Give whoever waits the turn between two times of one's own: one symbol's cells should not wait for a day's."""
        for _ in range(_OFFERS):
            if not self._asking:
                return
            yield _WAITING

    def _change(self, plan: Plan, cells: Cells) -> None:
        where = cells.symbol_ids, cells.minutes
        if plan.clearing:
            cells.rows.clear_many(cells.column, *where, now_ns=cells.rows.now_ns())
        else:
            cells.rows.flag_many(cells.column, *where, add=Flag.WANTED, now_ns=cells.rows.now_ns())
        self.events["clear" if plan.clearing else "refresh"][cells.column] += len(cells)

    def _count(self, plan: Plan, cells: Cells) -> None:
        self._choosing.note(plan, cells.column, cells.symbol_ids, cells.minutes)
        plan.checksums.update(np.ascontiguousarray(cells.slots["checksum"]).tobytes())

    # ---- what is said

    @staticmethod
    def _judge(plan: Plan, cells: int) -> None:
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
    def _facts(plan: Plan) -> dict[str, Any]:
        request = plan.request
        return {"op": request.__struct_config__.tag, "session": request.range.session, "cause": request.cause}

    def _taken(self, plan: Plan) -> dict[Column, int]:
        """Cells taken by column, of those whose ledger has the session."""
        columns = [column for column in plan.columns if self.state.ledger_of(column).exists(plan.selection.seq)]
        return {column: plan.changed[column].cells if column in plan.changed else 0 for column in columns}

    def _audit(self, plan: Plan, operation: str, context: Context) -> None:
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

    def _reply(self, plan: Plan, operation: str, *, dry_run: bool) -> outcomes.OperationReply:
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
