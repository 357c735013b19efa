"""The aggregation engine's own parts: how rows are joined to trades, and how work is divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from engines.aggregation.compute import _options
from engines.aggregation.engine import WEIGHT_MAX, CellRows, _any_inside, _pieces
from engines.derivation import Cells
from engines.derived_rows import RANGE, InputRows
from ledger.columns import Column
from ledger.roots import RootTable


def _inputs(uri: str, ranges: list[tuple[int, int, int]]) -> InputRows:
    table = np.zeros(len(ranges), dtype=RANGE)
    for at, (minute, start, count) in enumerate(ranges):
        table[at] = (0, 0, minute, start, count)
    return InputRows((uri,), table)


def test_rows_are_joined_by_their_place_in_the_trade_cell(tmp_path: Path) -> None:
    """A trade without aggressor row is of unknown side and cancelled; a row behind the trades is ignored."""
    tickers = ["O:AIG131019C00050000", "O:AIG131019P00049500", "O:AIG131019C00050000"]
    pl.DataFrame(
        {"ticker": tickers, "sip_timestamp": [1, 2, 3], "price": [1.0, 2.0, 3.0], "size": [1.0] * 3}
    ).write_parquet(tmp_path / "t")
    pl.DataFrame(
        {
            "ordinal": [1, 0, 7],
            "side": ["seller", "buyer", "buyer"],
            "method": ["tick_rule", "nbbo_touch", "nbbo_touch"],
            "confidence": [0.5, 1.0, 1.0],
            "print_class": ["regular"] * 3,
            "sets_price": [True] * 3,
        }
    ).write_parquet(tmp_path / "a")
    pl.DataFrame({"delta": [0.5, None, 0.4], "gamma": [0.1, None, 0.2], "spot": [48.0, None, 49.0]}).write_parquet(
        tmp_path / "g"
    )
    rows = (
        _inputs("t", [(4, 0, 2), (5, 2, 1)]),
        _inputs("a", [(4, 0, 1), (5, 1, 2)]),
        _inputs("g", [(4, 0, 2), (5, 2, 1)]),
    )
    made = _options(CellRows(("O:AIG",), rows, np.zeros((2, 3), dtype=np.uint32)), tmp_path, RootTable.load())
    assert made.minute.tolist() == [4, 4, 5]
    assert made.is_call.tolist() == [True, False, True]
    assert made.strike.tolist() == [50.0, 49.5, 50.0]
    assert made.side.tolist() == [0, 2, 1]
    assert made.method.tolist() == [0, 3, 1]
    assert made.cancelled.tolist() == [True, False, False]
    assert np.array_equal(made.delta, [0.5, np.nan, 0.4], equal_nan=True)


def test_heavy_underlyings_are_cut_at_start_minutes_and_no_cell_is_lost() -> None:
    """Every readable cell is in exactly one piece, and a start minute in one piece for all columns."""
    minutes = np.arange(6)
    made = [
        Cells(column, np.zeros(6, dtype=np.int64), minutes, np.ones(6, dtype=np.uint32))
        for column in (Column.AGGS_1M, Column.AGGS_5M)
    ]
    weights = [np.full(6, WEIGHT_MAX // 3), np.array([0, 0, 0, 0, 0, -1])]
    pieces = list(_pieces(made, weights))
    assert len(pieces) == 2
    found = [(cells.column, int(minute)) for piece in pieces for cells in piece for minute in cells.minutes]
    assert len(found) == len(set(found)) == 11
    of_start = [set(np.concatenate([cells.minutes for cells in piece]).tolist()) for piece in pieces]
    assert not of_start[0] & of_start[1]


def test_windows_look_forward_and_are_clipped() -> None:
    """A mark is inside the windows that start on it or up to the length before it."""
    plane = np.array([[False, False, False, True]])
    assert _any_inside(plane, 2).tolist() == [[False, False, True, True]]
