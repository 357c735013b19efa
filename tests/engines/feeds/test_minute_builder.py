"""Events to closed minutes: event time and grace, late and redelivered events, gaps, and what no frame may break."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.feeds.closed_minutes import ClosedMinute, Gap
from engines.feeds.file_columns import columns_of
from engines.feeds.minute_builder import group_of
from engines.feeds.stream_events import FrameCounts, decode_frame
from engines.feeds.stream_intake import StreamIntake
from ledger.columns import Dataset

OPEN_MS = 1_381_152_600_000
MINUTE_MS = 60_000
CALL, PUT = "O:TWX140621C00070000", "O:TWX140621P00070000"


def trade(second: float, ticker: str = "AIG", q: int = 0, p: float = 49.5, **more: Any) -> dict[str, Any]:
    """A trade so many seconds after the open."""
    return {"ev": "T", "sym": ticker, "t": OPEN_MS + round(second * 1000), "p": p, "s": 100, "q": q, **more}


def quote(second: float, ticker: str = "AIG", q: int = 0, **more: Any) -> dict[str, Any]:
    """A quote so many seconds after the open."""
    return {
        "ev": "Q",
        "sym": ticker,
        "t": OPEN_MS + round(second * 1000),
        "bp": 1.5,
        "ap": 1.6,
        "bs": 1,
        "as": 2,
        "q": q,
        **more,
    }


def intake(*events: dict[str, Any], of_options: bool = False, subscribed: bool = True) -> StreamIntake:
    """An intake that took the events in one frame."""
    made = StreamIntake(of_options=of_options)
    if not subscribed:
        made.lost("the feed began")
    made.subscribed()
    feed(made, *events)
    return made


def feed(made: StreamIntake, *events: dict[str, Any]) -> None:
    """Give it a frame more."""
    made.frame(json.dumps(events).encode())
    made.flush()


def minutes(made: StreamIntake) -> list[tuple[int, int, int]]:
    """What is due: (minute from the open, revision, rows)."""
    return [((m.start_ns // 1_000_000 - OPEN_MS) // MINUTE_MS, m.revision, m.rows) for m in made.due()]


def test_a_minute_closes_when_an_event_is_past_its_end_and_grace() -> None:
    """Not before: 61.9 s is within the grace, 62 s is not."""
    made = intake(trade(0), trade(59.999), trade(60), trade(61.9))
    assert minutes(made) == []
    feed(made, trade(62))
    assert minutes(made) == [(0, 0, 2)]
    assert minutes(made) == []
    assert made.counts.minutes_closed == 1


def test_time_that_passes_without_events_closes_minutes_too() -> None:
    """The caller says how late it is."""
    made = intake(trade(5))

    assert [m.rows for m in made.due(made.watermark_ns + 57_000_000_000)] == [1]


def test_a_late_event_reopens_its_minute_for_its_group_only() -> None:
    """The whole ticker comes again with a higher revision; the other one is not in it."""
    made = intake(trade(1, "AIG", 1), trade(2, "IBM", 2), trade(65))
    assert minutes(made) == [(0, 0, 2)]

    feed(made, trade(30, "AIG", 3))
    (again,) = list(made.due())

    assert (again.revision, again.whole, again.groups, again.tickers, again.rows) == (1, True, ("AIG",), ("AIG",), 2)
    assert (made.counts.rows_late, made.counts.minutes_reopened) == (1, 1)


def test_a_late_event_of_a_contract_brings_all_contracts_of_its_root() -> None:
    """A chain is one symbol; part of it would look like all of it."""
    made = intake(trade(1, CALL, 1), trade(2, "O:SPY140621C00070000", 2), trade(65, CALL, 9), of_options=True)
    list(made.due())

    feed(made, trade(30, PUT, 3))
    (again,) = list(made.due())

    assert (again.groups, again.tickers) == (("O:TWX",), (CALL, PUT))
    assert group_of(CALL) == "O:TWX"
    assert group_of("AIG") == "AIG"


def test_a_late_event_of_a_forgotten_minute_is_an_addition() -> None:
    """Memory is bounded; nothing that arrived is lost, and it is not called whole."""
    made = intake(trade(1), trade(13 * 60))
    list(made.due())
    assert made.rows_kept == 1

    feed(made, trade(2))
    (late,) = list(made.due())

    assert (late.whole, late.rows, late.groups) == (False, 1, ("AIG",))
    assert made.rows_kept == 1


def test_redelivered_events_come_once_and_identical_prints_twice() -> None:
    """A sequence tells them apart; without one both are real."""
    made = intake(trade(1, q=1), trade(1, q=1), trade(1, q=2), trade(2), trade(2), trade(65))
    assert minutes(made) == [(0, 0, 4)]

    feed(made, trade(1, q=2))

    assert minutes(made) == []
    assert made.counts.rows_redelivered == 2


def test_a_sequence_with_another_content_is_another_row() -> None:
    """A correction that keeps its number is not thrown away."""
    made = intake(trade(1, q=1), trade(1, q=1, p=49.6), trade(65))

    assert minutes(made) == [(0, 0, 2)]


def test_frames_have_the_columns_of_the_file_and_times_in_ns() -> None:
    """Types, order, defaults; conditions and indicators as comma lists."""
    made = intake(
        trade(1, q=5, c=[12, 37], i="x1", x=11, z=1, trfi=202, trft=OPEN_MS),
        quote(2, q=6, c=1, i=[604], bx=11, ax=12, z=1), quote(3, c=[1, 2]), trade(65), quote(65),
    )  # fmt: skip
    trades, quotes = (m.frame() for m in made.due())

    assert dict(trades.schema) == columns_of(Dataset.STOCK_TRADES).types
    assert dict(quotes.schema) == columns_of(Dataset.STOCK_QUOTES).types
    assert trades.row(0, named=True) == {
        "ticker": "AIG", "sip_timestamp": (OPEN_MS + 1000) * 10**6, "sequence_number": 5, "price": 49.5, "size": 100.0,
        "exchange": 11, "conditions": "12,37", "correction": 0, "participant_timestamp": 0, "id": "x1", "tape": 1,
        "trf_id": 202, "trf_timestamp": OPEN_MS * 10**6,
    }  # fmt: skip
    assert quotes["conditions"].to_list() == ["1", "1,2"]
    assert quotes["indicators"].to_list() == ["604", ""]


def test_option_trades_have_no_sequence_in_their_frame() -> None:
    """Files have none; with one, equal times would be ordered another way."""
    made = intake(trade(1, CALL, 9), trade(65, CALL, 10), of_options=True)
    (closed,) = list(made.due())

    assert closed.frame()["sequence_number"].to_list() == [0]
    assert closed.dataset is Dataset.OPTION_TRADES


def test_bad_values_are_rejected_by_reason_and_the_rest_is_kept() -> None:
    """In the words of the file reader."""
    made = intake(
        trade(1, p=0), trade(1, p=-1), trade(1, s=-1), trade(1, '"x'), trade(1, c=[10**7]), trade(1, i="i" * 65),
        trade(2), quote(1, bp=-1), quote(2), trade(65), quote(65),
    )  # fmt: skip

    assert minutes(made) == [(0, 0, 1), (0, 0, 1)]
    assert made.counts.rejected == {
        "zero_price": 1, "negative_price": 1, "negative_size": 1, "malformed_ticker": 1, "malformed_codes_or_id": 2,
        "negative_bid_price": 1,
    }  # fmt: skip


def test_events_of_another_day_are_refused() -> None:
    """A wild time would close every minute of the day."""
    made = StreamIntake(of_options=False, day=(OPEN_MS * 10**6, (OPEN_MS + 10 * MINUTE_MS) * 10**6))
    feed(made, trade(1), trade(-1), trade(10**6), trade(2))

    assert made.watermark_ns == (OPEN_MS + 2000) * 10**6
    assert made.counts.rejected == {"other_day": 2}


@pytest.mark.parametrize(
    "frame", [b"", b"garbage", b"{}", b"\xff\xfe", b'[{"ev":"T"', b"[[[[", b'"text"', b"[" * 5000, b"null"]
)
def test_a_frame_that_is_none_is_counted_and_survived(frame: bytes) -> None:
    """Whatever it is."""
    counts = FrameCounts()

    assert list(decode_frame(frame, counts)) == []
    assert (counts.frames, counts.frames_unreadable) == (1, 1)
    assert counts.last_bad.startswith("frame 1")


def test_a_bad_event_costs_no_good_one() -> None:
    """Unknown kinds are counted apart from broken events."""
    events = [trade(1), {"ev": "AM", "sym": "AIG"}, {"ev": "Q", "sym": 7}, {"no": "kind"}, trade(2, q=2**70), quote(3)]
    made = intake(*events)

    assert (made.counts.events, made.counts.events_of_other_kinds, made.counts.events_unreadable) == (2, 1, 3)


def test_status_messages_come_back_in_order() -> None:
    """Beside events in one frame."""
    made = StreamIntake(of_options=False)
    frame = json.dumps([{"ev": "status", "status": "a"}, trade(1), {"ev": "status", "status": "b"}])

    assert [status.status for status in made.frame(frame)] == ["a", "b"]


def test_a_gap_lasts_from_the_last_event_to_the_first_one_after_subscribing() -> None:
    """Both minutes that it touches are partial, the one after is not; events before the acknowledgement end nothing."""
    made = intake(trade(1), trade(50))
    gap = made.lost("the connection broke")
    assert gap == Gap((OPEN_MS + 50_000) * 10**6, None, "the connection broke")
    assert made.lost("again") is None
    feed(made, trade(70))
    assert made.ended_gaps() == []
    made.subscribed()
    feed(made, trade(80), trade(130), trade(200))

    assert [(m.start_ns // 10**6 - OPEN_MS, m.partial) for m in made.due()] == [
        (0, True), (60_000, True), (120_000, False),
    ]  # fmt: skip
    assert made.ended_gaps() == [Gap((OPEN_MS + 50_000) * 10**6, (OPEN_MS + 80_000) * 10**6, "the connection broke")]
    assert made.ended_gaps() == []


def test_the_first_minute_of_a_feed_is_partial() -> None:
    """What came before it was there is not known."""
    made = intake(trade(30), trade(90), trade(125), subscribed=False)

    assert [m.partial for m in made.due()] == [True, False]


def test_what_is_left_at_the_end_is_not_finished() -> None:
    """The last minute was not over: it is handed over, partial, and not called filled."""
    made = intake(trade(1), trade(61))
    left = list(made.finish())

    assert [(m.rows, m.finished, m.partial) for m in left] == [(1, False, True), (1, False, True)]
    assert list(made.finish()) == []


def applied(handed: list[ClosedMinute]) -> pl.DataFrame:
    """The rows that a reader of the messages ends with."""
    cells: dict[tuple[int, str], pl.DataFrame] = {}
    for minute in handed:
        frame = minute.frame()
        if minute.whole:
            for key in [
                k for k in cells if k[0] == minute.start_ns and (minute.groups is None or k[1] in minute.groups)
            ]:
                del cells[key]
        for ticker in minute.tickers:
            rows = frame.filter(pl.col("ticker") == ticker)
            key = (minute.start_ns, ticker)
            cells[key] = pl.concat([cells[key], rows]) if key in cells else rows
    return pl.concat(cells.values()).sort("ticker", "sip_timestamp", "sequence_number")


@given(
    seconds=st.lists(st.integers(0, 400), min_size=1, max_size=60),
    shuffle=st.randoms(use_true_random=False),
    size=st.integers(1, 7),
)
def test_any_order_and_any_redelivery_end_with_the_same_rows(seconds: list[int], shuffle: Any, size: int) -> None:
    """Minutes that are reopened until nothing comes are the minutes of the sorted events."""
    events = [trade(second, ["AIG", "IBM"][n % 2], n + 1) for n, second in enumerate(sorted(seconds))]
    played = events + [each for each in events if shuffle.random() < 0.3]
    shuffle.shuffle(played)
    made = StreamIntake(of_options=False)
    handed: list[ClosedMinute] = []
    for begin in range(0, len(played), size):
        feed(made, *played[begin : begin + size])
        handed += made.due()
    handed += made.finish()
    rows = applied(handed)

    assert sorted(rows["sequence_number"].to_list()) == list(range(1, len(events) + 1))
    assert rows["sip_timestamp"].to_list() == [
        each["t"] * 10**6 for each in sorted(events, key=lambda e: (e["sym"], e["t"], e["q"]))
    ]
