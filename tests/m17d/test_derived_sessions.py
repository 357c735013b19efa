"""Derived cells of real sessions through the whole daemon: filled, repeatable, remade exactly where inputs changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import ledger
from ledger.columns import Column, Flag, Status
from m17ctl.client import Client
from m17d import outcomes, protocol
from tests.m17d.test_real_sessions import DATA, digest_of, session_digest

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

STOCKS, CHAINS = "2013-10-07", "2014-06-06"
NBBO = "[engines.nbbo]"
AGGRESSOR = Column.AGGRESSOR_REF


def configure(folder: Path, session: str, option_rows: str = "chain", workers: int = 2, nbbo: str = NBBO) -> None:
    """A config of the documented shape for one session."""
    source = f'source = "{DATA / "flatfiles"}"\nsessions = {json.dumps([session])}\n'
    text = f'state_dir = "ledger.state"\noption_rows = "{option_rows}"\n[runner]\nworkers = {workers}\n'
    text += f'[calendar]\nexchange = "XNYS"\nyear = {session[:4]}\n'
    text += f"[engines.trade_flatfile]\n{source}[engines.quote]\n{source}{nbbo}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m17.toml").write_text(text)


def fill(folder: Path) -> str:
    """Run until idle; what it said."""
    command = [sys.executable, "-m", "m17d", "run", "--config", "m17.toml", "--until-idle"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def served(folder: Path) -> Iterator[Client]:
    """A daemon over the state, and a client of it."""
    command = [sys.executable, "-m", "m17d", "run", "--config", "m17.toml"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        path, end = folder / "ledger.state" / "m17d.sock", time.monotonic() + 240
        while not path.exists():
            assert time.monotonic() < end, "the daemon did not start"
            time.sleep(0.05)
        with Client(path) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def until_whole(client: Client, session: str) -> None:
    """Wait until trades, quotes and aggressors are filled and fresh."""
    columns = [Column.TRADE_REF, Column.QUOTE_REF, AGGRESSOR]
    end = time.monotonic() + 240
    while True:
        counts = client.call(protocol.CoverageRequest(session=session)).columns
        if not any(counts[one].empty + counts[one].cleared + counts[one].stale for one in columns):
            return
        assert time.monotonic() < end, {one.value: counts[one] for one in columns}
        time.sleep(0.1)


def slots(folder: Path, session: str, column: Column = AGGRESSOR) -> dict[str, np.ndarray]:
    """The cells of a column by symbol."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        seq, universe = state.calendar.session_seq(session), state.universe(session)
        found = state.ledger_of(column).session(seq).slots(column, universe)
        return {state.symbols.name(int(one)): found[index] for index, one in enumerate(universe)}


