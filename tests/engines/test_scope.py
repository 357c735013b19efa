"""On demand: cells that nobody asked for are left alone, a region activates its own and their inputs, for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines.scope import Covered, Scope, activated, take_scope
from ledger.ancestors import with_ancestors
from ledger.columns import Column
from ledger.state import State, create_state, open_state
from m17d.asking import Asking

SESSION, NEXT = "2013-10-07", "2013-10-08"
AAA, BBB, CHAIN, CCC = range(4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state of three stocks, one with a chain; the chain's cells of one session are activated."""
    path = tmp_path_factory.mktemp("scope") / "s"
    create_state(path, year=2013)
    with open_state(path) as state:
        state.allocate(["AAA", "BBB", "O:AAA", "CCC"])
        state.regions.activate(
            symbol="O:AAA",
            symbol_id=CHAIN,
            first_session=SESSION,
            last_session=SESSION,
            columns=[Column.GREEKS_REF],
        )
    return path


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    """The state, opened again: what was activated is kept."""
    with open_state(path, readonly=True) as opened:
        yield opened


def all_apply(symbol_ids: np.ndarray) -> np.ndarray:
    """Every symbol could have the cells."""
    return np.ones(len(symbol_ids), dtype=bool)


def test_cells_are_made_from_the_members_rows_down_to_the_raw_ones(state: State) -> None:
    """Greeks of a chain stand on the underlying's quotes; aggregates of a stock on its own and its options' cells."""
    greeks = with_ancestors(state, CHAIN, [Column.GREEKS_REF])
    assert greeks == {
        Column.GREEKS_REF: {CHAIN},
        Column.RF_RATE_REF: {CHAIN},
        Column.TRADE_REF: {CHAIN},
        Column.QUOTE_REF: {AAA},
    }
    aggregates = with_ancestors(state, AAA, [Column.AGGS_5M])
    assert aggregates[Column.TRADE_REF] == aggregates[Column.AGGRESSOR_REF] == {AAA, CHAIN}
    assert aggregates[Column.GREEKS_REF] == {AAA, CHAIN}
    assert Column.AGGS_1M not in aggregates
    assert with_ancestors(state, BBB, []).keys() == set(Column)


def test_only_what_was_activated_is_covered_and_only_in_its_sessions(state: State) -> None:
    """By name, or as an input of what was named; over a restart."""
    assert np.flatnonzero(activated(state, SESSION, Column.GREEKS_REF)).tolist() == [CHAIN]
    assert np.flatnonzero(activated(state, SESSION, Column.QUOTE_REF)).tolist() == [AAA]
    assert not activated(state, SESSION, Column.AGGS_1M).any()
    assert not activated(state, NEXT, Column.GREEKS_REF).any()
    covered = Covered(Scope(activation="on-demand"), state, all_apply)
    assert np.flatnonzero(covered.mask(SESSION, Column.GREEKS_REF)).tolist() == [CHAIN]
    assert covered.mask(NEXT, Column.GREEKS_REF).sum() == 0
    assert Covered(Scope(), state, all_apply).mask(NEXT, Column.GREEKS_REF).all()


def test_globs_hold_on_demand_too(state: State) -> None:
    """A region does not widen what the engine was configured for."""
    covered = Covered(Scope(symbols=["B*"], activation="on-demand"), state, all_apply)
    assert not covered.mask(SESSION, Column.GREEKS_REF).any()


def test_a_region_that_comes_is_covered_at_once_and_asks_for_inputs_first_of_all(path: Path) -> None:
    """What was found is looked up again; engines below see the region with the symbols that it needs."""
    with open_state(path) as state:
        covered, asking = Covered(Scope(activation="on-demand"), state, all_apply), Asking(state)
        assert not covered.mask(NEXT, Column.AGGRESSOR_REF).any()
        assert asking.regions(Column.TRADE_REF) == []
        seq = state.calendar.session_seq(NEXT)
        start, end = int(state.calendar.open_ns[seq]), state.calendar.close_ns(seq)
        low = state.regions.add(symbol="BBB", symbol_id=BBB, start_ts=start, end_ts=end, priority=1)
        high = state.regions.add(
            symbol="AAA", symbol_id=AAA, start_ts=start, end_ts=end, priority=9, columns=[Column.AGGS_1M]
        )
        state.regions.activate(
            symbol="AAA", symbol_id=AAA, first_session=NEXT, last_session=NEXT, columns=[Column.AGGS_1M]
        )
        assert np.flatnonzero(covered.mask(NEXT, Column.AGGRESSOR_REF)).tolist() == [AAA, CHAIN]
        wanted = [(one.id, one.symbol_id, one.priority) for one in asking.regions(Column.TRADE_REF)]
        assert wanted == [(high.id, AAA, 9), (high.id, CHAIN, 9), (low.id, BBB, 1)]
        assert [one.id for one in asking.regions(Column.AGGS_4H)] == [low.id]
        state.regions.complete(high.id)
        assert [one.id for one in asking.regions(Column.TRADE_REF)] == [low.id]
        assert covered.mask(NEXT, Column.AGGRESSOR_REF)[AAA]


def test_scope_is_taken_out_of_a_table_and_checked() -> None:
    """The engine's own keys stay; a word that is no activation is refused."""
    table = {"symbols": ["A*"], "activation": "on-demand", "policy": "lee-ready"}
    assert take_scope(table) == Scope(symbols=["A*"], activation="on-demand")
    assert table == {"policy": "lee-ready"}
    with pytest.raises(msgspec.ValidationError, match="activation"):
        take_scope({"activation": "sometimes"})
