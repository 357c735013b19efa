"""
What one derived engine must say about its cells, and how it sees the cells that they are made from.

A derivation knows its inputs and its recipe; ``engines.derived`` plans with it. A *unit* is what is planned as one: a
symbol. This module must never write a cell, nor import numba or polars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engines.contract import Context
from ledger.columns import Column, Status
from ledger.coverage import applicable, class_words
from ledger.layout import SLOT
from ledger.prints import counted
from ledger.state import State


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

    def __len__(self) -> int:
        return len(self.minutes)


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

    def weigh(self, session_seq: int, cells: Cells) -> np.ndarray:
        """i64[n]: rows to read and write for each cell; below 0 where an input can no longer be read."""

    def arguments(self, session: str, cells: list[Cells]) -> Any:
        """What the worker needs, picklable: one entry of ``cells`` per column."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The cells of one upstream column over some symbols and all minutes of a session: arrays [n, minutes]."""

    slots: np.ndarray
    filled: np.ndarray
    """bool; True, too, where the column does not apply to the symbol."""
    counts: np.ndarray
    """bool: filled with rows, see :func:`ledger.prints.counted`."""

    @property
    def checksum(self) -> np.ndarray:
        """u32."""
        checksum: np.ndarray = self.slots["checksum"]
        return checksum

    def before(self) -> Upstream:
        """The cells of the minute before each; before the first window there is nothing to wait for."""
        slots, filled, counts = np.zeros_like(self.slots), np.ones_like(self.filled), np.zeros_like(self.counts)
        slots[:, 1:], filled[:, 1:], counts[:, 1:] = self.slots[:, :-1], self.filled[:, :-1], self.counts[:, :-1]
        return Upstream(slots, filled, counts)

    def of(self, positions: np.ndarray) -> Upstream:
        """The same cells for other rows: position i gives row i."""
        return Upstream(self.slots[positions], self.filled[positions], self.counts[positions])


def upstream(state: State, session_seq: int, column: Column, symbol_ids: np.ndarray) -> Upstream:
    """
    The cells of an upstream column.

    Args:
        symbol_ids: i64[n].

    Raises:
        LedgerError: the session cannot be read.
    """
    minutes = int(state.calendar.minutes[session_seq])
    ledger = state.ledger_of(column)
    if ledger.exists(session_seq):
        slots = ledger.session(session_seq).slots(column, symbol_ids)
    else:
        slots = np.zeros((len(symbol_ids), minutes), dtype=SLOT)
    # Whether options exist does not matter here: a curve is an input of options only.
    applies = applicable(column, class_words(state, symbol_ids), np.zeros(len(symbol_ids), dtype=bool))
    filled = (slots["status"] == Status.FILLED) | ~applies[:, None]
    return Upstream(slots, filled, counted(slots))
