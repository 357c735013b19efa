"""
The times of one session, as a feed needs them.

Built by the caller from the calendar. It must never look a session up itself: feeds know no calendar and no ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.columns import MINUTES_PER_SESSION, WINDOW_NS


@dataclass(frozen=True, slots=True)
class SessionWindow:
    """
    One session and the exchange-local day around it.

    Attributes:
        date: the session, ``YYYY-MM-DD``.
        open_ns: start of its first window, ns UTC.
        minutes: windows of the session: 390, or 210 on an early close.
        day_start_ns: local midnight before the session, ns UTC.
        day_end_ns: local midnight after it (exclusive), ns UTC.
    """

    date: str
    open_ns: int
    minutes: int
    day_start_ns: int
    day_end_ns: int

    def __post_init__(self) -> None:
        """
        Refuse times that cannot be a session.

        Raises:
            ValueError: the bounds are out of order, or there are more windows than a session holds.
        """
        if not 0 < self.minutes <= MINUTES_PER_SESSION:
            raise ValueError(f"a session has 1 to {MINUTES_PER_SESSION} windows, not {self.minutes}")
        if not 0 < self.day_start_ns <= self.open_ns < self.close_ns <= self.day_end_ns:
            raise ValueError(f"session {self.date}: day and session times are out of order")

    @property
    def close_ns(self) -> int:
        """End of the last window (exclusive), ns UTC."""
        return self.open_ns + self.minutes * WINDOW_NS
