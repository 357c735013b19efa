"""Which derived cells lie behind given cells: by minute, by underlying, by window, and only those with rows over quotes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ledger.columns import AGGREGATE_MINUTES, Column, Flag
from ledger.dependents import Masks, dependents
from ledger.state import State, create_state, open_state

SEQ = 10
STOCK, CHAIN, OTHER = 0, 1, 2
TRADE, QUOTE, AGGRESSOR, GREEKS = Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A stock, its options and another stock; derived cells with rows in minutes 100 to 199, without in all others."""
    path = tmp_path_factory.mktemp("dependents") / "s"
    create_state(path, year=2013)
    with open_state(path) as opened:
        opened.allocate(["AAA", "O:AAA", "BBB"])
        cells = [(AGGRESSOR, one) for one in (STOCK, CHAIN, OTHER)] + [(GREEKS, CHAIN)]
        cells += [(column, one) for column in AGGREGATE_MINUTES for one in (STOCK, OTHER)]
        minutes = np.arange(390)
        flags = np.where((minutes >= 100) & (minutes < 200), 0, int(Flag.NO_ROWS)).astype(np.uint8)
        for column, symbol in cells:
            rows = opened.ledger_of(column).session(SEQ)
            rows.set_many(column, np.full(390, symbol), minutes, 1, 1, flags=flags, now_ns=1)
        yield opened


def behind(state: State, column: Column, symbol: int, *minutes: int) -> dict[tuple[Column, int], list[int]]:
    """(column, symbol) -> minutes behind some cells."""
    cells: Masks = {column: np.zeros((3, 390), dtype=bool)}
    cells[column][symbol, list(minutes)] = True
    found: Masks = {}
    for _ in dependents(state, SEQ, cells, found):
        pass
    return {
        (other, int(one)): np.flatnonzero(mask[one]).tolist()
        for other, mask in found.items()
        for one in np.flatnonzero(mask.any(axis=1))
    }


def windows(first: int, last: int, length: int) -> list[int]:
    """Starts of the windows that contain a minute from first to last."""
    return list(range(max(0, first - length + 1), last + 1))


def test_option_trade_lies_under_its_aggressor_its_greeks_and_the_windows_that_contain_it(state: State) -> None:
    """And under nothing of another underlying."""
    found = behind(state, TRADE, CHAIN, 150)
    assert found.pop((AGGRESSOR, CHAIN)) == [150]
    assert found.pop((GREEKS, CHAIN)) == [150]
    assert found == {(column, STOCK): windows(150, 150, length) for column, length in AGGREGATE_MINUTES.items()}


def test_quote_of_the_underlying_lies_under_the_greeks_of_two_minutes(state: State) -> None:
    """And under its own aggressors of two minutes, and the windows over both."""
    found = behind(state, QUOTE, STOCK, 150)
    assert found.pop((AGGRESSOR, STOCK)) == [150, 151]
    assert found.pop((GREEKS, CHAIN)) == [150, 151]
    rows = range(100, 200)
    for column, length in AGGREGATE_MINUTES.items():
        assert found.pop((column, STOCK)) == [one for one in windows(150, 151, length) if one in rows]
    assert found == {}


def test_quotes_of_minutes_without_trades_lie_under_nothing(state: State) -> None:
    """A cell without rows was made from its trades alone; the minute before the first rows still counts."""
    assert behind(state, QUOTE, OTHER, 20) == {}
    assert behind(state, QUOTE, CHAIN, 99)[AGGRESSOR, CHAIN] == [100]


def test_trade_of_a_stock_without_rows_lies_under_its_aggressor_and_windows(state: State) -> None:
    """Were it refilled with rows, they would change; at the open no window starts before."""
    found = behind(state, TRADE, OTHER, 0)
    assert found.pop((AGGRESSOR, OTHER)) == [0]
    assert found == {(column, OTHER): [0] for column in AGGREGATE_MINUTES}


def test_trade_of_the_underlying_lies_under_the_next_minute_s_windows_too(state: State) -> None:
    """An option trade without a mid takes the underlying's last trade of the minute before."""
    assert behind(state, TRADE, STOCK, 150)[Column.AGGS_1M, STOCK] == [150, 151]
    assert behind(state, TRADE, CHAIN, 150)[Column.AGGS_1M, STOCK] == [150]


def test_greeks_lie_under_aggregates_alone(state: State) -> None:
    """Derived cells have dependents like others."""
    found = behind(state, GREEKS, CHAIN, 120)
    assert {column for column, _ in found} == set(AGGREGATE_MINUTES)
    assert found[Column.AGGS_5M, STOCK] == [116, 117, 118, 119, 120]
