"""
The arrays that go into the aggressor kernel and come out of it.

Names and dtypes only: the module must never compute anything, nor import numba.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

OFFSET_NULL: Final = -(2**31)
"""Value of ``offset_mid_bp`` where there is none."""


class TradeArrays(NamedTuple):
    """Trades of any number of cells, sorted by instrument, then SIP time; all arrays of one length n."""

    instrument: NDArray[np.int32]
    """i32[n]: ascending codes, the same coding as the quotes'."""
    sip_timestamp_ns: NDArray[np.int64]
    """i64[n]: SIP time, ns since the epoch, UTC."""
    price: NDArray[np.float64]
    """f64[n]: dollars."""
    previous_price: NDArray[np.float64]
    """f64[n]: price of the same instrument's trade before it that day, NaN where there is none."""


class QuoteArrays(NamedTuple):
    """Quotes of the same instruments, sorted by instrument, SIP time, sequence; all arrays of one length m."""

    instrument: NDArray[np.int32]
    """i32[m]: ascending codes, the same coding as the trades'."""
    sip_timestamp_ns: NDArray[np.int64]
    """i64[m]: SIP time, ns since the epoch, UTC; of quotes with equal time the last one holds."""
    bid: NDArray[np.float64]
    """f64[m]: dollars, 0 where there is no bid."""
    ask: NDArray[np.float64]
    """f64[m]: dollars, 0 where there is no ask."""
    bid_size: NDArray[np.float64]
    """f64[m]: in the feed's unit."""
    ask_size: NDArray[np.float64]
    """f64[m]: in the feed's unit."""


class AggressorColumns(NamedTuple):
    """One entry per trade, in the order of the trades; the quote columns describe the quote in force."""

    side: NDArray[np.int8]
    """``Side``."""
    method: NDArray[np.int8]
    """``Method``."""
    confidence: NDArray[np.float64]
    """1.0 touch, 0.7 inside the spread, 0.5 tick rule, 0.0 unknown."""
    offset_mid_bp: NDArray[np.int32]
    """Distance from the mid in basis points, rounded half away from zero; ``OFFSET_NULL`` where there is none."""
    bid: NDArray[np.float64]
    """NaN where no quote is in force."""
    ask: NDArray[np.float64]
    """NaN where no quote is in force."""
    bid_size: NDArray[np.float64]
    """NaN where no quote is in force."""
    ask_size: NDArray[np.float64]
    """NaN where no quote is in force."""
    quote_ts_ns: NDArray[np.int64]
    """0 where no quote is in force."""
    quote_age_ns: NDArray[np.int64]
    """-1 where no quote is in force."""
    quote_state: NDArray[np.int8]
    """``QuoteState``."""
    quote_index: NDArray[np.int64]
    """Position in the quotes, -1 where no quote is in force."""
    quote_tied: NDArray[np.bool_]
    """The trade shares its exact time with a quote of its instrument, whichever way ties are decided."""
    quote_stale: NDArray[np.bool_]
    """No quote is in force, but there is an older one since the start of the minute before the trade's."""
    exact_mid: NDArray[np.bool_]
    """The price is the mid of an actionable quote in force, up to the rounding of the arithmetic."""


COLUMN_DTYPES: Final = (
    *(np.int8, np.int8, np.float64, np.int32),
    *(np.float64, np.float64, np.float64, np.float64),
    *(np.int64, np.int64, np.int8, np.int64),
    *(np.bool_, np.bool_, np.bool_),
)
"""Of ``AggressorColumns``, in its order."""
assert len(COLUMN_DTYPES) == len(AggressorColumns._fields)


class CellCounts(NamedTuple):
    """Counts per cell, i64[c] each."""

    locked: NDArray[np.int64]
    """Trades whose quote in force is locked."""
    crossed: NDArray[np.int64]
    """Trades whose quote in force is crossed."""
    stale: NDArray[np.int64]
    """Trades without a quote in force, but with an older one among the cell's inputs."""
    missing: NDArray[np.int64]
    """Trades without any quote at or before them among the cell's inputs."""
    tied: NDArray[np.int64]
    """Trades that share their time with a quote."""
    exact_mid: NDArray[np.int64]
    """Trades exactly at the mid."""
    unknown_side: NDArray[np.int64]
    """Trades without a side."""
    usable: NDArray[np.int64]
    """Trades with a side."""
