"""A year of full sessions in bounded memory: what is mapped is bounded by bytes, and what somebody holds stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ledger import ledgers
from ledger.columns import Column, PayloadKind
from ledger.content import no_rows_hash
from ledger.records import NO_ROWS_ID
from ledger.state import State, open_state

SESSIONS, SYMBOLS = 25, 500
"""A tenth of a year; the bound does not know how many there are."""
MIB = 1 << 20


def fill(state: State, sessions: int, symbols: int) -> None:
    """Every cell of some sessions, in both ledgers, with the no-rows record."""
    state.allocate([f"S{number:03d}" for number in range(symbols)])
    for seq in range(sessions):
        windows = range(seq * 390, seq * 390 + int(state.calendar.minutes[seq]))
        for column in (Column.TRADE_REF, Column.AGGS_1M):
            kind = PayloadKind.TRADE if column is Column.TRADE_REF else PayloadKind.AGGREGATE
            state.ledger_of(column).set(
                column, range(symbols), windows, kind, NO_ROWS_ID, no_rows_hash(kind) >> 32, flags=1
            )


def resident_bytes() -> int:
    """Of this process, file pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def look_through(directory: Path) -> None:
    """Open, touch every slot of every session twice, and print what it took."""
    with open_state(directory) as state:
        most = 0
        for seq in [*range(SESSIONS), *range(SESSIONS)]:
            for ledger, column in ((state.trade, Column.TRADE_REF), (state.enrichment, Column.AGGS_1M)):
                slots = ledger.session(seq).slots(column, np.arange(SYMBOLS))
                assert (slots["version"] == 1).all()
                del slots
            most = max(most, resident_bytes())
        print(most, len(state.trade.mapped()), len(state.enrichment.mapped()))


def test_sessions_unused_for_longest_are_closed_and_those_in_use_stay(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded by the bytes of their planes; cells written before are there when a session is mapped again."""
    with open_state(directory, flush_interval_s=0.01) as state:
        fill(state, 6, 8)
        each = state.trade.session(0).plane_bytes
        assert each == 8 * 390 * 2 * 4
        monkeypatch.setattr(ledgers, "PLANE_BYTES_MAX", 3 * each)
        state.make_durable(60)
        held = state.trade.session(0)
        for seq in range(10, 20):
            state.trade.session(seq).reserve(np.arange(8))
            state.make_durable(60)
        mapped = state.trade.mapped()
        assert len(mapped) <= 5
        assert mapped[0] is held
        assert 19 in mapped
        assert 1 not in mapped
        assert state.trade.slot(Column.TRADE_REF, 7, 390 + 5).version == 1
        held.let_pages_go()
        assert held.slot(Column.TRADE_REF, 7, 5).version == 1
        assert state.repairs == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_looking_through_full_sessions_stays_below_a_gibibyte(directory: Path) -> None:
    """500 symbols, every slot of both ledgers touched twice; printed, with what stays mapped."""
    with open_state(directory) as state:
        fill(state, SESSIONS, SYMBOLS)
    command = [
        sys.executable,
        "-c",
        f"import pathlib, tests.ledger.test_year as m; m.look_through(pathlib.Path({str(directory)!r}))",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    most, trade, enrichment = map(int, done.stdout.split())
    print(f"\n{SESSIONS} sessions of {SYMBOLS} symbols: {most / MIB:.0f} MiB, {trade} and {enrichment} stay mapped")
    assert most < 1024 * MIB
