"""
What can be said against a row of Greeks: one distinct bit each, its meaning, and the operator's words for it.

Bits 1 to 4096 keep the predecessor's values; there, IV_BISECT_FAIL shared 256 with NBBO_STALE and VEGA_TINY shared 512
with IV_NEWTON_FAIL, so those two have moved to 8192 and 16384. The values are stored in rows and never reused. The module
is read by the daemon, so it must never import numba.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ledger.records import FLAG_COUNT


class GreeksFlag(IntFlag):
    """Flags of one row of Greeks (u32); a row is usable when no bit of ``BLOCKING`` is set."""

    NONE = 0
    NO_UNDERLYING = 1
    """No spot: no quote of the underlying in minutes T and T-1 up to the trade, or one that cannot be used."""
    NO_IV = 2
    """No implied volatility, hence no Greeks; another bit says why."""
    TIME_EXPIRED = 4
    """The contract's expiry is at or before the trade."""
    NO_TREASURY = 8
    """No Treasury curve with at least one published tenor."""
    CROSSED_MARKET = 16
    """The underlying's bid is above its ask by more than 1e-6."""
    LOCKED_MARKET = 32
    """The underlying's bid is above its ask by up to 1e-6; a market locked exactly is used and sets nothing."""
    BAD_RATIO = 64
    """The strike is not positive, spot / strike is outside [1e-6, 1e6], or rate x time overflows the formulas."""
    MID_NONPOS = 128
    """Neither side of the underlying's quote is a positive price."""
    NBBO_STALE = 256
    """The underlying's last quote is older than ``staleness_ms``."""
    IV_NEWTON_FAIL = 512
    """The fast iteration did not settle and plain bisection finished; the values are good."""
    PRICE_BELOW_INTRINSIC = 1024
    """The price is below what any volatility gives, or below the undiscounted intrinsic value where that rule is set."""
    RATE_EXTRAP = 2048
    """The expiry lies beyond the last published tenor; the last rate was used."""
    TAU_CLAMPED = 4096
    """Less than one second was left; one second was used."""
    IV_BISECT_FAIL = 8192
    """Bisection did not settle either; not known to happen."""
    VEGA_TINY = 16384
    """The price does not determine the volatility: its last binary digit is worth more than 1e-6 of volatility."""
    NONSTANDARD = 32768
    """Adjusted deliverable (the root ends in a digit): no formula applies."""
    PRICE_ABOVE_BOUND = 65536
    """The price is at or above what infinite volatility gives (a call's discounted spot, a put's discounted strike)."""
    IV_OUT_OF_RANGE = 131072
    """A volatility exists but lies outside [iv_min, iv_max]."""
    NO_PRICE = 262144
    """The trade's price is not a positive number."""
    EXPIRY_ESTIMATED = 524288
    """The expiry lies beyond the known sessions: weekends were stepped over, holidays could not be. Values are kept."""

    @property
    def words(self) -> list[str]:
        """Lower-case words of the bits that are set, lowest bit first."""
        return [str(flag.name).lower() for flag in FLAG_BITS if self & flag]


FLAG_BITS: Final = tuple(GreeksFlag)
"""Every single bit, lowest first; the order of the columns of :class:`CellCounts`."""

BLOCKING: Final = (
    GreeksFlag.NO_UNDERLYING
    | GreeksFlag.NO_IV
    | GreeksFlag.TIME_EXPIRED
    | GreeksFlag.NO_TREASURY
    | GreeksFlag.BAD_RATIO
    | GreeksFlag.NONSTANDARD
)
"""A row with any of these has no Greeks; the other bits come with one of these, or are remarks on good values."""

REMARKS_ONLY: Final = (
    GreeksFlag.IV_NEWTON_FAIL | GreeksFlag.RATE_EXTRAP | GreeksFlag.TAU_CLAMPED | GreeksFlag.EXPIRY_ESTIMATED
)
"""Bits that come with good values; every other one takes the Greeks, or comes with one that does."""

