"""
Behind: how a cause travels from cells to the cells that are made from them.

Pure array work over one session. This module must never read a state, nor decide what is wrong.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from ledger.columns import AGGREGATE_MINUTES, Column
from m17d.worth import CellQuality

_COLUMN_WORDS: Final = frozenset(column.value for column in Column)


class Roots(NamedTuple):
    """Cells of one column that a cause goes back to: i64[n] symbols, the row that each belongs to, bool[n, minutes]."""

    column: Column
    symbol_ids: np.ndarray
    row: np.ndarray
    cells: np.ndarray


class Said(NamedTuple):
    """A cause and its cells: bool[symbols, minutes] over the whole session."""

    cause: str
    cells: np.ndarray
    detail: str
    remedy: str
    quality: CellQuality | None = None
    """What the rows lack, of cells that are filled and of little use."""
    roots: Roots | None = None
    """The cells that the remedy is about, where they are not these."""


def said_behind(
    column: Column, source: Column, said: Said, symbol_ids: np.ndarray, row: np.ndarray, mine: np.ndarray
) -> Said:
    """
    What is said of cells of an input, as said of the cells of a column that lie behind them.

    Args:
        symbol_ids: i64[inputs], whose cells ``said`` is about.
        row: i64[inputs], the symbol of the column that each input belongs to.
        mine: bool[symbols, minutes], cells of the column that it may be said of.
    """
    roots = Roots(source, symbol_ids, row, said.cells)
    if said.roots is not None:
        roots = said.roots._replace(row=row[said.roots.row])
    detail = said.detail if without_column(said.detail) != said.detail else f"{source.value}: {said.detail}"
    cells = mine & behind_inputs(column, source, said.cells, row, len(mine))
    return Said(said.cause, cells, detail, said.remedy, roots=roots)


def behind_inputs(column: Column, source: Column, cells: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """
    Which cells of a column lie behind some cells of one of its inputs.

    Args:
        cells: bool[inputs, minutes].
        row: i64[inputs], the symbol of the result that each input belongs to.
        count: symbols of the result.

    Returns:
        bool[count, minutes].
    """
    minutes = cells.shape[1]
    result = np.zeros((count, minutes), dtype=bool)
    if len(row):
        order = np.argsort(row, kind="stable")
        starts = np.flatnonzero(np.diff(row[order], prepend=-1))
        if len(starts) == len(row):
            result[row] = cells
        else:
            result[row[order[starts]]] = np.logical_or.reduceat(cells[order], starts, axis=0)
    if source is Column.QUOTE_REF:
        result[:, 1:] |= result[:, :-1].copy()
    if column in AGGREGATE_MINUTES:
        result = _within(result, AGGREGATE_MINUTES[column])
    return result


def _within(cells: np.ndarray, width: int) -> np.ndarray:
    """bool[n, minutes], where a cell is set within the ``width`` minutes that begin here; spans are doubled until they are."""
    span = 1
    while span < width:
        step = min(span, width - span)
        further = cells.copy()
        further[:, :-step] |= cells[:, step:]
        cells, span = further, span + step
    return cells


def without_column(detail: str) -> str:
    """A detail without the column that it goes back to."""
    column, _, rest = detail.partition(": ")
    return rest if column in _COLUMN_WORDS else detail
