"""A year of full sessions, for what is measured over one: every cell of every column, most without rows."""

from __future__ import annotations

import numpy as np
import polars as pl

from ledger.columns import AGGREGATE_MINUTES, Column, Dataset, Flag, PayloadKind, Source
from ledger.content import checksum_of
from ledger.frames import ArtifactWriter
from ledger.maps import Artifact
from ledger.records import blank
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State

PRICES = "trade/of-the-year.parquet"


def names(stocks: int) -> list[str]:
    """So many stocks, at most 676, then a chain on each; three letters, because a root that ends in a digit is an adjusted one."""
    own = [f"S{chr(65 + number // 26)}{chr(65 + number % 26)}" for number in range(stocks)]
    return [*own, *(f"O:{name}" for name in own)]


def fill_session(state: State, seq: int, missing: int, stocks: int = 8) -> None:
    """Every cell without rows, but for the last minutes; the state has the symbols of :func:`names`, or more."""
    session, minutes = state.calendar.date(seq), int(state.calendar.minutes[seq]) - missing
    ids = np.array([state.symbols.resolve(name) for name in names(stocks)])
    own, chains = ids[:stocks], ids[stocks:]
    for dataset, held in (
        (Dataset.STOCK_TRADES, own),
        (Dataset.STOCK_QUOTES, own),
        (Dataset.OPTION_TRADES, chains),
    ):
        zeros = np.zeros(len(held))
        symbols = pack_symbols(held, np.ones(len(held)), zeros, zeros)
        state.sources.put(
            SourceRecord(dataset=dataset.value, session=session, state=SourceState.COMPLETE, symbols=symbols)
        )
    for column in Column:
        held = chains if column is Column.GREEKS_REF else own if column in AGGREGATE_MINUTES else ids
        rows = state.ledger_of(column).session(seq)
        cells = np.repeat(held, minutes), np.tile(np.arange(minutes), len(held))
        rows.set_many(column, *cells, 1, 123, flags=int(Flag.NO_ROWS), now_ns=rows.now_ns())


def fill_sessions(state: State, seqs: range, stocks: int = 8) -> None:
    """Some sessions of the year; every tenth lacks its last 20 minutes."""
    for seq in seqs:
        fill_session(state, seq, 20 if seq % 10 == 0 else 0, stocks)


def price_sessions(state: State, seqs: range) -> None:
    """One trade a minute of the first stock in some sessions, all out of one artifact that walks at random."""
    writer = ArtifactWriter(state.artifact_root / PRICES)
    rng = np.random.default_rng(17)
    writer.write(pl.DataFrame({"price": 100 + np.cumsum(rng.normal(0, 0.02, 390)), "size": np.full(390, 100)}))
    made = writer.finish()
    assert made is not None
    artifact = state.artifacts.append(
        Artifact(artifact_id=0, uri=PRICES, checksum=made.checksum, bytes=made.bytes, rows=made.rows,
                 column="trade_ref", session=state.calendar.date(seqs[0]), engine="test")
    )  # fmt: skip
    for seq in seqs:
        minutes = int(state.calendar.minutes[seq])
        records = blank(PayloadKind.TRADE, minutes)
        records["content_hash"] = (np.arange(minutes, dtype=np.uint64) + 1) << np.uint64(40)
        records["artifact_id"] = artifact.artifact_id
        records["row_start"], records["row_count"] = np.arange(minutes), 1
        sums = checksum_of(records["content_hash"])
        ids = np.arange(minutes) + state.maps[PayloadKind.TRADE].append(records)
        cells = np.zeros(minutes, int), np.arange(minutes) + seq * 390
        state.trade.set_trade_ref(*cells, PayloadKind.TRADE, ids, sums, source=Source.FLAT_FILE)
