"""Rows: what a cell becomes, by the scalar path, the block path and the rectangle path alike."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ledger.columns import Column, Flag, LedgerKind, PayloadKind, Source, Status
from ledger.errors import (
    MinuteOutOfSession,
    PayloadKindNotAllowed,
    RankConflict,
    StateReadOnly,
    UnknownSymbol,
    VersionConflict,
)
from ledger.files import System
from ledger.rows import BrokenSlot, Outcome, SessionPlace, SessionRows

PLACE = SessionPlace(2013, 192, "2013-10-07", 1_381_152_600_000_000_000, 390)
SHORT = SessionPlace(2013, 230, "2013-11-29", 1_385_735_400_000_000_000, 210)
TRADE = Column.TRADE_REF
KIND = PayloadKind.TRADE


def opened(path: Path, place: SessionPlace = PLACE, *, readonly: bool = False) -> SessionRows:
    """A trade session of its own."""
    return SessionRows(System(), path / f"{place.date}.rows", LedgerKind.TRADE, place, readonly=readonly)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[SessionRows]:
    """An empty session; planes and counts are compared with a second reading when the test is over."""
    made = opened(tmp_path)
    yield made
    status, flags = made.status.copy(), made.flags.copy()
    counts, flag_counts = made.counts_status.copy(), made.counts_flags.copy()
    made.recount()
    assert (made.counts_status == counts).all()
    assert (made.counts_flags == flag_counts).all()
    made.close()
    again = opened(tmp_path, readonly=True)
    assert (again.status == status).all()
    assert (again.flags == flags).all()
    assert again.clean
    assert not again.broken
    again.close()


def one(symbol: int, minute: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([symbol]), np.array([minute])


def test_one_cell_set_is_read_back(rows: SessionRows) -> None:
    """Every field, the version counted from one, the row's times from the calendar."""
    version = rows.set_one(TRADE, 3, 17, KIND, 9, 1234, inputs=5, source=Source.REST, flags=Flag.PARTIAL, now_ns=50)

    found = rows.row(3, 17)
    slot = found.slots[TRADE]
    assert version == slot.version == 1
    assert (slot.status, slot.payload_id, slot.checksum, slot.inputs) == (Status.FILLED, 9, 1234, 5)
    assert (slot.source, slot.flags, slot.last_updated_ns) == (Source.REST, Flag.PARTIAL, 50)
    assert (found.minute_idx, found.start_ts) == (192 * 390 + 17, PLACE.open_ns + 17 * 60 * 10**9)


def test_scalar_block_and_rectangle_paths_leave_the_same_bytes(tmp_path: Path) -> None:
    """The same writes in the same order, three ways, give one file."""
    generator = np.random.default_rng(5)
    files = []
    for way in ("scalar", "block", "rectangle"):
        generator = np.random.default_rng(5)
        (tmp_path / way).mkdir()
        made = opened(tmp_path / way)
        for step in range(12):
            low, high = sorted(generator.integers(0, 6, 2).tolist())
            start, end = sorted(generator.integers(0, 390, 2).tolist())
            symbols, minutes = range(low, high + 1), range(start, end + 1)
            cells = [(symbol, minute) for symbol in symbols for minute in minutes]
            ids = generator.integers(1, 9, len(cells), dtype=np.uint32)
            sums = generator.integers(0, 3, len(cells), dtype=np.uint32)
            expected = generator.integers(0, 4, len(cells), dtype=np.uint32) if step % 3 == 0 else None
            flags = generator.integers(0, 4, len(cells), dtype=np.uint8)
            source = Source(int(generator.integers(0, 4)))
            order = generator.permutation(len(cells)) if step % 2 else np.arange(len(cells))
            if way == "scalar":
                for at, (symbol, minute) in enumerate(cells):
                    with suppress(VersionConflict, RankConflict):
                        made.set_one(
                            TRADE,
                            symbol,
                            minute,
                            KIND,
                            int(ids[at]),
                            int(sums[at]),
                            source=source,
                            flags=int(flags[at]),
                            expected_version=None if expected is None else int(expected[at]),
                            now_ns=step,
                        )
            elif way == "block":
                at_symbols, at_minutes = np.array(cells).T
                made.set_many(
                    TRADE,
                    at_symbols[order],
                    at_minutes[order],
                    ids[order],
                    sums[order],
                    source=source,
                    flags=flags[order],
                    expected_versions=None if expected is None else expected[order],
                    now_ns=step,
                )
            else:
                shape = (len(symbols), len(minutes))
                made.set_block(
                    TRADE,
                    symbols,
                    minutes,
                    ids.reshape(shape),
                    sums.reshape(shape),
                    source=source,
                    flags=flags.reshape(shape),
                    expected_versions=None if expected is None else expected.reshape(shape),
                    now_ns=step,
                )
        made.close()
        files.append(opened(tmp_path / way, readonly=True))
    blocks = [made.read_blocks(0, 6)[0] for made in files]
    reserved = np.logical_and.reduce([made.reserved[:6] for made in files])

    assert reserved.any()
    for other in blocks[1:]:
        assert (other[reserved] == blocks[0][reserved]).all()
    for made in files:
        made.close()


