"""Curves from files and over HTTP: absent tenors, pages with their key, and every way a source refuses."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engines.feeds.feed_errors import (
    FeedError,
    PageRepeated,
    ReplyMalformed,
    SourceBusy,
    SourceFailing,
    SourceMissing,
    SourceRefused,
    SourceUnreachable,
)
from engines.feeds.json_pages import PageSource
from engines.feeds.retrying import RequestBudget, RetryPolicy, retry_after_seconds
from engines.feeds.treasury_yields import TENORS, Curve, fetch_yields, read_yields
from tests.engines.feeds.scripted_source import Answer, page, refusal, serving

KEY = "the-secret-key"
FULL = {
    "date": "2013-10-07", "yield_1_month": 0.03, "yield_2_month": 0.04, "yield_3_month": 0.05, "yield_6_month": 0.08,
    "yield_1_year": 0.14, "yield_2_year": 0.3, "yield_3_year": 0.5, "yield_5_year": 1.03, "yield_7_year": 1.53,
    "yield_10_year": 2.13, "yield_20_year": 2.92, "yield_30_year": 3.27,
}  # fmt: skip


def row(date: str) -> dict[str, object]:
    """A curve of one tenor."""
    return {"date": date, "yield_10_year": 2.0}


class Pauses(list[float]):
    """What was slept, in seconds; nothing is. Closes the sources that sleep on it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[PageSource] = []


@pytest.fixture
def pauses() -> Iterator[Pauses]:
    """No pause yet."""
    made = Pauses()
    yield made
    for each in made.opened:
        each.close()


def source(address: str, pauses: Pauses) -> PageSource:
    """A source that sleeps on paper."""
    pauses.opened.append(PageSource(address, KEY, sleep=pauses.append, timeout_seconds=60.0))
    return pauses.opened[-1]


def test_a_file_gives_curves_with_absent_tenors_marked(tmp_path: Path) -> None:
    """Percent become basis points; a tenor that is not there, or null, is None and not 0."""
    path = tmp_path / "yields.json"
    path.write_bytes(msgspec.json.encode({"results": [FULL, {"date": "2013-10-04", "yield_1_month": 0.0, "x": 1}]}))

    older, newer = read_yields(path)

    assert older == Curve("2013-10-04", (0, *[None] * 11))
    assert newer.tenor_bps == (3, 4, 5, 8, 14, 30, 50, 103, 153, 213, 292, 327)
    assert older.absent == TENORS[1:]


