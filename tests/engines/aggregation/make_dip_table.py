"""
Makes ``engines/aggregation/dip_table.py``: quantiles of the dip of uniform samples, by simulation with a fixed seed.

Run by hand (about six minutes on one core), never by a test: ``python -m tests.engines.aggregation.make_dip_table``
from the project's root prints the tables. A sorted uniform sample is a scaled row of partial sums of exponentials, and
the dip does not change under scaling, so nothing is sorted. From ``SMOOTHED_FROM`` values on, the scaled quantiles
``sqrt(n) * q`` of all sizes are fitted with ``a + b / sqrt(n) + c / n``, weighted by the number of samples: they converge
at that rate, and the fit carries the precision of the cheap sizes to the dear ones.
"""

from __future__ import annotations

import math
import sys
from typing import Final

import numpy as np
from numba import njit

from engines.aggregation.dip import dip_statistic

SEED: Final = 19850301
EXTREMES_OF: Final = 1_000_000
"""Levels 0 and 1 are the smallest and the largest of this many samples."""
SMOOTHED_FROM: Final = 200
PROBABILITIES: Final = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    *(0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 0.99995, 0.99998, 0.99999, 1.0),
)
SAMPLES: Final = {
    **dict.fromkeys((4, 5, 6, 7, 8, 9, 10, 15, 20, 30, 50), 2_000_000),
    **dict.fromkeys((100, 200), 4_000_000),
    **dict.fromkeys((500, 1_000), 2_000_000),
    2_000: 1_000_000,
    5_000: 300_000,
    10_000: 60_000,
    20_000: 20_000,
    40_000: 10_000,
    72_000: 6_000,
}


@njit(cache=True)
def _dips(sums, out, work):  # type: ignore[no-untyped-def]
    for row in range(sums.shape[0]):
        x = sums[row]
        for i in range(1, x.size):
            x[i] += x[i - 1]
        out[row] = dip_statistic(x, x.size, work[0], work[1], work[2], work[3])


def simulate(size: int, samples: int) -> np.ndarray:
    """``sqrt(size) * dip`` of ``samples`` uniform samples of ``size`` values, f64, in order of drawing."""
    generator = np.random.Generator(np.random.PCG64([SEED, size]))
    work = np.zeros((4, size), dtype=np.int64)
    dips = np.empty(samples)
    rows = max(1, 200_000 // size)
    for start in range(0, samples, rows):
        out = dips[start : start + rows]
        _dips(generator.standard_exponential((len(out), size)), out, work)
    return np.asarray(dips * math.sqrt(size))


def quantiles(scaled: np.ndarray) -> np.ndarray:
    """Quantiles at ``PROBABILITIES``; the extremes from the first ``EXTREMES_OF`` samples, NaN where there are fewer."""
    result = np.quantile(scaled, PROBABILITIES)
    first = scaled[:EXTREMES_OF]
    enough = len(first) == EXTREMES_OF
    result[0], result[-1] = (first.min(), first.max()) if enough else (math.nan, math.nan)
    for level, probability in enumerate(PROBABILITIES[1:-1], 1):
        if (1.0 - probability) * len(scaled) < 10:
            result[level] = math.nan
    return np.asarray(result)


def smooth(table: np.ndarray) -> np.ndarray:
    """Replace the rows from ``SMOOTHED_FROM`` on by their weighted fit."""
    sizes = np.array(list(SAMPLES), dtype=np.float64)
    fitted = sizes >= SMOOTHED_FROM
    terms = np.stack([np.ones_like(sizes), sizes**-0.5, 1.0 / sizes], axis=1)
    result = table.copy()
    for level in range(table.shape[1]):
        used = fitted & ~np.isnan(table[:, level])
        weights = np.sqrt(np.array(list(SAMPLES.values()), dtype=np.float64)[used])
        degree = 3 if used.sum() > 6 else 2
        scaled_terms = terms[used, :degree] * weights[:, None]
        found = np.linalg.lstsq(scaled_terms, table[used, level] * weights, rcond=None)[0]
        result[fitted, level] = terms[fitted, :degree] @ found
    return np.asarray(result)


def main() -> None:
    """Simulate, fit and print the module."""
    rows = []
    for size, samples in SAMPLES.items():
        rows.append(quantiles(simulate(size, samples)))
        sys.stderr.write(f"{size} done\n")
    raw = np.array(rows)
    table = smooth(raw)
    if not (np.diff(table, axis=1) >= 0.0).all():
        raise SystemExit("quantiles are decreasing: take more samples")
    _print_rows("SAMPLE_SIZES", [tuple(SAMPLES)])
    _print_rows("PROBABILITIES", [PROBABILITIES[:16], PROBABILITIES[16:]])
    print("SCALED_QUANTILES: Final = (")
    for row in table:
        numbers = [f"{value:.5f}" for value in row]
        print(f"    (\n        {', '.join(numbers[:13])},\n        {', '.join(numbers[13:])},\n    ),")
    print(")")


def _print_rows(name: str, rows: list[tuple[float, ...]]) -> None:
    print(f"{name}: Final = (")
    for row in rows:
        print(f"    {', '.join(str(value) for value in row)},")
    print(")")


if __name__ == "__main__":
    main()
