"""
Statistics that merge: per-minute partial results and their sums over windows, left to right.

A window's value is defined as the merge, in order of time, of the partials of its minutes that have rows; never as the
difference of two running sums, so it depends on nothing but the rows in the window. Compiled code without fastmath:
only workers may import this module.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from engines.compiled import njit

LAMBDAS: Final = np.arange(-8, 9) * 0.25
"""Grid of Box-Cox exponents."""
COUNT, MEAN, M2, M3, M4, TOTAL, TOTAL_LOW, MINIMUM, MAXIMUM = range(9)
"""Columns of a partial: central power sums, and the total as an unevaluated sum of two doubles."""
PARTIAL_COLUMNS: Final = 9

_LOG: Final = 8
"""Position of lambda 0 in ``LAMBDAS``."""


@njit(cache=True, error_model="numpy")
def _add(total, low, value):  # type: ignore[no-untyped-def]
    """Add with the rounding error kept (Neumaier, ZAMM 54, 1974)."""
    new = total + value
    if abs(total) >= abs(value):
        low += (total - new) + value
    else:
        low += (value - new) + total
    return new, low


@njit(cache=True, error_model="numpy")
def minute_partials(values, offsets):  # type: ignore[no-untyped-def]
    """f64[minutes, 9]: the partial of each minute of ``values``; mean first, then powers of the deviations."""
    minutes = offsets.size - 1
    partials = np.zeros((minutes, PARTIAL_COLUMNS))
    for minute in range(minutes):
        first, last = offsets[minute], offsets[minute + 1]
        if first == last:
            continue
        total, low = 0.0, 0.0
        minimum = maximum = values[first]
        for i in range(first, last):
            total, low = _add(total, low, values[i])
            minimum = min(minimum, values[i])
            maximum = max(maximum, values[i])
        # Equal values must have a variance of exactly 0, which the rounding of total / count could spoil.
        mean = minimum if minimum == maximum else (total + low) / (last - first)
        second, third, fourth = 0.0, 0.0, 0.0
        for i in range(first, last):
            deviation = values[i] - mean
            square = deviation * deviation
            second += square
            third += square * deviation
            fourth += square * square
        row = partials[minute]
        row[COUNT], row[MEAN], row[M2], row[M3], row[M4] = float(last - first), mean, second, third, fourth
        row[TOTAL], row[TOTAL_LOW], row[MINIMUM], row[MAXIMUM] = total, low, minimum, maximum
    return partials


@njit(cache=True, error_model="numpy")
def minute_powers(values, offsets):  # type: ignore[no-untyped-def]
    """
    f64[minutes, 17, 2]: mean and central square sum of ``x^lambda`` (of ``ln x`` for 0); NaN where a value is not > 0.

    Deviations are taken from the minute's first value. That is safe: if it is far from the mean, its own deviation
    makes the square sum large, so at most a factor of the minute's count of the precision is lost.
    """
    minutes = offsets.size - 1
    powers = np.zeros((minutes, LAMBDAS.size, 2))
    shift = np.empty(LAMBDAS.size)
    power = np.empty(LAMBDAS.size)
    for minute in range(minutes):
        first, last = offsets[minute], offsets[minute + 1]
        if first == last:
            continue
        if values[first:last].min() <= 0.0:
            powers[minute] = np.nan
            continue
        _raise(values[first], shift)
        total = np.zeros(LAMBDAS.size)
        square = np.zeros(LAMBDAS.size)
        for i in range(first, last):
            _raise(values[i], power)
            for k in range(LAMBDAS.size):
                deviation = power[k] - shift[k]
                total[k] += deviation
                square[k] += deviation * deviation
        for k in range(LAMBDAS.size):
            mean = total[k] / (last - first)
            powers[minute, k, 0] = shift[k] + mean
            powers[minute, k, 1] = max(square[k] - total[k] * mean, 0.0)
    return powers


@njit(cache=True, error_model="numpy")
def _raise(value, power):  # type: ignore[no-untyped-def]
    """All powers of the grid by products of the fourth root; the logarithm in the place of exponent 0."""
    root = math.sqrt(math.sqrt(value))
    inverse = 1.0 / root
    up, down = 1.0, 1.0
    for k in range(1, _LOG + 1):
        up *= root
        down *= inverse
        power[_LOG + k] = up
        power[_LOG - k] = down
    power[_LOG] = math.log(value)


@njit(cache=True, error_model="numpy")
def merge(into, other):  # type: ignore[no-untyped-def]
    """
    Merge the partial ``other`` into ``into``, both with rows.

    Central power sums as in P. Pebay, "Formulas for Robust, One-Pass Parallel Computation of Covariances and
    Arbitrary-Order Statistical Moments", Sandia report SAND2008-6212, equations 3.1.
    """
    a, b = into[COUNT], other[COUNT]
    n = a + b
    delta = other[MEAN] - into[MEAN]
    share = delta / n
    m2, m3 = into[M2], into[M3]
    into[M4] += (
        other[M4]
        + delta * share * share * share * a * b * (a * a - a * b + b * b)
        + 6.0 * share * share * (a * a * other[M2] + b * b * m2)
        + 4.0 * share * (a * other[M3] - b * m3)
    )
    into[M3] += other[M3] + delta * share * share * a * b * (a - b) + 3.0 * share * (a * other[M2] - b * m2)
    into[M2] += other[M2] + delta * share * a * b
    into[MEAN] += b * share
    into[COUNT] = n
    into[TOTAL], into[TOTAL_LOW] = _add(into[TOTAL], into[TOTAL_LOW], other[TOTAL])
    into[TOTAL_LOW] += other[TOTAL_LOW]
    into[MINIMUM] = min(into[MINIMUM], other[MINIMUM])
    into[MAXIMUM] = max(into[MAXIMUM], other[MAXIMUM])


@njit(cache=True, error_model="numpy")
def _merge_powers(into, into_count, other, other_count):  # type: ignore[no-untyped-def]
    """Merge mean and central square sum of all exponents (Chan, Golub and LeVeque, 1979)."""
    n = into_count + other_count
    for k in range(into.shape[0]):
        delta = other[k, 0] - into[k, 0]
        into[k, 0] += delta * (other_count / n)
        into[k, 1] += other[k, 1] + delta * delta * (into_count * other_count / n)


@njit(cache=True, error_model="numpy")
def best_lambda(powers, count):  # type: ignore[no-untyped-def]
    """
    First exponent of the greatest Box-Cox likelihood ``(lambda - 1) * sum(ln x) - n / 2 * ln(var)``; NaN without one.

    ``var`` is the population variance of ``(x^lambda - 1) / lambda``, taken as that of ``x^lambda`` over ``lambda^2``,
    which is the same number without its cancellation. Exponents whose variance is 0 or not finite do not compete.
    """
    best, result = -math.inf, math.nan
    log_total = count * powers[_LOG, 0]
    for k in range(LAMBDAS.size):
        exponent = LAMBDAS[k]
        variance = powers[k, 1] / count
        if not (variance > 0.0 and variance < math.inf):
            continue
        log_variance = math.log(variance)
        if k != _LOG:
            log_variance -= 2.0 * math.log(abs(exponent))
        likelihood = (exponent - 1.0) * log_total - 0.5 * count * log_variance
        if likelihood > best:
            best, result = likelihood, exponent
    return result


@njit(cache=True, error_model="numpy")
def window_moments(partials, powers, starts, windows):  # type: ignore[no-untyped-def]
    """
    f64[windows, starts, 9] merged partials and f64[windows, starts] Box-Cox lambdas of ``[T, T + w)`` for T of starts.

    ``windows`` is ascending: all windows of a start share the merge of their common minutes, which is the same
    left-to-right merge each would do alone.
    """
    minutes = partials.shape[0]
    merged = np.zeros((windows.size, starts.size, PARTIAL_COLUMNS))
    lambdas = np.full((windows.size, starts.size), np.nan)
    into = np.empty(PARTIAL_COLUMNS)
    into_powers = np.empty((LAMBDAS.size, 2))
    for position in range(starts.size):
        into[:] = 0.0
        into_powers[:] = 0.0
        minute = starts[position]
        for w in range(windows.size):
            while minute < min(starts[position] + windows[w], minutes):
                if partials[minute, COUNT] > 0.0:
                    if into[COUNT] == 0.0:
                        into[:] = partials[minute]
                        into_powers[:] = powers[minute]
                    else:
                        if into[MINIMUM] > 0.0 and partials[minute, MINIMUM] > 0.0:
                            _merge_powers(into_powers, into[COUNT], powers[minute], partials[minute, COUNT])
                        merge(into, partials[minute])
                minute += 1
            merged[w, position] = into
            if into[COUNT] >= 2.0 and into[MINIMUM] > 0.0 and into[MINIMUM] < into[MAXIMUM]:
                lambdas[w, position] = best_lambda(into_powers, into[COUNT])
    return merged, lambdas


@njit(cache=True, error_model="numpy")
def window_totals(values, offsets, starts, windows):  # type: ignore[no-untyped-def]
    """f64[windows, starts]: sums over windows, merged from per-minute sums; NaN where a window has no rows."""
    minutes = offsets.size - 1
    sums = np.zeros((minutes, 2))
    for minute in range(minutes):
        for i in range(offsets[minute], offsets[minute + 1]):
            sums[minute, 0], sums[minute, 1] = _add(sums[minute, 0], sums[minute, 1], values[i])
    result = np.full((windows.size, starts.size), np.nan)
    for position in range(starts.size):
        total, low = 0.0, 0.0
        minute = starts[position]
        for w in range(windows.size):
            while minute < min(starts[position] + windows[w], minutes):
                total, low = _add(total, low, sums[minute, 0])
                low += sums[minute, 1]
                minute += 1
            if offsets[minute] > offsets[starts[position]]:
                result[w, position] = total + low
    return result
