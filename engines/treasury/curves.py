"""
Curves: when one takes effect, which one holds, and its record. Pure: arrays and numbers in, arrays out.

A curve dated D takes effect at 18:00 New York on D, when the Treasury has published it, and holds until the next one,
over weekends and holidays. This module must never read a file, a calendar or a clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from ledger.columns import PayloadKind, Source
from ledger.content import cell_hashes, row_hashes
from ledger.records import ABSENT_TENOR, TENOR_COUNT, blank

CurveEffective = Literal["18:00", "same-day"]
"""When a curve dated D takes effect: 18:00 New York on D, or at D's midnight (which looks ahead, as the predecessor did)."""
EFFECTIVE_TIME: Final = {"18:00": "T18:00", "same-day": "T00:00"}


def record_of(date: str, tenor_bps: Sequence[int | None], effective_ts: int, next_effective_ts: int) -> np.ndarray:
    """
    The rf_rate record of a curve.

    Args:
        date: the day the curve is dated, ``YYYY-MM-DD``.
        tenor_bps: 12 par yields in basis points, None where absent.
        effective_ts: ns since epoch UTC, floored to the minute.
        next_effective_ts: when the next curve takes effect, 0 when unknown; never hashed.

    Returns:
        array [1] of the rf_rate record dtype; its content hash covers date, effective time and tenors.
    """
    assert len(tenor_bps) == TENOR_COUNT, "curve: not 12 tenors"
    tenors = np.array([ABSENT_TENOR if one is None else one for one in tenor_bps], dtype=np.int32)
    day = int(date.replace("-", ""))
    record = blank(PayloadKind.RF_RATE, 1)
    record["source"] = int(Source.REST)
    record["effective_ts"], record["next_effective_ts"] = effective_ts, next_effective_ts
    record["curve_id"] = np.datetime64(date).astype("datetime64[D]").astype(np.int64) % 65_536
    record["curve_date"] = day
    record["tenor_bps"][0] = tenors
    rows = row_hashes([np.full(TENOR_COUNT, day), np.arange(TENOR_COUNT), tenors])
    zero, twelve = np.zeros(1, dtype=np.int64), np.full(1, TENOR_COUNT)
    record["content_hash"] = cell_hashes(PayloadKind.RF_RATE, np.array([effective_ts]), zero, twelve, rows)
    return record


def is_bond_holiday(day: str) -> bool:
    """
    Whether the Treasury publishes no curve on a day that stocks trade: Columbus Day, and Veterans Day.

    Args:
        day: ``YYYY-MM-DD``. A Veterans Day on a Sunday is kept on the Monday after it, one on a Saturday is not moved.
    """
    date = datetime.date.fromisoformat(day)
    columbus = date.month == 10 and date.weekday() == 0 and 8 <= date.day <= 14
    veterans = date.month == 11 and (date.day == 11 or (date.day == 12 and date.weekday() == 0))
    return columbus or veterans


def behind(held: str | None, expected: Sequence[str]) -> list[str]:
    """
    Curves that should have come and have not, ascending.

    Args:
        held: date of the curve that holds, None for none.
        expected: days that have a curve each, ascending, up to the last one that could hold.
    """
    return [day for day in expected if day > (held or "") and not is_bond_holiday(day)]


def holding(effective_ts: np.ndarray, start_ts: np.ndarray) -> np.ndarray:
    """
    Which curve holds in each window.

    Args:
        effective_ts: i64[curves], ascending, ns since epoch UTC.
        start_ts: i64[n], window starts.

    Returns:
        i64[n], index of the last curve that is in effect at the start; -1 before the first.
    """
    found: np.ndarray = np.searchsorted(effective_ts, start_ts, side="right") - 1
    return found
