"""
The settings of the Greeks engine, and the carry of each underlying on each session.

Everything here enters the recipe of a ``greeks_ref`` cell. The module is read by the daemon when it parses its config,
so it must never import numpy, polars or numba.
"""

from __future__ import annotations

import bisect
import csv
import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

if TYPE_CHECKING:
    import os

KERNEL_VERSION: Final = 1
"""Raised whenever the same inputs and settings would give other rows; part of the recipe."""
STALENESS_MS_MAX: Final = 60_000
"""A quote older than this could lie before minute T-1 and so outside the inputs of the cell of minute T."""
CARRY_MAX: Final = 2.0
"""Largest absolute carry per year that is believed; beyond it the config is taken for percent."""
IV_LIMITS: Final = (1e-6, 100.0)
"""Widest bounds that iv_min and iv_max may be set to."""

AM_SETTLED: Final = ("DJX", "MNX", "NDX", "RUT", "SPX", "VIX", "VIXW")
"""Default of am_settled; the packaged table of roots marks the same ones."""

CarryPoints = tuple[tuple[datetime.date, float], ...]


class GreeksSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Settings of implied volatility and Greeks; all of them are part of the recipe.

    Attributes:
        staleness_ms: largest age of the underlying's quote, in milliseconds, with 1 us of tolerance; 0 asks for a quote
            of exactly the trade's time; 0 to 60,000.
        expiry: ``last-session-close``, or ``calendar-1600`` for 16:00 New York on the literal date.
        am_settled: roots whose life ends at the open of their last session, under ``last-session-close``.
        net_carry: continuous dividend yield less borrow fee, per year as a decimal, by underlying: a number, or the
            path of a CSV with the header ``date,carry``; underlyings not named have 0.
        iv_min, iv_max: a volatility outside them is flagged IV_OUT_OF_RANGE; per 1.00, so 0.2 is 20 %.
        intrinsic: which prices are too low. ``discounted``: those that no volatility gives, the bound of a European
            option, ``max(S e^(-q t) - K e^(-r t), 0)`` for a call. ``undiscounted``: in addition those more than 1e-4
            below ``max(S - K, 0)`` or ``max(K - S, 0)``, the predecessor's rule, which an American option obeys; it
            takes the Greeks from deep puts of European roots, where a volatility does exist.

    Raises:
        ValueError: a value is out of its range (msgspec.ValidationError when decoding).
    """

    staleness_ms: Annotated[int, msgspec.Meta(ge=0, le=STALENESS_MS_MAX)] = 1000
    expiry: Literal["last-session-close", "calendar-1600"] = "last-session-close"
    am_settled: tuple[str, ...] = AM_SETTLED
    net_carry: dict[str, float | str] = {}
    iv_min: float = 1e-4
    iv_max: float = 10.0
    intrinsic: Literal["discounted", "undiscounted"] = "discounted"

    def __post_init__(self) -> None:
        # msgspec checks Meta and Literal on decode only; settings made in Python must not slip through.
        if not 0 <= self.staleness_ms <= STALENESS_MS_MAX:
            raise ValueError(f"staleness_ms = {self.staleness_ms}: use 0 to {STALENESS_MS_MAX}")
        if self.expiry not in ("last-session-close", "calendar-1600"):
            raise ValueError(f"expiry = {self.expiry!r}: use last-session-close or calendar-1600")
        if self.intrinsic not in ("discounted", "undiscounted"):
            raise ValueError(f"intrinsic = {self.intrinsic!r}: use discounted or undiscounted")
        if not IV_LIMITS[0] <= self.iv_min < self.iv_max <= IV_LIMITS[1]:
            raise ValueError(
                f"iv_min = {self.iv_min}, iv_max = {self.iv_max}: use {IV_LIMITS[0]} <= iv_min < iv_max <= {IV_LIMITS[1]}"
            )
        for underlying, carry in self.net_carry.items():
            if not isinstance(carry, str):
                _checked_carry(float(carry), f"net_carry of {underlying}")
        # Sorted so that settings that mean the same have the same recipe.
        msgspec.structs.force_setattr(self, "am_settled", tuple(sorted(set(self.am_settled))))

    @property
    def staleness_ns(self) -> int:
        """The staleness limit in nanoseconds, tolerance not included."""
        return self.staleness_ms * 1_000_000

    def recipe(self, net_carry: float) -> dict[str, str | int | float]:
        """
        Kernel version and settings by name, in fixed order: what the print of a cell hashes.

        Args:
            net_carry: what :meth:`CarryTable.on` gives for the cell's underlying and session, so that a change of one
                underlying's carry makes only its own cells stale.
        """
        return {
            "kernel": KERNEL_VERSION,
            "staleness_ms": self.staleness_ms,
            "expiry": self.expiry,
            "am_settled": ",".join(self.am_settled),
            "net_carry": float(net_carry),
            "iv_min": float(self.iv_min),
            "iv_max": float(self.iv_max),
            "intrinsic": self.intrinsic,
        }


@dataclass(frozen=True, slots=True)
class CarryTable:
    """Net carry by underlying: dated points, ascending; immutable and picklable."""

    points: dict[str, CarryPoints]

    @staticmethod
    def load(settings: GreeksSettings, base: str | os.PathLike[str] = ".") -> CarryTable:
        """
        Take the numbers of ``net_carry`` and read its CSV files.

        Args:
            settings: the engine's settings.
            base: the directory that relative paths are relative to (that of the config file).

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not a dated table; the message names file, line and what is wrong.
        """
        points: dict[str, CarryPoints] = {}
        for underlying, carry in sorted(settings.net_carry.items()):
            if isinstance(carry, str):
                points[underlying] = _read_carry(Path(base) / carry)
            else:
                points[underlying] = ((datetime.date.min, float(carry)),)
        return CarryTable(points)

    def on(self, underlying: str, session: datetime.date) -> float:
        """Carry in force on a session: that of the newest date not after it; 0.0 before the first and where none is set."""
        points = self.points.get(underlying, ())
        position = bisect.bisect_right([day for day, _ in points], session)
        return points[position - 1][1] if position else 0.0


def _read_carry(path: Path) -> CarryPoints:
    points: list[tuple[datetime.date, float]] = []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        if [field.strip().lower() for field in next(rows, [])] != ["date", "carry"]:
            raise ValueError(f"{path}, line 1: expected the header date,carry")
        for row in rows:
            if not row:
                continue
            where = f"{path}, line {rows.line_num}"
            try:
                text, number = row
                day, carry = datetime.date.fromisoformat(text.strip()), float(number)
            except ValueError as error:
                raise ValueError(f"{where}: expected YYYY-MM-DD,number, found {','.join(row)!r}") from error
            if points and day <= points[-1][0]:
                raise ValueError(f"{where}: {day} does not come after {points[-1][0]}; dates must ascend")
            points.append((day, _checked_carry(carry, where)))
    if not points:
        raise ValueError(f"{path}: no rows; give at least one date, or a number in place of the path")
    return tuple(points)


def _checked_carry(carry: float, where: str) -> float:
    if not (math.isfinite(carry) and abs(carry) <= CARRY_MAX):
        raise ValueError(f"{where}: carry {carry} must be a decimal per year between -{CARRY_MAX} and {CARRY_MAX}")
    return carry
