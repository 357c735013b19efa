"""What a file pass computes on its way: hashes of rows."""

from __future__ import annotations

import gc

import numpy as np
import polars as pl

from engines.feeds.file_columns import texts
from engines.raw_pass import HASHED, RowHashes
from ledger.columns import Column, Dataset
from ledger.content import row_hashes, text_hashes


def frame_of(tickers: list[str]) -> pl.DataFrame:
    """Trades that differ in their tickers alone."""
    values: dict[str, object] = dict.fromkeys(HASHED[Column.TRADE_REF], 1.5)
    values |= {
        "ticker": pl.Series(tickers, dtype=texts()),
        "conditions": pl.Series(["12"] * len(tickers), dtype=texts()),
    }
    return pl.DataFrame(values)


def test_a_text_keeps_its_hash_when_every_frame_that_had_it_is_gone() -> None:
    """Numbers of texts are given anew when no column holds them: kept hashes would become those of other texts."""
    hashes = RowHashes(Column.TRADE_REF, Dataset.STOCK_TRADES)
    rest = [np.full(1, 1.5)] * (len(HASHED[Column.TRADE_REF]) - 2)
    at = HASHED[Column.TRADE_REF].index("conditions")
    for tickers in (["AAA", "BBB"], ["CCC"], ["BBB", "DDD"], ["AAA"]):
        found = hashes.of(frame_of(tickers))
        gc.collect()
        for ticker, one in zip(tickers, found.tolist(), strict=True):
            columns = [text_hashes([ticker]), *rest]
            columns.insert(at, text_hashes(["12"]))
            assert one == int(row_hashes(columns)[0]), (tickers, ticker)
