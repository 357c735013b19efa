"""
Asking: outstanding regions as engines see them, with the cells that what was asked for is made from.

A region for the aggregates of a stock is one for the trades, sides and Greeks of the stock and its options, too: else the
aggregates would go first and wait for inputs that come last. This module must never change a region.
"""

from __future__ import annotations

import msgspec

from ledger.ancestors import with_ancestors
from ledger.columns import Column
from ledger.regions import PriorityRegion
from ledger.state import State


class Asking:
    """The regions of one state by column; kept until a region, an activation or a symbol comes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._key = (-1, 0)
        self._by_column: dict[Column, list[PriorityRegion]] = {}

    def regions(self, column: Column) -> list[PriorityRegion]:
        """Outstanding regions that need cells of the column, highest first: one for each symbol whose cells they need."""
        state = self._state
        key = (state.regions.changes, len(state.symbols))
        if key != self._key:
            self._key, self._by_column = key, self._sorted()
        return self._by_column.get(column, [])

    def _sorted(self) -> dict[Column, list[PriorityRegion]]:
        found: dict[Column, list[PriorityRegion]] = {}
        for region in self._state.regions.outstanding():
            for column, symbols in with_ancestors(self._state, region.symbol_id, region.columns).items():
                found.setdefault(column, []).extend(
                    msgspec.structs.replace(region, symbol_id=symbol_id) for symbol_id in sorted(symbols)
                )
        return found
