"""Parts of a universe that are judged one by one: families stay together, and what is found is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ledger.absence import absent_symbols, families_of
from ledger.columns import OptionRows
from ledger.state import create_state, open_state


def test_a_stock_and_its_options_are_never_apart_and_all_are_there(tmp_path: Path) -> None:
    """Whatever the size of a part: each symbol once, ascending inside its part, small families put together."""
    create_state(tmp_path / "s", year=2013, option_rows=OptionRows.CONTRACT)
    with open_state(tmp_path / "s") as state:
        names = [f"O:{root}131019C{strike * 1000:08d}" for strike in range(10, 30) for root in ("AAA", "BBB", "CCC")]
        state.allocate([*names, "AAA", "BBB", "CCC", *(f"S{number}" for number in range(40))])
        universe = np.arange(len(state.symbols), dtype=np.int64)
        for symbols_max in (1, 5, 21, 50, 1_000):
            parts = families_of(state, universe, symbols_max)
            assert sorted(np.concatenate(parts).tolist()) == universe.tolist()
            home = {one: at for at, part in enumerate(parts) for one in part.tolist()}
            for part in parts:
                assert (np.diff(part) > 0).all()
                assert {home[state.underlying_id(one)] for one in part.tolist()} == {home[int(part[0])]}
                assert len(part) <= symbols_max or len({state.underlying_id(one) for one in part.tolist()}) == 1
        assert len(families_of(state, universe, 1_000)) == 1
        assert families_of(state, universe[:0], 5) == []
        assert absent_symbols(state, "2013-10-07", universe[:0]) == []
