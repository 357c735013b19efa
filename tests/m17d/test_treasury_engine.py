"""Curves through the whole daemon: carried forward, late, revised, missing."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column, Source, Status
from ledger.state import State
from m17ctl.client import Client
from m17d import protocol
from tests.m17d import flat_files
from tests.m17d.test_daemon import start, wait_for

SESSION = "2013-05-06"
"""A Monday: Friday's curve holds."""
OPTION = "O:AAA130518C00010000"


def curve(date: str, ten_year: float) -> dict[str, object]:
    """One result of the service."""
    return {"date": date, "yield_1_month": 0.03, "yield_10_year": ten_year}


def write_curves(root: Path, *curves: dict[str, object]) -> None:
    """The file of yields."""
    (root / "yields.json").write_text(json.dumps({"count": len(curves), "results": list(curves)}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One session with a stock that has an option, and one that has none."""
    start = flat_files.open_ns(SESSION)
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    lines = ["ticker,conditions,correction,exchange,price,sip_timestamp,size", f"{OPTION},,,314,1.5,{start + 5},2"]
    flat_files.write(tmp_path, SESSION, flat_files.packed(lines), "us_options_opra/trades_v1")
    path = flat_files.write_config(tmp_path, [SESSION], keys='option_rows = "contract"')
    path.write_text(path.read_text() + '[engines.treasury]\nsource = "yields.json"\n')
    return tmp_path


def held(state: State, symbol: str) -> np.ndarray:
    """The rf_rate cells of a symbol."""
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    return rows.slots(Column.RF_RATE_REF, np.array([state.symbols.resolve(symbol)]))[0]


def ten_year(state: State, symbol: str) -> int:
    """The 10-year yield that a symbol's first window names, in basis points."""
    record = state.maps[Column.RF_RATE_REF.payload_kind].get(int(held(state, symbol)[0]["payload_id"]))
    return int(record["tenor_bps"][9])


def test_curve_of_the_day_before_holds_and_a_later_one_replaces_it(root: Path) -> None:
    """Friday's curve on Monday; Monday's own does not look ahead; a late Sunday curve and a revision replace it."""
    write_curves(root, curve("2013-05-02", 1.0), curve("2013-05-06", 9.0))
    assert flat_files.run(root).returncode == 0
    with ledger.open(root / "ledger.state", readonly=True) as state:
        assert ten_year(state, "AAA") == ten_year(state, OPTION) == 100
        cells = held(state, OPTION)
        assert (cells["status"] == Status.FILLED).all()
        assert (cells["source"] == Source.REST).all()
        assert (cells["version"] == 1).all()
        assert len(np.unique(cells["payload_id"])) == 1
        assert (held(state, "BBB")["status"] == Status.EMPTY).all(), "a stock without options needs no curve"
    write_curves(root, curve("2013-05-02", 1.0), curve("2013-05-03", 2.0), curve("2013-05-06", 9.0))
    assert flat_files.run(root).returncode == 0
    with ledger.open(root / "ledger.state", readonly=True) as state:
        assert ten_year(state, OPTION) == 200
        assert (held(state, OPTION)["version"] == 2).all()
    write_curves(root, curve("2013-05-02", 1.0), curve("2013-05-03", 2.5), curve("2013-05-06", 9.0))
    assert flat_files.run(root).returncode == 0
    with ledger.open(root / "ledger.state", readonly=True) as state:
        assert ten_year(state, OPTION) == 250
        assert (held(state, OPTION)["version"] == 3).all()


def test_reading_the_same_curves_again_changes_nothing(root: Path) -> None:
    """No record is appended and no version counts up, nor is a start number spent."""
    write_curves(root, curve("2013-05-03", 2.0))
    assert flat_files.run(root).returncode == 0
    files = [root / "ledger.state" / "maps" / name for name in ("rf_rate.map", "start")]
    before = [path.read_bytes() for path in files]
    assert flat_files.run(root).returncode == 0
    assert [path.read_bytes() for path in files] == before


def test_before_the_first_curve_cells_stay_empty_and_say_why(root: Path) -> None:
    """A file whose first curve is too late leaves the session waiting, visibly."""
    write_curves(root, curve("2013-05-06", 2.0))
    done = flat_files.run(root)
    assert done.returncode == 0
    assert "no curve is in effect on 2013-05-06" in done.stdout
    with ledger.open(root / "ledger.state", readonly=True) as state:
        assert (held(state, OPTION)["status"] == Status.EMPTY).all()


def test_damaged_file_of_curves_is_named_and_the_other_engines_go_on(root: Path) -> None:
    """Not the expected JSON: exit 1, the reason in the log, trades filled all the same."""
    (root / "yields.json").write_text("{broken")
    done = flat_files.run(root)
    assert done.returncode == 1
    assert "yields.json" in done.stderr
    with ledger.open(root / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        assert (rows.slots(Column.TRADE_REF, np.array([state.symbols.resolve("AAA")]))["status"] == Status.FILLED).all()


def test_a_lagging_curve_is_a_cause_and_a_damaged_file_is_forgiven_when_it_is_replaced(root: Path) -> None:
    """While the daemon runs: `why` names the lag window by window, the state recovers with the file."""
    write_curves(root, curve("2013-05-02", 1.0))
    process = start(root)
    try:
        wait_for(process, root, "rf_rate")
        with Client(root / "ledger.state" / "m17d.sock") as client:

            def state() -> str:
                listed = client.call(protocol.EnginesListRequest())
                return next(one.state for one in listed.engines if one.name == "treasury")

            def until(wanted: str) -> None:
                end = time.monotonic() + 240
                while state() != wanted:
                    assert time.monotonic() < end
                    time.sleep(0.1)

            request = protocol.WhyRequest(columns=[Column.RF_RATE_REF], range=protocol.Range(session=SESSION))
            lag = next(one for one in client.call(request).groups if one.cause == "lagging")
            assert (lag.cells, lag.symbols) == (780, 2)
            assert lag.detail.startswith("the curve of 2013-05-02 holds")
            (root / "yields.json").write_text("{broken")
            until("degraded")
            write_curves(root, curve("2013-05-02", 1.0), curve("2013-05-03", 2.0))
            until("idle")
            assert "lagging" not in {one.cause for one in client.call(request).groups}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
