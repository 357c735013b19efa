"""How far regions are: by minute and column, over sessions, all at once, and only where something moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ledger.columns import Column
from ledger.regions import PriorityRegion, expand
from ledger.state import State, create_state, open_state
from m17d.regional import Regional
from m17d.standing import Standing

SESSIONS = ("2013-10-07", "2013-10-08")
COLUMNS = (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """An open state of six symbols."""
    create_state(tmp_path / "state", year=2013)
    with open_state(tmp_path / "state") as opened:
        opened.allocate([f"S{number}" for number in range(6)])
        yield opened


class Cells:
    """Cells that stand at random, and how often they were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Column]] = []
        self.moved = 0
        chance = np.random.default_rng(5)
        self.planes = {
            (session, column): (chance.random((6, 390)) < 0.9, chance.random((6, 390)) < 0.8)
            for session in SESSIONS
            for column in COLUMNS
        }

    def standing(self, session: str, column: Column, symbol_ids: np.ndarray) -> Standing:
        self.asked.append((session, column))
        counts, whole = (plane[symbol_ids] for plane in self.planes[session, column])
        return Standing(counts, whole, np.zeros_like(whole))


def test_progress_of_many_is_that_of_each_counted_by_hand(state: State) -> None:
    """Overlapping regions, over two sessions, of some columns or all; one look a session and column serves them all."""
    cells, calendar = Cells(), state.calendar
    opens = [int(calendar.open_ns[calendar.session_seq(session)]) for session in SESSIONS]
    minute = 60 * 10**9
    regions: list[PriorityRegion] = []
    for number in range(12):
        first, last = opens[number % 2] + number * minute, opens[1] + (30 + number) * minute
        columns = COLUMNS[: number % 3 + 1]
        regions.append(
            state.regions.add(
                symbol=f"S{number % 6}", symbol_id=number % 6, start_ts=first, end_ts=last, priority=1, columns=columns
            )
        )
    regional = Regional(state, cells.standing, lambda _session: cells.moved, lambda region: region.columns)
    found = regional.progress(regions)
    assert len(cells.asked) == len(set(cells.asked)) == 6
    for region in regions:
        complete, by_column = 0, dict.fromkeys(region.columns, 0)
        for minute_idx in expand(region, calendar).tolist():
            session, at = calendar.date(minute_idx // 390), minute_idx % 390
            here = {column: cells.planes[session, column] for column in region.columns}
            counts = {column: bool(plane[0][region.symbol_id, at]) for column, plane in here.items()}
            whole = {column: bool(plane[1][region.symbol_id, at]) for column, plane in here.items()}
            complete += any(counts.values()) and all(whole[one] or not counts[one] for one in region.columns)
            for column in region.columns:
                by_column[column] += counts[column] and whole[column]
        assert (found[region.id].complete, found[region.id].by_column) == (complete, by_column)
        assert found[region.id].minutes == len(expand(region, calendar))
    assert regional.progress(regions[:3]) == {region.id: found[region.id] for region in regions[:3]}
    assert len(cells.asked) == 6
    cells.moved += 1
    regional.progress(regions[:1])
    assert len(cells.asked) > 6
