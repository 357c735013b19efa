"""
What goes into the Greeks kernel and what comes out of it, as plain arrays.

Apart from the kernel, so that whoever prepares or writes these arrays need not import numba. This module must never
compute anything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

AGE_NONE: Final = -1
"""``spot_age_ns`` where no quote was found."""


class OptionTrades(NamedTuple):
    """Option trades on one underlying, in any order; all arrays of one length n."""

    sip_timestamp_ns: NDArray[np.int64]
    """i64[n]: SIP time, ns since the epoch, UTC."""
    price: NDArray[np.float64]
    """f64[n]: dollars per unit of the underlying."""
    strike: NDArray[np.float64]
    """f64[n]: dollars."""
    is_call: NDArray[np.bool_]
    expiry_ns: NDArray[np.int64]
    """i64[n]: end of the contract, ns since the epoch, UTC; see ``expiry``."""
    standard: NDArray[np.bool_]
    """bool[n]: False for adjusted deliverables."""
    expiry_estimated: NDArray[np.bool_] | None = None
    """bool[n]: sets EXPIRY_ESTIMATED; None for nowhere."""


class UnderlyingQuotes(NamedTuple):
    """NBBO quotes of the underlying, ascending in time; all arrays of one length m."""

    sip_timestamp_ns: NDArray[np.int64]
    """i64[m]: SIP time, ns since the epoch, UTC; of quotes with equal time the last one holds."""
    bid: NDArray[np.float64]
    """f64[m]: dollars, 0 where there is no bid."""
    ask: NDArray[np.float64]
    """f64[m]: dollars, 0 where there is no ask."""


class GreeksColumns(NamedTuple):
    """One entry per trade, in the order of the trades. Never NaN: a value that does not exist is 0, and writers null it."""

    iv: NDArray[np.float64]
    """Implied volatility per 1.00; with the five Greeks valid where ``usable``."""
    delta: NDArray[np.float64]
    gamma: NDArray[np.float64]
    """Per $1 of spot."""
    vega: NDArray[np.float64]
    """Dollars per 1.00 of volatility."""
    theta: NDArray[np.float64]
    """Dollars per year."""
    rho: NDArray[np.float64]
    """Dollars per 1.00 of rate."""
    tau_years: NDArray[np.float64]
    """Years to expiry, ACT/365; valid where positive."""
    rate: NDArray[np.float64]
    """Continuously compounded, per year as a decimal; valid where ``tau_years`` is positive."""
    spot: NDArray[np.float64]
    """Mid of the underlying's NBBO; valid where positive."""
    spot_bid: NDArray[np.float64]
    """The quote that was found, also where it could not be used; valid where ``spot_age_ns`` is not negative."""
    spot_ask: NDArray[np.float64]
    spot_ts: NDArray[np.int64]
    """SIP time of that quote, ns since the epoch, UTC; 0 where none was found."""
    spot_age_ns: NDArray[np.int64]
    """Trade time less quote time; ``AGE_NONE`` where none was found."""
    flags: NDArray[np.uint32]
    """``GreeksFlag``."""
    usable: NDArray[np.bool_]
    """iv and all Greeks are there."""
