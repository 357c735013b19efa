"""
Pauses: how long a place that failed is left alone, and how that is said.

The first pause is short, the longest five minutes, and what a place asks for is kept. This module must never read a clock:
the time is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engines.contract import Retry
from engines.feeds.retrying import RetryPolicy
from ledger.calendar import Calendar

_SECOND_NS: Final = 1_000_000_000
FIRST_S: Final = 15.0
LONGEST_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """
    Why something could not be fetched now.

    Attributes:
        cause: ``unreachable``, ``denied``, ``damaged`` (the object itself), ``missing``, ``budget`` (the disk is full) or
            ``quiet``.
        retry_after_s: what the place asked to wait, or None.
    """

    cause: str
    reason: str
    hint: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A place or object that is left alone after failures in a row; ``tag`` tells objects of one name apart."""

    trouble: Trouble
    until_ns: int
    failures: int
    tag: str = ""
    first_failed_ns: int = 0

    @property
    def retry(self) -> Retry | None:
        """The next attempt; None where another attempt alone changes nothing: keys, names and disks need a hand."""
        return Retry(self.first_failed_ns, self.until_ns) if self.trouble.cause == "unreachable" else None

    def holds(self, now_ns: int) -> bool:
        """Whether it is not over."""
        return now_ns < self.until_ns

    def said(self, calendar: Calendar) -> str:
        """In words for an operator: why, what to do, how often, and when it is tried again."""
        again = calendar.format_time(self.until_ns // _SECOND_NS * _SECOND_NS)
        hint = f"; {self.trouble.hint}" if self.trouble.hint else ""
        times = f"{self.failures} time{'s' if self.failures > 1 else ''}"
        return f"{self.trouble.reason}{hint} (failed {times}, tried again at {again})"


class Pausing:
    """Makes pauses; the jitter is drawn from a counter, so a run can be repeated."""

    def __init__(self) -> None:
        self._policy = RetryPolicy(base_seconds=FIRST_S, max_seconds=LONGEST_S)

    def after(self, trouble: Trouble, now_ns: int, before: Pause | None, tag: str = "") -> Pause:
        """The pause after a failure; ``before`` is the last one of the same place or object, None after a success."""
        in_a_row = before is not None and before.tag == tag
        failures, first_ns = (before.failures + 1, before.first_failed_ns) if before and in_a_row else (1, now_ns)
        pause_s = max(self._policy.pause_seconds(failures - 1), trouble.retry_after_s or 0.0)
        return Pause(trouble, now_ns + round(pause_s * _SECOND_NS), failures, tag, first_ns)


def trouble_of(error: Exception) -> Trouble:
    """A failure of a feed in the words of engines."""
    from engines.feeds import feed_errors

    assert isinstance(error, feed_errors.FeedError)
    causes = (
        (feed_errors.ObjectDamaged, "damaged"),
        (feed_errors.SourceRefused, "denied"),
        (feed_errors.SourceMissing, "missing"),
    )
    cause = next((word for kind, word in causes if isinstance(error, kind)), "unreachable")
    return Trouble(cause, str(error), error.hint, error.retry_after_seconds)
