"""Events to spooled minutes: event time and grace, late and redelivered events, gaps, full disks, and what no frame breaks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.feeds.feed_messages import ClosedThrough, FeedMessage, Gap, SpooledRows
from engines.feeds.file_columns import CONTRACT_PATTERN, TICKER_PATTERN, frame_types
from engines.feeds.minute_spool import GRACE_NS
from engines.feeds.spooled_rows import Spooled, look_into, redelivered_once
from engines.feeds.stream_events import CONTRACT, TICKER, FrameCounts, decode_frame
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where minutes are spooled."""
    return tmp_path


def intake(folder: Path, *events: dict[str, Any], of_options: bool = False, **more: Any) -> StreamIntake:
    """An intake that took the events in one frame."""
    made = StreamIntake(folder, of_options=of_options, free_bytes_min=0, **more)
    made.subscribed()
    feed(made, *events)
    return made


def feed(made: StreamIntake, *events: dict[str, Any]) -> None:
    """Give it a frame more."""
    made.frame(json.dumps(events).encode())
    made.flush()


def rows_of(message: FeedMessage) -> pl.DataFrame:
    """The rows of a spooled file, in order of ticker, time and sequence."""
    assert isinstance(message, SpooledRows)
    spooled = Spooled([Path(message.path)], message.dataset)
    frame = spooled.frame(np.ones(len(spooled.tickers), np.bool_))
    return frame.sort("ticker", "sip_timestamp", "sequence_number", maintain_order=True)


def handed(made: StreamIntake, watermark_ns: int | None = None) -> list[SpooledRows]:
    """Files that are due, late ones included."""
    return [one for one in made.due(watermark_ns, late=True) if isinstance(one, SpooledRows)]


