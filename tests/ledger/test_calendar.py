"""Calendar: sessions, windows, times of the clock, early closes, daylight saving, and the file."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.calendar import Calendar, load_calendar, make_calendar
from ledger.errors import (
    AddressError,
    ChecksumMismatch,
    DamagedFile,
    MinuteOutOfSession,
    SpaceError,
    StateError,
    StateMissing,
    UnknownSession,
)

MINUTE = 60_000_000_000


@cache
def calendar_of(exchange: str, year: int) -> Calendar:
    """Each year is computed once for all tests."""
    return make_calendar(exchange, year)


def utc(text: str) -> int:
    """ns UTC of an ISO time without offset."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("year", "sessions", "early"),
    [
        (2013, 252, ["2013-07-03", "2013-11-29", "2013-12-24"]),
        (2014, 252, ["2014-07-03", "2014-11-28", "2014-12-24"]),
        (2026, 251, ["2026-11-27", "2026-12-24"]),
    ],
)
def test_new_york_years_have_their_sessions_and_early_closes(year, sessions, early):
    """Counts and early closes as the exchange published them; 390 windows otherwise."""
    calendar = calendar_of("XNYS", year)
    assert calendar.session_count == len(calendar.dates) == sessions
    short = [day for day, minutes in zip(calendar.dates, calendar.minutes, strict=True) if minutes == 210]
    assert short == early
    assert set(calendar.minutes.tolist()) == {210, 390}
    assert calendar.time_zone == "America/New_York"


@pytest.mark.parametrize(
    ("day", "opens"),
    [
        ("2013-03-08", "2013-03-08T14:30"),
        ("2013-03-11", "2013-03-11T13:30"),
        ("2013-11-01", "2013-11-01T13:30"),
        ("2013-11-04", "2013-11-04T14:30"),
        ("2026-03-06", "2026-03-06T14:30"),
        ("2026-03-09", "2026-03-09T13:30"),
    ],
)
def test_the_open_follows_daylight_saving(day, opens):
    """09:30 in New York is 14:30 or 13:30 UTC, to the day."""
    calendar = calendar_of("XNYS", int(day[:4]))
    seq = calendar.session_seq(day)
    assert calendar.start_ts(seq * 390) == calendar.open_ns[seq] == utc(opens)
    assert calendar.parse_time("09:30", day) == utc(opens)
    assert calendar.close_ns(seq) == utc(opens) + 390 * MINUTE


def test_tokyo_has_its_own_hours_and_no_daylight_saving():
    """360 windows, lunch included; 09:00 local is 00:00 UTC."""
    calendar = calendar_of("XTKS", 2014)
    assert set(calendar.minutes.tolist()) == {360}
    assert calendar.parse_time("09:00", "2014-07-01") == utc("2014-07-01T00:00")
    assert calendar.minute_idx(utc("2014-07-01T05:59")) % 390 == 359
    with pytest.raises(MinuteOutOfSession):
        calendar.minute_idx(utc("2014-07-01T06:00"))


def test_exchanges_that_cannot_be_represented_or_found_say_so():
    """London's 510 minutes do not fit; an unknown name and a year out of reach are named."""
    with pytest.raises(StateError, match="2014-01-02 of XLON is 510 minutes") as caught:
        make_calendar("XLON", 2014)
    assert "390" in caught.value.hint
    with pytest.raises(StateError, match=r"'NOPE' in 2013.*does not exist"):
        make_calendar("NOPE", 2013)
    with pytest.raises(StateError, match="1700"):
        make_calendar("XNYS", 1700)


def test_importing_the_calendar_imports_no_exchange_calendars():
    """The 118 MB stay in the process that computes a year."""
    code = "import ledger.calendar, sys; sys.exit('exchange_calendars' in sys.modules or 'pandas' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": "."}).returncode == 0
    )


