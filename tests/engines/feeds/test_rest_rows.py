"""Rows over REST are the rows of the file; a chain is ranked over all of its pages."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from engines.feeds.feed_errors import ReplyMalformed
from engines.feeds.file_columns import frame_types
from engines.feeds.json_pages import PageSource
from engines.feeds.option_chain import fetch_chain
from engines.feeds.pass_report import PassReport
from engines.feeds.rest_rows import fetch_rows
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset
from tests.engines.feeds.scripted_source import Answer, page, serving

HOUR = 3_600_000_000_000
DAY = 1_381_118_400_000_000_000
WINDOW = SessionWindow("2013-10-07", DAY + 9 * HOUR + HOUR // 2, 390, DAY, DAY + 24 * HOUR)
START, END = WINDOW.open_ns, WINDOW.open_ns + 60_000_000_000


def trade(second: float, **more: Any) -> dict[str, Any]:
    """A trade so many seconds after the open."""
    return {"sip_timestamp": START + round(second * 1e9), "price": 49.5, "size": 100, "sequence_number": 7, **more}


def fetched(dataset: Dataset, ticker: str, answer: Any, report: PassReport | None = None) -> list[pl.DataFrame]:
    """All frames of the first minute."""
    with serving(answer) as (address, _), PageSource(address, "key", sleep=lambda _: None) as source:
        return list(fetch_rows(source, dataset, ticker, START, END, WINDOW, report or PassReport()))


def test_the_request_names_range_order_and_limit() -> None:
    """Half-open, ascending, as large as pages go; the ticker is part of the path."""
    report = PassReport()
    with serving(lambda *_: page([])) as (address, asked), PageSource(address, "key") as source:
        frames = list(fetch_rows(source, Dataset.OPTION_QUOTES, "O:TWX140621C00070000", START, END, WINDOW, report))

    assert frames == []
    assert asked.targets[0].startswith("/v3/quotes/O:TWX140621C00070000?")
    assert asked.queries()[0] == {
        "timestamp.gte": str(START), "timestamp.lt": str(END), "limit": "50000", "sort": "timestamp", "order": "asc",
        "apiKey": "key",
    }  # fmt: skip


@pytest.mark.parametrize("dataset", [Dataset.STOCK_TRADES, Dataset.OPTION_TRADES])
def test_trades_have_the_columns_of_the_file(dataset: Dataset) -> None:
    """Types, order and defaults; conditions as a comma list; option trades without sequence, as in files."""
    ticker = "O:TWX140621C00070000" if dataset.of_options else "AIG"
    (frame,) = fetched(dataset, ticker, lambda *_: page([trade(1, conditions=[12, 37], id="x", exchange=11), trade(2)]))

    assert dict(frame.schema) == frame_types(dataset)
    assert frame["conditions"].to_list() == ["12,37", ""]
    assert frame["id"].to_list() == ["x", ""]
    assert frame["sequence_number"].to_list() == ([0, 0] if dataset.of_options else [7, 7])
    assert frame["trf_timestamp"].to_list() == [0, 0]


def test_quotes_have_the_columns_of_the_file() -> None:
    """A side that is left out is 0, indicators are a comma list."""
    quote = {"sip_timestamp": START, "bid_price": 1.5, "bid_size": 3, "indicators": [604], "conditions": [1]}
    (frame,) = fetched(Dataset.STOCK_QUOTES, "AIG", lambda *_: page([quote]))

    assert dict(frame.schema) == frame_types(Dataset.STOCK_QUOTES)
    assert frame.select("bid_price", "ask_price", "conditions", "indicators").row(0) == (1.5, 0.0, "1", "604")


def test_rows_that_no_file_would_keep_are_rejected_and_counted() -> None:
    """The same judge as the file's."""
    report = PassReport()
    (frame,) = fetched(
        Dataset.STOCK_TRADES, "AIG", lambda *_: page([trade(1), trade(2, price=0), trade(3, size=-1)]), report
    )

    assert frame.height == 1
    assert report.rejected == {"zero_price": 1, "negative_size": 1}
    assert (report.rows, report.rows_kept, report.size_unit) == (3, 1, "shares")


def test_pages_come_as_frames_in_order() -> None:
    """Nothing is lost between pages and nothing comes twice."""

    def answer(number: int, _: str) -> Answer:
        return page([trade(number * 2 + 1), trade(number * 2 + 2)], f"?cursor={number}" if number < 2 else None)

    frames = fetched(Dataset.STOCK_TRADES, "AIG", answer)

    assert [frame.height for frame in frames] == [2, 2, 2]
    assert pl.concat(frames)["sip_timestamp"].is_sorted()


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([{"price": 1.0}], "sip_timestamp"),
        ([trade(61)], "outside the range"),
        ([trade(1, exchange=2**40)], "out of range"),
        ([trade(1, conditions=[10**9])], "condition list"),
        ([trade(1, price="1")], "price"),
    ],
)
def test_an_answer_that_is_not_rows_is_malformed(results: list[Any], said: str) -> None:
    """Nothing of it is used."""
    with pytest.raises(ReplyMalformed, match=said):
        fetched(Dataset.STOCK_TRADES, "AIG", lambda *_: page(results))


def test_an_empty_range_is_the_callers_mistake() -> None:
    """It would ask for everything."""
    with pytest.raises(ValueError, match="empty range"):
        next(fetch_rows(PageSource("http://127.0.0.1"), Dataset.STOCK_TRADES, "AIG", END, START, WINDOW, PassReport()))


def test_a_chain_is_ranked_over_all_pages() -> None:
    """The best contract stands on the last page; absent numbers are 0; ties go by volume, then ticker."""
    pages = [
        [{"details": {"ticker": "O:A"}, "day": {"volume": 5}, "open_interest": 10}, {"details": {"ticker": "O:B"}}],
        [{"details": {"ticker": "O:C"}, "day": {}, "open_interest": 10}],
        [{"details": {"ticker": "O:D"}, "day": {"volume": 99}, "open_interest": 3}],
    ]

    def answer(number: int, _: str) -> Answer:
        return page(pages[number], f"?cursor={number}" if number < 2 else None)

    with serving(answer) as (address, asked), PageSource(address, "key") as source:
        ranked = fetch_chain(source, "TWX", limit=3)

    assert [contract.ticker for contract in ranked] == ["O:D", "O:A", "O:C"]
    assert [contract.score for contract in ranked] == [99, 10, 10]
    assert len(asked.targets) == 3
    assert asked.targets[0].startswith("/v3/snapshot/options/TWX?limit=250")
