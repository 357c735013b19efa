"""One planning maps a little, however many sessions it would look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engines.opening
from engines.opening import Opening
from ledger import sessionfile
from ledger.columns import Column, Flag
from ledger.state import open_state
from tests.engines.planning import made_state

FILLED = [3, 4, 5]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A state with three sessions of eight symbols."""
    state, _ = made_state(tmp_path / "ledger.state")
    state.allocate([f"S{number}" for number in range(8)])
    for seq in FILLED:
        rows = state.trade.session(seq)
        rows.flag_many(Column.TRADE_REF, np.arange(8), np.full(8, 1), add=Flag.WANTED, now_ns=rows.now_ns())
    state.close()
    return tmp_path / "ledger.state"


def test_a_planning_begins_one_session_and_what_was_begun_first_is_done_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without time for more; a session without a file, and one that is mapped, may be looked at all the same."""
    monkeypatch.setattr(engines.opening, "OPENED_S", 0.0)
    monkeypatch.setattr(sessionfile, "_LOADED_AT_ONCE", 2)
    with open_state(directory) as state:
        ledger, plannings = state.trade, 0
        while not set(FILLED) <= ledger.mapped().keys():
            opening, before = Opening(), set(ledger.mapped())
            seen = [seq for seq in FILLED if opening.is_mapped(ledger, seq)]
            assert set(seen) <= before | {FILLED[len(before)]}
            assert opening.is_mapped(ledger, 100)
            assert list(ledger.mapped()) == FILLED[: len(ledger.mapped())]
            plannings += 1
        assert plannings > 6
        assert not state.is_opening


def test_sessions_in_part_go_on_one_after_the_other_until_the_time_is_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many were begun, one piece is done where there is no time for more; all are mapped in the end."""
    monkeypatch.setattr(sessionfile, "_LOADED_AT_ONCE", 2)
    with open_state(directory) as state:
        for seq in FILLED:
            assert not state.trade.open_some(seq, 0.0)
        order = []
        while state.is_opening:
            state.open_on(0.0)
            order += [seq for seq in state.trade.mapped() if seq not in order]
        assert order == FILLED
