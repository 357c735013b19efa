"""The metrics against the ledger: every gauge of state equals what a scan of the rows finds, and what status says."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ledger.columns import AGGREGATE_MINUTES, ENRICHMENT_COLUMNS, TRADE_COLUMNS, Column, Flag, Status
from m17d import protocol
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.envelopes import Claimed
from m17d.peers import OPERATE, READ, Context, Peer
from tests.filled_state import DATA, SESSION, copy_of, filled, needs_data
from tests.m17d import flat_files

Samples = dict[tuple[str, ...], float]
OPERATOR = Context(Peer(uid=0, gid=0, pid=1, user="test", roles=frozenset({READ, OPERATE})), claimed=Claimed())


def scrape(daemon: Daemon) -> Samples:
    """(name, label values in the order of their names ...) -> value."""
    found: Samples = {}
    for family in text_string_to_metric_families(daemon.handlers.exposition.text()):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def work(daemon: Daemon, timeout_s: float = 60) -> None:
    """Let the engines work until they have nothing to do."""
    end, idle = time.monotonic() + timeout_s, 0
    while idle < 3:
        assert time.monotonic() < end
        idle = 0 if daemon.runner.step() or not daemon.runner.is_idle() else idle + 1
        daemon._poll(5)
    daemon.handlers.retire_regions()


def ask(daemon: Daemon, request: Any) -> Any:
    """The answer of the handlers to a request, as the server would collect it."""
    answer = daemon.handlers.handle(request, OPERATOR)
    if isinstance(answer, Iterator):
        return [one for one in answer if one is not None][-1]
    return answer


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


def running(folder: Path) -> Iterator[Daemon]:
    """A daemon in this process, its engines at rest."""
    daemon = Daemon(read_config(folder / "m17.toml"), logging.getLogger("m17d-test"))
    try:
        work(daemon)
        yield daemon
    finally:
        daemon.close()


# ---- the scan: row by row, with rules of its own


def scanned(daemon: Daemon, now_ns: int) -> tuple[Counter[tuple[str, str]], dict[str, float], dict[str, float]]:
    """(cells by column and word, lag by column, lag of cells whose inputs are filled), from single rows."""
    state = daemon.state
    cells: Counter[tuple[str, str]] = Counter()
    open_ends: dict[str, list[int]] = defaultdict(list)
    ready_ends: dict[str, list[int]] = defaultdict(list)
    for session in sorted(set(state.sources.sessions())):
        seq = state.calendar.session_seq(session)
        names = {int(one): state.symbols.name(int(one)) for one in state.universe(session)}
        with_options = {name[2:] for name in names.values() if name.startswith("O:")}
        rows = {symbol: [row_of(state, symbol, seq * 390 + minute) for minute in range(390)] for symbol in names}
        for symbol, name in names.items():
            for column in Column:
                covered = engine_covers(daemon, session, column, symbol)
                applies = applicable(column, name, with_options)
                for minute in range(390):
                    end_ns = int(state.calendar.open_ns[seq]) + (minute + 1) * 60_000_000_000
                    slot = rows[symbol][minute][column]
                    word = Status(slot.status).word
                    if slot.status == Status.EMPTY and not applies:
                        word = "not_applicable"
                    elif slot.status == Status.EMPTY and not (covered and end_ns <= now_ns):
                        word = "not_due"
                    cells[column, word] += 1
                    if slot.status == Status.FILLED:
                        cells[column, "no_data"] += bool(slot.flags & Flag.NO_ROWS)
                        cells[column, "suspect"] += bool(slot.flags & Flag.SUSPECT)
                    if word in ("empty", "pending", "cleared"):
                        open_ends[column].append(end_ns)
                        if inputs_filled(column, symbol, minute, rows, names):
                            ready_ends[column].append(end_ns)
    lag = {column.value: minutes_since(open_ends[column], now_ns) for column in Column}
    ready = {column.value: minutes_since(ready_ends[column], now_ns) for column in Column}
    return cells, lag, ready


def row_of(state: Any, symbol: int, minute_idx: int) -> dict[Column, Any]:
    slots = {}
    for columns, get in (
        (TRADE_COLUMNS, state.trade.get_trade_row),
        (ENRICHMENT_COLUMNS, state.enrichment.get_enrichment_row),
    ):
        row = get(symbol, minute_idx)
        slots.update({column: row.slots[column] for column in columns})
    return slots


def engine_covers(daemon: Daemon, session: str, column: Column, symbol: int) -> bool:
    masks = [one.covers(session, column) for one in daemon.runner.engines.values() if column in one.writes]
    return any(mask is not None and symbol < len(mask) and bool(mask[symbol]) for mask in masks)


def applicable(column: Column, name: str, with_options: set[str]) -> bool:
    option = name.startswith("O:")
    if column is Column.RF_RATE_REF:
        return option or name in with_options
    if column is Column.GREEKS_REF:
        return option
    return not option if column in AGGREGATE_MINUTES else True


def inputs_filled(
    column: Column, symbol: int, minute: int, rows: dict[int, list[dict[Column, Any]]], names: dict[int, str]
) -> bool:
    """Whether every input of a derived cell is filled, by the design's table of engines."""

    def filled_at(who: int, which: Column, at: int) -> bool:
        return at < 0 or rows[who][at][which].status == Status.FILLED

    if column is Column.AGGRESSOR_REF:
        return all(filled_at(symbol, *one) for one in (
            (Column.TRADE_REF, minute), (Column.QUOTE_REF, minute), (Column.QUOTE_REF, minute - 1)))  # fmt: skip
    if column is Column.GREEKS_REF:
        stock = next(one for one, name in names.items() if name == names[symbol][2:])
        own = filled_at(symbol, Column.TRADE_REF, minute) and filled_at(symbol, Column.RF_RATE_REF, minute)
        return own and all(filled_at(stock, Column.QUOTE_REF, at) for at in (minute, minute - 1))
    if column in AGGREGATE_MINUTES:
        members = [one for one, name in names.items() if name.removeprefix("O:") == names[symbol]]
        for at in range(minute, min(390, minute + AGGREGATE_MINUTES[column])):
            for member in members:
                wanted = [Column.TRADE_REF, Column.AGGRESSOR_REF]
                wanted += [Column.GREEKS_REF] if names[member].startswith("O:") else []
                if not all(filled_at(member, one, at) for one in wanted):
                    return False
        return True
    return True


