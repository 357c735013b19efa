"""Regions: the order of work operators ask for, and what they activated, kept through restarts and faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.calendar import Calendar
from ledger.columns import Column
from ledger.errors import AddressError, DamagedFile, SpaceError, StateReadOnly
from ledger.regions import FILE_NAME, Activation, PriorityRegion, RegionState, RegionStore, expand

MINUTE = 60_000_000_000
OPEN = 1_381_152_600_000_000_000
DAY = 1440 * MINUTE
CALENDAR = Calendar(
    "XNYS",
    2013,
    "America/New_York",
    ["2013-10-07", "2013-10-08", "2013-10-09"],
    [OPEN, OPEN + DAY, OPEN + 2 * DAY],
    [OPEN + 390 * MINUTE, OPEN + DAY + 210 * MINUTE, OPEN + 2 * DAY + 390 * MINUTE],
)


def region(**changes: Any) -> dict[str, Any]:
    """Arguments of a good region."""
    return {"symbol": "AIG", "symbol_id": 3, "start_ts": OPEN, "end_ts": OPEN + MINUTE, "priority": 5, **changes}


def test_regions_are_ordered_by_priority_then_id(tmp_path, system):
    """Higher first, older first among equals, overlapping allowed."""
    store = RegionStore(tmp_path, system)
    for priority in (1, 9, 5, 9):
        store.add(**region(priority=priority))
    assert [found.id for found in store.list()] == [2, 4, 3, 1]
    store.complete(2)
    store.remove(3)
    assert [found.id for found in store.outstanding()] == [4, 1]
    assert [found.id for found in store.list()] == [2, 4, 1]
    assert [found.id for found in store.list(everything=True)] == [2, 4, 3, 1]
    store.close()


def test_a_region_comes_back_whole_after_a_restart(tmp_path, system):
    """Every field; columns in slot order; created at the system's time; ids go on."""
    store = RegionStore(tmp_path, system, year=2013)
    added = store.add(
        **region(columns=["greeks_ref", Column.TRADE_REF], operator="ann", cause="late file", activation=True)
    )
    assert added.columns == (Column.TRADE_REF, Column.GREEKS_REF)
    assert added.created_ns == system.clock_ns and added.state is RegionState.ACTIVE and added.id == 1
    store.add(**region())
    store.remove(2)
    store.close()
    again = RegionStore(tmp_path, system, year=2013)
    assert again.show(1) == added
    assert again.show(2).state is RegionState.REMOVED
    assert again.add(**region()).id == 3
    again.close()
    with pytest.raises(DamagedFile, match="2013"):
        RegionStore(tmp_path, system, year=2014)


@pytest.mark.parametrize(
    "changes",
    [
        {"end_ts": OPEN},
        {"end_ts": OPEN - 1},
        {"priority": 1_000_001},
        {"priority": -1_000_001},
        {"columns": ["trades"]},
    ],
)
def test_regions_that_make_no_sense_are_refused(tmp_path, system, changes):
    """Nothing is stored, and no id is spent."""
    store = RegionStore(tmp_path, system)
    with pytest.raises(AddressError):
        store.add(**region(**changes))
    assert store.list() == [] and store.add(**region()).id == 1
    store.close()


def test_unknown_regions_are_errors_and_doing_twice_is_not(tmp_path, system):
    """Completing what was removed leaves it removed; a repeat writes nothing."""
    store = RegionStore(tmp_path, system)
    for call in (store.show, store.remove, store.complete):
        with pytest.raises(AddressError, match="there is no region 7"):
            call(7)
    store.add(**region())
    store.remove(1)
    data = (tmp_path / FILE_NAME).read_bytes()
    assert store.remove(1).state is RegionState.REMOVED
    assert store.complete(1).state is RegionState.REMOVED
    assert (tmp_path / FILE_NAME).read_bytes() == data
    store.close()


