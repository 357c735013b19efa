"""
From where cells would come again if they went: a file, REST, other cells, or nowhere.

Asked before a clear or refresh takes them, for what is said and what is refused. This module must never change a cell.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from engines import contract
from engines.contract import Engine
from ledger.absence import dataset_of
from ledger.columns import RAW_COLUMNS, UPSTREAM, Column, Dataset
from ledger.retention import RETIRING, retired_cells
from ledger.sources import SourceState
from ledger.state import State


class Refilling:
    """Knows the origins of one state's cells, by its sources and engines."""

    def __init__(self, state: State, engines: dict[str, Engine]) -> None:
        self._state = state
        self._engines = engines

    def origins(
        self, session: str, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, served: np.ndarray
    ) -> Counter[str]:
        """
        How many of some cells would come from ``flat_file``, ``rest``, ``derived`` or ``none``.

        Args:
            symbol_ids, minutes: i64[n].
            served: what :meth:`served` said of the column.
        """
        if column not in RAW_COLUMNS:
            known = served[symbol_ids] & ~self._lost_inputs(session, column, symbol_ids, minutes)
            return Counter({"derived": int(known.sum()), "none": int((~known).sum())})
        found: Counter[str] = Counter()
        origins: dict[Dataset | None, str] = {}
        counts = np.bincount(symbol_ids)
        for symbol_id in np.flatnonzero(counts).tolist():
            dataset = dataset_of(column, self._state.class_of(symbol_id))
            if dataset not in origins:
                origins[dataset] = self._origin(session, column, dataset)
            found[origins[dataset] if served[symbol_id] else "none"] += int(counts[symbol_id])
        return found

    def _lost_inputs(self, session: str, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray) -> np.ndarray:
        """bool[n]: derived cells whose quotes were removed by age, so that they could not be made again."""
        if RETIRING not in UPSTREAM[column] or not len(symbol_ids):
            return np.zeros(len(symbol_ids), dtype=bool)
        owners = symbol_ids
        if column is Column.GREEKS_REF:
            owners = self._state.symbol_facts()[1][symbol_ids]
        named, position = np.unique(owners, return_inverse=True)
        retired = retired_cells(self._state, session, named)
        lost: np.ndarray = retired[position, minutes] | retired[position, np.maximum(minutes - 1, 0)]
        return lost

    def served(self, session: str, column: Column) -> np.ndarray:
        """bool[symbols_max]: symbols whose cells an engine that runs would make; a millisecond or two of a full day."""
        served = np.zeros(self._state.symbols.symbols_max, dtype=bool)
        for engine in self._engines.values():
            covers = engine.covers(session, column) if column in engine.writes else None
            if covers is not None:
                served[: len(covers)] |= covers
        return served

    def _origin(self, session: str, column: Column, dataset: Dataset | None) -> str:
        """From where the cells of symbols that an engine serves would come."""
        if column is Column.RF_RATE_REF:
            return "rest"
        record = self._state.sources.get(dataset.value, session) if dataset else None
        engines = [
            one for one in self._engines.values() if column in one.writes and isinstance(one, contract.Refilling)
        ]
        if dataset is not None and record is not None:
            gone = any(one.lacks_file(session, dataset) for one in engines)
            if record.state is SourceState.ABSENT or (record.state is SourceState.COMPLETE and not gone):
                return "flat_file"
        return "rest" if any(one.refills(session, column) for one in engines) else "none"
