"""
The aggressor kernel: one linear merge of trades and quotes fused with the classification rule, many cells at once.

A pure function of its arrays: no ledger, no clock, no state kept between trades (the price before each trade is an
input). It imports numba, so it must be imported in workers only, never by the daemon; it must never use fastmath or
parallel loops, because the rows are compared bit for bit.

A cell of minute T is made from the trades of T and the quotes of T and T-1 (for the first window: and of the 60 s
before the open). The result of a trade therefore never depends on a quote before the start of T-1, however many
cells and quotes are passed together: the staleness limit is at most 60 s, and a quote older than T-1 counts as
missing, not as stale.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engines.nbbo.arrays import COLUMN_DTYPES, OFFSET_NULL, AggressorColumns, CellCounts, QuoteArrays, TradeArrays
from engines.nbbo.policy import STALENESS_MS_MAX, Method, NbboPolicy, QuoteState, Rule, Side
from ledger.columns import WINDOW_NS

# numba freezes module-level integers into the compiled code; enum attributes it would box.
_BUYER: Final = int(Side.BUYER)
_SELLER: Final = int(Side.SELLER)
_UNKNOWN: Final = int(Side.UNKNOWN)
_TOUCH: Final = int(Method.NBBO_TOUCH)
_INSIDE: Final = int(Method.NBBO_AT_OR_BEYOND)
_TICK: Final = int(Method.TICK_RULE)
_NONE: Final = int(QuoteState.NONE)
_NORMAL: Final = int(QuoteState.NORMAL)
_LOCKED: Final = int(QuoteState.LOCKED)
_CROSSED: Final = int(QuoteState.CROSSED)
_RULES: Final = {rule: number for number, rule in enumerate(Rule)}
_MID_UNKNOWN: Final = _RULES[Rule.NEAREST_SIDE_MID_UNKNOWN]
_TOUCH_ONLY: Final = _RULES[Rule.TOUCH_ONLY]
_LEE_READY: Final = _RULES[Rule.LEE_READY]
_OFFSET_MAX: Final = float(2**31 - 1)
_BELOW_HALF: Final = float(np.nextafter(0.5, 0.0))
_MACHINE_EPSILON: Final = float(np.finfo(np.float64).eps)
_WINDOW_NS: Final = int(WINDOW_NS)
_BLOCK: Final = 2048
"""Trades classified at a time."""
_CONFIDENCE: Final = np.array([0.0, 1.0, 0.7, 0.5])
"""By method: the predecessor's constants."""


def classify(trades: TradeArrays, quotes: QuoteArrays, policy: NbboPolicy) -> AggressorColumns:
    """
    Classify every trade against the quote in force at its SIP time.

    Source of the rule: the predecessor's decision table (touch with tolerance, nearer side, tick rule), without its
    delta alignment; the quote's age is compared in whole nanoseconds, where the predecessor cut it to microseconds.
    Locked and crossed quotes are kept as a snapshot but decide nothing. 0/0 is normal, and not actionable.

    Args:
        trades: n trades, sorted.
        quotes: m quotes, sorted; quotes of instruments without trades are skipped.
        policy: the settings.

    Returns:
        The columns, n entries each.

    Raises:
        ValueError: arrays of one argument differ in length, or are not sorted; says which and where.
    """
    trades = TradeArrays(*_normalised("trades", trades, (np.int32, np.int64, np.float64, np.float64)))
    quotes = QuoteArrays(*_normalised("quotes", quotes, (np.int32, np.int64) + (np.float64,) * 4))
    assert policy.staleness_ns <= STALENESS_MS_MAX * 1_000_000 == WINDOW_NS, "quotes before minute T-1 would be used"
    # Uninitialised: the merge writes every entry.
    empty: list[NDArray[Any]] = [np.empty(trades.price.size, dtype) for dtype in COLUMN_DTYPES]
    columns = AggressorColumns(*empty)
    _merge(
        trades,
        quotes,
        columns,
        _RULES[policy.rule],
        policy.staleness_ns,
        policy.epsilon,
        policy.quote_tie == "at-or-before",
        policy.tick_rule,
    )
    return columns


