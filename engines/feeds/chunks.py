"""
One chunk of ordered rows: a frame, and where each cell's rows lie in it.

Chunks of the session come first; in each, the rows of a (symbol, minute) lie together and no cell is split over chunks.
Rows outside the session come last. This module must never sort; it describes what is sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engines.feeds.session_window import SessionWindow
from ledger.columns import WINDOW_NS

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """
    Rows in canonical order.

    Attributes:
        frame: columns ``symbol`` String, ``minute`` UInt16 (of the session; null outside it), then the dataset's columns
            and for trades ``previous_price`` Float64 (null for the day's first trade of an instrument).
        outside: False: rows of the session, by symbol, minute, ticker, time, sequence and the rest. True: rows of the
            day outside it, by symbol, signed minute from the open, ticker and so on; they are in no cell.
        symbols: names in the chunk, ascending.
        symbol_row_start: i64[symbols], first row of each symbol, relative to the chunk.
        symbol_row_count: i64[symbols].
        cell_symbol: i32[cells], index into ``symbols``; cells are ordered by symbol and minute.
        cell_minute: u16[cells].
        row_start: i64[cells], relative to the chunk.
        row_count: i64[cells], above 0.
        first_ts: i64[cells], lowest SIP time, ns UTC.
        last_ts: i64[cells], highest SIP time, ns UTC.
        lead_start: i64[symbols], in outside chunks the first row of the 60 s before the open, relative to the chunk.
        lead_count: i64[symbols], their number; a symbol's lead lies in one chunk. 0 in chunks of the session.
    """

    frame: pl.DataFrame
    outside: bool
    symbols: list[str]
    symbol_row_start: IntArray
    symbol_row_count: IntArray
    cell_symbol: NDArray[np.int32]
    cell_minute: NDArray[np.uint16]
    row_start: IntArray
    row_count: IntArray
    first_ts: IntArray
    last_ts: IntArray
    lead_start: IntArray
    lead_count: IntArray

    @property
    def cell_names(self) -> list[str]:
        """The symbol of each cell."""
        return [self.symbols[index] for index in self.cell_symbol.tolist()]


def changes(*keys: NDArray[np.generic]) -> IntArray:
    """Row of each start of a run of equal keys, int64[runs]; keys have equal lengths."""
    rows = len(keys[0])
    if not rows:
        return np.empty(0, np.int64)
    new = np.zeros(rows, np.bool_)
    new[0] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new).astype(np.int64, copy=False)


def session_chunk(
    frame: pl.DataFrame, names: list[str], symbol: NDArray[np.int32], minute: NDArray[np.int32], times: IntArray
) -> Chunk:
    """
    Describe ordered rows of the session.

    Args:
        names: all names that ``symbol`` may point to, ascending.
        symbol: i32[rows], index into ``names``, ascending.
        minute: i32[rows], ascending within a symbol.
        times: i64[rows], SIP times, ns UTC.
    """
    starts = changes(symbol, minute)
    of_symbol = changes(symbol)
    present = symbol[of_symbol]
    none = np.zeros(len(of_symbol), np.int64)
    return Chunk(
        frame=frame,
        outside=False,
        symbols=[names[index] for index in present.tolist()],
        symbol_row_start=of_symbol,
        symbol_row_count=np.diff(of_symbol, append=len(symbol)),
        cell_symbol=np.searchsorted(present, symbol[starts]).astype(np.int32),
        cell_minute=minute[starts].astype(np.uint16),
        row_start=starts,
        row_count=np.diff(starts, append=len(symbol)),
        first_ts=np.minimum.reduceat(times, starts) if len(starts) else starts,
        last_ts=np.maximum.reduceat(times, starts) if len(starts) else starts,
        lead_start=none,
        lead_count=none.copy(),
    )


def outside_chunk(frame: pl.DataFrame, window: SessionWindow) -> Chunk:
    """Describe rows outside the session, ordered by symbol and signed minute."""
    codes = frame["symbol"].rle_id().to_numpy()
    of_symbol = changes(codes)
    times = frame["sip_timestamp"].to_numpy()
    lead = np.flatnonzero((times >= window.open_ns - WINDOW_NS) & (times < window.open_ns))
    owner = codes[lead]
    lead_count = np.bincount(owner, minlength=len(of_symbol)).astype(np.int64)
    lead_start = np.zeros(len(of_symbol), np.int64)
    first = changes(owner)
    lead_start[owner[first]] = lead[first]
    empty = np.empty(0, np.int64)
    return Chunk(
        frame=frame,
        outside=True,
        symbols=frame["symbol"].gather(of_symbol).to_list(),
        symbol_row_start=of_symbol,
        symbol_row_count=np.diff(of_symbol, append=frame.height),
        cell_symbol=np.empty(0, np.int32),
        cell_minute=np.empty(0, np.uint16),
        row_start=empty,
        row_count=empty.copy(),
        first_ts=empty.copy(),
        last_ts=empty.copy(),
        lead_start=lead_start,
        lead_count=lead_count,
    )
