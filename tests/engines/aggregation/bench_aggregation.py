"""
Benchmark: all aggregate columns of one session with a million option trades, against a plain numpy loop over windows.

The floor: a window's order statistics need its sorted sample, so every value is written once in each window that holds
it: 266 times in a session of six window lengths, 8.5 GB for four samples of a million trades, about one second of
memory traffic on one core. The density's definition alone asks for 129 exponentials per value and window, 138 billion.

The numpy side takes every tenth start (a tenth of the work; a whole run would take ten minutes and more), in five
rounds between the five of the kernel, and is extrapolated from their sum. It is written as one would: vectorised
within a window, nothing shared between windows; as numpy has no dip, it borrows the compiled one. Growth is shown on a
quarter and a half of the rows.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.dip import dip_statistic, p_value_of_dip
from engines.aggregation.inputs import SessionInputs, samples_of
from engines.aggregation.kernel import WINDOWS, aggregate_session
from engines.aggregation.policy import AggregationPolicy
from tests.engines.aggregation.synthetic_session import session

MINUTES: Final = 390
OPTION_ROWS: Final = 1_000_000
REACH: Final = 20.0
ROUNDS: Final = 5
_LAMBDAS: Final = np.arange(-2.0, 2.25, 0.25)

Array = NDArray[np.float64]


def measure() -> list[dict[str, Any]]:
    """``aggregates_vs_numpy``: seconds of the numpy loop over seconds of the kernel, both on one core."""
    aggregate_session(session(200, 200), MINUTES)
    inputs = session(OPTION_ROWS, OPTION_ROWS // 5)
    starts = np.arange(5, MINUTES, 10)
    kernel, loop = [], 0.0
    for number in range(ROUNDS):
        kernel.append(_seconds_of_kernel(inputs))
        loop += _seconds_of_numpy(inputs, starts[number::ROUNDS])
    kernel_s, numpy_s = statistics.median(kernel), loop * MINUTES / len(starts)
    growth = {f"kernel_s_at_{rows}": _seconds_of_kernel(session(rows, rows // 5)) for rows in _fractions()}
    return [
        {
            "name": "aggregates_vs_numpy",
            "value": numpy_s / kernel_s,
            "unit": "times",
            "reach": REACH,
            "ok": numpy_s / kernel_s >= REACH,
            "detail": {
                "kernel_s": kernel_s,
                "numpy_s_extrapolated": numpy_s,
                "numpy_starts_measured": len(starts),
                "option_trades": OPTION_ROWS,
                **growth,
                f"kernel_s_at_{OPTION_ROWS}": kernel_s,
            },
        }
    ]


def _fractions() -> tuple[int, int]:
    return OPTION_ROWS // 4, OPTION_ROWS // 2


def _seconds_of_kernel(inputs: SessionInputs) -> float:
    begin = time.perf_counter()
    aggregate_session(inputs, MINUTES)
    return time.perf_counter() - begin


def _seconds_of_numpy(inputs: SessionInputs, starts: NDArray[np.int64]) -> float:
    begin = time.perf_counter()
    samples = samples_of(inputs, MINUTES, AggregationPolicy())
    valued = time.perf_counter() - begin
    begin = time.perf_counter()
    for start in starts:
        for window in WINDOWS:
            end = min(int(start) + window, MINUTES)
            for side in (samples.puts, samples.calls):
                for values in side.values:
                    _describe(values[side.offsets[start] : side.offsets[end]])
            _describe(samples.dollar_value[samples.underlying_offsets[start] : samples.underlying_offsets[end]])
    # Valuing the rows is done once a session whatever the number of starts: charge this round its share only.
    return time.perf_counter() - begin + valued * len(starts) / MINUTES


def _describe(x: Array) -> tuple[float, ...]:
    """All statistics of one window's sample, null ones left out."""
    n = len(x)
    if n < 4:
        return ()
    mean, stddev = x.mean(), x.std(ddof=1)
    q1, q2, q3 = np.quantile(x, (0.25, 0.5, 0.75))
    deviation = x - mean
    square = deviation * deviation
    second = square.sum()
    skew = np.sqrt(n) * (square * deviation).sum() / second**1.5
    kurtosis = n * (square * square).sum() / second**2
    mad = np.median(np.abs(x - q2))
    peaks = _kde_peaks(x, stddev)
    exponent = _box_cox(x) if x.min() > 0.0 else np.nan
    ordered = np.sort(x)
    work = np.empty((4, n), dtype=np.int64)
    dip = p_value_of_dip(dip_statistic(ordered, n, work[0], work[1], work[2], work[3]), n)
    mode = _mode(x, q3 - q1, stddev)
    moments = (x.sum(), x.min(), x.max(), mean, stddev, skew, kurtosis, stddev / max(abs(mean), 1e-9))
    return (*moments, q1, q2, q3, q3 - q1, mad, mode, exponent, dip, peaks)


def _mode(x: Array, iqr: float, stddev: float) -> float:
    width = (2.0 * iqr if iqr > 0.0 else 3.5 * stddev) / len(x) ** (1 / 3)
    bins = max(np.ceil((x.max() - x.min()) / width), 1.0)
    numbers, counts = np.unique(np.minimum(np.floor((x - x.min()) / width), bins - 1.0), return_counts=True)
    return float(x.min() + (numbers[counts == counts.max()][-1] + 0.5) * width)


def _box_cox(x: Array) -> float:
    logs = np.log(x)
    variances = np.array([np.var(logs if exponent == 0.0 else x**exponent / exponent) for exponent in _LAMBDAS])
    return float(_LAMBDAS[np.argmax((_LAMBDAS - 1.0) * logs.sum() - len(x) / 2.0 * np.log(variances))])


def _kde_peaks(x: Array, stddev: float) -> int:
    bandwidth = 1.06 * stddev * len(x) ** (-0.2)
    density = np.array([np.exp(-0.5 * ((g - x) / bandwidth) ** 2).sum() for g in np.linspace(x.min(), x.max(), 129)])
    rise = np.diff(density)
    return max(int(((rise[:-1] > 0.0) & (rise[1:] < 0.0)).sum()), 1)
