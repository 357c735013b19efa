"""
What a live feed says: where the rows of a minute lie, how far minutes are closed, gaps, and how the feed is.

Small and picklable: rows never travel through the pipe, they lie in files that the feed wrote. This module must never
hold a row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from ledger.columns import WINDOW_NS, Dataset

FEED_BEGAN: Final = "the feed began"
"""Reason of the gap before a feed's first event."""
SUBSCRIBED_LATER: Final = "subscribed later"
"""Reason of the gap before the first event of topics that were asked for later than others."""


@dataclass(frozen=True, slots=True)
class SpooledRows:
    """
    Rows of one minute of one dataset, in a file for :mod:`engines.feeds.spooled_rows`; the taker removes it.

    Attributes:
        dataset: whose rows.
        start_ns: start of the minute, ns UTC.
        path: the file.
        rows: how many; a redelivered event may be in them twice.
        tickers: whose rows, in no order.
        late: the minute was closed before; these rows came after.
        finished: False: the feed ended before the minute did, so that it must not be called filled.
    """

    dataset: Dataset
    start_ns: int
    path: str
    rows: int
    tickers: tuple[str, ...]
    late: bool = False
    finished: bool = True

    @property
    def end_ns(self) -> int:
        """End of the minute (exclusive), ns UTC."""
        return self.start_ns + WINDOW_NS


@dataclass(frozen=True, slots=True)
class ClosedThrough:
    """All minutes that end at or before ``ns`` are over: what they had was told before this."""

    ns: int


@dataclass(frozen=True, slots=True)
class Gap:
    """
    A time in which events may be missing. Windows that it overlaps are partial until a better source fills them.

    Attributes:
        start_ns: event time from which on events may be missing, ns UTC; 0 where none came before (the feed began).
        end_ns: event time from which on all came again; None while it lasts.
        reason: why, in a word or a line.
        topics: whose events, such as ``Q.AIG`` or ``Q.A*``; None for all of the connection. A later Gap with the same start, reason
            and topics says how it ended.
    """

    start_ns: int
    end_ns: int | None
    reason: str
    topics: tuple[str, ...] | None = None

    def overlaps(self, start_ns: int, end_ns: int) -> bool:
        """Whether events of ``[start_ns, end_ns)`` may be missing; both ends of the gap count."""
        return self.start_ns < end_ns and (self.end_ns is None or self.end_ns >= start_ns)


@dataclass(slots=True)
class RowCounts:
    """Rows of trades or of quotes, since the feed began."""

    rows: int = 0
    """Kept: written to a minute's file."""
    late: int = 0
    """Kept, of minutes that were closed."""
    unwanted: int = 0
    """Of tickers that nobody asked for, brought by a wildcard."""
    dropped: int = 0
    """Lost, because there was no room for them; a gap tells when."""
    rejected: dict[str, int] = field(default_factory=dict)
    """By reason, in the words of the file reader."""


@dataclass(slots=True)
class FeedCounts:
    """Things that happened, since the feed began."""

    frames: int = 0
    events: int = 0
    frames_unreadable: int = 0
    events_unreadable: int = 0
    events_of_other_kinds: int = 0
    minutes_closed: int = 0
    connections: int = 0
    disconnections: int = 0
    trades: RowCounts = field(default_factory=RowCounts)
    quotes: RowCounts = field(default_factory=RowCounts)

    @property
    def rows(self) -> int:
        """Rows kept, trades and quotes."""
        return self.trades.rows + self.quotes.rows

    def copy(self) -> FeedCounts:
        """As they are now."""
        parts = {
            name: dataclasses.replace(part, rejected=dict(part.rejected))
            for name, part in (("trades", self.trades), ("quotes", self.quotes))
        }
        return dataclasses.replace(self, **parts)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FeedState:
    """
    How the feed is.

    Attributes:
        state: connecting, authenticating, subscribing, streaming, played (everything that there was came), waiting
            (between attempts), refused, ended.
        detail: why, in a line.
        newest_ns: time of the newest event, ns UTC; 0 before the first.
        counts: a copy.
    """

    state: str
    detail: str
    newest_ns: int
    counts: FeedCounts


FeedMessage = SpooledRows | ClosedThrough | Gap | FeedState
"""What comes through the feed's pipe."""
