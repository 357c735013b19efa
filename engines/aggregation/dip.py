"""
Hartigan's dip statistic and its p-value: how far a sample is from every unimodal distribution.

Written from the published description: J. A. Hartigan and P. M. Hartigan, "The Dip Test of Unimodality", Annals of
Statistics 13 (1985) 70-84, section 4, steps (i) to (vii), with the bookkeeping of P. M. Hartigan, "Computation of the
Dip Statistic", Applied Statistics 34 (1985) 320-325 (AS 217): the minorant and majorant of every interval come from one
pass each, because a vertex of a hull stays a vertex when points beyond its interval are taken away.

Compiled code: only workers may import this module. It must never draw random numbers or read a clock; the table of
quantiles is the published one (``dip_table``).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from engines.aggregation.dip_table import PROBABILITIES, QUANTILES, SAMPLE_SIZES
from engines.compiled import njit

THINNING: Final = 16
"""Every how many order statistics the first, coarse look of ``dip_p_value`` takes."""
THINNING_FROM: Final = 2048
"""Smallest sample that gets the coarse look."""

_SIZES: Final = np.array(SAMPLE_SIZES, dtype=np.int64)
_PROBABILITIES: Final = np.array(PROBABILITIES, dtype=np.float64)
_SCALED: Final = np.sqrt(_SIZES)[:, None] * np.array(QUANTILES, dtype=np.float64)


@njit(cache=True, error_model="numpy")
def _link_minorant(x, count, before):  # type: ignore[no-untyped-def]
    """Fill ``before[j]``: the vertex before ``j`` on the greatest convex minorant of the points ``(x_i, i), i <= j``."""
    before[0] = 0
    for j in range(1, count):
        vertex = j - 1
        while vertex > 0:
            previous = before[vertex]
            if (x[j] - x[vertex]) * (vertex - previous) < (x[vertex] - x[previous]) * (j - vertex):
                break
            vertex = previous
        before[j] = vertex


@njit(cache=True, error_model="numpy")
def _link_majorant(x, count, after):  # type: ignore[no-untyped-def]
    """Fill ``after[j]``: the vertex after ``j`` on the least concave majorant of the points ``(x_i, i), i >= j``."""
    last = count - 1
    after[last] = last
    for j in range(last - 1, -1, -1):
        vertex = j + 1
        while vertex < last:
            following = after[vertex]
            if (x[vertex] - x[j]) * (following - vertex) < (x[following] - x[vertex]) * (vertex - j):
                break
            vertex = following
        after[j] = vertex


@njit(cache=True, error_model="numpy")
def _widest_gap(x, minorant, minorant_count, majorant, majorant_count):  # type: ignore[no-untyped-def]
    """
    Largest distance between the hulls at their vertices, in counts, and the modal interval it leaves: steps (iii), (iv).

    Both hulls are index arrays in increasing order over the same interval. The distance runs from the left limit of the
    distribution function on the minorant to its right limit on the majorant, hence the 1.
    """
    gap = 0.0
    low = minorant[0]
    high = majorant[majorant_count - 1]
    segment = 1
    for position in range(1, minorant_count - 1):
        vertex = minorant[position]
        while majorant[segment] < vertex:
            segment += 1
        left, right = majorant[segment - 1], majorant[segment]
        upper = float(right)
        if x[right] > x[left]:
            upper = left + (x[vertex] - x[left]) * ((right - left) / (x[right] - x[left]))
        distance = upper - vertex + 1.0
        if distance >= gap:
            gap, low, high = distance, vertex, right
    segment = 1
    for position in range(1, majorant_count - 1):
        vertex = majorant[position]
        while minorant[segment] < vertex:
            segment += 1
        left, right = minorant[segment - 1], minorant[segment]
        lower = float(left)
        if x[right] > x[left]:
            lower = left + (x[vertex] - x[left]) * ((right - left) / (x[right] - x[left]))
        distance = vertex - lower + 1.0
        if distance >= gap:
            gap, low, high = distance, left, vertex
    return gap, low, high


@njit(cache=True, error_model="numpy")
def _farthest_above(x, left, right):  # type: ignore[no-untyped-def]
    """Largest rise of the empirical distribution over the minorant's edge ``left..right``, in counts, at least 1."""
    farthest = 1.0
    if right - left > 1 and x[right] > x[left]:
        slope = (right - left) / (x[right] - x[left])
        for i in range(left, right + 1):
            rise = (i - left + 1) - (x[i] - x[left]) * slope
            farthest = max(farthest, rise)
    return farthest


@njit(cache=True, error_model="numpy")
def _farthest_below(x, left, right):  # type: ignore[no-untyped-def]
    """Largest fall of the empirical distribution under the majorant's edge ``left..right``, in counts, at least 1."""
    farthest = 1.0
    if right - left > 1 and x[right] > x[left]:
        slope = (right - left) / (x[right] - x[left])
        for i in range(left, right + 1):
            fall = (x[i] - x[left]) * slope - (i - left - 1)
            farthest = max(farthest, fall)
    return farthest


