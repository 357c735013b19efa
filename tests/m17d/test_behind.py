"""Behind: which cells lie behind some cells of an input, against the rule written cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

from ledger.columns import AGGREGATE_MINUTES, Column
from m17d.behind import behind_inputs


@pytest.mark.parametrize("column", [Column.AGGRESSOR_REF, Column.GREEKS_REF, *AGGREGATE_MINUTES])
@pytest.mark.parametrize("source", [Column.TRADE_REF, Column.QUOTE_REF])
@pytest.mark.parametrize("minutes", [1, 7, 210])
def test_cells_lie_behind_the_minutes_that_they_are_made_from(column: Column, source: Column, minutes: int) -> None:
    """Several inputs of one symbol, in any order; quotes count for the next minute, too; aggregates look forward."""
    chance = np.random.default_rng(minutes)
    row = np.array([3, 0, 3, 1, 3, 0])
    cells = chance.random((len(row), minutes)) < 0.02
    expected = np.zeros((5, minutes), dtype=bool)
    width = AGGREGATE_MINUTES.get(column, 1)
    for one, minute in np.argwhere(cells).tolist():
        for reached in {minute, minute + 1} if source is Column.QUOTE_REF else {minute}:
            if reached < minutes:
                expected[row[one], max(0, reached - width + 1) : reached + 1] = True
    assert (behind_inputs(column, source, cells, row, 5) == expected).all()
    assert not behind_inputs(column, source, cells[:0], row[:0], 5).any()
