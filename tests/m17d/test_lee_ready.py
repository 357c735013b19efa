"""
The policy ``lee-ready`` on real ticks, against Lee and Ready's rule written down from their paper, from the upstream files.

C. M. C. Lee and M. J. Ready, "Inferring Trade Direction from Intraday Data", Journal of Finance 46 (1991): above the mid of
the quote in force a buy, below it a sell; at the mid, or without a quote, the tick test: against the last different price.
Here the quote in force is at most one second old, and the last one at or before the trade, or strictly before it: both
tie rules are compared. No lag is applied. The reference remembers ticks over the whole day, M17 over the trade's minute.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

import ledger
from tests.m17d.test_derived_sessions import STOCKS, configure, fill
from tests.m17d.test_real_sessions import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

STALE_NS = 1_000_000_000
Key = tuple[str, int, int]


def upstream(dataset: str, *columns: str) -> dict[str, list[tuple[str, ...]]]:
    """Rows of an upstream file as text, by ticker, in order of SIP time, then sequence."""
    path = DATA / "flatfiles" / dataset / STOCKS[:4] / STOCKS[5:7] / f"{STOCKS}.csv.gz"
    frame = pl.read_csv(path, infer_schema=False).rename(str.lower)
    frame = frame.sort("ticker", pl.col("sip_timestamp").cast(pl.Int64), pl.col("sequence_number").cast(pl.Int64))
    rows: dict[str, list[tuple[str, ...]]] = {}
    for ticker, *rest in frame.select("ticker", "sip_timestamp", *columns).iter_rows():
        rows.setdefault(ticker, []).append(tuple(rest))
    return rows


def lee_and_ready(before: bool) -> dict[Key, tuple[str, bool]]:
    """Side of every trade of the day by ticker, time and sequence, and whether a quote has exactly its time."""
    sides: dict[Key, tuple[str, bool]] = {}
    quotes = upstream("us_stocks_sip/quotes_v1", "bid_price", "ask_price")
    for ticker, trades in upstream("us_stocks_sip/trades_v1", "sequence_number", "price").items():
        book = [(int(ts), Decimal(bid), Decimal(ask)) for ts, bid, ask in quotes.get(ticker, [])]
        at, last, tick = 0, Decimal(0), "unknown"
        for ts_text, sequence, price_text in trades:
            ts, price = int(ts_text), Decimal(price_text)
            while at < len(book) and (book[at][0] < ts or (book[at][0] == ts and not before)):
                at += 1
            near = at - 1 if not before else at
            tied = 0 <= near < len(book) and book[near][0] == ts
            if last and price != last:
                tick = "buyer" if price > last else "seller"
            last, side = price, tick
            if at and ts - book[at - 1][0] <= STALE_NS:
                _, bid, ask = book[at - 1]
                if ask > bid and 2 * price != bid + ask:
                    side = "buyer" if 2 * price > bid + ask else "seller"
            sides[ticker, ts, int(sequence)] = (side, tied)
    return sides


@pytest.mark.parametrize("tie", ["at-or-before", pytest.param("before", marks=pytest.mark.slow)])
def test_every_side_that_is_decided_is_that_of_lee_and_ready(tie: str, tmp_path: Path) -> None:
    """135,798 real trades: none differs, at most 2 % are left unknown, and the tied trades are the same ones."""
    configure(tmp_path, STOCKS, nbbo=f'[engines.nbbo]\npolicy = "lee-ready"\nquote_tie = "{tie}"')
    fill(tmp_path)
    expected = lee_and_ready(before=tie == "before")
    names = ["ticker", "sip_timestamp", "sequence_number", "side", "quote_tied", "method"]
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        rows = state.scan("aggressor_ref", sessions=STOCKS).select(names).collect()
    assert rows.height == 135_798
    unknown = tied = 0
    by_method: dict[str, int] = {}
    for ticker, ts, sequence, side, quote_tied, method in rows.iter_rows():
        wanted, shares_time = expected[ticker, ts, sequence]
        assert quote_tied == shares_time, (ticker, ts)
        tied += shares_time
        if side == "unknown":
            unknown += 1
        else:
            assert side == wanted, (ticker, ts, sequence, method)
            by_method[method] = by_method.get(method, 0) + 1
    assert unknown < 0.02 * rows.height
    assert tied > 0.2 * rows.height
    assert min(by_method[one] for one in ("nbbo_touch", "nbbo_at_or_beyond", "tick_rule")) > 1_000
