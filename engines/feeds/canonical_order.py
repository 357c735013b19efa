"""
Puts rows into the canonical order and finds each trade's previous price.

The order is symbol, minute, ticker, SIP time, sequence, then the remaining columns, so it is total on content: rows that
still tie are equal in every column, and the result never depends on the order they came in. Within an instrument that is
also the order of time, so the previous price is the row before it. This module must never see half a symbol, unless it is
given whole minutes of it in order of time together with the last prices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engines.feeds.chunks import Chunk, IntArray, changes, session_chunk
from engines.feeds.file_columns import columns_of, is_trades, texts
from engines.feeds.pass_report import PassReport
from engines.feeds.row_checks import ticker_runs
from engines.feeds.session_window import SessionWindow
from ledger.columns import WINDOW_NS, Dataset

_RUN_ROWS: Final = 1_000
"""Mean length from which on runs of rows are cheaper to copy than single ones."""

SymbolOf = Callable[[str], str | None]


class RowOrder:
    """Orders the rows of one pass, symbol by symbol, and counts them in its report."""

    def __init__(self, dataset: Dataset, window: SessionWindow, symbol_of: SymbolOf, report: PassReport) -> None:
        self._columns = columns_of(dataset)
        self._trades = is_trades(dataset)
        self._window = window
        self._symbol_of = symbol_of
        self._report = report

    def arrange(self, frame: pl.DataFrame, last_prices: dict[str, float] | None) -> tuple[Chunk | None, pl.DataFrame]:
        """
        The rows of the session as a chunk (None where there are none), and the rows outside it as a frame.

        Args:
            frame: all rows of its symbols, or whole minutes of one after another; none refused.
            last_prices: last price per ticker from earlier minutes, brought up to date; None when symbols are whole.
        """
        names, tickers, instrument, symbol_of_ticker = self._instruments(frame)
        times = frame["sip_timestamp"].to_numpy()
        order = self._order(frame, instrument, times)
        if order is not None:
            instrument, times = instrument[order], times[order]
        symbol = symbol_of_ticker[instrument]
        minute = minutes_from_open(times, self._window)
        inside = (minute >= 0) & (minute < self._window.minutes)
        self._count(names, symbol, inside)
        if self._trades:
            prices = frame["price"].to_numpy()
            prices = prices if order is None else prices[order]
            previous = _previous_prices(prices, instrument, tickers, last_prices)
        else:
            previous = None
        many = len(tickers) > len(names)
        at = _by_symbol_and_minute(np.flatnonzero(inside), symbol, minute, many=many)
        chunk = None
        if len(at):
            rows = self._taken(frame, order, at, names, symbol, minute, previous, inside=True)
            chunk = session_chunk(rows, names, symbol[at], minute[at], times[at])
        out = _by_symbol_and_minute(np.flatnonzero(~inside), symbol, minute, many=many)
        return chunk, self._taken(frame, order, out, names, symbol, minute, previous, inside=False)

    def _instruments(self, frame: pl.DataFrame) -> tuple[list[str], list[str], NDArray[np.int32], NDArray[np.int32]]:
        """Symbols, tickers in canonical order, ticker index per row i32[rows], symbol index per ticker i32[tickers]."""
        starts, heads = ticker_runs(frame["ticker"])
        pairs = sorted((self._symbol_of(ticker) or "", ticker) for ticker in heads.unique().to_list())
        names = sorted({symbol for symbol, _ in pairs})
        place = {symbol: index for index, symbol in enumerate(names)}
        rank = {ticker: index for index, (_, ticker) in enumerate(pairs)}
        runs = np.fromiter((rank[ticker] for ticker in heads.to_list()), np.int32, len(heads))
        instrument = np.repeat(runs, np.diff(starts, append=frame.height))
        symbol_of_ticker = np.fromiter((place[symbol] for symbol, _ in pairs), np.int32, len(pairs))
        return names, [ticker for _, ticker in pairs], instrument, symbol_of_ticker

    def _order(self, frame: pl.DataFrame, instrument: NDArray[np.int32], times: IntArray) -> IntArray | None:
        """Rows by instrument, time, sequence and the rest; None where they lie so already."""
        sequence = frame["sequence_number"].to_numpy()
        order: IntArray | None = None
        if not _ascending(instrument, times, sequence):
            order = np.lexsort((sequence, times, instrument)).astype(np.int64, copy=False)
            instrument, times, sequence = instrument[order], times[order], sequence[order]
        tied = (instrument[1:] == instrument[:-1]) & (times[1:] == times[:-1]) & (sequence[1:] == sequence[:-1])
        if not tied.any():
            return order
        member = np.zeros(len(times), np.bool_)
        member[1:] |= tied
        member[:-1] |= tied
        at = np.flatnonzero(member)
        group = np.concatenate(([0], np.cumsum(~tied)))[at]
        rows = at if order is None else order[at]
        within = (
            frame.select(pl.col(self._columns.rest).gather(rows))
            .with_columns(pl.Series("group", group), pl.Series("row", rows))
            .sort("group", *self._columns.rest, "row")
        )
        order = np.arange(len(times), dtype=np.int64) if order is None else order
        order[at] = within["row"].to_numpy()
        return order

    def _taken(
        self,
        frame: pl.DataFrame,
        order: IntArray | None,
        at: IntArray,
        names: list[str],
        symbol: NDArray[np.int32],
        minute: NDArray[np.int32],
        previous: NDArray[np.float64] | None,
        *,
        inside: bool,
    ) -> pl.DataFrame:
        """The rows at the given places of the order, with symbol and minute before and previous price behind them."""
        rows = at if order is None else order[at]
        # Rows that keep their order are chosen: several times faster than gathering, most of all from many pieces.
        taken = _chosen(frame, rows) if (rows[1:] > rows[:-1]).all() else frame[rows]
        minutes = pl.Series("minute", minute[at].astype(np.uint16)) if inside else _no_minutes(len(at))
        symbols = pl.Series("symbol", names, dtype=texts()).gather(symbol[at])
        ordered = taken.select(symbols, minutes, *self._columns.types)
        if previous is None:
            return ordered
        return ordered.with_columns(pl.Series("previous_price", previous[at], nan_to_null=True))

    def _count(self, names: list[str], symbol: NDArray[np.int32], inside: NDArray[np.bool_]) -> None:
        starts = changes(symbol)
        total, within = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        if len(starts):
            # One run per symbol, several where a chain's tickers do not lie together.
            np.add.at(total, symbol[starts], np.diff(starts, append=len(symbol)))
            np.add.at(within, symbol[starts], np.add.reduceat(inside, starts, dtype=np.int64))
        for name, rows, rows_inside in zip(names, total.tolist(), within.tolist(), strict=True):
            self._report.count_symbol(name, rows_inside, rows - rows_inside)


def minutes_from_open(times: IntArray, window: SessionWindow) -> NDArray[np.int32]:
    """Signed minute from the open of each time, i32[rows]: -1 is the minute before it."""
    return ((times - window.open_ns) // WINDOW_NS).astype(np.int32)


def _ascending(instrument: NDArray[np.int32], times: IntArray, sequence: IntArray) -> bool:
    same = instrument[1:] == instrument[:-1]
    if (instrument[1:] < instrument[:-1]).any():
        return False
    if (same & (times[1:] < times[:-1])).any():
        return False
    return not (same & (times[1:] == times[:-1]) & (sequence[1:] < sequence[:-1])).any()


def _by_symbol_and_minute(
    at: IntArray, symbol: NDArray[np.int32], minute: NDArray[np.int32], *, many: bool
) -> IntArray:
    """Places sorted by symbol and minute, stably; where each symbol is one instrument they are so already."""
    if not many or not len(at):
        return at
    # Two stable passes over 16-bit keys are radix sorts; one over a wide key is not.
    at = at[np.argsort((minute[at] + 8_192).astype(np.uint16), kind="stable")]
    codes = symbol[at]
    small = codes.astype(np.uint16) if int(symbol.max()) < 65_536 else codes
    return at[np.argsort(small, kind="stable")]


def _previous_prices(
    prices: NDArray[np.float64], instrument: NDArray[np.int32], tickers: list[str], last_prices: dict[str, float] | None
) -> NDArray[np.float64]:
    """Price of the row before within the instrument, f64[rows]; NaN for its first."""
    previous = np.empty(len(prices), np.float64)
    previous[1:] = prices[:-1]
    starts = changes(instrument)
    previous[starts] = np.nan
    if last_prices is not None:
        ends = np.append(starts[1:], len(prices)) - 1
        present = [tickers[index] for index in instrument[starts].tolist()]
        previous[starts] = [last_prices.get(ticker, np.nan) for ticker in present]
        last_prices.update(zip(present, prices[ends].tolist(), strict=True))
    return previous


def _chosen(frame: pl.DataFrame, rows: IntArray) -> pl.DataFrame:
    """Some rows, ascending, in one piece: runs of them are copied whole, where they are long."""
    first = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    if not len(rows) or len(rows) < _RUN_ROWS * len(first):
        chosen = np.zeros(frame.height, np.bool_)
        chosen[rows] = True
        return frame.filter(pl.Series(chosen))
    lengths = np.diff(first, append=len(rows)).tolist()
    runs = zip(rows[first].tolist(), lengths, strict=True)
    return pl.concat([frame.slice(start, length) for start, length in runs], rechunk=True)


def _no_minutes(rows: int) -> pl.Series:
    return pl.Series("minute", [None], dtype=pl.UInt16).new_from_index(0, rows)
