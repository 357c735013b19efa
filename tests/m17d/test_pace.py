"""How far an engine is, and what is left at the speed it had so far."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from m17d.pace import Pace, Progress, RangePaces


def engine(**facts: Any) -> Any:
    """An engine of which only the backlog is known, and the cells left where it derives."""
    return SimpleNamespace(backlog=lambda: facts["backlog"], cells_left=lambda: facts["left"], facts=facts)


def test_cells_of_a_derived_engine_count_from_the_first_task_of_the_stretch() -> None:
    """What was done before does not; twice the time for twice the rest."""
    one = engine(backlog=1, left=900)
    pace = Pace(one)
    pace._deriving = one
    assert pace.progress(0.0, 5_000, 7, []) is None
    pace.began(10.0, 5_000, 7)
    assert pace.progress(10.0, 5_000, 7, [0.0]) == Progress(0, 900, "cells", None)
    one.facts["left"] = 600
    pace.began(11.0, 5_100, 8)
    assert pace.progress(20.0, 5_300, 9, [0.0]) == Progress(300, 900, "cells", 20.0)


def test_the_first_few_cells_promise_nothing_until_some_time_has_passed() -> None:
    """A thousandth within a second would say a quarter of an hour of what takes one minute."""
    one = engine(backlog=1, left=9_990)
    pace = Pace(one)
    pace._deriving = one
    pace.began(0.0, 0, 0)
    assert pace.progress(1.0, 10, 0, [0.0]) == Progress(10, 10_000, "cells", None)
    assert pace.progress(30.0, 10, 0, [0.0]) == Progress(10, 10_000, "cells", 29_970.0)
    one.facts["left"] = 9_900
    assert pace.progress(1.0, 100, 0, [0.0]) == Progress(100, 10_000, "cells", 99.0)


def test_tasks_of_an_engine_that_knows_no_cells_count_by_their_shares() -> None:
    """Two files at work, a half and a tenth read; one behind them; one done."""
    one = engine(backlog=3, left=0)
    pace = Pace(one)
    pace.began(0.0, 0, 4)
    found = pace.progress(16.0, 0, 5, [0.5, 0.1])
    assert found == Progress(1, 4, "tasks", 24.0)


def test_a_stretch_ends_when_nothing_is_left() -> None:
    """Not while a task is at work, nor while more is known."""
    one = engine(backlog=2, left=0)
    pace = Pace(one)
    pace.began(0.0, 0, 0)
    pace.ended(1)
    pace.ended(0)
    assert pace.progress(1.0, 0, 1, []) is not None
    one.facts["backlog"] = 0
    pace.ended(0)
    assert pace.progress(1.0, 0, 2, []) is None


def test_a_range_shrinks_at_its_own_speed_since_it_was_first_asked_about() -> None:
    """Nothing is said before something was done; more left, or long silence, begins anew; each range has its own clock."""
    paces = RangePaces()
    assert paces.eta_s("a", 1_000, 10.0) is None
    assert paces.eta_s("b", 50, 11.0) is None
    assert paces.eta_s("a", 750, 15.0) == 15.0
    assert paces.eta_s("a", 250, 20.0) == pytest.approx(10.0 / 750 * 250, abs=0.05)
    assert paces.eta_s("b", 50, 21.0) is None
    assert paces.eta_s("a", 2_000, 22.0) is None
    assert paces.eta_s("a", 1_000, 32.0) == 10.0
    assert paces.eta_s("a", 900, 132.0) is None
    assert paces.eta_s("a", 0, 133.0) is None
    assert paces.eta_s("a", 800, 134.0) is None
