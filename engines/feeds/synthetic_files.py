"""
The synthetic session as upstream files: flat-file lines, their gzip bytes, the Treasury JSON, and counts of the lines.

Equal rows give equal bytes: no time, name or locale enters a file. It must never decide what the rows are.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines.feeds.synthetic_market import (
    MINUTES,
    Booleans,
    Floats,
    Integers,
    QuoteRows,
    SessionClock,
    StockProfile,
    TradeRows,
    minute_index,
)
from engines.feeds.synthetic_options import Chain
from ledger.columns import Dataset

HEADERS: Final = {
    Dataset.STOCK_TRADES: "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
    "sip_timestamp,size,tape,trf_id,trf_timestamp",
    Dataset.STOCK_QUOTES: "Ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp",
    Dataset.OPTION_TRADES: "ticker,conditions,correction,exchange,participant_timestamp,price,sip_timestamp,size",
    Dataset.OPTION_QUOTES: "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,sequence_number,"
    "sip_timestamp",
}
"""Header lines as upstream sends them; stock quotes begin with a capital T."""

_OFF_EXCHANGE: Final = 4


@dataclass(frozen=True, slots=True)
class TickerCounts:
    """
    What one ticker has in one file. Session = regular hours, half-open; a minute is the floor of the SIP time.

    ``session_size`` sums trade sizes, or both sides' sizes of quotes, as they are written.
    """

    rows: int
    session_rows: int
    session_minutes: int
    session_size: int


@dataclass(frozen=True, slots=True)
class FlatFile:
    """
    One file before compression. ``lines`` have no line end and are grouped by ticker, then in time order; arrays [n]:
    position of the ticker in ``tickers``, SIP time in ns UTC, size (of both sides for quotes), sequence number.
    """

    dataset: Dataset
    tickers: tuple[str, ...]
    lines: list[str]
    ticker_index: Integers
    sip_timestamp: Integers
    size: Integers
    sequence_number: Integers

    def without(self, dropped: Booleans) -> FlatFile:
        """The same file without some rows; what stays keeps its sequence numbers."""
        kept = ~dropped
        return FlatFile(
            self.dataset,
            self.tickers,
            [line for line, keep in zip(self.lines, kept.tolist(), strict=True) if keep],
            self.ticker_index[kept],
            self.sip_timestamp[kept],
            self.size[kept],
            self.sequence_number[kept],
        )

    def counts(self, clock: SessionClock) -> dict[str, TickerCounts]:
        """Counts by ticker, for those that have a row."""
        minutes = minute_index(self.sip_timestamp, clock)
        regular = (minutes >= 0) & (minutes < MINUTES)
        counts = {}
        for index, ticker in enumerate(self.tickers):
            of_ticker = self.ticker_index == index
            session = of_ticker & regular
            if of_ticker.any():
                counts[ticker] = TickerCounts(
                    int(of_ticker.sum()),
                    int(session.sum()),
                    int(np.unique(minutes[session]).size),
                    int(self.size[session].sum()),
                )
        return counts


def flat_file_path(root: Path, dataset: Dataset, session: str) -> Path:
    """Where upstream keeps a dataset's file of a session (``YYYY-MM-DD``), under ``root``."""
    return root / dataset.value / session[:4] / session[5:7] / f"{session}.csv.gz"


def write_flat_file(root: Path, session: str, file: FlatFile) -> Path:
    """Write the file compressed under ``root`` and return its path."""
    path = flat_file_path(root, file.dataset, session)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    # No name and no time in the gzip header: equal rows must be equal bytes.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as stream:
        stream.write("\n".join([HEADERS[file.dataset], *file.lines, ""]).encode("ascii"))
    path.write_bytes(buffer.getvalue())
    return path


def write_treasury(path: Path, curves: dict[str, dict[str, float]]) -> None:
    """Write curves (date -> tenor field -> percent) as upstream answers them, oldest first."""
    results = [{"date": day, **curves[day]} for day in sorted(curves)]
    document = {"count": len(results), "request_id": 1, "results": results, "status": "OK"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="ascii")


def stock_trades_file(stocks: Sequence[tuple[StockProfile, TradeRows]]) -> FlatFile:
    """Trades of all stocks, in the order of their tickers."""
    tickers, index, times = _grouped((profile.ticker, rows.sip_timestamp) for profile, rows in stocks)
    sequence = _sequence(times)
    lines: list[str] = []
    for profile, rows in stocks:
        numbers = sequence[len(lines) : len(lines) + rows.sip_timestamp.size]
        off_exchange = rows.exchange == _OFF_EXCHANGE
        lines += [
            f"{profile.ticker},{code},{correction},{exchange},{identifier},{participant},{price},{number},{at},{size},"
            f"{profile.tape},{trf},{trf_at}"
            for code, correction, exchange, identifier, participant, price, number, at, size, trf, trf_at in zip(
                _quoted(rows.conditions.tolist()),
                rows.correction.tolist(),
                rows.exchange.tolist(),
                _running_ids(rows.exchange),
                rows.participant_timestamp.tolist(),
                decimal_texts(rows.price, 4),
                numbers.tolist(),
                rows.sip_timestamp.tolist(),
                rows.size.tolist(),
                np.where(off_exchange, "202", "").tolist(),
                np.where(off_exchange, rows.participant_timestamp, 0).tolist(),
                strict=True,
            )
        ]
    size = np.concatenate([rows.size for _, rows in stocks])
    return FlatFile(Dataset.STOCK_TRADES, tickers, lines, index, times, size, sequence)


