"""Real sessions through the whole daemon, compared with independently computed counts; skipped without the shared data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import ledger
from ledger.columns import Column, Flag, Source, Status
from ledger.rows import SessionRows
from ledger.state import State

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

SESSIONS = ("2013-10-07", "2013-10-08", "2014-06-06", "2015-12-23")
KINDS = {
    Column.TRADE_REF: ("trade_rows_regular", "minutes_with_trades", "record_count"),
    Column.QUOTE_REF: ("quote_rows_regular", "minutes_with_quotes", "nbbo_sample_count"),
}


def run(
    directory: Path, year: str, sessions: list[str], option_rows: str, *, workers: int = 2, order: str = "tq"
) -> None:
    """Run the daemon until idle on a config of the documented shape."""
    engine = {"t": "trade_flatfile", "q": "quote"}
    lines = [
        'state_dir = "ledger.state"',
        f'option_rows = "{option_rows}"',
        "[runner]",
        f"workers = {workers}",
        "[calendar]",
        'exchange = "XNYS"',
        f"year = {year}",
    ]
    for letter in order:
        lines += [
            f"[engines.{engine[letter]}]",
            f'source = "{DATA / "flatfiles"}"',
            f"sessions = {json.dumps(sessions)}",
        ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "m17.toml").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "m17d", "run", "--config", "m17.toml", "--until-idle"]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expected(session: str) -> dict[str, Any]:
    """The tickers of a session and their independently computed counts."""
    tickers: dict[str, Any] = json.loads((DATA / "expected.json").read_text())["dates"][session]["tickers"]
    return tickers


def has_file(session: str, dataset: str) -> bool:
    """True where the upstream file of a dataset exists."""
    return (DATA / "flatfiles" / dataset / session[:4] / session[5:7] / f"{session}.csv.gz").exists()


def dataset_of(ticker: str, column: Column) -> str:
    """The dataset that fills a column of a ticker."""
    kind = "trades_v1" if column is Column.TRADE_REF else "quotes_v1"
    return f"{'us_options_opra' if ticker.startswith('O:') else 'us_stocks_sip'}/{kind}"


@pytest.fixture(scope="module", params=["contract", "chain"])
def states(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """Filled states by year, for one way of mapping options to symbols."""
    root = tmp_path_factory.mktemp(request.param)
    made = {}
    for year in sorted({session[:4] for session in SESSIONS}):
        run(root / year, year, [one for one in SESSIONS if one.startswith(year)], request.param)
        made[year] = (request.param, root / year)
    return made


def wanted_by_symbol(session: str, option_rows: str) -> dict[str, dict[str, int]]:
    """Expected sums by symbol: by ticker, or for chains by root; minutes are only summed by ticker."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for ticker, counts in expected(session).items():
        symbol = ticker
        if option_rows == "chain" and ticker.startswith("O:"):
            symbol = ticker[:-15]
        for name, value in counts.items():
            totals[symbol][name] += value
    return totals


def slots_of(rows: SessionRows, column: Column, symbol_id: int) -> np.ndarray:
    """The session's slots of one symbol."""
    return rows.slots(column, np.array([symbol_id]))[0]


@pytest.mark.parametrize("session", SESSIONS)
def test_every_ticker_has_the_expected_rows_windows_and_volume(
    session: str, states: dict[str, tuple[str, Path]]
) -> None:
    """Counts, windows and sums of sizes equal the independent ones, and every other window is no data or waiting."""
    option_rows, directory = states[session[:4]]
    with ledger.open(directory / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(session))
        volumes = volume_by_symbol(state, session)
        for symbol, counts in wanted_by_symbol(session, option_rows).items():
            symbol_id = state.symbols.resolve(symbol)
            for column, (rows_name, minutes_name, count_name) in KINDS.items():
                slots = slots_of(rows, column, symbol_id)
                if not has_file(session, dataset_of(symbol, column)):
                    assert (slots["status"] == Status.EMPTY).all(), (symbol, column)
                    continue
                assert (slots["status"] == Status.FILLED).all(), (symbol, column)
                assert (slots["source"] == Source.FLAT_FILE).all()
                with_rows = slots["flags"] & Flag.NO_ROWS == 0
                if option_rows == "contract" or not symbol.startswith("O:"):
                    assert int(with_rows.sum()) == counts[minutes_name], (symbol, column)
                records = state.maps[column.payload_kind].get_many(slots["payload_id"][with_rows])
                assert int(records[count_name].sum()) == counts[rows_name], (symbol, column)
            assert volumes.get(symbol, 0) == counts["regular_volume"], symbol


