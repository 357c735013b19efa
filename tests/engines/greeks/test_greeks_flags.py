"""Flags of a row: values, words, operator texts, and counts per cell."""

from __future__ import annotations

import numpy as np
import pytest

from engines.greeks.flags import BLOCKING, FLAG_BITS, OPERATOR_TEXT, GreeksFlag, count_cells


def test_bits_are_distinct_and_keep_the_stored_values() -> None:
    """Values are in files; the two that used to collide have their own."""
    assert len(set(FLAG_BITS)) == len(FLAG_BITS)
    stored = "no_underlying no_iv time_expired no_treasury crossed_market locked_market bad_ratio mid_nonpos nbbo_stale"
    stored += " iv_newton_fail price_below_intrinsic rate_extrap tau_clamped iv_bisect_fail vega_tiny nonstandard"
    assert [str(flag.name).lower() for flag in FLAG_BITS[:16]] == stored.split()
    assert [int(flag) for flag in FLAG_BITS] == [1 << bit for bit in range(len(FLAG_BITS))]


def test_every_flag_has_words_for_the_operator() -> None:
    """One line each, none empty, none twice."""
    assert set(OPERATOR_TEXT) == set(FLAG_BITS)
    texts = list(OPERATOR_TEXT.values())
    assert all(text and "\n" not in text for text in texts) and len(set(texts)) == len(texts)


def test_words_of_a_combination_come_lowest_bit_first() -> None:
    """The words that travel to the operator."""
    assert (GreeksFlag.NBBO_STALE | GreeksFlag.NO_UNDERLYING).words == ["no_underlying", "nbbo_stale"]
    assert GreeksFlag.NONE.words == []
    assert not BLOCKING & (GreeksFlag.RATE_EXTRAP | GreeksFlag.TAU_CLAMPED | GreeksFlag.IV_NEWTON_FAIL)


def test_counts_per_cell_with_empty_cells_between() -> None:
    """Empty cells count nothing, wherever they lie; rows outside the boundaries are not counted."""
    f = GreeksFlag
    flags = np.array(
        [f.NO_IV | f.VEGA_TINY, 0, f.RATE_EXTRAP, f.NO_UNDERLYING, f.NO_IV | f.VEGA_TINY, 1], dtype=np.uint32
    )
    usable = (flags & np.uint32(BLOCKING)) == 0
    counts = count_cells(flags, usable, np.array([0, 0, 3, 3, 5, 5], dtype=np.int64))
    assert counts.observation_count.tolist() == [0, 3, 0, 2, 0]
    assert counts.usable_rows.tolist() == [0, 2, 0, 0, 0]
    assert counts.rows_with(f.VEGA_TINY).tolist() == [0, 1, 0, 1, 0]
    assert counts.rows_with(f.NO_UNDERLYING).tolist() == [0, 0, 0, 1, 0]
    both = int(f.NO_IV | f.VEGA_TINY)
    assert counts.flags_any.tolist() == [0, both | f.RATE_EXTRAP, 0, both | f.NO_UNDERLYING, 0]
    assert counts.by_flag.dtype == np.uint32 and counts.by_flag.shape == (5, len(FLAG_BITS))


def test_counts_over_no_cells() -> None:
    """One boundary and no cell is a batch of nothing."""
    counts = count_cells(np.zeros(0, np.uint32), np.zeros(0, np.bool_), np.zeros(1, np.int64))
    assert counts.usable_rows.size == 0 and counts.by_flag.shape == (0, len(FLAG_BITS))


@pytest.mark.parametrize("starts", [[], [0, 5], [2, 1], [-1, 1]])
def test_boundaries_that_do_not_fit_are_refused(starts: list[int]) -> None:
    """Empty, beyond the rows, descending, negative."""
    with pytest.raises(ValueError, match="cell_starts"):
        count_cells(np.zeros(3, np.uint32), np.ones(3, np.bool_), np.array(starts, dtype=np.int64))


def test_unknown_bits_are_refused() -> None:
    """A bit without a name is another version's row."""
    with pytest.raises(ValueError, match="no GreeksFlag owns"):
        count_cells(np.array([1 << 31], np.uint32), np.ones(1, np.bool_), np.array([0, 1]))
