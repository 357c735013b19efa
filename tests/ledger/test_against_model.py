"""The ledger against a dictionary: Hypothesis drives both through every setter, clear, undo, claim, repair and reopen."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from ledger.columns import MINUTES_PER_SESSION, Column, Flag, Source, Status
from ledger.content import checksum_of
from ledger.errors import RankConflict, StateReadOnly, VersionConflict
from ledger.files import System
from ledger.rows import BrokenSlot, Outcome, SessionRows
from ledger.state import State, open_state
from ledger.undo import read_undo, write_undo
from tests.ledger.model import Cell, Key, Model
from tests.ledger.states import EARLY_CLOSE, SESSION, SYMBOLS, append, copied, findings_of, hashes, in_memory

COLUMNS = (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.AGGS_5M)
HOUR_NS, DAY_NS = 3600 * 10**9, 24 * 3600 * 10**9

columns = st.sampled_from(COLUMNS)
sessions = st.sampled_from((SESSION, EARLY_CLOSE))
symbols = st.integers(0, len(SYMBOLS) - 1)
minutes = st.sampled_from((0, 1, 2, 209))
contents = st.integers(0, 2)
sources = st.sampled_from(Source)
flag_words = st.integers(0, 31).map(Flag)
tokens = st.sampled_from(("any", "right", "wrong"))
cells = st.tuples(columns, symbols, sessions, minutes)
groups = st.lists(st.tuples(symbols, minutes), min_size=1, max_size=8, unique=True)
lengths = st.integers(1, 40)


class Clock(System):
    """A system whose time stands still unless a rule moves it."""

    ns = 1_381_152_660_000_000_000

    def now_ns(self) -> int:
        """The time that the last rule set."""
        return self.ns


class LedgerMachine(RuleBasedStateMachine):
    """Both ledgers of one state beside one dictionary; rules are what engines, operators and crashes do."""

    template: ClassVar[Path]
    steps: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="m17-model-", dir=in_memory()))
        self.directory = copied(self.template, self.folder / "ledger.state")
        self.system = Clock()
        self.model = Model()
        self.ids: dict[tuple[Column, int], int] = {}
        self.operations: dict[str, list[tuple[Key, Cell]]] = {}
        self.state: State

    @initialize()
    def start(self) -> None:
        """Open it."""
        self.state = open_state(self.directory, system=self.system, flush_interval_s=3600)

    # ---- names and contents

    def _rows(self, column: Column, session: str) -> SessionRows:
        return self.state.ledger_of(column).session(self.state.calendar.session_seq(session))

    def _first(self, session: str) -> int:
        return self.state.calendar.session_seq(session) * MINUTES_PER_SESSION

    def _payload(self, column: Column, content: int, *, again: bool) -> tuple[int, int]:
        """Payload id and checksum of a content; a new record of it where ``again``."""
        hashed = hashes(content, 1)
        if again or (column, content) not in self.ids:
            self.ids[column, content] = int(append(self.state, column.payload_kind, hashed)[0])
        return self.ids[column, content], int(checksum_of(hashed)[0])

    def _token(self, token: str, key: Key) -> int | None:
        version = self.model[key].version
        return {"any": None, "right": version, "wrong": version + 3}[token]

    def _compare(self, keys: list[Key]) -> None:
        for key in keys:
            column, symbol_id, minute_idx = key
            assert self.state.ledger_of(column).slot(column, symbol_id, minute_idx) == self.model[key].as_slot(), key

    # ---- what engines do

    @rule(cell=cells, content=contents, again=st.booleans(), source=sources, flags=flag_words, inputs=contents,
          token=tokens)  # fmt: skip
    def set_one(
        self, cell: tuple[Column, int, str, int], content: int, again: bool, source: Source, flags: Flag, inputs: int,
        token: str,
    ) -> None:  # fmt: skip
        """Fill one cell through the named setter."""
        column, symbol_id, session, minute = cell
        minute_idx = self._first(session) + minute
        key = (column, symbol_id, minute_idx)
        payload_id, checksum = self._payload(column, content, again=again)
        expected, before = self._token(token, key), self.model[key]
        outcome = self.model.set(key, payload_id, checksum, inputs, source, flags, expected, self.system.ns)
        ledger = self.state.ledger_of(column)
        name = column.value if column.value.endswith("_ref") else column.value.replace("aggs_", "aggs_ref_")
        try:
            version = getattr(ledger, f"set_{name}")(
                symbol_id, minute_idx, column.payload_kind, payload_id, checksum, inputs=inputs, source=source,
                flags=flags, expected_version=expected,
            )  # fmt: skip
            said: Any = version
        except VersionConflict as error:
            said = (error.expected, error.actual)
        except RankConflict:
            said = RankConflict
        conflict = {Outcome.CONFLICT: (expected, before.version), Outcome.OUTRANKED: RankConflict}
        assert said == conflict.get(outcome, self.model[key].version)
        self._compare([key])
        self.steps[f"set_one {outcome.name}"] += 1

    @rule(column=columns, session=sessions, group=groups, content=contents, source=sources, flags=flag_words,
          token=tokens, data=st.data())  # fmt: skip
    def set_many(
        self, column: Column, session: str, group: list[tuple[int, int]], content: int, source: Source, flags: Flag,
        token: str, data: Any,
    ) -> None:  # fmt: skip
        """Fill scattered cells, each with its own content."""
        chosen = np.array([(content + at) % 3 for at in range(len(group))])
        payloads = np.array([self._payload(column, int(one), again=False) for one in chosen], dtype=np.uint32)
        keys = [(column, symbol_id, self._first(session) + minute) for symbol_id, minute in group]
        wanted = [self._token(data.draw(tokens) if token == "wrong" else token, key) for key in keys]
        if None in wanted:
            wanted = [None] * len(keys)
        inputs = (chosen % 2).astype(np.uint32)
        expected = None if None in wanted else np.array(wanted, dtype=np.uint32)
        at = np.array(group)
        outcome = self.state.ledger_of(column).set(
            column, at[:, 0], at[:, 1] + self._first(session), column.payload_kind, payloads[:, 0], payloads[:, 1],
            inputs=inputs, source=source, flags=np.full(len(group), int(flags), dtype=np.uint8),
            expected_version=expected,
        )  # fmt: skip
        for index, key in enumerate(keys):
            payload_id, checksum = payloads[index].tolist()
            said = self.model.set(
                key, payload_id, checksum, int(inputs[index]), source, flags, wanted[index], self.system.ns
            )
            assert outcome[index] == said, key
            self.steps[f"set_many {said.name}"] += 1
        self._compare(keys)

    @rule(column=columns, session=sessions, first_symbol=symbols, first_minute=minutes, height=st.integers(1, 4),
          width=lengths, content=contents, source=sources, as_arrays=st.booleans(), compared=st.booleans())  # fmt: skip
    def set_rectangle(
        self, column: Column, session: str, first_symbol: int, first_minute: int, height: int, width: int,
        content: int, source: Source, as_arrays: bool, compared: bool,
    ) -> None:  # fmt: skip
        """Fill a rectangle with one payload, by two ranges or by the arrays of its cells."""
        down = range(first_symbol, min(first_symbol + height, len(SYMBOLS)))
        last = 210 if session == EARLY_CLOSE else MINUTES_PER_SESSION
        first = self._first(session)
        across = range(first + first_minute, first + min(first_minute + width, last))
        payload_id, checksum = self._payload(column, content, again=False)
        keys = [(column, symbol_id, minute_idx) for symbol_id in down for minute_idx in across]
        versions = np.array([self.model[key].version for key in keys], dtype=np.uint32)
        versions[::5] += compared
        expected: Any = versions if compared else None
        where: tuple[Any, Any] = (down, across)
        if as_arrays:
            where = tuple(np.array([key[1:] for key in keys]).T)
        elif compared:
            expected = versions.reshape(len(down), len(across))
        outcome = self.state.ledger_of(column).set(
            column, *where, column.payload_kind, payload_id, checksum, source=source, expected_version=expected
        )
        for index, key in enumerate(keys):
            token = int(versions[index]) if compared else None
            said = self.model.set(key, payload_id, checksum, 0, source, Flag.NONE, token, self.system.ns)
            assert outcome.reshape(-1)[index] == said, key
            self.steps[f"set_rectangle {said.name}"] += 1
        self._compare(keys)

    @rule(column=columns, session=sessions, group=groups)
    def claim(self, column: Column, session: str, group: list[tuple[int, int]]) -> None:
        """Mark cells pending."""
        at = np.array(group)
        marked = self.state.ledger_of(column).mark_pending(column, at[:, 0], at[:, 1] + self._first(session))
        self._each(column, session, group, marked, lambda key: self.model.pend(key, self.system.ns), "claim")

    @rule(column=columns, session=sessions, group=groups)
    def release(self, column: Column, session: str, group: list[tuple[int, int]]) -> None:
        """Give claims back."""
        at = np.array(group)
        released = self._rows(column, session).release_pending(column, at[:, 0], at[:, 1], now_ns=self.system.ns)
        self._each(column, session, group, released, lambda key: self.model.release(key, self.system.ns), "release")

    def _each(
        self, column: Column, session: str, group: list[tuple[int, int]], touched: np.ndarray, change: Any, name: str
    ) -> None:
        keys = [(column, symbol_id, self._first(session) + minute) for symbol_id, minute in group]
        for key, was in zip(keys, touched.tolist(), strict=True):
            assert change(key) == was, key
            self.steps[name] += was
        self._compare(keys)

    # ---- what operators do

    @rule(column=columns, session=sessions, group=groups, keep=st.booleans())
    def clear(self, column: Column, session: str, group: list[tuple[int, int]], keep: bool) -> None:
        """Clear cells; ``keep`` writes down first what goes."""
        at = np.array(group)
        if keep:
            slots = self._rows(column, session).slots(column, at[:, 0], at[:, 1])
            self._keep(column, session, group, slots)
        cleared = self.state.ledger_of(column).clear(column, at[:, 0], at[:, 1] + self._first(session))
        self._each(column, session, group, cleared, lambda key: self.model.clear(key, self.system.ns), "clear")

    def _keep(self, column: Column, session: str, group: list[tuple[int, int]], slots: np.ndarray) -> None:
        operation, at = f"op-{len(self.operations)}", np.array(group)
        keys = [(column, symbol_id, self._first(session) + minute) for symbol_id, minute in group]
        self.operations[operation] = [(key, self.model[key]) for key in keys]
        write_undo(
            self.directory, self.state.system, operation, {},
            column=np.full(len(group), list(Column).index(column)), symbol_id=at[:, 0],
            minute_idx=at[:, 1] + self._first(session), version=slots["version"] + 1, slots=slots,
        )  # fmt: skip

    @precondition(lambda self: self.operations)
    @rule(data=st.data())
    def undo(self, data: Any) -> None:
        """Give back what a clear took, where nobody wrote since."""
        operation = data.draw(st.sampled_from(sorted(self.operations)))
        kept = read_undo(self.directory, self.system, operation)
        for index, (key, before) in enumerate(self.operations[operation]):
            column, symbol_id, minute_idx = key
            rows, expected = self.state.ledger_of(column).session(minute_idx // 390), kept.version[index : index + 1]
            restored = rows.restore_many(
                column, np.array([symbol_id]), np.array([minute_idx % 390]), kept.slots[index : index + 1], expected,
                now_ns=self.system.ns,
            )  # fmt: skip
            assert self.model.restore(key, before, int(expected[0]), self.system.ns) == restored[0]
            self.steps["undo"] += bool(restored[0])
            self._compare([key])

    @rule(column=columns, session=sessions, group=groups, add=flag_words, remove=flag_words)
    def flag(self, column: Column, session: str, group: list[tuple[int, int]], add: Flag, remove: Flag) -> None:
        """Add and take away flags; a refresh adds *wanted*."""
        at = np.array(group)
        changed = self._rows(column, session).flag_many(
            column, at[:, 0], at[:, 1], add=add, remove=remove, now_ns=self.system.ns
        )
        change = lambda key: self.model.flag(key, add, remove, self.system.ns)  # noqa: E731
        self._each(column, session, group, changed, change, "flag")

    # ---- what the world does

    @rule(cell=cells)
    def repair(self, cell: tuple[Column, int, str, int]) -> None:
        """A cell is found broken."""
        column, symbol_id, session, minute = cell
        self._rows(column, session).repair(BrokenSlot(column, symbol_id, minute), now_ns=self.system.ns)
        key = (column, symbol_id, self._first(session) + minute)
        self.model.repair(key, self.system.ns)
        self._compare([key])

    @rule(jump=st.sampled_from((1, 60 * 10**9, -HOUR_NS, DAY_NS, -1)))
    def clock(self, jump: int) -> None:
        """The clock goes on, or jumps."""
        self.system.ns += jump

    @rule(killed=st.booleans())
    def reopen(self, killed: bool) -> None:
        """Close and open; ``killed`` writes nothing on the way out."""
        self._end(killed=killed)
        self.start()
        # A session is recovered when it is mapped: now, so that the clock of that is known.
        for column, minute_idx in {(column, minute_idx) for column, _, minute_idx in self.model.cells}:
            self.state.ledger_of(column).session(minute_idx // MINUTES_PER_SESSION)
        self.model.reopen(self.system.ns)
        self.steps["reopen"] += 1

    def _end(self, *, killed: bool) -> None:
        if killed:
            self.state.system.failure = StateReadOnly("killed")
        self.state.close()

    # ---- and at the end

    def teardown(self) -> None:
        """Every cell, plane and count is the dictionary's, by the daemon's eyes, a reader's and the checker's."""
        try:
            if not hasattr(self, "state"):
                return
            self._compare(list(self.model.cells))
            self._compare_planes(self.state)
            assert findings_of(self.state) == []
            with open_state(self.directory, readonly=True) as reader:
                self._compare_planes(reader)
            self._end(killed=False)
            with open_state(self.directory, readonly=True) as reader:
                self._compare_planes(reader)
                self._compare_headers(reader)
                assert findings_of(reader) == []
        finally:
            shutil.rmtree(self.folder)

    def _compare_planes(self, state: State) -> None:
        for column in COLUMNS:
            for session in (SESSION, EARLY_CLOSE):
                rows = state.ledger_of(column).session(state.calendar.session_seq(session))
                assert rows.symbols_end <= len(SYMBOLS)
                status = np.zeros((len(SYMBOLS), MINUTES_PER_SESSION), dtype=np.uint8)
                flags, first = np.zeros_like(status), self._first(session)
                for (other, symbol_id, minute_idx), cell in self.model.cells.items():
                    if other is column and first <= minute_idx < first + MINUTES_PER_SESSION:
                        status[symbol_id, minute_idx - first] = cell.status
                        flags[symbol_id, minute_idx - first] = cell.flags
                index = rows.column_index(column)
                assert np.array_equal(rows.status[index, : len(SYMBOLS)], status)
                assert np.array_equal(rows.flags[index, : len(SYMBOLS)], flags)

    def _compare_headers(self, reader: State) -> None:
        """Header pages count every cell of the reserved blocks."""
        for column in COLUMNS:
            ledger = reader.ledger_of(column)
            for session in (SESSION, EARLY_CLOSE):
                seq = reader.calendar.session_seq(session)
                rows = ledger.session(seq)
                counts = Counter(
                    cell.status
                    for (other, _, minute_idx), cell in self.model.cells.items()
                    if other is column and minute_idx // 390 == seq
                )
                counts[Status.EMPTY] = int(rows.reserved.sum()) * rows.place.minutes - counts.total() + counts[
                    Status.EMPTY
                ]  # fmt: skip
                del ledger.mapped()[seq]
                stored = ledger.counts(seq)
                rows.close()
                assert stored is not None
                assert stored[rows.column_index(column)].tolist() == [counts[Status(value)] for value in range(4)]


PLAIN = {"phases": (Phase.generate, Phase.shrink), "suppress_health_check": list(HealthCheck)}
"""Explaining a failure by tracing every line would take minutes."""


@pytest.fixture
def machine(template: Path) -> type[LedgerMachine]:
    """The machine over copies of the template."""
    LedgerMachine.template = template
    LedgerMachine.steps = Counter()
    return LedgerMachine


def test_the_ledger_is_a_dictionary(machine: type[LedgerMachine]) -> None:
    """The same short runs every time."""
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=40, **PLAIN))
    assert {"set_one CONFLICT", "set_many OUTRANKED", "set_rectangle UNCHANGED", "undo", "reopen"} <= set(machine.steps)


@pytest.mark.slow
def test_the_ledger_is_a_dictionary_at_length(machine: type[LedgerMachine], capsys: pytest.CaptureFixture[str]) -> None:
    """Longer runs from another seed each time."""
    chosen = random.randrange(2**32)
    with capsys.disabled():
        print(f"\nmodel: seed {chosen}")
    run_state_machine_as_test(
        seed(chosen)(machine),
        settings=settings(settings.get_profile("storm"), stateful_step_count=60, **PLAIN),
    )
    with capsys.disabled():
        print(f"model: {dict(sorted(machine.steps.items()))}")
