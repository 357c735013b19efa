"""Power cuts: a state that lives on a disk of pages, cut at any system call, opens as what it had promised."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ledger.columns import Column
from ledger.content import checksum_of
from ledger.errors import LedgerError
from ledger.state import open_state
from tests.ledger.powercut import Disk
from tests.ledger.states import SESSION, append, copied, findings, findings_of, hashes, in_memory
from tests.ledger.writer import ALONE, ORDERED, ROWS_FIRST, Promises, Writer, cells_of, lost, missing, wrong

PHASES = ("set",) * 6 + ("clear", "undo", "refresh", "flush", "allocate", "artifact", "region", "source", "audit",
                         "start", "reopen", "idle", "collect", "retire", "reread")  # fmt: skip


@dataclass
class Figures:
    """What cuts left."""

    cuts: int = 0
    dangling: int = 0
    """Images with a cell that names no good record, before anything is repaired."""
    dangling_after: int = 0
    """The same after recovery; and any other finding of the checker."""
    lost: int = 0
    """Images that lack something promised."""
    wrong: int = 0
    """Images with a cell that says what it never said."""
    unopened: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = f" ({dict(self.reasons)})" if self.reasons else ""
        return (
            f"{self.cuts} cuts: {self.dangling} with dangling cells, {self.dangling_after} after recovery, "
            f"{self.lost} lost something durable, {self.wrong} wrong, {self.unopened} did not open{reasons}"
        )


class Storm:
    """Runs writers on disks and cuts their power."""

    def __init__(self, template: Path, seed: int, policy: str = ORDERED) -> None:
        self.template = template
        self.chance = random.Random(seed)
        self.policy = policy
        self.figures = Figures()
        self.folder = Path(tempfile.mkdtemp(prefix="m17-power-", dir=in_memory()))
        self.checking = False

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def run(self, cuts: int) -> Figures:
        """One writer after another, each cut a few times at random calls, until there were enough."""
        while self.figures.cuts < cuts:
            directory = copied(self.template, self.folder / "ledger.state")
            disk = Disk(directory)
            writer = Writer(directory, disk, self.chance, policy=self.policy)
            disk.moment = lambda _call, disk=disk, writer=writer: self._moment(disk, writer)
            for _ in range(40):
                writer.step(self.chance.choice(PHASES))
                disk.look()
            disk.moment = lambda _call: None
            writer.state.close()
            assert findings(directory) == []
            shutil.rmtree(directory)
        return self.figures

    def _moment(self, disk: Disk, writer: Writer) -> None:
        if self.chance.random() < 0.04:
            self.cut(disk, writer.promises)

    def cut(self, disk: Disk, promises: Promises) -> None:
        """Cut the power now, and look at what is left; sometimes cut it again while that is opened."""
        image = self.folder / "image"
        disk.cut(image, self.chance)
        self.figures.cuts += 1
        try:
            if any(one.code == "dangling" for one in findings(image)):
                self.figures.dangling += 1
            if self.chance.random() < 0.3:
                self._cut_again(image)
            self._check(image, promises)
        except LedgerError as error:
            self.figures.unopened += 1
            self.figures.reasons[str(error)] += 1
        finally:
            shutil.rmtree(image)

    def _cut_again(self, image: Path) -> None:
        """Recovery is cut at one of its calls; its image takes the place of this one."""
        at, again = self.chance.randrange(1, 150), self.folder / "again"
        disk = Disk(image)
        calls = iter(range(1, 1 << 30))

        def moment(_call: str) -> None:
            if next(calls) == at and not again.exists():
                disk.cut(again, self.chance)

        disk.moment = moment
        with open_state(image, system=disk, flush_interval_s=3600) as state:
            for ledger in (state.trade, state.enrichment):
                for seq in ledger.existing():
                    ledger.session(seq)
        if again.exists():
            shutil.rmtree(image)
            again.rename(image)

    def _check(self, image: Path, promises: Promises) -> None:
        with open_state(image, flush_interval_s=3600) as state:
            found = cells_of(state)
            false = wrong(found, promises)
            gone = [*lost(found, promises, promises.durable), *missing(state, promises)]
            self.figures.wrong += bool(false)
            self.figures.lost += bool(gone)
            self.figures.reasons.update(f"wrong {key}" for key in false[:1])
            self.figures.reasons.update(f"lost {key}" for key in gone[:1])
            left = findings_of(state)
            # And it goes on: new symbols, records and cells.
            fresh = int(state.allocate(["LATER"]).ids[0])
            payload = append(state, Column.TRADE_REF.payload_kind, hashes(99, 1))
            state.trade.set_trade_ref(
                fresh, state.calendar.session_seq(SESSION) * 390, Column.TRADE_REF.payload_kind, int(payload[0]),
                int(checksum_of(hashes(99, 1))[0]),
            )  # fmt: skip
        left += findings(image)
        self.figures.dangling_after += bool(left)
        self.figures.reasons.update(f"{one.code}: {one.message}" for one in left[:1])


@pytest.fixture
def storms(template: Path) -> Iterator[list[Storm]]:
    """Storms of a test, with their folders."""
    made: list[Storm] = []
    yield made
    for storm in made:
        storm.close()


def storm_of(storms: list[Storm], template: Path, seed: int, policy: str = ORDERED) -> Storm:
    storms.append(Storm(template, seed, policy))
    return storms[-1]


def test_power_cuts_leave_what_was_promised(storms: list[Storm], template: Path) -> None:
    """Nothing dangling, nothing lost, nothing wrong, and every image opens."""
    figures = storm_of(storms, template, 17).run(40)
    assert (figures.dangling, figures.dangling_after, figures.lost, figures.wrong, figures.unopened) == (0,) * 5, (
        figures
    )


@pytest.mark.parametrize("policy", [ROWS_FIRST, ALONE])
def test_the_model_sees_a_wrong_order(storms: list[Storm], template: Path, policy: str) -> None:
    """With rows before records, or with the operating system alone, cells dangle; recovery finds every one of them."""
    figures = storm_of(storms, template, 17, policy).run(15)
    assert figures.dangling > 0, figures
    assert (figures.dangling_after, figures.wrong, figures.unopened) == (0, 0, 0), figures


@pytest.mark.slow
def test_a_thousand_power_cuts(storms: list[Storm], template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ordered policy at length, and the two others for comparison."""
    seed = random.randrange(2**32)
    for policy, cuts in ((ORDERED, 1200), (ROWS_FIRST, 200), (ALONE, 200)):
        figures = storm_of(storms, template, seed, policy).run(cuts)
        with capsys.disabled():
            print(f"\npower, seed {seed}, {policy}: {figures}")
        if policy == ORDERED:
            assert (figures.dangling, figures.lost) == (0, 0)
        assert (figures.dangling_after, figures.wrong, figures.unopened) == (0, 0, 0)
