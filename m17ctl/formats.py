"""
What values look like: JSON out, times in and out, counts, bytes and durations for people.

JSON is the reply's own shape (times integer ns UTC); the text forms are for people and may change. This module must never
look at the clock: ages are counted from a time that the caller gives.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

import msgspec

NS: Final = 1_000_000_000
TIME_FORMS: Final = "write 2013-10-07T09:31, 2013-10-07, 09:31 with --session, or add an offset: 2013-10-07T13:31Z"
"""Hint of every time that cannot be read."""
TIME_ZONES: Final = {
    "XNYS": "America/New_York",
    "XNAS": "America/New_York",
    "XASE": "America/New_York",
    "XCBF": "America/Chicago",
    "CMES": "America/Chicago",
    "XTSE": "America/Toronto",
    "BVMF": "America/Sao_Paulo",
    "XLON": "Europe/London",
    "XAMS": "Europe/Amsterdam",
    "XPAR": "Europe/Paris",
    "XFRA": "Europe/Berlin",
    "XSWX": "Europe/Zurich",
    "XTKS": "Asia/Tokyo",
    "XHKG": "Asia/Hong_Kong",
    "XSHG": "Asia/Shanghai",
    "XASX": "Australia/Sydney",
}
"""Exchange to the zone in which its times are shown; those of others are shown in UTC."""

_TIME: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2}(?=[T ]|$)[T ]?)?((?:[01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
_NANOSECONDS: Final = re.compile(r"\d{12,19}", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def encode_json(value: Any) -> bytes:
    """One line of JSON: structs by their fields, parts that were not asked for left out."""
    return msgspec.json.encode(value)


def parse_time(text: str) -> int | str:
    """
    A time as the daemon takes it: integer ns UTC, or the text where it has the form of one (the daemon resolves).

    Raises:
        ValueError: the text has none of the accepted forms.
    """
    if _NANOSECONDS.fullmatch(text):
        return int(text)
    if not text or text[-1] in "T " or not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is not a time: {TIME_FORMS}")
    return text


def parse_date(text: str) -> str:
    """
    A session's date, ``YYYY-MM-DD``.

    Raises:
        ValueError: the text is no such date.
    """
    try:
        if _DATE.fullmatch(text):
            datetime.fromisoformat(text)
            return text
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a date: write 2013-10-07")


def literal(symbol: str) -> str:
    """A glob that a ticker alone passes."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in symbol)


def zone_of(exchange: str) -> tzinfo:
    """The zone in which an exchange's times are shown (UTC for an exchange or zone that is not known here)."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(TIME_ZONES[exchange])
    except (KeyError, ZoneInfoNotFoundError):
        return UTC


def format_time(ts_ns: int, zone: tzinfo) -> str:
    """``2013-10-07T09:31`` in ``zone``, seconds only where they are not zero, Z behind UTC; parses back."""
    seconds, fraction = divmod(ts_ns, NS)
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zone)
    text = moment.strftime("%Y-%m-%dT%H:%M")
    if moment.second or fraction:
        text += moment.strftime(":%S")
    if fraction:
        text += f".{fraction:09d}".rstrip("0")
    return text + "Z" if zone is UTC else text


def format_clock(ts_ns: int, zone: tzinfo) -> str:
    """``09:31`` in ``zone``."""
    return format_time(ts_ns - ts_ns % (60 * NS), zone)[11:16]


def format_count(count: int) -> str:
    """``11,400``."""
    return f"{count:,}"


def format_bytes(count: int) -> str:
    """``1.4 GiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def format_duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_share(part: int, whole: int) -> str:
    """``98.2 %``, never rounded up to 100 or down to 0; ``-`` of nothing."""
    if whole <= 0:
        return "-"
    if part == whole:
        return "100 %"
    percent = 100 * part / whole
    return f"{min(99.9, max(0.1 if part else 0.0, percent)):.1f} %"
