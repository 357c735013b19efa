"""
What comes back from the threads, as plain values; the screen's loop takes them in the order they came.

This module must never ask for anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ledger.columns import Column
from m17ctl.tui.cells import Grid
from m17d.outcomes import EngineReply, OperationReply, RegionReply
from m17d.replies import Cause, RowReply


@dataclass(frozen=True, slots=True)
class GridResult:
    """Counts of one session of a symbol."""

    symbol: str | None
    session: str
    grid: Grid


@dataclass(frozen=True, slots=True)
class GridEnd:
    """All sessions of a grid job were asked for."""

    symbol: str | None
    sessions: tuple[str, ...]
    step_minutes: int


@dataclass(frozen=True, slots=True)
class PriceResult:
    """Prices of a session by minute of the session."""

    symbol: str
    session: str
    step_minutes: int
    prices: dict[int, float]


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The row of one aggregation window; None where its cell has none, with the cell's own word for it."""

    symbol: str
    column: Column
    session: str
    start_ns: int
    row: dict[str, Any] | None
    status: str


@dataclass(frozen=True, slots=True)
class SymbolResult:
    """A symbol, the name of its underlying, and the options on it."""

    symbol: str
    underlying: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WhyResult:
    """Root causes of the cells of a selection."""

    title: str
    causes: list[Cause]


@dataclass(frozen=True, slots=True)
class CellResult:
    """The rows of one window, of the symbol and of its options."""

    rows: list[RowReply]


@dataclass(frozen=True, slots=True)
class EnginesResult:
    """The engines."""

    engines: list[EngineReply]


@dataclass(frozen=True, slots=True)
class RegionsResult:
    """The regions."""

    regions: list[RegionReply]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The tail of the operator log."""

    records: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Raised:
    """Regions that this view raised; ``purpose`` is ``priority`` or the aggregation window they are for."""

    purpose: str
    regions: list[RegionReply]


@dataclass(frozen=True, slots=True)
class ClearResult:
    """What a clear would take (``dry_run``) or took, one reply a session and group."""

    replies: list[OperationReply]
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Said:
    """Something to tell the person, in a line."""

    text: str