def test_activations_hold_for_good(tmp_path, system):
    """Sessions are included at both ends, no columns means all, and a repeat is the same activation."""
    store = RegionStore(tmp_path, system)
    wanted: dict[str, Any] = {
        "symbol": "AIG",
        "symbol_id": 3,
        "first_session": "2013-10-07",
        "last_session": "2013-10-08",
    }
    for _ in range(2):
        store.activate(**wanted, columns=["greeks_ref"])
    store.activate(symbol="TWX", symbol_id=4, first_session="2013-10-07", last_session="2013-10-07")
    store.close()
    again = RegionStore(tmp_path, system)
    assert again.activations == (
        Activation(**wanted, columns=(Column.GREEKS_REF,)),
        Activation(symbol="TWX", symbol_id=4, first_session="2013-10-07", last_session="2013-10-07"),
    )
    assert again.is_activated(3, "2013-10-08", Column.GREEKS_REF)
    assert again.is_activated(4, "2013-10-07", Column.AGGS_4H)
    assert not again.is_activated(3, "2013-10-09", Column.GREEKS_REF)
    assert not again.is_activated(3, "2013-10-08", Column.AGGRESSOR_REF)
    assert not again.is_activated(5, "2013-10-07", Column.GREEKS_REF)
    with pytest.raises(AddressError):
        again.activate(**{**wanted, "last_session": "2013-10-01"})
    again.close()


def test_superseded_records_are_dropped_by_compacting(tmp_path, system):
    """The file shrinks, and says the same."""
    store = RegionStore(tmp_path, system)
    store.add(**region())
    store.complete(1)
    store.remove(1)
    store.activate(symbol="AIG", symbol_id=3, first_session="2013-10-07", last_session="2013-10-07")
    store.add(**region())
    store.complete(2)
    store.remove(2)
    everything, activations = store.list(everything=True), store.activations
    store.close()
    size = (tmp_path / FILE_NAME).stat().st_size
    again = RegionStore(tmp_path, system)
    again.compact()
    assert (tmp_path / FILE_NAME).stat().st_size < size
    again.close()
    again = RegionStore(tmp_path, system, readonly=True)
    assert (again.list(everything=True), again.activations) == (everything, activations)
    with pytest.raises(StateReadOnly):
        again.add(**region())


def test_a_failed_change_leaves_the_region_as_it_was_at_every_fault(tmp_path, every_fault, system):
    """After any failed call, process and file agree, and the change works once the fault is gone."""
    for number, failing in enumerate(every_fault()):
        folder = tmp_path / str(number)
        folder.mkdir()
        first = RegionStore(folder, system)
        first.add(**region())
        first.close()
        try:
            store = RegionStore(folder, failing)
        except SpaceError:
            continue
        try:
            store.complete(1)
        except SpaceError:
            assert store.show(1).state is RegionState.ACTIVE
        assert RegionStore(folder, system, readonly=True).list() == store.list()
        failing.fail_at = 0
        assert store.complete(1).state is RegionState.COMPLETE
        store.close()
        assert RegionStore(folder, system, readonly=True).show(1).state is RegionState.COMPLETE


def windows_of(start_ts: int, end_ts: int) -> list[int]:
    """The windows a region from start to end names."""
    wanted = PriorityRegion(id=1, symbol="A", symbol_id=0, start_ts=start_ts, end_ts=end_ts, priority=1, created_ns=0)
    found = expand(wanted, CALENDAR)
    assert found.dtype == np.uint32
    return found.tolist()


def test_expand_names_the_windows_of_a_half_open_range():
    """One minute, across a close, across an early close, before and behind everything."""
    assert windows_of(OPEN, OPEN + MINUTE) == [0]
    assert windows_of(OPEN + 388 * MINUTE, OPEN + DAY + 2 * MINUTE) == [388, 389, 390, 391]
    assert windows_of(OPEN + DAY + 209 * MINUTE, OPEN + 2 * DAY + MINUTE) == [390 + 209, 780]
    assert len(windows_of(OPEN - 9 * DAY, OPEN + 9 * DAY)) == 990
    assert windows_of(OPEN - DAY, OPEN) == [] == windows_of(OPEN + 390 * MINUTE, OPEN + DAY)
    assert windows_of(OPEN + 9 * DAY, OPEN + 10 * DAY) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(OPEN - MINUTE, OPEN + 2 * DAY + 400 * MINUTE), st.integers(1, DAY))
def test_expand_takes_every_window_that_overlaps_and_no_other(start_ts, length):
    """Against the definition, window by window, also where the range does not begin on a minute."""
    end_ts = start_ts + length
    every = np.concatenate([CALENDAR.windows(seq) for seq in range(3)])
    starts = CALENDAR.start_ts_array(every)
    expected = every[(starts < end_ts) & (starts + MINUTE > start_ts)]
    assert windows_of(start_ts, end_ts) == expected.tolist()
