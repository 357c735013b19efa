"""Damaged files through the whole daemon: each named with its reason, nothing of it filled, a repaired one picked up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column, Flag, Status
from ledger.sources import SourceState
from tests.m17d import flat_files

SESSIONS = [f"2013-{month:02d}-{day:02d}" for month in (3, 4) for day in (4, 5, 8, 9, 10, 11, 12, 15, 16, 18, 19, 22)]
SESSIONS = [day for day in SESSIONS if day not in ("2013-03-09", "2013-03-10", "2013-03-16")]
GOOD = "2013-05-01"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], str]:
    """One run over every kind of damage, a session each, and one good file; the folder, the sessions and the log."""
    root = tmp_path_factory.mktemp("damaged")
    sessions = dict(zip(flat_files.DAMAGE, SESSIONS, strict=False))
    assert len(sessions) == len(flat_files.DAMAGE)
    for kind, session in sessions.items():
        flat_files.write(root, session, flat_files.DAMAGE[kind](session))
    flat_files.write(root, GOOD, flat_files.packed(flat_files.good_lines(GOOD)))
    flat_files.write_config(root, [*sessions.values(), GOOD])
    done = flat_files.run(root)
    assert done.returncode == 1, done.stdout + done.stderr
    return root, sessions, done.stderr


@pytest.mark.parametrize("kind", list(flat_files.DAMAGE))
def test_damage_is_named_once_and_fills_nothing(kind: str, damaged: tuple[Path, dict[str, str], str]) -> None:
    """One line of the log has path and reason, the source says the same, and no cell of the session is set."""
    root, sessions, log = damaged
    session = sessions[kind]
    lines = [line for line in log.splitlines() if "ERROR" in line and f"{session}.csv.gz" in line]
    assert len(lines) == 1, log
    with ledger.open(root / "ledger.state", readonly=True) as state:
        record = state.sources.get(flat_files.DATASET, session)
        assert record is not None
        assert record.state is SourceState.DAMAGED
        assert record.reason in lines[0]
        assert (
            not state.trade.exists(state.calendar.session_seq(session))
            or not (state.trade.session(state.calendar.session_seq(session)).status == Status.FILLED).any()
        )
        assert len(state.symbols) == 2, "garbage must not become a symbol"


def test_good_file_beside_damaged_ones_is_filled(damaged: tuple[Path, dict[str, str], str]) -> None:
    """The other files go on."""
    root, _, _ = damaged
    with ledger.open(root / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(GOOD))
        slots = rows.slots(Column.TRADE_REF, np.array([state.symbols.resolve("AAA")]))[0]
        assert (slots["status"] == Status.FILLED).all()
        assert int((slots["flags"] & Flag.NO_ROWS == 0).sum()) == 39


def test_repaired_file_of_the_same_name_is_picked_up(damaged: tuple[Path, dict[str, str], str]) -> None:
    """After every file was replaced by a good one, a run is clean."""
    root, sessions, _ = damaged
    for session in sessions.values():
        flat_files.write(root, session, flat_files.packed(flat_files.good_lines(session)))
    done = flat_files.run(root)
    assert done.returncode == 0, done.stdout + done.stderr
    with ledger.open(root / "ledger.state", readonly=True) as state:
        states = {state.sources.get(flat_files.DATASET, session).state for session in sessions.values()}  # type: ignore[union-attr]
        assert states == {SourceState.COMPLETE}


def test_rejected_and_quarantined_rows_are_counted_by_reason(tmp_path: Path) -> None:
    """Bad values are rejected by reason, a few unreadable lines are quarantined by line; the file is complete."""
    lines = flat_files.good_lines(GOOD)
    ts = flat_files.open_ns(GOOD) + 60 * 10**9
    for price, size, when in (("nan", "1", ts), ("-1", "1", ts), ("", "1", ts), ("10", "-5", ts), ("1e400", "1", ts)):
        lines.append(f"AAA,,,11,1,{when},{price},900,{when},{size},1,,0")
    lines.append(f"AAA,,,11,1,{ts},10,900,{ts + 86_400 * 10**9 * 3},1,1,,0")
    lines.append("garbage")
    flat_files.write(tmp_path, GOOD, flat_files.packed(lines))
    flat_files.write_config(tmp_path, [GOOD])
    done = flat_files.run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        record = state.sources.get(flat_files.DATASET, GOOD)
        assert record is not None
        assert sum(record.rejected.values()) == 6
        assert record.rows_in_session == 78
        assert [bad.line for bad in record.quarantined] == [len(lines)]


def test_symbol_beyond_the_cap_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    """With more symbols than ids: the file is complete, the refused are counted and named, and the run exits 1."""
    start = flat_files.open_ns(GOOD) + 5
    lines = [flat_files.HEADER]
    lines += [f"S{number:05d},,,11,1,{start},10.5,{number},{start},100,1,,0" for number in range(10_002)]
    flat_files.write(tmp_path, GOOD, flat_files.packed(lines))
    flat_files.write_config(tmp_path, [GOOD])
    done = flat_files.run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "S10000" in done.stderr
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        record = state.sources.get(flat_files.DATASET, GOOD)
        assert record is not None
        assert record.state is SourceState.COMPLETE
        assert record.refused_symbols == 2
        assert record.refused_names == ["S10000", "S10001"]
        counts = state.trade.session(state.calendar.session_seq(GOOD)).counts_status[1]
        assert int(counts[Status.FILLED]) == 10_000 * 390


VARIANTS = ("plain", "shuffled columns", "upper case", "CRLF", "BOM", "extra column", "members", "ungrouped")


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """Digest and count of no-rows cells by variant of one file, each read by a daemon of its own."""
    from ledger.digests import session_digest

    found = {}
    lines = flat_files.good_lines(GOOD)
    names = lines[0].split(",")
    order = [names.index(name) for name in sorted(names, reverse=True)]
    data = {
        "plain": flat_files.packed(lines),
        "shuffled columns": flat_files.packed([",".join(line.split(",")[at] for at in order) for line in lines]),
        "upper case": flat_files.packed([lines[0].upper(), *lines[1:]]),
        "CRLF": flat_files.packed(lines, "\r\n"),
        "BOM": flat_files.packed(["\ufeff" + lines[0], *lines[1:]]),
        "extra column": flat_files.packed([lines[0] + ",new", *[line + ",x" for line in lines[1:]]]),
        "members": flat_files.packed(lines[:30]) + flat_files.packed(lines[30:]),
        "ungrouped": flat_files.packed([lines[0], *sorted(lines[1:], key=lambda line: line.split(",")[8])]),
    }
    for variant in VARIANTS:
        root = tmp_path_factory.mktemp("variant")
        flat_files.write(root, GOOD, data[variant])
        flat_files.write_config(root, [GOOD])
        done = flat_files.run(root)
        assert done.returncode == 0, done.stdout + done.stderr
        with ledger.open(root / "ledger.state", readonly=True) as state:
            digest = [step for step in session_digest(state, GOOD) if step is not None][-1][0]
            found[variant] = (digest, int(state.trade.session(state.calendar.session_seq(GOOD)).counts_flags[1, 0]))
    return found


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_legitimate_variants_of_a_file_give_the_same_digest(variant: str, variants: dict[str, tuple[str, int]]) -> None:
    """Order and case of columns, line ends, a BOM, more columns, several gzip members, row order: all the same."""
    assert variants[variant] == variants["plain"]
    assert variants[variant][1] == 2 * 351
