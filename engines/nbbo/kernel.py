"""
The aggressor kernel: one linear merge of trades and quotes, block by block with the classification rule, many cells at once.

``in_force`` finds the quotes, ``sides`` decides. With four quotes to a trade, what must move is about 320 bytes a trade
(the quotes' times twice, the cache lines of the quotes that hold, 28 in, 76 out), 10 ns at the speed of memory; it takes 20.

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
from numpy.typing import NDArray

from engines.compiled import njit
from engines.nbbo.arrays import COLUMN_DTYPES, AggressorColumns, CellCounts, QuoteArrays, TradeArrays
from engines.nbbo.in_force import fetch, find, none
from engines.nbbo.policy import STALENESS_MS_MAX, NbboPolicy, QuoteState, Rule, Side
from engines.nbbo.sides import (
    RULES,
    write_by_quotes,
    write_by_ticks,
    write_confidences,
    write_mids,
    write_offsets,
    write_states,
)
from ledger.columns import WINDOW_NS

# numba freezes module-level integers into the compiled code; enum attributes it would box.
_UNKNOWN: Final = int(Side.UNKNOWN)
_NONE: Final = int(QuoteState.NONE)
_LOCKED: Final = int(QuoteState.LOCKED)
_CROSSED: Final = int(QuoteState.CROSSED)
_MID_UNKNOWN: Final = RULES[Rule.NEAREST_SIDE_MID_UNKNOWN]
_MICROSECOND_NS: Final = 1_000
_BLOCK: Final = 4096
"""Trades classified at a time."""


def classify(trades: TradeArrays, quotes: QuoteArrays, policy: NbboPolicy) -> AggressorColumns:
    """
    Classify every trade against the quote in force at its SIP time.

    Source of the rule: the predecessor's decision table (touch with tolerance, nearer side, tick rule), without its
    delta alignment; the quote's age is compared in whole microseconds, as there, cut and not rounded.
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
        RULES[policy.rule],
        # Cut to microseconds; but a quote older than 60 s could lie before minute T-1, outside the cell's inputs.
        min(policy.staleness_ns + _MICROSECOND_NS, WINDOW_NS + 1),
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
def _merge(
    trades: TradeArrays,
    quotes: QuoteArrays,
    out: AggressorColumns,
    rule: int,
    expired_ns: int,
    epsilon: float,
    at_or_before: bool,
    tick_rule: bool,
) -> None:
    """One pass over trades and quotes; writes every entry of every column."""
    size = trades.price.size
    after = np.empty(_BLOCK, dtype=np.int64)
    first = 0
    end = 0
    while first < size:
        instrument = trades.instrument[first]
        last = first + np.searchsorted(trades.instrument[first:], instrument, side="right")
        begin = end + np.searchsorted(quotes.instrument[end:], instrument, side="left")
        end = begin + np.searchsorted(quotes.instrument[begin:], instrument, side="right")
        passed = begin
        # Short loops over a block that stays in the cache are faster than one long one over everything.
        while first < last:
            block = (first, min(first + _BLOCK, last))
            if begin < end:
                now = trades.sip_timestamp_ns[block[0] : block[1]]
                passed = find(now, quotes.sip_timestamp_ns, after, passed, end, 0 if at_or_before else 1)
                fetch(trades, quotes, out, after, block, (begin, end), expired_ns, at_or_before)
            else:
                none(out, block)
            _decide(trades, out, block, rule, epsilon, tick_rule)
            first = block[1]


@njit(cache=True)
def _decide(
    trades: TradeArrays, out: AggressorColumns, block: tuple[int, int], rule: int, epsilon: float, tick_rule: bool
) -> None:
    """Classify the trades of one block whose quote in force is found."""
    first, end = block
    price, bid, ask = trades.price[first:end], out.bid[first:end], out.ask[first:end]
    state, side, method = out.quote_state[first:end], out.side[first:end], out.method[first:end]
    exact_mid = out.exact_mid[first:end]
    write_states(out.quote_age_ns[first:end], bid, ask, state)
    write_offsets(price, bid, ask, state, out.offset_mid_bp[first:end], tick_rule)
    write_mids(price, bid, ask, state, exact_mid)
    write_by_quotes(price, bid, ask, state, side, method, rule, epsilon)
    if tick_rule:
        previous_price = trades.previous_price[first:end]
        write_by_ticks(price, previous_price, exact_mid, side, method, epsilon, rule == _MID_UNKNOWN)
    write_confidences(method, out.confidence[first:end])


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
