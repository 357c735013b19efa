"""
What a session lacks that REST could bring: from planes and slots, looked for again where cells moved or time went by.

This module must never plan a request, nor know what a window would hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ledger.columns import WINDOW_NS, Column, Dataset, Flag, Source, Status, SymbolClass
from ledger.rows import SessionRows
from ledger.sources import SourceRecord, SourceState
from ledger.state import State

_LOOK_NS: Final = 15_000_000_000
_LOOK_S: Final = 2.0
_QUIET_NS: Final = 120_000_000_000
"""A stream that has filled nothing for so long is over: it closes a minute each minute, or more of them."""
_BUSIEST: Final = 256
"""Symbols that are looked at to see whether a stream goes on: it fills every minute of them, with or without rows."""
_OPTIONS: Final = (SymbolClass.CHAIN, SymbolClass.CONTRACT)


@dataclass(frozen=True, slots=True)
class Need:
    """Windows of one symbol: minutes i64[n] from the open, ascending."""

    session: str
    dataset: Dataset
    symbol_id: int
    minutes: np.ndarray


@dataclass(frozen=True, slots=True)
class _Held:
    signature: tuple[int, ...]
    change_count: int
    looked_s: float
    needs: list[Need]


class Needs:
    """
    Needs of one raw column.

    Args:
        after_s: how long a window must be over.
    """

    def __init__(self, state: State, column: Column, after_s: float) -> None:
        self._state = state
        self._column = column
        self._after_ns = round(after_s * 1e9)
        self._held: dict[tuple[str, Dataset], _Held] = {}
        self._of_session: dict[tuple[str, Dataset], tuple[tuple[int, int], np.ndarray]] = {}
        self._left: dict[tuple[str, int], np.ndarray] = {}
        self._silent_since_ns: dict[tuple[str, str], int] = {}

    def of(self, session: str, dataset: Dataset, covered: np.ndarray, now_ns: int) -> list[Need]:
        """
        Windows of a session that are cleared, wanted, partial, or over and never filled, by symbol id.

        Args:
            covered: bool[symbols] that the engine takes.
        """
        state = self._state
        rows = state.ledger_of(self._column).session(state.calendar.session_seq(session))
        known = (state.sources.generation, len(state.symbols))
        signature = (id(rows), now_ns // _LOOK_NS, *known)
        held = self._held.get((session, dataset))
        now_s = time.monotonic()
        # While a session is live its cells move all the time; it is looked at now and then.
        moved = held is None or (held.change_count != rows.change_count and now_s - held.looked_s >= _LOOK_S)
        if held is None or held.signature != signature or moved:
            needs = list(self._look(session, dataset, rows, self._ids(session, dataset, covered, known), now_ns))
            held = self._held[session, dataset] = _Held(signature, rows.change_count, now_s, needs)
        return held.needs

    def _ids(self, session: str, dataset: Dataset, covered: np.ndarray, known: tuple[int, int]) -> np.ndarray:
        """i64[n], the session's symbols that the engine takes and the dataset has."""
        held = self._of_session.get((session, dataset))
        if held is None or held[0] != known:
            universe = self._state.universe(session)
            mine = np.array([covered[one] and self._is_of(one, dataset) for one in universe.tolist()], dtype=bool)
            held = self._of_session[session, dataset] = (known, universe[mine])
        return held[1]

    def forget(self) -> None:
        """Look again at the next call."""
        self._held.clear()

    def leave(self, session: str, symbol_id: int, minutes: np.ndarray) -> None:
        """These windows are as good as they get: they are no need any more, whatever their flags."""
        held = self._left.get((session, symbol_id), np.zeros(0, dtype=np.int64))
        self._left[session, symbol_id] = np.union1d(held, minutes)

    def leave_nothing(self) -> None:
        """Forget what was left."""
        self._left.clear()

    def _look(self, session: str, dataset: Dataset, rows: SessionRows, ids: np.ndarray, now_ns: int) -> Iterator[Need]:
        over = self._over(session, rows, now_ns)
        if not len(ids) or not over:
            return
        lacks = self._lacking(rows, ids, over, self._upto(session, dataset, rows, ids, over))
        for at in np.flatnonzero(lacks.any(axis=1)).tolist():
            minutes = np.flatnonzero(lacks[at])
            left = self._left.get((session, int(ids[at])))
            minutes = minutes if left is None else np.setdiff1d(minutes, left)
            if len(minutes):
                yield Need(session, dataset, int(ids[at]), minutes)

    def _is_of(self, symbol_id: int, dataset: Dataset) -> bool:
        kind = self._state.class_of(symbol_id)
        return kind in _OPTIONS if dataset.of_options else kind is SymbolClass.STOCK

    def _over(self, session: str, rows: SessionRows, now_ns: int) -> int:
        """Windows of a session that have been over for long enough."""
        open_ns = int(self._state.calendar.open_ns[self._state.calendar.session_seq(session)])
        return int(np.clip((now_ns - self._after_ns - open_ns) // WINDOW_NS, 0, rows.place.minutes))

    def _upto(self, session: str, dataset: Dataset, rows: SessionRows, ids: np.ndarray, over: int) -> int:
        """
        Windows before it that nobody filled are missing, rather than still to come.

        On the session's own day the clock says so. A stream that plays another day says it by what it has filled, as long
        as it fills anything: one that ended before the session did leaves the rest missing.
        """
        state = self._state
        record = state.sources.get(dataset.value, session)
        now_ns = state.system.now_ns()
        if record is None or not is_stream(record) or state.calendar.session_on(now_ns) == session:
            return over
        if now_ns - self._moved_ns(session, record, rows, over, now_ns) >= _QUIET_NS:
            return over
        filled = np.flatnonzero((rows.status[rows.column_index(self._column), ids, :over] == Status.FILLED).any(axis=0))
        return int(filled[-1]) if len(filled) else 0

    def _moved_ns(self, session: str, record: SourceRecord, rows: SessionRows, over: int, now_ns: int) -> int:
        """When a stream last filled a cell of its busiest symbols, ns UTC; where it never did, when that was first seen."""
        listed = record.symbol_rows()
        busiest = np.argsort(listed["rows_in"], kind="stable")[-_BUSIEST:]
        slots = rows.slots(self._column, listed["symbol_id"][busiest].astype(np.int64))[:, :over]
        live = (slots["status"] == Status.FILLED) & (slots["source"] == Source.WEBSOCKET)
        if live.any():
            return int(slots["last_updated_ns"][live].max())
        return self._silent_since_ns.setdefault((session, record.dataset), now_ns)

    def _lacking(self, rows: SessionRows, ids: np.ndarray, over: int, upto: int) -> np.ndarray:
        """bool[n, over]: cells that are cleared, wanted, partial, or never filled; suspect ones are the operator's."""
        index = rows.column_index(self._column)
        status, flags = rows.status[index, ids, :over], rows.flags[index, ids, :over]
        lacks: np.ndarray = status == Status.CLEARED
        lacks[:, :upto] |= status[:, :upto] == Status.EMPTY
        asked = (status == Status.FILLED) & (flags & np.uint8(Flag.WANTED | Flag.PARTIAL) != 0)
        asked &= flags & np.uint8(Flag.SUSPECT) == 0
        at, minutes = np.nonzero(asked)
        if len(at):
            lower = rows.slots(self._column, ids[at], minutes)["source"] <= Source.REST
            lacks[at[lower], minutes[lower]] = True
        return lacks


def is_stream(record: SourceRecord) -> bool:
    """Whether rows came of a websocket, whose file is not there."""
    return record.state is not SourceState.COMPLETE and (bool(record.stream) or record.name.startswith(("ws:", "wss:")))
