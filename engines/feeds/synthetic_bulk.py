"""
Big synthetic flat files for benchmarks: any number of rows in bounded memory.

The rows have upstream's columns, order and value ranges, but no truth behind them. It must never hold more than one
chunk of rows in memory, and equal arguments give equal bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import numpy as np

from engines.feeds.synthetic_files import HEADERS
from engines.feeds.synthetic_market import MINUTE_NS, Floats, Integers, generator, session_clock
from engines.feeds.synthetic_options import expiry_dates
from ledger.columns import Dataset

if TYPE_CHECKING:
    import polars

CHUNK_ROWS: Final = 500_000
TICKERS_MAX: Final = 26**4

_LEAD_NS: Final = 5 * MINUTE_NS
"""Rows reach from five minutes before the open to five minutes after the close."""
_CONTRACTS_PER_ROOT: Final = 400
_STOCK_CONDITIONS: Final = ("", "", "", "37", "14", "14,41", "14,37,41", "10")
_OPTION_CONDITIONS: Final = ("209", "209", "219", "227", "232")


def write_bulk(path: Path, *, dataset: Dataset, session: str, rows: int, tickers: int, seed: int = 17) -> None:
    """
    Write a flat file of any size: grouped by ticker in the order of their names, then by time.

    Activity is uneven: the busiest ticker has about half the square root of ``tickers`` times the mean. Times are spread
    evenly from 09:25 to 16:05. Sequence numbers are unique and increase within a ticker. Memory is bounded by one
    chunk of 500,000 rows.

    Args:
        path: the .csv.gz to write; its folder is made, an existing file replaced.
        dataset: one of the four flat-file datasets.
        session: ISO date of a weekday.
        rows: data rows, at least ``tickers``.
        tickers: stocks, or contracts in chains of 400; 1 to 456,976.
        seed: equal seeds give equal bytes (for one version of polars and zlib).

    Raises:
        ValueError: another dataset, or counts outside these bounds.
    """
    if dataset not in HEADERS:
        raise ValueError(f"dataset {dataset.value} has no flat file: choose one of {', '.join(HEADERS)}")
    if not 1 <= tickers <= TICKERS_MAX:
        raise ValueError(f"tickers {tickers} is not between 1 and {TICKERS_MAX}")
    if rows < tickers:
        raise ValueError(f"rows {rows} is less than tickers {tickers}: each needs one")
    names = _contract_names(tickers, session) if dataset.of_options else [_letters(rank) for rank in range(tickers)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream:
        stream.write(f"{HEADERS[dataset]}\n".encode("ascii"))
        for frame in _frames(dataset, session, rows, names, seed):
            frame.write_csv(cast("BinaryIO", stream), include_header=False)


def _letters(rank: int) -> str:
    """Four capital letters that sort as the rank does."""
    text = ""
    for _ in range(4):
        rank, digit = divmod(rank, 26)
        text = chr(ord("A") + digit) + text
    return text


def _contract_names(tickers: int, session: str) -> list[str]:
    expiries = expiry_dates(session_clock(session).session)[:2]
    names = [
        f"O:{_letters(rank // _CONTRACTS_PER_ROOT)}{expiries[rank // 2 % 2]:%y%m%d}{'CP'[rank % 2]}"
        f"{(50 + rank % _CONTRACTS_PER_ROOT // 4) * 1000:08d}"
        for rank in range(tickers)
    ]
    assert len(set(names)) == tickers
    return sorted(names)


def _rows_per_ticker(rows: int, tickers: int, rng: np.random.Generator) -> Integers:
    """At least one row each, the others by a power law over shuffled ranks; the sum is ``rows``."""
    ranks = np.argsort(rng.random(tickers), kind="stable")
    weights = 1.0 / np.sqrt(1.0 + ranks)
    ends = np.floor(np.cumsum(weights) / weights.sum() * (rows - tickers) + 1e-6).astype(np.int64)
    ends[-1] = rows - tickers
    counts: Integers = 1 + np.diff(ends, prepend=0)
    return counts


def _frames(dataset: Dataset, session: str, rows: int, names: list[str], seed: int) -> Iterator[polars.DataFrame]:
    import polars

    clock = session_clock(session)
    rng = generator(seed)
    counts = _rows_per_ticker(rows, len(names), rng)
    ends = np.cumsum(counts)
    base_cents = (1_000 + rng.random(len(names)) ** 2 * 30_000).astype(np.int64)
    span = clock.close_ns - clock.open_ns + 2 * _LEAD_NS
    for first in range(0, rows, CHUNK_ROWS):
        row = np.arange(first, min(rows, first + CHUNK_ROWS))
        ticker = np.searchsorted(ends, row, "right")
        ordinal = row - (ends - counts)[ticker]
        share = (ordinal + rng.random(row.size)) / counts[ticker]
        times = clock.open_ns - _LEAD_NS + (share * span).astype(np.int64)
        wave = 1 + 0.01 * np.sin(share * 6 * np.pi) + 0.0005 * (rng.random(row.size) - 0.5)
        cents = np.round(base_cents[ticker] * (0.01 if dataset.of_options else 1.0) * wave).astype(np.int64)
        columns = _columns(dataset, times, cents, ordinal * len(names) + ticker + 1, rng)
        # Position in the name list to name: a string column is made from the few distinct names by polars.
        low, high = int(ticker[0]), int(ticker[-1]) + 1
        named = polars.Series("ticker", names[low:high]).gather(ticker - low)
        header = HEADERS[dataset].lower().split(",")
        yield polars.DataFrame({"ticker": named, **columns}).select(header)


def _columns(
    dataset: Dataset, times: Integers, cents: Integers, sequence: Integers, rng: np.random.Generator
) -> dict[str, Integers | Floats | polars.Series]:
    import polars

    count = times.size
    venue = (300 if dataset.of_options else 0) + 1 + (rng.random(count) * 19).astype(np.int64)
    columns: dict[str, Integers | Floats | polars.Series] = {"sip_timestamp": times}
    empty = polars.Series([None], dtype=polars.String).new_from_index(0, count)
    size_unit = 1 if dataset.of_options else 100
    if dataset.column.value == "quote_ref":
        sizes = size_unit * (1 + (rng.random((2, count)) ** 3 * 40).astype(np.int64))
        spread = 1 + (rng.random(count) ** 2 * 4).astype(np.int64)
        columns |= {"ask_exchange": venue, "bid_exchange": np.roll(venue, 1), "sequence_number": sequence}
        columns |= {"ask_price": (cents + spread) / 100, "bid_price": cents / 100}
        columns |= {"ask_size": sizes[0], "bid_size": sizes[1]}
    else:
        codes = polars.Series(_OPTION_CONDITIONS if dataset.of_options else _STOCK_CONDITIONS)
        # An empty cell is nothing between two commas, not a quoted empty text.
        codes = codes.replace("", None)
        conditions = codes.gather((rng.random(count) * len(codes)).astype(np.int64))
        size = np.maximum(1, (rng.random(count) ** 4 * 40 * size_unit).astype(np.int64))
        columns |= {
            "conditions": conditions,
            "correction": empty,
            "exchange": venue,
            "price": cents / 100,
            "size": size,
        }
        columns |= {"participant_timestamp": times}
    if not dataset.of_options:
        zeros, ones = np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.int64)
        columns |= {"participant_timestamp": times - 150_000, "sequence_number": sequence, "tape": ones}
        columns |= {"id": sequence, "trf_id": empty, "trf_timestamp": zeros, "indicators": empty}
        columns.setdefault("conditions", ones)
    return columns
