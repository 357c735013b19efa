"""Counts over time for screens: what coverage says, cell by cell, of sessions mapped and not, and nothing is mapped for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ledger.columns import Column
from ledger.coverage import COUNT_NAMES
from ledger.errors import LedgerError
from m17ctl.client import Client
from m17ctl.errors import RemoteFailure
from m17d import protocol, replies
from m17d.daemon import Daemon
from m17d.envelopes import Refused
from tests.filled_state import SESSION, copy_of, filled, needs_data
from tests.m17d.test_exposition import ask, running

pytestmark = needs_data


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The filled real session, engines at rest."""
    yield from running(copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("grid")))


def grid(daemon: Daemon, symbol: str | None, step: int) -> tuple[replies.GridReply, np.ndarray]:
    """The one session's counts: [groups, columns, cells, 9]."""
    request = protocol.GridRequest(from_session=SESSION, to_session=SESSION, symbol=symbol, step_minutes=step)
    (piece,) = [one for one in daemon.handlers.gridding.grid(request) if one is not None]
    assert isinstance(piece.body, replies.GridReply)
    assert piece.slab is not None
    counts = np.frombuffer(piece.slab, dtype="<u4").astype(np.int64)
    return piece.body, counts.reshape(len(piece.body.groups), len(Column), piece.body.cells, len(COUNT_NAMES))


def counts_of(counts: replies.Counts) -> list[int]:
    return [getattr(counts, name) for name in COUNT_NAMES]


def close_everything(daemon: Daemon) -> None:
    """As after a quiet quarter of an hour."""
    for ledger in (daemon.state.trade, daemon.state.enrichment):
        ledger.drop_idle(idle_ns=0)
        assert not ledger.mapped()


@pytest.mark.parametrize("step", [1, 30, 65, 390])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_grid_is_what_coverage_counts(daemon: Daemon, step: int, mapped: bool) -> None:
    """The symbol itself and the options on it, in every cell of time."""
    own = ask(daemon, protocol.CoverageRequest(session=SESSION, symbols="AAPL", by="minute"))
    options = ask(daemon, protocol.CoverageRequest(session=SESSION, symbols="O:AAPL", by="minute"))
    if not mapped:
        close_everything(daemon)

    reply, counts = grid(daemon, "AAPL", step)

    assert (reply.session, reply.windows, reply.groups) == (SESSION, 390, {"own": 1, "options": 1})
    assert reply.cells == -(-390 // step)
    for group, coverage in enumerate((own, options)):
        minutes = [columns for _, columns in sorted(coverage.by_minute.items())]
        for index, column in enumerate(Column):
            by_minute = np.array([counts_of(columns[column]) for columns in minutes])
            expected = np.add.reduceat(by_minute, np.arange(0, 390, step), axis=0)
            assert (counts[group, index] == expected).all(), (group, column)
    if not mapped:
        assert not daemon.state.trade.mapped()


def test_everything_together_is_status(daemon: Daemon) -> None:
    """Without a symbol the counts are those that status adds up."""
    status = ask(daemon, protocol.StatusRequest())
    reply, counts = grid(daemon, None, 390)
    assert reply.groups == {"all": 4}
    for index, column in enumerate(Column):
        assert counts[0, index, 0].tolist() == counts_of(status.columns[column])


def test_a_cell_that_changes_is_counted_again(daemon: Daemon) -> None:
    """What was counted is kept until the session moves."""
    before = grid(daemon, "TWX", 390)[1]
    daemon.runner.paused["trade_flatfile"] = "test"
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:30", symbols="TWX")
    ask(daemon, protocol.ClearRequest(columns=[Column.TRADE_REF], range=chosen, cause="test"))
    after = grid(daemon, "TWX", 390)[1]
    trade = list(Column).index(Column.TRADE_REF)
    assert after[0, trade, 0, 3] - before[0, trade, 0, 3] == 30
    assert after[0, trade, 0, 2] - before[0, trade, 0, 2] == -30


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"from_session": SESSION, "to_session": "2014-06-05"}, "bad_request"),
        ({"from_session": "2014-06-07", "to_session": "2014-06-09"}, "unknown_session"),
        ({"from_session": SESSION, "to_session": SESSION, "symbol": "NOSUCH"}, "unknown_symbol"),
    ],
)
def test_a_span_that_is_none_is_refused(daemon: Daemon, fields: dict[str, str], code: str) -> None:
    """Each with its own code."""
    with pytest.raises((LedgerError, Refused)) as caught:
        ask(daemon, protocol.GridRequest(**fields))  # type: ignore[arg-type]
    assert caught.value.code == code


def test_sessions_without_the_symbol_are_left_out(daemon: Daemon) -> None:
    """A year of which one session is in use is one piece."""
    request = protocol.GridRequest(from_session="2014-01-02", to_session="2014-12-31", symbol="AAPL")
    pieces = [one for one in daemon.handlers.gridding.grid(request) if one is not None]
    assert [piece.body.session for piece in pieces if isinstance(piece.body, replies.GridReply)] == [SESSION]


def test_over_the_socket_a_piece_comes_with_its_slab(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The client yields sessions as they come; failures are failures."""
    from tests.m17d.test_derived_sessions import served

    folder: Path = copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("wire"))
    with served(folder) as client:
        assert isinstance(client, Client)
        request = protocol.GridRequest(from_session=SESSION, to_session=SESSION, symbol="AAPL", step_minutes=1)
        ((reply, slab),) = list(client.grids(request))
        assert len(slab) == 4 * 2 * len(reply.columns) * reply.cells * 9
        with pytest.raises(RemoteFailure, match="NOSUCH"):
            list(client.grids(protocol.GridRequest(from_session=SESSION, to_session=SESSION, symbol="NOSUCH")))
