"""Aggregates of real sessions through the whole daemon: filled, repeatable, left unmade where Greeks are missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ledger
from ledger.columns import AGGREGATE_MINUTES, Column, Flag, Status
from tests.m17d.test_derived_sessions import CHAINS, STOCKS, configure, fill, slots
from tests.m17d.test_real_sessions import DATA, session_digest

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

README = Path(__file__).resolve().parents[2] / "README.md"
ENGINES = "[engines.nbbo]\n[engines.aggregation]"


@pytest.fixture(scope="module")
def stocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AIG, BAC and IBM on 2013-10-07 with all their windows."""
    folder = tmp_path_factory.mktemp("stocks")
    configure(folder, STOCKS, nbbo=ENGINES)
    fill(folder)
    return folder


def test_the_readers_example_in_the_readme_runs_and_never_looks_ahead(
    stocks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typed as it stands there, beside the state: trades by minute, and each trade with the newest window that had ended."""
    (code,) = re.findall(r"^```python\n(import ledger.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(stocks)
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "shape: (390, 2)" in printed and "shape: (25_258, 3)" in printed
    with ledger.open("ledger.state", readonly=True) as state:
        trades = state.scan("trade_ref", symbols="AIG", sessions=STOCKS)
        known = state.join_aggregates(trades, "aggs_5m", metrics=["underlying_dollar_value_total"]).collect()
        open_ns = state.calendar.times(STOCKS).open_ns
    late = known.filter(pl.col("sip_timestamp") >= open_ns + 5 * 60_000_000_000)
    assert late["aggs_5m_underlying_dollar_value_total"].null_count() == 0
    assert (late["aggs_5m_available_ns"] <= late["sip_timestamp"]).all()
    assert known.height - late.height == known["aggs_5m_available_ns"].null_count() > 0


def test_stocks_without_options_have_every_window_and_a_second_run_changes_nothing(stocks: Path) -> None:
    """All windows filled, short ones flagged, the minutes' dollar value that of the trades; then nothing moves."""
    tmp_path = stocks
    for column, length in AGGREGATE_MINUTES.items():
        for symbol, cells in slots(tmp_path, STOCKS, column).items():
            assert (cells["status"] == Status.FILLED).all(), symbol
            assert ((cells["flags"] & Flag.SHORT != 0) == [at + length > 390 for at in range(390)]).all()
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        value = (pl.col("price") * pl.col("size")).sum()
        wanted = state.scan("trade_ref", symbols="AIG").select(value).collect().item()
        rows = state.scan("aggs_1m", symbols="AIG").collect()
        assert rows["underlying_dollar_value_total"].sum() == pytest.approx(wanted, rel=1e-12)
        assert (rows["available_ns"] == rows["window_end_ns"]).all()
    folder = tmp_path / "ledger.state"
    files = {path: path.read_bytes() for path in (folder / "maps").iterdir()}
    artifacts, digest = sorted(folder.glob("artifacts/**/*")), session_digest(tmp_path, STOCKS)
    fill(tmp_path)
    assert {path: path.read_bytes() for path in (folder / "maps").iterdir()} == files
    assert (sorted(folder.glob("artifacts/**/*")), session_digest(tmp_path, STOCKS)) == (artifacts, digest)


def test_underlyings_of_options_wait_for_greeks(tmp_path: Path) -> None:
    """Without an engine for Greeks no window of an underlying with options is made, and the daemon still ends well."""
    configure(tmp_path, CHAINS, nbbo=ENGINES)
    fill(tmp_path)
    with_options = {name[2:] for name in slots(tmp_path, CHAINS) if name.startswith("O:")}
    assert with_options
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        exists = state.enrichment.exists(state.calendar.session_seq(CHAINS))
    if exists:
        found = slots(tmp_path, CHAINS, Column.AGGS_1M)
        assert not any((found[name]["status"] == Status.FILLED).any() for name in with_options & found.keys())
