"""
The aggregates a second time, slowly and obviously: numpy and scipy, straight from the formulas, window by window.

Shares nothing with the engine but the names of the columns, the input rows and, for the dip's p-value, the table of
quantiles and the dip of whole samples, which is checked by itself against the definition, as a linear program.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from engines.aggregation import dip_table
from engines.aggregation.columns import S14, S17
from engines.aggregation.dip import dip_statistic
from engines.aggregation.inputs import SessionInputs

Array = NDArray[np.float64]
NULL = math.nan


def statistics_of(x: Array, names: tuple[str, ...] = S14) -> list[float]:
    """The named statistics of a sample in canonical order; all null when it is empty."""
    n = len(x)
    if n == 0:
        return [NULL] * len(names)
    q1, q2, q3 = (float(np.quantile(x, q)) for q in (0.25, 0.5, 0.75))
    stddev = NULL if n == 1 else 0.0 if x.min() == x.max() else float(np.std(x, ddof=1))
    varies = n > 1 and stddev > 0.0
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        found = {
            "total": math.fsum(x),
            "minimum": float(x.min()),
            "q1": q1,
            "q2": q2,
            "q3": q3,
            "maximum": float(x.max()),
            "mean": math.fsum(x) / n,
            "stddev": stddev,
            "skew": float(stats.skew(x)) if varies else NULL,
            "kurtosis": float(stats.kurtosis(x, fisher=False)) if varies else NULL,
            "iqr": q3 - q1,
            "mad": float(np.median(np.abs(x - np.median(x)))),
            "cv": stddev / max(abs(math.fsum(x) / n), 1e-9) if varies else NULL,
            "mode": mode(x),
            "bc": box_cox(x),
            "dip_pval": dip_p_value(x) if n >= 3 else NULL,
            "kde_peaks": kde_peaks(x),
        }
    return [value if math.isfinite(value) else NULL for value in (found[name] for name in names)]


def mode(x: Array) -> float:
    """Most frequent value of up to 16, else the centre of the fullest bin."""
    n = len(x)
    if n <= 16:
        values, counts = np.unique(x, return_counts=True)
        return float(values[np.argmax(counts)])
    width = 2.0 * float(np.quantile(x, 0.75) - np.quantile(x, 0.25)) / n ** (1 / 3)
    if width == 0.0:
        width = 0.0 if x.min() == x.max() else 3.5 * float(np.std(x, ddof=1)) / n ** (1 / 3)
    if width == 0.0:
        return float(np.sort(x)[n // 2])
    bins = max(math.ceil((x.max() - x.min()) / width), 1)
    numbers = np.minimum(np.floor((x - x.min()) / width), bins - 1)
    values, counts = np.unique(numbers, return_counts=True)
    fullest = values[len(counts) - 1 - np.argmax(counts[::-1])]
    return float(x.min() + (fullest + 0.5) * width)


def box_cox_likelihood(x: Array, exponent: float) -> float:
    """Profile log-likelihood of one exponent."""
    transformed = np.log(x) if exponent == 0.0 else x**exponent / exponent
    return float((exponent - 1.0) * np.log(x).sum() - len(x) / 2.0 * np.log(np.var(transformed)))


def box_cox(x: Array) -> float:
    """First exponent of the greatest likelihood."""
    if len(x) < 2 or x.min() <= 0.0 or x.min() == x.max():
        return NULL
    grid = np.arange(-2.0, 2.25, 0.25)
    return float(grid[int(np.argmax([box_cox_likelihood(x, exponent) for exponent in grid]))])


def kde_peaks(x: Array) -> float:
    """Peaks of the density on 129 points, all kernels summed."""
    n = len(x)
    if n < 3:
        return float(n)
    if x.min() == x.max():
        return 1.0
    bandwidth = 1.06 * np.std(x, ddof=1) * n ** (-0.2)
    grid = x.min() + np.arange(129) * (x.max() - x.min()) / 128
    density = np.array([np.exp(-0.5 * ((point - x) / bandwidth) ** 2).sum() for point in grid])
    rise = np.diff(density)
    return float(max(int(((rise[:-1] > 0.0) & (rise[1:] < 0.0)).sum()), 1))


def dip_p_value(x: Array) -> float:
    """Table interpolation with numpy: between sample sizes on the scale sqrt(n) * dip, then between levels."""
    n = len(x)
    dip = engine_dip(x)
    if n <= 3 or 2 * n * dip <= 1.0 + 1e-9:
        return 1.0
    sizes = np.array(dip_table.SAMPLE_SIZES)
    table = np.sqrt(sizes)[:, None] * np.array(dip_table.QUANTILES)
    levels = np.array(dip_table.PROBABILITIES)
    quantiles = np.array([np.interp(n, sizes, table[:, level]) for level in range(len(levels))])
    return float(1.0 - np.interp(math.sqrt(n) * dip, quantiles, levels))


def engine_dip(x: Array) -> float:
    """The engine's dip, whole sample, no coarse look; ``dip_by_linear_programs`` is what it is checked against."""
    ordered = np.sort(x)
    work = np.zeros((4, len(x)), dtype=np.int64)
    return float(dip_statistic(ordered, len(x), work[0], work[1], work[2], work[3]))