def test_a_rectangle_and_the_same_cells_scattered_are_taken_and_given_back_alike(tmp_path: Path) -> None:
    """Read, marked, cleared and given back: the same bytes, planes and counts, whatever the order of the cells."""
    symbol_ids, minutes = np.repeat(np.arange(3, 8), 300), np.tile(np.arange(20, 320), 5)
    files, read = [], []
    for way in ("rectangle", "scattered"):
        (tmp_path / way).mkdir()
        made = opened(tmp_path / way)
        order = np.arange(len(minutes)) if way == "rectangle" else np.random.default_rng(5).permutation(len(minutes))
        ids, when = symbol_ids[order], minutes[order]
        made.set_many(TRADE, symbol_ids, minutes, 7, np.arange(len(minutes)).astype(np.uint32), now_ns=1)
        made.set_one(TRADE, 4, 99, KIND, 8, 5, now_ns=2)
        made.mark_pending(TRADE, np.array([9]), np.array([0]), now_ns=2)
        before = made.slots(TRADE, ids, when)
        assert made.versions(TRADE, ids, when).tolist() == before["version"].tolist()
        assert made.flag_many(TRADE, ids, when, add=Flag.WANTED, now_ns=3).all()
        assert made.clear_many(TRADE, ids, when, now_ns=4).all()
        expected = before["version"] + 2
        expected[before["payload_id"] == 8] += 1
        assert (made.restore_many(TRADE, ids, when, before, expected, now_ns=5) == (before["payload_id"] == 7)).all()
        counted = made.counts_status.copy(), made.counts_flags.copy()
        made.recount()
        assert (made.counts_status == counted[0]).all()
        assert (made.counts_flags == counted[1]).all()
        read.append(np.sort(before, order=["checksum", "version"]).tobytes())
        made.close()
        files.append(opened(tmp_path / way, readonly=True))
    first, second = (made.read_blocks(0, 10)[0][made.reserved[:10]] for made in files)

    assert (first == second).all()
    assert read[0] == read[1]
    for made in files:
        made.close()


def test_a_rectangle_that_leaves_the_session_is_refused_like_any_cells(rows: SessionRows) -> None:
    """Slices would be cut at the end or counted from it; a cell that does not exist is an error instead."""
    symbol_ids = np.repeat(np.arange(2), 100)
    for minutes in (np.tile(np.arange(300, 400), 2), np.tile(np.arange(-1, 99), 2)):
        with pytest.raises(MinuteOutOfSession):
            rows.clear_many(TRADE, symbol_ids, minutes, now_ns=1)


