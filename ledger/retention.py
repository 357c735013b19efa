"""
Retention: quotes older than asked for lose their rows, and their cells keep everything else.

A record is marked retired where it stands, so that whatever names it (a cell, a kept undo, the record of a derived cell)
says so at once; a file that a kept undo names keeps both. Content hash and counts stay, so nothing that was derived
becomes stale; read again from its source, the record finds its rows again. This module must never remove a file:
``ledger.collection`` does, once the marks are on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ledger.columns import Column, Flag, Status
from ledger.records import RECORD_RETIRED
from ledger.rows import SessionRows
from ledger.state import State
from ledger.undo import UndoReader, list_undo

RETIRING: Final = Column.QUOTE_REF
"""The column whose rows are removed by age: the largest by far, and needed by nobody once sides and Greeks are made."""
_SYMBOLS_AT_ONCE: Final = 32
_RECORDS_AT_ONCE: Final = 8192


def sessions_before(state: State, before_ns: int) -> list[str]:
    """Sessions with quotes that closed before a time, ns UTC, oldest first."""
    seqs = [seq for seq in state.trade.existing() if state.calendar.close_ns(seq) < before_ns]
    return [state.calendar.date(seq) for seq in seqs]


@dataclass(slots=True)
class Retired:
    """Artifacts whose rows nobody can ask for any more, and how many records said where they were."""

    artifacts: set[int] = field(default_factory=set)
    records: int = 0


def retire(state: State, sessions: Collection[str], retired: Retired, *, dry_run: bool) -> Iterator[None]:
    """
    Mark the records of quotes of some sessions retired, on disk after the next sync; yields between short steps.

    Args:
        sessions: whose quotes.
        retired: gets what was marked, or would be.
        dry_run: only say what.

    Raises:
        SpaceError: the file system refused; records may be marked, and no file was lost.
    """
    payloads, undo = state.maps[RETIRING.payload_kind], _Undo(state)
    for session in sessions:
        ids = np.zeros(0, dtype=np.int64)
        for step in _readable_ids(state, session):
            yield
            ids = step if step is not None else ids
        # Kept undos last: a clear that came meanwhile has its cells there, if they were not seen in the rows.
        for _ in undo.read():
            yield
        for start in range(0, len(ids), _RECORDS_AT_ONCE):
            some = ids[start : start + _RECORDS_AT_ONCE]
            artifact_ids = payloads.get_many(some)["artifact_id"]
            free = ~np.isin(artifact_ids, undo.artifacts)
            retired.artifacts.update(np.unique(artifact_ids[free]).tolist())
            retired.records += int(free.sum())
            if not dry_run:
                payloads.retire(some[free])
            yield


def _readable_ids(state: State, session: str) -> Iterator[np.ndarray | None]:
    """Payload ids of a session's filled quotes that have rows and are not retired, ascending; None between steps."""
    payloads, found = state.maps[RETIRING.payload_kind], [np.zeros(0, dtype=np.int64)]
    with state.trade.look(state.calendar.session_seq(session)) as rows:
        if rows is None:
            return
        for first, last in rows.data_blocks():
            for start in range(first, last, _SYMBOLS_AT_ONCE):
                slots = _slots(rows, start, min(start + _SYMBOLS_AT_ONCE, last))
                ids = np.unique(slots["payload_id"][slots["status"] == Status.FILLED]).astype(np.int64)
                records = payloads.get_many(ids)
                readable = (records["artifact_id"] > 0) & (records["record_flags"] & RECORD_RETIRED == 0)
                found.append(ids[readable])
                yield None
    yield np.unique(np.concatenate(found))


def _slots(rows: SessionRows, first: int, last: int) -> np.ndarray:
    return rows.slots(RETIRING, np.arange(first, last))


class _Undo:
    """Artifacts of quotes that kept undos name."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._seen: set[str] = set()
        self.artifacts = np.zeros(0, dtype=np.int64)

    def read(self) -> Iterator[None]:
        """Take in what came since the last time; yields between short steps."""
        state, index = self._state, list(Column).index(RETIRING)
        for operation in list_undo(state.directory, state.system):
            if operation in self._seen:
                continue
            with UndoReader(state.directory, state.system, operation) as reader:
                for _ in reader.check():
                    yield
                if reader.finished:
                    self._seen.add(operation)
                for kept in reader.pieces() if reader.facts.get("op") != "refresh" else ():
                    ids = np.unique(kept.slots["payload_id"][kept.column == index])
                    named = state.maps[RETIRING.payload_kind].get_many(ids)["artifact_id"]
                    self.artifacts = np.union1d(self.artifacts, named[named > 0])
                    yield


def retired_cells(state: State, session: str, symbol_ids: np.ndarray) -> np.ndarray:
    """
    Which filled quotes of a session have lost their rows by age.

    Args:
        symbol_ids: integers [n].

    Returns:
        bool[n, minutes].
    """
    seq = state.calendar.session_seq(session)
    found = np.zeros((len(symbol_ids), int(state.calendar.minutes[seq])), dtype=bool)
    payloads = state.maps[RETIRING.payload_kind]
    with state.trade.look(seq) as rows:
        if rows is None:
            return found
        for start in range(0, len(symbol_ids), _SYMBOLS_AT_ONCE):
            part = slice(start, start + _SYMBOLS_AT_ONCE)
            slots = rows.slots(RETIRING, symbol_ids[part])
            rowed = (slots["status"] == Status.FILLED) & (slots["flags"] & np.uint8(Flag.NO_ROWS) == 0)
            flags = payloads.get_many(slots["payload_id"][rowed])["record_flags"]
            found[part][rowed] = flags & RECORD_RETIRED != 0
    return found
