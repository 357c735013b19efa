"""
Real sessions live: at two speeds, with disconnects, the digest and the counts of the files.

Live equals batch for the same events, so files are cut to what a websocket carries: milliseconds and no corrections.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ledger
from ledger.columns import Column, Flag, Status
from m17d.demo_session import Play, prepare
from tests.m17d.live_market import digests, files, live, replaying, run_until_idle, write_config

SESSIONS = {
    "2013-10-07": ("contract", "disconnect=3600,duplicate=50,garbage=40,late=200:45"),
    "2014-06-06": ("contract", "abort=2700,kick=9000"),
}


def contracts(root: Path, session: str) -> list[str]:
    """Contracts with quotes; the service has no wildcard for those."""
    import polars as pl

    path = root / "flatfiles" / f"us_options_opra/quotes_v1/{session[:4]}/{session[5:7]}/{session}.csv.gz"
    return pl.read_csv(path, columns=["ticker"])["ticker"].unique().sort().to_list() if path.exists() else []


def minutes_with_rows(folder: Path, session: str, column: Column) -> dict[str, int]:
    """Windows with rows, by ticker."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        ids = state.universe(session)
        slots = state.trade.session(state.calendar.session_seq(session)).slots(column, ids)
        held = (slots["status"] == Status.FILLED) & (slots["flags"] & Flag.NO_ROWS == 0)
        counts = held.sum(axis=1).tolist()
        return {state.symbols.name(one): count for one, count in zip(ids.tolist(), counts, strict=True) if count}


def rows_of(folder: Path, session: str, column: Column) -> dict[str, int]:
    """Rows in session, by ticker."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        frame = state.scan(column.value, sessions=session).select("ticker").collect()
    return dict(frame["ticker"].value_counts().iter_rows())


@pytest.mark.slow
@pytest.mark.parametrize("speed", ["max", "1200"])
@pytest.mark.parametrize("session", sorted(SESSIONS))
def test_a_real_session_live_is_that_of_its_files(shared_data: Path, tmp_path: Path, session: str, speed: str) -> None:
    """Digest of trades and quotes, rows and windows by ticker as counted independently, nothing dropped."""
    option_rows, faults = SESSIONS[session]
    market = tmp_path / "market"
    market.mkdir()
    prepare(market, Play(shared_data, session, 1.0, ""))
    expected: dict[str, Any] = json.loads((shared_data / "expected.json").read_text())["dates"][session]
    listened = [*(one for one in expected["tickers"] if not one.startswith("O:")), *contracts(market, session)]
    engines = files(market / "flatfiles", session)
    engines["quote"] = {**engines["quote"], "symbols": listened}
    write_config(tmp_path / "batch", session[:4], engines, option_rows)
    done = run_until_idle(tmp_path / "batch", 300)
    assert done.returncode == 0, done.stdout + done.stderr
    with replaying(market, session, "--speed", speed, "--faults", faults) as replay:
        engines = live(replay.url, quotes=listened, refused_pause_s=0.1)
        write_config(tmp_path / "live", session[:4], engines, option_rows)
        done = run_until_idle(tmp_path / "live", 500)
    assert done.returncode == 0, done.stdout + done.stderr

    assert digests(tmp_path / "live", session) == digests(tmp_path / "batch", session)
    for folder in (tmp_path / "live", tmp_path / "batch"):
        for column, kind in ((Column.TRADE_REF, "trade"), (Column.QUOTE_REF, "quote")):
            wanted = {
                ticker: (counts[f"{kind}_rows_regular"], counts[f"minutes_with_{kind}s"])
                for ticker, counts in expected["tickers"].items()
                if counts[f"{kind}_rows_regular"]
                and (kind == "trade" or not ticker.startswith("O:") or ticker in listened)
            }
            rows, minutes = rows_of(folder, session, column), minutes_with_rows(folder, session, column)
            assert {ticker: (rows[ticker], minutes[ticker]) for ticker in rows} == wanted