@pytest.fixture(scope="module")
def stocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AIG, BAC and IBM on 2013-10-07, filled."""
    folder = tmp_path_factory.mktemp("stocks")
    configure(folder, STOCKS)
    fill(folder)
    return folder


@pytest.mark.parametrize("option_rows", ["chain", pytest.param("contract", marks=pytest.mark.slow)])
def test_every_aggressor_is_filled_and_the_digest_does_not_depend_on_the_workers(
    option_rows: str, tmp_path: Path
) -> None:
    """One row for every trade, no-rows cells where there was none, one digest with one worker and with two."""
    digests = set()
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        configure(folder, CHAINS, option_rows, workers)
        fill(folder)
        digests.add(session_digest(folder, CHAINS))
        for symbol, cells in slots(folder, CHAINS).items():
            assert (cells["status"] == Status.FILLED).all(), symbol
            assert cells["inputs"].all()
        with ledger.open(folder / "ledger.state", readonly=True) as state:
            names = ["ticker", "sip_timestamp", "price", "size"]
            trades = state.scan("trade_ref", sessions=CHAINS).select(names).collect()
            rows = state.scan("aggressor_ref", sessions=CHAINS).select(names).collect()
            assert rows.sort(names).equals(trades.sort(names))
    assert len(digests) == 1


@pytest.mark.slow
def test_chain_and_contract_rows_say_the_same_of_every_trade(tmp_path: Path) -> None:
    """How options map to symbols changes where rows are, not what they say."""
    frames = []
    for option_rows in ("chain", "contract"):
        configure(tmp_path / option_rows, CHAINS, option_rows)
        fill(tmp_path / option_rows)
        with ledger.open(tmp_path / option_rows / "ledger.state", readonly=True) as state:
            frame = state.scan("aggressor_ref", sessions=CHAINS).collect()
            said = [name for name in frame.columns if name not in ("symbol", "ordinal", "payload_id", "version")]
            frames.append(frame.select(said).sort("ticker", "sip_timestamp", "price", "size", "previous_price"))
    assert frames[0].equals(frames[1])


def test_the_quote_in_force_is_the_one_an_as_of_join_finds(stocks: Path) -> None:
    """Over minute borders and before the open, against Polars on the upstream files; sides follow from the touch."""
    path = f"{STOCKS[:4]}/{STOCKS[5:7]}/{STOCKS}.csv.gz"
    quotes = pl.read_csv(DATA / "flatfiles" / "us_stocks_sip/quotes_v1" / path, infer_schema_length=None)
    quotes = quotes.rename(str.lower).select(
        "ticker", "sip_timestamp", "sequence_number", pl.col("bid_price", "ask_price").cast(pl.Float64)
    )
    with ledger.open(stocks / "ledger.state", readonly=True) as state:
        rows = state.scan("aggressor_ref", sessions=STOCKS).collect()
        open_ns = state.calendar.times(STOCKS).open_ns
    assert rows.height == 135_798
    ours = rows.select(
        "ticker", "sip_timestamp", "price", "side", "method", "bid_price", "ask_price", "quote_timestamp"
    )
    ordered = quotes.sort("ticker", "sip_timestamp", "sequence_number").with_columns(
        pl.col("sip_timestamp").alias("then"), pl.col("bid_price").alias("bid"), pl.col("ask_price").alias("ask")
    )
    joined = (
        ours.with_row_index()
        .sort("sip_timestamp")
        .join_asof(
            ordered.select("ticker", "sip_timestamp", "then", "bid", "ask").sort("sip_timestamp", maintain_order=True),
            on="sip_timestamp",
            by="ticker",
        )
    )
    fresh = pl.col("sip_timestamp") - pl.col("then") <= 1_000_000_000
    expected = joined.with_columns(
        pl.when(fresh).then("then").alias("then"),
        pl.when(fresh).then("bid").alias("bid"),
        pl.when(fresh).then("ask").alias("ask"),
    )
    assert expected["quote_timestamp"].equals(expected["then"], check_names=False)
    assert expected["bid_price"].equals(expected["bid"], check_names=False)
    assert expected["ask_price"].equals(expected["ask"], check_names=False)
    actionable = expected.filter(pl.col("ask") > pl.col("bid"))
    buys = actionable.filter(pl.col("price") >= pl.col("ask") - 1e-4)
    assert set(buys["side"]) == {"buyer"}
    assert set(buys["method"]) == {"nbbo_touch"}
    first_minute = expected.filter(pl.col("sip_timestamp") < open_ns + 1_000_000_000)
    assert (first_minute["then"] < open_ns).any(), "no trade was matched with a quote from before the open"


def test_a_second_run_changes_not_one_byte(stocks: Path) -> None:
    """Nothing recomputes when nothing changed."""
    patterns = ["trade/*.rows", "enrichment/*.rows", "maps/*", "artifacts/**/*", "sources", "symbol-map.bin"]
    paths = [one for pattern in patterns for one in sorted((stocks / "ledger.state").glob(pattern)) if one.is_file()]
    before = {path: digest_of(path) for path in paths}
    assert "cells set" not in fill(stocks)
    again = [one for pattern in patterns for one in sorted((stocks / "ledger.state").glob(pattern)) if one.is_file()]
    assert {path: digest_of(path) for path in again} == before


@pytest.mark.parametrize(("column", "touched"), [(Column.TRADE_REF, [30]), (Column.QUOTE_REF, [30, 31])])
def test_a_cleared_minute_with_cascade_remakes_exactly_what_was_made_from_it(
    column: Column, touched: list[int], stocks: Path
) -> None:
    """Aggressor of T for a trade minute, of T and T+1 for a quote minute; with equal content afterwards."""
    before = slots(stocks, STOCKS)
    where = protocol.Range(session=STOCKS, from_ts="10:00", to_ts="10:01", symbols="AIG")
    with served(stocks) as client:
        until_whole(client, STOCKS)
        warnings = client.call(protocol.StatusRequest()).warnings
        assert [one for one in warnings if "share their exact time with a quote" in one], warnings
        request = protocol.ClearRequest(columns=[column], range=where, cause="test", cascade=True)
        reply = client.call(request)
        assert isinstance(reply, outcomes.OperationReply)
        assert reply.cleared == {column: 1, AGGRESSOR: len(touched)}
        assert reply.refillable.derived == len(touched)
        until_whole(client, STOCKS)
    after = slots(stocks, STOCKS)
    for symbol, cells in after.items():
        moved = np.flatnonzero(cells["version"] != before[symbol]["version"])
        assert moved.tolist() == (touched if symbol == "AIG" else [])
        for name in ("checksum", "inputs", "status", "flags"):
            assert (cells[name] == before[symbol][name]).all()


def test_a_refill_with_equal_content_makes_nothing_stale(stocks: Path) -> None:
    """Without cascade the aggressors stay as they are, and nothing is planned."""
    before = slots(stocks, STOCKS)
    where = protocol.Range(session=STOCKS, from_ts="11:00", to_ts="11:05", symbols="BAC")
    with served(stocks) as client:
        until_whole(client, STOCKS)
        reply = client.call(protocol.ClearRequest(columns=[Column.TRADE_REF], range=where, cause="test"))
        assert reply.dependents == {AGGRESSOR: 5}
        until_whole(client, STOCKS)
        time.sleep(1)
        facts = {one.name: one.facts for one in client.call(protocol.EnginesListRequest()).engines}
    assert facts["nbbo"]["tasks"] == 0
    assert facts["trade_flatfile"]["tasks"] == 1
    after = slots(stocks, STOCKS)
    assert all((after[symbol] == before[symbol]).all() for symbol in before)


def test_another_recipe_makes_the_newest_sessions_again_once(tmp_path: Path) -> None:
    """A new policy changes prints and sides; unasked only as far back as configured, else by refresh --stale recipe."""
    configure(tmp_path, CHAINS)
    fill(tmp_path)
    before = slots(tmp_path, CHAINS)
    configure(tmp_path, CHAINS, nbbo='[engines.nbbo]\npolicy = "touch-only"\ntick_rule = false')
    text = (tmp_path / "m17.toml").read_text()
    (tmp_path / "m17.toml").write_text(text.replace("[runner]", "[runner]\nauto_recompute_sessions = 0"))
    with served(tmp_path) as client:
        end = time.monotonic() + 240
        while (counts := client.call(protocol.CoverageRequest(session=CHAINS)).columns[AGGRESSOR]).stale != 1560:
            assert time.monotonic() < end, counts
            time.sleep(0.1)
        assert counts.filled == 1560
        why = client.call(protocol.WhyRequest(columns=[AGGRESSOR], range=protocol.Range(session=CHAINS)))
        assert [(group.cause, group.cells) for group in why.groups] == [("recipe", 1560)]
        where = protocol.Range(session=CHAINS)
        inputs = protocol.RefreshRequest(columns=[AGGRESSOR], range=where, cause="test", stale="inputs", dry_run=True)
        assert client.call(inputs).cleared == {AGGRESSOR: 0}
        recipe = protocol.RefreshRequest(columns=[AGGRESSOR], range=where, cause="test", stale="recipe")
        assert client.call(recipe).cleared == {AGGRESSOR: 1560}
        until_whole(client, CHAINS)
    after = slots(tmp_path, CHAINS)
    for symbol, cells in after.items():
        assert (cells["inputs"] != before[symbol]["inputs"]).all()
        assert (cells["flags"] & Flag.WANTED == 0).all()
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        methods = set(state.scan("aggressor_ref", sessions=CHAINS).select("method").collect()["method"])
    assert methods == {"nbbo_touch", "unknown"}
