"""
Choosing: which cells a clear or refresh is about, those made from them, and what is counted of them.

Cells are chosen as masks over a session, and cut into pieces of which each is one step's work; :class:`Cells` are some of a
piece as they were seen. This module must never change a cell.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, Column, Flag, Status
from ledger.dependents import Masks, dependents
from ledger.layout import SLOT
from ledger.rows import SessionRows
from ledger.state import State
from ledger.undo import CELLS_PER_FRAME
from m17d import protocol
from m17d.changed import Changed
from m17d.reading import Reading, Selection
from m17d.refilling import Refilling

_SYMBOLS_AT_ONCE: Final = 256
_ORDER: Final = {column: number for number, column in enumerate(Column)}

Piece = list[tuple[Column, np.ndarray]]
"""Columns, each with i64[n] symbols, that together have at most :data:`ledger.undo.CELLS_PER_FRAME` cells or one symbol's."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one column as they were seen: arrays [n], SLOT[n]."""

    column: Column
    rows: SessionRows
    symbol_ids: np.ndarray
    minutes: np.ndarray
    slots: np.ndarray

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, where: np.ndarray) -> Cells:
        """Some of them; ``where`` is bool[n]."""
        return Cells(self.column, self.rows, self.symbol_ids[where], self.minutes[where], self.slots[where])


@dataclass(slots=True)
class Plan:
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
    served: dict[Column, np.ndarray] = field(default_factory=dict)
    """bool[symbols of the year]: whose cells an engine would make, as it was when the first of them were counted."""
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


class Choosing:
    """Looks at the cells of one state."""

    def __init__(self, state: State, reading: Reading, refilling: Refilling) -> None:
        self._state = state
        self._reading = reading
        self._refilling = refilling

    def choose(self, plan: Plan) -> Iterator[None]:
        """The cells that the range names, and those behind them."""
        seq, selection = plan.selection.seq, plan.selection
        shape = len(self._state.symbols), int(self._state.calendar.minutes[seq])
        for column in plan.request.columns:
            mask = plan.chosen[column] = np.zeros(shape, dtype=bool)
            if not self._state.ledger_of(column).exists(seq):
                continue
            window = slice(selection.first, selection.last)
            for start in range(0, len(selection.symbol_ids), _SYMBOLS_AT_ONCE):
                some = selection.symbol_ids[start : start + _SYMBOLS_AT_ONCE]
                mask[some, window] = self._takeable(plan, column, some, named=True)[:, window]
                yield None
        for _ in dependents(self._state, seq, plan.chosen, plan.behind):
            yield None
        plan.selected = np.zeros(shape[0], dtype=bool)
        plan.selected[selection.symbol_ids] = True
        for column, mask in plan.behind.items():
            if not plan.request.cascade:
                plan.dependents[column] = int(np.count_nonzero(mask & ~plan.chosen.get(column, np.False_)))
            yield None

    def _takeable(self, plan: Plan, column: Column, symbol_ids: np.ndarray, *, named: bool) -> np.ndarray:
        """bool[n, minutes]: cells that the operation would change now; ``named``: because the range names them."""
        minutes = int(self._state.calendar.minutes[plan.selection.seq])
        rows = self._state.ledger_of(column).session(plan.selection.seq)
        index = rows.column_index(column)
        status = rows.status[index, symbol_ids, :minutes]
        found: np.ndarray = status == Status.FILLED
        if plan.clearing:
            found |= status == Status.PENDING
        else:
            found &= rows.flags[index, symbol_ids, :minutes] & np.uint8(Flag.WANTED) == 0
        stale = getattr(plan.request, "stale", None)
        if named and stale is not None:
            found &= self._reading.stale(plan.selection.session, column, symbol_ids, stale == "recipe")
        return found

    def pieces(self, plan: Plan) -> Generator[None, None, list[Piece]]:
        """Pieces, each a list of (column, i64[n] symbols) that together have at most so many cells; yields between steps."""
        pieces: list[Piece] = []
        room = 0
        everyone = np.arange(len(self._state.symbols))
        for column in plan.columns:
            if not self._state.ledger_of(column).exists(plan.selection.seq):
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

    def look(self, plan: Plan, column: Column, symbol_ids: np.ndarray) -> Cells:
        """The cells of some symbols that go, as they are now."""
        rows = self._state.ledger_of(column).session(plan.selection.seq)
        mask = plan.mask(column, symbol_ids) & self._takeable(plan, column, symbol_ids, named=False)
        if getattr(plan.request, "stale", None) is not None and column in plan.chosen:
            named = self._takeable(plan, column, symbol_ids, named=True)
            mask &= ~plan.chosen[column][symbol_ids] | named
        ids, minutes = cells_of(symbol_ids, mask)
        return Cells(column, rows, ids, minutes, rows.slots(column, ids, minutes))

    def note(self, plan: Plan, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray) -> None:
        """Count cells that were taken, or would be, and from where they would come again."""
        session = plan.selection.session
        if column not in plan.served:
            plan.served[column] = self._refilling.served(session, column)
        plan.refillable += self._refilling.origins(session, column, symbol_ids, minutes, plan.served[column])
        plan.changed.setdefault(column, Changed()).note(symbol_ids, minutes)
        if column in plan.chosen:
            selection = plan.selection
            inside = plan.selected[symbol_ids]
            inside &= (minutes >= selection.first) & (minutes < selection.last)
            plan.inside[column] += int(np.count_nonzero(inside))


def cells_of(symbol_ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """i64[k] symbols and i64[k] minutes where bool[n, minutes] says so."""
    at, minutes = np.nonzero(mask)
    return symbol_ids[at], minutes


def kept_of(seen: Sequence[Cells]) -> dict[str, np.ndarray]:
    """The arguments of an undo: the cells as they are, and the versions that they will have."""
    # Words, because numpy copies structures field by field.
    slots = np.concatenate([one.slots.view("V32") for one in seen]).view(SLOT)
    firsts = [one.rows.place.session_seq * MINUTES_PER_SESSION for one in seen]
    minutes = [one.minutes + first for one, first in zip(seen, firsts, strict=True)]
    return {
        "column": np.concatenate([np.full(len(one), _ORDER[one.column], dtype=np.uint8) for one in seen]),
        "symbol_id": np.concatenate([one.symbol_ids for one in seen]).astype(np.uint16),
        "minute_idx": np.concatenate(minutes).astype(np.uint32),
        "slots": slots,
        "version": slots["version"] + np.uint32(1),
    }
