"""
Changing: undo and accept, and clear and refresh as :class:`m17d.taking.Taking` does them.

Every change is audited before it is answered. Big ranges are worked through in steps, so that requests are served
meanwhile. This module must never know a socket.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from ledger.absence import dataset_of
from ledger.columns import RAW_COLUMNS, Column, Dataset, Flag
from ledger.sources import SourceRecord, SourceState
from ledger.state import State
from ledger.undo import UndoReader, remove_undo
from m17d import outcomes, protocol
from m17d.changed import Changed
from m17d.envelopes import Refused
from m17d.opening import STEP_S
from m17d.peers import Context
from m17d.reading import Reading, Selection, source_reply
from m17d.runner import Runner
from m17d.taking import Taking, audit_operator, claimed
from m17d.unfinished import set_back


class Changing:
    """Does the mutations over ranges of cells."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading
        self.taking = Taking(state, runner, reading)
        self.events: dict[str, Counter[Column]] = {**self.taking.events, "undo": Counter()}
        """Cells that operators cleared, marked wanted and set back since the start."""

    # ---- undo

    def undo(self, request: protocol.UndoRequest, context: Context) -> Iterator[outcomes.UndoReply | None]:
        """Set back what an operation took, where nobody wrote since."""
        if request.operation in self.taking.running:
            raise Refused("busy", f"{request.operation} is not done yet", "wait for its answer, then try again")
        taken: Counter[Column] = Counter()
        changed: dict[Column, Changed] = {}
        session = ""
        with UndoReader(self.state.directory, self.state.system, request.operation) as kept:
            for _ in kept.check():
                yield None
            yield from self._opened(str(kept.facts.get("session", "")))
            for piece in kept.pieces():
                for back in set_back(self.state, piece):
                    session = back.session
                    taken[back.column] += len(back.done)
                    given = changed.setdefault(back.column, Changed())
                    given.note(back.symbol_ids[back.done], back.minutes[back.done])
                yield None
        restored = {column: changed[column].cells for column in taken}
        skipped = {column: taken[column] - restored[column] for column in taken}
        for column, number in restored.items():
            self.events["undo"][column] += number
            if number:
                self.taking.on_change("slots", changed[column].facts(self.state, session, column, "undo"))
        self.state.audit.append(
            "undo",
            audit_operator(context),
            claimed=claimed(context),
            operation=request.operation,
            cells={column.value: number for column, number in restored.items()},
            cause=request.cause,
            result=f"{sum(restored.values())} restored, {sum(skipped.values())} skipped",
        )
        # A collection that looked at the cells before must find them named here.
        if not sum(skipped.values()) and not self.taking.is_collecting():
            remove_undo(self.state.directory, self.state.system, request.operation)
        if self.state.flusher is not None:
            self.state.flusher.wrote(urgent=True)
        self.runner.wake()
        yield outcomes.UndoReply(operation=request.operation, restored=restored, skipped=skipped)

    def _opened(self, session: str) -> Iterator[None]:
        """Map the session of an operation, in steps."""
        seq = self.state.calendar.session_seq(session)
        while not self.state.open_some(seq, time.monotonic() + STEP_S):
            yield None

    # ---- accept

    def accept(self, request: protocol.AcceptRequest, context: Context) -> Iterator[outcomes.AcceptReply | None]:
        """Declare missing sources of the range absent; take suspect cells as they are."""
        wanted = request.range
        columns = [
            column for column in (request.columns or RAW_COLUMNS) if column in (Column.TRADE_REF, Column.QUOTE_REF)
        ]
        accepted: dict[Column, int] = {}
        absent = self._waiting_of(wanted, columns)
        # Where nothing has come there is no symbol yet to select.
        selection = None if absent and not len(self.state.universe(wanted.session)) else self.reading.select(wanted)
        for column in columns if selection is not None else ():
            assert selection is not None
            cells = 0
            for dataset, symbol_ids in self._by_dataset(selection, column).items():
                record = self.state.sources.get(dataset, selection.session)
                if record is not None and record.state is SourceState.WAITING:
                    absent[dataset] = record
                    cells += len(symbol_ids) * selection.minutes
                elif record is not None:
                    cells += self._take_as_it_is(selection, column, record, symbol_ids, dry_run=request.dry_run)
                yield None
            if cells:
                accepted[column] = cells
        if not accepted and not absent:
            raise Refused("nothing_selected", "nothing in the range is waited for or suspect", "look with: m17ctl why")
        sources = [
            msgspec.structs.replace(record, state=SourceState.ABSENT, reason="accepted as absent")
            for record in absent.values()
        ]
        operation = "" if request.dry_run else self.taking.name()
        if not request.dry_run:
            for record in sources:
                self.state.sources.put(record)
            self.state.audit.append(
                "accept",
                audit_operator(context),
                claimed=claimed(context),
                operation=operation,
                where={"session": wanted.session, "symbols": wanted.symbols},
                cells={column.value: number for column, number in accepted.items()},
                cause=request.cause,
                result=", ".join(f"{source.dataset} absent" for source in sources) or "done",
            )
            self.runner.settle_later(wanted.session)
            self.runner.wake()
        shown = [source_reply(record) for record in sources]
        yield outcomes.AcceptReply(operation=operation, accepted=accepted, sources=shown, dry_run=request.dry_run)

    def _waiting_of(self, wanted: protocol.Range, columns: Sequence[Column]) -> dict[str, SourceRecord]:
        """Sources that a whole session waits for, by dataset, also those of which no symbol is known; none for a part of it."""
        if wanted.symbols is not None or wanted.from_ts is not None or wanted.to_ts is not None:
            return {}
        datasets = {dataset.value for dataset in Dataset if dataset.column in columns}
        return {
            record.dataset: record
            for record in self.state.sources.for_session(wanted.session)
            if record.state is SourceState.WAITING and record.dataset in datasets
        }

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
            # Taken as they are: what a gap left out is accepted with them, or the refill would ask again.
            gone = Flag.SUSPECT | Flag.PARTIAL
            rows.flag_many(column, symbol_ids[at], minutes + selection.first, remove=gone, now_ns=rows.now_ns())
        return len(at)