def test_sessions_are_found_both_ways_and_a_missing_one_names_its_neighbour():
    """seq and date are inverse; a Saturday is unknown, with the next session in the hint."""
    calendar = calendar_of("XNYS", 2013)
    assert [calendar.session_seq(day) for day in calendar.dates] == list(range(252))
    assert calendar.date(0) == "2013-01-02" and calendar.date(251) == "2013-12-31"
    with pytest.raises(UnknownSession) as caught:
        calendar.session_seq("2013-10-05")
    assert caught.value.facts["nearest"] == "2013-10-07"
    for seq in (-1, 252):
        with pytest.raises(UnknownSession):
            calendar.date(seq)
        with pytest.raises(UnknownSession):
            calendar.windows(seq)
    assert calendar.previous_session("2013-10-07") == "2013-10-04"
    assert calendar.previous_session("2013-10-06") == "2013-10-04"
    assert calendar.previous_session("2013-01-02") is None
    assert calendar.next_session("2013-10-04") == "2013-10-07"
    assert calendar.next_session("2013-12-31") is None
    assert calendar.sessions_between("2013-10-05", "2013-10-08") == ["2013-10-07", "2013-10-08"]
    assert calendar.sessions_between("2013-10-05", "2013-10-06") == []


def test_every_window_of_a_year_maps_back_to_itself():
    """start_ts, its last nanosecond, window_id and the arrays agree for all windows; the rest of an early close is none."""
    calendar = calendar_of("XNYS", 2013)
    windows = np.concatenate([calendar.windows(seq) for seq in range(calendar.session_count)])
    assert windows.dtype == np.uint32 and len(windows) == 97_740
    starts = calendar.start_ts_array(windows)
    assert np.array_equal(calendar.minute_idx_array(starts), windows)
    assert np.array_equal(calendar.minute_idx_array(starts + MINUTE - 1), windows)
    everything = np.arange(-5, calendar.minute_count + 5)
    flags = calendar.is_window_array(everything)
    assert np.array_equal(everything[flags], windows)
    for minute_idx in (0, 389, 390, 49_000, 97_000, int(windows[-1])):
        assert calendar.is_window(minute_idx)
        start = calendar.start_ts(minute_idx)
        assert calendar.minute_idx(start) == calendar.minute_idx(start + MINUTE - 1) == minute_idx
        assert calendar.parse_window_id(calendar.window_id(minute_idx)) == minute_idx


def test_an_early_close_ends_after_210_windows():
    """The 211th minute is no window: not by number, not by time, not by name."""
    calendar = calendar_of("XNYS", 2013)
    seq = calendar.session_seq("2013-07-03")
    last = seq * 390 + 209
    assert calendar.windows(seq)[-1] == last
    assert calendar.window_id(last) == f"2013:{seq}:209"
    assert not calendar.is_window(last + 1)
    for call in (calendar.start_ts, calendar.window_id):
        with pytest.raises(MinuteOutOfSession, match="2013-07-03, which has 210 windows"):
            call(last + 1)
    with pytest.raises(MinuteOutOfSession):
        calendar.start_ts_array(np.array([last, last + 1]))
    with pytest.raises(MinuteOutOfSession):
        calendar.parse_window_id(f"2013:{seq}:210")
    close = calendar.parse_time("13:00", "2013-07-03")
    assert calendar.close_ns(seq) == close
    assert calendar.minute_idx(close - 1) == last
    with pytest.raises(MinuteOutOfSession) as caught:
        calendar.minute_idx(close)
    assert caught.value.facts["nearest"] == "2013-07-03"
    assert "2013-07-03T13:00" in caught.value.hint


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(utc("2012-12-20T00:00"), utc("2014-01-10T00:00")), max_size=20))
def test_the_array_path_equals_the_scalar_path(times):
    """For any times, in one session or many: -1 exactly where the scalar path refuses."""
    calendar = calendar_of("XNYS", 2013)

    def scalar(ts_ns: int) -> int:
        try:
            return calendar.minute_idx(ts_ns)
        except MinuteOutOfSession:
            return -1

    expected = [scalar(ts_ns) for ts_ns in times]
    assert calendar.minute_idx_array(np.array(times, dtype=np.int64)).tolist() == expected
    for ts_ns, minute_idx in zip(times, expected, strict=True):
        assert calendar.minute_idx_array(np.array([ts_ns])).tolist() == [minute_idx]


@pytest.mark.parametrize("text", ["2013:1", "2013:1:x", "", "2013:-1:5", "2013:1:2:3", "2013:²:1"])
def test_text_that_is_no_window_id_is_an_address_error(text):
    """Never a ValueError."""
    with pytest.raises(AddressError, match="is not a window id"):
        calendar_of("XNYS", 2013).parse_window_id(text)


