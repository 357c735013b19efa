"""
Worth: what the rows behind filled cells are worth, from the records alone.

A cell can be filled and of no use: options on an index whose quotes nobody publishes, a stock whose quotes file never came.
Engines say what their records mean; here it is put together by cell, by column and by session. This module must never
read an artifact, nor change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from engines.contract import Deriving, Remark, RowQuality
from ledger.columns import Column, Flag, Status
from ledger.state import State
from m17d.runner import Runner

_SYMBOLS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class CellQuality:
    """Filled cells with rows of one column: arrays [k], and what their records say."""

    position: np.ndarray
    """i64, index into the symbols that were asked for."""
    minute: np.ndarray
    """i64, from the session's open."""
    found: RowQuality

    def part(self, where: np.ndarray) -> CellQuality:
        """Some of the cells."""
        remarks = [Remark(one.word, one.text, one.rows[where], one.spoils, one.input) for one in self.found.remarks]
        quality = RowQuality(self.found.rows[where], self.found.usable[where], remarks)
        return CellQuality(self.position[where], self.minute[where], quality)

    @staticmethod
    def joined(parts: list[CellQuality]) -> CellQuality:
        """Cells of the same column together; at least one part."""
        first = parts[0].found.remarks
        remarks = [
            Remark(
                one.word,
                one.text,
                np.concatenate([part.found.remarks[at].rows for part in parts]),
                one.spoils,
                one.input,
            )
            for at, one in enumerate(first)
        ]
        rows, usable = (np.concatenate([getattr(part.found, name) for part in parts]) for name in ("rows", "usable"))
        position, minute = (np.concatenate([getattr(part, name) for part in parts]) for name in ("position", "minute"))
        return CellQuality(position, minute, RowQuality(rows, usable, remarks))

    def inside(self, cells: np.ndarray) -> CellQuality:
        """Those of a plane, bool[symbols, minutes]."""
        return self.part(cells[self.position, self.minute])

    def sums(self) -> dict[str, int]:
        """``rows``, ``usable``, and the rows of each remark that holds for any, the most frequent first."""
        sums = {"rows": int(self.found.rows.sum()), "usable": int(self.found.usable.sum())}
        counted = [(one.word, int(one.rows.sum())) for one in self.found.remarks]
        return sums | dict(sorted(((word, rows) for word, rows in counted if rows), key=lambda item: -item[1]))

    def reasons(self) -> np.ndarray:
        """i64[k], the remark that spoils most rows of each cell, the first of equals; -1 where none does."""
        spoiling = np.array([one.rows if one.spoils else np.zeros_like(one.rows) for one in self.found.remarks])
        if not len(spoiling):
            return np.full(len(self.minute), -1)
        return np.where(spoiling.max(axis=0) > 0, spoiling.argmax(axis=0), -1)


class Worth:
    """Answers over one state; keeps nothing between requests."""

    def __init__(self, state: State, runner: Runner) -> None:
        self.state = state
        self.runner = runner

    def _engine(self, column: Column) -> Deriving | None:
        mine = (name for name, engine in self.runner.engines.items() if column in engine.writes)
        return next((self.runner.deriving[name] for name in mine if name in self.runner.deriving), None)

    def cells(self, session: str, column: Column, symbol_ids: np.ndarray) -> Iterator[CellQuality | None]:
        """
        The filled cells with rows of a derived column, some symbols at a time.

        Yields:
            what was found among each few symbols; None where there was nothing. Nothing at all for other columns.
        """
        engine, seq = self._engine(column), self.state.calendar.session_seq(session)
        ledger = self.state.ledger_of(column)
        if engine is None or not ledger.exists(seq):
            return
        rows = ledger.session(seq)
        minutes = rows.place.minutes
        for start in range(0, len(symbol_ids), _SYMBOLS_AT_ONCE):
            some = symbol_ids[start : start + _SYMBOLS_AT_ONCE]
            index = rows.column_index(column)
            filled = rows.status[index, some, :minutes] == Status.FILLED
            filled &= rows.flags[index, some, :minutes] & np.uint8(Flag.NO_ROWS) == 0
            position, minute = np.nonzero(filled)
            if not len(minute):
                yield None
                continue
            slots = rows.slots(column, some[position], minute)
            records = self.state.maps[column.payload_kind].get_many(slots["payload_id"])
            yield CellQuality(position + start, minute, engine.quality(column, records))

    def by_column(self, session: str, symbol_ids: np.ndarray) -> dict[str, Any]:
        """Rows by column; of derived ones usable rows too, and what the others lack."""
        quality: dict[str, Any] = {}
        seq = self.state.calendar.session_seq(session)
        for column in Column:
            ledger = self.state.ledger_of(column)
            if not ledger.exists(seq):
                continue
            if self._engine(column) is None:
                slots = ledger.session(seq).slots(column, symbol_ids)
                filled = slots["status"] == Status.FILLED
                records = self.state.maps[column.payload_kind].get_many(slots["payload_id"][filled])
                quality[column.value] = {"rows": int(records["row_count"].sum())}
                continue
            sums: dict[str, int] = {"rows": 0, "usable_rows": 0}
            for some in self.cells(session, column, symbol_ids):
                for word, number in (some.sums() if some else {}).items():
                    name = "usable_rows" if word == "usable" else word
                    sums[name] = sums.get(name, 0) + number
            quality[column.value] = sums
        return quality
