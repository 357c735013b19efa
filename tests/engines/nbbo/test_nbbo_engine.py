"""The aggressor task on small artifacts: windows and leads, chains, prints, division of work, damage, and its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from pyarrow import parquet

from engines.contract import Batch, Task, TaskFailed, Workplace
from engines.derived_rows import RANGE, InputRows
from engines.nbbo.compute import MEANINGS, run
from engines.nbbo.engine import CELL, NbboArguments, NbboDerivation, build
from engines.nbbo.policy import NbboPolicy
from engines.nbbo.print_classes import PrintTable
from ledger.columns import WINDOW_NS, PayloadKind
from ledger.content import no_rows_hash
from ledger.frames import ArtifactWriter
from ledger.records import RECORD_NO_ROWS

SESSION = "2013-10-07"
OPEN_NS = 1_381_152_600_000_000_000
SECOND = 1_000_000_000


class Market:
    """Trades and quotes of symbols by minute, as artifacts and task arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trades: list[dict[str, Any]] = []
        self.quotes: list[dict[str, Any]] = []

    def trade(self, ticker: str, minute: int, second: float, price: float, **fields: Any) -> None:
        """One trade, ``second`` seconds into the minute."""
        at = OPEN_NS + minute * WINDOW_NS + round(second * SECOND)
        symbol = fields.pop("symbol", ticker)
        rest = {
            "conditions": "",
            "correction": 0,
            "previous_price": None,
            "size": 100.0,
            "sequence_number": 1,
            **fields,
        }
        self.trades.append(
            {"symbol": symbol, "minute": minute, "ticker": ticker, "sip_timestamp": at, "price": price, **rest}
        )

    def quote(self, ticker: str, minute: int, second: float, bid: float, ask: float, symbol: str | None = None) -> None:
        """One quote; minute -1 is the minute before the open."""
        at = OPEN_NS + minute * WINDOW_NS + round(second * SECOND)
        row = {"symbol": symbol or ticker, "minute": minute, "ticker": ticker, "sip_timestamp": at}
        self.quotes.append({**row, "bid_price": bid, "ask_price": ask, "bid_size": 1.0, "ask_size": 2.0})

    def _write(
        self, name: str, rows: list[dict[str, Any]], symbols: tuple[str, ...]
    ) -> tuple[np.ndarray, pl.DataFrame]:
        frame = pl.DataFrame(rows, infer_schema_length=None).sort(
            "symbol", "minute", "ticker", "sip_timestamp", maintain_order=True
        )
        if name == "trade":
            frame = frame.with_columns(pl.col("previous_price").cast(pl.Float64))
        writer = ArtifactWriter(self.folder / f"{name}.parquet")
        writer.write(frame.drop("symbol", "minute"))
        writer.finish()
        groups = (
            frame.with_row_index()
            .group_by("symbol", "minute", maintain_order=True)
            .agg(pl.col("index").min(), pl.len())
        )
        ranges = np.zeros(groups.height, dtype=RANGE)
        ranges["symbol"] = [symbols.index(one) for one in groups["symbol"]]
        ranges["minute"], ranges["start"], ranges["count"] = groups["minute"], groups["index"], groups["len"]
        return ranges, frame

    def task(self, policy: NbboPolicy | None = None, only: list[int] | None = None) -> Task:
        """The task of all trade cells, or of some of them."""
        symbols = tuple(sorted({row["symbol"] for row in self.trades}))
        trades, _ = self._write("trade", self.trades, symbols)
        quotes = np.zeros(0, dtype=RANGE)
        if self.quotes:
            quotes, _ = self._write("quote", self.quotes, symbols)
        if only is not None:
            trades = trades[only]
            near = [(cell["symbol"], cell["minute"] - back) for cell in trades for back in (0, 1)]
            quotes = quotes[[(one["symbol"], one["minute"]) in near for one in quotes]]
        cells = np.zeros(len(trades), dtype=CELL)
        cells["symbol"], cells["minute"], cells["inputs"] = trades["symbol"], trades["minute"], 7
        cells["trade_id"], cells["quote_id"] = 11, 12
        arguments = NbboArguments(
            session=SESSION,
            open_ns=OPEN_NS,
            symbols=symbols,
            of_options=np.array([one.startswith("O:") for one in symbols]),
            cells=cells,
            trades=InputRows(("trade.parquet",), trades),
            quotes=InputRows(("quote.parquet",) if len(quotes) else (), quotes),
            policy=policy or NbboPolicy(),
            prints=PrintTable.load(),
            recipe=99,
        )
        return Task("nbbo", "k", SESSION, NbboDerivation.compute, arguments)

    def compute(self, **how: Any) -> tuple[pl.DataFrame, np.ndarray]:
        """Rows and staged cells of a task."""
        batch: Batch = run(self.task(**how), Workplace(self.folder, self.folder, "b", lambda _done, _total: None))
        (block,) = batch.blocks
        cells = np.load(block.path)
        if not batch.artifacts:
            return pl.DataFrame(), cells
        return pl.read_parquet(self.folder / batch.artifacts[0].uri), cells


