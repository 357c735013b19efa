"""
Which cells a derived engine works on: symbols that pass its globs and, on demand, only those that a region activated.

An activation is for good: it stays when its region retires. What the activated cells are made from is activated with them.
This module must never look into a cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np

from ledger.absence import matches
from ledger.ancestors import with_ancestors
from ledger.columns import Column
from ledger.state import State


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of an engine's table that say what it works on."""

    symbols: list[str] = []
    """Globs over tickers; empty means all."""
    activation: Literal["always", "on-demand"] = "always"


def take_scope(table: dict[str, Any]) -> Scope:
    """
    Take the keys of the scope out of an engine's table.

    Raises:
        msgspec.ValidationError: a value is wrong.
    """
    return msgspec.convert({name: table.pop(name) for name in Scope.__struct_fields__ if name in table}, Scope)


class Covered:
    """
    The symbols of a scope, by session and column; keeps what it found until symbols or activations come.

    Args:
        applies: bool[n] of i64[n] symbol ids, which of them could ever have the cells.
    """

    def __init__(self, scope: Scope, state: State, applies: Callable[[np.ndarray], np.ndarray]) -> None:
        self.scope = scope
        self._state = state
        self._applies = applies
        self._passing = np.zeros(0, dtype=bool)
        self._activated: dict[tuple[str, Column], np.ndarray] = {}
        self._key = (0, 0)

    @property
    def on_demand(self) -> bool:
        """Whether cells wait for a region that activates them."""
        return self.scope.activation == "on-demand"

    def mask(self, session: str, column: Column) -> np.ndarray:
        """bool[symbols of the year], the symbols whose cells of a column are worked on in a session."""
        count = len(self._state.symbols)
        if len(self._passing) < count:
            fresh = np.arange(len(self._passing), count, dtype=np.int64)
            names = self._state.symbols
            passes = np.array([matches(self.scope.symbols, names.name(int(one))) for one in fresh], dtype=bool)
            self._passing = np.concatenate([self._passing, passes & self._applies(fresh)])
        if not self.on_demand:
            return self._passing
        key = (count, len(self._state.regions.activations))
        if key != self._key:
            self._key, self._activated = key, {}
        held = self._activated.get((session, column))
        if held is None:
            held = self._activated[session, column] = self._passing & activated(self._state, session, column)
        return held


def activated(state: State, session: str, column: Column) -> np.ndarray:
    """bool[symbols of the year]: those whose cells of a column regions activated in a session, by name or as an input."""
    mask = np.zeros(len(state.symbols), dtype=bool)
    for one in state.regions.activations:
        if one.first_session <= session <= one.last_session:
            mask[list(with_ancestors(state, one.symbol_id, one.columns).get(column, ()))] = True
    return mask
