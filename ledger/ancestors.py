"""
Which cells some cells are made from, by column and symbol, all the way down to the raw ones.

Who wants Greeks of a chain wants its trades and the quotes of its underlying, too. Known from the meaning of the columns
alone, as :mod:`ledger.dependents` is for the other direction. This module must never look into a cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ledger.columns import AGGREGATE_MINUTES, UPSTREAM, Column

if TYPE_CHECKING:
    from ledger.state import State

SymbolsByColumn = dict[Column, set[int]]


def with_ancestors(state: State, symbol_id: int, columns: Iterable[Column]) -> SymbolsByColumn:
    """
    The cells of a symbol and of all that they are made from, as symbol ids by column.

    Args:
        columns: none means all.
    """
    underlyings = state.symbol_facts()[1]
    found: SymbolsByColumn = {}
    left = [(column, symbol_id) for column in (tuple(columns) or Column)]
    while left:
        column, one = left.pop()
        known = found.setdefault(column, set())
        if one in known:
            continue
        known.add(one)
        if column in AGGREGATE_MINUTES:
            members = [one, *np.flatnonzero(underlyings == one).tolist()]
            left += [(source, member) for source in UPSTREAM[column] for member in members]
        elif column is Column.GREEKS_REF:
            left += [(source, one) for source in UPSTREAM[column] if source is not Column.QUOTE_REF]
            left.append((Column.QUOTE_REF, int(underlyings[one])))
        else:
            left += [(source, one) for source in UPSTREAM[column]]
    return found
