"""Greeks of real sessions through the whole daemon: filled, usable, repeatable, remade where inputs changed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import ledger
from engines.greeks.flags import GreeksFlag
from ledger.columns import Column, PayloadKind, Status
from m17ctl.client import Client
from m17d import outcomes, protocol
from tests.m17d.test_derived_sessions import CHAINS, configure, fill, served, slots
from tests.m17d.test_real_sessions import DATA, digest_of, session_digest

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

GREEKS = Column.GREEKS_REF
ENGINES = f'[engines.treasury]\nsource = "{DATA / "treasury" / "treasury-yields.json"}"\n[engines.greeks]'
NEWS, NO_QUOTES, INDEX = "2013-06-28", "2015-12-23", "2021-01-06"


def rows_of(folder: Path, session: str) -> pl.DataFrame:
    """The rows of all Greeks cells with the option's root."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        frame = state.scan("greeks_ref", sessions=session).collect()
    return frame.with_columns(pl.col("ticker").cast(pl.String).str.extract(r"^O:([A-Z]+\d?)\d{6}").alias("root"))


def usable(frame: pl.DataFrame) -> dict[str, tuple[int, int]]:
    """Usable rows and all rows by root."""
    sums = frame.group_by("root").agg(pl.col("usable").sum(), pl.len().alias("rows"))
    return {root: (used, rows) for root, used, rows in sums.iter_rows()}


def until_filled(client: Client, session: str) -> None:
    """Wait until the Greeks of every option are filled and fresh."""
    end = time.monotonic() + 240
    while True:
        counts = client.call(protocol.CoverageRequest(session=session)).columns
        if not any(counts[one].empty + counts[one].cleared + counts[one].stale for one in (Column.QUOTE_REF, GREEKS)):
            return
        assert time.monotonic() < end, counts
        time.sleep(0.1)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AAPL and TWX with their chains on 2014-06-06, filled by two workers."""
    folder = tmp_path_factory.mktemp("chains")
    configure(folder, CHAINS, nbbo=ENGINES)
    fill(folder)
    return folder


def test_every_option_trade_has_a_row_and_nearly_all_are_usable(chains: Path) -> None:
    """All of TWX, all but the deep and expired of AAPL; values are there exactly where rows are usable."""
    frame = rows_of(chains, CHAINS)
    assert usable(frame) == {"AAPL": (21_482, 22_055), "TWX": (71, 71)}
    for name in ("iv", "delta", "gamma", "vega", "theta", "rho"):
        assert (frame[name].is_not_null() == frame["usable"]).all(), name
    assert frame["spot"].is_not_null().all()
    assert frame.filter(pl.col("usable"))["iv"].is_between(0.01, 10).all()
    twx = frame.filter(pl.col("root") == "TWX")
    assert twx["iv"].median() == pytest.approx(0.19, abs=0.02)
    with ledger.open(chains / "ledger.state", readonly=True) as state:
        keys = ["ticker", "sip_timestamp", "price", "size"]
        trades = state.scan("trade_ref", symbols="O:*", sessions=CHAINS).select(keys).collect()
    assert trades.sort(keys).equals(frame.select(keys).cast(trades.schema).sort(keys))


def test_the_spot_is_the_mid_that_an_as_of_join_finds(chains: Path) -> None:
    """Over minute borders and before the open, against Polars on the upstream file of the underlyings' quotes."""
    path = DATA / "flatfiles/us_stocks_sip/quotes_v1" / CHAINS[:4] / CHAINS[5:7] / f"{CHAINS}.csv.gz"
    quotes = pl.read_csv(path, infer_schema_length=None).rename(str.lower)
    quotes = quotes.select(
        pl.col("ticker").alias("root"),
        "sip_timestamp",
        "sequence_number",
        pl.col("sip_timestamp").alias("then"),
        pl.col("bid_price", "ask_price").cast(pl.Float64),
    ).sort("sip_timestamp", "sequence_number")
    ours = rows_of(chains, CHAINS).sort("sip_timestamp")
    joined = ours.join_asof(quotes, on="sip_timestamp", by="root", check_sortedness=False)
    assert (joined["spot_ts"] == joined["then"]).all()
    assert (joined["spot_bid"] == joined["bid_price"]).all()
    assert (joined["spot"] == joined["bid_price"] * 0.5 + joined["ask_price"] * 0.5).all()


