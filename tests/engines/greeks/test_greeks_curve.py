"""From basis points to a rate: tenors, absent tenors, interpolation, both ends."""

from __future__ import annotations

import math

import pytest

from engines.greeks.curve import NO_CURVE, TENOR_YEARS, curve_of, zero_rate
from ledger.records import ABSENT_TENOR

A = ABSENT_TENOR


def test_curve_keeps_the_published_tenors_as_decimals() -> None:
    """Basis points become decimals; absent tenors are left out; 0 % and negative rates are rates."""
    curve = curve_of([3, A, 4, 0, -5, 40, 80, 140, 200, 260, 330, A])
    assert curve.tenor_years.tolist() == [1 / 12, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0]
    assert curve.rates[:4].tolist() == [0.0003, 0.0004, 0.0, -0.0005]
    assert curve_of([A] * 12).rates.size == curve_of(None).rates.size == NO_CURVE.rates.size == 0


def test_rate_is_flat_before_the_first_tenor_and_flagged_beyond_the_last() -> None:
    """The first rate holds without a remark, the last one with it."""
    curve = curve_of([A, A, 10, A, 50, A, A, A, A, A, A, A])
    assert zero_rate(curve, 1e-6) == zero_rate(curve, 0.25) == (0.001, False)
    assert zero_rate(curve, 1.0) == (0.005, False)
    assert zero_rate(curve, 1.0000001) == zero_rate(curve, 50.0) == (0.005, True)


def test_log_discount_factor_is_linear_between_tenors() -> None:
    """Halfway between two tenors -r t is the mean of its neighbours."""
    curve = curve_of([A, A, A, A, 100, A, 200, A, A, A, A, A])
    rate, extrapolated = zero_rate(curve, 2.0)
    assert not extrapolated
    assert rate == pytest.approx((0.01 * 1.0 + 0.02 * 3.0) / 2.0 / 2.0, rel=1e-15)
    flat = curve_of([250] * 12)
    for tau in (0.09, 0.3, 1.7, 12.0, 29.0):
        assert zero_rate(flat, tau)[0] == pytest.approx(0.025, rel=1e-14)


def test_rate_is_continuous_at_every_tenor() -> None:
    """Approaching a tenor from both sides gives its own rate."""
    curve = curve_of([10, 20, 15, 30, 45, 80, 110, 160, 200, 230, 270, 300])
    for years, rate in zip(TENOR_YEARS, curve.rates, strict=True):
        assert zero_rate(curve, years)[0] == pytest.approx(rate, rel=1e-12)
        assert zero_rate(curve, math.nextafter(years, 0.0))[0] == pytest.approx(rate, rel=1e-12)


def test_faulty_curves_are_refused() -> None:
    """Eleven values are not a curve, and an empty curve has no rate."""
    with pytest.raises(ValueError, match="12 tenors"):
        curve_of([1] * 11)
    with pytest.raises(ValueError, match="no published tenor"):
        zero_rate(NO_CURVE, 1.0)
