"""
All statistics of one window: from its merged partial and its sorted sample to the S14 or S17 columns.

Compiled code without fastmath: only workers may import this module. Null is NaN here.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from engines.aggregation.density import peaks
from engines.aggregation.dip import dip_p_value
from engines.aggregation.moments import M2, M3, M4, MAXIMUM, MINIMUM, TOTAL, TOTAL_LOW
from engines.aggregation.ordered import (
    exchange,
    median_absolute_deviation,
    merge_sorted_minutes,
    mode,
    quantile,
)
from engines.compiled import njit

CV_FLOOR: Final = 1e-9
"""Smallest mean that the coefficient of variation divides by."""


@njit(cache=True, error_model="numpy")
def _finite(value):  # type: ignore[no-untyped-def]
    """The value, NaN where it is not finite: an aggregate is a number or null."""
    return value if abs(value) < math.inf else math.nan


@njit(cache=True, error_model="numpy")
def describe(sample, count, partial, exponent, with_quartiles, work, out):  # type: ignore[no-untyped-def]
    """
    Write S14, or S17 where ``with_quartiles``, of ``sample[:count]`` into ``out``; all NaN for an empty sample.

    ``partial`` is the window's merged partial, ``exponent`` its Box-Cox lambda, ``work`` i64[4, >= count].
    """
    out[:] = math.nan
    if count == 0:
        return
    first_quartile = quantile(sample, count, 0.25)
    median = quantile(sample, count, 0.5)
    third_quartile = quantile(sample, count, 0.75)
    iqr = third_quartile - first_quartile
    total = partial[TOTAL] + partial[TOTAL_LOW]
    mean = total / count
    equal = partial[MINIMUM] == partial[MAXIMUM]
    second = 0.0 if equal else partial[M2]
    stddev = math.sqrt(second / (count - 1)) if count > 1 else math.nan
    out[0] = _finite(total)
    out[1] = partial[MINIMUM]
    place = 2
    if with_quartiles:
        out[2], out[3], out[4] = first_quartile, median, third_quartile
        place = 5
    rest = out[place:]
    rest[0] = partial[MAXIMUM]
    rest[1] = _finite(mean)
    if count > 1:
        rest[2] = _finite(stddev)
    if count > 1 and second > 0.0:
        rest[3] = _finite(math.sqrt(count) * partial[M3] / second**1.5)
        rest[4] = _finite(count * partial[M4] / (second * second))
        rest[7] = _finite(stddev / max(abs(mean), CV_FLOOR))
    rest[5] = _finite(iqr)
    rest[6] = _finite(median_absolute_deviation(sample, count, median))
    rest[8] = _finite(mode(sample, count, iqr, stddev))
    rest[9] = exponent
    if count >= 3:
        rest[10] = dip_p_value(sample, count, work)
    rest[11] = _finite(peaks(sample, count, stddev if count > 1 else 0.0))


@njit(cache=True, error_model="numpy")
def describe_windows(ordered, offsets, starts, window, merged, exponents, with_quartiles, out):  # type: ignore[no-untyped-def]
    """
    Describe ``[T, T + window)`` for every T of ``starts`` (ascending) into the rows of ``out``.

    ``ordered`` holds the sample sorted within each minute; ``merged`` and ``exponents`` are of this window. The sorted
    sample moves from one start to the next; where no row left or entered, so does the result.
    """
    minutes = offsets.size - 1
    most = 0
    for start in starts:
        most = max(most, offsets[min(start + window, minutes)] - offsets[start])
    sample, spare = np.empty(most), np.empty(most)
    work = np.empty((4, most), dtype=np.int64)
    count = 0
    previous, previous_end = -1, -1
    for position in range(starts.size):
        start = starts[position]
        end = min(start + window, minutes)
        if previous >= 0 and start == previous + 1:
            leaving = ordered[offsets[previous] : offsets[start]]
            entering = ordered[offsets[max(previous_end, start)] : offsets[end]]
            if window == 1:
                count = entering.size
                sample[:count] = entering
            elif leaving.size > 0 or entering.size > 0:
                count = exchange(sample, count, leaving, entering, spare)
                sample, spare = spare, sample
            unchanged = leaving.size == 0 and entering.size == 0
        else:
            count = merge_sorted_minutes(ordered, offsets, start, end, sample, spare)
            unchanged = False
        if unchanged:
            out[position] = out[position - 1]
        else:
            describe(sample, count, merged[position], exponents[position], with_quartiles, work, out[position])
        previous, previous_end = start, end
