"""The pieces of the statistics, each against its definition on many shapes of samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.aggregation import dip_table
from engines.aggregation.density import kernel_density, peaks
from engines.aggregation.dip import THINNING_FROM, dip_p_value, dip_statistic, p_value_of_dip
from engines.aggregation.moments import (
    M2,
    M3,
    M4,
    MEAN,
    TOTAL,
    TOTAL_LOW,
    minute_partials,
    minute_powers,
    window_moments,
)
from engines.aggregation.ordered import (
    exchange,
    median_absolute_deviation,
    merge_sorted_minutes,
    mode,
    quantile,
    sort_minutes,
)
from tests.engines.aggregation import reference

_samples = st.lists(st.integers(-50, 50).map(float) | st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80)


def _shapes(seed: int) -> list[np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(seed))
    n = int(generator.integers(3, 3000))
    near, far = generator.normal(size=n), generator.normal(size=max(n // 7, 2))
    return [
        near,
        generator.lognormal(0.0, 2.5, n),
        generator.choice([-1.0, -0.4, 0.0, 0.4, 1.0], n) * generator.lognormal(8.0, 1.5, n),
        np.concatenate([near, far * 0.01 + generator.random() * 60.0]),
        np.concatenate([near * 0.001, 1.0 + far * 0.001, [50.0]]),
        np.round(generator.lognormal(1.0, 1.0, n)) * 100.0,
        generator.choice([0.0, 1.0, 2.0, 5.0, 10.0, 100.0], n) * 37.5,
        1e6 + np.linspace(0.0, 1.0, n) ** 3,
        generator.standard_cauchy(n),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_peaks_equal_the_plain_sum_on_all_shapes(seed: int) -> None:
    """Boxes, cut-offs and points left out count the peaks of 129 sums over all kernels."""
    for x in _shapes(seed):
        if x.min() < x.max():
            ordered = np.sort(x)
            assert peaks(ordered, len(x), float(np.std(x, ddof=1))) == reference.kde_peaks(x)


@pytest.mark.parametrize("seed", range(6))
def test_density_has_full_relative_precision_wherever_it_is_given(seed: int) -> None:
    """Down to the deepest gap, where the plain sum is a number at all."""
    for x in _shapes(100 + seed):
        ordered, n, stddev = np.sort(x), len(x), float(np.std(x, ddof=1))
        got = kernel_density(ordered, n, stddev)
        grid = x.min() + np.arange(129) * (x.max() - x.min()) / 128
        bandwidth = 1.06 * stddev * n ** (-0.2)
        plain = np.array([np.exp(-0.5 * ((point - ordered) / bandwidth) ** 2).sum() for point in grid])
        given_points = ~np.isnan(got) & (plain > 1e-290)
        assert got[given_points] == pytest.approx(plain[given_points], rel=1e-11)


@pytest.mark.parametrize("seed", range(10))
def test_dip_equals_the_least_distance_by_linear_programs(seed: int) -> None:
    """The published algorithm finds what the definition, solved as linear programs, finds."""
    generator = np.random.Generator(np.random.PCG64(seed))
    n = int(generator.integers(3, 11))
    for x in (generator.normal(size=n), generator.integers(0, 6, n).astype(float), generator.lognormal(0.0, 2.0, n)):
        if x.min() < x.max():
            assert reference.engine_dip(x) == pytest.approx(reference.dip_by_linear_programs(x), abs=1e-9)


def test_dip_is_the_same_mirrored_shifted_and_stretched() -> None:
    """The statistic knows no direction, place or scale."""
    x = np.random.Generator(np.random.PCG64(3)).lognormal(0.0, 1.0, 400)
    dip = reference.engine_dip(x)
    for other in (-x, x + 1000.0, x * 2.0**40):
        assert reference.engine_dip(other) == pytest.approx(dip, abs=1e-9)


def test_dip_p_value_meets_the_table_and_its_ends() -> None:
    """At a tabulated size and quantile the p-value is the level's; 1 for three values, 1 at the least dip, 0 far out."""
    row, level = dip_table.SAMPLE_SIZES.index(100), dip_table.PROBABILITIES.index(0.95)
    assert p_value_of_dip(dip_table.QUANTILES[row][level], 100) == pytest.approx(0.05)
    assert p_value_of_dip(0.4, 3) == 1.0
    assert p_value_of_dip(1.0 / 12.0, 6) == 1.0
    assert p_value_of_dip(0.2, 1000) == 0.0
    assert p_value_of_dip(1e-4, 1_000_000) == 1.0


@pytest.mark.parametrize("size", [4, 8, 30, 200])
def test_the_published_table_is_that_of_uniform_samples(size: int) -> None:
    """Of 60,000 samples, as many lie above each published quantile as its level says, within five standard errors."""
    samples, row = 60_000, dip_table.SAMPLE_SIZES.index(size)
    dips = _dips_of_uniform_samples(size, samples)
    for level, quantile_of in zip(dip_table.PROBABILITIES[1:-1], dip_table.QUANTILES[row][1:-1], strict=True):
        # Small samples have a smallest dip of positive probability: the level may fall inside that step.
        tolerance = 5.0 * math.sqrt(level * (1.0 - level) * (1.0 / samples + 1e-6)) + 1.0 / samples
        assert float((dips > quantile_of + 1e-9).mean()) <= 1.0 - level + tolerance
        assert float((dips >= quantile_of - 1e-9).mean()) >= 1.0 - level - tolerance


