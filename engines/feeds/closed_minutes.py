"""
What a live feed hands over: closed minutes as compact columns, gaps, and the feed's state; all picklable.

A closed minute becomes the same typed frame that a flat file gives. This module must never import polars before a frame
is asked for: the feed's process does without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ledger.columns import WINDOW_NS, Dataset

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, slots=True, eq=False)
class ClosedMinute:
    """
    The rows of one minute of one dataset.

    Attributes:
        dataset: whose rows.
        start_ns: start of the minute, ns UTC.
        revision: 0 when the minute is first handed over, counted up when late events reopen it.
        whole: True: all rows of the minute (``groups`` None) or of the named groups, in place of what was handed over.
            False: rows that came after the minute was forgotten, to be added to what was handed over, without those
            whose ticker, time and sequence are there already.
        groups: None, or the option roots (``O:TWX``) and tickers that a revision replaces; others stay as they were.
        finished: False: the feed ended before the minute did. It must not be called filled.
        partial: a gap of the whole connection overlaps the minute; gaps of single topics come as messages only.
        tickers: texts of the numbers in ``columns["ticker"]``, ascending.
        conditions, indicators: texts of the numbers in the columns of those names.
        columns: see :func:`engines.feeds.stream_events.trade_columns` and ``quote_columns``; rows by ticker, time and
            sequence. A redelivered event is in them once.
    """

    dataset: Dataset
    start_ns: int
    revision: int
    whole: bool
    groups: tuple[str, ...] | None
    finished: bool
    partial: bool
    tickers: tuple[str, ...]
    conditions: tuple[str, ...]
    indicators: tuple[str, ...]
    columns: dict[str, NDArray[Any]]

    @property
    def end_ns(self) -> int:
        """End of the minute (exclusive), ns UTC."""
        return self.start_ns + WINDOW_NS

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.columns["sip_timestamp"])

    @property
    def bytes(self) -> int:
        """About how much memory the rows take."""
        return sum(column.nbytes for column in self.columns.values()) + 64 * self.rows * ("id" in self.columns)

    def frame(self) -> polars.DataFrame:
        """
        The rows as :func:`engines.feeds.flatfile.read_batches` would yield them.

        Columns that the websocket does not carry (a trade's correction, participant times) have their default. Option
        trades have sequence 0 as in files.
        """
        import polars as pl

        from engines.feeds.file_columns import columns_of

        made: list[pl.Series] = []
        texts = {"ticker": self.tickers, "conditions": self.conditions, "indicators": self.indicators}
        for name, dtype in columns_of(self.dataset).types.items():
            column = self.columns.get(name)
            if column is None or (name == "sequence_number" and self.dataset is Dataset.OPTION_TRADES):
                default = "" if dtype == pl.String else 0
                made.append(pl.repeat(default, self.rows, dtype=dtype, eager=True).alias(name))
            elif name in texts:
                made.append(pl.Series(name, texts[name], dtype=pl.String).gather(column))
            elif name == "id":
                made.append(pl.Series(name, column.tolist(), dtype=pl.String))
            else:
                made.append(pl.Series(name, column, dtype=dtype))
        return pl.DataFrame(made)


@dataclass(frozen=True, slots=True)
class Gap:
    """
    A time in which events may be missing. Windows that it overlaps are partial until a better source fills them.

    Attributes:
        start_ns: event time of the last event before it, ns UTC; 0 where there was none (the feed began).
        end_ns: event time of the first event after it; None while it lasts.
        reason: why, in a word or a line.
        topics: whose events, such as ``Q.AIG``; None for all of the connection. A later Gap with the same start, reason
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
class FeedCounts:
    """Things that happened, since the feed began."""

    frames: int = 0
    events: int = 0
    frames_unreadable: int = 0
    events_unreadable: int = 0
    events_of_other_kinds: int = 0
    rows: int = 0
    rows_late: int = 0
    rows_redelivered: int = 0
    rows_dropped: int = 0
    minutes_closed: int = 0
    minutes_reopened: int = 0
    connections: int = 0
    disconnections: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeedState:
    """
    How the feed is.

    Attributes:
        state: connecting, authenticating, subscribing, streaming, waiting (between attempts), refused, ended.
        detail: why, in a line.
        watermark_ns: event time up to which minutes are closed, grace taken off; ns UTC, 0 before the first event.
        counts: a copy.
    """

    state: str
    detail: str
    watermark_ns: int
    counts: FeedCounts


FeedMessage = ClosedMinute | Gap | FeedState
"""What comes through the feed's pipe."""


def empty_columns(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same columns without rows."""
    return {name: np.empty(0, column.dtype) for name, column in columns.items()}
