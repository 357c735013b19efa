"""What the daemon keeps in the state beside the ledger: pauses, marks and answers name themselves, and damage is said."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.audit import Operator as AuditOperator
from ledger.documents import MARK_KIND, read_document, write_document
from ledger.errors import DamagedFile, LedgerError
from ledger.files import System
from ledger.state import create_state, open_state
from m17d import protocol
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.outcomes import EngineReply
from m17d.peers import Peer
from m17d.remembering import Remembering, remembered_facts
from m17d.unfinished import Unfinished
from tests.ledger.states import copied, findings

ME = Peer(os.getuid(), os.getgid(), os.getpid(), "me", frozenset({"read", "operate"}))
PAUSE = protocol.EnginesControlRequest(engine="trade_flatfile", action="pause")
ANSWER = EngineReply(name="trade_flatfile", state="paused")
CONFIG = 'state_dir = "ledger.state"\n[calendar]\nyear = 2013\n[engines.trade_flatfile]\nsource = "none"\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a state without cells, whose only engine is paused and remembered so."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "m17.toml").write_text(CONFIG)
    create_state(folder / "ledger.state", year=2013)
    daemon = opened(folder)
    daemon.handlers.supervising.pause("trade_flatfile", "me: test")
    for number in range(3):
        daemon.handlers.remembering.remember(f"key-{number}", PAUSE, ME, ANSWER)
    daemon.close()
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(made, tmp_path / "copy")


def opened(root: Path) -> Daemon:
    """A daemon that does not run."""
    return Daemon(read_config(root / "m17.toml"), logging.getLogger("m17d-test"))


def flip(path: Path, at: int) -> None:
    """One bit of one byte, counted from the end where negative."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def verified(root: Path) -> str:
    """What the checker finds: code, place and remedy of each, a line each."""
    return "\n".join(f"{one.code} {one.where} {one.hint}" for one in findings(root / "ledger.state"))


def test_pauses_and_answers_hold_over_restarts(root: Path) -> None:
    """Untouched they are read again, and the checker finds nothing."""
    assert verified(root) == ""
    daemon = opened(root)
    assert daemon.runner.paused == {"trade_flatfile": "me: test"}
    assert daemon.handlers.remembering.replayed("key-2", PAUSE, ME) == ANSWER
    daemon.close()


@pytest.mark.parametrize("at", [3, 9, 40, 4096 + 2, 4096 + 20, -1])
def test_damaged_pauses_are_refused_with_what_to_do(root: Path, at: int) -> None:
    """No engine runs that somebody paused, and none stands still that nobody did; the checker names the file."""
    flip(root / "ledger.state" / "paused", at)
    assert "ledger.state/paused" in verified(root)
    with pytest.raises(LedgerError, match="paused") as refused:
        opened(root)
    assert "pause the engines again" in refused.value.hint
    (root / "ledger.state" / "paused").unlink()
    opened(root).close()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: flip(path, 4096 + 20),
        lambda path: flip(path, -9),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0" * 8),
    ],
    ids=["first record", "last record", "cut", "longer"],
)
def test_damaged_answers_are_refused_and_found(root: Path, change: Callable[[Path], None]) -> None:
    """Forgotten in silence, a mutation that is sent again would be done twice."""
    change(root / "ledger.state" / "audit" / "keys")
    assert "audit/keys" in verified(root)
    with pytest.raises(DamagedFile, match="audit/keys"):
        opened(root)


def test_where_the_answers_ended_is_known_after_others_wrote_the_state(root: Path) -> None:
    """A writer that never looks at them closes the state in order, too."""
    with open_state(root / "ledger.state") as state:
        state.allocate(["AIG"])
    path = root / "ledger.state" / "audit" / "keys"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedFile, match="truncated"):
        opened(root)


def test_damaged_mark_of_an_operation_costs_its_answer_alone(root: Path) -> None:
    """The daemon starts and says which; a whole mark gives its answer."""
    with open_state(root / "ledger.state") as state:
        unfinished, remembering = Unfinished(state), Remembering(state)
        for operation in ("op-1", "op-2", "op-3"):
            unfinished.begin(operation, remembered_facts(operation, PAUSE, ME, ANSWER))
        for operation in ("op-1", "op-2"):
            state.audit.append("clear", AuditOperator(uid=ME.uid), operation=operation)
        remembering.close()
    marks = root / "ledger.state" / "audit" / "open"
    flip(marks / "op-1", 4096 + 20)
    assert "audit/open/op-1" in verified(root)
    with open_state(root / "ledger.state") as state:
        remembering = Remembering(state)
        lines = Unfinished(state).settle(remembering)
        assert ["nor can it be" in line for line in lines] == [True, False, False]
        assert "op-1" in lines[0]
        assert remembering.replayed("op-1", PAUSE, ME) is None
        assert remembering.replayed("op-2", PAUSE, ME) == ANSWER
        remembering.close()
    assert not list(marks.iterdir())
    assert verified(root) == ""


def test_a_document_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Of another kind it is refused; one that is missing is None."""
    assert read_document(System(), tmp_path / "none", MARK_KIND) is None
    write_document(System(), tmp_path / "one", MARK_KIND, {"a": [1, "b"]})
    assert read_document(System(), tmp_path / "one", MARK_KIND) == {"a": [1, "b"]}
    with pytest.raises(LedgerError, match="not a paused file"):
        read_document(System(), tmp_path / "one", "paused")
