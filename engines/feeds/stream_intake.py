"""
From frames to messages, without a socket: decodes, spools minutes, keeps the gaps and the event time of one connection.

It is told when a connection is lost and when all topics are subscribed again; between them lies a gap, in event time from
what was not closed when it was lost to the first event after. This module must never read a clock or wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np

from engines.feeds.feed_messages import ClosedThrough, FeedCounts, Gap, RowCounts, SpooledRows
from engines.feeds.minute_spool import FREE_BYTES_MIN, GRACE_NS, MinuteSpool
from engines.feeds.stream_events import (
    Columns,
    FrameCounts,
    QuoteEvent,
    StatusEvent,
    Tables,
    TradeEvent,
    decode_frame,
    quote_columns,
    trade_columns,
)
from ledger.columns import Dataset

CHUNK_EVENTS: Final = 4_096
"""Events that become columns at once; small enough to stay in the cache."""


class _Wanted:
    """Which rows of a wildcard somebody asked for, by the number of their ticker."""

    def __init__(self, patterns: tuple[str, ...], tables: Tables, counts: RowCounts) -> None:
        self._patterns = patterns
        self._texts = tables.tickers.texts
        self._counts = counts
        self._passes = np.zeros(0, np.bool_)

    def only(self, columns: Columns) -> Columns:
        """The rows of wanted tickers; the others are counted."""
        if not self._patterns:
            return columns
        known = len(self._passes)
        if known < len(self._texts):
            fresh = [any(fnmatchcase(text, each) for each in self._patterns) for text in self._texts[known:]]
            self._passes = np.concatenate([self._passes, np.array(fresh, np.bool_)])
        mine = self._passes[columns["ticker"]]
        if mine.all():
            return columns
        self._counts.unwanted += int((~mine).sum())
        return {name: column[mine] for name, column in columns.items()}


class StreamIntake:
    """
    What one connection brings.

    Args:
        folder: where minutes are spooled.
        of_options: options instead of stocks.
        grace_ns, day, free_bytes_min: see :class:`engines.feeds.minute_spool.MinuteSpool`.
        wanted_trades, wanted_quotes: globs over tickers that are kept; none keeps all.
        resume_ns: event time that an earlier connection's minutes were closed through; 0 for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        of_options: bool,
        grace_ns: int = GRACE_NS,
        day: tuple[int, int] | None = None,
        free_bytes_min: int = FREE_BYTES_MIN,
        wanted_trades: tuple[str, ...] = (),
        wanted_quotes: tuple[str, ...] = (),
        resume_ns: int = 0,
    ) -> None:
        trades, quotes = Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES
        if of_options:
            trades, quotes = Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES
        self.tables = Tables(of_options=of_options)
        self.watermark_ns = 0
        """The latest event's time, ns UTC; 0 before the first."""
        self._counts = FeedCounts()
        self._frames = FrameCounts()
        limits = {"grace_ns": grace_ns, "free_bytes_min": free_bytes_min}
        self._trades = MinuteSpool(folder, trades, self.tables, self._counts.trades, day=day, **limits)
        self._quotes = MinuteSpool(folder, quotes, self.tables, self._counts.quotes, day=day, **limits)
        self._wanted_trades = _Wanted(wanted_trades, self.tables, self._counts.trades)
        self._wanted_quotes = _Wanted(wanted_quotes, self.tables, self._counts.quotes)
        self._grace_ns = grace_ns
        self._resume_ns = resume_ns
        self._waiting_trades: list[TradeEvent] = []
        self._waiting_quotes: list[QuoteEvent] = []
        self._ended: list[Gap] = []
        self._open_gap: Gap | None = None
        self._gap_may_end = False
        self._late: list[Gap] = []
        self._since_subscribed_ns: Callable[[int], int] = _unknown
        self._closed_ns = 0
        self._next_close_ns = 0

    def want(self, trades: tuple[str, ...], quotes: tuple[str, ...]) -> None:
        """Keep tickers that pass other globs from now on."""
        self.flush()
        self._wanted_trades = _Wanted(trades, self.tables, self._counts.trades)
        self._wanted_quotes = _Wanted(quotes, self.tables, self._counts.quotes)

    @property
    def counts(self) -> FeedCounts:
        """The counts so far; the same object throughout."""
        counts, frames = self._counts, self._frames
        counts.frames, counts.events = frames.frames, frames.events
        counts.frames_unreadable, counts.events_unreadable = frames.frames_unreadable, frames.events_unreadable
        counts.events_of_other_kinds = frames.events_of_other_kinds
        return counts

    @property
    def last_bad(self) -> str:
        """The last frame or event that could not be read, and why; '' where all could."""
        return self._frames.last_bad

    def frame(self, frame: bytes | str) -> list[StatusEvent]:
        """Take a frame; its status messages are returned, in order."""
        statuses: list[StatusEvent] = []
        for event in decode_frame(frame, self._frames):
            kind = type(event)
            if kind is QuoteEvent:
                self._waiting_quotes.append(event)  # type: ignore[arg-type]
            elif kind is TradeEvent:
                self._waiting_trades.append(event)  # type: ignore[arg-type]
            else:
                statuses.append(event)  # type: ignore[arg-type]
        if len(self._waiting_quotes) + len(self._waiting_trades) >= CHUNK_EVENTS:
            self.flush()
        return statuses

    def flush(self) -> None:
        """Turn waiting events into columns, and those into spooled rows."""
        trades, quotes = self._waiting_trades, self._waiting_quotes
        if not trades and not quotes:
            return
        first = min(events[0].t for events in (trades, quotes) if events) * 1_000_000
        latest = self.watermark_ns
        if trades:
            columns = trade_columns(trades, self.tables, self._counts.trades.rejected)
            latest = max(latest, self._trades.take(self._wanted_trades.only(columns)))
            self._waiting_trades = []
        if quotes:
            columns = quote_columns(quotes, self.tables, self._counts.quotes.rejected)
            latest = max(latest, self._quotes.take(self._wanted_quotes.only(columns)))
            self._waiting_quotes = []
        if latest and (self._late or (self._open_gap is not None and self._gap_may_end)):
            self._end_gaps(first - self._since_subscribed_ns(first) + self._grace_ns)
        self.watermark_ns = latest

    # ---- gaps

    def lost(self, reason: str) -> Gap | None:
        """
        The connection is lost (or was never there); a gap begins unless one is open.

        It begins a grace before the last event: what was late when the connection was lost never came, so that every
        minute that is not closed is in it.

        Returns:
            the gap if it is new.
        """
        self.flush()
        self._gap_may_end = False
        if self._open_gap is not None:
            return None
        start = max(self.watermark_ns - self._grace_ns, 0) if self.watermark_ns else self._resume_ns
        self._open_gap = Gap(start, None, reason)
        return self._open_gap

    def subscribed(
        self,
        now_ns: int | None = None,
        since_subscribed_ns: Callable[[int], int] | None = None,
        late: Iterable[Gap] = (),
    ) -> None:
        """
        All topics are subscribed: the gap ends a grace after the next event, whose time says how late it is.

        Args:
            now_ns: event time now where it is known without an event, ns UTC; the gap then ends a grace after it.
            since_subscribed_ns: told the time of that next event, how long before it, in event time, the topics were
                subscribed; 0 where that is not known.
            late: gaps of topics that were asked for while others went on; they end in the same way.
        """
        self.flush()
        self._late.extend(late)
        self._gap_may_end, self._since_subscribed_ns = True, since_subscribed_ns or _unknown
        if now_ns is not None:
            self._end_gaps(now_ns + self._grace_ns)

    def _end_gaps(self, end_ns: int) -> None:
        ended, self._late = self._late, []
        if self._open_gap is not None and self._gap_may_end:
            ended.append(self._open_gap)
            self._open_gap = None
        self._ended += [dataclasses.replace(gap, end_ns=max(end_ns, gap.start_ns)) for gap in ended]

    # ---- what is handed over

    def due(
        self, watermark_ns: int | None = None, *, late: bool = False
    ) -> Iterator[SpooledRows | ClosedThrough | Gap]:
        """
        Gaps that ended, minutes that are over, and how far minutes are closed.

        Args:
            watermark_ns: event time that is known to have come otherwise than by an event; None takes the last event's.
            late: hand over late rows now, even where no minute closed.
        """
        watermark = self.watermark_ns if watermark_ns is None else max(watermark_ns, self.watermark_ns)
        ended, self._ended = self._ended, []
        yield from ended
        closed = [*self._trades.close(watermark), *self._quotes.close(watermark)]
        self._counts.minutes_closed += len(closed)
        through = self._trades.closed_before_ns
        if through > self._closed_ns or late:
            closed += [*self._trades.late(), *self._quotes.late()]
        # A gap of rows that were dropped must be known before their minute is.
        yield from [*self._trades.dropped(), *self._quotes.dropped()]
        yield from closed
        if through > self._closed_ns:
            self._closed_ns = through
            yield ClosedThrough(through)
        self._next_close_ns = through + 60_000_000_000 + self._grace_ns

    @property
    def is_due(self) -> bool:
        """Whether the last event ended a minute that was not handed over."""
        return self.watermark_ns >= self._next_close_ns

    def finish(self) -> Iterator[SpooledRows | Gap]:
        """Everything that is left; the feed ends."""
        self.flush()
        left = [*self._trades.finish(), *self._quotes.finish()]
        yield from [*self._trades.dropped(), *self._quotes.dropped()]
        yield from left


def _unknown(_: int) -> int:
    return 0
