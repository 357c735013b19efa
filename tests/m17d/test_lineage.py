"""Lineage of real cells: an aggregate down to the rows of the upstream files, before and after its inputs change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import polars as pl
import pytest
from pyarrow import parquet

import ledger
from engines.aggregation.compute import footer_entries
from ledger.columns import Column
from ledger.errors import ChecksumMismatch, UnknownPayload
from ledger.input_tables import INPUT, read_table
from m17d import demo_trace, protocol, replies, tracing
from m17d.reading import Reading
from tests.m17d.test_aggregates_recomputed import ENGINES
from tests.m17d.test_derived_sessions import configure, fill, served
from tests.m17d.test_greeks_sessions import NEWS, until_filled
from tests.m17d.test_real_sessions import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

AT, FIRST, LAST = "13:05", 215, 245
"""A 30-minute window of NWSA that holds option trades."""


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NWSA with all its contracts, filled by all engines."""
    folder = tmp_path_factory.mktemp("news")
    configure(folder, NEWS, "contract", nbbo=ENGINES)
    fill(folder)
    return folder


def all_cells(cell: replies.LineageCell) -> Iterator[replies.LineageCell]:
    """The tree in one line."""
    yield cell
    for one in cell.inputs:
        yield from all_cells(one)


def lineage(client: object, symbol: str = "NWSA", column: Column = Column.AGGS_30M) -> replies.LineageReply:
    """What a cell was made from."""
    request = protocol.LineageRequest(symbol=symbol, at=AT, column=column, session=NEWS)
    reply = client.call(request)  # type: ignore[attr-defined]
    assert isinstance(reply, replies.LineageReply)
    return reply


def upstream(dataset: str) -> pl.DataFrame:
    """An upstream file, with the number of each row."""
    path = DATA / "flatfiles" / dataset / NEWS[:4] / NEWS[5:7] / f"{NEWS}.csv.gz"
    return pl.read_csv(path, infer_schema_length=None).rename(str.lower)


def test_an_aggregate_leads_to_exactly_the_rows_of_the_files_that_it_counts(news: Path) -> None:
    """Every input cell with rows once a role; the raw ones name file, ticker and times, which select the counted rows."""
    with served(news) as client:
        reply = lineage(client)
    assert reply.complete and not reply.left_out
    assert reply.cell.recipe.startswith("aggregation: kernel 3, prints all")
    cells = list(all_cells(reply.cell))
    trades = {(one.symbol, one.minute_idx): one for one in cells if one.column is Column.TRADE_REF}
    found = {"us_stocks_sip/trades_v1": 0, "us_options_opra/trades_v1": 0}
    for (symbol, _), one in trades.items():
        assert one.source is not None
        rows = upstream(one.source.dataset).filter(
            (pl.col("ticker") == symbol) & pl.col("sip_timestamp").is_between(one.first_ts, one.last_ts)
        )
        assert rows.height == one.record_count
        found[one.source.dataset] += rows.height
    open_idx = reply.cell.minute_idx - FIRST
    outside = [one for one in trades.values() if not FIRST <= one.minute_idx - open_idx < LAST]
    assert all((one.symbol, one.minute_idx - open_idx) == ("NWSA", FIRST - 1) for one in outside)
    with ledger.open(news / "ledger.state", readonly=True) as state:
        row = state.scan("aggs_30m", sessions=NEWS).filter(pl.col("minute") == FIRST).collect().row(0, named=True)
    assert found["us_options_opra/trades_v1"] == row["puts"] + row["calls"] > 0
    assert found["us_stocks_sip/trades_v1"] - sum(one.record_count for one in outside) == row["underlying_trades"]
    rates = {one.curve_date for one in cells if one.column is Column.RF_RATE_REF}
    assert rates == {"2013-06-27"}
    assert {one.recipe.partition(":")[0] for one in cells if one.recipe} == {"aggregation", "nbbo", "greeks"}
    with served(news) as client:
        silent = next(one.symbol for one in cells if one.symbol.startswith("O:"))
        request = protocol.LineageRequest(symbol=silent, at="09:30", column=Column.GREEKS_REF, session=NEWS)
        empty = client.call(request).cell
    assert not empty.inputs and empty.recipe.startswith("greeks: kernel 1")


