"""The metrics against the ledger: every gauge of state equals what a scan of the rows finds, and what status says."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ledger.columns import Column
from m17d import protocol
from m17d.daemon import Daemon
from tests.filled_state import DATA, SESSION, copy_of, filled, needs_data
from tests.m17d import flat_files
from tests.m17d.scraped import NOW_NS, Samples, ask, compare, gained, records_of, running, scrape, work


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Daemon]:
    """Two stocks of which one has trades only, quotes waited for, on a day that is long over."""
    flat_files.write(tmp_path, "2013-05-01", flat_files.packed(flat_files.good_lines("2013-05-01")))
    flat_files.write_config(tmp_path, ["2013-05-01", "2013-05-02"], engines="trade_flatfile quote")
    with (tmp_path / "m17.toml").open("a") as file:
        file.write("[engines.nbbo]\n[engines.aggregation]\n")
    yield from running(tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The filled real session."""
    folder = copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("real"))
    shutil.copyfile(DATA / "treasury" / "treasury-yields.json", folder / "yields.json")
    text = (folder / "m17.toml").read_text()
    (folder / "m17.toml").write_text(text.replace(str(DATA / "treasury" / "treasury-yields.json"), "yields.json"))
    yield from running(folder)


def test_gauges_equal_a_scan_with_holes_of_every_kind(small: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting, cleared and claimed cells, on sessions mapped and not, counted quickly and cell by cell."""
    compare(small, NOW_NS, monkeypatch)
    small.runner.paused["trade_flatfile"] = "test"
    clear = protocol.ClearRequest(
        columns=[Column.TRADE_REF],
        range=protocol.Range(session="2013-05-01", from_ts="10:00", symbols="AAA"),
        cause="x",
    )
    assert ask(small, clear).cleared == {Column.TRADE_REF: 360}
    found = compare(small, NOW_NS, monkeypatch)
    assert found["m17_operator_cells_total", "trade_ref", "clear"] == 360

    small.state.trade.drop_idle(idle_ns=0)
    small.state.enrichment.drop_idle(idle_ns=0)
    assert compare(small, NOW_NS, monkeypatch)["m17_window_lag_minutes", "trade_ref"] > 0
    first, second = compare(small, NOW_NS, monkeypatch), compare(small, NOW_NS, monkeypatch)
    assert {key for key in first if first[key] != second[key]} <= set(changing_by_themselves(small))
    # A claim lasts as long as the session is mapped.
    seq = small.state.calendar.session_seq("2013-05-01")
    claimed = np.array([0, 0]), np.array([3, 4])
    small.state.trade.session(seq).mark_pending(Column.QUOTE_REF, *claimed, now_ns=NOW_NS)
    assert compare(small, NOW_NS, monkeypatch)["m17_slots", "quote_ref", "pending"] == 2


def changing_by_themselves(daemon: Daemon) -> Samples:
    """What no two scrapes share."""
    names = ("m17_uptime_seconds", "m17_request_seconds_count", "m17_request_seconds_sum", "m17_resident_bytes")
    names += ("m17_disk_free_bytes", "m17_disk_runway_sessions", "m17_open_files")
    return {key: value for key, value in scrape(daemon).items() if key[0] in names}


@pytest.mark.parametrize("session", ["2013-05-01", "2013-05-02"])
def test_gauges_equal_a_scan_in_the_middle_of_a_session(
    small: Daemon, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not over is not due, also where a file of the day filled it already."""
    for minutes in (0, 95.5, 390):
        compare(small, flat_files.open_ns(session) + int(minutes * 60e9), monkeypatch)


@needs_data
def test_gauges_of_a_real_session_equal_a_scan(real: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column filled; and the shares of usable rows from the records themselves."""
    found = compare(real, NOW_NS + 86_400_000_000_000 * 60, monkeypatch)
    assert found["m17_whole_ratio", "greeks_ref"] > 0.9
    sums = {
        name: records_of(real, Column.AGGRESSOR_REF, name) for name in ("observation_count", "unknown_side", "tied")
    }
    without = records_of(real, Column.AGGRESSOR_REF, "missing") + records_of(real, Column.AGGRESSOR_REF, "stale")
    rows = sums["observation_count"]
    assert rows > 5_000
    assert found["m17_unknown_aggressor_ratio",] == pytest.approx(sums["unknown_side"] / rows)
    assert found["m17_tied_trades_ratio",] == pytest.approx(sums["tied"] / rows)
    assert found["m17_nbbo_coverage_ratio",] == pytest.approx((rows - without) / rows)
    usable = records_of(real, Column.GREEKS_REF, "usable_rows") / records_of(
        real, Column.GREEKS_REF, "observation_count"
    )
    assert found["m17_usable_greeks_ratio",] == pytest.approx(usable)

    seq = real.state.calendar.session_seq(SESSION)
    taken = sum(one.path(seq).stat().st_blocks * 512 for one in (real.state.trade, real.state.enrichment))
    taken += sum(artifact.bytes for artifact in real.state.artifacts.all())
    taken += sum(one.logical_bytes for one in real.state.maps.values())
    assert found["m17_disk_runway_sessions",] == pytest.approx(found["m17_disk_free_bytes",] / taken)


@needs_data
def test_events_are_counted_where_they_happen(real: Daemon) -> None:
    """A clear that is refilled is repair, a revised curve is recomputation under its own date, both to the cell."""
    before = scrape(real)
    trades = protocol.Range(session=SESSION, from_ts="10:00", to_ts="11:00", symbols="AAPL")
    cleared = ask(real, protocol.ClearRequest(columns=[Column.TRADE_REF], range=trades, cause="test")).cleared
    assert cleared == {Column.TRADE_REF: 60}
    wanted = ask(real, protocol.RefreshRequest(columns=[Column.QUOTE_REF], range=trades, cause="test")).cleared
    work(real)
    after = scrape(real)
    assert gained(before, after, "m17_repaired_cells_total", "trade_ref") == 60
    assert gained(before, after, "m17_repaired_cells_total", "quote_ref") == wanted[Column.QUOTE_REF] == 60
    assert gained(before, after, "m17_operator_cells_total", "quote_ref", "refresh") == 60
    assert gained(before, after, "m17_recomputed_cells_total", "greeks_ref") == 0

    revise_curve(real)
    end = time.monotonic() + 240
    while not (remade := gained(after, last := scrape(real), "m17_recomputed_cells_total", "greeks_ref")):
        assert time.monotonic() < end, "the revised curve was not noticed"
        work(real)
    assert remade > 100
    dates = [key[1] for key in last if key[0] == "m17_recomputed_by_curve_cells_total"]
    assert dates == ["2014-06-05"]
    # Cells without rows hold no curve.
    rows = last["m17_recomputed_by_curve_cells_total", "2014-06-05"]
    assert 0 < rows <= remade
    assert last["m17_mutation_latency_seconds_count", "greeks"] == last["m17_engine_tasks_total", "greeks", "done"] > 0
    assert last["m17_worker_busy_seconds_total", "greeks"] > 0


def revise_curve(daemon: Daemon) -> None:
    """Publish the curve in effect once more, with another rate."""
    path = Path(str(daemon.runner.engines["treasury"].source))  # type: ignore[attr-defined]
    page = json.loads(path.read_text())
    for curve in page["results"]:
        if curve["date"] == "2014-06-05":
            curve["yield_1_month"] = curve.get("yield_1_month", 0) + 0.5
            curve["yield_3_month"] = curve.get("yield_3_month", 0) + 0.5
    path.write_text(json.dumps(page))


@needs_data
def test_a_scrape_of_nothing_new_reads_no_cell(real: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing moved, planes and records are left alone."""
    scrape(real)
    for owner, name in (
        (real.handlers.reading, "planes"),
        (real.state.maps[Column.AGGRESSOR_REF.payload_kind], "get_many"),
    ):
        monkeypatch.setattr(owner, name, lambda *_args, **_named: pytest.fail("a cell was looked at"))
    scrape(real)


def test_names_have_units_and_help_and_few_series(small: Daemon) -> None:
    """Units last, a sentence for an operator, and a number of series that does not grow with symbols or sessions."""
    text = small.handlers.exposition.text()
    units = ("_seconds", "_minutes", "_bytes", "_ratio", "_sessions", "_cells", "_tasks", "_info", "_rows", "_lines")
    things = {
        "m17_slots", "m17_filled_slots", "m17_sessions_in_use", "m17_engine_state", "m17_workers", "m17_worker_deaths",
        "m17_mutations", "m17_metrics_left_out", "m17_payload_records", "m17_artifacts", "m17_symbols", "m17_symbols_max",
        "m17_symbols_refused", "m17_writes_blocked", "m17_state_read_only", "m17_sources", "m17_priority_regions",
        "m17_priority_regions_stuck", "m17_open_files", "m17_request_failures", "m17_internal_errors", "m17_replies_dropped",
        "m17_events_lost", "m17_session_open", "m17_year_active", "m17_loop_slow_steps",
    }  # fmt: skip
    series = 0
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("m17_")
        assert family.name.endswith(units) or family.name in things, f"{family.name}: unit or known thing"
        assert family.documentation.endswith("."), family.name
        assert len(family.documentation) > 20, family.name
        series += len(family.samples)
    assert series < 600


SPECIFIED = {
    "window lag by column": "m17_window_lag_minutes",
    "mutation latency": "m17_mutation_latency_seconds",
    "mutation throughput": "m17_mutations",
    "symbol cardinality": "m17_symbols",
    "priority-region backlog": "m17_priority_backlog_minutes",
    "mapping-file growth": "m17_payload_map_bytes",
    "cleared refs": "m17_operator_cells",
    "repair throughput": "m17_repaired_cells",
    "slot-status ratios": "m17_slot_ratio",
    "dependency lag": "m17_dependency_lag_minutes",
    "recomputes by curve version": "m17_recomputed_by_curve_cells",
    "curve lag": "m17_curves_behind",
    "record counts of ingestion": "m17_source_rows",
    "NBBO coverage": "m17_nbbo_coverage_ratio",
    "share of unknown aggressors": "m17_unknown_aggressor_ratio",
    "disk runway": "m17_disk_runway_sessions",
    "worker busy share": "m17_workers_busy_ratio",
    "loop lag": "m17_loop_lag_seconds",
    "what the loop did longest": "m17_loop_step_seconds",
    "backlog of enrichment": "m17_engine_backlog_tasks",
}
"""What the specification and its issue ask to be measured, but for feeds (tests/engines/test_numbers.py) -> its metric."""


@needs_data
def test_whatever_was_asked_to_be_measured_is(real: Daemon) -> None:
    """Each has a family, and the rows of the sources are those of the records."""
    text = real.handlers.exposition.text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {what for what, name in SPECIFIED.items() if name not in families} == set()
    rows = {sample.labels["dataset"]: sample.value for sample in families["m17_source_rows"].samples}
    for dataset, value in rows.items():
        assert value == sum(record.rows for record in real.state.sources.all() if record.dataset == dataset)
    assert sum(rows.values()) > 0