def test_records_count_their_rows_and_name_their_inputs(chains: Path) -> None:
    """Counts equal those of the rows; payload ids are those that the input cells hold, the underlying's for quotes."""
    counted = rows_of(chains, CHAINS).group_by("payload_id").agg(pl.len().alias("rows"), pl.col("usable").sum())
    with ledger.open(chains / "ledger.state", readonly=True) as state:
        seq, option, stock = (
            state.calendar.session_seq(CHAINS), state.symbols.resolve("O:TWX"), state.symbols.resolve("TWX"),
        )  # fmt: skip
        cells = state.enrichment.session(seq).slots(GREEKS, np.array([option]))[0]
        minute = int(np.flatnonzero(cells["flags"] == 0)[5])
        record = state.maps[PayloadKind.GREEKS].get(int(cells["payload_id"][minute]))
        rows = state.trade.session(seq)
        quotes = rows.slots(Column.QUOTE_REF, np.array([stock]))[0]["payload_id"]
        assert record["trade_payload_id"] == rows.slots(Column.TRADE_REF, np.array([option]))[0]["payload_id"][minute]
        assert record["rf_rate_payload_id"] == rows.slots(Column.RF_RATE_REF, np.array([option]))[0]["payload_id"][0]
        assert (record["quote_payload_id"], record["previous_quote_payload_id"]) == (
            quotes[minute],
            quotes[minute - 1],
        )
        records = state.maps[PayloadKind.GREEKS].get_many(counted["payload_id"].to_numpy())
    assert records["usable_rows"].tolist() == counted["usable"].to_list()
    assert records["observation_count"].tolist() == counted["rows"].to_list()


def test_a_second_run_changes_not_one_byte_and_one_worker_gives_the_same_digest(chains: Path, tmp_path: Path) -> None:
    """Nothing recomputes when nothing changed, and the number of workers changes no content."""
    patterns = ["trade/*.rows", "enrichment/*.rows", "maps/*", "artifacts/**/*", "sources", "symbol-map.bin"]

    def files() -> dict[Path, str]:
        found = [one for pattern in patterns for one in sorted((chains / "ledger.state").glob(pattern))]
        return {path: digest_of(path) for path in found if path.is_file()}

    before, digest = files(), session_digest(chains, CHAINS)
    assert "INFO greeks: " not in fill(chains)
    assert files() == before
    configure(tmp_path, CHAINS, workers=1, nbbo=ENGINES)
    fill(tmp_path)
    assert session_digest(tmp_path, CHAINS) == digest


def test_a_cleared_quote_minute_of_the_underlying_remakes_two_cells_of_its_options(chains: Path) -> None:
    """Greeks of T and T+1 of the underlying's options are dependents, are made again, and are what they were."""
    before = slots(chains, CHAINS, GREEKS)
    where = protocol.Range(session=CHAINS, from_ts="10:00", to_ts="10:01", symbols="AAPL")
    with served(chains) as client:
        request = protocol.ClearRequest(columns=[Column.QUOTE_REF], range=where, cause="test", cascade=True)
        reply = client.call(request)
        assert isinstance(reply, outcomes.OperationReply)
        assert reply.cleared == {Column.QUOTE_REF: 1, GREEKS: 2}
        until_filled(client, CHAINS)
    for symbol, cells in slots(chains, CHAINS, GREEKS).items():
        moved = np.flatnonzero(cells["version"] != before[symbol]["version"])
        assert moved.tolist() == ([30, 31] if symbol == "O:AAPL" else [])
        for name in ("checksum", "inputs", "status", "flags"):
            assert (cells[name] == before[symbol][name]).all()


@pytest.mark.slow
def test_contracts_have_the_greeks_of_their_trades(tmp_path: Path) -> None:
    """Each contract a symbol: all 48 trades of NWSA are usable, their options expire on a Saturday or years ahead."""
    configure(tmp_path, NEWS, "contract", nbbo=ENGINES)
    fill(tmp_path)
    assert usable(rows_of(tmp_path, NEWS)) == {"NWSA": (48, 48)}
    for symbol, cells in slots(tmp_path, NEWS, GREEKS).items():
        assert (cells["status"] == (Status.FILLED if symbol.startswith("O:") else Status.EMPTY)).all(), symbol


