"""
Superseding: when a better source may take a cell from a worse one that has rows there, and what happens where it may not.

A file that was cut short upstream and is whole as a file must not wipe out good live minutes: where it brings far fewer rows
than the cell has, the cell keeps what it holds and is suspect, and an operator decides. This module must never set a payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ledger.columns import Column, Flag, Source, Status
from ledger.rows import SessionRows
from ledger.state import State

MIN_RATIO: Final = 0.9
"""Default of ``supersede_min_ratio``."""
_GUARDED: Final = {Column.TRADE_REF: "record_count", Column.QUOTE_REF: "nbbo_sample_count"}


@dataclass(frozen=True, slots=True)
class Guard:
    """
    Compares rows of a better source with those of the cell it would take.

    Attributes:
        min_ratio: share of the cell's rows that the better source must bring; 0 lets everything pass.
    """

    state: State
    min_ratio: float = MIN_RATIO

    def holds_back(self, column: Column, slots: np.ndarray, rows: np.ndarray | int, source: Source) -> np.ndarray:
        """
        Which cells must keep what they hold.

        Args:
            slots: SLOT[n], the cells now.
            rows: i64[n], or one number for all, that the source has of each window, leads not counted.
            source: who brings them.

        Returns:
            bool[n].
        """
        back = slots["status"] == Status.FILLED
        back &= (slots["source"] != Source.NONE) & (slots["source"] < source) & (slots["flags"] & Flag.NO_ROWS == 0)
        if column not in _GUARDED or not self.min_ratio or not back.any():
            return np.zeros(len(slots), dtype=bool)
        held = self.state.maps[column.payload_kind].get_many(slots["payload_id"][back])[_GUARDED[column]]
        brought = np.broadcast_to(rows, len(slots))[back]
        back[back] = brought < self.min_ratio * held.astype(np.float64)
        return back


def keep(
    rows: SessionRows, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, versions: np.ndarray | None
) -> int:
    """
    Mark cells that were not superseded: suspect, and no longer wanted, because asking again would bring the same.

    Args:
        versions: u32[n] that the cells must still have; None for any.

    Returns:
        how many cells there are whose version was still that.
    """
    if versions is not None:
        same = rows.slots(column, symbol_ids, minutes)["version"] == versions
        symbol_ids, minutes = symbol_ids[same], minutes[same]
    rows.flag_many(column, symbol_ids, minutes, add=Flag.SUSPECT, remove=Flag.WANTED, now_ns=rows.now_ns())
    return len(symbol_ids)


def ask_again(rows: SessionRows, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, source: Source) -> None:
    """Mark cells wanted that a worse source changed while a better one was read, so that the better one is read again."""
    if source is Source.NONE or not len(symbol_ids):
        return
    slots: Any = rows.slots(column, symbol_ids, minutes)
    lower = (slots["status"] == Status.FILLED) & (slots["source"] < source)
    rows.flag_many(column, symbol_ids[lower], minutes[lower], add=Flag.WANTED, now_ns=rows.now_ns())
