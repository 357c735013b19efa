"""
Sessions: what an exchange's year is made of, as exchange_calendars knows it, and the checks a list of them must pass.

exchange_calendars costs 0.4 s and 118 MB, so it runs in a process of its own that ends at once. This module must never
import it into this process.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

from ledger.columns import MINUTES_PER_SESSION, WINDOW_NS
from ledger.errors import StateError

YEARS_BEYOND: Final = 3
"""Sessions are kept up to this many years after the year's end, for option expiries."""

_PROGRAM: Final = """
import json, sys
try:
    import exchange_calendars
except ImportError as error:
    sys.exit("exchange_calendars cannot be imported: %s" % error)
name, year, beyond = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
problem = None
for last in range(year + beyond, year - 1, -1):
    try:
        calendar = exchange_calendars.get_calendar(name, start="%d-01-01" % year, end="%d-12-31" % last)
        break
    except (ValueError, exchange_calendars.errors.CalendarError) as error:
        problem = error
else:
    sys.exit(" ".join(str(problem).split()))
schedule = calendar.schedule
nanoseconds = lambda times: [int(time.value) for time in times]
json.dump({
    "time_zone": str(calendar.tz),
    "dates": [session.strftime("%Y-%m-%d") for session in schedule.index],
    "open_ns": nanoseconds(schedule["open"]),
    "close_ns": nanoseconds(schedule["close"]),
}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """Open and close of one session, in or behind the year."""

    date: str
    """Exchange-local date, ``YYYY-MM-DD``."""
    open_ns: int
    """ns UTC."""
    close_ns: int
    """ns UTC, exclusive."""
    literal: bool
    """True where no session is known and the date itself stands in, with the year's usual hours."""


def compute_sessions(exchange: str, year: int, timeout_s: float) -> dict[str, Any]:
    """
    ``time_zone``, ``dates``, ``open_ns`` and ``close_ns`` of the year's sessions and those up to three years behind.

    Raises:
        StateError: the exchange is unknown, or exchange_calendars does not cover the year or is not installed.
    """
    if not 1970 <= year <= 2200:
        raise StateError(f"{year} is no year this ledger can hold", hint="give a year from 1970 to 2200", year=year)
    sessions: dict[str, Any] = json.loads(_computed(exchange, year, timeout_s))
    return sessions


@functools.cache
def _computed(exchange: str, year: int, timeout_s: float) -> str:
    """The same, as JSON; a process that makes several states asks once."""
    # -P: a file called calendar.py in the current directory must not stand in for the standard library's.
    command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, exchange, str(year), str(YEARS_BEYOND)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise StateError(f"the sessions of {exchange} could not be computed: {error}", exchange=exchange) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StateError(
            f"there is no calendar for exchange {exchange!r} in {year}: {reason}",
            hint="give an exchange that exchange_calendars knows by its MIC, such as XNYS, and a year it covers",
            exchange=exchange,
            year=year,
        )
    return done.stdout


def check_sessions(exchange: str, year: int, dates: list[str], open_ns: list[int], close_ns: list[int]) -> None:
    """
    Sessions must begin in ``year``, ascend without overlap, and in the year have at most 390 whole minutes.

    Raises:
        StateError: names the first session that does not fit.
    """
    if not dates or not len(dates) == len(open_ns) == len(close_ns):
        raise StateError(f"{exchange} has no sessions in {year}", exchange=exchange, year=year)
    if not dates[0].startswith(f"{year:04d}-"):
        raise StateError(f"the sessions of {exchange} begin on {dates[0]}, not in {year}", exchange=exchange, year=year)
    previous_date, previous_close = "", open_ns[0]
    for day, opens, closes in zip(dates, open_ns, close_ns, strict=True):
        length, rest = divmod(closes - opens, WINDOW_NS)
        if day <= previous_date or opens < previous_close or length < 1:
            raise StateError(f"the session {day} of {exchange} is out of order or ends before it begins", session=day)
        previous_date, previous_close = day, closes
        if rest or (length > MINUTES_PER_SESSION and day[:4] == dates[0][:4]):
            raise StateError(
                f"the session {day} of {exchange} is {(closes - opens) / WINDOW_NS:g} minutes long; "
                f"a session has at most {MINUTES_PER_SESSION} whole minutes here",
                hint=f"choose an exchange whose sessions have at most {MINUTES_PER_SESSION} minutes, such as XNYS",
                exchange=exchange,
                session=day,
            )
