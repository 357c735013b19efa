"""What operators are told of things that have no cells yet, or changed a moment ago; in a daemon that does not run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.columns import Dataset
from ledger.sources import SourceRecord, SourceState
from m17d import protocol
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.envelopes import Refused
from m17d.peers import Context, Peer
from tests.m17d import flat_files

SESSION = "2013-05-01"
ME = Peer(os.getuid(), os.getgid(), os.getpid(), "me", frozenset({"read", "operate"}))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of an empty state."""
    flat_files.write_config(tmp_path, [SESSION])
    opened = Daemon(read_config(tmp_path / "m17.toml"), logging.getLogger("m17d-test"))
    yield opened
    opened.close()


def asked(daemon: Daemon, request: protocol.Request, key: str = "") -> Any:
    """A request's answer, all steps taken."""
    answer = daemon.handlers.handle(request, Context(ME, key))
    return [one for one in answer if one is not None][-1] if isinstance(answer, Iterator) else answer


def waiting(daemon: Daemon, dataset: Dataset) -> SourceRecord:
    """A source that never came."""
    record = SourceRecord(dataset=dataset.value, session=SESSION, state=SourceState.WAITING)
    daemon.state.sources.put(record)
    return record


def test_a_source_of_which_no_symbol_is_known_is_accepted_with_its_session(daemon: Daemon) -> None:
    """Its day has no cells to select; a whole session is enough to name it, a part is not, and a dry run changes nothing."""
    for dataset in (Dataset.OPTION_TRADES, Dataset.STOCK_QUOTES):
        waiting(daemon, dataset)
    whole = protocol.Range(session=SESSION)
    with pytest.raises(Refused, match="no symbol of the session"):
        asked(daemon, protocol.AcceptRequest(range=protocol.Range(session=SESSION, symbols="A*"), cause="none"), "a")
    preview = asked(daemon, protocol.AcceptRequest(range=whole, cause="none", dry_run=True))
    assert [source.state for source in preview.sources] == ["absent", "absent"]
    assert {one.state for one in daemon.state.sources.for_session(SESSION)} == {SourceState.WAITING}
    quotes = protocol.AcceptRequest(range=whole, columns=["quote_ref"], cause="none")  # type: ignore[list-item]
    assert [source.dataset for source in asked(daemon, quotes, "b").sources] == [Dataset.STOCK_QUOTES.value]
    reply = asked(daemon, protocol.AcceptRequest(range=whole, cause="no such feed"), "c")
    assert [source.dataset for source in reply.sources] == [Dataset.OPTION_TRADES.value]
    assert reply.accepted == {}
    assert {one.state for one in daemon.state.sources.for_session(SESSION)} == {SourceState.ABSENT}
    audited = next(iter(daemon.state.audit.tail(1)))
    assert (audited.op, audited.operation, audited.cause) == ("accept", reply.operation, "no such feed")
    with pytest.raises(Refused, match="no symbol of the session"):
        asked(daemon, protocol.AcceptRequest(range=whole, cause="again"), "d")


def test_an_engine_that_was_paused_is_paused_since_then(daemon: Daemon) -> None:
    """Not since the state before, which is noted only every second."""
    list(daemon.runner.note_states())
    before_ns = daemon.state.system.now_ns()
    pause = protocol.EnginesControlRequest(engine="trade_flatfile", action="pause", cause="outage")
    reply = asked(daemon, pause, "p")
    assert (reply.state, reply.since_ns >= before_ns) == ("paused", True)
    list(daemon.runner.note_states())
    noted_ns = daemon.runner.since_ns("trade_flatfile")
    assert noted_ns >= reply.since_ns
    assert daemon.runner.since_ns("trade_flatfile") == noted_ns


def test_a_range_that_ends_before_it_begins_says_so(daemon: Daemon) -> None:
    """The hint is about the windows, not about symbols."""
    chosen = protocol.Range(session=SESSION, from_ts="10:40", to_ts="10:15")
    with pytest.raises(Refused, match="no window of it lies in the range") as refused:
        asked(daemon, protocol.WaitRequest(columns=["trade_ref"], range=chosen))  # type: ignore[list-item]
    assert "390 windows" in refused.value.hint