def test_a_saved_list_of_pages_is_read_and_the_later_curve_of_a_date_holds(tmp_path: Path) -> None:
    """Revisions come after what they revise."""
    path = tmp_path / "pages.json"
    revised = {**row("2013-10-07"), "yield_10_year": 2.5}
    path.write_bytes(msgspec.json.encode([{"results": [row("2013-10-07")]}, {"results": [revised]}]))

    assert [curve.tenor_bps[9] for curve in read_yields(path)] == [250]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not the JSON"),
        (b"{}", "results"),
        (b'{"results": [{"yield_1_month": 1}]}', "curve 1.*date"),
        (b'{"results": [{"date": "2013-02-30"}]}', "curve 1"),
        (b'{"results": [{"date": "20131007"}]}', "YYYY-MM-DD"),
        (b'{"results": [{"date": "2013-10-07", "yield_1_month": "1.5"}]}', "yield_1_month"),
        (b'{"results": [{"date": "2013-10-07", "yield_1_month": 1e300}]}', "cannot be"),
    ],
)
def test_a_file_that_is_not_the_json_is_refused_with_the_place(tmp_path: Path, body: bytes, said: str) -> None:
    """The message names the curve and what is wrong with it."""
    path = tmp_path / "yields.json"
    path.write_bytes(body)

    with pytest.raises(ReplyMalformed, match=said):
        read_yields(path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    """Not there is another error than damaged: the engine waits."""
    with pytest.raises(SourceMissing):
        read_yields(tmp_path / "none.json")


def test_the_real_file_has_61_curves(shared_data: Path) -> None:
    """Eleven tenors each; the two-month one is absent."""
    curves = read_yields(shared_data / "treasury" / "treasury-yields.json")

    assert len(curves) == 61
    assert {curve.absent for curve in curves} == {("2m",)}


def test_pages_are_followed_with_their_key_absolute_and_relative(pauses: Pauses) -> None:
    """Every request carries the key once, also where ``next_url`` has none, an old one, or another host."""

    def answer(number: int, _: str) -> Answer:
        following = ["http://elsewhere.invalid/fed/v1/treasury-yields?cursor=a", "?cursor=b&apiKey=old", None][number]
        return page([row(f"2013-10-0{number + 1}"), row(f"2012-10-0{number + 1}")], following)

    with serving(answer) as (address, asked):
        curves = fetch_yields(source(address, pauses), date_from="2013-01-01")

    assert [curve.date for curve in curves] == ["2013-10-01", "2013-10-02", "2013-10-03"]
    assert [query["apiKey"] for query in asked.queries()] == [KEY] * 3
    assert asked.queries()[0]["date.gte"] == "2013-01-01"
    assert [query.get("cursor") for query in asked.queries()] == [None, "a", "b"]


def test_429_waits_as_long_as_it_is_asked_to(pauses: Pauses) -> None:
    """Retry-After is a floor under the usual pause."""
    script = [refusal(429, {"Retry-After": "7"}), refusal(429), page([row("2013-10-07")])]

    with serving(lambda number, _: script[number]) as (address, _):
        curves = fetch_yields(source(address, pauses))

    assert len(curves) == 1
    assert pauses[0] == 7.0
    assert 0.3 < pauses[1] < 0.7


def test_429_for_good_is_busy_with_what_was_asked(pauses: Pauses) -> None:
    """Attempts are bounded; the error carries the pause, and so does its pickle."""
    with (
        serving(lambda *_: refusal(429, {"Retry-After": "3"})) as (address, asked),
        pytest.raises(SourceBusy) as caught,
    ):
        fetch_yields(source(address, pauses))

    assert len(asked.targets) == 5
    assert pickle.loads(pickle.dumps(caught.value)).retry_after_seconds == 3.0
    assert KEY not in str(caught.value)


def test_a_retry_after_beyond_all_patience_is_not_slept(pauses: Pauses) -> None:
    """An hour belongs to the engine's schedule, not to a sleeping worker."""
    with serving(lambda *_: refusal(429, {"Retry-After": "3600"})) as (address, _), pytest.raises(SourceBusy):
        fetch_yields(source(address, pauses))

    assert pauses == []


@pytest.mark.parametrize("bad", [refusal(500), refusal(503), (200, {"Content-Length": "500"}, b'{"resu')])
def test_a_failure_is_tried_again_with_growing_pauses(pauses: Pauses, bad: Answer) -> None:
    """5xx and a reply cut short; a third attempt brings the curves."""
    with serving(lambda number, _: page([row("2013-10-07")]) if number == 2 else bad) as (address, _):
        assert len(fetch_yields(source(address, pauses))) == 1

    assert len(pauses) == 2
    assert pauses[0] < pauses[1]


def test_failing_for_good_ends_after_five_attempts(pauses: Pauses) -> None:
    """Bounded, and in words."""
    with serving(lambda *_: refusal(500)) as (address, asked), pytest.raises(SourceFailing, match="HTTP 500: because"):
        fetch_yields(source(address, pauses))

    assert len(asked.targets) == 5


@pytest.mark.parametrize(
    ("status", "kind"), [(401, SourceRefused), (403, SourceRefused), (404, SourceMissing), (400, ReplyMalformed)]
)
def test_a_refusal_is_not_tried_again(pauses: Pauses, status: int, kind: type[FeedError]) -> None:
    """Asking a second time would get the same answer."""
    with serving(lambda *_: refusal(status)) as (address, asked), pytest.raises(kind):
        fetch_yields(source(address, pauses))

    assert len(asked.targets) == 1


def test_nobody_there_no_name_and_no_tls_are_unreachable(pauses: Pauses) -> None:
    """Each in words that say which it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SourceUnreachable, match="Refused"):
        fetch_yields(source(closed, pauses))
    with pytest.raises(SourceUnreachable, match="DNS"):
        fetch_yields(source("http://no.such.host.invalid", pauses))
    with serving(lambda *_: page([])) as (address, _), pytest.raises(SourceUnreachable, match="TLS"):
        fetch_yields(source(address.replace("http:", "https:"), pauses))


def test_a_page_that_repeats_once_costs_another_request(pauses: Pauses) -> None:
    """The page is asked for again, and no curve comes twice."""

    def answer(number: int, target: str) -> Answer:
        if number == 0:
            return page([row("2013-10-01"), row("2013-10-02")], "?cursor=a")
        if number == 1:
            return page([row("2013-10-01"), row("2013-10-02")], "?cursor=b")
        assert "cursor=a" in target
        return page([row("2013-10-03")])

    with serving(answer) as (address, _):
        assert [curve.date for curve in fetch_yields(source(address, pauses))] == [
            f"2013-10-0{day}" for day in (1, 2, 3)
        ]


def test_pages_that_go_in_a_circle_are_refused(pauses: Pauses) -> None:
    """A next page that was read already, again and again."""
    circle = page([row("2013-10-01")], "?limit=5000&sort=date.asc")
    with serving(lambda *_: circle) as (address, asked), pytest.raises(PageRepeated):
        fetch_yields(source(address, pauses))

    assert len(asked.targets) <= 6


@pytest.mark.parametrize("body", [b"<html>", b'{"results": 5}', b'{"results": [5]}', b'{"status":"ERROR","error":"x"}'])
def test_an_answer_that_is_no_page_is_malformed(pauses: Pauses, body: bytes) -> None:
    """200 does not make it one."""
    with serving(lambda *_: (200, {}, body)) as (address, _), pytest.raises(ReplyMalformed):
        fetch_yields(source(address, pauses))


def test_the_budget_holds_requests_back() -> None:
    """Three a minute: the fourth waits for the first to be a minute old."""
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    budget = RequestBudget(3, clock=lambda: now[0], sleep=sleep)
    for at in (0.0, 10.0, 20.0):
        now[0] = at
        budget.take()
    budget.take()
    budget.take()

    assert slept == [40.0, 10.0]


def test_the_jitter_repeats_with_its_seed() -> None:
    """Two policies of a seed pause alike, of two seeds not; all stay within a quarter."""

    def draw(seed: int) -> Iterator[float]:
        policy = RetryPolicy(seed=seed)
        return (policy.pause_seconds(attempt) for attempt in range(8))

    first = list(draw(1))

    assert first == list(draw(1)) != list(draw(2))
    assert all(0.75 <= pause / min(0.25 * 2**n, 5.0) <= 1.25 for n, pause in enumerate(first))


def test_retry_after_is_seconds_or_a_date_or_nothing() -> None:
    """RFC 9110: both forms; nonsense is nothing."""
    assert retry_after_seconds("12") == 12.0
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT", clock=lambda: 1_445_412_470.0) == 10.0
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(None) is None
