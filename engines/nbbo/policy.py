"""
The settings of the aggressor rule and the words of its result.

Everything here enters the recipe of an ``aggressor_ref`` cell. The module is read by the daemon when it parses its
config, so it must never import numpy, polars or numba.
"""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal

import msgspec

KERNEL_VERSION: Final = 2
"""Raised whenever the same inputs and settings would give other rows; part of the recipe."""
STALENESS_MS_MAX: Final = 60_000
"""A quote older than this could lie before minute T-1 and so outside the inputs of the cell of minute T."""
EPSILON_MIN: Final = 1e-6
"""Floor of the price tolerance, in dollars."""


class Side(IntEnum):
    """Who took the initiative; int8 in the kernel, the word in Parquet."""

    UNKNOWN = 0
    BUYER = 1
    SELLER = 2

    @property
    def word(self) -> str:
        """Lower-case word stored in rows."""
        return self.name.lower()


class Method(IntEnum):
    """
    What decided the side; int8 in the kernel, the word in Parquet.

    The words keep the meaning they always had, which is not what they suggest: ``nbbo_touch`` is at the quote *or
    through it*, ``nbbo_at_or_beyond`` is strictly *inside* the spread. Aggregates count by these words.
    """

    UNKNOWN = 0
    NBBO_TOUCH = 1
    NBBO_AT_OR_BEYOND = 2
    TICK_RULE = 3

    @property
    def word(self) -> str:
        """Lower-case word stored in rows."""
        return self.name.lower()


class QuoteState(IntEnum):
    """State of the quote in force; NONE where no quote is in force (missing or stale)."""

    NONE = 0
    NORMAL = 1
    LOCKED = 2
    CROSSED = 3

    @property
    def word(self) -> str:
        """Lower-case word stored in rows."""
        return self.name.lower()


class Rule(StrEnum):
    """
    The rule applied to a trade with an actionable quote (normal, finite, ask above bid).

    In all of them, trades the quote does not decide go to the tick rule where ``tick_rule`` is on, except as said.
    """

    NEAREST_SIDE = "nearest-side"
    """At or through the touch, else the nearer side; exactly at the mid: buyer, counted as ``exact_mid``."""
    NEAREST_SIDE_MID_UNKNOWN = "nearest-side-mid-unknown"
    """The same, but a trade exactly at the mid has an unknown side; the tick rule is not asked either."""
    TOUCH_ONLY = "touch-only"
    """Only at or through the touch; trades inside the spread are left to the tick rule."""
    LEE_READY = "lee-ready"
    """
    Above the mid buyer, below it seller, at the mid the tick test (Lee and Ready, Journal of Finance 46, 1991).

    The tick test compares with the last different price before the trade, so a zero tick has the side of the last tick
    that was none. It looks back over the trades of the same minute and the stored price before the first of them: a run
    of equal prices that began earlier leaves the trade unknown (about 1 % of real trades), because more would reach out
    of the cell's inputs. Trades without a quote in force go to the tick test too. Lee and Ready's five-second delay of
    quotes belongs to the reporting of their time and is not applied; ``quote_tie`` says what equal times mean.
    """


class NbboPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Settings of the aggressor rule; all of them are part of the recipe.

    Attributes:
        policy: a ``Rule``, as its word.
        staleness_ms: largest age of a quote in force, in milliseconds, inclusive, the age cut to whole microseconds;
            1 to 60,000.
        epsilon: tolerance of price comparisons, in dollars; below 1e-6 it counts as 1e-6.
        quote_tie: does a quote with exactly the trade's time come before it?
        tick_rule: ask the tick rule where the quote does not decide; off, ``lee-ready`` is the bare quote rule.
        prints: ``all`` prints alike, or ``eligible``: cancelled ones leave, only last-eligible ones set prices.

    Raises:
        ValueError: a value is out of its range (msgspec.ValidationError when decoding).
    """

    policy: Literal["nearest-side", "nearest-side-mid-unknown", "touch-only", "lee-ready"] = "nearest-side"
    staleness_ms: Annotated[int, msgspec.Meta(ge=1, le=STALENESS_MS_MAX)] = 1000
    epsilon: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1e-4
    quote_tie: Literal["at-or-before", "before"] = "at-or-before"
    tick_rule: bool = True
    prints: Literal["all", "eligible"] = "all"

    def __post_init__(self) -> None:
        # msgspec checks Meta and Literal on decode only; settings made in Python must not slip through.
        if self.policy not in tuple(Rule):
            raise ValueError(f"policy = {self.policy!r}: use one of {', '.join(Rule)}")
        if not 1 <= self.staleness_ms <= STALENESS_MS_MAX:
            raise ValueError(f"staleness_ms = {self.staleness_ms}: use 1 to {STALENESS_MS_MAX}")
        if not (math.isfinite(self.epsilon) and 0.0 <= self.epsilon <= 1.0):
            raise ValueError(f"epsilon = {self.epsilon}: use a price tolerance from 0 to 1 dollar")
        if self.quote_tie not in ("at-or-before", "before"):
            raise ValueError(f"quote_tie = {self.quote_tie!r}: use at-or-before or before")
        if self.prints not in ("all", "eligible"):
            raise ValueError(f"prints = {self.prints!r}: use all or eligible")
        # Floored here so that settings that mean the same have the same recipe.
        msgspec.structs.force_setattr(self, "epsilon", max(float(self.epsilon), EPSILON_MIN))

    @property
    def rule(self) -> Rule:
        """The policy as its enum."""
        return Rule(self.policy)

    @property
    def staleness_ns(self) -> int:
        """The staleness limit in nanoseconds."""
        return self.staleness_ms * 1_000_000

    def recipe(self) -> dict[str, str | int | float | bool]:
        """Kernel version and settings by name, in fixed order: what the print of a cell hashes."""
        return {
            "kernel": KERNEL_VERSION,
            "policy": self.policy,
            "staleness_ms": self.staleness_ms,
            "epsilon": self.epsilon,
            "quote_tie": self.quote_tie,
            "tick_rule": self.tick_rule,
            "prints": self.prints,
        }
