"""
Benchmark: all aggregate columns of one session with a million option trades, against a plain numpy loop over windows.

The floor: a window's order statistics need its sorted sample, so every value is written once in each window that holds
it: 266 times in a session of six window lengths, 8.5 GB for four samples of a million trades, about one second of
memory traffic on one core. The density's definition alone asks for 129 exponentials per value and window, 138 billion.

Five rounds share the session: each lets the kernel describe all 78 starts of its fifth, then the numpy loop a few starts
spread over the same fifth, which is extrapolated by the values that the windows hold (every cost of the loop is linear
in them, the sort's logarithm apart). So both sides meet the same rows within seconds of each other, and the whole
comparison is one session of the kernel and a 39th of one of numpy, instead of several minutes of each. The figure is the
median of the five ratios. The numpy loop is written as one would: vectorised within a window, nothing shared between
windows; as numpy has no dip, it borrows the compiled one. Growth is shown on a quarter and a half of the rows, with as
many starts.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.dip import dip_statistic, p_value_of_dip
from engines.aggregation.inputs import SessionInputs, SessionSamples, samples_of
from engines.aggregation.kernel import WINDOWS, aggregate_session, aggregate_starts
from engines.aggregation.policy import AggregationPolicy
from tests.engines.aggregation.synthetic_session import session

MINUTES: Final = 390
OPTION_ROWS: Final = 1_000_000
REACH: Final = 20.0
ROUNDS: Final = 5
STARTS: Final = 2
"""How many starts of each round the numpy loop does."""
_LAMBDAS: Final = np.arange(-2.0, 2.25, 0.25)

Array = NDArray[np.float64]


def measure() -> list[dict[str, Any]]:
    """``aggregates_vs_numpy``: seconds of the numpy loop over seconds of the kernel, both on one core."""
    aggregate_session(session(200, 200), MINUTES)
    inputs = session(OPTION_ROWS, OPTION_ROWS // 5)
    samples = samples_of(inputs, MINUTES, AggregationPolicy())
    kernel, loop = [], []
    for fifth in np.split(np.arange(MINUTES), ROUNDS):
        kernel.append(_seconds_of_kernel(inputs, fifth))
        loop.append(_seconds_of_numpy(inputs, samples, fifth))
    ratio = statistics.median(numpy_s / kernel_s for numpy_s, kernel_s in zip(loop, kernel, strict=True))
    middle = np.split(np.arange(MINUTES), ROUNDS)[ROUNDS // 2]
    growth = {
        f"kernel_fifth_s_at_{rows}": _seconds_of_kernel(session(rows, rows // 5), middle)
        for rows in (OPTION_ROWS // 4, OPTION_ROWS // 2)
    }
    return [
        {
            "name": "aggregates_vs_numpy",
            "value": ratio,
            "unit": "times",
            "reach": REACH,
            "ok": ratio >= REACH,
            "detail": {
                "kernel_s": sum(kernel),
                "numpy_s_extrapolated": sum(loop),
                "numpy_starts_measured": ROUNDS * STARTS,
                "starts": MINUTES,
                "option_trades": OPTION_ROWS,
                **growth,
                f"kernel_fifth_s_at_{OPTION_ROWS}": kernel[ROUNDS // 2],
            },
        }
    ]


def _seconds_of_kernel(inputs: SessionInputs, starts: NDArray[np.int64]) -> float:
    """Seconds from rows to all columns of all windows that start at ``starts``."""
    begin = time.perf_counter()
    aggregate_starts(inputs, MINUTES, starts)
    return time.perf_counter() - begin


def _seconds_of_numpy(inputs: SessionInputs, samples: SessionSamples, fifth: NDArray[np.int64]) -> float:
    """Seconds of the same by the plain loop, extrapolated from ``STARTS`` of them."""
    measured = fifth[len(fifth) // (2 * STARTS) :: len(fifth) // STARTS]
    begin = time.perf_counter()
    # Both sides value all rows of the session once a round.
    samples_of(inputs, MINUTES, AggregationPolicy())
    valued = time.perf_counter() - begin
    begin = time.perf_counter()
    for sample, offsets in _all_samples(samples):
        for start in measured:
            for window in WINDOWS:
                _describe(sample[offsets[start] : offsets[min(int(start) + window, MINUTES)]])
    seconds = time.perf_counter() - begin
    return valued + seconds * _values_in_windows(samples, fifth) / _values_in_windows(samples, measured)


def _all_samples(samples: SessionSamples) -> list[tuple[Array, NDArray[np.int64]]]:
    """The nine samples, each with its offsets by minute."""
    sides = [(values, side.offsets) for side in (samples.puts, samples.calls) for values in side.values]
    return [*sides, (samples.dollar_value, samples.underlying_offsets)]


def _values_in_windows(samples: SessionSamples, starts: NDArray[np.int64]) -> int:
    """How many values all windows that start at ``starts`` hold."""
    return sum(
        int((offsets[np.minimum(starts + window, MINUTES)] - offsets[starts]).sum())
        for _, offsets in _all_samples(samples)
        for window in WINDOWS
    )


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
