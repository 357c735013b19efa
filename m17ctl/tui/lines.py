"""
The lines of the map: which columns of the symbol and of the options on it stand where, for a height.

Pure; this module must never know how a line is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ledger.columns import AGGREGATE_MINUTES, Column
from m17ctl.tui.cells import Part

OWN: Final = "own"
OPTIONS: Final = "options"
ALL: Final = "all"
WINDOWS: Final = {column.value.removeprefix("aggs_"): column for column in AGGREGATE_MINUTES}
"""Aggregation windows by their word: 1m, 5m, 10m, 30m, 1h, 4h."""
_RAW: Final = (Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its label and the columns whose counts it adds up."""

    label: str
    parts: tuple[Part, ...]

    @property
    def columns(self) -> list[Column]:
        """Its columns, each once, in slot order."""
        named = {column for _, column in self.parts}
        return [column for column in Column if column in named]

    @property
    def groups(self) -> list[str]:
        """Its groups: own, options or all."""
        return list(dict.fromkeys(group for group, _ in self.parts))


def lines_of(groups: dict[str, int], window: str | None, height: int) -> list[Line]:
    """
    The lines for a symbol.

    Args:
        groups: symbols of each group; ``options`` is left out where there are none, ``all`` stands for everything.
        window: the aggregation window that is looked at, None for all of them.
        height: lines there are room for; without room the aggregation windows share one line.
    """
    if ALL in groups:
        return [Line(column.value, ((ALL, column),)) for column in Column][: max(height, 1)]
    has_options = bool(groups.get(OPTIONS))
    curve: list[Line] = []
    if has_options:
        both = ((OWN, Column.RF_RATE_REF), (OPTIONS, Column.RF_RATE_REF))
        curve = [Line("rf_rate_ref", both)]
    own = [Line(column.value, ((OWN, column),)) for column in _RAW]
    options = [Line(f"opt {column.value}", ((OPTIONS, column),)) for column in (*_RAW, Column.GREEKS_REF)]
    fixed = [*curve, *own, *(options if has_options else [])]
    return fixed[:height] + _aggregates(window, height - len(fixed))


def _aggregates(window: str | None, room: int) -> list[Line]:
    if room <= 0:
        return []
    if window is not None:
        return [Line(WINDOWS[window].value, ((OWN, WINDOWS[window]),))]
    if room >= len(WINDOWS):
        return [Line(column.value, ((OWN, column),)) for column in WINDOWS.values()]
    return [Line("aggs_*", tuple((OWN, column) for column in WINDOWS.values()))]
