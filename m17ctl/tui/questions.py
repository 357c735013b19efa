"""
Jobs that read: each a plain value that is run over a connection, and gives its answers out as they come.

A job runs in a thread of its own beside the screen, and stops where nobody wants its answers any more. This module must never
touch a widget, nor change anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ledger.columns import Column
from m17ctl.artifacts_points import single_row, window_prices
from m17ctl.client import Client
from m17ctl.errors import RemoteFailure
from m17ctl.formats import literal
from m17ctl.tui.answers import (
    AuditResult,
    CellResult,
    EnginesResult,
    FrameResult,
    GridEnd,
    GridResult,
    PriceResult,
    RegionsResult,
    SymbolResult,
    WhyResult,
)
from m17ctl.tui.axis import DAY
from m17ctl.tui.cells import Grid
from m17d.outcomes import AuditReply, EnginesReply, RegionsReply
from m17d.protocol import (
    AuditRequest,
    EnginesListRequest,
    ExportRequest,
    GridRequest,
    PriorityListRequest,
    Range,
    RowRequest,
    SymbolsListRequest,
    SymbolsResolveRequest,
    WhyRequest,
)
from m17d.replies import ArtifactCell, Cause, RowReply, SymbolReply, SymbolsReply, WhyReply

Emit = Callable[[object], bool]
"""Gives a result out; False where the job is not wanted any more."""


class Job(Protocol):
    """One thing to fetch or do. ``key`` names it: a newer one of the same key takes its place."""

    @property
    def key(self) -> str:
        """The job's name."""

    def run(self, client: Client, emit: Emit) -> None:
        """Do it; raises ClientError."""


@dataclass(frozen=True, slots=True)
class GridJob:
    """Counts of the sessions of a span, at a resolution."""

    symbol: str | None
    sessions: tuple[str, ...]
    step_minutes: int

    @property
    def key(self) -> str:
        """A newer one for the same resolution takes its place."""
        return f"grid {self.step_minutes}"

    def run(self, client: Client, emit: Emit) -> None:
        """Sessions as they come."""
        request = GridRequest(
            from_session=self.sessions[0],
            to_session=self.sessions[-1],
            symbol=self.symbol,
            step_minutes=min(self.step_minutes, DAY),
        )
        for reply, slab in client.grids(request):
            if not emit(GridResult(self.symbol, reply.session, Grid.of(reply, slab, self.step_minutes))):
                return
        emit(GridEnd(self.symbol, self.sessions, self.step_minutes))


@dataclass(frozen=True, slots=True)
class PriceJob:
    """Prices of a stock in some sessions: the last of every ``step_minutes``."""

    symbol: str
    sessions: tuple[str, ...]
    step_minutes: int

    @property
    def key(self) -> str:
        """A newer one takes its place."""
        return "prices"

    def run(self, client: Client, emit: Emit) -> None:
        """Session by session, the last first: that is where people look."""
        for session in reversed(self.sessions):
            request = ExportRequest(column=Column.TRADE_REF, range=Range(session=session, symbols=literal(self.symbol)))
            try:
                pieces = list(client.stream(request))
            except RemoteFailure as error:
                # The session has the symbol in no source.
                if error.code != "nothing_selected":
                    raise
                pieces = []
            prices = window_prices(pieces, self._last_of_each)  # type: ignore[arg-type]
            by_minute = {minute_idx % DAY: price for minute_idx, price in prices.items()}
            if not emit(PriceResult(self.symbol, session, self.step_minutes, by_minute)):
                return

    def _last_of_each(self, cells: list[ArtifactCell]) -> list[ArtifactCell]:
        last: dict[int, ArtifactCell] = {}
        for cell in cells:
            if cell.row_count:
                last[cell.minute_idx % DAY // self.step_minutes] = cell
        return list(last.values())


@dataclass(frozen=True, slots=True)
class FrameJob:
    """The row of one aggregation window."""

    symbol: str
    column: Column
    session: str
    start_ns: int

    @property
    def key(self) -> str:
        """A newer one takes its place: who pages fast skips frames."""
        return "frame"

    def run(self, client: Client, emit: Emit) -> None:
        """The cell first, then its row."""
        found: RowReply = client.call(RowRequest(symbol=self.symbol, at=self.start_ns))
        slot = found.slots[self.column]
        row = None
        if slot.status == "filled" and "no_rows" not in slot.flags:
            chosen = Range(
                session=self.session,
                from_ts=self.start_ns,
                to_ts=self.start_ns + 60_000_000_000,
                symbols=literal(self.symbol),
            )
            row = single_row(client.stream(ExportRequest(column=self.column, range=chosen)))  # type: ignore[arg-type]
        status = "no trades" if "no_rows" in slot.flags else slot.status
        emit(FrameResult(self.symbol, self.column, self.session, self.start_ns, row, status))


@dataclass(frozen=True, slots=True)
class SymbolJob:
    """Find a symbol and the options on it."""

    symbol: str

    @property
    def key(self) -> str:
        """A newer one takes its place."""
        return "symbol"

    def run(self, client: Client, emit: Emit) -> None:
        """Resolve, then look through the list."""
        found: SymbolReply = client.call(SymbolsResolveRequest(symbol=self.symbol))
        every: SymbolsReply = client.call(SymbolsListRequest(symbols="O:*"))
        options = tuple(one.symbol for one in every.symbols if one.underlying == self.symbol != one.symbol)
        emit(SymbolResult(found.symbol, found.underlying, options))


@dataclass(frozen=True, slots=True)
class WhyJob:
    """Why the cells of some sessions are as they are."""

    title: str
    columns: tuple[Column, ...]
    ranges: tuple[Range, ...]

    @property
    def key(self) -> str:
        """A newer one takes its place."""
        return "why"

    def run(self, client: Client, emit: Emit) -> None:
        """One question a session and group; an empty selection has no cause."""
        causes: list[Cause] = []
        for chosen in self.ranges:
            reply: WhyReply = client.call(WhyRequest(columns=list(self.columns), range=chosen))
            causes += reply.groups
        emit(WhyResult(self.title, sorted(causes, key=lambda cause: -cause.cells)))


@dataclass(frozen=True, slots=True)
class CellJob:
    """Everything about one window."""

    symbols: tuple[str, ...]
    at_ns: int

    @property
    def key(self) -> str:
        """A newer one takes its place."""
        return "cell"

    def run(self, client: Client, emit: Emit) -> None:
        """With the records."""
        emit(CellResult([client.call(RowRequest(symbol=one, at=self.at_ns, payload=True)) for one in self.symbols]))


@dataclass(frozen=True, slots=True)
class ListJob:
    """One of the lists: engines, regions or audit."""

    what: str

    @property
    def key(self) -> str:
        """A newer one takes its place."""
        return self.what

    def run(self, client: Client, emit: Emit) -> None:
        """Ask for it whole."""
        if self.what == "engines":
            engines: EnginesReply = client.call(EnginesListRequest())
            emit(EnginesResult(engines.engines))
        elif self.what == "regions":
            regions: RegionsReply = client.call(PriorityListRequest())
            emit(RegionsResult(regions.regions))
        else:
            audit: AuditReply = client.call(AuditRequest(tail=200))
            emit(AuditResult(audit.records))
