"""
What looks wrong in a session of one symbol: pure functions over what its records say.

Counts are rows of a minute, 0 where the source is known to have none, and `UNKNOWN` where the cell is not filled. This module
must never read a cell, and never decide what follows from a finding.
"""

from __future__ import annotations

from typing import Final

import numpy as np

UNKNOWN: Final = -1
AROUND: Final = 15
"""Minutes on either side that a minute's count is compared with."""


def silences(counts: np.ndarray, busy_rows: int) -> np.ndarray:
    """
    Minutes without rows between two that have at least ``busy_rows`` each.

    Args:
        counts: i64[minutes].
        busy_rows: what busy means.

    Returns:
        i64[k], minutes from the open, ascending.
    """
    busy = counts >= busy_rows
    quiet = np.zeros(len(counts), dtype=bool)
    quiet[1:-1] = (counts[1:-1] == 0) & busy[:-2] & busy[2:]
    return np.flatnonzero(quiet)


def jumps(counts: np.ndarray, factor: float, at_least: int) -> np.ndarray:
    """
    Minutes with more than ``factor`` times the rows of the middle one of their neighbours.

    Args:
        counts: i64[minutes]; only filled minutes with rows are neighbours, and at least five of them are needed.
        factor: how many times.
        at_least: rows that a jump has at least, so that 5 after 1 is none.

    Returns:
        i64[k], minutes from the open, ascending.
    """
    found = []
    for minute in np.flatnonzero(counts >= at_least):
        around = counts[max(0, minute - AROUND) : minute + AROUND + 1]
        others = around[around > 0]
        # The minute itself is among them, which moves the middle by half a rank at most.
        if len(others) > 5 and counts[minute] > factor * float(np.median(others)):
            found.append(minute)
    return np.array(found, dtype=np.int64)


def old_curves(effective_ts: np.ndarray, open_ts: int, max_age_days: float) -> np.ndarray:
    """
    Minutes whose curve took effect more than ``max_age_days`` before the session's open.

    Args:
        effective_ts: i64[minutes], ns UTC; 0 where no curve is known.
        open_ts: ns UTC.
        max_age_days: days of 24 hours.

    Returns:
        i64[k], minutes from the open, ascending.
    """
    old = (effective_ts > 0) & (open_ts - effective_ts > max_age_days * 86_400e9)
    return np.flatnonzero(old)