def volume_by_symbol(state: State, session: str) -> dict[str, float]:
    """Sums of sizes of the rows that the trade cells name."""
    frame = state.scan("trade_ref", sessions=session).group_by("symbol").agg(pl.col("size").sum()).collect()
    return dict(frame.iter_rows())


def test_suspect_is_set_exactly_on_quotes_that_should_have_been_there(states: dict[str, tuple[str, Path]]) -> None:
    """SPY and all of O:AAPL have trades and never a quote; nothing else of those sessions is suspect."""
    for session, silent in (("2013-10-07", ()), ("2013-10-08", ("SPY",)), ("2014-06-06", ("O:AAPL",))):
        _, directory = states[session[:4]]
        with ledger.open(directory / "ledger.state", readonly=True) as state:
            rows = state.trade.session(state.calendar.session_seq(session))
            for symbol_id in state.universe(session).tolist():
                name = state.symbols.name(symbol_id)
                suspect = slots_of(rows, Column.QUOTE_REF, symbol_id)["flags"] & Flag.SUSPECT != 0
                assert suspect.all() == name.startswith(tuple(silent) or ("-",)), name
                assert suspect.any() == suspect.all(), name
                assert not (slots_of(rows, Column.TRADE_REF, symbol_id)["flags"] & Flag.SUSPECT).any(), name


def test_scan_gives_the_rows_of_the_file_once(states: dict[str, tuple[str, Path]]) -> None:
    """The in-session rows of the upstream file and of the scan are the same multiset."""
    session = "2014-06-06"
    _, directory = states["2014"]
    path = DATA / "flatfiles" / "us_options_opra/trades_v1/2014/06/2014-06-06.csv.gz"
    with ledger.open(directory / "ledger.state", readonly=True) as state:
        window = state.calendar.times(session)
        names = ["ticker", "sip_timestamp", "price", "size", "exchange", "participant_timestamp"]
        file = pl.read_csv(path).filter(
            pl.col("sip_timestamp").is_between(window.open_ns, window.close_ns, closed="left")
        )
        scanned = state.scan("trade_ref", symbols="O:*", sessions=session).select(names).collect()
        wanted = file.select(names).cast(scanned.schema)
        assert scanned.sort(names).equals(wanted.sort(names))


def test_running_twice_changes_nothing(tmp_path: Path) -> None:
    """No payload, no artifact, not one byte of a row file or map differs after a second run."""
    run(tmp_path, "2013", ["2013-10-07"], "contract")
    watched = [
        "trade/*.rows",
        "enrichment/*.rows",
        "maps/*",
        "artifacts/**/*",
        "sources",
        "symbol-map.bin",
        "audit/*.log",
    ]
    paths = [
        path for pattern in watched for path in sorted((tmp_path / "ledger.state").glob(pattern)) if path.is_file()
    ]
    before = {path: digest_of(path) for path in paths}
    run(tmp_path, "2013", ["2013-10-07"], "contract")
    after = [
        path for pattern in watched for path in sorted((tmp_path / "ledger.state").glob(pattern)) if path.is_file()
    ]
    assert after == paths
    assert {path: digest_of(path) for path in paths} == before


def digest_of(path: Path) -> str:
    """SHA-256 of a file; sparse row files are read extent by extent through their data only."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        descriptor, offset, size = file.fileno(), 0, path.stat().st_size
        while offset < size:
            try:
                start = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            digest.update(os.pread(descriptor, end - start, start))
            offset = end
    return digest.hexdigest()


def session_digest(directory: Path, session: str) -> str:
    """The digest of a session, read beside nothing."""
    from ledger.digests import session_digest as steps

    with ledger.open(directory / "ledger.state", readonly=True) as state:
        result = [step for step in steps(state, session) if step is not None]
    return result[-1][0]


def test_digest_is_the_same_in_any_order_and_on_any_number_of_workers(tmp_path: Path) -> None:
    """Engines in either order, one worker or three: one digest."""
    for name, workers, order in (("a", 1, "tq"), ("b", 3, "qt")):
        run(tmp_path / name, "2015", ["2015-12-23"], "chain", workers=workers, order=order)
    assert session_digest(tmp_path / "a", "2015-12-23") == session_digest(tmp_path / "b", "2015-12-23")
