"""
The quote in force at every trade: one merge of sorted trades and quotes of an instrument, a block of trades at a time.

Made to run at the speed of memory: every quote's time is read once, the four values of the quotes that hold are fetched
in order, and no jump depends on what the market did. Imports numba, so workers only; it must never know a rule about
sides, nor keep anything between two calls.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.compiled import njit
from engines.nbbo.arrays import AggressorColumns, QuoteArrays, TradeArrays
from ledger.columns import WINDOW_NS

_WINDOW_NS: Final = int(WINDOW_NS)
_RUNS_FROM: Final = 64
"""Trades from which a block is searched in four runs at once."""


@njit(cache=True)
def _passed(quote_ts_ns: NDArray[np.int64], after: int, end: int, latest: int) -> int:
    """First quote from `after` on whose time is greater than `latest`."""
    # Eight at a time, then by halves without jumps: how many quotes lie between two trades cannot be guessed by the
    # processor. Unsigned indexes spare the test for negative ones.
    while after + 8 <= end:
        if quote_ts_ns[np.uintp(after + 7)] <= latest:
            after += 8
            continue
        after += 4 * (quote_ts_ns[np.uintp(after + 3)] <= latest)
        after += 2 * (quote_ts_ns[np.uintp(after + 1)] <= latest)
        after += 1 * (quote_ts_ns[np.uintp(after)] <= latest)
        return after
    while after < end and quote_ts_ns[after] <= latest:
        after += 1
    return after


@njit(cache=True)
def _passed_far(quote_ts_ns: NDArray[np.int64], after: int, end: int, latest: int) -> int:
    """The same by bisection, for trades that lie far apart."""
    while after < end:
        middle = (after + end) >> 1
        if quote_ts_ns[middle] <= latest:
            after = middle + 1
        else:
            end = middle
    return after


@njit(cache=True)
def find(
    trade_ts_ns: NDArray[np.int64],
    quote_ts_ns: NDArray[np.int64],
    after: NDArray[np.int64],
    quotes_from: int,
    quotes_end: int,
    tie_ns: int,
) -> int:
    """
    The first quote behind each trade of a block, all of one instrument.

    Args:
        trade_ts_ns: i64[n], ascending.
        quote_ts_ns: i64, of all quotes; of the instrument's own those before `quotes_from` are known to have passed.
        after: i64[>= n], written: the first quote whose time is greater than the trade's less `tie_ns`.
        tie_ns: 0 where a quote of the trade's own time holds, 1 where only earlier ones do.

    Returns:
        the last trade's, to go on from.
    """
    size = trade_ts_ns.size
    last = quotes_from
    done = 0
    if size >= _RUNS_FROM:
        # Each search waits for the one before it, so four runs of trades go side by side: the processor does them at once.
        length = size >> 2
        second, third, fourth = length, 2 * length, 3 * length
        a = quotes_from
        b = _passed_far(quote_ts_ns, a, quotes_end, trade_ts_ns[second] - 1 - tie_ns)
        c = _passed_far(quote_ts_ns, b, quotes_end, trade_ts_ns[third] - 1 - tie_ns)
        d = _passed_far(quote_ts_ns, c, quotes_end, trade_ts_ns[fourth] - 1 - tie_ns)
        for i in range(length):
            a = _passed(quote_ts_ns, a, quotes_end, trade_ts_ns[i] - tie_ns)
            b = _passed(quote_ts_ns, b, quotes_end, trade_ts_ns[second + i] - tie_ns)
            c = _passed(quote_ts_ns, c, quotes_end, trade_ts_ns[third + i] - tie_ns)
            d = _passed(quote_ts_ns, d, quotes_end, trade_ts_ns[fourth + i] - tie_ns)
            after[i] = a
            after[second + i] = b
            after[third + i] = c
            after[fourth + i] = d
        last = d
        done = 4 * length
    for i in range(done, size):
        last = _passed(quote_ts_ns, last, quotes_end, trade_ts_ns[i] - tie_ns)
        after[i] = last
    return last


@njit(cache=True)
def fetch(
    trades: TradeArrays,
    quotes: QuoteArrays,
    out: AggressorColumns,
    after: NDArray[np.int64],
    block: tuple[int, int],
    segment: tuple[int, int],
    expired_ns: int,
    at_or_before: bool,
) -> None:
    """
    Write the quote in force, its age and whether it is tied or stale, of the trades of one block.

    Args:
        after: as :func:`find` wrote it.
        block: first trade, end.
        segment: first quote of the instrument, end; at least one quote.
        expired_ns: the smallest age of a quote that is no longer in force.
    """
    begin, end = segment
    now = trades.sip_timestamp_ns[block[0] : block[1]]
    lost = 0
    for i in range(now.size):
        at = np.uintp(block[0]) + np.uintp(i)
        behind = after[np.uintp(i)]
        there = behind > begin
        # Where no quote is before the trade the first one is read and thrown away: cheaper than a jump.
        row = np.uintp(behind - there)
        then = quotes.sip_timestamp_ns[row]
        bid, ask = quotes.bid[row], quotes.ask[row]
        bid_size, ask_size = quotes.bid_size[row], quotes.ask_size[row]
        age_ns = now[np.uintp(i)] - then
        holds = there & (age_ns < expired_ns)
        out.quote_index[at] = np.int64(row) if holds else -1
        out.quote_age_ns[at] = age_ns if holds else -1
        out.quote_ts_ns[at] = then if holds else 0
        out.bid[at] = bid if holds else np.nan
        out.ask[at] = ask if holds else np.nan
        out.bid_size[at] = bid_size if holds else np.nan
        out.ask_size[at] = ask_size if holds else np.nan
        out.quote_tied[at] = age_ns == 0
        lost += not holds
    stale = out.quote_stale[block[0] : block[1]]
    stale[:] = False
    if lost:
        _write_stale(now, quotes.sip_timestamp_ns, out.quote_index[block[0] : block[1]], after, begin, stale)
    if not at_or_before:
        _write_tied(now, quotes.sip_timestamp_ns, after, end, out.quote_tied[block[0] : block[1]])


@njit(cache=True)
def _write_stale(
    now: NDArray[np.int64],
    quote_ts_ns: NDArray[np.int64],
    quote_index: NDArray[np.int64],
    after: NDArray[np.int64],
    begin: int,
    stale: NDArray[np.bool_],
) -> None:
    """Of trades without a quote in force, whether there is an older one among the inputs of their cells."""
    for i in range(now.size):
        if quote_index[i] < 0 and after[i] > begin:
            # Older than the start of minute T-1 is not among the cell's inputs: missing, not stale.
            stale[i] = quote_ts_ns[after[i] - 1] >= now[i] - now[i] % _WINDOW_NS - _WINDOW_NS


@njit(cache=True)
def _write_tied(
    now: NDArray[np.int64], quote_ts_ns: NDArray[np.int64], after: NDArray[np.int64], end: int, tied: NDArray[np.bool_]
) -> None:
    """Whether the first quote that did not pass has the trade's own time, where only earlier ones hold."""
    for i in range(now.size):
        tied[i] = after[i] < end and quote_ts_ns[after[i]] == now[i]


@njit(cache=True)
def none(out: AggressorColumns, block: tuple[int, int]) -> None:
    """Write that trades of an instrument without quotes have none."""
    for at in range(block[0], block[1]):
        out.quote_index[at] = -1
        out.quote_age_ns[at] = -1
        out.quote_ts_ns[at] = 0
        out.bid[at] = np.nan
        out.ask[at] = np.nan
        out.bid_size[at] = np.nan
        out.ask_size[at] = np.nan
        out.quote_tied[at] = False
        out.quote_stale[at] = False
