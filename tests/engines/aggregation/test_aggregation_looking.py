"""Underlyings with many options are looked at a little at a time, and every look gets further."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.aggregation.members import _SYMBOLS_AT_ONCE, Members
from ledger.columns import Column, OptionRows, PayloadKind
from ledger.records import blank
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State
from tests.engines.planning import made_state

SESSION = "2013-10-07"
OPTIONS = 2 * _SYMBOLS_AT_ONCE + 10
NO_TIME_S = 0.0


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A stock and the contracts of its chain in one session, without a cell."""
    opened, _clock = made_state(tmp_path / "ledger.state", option_rows=OptionRows.CONTRACT)
    with opened:
        opened.allocate(["AAA", *(f"O:AAA131019C{strike * 1000:08d}" for strike in range(1, OPTIONS + 1))])
        count = OPTIONS + 1
        symbols = pack_symbols(list(range(count)), [1] * count, [0] * count, [0.0] * count)
        record = SourceRecord(dataset="d", session=SESSION, state=SourceState.COMPLETE, name="f", symbols=symbols)
        opened.sources.put(record)
        yield opened


def put_trade(state: State, symbol_id: int, minute: int) -> int:
    """Fill one trade cell with rows; its payload id."""
    records = blank(PayloadKind.TRADE, 1)
    records["content_hash"], records["artifact_id"], records["row_count"] = (1 + symbol_id) << 32, 1, 1
    payload_id = int(state.maps[PayloadKind.TRADE].append(records))
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    rows.set_many(Column.TRADE_REF, np.array([symbol_id]), np.array([minute]), payload_id, 1 + symbol_id, now_ns=1)
    return payload_id


def test_a_look_without_time_gets_further_and_ends(state: State) -> None:
    """So many options at once would hold up whoever waits; a look that began anew each time would never end."""
    members = Members(state, state.calendar.session_seq(SESSION), spot_from_aggressors=False)
    units = np.array([state.symbols.resolve("AAA")])
    assert [members.look(units, NO_TIME_S) for _ in range(4)] == [False, False, True, True]


def test_cells_are_those_with_rows_as_they_are_now(state: State) -> None:
    """In the order of the symbols, then of minutes, with the payloads of what was made from them."""
    members = Members(state, state.calendar.session_seq(SESSION), spot_from_aggressors=False)
    mine = members.options(state.symbols.resolve("AAA"))
    assert [len(array) for array in members.cells(mine)] == [0, 0, 0]
    last, first = put_trade(state, int(mine[9]), 3), put_trade(state, int(mine[2]), 200)
    second = put_trade(state, int(mine[2]), 300)
    at, minute, ids = members.cells(mine)
    assert at.tolist() == [2, 2, 9]
    assert minute.tolist() == [200, 300, 3]
    assert ids.tolist() == [[first, 0, 0], [second, 0, 0], [last, 0, 0]]
