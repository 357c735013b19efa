"""
What one derived engine must say about its cells, and how it sees the cells that they are made from.

A derivation knows its inputs and its recipe; ``engines.derived`` plans with it. A *unit* is what is planned as one: a
symbol. This module must never write a cell, nor import numba or polars.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from engines.contract import Context, RowQuality
from ledger.columns import Column, Flag, Status
from ledger.coverage import applicable, class_words
from ledger.prints import counted
from ledger.state import State

ROWS_MAX: Final = 4_000_000
"""Rows that one task reads and writes, about 5 s of work."""
CELLS_MAX: Final = 65_536


T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that pauses at every ``yield``, so that the daemon's loop may serve others, and returns its result."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the inputs of one column's cells say about them: arrays [units, minutes]."""

    ready: np.ndarray
    """bool: every input is filled; an input that is not applicable counts as filled without rows."""
    with_trades: np.ndarray
    """bool: a trade input has rows; without one the cell has no rows."""
    prints: np.ndarray
    """u32: what the cell's print would be now."""
    recipes: np.ndarray
    """u32[units]: the print of the recipe alone."""
    flags: np.ndarray | None = None
    """u8: flags of cells beside no rows, such as short; None for none."""
    changing: np.ndarray | None = None
    """bool: an input is filled, but about to be made again itself, so the cell waits for it; None for nowhere."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one column that a task is to make: arrays [n], ascending by symbol id, then minute."""

    column: Column
    symbol_ids: np.ndarray
    """i64."""
    minutes: np.ndarray
    """i64, from the session's open."""
    prints: np.ndarray
    """u32."""

    def part(self, where: Any) -> Cells:
        """Some of them."""
        return Cells(self.column, self.symbol_ids[where], self.minutes[where], self.prints[where])

    def by_units(self, most: int) -> Iterator[Cells]:
        """Them in parts of at most so many symbols each."""
        starts = np.flatnonzero(np.diff(self.symbol_ids, prepend=-1))
        bounds = [*starts[::most].tolist(), len(self)]
        for first, last in pairwise(bounds):
            yield self.part(slice(first, last))

    def __len__(self) -> int:
        return len(self.minutes)


def joined(parts: list[Cells]) -> Cells:
    """Cells of one column, one part behind the other."""
    if len(parts) == 1:
        return parts[0]
    return Cells(
        parts[0].column,
        np.concatenate([one.symbol_ids for one in parts]),
        np.concatenate([one.minutes for one in parts]),
        np.concatenate([one.prints for one in parts]),
    )


class Derivation(Protocol):
    """One derived engine's own part: its inputs, its recipe, its tasks."""

    name: str
    writes: tuple[Column, ...]
    compute: str
    """``package.module:function``, run in a worker."""
    divisible: bool
    """Whether the cells of one unit may go into several tasks."""

    def start(self, context: Context) -> None:
        """Take the context."""

    def applies(self, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n]: symbols that could ever have these cells."""

    def affected(self, symbol_ids: np.ndarray) -> np.ndarray:
        """i64[m]: units with an input among the cells of these symbols, or an own cell; no matter which session."""

    def judge(self, session_seq: int, column: Column, units: np.ndarray) -> Judged:
        """What the inputs say now."""

    def at_rest(self, session_seq: int, units: np.ndarray) -> np.ndarray | None:
        """bool[n]: units that need no judging, because no own cell is filled and none could be made; None: judge each."""

    def weigh(self, session_seq: int, cells: Cells) -> np.ndarray:
        """i64[n]: rows to read and write for each cell; below 0 where an input can no longer be read."""

    def arguments(self, session: str, cells: list[Cells]) -> Steps[Any]:
        """What the worker needs, picklable: one entry of ``cells`` per column; pauses every few milliseconds."""

    def quality(self, column: Column, records: np.ndarray) -> RowQuality:
        """What records say of their rows."""

    def recipe_of(self, session_seq: int, column: Column, unit: int) -> tuple[int, str]:
        """The print of the recipe of a unit's cells now, and its settings in words."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The cells of one upstream column over some symbols and all minutes of a session: arrays [n, minutes]."""

    filled: np.ndarray
    """bool; True, too, where the column does not apply to the symbol."""
    counts: np.ndarray
    """bool: filled with rows, see :func:`ledger.prints.counted`."""
    checksum: np.ndarray
    """u32, 0 where the cell does not count."""
    payload_ids: np.ndarray
    """u32, 0 where the cell does not count."""

    def before(self) -> Upstream:
        """The cells of the minute before each; before the first window there is nothing to wait for."""
        arrays = [np.ones_like(self.filled), *map(np.zeros_like, (self.counts, self.checksum, self.payload_ids))]
        for moved, array in zip(arrays, (self.filled, self.counts, self.checksum, self.payload_ids), strict=True):
            moved[:, 1:] = array[:, :-1]
        return Upstream(*arrays)

    def of(self, positions: np.ndarray) -> Upstream:
        """The same cells for other rows: position i gives row i."""
        return Upstream(
            self.filled[positions], self.counts[positions], self.checksum[positions], self.payload_ids[positions]
        )


