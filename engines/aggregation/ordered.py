"""
Statistics of order, on sorted samples, and the sorted sample of a window that moves minute by minute.

A sorted sample is the same array however it came about (there is no NaN and no -0.0 in it), so a window that moved here
and one sorted afresh give equal bytes. Compiled code without fastmath: only workers may import this module.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from engines.compiled import njit

FEW: Final = 16
"""Largest sample whose mode is its most frequent exact value."""


@njit(cache=True, error_model="numpy")
def sort_minutes(values, offsets):  # type: ignore[no-untyped-def]
    """A copy of ``values`` with each minute sorted ascending."""
    ordered = values.copy()
    for minute in range(offsets.size - 1):
        if offsets[minute + 1] - offsets[minute] > 1:
            ordered[offsets[minute] : offsets[minute + 1]].sort()
    return ordered


@njit(cache=True, error_model="numpy")
def exchange(sample, count, leaving, entering, result):  # type: ignore[no-untyped-def]
    """
    Merge ``entering`` into ``sample[:count]`` while taking ``leaving`` out of it, into ``result``; the new count.

    All three are sorted and ``leaving`` is part of the sample. One pass, linear in the sample.
    """
    read, written, leave, enter = 0, 0, 0, 0
    while leave < leaving.size or enter < entering.size:
        leaves_next = leave < leaving.size and (enter == entering.size or leaving[leave] < entering[enter])
        bound = leaving[leave] if leaves_next else entering[enter]
        while read < count and sample[read] < bound:
            result[written] = sample[read]
            written += 1
            read += 1
        if leaves_next:
            read += 1
            leave += 1
        else:
            result[written] = bound
            written += 1
            enter += 1
    rest = count - read
    result[written : written + rest] = sample[read:count]
    return written + rest


@njit(cache=True, error_model="numpy")
def merge_sorted_minutes(ordered, offsets, first, last, sample, spare):  # type: ignore[no-untyped-def]
    """Sorted sample of the minutes ``[first, last)`` into ``sample``, by merging neighbours in pairs; its count."""
    start = offsets[first]
    count = offsets[last] - start
    sample[:count] = ordered[start : start + count]
    span = 1
    while span < last - first:
        for left in range(first, last, 2 * span):
            middle, right = min(left + span, last), min(left + 2 * span, last)
            i, i_end = offsets[left] - start, offsets[middle] - start
            j, j_end = i_end, offsets[right] - start
            for k in range(i, j_end):
                if j == j_end or (i < i_end and sample[i] <= sample[j]):
                    spare[k] = sample[i]
                    i += 1
                else:
                    spare[k] = sample[j]
                    j += 1
        sample[:count] = spare[:count]
        span *= 2
    return count


@njit(cache=True, error_model="numpy")
def quantile(sample, count, probability):  # type: ignore[no-untyped-def]
    """Quantile by linear interpolation at ``probability * (count - 1)``, rounded as numpy rounds it."""
    place = probability * (count - 1)
    below = int(math.floor(place))
    if below >= count - 1:
        return sample[count - 1]
    share = place - below
    step = sample[below + 1] - sample[below]
    if share >= 0.5:
        return sample[below + 1] - step * (1.0 - share)
    return sample[below] + step * share


@njit(cache=True, error_model="numpy")
def _kth_distance(sample, count, split, center, k):  # type: ignore[no-untyped-def]
    """
    The k-th smallest (from 0) of ``|x - center|``, where ``sample[:split] < center <= sample[split:]``.

    Left and right of the centre the distances are two sorted sequences: a binary search finds how many come from each.
    """
    low, high = max(0, k + 1 - (count - split)), min(k + 1, split)
    while low < high:
        from_left = (low + high) // 2
        from_right = k + 1 - from_left
        if sample[split + from_right - 1] - center > center - sample[split - 1 - from_left]:
            low = from_left + 1
        else:
            high = from_left
    result = 0.0
    if low > 0:
        result = center - sample[split - low]
    if k + 1 - low > 0:
        result = max(result, sample[split + k - low] - center)
    return result


@njit(cache=True, error_model="numpy")
def median_absolute_deviation(sample, count, median):  # type: ignore[no-untyped-def]
    """Median of ``|x - median|``, unscaled, in logarithmic time."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if sample[middle] < median:
            low = middle + 1
        else:
            high = middle
    upper = _kth_distance(sample, count, low, median, count // 2)
    if count % 2 == 1:
        return upper
    lower = _kth_distance(sample, count, low, median, count // 2 - 1)
    return lower + (upper - lower) * 0.5


@njit(cache=True, error_model="numpy")
def mode(sample, count, iqr, stddev):  # type: ignore[no-untyped-def]
    """
    Up to 16 values the most frequent one, the smallest of equals; else the centre of the fullest bin, the last of equals.

    Bins start at the minimum and are ``2 * iqr / n^(1/3)`` wide (Freedman and Diaconis), where the IQR is 0
    ``3.5 * stddev / n^(1/3)`` (Scott); there are ``ceil(range / width)`` and the last one takes what lies behind it.
    Where both are 0 it is the middle value. NaN where the range is not finite.
    """
    if count <= FEW:
        return _most_frequent(sample, count)
    root = count ** (1.0 / 3.0)
    width = 2.0 * iqr / root
    if iqr == 0.0:
        width = 3.5 * stddev / root
    minimum = sample[0]
    extent = sample[count - 1] - minimum
    if not width > 0.0:
        return sample[count // 2]
    if not extent / width < math.inf:
        return math.nan
    last_bin = max(np.ceil(extent / width), 1.0) - 1.0
    fullest, fullest_bin = 0, 0.0
    i = 0
    while i < count:
        number = min(np.floor((sample[i] - minimum) / width), last_bin)
        # The bin's end by doubling steps and bisection: the same comparison as value by value, far fewer of them.
        low, step = i, 1
        while low + step < count and min(np.floor((sample[low + step] - minimum) / width), last_bin) <= number:
            low += step
            step *= 2
        high = min(low + step, count)
        while high - low > 1:
            middle = (low + high) // 2
            if min(np.floor((sample[middle] - minimum) / width), last_bin) <= number:
                low = middle
            else:
                high = middle
        if low + 1 - i >= fullest:
            fullest, fullest_bin = low + 1 - i, number
        i = low + 1
    return minimum + (fullest_bin + 0.5) * width


@njit(cache=True, error_model="numpy")
def _most_frequent(sample, count):  # type: ignore[no-untyped-def]
    """The value with the longest run, the first of equals."""
    longest, result = 0, sample[0]
    run = 0
    for i in range(count):
        run = run + 1 if i > 0 and sample[i] == sample[i - 1] else 1
        if run > longest:
            longest, result = run, sample[i]
    return result