def minutes_since(ends_ns: list[int], now_ns: int) -> float:
    return (now_ns - min(ends_ns)) / 60e9 if ends_ns else 0.0


def compare(daemon: Daemon, now_ns: int, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Every gauge of cells against the scan and against status; the scrape."""
    monkeypatch.setattr(daemon.state.system, "now_ns", lambda: now_ns)
    found = scrape(daemon)
    cells, lag, ready = scanned(daemon, now_ns)
    status = ask(daemon, protocol.StatusRequest())
    for column in Column:
        counts = status.columns[column]
        for word in ("empty", "pending", "filled", "cleared", "not_applicable", "not_due"):
            assert found["m17_slots", column, word] == cells[column, word] == getattr(counts, word), (column, word)
        for word in ("no_data", "suspect"):
            assert found["m17_filled_slots", column, word] == cells[column, word] == getattr(counts, word)
        assert found["m17_filled_slots", column, "stale"] == counts.stale
        due = sum(cells[column, word] for word in ("empty", "pending", "filled", "cleared"))
        if due:
            assert found["m17_slot_ratio", column, "filled"] == pytest.approx(cells[column, "filled"] / due)
        else:
            assert ("m17_slot_ratio", column, "filled") not in found
        assert found["m17_window_lag_minutes", column] == pytest.approx(lag[column]), column
        if ("m17_dependency_lag_minutes", column) in found:
            assert found["m17_dependency_lag_minutes", column] == pytest.approx(ready[column]), column
    assert found["m17_symbols",] == len(daemon.state.symbols)
    return found


NOW_NS = 1_400_000_000_000_000_000
"""A day in 2014, so that the year of the small state is over."""


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


def records_of(daemon: Daemon, column: Column, name: str) -> int:
    """Sum of a count over the records that the filled cells of the session name, one by one."""
    state = daemon.state
    rows = state.ledger_of(column).session(state.calendar.session_seq(SESSION))
    total = 0
    for symbol in state.universe(SESSION).tolist():
        for minute in range(390):
            slot = rows.slot(column, symbol, minute)
            if slot.status == Status.FILLED:
                total += int(state.maps[column.payload_kind].get(slot.payload_id)[name])
    return total


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
    end = time.monotonic() + 120
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


def gained(before: Samples, after: Samples, *key: str) -> float:
    return after[key] - before[key]


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