def count_cells(columns: AggressorColumns, cell_start: NDArray[np.int64], cell_count: NDArray[np.int64]) -> CellCounts:
    """
    Count per cell what the payload record of the cell says.

    Args:
        columns: the result of ``classify``, n entries.
        cell_start: i64[c], first trade of each cell.
        cell_count: i64[c], number of trades of each cell; may be 0.

    Raises:
        ValueError: the two arrays differ in length, or a cell reaches beyond the trades.
    """
    start = np.ascontiguousarray(cell_start, dtype=np.int64)
    count = np.ascontiguousarray(cell_count, dtype=np.int64)
    if start.shape != count.shape or start.ndim != 1:
        raise ValueError(f"cell_start has shape {start.shape}, cell_count {count.shape}: pass one pair per cell")
    if start.size and (int(min(start.min(), count.min())) < 0 or int((start + count).max()) > columns.side.size):
        raise ValueError(f"a cell reaches beyond the {columns.side.size} trades: pass the boundaries of these trades")
    counts = CellCounts(*(np.zeros(start.size, np.int64) for _ in CellCounts._fields))
    _count(columns, start, count, counts)
    return counts


def _normalised(
    name: str, arrays: TradeArrays | QuoteArrays, dtypes: tuple[type[np.generic], ...]
) -> list[NDArray[Any]]:
    """The arrays contiguous and of the kernel's dtypes, checked for equal length and for order."""
    result = [np.ascontiguousarray(array, dtype=dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
    lengths = {field: array.shape for field, array in zip(arrays._fields, result, strict=True)}
    if len(set(lengths.values())) != 1 or result[0].ndim != 1:
        raise ValueError(f"{name}: all arrays must be flat and of one length, they have {lengths}")
    views = [array.view() for array in result]
    for view in views:
        # One signature: numba would compile again for every mix of writable and read-only inputs.
        view.flags.writeable = False
    if _disorder(views[0], views[1]):
        step, back = np.diff(views[0].astype(np.int64)), np.diff(views[1]) < 0
        row = int(np.argmax((step < 0) | ((step == 0) & back))) + 1
        raise ValueError(f"{name}: row {row} is out of order; sort them by instrument, then SIP time")
    return views


@njit(cache=True)
def _disorder(instrument: NDArray[np.int32], sip_timestamp_ns: NDArray[np.int64]) -> int:
    """How many rows are smaller than the one before; counting keeps the loop free of jumps."""
    disorder = 0
    for i in range(1, instrument.size):
        before = instrument[i - 1]
        here = instrument[i]
        disorder += (here < before) | ((here == before) & (sip_timestamp_ns[i] < sip_timestamp_ns[i - 1]))
    return disorder


@njit(cache=True)
def _state(bid: float, ask: float) -> int:
    """State of a quote; one-sided and 0/0 quotes are normal, as flat files always had it."""
    if ask > 0.0 and bid > ask:
        return _CROSSED
    if ask > 0.0 and abs(bid - ask) < _MACHINE_EPSILON:
        return _LOCKED
    return _NORMAL


@njit(cache=True)
def _offset_bp(price: float, bid: float, ask: float) -> int:
    """(price - mid) / mid in basis points, rounded half away from zero, clamped to i32; the null where undefined."""
    if ask > 0.0:
        mid = (bid + ask) / 2.0
    elif bid > 0.0:
        mid = bid
    else:
        return OFFSET_NULL
    if mid == 0.0:
        return OFFSET_NULL
    exact = (price - mid) / mid * 10_000.0
    if not np.isfinite(exact):
        return OFFSET_NULL
    exact = min(max(exact, -_OFFSET_MAX), _OFFSET_MAX)
    # The number below one half: adding 0.5 itself would round 0.49999999999999994 up. Exact for |x| < 2**52.
    return int(np.trunc(exact + (_BELOW_HALF if exact > 0.0 else -_BELOW_HALF)))


@njit(cache=True)
def _is_mid(price: float, bid: float, ask: float) -> bool:
    """
    Is the price the mid?

    Decimal prices are inexact in binary: 13.805 may differ from (13.80 + 13.81) / 2 by its last bit. The tolerance is
    four units of rounding at the ask's magnitude, far below any price increment.
    """
    return abs(price - (bid + ask) / 2.0) <= 4.0 * _MACHINE_EPSILON * abs(ask)


@njit(cache=True)
def _quote_side(price: float, bid: float, ask: float, rule: int, epsilon: float, at_mid: bool) -> tuple[int, int]:
    """Side and method from an actionable quote; unknown where the rule leaves the trade undecided."""
    touch_ask = price >= ask - epsilon
    touch = touch_ask | (price <= bid + epsilon)
    above_mid = price > (bid + ask) / 2.0
    # Written without jumps on the price: it is as good as random, and every missed guess costs more than the rule.
    if rule == _LEE_READY:
        buyer = above_mid
        decided = not at_mid
    else:
        buyer = touch_ask | ((not touch) & (at_mid | above_mid))
        if rule == _TOUCH_ONLY:
            decided = touch
        elif rule == _MID_UNKNOWN:
            decided = touch | (not at_mid)
        else:
            decided = True
    side = _BUYER if buyer else _SELLER
    method = _TOUCH if touch else _INSIDE
    return (side if decided else _UNKNOWN), (method if decided else _UNKNOWN)


@njit(cache=True)
def _tick_side(price: float, previous_price: float, epsilon: float) -> int:
    """Side by the price before; no memory over equal prices; NaN compares false and so stays unknown."""
    if price - previous_price > epsilon:
        return _BUYER
    if price - previous_price < -epsilon:
        return _SELLER
    return _UNKNOWN


@njit(cache=True)
def _decide(
    price: float,
    previous_price: float,
    bid: float,
    ask: float,
    state: int,
    rule: int,
    epsilon: float,
    tick_rule: bool,
) -> tuple[int, int, int, bool]:
    """Side, method, offset and exact_mid of one trade; bid and ask are not looked at where the state is none."""
    side = _UNKNOWN
    method = _UNKNOWN
    offset = OFFSET_NULL
    at_mid = False
    if state == _NORMAL and np.isfinite(bid) and np.isfinite(ask) and ask > bid:
        offset = _offset_bp(price, bid, ask)
        at_mid = _is_mid(price, bid, ask)
        side, method = _quote_side(price, bid, ask, rule, epsilon, at_mid)
        tick_rule = tick_rule and not (at_mid and rule == _MID_UNKNOWN)
    if side == _UNKNOWN and tick_rule:
        side = _tick_side(price, previous_price, epsilon)
        method = _UNKNOWN if side == _UNKNOWN else _TICK
        if offset == OFFSET_NULL and state != _NONE:
            offset = _offset_bp(price, bid, ask)
    return side, method, offset, at_mid


@njit(cache=True)
def _advance(quote_ts_ns: NDArray[np.int64], after: int, end: int, latest: int) -> int:
    """First quote from `after` on whose time is greater than `latest`."""
    # Eight at a time without jumps: how many quotes lie between two trades cannot be guessed by the processor.
    while after + 8 <= end:
        passed = 0
        for k in range(after, after + 8):
            # An unsigned index spares the test for negative ones that would keep this from vector instructions.
            passed += quote_ts_ns[np.uintp(k)] <= latest
        after += passed
        if passed < 8:
            return after
    while after < end and quote_ts_ns[after] <= latest:
        after += 1
    return after


@njit(cache=True)
def _as_of(
    trades: TradeArrays,
    quotes: QuoteArrays,
    out: AggressorColumns,
    segment: tuple[int, int, int],
    block: tuple[int, int],
    staleness_ns: int,
    at_or_before: bool,
) -> int:
    """
    Find the quote in force for the trades of one block, all of one instrument.

    Args:
        segment: first quote of the instrument, first quote not passed yet, end of the instrument's quotes.
        block: first trade, end.

    Returns:
        The first quote not passed yet, to go on from; quote_index, quote_age_ns, quote_tied and quote_stale are written.
    """
    trade_ts_ns = trades.sip_timestamp_ns
    quote_ts_ns = quotes.sip_timestamp_ns
    begin, after, end = segment
    for i in range(block[0], block[1]):
        now = trade_ts_ns[i]
        # `after` is the first quote that is not before the trade under the chosen tie.
        latest = now if at_or_before else now - 1
        after = _advance(quote_ts_ns, after, end, latest)
        same = after - 1 if at_or_before else after
        tied = begin <= same < end and quote_ts_ns[same] == now
        q = -1
        age_ns = -1
        stale = False
        if after > begin:
            q = after - 1
            age_ns = now - quote_ts_ns[q]
            if age_ns > staleness_ns:
                # Older than the start of minute T-1 is not among the cell's inputs: missing, not stale.
                stale = quote_ts_ns[q] >= now - now % _WINDOW_NS - _WINDOW_NS
                q = -1
                age_ns = -1
        out.quote_index[i] = q
        out.quote_age_ns[i] = age_ns
        out.quote_tied[i] = tied
        out.quote_stale[i] = stale
    return after


@njit(cache=True)
def _apply(
    trades: TradeArrays,
    quotes: QuoteArrays,
    out: AggressorColumns,
    block: tuple[int, int],
    rule: int,
    epsilon: float,
    tick_rule: bool,
) -> None:
    """Classify the trades of one block whose quote in force is found; writes the other columns."""
    for i in range(block[0], block[1]):
        # Unsigned as in `_advance`.
        at = np.uintp(i)
        q = out.quote_index[at]
        bid = np.nan
        ask = np.nan
        bid_size = np.nan
        ask_size = np.nan
        quote_ts_ns = 0
        state = _NONE
        if q >= 0:
            row = np.uintp(q)
            bid = quotes.bid[row]
            ask = quotes.ask[row]
            bid_size = quotes.bid_size[row]
            ask_size = quotes.ask_size[row]
            quote_ts_ns = trades.sip_timestamp_ns[at] - out.quote_age_ns[at]
            state = _state(bid, ask)
        side, method, offset, at_mid = _decide(
            trades.price[at], trades.previous_price[at], bid, ask, state, rule, epsilon, tick_rule
        )
        out.bid[at] = bid
        out.ask[at] = ask
        out.bid_size[at] = bid_size
        out.ask_size[at] = ask_size
        out.quote_ts_ns[at] = quote_ts_ns
        out.quote_state[at] = state
        out.side[at] = side
        out.method[at] = method
        out.confidence[at] = _CONFIDENCE[method]
        out.offset_mid_bp[at] = offset
        out.exact_mid[at] = at_mid


@njit(cache=True)
def _merge(
    trades: TradeArrays,
    quotes: QuoteArrays,
    out: AggressorColumns,
    rule: int,
    staleness_ns: int,
    epsilon: float,
    at_or_before: bool,
    tick_rule: bool,
) -> None:
    """One pass over trades and quotes; writes every entry of every column."""
    size = trades.price.size
    first = 0
    end = 0
    while first < size:
        instrument = trades.instrument[first]
        last = first + np.searchsorted(trades.instrument[first:], instrument, side="right")
        begin = end + np.searchsorted(quotes.instrument[end:], instrument, side="left")
        end = begin + np.searchsorted(quotes.instrument[begin:], instrument, side="right")
        after = begin
        # Two short loops over a block that stays in the cache are faster than one long one over everything.
        while first < last:
            block = (first, min(first + _BLOCK, last))
            after = _as_of(trades, quotes, out, (begin, after, end), block, staleness_ns, at_or_before)
            _apply(trades, quotes, out, block, rule, epsilon, tick_rule)
            first = block[1]


@njit(cache=True)
def _count(
    columns: AggressorColumns, cell_start: NDArray[np.int64], cell_count: NDArray[np.int64], counts: CellCounts
) -> None:
    """Add up the flags of each cell."""
    for cell in range(cell_start.size):
        for i in range(cell_start[cell], cell_start[cell] + cell_count[cell]):
            state = columns.quote_state[i]
            counts.locked[cell] += state == _LOCKED
            counts.crossed[cell] += state == _CROSSED
            counts.stale[cell] += columns.quote_stale[i]
            counts.missing[cell] += state == _NONE and not columns.quote_stale[i]
            counts.tied[cell] += columns.quote_tied[i]
            counts.exact_mid[cell] += columns.exact_mid[i]
            unknown = columns.side[i] == _UNKNOWN
            counts.unknown_side[cell] += unknown
            counts.usable[cell] += not unknown
