"""
Wholeness: how far ranges and regions are from whole, and the regions that retire because they are.

A cell is whole when it is filled, fresh and not suspect, partial or wanted. This module must never change a cell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from ledger.columns import MINUTES_PER_SESSION, Column, Flag, Status
from ledger.coverage import with_options
from ledger.regions import PriorityRegion, RegionState, expand
from ledger.state import State
from m17d import outcomes, protocol, replies
from m17d.envelopes import Refused
from m17d.explaining import Explaining
from m17d.pace import RangePaces
from m17d.peers import Context
from m17d.reading import Reading
from m17d.regional import Regional, RegionProgress
from m17d.runner import Runner
from m17d.standing import Standing

_UNSOUND = np.uint8(Flag.WANTED | Flag.PARTIAL)
_RETIRED_AT_ONCE: Final = 20
BLOCKING: Final = frozenset(
    {
        "blocked", "budget", "damaged", "denied", "partial", "paused", "quiet", "recipe", "refused", "suspect",
        "unreachable", "waiting",
    }
)  # fmt: skip
"""Causes that waiting alone does not take away, or not soon: an operator is needed."""


class Wholeness:
    """Answers ``wait`` and the priority requests over one state."""

    def __init__(self, state: State, runner: Runner, reading: Reading, explaining: Explaining) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading
        self.explaining = explaining
        self._left: dict[int, int] = {}
        self._paces = RangePaces()
        self._regional = Regional(state, self.standing, reading.measuring.signature, self._columns)

    def standing(self, session: str, column: Column, symbol_ids: np.ndarray) -> Standing:
        """How the cells of a column and some symbols of a session stand; those not due or not applicable do not count."""
        universe = self.state.universe(session)
        options = with_options(self.state, universe)
        known = np.isin(symbol_ids, universe)
        chosen = (
            options[np.searchsorted(universe, symbol_ids).clip(max=max(len(universe) - 1, 0))]
            if len(universe)
            else known
        )
        cells = self.reading.planes(session, column, symbol_ids, chosen & known)
        counts = (cells.state != 4) & (cells.state != 5)
        whole = (cells.state == Status.FILLED) & ~cells.stale & ~cells.suspect
        seq = self.state.calendar.session_seq(session)
        ledger = self.state.ledger_of(column)
        if ledger.exists(seq):
            rows = ledger.session(seq)
            whole &= rows.flags[rows.column_index(column), symbol_ids, : rows.place.minutes] & _UNSOUND == 0
        return Standing(counts, whole, cells.suspect)

    # ---- wait

    def wait(self, request: protocol.WaitRequest) -> Iterator[outcomes.WaitReply | None]:
        """
        How far a range is from whole, now, and what stands in the way; yields None between steps.

        Derived cells do not inherit suspicion, so the cells that they stand on are looked at, too.
        """
        selection = self.reading.select(request.range)
        window = np.s_[:, selection.first : selection.last]
        cells, remaining, suspect = 0, {}, {}
        for column in request.columns:
            standing = self.standing(selection.session, column, selection.symbol_ids)
            doubtful = self.explaining.doubtful(selection, column)
            cells += int(np.count_nonzero(standing.counts[window]))
            left = int(np.count_nonzero((standing.counts & (doubtful | ~standing.whole))[window]))
            suspects = int(np.count_nonzero((doubtful | standing.suspect)[window]))
            if left:
                remaining[column] = left
            if suspects:
                suspect[column] = suspects
            yield None
        eta_s = self._eta_s(request, sum(remaining.values()))
        blocked: list[replies.Cause] = []
        if remaining:
            asked = protocol.WhyRequest(columns=list(remaining), range=request.range)
            for step in self.explaining.why(asked, rows=False):
                blocked = blocked if step is None else [one for one in step.groups if one.cause in BLOCKING]
                yield None
        if sum(one.cells for one in blocked) >= sum(remaining.values()):
            # At no speed is what stands still ever done.
            eta_s = None
        yield outcomes.WaitReply(
            whole=not remaining, cells=cells, remaining=remaining, suspect=suspect, blocked=blocked, eta_s=eta_s
        )

    def _eta_s(self, request: protocol.WaitRequest, left: int) -> float | None:
        """At the range's own speed since it was first asked about; before that, when engines are done with all they have."""
        key = msgspec.msgpack.encode(request)
        own = self._paces.eta_s(key, left, time.monotonic())
        if own is not None or not left:
            return own
        of_engines = [
            progress.eta_s
            for name, engine in self.runner.engines.items()
            if set(engine.writes) & set(request.columns) and (progress := self.runner.progress(name)) is not None
        ]
        known = [one for one in of_engines if one is not None]
        return max(known) if known and len(known) == len(of_engines) else None

    # ---- regions

    def add(self, request: protocol.PriorityAddRequest, context: Context) -> outcomes.RegionReply:
        """Raise a region; it activates its cells where engines work on demand."""
        symbol_id = self.state.symbols.resolve(request.symbol)
        start, end = (self.reading.time_ns(when, request.session) for when in (request.from_ts, request.to_ts))
        operator = context.peer.user or str(context.peer.uid)
        # A request that was done and not answered when the daemon ended is not done twice.
        known = [one for one in self.state.regions.list(everything=True) if context.key and one.key == context.key]
        region = next((one for one in known if one.operator == operator), None) or self.state.regions.add(
            symbol=request.symbol,
            symbol_id=symbol_id,
            start_ts=start,
            end_ts=end,
            priority=request.priority,
            columns=request.columns,
            operator=operator,
            key=context.key,
        )
        minutes = expand(region, self.state.calendar)
        if not len(minutes):
            self.state.regions.remove(region.id)
            raise Refused("nothing_selected", "no window of the year lies in the region", "see: m17ctl sessions list")
        calendar = self.state.calendar
        self.state.regions.activate(
            symbol=request.symbol,
            symbol_id=symbol_id,
            first_session=calendar.date(int(minutes[0]) // MINUTES_PER_SESSION),
            last_session=calendar.date(int(minutes[-1]) // MINUTES_PER_SESSION),
            columns=request.columns,
        )
        self.runner.wake()
        return self.region(region)

    def show(self, region_id: int) -> outcomes.RegionReply:
        """One region with its progress."""
        return self.region(self.state.regions.show(region_id))

    def regions(self) -> outcomes.RegionsReply:
        """All regions, first served first."""
        return outcomes.RegionsReply(regions=self._replies(self.state.regions.list()))

    def remove(self, region_id: int) -> outcomes.RegionReply:
        """Take a region back; answers it as it was."""
        before = self.show(region_id)
        self.state.regions.remove(region_id)
        self.runner.wake()
        return before

    def region(self, region: PriorityRegion) -> outcomes.RegionReply:
        """A region as the wire shows it, with its minutes and how many of them are whole."""
        return self._replies([region])[0]

    def _replies(self, regions: list[PriorityRegion]) -> list[outcomes.RegionReply]:
        progress = self._regional.progress(regions)
        return [self._reply(region, progress[region.id]) for region in regions]

    def _reply(self, region: PriorityRegion, progress: RegionProgress) -> outcomes.RegionReply:
        state, over = region.state.value, region.state is RegionState.COMPLETE
        if region.state is RegionState.ACTIVE and self._is_stuck(region):
            state = "stuck"
        return outcomes.RegionReply(
            id=region.id,
            symbol=region.symbol,
            start_ts=region.start_ts,
            end_ts=region.end_ts,
            priority=region.priority,
            columns=list(region.columns or self._columns(region)),
            minutes=progress.minutes,
            complete=progress.minutes if over else progress.complete,
            state=state,
            operator=region.operator,
            whole=progress.by_column,
        )

    def _columns(self, region: PriorityRegion) -> tuple[Column, ...]:
        if region.columns:
            return region.columns
        written = {column for engine in self.runner.engines.values() for column in engine.writes}
        return tuple(column for column in Column if column in written)

    def _is_stuck(self, region: PriorityRegion) -> bool:
        """True where an engine that the region needs is paused or failed, or nothing can be written."""
        if self.runner.blocked:
            return True
        wanted = set(self._columns(region))
        names = [name for name, engine in self.runner.engines.items() if wanted.intersection(engine.writes)]
        return not names or any(self.runner.health(name).state in ("paused", "failed") for name in names)

    def backlog(self) -> tuple[int, int]:
        """(windows of outstanding regions that were not whole at the last :meth:`retire`, how many regions are stuck)."""
        outstanding = self.state.regions.outstanding()
        return sum(self._left.get(region.id, 0) for region in outstanding), sum(map(self._is_stuck, outstanding))

    def left(self) -> dict[int, int]:
        """Windows of each outstanding region that were not whole at the last :meth:`retire`."""
        outstanding = {region.id for region in self.state.regions.outstanding()}
        return {region_id: left for region_id, left in self._left.items() if region_id in outstanding}

    def retire(self) -> list[outcomes.RegionReply]:
        """Retire the regions that are whole, and say which."""
        outstanding = self.state.regions.outstanding()
        progress = self._regional.progress(outstanding)
        self._left = {region.id: progress[region.id].minutes - progress[region.id].complete for region in outstanding}
        whole = [region for region in outstanding if progress[region.id].minutes and not self._left[region.id]]
        # Each is synced: many at once go in the next seconds.
        return [self._reply(self.state.regions.complete(one.id), progress[one.id]) for one in whole[:_RETIRED_AT_ONCE]]


def facts_of(region: outcomes.RegionReply) -> dict[str, object]:
    """A region for an event."""
    return {
        "id": region.id,
        "symbol": region.symbol,
        "state": region.state,
        "complete": region.complete,
        "minutes": region.minutes,
    }