@pytest.fixture
def market(tmp_path: Path) -> Market:
    """An empty market."""
    return Market(tmp_path)


def test_quotes_of_the_minute_before_and_of_before_the_open_are_used(market: Market) -> None:
    """Half a second over a border is fresh, more than the limit is stale, a minute older is missing."""
    market.quote("A", -1, 59.6, 10.0, 10.2)
    market.trade("A", 0, 0.1, 10.2)
    market.quote("A", 4, 59.9, 11.0, 11.2)
    market.trade("A", 5, 0.5, 11.0)
    market.trade("A", 5, 30.0, 11.1)
    market.trade("A", 8, 1.0, 11.1)
    rows, cells = market.compute()
    assert rows["side"].to_list() == ["buyer", "seller", "unknown", "unknown"]
    assert rows["quote_age_ns"].to_list() == [SECOND // 2, 6 * SECOND // 10, None, None]
    assert rows["quote_stale"].to_list() == [False, False, True, False]
    record = cells["record"]
    assert (record["stale"].tolist(), record["missing"].tolist()) == ([0, 1, 0], [0, 0, 1])
    assert record["usable_rows"].tolist() == [1, 1, 0]
    assert (record["row_start"].tolist(), record["row_count"].tolist()) == ([0, 1, 3], [1, 2, 1])
    assert set(record["batch_id"].tolist()) == {99}
    assert set(record["trade_payload_id"].tolist()) == {11}


def test_contracts_of_a_chain_see_only_their_own_quotes_and_keep_the_order_of_their_trades(market: Market) -> None:
    """Rows stay by minute, then contract, although the kernel takes them by contract, then time."""
    calls, puts = "O:A131019C00010000", "O:A131019P00010000"
    for minute in (1, 2):
        market.quote(calls, minute, 0.0, 1.0, 1.2, "O:A")
        market.quote(puts, minute, 0.0, 2.0, 2.2, "O:A")
        market.quote("O:A131019P00099000", minute, 0.0, 9.0, 9.2, "O:A")
        market.trade(puts, minute, 0.5, 2.0, symbol="O:A")
        market.trade(calls, minute, 0.6, 1.2, symbol="O:A")
    rows, cells = market.compute()
    assert rows["ticker"].to_list() == [calls, puts, calls, puts]
    assert rows["side"].to_list() == ["buyer", "seller", "buyer", "seller"]
    assert rows["ordinal"].to_list() == [0, 1, 0, 1]
    assert cells["minute"].tolist() == [1, 2]


def test_content_does_not_depend_on_how_the_work_is_divided(market: Market) -> None:
    """Cells made together and alone have equal hashes, and a quote of no input changes none."""
    for minute in range(6):
        market.quote("A", minute, 3.0 + minute, 10.0 + minute / 100, 10.1 + minute / 100)
        market.trade("A", minute, 3.5 + minute, 10.05, previous_price=10.0)
        market.trade("B", minute, 1.0, 5.0, previous_price=4.0)
    _, together = market.compute()
    for index in range(len(together)):
        _, alone = market.compute(only=[index])
        assert alone["record"]["content_hash"][0] == together["record"]["content_hash"][index]
    before = together["record"]["content_hash"].copy()
    market.quote("A", 3, 50.0, 1.0, 2.0)
    _, after = market.compute()
    assert (after["record"]["content_hash"] == before).all()


def test_eligible_prints_leave_cancelled_ones_out_and_take_prices_from_eligible_ones(market: Market) -> None:
    """A correction code takes a print away; an averaged price stays, but sets no price for the tick rule."""
    market.trade("A", 1, 1.0, 10.0, previous_price=9.0)
    market.trade("A", 1, 2.0, 20.0, previous_price=10.0, correction=8)
    market.trade("A", 1, 3.0, 8.0, previous_price=20.0, conditions="2")
    market.trade("A", 1, 4.0, 9.0, previous_price=8.0)
    market.trade("A", 2, 1.0, 9.5, previous_price=9.0, correction=8)
    every, cells = market.compute()
    assert every["print_class"].to_list() == ["regular", "cancelled", "average_or_derived", "regular", "cancelled"]
    assert every["side"].to_list() == ["buyer", "buyer", "seller", "buyer", "buyer"]
    rows, cells = market.compute(policy=NbboPolicy(prints="eligible"))
    assert rows["price"].to_list() == [10.0, 8.0, 9.0]
    assert rows["ordinal"].to_list() == [0, 2, 3]
    assert rows["previous_price"].to_list() == [9.0, 10.0, 10.0]
    assert rows["side"].to_list() == ["buyer", "seller", "seller"]
    assert cells["flags"].tolist() == [0, 1]
    assert cells["record"]["record_flags"].tolist() == [0, RECORD_NO_ROWS]
    assert int(cells["record"]["content_hash"][1]) == no_rows_hash(PayloadKind.AGGRESSOR)


def test_lee_ready_looks_back_over_equal_prices_within_the_minute(market: Market) -> None:
    """Zero ticks have the side of the last tick of their own contract; a new minute begins with its stored price."""
    prices = [10.0, 10.1, 10.1, 10.1, 10.0, 10.0]
    for at, (price, previous) in enumerate(zip(prices, [None, *prices[:-1]], strict=True)):
        market.trade("O:A140621C00010000", 3, at + 0.5, price, symbol="O:A", previous_price=previous)
        market.trade(
            "O:A140621P00010000", 3, at + 0.5, 20.0 - price, symbol="O:A", previous_price=previous and 20.0 - previous
        )
    market.trade("O:A140621C00010000", 4, 1.0, 10.0, symbol="O:A", previous_price=10.0)
    market.trade("O:A140621C00010000", 4, 2.0, 10.2, symbol="O:A", previous_price=10.0)
    rows, _ = market.compute(policy=NbboPolicy(policy="lee-ready"))
    calls = rows.filter(pl.col("ticker").str.contains("C0"))
    puts = rows.filter(pl.col("ticker").str.contains("P0"))
    assert calls["side"].to_list() == ["unknown", *["buyer"] * 3, *["seller"] * 2, "unknown", "buyer"]
    assert puts["side"].to_list() == ["unknown", *["seller"] * 3, *["buyer"] * 2]
    assert calls["previous_price"].to_list() == [None, *prices[:-1], 10.0, 10.0], "the row keeps the price before it"
    alone, _ = market.compute(policy=NbboPolicy(policy="lee-ready"), only=[1])
    assert alone["side"].to_list() == ["unknown", "buyer"]
    plain, _ = market.compute(policy=NbboPolicy())
    assert plain.filter(pl.col("ticker").str.contains("C0"))["side"].to_list()[:6] == [
        "unknown", "buyer", "unknown", "unknown", "seller", "unknown",
    ]  # fmt: skip


def test_lee_ready_looks_back_over_eligible_prints_only(market: Market) -> None:
    """A print that sets no price is neither a tick nor a reason to forget one."""
    late = {"conditions": "32"}  # sold out of sequence
    for second, price, fields in (
        (0.5, 10.0, {}),
        (1.0, 10.1, {}),
        (1.5, 9.0, late),
        (2.0, 10.1, {}),
        (2.5, 10.1, late),
    ):
        market.trade("A", 3, second, price, previous_price=10.0, **fields)
    rows, _ = market.compute(policy=NbboPolicy(policy="lee-ready", prints="eligible"))
    assert rows["sets_price"].to_list() == [True, True, False, True, False]
    assert rows["side"].to_list() == ["unknown", "buyer", "seller", "buyer", "buyer"]


def test_a_task_whose_prints_all_leave_writes_no_artifact(market: Market) -> None:
    """Nothing but no-rows cells, and no file."""
    market.trade("A", 2, 1.0, 9.5, correction=8)
    rows, cells = market.compute(policy=NbboPolicy(prints="eligible"))
    assert rows.height == 0
    assert cells["flags"].tolist() == [1]
    assert not list(market.folder.glob("aggressor/**/*.parquet"))


def test_every_column_carries_its_meaning_and_unit(market: Market) -> None:
    """In the field metadata of the artifact, read as any reader of Parquet would."""
    market.quote("A", 0, 0.0, 10.0, 10.2)
    market.trade("A", 0, 0.5, 10.2)
    rows, _ = market.compute()
    (path,) = (market.folder / "aggressor").rglob("*.parquet")
    schema = parquet.read_schema(path)
    assert schema.names == list(rows.columns) and set(schema.names) == set(MEANINGS)
    for name in schema.names:
        metadata = schema.field(name).metadata
        assert (metadata[b"meaning"].decode(), metadata[b"unit"].decode()) == MEANINGS[name]


def test_a_missing_artifact_fails_the_task_with_what_to_do(market: Market) -> None:
    """The file is named, and clearing the range is the remedy."""
    market.trade("A", 2, 1.0, 9.5)
    task = market.task()
    (market.folder / "trade.parquet").unlink()
    with pytest.raises(TaskFailed, match=r"trade\.parquet") as failure:
        run(task, Workplace(market.folder, market.folder, "b", lambda _done, _total: None))
    assert "clear the range" in failure.value.hint


def test_recipe_depends_on_settings_and_on_the_table_of_prints(tmp_path: Path) -> None:
    """Another staleness, or another meaning of a code, is another recipe; the same settings are the same one."""
    table = PrintTable.load()
    base = NbboDerivation(NbboPolicy(), table).recipe
    assert base == NbboDerivation(NbboPolicy(epsilon=1e-4), PrintTable.load()).recipe
    assert base != NbboDerivation(NbboPolicy(staleness_ms=500), table).recipe
    assert base != NbboDerivation(NbboPolicy(), PrintTable(table.codes[1:])).recipe


def test_config_takes_policy_globs_and_a_table_and_refuses_the_rest(tmp_path: Path) -> None:
    """Unknown keys, bad values and a missing table are errors that name them."""
    engine = build({"policy": "lee-ready", "symbols": ["AIG", "O:TWX*"]}, tmp_path)
    assert engine.name == "nbbo"
    with pytest.raises(msgspec.ValidationError, match="stalenes"):
        build({"stalenes_ms": 5}, tmp_path)
    with pytest.raises(msgspec.ValidationError, match="Expected `str`"):
        build({"symbols": [1]}, tmp_path)
    with pytest.raises(ValueError, match=r"none\.csv"):
        build({"print_classes": "none.csv"}, tmp_path)
