"""
Trades and quotes of one ticker over REST (``/v3/trades/{ticker}``, ``/v3/quotes/{ticker}``) as the flat files' frames.

Rows pass the same judge as a file's rows, so a window that is refilled holds what a file would have brought: same
columns, types, defaults and rejections. Option trades carry no sequence in files; theirs is dropped here too, because it
would order rows another way. This module must never hand out part of an answer as if it were all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from engines.feeds.feed_errors import ReplyMalformed
from engines.feeds.json_pages import PageSource
from ledger.columns import Dataset

if TYPE_CHECKING:
    import polars

    from engines.feeds.pass_report import PassReport
    from engines.feeds.session_window import SessionWindow

_TIES_MAX: Final = 1_000
"""Trades that are looked at for the last one before a time."""
PAGE_LIMIT: Final = 50_000
"""Rows a page, the service's most."""


class TradeRow(msgspec.Struct, gc=False):
    """A trade as ``/v3/trades`` sends it; times ns UTC."""

    sip_timestamp: int
    price: float
    size: float
    sequence_number: int = 0
    exchange: int = 0
    conditions: list[int] | None = None
    correction: int = 0
    participant_timestamp: int = 0
    id: str = ""
    tape: int = 0
    trf_id: int = 0
    trf_timestamp: int = 0


class QuoteRow(msgspec.Struct, gc=False):
    """A quote as ``/v3/quotes`` sends it; a side without interest may be left out."""

    sip_timestamp: int
    sequence_number: int = 0
    bid_price: float = 0.0
    bid_size: float = 0.0
    bid_exchange: int = 0
    ask_price: float = 0.0
    ask_size: float = 0.0
    ask_exchange: int = 0
    conditions: list[int] | None = None
    indicators: list[int] | None = None
    participant_timestamp: int = 0
    tape: int = 0
    trf_timestamp: int = 0


_TRADES: Final = msgspec.json.Decoder(list[TradeRow])
_QUOTES: Final = msgspec.json.Decoder(list[QuoteRow])
_CODES: Final = ("conditions", "indicators")


def fetch_rows(
    source: PageSource,
    dataset: Dataset,
    ticker: str,
    start_ns: int,
    end_ns: int,
    window: SessionWindow,
    report: PassReport,
    *,
    limit: int = PAGE_LIMIT,
) -> Iterator[polars.DataFrame]:
    """
    Rows of one ticker with ``start_ns <= sip_timestamp < end_ns``, a frame per page, in order of time.

    Frames are as :func:`engines.feeds.flatfile.read_batches` yields them. Rows are only good when the iterator has ended.

    Args:
        dataset: one of the four of trades and quotes; says which endpoint.
        window: the session that the range lies in; rows of another local day are rejected.
        report: counts what was read and rejected; may be shared by the calls of one refill.
        limit: rows a page.

    Raises:
        FeedError: the answer is not whole; throw away what came.
        ValueError: the dataset has no such endpoint, or the range is empty.
    """
    from engines.feeds.file_columns import is_trades

    if start_ns >= end_ns:
        raise ValueError(f"empty range: {start_ns} to {end_ns}")
    kind = "trades" if is_trades(dataset) else "quotes"
    parameters = {
        "timestamp.gte": str(start_ns), "timestamp.lt": str(end_ns), "limit": str(limit), "sort": "timestamp",
        "order": "asc",
    }  # fmt: skip
    frames = _Frames(dataset, ticker, window, report)
    for page in source.pages(f"/v3/{kind}/{quote(ticker, safe=':')}", parameters):
        where = f"{page.address} (page {page.number})"
        frame = frames.frame(page.results, where, start_ns, end_ns)
        if frame.height:
            yield frame


def price_before(
    source: PageSource, dataset: Dataset, ticker: str, start_ns: int, window: SessionWindow, report: PassReport
) -> float | None:
    """
    Price of the last trade of a ticker on the session's local day before a time; None where there is none.

    Of trades at the same time the last in canonical order counts, as in a file.

    Raises:
        FeedError: the answer cannot be had or read.
    """
    from engines.feeds.file_columns import columns_of

    if start_ns <= window.day_start_ns:
        return None
    parameters = {
        "timestamp.gte": str(window.day_start_ns), "timestamp.lt": str(start_ns), "limit": str(_TIES_MAX),
        "sort": "timestamp", "order": "desc",
    }  # fmt: skip
    frames = _Frames(dataset, ticker, window, report)
    for page in source.pages(f"/v3/trades/{quote(ticker, safe=':')}", parameters):
        frame = frames.frame(page.results, f"{page.address} (page {page.number})", window.day_start_ns, start_ns)
        if frame.height:
            last = frame.filter(frame["sip_timestamp"] == frame["sip_timestamp"].max())
            return float(last.sort("sequence_number", *columns_of(dataset).rest)["price"][-1])
    return None


class _Frames:
    """Pages of one answer as frames."""

    def __init__(self, dataset: Dataset, ticker: str, window: SessionWindow, report: PassReport) -> None:
        from engines.feeds.file_columns import columns_of, is_trades, size_unit
        from engines.feeds.row_checks import RowChecks

        self._columns = columns_of(dataset)
        self._decoder: msgspec.json.Decoder[Any] = _TRADES if is_trades(dataset) else _QUOTES
        self._unsequenced = dataset is Dataset.OPTION_TRADES
        self._ticker = ticker
        self._report = report
        self._checks = RowChecks(dataset, window, report, None)
        report.size_unit = size_unit(dataset, window.date)
        report.header = tuple(self._columns.types)

    def frame(self, results: bytes, where: str, start_ns: int, end_ns: int) -> polars.DataFrame:
        import polars as pl

        from engines.feeds.row_checks import Doubtful

        try:
            rows = self._decoder.decode(results)
        except msgspec.DecodeError as error:
            raise ReplyMalformed(where, f"results: {error}") from None
        if any(not start_ns <= row.sip_timestamp < end_ns for row in rows):
            raise ReplyMalformed(where, "rows outside the range that was asked for", "the source ignores its filters")
        columns: dict[str, Any] = {}
        for name in self._columns.types:
            if name == "ticker":
                columns[name] = [self._ticker] * len(rows)
            elif name == "sequence_number" and self._unsequenced:
                columns[name] = [0] * len(rows)
            elif name in _CODES:
                columns[name] = [",".join(map(str, getattr(row, name) or ())) for row in rows]
            else:
                columns[name] = [getattr(row, name) for row in rows]
        try:
            raw = pl.DataFrame(columns, schema=self._columns.types)
            self._report.rows += raw.height
            return self._checks.accept(raw)
        except (pl.exceptions.PolarsError, OverflowError, TypeError) as error:
            raise ReplyMalformed(where, f"a value is out of range: {error}") from None
        except Doubtful:
            raise ReplyMalformed(where, "a ticker, condition list or id that no file would have") from None