def upstream(state: State, session_seq: int, column: Column, symbol_ids: np.ndarray) -> Upstream:
    """
    The cells of an upstream column: readiness from planes, slots only of cells that may hold rows.

    Most cells of a contract hold none, so this is what makes looking at a chain of them cheap.

    Args:
        symbol_ids: i64[n].

    Raises:
        LedgerError: the session cannot be read.
    """
    minutes = int(state.calendar.minutes[session_seq])
    shape = len(symbol_ids), minutes
    ledger = state.ledger_of(column)
    counts, checksum = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.uint32)
    payload_ids = np.zeros(shape, dtype=np.uint32)
    if ledger.exists(session_seq):
        rows = ledger.session(session_seq)
        index = rows.column_index(column)
        filled = rows.status[index][symbol_ids, :minutes] == Status.FILLED
        may_count = filled & (rows.flags[index][symbol_ids, :minutes] & np.uint8(Flag.NO_ROWS) == 0)
        # The one cell that is flagged no rows and counts: a first window with nothing but quotes from before the open.
        may_count[:, 0] = filled[:, 0]
        at, minute = np.nonzero(may_count)
        slots = rows.slots(column, symbol_ids[at], minute)
        held = counted(slots)
        at, minute = at[held], minute[held]
        counts[at, minute] = True
        checksum[at, minute], payload_ids[at, minute] = slots["checksum"][held], slots["payload_id"][held]
    else:
        filled = np.zeros(shape, dtype=bool)
    # Whether options exist does not matter here: a curve is an input of options only.
    applies = applicable(column, class_words(state, symbol_ids), np.zeros(len(symbol_ids), dtype=bool))
    filled |= ~applies[:, None]
    return Upstream(filled, counts, checksum, payload_ids)


def counted_as(records: np.ndarray, name: str) -> np.ndarray:
    """i64[n], a field of records, as a number that may be subtracted."""
    numbers: np.ndarray = records[name].astype(np.int64)
    return numbers


def recipe_words(settings: Mapping[str, object]) -> str:
    """The settings of a recipe as people write them."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def pieces(made: list[Cells], weights: list[np.ndarray], *, divisible: bool) -> Iterator[list[Cells]]:
    """
    Cells in pieces for one task each: at most ROWS_MAX rows and CELLS_MAX cells, whole units together where they fit.

    Args:
        made: the cells of each column.
        weights: i64[n], rows of each of those cells; cells below 0 are left out.
        divisible: whether the cells of one heavy unit may go into several pieces.
    """
    made = [cells.part(weight >= 0) for cells, weight in zip(made, weights, strict=True)]
    weights = [weight[weight >= 0] for weight in weights]
    made, weights = [cells for cells in made if len(cells)], [weight for weight in weights if len(weight)]
    if not made:
        return
    units = np.unique(np.concatenate([cells.symbol_ids for cells in made]))
    rows, count = np.zeros(len(units), dtype=np.int64), np.zeros(len(units), dtype=np.int64)
    for cells, weight in zip(made, weights, strict=True):
        at = np.searchsorted(units, cells.symbol_ids)
        np.add.at(rows, at, weight)
        np.add.at(count, at, 1)
    start = 0
    while start < len(units):
        end = start + 1
        while (
            end < len(units) and rows[start : end + 1].sum() <= ROWS_MAX and count[start : end + 1].sum() <= CELLS_MAX
        ):
            end += 1
        piece = [cells.part(np.isin(cells.symbol_ids, units[start:end])) for cells in made]
        piece = [cells for cells in piece if len(cells)]
        if divisible and end == start + 1 and rows[start] > ROWS_MAX and len(piece) == 1:
            mine = weights[0][np.isin(made[0].symbol_ids, units[start:end])]
            yield from _divided(piece[0], mine)
        else:
            yield piece
        start = end


def _divided(cells: Cells, weight: np.ndarray) -> Iterator[list[Cells]]:
    """The cells of one heavy unit in runs of minutes; a single cell is never divided."""
    run = np.cumsum(weight) // ROWS_MAX
    for one in np.unique(run):
        yield [cells.part(run == one)]
