"""
The classification rule over a block of trades whose quotes in force are known: state, offset, side, method, confidence.

Loops over few arrays each and without jumps, so that the compiler makes vector instructions of them: prices are as good
as random, and every missed guess would cost more than the rule. Imports numba, so workers only; it must never look at
another trade or quote than the one in its row.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.compiled import njit
from engines.nbbo.arrays import OFFSET_NULL
from engines.nbbo.policy import Method, QuoteState, Rule, Side

# numba freezes module-level integers into the compiled code; enum attributes it would box.
_BUYER: Final = int(Side.BUYER)
_SELLER: Final = int(Side.SELLER)
_UNKNOWN: Final = int(Side.UNKNOWN)
_UNDECIDED: Final = int(Method.UNKNOWN)
_TOUCH: Final = int(Method.NBBO_TOUCH)
_INSIDE: Final = int(Method.NBBO_AT_OR_BEYOND)
_TICK: Final = int(Method.TICK_RULE)
_NONE: Final = int(QuoteState.NONE)
_NORMAL: Final = int(QuoteState.NORMAL)
_LOCKED: Final = int(QuoteState.LOCKED)
_CROSSED: Final = int(QuoteState.CROSSED)
RULES: Final = {rule: number for number, rule in enumerate(Rule)}
"""What the kernel calls each rule."""
_MID_UNKNOWN: Final = RULES[Rule.NEAREST_SIDE_MID_UNKNOWN]
_TOUCH_ONLY: Final = RULES[Rule.TOUCH_ONLY]
_LEE_READY: Final = RULES[Rule.LEE_READY]
_OFFSET_MAX: Final = float(2**31 - 1)
_BELOW_HALF: Final = float(np.nextafter(0.5, 0.0))
_MACHINE_EPSILON: Final = float(np.finfo(np.float64).eps)

_Floats = NDArray[np.float64]
_Bytes = NDArray[np.int8]


@njit(cache=True)
def write_states(quote_age_ns: NDArray[np.int64], bid: _Floats, ask: _Floats, state: _Bytes) -> None:
    """State of each quote; one-sided and 0/0 quotes are normal, as flat files always had it."""
    for i in range(state.size):
        here = _LOCKED if abs(bid[i] - ask[i]) < _MACHINE_EPSILON else _NORMAL
        here = _CROSSED if bid[i] > ask[i] else here
        here = here if ask[i] > 0.0 else _NORMAL
        state[i] = here if quote_age_ns[i] >= 0 else _NONE


@njit(cache=True)
def _is_actionable(state: int, bid: float, ask: float) -> bool:
    """Whether a quote may decide: normal, both sides finite, the ask above the bid."""
    return (state == _NORMAL) & (ask > bid) & (bid > -np.inf) & (ask < np.inf)


@njit(cache=True)
def write_offsets(
    price: _Floats, bid: _Floats, ask: _Floats, state: _Bytes, offset_mid_bp: NDArray[np.int32], tick_rule: bool
) -> None:
    """
    (price - mid) / mid in basis points, rounded half away from zero, clamped to i32; the null where undefined.

    Of quotes that are not actionable only where the tick rule is asked, as the predecessor did.
    """
    for i in range(offset_mid_bp.size):
        asked = _is_actionable(state[i], bid[i], ask[i]) | (tick_rule & (state[i] != _NONE))
        mid = (bid[i] + ask[i]) / 2.0 if ask[i] > 0.0 else bid[i]
        asked &= ((ask[i] > 0.0) | (bid[i] > 0.0)) & (mid != 0.0)
        exact = (price[i] - mid) / (mid if asked else 1.0) * 10_000.0
        asked &= abs(exact) < np.inf
        exact = min(max(exact if asked else 0.0, -_OFFSET_MAX), _OFFSET_MAX)
        # The number below one half: adding 0.5 itself would round 0.49999999999999994 up. Exact for |x| < 2**52.
        rounded = np.int32(exact + (_BELOW_HALF if exact > 0.0 else -_BELOW_HALF))
        offset_mid_bp[i] = rounded if asked else OFFSET_NULL


@njit(cache=True)
def _is_mid(price: float, bid: float, ask: float) -> bool:
    """
    Is the price the mid?

    Decimal prices are inexact in binary: 13.805 may differ from (13.80 + 13.81) / 2 by its last bit. The tolerance is
    four units of rounding at the ask's magnitude, far below any price increment.
    """
    return abs(price - (bid + ask) / 2.0) <= 4.0 * _MACHINE_EPSILON * abs(ask)


@njit(cache=True)
def write_mids(price: _Floats, bid: _Floats, ask: _Floats, state: _Bytes, exact_mid: NDArray[np.bool_]) -> None:
    """Whether each price is the mid of an actionable quote."""
    for i in range(exact_mid.size):
        exact_mid[i] = _is_actionable(state[i], bid[i], ask[i]) & _is_mid(price[i], bid[i], ask[i])


@njit(cache=True)
def write_by_quotes(
    price: _Floats, bid: _Floats, ask: _Floats, state: _Bytes, side: _Bytes, method: _Bytes, rule: int, epsilon: float
) -> None:
    """Side and method from actionable quotes; unknown where the rule leaves the trade undecided."""
    lee_ready = rule == _LEE_READY
    inside_too = rule != _TOUCH_ONLY
    mid_too = (rule != _MID_UNKNOWN) & (rule != _LEE_READY)
    for i in range(side.size):
        at_mid = _is_mid(price[i], bid[i], ask[i])
        above_mid = price[i] > (bid[i] + ask[i]) / 2.0
        touch_ask = price[i] >= ask[i] - epsilon
        touch = touch_ask | (price[i] <= bid[i] + epsilon)
        # Lee and Ready compare with the mid alone, wherever the touch is.
        buyer = above_mid if lee_ready else touch_ask | ((not touch) & (at_mid | above_mid))
        decided = (touch & (not lee_ready)) | (inside_too & (mid_too | (not at_mid)))
        decided &= _is_actionable(state[i], bid[i], ask[i])
        by_quote = _BUYER if buyer else _SELLER
        how = _TOUCH if touch else _INSIDE
        side[i] = by_quote if decided else _UNKNOWN
        method[i] = how if decided else _UNDECIDED


@njit(cache=True)
def write_by_ticks(
    price: _Floats,
    previous_price: _Floats,
    exact_mid: NDArray[np.bool_],
    side: _Bytes,
    method: _Bytes,
    epsilon: float,
    mid_stays: bool,
) -> None:
    """
    Side by the price before where the quote left it open; NaN compares false and so stays unknown.

    Args:
        mid_stays: whether a trade at the mid stays unknown.
    """
    for i in range(side.size):
        up = price[i] - previous_price[i] > epsilon
        down = price[i] - previous_price[i] < -epsilon
        by_tick = _BUYER if up else (_SELLER if down else _UNKNOWN)
        asked = (method[i] == _UNDECIDED) & (up | down) & (not (mid_stays & exact_mid[i]))
        side[i] = by_tick if asked else side[i]
        method[i] = _TICK if asked else method[i]


@njit(cache=True)
def write_confidences(method: _Bytes, confidence: _Floats) -> None:
    """By method: the predecessor's constants."""
    for i in range(method.size):
        touch_or_tick = 1.0 if method[i] == _TOUCH else (0.5 if method[i] == _TICK else 0.0)
        confidence[i] = 0.7 if method[i] == _INSIDE else touch_or_tick
