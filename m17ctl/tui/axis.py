"""
The time axis of the view: sessions laid end to end, and how a span of them is cut into units and buckets.

A position is ``day * 390 + minute``; a span is a half-open pair of positions. Units are what the selection moves over,
buckets are what one character shows; every unit is a whole number of buckets. Pure; this module must never look at a clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from m17d.replies import SessionReply

DAY: Final = 390
"""Positions of a session; an early close uses the first 210."""
MINUTE_NS: Final = 60_000_000_000
BLOCK: Final = 30
"""Minutes of a unit when a session is looked at."""
_STEPS: Final = (1, 2, 3, 5, 6, 10, 15, 30)
"""Minutes of a bucket in a session; all divide a block of 30."""
_DAY_STEPS: Final = (5, 10, 13, 15, 30, 39, 65, 78, 130, 195, 390)
"""Minutes of a bucket where days are side by side."""

Span = tuple[int, int]


class Level(IntEnum):
    """How far in the view is."""

    YEAR = 0
    MONTH = 1
    SESSION = 2
    MINUTES = 3

    @property
    def word(self) -> str:
        """For the title."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Day:
    """One session on the axis."""

    session: str
    open_ts: int
    windows: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A view cut for a width: ``buckets`` of one character each, and the first and last + 1 bucket of each unit."""

    buckets: tuple[Span, ...]
    units: tuple[Span, ...]
    edges: tuple[Span, ...]
    step_minutes: int
    """What one character shows, in minutes; 390 and more are whole sessions."""


class Axis:
    """The sessions of the year, in order."""

    def __init__(self, days: Sequence[Day]) -> None:
        self.days = tuple(days)
        self._opens = [day.open_ts for day in days]
        self._index = {day.session: at for at, day in enumerate(days)}

    @classmethod
    def of(cls, sessions: Sequence[SessionReply]) -> Axis:
        """From the daemon's list."""
        return cls([Day(one.session, one.open_ts, one.windows) for one in sessions])

    def __len__(self) -> int:
        return len(self.days)

    @property
    def whole(self) -> Span:
        """All of it."""
        return 0, len(self.days) * DAY

    def index(self, session: str) -> int | None:
        """Position of a session in the year, None where there is none of that date."""
        return self._index.get(session)

    def day(self, position: int) -> Day:
        """The session that a position lies in."""
        return self.days[position // DAY]

    def start_ns(self, position: int) -> int:
        """Start of the window at a position, ns UTC."""
        day, minute = divmod(position, DAY)
        return self.days[day].open_ts + minute * MINUTE_NS

    def bounds_ns(self, span: Span) -> tuple[int, int]:
        """A span as [start, end) in ns UTC: from its first window's start to its last window's end."""
        first_day, first = divmod(span[0], DAY)
        last_day, last = divmod(span[1] - 1, DAY)
        day = self.days[last_day]
        return (
            self.days[first_day].open_ts + first * MINUTE_NS,
            day.open_ts + (min(last, day.windows - 1) + 1) * MINUTE_NS,
        )

    def position(self, ts_ns: int) -> int:
        """The position of a time: inside a session its minute, between sessions the next one's open, at most the end."""
        at = bisect_right(self._opens, ts_ns) - 1
        if at < 0:
            return 0
        minute = (ts_ns - self.days[at].open_ts) // MINUTE_NS
        return at * DAY + minute if minute < self.days[at].windows else (at + 1) * DAY

    def clip(self, span: Span) -> Span:
        """A span without what lies behind an early close."""
        day, minute = divmod(span[1] - 1, DAY)
        windows = self.days[day].windows
        return (span[0], day * DAY + windows) if minute >= windows > span[0] - day * DAY else span

    # ---- levels

    def level_of(self, span: Span) -> Level:
        """How far in a span is."""
        first, last = span[0] // DAY, (span[1] - 1) // DAY
        if first == last:
            whole = span[0] % DAY == 0 and span[1] - first * DAY >= self.days[first].windows
            return Level.SESSION if whole else Level.MINUTES
        return Level.YEAR if last - first >= 65 else Level.MONTH

    def month_of(self, position: int) -> Span:
        """The sessions of the calendar month that a position lies in."""
        month = self.day(position).session[:7]
        inside = [at for at, day in enumerate(self.days) if day.session.startswith(month)]
        return inside[0] * DAY, (inside[-1] + 1) * DAY

    def session_of(self, position: int) -> Span:
        """The session that a position lies in."""
        day = position // DAY
        return day * DAY, (day + 1) * DAY

    def around(self, span: Span) -> Span:
        """The span one level further out."""
        match self.level_of(span):
            case Level.MINUTES:
                return self.session_of(span[0])
            case Level.SESSION:
                return self.month_of(span[0])
            case _:
                return self.whole

    # ---- units and buckets

    def units(self, span: Span) -> list[Span]:
        """What the selection moves over: months, sessions, half hours or minutes."""
        first, last = span[0] // DAY, (span[1] - 1) // DAY
        match self.level_of(span):
            case Level.YEAR:
                found: list[Span] = []
                for at in range(first, last + 1):
                    if found and self.days[at].session[:7] == self.days[at - 1].session[:7]:
                        found[-1] = (found[-1][0], (at + 1) * DAY)
                    else:
                        found.append((at * DAY, (at + 1) * DAY))
                return found
            case Level.MONTH:
                return [(at * DAY, (at + 1) * DAY) for at in range(first, last + 1)]
            case Level.SESSION:
                end = first * DAY + self.days[first].windows
                return [(at, min(at + BLOCK, end)) for at in range(first * DAY, end, BLOCK)]
            case Level.MINUTES:
                return [(at, at + 1) for at in range(*span)]

    def cut(self, span: Span, room: int) -> Cut:
        """A span cut into buckets of one character that fit ``room`` (at least one for each unit, so a year needs 12)."""
        units = self.units(span)
        match self.level_of(span):
            case Level.YEAR:
                sizes = [(end - start) // DAY for start, end in units]
                step = next((k for k in range(1, 32) if sum(-(-size // k) for size in sizes) <= room), 31) * DAY
            case Level.MONTH:
                step = next((one for one in _DAY_STEPS if len(units) * -(-DAY // one) <= room), DAY)
            case Level.SESSION:
                total = units[-1][1] - units[0][0]
                step = next((one for one in _STEPS if -(-total // one) <= room), BLOCK)
            case _:
                step = max(1, -(-(span[1] - span[0]) // room))
                return self._minutes(units, step, max(1, room // (span[1] - span[0])))
        buckets: list[Span] = []
        edges: list[Span] = []
        for start, end in units:
            edge = len(buckets)
            buckets += [(at, min(at + step, end)) for at in range(start, end, step)]
            edges.append((edge, len(buckets)))
        return Cut(tuple(buckets), tuple(units), tuple(edges), step)

    @staticmethod
    def _minutes(units: list[Span], step: int, wide: int) -> Cut:
        """Minutes: several characters each where there is room, several in one where there is not."""
        if step == 1:
            buckets = tuple(unit for unit in units for _ in range(wide))
            edges = tuple((at * wide, (at + 1) * wide) for at in range(len(units)))
            return Cut(buckets, tuple(units), edges, 1)
        start, end = units[0][0], units[-1][1]
        buckets = tuple((at, min(at + step, end)) for at in range(start, end, step))
        return Cut(
            buckets, tuple(units), tuple(((at - start) // step, (at - start) // step + 1) for at, _ in units), step
        )
