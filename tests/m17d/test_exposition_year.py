"""A scrape with many sessions mapped looks at what moved and at nothing else; what it costs: bench_exposition."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

import m17d.opening
from ledger import sessionfile
from ledger.columns import Column, Flag
from ledger.layout import COUNTS_OFFSET, PAGE, ROWS_COUNTS
from m17d import protocol
from m17d.daemon import Daemon
from m17d.envelopes import Piece
from m17d.peers import Context, Peer
from m17d.replies import StatusReply
from tests.m17d.bench_exposition import daemon_over

SESSIONS = 40
ME = Peer(1000, 1000, 1, "operator", frozenset(["read", "operate"]))


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


def test_a_session_is_counted_without_mapping_the_ledger_that_is_not_mapped(many: Daemon) -> None:
    """Its trades are written beside a backfill, its rest is as its header page says: the counts are those of the whole."""
    state, measuring = many.state, many.handlers.reading.measuring
    session = state.calendar.date(21)
    whole = measuring.session(session).counts.copy()
    state.make_durable()
    assert 21 in state.enrichment.drop_idle(idle_ns=0, keep=frozenset(range(state.calendar.session_count)) - {21})
    rows = state.trade.session(21)
    rows.flag_many(Column.TRADE_REF, np.arange(4), np.full(4, 5), add=Flag.WANTED, now_ns=rows.now_ns())

    assert list(measuring.opening(session)) == []
    assert (measuring.session(session).counts == whole).all()
    assert 21 in state.trade.mapped() and 21 not in state.enrichment.mapped()


def test_a_session_that_a_crash_left_is_mapped_in_steps_before_it_is_counted(
    many: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header page does not say how it stands; whoever asks for the status waits, and others are served between."""
    state, measuring = many.state, many.handlers.reading.measuring
    session = state.calendar.date(22)
    measuring.session(session)
    state.make_durable()
    kept = frozenset(range(state.calendar.session_count)) - {22}
    state.trade.drop_idle(idle_ns=0, keep=kept)
    with state.trade.path(22).open("r+b") as file:
        file.seek(COUNTS_OFFSET)
        file.write(bytes(ROWS_COUNTS.itemsize))
    monkeypatch.setattr(m17d.opening, "STEP_S", 0.0)
    monkeypatch.setattr(sessionfile, "_LOADED_AT_ONCE", 1)

    answer = many.handlers.handle(protocol.StatusRequest(), Context(ME))
    assert isinstance(answer, Iterator)
    pieces = list(answer)
    assert len(pieces) > 3 and pieces[:-1] == [None] * (len(pieces) - 1)
    assert isinstance(pieces[-1], StatusReply)
    assert 22 in state.trade.mapped()
    assert isinstance(many.handlers.handle(protocol.StatusRequest(), Context(ME)), StatusReply)


@pytest.mark.parametrize("damage", ["another magic", "another size"])
def test_a_session_that_cannot_be_read_is_named_and_the_others_are_counted(many: Daemon, damage: str) -> None:
    """In status, metrics and the year's map, until its file is restored under the daemon."""
    state, handlers = many.state, many.handlers
    session, path = state.calendar.date(23), state.trade.path(23)
    state.make_durable()
    state.trade.drop_idle(idle_ns=0, keep=frozenset(range(state.calendar.session_count)) - {23})
    with path.open("rb") as opened:
        page = opened.read(PAGE)

    def overwrite(data: bytes) -> None:
        with path.open("r+b") as file:
            file.write(data)

    def status() -> StatusReply:
        answer = handlers.handle(protocol.StatusRequest(), Context(ME))
        found = list(answer)[-1] if isinstance(answer, Iterator) else answer
        assert isinstance(found, StatusReply)
        return found

    size = path.stat().st_size
    before = status()
    if damage == "another magic":
        overwrite(b"?")
    else:
        os.truncate(path, size + 1)
    damaged = status()
    assert [line for line in damaged.warnings if session in line and "restore the file from a backup" in line]
    trades = [one.columns[Column.TRADE_REF].filled for one in (before, damaged)]
    assert trades[1] == trades[0] - 4 * 390
    assert 'm17_slots{column="trade_ref",status="filled"} ' + f"{trades[1]:.1f}" in handlers.exposition.text()
    request = protocol.GridRequest(from_session=state.calendar.date(22), to_session=state.calendar.date(24))
    grids = [piece for piece in handlers.gridding.grid(request) if isinstance(piece, Piece)]
    assert len(grids) == 2
    overwrite(page)
    os.truncate(path, size)
    assert status().columns == before.columns
    assert not [line for line in status().warnings if session in line]