@pytest.mark.parametrize("text", ["2014:1:5", "2013:1:390", "2013:252:0"])
def test_a_window_id_outside_the_year_is_refused(text):
    """Another year, another session's minute, a session behind the last."""
    with pytest.raises(MinuteOutOfSession):
        calendar_of("XNYS", 2013).parse_window_id(text)


@pytest.mark.parametrize(
    ("text", "session", "expected"),
    [
        ("2013-10-07T09:31", None, "2013-10-07T13:31"),
        ("2013-10-07 09:31", None, "2013-10-07T13:31"),
        ("2013-10-07T09:31:05", None, "2013-10-07T13:31:05"),
        ("2013-10-07", None, "2013-10-07T04:00"),
        ("2013-12-09", None, "2013-12-09T05:00"),
        ("09:31", "2013-10-07", "2013-10-07T13:31"),
        ("13:31Z", "2013-10-07", "2013-10-07T13:31"),
        ("2013-10-07T13:31Z", None, "2013-10-07T13:31"),
        ("2013-10-07T13:31+00:00", None, "2013-10-07T13:31"),
        ("2013-10-07T22:31+0900", None, "2013-10-07T13:31"),
        ("2013-10-07T09:31-04:00", "2013-01-02", "2013-10-07T13:31"),
        ("1381152660000000000", None, "2013-10-07T13:31"),
    ],
)
def test_times_are_exchange_local_unless_they_carry_an_offset(text, session, expected):
    """Every accepted form."""
    assert calendar_of("XNYS", 2013).parse_time(text, session) == utc(expected)


def test_a_fraction_keeps_its_nanoseconds():
    """Nine digits, exactly, both ways."""
    calendar = calendar_of("XNYS", 2013)
    assert calendar.parse_time("2013-10-07T09:31:00.123456789") == utc("2013-10-07T13:31") + 123_456_789
    assert calendar.parse_time("09:31:00.5", "2013-10-07") == utc("2013-10-07T13:31") + 500_000_000
    assert calendar.format_time(utc("2013-10-07T13:31") + 120) == "2013-10-07T09:31:00.00000012"


@pytest.mark.parametrize(
    "text",
    [
        "", "noon", "09:31", "2013-10-07T", "2013-13-01", "2013-10-07T25:00", "2013-10-07T09", "2013-10-7",
        "2013-10-07T09:31:60", "2013-10-07T09:31+25:00", "2013-10-07T09:31:00.1234567890", "٢٠١٣-١٠-٠٧", "12345",
    ],
)  # fmt: skip
def test_text_that_is_no_time_is_an_address_error(text):
    """The hint shows the forms that are."""
    with pytest.raises(AddressError) as caught:
        calendar_of("XNYS", 2013).parse_time(text)
    assert "2013-10-07T09:31" in caught.value.hint


def test_a_local_time_the_clocks_skip_is_refused_and_a_doubled_one_is_the_first():
    """02:30 on 2013-03-10 does not exist; 01:30 on 2013-11-03 comes twice."""
    calendar = calendar_of("XNYS", 2013)
    with pytest.raises(AddressError, match="the clocks skip it"):
        calendar.parse_time("2013-03-10T02:30")
    first = calendar.parse_time("2013-11-03T01:30")
    assert first == utc("2013-11-03T05:30")
    assert calendar.format_time(first) == "2013-11-03T01:30"
    assert calendar.format_time(first + 60 * MINUTE) == "2013-11-03T01:30-0500"


@settings(max_examples=50, deadline=None)
@given(st.integers(utc("2012-01-01T00:00"), utc("2030-01-01T00:00")))
def test_any_time_is_read_back_as_it_was_written(ts_ns):
    """format_time and parse_time are inverse, to the nanosecond, through every change of the clocks."""
    calendar = calendar_of("XNYS", 2013)
    assert calendar.parse_time(calendar.format_time(ts_ns)) == ts_ns
    minute = ts_ns // MINUTE * MINUTE
    assert calendar.parse_time(calendar.format_time(minute)) == minute


