"""
When upstream should have a session's files, and when downloads should leave the line to the live feeds.

Pure: a calendar and times in, times out, all ns UTC. This module must never read a clock.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final

import numpy as np

from engines.feeds.session_window import SessionWindow
from ledger.calendar import Calendar
from ledger.columns import WINDOW_NS

_SPANS: Final = 3
"""Sessions ahead that are looked at; a download that takes longer is asked for again."""


def next_day(day: str) -> str:
    """The calendar day after a ``YYYY-MM-DD``."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def window_of(calendar: Calendar, session: str) -> SessionWindow:
    """The times of a session and of its local day, which is 23, 24 or 25 hours long; raises UnknownSession."""
    seq = calendar.session_seq(session)
    start, end = calendar.parse_time(session), calendar.parse_time(next_day(session))
    return SessionWindow(session, int(calendar.open_ns[seq]), int(calendar.minutes[seq]), start, end)


def published_ns(calendar: Calendar, session: str, at: str) -> int:
    """
    When a session's files should be there.

    Args:
        at: exchange-local ``HH:MM`` of the calendar day after the session.
    """
    return calendar.parse_time(f"{next_day(session)}T{at}")


def quiet_spans(calendar: Calendar, now_ns: int, before_minutes: int) -> tuple[tuple[int, int], ...]:
    """
    The next times, or the present one, that downloads should leave to live feeds: some minutes before the open to the close.

    Returns:
        (start, end), half-open, ascending; none where the calendar's year is over.
    """
    close_ns = calendar.open_ns + calendar.minutes.astype(np.int64) * WINDOW_NS
    first = int(np.searchsorted(close_ns, now_ns, side="right"))
    before_ns = before_minutes * WINDOW_NS
    return tuple(
        (int(calendar.open_ns[seq]) - before_ns, int(close_ns[seq]))
        for seq in range(first, min(first + _SPANS, calendar.session_count))
    )


def quiet_until(spans: tuple[tuple[int, int], ...], now_ns: int) -> int | None:
    """The end of the span that a time lies in, None where it lies in none."""
    return next((end for start, end in spans if start <= now_ns < end), None)
