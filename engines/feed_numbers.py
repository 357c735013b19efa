"""
What every engine that listens to a feed counts, under the same names, so that one alert serves them all.

The engine counts the fields up where the things happen, or takes over what its feed process reports. This module must
never decide what an event is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.contract import Number


@dataclass(slots=True)
class FeedNumbers:
    """Events of one feed since the engine's start; give :meth:`numbers` out from the engine's own ``numbers()``."""

    events: int = 0
    """Messages of data, kept or not."""
    drops: dict[str, int] = field(default_factory=dict)
    """Events that reached no cell, by reason: a word of a small fixed set, such as ``queue_full`` or ``late``."""
    reconnects: int = 0
    """Connections made after the first."""
    connected: bool = False
    newest_ns: int = 0
    """The newest event's own time, ns UTC; 0 before the first."""

    def drop(self, reason: str, count: int = 1) -> None:
        """Count events that reached no cell."""
        self.drops[reason] = self.drops.get(reason, 0) + count

    def numbers(self, now_ns: int) -> list[Number]:
        """The feed as metrics, at a time of the daemon's clock."""
        found = [
            Number("feed_events", "Events that the feed delivered, kept or not.", self.events, counter=True),
            Number(
                "feed_reconnects",
                "Times the feed's connection was made again; many in an hour say that network or upstream is unwell.",
                self.reconnects,
                counter=True,
            ),
            Number("feed_connected", "1 while the feed is connected and subscribed, else 0.", float(self.connected)),
        ]
        found += [
            Number(
                "feed_drops",
                "Events that reached no cell, by reason; their windows are marked partial where rows are missing.",
                count,
                counter=True,
                labels={"reason": reason},
            )
            for reason, count in sorted(self.drops.items())
        ]
        if self.newest_ns:
            found.append(
                Number(
                    "feed_lag_seconds",
                    "Age of the newest event by its own time; while the session is open it should be a few seconds.",
                    max(0.0, (now_ns - self.newest_ns) / 1e9),
                )
            )
        return found
