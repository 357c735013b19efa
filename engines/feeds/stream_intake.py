"""
From frames to messages, without a socket: decodes, builds minutes, keeps the gaps and the event time of one connection.

It is told when a connection is lost and when all topics are subscribed again; between them lies a gap, in event time from
the last event before to the first event after. This module must never read a clock or wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from engines.feeds.closed_minutes import ClosedMinute, FeedCounts, Gap
from engines.feeds.minute_builder import GRACE_NS, RETAIN_MINUTES, MinuteBuilder
from engines.feeds.stream_events import (
    FrameCounts,
    QuoteEvent,
    StatusEvent,
    Tables,
    TradeEvent,
    decode_frame,
    quote_columns,
    trade_columns,
)
from ledger.columns import WINDOW_NS, Dataset

CHUNK_EVENTS: Final = 4_096
"""Events that become columns at once; small enough to stay in the cache."""


class StreamIntake:
    """
    What one connection brings.

    Args:
        of_options: options instead of stocks.
        grace_ns, retain_minutes, day: see :class:`engines.feeds.minute_builder.MinuteBuilder`.
    """

    def __init__(
        self,
        *,
        of_options: bool,
        grace_ns: int = GRACE_NS,
        retain_minutes: int = RETAIN_MINUTES,
        day: tuple[int, int] | None = None,
    ) -> None:
        trades, quotes = Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES
        if of_options:
            trades, quotes = Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES
        self.tables = Tables()
        self.watermark_ns = 0
        self._counts = FeedCounts()
        self._frames = FrameCounts()
        self._trades = MinuteBuilder(
            trades, self.tables, self._counts, grace_ns=grace_ns, retain_minutes=retain_minutes, day=day
        )
        self._quotes = MinuteBuilder(
            quotes, self.tables, self._counts, grace_ns=grace_ns, retain_minutes=retain_minutes, day=day
        )
        self._grace_ns = grace_ns
        self._retain_ns = retain_minutes * WINDOW_NS
        self._waiting_trades: list[TradeEvent] = []
        self._waiting_quotes: list[QuoteEvent] = []
        self._gaps: list[Gap] = []
        self._open_gap: Gap | None = None
        self._gap_may_end = False
        self._told = 0
        self._next_close_ns = 0

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

    @property
    def rows_kept(self) -> int:
        """Rows in memory: open minutes, and closed ones kept for late events."""
        return self._trades.open_rows + self._quotes.open_rows

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
        """Turn waiting events into columns."""
        trades, quotes = self._waiting_trades, self._waiting_quotes
        if not trades and not quotes:
            return
        first = min(events[0].t for events in (trades, quotes) if events) * 1_000_000
        latest = self.watermark_ns
        if trades:
            latest = max(latest, self._trades.take(trade_columns(trades, self.tables, self._counts.rejected)))
            self._waiting_trades = []
        if quotes:
            latest = max(latest, self._quotes.take(quote_columns(quotes, self.tables, self._counts.rejected)))
            self._waiting_quotes = []
        self.watermark_ns = latest
        if self._open_gap is not None and self._gap_may_end:
            self._end_gap(max(first, self._open_gap.start_ns))

    def lost(self, reason: str) -> Gap | None:
        """The connection is lost (or was never there); a gap begins unless one is open. Returns it if it is new."""
        self.flush()
        self._gap_may_end = False
        if self._open_gap is not None:
            return None
        self._open_gap = Gap(self.watermark_ns, None, reason)
        return self._open_gap

    def subscribed(self) -> None:
        """All topics are subscribed: the gap ends with the next event."""
        self.flush()
        self._gap_may_end = True

    def _end_gap(self, end_ns: int) -> None:
        if self._open_gap is not None:
            self._gaps.append(dataclasses.replace(self._open_gap, end_ns=end_ns))
            self._open_gap = None

    def ended_gaps(self) -> list[Gap]:
        """Gaps that ended since the last call."""
        ended = self._gaps[self._told :]
        oldest = self.watermark_ns - 2 * self._retain_ns
        self._gaps = [gap for gap in self._gaps if gap.end_ns is None or gap.end_ns >= oldest]
        self._told = len(self._gaps)
        return ended

    def _partial(self, start_ns: int, end_ns: int) -> bool:
        if self._open_gap is not None and self._open_gap.overlaps(start_ns, end_ns):
            return True
        return any(gap.overlaps(start_ns, end_ns) for gap in self._gaps)

    def due(self, watermark_ns: int | None = None) -> Iterator[ClosedMinute]:
        """
        Minutes that are over, and reopened ones.

        Args:
            watermark_ns: event time that is known to have come otherwise than by an event; None takes the last event's.
        """
        watermark = self.watermark_ns if watermark_ns is None else max(watermark_ns, self.watermark_ns)
        yield from self._trades.close(watermark, self._partial)
        yield from self._quotes.close(watermark, self._partial)
        closed = watermark - self._grace_ns
        self._next_close_ns = closed - closed % WINDOW_NS + WINDOW_NS + self._grace_ns

    @property
    def is_due(self) -> bool:
        """Whether the last event ended a minute that was not handed over."""
        return self.watermark_ns >= self._next_close_ns

    def finish(self) -> Iterator[ClosedMinute]:
        """Everything that is left; the feed ends."""
        self.flush()
        yield from self._trades.finish(self._partial)
        yield from self._quotes.finish(self._partial)