OPERATOR_TEXT: Final[dict[GreeksFlag, str]] = {
    GreeksFlag.NO_UNDERLYING: "no usable quote of the underlying in this minute or the one before; check its quote_ref",
    GreeksFlag.NO_IV: "no implied volatility; see the other flag for the reason",
    GreeksFlag.TIME_EXPIRED: "traded at or after its expiry; check the expiry policy and am_settled",
    GreeksFlag.NO_TREASURY: "no Treasury curve in force; check rf_rate_ref",
    GreeksFlag.CROSSED_MARKET: "the underlying's quote is crossed",
    GreeksFlag.LOCKED_MARKET: "the underlying's quote is crossed by less than 1e-6",
    GreeksFlag.BAD_RATIO: "strike, spot or rate are out of proportion; check the ticker and net_carry",
    GreeksFlag.MID_NONPOS: "the underlying's quote has no positive side",
    GreeksFlag.NBBO_STALE: "the underlying's last quote is older than staleness_ms",
    GreeksFlag.IV_NEWTON_FAIL: "solved by bisection; values are good",
    GreeksFlag.PRICE_BELOW_INTRINSIC: "price below the lowest price any volatility gives; early exercise, carry or a bad print",
    GreeksFlag.RATE_EXTRAP: "expiry beyond the longest published tenor; its rate was used",
    GreeksFlag.TAU_CLAMPED: "under one second to expiry; one second was used",
    GreeksFlag.IV_BISECT_FAIL: "the solver did not settle; please report the row",
    GreeksFlag.VEGA_TINY: "the price says nothing about volatility (no time value left in it)",
    GreeksFlag.NONSTANDARD: "adjusted deliverable; trades are kept, Greeks are not computed",
    GreeksFlag.PRICE_ABOVE_BOUND: "price at or above the most the contract can be worth; a bad print or a bad spot",
    GreeksFlag.IV_OUT_OF_RANGE: "implied volatility outside [iv_min, iv_max]",
    GreeksFlag.NO_PRICE: "the trade has no positive price",
    GreeksFlag.EXPIRY_ESTIMATED: "expiry beyond the known sessions; holidays were not considered",
}
"""What to tell an operator, one line a bit."""

FLAGS_KNOWN: Final = sum(FLAG_BITS)

assert len(FLAG_BITS) == FLAG_COUNT, "the record has a place for each"

assert len({flag.bit_length() for flag in FLAG_BITS}) == len(FLAG_BITS) == len(OPERATOR_TEXT)
assert all(flag == 1 << (flag.bit_length() - 1) < 2**32 for flag in FLAG_BITS)


class CellCounts(NamedTuple):
    """Counts per cell, for the record of a ``greeks_ref`` cell and for metrics."""

    observation_count: NDArray[np.uint32]
    """u32[c]: rows of the cell."""
    usable_rows: NDArray[np.uint32]
    """u32[c]: rows with all Greeks."""
    flags_any: NDArray[np.uint32]
    """u32[c]: every bit that any row of the cell has."""
    by_flag: NDArray[np.uint32]
    """u32[c, len(FLAG_BITS)]: rows that have the bit, in the order of ``FLAG_BITS``."""

    def rows_with(self, flag: GreeksFlag) -> NDArray[np.uint32]:
        """u32[c]: rows of each cell that have the one bit ``flag``; ValueError where it is not a single known bit."""
        return np.asarray(self.by_flag[:, FLAG_BITS.index(flag)], dtype=np.uint32)


def count_cells(flags: NDArray[np.uint32], usable: NDArray[np.bool_], cell_starts: NDArray[np.int64]) -> CellCounts:
    """
    Count usable rows and flags per cell.

    Args:
        flags: u32[n], ``GreeksFlag`` per row.
        usable: bool[n].
        cell_starts: i64[c + 1], ascending: the rows of cell i are ``cell_starts[i]:cell_starts[i + 1]``; may be empty.

    Raises:
        ValueError: the boundaries do not ascend or leave the rows, or a row has a bit that no flag owns.
    """
    starts = np.asarray(cell_starts, dtype=np.int64)
    if starts.size == 0 or starts[0] < 0 or starts[-1] > flags.size or np.any(np.diff(starts) < 0):
        raise ValueError(f"cell_starts must ascend within 0..{flags.size} and have one entry more than there are cells")
    if np.any(flags & np.uint32(~FLAGS_KNOWN & 0xFFFFFFFF)):
        raise ValueError("flags hold a bit that no GreeksFlag owns: rows of a newer version, or not a flags column")
    columns = [_sums((flags & np.uint32(flag)) != 0, starts) for flag in FLAG_BITS]
    by_flag = np.stack(columns, axis=1)
    bits = np.array(FLAG_BITS, dtype=np.uint32)
    flags_any = ((by_flag > 0) * bits).sum(axis=1, dtype=np.uint32)
    return CellCounts(np.diff(starts).astype(np.uint32), _sums(usable, starts), flags_any, by_flag)


def _sums(rows: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.uint32]:
    # Differences of a running count, because np.add.reduceat gives empty cells the next cell's first row.
    running = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(rows, dtype=np.int64)))
    return np.asarray(running[starts[1:]] - running[starts[:-1]], dtype=np.uint32)
