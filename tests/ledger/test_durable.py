"""Waiting for the disk: nothing is called durable before its group was synced, in order, and what failed is said."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.columns import Column
from ledger.errors import StateFull, StateReadOnly
from ledger.files import System
from ledger.state import State, open_state
from m17d.durability import when_durable
from m17d.envelopes import Piece, Rest
from m17d.replies import PingReply
from tests.ledger.states import first_minute, put


class HeldSystem(System):
    """Syncs wait while it is held, and fail with an errno where it is given one."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.fault = 0
        self.synced: list[str] = []

    def attempt(self, call: str, *arguments: Any) -> Any:
        """One system call."""
        if call == "fdatasync":
            self.free.wait(30)
            if self.fault:
                raise OSError(self.fault, "injected")
            self.synced.append(Path(f"/proc/self/fd/{arguments[0]}").readlink().name)
        return super().attempt(call, *arguments)


@pytest.fixture
def held() -> HeldSystem:
    """Free at first."""
    return HeldSystem()


@pytest.fixture
def held_state(directory: Path, held: HeldSystem) -> Iterator[State]:
    """A state with some cells, all on disk."""
    with open_state(directory, flush_interval_s=3600, system=held) as state:
        put(state, Column.TRADE_REF, [0, 1], [first_minute(state)] * 2, 1)
        state.make_durable()
        yield state


def test_returns_when_records_and_rows_are_synced_in_that_order(held_state: State, held: HeldSystem) -> None:
    """The interval is an hour, so it was the wait that brought them to disk."""
    held.synced.clear()
    put(held_state, Column.TRADE_REF, [2], [first_minute(held_state)], 2)
    held_state.make_durable(30)
    assert held.synced.index("trade.map") < held.synced.index("2013-10-07.rows")


def test_disk_that_does_not_answer_is_said_in_time(held_state: State, held: HeldSystem) -> None:
    """And what was written is durable once it does."""
    put(held_state, Column.TRADE_REF, [2], [first_minute(held_state)], 2)
    held.free.clear()
    with pytest.raises(TimeoutError):
        held_state.make_durable(0.05)
    held.free.set()
    held_state.make_durable(30)


def test_full_disk_is_said_and_tried_again(directory: Path, held: HeldSystem) -> None:
    """``StateFull`` names the call; with room again the same wait succeeds."""
    with open_state(directory, flush_interval_s=0.01, system=held) as state:
        put(state, Column.TRADE_REF, [0], [first_minute(state)], 2)
        held.fault = errno.ENOSPC
        with pytest.raises(StateFull, match="fdatasync"):
            state.make_durable(0.5)
        held.fault = 0
        state.make_durable(30)


def test_failed_sync_is_said_and_closes_the_state_for_writing(held_state: State, held: HeldSystem) -> None:
    """After EIO nobody may believe a later sync; reads go on."""
    first = first_minute(held_state)
    put(held_state, Column.TRADE_REF, [2], [first], 2)
    held.fault = errno.EIO
    with pytest.raises(StateReadOnly, match="fdatasync"):
        held_state.make_durable(30)
    held.fault = 0
    with pytest.raises(StateReadOnly):
        held_state.make_durable(30)
    assert held_state.trade.slot(Column.TRADE_REF, 0, first).version == 1


def test_reader_has_nothing_to_make_durable(directory: Path) -> None:
    """It is refused, not waited for."""
    with open_state(directory, readonly=True) as state, pytest.raises(StateReadOnly):
        state.make_durable()


def test_answer_is_held_back_until_its_effect_is_on_disk(held_state: State, held: HeldSystem) -> None:
    """The daemon's loop goes on meanwhile; then the reply leaves, and says that it is durable."""
    held.free.clear()
    done: list[int] = []

    def do() -> PingReply:
        put(held_state, Column.TRADE_REF, [2], [first_minute(held_state)], 2)
        done.append(len(held.synced))
        return PingReply(now_ns=1)

    answer = when_durable(held_state, do)
    assert done == []
    assert [isinstance(next(answer), Rest) for _ in range(20)] == [True] * 20
    held.free.set()
    *_, last = answer
    assert last == Piece(PingReply(now_ns=1), None, durable=True)
    assert "2013-10-07.rows" in held.synced[done[0] :]
