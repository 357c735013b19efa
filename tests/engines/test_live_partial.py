"""Windows before a symbol was covered are partial: of a ticker, of a glob, of a chain whose contracts a glob may name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.feeds.feed_messages import SUBSCRIBED_LATER, Gap
from engines.live_partial import PartialWindows
from engines.live_session import LiveSession
from engines.live_source import LiveSource
from engines.live_topics import Covered, Wish
from ledger.columns import WINDOW_NS, Dataset, Flag, OptionRows
from ledger.state import State
from tests.engines.planning import made_state

SESSION = "2013-05-01"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A state of its own."""
    made, _ = made_state(tmp_path / "ledger.state")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("ticker", "symbols", "others"),
    [
        ("AIG", ("AIG",), ("AIGX", "O:AIG")),
        ("A*", ("AIG", "A"), ("BAC", "O:AIG")),
        ("[AB]*", ("AIG", "BAC"), ("C",)),
        ("O:TWX140621C00070000", ("O:TWX",), ("O:TW", "TWX")),
        ("O:TWX*", ("O:TWX", "O:TWX140621C00070000"), ("O:TW1", "O:AIG", "TWX")),
        ("O:TWX1406*", ("O:TWX", "O:TWX140621C00070000"), ("O:TWX140721C00070000", "O:AIG")),
        ("O:*C00070000", ("O:TWX", "O:TWX140621C00070000"), ("TWX",)),
        ("*", ("AIG", "O:TWX"), ()),
    ],
)
def test_whose_windows_a_gap_concerns(ticker: str, symbols: tuple[str, ...], others: tuple[str, ...]) -> None:
    """A chain may hold any contract that a glob can name: it is partial where nobody can say that it is not."""
    partial, mask = PartialWindows.of_minutes(3), np.array([True, True, False])
    partial.add(ticker, mask, OptionRows.CHAIN)

    def minutes(symbol: str) -> list[bool]:
        own = partial.own(symbol)
        found: list[bool] = (partial.everywhere if own is None else own | partial.everywhere).tolist()
        return found

    for symbol in symbols:
        assert minutes(symbol) == mask.tolist(), symbol
    for symbol in others:
        assert not any(minutes(symbol)), symbol


def test_a_symbol_that_is_covered_later_has_partial_windows_before_and_never_no_rows(state: State) -> None:
    """A wildcard whose globs grow at 10:00: what came before of the new symbols was thrown away."""
    ids = state.allocate(["AIG", "BAC"]).ids
    source = LiveSource(state, Dataset.STOCK_TRADES, SESSION, name="ws://x/stocks", globs=["A*"], spelled=list(ids))
    source.put()
    session = LiveSession(state, Dataset.STOCK_TRADES, SESSION, source)
    covered = Covered(Wish(("*",), ("A*", "B*")), state.option_rows, of_options=False)
    ends_ns = session.window.open_ns + 30 * WINDOW_NS + 2 * 10**9
    session.take_gap(Gap(0, None, SUBSCRIBED_LATER, ("T.B*",)))
    session.take_gap(Gap(0, ends_ns, SUBSCRIBED_LATER, ("T.B*",)))
    cells = session.without_rows(covered.mask(state), 60, state.option_rows)
    assert cells is not None
    flags = {name: cells.flags[cells.symbol_ids == one] for name, one in zip(("AIG", "BAC"), ids, strict=True)}
    assert len(flags["AIG"]) == len(flags["BAC"]) == 60
    assert not flags["AIG"].any()
    assert flags["BAC"].tolist() == [Flag.PARTIAL] * 31 + [0] * 29
