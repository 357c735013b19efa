"""The engine ``anomaly``: what looks wrong is found, raised once as a region of low priority, and changes no cell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ledger
from engines.anomaly.findings import UNKNOWN, jumps, old_curves, silences
from ledger.columns import Column
from ledger.digests import session_digest
from ledger.state import State
from tests.m17d import flat_files

SESSION = "2013-05-06"
"""A Monday: Friday's curve holds."""
OPTION = "O:AAA130518C00010000"
SILENT, JUMP = 5, 20
MINUTE_NS = 60 * 10**9


def test_a_silence_lies_between_two_busy_minutes() -> None:
    """Known to be empty, and both neighbours busy: not at the ends, not where a neighbour is quiet or not filled."""
    counts = np.array([0, 30, 0, 30, 0, 10, 30, UNKNOWN, 30, 0, UNKNOWN, 30, 0])
    assert silences(counts, 20).tolist() == [2]
    assert silences(counts, 10).tolist() == [2, 4]
    assert silences(np.array([], dtype=np.int64), 1).tolist() == []


def test_a_jump_is_far_above_the_minutes_around_it() -> None:
    """More than the factor times the middle of the half hour; small numbers and lonely minutes are none."""
    counts = np.full(60, 10)
    counts[[3, 30, 59]] = 201, 200, 5000
    assert jumps(counts, 20, 100).tolist() == [3, 59]
    assert jumps(counts, 20, 1000).tolist() == [59]
    counts[40:] = UNKNOWN
    counts[55] = 5000
    assert jumps(counts, 20, 100).tolist() == [3], "nothing around it to compare with"


def test_a_curve_is_old_by_its_age_at_the_open() -> None:
    """Unknown curves are no old ones."""
    day = 86_400 * 10**9
    assert old_curves(np.array([0, 10 * day, 8 * day]), 14 * day, 4.5).tolist() == [2]


def trades(per_minute: dict[int, int]) -> list[str]:
    """Lines of one stock with so many trades in some minutes."""
    start, lines = flat_files.open_ns(SESSION), [flat_files.HEADER]
    for minute, number in sorted(per_minute.items()):
        for at in range(number):
            ts = start + minute * MINUTE_NS + at * 1_000_000
            lines.append(f"AAA,,,11,{len(lines)},{ts},10.00,{len(lines)},{ts},100,1,,0")
    return lines


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with a silence, a jump and an old curve, run twice."""
    root = tmp_path_factory.mktemp("anomaly")
    per_minute = dict.fromkeys(range(40), 30) | {SILENT: 0, JUMP: 1200}
    flat_files.write(root, SESSION, flat_files.packed(trades(per_minute)))
    lines = [
        "ticker,conditions,correction,exchange,price,sip_timestamp,size",
        f"{OPTION},,,314,1.5,{flat_files.open_ns(SESSION) + 5},2",
    ]
    flat_files.write(root, SESSION, flat_files.packed(lines), "us_options_opra/trades_v1")
    (root / "yields.json").write_text(
        json.dumps({"count": 1, "results": [{"date": "2013-04-30", "yield_10_year": 1.0}]})
    )
    path = flat_files.write_config(root, [SESSION])
    plain = path.read_text() + '[engines.treasury]\nsource = "yields.json"\n'
    path.write_text(plain)
    assert flat_files.run(root).returncode == 0
    with ledger.open(root / "ledger.state", readonly=True) as state:
        (root / "digest").write_text(digest(state))
    path.write_text(plain + "[engines.anomaly]\n")
    done = flat_files.run(root)
    assert done.returncode == 0, done.stderr
    assert "silence of AAA at 2013-05-06T09:35, region" in done.stderr
    return root


def digest(state: State) -> str:
    """The digest of the session's content."""
    *_, last = session_digest(state, SESSION)
    assert last is not None
    return last[0]


def test_what_looks_wrong_is_a_region_of_low_priority(root: Path) -> None:
    """One each, over the right minutes and column; the whole session of the old curve for each symbol that has one."""
    start = flat_files.open_ns(SESSION)
    with ledger.open(root / "ledger.state", readonly=True) as state:
        regions = state.regions.list()
        found = {(one.symbol, one.cause, one.columns[0]): (one.start_ts - start, one.end_ts - start) for one in regions}
        assert {(one.operator, one.priority) for one in regions} == {("anomaly", 1)}
    assert found == {
        ("AAA", "silence", Column.TRADE_REF): (SILENT * MINUTE_NS, (SILENT + 1) * MINUTE_NS),
        ("AAA", "jump", Column.TRADE_REF): (JUMP * MINUTE_NS, (JUMP + 1) * MINUTE_NS),
        ("AAA", "old_curve", Column.RF_RATE_REF): (0, 390 * MINUTE_NS),
        ("O:AAA", "old_curve", Column.RF_RATE_REF): (0, 390 * MINUTE_NS),
    }


def test_it_raises_nothing_twice_and_changes_no_cell(root: Path) -> None:
    """A further run finds the same and adds nothing; the content is what it was before the engine was there."""
    before = (root / "ledger.state" / "regions").stat().st_size
    assert flat_files.run(root).returncode == 0
    with ledger.open(root / "ledger.state", readonly=True) as state:
        assert len(state.regions.list()) == 4
        assert digest(state) == (root / "digest").read_text()
    assert (root / "ledger.state" / "regions").stat().st_size <= before


def test_adding_the_engine_took_its_folder_and_a_table_alone() -> None:
    """No other file of the program names it."""
    tree = Path(__file__).resolve().parents[3]
    rooms = (tree / room for room in ("ledger", "engines", "m17d", "m17ctl", "scripts"))
    named = [
        path
        for room in rooms
        for path in room.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "engines/anomaly" not in str(path)
        if b"engines.anomaly" in path.read_bytes() or b'"anomaly"' in path.read_bytes()
    ]
    assert named == []
