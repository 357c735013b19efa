"""
Cells around the windows of a refill: where the rows are that say which instruments there are, and the prices before.

Everything is read from planes, slots and records; a worker reads the rows. This module must never read a row itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from engines.derived_rows import RANGE, InputRows, input_rows, readable
from ledger.columns import Column, Flag, Status, SymbolClass
from ledger.rows import SessionRows
from ledger.state import State

WINDOWS_MAX: Final = 30
"""Windows of one ask."""
_QUOTED_CELLS: Final = 5
"""Cells of quotes before each gap that say which contracts are listened to."""


def ranges(minutes: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of runs of consecutive minutes, half-open, none longer than an ask may be."""
    found: list[tuple[int, int]] = []
    for minute in minutes.tolist():
        if found and found[-1][1] == minute and minute - found[-1][0] < WINDOWS_MAX:
            found[-1] = (found[-1][0], minute + 1)
        else:
            found.append((minute, minute + 1))
    return found


def with_rows(rows: SessionRows, column: Column, symbol_id: int) -> np.ndarray:
    """bool[390], cells of a symbol that are filled and have rows."""
    index = rows.column_index(column)
    flags = rows.flags[index, symbol_id]
    filled: np.ndarray = (rows.status[index, symbol_id] == Status.FILLED) & (flags & np.uint8(Flag.NO_ROWS) == 0)
    return filled


def around(state: State, session: str, column: Column, members: dict[int, np.ndarray]) -> InputRows:
    """
    Rows of cells that a refill of trades or quotes leaves alone; ``symbol`` counts the members.

    For the price before: of a stock or contract, which is one instrument, the last trade before each gap; of a chain all
    trades before its last window. For the contracts of a chain of quotes: all of its trades, and the quotes before each gap.

    Args:
        members: symbol id -> minutes that are asked for, i64[n], ascending.
    """
    rows = state.trade.session(state.calendar.session_seq(session))
    parts: list[InputRows] = []
    for place, (symbol_id, asked) in enumerate(members.items()):
        chain = state.class_of(symbol_id) is SymbolClass.CHAIN
        filled = with_rows(rows, Column.TRADE_REF, symbol_id)
        if column is Column.QUOTE_REF:
            if chain:
                quoted = with_rows(rows, Column.QUOTE_REF, symbol_id)
                quoted[asked] = False
                parts.append(rows_of(state, rows, Column.TRADE_REF, symbol_id, np.flatnonzero(filled), place))
                near = _before(np.flatnonzero(quoted), asked, _QUOTED_CELLS)
                parts.append(rows_of(state, rows, Column.QUOTE_REF, symbol_id, near, place))
            continue
        filled[asked] = False
        before = np.flatnonzero(filled[: int(asked[-1])])
        if chain:
            parts.append(rows_of(state, rows, Column.TRADE_REF, symbol_id, before, place))
        else:
            parts.append(rows_of(state, rows, column, symbol_id, _before(before, asked, 1), place, last=True))
    return joined(parts)


def _before(filled: np.ndarray, asked: np.ndarray, count: int) -> np.ndarray:
    """The nearest so many of some minutes before each run of asked ones, ascending, once each."""
    ends = np.searchsorted(filled, np.array([first for first, _ in ranges(asked)]))
    chosen = [filled[max(0, end - count) : end] for end in ends.tolist()]
    return np.unique(np.concatenate(chosen)) if chosen else filled[:0]


def rows_of(
    state: State,
    rows: SessionRows,
    column: Column,
    symbol_id: int,
    minutes: np.ndarray,
    place: int,
    *,
    last: bool = False,
) -> InputRows:
    """
    Rows of some cells of a symbol; ``symbol`` of their ranges is ``place``.

    Args:
        last: only the last row of each.
    """
    if not len(minutes):
        return joined([])
    slots = rows.slots(column, np.full(len(minutes), symbol_id), minutes)
    records = state.maps[column.payload_kind].get_many(slots["payload_id"])
    sound = readable(records) & (records["row_count"] > 0)
    records, minutes = records[sound], minutes[sound]
    starts, counts = records["row_start"].astype(np.int64), records["row_count"].astype(np.int64)
    if last:
        starts, counts = starts + counts - 1, np.ones_like(counts)
    places = np.full(len(records), place)
    return input_rows(state, records["artifact_id"], places, minutes, starts, counts)


def joined(parts: list[InputRows]) -> InputRows:
    """All ranges of several inputs as one."""
    uris: dict[str, int] = {}
    found = [np.zeros(0, dtype=RANGE)]
    for part in parts:
        place = np.array([uris.setdefault(uri, len(uris)) for uri in part.uris], dtype=np.uint32)
        ranges_of = part.ranges.copy()
        if len(ranges_of):
            ranges_of["file"] = place[ranges_of["file"]]
        found.append(ranges_of)
    return InputRows(tuple(uris), np.concatenate(found))