def test_missing_quotes_of_the_underlying_block_until_they_are_accepted_as_absent(tmp_path: Path) -> None:
    """GOOG has no quotes file: no cell with trades is made; then all are filled, and every row is flagged."""
    configure(tmp_path, NO_QUOTES, nbbo=ENGINES)
    assert "quotes_v1" in fill(tmp_path)
    with served(tmp_path) as client:
        counts = client.call(protocol.CoverageRequest(session=NO_QUOTES)).columns[GREEKS]
        assert (counts.filled, counts.empty) == (0, 390)
        why = client.call(protocol.WhyRequest(columns=[GREEKS], range=protocol.Range(session=NO_QUOTES)))
        assert [(group.cause, group.cells) for group in why.groups][1:] == [("waiting", 390)], "of GOOG: not applicable"
        where = protocol.Range(session=NO_QUOTES, symbols="GOOG")
        client.call(protocol.AcceptRequest(range=where, columns=[Column.QUOTE_REF], cause="never published"))
        until_filled(client, NO_QUOTES)
        why = client.call(protocol.WhyRequest(columns=[GREEKS], range=protocol.Range(session=NO_QUOTES)))
        useless = next(group for group in why.groups if group.cause == "unusable")
        assert useless.rows == {"rows": 581, "usable": 0, "no_underlying": 581}
        assert useless.detail.endswith("quote_ref of GOOG has no rows there")
        assert useless.remedy == f"m17ctl why quote_ref --session {NO_QUOTES} --symbols 'GOOG'"
    frame = rows_of(tmp_path, NO_QUOTES)
    assert frame.height > 0
    assert set(frame["flags"]) == {int(GreeksFlag.NO_UNDERLYING)}
    assert not frame["usable"].any()


def test_options_on_an_index_are_filled_and_flagged_and_why_names_the_index(tmp_path: Path) -> None:
    """SPXW: no dataset covers SPX, so nothing is waited for and no row is usable, nor any of the aggregates on SPX."""
    configure(tmp_path, INDEX, nbbo=f"[engines.nbbo]\n{ENGINES}\n[engines.aggregation]")
    fill(tmp_path)
    with served(tmp_path) as client:
        columns = [GREEKS, Column.AGGS_5M, Column.AGGRESSOR_REF]
        why = client.call(protocol.WhyRequest(columns=columns, range=protocol.Range(session=INDEX)))
        said = {(group.columns[0], group.cause): group for group in why.groups}
        quality = client.call(protocol.CoverageRequest(session=INDEX, quality=True)).quality
    greeks, windows = said[GREEKS, "unusable"], said[Column.AGGS_5M, "unusable"]
    assert (greeks.cells, greeks.rows) == (390, {"rows": 1802, "usable": 0, "no_underlying": 1802})
    assert greeks.detail.endswith("quote_ref of SPX is in no dataset") and not greeks.remedy
    assert windows.detail.startswith("left_out_no_spot") and windows.detail.endswith(
        "quote_ref of SPX is in no dataset"
    )
    assert windows.rows == {"rows": 8940, "usable": 0, "left_out_no_spot": 8940}
    sides = said[Column.AGGRESSOR_REF, "partly_usable"].rows
    assert (sides["rows"] - sides["usable"], sides["locked"]) == (sides["unknown_side"], 13)
    assert quality[GREEKS] == {"rows": 1802, "usable_rows": 0, "no_underlying": 1802}
    assert quality[Column.AGGRESSOR_REF]["usable_rows"] == 1760
    frame = rows_of(tmp_path, INDEX)
    assert usable(frame) == {"SPXW": (0, 1802)}
    assert set(frame["flags"]) == {int(GreeksFlag.NO_UNDERLYING)}
    cells = slots(tmp_path, INDEX, GREEKS)
    assert (cells["O:SPXW"]["status"] == Status.FILLED).all()
    assert (cells["SPX"]["status"] == Status.EMPTY).all()
