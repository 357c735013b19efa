"""SIGKILL at any moment of everything that a state does, recovery included: what was applied is there, and no more."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ledger.digests import session_digest
from ledger.errors import DamagedFile
from ledger.files import System
from ledger.state import open_state
from ledger.undo import list_undo
from tests.ledger.killed import Victim
from tests.ledger.states import copied, findings, findings_of, in_memory
from tests.ledger.writer import PHASES, SESSIONS, Promises, Writer, cells_of, lost, missing, wrong

DELAYS_S = {"opening": 0.06, "backup": 0.08, "collect": 0.02, "retire": 0.02, "reopen": 0.06}
"""How long after the begin of a phase a kill may come, at most; others are over in a few milliseconds."""


@dataclass
class Storm:
    """One state, and the writers that were killed on it."""

    directory: Path
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    repaired: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.promises = Promises()

    def kill_in(self, phase: str) -> None:
        """Kill a writer in a phase, or right behind it; sometimes its successor too, while it recovers."""
        self._kill(phase)
        if self.chance.random() < 0.3:
            self._kill("opening")
        self.check()

    def _kill(self, phase: str) -> None:
        phases = [*PHASES, *[phase] * 10] if phase in PHASES else ["wait"]
        victim = Victim(self.directory, self.chance.randrange(1 << 30), phases, self.promises)
        try:
            victim.wait_for(phase)
            time.sleep(self.chance.random() * DELAYS_S.get(phase, 0.006))
        finally:
            victim.kill()
        self.kills[self.promises.phase] += 1

    def check(self) -> None:
        """Nothing dangles even before recovery; then everything applied is there, whole, and the checker is content."""
        before = [
            one for one in findings(self.directory) if one.code in ("seal", "dangling", "slot", "rows", "artifact")
        ]
        assert before == [], self
        copy = self.directory.parent / "copy"
        if (copy / "backup.incomplete").exists():
            with pytest.raises(DamagedFile, match="not finished, or not verified"):
                open_state(copy)
        with open_state(self.directory, flush_interval_s=3600) as state:
            found = cells_of(state)
            assert wrong(found, self.promises) == [], self
            assert lost(found, self.promises, self.promises.applied) == [], self
            assert missing(state, self.promises) == [], self
            assert findings_of(state) == [], self
            assert state.audit.verify() == [], self
            self.repaired += sum(len(report.cells) for report in state.repairs)
            self.promises.take(("known", found))
            self.promises.undo = set(list_undo(self.directory, state.system))
            self.promises.symbols = state.symbols.names()
        assert findings(self.directory) == [], self


def digests(directory: Path, promises: Promises) -> list[str]:
    """What both sessions hold in the end, after somebody filled what was to be filled; and still when quotes lost rows."""
    writer = Writer(directory, System(), random.Random(0), promises=promises)
    writer.complete()
    found = digests_of(writer)
    writer.step("backup")
    for phase in ("collect", "retire", "retire", "reread", "retire"):
        writer.step(phase)
        assert digests_of(writer) == found
    writer.state.close()
    assert findings(directory) == []
    return found


def digests_of(writer: Writer) -> list[str]:
    """Of both sessions."""
    found = [list(session_digest(writer.state, session))[-1] for session in SESSIONS]
    assert all(found)
    return [one[0] for one in found if one]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the test's own."""
    made = Path(tempfile.mkdtemp(prefix="m17-kills-", dir=in_memory()))
    yield made
    shutil.rmtree(made)


def run(folder: Path, template: Path, seed: int, phases: list[str]) -> Storm:
    """A kill in each of the phases, then the end; its digest is that of a state that nobody killed."""
    (folder / "killed").mkdir()
    (folder / "calm").mkdir()
    storm = Storm(copied(template, folder / "killed" / "ledger.state"), seed)
    for phase in phases:
        storm.kill_in(phase)
    calm = copied(template, folder / "calm" / "ledger.state")
    assert digests(storm.directory, storm.promises) == digests(calm, Promises())
    return storm


def test_kills_lose_nothing_that_was_applied(folder: Path, template: Path) -> None:
    """A kill in some of the phases."""
    storm = run(folder, template, 11, ["set", "opening", "clear", "backup", "undo", "collect", "retire"])
    assert storm.kills.total() >= 7


@pytest.mark.slow
def test_two_hundred_kills(folder: Path, template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spread over every phase, and over recovery."""
    seed = random.randrange(2**32)
    with capsys.disabled():
        print(f"\nkills: seed {seed}")
    storm = run(folder, template, seed, [*PHASES, "opening"] * 13)
    with capsys.disabled():
        print(f"kills: {storm.kills.total()} in {dict(storm.kills)}; {storm.repaired} cells repaired")
    assert storm.kills.total() >= 200
