"""Curves: records, hashes and which one holds."""

from __future__ import annotations

import numpy as np

from engines.treasury.curves import holding, record_of
from ledger.records import ABSENT_TENOR

TENORS = (3, None, 4, 6, 10, 40, 82, 163, 217, 259, 317, 344)


def test_absent_tenor_is_marked_and_never_zero() -> None:
    """None becomes the marker; a published 0 stays 0 and gives another content."""
    record = record_of("2014-06-05", TENORS, 100, 0)
    zero = record_of("2014-06-05", tuple(0 if one is None else one for one in TENORS), 100, 0)

    assert record["tenor_bps"][0][1] == ABSENT_TENOR
    assert zero["tenor_bps"][0][1] == 0
    assert record["content_hash"][0] != zero["content_hash"][0]


def test_next_effective_time_is_not_content() -> None:
    """A later curve that becomes known changes nothing of this one."""
    assert (
        record_of("2014-06-05", TENORS, 100, 0)["content_hash"]
        == record_of("2014-06-05", TENORS, 100, 999)["content_hash"]
    )


def test_effective_time_and_date_are_content() -> None:
    """Another effective time is another curve, even with the same yields."""
    assert (
        record_of("2014-06-05", TENORS, 100, 0)["content_hash"]
        != record_of("2014-06-05", TENORS, 160, 0)["content_hash"]
    )
    assert (
        record_of("2014-06-05", TENORS, 100, 0)["content_hash"]
        != record_of("2014-06-06", TENORS, 100, 0)["content_hash"]
    )


def test_curve_holds_from_its_effective_time_until_the_next() -> None:
    """Inclusive at the start, -1 before the first."""
    found = holding(np.array([100, 200]), np.array([99, 100, 199, 200, 10_000]))

    assert found.tolist() == [-1, 0, 0, 1, 1]
