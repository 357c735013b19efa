"""
The settings of the aggregates; all of them enter the recipe of an ``aggs_*`` cell.

Read by the daemon when it parses its config, so this module must never import numpy, polars or numba.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

KERNEL_VERSION: Final = 3
"""Raised whenever the same rows and settings would give other values; part of the recipe."""


class AggregationPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Settings of the aggregates.

    Attributes:
        prints: ``all`` counts every print alike, as the predecessor did; under ``eligible`` cancelled prints leave
            everything, and only prints that may set the last price set open, high, low, close and the spot that stands
            in for a missing mid. Volumes and flows keep the other prints either way.

    Raises:
        ValueError: a value is none of its words (msgspec.ValidationError when decoding).
    """

    prints: Literal["all", "eligible"] = "all"

    def __post_init__(self) -> None:
        # msgspec checks Literal on decode only; settings made in Python must not slip through.
        if self.prints not in ("all", "eligible"):
            raise ValueError(f"prints = {self.prints!r}: use all or eligible")

    def recipe(self) -> dict[str, str | int | float | bool]:
        """Kernel version and settings by name, in fixed order: what the print of a cell hashes."""
        return {"kernel": KERNEL_VERSION, "prints": self.prints}
