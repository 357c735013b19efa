"""Aggregates of real sessions through the whole daemon: filled, repeatable, left unmade where Greeks are missing."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import ledger
from ledger.columns import AGGREGATE_MINUTES, Column, Flag, Status
from tests.m17d.test_derived_sessions import CHAINS, STOCKS, configure, fill, slots
from tests.m17d.test_real_sessions import DATA, session_digest

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

ENGINES = "[engines.nbbo]\n[engines.aggregation]"


def test_stocks_without_options_have_every_window_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """All windows filled, short ones flagged, the minutes' dollar value that of the trades; then nothing moves."""
    configure(tmp_path, STOCKS, nbbo=ENGINES)
    fill(tmp_path)
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