def dip_by_linear_programs(x: Array) -> float:
    """
    The dip from its definition: the least distance to a distribution function convex, then concave, one jump allowed.

    One linear program for every value as the mode (a mode between two values is never better: what the two sides leave
    each other there is linear in its place). For a handful of values only.
    """
    values, counts = np.unique(x, return_counts=True)
    after = np.cumsum(counts) / len(x)
    before = after - counts / len(x)
    return min(_distance_with_mode(values, before, after, mode_at) for mode_at in range(len(values)))


def _distance_with_mode(values: Array, before: Array, after: Array, mode_at: int) -> float:
    """
    Least d with a convex function at ``values[:mode_at + 1]`` and a concave one at ``values[mode_at:]``.

    At the mode the convex one stands for the left limit and the concave one for the value.
    """
    left, right = list(range(mode_at + 1)), list(range(mode_at, len(values)))
    unknowns = len(left) + len(right) + 1
    rows: list[Array] = []
    bounds: list[float] = []

    def at_most(terms: dict[int, float], bound: float, distance: float = 0.0) -> None:
        row = np.zeros(unknowns)
        for place, weight in terms.items():
            row[place] += weight
        row[-1] = -distance
        rows.append(row)
        bounds.append(bound)

    for place, i in enumerate([*left, *right]):
        is_left = place < len(left)
        if is_left or i != mode_at:
            at_most({place: 1.0}, before[i], distance=1.0)
        if not is_left or i != mode_at:
            at_most({place: -1.0}, -after[i], distance=1.0)
        if place:
            at_most({place - 1: 1.0, place: -1.0}, 0.0)
    for part, start, sign in ((left, 0, 1.0), (right, len(left), -1.0)):
        for inner in range(1, len(part) - 1):
            x0, x1, x2 = (values[part[inner + step]] for step in (-1, 0, 1))
            share, place = (x1 - x0) / (x2 - x0), start + inner
            at_most({place: sign, place - 1: -sign * (1.0 - share), place + 1: -sign * share}, 0.0)
    goal = np.zeros(unknowns)
    goal[-1] = 1.0
    limits = [(0.0, 1.0)] * unknowns
    solution = optimize.linprog(goal, A_ub=np.array(rows), b_ub=np.array(bounds), bounds=limits, method="highs")
    return float(solution.fun)


