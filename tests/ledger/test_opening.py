"""A session is mapped a piece at a time, and is then what it is when it is mapped at once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from ledger import sessionfile
from ledger.columns import Column, Flag, Source
from ledger.errors import DamagedFile
from ledger.layout import BLOCK_BYTES, PAGE
from ledger.state import create_state, open_state
from tests.ledger.states import copied

SESSION = "2013-10-07"
SYMBOLS = 40


@pytest.fixture
def filled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A state whose day has filled, marked, cleared and claimed cells, and one with a broken seal.

    Its cells name records that are not there, so it is no state that verifies.
    """
    monkeypatch.setattr(sessionfile, "_LOADED_AT_ONCE", 3)
    directory = tmp_path_factory.mktemp("filled") / "ledger.state"
    create_state(directory, year=2013)
    with open_state(directory) as state:
        state.allocate([f"S{number:02d}" for number in range(SYMBOLS)])
        seq = state.calendar.session_seq(SESSION)
        rows = state.trade.session(seq)
        ids = np.arange(1, SYMBOLS * 390 + 1).reshape(SYMBOLS, 390)
        rows.set_block(
            Column.TRADE_REF, range(SYMBOLS), range(390), ids, ids, source=Source.FLAT_FILE, now_ns=rows.now_ns()
        )
        some = np.arange(5), np.full(5, 17)
        rows.flag_many(Column.TRADE_REF, *some, add=Flag.WANTED, now_ns=rows.now_ns())
        rows.clear_many(Column.TRADE_REF, some[0] + 10, some[1], now_ns=rows.now_ns())
        rows.mark_pending(Column.QUOTE_REF, *some, now_ns=rows.now_ns())
        path = rows.path
    with path.open("r+b") as file:
        file.seek(PAGE + 20 * BLOCK_BYTES[rows.kind] + 32 + 32 + 8)
        file.write(b"\xff")
    return directory


def test_a_session_mapped_in_pieces_is_what_it_is_at_once(filled: Path) -> None:
    """Planes, counts, what was repaired and the bytes on disk; somebody who cannot wait takes the rest at once."""
    found = []
    for way in ("at once", "in pieces", "in pieces, then at once"):
        copy = filled.parent / way
        copied(filled, copy)
        with open_state(copy) as state:
            seq = state.calendar.session_seq(SESSION)
            pieces = 0
            while way != "at once" and not state.trade.open_some(seq, time.monotonic()):
                assert seq not in state.trade.mapped()
                assert state.is_opening
                pieces += 1
                if way != "in pieces" and pieces == 5:
                    break
            rows = state.trade.session(seq)
            assert not state.is_opening
            assert state.open_some(seq, time.monotonic())
            assert pieces == {"at once": 0, "in pieces": pieces, "in pieces, then at once": 5}[way]
            assert way != "in pieces" or pieces > SYMBOLS // 3
            repaired = [(one.seal, one.dangling, one.pending) for one in state.repairs]
            kept = (
                rows.status.tobytes(),
                rows.flags.tobytes(),
                rows.counts_status.tobytes(),
                rows.counts_flags.tobytes(),
            )
            slots = rows.slots(Column.TRADE_REF, np.arange(SYMBOLS))
            found.append((kept, repaired, slots["version"].tobytes(), slots["payload_id"].tobytes()))
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert found[0][1] == [(1, 0, 5)]


def test_a_session_that_was_mapped_in_part_is_left_as_it_is(filled: Path) -> None:
    """The state is closed in between: nothing was repaired, and nothing written."""
    path = filled / "trade" / f"{SESSION}.rows"
    before = path.read_bytes()[: PAGE + SYMBOLS * (64 << 10)]
    with open_state(filled) as state:
        seq = state.calendar.session_seq(SESSION)
        for _ in range(4):
            assert not state.trade.open_some(seq, time.monotonic())
    assert path.read_bytes()[: PAGE + SYMBOLS * (64 << 10)] == before
    with open_state(filled) as state:
        state.open_on(time.monotonic())
        assert not state.is_opening
        assert state.trade.open_some(0, time.monotonic()), "a session without a file has nothing to map"


def test_a_file_that_cannot_be_mapped_says_so_to_who_asks(filled: Path) -> None:
    """Each time, whoever asks; nothing is left half open."""
    path = filled / "trade" / f"{SESSION}.rows"
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    with open_state(filled) as state:
        seq = state.calendar.session_seq(SESSION)
        for _ in range(2):
            with pytest.raises(DamagedFile):
                state.trade.open_some(seq, time.monotonic())
            assert not state.is_opening
