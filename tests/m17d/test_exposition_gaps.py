"""
The gaps that the specification names, line by line, where the scrape of `test_exposition` does not already meet a scan.

Each number is found a second time, from single slots, records and files, by a rule that shares nothing with the exposition.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.columns import RAW_COLUMNS, Column, Dataset, Flag, PayloadKind, Status
from m17d import protocol
from m17d.daemon import Daemon
from tests.filled_state import SESSION, copy_of, filled, needs_data
from tests.m17d import flat_files
from tests.m17d.scraped import NOW_NS, Samples, ask, gained, row_of, running, scrape, work

Slots = list[tuple[Column, str, int, Any]]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Daemon]:
    """One session of two stocks with trades, made whole by this daemon from nothing, but for quotes that nobody has."""
    flat_files.write(tmp_path, "2013-05-01", flat_files.packed(flat_files.good_lines("2013-05-01")))
    flat_files.write_config(tmp_path, ["2013-05-01"], engines="trade_flatfile quote")
    with (tmp_path / "m17.toml").open("a") as file:
        file.write("[engines.nbbo]\n[engines.aggregation]\n")
    yield from running(tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The filled real session."""
    yield from running(copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("gaps")))


def slots(daemon: Daemon, session: str) -> Slots:
    """Every slot of a session that is not empty: (column, symbol, minute of the session, slot)."""
    state, seq = daemon.state, daemon.state.calendar.session_seq(session)
    found: Slots = []
    for symbol in state.universe(session).tolist():
        for minute in range(390):
            row = row_of(state, symbol, seq * 390 + minute)
            found += [
                (column, state.symbols.name(symbol), minute, slot)
                for column, slot in row.items()
                if slot.status != Status.EMPTY
            ]
    return found


def written(found: Samples) -> float:
    """Cells written by engines and by settling since the start."""
    return sum(value for key, value in found.items() if key[0] == "m17_mutations_total" and key[2] == "applied")


def test_mutation_throughput_is_the_sum_of_versions(small: Daemon) -> None:
    """A slot's version counts what was done to it; a clear is an operator's and counted as such."""
    found = scrape(small)
    before = slots(small, "2013-05-01")
    assert written(found) == sum(slot.version for *_, slot in before) > 0

    where = protocol.Range(session="2013-05-01", from_ts="10:00", to_ts="10:30", symbols="AAA")
    ask(small, protocol.ClearRequest(columns=[Column.TRADE_REF], range=where, cause="x"))
    cleared = [slot for column, *_, slot in slots(small, "2013-05-01") if slot.status == Status.CLEARED]
    assert scrape(small)["m17_operator_cells_total", "trade_ref", "clear"] == len(cleared) == 30
    work(small)
    last = scrape(small)
    after = slots(small, "2013-05-01")
    done = sum(slot.version for *_, slot in after) - sum(slot.version for *_, slot in before)
    assert gained(found, last, "m17_repaired_cells_total", "trade_ref") == 30
    assert written(last) - written(found) == done - 30


def test_region_backlog_is_the_windows_that_are_not_whole(small: Daemon) -> None:
    """Minutes and age of what is outstanding, and whether an engine is there to do it."""
    start = flat_files.open_ns("2013-05-01")
    where = protocol.Range(session="2013-05-01", from_ts="10:00", to_ts="10:20", symbols="AAA")
    small.runner.paused["trade_flatfile"] = "test"
    ask(small, protocol.ClearRequest(columns=[Column.TRADE_REF], range=where, cause="x"))
    region = protocol.PriorityAddRequest(
        symbol="AAA", from_ts=start + 25 * 60_000_000_000, to_ts=start + 45 * 60_000_000_000, priority=5,
        columns=[Column.TRADE_REF],
    )  # fmt: skip
    ask(small, region)
    created = small.state.regions.outstanding()[0].created_ns
    small.state.system.now_ns = lambda: created + 90 * 10**9  # type: ignore[method-assign]
    small.handlers.retire_regions()

    found = scrape(small)
    open_minutes = {
        minute
        for column, symbol, minute, slot in slots(small, "2013-05-01")
        if (column, symbol) == (Column.TRADE_REF, "AAA") and slot.status != Status.FILLED and 25 <= minute < 45
    }
    assert found["m17_priority_backlog_minutes",] == len(open_minutes) == 15
    assert (found["m17_priority_regions",], found["m17_priority_regions_stuck",]) == (1, 1)
    assert found["m17_priority_region_age_seconds",] == pytest.approx(90)

    small.runner.paused.clear()
    work(small)
    found = scrape(small)
    assert (found["m17_priority_regions",], found["m17_priority_backlog_minutes",]) == (0, 0)


