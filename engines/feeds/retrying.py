"""
When to try again: bounded attempts, growing pauses with a jitter that is computed, and a budget of requests a minute.

The jitter comes from a counter and a seed, so a run can be repeated to the millisecond. Clock and sleep are handed in.
What a service asks for (``Retry-After``) is read here for all of them.
This module must never send anything.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final

_JITTER: Final = 0.25


@dataclass(slots=True)
class RetryPolicy:
    """
    Pauses between attempts: ``base * 2 ** attempt``, at most ``max``, plus or minus a quarter.

    Attributes:
        attempts: requests at most, the first included.
        base_seconds: pause after the first failure, before jitter.
        max_seconds: longest pause, before jitter.
        retry_after_max_seconds: longest ``Retry-After`` that is waited for; above it the error goes to the caller.
        seed: tells feeds apart, so that they do not come back in step.
    """

    attempts: int = 5
    base_seconds: float = 0.25
    max_seconds: float = 5.0
    retry_after_max_seconds: float = 120.0
    seed: int = 0
    _drawn: int = field(default=0, repr=False)

    def pause_seconds(self, attempt: int) -> float:
        """The pause after failure number ``attempt``, counted from 0; every call takes the next jitter."""
        plain = min(self.base_seconds * 2.0 ** min(attempt, 32), self.max_seconds)
        digest = hashlib.blake2b(f"{self.seed}:{self._drawn}".encode(), digest_size=8).digest()
        self._drawn += 1
        share = int.from_bytes(digest, "little") / 2**64
        return plain * (1.0 - _JITTER + 2.0 * _JITTER * share)


class RequestBudget:
    """
    At most ``per_minute`` requests in any 60 s; the next one waits for its place.

    Args:
        per_minute: None for any number.
        sent: when requests of the last minute were sent by somebody else, ascending.
    """

    def __init__(
        self,
        per_minute: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        sent: Iterable[float] = (),
    ) -> None:
        if per_minute is not None and per_minute < 1:
            raise ValueError(f"a budget is at least one request a minute, not {per_minute}")
        self._per_minute = per_minute
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[float] = deque(sent)
        self.waited_seconds = 0.0

    @property
    def sent(self) -> tuple[float, ...]:
        """When the requests of the last minute were sent, by the clock; another budget may go on from them."""
        now = self._clock()
        return tuple(one for one in self._sent if one > now - 60.0)

    def take(self) -> None:
        """Wait until a request may be sent, and count it."""
        if self._per_minute is None:
            return
        now = self._clock()
        while self._sent and self._sent[0] <= now - 60.0:
            self._sent.popleft()
        if len(self._sent) >= self._per_minute:
            pause = self._sent.popleft() + 60.0 - now
            self.waited_seconds += pause
            self._sleep(pause)
            now = self._clock()
        self._sent.append(now)


def retry_after_seconds(header: str | None, *, clock: Callable[[], float] = time.time) -> float | None:
    """
    Seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3: seconds or a date); None where it says nothing.

    Args:
        clock: seconds since the epoch, for dates.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - clock())
    except ValueError:
        return None