def minutes(made: StreamIntake) -> list[tuple[int, bool, int]]:
    """What is due: (minute from the open, late, rows)."""
    return [((m.start_ns // 1_000_000 - OPEN_MS) // MINUTE_MS, m.late, m.rows) for m in handed(made)]


def test_a_minute_closes_when_an_event_is_past_its_end_and_grace(folder: Path) -> None:
    """Not before: 61.9 s is within the grace, 62 s is not. How far minutes are closed is said behind their rows."""
    made = intake(folder, trade(0), trade(59.999), trade(60), trade(61.9))
    assert minutes(made) == []
    feed(made, trade(62))
    rows, closed = made.due()
    assert isinstance(rows, SpooledRows)
    assert (rows.start_ns, rows.late, rows.rows, rows.tickers) == (OPEN_MS * 10**6, False, 2, ("AIG",))
    assert closed == ClosedThrough((OPEN_MS + MINUTE_MS) * 10**6)
    assert list(made.due()) == []
    assert made.counts.minutes_closed == 1


def test_time_that_passes_without_events_closes_minutes_too(folder: Path) -> None:
    """The caller says how late it is."""
    made = intake(folder, trade(5))

    assert [m.rows for m in handed(made, made.watermark_ns + 57_000_000_000)] == [1]


def test_late_rows_come_in_a_file_of_their_own(folder: Path) -> None:
    """They are added to what was handed over; when no minute closes they wait until they are asked for."""
    made = intake(folder, trade(1, "AIG", 1), trade(2, "IBM", 2), trade(65))
    assert minutes(made) == [(0, False, 2)]

    feed(made, trade(30, "AIG", 3))
    assert list(made.due()) == []
    (late,) = made.due(late=True)

    assert isinstance(late, SpooledRows)
    assert (late.late, late.tickers, late.rows) == (True, ("AIG",), 1)
    assert rows_of(late)["sequence_number"].to_list() == [3]
    assert made.counts.trades.late == 1


def test_memory_holds_no_row_of_a_minute(folder: Path) -> None:
    """What was taken is in a file at once, complete to the block, whoever is killed."""
    intake(folder, trade(1, i="x"), trade(2, "IBM", 7))
    (path,) = folder.iterdir()

    assert look_into(path, Dataset.STOCK_TRADES) == (2, ("AIG", "IBM"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert look_into(path, Dataset.STOCK_TRADES) == (0, ())


def test_redelivered_events_come_once_and_identical_prints_twice(folder: Path) -> None:
    """A sequence tells them apart; without one both are real."""
    made = intake(folder, trade(1, q=1), trade(1, q=1), trade(1, q=2), trade(2), trade(2), trade(65))
    (closed,) = handed(made)
    assert (closed.rows, rows_of(closed).height) == (5, 4)

    feed(made, trade(1, q=2))
    (late,) = handed(made)
    both = pl.concat([rows_of(closed), rows_of(late)])
    assert redelivered_once(both, Dataset.STOCK_TRADES).height == 4


def test_a_contract_s_redelivered_trade_is_known_by_the_id_that_its_sequence_becomes(folder: Path) -> None:
    """Files of option trades have no sequence, and two prints of the same millisecond are ordered without one."""
    made = intake(folder, trade(1, CALL, 9), trade(1, CALL, 9), trade(1, CALL, 8), trade(65, CALL, 10), of_options=True)
    (closed,) = handed(made)
    frame = rows_of(closed)

    assert frame["sequence_number"].to_list() == [0, 0]
    assert sorted(frame["id"].to_list()) == ["8", "9"]
    assert closed.dataset is Dataset.OPTION_TRADES


def test_a_sequence_with_another_content_is_another_row(folder: Path) -> None:
    """A correction that keeps its number is not thrown away."""
    (closed,) = handed(intake(folder, trade(1, q=1), trade(1, q=1, p=49.6), trade(65)))

    assert rows_of(closed).height == 2


def test_frames_have_the_columns_of_the_file_and_times_in_ns(folder: Path) -> None:
    """Types, order, defaults; conditions and indicators as comma lists."""
    made = intake(
        folder, trade(1, q=5, c=[12, 37], i="x1", x=11, z=1, trfi=202, trft=OPEN_MS),
        quote(2, q=6, c=1, i=[604], bx=11, ax=12, z=1), quote(3, c=[1, 2]), trade(65), quote(65),
    )  # fmt: skip
    trades, quotes = map(rows_of, handed(made))

    assert dict(trades.schema) == frame_types(Dataset.STOCK_TRADES)
    assert dict(quotes.schema) == frame_types(Dataset.STOCK_QUOTES)
    assert trades.row(0, named=True) == {
        "ticker": "AIG", "sip_timestamp": (OPEN_MS + 1000) * 10**6, "sequence_number": 5, "price": 49.5, "size": 100.0,
        "exchange": 11, "conditions": "12,37", "correction": 0, "participant_timestamp": 0, "id": "x1", "tape": 1,
        "trf_id": 202, "trf_timestamp": OPEN_MS * 10**6,
    }  # fmt: skip
    assert quotes["conditions"].to_list() == ["1", "1,2"]
    assert quotes["indicators"].to_list() == ["604", ""]


def test_an_id_that_is_not_ascii_stays_what_it_was(folder: Path) -> None:
    """Ids lie one behind the other by bytes, not by letters."""
    (closed,) = handed(
        intake(folder, trade(1, i="é" * 32), trade(2, i=""), trade(3, i="z"), trade(4, i="é" * 33), trade(65))
    )

    assert rows_of(closed)["id"].to_list() == ["é" * 32, "", "z"]


def test_bad_values_are_rejected_by_reason_and_the_rest_is_kept(folder: Path) -> None:
    """In the words of the file reader, trades and quotes apart."""
    made = intake(
        folder, trade(1, p=0), trade(1, p=-1), trade(1, s=-1), trade(1, p=2.0**53), trade(1, '"x'), trade(1, CALL),
        trade(1, c=[10**7]), trade(1, i="i" * 65), trade(2), quote(1, bp=-1), quote(2), trade(65), quote(65),
    )  # fmt: skip

    assert minutes(made) == [(0, False, 1), (0, False, 1)]
    assert made.counts.trades.rejected == {
        "zero_price": 1, "negative_price": 1, "negative_size": 1, "overflowing_price": 1, "malformed_ticker": 2,
        "malformed_codes_or_id": 2,
    }  # fmt: skip
    assert made.counts.quotes.rejected == {"negative_bid_price": 1}


def test_a_connection_of_options_takes_contracts_only(folder: Path) -> None:
    """Tickers have the form that the file reader asks for, to the letter."""
    made = intake(folder, trade(1, CALL), trade(1, "AIG"), trade(1, "O:TWX"), trade(65, CALL), of_options=True)

    assert minutes(made) == [(0, False, 1)]
    assert made.counts.trades.rejected == {"malformed_option_ticker": 2}
    assert (f"^{TICKER.pattern}$", f"^{CONTRACT.pattern}$") == (TICKER_PATTERN, CONTRACT_PATTERN)


def test_of_a_wildcard_only_what_somebody_asked_for_is_kept(folder: Path) -> None:
    """Trades and quotes by globs of their own."""
    made = intake(
        folder, trade(1, "AIG"), trade(1, "IBM"), quote(1, "AIG"), quote(1, "IBM"), trade(65, "AIG"), trade(66, "BAC"),
        wanted_trades=("A*", "BAC"), wanted_quotes=("IBM",),
    )  # fmt: skip

    assert [m.tickers for m in handed(made)] == [("AIG",), ("IBM",)]
    assert (made.counts.trades.unwanted, made.counts.quotes.unwanted) == (1, 1)


def test_events_of_another_day_are_refused(folder: Path) -> None:
    """A wild time would close every minute of the day."""
    made = StreamIntake(
        folder, of_options=False, free_bytes_min=0, day=(OPEN_MS * 10**6, (OPEN_MS + 10 * MINUTE_MS) * 10**6)
    )
    feed(made, trade(1), trade(-1), trade(10**6), trade(2))

    assert made.watermark_ns == (OPEN_MS + 2000) * 10**6
    assert made.counts.trades.rejected == {"other_day": 2}


def test_rows_without_room_are_dropped_counted_and_told_as_a_gap(folder: Path) -> None:
    """The disk is kept from running full; the gap comes before its minute."""
    made = StreamIntake(folder, of_options=False, free_bytes_min=1 << 62)
    made.subscribed()
    feed(made, trade(1), trade(2), quote(3), trade(65))
    gaps = [one for one in made.due() if isinstance(one, Gap)]

    assert [(gap.start_ns, gap.end_ns) for gap in gaps] == [
        ((OPEN_MS + 1000) * 10**6, (OPEN_MS + 2000) * 10**6),
        ((OPEN_MS + 65_000) * 10**6, (OPEN_MS + 65_000) * 10**6),
        ((OPEN_MS + 3000) * 10**6, (OPEN_MS + 3000) * 10**6),
    ]
    assert "MiB free" in gaps[0].reason
    assert (made.counts.trades.dropped, made.counts.quotes.dropped, made.counts.rows) == (3, 1, 0)
    assert list(folder.glob("*.rows")) == []


def test_a_write_that_fails_costs_its_block_and_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What part of it was written is cut off, so that later blocks can be read."""
    made = intake(folder, trade(1, q=1))
    real = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        with real(self, "ab") as file:
            file.write(b"half a block")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "open", full)
    feed(made, trade(2, "IBM", 2))
    monkeypatch.setattr(Path, "open", real)
    feed(made, trade(3, "IBM", 3), trade(65))
    (closed,) = handed(made)

    assert rows_of(closed)["sequence_number"].to_list() == [1, 3]
    assert (closed.rows, made.counts.trades.dropped) == (2, 1)


@pytest.mark.parametrize(
    "frame", [b"", b"garbage", b"{}", b"\xff\xfe", b'[{"ev":"T"', b"[[[[", b'"text"', b"[" * 5000, b"null"]
)
def test_a_frame_that_is_none_is_counted_and_survived(frame: bytes) -> None:
    """Whatever it is."""
    counts = FrameCounts()

    assert list(decode_frame(frame, counts)) == []
    assert (counts.frames, counts.frames_unreadable) == (1, 1)
    assert counts.last_bad.startswith("frame 1")


def test_a_bad_event_costs_no_good_one(folder: Path) -> None:
    """Unknown kinds are counted apart from broken events."""
    events = [trade(1), {"ev": "AM", "sym": "AIG"}, {"ev": "Q", "sym": 7}, {"no": "kind"}, trade(2, q=2**70), quote(3)]
    made = intake(folder, *events)

    assert (made.counts.events, made.counts.events_of_other_kinds, made.counts.events_unreadable) == (2, 1, 3)


def test_status_messages_come_back_in_order(folder: Path) -> None:
    """Beside events in one frame."""
    made = StreamIntake(folder, of_options=False)
    frame = json.dumps([{"ev": "status", "status": "a"}, trade(1), {"ev": "status", "status": "b"}])

    assert [status.status for status in made.frame(frame)] == ["a", "b"]


def at(second: float) -> int:
    """ns UTC of so many seconds after the open."""
    return OPEN_MS * 10**6 + round(second * 10**9)


def test_a_gap_begins_with_what_was_not_closed_and_ends_a_grace_after_the_next_event(folder: Path) -> None:
    """Late events of the minutes that were open never came, and such of the first ones after may not have come."""
    made = intake(folder, trade(1), trade(50))
    gap = made.lost("the connection broke")
    assert gap == Gap(at(50) - GRACE_NS, None, "the connection broke")
    assert made.lost("again") is None
    feed(made, trade(70))
    assert not any(isinstance(one, Gap) for one in made.due())
    made.subscribed()
    feed(made, trade(80), trade(130), trade(200))

    ended, *_ = made.due()
    assert ended == Gap(at(50) - GRACE_NS, at(80) + GRACE_NS, "the connection broke")
    assert not any(isinstance(one, Gap) for one in made.due())


def test_where_the_clock_tells_event_time_a_gap_ends_with_the_subscription(folder: Path) -> None:
    """A quiet contract must not look broken until its next trade."""
    made = intake(folder, trade(1))
    made.lost("cut")
    made.subscribed(at(20))
    assert next(iter(made.due())) == Gap(at(1) - GRACE_NS, at(20) + GRACE_NS, "cut")

    made = StreamIntake(folder, of_options=False, free_bytes_min=0)
    made.lost("the feed began")
    made.subscribed(None, lambda event_ns: 600 * 10**9)
    feed(made, trade(900))
    assert next(iter(made.due())) == Gap(0, at(300) + GRACE_NS, "the feed began")


def test_a_feed_that_goes_on_for_another_begins_where_that_one_had_closed(folder: Path) -> None:
    """Windows that were closed before are not in its gap."""
    made = StreamIntake(folder, of_options=False, resume_ns=at(600))

    assert made.lost("the feed began") == Gap(at(600), None, "the feed began")


def test_what_is_left_at_the_end_is_not_finished(folder: Path) -> None:
    """The last minute was not over: it is handed over, and not called filled."""
    made = intake(folder, trade(1), trade(61))
    left = list(made.finish())

    assert [(one.rows, one.finished) for one in left if isinstance(one, SpooledRows)] == [(1, False), (1, False)]
    assert list(made.finish()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.lists(st.integers(0, 400), min_size=1, max_size=60),
    shuffle=st.randoms(use_true_random=False),
    size=st.integers(1, 7),
)
def test_any_order_and_any_redelivery_end_with_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[int], shuffle: Any, size: int
) -> None:
    """What is handed over, late or not, adds up to the sorted events."""
    events = [trade(second, ["AIG", "IBM"][n % 2], n + 1) for n, second in enumerate(sorted(seconds))]
    played = events + [each for each in events if shuffle.random() < 0.3]
    shuffle.shuffle(played)
    made = intake(tmp_path_factory.mktemp("spool"))
    files: list[SpooledRows] = []
    for begin in range(0, len(played), size):
        feed(made, *played[begin : begin + size])
        files += handed(made)
    files += [one for one in made.finish() if isinstance(one, SpooledRows)]
    spooled = Spooled([Path(one.path) for one in files], Dataset.STOCK_TRADES)
    rows = spooled.frame(np.ones(len(spooled.tickers), np.bool_)).sort("ticker", "sip_timestamp", "sequence_number")

    assert sum(one.rows for one in files) == len(played)
    assert sorted(rows["sequence_number"].to_list()) == list(range(1, len(events) + 1))
    assert rows["sip_timestamp"].to_list() == [
        each["t"] * 10**6 for each in sorted(events, key=lambda e: (e["sym"], e["t"], e["q"]))
    ]


def test_parts_of_a_minute_add_up_to_it(folder: Path) -> None:
    """Rows are taken for some tickers at a time, from several files, with the texts of each."""
    made = intake(
        folder, trade(1, "AIG", 1, c=[12]), trade(2, "IBM", 2, c=[37]), trade(65, "IBM", 3, c=[12]), trade(130)
    )
    spooled = Spooled([Path(one.path) for one in handed(made)], Dataset.STOCK_TRADES)
    assert (spooled.tickers, spooled.rows.tolist()) == (["AIG", "IBM"], [1, 2])
    first, second = (spooled.frame(np.array(mask)) for mask in ([True, False], [False, True]))

    assert [frame["conditions"].to_list() for frame in (first, second)] == [["12"], ["37", "12"]]
    assert [frame["ticker"].unique().to_list() for frame in (first, second)] == [["AIG"], ["IBM"]]
