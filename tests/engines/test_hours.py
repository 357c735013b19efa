"""When files are published, and when downloads leave the line to live feeds: over weekends, early closes and clock changes."""

from __future__ import annotations

import pytest

from engines.hours import next_day, published_ns, quiet_spans, quiet_until
from ledger.calendar import Calendar, make_calendar


@pytest.fixture(scope="module")
def calendar() -> Calendar:
    """XNYS 2013."""
    return make_calendar("XNYS", 2013)


@pytest.mark.parametrize(
    ("session", "published"),
    [
        ("2013-10-07", "2013-10-08T15:00Z"),
        ("2013-10-04", "2013-10-05T15:00Z"),
        ("2013-03-08", "2013-03-09T16:00Z"),
        ("2013-11-01", "2013-11-02T15:00Z"),
        ("2013-12-31", "2014-01-01T16:00Z"),
    ],
)
def test_files_are_published_on_the_next_day(calendar: Calendar, session: str, published: str) -> None:
    """At New York time, whatever UTC makes of it, and on the day after a Friday too."""
    assert published_ns(calendar, session, "11:00") == calendar.parse_time(published)


def test_days_follow_days() -> None:
    """Over months and years."""
    assert [next_day(day) for day in ("2013-02-28", "2013-12-31")] == ["2013-03-01", "2014-01-01"]


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2013-10-07T09:14", None),
        ("2013-10-07T09:15", "2013-10-07T16:00"),
        ("2013-10-07T15:59", "2013-10-07T16:00"),
        ("2013-10-07T16:00", None),
        ("2013-10-06T12:00", None),
        ("2013-11-29T12:59", "2013-11-29T13:00"),
        ("2013-11-29T13:00", None),
        ("2013-12-31T16:00", None),
    ],
)
def test_quiet_hours_begin_before_the_open_and_end_at_the_close(
    calendar: Calendar, now: str, until: str | None
) -> None:
    """Not on a Sunday, early on a half day, and never after the year."""
    at = calendar.parse_time(now)
    found = quiet_until(quiet_spans(calendar, at, 15), at)
    assert found == (calendar.parse_time(until) if until else None)


def test_spans_ahead_are_known(calendar: Calendar) -> None:
    """A download knows when it must stop before it begins."""
    now = calendar.parse_time("2013-10-04T20:00")
    first = quiet_spans(calendar, now, 15)[0]
    assert first == tuple(calendar.parse_time(f"2013-10-07T{at}") for at in ("09:15", "16:00"))
