"""
Times: what an operator writes and reads, to and from ns UTC.

Times are exchange-local unless they carry an offset. Integers throughout: a float of seconds would lose nanoseconds.
This module must never look at the clock, and never guess: a time that is none is an error that shows the accepted forms.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from ledger.errors import AddressError

NS: Final = 1_000_000_000
FORMS: Final = "write 2013-10-07T09:31, 2013-10-07, 09:31 with a session, or add an offset: 2013-10-07T13:31Z"
"""Hint of every time that cannot be read."""

_PATTERN: Final = re.compile(
    r"""(?:(?P<date>\d{4}-\d{2}-\d{2})(?:[T ]|$))?
        (?:(?P<clock>\d{2}:\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,9}))?)?
        (?P<offset>Z|[+-]\d{2}:?\d{2})?)?""",
    re.VERBOSE | re.ASCII,
)
_INTEGER: Final = re.compile(r"-?\d{12,19}", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=4096)
def parse_local(text: str, zone: ZoneInfo, session: str | None = None) -> int:
    """
    ns UTC of ``text``; see :meth:`ledger.calendar.Calendar.parse_time` for the forms.

    Where the clocks go back, a local time means the first of the two; write an offset for the second.

    Raises:
        AddressError: no time, no date and no session, or a local time that the clocks skip.
    """
    if _INTEGER.fullmatch(text):
        return int(text)
    found = _PATTERN.fullmatch(text) if text else None
    if found is None or (found["date"] is not None and text[-1] in "T "):
        raise AddressError(f"{text!r} is not a time", hint=FORMS, text=text)
    day = found["date"] or session
    if day is None:
        raise AddressError(f"{text!r} has no date, and no session was given", hint=FORMS, text=text)
    try:
        moment = datetime.fromisoformat(f"{day}T{found['clock'] or '00:00'}:{found['second'] or '00'}")
    except ValueError as error:
        raise AddressError(f"{text!r} is not a time: {error}", hint=FORMS, text=text) from error
    if moment.tzinfo is not None:
        raise AddressError(f"session {session!r} is not a date", hint=FORMS, text=text)
    fraction = int((found["fraction"] or "").ljust(9, "0"))
    if found["offset"]:
        moment = moment.replace(tzinfo=_offset(found["offset"], text))
    else:
        moment = moment.replace(tzinfo=zone)
        if moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != moment.replace(tzinfo=None):
            raise AddressError(f"{text!r} does not exist in {zone.key}: the clocks skip it", hint=FORMS, text=text)
    return (moment - _EPOCH) // timedelta(seconds=1) * NS + fraction


def format_local(ts_ns: int, zone: ZoneInfo) -> str:
    """
    Local ``YYYY-MM-DDTHH:MM``, seconds and fraction only where they are not zero; parses back to ``ts_ns``.

    The second of two equal local times (where the clocks go back) carries its offset.
    """
    seconds, fraction = divmod(ts_ns, NS)
    moment = (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)
    text = moment.strftime("%Y-%m-%dT%H:%M")
    if moment.second or fraction:
        text += moment.strftime(":%S")
    if fraction:
        text += f".{fraction:09d}".rstrip("0")
    return text + moment.strftime("%z") if moment.fold else text


def _offset(text: str, whole: str) -> timezone:
    if text == "Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    if hours > 23 or minutes > 59:
        raise AddressError(f"{whole!r} has no valid offset", hint=FORMS, text=whole)
    shift = timedelta(hours=hours, minutes=minutes)
    return timezone(-shift if text[0] == "-" else shift)
