"""
Which cells of a column one writer changed, small enough for an event: how many, of which symbols, between which windows.

This module must never look at a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ledger.columns import WINDOW_NS, Column
from ledger.state import State

NAMED_MAX: Final = 8
"""Symbols that an event names; further ones are counted."""


@dataclass(slots=True)
class Changed:
    """Cells of one column of a session that one writer changed."""

    cells: int = 0
    symbols: set[int] = field(default_factory=set)
    first: int = 390
    last: int = 0

    def note(self, symbol_ids: np.ndarray, minutes: np.ndarray) -> None:
        """Take in some cells; arrays [n]."""
        if len(symbol_ids):
            self.cells += len(symbol_ids)
            # Mostly symbol after symbol, so that the heads of runs are few; sorting costs ten times as much.
            heads = np.flatnonzero(symbol_ids[1:] != symbol_ids[:-1]) + 1
            self.symbols.update(symbol_ids[np.concatenate(([0], heads))].tolist())
            self.first = min(self.first, int(minutes.min()))
            self.last = max(self.last, int(minutes.max()))

    def facts(self, state: State, session: str, column: Column, by: str) -> dict[str, Any]:
        """For an event of the topic ``slots``; ``first`` and ``last`` are start_ts of the outermost windows."""
        open_ns = int(state.calendar.open_ns[state.calendar.session_seq(session)])
        return {
            "column": column.value,
            "session": session,
            "by": by,
            "cells": self.cells,
            "symbols": [state.symbols.name(one) for one in sorted(self.symbols)[:NAMED_MAX]],
            "symbols_total": len(self.symbols),
            "first": open_ns + self.first * WINDOW_NS,
            "last": open_ns + self.last * WINDOW_NS,
        }
