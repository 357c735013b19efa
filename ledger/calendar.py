"""
Calendar: the sessions of one year of one exchange, and the arithmetic between time, session and minute_idx.

The truth is one row per session (date, open, minutes), computed once by exchange_calendars in a process of its own
when a state is made, then kept in the file ``calendar``. Sessions up to three years after the year are kept beside
them, because options expire there. A session's windows run from open to close without a hole: exchanges with a lunch
break simply have no rows in it.

This module must never import exchange_calendars into this process, and never look at the clock.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from ledger.columns import MINUTES_PER_SESSION, WINDOW_NS
from ledger.errors import (
    AddressError,
    ChecksumMismatch,
    DamagedFile,
    MinuteOutOfSession,
    StateError,
    StateMissing,
    UnknownSession,
)
from ledger.files import (
    HEADER_BYTES,
    PathLike,
    System,
    decode_header,
    encode_frame,
    encode_header,
    read_frames,
    read_whole,
    write_atomically,
)
from ledger.sessions import SessionTimes, check_sessions, compute_sessions
from ledger.times import format_local, parse_local

_Item = TypeVar("_Item", bound=np.generic)

FILE_NAME: Final = "calendar"
FILE_VERSION: Final = 1


class Calendar:
    """
    The sessions of one year; immutable.

    ``session_seq`` counts the year's sessions from 0; ``minute_idx = session_seq * 390 + minute_seq``. All times are
    ns UTC (i64), all dates exchange-local ``YYYY-MM-DD``. Public arrays are read-only.
    """

    def __init__(
        self, exchange: str, year: int, time_zone: str, dates: list[str], open_ns: list[int], close_ns: list[int]
    ) -> None:
        """
        Args:
            exchange: ISO MIC, such as ``XNYS``.
            year: the year whose sessions are counted.
            time_zone: IANA name.
            dates: sessions from the year's first to the last known one behind it, ascending.
            open_ns, close_ns: per session, ns UTC.

        Raises:
            StateError: no session in the year, sessions out of order, or one that 390 windows cannot represent.
        """
        check_sessions(exchange, year, dates, open_ns, close_ns)
        self.exchange = exchange
        self.year = year
        self.time_zone = time_zone
        count = bisect_left(dates, f"{year + 1:04d}-01-01")
        self.dates: tuple[str, ...] = tuple(dates[:count])
        """The year's sessions."""
        self.open_ns = _frozen(np.array(open_ns[:count], dtype=np.int64))
        """i64[sessions]: the open."""
        lengths = (np.array(close_ns[:count], dtype=np.int64) - self.open_ns) // WINDOW_NS
        self.minutes = _frozen(lengths.astype(np.uint16))
        """u16[sessions]: windows of the session."""
        self._lengths: list[int] = self.minutes.tolist()
        self._all_dates, self._all_open, self._all_close = list(dates), list(open_ns), list(close_ns)
        self._zone = ZoneInfo(time_zone)

    @cached_property
    def fingerprint(self) -> int:
        """u64 over everything the calendar says; equal calendars have equal fingerprints."""
        return int.from_bytes(sha256(self._encoded()).digest()[:8], "little")

    @property
    def session_count(self) -> int:
        """Sessions of the year."""
        return len(self.dates)

    @property
    def minute_count(self) -> int:
        """One more than the largest minute_idx that can be addressed: ``session_count * 390``."""
        return len(self.dates) * MINUTES_PER_SESSION

    def session_seq(self, session: str) -> int:
        """Position of the session in the year, from 0; raises :class:`UnknownSession`."""
        seq = bisect_left(self.dates, session)
        if seq < len(self.dates) and self.dates[seq] == session:
            return seq
        near = self.dates[max(0, min(seq, len(self.dates) - 1))]
        raise UnknownSession(
            f"{session!r} is not a session of {self.exchange} in {self.year}",
            hint=f"the nearest session is {near}; list them with: m17ctl sessions list",
            session=session,
            nearest=near,
        )

    def date(self, session_seq: int) -> str:
        """Date of the session; raises :class:`UnknownSession`."""
        if not 0 <= session_seq < len(self.dates):
            text = f"session number {session_seq} is not one of the {len(self.dates)} of {self.exchange} in {self.year}"
            raise UnknownSession(text, session_seq=session_seq)
        return self.dates[session_seq]

    def times(self, session: str) -> SessionTimes:
        """Open and close of a session of the year; raises :class:`UnknownSession`."""
        seq = self.session_seq(session)
        return SessionTimes(session, self._all_open[seq], self._all_close[seq], False)

    def close_ns(self, session_seq: int) -> int:
        """The session's close, ns UTC, exclusive; raises :class:`UnknownSession`."""
        self.date(session_seq)
        return self._all_close[session_seq]

    def previous_session(self, day: str) -> str | None:
        """The year's last session before the date, or None."""
        at = bisect_left(self.dates, day)
        return self.dates[at - 1] if at else None

    def next_session(self, day: str) -> str | None:
        """The year's first session after the date, or None."""
        at = bisect_right(self.dates, day)
        return self.dates[at] if at < len(self.dates) else None

    def sessions_between(self, first: str, last: str) -> list[str]:
        """The year's sessions from ``first`` to ``last``, both included; the ends need not be sessions."""
        return list(self.dates[bisect_left(self.dates, first) : bisect_right(self.dates, last)])

    def last_session_on_or_before(self, day: str) -> SessionTimes:
        """
        The session an option that expires on ``day`` ends in: the last one on or before it.

        Knows the year and up to three behind it. Before the first and after the last known session the date itself
        stands in, with the year's usual hours (``literal`` is then true).

        Raises:
            UnknownSession: ``day`` is not a date.
        """
        try:
            literal = date.fromisoformat(day)
        except ValueError as error:
            raise UnknownSession(f"{day!r} is not a date", hint="write it as YYYY-MM-DD", session=day) from error
        at = bisect_right(self._all_dates, day) - 1
        if at < 0 or (at == len(self._all_dates) - 1 and day > self._last_known_day):
            opens, closes = self._usual_hours
            midnight = datetime.combine(literal, time())
            return SessionTimes(day, self._instant(midnight + opens), self._instant(midnight + closes), True)
        return SessionTimes(self._all_dates[at], self._all_open[at], self._all_close[at], False)

    def minute_idx(self, ts_ns: int) -> int:
        """The window that holds the time; raises :class:`MinuteOutOfSession` with the nearest session as hint."""
        seq = bisect_right(self._all_open, ts_ns, 0, len(self.dates)) - 1
        if seq >= 0 and ts_ns < self._all_close[seq]:
            return seq * MINUTES_PER_SESSION + (ts_ns - self._all_open[seq]) // WINDOW_NS
        near = self._nearest(ts_ns)
        opens, closes = self.format_time(self._all_open[near]), self.format_time(self._all_close[near])
        raise MinuteOutOfSession(
            f"{self.format_time(ts_ns)} is in no session of {self.exchange} in {self.year}",
            hint=f"the nearest session, {self.dates[near]}, runs from {opens} to {closes} ({self.time_zone})",
            ts_ns=ts_ns,
            nearest=self.dates[near],
        )

    def minute_idx_array(self, ts_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows that hold the times (i64[n], ns UTC): i64[n], -1 where the time is in no session."""
        if not ts_ns.size:
            return np.empty(0, dtype=np.int64)
        low, high = (bisect_right(self._all_open, int(end), 0, len(self.dates)) for end in (ts_ns.min(), ts_ns.max()))
        if low == high:
            # All between two opens, as every flat file is: one subtraction instead of a search per row.
            if low == 0:
                return np.full(ts_ns.shape, -1, dtype=np.int64)
            offset = (ts_ns - self.open_ns[low - 1]) // WINDOW_NS
            return np.where(offset < self.minutes[low - 1], offset + (low - 1) * MINUTES_PER_SESSION, -1)
        seq = np.searchsorted(self.open_ns, ts_ns, side="right") - 1
        offset = (ts_ns - self.open_ns[seq]) // WINDOW_NS
        inside = (seq >= 0) & (offset < self.minutes[seq])
        return np.where(inside, seq * MINUTES_PER_SESSION + offset, -1)

    def is_window(self, minute_idx: int) -> bool:
        """True where the minute_idx is a window: in the year, and before its session's close."""
        seq, minute = divmod(minute_idx, MINUTES_PER_SESSION)
        return 0 <= seq < len(self._lengths) and minute < self._lengths[seq]

    def is_window_array(self, minute_idx: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """:meth:`is_window` for any integer array, same shape."""
        seq, minute = np.divmod(minute_idx.astype(np.int64), MINUTES_PER_SESSION)
        known = (seq >= 0) & (seq < len(self.dates))
        return known & (minute < self.minutes[np.where(known, seq, 0)])

    def start_ts(self, minute_idx: int) -> int:
        """Start of the window, ns UTC; raises :class:`MinuteOutOfSession`."""
        if not self.is_window(minute_idx):
            raise self._not_a_window(minute_idx)
        seq, minute = divmod(minute_idx, MINUTES_PER_SESSION)
        return self._all_open[seq] + minute * WINDOW_NS

    def start_ts_array(self, minute_idx: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Starts of the windows, i64, ns UTC; raises :class:`MinuteOutOfSession` naming the first that is none."""
        outside = ~self.is_window_array(minute_idx)
        if outside.any():
            raise self._not_a_window(int(minute_idx[outside][0]))
        seq, minute = np.divmod(minute_idx.astype(np.int64), MINUTES_PER_SESSION)
        return np.asarray(self.open_ns[seq] + minute * WINDOW_NS)

    def windows(self, session_seq: int) -> NDArray[np.uint32]:
        """The session's windows, u32[minutes], ascending minute_idx; raises :class:`UnknownSession`."""
        self.date(session_seq)
        first = session_seq * MINUTES_PER_SESSION
        return np.arange(first, first + int(self.minutes[session_seq]), dtype=np.uint32)

    def window_id(self, minute_idx: int) -> str:
        """``<year>:<session_seq>:<minute_seq>``; raises :class:`MinuteOutOfSession`."""
        if not self.is_window(minute_idx):
            raise self._not_a_window(minute_idx)
        seq, minute = divmod(minute_idx, MINUTES_PER_SESSION)
        return f"{self.year}:{seq}:{minute}"

    def parse_window_id(self, text: str) -> int:
        """The minute_idx a :meth:`window_id` names; raises :class:`AddressError` or :class:`MinuteOutOfSession`."""
        parts = text.split(":")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise AddressError(f"{text!r} is not a window id", hint="write it as YEAR:SESSION_SEQ:MINUTE_SEQ")
        year, seq, minute = (int(part) for part in parts)
        minute_idx = seq * MINUTES_PER_SESSION + minute
        if year != self.year or minute >= MINUTES_PER_SESSION or not self.is_window(minute_idx):
            raise MinuteOutOfSession(f"{text} is not a window of {self.exchange} in {self.year}", window_id=text)
        return minute_idx

    def parse_time(self, text: str, session: str | None = None) -> int:
        """
        ns UTC of a time as operators write it, exchange-local unless it carries an offset.

        ``2013-10-07T09:31`` (seconds and a fraction may follow), ``2013-10-07`` (midnight), ``09:31`` with
        ``session``, ``2013-10-07T13:31Z``, ``2013-10-07T13:31+00:00``, or integer ns UTC.

        Raises:
            AddressError: the text is no time, has no date and no session was given, or names a local time that a
                change of the clocks skipped.
        """
        return parse_local(text, self._zone, session)

    def format_time(self, ts_ns: int) -> str:
        """Exchange-local ``YYYY-MM-DDTHH:MM``, seconds and fraction only where not zero; parses back to ``ts_ns``."""
        return format_local(ts_ns, self._zone)

    def session_on(self, ts_ns: int) -> str:
        """Exchange-local date of the time; not necessarily a session."""
        return datetime.fromtimestamp(ts_ns // 1_000_000_000, self._zone).strftime("%Y-%m-%d")

    def save(self, directory: PathLike, system: System) -> None:
        """Write the file ``calendar`` into the state directory, atomically; raises :class:`SpaceError`."""
        facts = {"exchange": self.exchange, "year": self.year, "fingerprint": self.fingerprint}
        data = encode_header(FILE_NAME, FILE_VERSION, facts) + encode_frame(self._encoded())
        write_atomically(system, Path(directory) / FILE_NAME, data)

    @cached_property
    def _last_known_day(self) -> str:
        return f"{int(self._all_dates[-1][:4]):04d}-12-31"

    @cached_property
    def _usual_hours(self) -> tuple[timedelta, timedelta]:
        """The year's most frequent local opening and closing times, after midnight."""
        hours: Counter[tuple[timedelta, timedelta]] = Counter()
        for day, opens, closes in zip(self.dates, self._all_open, self._all_close, strict=False):
            midnight = datetime.fromisoformat(day)
            local = [datetime.fromtimestamp(ns // 10**9, self._zone).replace(tzinfo=None) for ns in (opens, closes)]
            hours[(local[0] - midnight, local[1] - midnight)] += 1
        return hours.most_common(1)[0][0]

    def _instant(self, local: datetime) -> int:
        return int(local.replace(tzinfo=self._zone).astimezone(UTC).timestamp()) * 1_000_000_000

    def _nearest(self, ts_ns: int) -> int:
        after = min(bisect_right(self._all_open, ts_ns, 0, len(self.dates)), len(self.dates) - 1)
        before = max(after - 1, 0)
        return before if ts_ns - self._all_close[before] <= self._all_open[after] - ts_ns else after

    def _not_a_window(self, minute_idx: int) -> MinuteOutOfSession:
        seq, minute = divmod(minute_idx, MINUTES_PER_SESSION)
        if not 0 <= seq < len(self.dates):
            text = f"minute_idx {minute_idx} is outside {self.year}, which has {self.minute_count}"
            return MinuteOutOfSession(text, minute_idx=minute_idx)
        text = f"minute_idx {minute_idx} is minute {minute} of {self.dates[seq]}, which has {self.minutes[seq]} windows"
        return MinuteOutOfSession(text, minute_idx=minute_idx, session=self.dates[seq])

    def _encoded(self) -> bytes:
        content = {
            "exchange": self.exchange,
            "year": self.year,
            "time_zone": self.time_zone,
            "dates": self._all_dates,
            "open_ns": self._all_open,
            "close_ns": self._all_close,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def load_calendar(directory: PathLike, system: System) -> Calendar:
    """
    The calendar of a state directory.

    Raises:
        StateMissing: there is none.
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
    """
    path = Path(directory) / FILE_NAME
    data = read_whole(system, path)
    if data is None:
        raise StateMissing(f"there is no calendar at {path}", path=str(path))
    facts = decode_header(data, FILE_NAME, FILE_VERSION, path)
    payloads, length = read_frames(data, path, start=HEADER_BYTES)
    if len(payloads) != 1 or length != len(data):
        change = "it was extended" if payloads else "it was truncated, or changed"
        raise DamagedFile(
            f"{path}: {len(data)} bytes, the sessions behind its header end at {length}: {change}", path=str(path)
        )
    try:
        content = json.loads(payloads[0])
        calendar = Calendar(**content)
    except (ValueError, TypeError, StateError) as error:
        raise DamagedFile(f"{path}: its sessions make no calendar: {error}", path=str(path)) from error
    if calendar.fingerprint != facts.get("fingerprint"):
        raise ChecksumMismatch(f"{path}: the fingerprint does not fit the sessions", path=str(path))
    return calendar


def make_calendar(exchange: str, year: int, *, timeout_s: float = 120.0) -> Calendar:
    """
    The calendar of a year, from exchange_calendars, run in a process of its own (0.4 s, 118 MB that end with it).

    Args:
        exchange: a name exchange_calendars knows, such as ``XNYS``.
        year: the year.
        timeout_s: the process is killed after this.

    Raises:
        StateError: the exchange is unknown, exchange_calendars does not cover the year or is not installed, or a
            session is longer than 390 minutes.
    """
    return Calendar(exchange=exchange, year=year, **compute_sessions(exchange, year, timeout_s))


def _frozen(array: NDArray[_Item]) -> NDArray[_Item]:
    array.flags.writeable = False
    return array