def test_compare_and_swap_refuses_another_version(rows: SessionRows) -> None:
    """By one and by many, the cell stays as it was."""
    rows.set_one(TRADE, 0, 0, KIND, 2, 1, now_ns=1)

    with pytest.raises(VersionConflict) as caught:
        rows.set_one(TRADE, 0, 0, KIND, 3, 2, expected_version=0, now_ns=2)
    outcome = rows.set_many(TRADE, *one(0, 0), 3, 2, expected_versions=np.array([7]), now_ns=2)

    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert outcome.tolist() == [Outcome.CONFLICT]
    assert rows.slot(TRADE, 0, 0).payload_id == 2


def test_a_lower_source_never_replaces_a_higher_one(rows: SessionRows) -> None:
    """A websocket pass leaves a flat file's cell alone; a cleared cell takes it."""
    rows.set_one(TRADE, 0, 0, KIND, 2, 1, source=Source.FLAT_FILE, now_ns=1)

    with pytest.raises(RankConflict):
        rows.set_one(TRADE, 0, 0, KIND, 3, 2, source=Source.WEBSOCKET, now_ns=2)
    assert rows.set_many(TRADE, *one(0, 0), 3, 2, source=Source.REST, now_ns=2).tolist() == [Outcome.OUTRANKED]
    rows.clear_many(TRADE, *one(0, 0), now_ns=3)
    assert rows.set_one(TRADE, 0, 0, KIND, 3, 2, source=Source.WEBSOCKET, now_ns=4) == 3


def test_equal_content_changes_nothing_but_flags_and_source(rows: SessionRows) -> None:
    """The old payload stays, wanted goes, and the version moves only where something did."""
    rows.set_one(TRADE, 0, 0, KIND, 2, 1, source=Source.REST, now_ns=1)
    assert rows.set_one(TRADE, 0, 0, KIND, 9, 1, source=Source.REST, now_ns=2) == 1
    rows.flag_many(TRADE, *one(0, 0), add=Flag.WANTED, now_ns=3)

    version = rows.set_one(TRADE, 0, 0, KIND, 9, 1, source=Source.FLAT_FILE, now_ns=4)

    slot = rows.slot(TRADE, 0, 0)
    assert (version, slot.payload_id, slot.source, slot.flags) == (3, 2, Source.FLAT_FILE, Flag.NONE)


def test_clear_zeroes_the_payload_and_counts_up(rows: SessionRows) -> None:
    """Empty cells stay empty, cleared ones are not cleared again."""
    rows.set_one(TRADE, 0, 0, KIND, 2, 77, inputs=3, source=Source.REST, flags=Flag.SUSPECT, now_ns=1)

    cleared = rows.clear_many(TRADE, np.array([0, 0]), np.array([0, 1]), now_ns=2)

    slot = rows.slot(TRADE, 0, 0)
    assert cleared.tolist() == [True, False]
    assert (slot.status, slot.version, slot.payload_id, slot.checksum, slot.inputs) == (Status.CLEARED, 2, 0, 0, 0)
    assert (slot.flags, slot.source, slot.payload_type) == (Flag.NONE, Source.NONE, PayloadKind.NONE)
    assert not rows.clear_many(TRADE, *one(0, 0), now_ns=3).any()


def test_pending_is_for_cells_without_payload_and_goes_back_where_it_came_from(rows: SessionRows) -> None:
    """Empty to empty, cleared to cleared, filled never; the version stays, and a clear of it counts up."""
    rows.set_one(TRADE, 0, 1, KIND, 2, 1, now_ns=1)
    rows.set_one(TRADE, 0, 2, KIND, 2, 1, now_ns=1)
    rows.clear_many(TRADE, *one(0, 2), now_ns=2)
    symbols, minutes = np.zeros(4, dtype=int), np.arange(4)

    assert rows.mark_pending(TRADE, symbols, minutes, now_ns=3).tolist() == [True, False, True, True]
    assert rows.clear_many(TRADE, *one(0, 3), now_ns=4).all()
    assert rows.release_pending(TRADE, symbols, minutes, now_ns=5).tolist() == [True, False, True, False]
    found = [rows.slot(TRADE, 0, minute) for minute in range(4)]
    assert [slot.status for slot in found] == [Status.EMPTY, Status.FILLED, Status.CLEARED, Status.CLEARED]
    assert [slot.version for slot in found] == [0, 1, 2, 1]


