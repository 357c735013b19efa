"""
Wholeness: how far ranges and regions are from whole, and the regions that retire because they are.

A cell is whole when it is filled, fresh and not suspect, partial or wanted. This module must never change a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, Column, Flag, Status
from ledger.coverage import with_options
from ledger.regions import PriorityRegion, RegionState, expand
from ledger.state import State
from m17d import outcomes, protocol
from m17d.envelopes import Refused
from m17d.peers import Context
from m17d.reading import Reading
from m17d.runner import Runner

_UNSOUND = np.uint8(Flag.WANTED | Flag.PARTIAL)


@dataclass(frozen=True, slots=True)
class Standing:
    """Cells of one column of a range, bool [n, minutes]: which count at all, which of them are whole or suspect."""

    counts: np.ndarray
    whole: np.ndarray
    suspect: np.ndarray


class Wholeness:
    """Answers ``wait`` and the priority requests over one state."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading

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

    def wait(self, request: protocol.WaitRequest) -> outcomes.WaitReply:
        """How far a range is from whole, now."""
        selection = self.reading.select(request.range)
        window = np.s_[:, selection.first : selection.last]
        cells, remaining, suspect = 0, {}, {}
        for column in request.columns:
            standing = self.standing(selection.session, column, selection.symbol_ids)
            cells += int(np.count_nonzero(standing.counts[window]))
            left = int(np.count_nonzero((standing.counts & ~standing.whole)[window]))
            doubtful = int(np.count_nonzero(standing.suspect[window]))
            if left:
                remaining[column] = left
            if doubtful:
                suspect[column] = doubtful
        return outcomes.WaitReply(whole=not remaining, cells=cells, remaining=remaining, suspect=suspect)

    # ---- regions

    def add(self, request: protocol.PriorityAddRequest, context: Context) -> outcomes.RegionReply:
        """Raise a region; it activates its cells where engines work on demand."""
        symbol_id = self.state.symbols.resolve(request.symbol)
        start, end = (self.reading.time_ns(when, request.session) for when in (request.from_ts, request.to_ts))
        region = self.state.regions.add(
            symbol=request.symbol,
            symbol_id=symbol_id,
            start_ts=start,
            end_ts=end,
            priority=request.priority,
            columns=request.columns,
            operator=context.peer.user or str(context.peer.uid),
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
        return outcomes.RegionsReply(regions=[self.region(region) for region in self.state.regions.list()])

    def remove(self, region_id: int) -> outcomes.RegionReply:
        """Take a region back; answers it as it was."""
        before = self.show(region_id)
        self.state.regions.remove(region_id)
        self.runner.wake()
        return before

    def region(self, region: PriorityRegion) -> outcomes.RegionReply:
        """A region as the wire shows it, with its minutes and how many of them are whole."""
        minutes, complete = self._progress(region)
        state = region.state.value
        if region.state is RegionState.ACTIVE and self._is_stuck(region):
            state = "stuck"
        return outcomes.RegionReply(
            id=region.id,
            symbol=region.symbol,
            start_ts=region.start_ts,
            end_ts=region.end_ts,
            priority=region.priority,
            columns=list(region.columns or self._columns(region)),
            minutes=minutes,
            complete=minutes if region.state is RegionState.COMPLETE else complete,
            state=state,
            operator=region.operator,
        )

    def _columns(self, region: PriorityRegion) -> tuple[Column, ...]:
        if region.columns:
            return region.columns
        written = {column for engine in self.runner.engines.values() for column in engine.writes}
        return tuple(column for column in Column if column in written)

    def _progress(self, region: PriorityRegion) -> tuple[int, int]:
        """(windows in the region, how many of them are whole in every column that counts there)."""
        minute_idx = expand(region, self.state.calendar).astype(np.int64)
        complete = 0
        for seq in np.unique(minute_idx // MINUTES_PER_SESSION):
            minutes = minute_idx[minute_idx // MINUTES_PER_SESSION == seq] % MINUTES_PER_SESSION
            session = self.state.calendar.date(int(seq))
            symbol = np.array([region.symbol_id])
            whole, counted = np.ones(len(minutes), dtype=bool), np.zeros(len(minutes), dtype=bool)
            for column in self._columns(region):
                standing = self.standing(session, column, symbol)
                whole &= (standing.whole | ~standing.counts)[0, minutes]
                counted |= standing.counts[0, minutes]
            complete += int(np.count_nonzero(whole & counted))
        return len(minute_idx), complete

    def _is_stuck(self, region: PriorityRegion) -> bool:
        """True where an engine that the region needs is paused or failed, or nothing can be written."""
        if self.runner.blocked:
            return True
        wanted = set(self._columns(region))
        names = [name for name, engine in self.runner.engines.items() if wanted.intersection(engine.writes)]
        return not names or any(self.runner.health(name).state in ("paused", "failed") for name in names)

    def retire(self) -> list[outcomes.RegionReply]:
        """Retire the regions that are whole, and say which."""
        retired = []
        for region in self.state.regions.outstanding():
            minutes, complete = self._progress(region)
            if minutes and complete == minutes:
                retired.append(self.region(self.state.regions.complete(region.id)))
        return retired


def facts_of(region: outcomes.RegionReply) -> dict[str, object]:
    """A region for an event."""
    return {"id": region.id, "symbol": region.symbol, "state": region.state, "complete": region.complete}
