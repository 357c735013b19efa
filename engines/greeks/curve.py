"""
From a Treasury curve in basis points to the rate for a time to expiry.

Par yields are used as continuously compounded zero rates, as the predecessor did. Between tenors the log discount factor
``-r * t`` is linear in t; before the first published tenor its rate holds, beyond the last one its rate holds and the
row is flagged. A tenor that was not published is left out: it is never 0 %. The compiled twin of :func:`zero_rate` is in
``kernel``; this module is read by the daemon and must never import numba.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ledger.records import ABSENT_TENOR, TENOR_COUNT

TENOR_YEARS: Final = (1 / 12, 2 / 12, 3 / 12, 6 / 12, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 30.0)
"""Years of the twelve tenors 1m 2m 3m 6m 1y 2y 3y 5y 7y 10y 20y 30y, in the order of ``tenor_bps``."""

assert len(TENOR_YEARS) == TENOR_COUNT


class Curve(NamedTuple):
    """The published points of one curve; empty where there is none."""

    tenor_years: NDArray[np.float64]
    """f64[k]: years, ascending, at most 12."""
    rates: NDArray[np.float64]
    """f64[k]: continuously compounded, as decimals (0.05 = 5 %) per year."""


NO_CURVE: Final = Curve(np.zeros(0), np.zeros(0))
"""Stands for "no curve in force": every row gets NO_TREASURY."""


def curve_of(tenor_bps: ArrayLike | None) -> Curve:
    """
    The points of a curve as a ``rf_rate`` record stores them.

    Args:
        tenor_bps: i32[12] basis points, ``ABSENT_TENOR`` where a tenor was not published; None where no curve holds.

    Raises:
        ValueError: not twelve values.
    """
    if tenor_bps is None:
        return NO_CURVE
    points = np.asarray(tenor_bps, dtype=np.int64)
    if points.shape != (TENOR_COUNT,):
        raise ValueError(f"a curve has {TENOR_COUNT} tenors, found an array of shape {points.shape}")
    published = points != ABSENT_TENOR
    return Curve(np.array(TENOR_YEARS)[published], points[published] / 10_000.0)


def zero_rate(curve: Curve, tau_years: float) -> tuple[float, bool]:
    """
    Rate for a time to expiry, and whether it lies beyond the last published tenor.

    Args:
        curve: at least one point.
        tau_years: years, ACT/365.

    Raises:
        ValueError: the curve is empty.
    """
    tenors, rates = curve
    if tenors.size == 0:
        raise ValueError("the curve has no published tenor; rows without a curve are flagged NO_TREASURY instead")
    if tau_years <= tenors[0]:
        return float(rates[0]), False
    if tau_years > tenors[-1]:
        return float(rates[-1]), True
    above = int(np.searchsorted(tenors, tau_years, side="left"))
    left, right = tenors[above - 1], tenors[above]
    weight = (tau_years - left) / (right - left)
    growth = rates[above - 1] * left * (1.0 - weight) + rates[above] * right * weight
    return float(growth / tau_years), False
