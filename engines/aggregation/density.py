"""
Peaks of a Gaussian kernel density on 129 points, without summing 129 kernels per value.

Definition: ``f_j = sum over x of exp(-((g_j - x) / h)^2 / 2)`` at ``g_j = minimum + j * (maximum - minimum) / 128``, with
``h = 1.06 * stddev * n^(-1/5)``; the peaks are the places where ``f_j - f_(j-1) > 0 > f_(j+1) - f_j``, at least 1. (The
usual factor before the sum changes no sign.) The density is computed to about 1e-12 of its own value wherever it can
decide a peak, which counts the same peaks as the plain sum unless that is undecided by its own rounding:

- Kernels that together are below 1e-17 of the density at a point are not summed; how far that is depends on the nearest
  value, so a point far from all values still gets its density to full relative precision.
- More than one bandwidth from all values the density is convex and has no peak, so points whose neighbours are all
  that far are not computed.
- Where many values meet many points, values are gathered in boxes narrower than half a bandwidth by their power sums,
  and points sum the Hermite expansion of the boxes (the fast Gauss transform, Greengard and Strain, SIAM J. Sci. Stat.
  Comput. 12, 1991) with so many terms that its remainder is below 1e-13 of the density. Used within 5 bandwidths of a
  value only.

Compiled code without fastmath: only workers may import this module.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from engines.compiled import njit

POINTS: Final = 129
"""Points of the grid."""

_NEAR: Final = 5.0
"""Farthest nearest value, in bandwidths, for which boxes are used: the remainder bound below assumes it."""
_FAR: Final = 39.0
"""Beyond so many bandwidths exp() is 0 in double precision."""
_TERMS_MAX: Final = 17
_COST_EXP: Final = 6.0
"""Relative costs of the two ways, in nanoseconds: one exponential ..."""
_COST_TERM: Final = 0.25
"""... and one term of a box or of an expansion."""


@njit(cache=True, error_model="numpy")
def _first_not_below(sample, low, high, value):  # type: ignore[no-untyped-def]
    """First index in ``[low, high)`` whose value is not below ``value``, by doubling steps, then bisection."""
    step = 1
    while low + step < high and sample[low + step] < value:
        low += step
        step *= 2
    high = min(low + step, high)
    while low < high:
        middle = (low + high) // 2
        if sample[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, error_model="numpy")
def _reach(sample, count, step, bandwidth, cutoff, nearest, first, last):  # type: ignore[no-untyped-def]
    """For each point: distance of the nearest value in bandwidths, and the range of values within the cutoff."""
    at, low, high = 0, 0, 0
    for j in range(POINTS):
        point = sample[0] + j * step
        at = _first_not_below(sample, at, count, point)
        distance = math.inf
        if at < count:
            distance = sample[at] - point
        if at > 0:
            distance = min(distance, point - sample[at - 1])
        nearest[j] = distance / bandwidth
        low = _first_not_below(sample, low, count, point - cutoff * bandwidth)
        high = _first_not_below(sample, high, count, point + cutoff * bandwidth)
        first[j], last[j] = low, high


@njit(cache=True, error_model="numpy")
def _direct(sample, count, point, bandwidth, nearest, first, last):  # type: ignore[no-untyped-def]
    """Density at one point by summing kernels in ascending order of the values, as far as they matter."""
    if nearest > _FAR:
        return 0.0
    if nearest > _NEAR:
        cutoff = math.sqrt(nearest * nearest + 2.0 * math.log(count) + 80.0)
        first = _first_not_below(sample, 0, count, point - cutoff * bandwidth)
        last = _first_not_below(sample, first, count, point + cutoff * bandwidth)
    total = 0.0
    for i in range(first, last):
        z = (point - sample[i]) / bandwidth
        total += math.exp(-0.5 * z * z)
    return total


@njit(cache=True, error_model="numpy")
def _terms(half_width):  # type: ignore[no-untyped-def]
    """
    How many terms leave a remainder below 1e-13 of the density within ``_NEAR`` bandwidths of a value.

    By Cramer's inequality term k is at most ``1.09 * exp(z^2 / 4) * u^k / sqrt(k!)`` of its kernel, for |u| up to the
    half width and z up to 5.25.
    """
    bound = 1.09 * math.exp(0.25 * (_NEAR + 0.25) ** 2)
    for k in range(1, _TERMS_MAX):
        bound *= half_width / math.sqrt(k)
        if bound < 2e-14:
            return k
    return _TERMS_MAX


@njit(cache=True, error_model="numpy")
def _gather(sample, count, lattice, bandwidth, per_step, reach, terms, boxes):  # type: ignore[no-untyped-def]
    """
    Power sums of the values around each node of the lattice, into ``boxes[residue, term, step]``.

    Node ``b = step * per_step + residue`` stands at ``minimum + b * lattice``. Four sums run side by side, over every
    fourth value of a box; their order is fixed.
    """
    minimum = sample[0]
    inverse = 1.0 / bandwidth
    boxes[:, :, :] = 0.0
    sums = np.empty((terms, 4))
    i = 0
    while i < count:
        node = int(math.floor((sample[i] - minimum) / lattice + 0.5))
        end = _first_not_below(sample, i, count, minimum + (node + 0.5) * lattice)
        # The edge of a box as a number can round to the value itself; the value must not be left behind.
        end = max(end, i + 1)
        residue, step = node % per_step, node // per_step
        if min(residue, per_step - residue) <= reach and step < POINTS:
            center = minimum + node * lattice
            whole = i + (end - i) // 4 * 4
            sums[:, :] = 0.0
            for k in range(i, whole, 4):
                u0 = (sample[k] - center) * inverse
                u1 = (sample[k + 1] - center) * inverse
                u2 = (sample[k + 2] - center) * inverse
                u3 = (sample[k + 3] - center) * inverse
                p0, p1, p2, p3 = u0, u1, u2, u3
                for term in range(1, terms):
                    sums[term, 0] += p0
                    sums[term, 1] += p1
                    sums[term, 2] += p2
                    sums[term, 3] += p3
                    p0 *= u0
                    p1 *= u1
                    p2 *= u2
                    p3 *= u3
            for k in range(whole, end):
                u = (sample[k] - center) * inverse
                p = u
                for term in range(1, terms):
                    sums[term, 0] += p
                    p *= u
            boxes[residue, 0, step] += end - i
            for term in range(1, terms):
                boxes[residue, term, step] += (sums[term, 0] + sums[term, 1]) + (sums[term, 2] + sums[term, 3])
        i = end


@njit(cache=True, error_model="numpy")
def _expand(boxes, ratio, per_step, reach, terms, density):  # type: ignore[no-untyped-def]
    """Sum the Hermite expansions of all boxes within ``reach`` nodes of each point; ``ratio`` is lattice / bandwidth."""
    density[:] = 0.0
    hermite = np.empty(terms)
    for offset in range(-reach, reach + 1):
        z = -offset * ratio
        factor = math.exp(-0.5 * z * z)
        hermite[0] = factor
        if terms > 1:
            hermite[1] = z * factor
        # h_k = He_k(z) * exp(-z^2 / 2) / k!, by He_(k+1) = z He_k - k He_(k-1).
        for k in range(2, terms):
            hermite[k] = (z * hermite[k - 1] - hermite[k - 2]) / k
        residue = offset % per_step
        shift = (offset - residue) // per_step
        low, high = max(0, -shift), min(POINTS, POINTS - shift)
        into = density[low:high]
        for k in range(terms):
            weight = hermite[k]
            row = boxes[residue, k, low + shift : high + shift]
            for j in range(into.size):
                into[j] += weight * row[j]


@njit(cache=True, error_model="numpy")
def kernel_density(sample, count, stddev):  # type: ignore[no-untyped-def]
    """
    f64[129]: the density of the definition above, up to a constant factor; NaN at points that cannot decide a peak.

    ``sample[:count]`` is sorted, ``count >= 3``, ``stddev > 0``.
    """
    density = np.full(POINTS, np.nan)
    bandwidth = 1.06 * stddev * count ** (-0.2)
    step = (sample[count - 1] - sample[0]) / (POINTS - 1)
    ratio = step / bandwidth
    if not (step > 0.0 and bandwidth > 0.0 and ratio < math.inf):
        return density
    cutoff = math.sqrt(2.0 * math.log(count) + 94.0)
    nearest = np.empty(POINTS)
    first = np.empty(POINTS, dtype=np.int64)
    last = np.empty(POINTS, dtype=np.int64)
    _reach(sample, count, step, bandwidth, cutoff, nearest, first, last)
    wanted = np.zeros(POINTS, dtype=np.bool_)
    for j in range(POINTS):
        if nearest[j] <= ratio + 2.0:
            wanted[max(j - 1, 0) : j + 2] = True

    per_step = max(1, int(math.ceil(2.0 * ratio)))
    lattice = step / per_step
    lattice_ratio = ratio / per_step
    reach = int(math.ceil(cutoff / lattice_ratio))
    terms = _terms(0.5 * lattice_ratio)
    kernels = 0
    for j in range(POINTS):
        if wanted[j]:
            kernels += last[j] - first[j]
    reach = min(reach, (POINTS - 1) * per_step)
    box_cost = _COST_TERM * terms * (float(count) + float(POINTS) * (2.0 * reach + 1.0 + per_step))
    if _COST_EXP * kernels > box_cost:
        boxes = np.empty((per_step, terms, POINTS))
        _gather(sample, count, lattice, bandwidth, per_step, reach, terms, boxes)
        _expand(boxes, lattice_ratio, per_step, reach, terms, density)
        for j in range(POINTS):
            if wanted[j] and nearest[j] > _NEAR:
                density[j] = _direct(sample, count, sample[0] + j * step, bandwidth, nearest[j], first[j], last[j])
            elif not wanted[j]:
                density[j] = math.nan
        return density
    for j in range(POINTS):
        if wanted[j]:
            density[j] = _direct(sample, count, sample[0] + j * step, bandwidth, nearest[j], first[j], last[j])
    return density


@njit(cache=True, error_model="numpy")
def peaks(sample, count, stddev):  # type: ignore[no-untyped-def]
    """Peaks of the density of ``sample[:count]``, sorted: ``count`` below 3 values, 1 where ``stddev`` is 0."""
    if count < 3:
        return float(count)
    if stddev == 0.0:
        return 1.0
    if not stddev < math.inf:
        return math.nan
    density = kernel_density(sample, count, stddev)
    found = 0
    for j in range(1, POINTS - 1):
        if density[j] - density[j - 1] > 0.0 and density[j + 1] - density[j] < 0.0:
            found += 1
    return float(max(found, 1))
