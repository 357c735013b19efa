"""
A writer that does what a daemon does, in random order, and tells what it was promised; and what must then be there.

Shared by the storms: the power cuts watch it in this process, the kills in another one. Every event is told before the
write it announces, or after the promise it reports, so that whoever has heard all of them knows what is in flight.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ledger.audit import Operator
from ledger.backup import Copied, backup, finish
from ledger.collection import Collected, collect
from ledger.columns import Column, Flag, PayloadKind, Source, Status
from ledger.content import checksum_of
from ledger.files import System
from ledger.records import RECORD_RETIRED
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State, open_state
from ledger.undo import list_undo, read_undo, remove_undo, write_undo
from tests.ledger.states import EARLY_CLOSE, SESSION, SYMBOLS, add_rows, append, findings, hashes

COLUMNS = (Column.TRADE_REF, Column.QUOTE_REF, Column.AGGS_1H)
SESSIONS = (SESSION, EARLY_CLOSE)
MINUTES = 8
ORDERED, ROWS_FIRST, ALONE = "ordered", "rows before records", "the system alone"
PHASES = ("set", "clear", "undo", "refresh", "flush", "allocate", "artifact", "region", "source", "audit", "start",
          "reopen", "idle", "backup", "collect", "retire", "reread")  # fmt: skip
Key = tuple[Column, str, int]
Said = tuple[Status, int]
"""Status and content hash."""
NEVER: Said = (Status.EMPTY, 0)
TAKEN: Said = (Status.CLEARED, 0)


@dataclass
class Promises:
    """What a writer did, and what it was told to be durable; fed with its events."""

    cells: dict[Key, dict[int, Said]] = field(default_factory=dict)
    """By version; entered before the write."""
    applied: dict[Key, int] = field(default_factory=dict)
    """The version that a reader sees; a killed process must not lose it."""
    durable: dict[Key, int] = field(default_factory=dict)
    """The version that a power cut must not lose."""
    symbols: list[str] = field(default_factory=lambda: list(SYMBOLS))
    regions: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    artifacts: int = 0
    audit: int = 0
    undo: set[str] = field(default_factory=set)
    start: int = 0
    phase: str = "opening"
    backups: int = 0

    def take(self, event: tuple[str, Any]) -> None:
        """Heed one event."""
        kind, value = event
        match kind:
            case "cells":
                for key, said in value:
                    versions = self.cells.setdefault(key, {0: NEVER})
                    versions[max(versions) + 1] = said
            case "applied":
                self.applied = {key: max(versions) for key, versions in self.cells.items()}
            case "durable":
                self.durable = {key: max(versions) for key, versions in self.cells.items()}
            case "known":
                self.cells = {key: {version: said} for key, (version, said) in value.items()}
                self.applied = {key: version for key, (version, _) in value.items()}
            case "symbols":
                self.symbols += value
            case "source":
                self.sources[value[0]] = value[1]
            case "undo":
                self.undo.add(value)
            case "forgotten":
                self.undo.discard(value)
            case "start" | "phase":
                setattr(self, kind, value)
            case _:
                setattr(self, kind, getattr(self, kind) + 1)


class Writer:
    """
    Random steps on one state.

    Args:
        directory: the state; its symbols are those of :data:`tests.ledger.states.SYMBOLS` and what writers added.
        system: makes the system calls.
        chance: decides.
        tell: hears every event.
        policy: when records and rows are synced.
        promises: what is known of earlier writers of this state.
    """

    def __init__(
        self,
        directory: Path,
        system: System,
        chance: random.Random,
        *,
        tell: Callable[[tuple[str, Any]], None] = lambda _event: None,
        policy: str = ORDERED,
        promises: Promises | None = None,
    ) -> None:
        self.directory = directory
        self.system = system
        self.chance = chance
        self.policy = policy
        self.promises = promises or Promises()
        self._tell = tell
        self._last: tuple[Column, int, np.ndarray, np.ndarray] | None = None
        self.state = self._opened()

    def tell(self, kind: str, value: Any = None) -> None:
        self.promises.take((kind, value))
        self._tell((kind, value))

    def _opened(self) -> State:
        return open_state(self.directory, system=self.system, flush_interval_s=3600)

    def step(self, phase: str) -> None:
        """One thing of a kind; ``applied`` when it is done."""
        self.tell("phase", phase)
        getattr(self, f"_{phase}")()
        self.tell("applied")

    # ---- cells

    def _cells(self) -> tuple[Column, int, np.ndarray, np.ndarray]:
        """A column, a session, and distinct cells of it; now and then those of the last time, whose files then go."""
        if self._last is not None and self.chance.random() < 0.3:
            return self._last
        column, session = self.chance.choice(COLUMNS), self.chance.choice(SESSIONS)
        places = [(symbol, minute) for symbol in range(min(len(self.state.symbols), 6)) for minute in range(MINUTES)]
        at = np.array(self.chance.sample(places, self.chance.choice((1, 3, 20))))
        self._last = column, self.state.calendar.session_seq(session), at[:, 0], at[:, 1]
        return self._last

    def _filled(self) -> tuple[Column, int, np.ndarray, np.ndarray]:
        """The filled ones among some cells."""
        column, seq, symbols, minutes = self._cells()
        rows = self.state.ledger_of(column).session(seq)
        held = rows.status[rows.column_index(column), symbols, minutes] == Status.FILLED
        return column, seq, symbols[held], minutes[held]

    def _announce(self, column: Column, seq: int, symbols: np.ndarray, minutes: np.ndarray, after: list[Said]) -> None:
        names = [self.state.symbols.name(int(symbol)) for symbol in symbols]
        keys = [(column, name, seq * 390 + int(minute)) for name, minute in zip(names, minutes, strict=True)]
        self.tell("cells", list(zip(keys, after, strict=True)))

    def _hashes_of(self, column: Column, slots: np.ndarray) -> list[int]:
        found: list[int] = self.state.maps[column.payload_kind].get_many(slots["payload_id"])["content_hash"].tolist()
        return found

    def _set(self) -> None:
        column, seq, symbols, minutes = self._cells()
        self.fill(column, seq, symbols, minutes, hashes(self.chance.randrange(1 << 30), len(symbols)))

    def fill(self, column: Column, seq: int, symbols: np.ndarray, minutes: np.ndarray, contents: np.ndarray) -> None:
        """New records, and cells that name them, as the policy has it; those of quotes have rows."""
        artifact_id = self._new_artifact(len(symbols)) if column is Column.QUOTE_REF else 0
        ids, sums = append(self.state, column.payload_kind, contents, artifact_id), checksum_of(contents)
        if self.policy == ORDERED:
            self._wait(durable=False)
        self._announce(column, seq, symbols, minutes, [(Status.FILLED, one) for one in contents.tolist()])
        ledger, kind = self.state.ledger_of(column), column.payload_kind
        if len(symbols) == 1:
            minute_idx = seq * 390 + int(minutes[0])
            ledger.set(column, int(symbols[0]), minute_idx, kind, int(ids[0]), int(sums[0]), source=Source.FLAT_FILE)
        else:
            ledger.set(column, symbols, seq * 390 + minutes, kind, ids, sums, source=Source.FLAT_FILE)

    def _wait(self, *, durable: bool) -> None:
        """For the flusher, as a commit does: until records, or everything, are on disk."""
        flusher = self.state.flusher
        assert flusher is not None
        generation = flusher.wrote(urgent=True)
        while not (flusher.durable(generation) if durable else flusher.maps_durable(generation)):
            pass

    def _clear(self) -> None:
        """What goes is kept first."""
        column, seq, symbols, minutes = self._filled()
        if not len(symbols):
            return
        rows = self.state.ledger_of(column).session(seq)
        slots = rows.slots(column, symbols, minutes)
        operation = f"op-{self.chance.randrange(1 << 30)}"
        write_undo(
            self.directory, self.state.system, operation, {}, column=np.full(len(symbols), list(Column).index(column)),
            symbol_id=symbols, minute_idx=minutes + seq * 390, version=slots["version"] + 1, slots=slots,
        )  # fmt: skip
        self.tell("undo", operation)
        self._announce(column, seq, symbols, minutes, [TAKEN] * len(symbols))
        rows.clear_many(column, symbols, minutes, now_ns=rows.now_ns())

    def _undo(self) -> None:
        if not self.promises.undo:
            return
        operation = self.chance.choice(sorted(self.promises.undo))
        kept = read_undo(self.directory, self.state.system, operation)
        column, seq = list(Column)[kept.column[0]], int(kept.minute_idx[0]) // 390
        rows = self.state.ledger_of(column).session(seq)
        symbols, minutes = kept.symbol_id.astype(int), kept.minute_idx.astype(int) % 390
        now = rows.slots(column, symbols, minutes)["version"] == kept.version
        after: list[Said] = [(Status.FILLED, one) for one in self._hashes_of(column, kept.slots[now])]
        self._announce(column, seq, symbols[now], minutes[now], after)
        rows.restore_many(column, symbols, minutes, kept.slots, kept.version, now_ns=rows.now_ns())
        if now.all() and self.policy == ORDERED:
            # What is forgotten must be on disk before; until then it can be undone again.
            self._flush()
            self.tell("forgotten", operation)
            remove_undo(self.directory, self.state.system, operation)

    def _refresh(self) -> None:
        column, seq, symbols, minutes = self._filled()
        rows = self.state.ledger_of(column).session(seq)
        fresh = rows.flags[rows.column_index(column), symbols, minutes] & Flag.WANTED == 0
        symbols, minutes = symbols[fresh], minutes[fresh]
        after: list[Said] = [
            (Status.FILLED, one) for one in self._hashes_of(column, rows.slots(column, symbols, minutes))
        ]
        self._announce(column, seq, symbols, minutes, after)
        rows.flag_many(column, symbols, minutes, add=Flag.WANTED, now_ns=rows.now_ns())

    def _flush(self) -> None:
        if self.policy == ALONE:
            return
        if self.policy == ROWS_FIRST:
            self.state._sync_rows()
        self._wait(durable=True)
        self.tell("durable")

    # ---- everything else

    def _allocate(self) -> None:
        """A few new symbols, or more than fit a sector."""
        first = len(self.state.symbols)
        names = [f"S{number}" for number in range(first, first + self.chance.choice((1, 2, 40)))]
        self.tell("symbols", list(self.state.allocate(names).allocated))

    def _artifact(self) -> None:
        """One that no cell will ever name."""
        self._new_artifact(1)

    def _new_artifact(self, rows: int) -> int:
        artifact_id = add_rows(self.state, f"{self.chance.randrange(1 << 60):020d}.parquet", rows)
        self.tell("artifacts")
        return artifact_id

    def _region(self) -> None:
        self.state.regions.add(symbol="AIG", symbol_id=0, start_ts=1, end_ts=2, priority=1)
        self.tell("regions")

    def _source(self) -> None:
        session = self.chance.choice(SESSIONS)
        rows = self.promises.sources.get(session, 0) + 1
        self.state.sources.put(source_record(session, rows))
        self.tell("source", (session, rows))

    def _audit(self) -> None:
        self.state.audit._rotate_bytes = self.chance.choice((1 << 24, 2000))
        self.state.audit.append("clear", Operator(uid=1), cause="x" * self.chance.randrange(3000))
        self.tell("audit")

    def _start(self) -> None:
        self.tell("start", self.state.take_start_number())

    def _reopen(self) -> None:
        """Close in order, and open again."""
        self.state.close()
        if self.policy == ORDERED:
            self.tell("durable")
        self.state = self._opened()

    def _idle(self) -> None:
        """Let every session go."""
        for ledger in (self.state.trade, self.state.enrichment):
            ledger.drop_idle(idle_ns=-1)

    def _backup(self) -> None:
        """Beside the state; a copy is only done when it verifies."""
        target = self.directory.parent / "copy"
        for _ in backup(self.state, target, Copied()):
            pass
        found = findings(target)
        assert found == [], found[:3]
        finish(self.state, target)
        self.tell("backups")

    def _collect(self) -> None:
        """All that may go goes: what is kept for undos too, and at once what the last step superseded."""
        for operation in sorted(self.promises.undo):
            self.tell("forgotten", operation)
        self._collected(older_than_ns=1 << 62)

    def _retire(self) -> None:
        """The quotes of a session lose their rows by age; nothing else goes."""
        self._collected(older_than_ns=0, retire_sessions=(self.chance.choice(SESSIONS),))

    def _collected(self, *, older_than_ns: int, retire_sessions: tuple[str, ...] = ()) -> None:
        steps = collect(
            self.state, older_than_ns=older_than_ns, current_prefix="x", dry_run=False, result=Collected(),
            retire_sessions=retire_sessions,
        )  # fmt: skip
        for _ in steps:
            pass

    def _reread(self) -> None:
        """Retired quotes that cells name are read again: their records find their rows in a new artifact."""
        rows = self.state.trade.session(self.state.calendar.session_seq(self.chance.choice(SESSIONS)))
        slots = rows.slots(
            Column.QUOTE_REF, *np.nonzero(rows.status[rows.column_index(Column.QUOTE_REF)] == Status.FILLED)
        )
        payloads = self.state.maps[PayloadKind.QUOTE]
        ids = np.unique(slots["payload_id"]).astype(np.int64)
        records = payloads.get_many(ids)
        lost = records["record_flags"] & RECORD_RETIRED != 0
        ids, records = ids[lost], records[lost]
        if not len(ids):
            return
        records["record_flags"] &= ~np.uint8(RECORD_RETIRED)
        records["artifact_id"] = self._new_artifact(len(ids))
        records["row_start"], records["row_count"] = np.arange(len(ids)), 1
        payloads.relocate(ids, records)

    def complete(self) -> None:
        """Fill every cell that a writer may have touched with what it is to hold in the end."""
        for number, column in enumerate(COLUMNS):
            for session in SESSIONS:
                symbols = np.repeat(np.arange(len(SYMBOLS)), MINUTES)
                minutes = np.tile(np.arange(MINUTES), len(SYMBOLS))
                self.fill(
                    column, self.state.calendar.session_seq(session), symbols, minutes, hashes(number, len(symbols))
                )
                self.state.sources.put(source_record(session, 0))
        self._flush()


def source_record(session: str, rows: int) -> SourceRecord:
    """A complete source of the symbols that every state of the tests has."""
    ids = np.arange(len(SYMBOLS))
    packed = pack_symbols(ids, ids * 0, ids * 0, ids * 0.0)
    return SourceRecord(dataset="trades", session=session, state=SourceState.COMPLETE, rows=rows, symbols=packed)


# ---- what must be there


def cells_of(state: State) -> dict[Key, tuple[int, Said]]:
    """Version, status and content hash of every cell that was ever written, by its symbol's name."""
    found: dict[Key, tuple[int, Said]] = {}
    for column in COLUMNS:
        ledger = state.ledger_of(column)
        for seq in ledger.existing():
            rows = ledger.session(seq)
            symbols, minutes = np.nonzero(rows.status[rows.column_index(column), : rows.symbols_end])
            slots = rows.slots(column, symbols, minutes)
            records = state.maps[column.payload_kind].get_many(slots["payload_id"])
            for at, slot in enumerate(slots):
                key = (column, state.symbols.name(int(symbols[at])), seq * 390 + int(minutes[at]))
                found[key] = int(slot["version"]), (Status(slot["status"]), int(records["content_hash"][at]))
    return found


