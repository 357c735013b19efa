"""Turns: the longest steps by name over a minute or two, and how many were slow."""

from __future__ import annotations

import pytest

from m17d.turns import SLOW_S, Turns


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_longest_of_each_name_comes_first_and_is_forgotten_in_time() -> None:
    """What was long stays for a minute at least, and not for three."""
    clock = Clock()
    turns = Turns(clock)
    turns.took("plan nbbo", 0.010)
    turns.took("look quote", 0.040)
    turns.took("plan nbbo", 0.005)
    assert list(turns.longest().items()) == [("look quote", 0.040), ("plan nbbo", 0.010)]
    clock.now_s += 61
    assert turns.longest()["look quote"] == 0.040
    turns.took("plan nbbo", 0.020)
    assert turns.longest()["plan nbbo"] == 0.020
    clock.now_s += 61
    assert turns.longest() == {"plan nbbo": 0.020}
    clock.now_s += 600
    assert turns.longest() == {}


def test_a_step_that_raises_is_timed_and_slow_ones_are_counted() -> None:
    """Steps as long as the bound are not slow, longer ones are."""
    clock = Clock()
    turns = Turns(clock)

    def fail() -> None:
        with turns.step("settle"):
            clock.now_s += 2 * SLOW_S
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    turns.took("settle", SLOW_S)
    assert turns.slow == {"settle": 1}
    assert turns.longest()["settle"] == pytest.approx(2 * SLOW_S)
