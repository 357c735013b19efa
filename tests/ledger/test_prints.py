"""The print of derived cells: what it covers, what it leaves out, and windows as differences of prefix sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.columns import Flag, Status
from ledger.content import text_hash, text_hashes
from ledger.layout import SLOT
from ledger.prints import (
    Term,
    cell_prints,
    counted,
    recipe_hash,
    recipe_print,
    recipe_prints,
    set_values,
    window_prints,
)

RECIPE = recipe_hash("nbbo", 1, {"policy": "nearest-side", "staleness_ms": 1000})
RECIPES = np.array([[RECIPE]], dtype=np.uint64)
YES = np.ones((1, 1), dtype=bool)


def one(role: str, offset: int, checksum: int, counts: bool = True) -> Term:
    """A term of a single cell."""
    return Term(role, offset, np.array([[checksum]], dtype=np.uint32), np.array([[counts]]))


def print_of(*terms: Term, recipes: np.ndarray = RECIPES) -> int:
    """The print of one cell."""
    return int(cell_prints(recipes, terms, YES)[0, 0])


def test_recipe_depends_on_every_part_and_not_on_the_order_of_settings() -> None:
    """Engine, version, a name, a value and its type count; the order does not."""
    base = recipe_hash("nbbo", 1, {"a": 1, "b": 2.5})
    assert base == recipe_hash("nbbo", 1, {"b": 2.5, "a": 1})
    others = [
        recipe_hash("greeks", 1, {"a": 1, "b": 2.5}),
        recipe_hash("nbbo", 2, {"a": 1, "b": 2.5}),
        recipe_hash("nbbo", 1, {"a": 1, "c": 2.5}),
        recipe_hash("nbbo", 1, {"a": True, "b": 2.5}),
        recipe_hash("nbbo", 1, {"a": 1, "b": np.nextafter(2.5, 3).item()}),
    ]
    assert len({base, *others}) == 6


def test_print_depends_on_role_offset_checksum_and_recipe() -> None:
    """Swapping checksums between roles or offsets, or changing one of anything, gives another print."""
    base = print_of(one("trade", 0, 7), one("quote", 0, 8), one("quote", -1, 9))
    others = [
        print_of(one("trade", 0, 8), one("quote", 0, 7), one("quote", -1, 9)),
        print_of(one("trade", 0, 7), one("quote", 0, 9), one("quote", -1, 8)),
        print_of(one("trade", 0, 7), one("quote", 0, 8), one("quote", -1, 9, counts=False)),
        print_of(one("trade", 0, 7), one("quote", 0, 8), one("quote", -1, 10)),
        print_of(one("trade", 0, 7), one("quote", 0, 8), one("quote", -1, 9), recipes=RECIPES + np.uint64(1)),
    ]
    assert base not in others
    assert len(set(others)) == 5
    assert base == print_of(one("quote", -1, 9), one("trade", 0, 7), one("quote", 0, 8))


def test_cell_without_trades_has_the_print_of_the_recipe_alone() -> None:
    """Quotes around a minute without trades change nothing."""
    without = np.zeros((1, 1), dtype=bool)
    for checksum in (1, 2):
        prints = cell_prints(RECIPES, [one("trade", 0, 5, False), one("quote", 0, checksum)], without)
        assert int(prints[0, 0]) == recipe_print(RECIPE)
    assert recipe_prints(RECIPES[0]).tolist() == [recipe_print(RECIPE)]
    assert recipe_print(RECIPE) not in (0, print_of(one("trade", 0, 5)))


def test_counted_takes_rows_and_the_lead_of_a_first_window() -> None:
    """No-rows cells count only where their payload is not the shared record."""
    slots = np.zeros(5, dtype=SLOT)
    slots["status"] = [Status.FILLED, Status.FILLED, Status.FILLED, Status.CLEARED, Status.EMPTY]
    slots["flags"] = [0, Flag.NO_ROWS, Flag.NO_ROWS | Flag.SUSPECT, 0, 0]
    slots["payload_id"] = [9, 1, 44, 0, 0]
    assert counted(slots).tolist() == [True, False, True, False, False]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_window_prints_are_those_of_the_sets_they_contain(data: st.DataObject) -> None:
    """Two windows have equal prints exactly where the same cells with the same checksums lie in them."""
    minutes, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    cells = data.draw(st.lists(st.integers(0, 3), min_size=2 * minutes, max_size=2 * minutes))
    checksum = np.array(cells, dtype=np.uint32).reshape(2, minutes)
    names = text_hashes(["A", "O:A"])
    sums = set_values("trade", names, checksum, checksum > 0).sum(axis=0, dtype=np.uint64)
    prints = window_prints(RECIPE, sums, np.asarray((checksum > 0).any(axis=0)), width)
    for start in range(minutes):
        inside = np.zeros_like(sums)
        inside[0] = sums[start : start + width].sum(dtype=np.uint64)
        alone = window_prints(RECIPE, inside, np.full(minutes, bool(checksum[:, start : start + width].any())), 1)
        assert prints[start] == alone[0]
    quiet = np.array([not checksum[:, start : start + width].any() for start in range(minutes)])
    assert ((prints == recipe_print(RECIPE)) == quiet).all()


def test_set_values_tell_symbols_minutes_and_roles_apart() -> None:
    """The same checksum in another place gives another value, and ids play no part."""
    checksum, counts = np.full((2, 3), 5, dtype=np.uint32), np.ones((2, 3), dtype=bool)
    names = text_hashes(["A", "B"])
    values = set_values("trade", names, checksum, counts)
    other = set_values("greeks", names, checksum, counts)
    assert len(set(values.reshape(-1).tolist()) | set(other.reshape(-1).tolist())) == 12
    assert (set_values("trade", names[::-1].copy(), checksum, counts) == values[::-1]).all()
    assert names[0] == text_hash("A")


def test_window_print_covers_the_minute_before_where_asked() -> None:
    """Only the window whose minute before changes gets another print, and none without trades."""
    sums = np.arange(1, 7, dtype=np.uint64)
    traded = np.array([True, True, True, True, False, False])
    before = np.zeros(6, dtype=np.uint64)
    base = window_prints(RECIPE, sums, traded, 2, before)
    before[3] = before[5] = 99
    changed = np.flatnonzero(window_prints(RECIPE, sums, traded, 2, before) != base)
    assert changed.tolist() == [3]


@pytest.mark.parametrize("symbols", [100])
def test_prints_are_never_zero_and_rarely_equal(symbols: int) -> None:
    """39,000 different cells have 39,000 different prints, up to one birthday."""
    checksum = np.arange(symbols * 390, dtype=np.uint32).reshape(symbols, 390)
    everywhere = np.ones(checksum.shape, dtype=bool)
    prints = cell_prints(RECIPES, [Term("trade", 0, checksum, everywhere)], everywhere)
    assert prints.all()
    assert len(np.unique(prints)) >= prints.size - 1