def test_undo_restores_what_nobody_wrote_since(rows: SessionRows) -> None:
    """The version counts up and does not go back; a cell written since is skipped."""
    symbols, minutes = np.zeros(2, dtype=int), np.arange(2)
    rows.set_many(TRADE, symbols, minutes, np.array([2, 3]), np.array([20, 30]), now_ns=1)
    before = rows.slots(TRADE, symbols, minutes)
    rows.clear_many(TRADE, symbols, minutes, now_ns=2)
    left = rows.slots(TRADE, symbols, minutes)["version"]
    rows.set_one(TRADE, 0, 1, KIND, 9, 90, now_ns=3)

    restored = rows.restore_many(TRADE, symbols, minutes, before, left, now_ns=4)

    assert restored.tolist() == [True, False]
    assert [rows.slot(TRADE, 0, minute).payload_id for minute in range(2)] == [2, 9]
    assert rows.slot(TRADE, 0, 0).version == 3


def test_clocks_that_jump_back_never_move_a_slot_back(rows: SessionRows) -> None:
    """last_updated_ns is at least one more than before, by every path."""
    times = []
    for now_ns in (1000, 10, 10, 2000, 5):
        rows.set_one(TRADE, 0, 0, KIND, 2, now_ns + len(times), now_ns=now_ns)
        times.append(rows.slot(TRADE, 0, 0).last_updated_ns)
    rows.clear_many(TRADE, *one(0, 0), now_ns=1)
    times.append(rows.slot(TRADE, 0, 0).last_updated_ns)

    assert times == sorted(set(times))


def test_early_closes_have_no_windows_behind_the_close(tmp_path: Path) -> None:
    """Minute 210 of a session of 210 is refused by every path; nothing is written."""
    made = opened(tmp_path, SHORT)
    with pytest.raises(MinuteOutOfSession):
        made.set_one(TRADE, 0, 210, KIND, 2, 1, now_ns=1)
    with pytest.raises(MinuteOutOfSession):
        made.set_many(TRADE, *one(0, 210), 2, 1, now_ns=1)
    with pytest.raises(MinuteOutOfSession):
        made.set_block(TRADE, range(1), range(200, 211), 2, 1, now_ns=1)
    assert not made.reserved.any()
    made.close()


@pytest.mark.parametrize("symbol_id", [-1, 10_000])
def test_symbols_beyond_the_cap_are_refused(rows: SessionRows, symbol_id: int) -> None:
    """By every path."""
    with pytest.raises(UnknownSymbol, match=str(symbol_id)):
        rows.set_one(TRADE, symbol_id, 0, KIND, 2, 1, now_ns=1)
    with pytest.raises(UnknownSymbol, match=str(symbol_id)):
        rows.set_many(TRADE, *one(symbol_id, 0), 2, 1, now_ns=1)


def test_values_that_fit_no_field_are_refused(rows: SessionRows) -> None:
    """A kind of another column, payload 0, numbers too large, cells named twice."""
    with pytest.raises(PayloadKindNotAllowed):
        rows.set_one(TRADE, 0, 0, PayloadKind.QUOTE, 2, 1, now_ns=1)
    with pytest.raises(PayloadKindNotAllowed):
        rows.set_many(TRADE, *one(0, 0), 0, 1, now_ns=1)
    with pytest.raises(ValueError, match="too large"):
        rows.set_one(TRADE, 0, 0, KIND, 2, 2**32, now_ns=1)
    with pytest.raises(ValueError, match="32 unsigned bits"):
        rows.set_many(TRADE, *one(0, 0), 2, np.array([2**32]), now_ns=1)
    with pytest.raises(ValueError, match="5 unsigned bits"):
        rows.set_many(TRADE, *one(0, 0), 2, 1, flags=32, now_ns=1)
    with pytest.raises(ValueError, match="named twice"):
        rows.set_many(TRADE, np.array([0, 0]), np.array([4, 4]), 2, 1, now_ns=1)
    with pytest.raises(ValueError, match="one each"):
        rows.set_many(TRADE, np.array([0, 0]), np.array([4, 5]), np.array([2]), 1, now_ns=1)


