"""
What a derived engine remembers of one session: how often symbols were written, what is open, what is stale.

Derived from the ledger and thrown away at will; nothing here is stored. This module must never write a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.contract import NoRowsCells
from engines.derivation import Cells, Judged
from ledger.columns import SYMBOLS_MAX, Column, Flag, LedgerKind, Status
from ledger.layout import SLOT
from ledger.records import NO_ROWS_ID
from ledger.rows import SessionRows
from ledger.state import State


@dataclass(slots=True)
class Open:
    """The cells of one column over some units, judged: arrays [units, minutes]."""

    column: Column
    units: np.ndarray
    judged: Judged
    versions: np.ndarray
    work: np.ndarray
    """bool: cells to be made now."""
    blocked: np.ndarray
    """bool: cells that would be made if their inputs were filled."""
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
        slots = np.zeros(judged.ready.shape, dtype=SLOT) if rows is None else rows.slots(column, units)
        filled = slots["status"] == Status.FILLED
        lacking = (slots["status"] == Status.EMPTY) | (slots["status"] == Status.CLEARED)
        wanted = filled & (slots["flags"] & np.uint8(Flag.WANTED) != 0)
        stale = filled & judged.ready & (slots["inputs"] != judged.prints)
        by_recipe = np.zeros_like(stale)
        if stale.any():
            by_recipe[stale] = _other_recipe(state, column, slots, judged, stale)
        remade = stale if unasked else stale & ~by_recipe
        asked = lacking | wanted
        return Open(
            column,
            units,
            judged,
            slots["version"],
            judged.ready & (asked | remade),
            ~judged.ready & asked,
            stale,
            by_recipe,
        )

    def leave_out(self, cells: np.ndarray) -> None:
        """Cells that somebody else is making."""
        self.work &= ~cells

    def no_rows(self) -> NoRowsCells:
        """Those to be made that have no rows."""
        at, minutes = np.nonzero(self.work & ~self.judged.with_trades)
        flags = self.judged.flags
        return NoRowsCells(
            self.column,
            self.units[at],
            minutes,
            self.judged.prints[at, minutes],
            self.versions[at, minutes],
            np.zeros(len(at), dtype=np.uint8) if flags is None else flags[at, minutes],
        )

    def cells(self) -> Cells:
        """Those to be made by a worker."""
        at, minutes = np.nonzero(self.work & self.judged.with_trades)
        return Cells(self.column, self.units[at], minutes, self.judged.prints[at, minutes])


def _other_recipe(state: State, column: Column, slots: np.ndarray, judged: Judged, stale: np.ndarray) -> np.ndarray:
    """bool[n] for the stale cells: not made by the recipe of now. A record's ``batch_id`` is the print of its recipe."""
    chosen = slots[stale]
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
        self._counts: dict[LedgerKind, tuple[int, int]] = {}
        self._changes: dict[LedgerKind, np.ndarray] = {}
        self._marks: dict[tuple[int, Column], tuple[np.ndarray, np.ndarray]] = {}

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
        self._unjudged[units] = True
        self._touched_s[units] = now_s

    def forget(self, units: np.ndarray) -> None:
        """Units to be judged again."""
        self._unjudged[units] = True

    # ---- what was judged

    def has_unjudged(self) -> bool:
        """True while a unit has not been judged since it was touched."""
        return bool((self._unjudged & self._units).any())

    def unjudged(self, limit: int) -> np.ndarray:
        """i64[<= limit], units to judge."""
        return np.flatnonzero(self._unjudged & self._units)[:limit]

    def unjudged_of(self, symbol_ids: np.ndarray) -> np.ndarray:
        """i64[n], those of the symbols that are units and have not been judged."""
        found: np.ndarray = symbol_ids[self._unjudged[symbol_ids] & self._units[symbol_ids]]
        return found

    def note(self, units: np.ndarray, found: list[Open]) -> None:
        """What judging some units found, all columns."""
        self._unjudged[units] = False
        work = sum(one.work.sum(axis=1) for one in found)
        blocked = np.any([one.blocked.any(axis=1) for one in found], axis=0)
        for position, unit in enumerate(units.tolist()):
            self.open.pop(unit, None)
            if work[position]:
                self.open[unit] = (int(work[position]), bool(blocked[position]))
            for one in found:
                self._marks.pop((unit, one.column), None)
                if one.stale[position].any():
                    self._marks[unit, one.column] = (one.stale[position].copy(), one.by_recipe[position].copy())

    def marks(self, unit: int, column: Column, what: str) -> np.ndarray | None:
        """bool[minutes], stale cells (``stale``) or those that another recipe made (``by_recipe``); None for none."""
        found = self._marks.get((unit, column))
        return None if found is None else found[what == "by_recipe"]

    def ready(self, quiet_s: float) -> list[int]:
        """Units to take: every open cell is ready, or nothing touched them since ``quiet_s``."""
        return [unit for unit, (_, blocked) in self.open.items() if not blocked or self._touched_s[unit] <= quiet_s]

    def waits(self, quiet_s: float) -> bool:
        """True where a unit is open that :meth:`ready` does not name yet."""
        return any(blocked and self._touched_s[unit] > quiet_s for unit, (_, blocked) in self.open.items())
