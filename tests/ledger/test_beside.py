"""A reader beside a process that writes without pause: every cell it gets is one that was written, whole and in order."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column, PayloadKind, Source, Status
from ledger.content import checksum_of, mix
from ledger.records import blank
from ledger.state import State, open_state
from tests.ledger.rich import with_rows
from tests.ledger.states import SESSION, SYMBOLS, first_minute

COLUMN = Column.TRADE_REF
CELLS = 390
SYMBOLS_AT_MOST = 150
ROUNDS_MIN = 20
SECONDS_MAX = 240.0


def write(directory: Path) -> None:
    """
    Set, clear and flag the cells of ever more symbols until told to stop; says when the first are there.

    The content of a record is a hash of its id, so that a reader can tell a cell of one write from a mixture of two.
    """
    with open_state(directory, flush_interval_s=0.01) as state:
        seq = state.calendar.session_seq(SESSION)
        rows, payloads = state.trade.session(seq), state.maps[PayloadKind.TRADE]
        minutes = np.arange(CELLS)
        for turn in range(1_000_000):
            symbol = np.full(CELLS, turn % min(4 + turn, SYMBOLS_AT_MOST))
            if int(symbol[0]) >= len(state.symbols):
                state.allocate([f"S{symbol[0]:03d}"])
            first = payloads.next_id
            records = blank(PayloadKind.TRADE, CELLS)
            records["content_hash"] = content_of(np.arange(first, first + CELLS))
            assert payloads.append(records) == first
            state.make_durable() if turn < 4 else None
            sums = checksum_of(records["content_hash"])
            ids = np.arange(first, first + CELLS)
            rows.set_many(COLUMN, symbol, minutes, ids, sums, source=Source.REST, now_ns=rows.now_ns())
            if turn % 3 == 0:
                rows.clear_many(COLUMN, symbol[::2], minutes[::2], now_ns=rows.now_ns())
            if turn == 4:
                print("writing", flush=True)


def content_of(payload_ids: np.ndarray) -> np.ndarray:
    """What the record of an id must say."""
    return mix(payload_ids.astype(np.uint64) + np.uint64(17))


@pytest.fixture
def written(directory: Path) -> Iterator[Path]:
    """A state that another process writes to all the time."""
    command = [
        sys.executable,
        "-c",
        f"import pathlib, tests.ledger.test_beside as m; m.write(pathlib.Path({str(directory)!r}))",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    yield directory
    process.kill()
    process.wait()
    process.stdout.close()


def test_cells_are_whole_and_never_go_back(written: Path) -> None:
    """Each is empty, cleared, or names the record that belongs to its checksum; versions and clocks only go up."""
    with ledger.open(written, readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        seen = np.zeros((SYMBOLS_AT_MOST, CELLS), dtype=np.uint32)
        clock = np.zeros((SYMBOLS_AT_MOST, CELLS), dtype=np.int64)
        rounds = changes = 0
        end = time.monotonic() + SECONDS_MAX
        while rounds < ROUNDS_MIN and time.monotonic() < end:
            rounds += 1
            for start in range(0, SYMBOLS_AT_MOST, 50):
                part = slice(start, start + 50)
                changes += look(state, rows.slots(COLUMN, np.arange(part.start, part.stop)), seen[part], clock[part])
            one = rows.slot(COLUMN, 0, rounds % CELLS)
            assert one.version >= seen[0, rounds % CELLS]
    assert rounds == ROUNDS_MIN
    assert changes > 10_000


def look(state: State, slots: np.ndarray, seen: np.ndarray, clock: np.ndarray) -> int:
    """Judge cells and remember their versions; how many have changed."""
    assert (slots["version"] >= seen).all()
    assert (slots["last_updated_ns"] >= clock).all()
    same = slots["version"] == seen
    assert (slots["last_updated_ns"][same] == clock[same]).all()
    filled = slots["status"] == Status.FILLED
    assert (slots["payload_id"][~filled] == 0).all()
    ids = slots["payload_id"][filled]
    assert (slots["checksum"][filled] == checksum_of(content_of(ids))).all()
    records = state.maps[PayloadKind.TRADE].get_many(ids)
    assert (records["content_hash"] == content_of(ids)).all()
    changed = int(np.count_nonzero(~same))
    seen[:], clock[:] = slots["version"], slots["last_updated_ns"]
    return changed


def test_reader_sees_symbols_and_artifacts_that_came_since(directory: Path) -> None:
    """It was opened before there were any; a scan takes them in."""
    with open_state(directory) as writer, ledger.open(directory, readonly=True) as reader:
        nothing = reader.scan("trade_ref").collect()
        assert (nothing.height, nothing.columns[:2]) == (0, ["session", "minute_idx"])
        writer.allocate(["NEW"])
        with_rows(writer, first_minute(writer))
        frame = reader.scan("trade_ref", symbols="AIG").collect()
        elsewhere = reader.scan("trade_ref", symbols="AIG", sessions=[]).collect()
        assert (elsewhere.height, elsewhere.schema) == (0, frame.schema)
        assert frame.height == 30
        assert frame["minute_idx"].n_unique() == 10
        assert reader.symbols.names() == [*SYMBOLS, "NEW"]
        reader.refresh()
        assert reader.scan("trade_ref").collect().height == 30
