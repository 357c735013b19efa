"""One flipped bit in each kind of byte: never served as good, found by the checker, and no matter for other sessions."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ledger.check import Finding
from ledger.errors import LedgerError
from ledger.state import State, open_state
from tests.ledger.rich import Place, make_rich, places
from tests.ledger.states import SESSION, SYMBOLS, copied, findings, findings_of, in_memory
from tests.ledger.writer import SESSIONS


@pytest.fixture(scope="module")
def rich(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed state with something in every file."""
    return make_rich(copied(template, tmp_path_factory.mktemp("rich") / "ledger.state"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the test's own."""
    made = Path(tempfile.mkdtemp(prefix="m17-flips-", dir=in_memory()))
    yield made
    shutil.rmtree(made)


def served(state: State) -> dict[tuple[Any, ...], Any]:
    """What a reader is given as good: cells that are filled, with their record's content and their rows; small things."""
    given: dict[tuple[Any, ...], Any] = {}
    for ledger in (state.trade, state.enrichment):
        for session in SESSIONS:
            seq = state.calendar.session_seq(session)
            if seq not in ledger.existing():
                continue
            try:
                rows = ledger.session(seq)
            except LedgerError:
                continue
            for column in rows.columns:
                for symbol in range(len(SYMBOLS)):
                    for minute in (*range(12), 209):
                        key = ("cell", column, state.symbols.name(symbol), session, minute)
                        try:
                            slot = rows.slot(column, symbol, minute)
                            if slot.payload_id:
                                record = state.maps[column.payload_kind].get(slot.payload_id)
                                given[key] = (slot, record.tobytes())
                        except LedgerError:
                            continue
    with suppress(LedgerError):
        given |= {("row", row): True for row in state.scan("trade_ref", sessions=SESSION).collect().rows()}
    given |= {("symbol", name): index for index, name in enumerate(state.symbols.names())}
    given |= {("source", one.session): one for one in state.sources.all()}
    given |= {("region", one.id): one for one in state.regions.list()}
    return given


class Flips:
    """Flips bits in copies of one state and looks what becomes of them."""

    def __init__(self, rich: Path, folder: Path) -> None:
        self.rich = rich
        self.directory = folder / "ledger.state"
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        with open_state(copied(rich, folder / "original")) as state:
            self.original = served(state)

    def flip(self, place: Place, at: int, bit: int) -> None:
        """Flip one bit in a copy; what is wrong with what becomes of it is kept."""
        directory = copied(self.rich, self.directory)
        with (directory / place.file).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes((byte ^ 1 << bit,)))
        faults = [*self._not_found(directory, place), *self._not_safe(directory, place)]
        self.faults += [f"{place.file}: {place.kind}: bit {bit} of byte {at}: {fault}" for fault in faults]
        self.counts["flips"] += 1
        shutil.rmtree(directory)

    def _not_found(self, directory: Path, place: Place) -> Iterator[str]:
        """The checker names the file and says what to do."""
        found = self._checked(directory)
        if not found:
            yield "not found"
        elif not any(place.file in f"{one.message} {one.where}" for one in found):
            yield f"the file is not named: {found[:2]}"
        if not all(one.hint for one in found):
            yield f"no remedy: {found[:2]}"

    def _not_safe(self, directory: Path, place: Place) -> Iterator[str]:
        """Readers, then a writer: nothing else than before is given, and what lies elsewhere still is."""
        for readonly in (True, False):
            who = "reader" if readonly else "writer"
            try:
                with open_state(directory, readonly=readonly) as state:
                    given = served(state)
            except LedgerError as error:
                if place.file not in str(error) or not error.hint:
                    yield f"refused to a {who} without place or remedy: {error}"
                self.counts[f"refused to a {who}"] += 1
                continue
            self.counts[f"opened by a {who}"] += 1
            false = [key for key, value in given.items() if self.original.get(key) != value]
            if false:
                yield f"given to a {who}: {false[0]} {given[false[0]]}, was {self.original.get(false[0])}"
            others = [key for key in self.original if key[0] == "cell" and self._is_elsewhere(place, key)]
            if not all(key in given for key in others):
                yield f"other sessions are kept from a {who}"

    @staticmethod
    def _is_elsewhere(place: Place, key: tuple[Any, ...]) -> bool:
        """True for cells of another session file than the damaged one, where a session file is damaged."""
        return place.file.endswith(".rows") and f"{key[1].ledger.value}/{key[3]}.rows" != place.file

    @staticmethod
    def _checked(directory: Path) -> list[Finding]:
        """What m17d verify says: findings, or why the state cannot be opened."""
        try:
            return findings(directory)
        except LedgerError as error:
            return [Finding(error.code, str(error), str(error.facts.get("path", "")), error.hint)]


def test_every_kind_of_byte_flipped_once(rich: Path, folder: Path) -> None:
    """One bit of one byte of each kind."""
    flips, chance = Flips(rich, folder), random.Random(5)
    for place in places(rich):
        assert place.start < place.stop <= (rich / place.file).stat().st_size, place
        flips.flip(place, chance.randrange(place.start, place.stop), chance.randrange(8))
    assert flips.faults == []
    assert flips.counts["flips"] > 80


def test_what_a_flip_broke_is_healed_by_opening_where_it_can_be(rich: Path, folder: Path) -> None:
    """A slot is cleared with cause seal, row headers and counts are made again, and then the checker finds nothing."""
    for kind, repaired in (("slot: checksum", 1), ("row header: times", 0), ("counts: numbers", 0), ("mark: clean", 0)):
        place = next(one for one in places(rich) if one.kind == kind)
        directory = copied(rich, folder / kind.replace(" ", "-"))
        data = bytearray((directory / place.file).read_bytes()[: place.start + 1])
        with (directory / place.file).open("r+b") as file:
            file.seek(place.start)
            file.write(bytes((data[-1] ^ 4,)))
        with open_state(directory) as state:
            for ledger in (state.trade, state.enrichment):
                for seq in ledger.existing():
                    ledger.session(seq)
            assert sum(report.seal for report in state.repairs) == repaired
            causes = [record.cause for record in state.audit.tail(9) if record.op == "recovery"]
            assert findings_of(state) == []
        assert findings(directory) == []
        assert causes == {
            "slot: checksum": ["seal"],
            "row header: times": ["header"],
            "counts: numbers": ["header"],
            "mark: clean": ["mark"],
        }.get(kind, [])


@pytest.mark.slow
def test_thousands_of_flips(rich: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Many bits of every kind of byte."""
    flips, chosen = Flips(rich, folder), random.randrange(2**32)
    with capsys.disabled():
        print(f"\nflips: seed {chosen}")
    chance = random.Random(chosen)
    for place in places(rich):
        for _ in range(20):
            flips.flip(place, chance.randrange(place.start, place.stop), chance.randrange(8))
    with capsys.disabled():
        print(f"flips: {dict(flips.counts)} over {len(places(rich))} kinds of byte")
    assert flips.faults == []