@njit(cache=True, error_model="numpy")
def dip_statistic(x, count, before, after, minorant, majorant):  # type: ignore[no-untyped-def]
    """
    The dip of ``x[:count]``, f64 sorted ascending and finite: 0 where all values are equal, else ``1 / (2 * count)`` or
    more, because a unimodal distribution is continuous everywhere but at its mode.

    ``before``, ``after``, ``minorant`` and ``majorant`` are int64 work arrays of at least ``count`` elements.
    """
    if count < 2 or x[0] == x[count - 1]:
        return 0.0
    _link_minorant(x, count, before)
    _link_majorant(x, count, after)
    low, high = 0, count - 1
    dip = 1.0
    while True:
        majorant_count = 1
        majorant[0] = low
        while majorant[majorant_count - 1] < high:
            majorant[majorant_count] = after[majorant[majorant_count - 1]]
            majorant_count += 1
        minorant_count = 1
        minorant[0] = high
        while minorant[minorant_count - 1] > low:
            minorant[minorant_count] = before[minorant[minorant_count - 1]]
            minorant_count += 1
        minorant[:minorant_count] = minorant[:minorant_count][::-1].copy()
        gap, next_low, next_high = _widest_gap(x, minorant, minorant_count, majorant, majorant_count)
        if gap <= dip:
            break
        for position in range(1, minorant_count):
            if minorant[position] > next_low:
                break
            dip = max(dip, _farthest_above(x, minorant[position - 1], minorant[position]))
        for position in range(majorant_count - 1, 0, -1):
            if majorant[position - 1] < next_high:
                break
            dip = max(dip, _farthest_below(x, majorant[position - 1], majorant[position]))
        if next_low == low and next_high == high:
            break
        low, high = next_low, next_high
    return dip / (2.0 * count)


@njit(cache=True, error_model="numpy")
def _scaled_quantile(count, level):  # type: ignore[no-untyped-def]
    """Quantile of ``sqrt(count) * dip`` at one tabulated level: linear in the sample size between two tabulated ones."""
    last = _SIZES.size - 1
    if count >= _SIZES[last]:
        return _SCALED[last, level]
    upper = 1
    while _SIZES[upper] < count:
        upper += 1
    share = (count - _SIZES[upper - 1]) / (_SIZES[upper] - _SIZES[upper - 1])
    return _SCALED[upper - 1, level] + share * (_SCALED[upper, level] - _SCALED[upper - 1, level])


@njit(cache=True, error_model="numpy")
def p_value_of_dip(dip, count):  # type: ignore[no-untyped-def]
    """
    Probability that a uniform sample of ``count`` values dips at least as far, from the table; 1 for ``count <= 3``.

    Linear in the sample size on the scale ``sqrt(count) * dip``, then linear between the tabulated levels; 1 up to the
    lowest tabulated quantile and for the smallest dip that ``count`` different values can have, ``1 / (2 * count)``; 0
    from the highest quantile on. Samples beyond the largest tabulated size use its row.
    """
    # The smallest dip has a probability of its own in small samples; the table's digits must not decide that it is met.
    if count <= 3 or 2.0 * count * dip <= 1.0 + 1e-9:
        return 1.0
    scaled = math.sqrt(count) * dip
    top = _PROBABILITIES.size - 1
    lower = _scaled_quantile(count, 0)
    if scaled <= lower:
        return 1.0
    for level in range(1, top + 1):
        upper = _scaled_quantile(count, level)
        if scaled < upper:
            share = (scaled - lower) / (upper - lower)
            return 1.0 - (_PROBABILITIES[level - 1] + share * (_PROBABILITIES[level] - _PROBABILITIES[level - 1]))
        lower = upper
    return 0.0


@njit(cache=True, error_model="numpy")
def dip_p_value(x, count, work):  # type: ignore[no-untyped-def]
    """
    p-value of the dip of ``x[:count]``, sorted; ``work`` is i64[4, >= count].

    Large samples are first looked at coarsely: leaving out all but every ``THINNING``-th order statistic (and the last)
    moves no value of the empirical distribution by more than ``2 * THINNING / count``, and the dip, a distance to a set of
    distributions, by no more than that. Where even so the answer can only be 0, the whole sample is not looked at; the
    result is the same.
    """
    if count <= 3:
        return 1.0
    if count >= THINNING_FROM:
        thinned = (count + THINNING - 1) // THINNING
        picked = np.empty(thinned + 1)
        for i in range(thinned):
            picked[i] = x[i * THINNING]
        picked[thinned] = x[count - 1]
        coarse = dip_statistic(picked, thinned + 1, work[0], work[1], work[2], work[3])
        doubt = 2.0 * THINNING / count
        if math.sqrt(count) * (coarse - doubt) > _scaled_quantile(count, _PROBABILITIES.size - 1):
            return 0.0
    return p_value_of_dip(dip_statistic(x, count, work[0], work[1], work[2], work[3]), count)