def test_expiries_resolve_in_the_year_behind_it_and_beyond():
    """A Saturday monthly ends on Friday; three years on too; beyond, the literal date with the usual hours."""
    calendar = calendar_of("XNYS", 2013)
    saturday = calendar.last_session_on_or_before("2013-10-19")
    assert (saturday.date, saturday.close_ns, saturday.literal) == ("2013-10-18", utc("2013-10-18T20:00"), False)
    assert calendar.last_session_on_or_before("2013-07-03").close_ns == utc("2013-07-03T17:00")
    good_friday = calendar.last_session_on_or_before("2014-04-19")
    assert (good_friday.date, good_friday.open_ns) == ("2014-04-17", utc("2014-04-17T13:30"))
    assert calendar.last_session_on_or_before("2016-12-31").date == "2016-12-30"
    beyond = calendar.last_session_on_or_before("2018-01-20")
    assert (beyond.date, beyond.literal) == ("2018-01-20", True)
    assert (beyond.open_ns, beyond.close_ns) == (utc("2018-01-20T14:30"), utc("2018-01-20T21:00"))
    before = calendar.last_session_on_or_before("2012-12-22")
    assert (before.date, before.literal) == ("2012-12-22", True)
    with pytest.raises(UnknownSession):
        calendar.last_session_on_or_before("soon")


def test_a_saved_calendar_comes_back_equal(tmp_path, system):
    """Same fingerprint, same arrays, and saving twice gives the same bytes; other years have other fingerprints."""
    calendar = calendar_of("XNYS", 2013)
    calendar.save(tmp_path, system)
    data = (tmp_path / "calendar").read_bytes()
    loaded = load_calendar(tmp_path, system)
    assert loaded.fingerprint == calendar.fingerprint != calendar_of("XNYS", 2014).fingerprint
    assert loaded.dates == calendar.dates and loaded.exchange == "XNYS" and loaded.year == 2013
    assert np.array_equal(loaded.open_ns, calendar.open_ns) and loaded.open_ns.dtype == np.int64
    assert np.array_equal(loaded.minutes, calendar.minutes) and loaded.minutes.dtype == np.uint16
    assert loaded.last_session_on_or_before("2015-01-17") == calendar.last_session_on_or_before("2015-01-17")
    loaded.save(tmp_path, system)
    assert (tmp_path / "calendar").read_bytes() == data
    with pytest.raises(ValueError, match="read-only"):
        loaded.open_ns[0] = 0


def test_a_calendar_file_that_is_missing_or_damaged_is_named(tmp_path, system):
    """Missing, cut short, a flipped bit in the sessions, sessions of another year under this header."""
    with pytest.raises(StateMissing):
        load_calendar(tmp_path, system)
    calendar_of("XNYS", 2013).save(tmp_path, system)
    path = tmp_path / "calendar"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(DamagedFile, match="calendar"):
        load_calendar(tmp_path, system)
    path.write_bytes(data[:6000] + bytes([data[6000] ^ 1]) + data[6001:])
    with pytest.raises(DamagedFile):
        load_calendar(tmp_path, system)
    calendar_of("XNYS", 2014).save(tmp_path, system)
    path.write_bytes(data[:4096] + path.read_bytes()[4096:])
    with pytest.raises(ChecksumMismatch, match="fingerprint"):
        load_calendar(tmp_path, system)


def test_saving_fails_cleanly_at_every_fault(tmp_path, every_fault, system):
    """The calendar of before, or the new one, is readable after any failed call."""
    calendar_of("XNYS", 2013).save(tmp_path, system)
    known = {calendar_of("XNYS", year).fingerprint for year in (2013, 2014)}
    for number, failing in enumerate(every_fault()):
        try:
            calendar_of("XNYS", 2013 + number % 2).save(tmp_path, failing)
        except SpaceError:
            assert failing.fired
        assert load_calendar(tmp_path, system).fingerprint in known


def test_sessions_that_make_no_year_are_refused():
    """Empty, out of order, overlapping, not whole minutes, of another year."""
    opens, closes = utc("2013-01-02T14:30"), utc("2013-01-02T21:00")
    day = 1440 * MINUTE
    for dates, begin, end in (
        ([], [], []),
        (["2014-01-02"], [opens], [closes]),
        (["2013-01-03", "2013-01-02"], [opens, opens + day], [closes, closes + day]),
        (["2013-01-02", "2013-01-03"], [opens, closes - 1], [closes, closes + day]),
        (["2013-01-02"], [opens], [opens]),
        (["2013-01-02"], [opens], [closes - 1]),
    ):
        with pytest.raises(StateError):
            Calendar("XNYS", 2013, "America/New_York", dates, begin, end)
