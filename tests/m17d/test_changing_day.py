"""
Clear, refresh and undo of a full day of one column take every cell and give it back; how long, and who waits, is printed.

10,000 symbols x 390 minutes, every cell filled with a record and a checksum of its own, in a daemon without engines, so
that nothing but the operation is at work. The bystander pings from a process of its own, every few milliseconds.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from ledger.columns import Column, Dataset, Source
from ledger.content import checksum_of, mix
from ledger.records import blank
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import create_state, open_state
from m17ctl.client import Client
from m17d.outcomes import OperationReply, UndoReply
from m17d.protocol import ClearRequest, Range, RefreshRequest, SessionsOpenRequest, UndoRequest
from tests.m17d.bystander import Seen, bystander
from tests.m17d.daemon_process import running, socket_of

SESSION: Final = "2013-10-07"
SYMBOLS: Final = 10_000
CELLS: Final = SYMBOLS * 390
ROUNDS: Final = 3
COLUMN: Final = Column.QUOTE_REF


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_day_is_taken_and_given_back(tmp_path: Path) -> None:
    """Every cell each time; the figures are medians over the rounds, of a bystander's worst wait too."""
    _fill(tmp_path / "ledger.state")
    (tmp_path / "m17.toml").write_text('state_dir = "ledger.state"\n[calendar]\nyear = 2013\n')
    seconds: dict[str, list[float]] = {}
    pauses: dict[str, list[float]] = {}
    with running(tmp_path) as process, Client(socket_of(tmp_path), timeout_s=120) as client:
        client.call(SessionsOpenRequest(session=SESSION))
        for _ in range(ROUNDS):
            for kind in ("refresh", "clear"):
                taken, seen = _timed(tmp_path, process.pid, partial(_take, client, kind), kind, seconds)
                pauses.setdefault(kind, []).append(seen.worst_ms)
                undo = partial(_undo, client, taken)
                _, seen = _timed(tmp_path, process.pid, undo, f"undo of {kind}", seconds)
                pauses.setdefault(f"undo of {kind}", []).append(seen.worst_ms)
    for kind, times in seconds.items():
        pause_ms = float(np.median(pauses[kind]))
        print(
            f"\n{kind}: {CELLS:,} cells in {float(np.median(times)):.2f} s, a bystander waited {pause_ms:.1f} ms at worst"
        )


def _fill(directory: Path) -> None:
    create_state(directory, year=2013)
    with open_state(directory) as state:
        state.allocate([f"S{number:04d}" for number in range(SYMBOLS)])
        none = np.zeros(SYMBOLS, dtype=np.int64)
        packed = pack_symbols(np.arange(SYMBOLS), none, none, none * 0.0)
        dataset = Dataset.STOCK_QUOTES.value
        waiting = SourceState.WAITING
        state.sources.put(SourceRecord(dataset=dataset, session=SESSION, state=waiting, symbols=packed))
        content = mix(np.arange(CELLS, dtype=np.uint64))
        first = 0
        for start in range(0, CELLS, 1 << 16):
            records = blank(COLUMN.payload_kind, len(content[start : start + (1 << 16)]))
            records["content_hash"] = content[start : start + (1 << 16)]
            records["source"] = int(Source.FLAT_FILE)
            appended = state.maps[COLUMN.payload_kind].append(records)
            first = first or appended
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        ids = np.arange(first, first + CELLS).reshape(SYMBOLS, 390)
        sums = checksum_of(content).reshape(SYMBOLS, 390)
        rows.set_block(COLUMN, range(SYMBOLS), range(390), ids, sums, source=Source.FLAT_FILE, now_ns=rows.now_ns())


def _timed(folder: Path, process: int, work: Any, kind: str, seconds: dict[str, list[float]]) -> tuple[str, Seen]:
    with bystander(socket_of(folder), process) as seen:
        started = time.perf_counter()
        done = work()
        seconds.setdefault(kind, []).append(time.perf_counter() - started)
    return done, seen


def _take(client: Client, kind: str) -> str:
    request = ClearRequest if kind == "clear" else RefreshRequest
    chosen = Range(session=SESSION)
    named = {"accept_loss": True} if kind == "clear" else {}
    reply = client.call(request(columns=[COLUMN], range=chosen, cause="bench", confirmed=True, **named))
    assert isinstance(reply, OperationReply)
    assert reply.cleared == {COLUMN: CELLS}, reply
    return reply.operation


def _undo(client: Client, operation: str) -> str:
    reply = client.call(UndoRequest(operation=operation, cause="bench"))
    assert isinstance(reply, UndoReply)
    assert reply.restored == {COLUMN: CELLS}, reply
    return ""
