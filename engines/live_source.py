"""
What is written down about a live session: the source record of a stream, which stays open.

A stream proves nothing of what it did not bring, so its record never says complete; it says which symbols had rows, which
makes them the session's. Put when a symbol is new, else now and then. This module must never touch a cell.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec
import numpy as np

from ledger.columns import Dataset
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State

_PUT_INTERVAL_S: Final = 60.0
_KEPT: Final = (SourceState.COMPLETE, SourceState.DAMAGED)
"""States of a file's record that a stream does not write over."""
_NOT_THERE: Final = (SourceState.WAITING, SourceState.ABSENT)
"""States of the record of a file that is not there: a stream adds to it what it brought."""


def refused_by_cap(state: State, datasets: list[Dataset]) -> list[str]:
    """Symbols whose rows a stream brought and that found no place in the year, at most some hundred, ascending."""
    names = {dataset.value for dataset in datasets}
    found: set[str] = set()
    for one in state.sources.all():
        if one.stream and one.refused_symbols and one.dataset in names:
            found.update(one.refused_names)
    return sorted(found)


class LiveSource:
    """
    The record of one dataset and session, kept while the stream goes on.

    Args:
        name: address of the stream.
        globs: what it was asked for; empty for all.
        spelled: ids of symbols that are asked for by name; they belong to the session with or without rows.
    """

    def __init__(
        self, state: State, dataset: Dataset, session: str, *, name: str, globs: list[str], spelled: list[int]
    ) -> None:
        self._state = state
        self._key = (dataset, session)
        self._name, self._globs = name, globs
        self._rows: dict[int, list[float]] = {symbol_id: [0, 0, 0.0] for symbol_id in spelled}
        self._outside: dict[str, float] = {}
        self._rejected: dict[str, int] = {}
        self._refused: set[str] = set()
        self._is_new = True
        self._changed = True
        self._put_s = 0.0
        held = state.sources.get(dataset.value, session)
        if held is not None and held.state not in _KEPT:
            for row in held.symbol_rows():
                self._rows[int(row["symbol_id"])] = [
                    int(row["rows_in"]), int(row["rows_outside"]), float(row["volume_outside"])
                ]  # fmt: skip
            self._outside = {name: value for name, value in held.out_of_session.items() if name != "rows"}
            self._rejected = dict(held.rejected)

    def symbols(self) -> np.ndarray:
        """i64[n], ids of symbols that had rows or are asked for by name, ascending."""
        return np.array(sorted(self._rows), dtype=np.int64)

    def spell(self, symbol_ids: list[int]) -> None:
        """Further symbols that are asked for by name."""
        for symbol_id in symbol_ids:
            if symbol_id not in self._rows:
                self._rows[symbol_id] = [0, 0, 0.0]
                self._is_new = self._changed = True

    def add(self, symbol: str, rows_in: int, rows_outside: int, volume_outside: float) -> None:
        """Rows that came."""
        symbol_id = self._state.symbols.get(symbol)
        self._changed = True
        if symbol_id is None:
            self._refused.add(symbol)
            return
        self._is_new |= symbol_id not in self._rows
        had = self._rows.setdefault(symbol_id, [0, 0, 0.0])
        had[0] += rows_in
        had[1] += rows_outside
        had[2] += volume_outside

    def add_outside(self, facts: dict[str, float]) -> None:
        """What rows outside the session were."""
        for name, value in facts.items():
            self._outside[name] = self._outside.get(name, 0) + value

    def put(self, *, now: bool = False) -> None:
        """Write the record where it is due: a symbol is new, or it changed a while ago."""
        due = self._is_new or now or time.monotonic() - self._put_s > _PUT_INTERVAL_S
        if not self._changed or not due:
            return
        dataset, session = self._key
        held = self._state.sources.get(dataset.value, session)
        self._changed = self._is_new = False
        self._put_s = time.monotonic()
        if held is not None and held.state in _KEPT:
            return
        # Symbols that somebody else brought into the session, such as a contract that traded in a gap.
        for row in held.symbol_rows() if held is not None else ():
            self._rows.setdefault(int(row["symbol_id"]), [0, 0, 0.0])
        ids = sorted(self._rows)
        columns = [[self._rows[one][index] for one in ids] for index in range(3)]
        rows_in, rows_out = sum(columns[0]), sum(columns[1])
        if held is None or held.state not in _NOT_THERE:
            held = SourceRecord(
                dataset=dataset.value,
                session=session,
                state=SourceState.OPEN,
                reason="a stream: what it did not bring may come with the file",
                name=self._name,
                globs=self._globs,
                accepted=[] if held is None else held.accepted,
            )
        self._state.sources.put(
            msgspec.structs.replace(
                held,
                stream=self._name,
                rows=int(rows_in + rows_out),
                rows_in_session=int(rows_in),
                out_of_session={"rows": int(rows_out), **self._outside},
                symbols=pack_symbols(ids, *columns),
                refused_symbols=len(self._refused),
                refused_names=sorted(self._refused)[:100],
            )
        )