def test_a_broken_slot_is_never_served_and_repair_clears_it(tmp_path: Path) -> None:
    """Read by one, by row and by array; the repaired cell has a version above what stood there."""
    made = opened(tmp_path)
    made.set_one(TRADE, 2, 5, KIND, 2, 1, now_ns=1)
    made.close()
    with made.path.open("r+b") as file:
        file.seek(4096 + 2 * 65_536 + 5 * 160 + 32 + 32 + 4)
        file.write(b"\x99")

    again = opened(tmp_path)

    assert again.broken == [BrokenSlot(TRADE, 2, 5)]
    assert again.status[1, 2, 5] == Status.EMPTY
    again.repair(again.broken[0], now_ns=9)
    slot = again.slot(TRADE, 2, 5)
    assert (slot.status, slot.version) == (Status.CLEARED, 2)
    again.close()


def test_readers_write_nothing(rows: SessionRows, tmp_path: Path) -> None:
    """Every setter of a session opened for reading is refused; it sees the writer's cells at once."""
    rows.set_one(TRADE, 0, 0, KIND, 2, 1, now_ns=1)
    reader = opened(tmp_path, readonly=True)
    rows.set_one(TRADE, 0, 0, KIND, 3, 2, now_ns=2)

    assert reader.slot(TRADE, 0, 0).payload_id == 3
    with pytest.raises(StateReadOnly):
        reader.set_one(TRADE, 0, 1, KIND, 2, 1, now_ns=1)
    with pytest.raises(StateReadOnly):
        reader.set_many(TRADE, *one(0, 1), 2, 1, now_ns=1)
    with pytest.raises(StateReadOnly):
        reader.clear_many(TRADE, *one(0, 0), now_ns=1)
    reader.close()


def test_headers_that_changed_are_written_again(tmp_path: Path) -> None:
    """The calendar says what they are, so a flipped bit in one costs nothing."""
    made = opened(tmp_path)
    made.set_one(TRADE, 1, 0, KIND, 2, 1, now_ns=1)
    made.close()
    with made.path.open("r+b") as file:
        file.seek(4096 + 65_536 + 160 + 8)
        file.write(b"\xff")

    again = opened(tmp_path)
    assert again.stained == [1]
    again.wash()
    assert (again.read_blocks(1, 2)[0][0, :, :4] == again.headers(np.array([1]))[0]).all()
    again.close()


def test_ready_names_the_cells_whose_inputs_are_filled(rows: SessionRows) -> None:
    """Trade and quote filled, aggressor not: exactly those, ascending."""
    rows.set_block(TRADE, range(4), range(10), 2, 1, now_ns=1)
    rows.set_block(Column.QUOTE_REF, range(1, 4), range(5, 10), 2, 1, now_ns=1)
    rows.set_block(Column.AGGRESSOR_REF, range(2, 3), range(390), 2, 1, now_ns=1)

    found = rows.ready((TRADE, Column.QUOTE_REF), Column.AGGRESSOR_REF)

    assert found.tolist() == [symbol * 390 + minute for symbol in (1, 3) for minute in range(5, 10)]


def test_a_copy_with_holes_is_read_alike(tmp_path: Path) -> None:
    """Blocks are found by what they hold, not by what was reserved."""
    made = opened(tmp_path)
    made.set_one(TRADE, 9_999, 389, KIND, 2, 1, now_ns=1)
    made.close()
    (tmp_path / "copy").mkdir()
    shutil.copyfile(made.path, tmp_path / "copy" / made.path.name)

    again = opened(tmp_path / "copy")
    assert np.flatnonzero(again.reserved).tolist() == [9_999]
    assert again.slot(TRADE, 9_999, 389).payload_id == 2
    again.close()
