"""A file that is replaced while its pass is at work: the one that comes later waits, and nothing of it is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.raw import FlatFileEngine
from ledger.columns import Column, Dataset, Status
from m17d.committing import Counts, commit, look
from m17d.superseding import Guard
from tests.engines.planning import TestContext, done, made_state
from tests.m17d import flat_files

SESSION = "2013-05-01"


def test_a_replaced_file_is_read_when_what_it_replaces_is_committed(tmp_path: Path) -> None:
    """Begun before, its rows would be dropped as conflicts, and the source would count as read."""
    state, clock = made_state(tmp_path / "ledger.state")
    clock.time_ns = state.calendar.parse_time("2013-05-02T20:00")
    lines = flat_files.good_lines(SESSION)
    flat_files.write(tmp_path, SESSION, flat_files.packed(lines))
    table = {"source": str(tmp_path / "flatfiles"), "sessions": [SESSION]}
    engine = FlatFileEngine("trade_flatfile", Column.TRADE_REF, (Dataset.STOCK_TRADES,), table, tmp_path)
    engine.start(TestContext(state))

    (first,) = engine.plan(4)
    seen = look(state, engine.writes, SESSION, first.symbols)
    engine.started(first)
    batch = done(first, state, "first")
    flat_files.write(tmp_path, SESSION, flat_files.packed([*lines, lines[-1].replace(",100,1,,0", ",300,1,,0")]))
    engine.retry()
    assert engine.plan(4) == [] and engine.backlog() == 1
    for _ in commit(state, first, batch, seen, Counts(), Guard(state)):
        pass
    engine.ended(first)
    engine.finished(first, batch)

    (second,) = engine.plan(4)
    assert second.arguments.etag != first.arguments.etag
    seen, counts = look(state, engine.writes, SESSION, second.symbols), Counts()
    engine.started(second)
    for _ in commit(state, second, done(second, state, "second"), seen, counts, Guard(state)):
        pass
    engine.ended(second)
    assert (counts.conflicts, counts.applied) == (0, 1)
    slots = state.trade.session(state.calendar.session_seq(SESSION)).slots(Column.TRADE_REF, np.arange(2))
    ids = slots["payload_id"][slots["status"] == Status.FILLED]
    assert int(state.maps[Column.TRADE_REF.payload_kind].get_many(ids)["row_count"].sum()) == len(lines)
    state.close()
