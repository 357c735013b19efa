"""
What a derived engine remembers of one session: how often symbols were written, what is open, what is stale.

Derived from the ledger and thrown away at will; nothing here is stored. This module must never write a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.contract import NoRowsCells
from engines.derivation import Cells, Judged
from ledger.columns import SYMBOLS_MAX, Column, Flag, LedgerKind, Status
from ledger.records import NO_ROWS_ID
from ledger.rows import SessionRows
from ledger.state import State


@dataclass(slots=True)
class Open:
    """The cells of one column over some units, judged: arrays [units, minutes]."""

    column: Column
    units: np.ndarray
    judged: Judged
    rows: SessionRows | None
    """The session that holds the cells, None where it has no file yet."""
    work: np.ndarray
    """bool: cells to be made now."""
    blocked: np.ndarray
    """bool: cells that would be made if their inputs were filled, and not about to change."""
    stale: np.ndarray
    by_recipe: np.ndarray

    @staticmethod
    def find(
        state: State, rows: SessionRows | None, column: Column, units: np.ndarray, judged: Judged, *, unasked: bool
    ) -> Open:
        """
        Compare cells with their inputs.

        Args:
            rows: the session that holds them, None where it has no file yet.
            unasked: whether cells that another recipe made are remade without being asked for.
        """
        shape = units, slice(0, judged.ready.shape[1])
        if rows is None:
            status, flags = np.zeros(judged.ready.shape, dtype=np.uint8), np.zeros(judged.ready.shape, dtype=np.uint8)
        else:
            index = rows.column_index(column)
            status, flags = rows.status[index][shape], rows.flags[index][shape]
        filled = status == Status.FILLED
        asked = (status == Status.EMPTY) | (status == Status.CLEARED)
        asked |= filled & (flags & np.uint8(Flag.WANTED) != 0)
        stale, by_recipe = np.zeros_like(filled), np.zeros_like(filled)
        # Units that were never filled, or wait for inputs with every cell, have no print to compare.
        at = np.flatnonzero((filled & judged.ready).any(axis=1))
        if rows is not None and len(at):
            slots = rows.slots(column, units[at])
            stale[at] = filled[at] & judged.ready[at] & (slots["inputs"] != judged.prints[at])
            if stale.any():
                by_recipe[stale] = _other_recipe(state, column, slots[stale[at]], judged, stale)
        remade = stale if unasked else stale & ~by_recipe
        now = judged.ready if judged.changing is None else judged.ready & ~judged.changing
        return Open(column, units, judged, rows, now & (asked | remade), ~now & asked, stale, by_recipe)

    def leave_out(self, cells: np.ndarray) -> None:
        """Cells that somebody else is making."""
        self.work &= ~cells

    def keep_only(self, units: np.ndarray) -> None:
        """Leave out the cells of other units than these, bool[units]: nobody asked for them."""
        self.work &= units[:, None]
        self.blocked &= units[:, None]

    def no_rows(self) -> NoRowsCells:
        """Those to be made that have no rows."""
        at, minutes = np.nonzero(self.work & ~self.judged.with_trades)
        flags = self.judged.flags
        rows = self.rows
        return NoRowsCells(
            self.column,
            self.units[at],
            minutes,
            self.judged.prints[at, minutes],
            np.zeros(len(at), "u4") if rows is None else rows.slots(self.column, self.units[at], minutes)["version"],
            np.zeros(len(at), dtype=np.uint8) if flags is None else flags[at, minutes],
        )

    def cells(self) -> Cells:
        """Those to be made by a worker."""
        at, minutes = np.nonzero(self.work & self.judged.with_trades)
        return Cells(self.column, self.units[at], minutes, self.judged.prints[at, minutes])


def _other_recipe(state: State, column: Column, chosen: np.ndarray, judged: Judged, stale: np.ndarray) -> np.ndarray:
    """bool[n] for the slots of stale cells: not made by the recipe of now. A record's ``batch_id`` is its recipe's print."""
    recipes = np.broadcast_to(judged.recipes[:, None], stale.shape)[stale]
    records = state.maps[column.payload_kind].get_many(chosen["payload_id"])
    made_by = np.where(chosen["payload_id"] == NO_ROWS_ID, chosen["inputs"], records["batch_id"])
    other: np.ndarray = made_by != recipes
    return other


class Look:
    """One session as one engine last saw it."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.open: dict[int, tuple[int, bool]] = {}
        """Unit -> (cells that could be made now, whether others of it wait for inputs)."""
        self._units = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._unjudged = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._touched_s = np.zeros(SYMBOLS_MAX)
        self._first_touched_s = np.zeros(SYMBOLS_MAX)
        self._under_way = np.zeros(SYMBOLS_MAX, dtype=np.uint16)
        self.notes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        """How often each unit was judged."""
        self.sifted_s = 0.0
        """When all units were last sifted at once, monotonic seconds."""
        self._counts: dict[LedgerKind, tuple[int, int]] = {}
        self._changes: dict[LedgerKind, np.ndarray] = {}
        self._marks: dict[tuple[int, Column], tuple[np.ndarray, np.ndarray]] = {}
        self._stale: dict[tuple[int, Column], int] = {}
        self.generation = 0
        """Counted up whenever something was judged."""

    # ---- what moved

    def set_units(self, units: np.ndarray) -> None:
        """The units of the session; those that are new have not been judged."""
        known = np.zeros(SYMBOLS_MAX, dtype=bool)
        known[units] = True
        self._unjudged |= known & ~self._units
        self._units = known

    def moved(self, rows: SessionRows) -> bool:
        """True where something was written since :meth:`changed` was last asked, or the session was mapped again."""
        return self._counts.get(rows.kind) != (rows.change_count, id(rows))

    def changed(self, rows: SessionRows) -> np.ndarray:
        """i64[n], symbols written to since this was last asked; none where the session was only mapped again."""
        held, count = self._changes.get(rows.kind), self._counts.get(rows.kind)
        self._counts[rows.kind] = (rows.change_count, id(rows))
        self._changes[rows.kind] = rows.changes.copy()
        if held is None or count is None or count[1] != id(rows):
            held = np.zeros_like(rows.changes)
        return np.flatnonzero(rows.changes != held)

    def touch(self, units: np.ndarray, now_s: float) -> None:
        """Units whose inputs or cells were written to."""
        self._first_touched_s[units[~self._unjudged[units]]] = now_s
        self._unjudged[units] = True
        self._touched_s[units] = now_s

    def begin(self, units: Sequence[int]) -> None:
        """A task is at work on cells of some units."""
        self._under_way[list(units)] += np.uint16(1)

    def end(self, units: Sequence[int]) -> None:
        """It is over; its units are to be judged again."""
        self._under_way[list(units)] -= np.uint16(1)
        self._unjudged[list(units)] = True

    def postpone(self, units: Sequence[int] | np.ndarray) -> None:
        """Units that could not be judged now, or whose tasks were withdrawn, are judged at the next turn."""
        self._unjudged[list(units)] = True

    # ---- what was judged

    def has_unjudged(self) -> bool:
        """True while a unit has not been judged since it was touched."""
        return bool((self._unjudged & self._units).any())

    def unjudged(self, limit: int, quiet_s: float, late_s: float) -> np.ndarray:
        """
        i64[<= limit], units to judge: nothing touched them since ``quiet_s``, or they wait since before ``late_s``.

        While files are committed every slice touches the same underlyings again, and most of what they need is still to
        come: judged each time, they would cost more than their rows. Units with a task at work are judged when it is over.
        """
        settled = (self._touched_s <= quiet_s) & (self._under_way == 0) | (self._first_touched_s <= late_s)
        return np.flatnonzero(self._unjudged & self._units & settled)[:limit]

    def touched_since(self, units: Sequence[int], when_s: float) -> bool:
        """Whether something moved under one of some units at a (monotonic) time or later."""
        return bool((self._touched_s[list(units)] >= when_s).any())

    def unjudged_of(self, symbol_ids: np.ndarray) -> np.ndarray:
        """i64[n], those of the symbols that are units and have not been judged."""
        found: np.ndarray = symbol_ids[self._unjudged[symbol_ids] & self._units[symbol_ids]]
        return found

    def note(self, units: np.ndarray, found: list[Open]) -> None:
        """What judging some units found, all columns."""
        self._unjudged[units] = False
        self.notes[units] += np.uint32(1)
        self.generation += 1
        work = sum(one.work.sum(axis=1) for one in found)
        blocked = np.any([one.blocked.any(axis=1) for one in found], axis=0)
        for position, unit in enumerate(units.tolist()):
            self.open.pop(unit, None)
            if work[position]:
                self.open[unit] = (int(work[position]), bool(blocked[position]))
            for one in found:
                self._marks.pop((unit, one.column), None)
                self._stale.pop((unit, one.column), None)
                if one.stale[position].any():
                    self._stale[unit, one.column] = int(one.stale[position].sum())
                    self._marks[unit, one.column] = (one.stale[position].copy(), one.by_recipe[position].copy())

    def pass_over(self, units: np.ndarray) -> None:
        """Units that need no judging: there is nothing to make in them, and nothing stale."""
        self._unjudged[units] = False
        self.notes[units] += np.uint32(1)
        self.generation += 1
        gone = set(units.tolist())
        for unit in gone & self.open.keys():
            del self.open[unit]
        for key in [key for key in self._marks if key[0] in gone]:
            del self._marks[key], self._stale[key]

    def taken(self, units: np.ndarray, notes: np.ndarray) -> None:
        """
        All that there was to make in some units is in tasks now.

        Args:
            notes: ``notes`` of the units when that was judged; those that were judged again since stay open.
        """
        for unit in units[self.notes[units] == notes].tolist():
            self.open.pop(unit, None)

    def stale_cells(self) -> dict[Column, int]:
        """Stale cells by column, as they were last judged."""
        found: dict[Column, int] = {}
        for (_, column), number in self._stale.items():
            found[column] = found.get(column, 0) + number
        return found

    def marks(self, unit: int, column: Column, what: str) -> np.ndarray | None:
        """bool[minutes], stale cells (``stale``) or those that another recipe made (``by_recipe``); None for none."""
        found = self._marks.get((unit, column))
        return None if found is None else found[what == "by_recipe"]

    def changing(self, column: Column, symbol_ids: np.ndarray, *, unasked: bool) -> np.ndarray | None:
        """bool[n, minutes]: stale cells that are remade, those of another recipe only where ``unasked``; None for none."""
        wanted = {int(one): position for position, one in enumerate(symbol_ids)} if self._marks else {}
        found: np.ndarray | None = None
        for (unit, of_column), (stale, by_recipe) in self._marks.items():
            position = wanted.get(unit) if of_column is column else None
            if position is not None:
                found = np.zeros((len(symbol_ids), len(stale)), dtype=bool) if found is None else found
                found[position] = stale if unasked else stale & ~by_recipe
        return found

    def ready(self, quiet_s: float) -> list[int]:
        """Units to take: every open cell is ready, or nothing touched them since ``quiet_s``."""
        return [unit for unit, (_, blocked) in self.open.items() if not blocked or self._touched_s[unit] <= quiet_s]

    def waits(self, quiet_s: float) -> bool:
        """True where a unit is open that :meth:`ready` does not name yet."""
        return any(blocked and self._touched_s[unit] > quiet_s for unit, (_, blocked) in self.open.items())
