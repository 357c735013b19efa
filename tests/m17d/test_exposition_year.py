"""A scrape with many sessions mapped looks at what moved and at nothing else; what it costs: bench_exposition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ledger.columns import Column, Flag
from m17d.daemon import Daemon
from tests.m17d.bench_exposition import daemon_over

SESSIONS = 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Sessions of four symbols, all columns, every tenth with holes; all mapped, engines at rest."""
    daemon = daemon_over(tmp_path_factory.mktemp("many"), stocks=2, sessions=SESSIONS)
    yield daemon
    daemon.close()


def looked_at(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Sessions whose cells or counts a scrape looks at."""
    found: set[str] = set()
    measuring, planes = daemon.handlers.reading.measuring, daemon.handlers.reading.planes
    count = measuring._count
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_count", lambda session: found.add(session) or count(session))
        patch.setattr(
            daemon.handlers.reading, "planes", lambda session, *args, **named: found.add(session) or planes(session, *args, **named)
        )  # fmt: skip
        daemon.handlers.exposition.text()
    return found


def test_a_scrape_looks_at_the_session_that_moved_and_at_no_other(
    many: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many sessions are mapped: those that stood still are neither counted nor searched again."""
    assert len(many.handlers.reading.measuring.names()) == SESSIONS
    assert looked_at(many, monkeypatch) == set()

    rows = many.state.trade.session(20)
    rows.flag_many(Column.TRADE_REF, np.arange(4), np.full(4, 5), add=Flag.WANTED, now_ns=rows.now_ns())

    assert looked_at(many, monkeypatch) == {many.state.calendar.date(20)}
    assert looked_at(many, monkeypatch) == set()