@needs_data
def test_mapping_files_are_as_long_as_the_scrape_says(real: Daemon) -> None:
    """By kind: no cell names a record beyond the count, the last one is named, and the bytes are the file's."""
    found, highest = scrape(real), Counter[PayloadKind]()
    for column, _, _, slot in slots(real, SESSION):
        kind = column.payload_kind
        highest[kind] = max(highest[kind], slot.payload_id)
    kinds = [kind for kind in PayloadKind if kind is not PayloadKind.NONE]
    assert set(highest) == set(kinds)
    for kind in kinds:
        path = real.state.directory / "maps" / f"{kind.word}.map"
        assert found["m17_payload_records", kind.word] == highest[kind], kind
        assert 0 < found["m17_payload_map_bytes", kind.word] <= os.path.getsize(path)


@needs_data
def test_rows_of_sources_are_those_of_the_cells(real: Daemon) -> None:
    """Record counts of trades and quotes: what the session's cells hold, and what lies outside the session."""
    counted: Counter[str] = Counter()
    for column, symbol, _, slot in slots(real, SESSION):
        if column in (Column.TRADE_REF, Column.QUOTE_REF) and slot.status == Status.FILLED:
            record = real.state.maps[column.payload_kind].get(slot.payload_id)
            name = "record_count" if column is Column.TRADE_REF else "nbbo_sample_count"
            asset = "us_options_opra" if symbol.startswith("O:") else "us_stocks_sip"
            counted[f"{asset}/{'trades' if column is Column.TRADE_REF else 'quotes'}_v1"] += int(record[name])
    found = scrape(real)
    for dataset in Dataset:
        source = real.state.sources.get(dataset.value, SESSION)
        if source is None:
            assert found["m17_source_rows", dataset.value] == counted[dataset.value] == 0
            continue
        elsewhere = source.out_of_session.get("rows", 0) + sum(source.rejected.values())
        assert counted[dataset.value] > 0
        assert found["m17_source_rows", dataset.value] == counted[dataset.value] + elsewhere, dataset


@needs_data
def test_the_curve_is_behind_by_the_days_between_it_and_the_session(real: Daemon) -> None:
    """The date of the curve that the session's cells hold, and the weekdays after it."""
    dates = {
        int(real.state.maps[PayloadKind.RF_RATE].get(slot.payload_id)["curve_date"])
        for column, _, _, slot in slots(real, SESSION)
        if column is Column.RF_RATE_REF and not slot.flags & Flag.NO_ROWS
    }
    sessions = [real.state.calendar.date(seq) for seq in range(real.state.calendar.session_seq(SESSION))]
    (held,) = dates
    missing = [day for day in sessions if int(day.replace("-", "")) > held]
    assert scrape(real)["m17_curves_behind", "treasury"] == len(missing) == 0


@needs_data
def test_backlog_of_an_engine_is_there_while_cells_are_ready_and_open(
    real: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enrichment has a backlog and a lag exactly while a scan finds cells of its columns open behind filled inputs."""
    monkeypatch.setattr(real.state.system, "now_ns", lambda: NOW_NS + 86_400_000_000_000 * 60)
    derived = [column for column in Column if column not in RAW_COLUMNS]
    assert all(scrape(real)["m17_engine_backlog_tasks", name] == 0 for name in ("nbbo", "greeks", "aggregation"))
    where = protocol.Range(session=SESSION, from_ts="11:00", to_ts="11:10", symbols="O:TWX")
    ask(real, protocol.ClearRequest(columns=[Column.GREEKS_REF], range=where, cause="x"))
    found = scrape(real)
    open_cells = [
        (column, minute)
        for column, _, minute, slot in slots(real, SESSION)
        if column in derived and slot.status == Status.CLEARED
    ]
    assert open_cells == [(Column.GREEKS_REF, minute) for minute in range(90, 100)]
    now_ns, opened = real.state.system.now_ns(), flat_files.open_ns(SESSION)
    lag = (now_ns - (opened + 91 * 60 * 10**9)) / 60e9
    assert found["m17_dependency_lag_minutes", "greeks_ref"] == pytest.approx(lag)
    assert found["m17_dependency_lag_minutes", "aggressor_ref"] == 0
    # What a plan finds and nobody takes up stays in the backlog.
    real.runner.engines["greeks"].plan(1)
    assert scrape(real)["m17_engine_backlog_tasks", "greeks"] > 0
    work(real)
    found = scrape(real)
    assert found["m17_dependency_lag_minutes", "greeks_ref"] == found["m17_engine_backlog_tasks", "greeks"] == 0