def aggregate(inputs: SessionInputs, minutes: int, window: int, start: int) -> dict[str, float]:
    """The 150 metrics of one window by name, row by row in plain Python; every print counts alike."""
    end = min(start + window, minutes)
    under, options = inputs.underlying, inputs.options
    inside = [i for i in range(len(under.price)) if start <= under.minute[i] < end]
    prices = [float(under.price[i]) for i in inside]
    row = dict.fromkeys(("open", "high", "low", "close"), NULL)
    if prices:
        row = {"open": prices[0], "high": max(prices), "low": min(prices), "close": prices[-1]}
    result = {f"underlying_price_{name}": value for name, value in row.items()}
    dollars = np.array([abs(under.price[i] * under.size[i]) for i in inside])
    result |= _named("underlying_dollar_value", S14, dollars)
    for side, is_call in (("puts", False), ("calls", True)):
        rows = [
            (i, _spot(inputs, i))
            for i in range(len(options.price))
            if start <= options.minute[i] < end and options.standard[i] and bool(options.is_call[i]) is is_call
        ]
        result |= _side(side, inputs, [(i, spot) for i, spot in rows if spot is not None])
    return result


def _spot(inputs: SessionInputs, i: int) -> float | None:
    """Mid of the Greeks, else the last trade at or before, in the same minute or the one before."""
    under, options = inputs.underlying, inputs.options
    if math.isfinite(options.spot[i]):
        return float(options.spot[i])
    earlier = [
        j
        for j in range(len(under.price))
        if under.timestamp_ns[j] <= options.timestamp_ns[i]
        and under.minute[j] in (options.minute[i] - 1, options.minute[i])
    ]
    return float(under.price[earlier[-1]]) if earlier else None


def _side(side: str, inputs: SessionInputs, rows: list[tuple[int, float]]) -> dict[str, float]:
    """Mix and flow of the calls or the puts."""
    o = inputs.options
    samples: dict[str, list[float]] = {"dadvv": [], "signed_dadvv": [], "gadvv": [], "signed_gadvv": []}
    notional: list[float] = []
    seen = dict.fromkeys(("below", "above", "unknown", "touch", "at_or_beyond", "tick_rule", "unmatched"), 0)
    for i, spot in rows:
        quantity = float(o.size[i] * o.multiplier[i])
        notional.append(float(o.price[i]) * quantity)
        confidence = 1.0 if math.isnan(o.confidence[i]) else min(max(float(o.confidence[i]), 0.0), 1.0)
        bought = {0: 0.5, 1: confidence, 2: 1.0 - confidence}[int(o.side[i])]
        delta = 0.0 if math.isnan(o.delta[i]) else abs(float(o.delta[i]))
        gamma = 0.0 if math.isnan(o.gamma[i]) else abs(float(o.gamma[i]))
        samples["dadvv"].append(delta * spot * quantity)
        samples["signed_dadvv"].append((2 * bought - 1) * (delta * spot * quantity))
        samples["gadvv"].append(gamma * spot * spot * quantity)
        samples["signed_gadvv"].append((2 * bought - 1) * (gamma * spot * spot * quantity))
        intrinsic = max(spot - o.strike[i] if side == "calls" else o.strike[i] - spot, 0.0)
        seen["below"] += o.price[i] < intrinsic
        seen["above"] += o.price[i] > intrinsic
        seen["unknown"] += o.side[i] == 0
        seen[("unmatched", "touch", "at_or_beyond", "tick_rule")[int(o.method[i])]] += 1
    shares = {name: count / len(rows) if rows else NULL for name, count in seen.items()}
    first = {"below_intrinsic_pct": shares["below"]}
    if side == "calls":
        first = {"dollar_value": math.fsum(notional) or NULL}
    mix = {
        "above_intrinsic_pct": shares["above"],
        "aggressor_unknown_pct": shares["unknown"],
        "classifier_touch_pct": shares["touch"],
        "classifier_at_or_beyond_pct": shares["at_or_beyond"],
        "classifier_tick_rule_pct": shares["tick_rule"],
        "classifier_unknown_pct": shares["unmatched"],
    }
    result = {f"{side}_{name}": float(value) for name, value in (first | mix).items()}
    for name, sample in samples.items():
        names = S17 if side == "calls" and name.endswith("gadvv") else S14
        result |= _named(f"{side}_{name}", names, np.array(sample) + 0.0)
    return result


def _named(prefix: str, names: tuple[str, ...], x: Array) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in zip(names, statistics_of(x, names), strict=True)}