def stock_quotes_file(stocks: Sequence[tuple[StockProfile, QuoteRows]], shares_per_unit: int) -> FlatFile:
    """Quotes of all stocks; ``shares_per_unit`` is 100 where the feed sends round lots, else 1."""
    tickers, index, times = _grouped((profile.ticker, rows.sip_timestamp) for profile, rows in stocks)
    sequence = _sequence(times)
    lines: list[str] = []
    for profile, rows in stocks:
        numbers = sequence[len(lines) : len(lines) + rows.sip_timestamp.size]
        lines += [
            f"{profile.ticker},{ask_exchange},{ask},{ask_size},{bid_exchange},{bid},{bid_size},1,,{participant},{number},"
            f"{at},{profile.tape},0"
            for ask_exchange, ask, ask_size, bid_exchange, bid, bid_size, participant, number, at in zip(
                rows.ask_exchange.tolist(),
                decimal_texts(rows.ask_cents / 100, 2),
                (rows.ask_size // shares_per_unit).tolist(),
                rows.bid_exchange.tolist(),
                decimal_texts(rows.bid_cents / 100, 2),
                (rows.bid_size // shares_per_unit).tolist(),
                rows.participant_timestamp.tolist(),
                numbers.tolist(),
                rows.sip_timestamp.tolist(),
                strict=True,
            )
        ]
    size = np.concatenate([(rows.bid_size + rows.ask_size) // shares_per_unit for _, rows in stocks])
    return FlatFile(Dataset.STOCK_QUOTES, tickers, lines, index, times, size, sequence)


def option_trades_file(chains: Sequence[Chain]) -> FlatFile:
    """Trades of all chains, in the order of their tickers."""
    tickers, index, times = _contract_rows(
        [(chain, chain.trades.contract, chain.trades.sip_timestamp) for chain in chains]
    )
    lines: list[str] = []
    for chain in chains:
        rows = chain.trades
        lines += [
            f"{chain.contracts[contract].ticker},{code},,{exchange},{at},{price},{at},{size}"
            for contract, code, exchange, at, price, size in zip(
                rows.contract.tolist(),
                rows.conditions.tolist(),
                rows.exchange.tolist(),
                rows.sip_timestamp.tolist(),
                decimal_texts(rows.price, 8),
                rows.size.tolist(),
                strict=True,
            )
        ]
    size = np.concatenate([chain.trades.size for chain in chains])
    return FlatFile(Dataset.OPTION_TRADES, tickers, lines, index, times, size, _sequence(times))


def option_quotes_file(chains: Sequence[Chain]) -> FlatFile:
    """Quotes of all chains, in the order of their tickers."""
    tickers, index, times = _contract_rows(
        [(chain, chain.quotes.contract, chain.quotes.sip_timestamp) for chain in chains]
    )
    sequence = _sequence(times)
    lines: list[str] = []
    for chain in chains:
        rows = chain.quotes
        numbers = sequence[len(lines) : len(lines) + rows.sip_timestamp.size]
        lines += [
            f"{chain.contracts[contract].ticker},{exchange},{ask},{ask_size},{exchange},{bid},{bid_size},{number},{at}"
            for contract, exchange, ask, ask_size, bid, bid_size, number, at in zip(
                rows.contract.tolist(),
                rows.exchange.tolist(),
                decimal_texts(rows.ask_cents / 100, 2),
                rows.ask_size.tolist(),
                decimal_texts(rows.bid_cents / 100, 2),
                rows.bid_size.tolist(),
                numbers.tolist(),
                rows.sip_timestamp.tolist(),
                strict=True,
            )
        ]
    size = np.concatenate([chain.quotes.bid_size + chain.quotes.ask_size for chain in chains])
    return FlatFile(Dataset.OPTION_QUOTES, tickers, lines, index, times, size, sequence)


def decimal_texts(values: Floats, places: int) -> list[str]:
    """Each value with at most so many decimals and no trailing zeros, as the feed writes prices."""
    return [f"{value:.{places}f}".rstrip("0").rstrip(".") for value in values.tolist()]


def _grouped(groups: Iterable[tuple[str, Integers]]) -> tuple[tuple[str, ...], Integers, Integers]:
    found = list(groups)
    index = np.repeat(np.arange(len(found)), [times.size for _, times in found])
    return tuple(ticker for ticker, _ in found), index, np.concatenate([times for _, times in found])


def _contract_rows(
    chains: Sequence[tuple[Chain, Integers, Integers]],
) -> tuple[tuple[str, ...], Integers, Integers]:
    tickers: list[str] = []
    index = []
    for chain, contract, _ in chains:
        index.append(contract + len(tickers))
        tickers += [contract.ticker for contract in chain.contracts]
    return tuple(tickers), np.concatenate(index), np.concatenate([times for _, _, times in chains])


def _sequence(times: Integers) -> Integers:
    """A running number from 1 in time order over the whole file; equal times in the order of the file."""
    sequence = np.empty(times.size, dtype=np.int64)
    sequence[np.argsort(times, kind="stable")] = np.arange(1, times.size + 1)
    return sequence


def _running_ids(exchange: Integers) -> list[int]:
    """Trade ids: they run per ticker and exchange."""
    seen: dict[int, int] = {}
    identifiers = []
    for venue in exchange.tolist():
        seen[venue] = seen.get(venue, 0) + 1
        identifiers.append(seen[venue])
    return identifiers


def _quoted(conditions: list[str]) -> list[str]:
    return [f'"{code}"' if "," in code else code for code in conditions]