def _dips_of_uniform_samples(size: int, samples: int) -> np.ndarray:
    # Partial sums of exponentials are a sorted uniform sample, stretched; the dip knows no scale.
    rows = np.cumsum(np.random.default_rng(size).standard_exponential((samples, size)), axis=1)
    work = np.zeros((4, size), dtype=np.int64)
    return np.array([dip_statistic(x, size, work[0], work[1], work[2], work[3]) for x in rows])


@pytest.mark.parametrize("size", [7, 40, 250, 3000])
def test_p_values_of_uniform_samples_are_uniform(size: int) -> None:
    """Sizes in the table and between its rows: each level is undercut about as often as it says."""
    generator = np.random.Generator(np.random.PCG64(size))
    samples = 4000 if size < 1000 else 1000
    dips = [reference.engine_dip(generator.random(size)) for _ in range(samples)]
    p_values = np.array([p_value_of_dip(dip, size) for dip in dips])
    for level in (0.01, 0.05, 0.2, 0.5):
        deviation = math.sqrt(level * (1.0 - level) / samples)
        assert abs(float((p_values <= level).mean()) - level) < 4.0 * deviation


@pytest.mark.parametrize("seed", range(4))
def test_coarse_look_at_the_dip_changes_no_p_value(seed: int) -> None:
    """Large samples, bimodal, unimodal and discrete: the p-value of the whole sample's dip, exactly."""
    generator = np.random.Generator(np.random.PCG64(seed))
    n = THINNING_FROM + int(generator.integers(0, 5000))
    for x in (
        generator.random(n),
        generator.normal(size=n) + generator.choice([0.0, 2.2], n),
        np.round(generator.lognormal(2.0, 1.0, n)),
        generator.lognormal(0.0, 2.0, n),
    ):
        work = np.zeros((4, n), dtype=np.int64)
        assert dip_p_value(np.sort(x), n, work) == p_value_of_dip(reference.engine_dip(x), n)


@settings(deadline=None, max_examples=50)
@given(_samples, st.integers(1, 5))
def test_order_statistics_equal_numpy(values: list[float], parts: int) -> None:
    """Quantiles, mad and mode of any small sample, ties and signs included."""
    x = np.sort(np.array(values) * parts)
    n = len(x)
    for q in (0.25, 0.5, 0.75):
        assert quantile(x, n, q) == np.quantile(x, q)
    median = quantile(x, n, 0.5)
    assert median_absolute_deviation(x, n, median) == np.median(np.abs(x - np.median(x)))
    iqr = quantile(x, n, 0.75) - quantile(x, n, 0.25)
    stddev = 0.0 if x[0] == x[-1] or n == 1 else float(np.std(x, ddof=1))
    assert mode(x, n, iqr, stddev) == pytest.approx(reference.mode(x), rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(_samples, min_size=2, max_size=7))
def test_moving_sample_equals_sorting_afresh(minutes: list[list[float]]) -> None:
    """Taking the first minute out and the last one in gives the sorted rest; merging minutes gives the sorted whole."""
    values = np.concatenate([np.array(minute) for minute in minutes]) + 0.0
    offsets = np.concatenate([[0], np.cumsum([len(minute) for minute in minutes])])
    ordered = sort_minutes(values, offsets)
    sample, spare = np.empty(len(values)), np.empty(len(values))
    last = len(minutes) - 1
    count = merge_sorted_minutes(ordered, offsets, 0, last, sample, spare)
    assert sample[:count].tobytes() == np.sort(values[: offsets[last]]).tobytes()
    leaving, entering = ordered[: offsets[1]], ordered[offsets[last] :]
    moved = exchange(sample, count, leaving, entering, spare)
    assert spare[:moved].tobytes() == np.sort(values[offsets[1] :]).tobytes()


@settings(deadline=None, max_examples=50)
@given(st.lists(_samples, min_size=1, max_size=6))
def test_merged_moments_equal_those_of_the_whole(minutes: list[list[float]]) -> None:
    """Partials merged left to right are the moments of all values together."""
    x = np.concatenate([np.array(minute) for minute in minutes])
    offsets = np.concatenate([[0], np.cumsum([len(minute) for minute in minutes])])
    partials, powers = minute_partials(x, offsets), minute_powers(x, offsets)
    merged, _ = window_moments(partials, powers, np.array([0]), np.array([len(minutes)]))
    row = merged[0, 0]
    scale = max(float(np.abs(x).max()), 1e-300)
    assert row[TOTAL] + row[TOTAL_LOW] == pytest.approx(math.fsum(x), rel=1e-13, abs=1e-290)
    assert row[MEAN] == pytest.approx(math.fsum(x) / len(x), rel=1e-12, abs=1e-12 * scale)
    deviations = x - math.fsum(x) / len(x)
    for column, power in ((M2, 2), (M3, 3), (M4, 4)):
        size = float((np.abs(deviations) ** power).sum())
        rounding = 1e-13 * len(x) * scale**power
        assert row[column] == pytest.approx(float((deviations**power).sum()), rel=1e-10, abs=1e-10 * size + rounding)


def test_mode_breaks_ties_by_the_smallest_value_or_the_last_bin() -> None:
    """Up to 16 values the smallest of equals wins, above the last of equally full bins."""
    few = np.sort(np.array([3.0, 3.0, 1.0, 1.0, 2.0]))
    assert mode(few, 5, 1.0, 1.0) == 1.0
    two = np.repeat([0.0, 10.0], 10)
    width = 2.0 * 10.0 / 20 ** (1 / 3)
    bins = math.ceil(10.0 / width)
    assert mode(two, 20, 10.0, 5.13) == pytest.approx((bins - 0.5) * width)
    mostly = np.array([0.0] * 19 + [5.0])
    assert mode(mostly, 20, 0.0, 0.0) == 0.0
