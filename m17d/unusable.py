"""
Why filled cells are of no use, or of little: what their rows lack, by flag, and the input that is to blame.

Quotes that nobody publishes (an index) or that were accepted as absent leave Greeks and aggregates filled and flagged; here
they are traced to the cell that has nothing. Pure reading: this module must never change anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from engines.contract import Remark
from ledger.columns import Column
from ledger.coverage import with_options
from ledger.state import State
from m17d.behind import Said
from m17d.reading import Reading, Selection
from m17d.worth import CellQuality

_NOT_APPLICABLE: Final = 4
Inputs = Callable[[Selection, Column, Column], tuple[Selection, np.ndarray]]
"""(selection, column, its input) -> the symbols whose cells are inputs, and for each the row it belongs to."""


class _Root(NamedTuple):
    cells: np.ndarray
    text: str
    remedy: str


class Unusable:
    """
    Finds causes over one state.

    Args:
        inputs: how columns hang together.
    """

    def __init__(self, state: State, reading: Reading, inputs: Inputs) -> None:
        self.state = state
        self.reading = reading
        self._inputs = inputs

    def causes(self, selection: Selection, column: Column, filled: np.ndarray) -> Iterator[Said | None]:
        """
        ``unusable`` where no row of a cell is of use, ``partly_usable`` where some are; by what most rows lack.

        Args:
            filled: bool[symbols, minutes], the cells to look at.

        Yields:
            causes, and None between steps.
        """
        found: dict[tuple[str, int], list[CellQuality]] = {}
        for some in self.reading.worth.cells(selection.session, column, selection.symbol_ids):
            yield None
            if some is not None:
                self._sort(some.inside(filled), found)
        for (cause, reason), parts in sorted(found.items()):
            cells = np.zeros(filled.shape, dtype=bool)
            for part in parts:
                cells[part.position, part.minute] = True
            quality = CellQuality.joined(parts)
            remark = quality.found.remarks[reason] if reason >= 0 else None
            for root in self._roots(selection, column, remark, cells):
                yield Said(cause, root.cells, root.text, root.remedy, quality)

    @staticmethod
    def _sort(some: CellQuality, found: dict[tuple[str, int], list[CellQuality]]) -> None:
        usable, reasons = some.found.usable, some.reasons()
        lacking = usable < some.found.rows
        for cause, cells in (("unusable", lacking & (usable == 0)), ("partly_usable", lacking & (usable > 0))):
            for reason in np.unique(reasons[cells]).tolist():
                found.setdefault((cause, reason), []).append(some.part(cells & (reasons == reason)))

    def _roots(self, selection: Selection, column: Column, remark: Remark | None, cells: np.ndarray) -> Iterator[_Root]:
        """The cells apart by whether the input that the remark blames has anything at all there."""
        said = f"{remark.word}: {remark.text}" if remark else "its rows do not say why"
        if remark is None or remark.input is None:
            yield _Root(cells, said, "")
            return
        source = remark.input
        ids = selection.symbol_ids
        if (column, source) in ((Column.GREEKS_REF, Column.QUOTE_REF), (column, Column.TRADE_REF)):
            ids = self._inputs(selection, column, source)[0].symbol_ids
        blamed, row = np.unique(ids, return_inverse=True)
        # An underlying that is not of the session's universe has no cells to look at.
        universe = self.state.universe(selection.session)
        blamed_there = np.isin(blamed, universe)
        options = np.zeros(len(blamed), dtype=bool)
        if blamed_there.any():
            places = np.searchsorted(universe, blamed[blamed_there])
            options[blamed_there] = with_options(self.state, universe)[places]
        planes = self.reading.planes(selection.session, source, blamed, options)
        none = (planes.state == _NOT_APPLICABLE)[row]
        without = (planes.no_data | (planes.state == _NOT_APPLICABLE))[row]
        before = np.ones_like(without)
        before[:, 1:] = without[:, :-1]
        never = cells & none
        absent = cells & ~none & without & before
        if never.any():
            yield _Root(never, f"{said}: {source.value} of {self._names(ids, never)} is in no dataset", "")
        if absent.any():
            names = self._names(ids, absent)
            symbols = f" --symbols '{names}'" if not names.endswith(" symbols") else ""
            remedy = f"m17ctl why {source.value} --session {selection.session}{symbols}"
            yield _Root(absent, f"{said}: {source.value} of {names} has no rows there", remedy)
        rest = cells & ~never & ~absent
        if rest.any():
            yield _Root(rest, said, "")

    def _names(self, ids: np.ndarray, cells: np.ndarray) -> str:
        """The symbol whose input it is, or how many there are."""
        mine = np.unique(ids[cells.any(axis=1)])
        return self.state.symbols.name(int(mine[0])) if len(mine) == 1 else f"{len(mine)} symbols"