def test_equal_content_is_current_and_the_payload_that_was_used_stays_named(news: Path) -> None:
    """A trade minute cleared and filled again is another payload of equal content: the aggregate was made from it still."""
    with served(news) as client:
        before = lineage(client)
        where = protocol.Range(session=NEWS, from_ts=AT, to_ts="13:06", symbols="NWSA")
        client.call(protocol.ClearRequest(columns=[Column.TRADE_REF], range=where, cause="test"))
        while not lineage(client, column=Column.TRADE_REF).cell.payload_id:
            until_filled(client, NEWS)
        after = lineage(client)
    assert after.complete
    ids = [
        [(one.column, one.symbol, one.minute_idx, one.payload_id) for one in all_cells(reply.cell)]
        for reply in (before, after)
    ]
    assert ids[0] == ids[1]


def test_too_many_cells_are_counted_not_shown(news: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is bounded, and says how much it leaves out."""
    monkeypatch.setattr(tracing, "CELLS_MAX", 40)
    with ledger.open(news / "ledger.state", readonly=True) as state:
        reading = Reading.__new__(Reading)
        reading.state, reading.runner = state, SimpleNamespace(deriving={}, engines={})  # type: ignore[assignment]
        request = protocol.LineageRequest(symbol="NWSA", at=AT, column=Column.AGGS_30M, session=NEWS)
        reply = tracing.Tracing(state, reading).lineage(request)
    assert len(list(all_cells(reply.cell))) < 2 * 40 and reply.left_out > 30


def test_the_table_of_inputs_is_read_without_a_parquet_library(news: Path, tmp_path: Path) -> None:
    """It equals what PyArrow finds; a file that is missing, cut or of another kind is an error of its own."""
    # How many there are depends on how much was filled when the engine looked.
    paths = sorted((news / "ledger.state/artifacts/aggregate").rglob("*.parquet"))
    read = 0
    for path in paths:
        table = read_table(path)
        metadata = parquet.read_metadata(path).metadata
        assert {
            key: metadata[key.encode()].decode() for key in footer_entries(table.rows, table.symbols)
        } == footer_entries(table.rows, table.symbols)
        assert table.rows.dtype == INPUT
        read += len(table.rows)
    assert read > 900
    with pytest.raises(UnknownPayload, match="is missing"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "cut.parquet").write_bytes(paths[0].read_bytes()[:-3])
    with pytest.raises(ChecksumMismatch, match="no whole Parquet file"):
        read_table(tmp_path / "cut.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(UnknownPayload, match="names no input cells"):
        read_table(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("column", "at"), [(Column.AGGS_30M, "13:05"), (Column.AGGS_1M, "11:00"), (Column.AGGS_4H, "09:30")]
)
def test_one_statement_over_the_rows_that_lineage_names_recomputes_the_aggregate(
    news: Path, column: Column, at: str
) -> None:
    """114 of the 150 metrics by DuckDB, from nothing but the answer and the Parquet files; nulls where there are nulls."""
    with served(news) as client:
        cell = client.call(protocol.LineageRequest(symbol="NWSA", at=at, column=column, session=NEWS)).cell
    answer = msgspec.to_builtins(cell)
    recomputed = demo_trace.recompute(answer, news / "ledger.state/artifacts")
    minute = int(at[:2]) * 60 + int(at[3:]) - 570
    with ledger.open(news / "ledger.state", readonly=True) as state:
        rows = state.scan(column.value, sessions=NEWS).filter(pl.col("minute") == minute).collect()
    apart = demo_trace.differences(recomputed, rows.row(0, named=True))
    assert len(apart) == 114
    assert max(apart.values()) < 1e-9, {name: value for name, value in apart.items() if value >= 1e-9}
    assert rows["calls"][0] + rows["puts"][0] > 0 or column is Column.AGGS_1M


def test_every_column_of_an_artifact_of_aggregates_says_what_it_means_and_in_which_unit(news: Path) -> None:
    """In the field metadata; the words that are most often misread are there."""
    schema = parquet.read_schema(next((news / "ledger.state/artifacts/aggregate").rglob("*.parquet")))
    said = {
        field.name: {key.decode(): value.decode() for key, value in (field.metadata or {}).items()} for field in schema
    }
    assert all(one["meaning"] and one["unit"] for one in said.values())
    assert "not excess" in said["puts_dadvv_kurtosis"]["meaning"]
    assert "Box-Cox" in said["calls_gadvv_bc"]["meaning"]
    greeks = parquet.read_schema(next((news / "ledger.state/artifacts/greeks").rglob("*.parquet")))
    units = {name: greeks.field(name).metadata[b"unit"].decode() for name in ("theta", "vega")}
    assert units == {"theta": "USD per year", "vega": "USD per 1.00 of volatility"}