def wrong(found: dict[Key, tuple[int, Said]], promises: Promises) -> list[Key]:
    """Cells that say what no writer said in that version; those that recovery cleared say nothing."""
    return [key for key, (version, said) in found.items() if promises.cells.get(key, {}).get(version) != said != TAKEN]


def lost(found: dict[Key, tuple[int, Said]], promises: Promises, kept: dict[Key, int]) -> list[Key]:
    """Cells of ``kept`` that are older, or were cleared by recovery."""
    return [
        key
        for key, version in kept.items()
        for now, said in [found.get(key, (0, NEVER))]
        if now < version or promises.cells[key].get(now) != said
    ]


def missing(state: State, promises: Promises) -> list[str]:
    """What was promised of the small files and is not there."""
    rows = {record.session: record.rows for record in state.sources.all()}
    lines = [record for record in state.audit.tail(1 << 30) if record.op == "clear"]
    checks = {
        "symbols": state.symbols.names()[: len(promises.symbols)] == promises.symbols,
        "regions": len(state.regions.list()) >= promises.regions,
        "sources": all(rows.get(session, 0) >= count for session, count in promises.sources.items()),
        "artifacts": len(state.artifacts) >= promises.artifacts,
        "audit": len(lines) >= promises.audit,
        "undo": promises.undo <= set(list_undo(state.directory, state.system)),
        "start": state.take_start_number() > promises.start,
    }
    return [name for name, there in checks.items() if not there]
