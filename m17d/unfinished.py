"""
Unfinished: operations over cells that had begun and were not answered when the process ended.

Before an operation takes a cell, the cell is in ``audit/undo`` and the operation's mark in ``audit/open``; the mark goes when
the answer is remembered. What has a mark at the next start was either audited, then its answer is remembered now, so that
sending it again does nothing twice; or not, then it is taken back where nobody has written since, as if it had never been sent.
This module must never look at a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, Column, Flag, Status
from ledger.documents import MARK_KIND, read_document, write_document
from ledger.errors import AddressError, LedgerError, StateError
from ledger.layout import SLOT
from ledger.state import State
from ledger.undo import CELLS_PER_FRAME, OPEN_FOLDER, UndoCells, UndoReader, remove_undo
from m17d.remembering import Remembering

_RECORDS_LOOKED_AT: Final = 100_000


class Unfinished:
    """The marks of one state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._folder = state.directory / OPEN_FOLDER

    def begin(self, operation: str, facts: dict[str, Any]) -> None:
        """
        Mark an operation, durably, before its first cell goes.

        Args:
            facts: what :meth:`Remembering.remember_again` needs.
        """
        self._state.system.make_directory(self._folder)
        write_document(self._state.system, self._folder / operation, MARK_KIND, facts)

    def end(self, operation: str) -> None:
        """The operation was answered, and the answer is remembered."""
        if operation and (self._folder / operation).exists():
            self._state.system.unlink(self._folder / operation)

    def settle(self, remembering: Remembering) -> list[str]:
        """Set right what an earlier process left, before anything else is done; what was found, a line each."""
        if not self._folder.is_dir():
            return []
        marks = sorted(path for path in self._folder.iterdir() if path.name.startswith("op-") and not path.suffix)
        if not marks:
            return []
        audited = {record.operation for record in self._state.audit.tail(_RECORDS_LOOKED_AT) if record.op != "recovery"}
        lines = []
        for mark in marks:
            if mark.name in audited:
                lines.append(f"operation {mark.name} was done and not answered: {self._answer(mark, remembering)}")
            else:
                lines.append(f"operation {mark.name} was interrupted: {self._take_back(mark.name)}")
            self._state.system.unlink(mark)
        return lines

    def _answer(self, mark: Path, remembering: Remembering) -> str:
        """Remember the answer that its mark holds."""
        try:
            remembering.remember_again(read_document(self._state.system, mark, MARK_KIND) or {})
        except StateError as error:
            return f"nor can it be, should anybody ask again: {error}"
        return "its answer is kept for who asks again"

    def _take_back(self, operation: str) -> str:
        where = {"operation": operation}
        try:
            text = f"{sum(take_back(self._state, operation))} cells were set back"
            self._state.audit.append_recovery(where, "interrupted", text)
            remove_undo(self._state.directory, self._state.system, operation)
        except AddressError:
            text = "it had taken nothing yet"
            self._state.audit.append_recovery(where, "interrupted", text)
        except LedgerError as error:
            text = f"it could not be taken back: {error}"
            self._state.audit.append_recovery(where, "interrupted", text)
        return text


def take_back(state: State, operation: str) -> Iterator[int]:
    """
    Set back all that an operation took which came to no end; yields after each step how many cells it set back.

    Of its last piece it may have taken nothing, and another may have filled a cell of it in the moment between: a cell
    that is filled was not cleared by it, whatever its version.

    Raises:
        AddressError: nothing is kept of it.
        LedgerError: what is kept cannot be trusted, or the state cannot be written.
    """
    with UndoReader(state.directory, state.system, operation) as reader:
        for _ in reader.check():
            yield 0
        for piece in reader.pieces():
            for back in set_back(state, piece, forced=True):
                yield int(np.count_nonzero(back.done))


class SetBack(NamedTuple):
    """Cells of one column that an operation took, and which of them were set back: arrays [n]."""

    column: Column
    session: str
    symbol_ids: np.ndarray
    minutes: np.ndarray
    done: np.ndarray


def set_back(state: State, kept: UndoCells, *, forced: bool = False) -> Iterator[SetBack]:
    """
    Set back what an operation took, where nobody has written since; a column's cells, at most so many, at a time.

    Args:
        forced: it came to no end, see :func:`take_back`.
    """
    refreshed = kept.facts.get("op") == "refresh"
    words = kept.slots.view("V32")  # numpy copies structures field by field
    for index in np.unique(kept.column):
        column = list(Column)[int(index)]
        mine = np.flatnonzero(kept.column == index)
        for start in range(0, len(mine), CELLS_PER_FRAME):
            some = mine[start : start + CELLS_PER_FRAME]
            seq = int(kept.minute_idx[some[0]]) // MINUTES_PER_SESSION
            rows = state.ledger_of(column).session(seq)
            symbol_ids = kept.symbol_id[some].astype(np.int64)
            minutes = kept.minute_idx[some].astype(np.int64) % MINUTES_PER_SESSION
            done = np.ones(len(some), dtype=bool)
            if forced and not refreshed:
                done = rows.status[rows.column_index(column), symbol_ids, minutes] != Status.FILLED
            where, versions = (symbol_ids[done], minutes[done]), kept.version[some][done]
            if refreshed:
                same = rows.versions(column, *where) == versions
                where = where[0][same], where[1][same]
                done[done] = same
                done[done] = rows.flag_many(column, *where, remove=Flag.WANTED, now_ns=rows.now_ns())
            else:
                slots = words[some][done].view(SLOT)
                done[done] = rows.restore_many(column, *where, slots, versions, now_ns=rows.now_ns())
            yield SetBack(column, rows.place.date, symbol_ids, minutes, done)
