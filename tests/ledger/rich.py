"""A small state with something in every file, closed in order; and where each kind of its bytes lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ledger.audit import Operator
from ledger.columns import Column, PayloadKind, Source
from ledger.content import checksum_of
from ledger.documents import (
    KEYS_FILE,
    KEYS_KIND,
    KEYS_VERSION,
    MARK_KIND,
    PAUSED_FILE,
    PAUSED_KIND,
    write_document,
)
from ledger.framed import FramedFile
from ledger.frames import ArtifactWriter
from ledger.layout import BLOCK_BYTES, COUNTS_OFFSET, FILE_BYTES, PAGE, ROW_BYTES, ROWS_COUNTS, ROWS_IDENTITY
from ledger.layout import SLOT_OFFSET as SLOT
from ledger.maps import RECORDS_OFFSET, Artifact
from ledger.records import RECORD_DTYPE, blank
from ledger.state import State, open_state
from ledger.undo import OPEN_FOLDER, write_undo
from tests.ledger.states import EARLY_CLOSE, SESSION, hashes, put
from tests.ledger.writer import source_record

ROWS_FILE = f"trade/{SESSION}.rows"
SHORT_FILE = f"enrichment/{EARLY_CLOSE}.rows"
ARTIFACT = "trade/2013-10-07/000001-rows.parquet"


def make_rich(directory: Path) -> Path:
    """Fill a state of the template's symbols."""
    with open_state(directory) as state:
        first, short = state.calendar.session_seq(SESSION) * 390, state.calendar.session_seq(EARLY_CLOSE) * 390
        with_rows(state, first)
        put(state, Column.AGGRESSOR_REF, [0, 1], [first, first + 1], 2)
        put(state, Column.TRADE_REF, [1, 2], [short, short + 209], 3)
        put(state, Column.AGGS_4H, [0, 3], [short, short + 1], 4, flags=8)
        put(state, Column.GREEKS_REF, [3], [short], 5)
        state.regions.add(symbol="AIG", symbol_id=0, start_ts=1, end_ts=2, priority=5, cause="first")
        state.regions.add(symbol="TWX", symbol_id=1, start_ts=1, end_ts=2, priority=6, cause="second")
        for session in (SESSION, EARLY_CLOSE):
            state.sources.put(source_record(session, 7))
        for cause in ("one", "two", "three"):
            state.audit.append("clear", Operator(uid=1, user="ann"), cause=cause)
        rows = state.trade.session(first // 390)
        slots = rows.slots(Column.TRADE_REF, np.array([0, 0]), np.array([0, 1]))
        write_undo(
            directory, state.system, "op-7", {"op": "clear"}, column=[1, 1], symbol_id=[0, 0],
            minute_idx=[first, first + 1], version=slots["version"] + 1, slots=slots,
        )  # fmt: skip
        state.take_start_number()
        with_daemon_files(state)
    return directory


def with_daemon_files(state: State) -> None:
    """What a daemon keeps beside the ledger: pauses, the mark of an operation, remembered answers."""
    directory, system = state.directory, state.system
    write_document(system, directory / PAUSED_FILE, PAUSED_KIND, {"quote": "ann: outage", "nbbo": "ann: outage"})
    system.make_directory(directory / OPEN_FOLDER)
    write_document(system, directory / OPEN_FOLDER / "op-9", MARK_KIND, {"key": "k" * 40, "uid": 1})
    keys, _ = FramedFile.open(system, directory / KEYS_FILE, KEYS_KIND, KEYS_VERSION, {"year": state.year})
    keys.append([b"answer" * 20, b"another" * 20])
    state.ends[KEYS_FILE] = lambda: keys.length
    keys.close()


def with_rows(state: State, first: int) -> None:
    """Ten cells of trades with three rows each, in a Parquet artifact."""
    writer = ArtifactWriter(state.artifact_root / ARTIFACT)
    writer.write(pl.DataFrame({"price": np.arange(30) / 7, "size": np.arange(30)}))
    made = writer.finish()
    assert made is not None
    artifact = state.artifacts.append(
        Artifact(artifact_id=0, uri=ARTIFACT, checksum=made.checksum, bytes=made.bytes, rows=made.rows,
                 column="trade_ref", session=SESSION, engine="test")
    )  # fmt: skip
    records = blank(PayloadKind.TRADE, 10)
    records["content_hash"], records["artifact_id"] = hashes(1, 10), artifact.artifact_id
    records["row_start"], records["row_count"] = np.arange(10) * 3, 3
    ids = np.arange(10) + state.maps[PayloadKind.TRADE].append(records.copy())
    minutes, sums = np.arange(10) + first, checksum_of(records["content_hash"])
    state.trade.set_trade_ref(np.zeros(10, int), minutes, PayloadKind.TRADE, ids, sums, source=Source.FLAT_FILE)


@dataclass(frozen=True)
class Place:
    """Bytes of one kind in one file."""

    kind: str
    file: str
    start: int
    stop: int


def places(directory: Path) -> list[Place]:
    """Every kind of byte of a rich state."""
    found = [*_rows(), *_short_rows(), *_maps(), *_symbols()]
    for name in ("format", "maps/start", "closed"):
        found += _header(name, size=PAGE)
    framed = ("calendar", "sources", "regions", "maps/artifacts.map", "audit/undo/op-7")
    for name in (*framed, KEYS_FILE, PAUSED_FILE, f"{OPEN_FOLDER}/op-9"):
        found += _header(name, size=PAGE)
        data = (directory / name).read_bytes()
        size, length = len(data), int.from_bytes(data[PAGE : PAGE + 4], "little")
        # What says which engines are paused is the shortest: its only frame ends before the others' first.
        found += [
            Place("first frame's length", name, PAGE, PAGE + 4),
            Place("first frame's checksum", name, PAGE + 4, PAGE + 8),
            Place("first frame's payload", name, PAGE + 8, PAGE + 8 + min(length, 52)),
            Place("last frame's end", name, max(PAGE, size - 40), size),
            Place("last byte", name, size - 1, size),
        ]
    size = (directory / "audit/audit.log").stat().st_size
    found += [
        Place("first line", "audit/audit.log", 0, 200),
        Place("last line", "audit/audit.log", size - 300, size),
        Place("artifact", f"artifacts/{ARTIFACT}", 0, (directory / "artifacts" / ARTIFACT).stat().st_size),
    ]
    return found


def _header(name: str, *, size: int) -> list[Place]:
    return [
        Place("header: magic", name, 0, 8),
        Place("header: version", name, 8, 12),
        Place("header: checksum", name, 12, 16),
        Place("header: length", name, 16, 20),
        Place("header: facts", name, 20, 60),
        Place("header: padding", name, size - 500, size),
    ]


def _rows() -> list[Place]:
    row, slot = PAGE, PAGE + SLOT[Column.TRADE_REF]
    fields = (("payload_type", 1), ("status", 1), ("source", 1), ("flags", 1), ("payload_id", 4), ("version", 4),
              ("checksum", 4), ("last_updated_ns", 8), ("inputs", 4), ("seal", 4))  # fmt: skip
    found, at = [], slot
    for name, size in fields:
        found.append(Place(f"slot: {name}", ROWS_FILE, at, at + size))
        at += size
    counts = COUNTS_OFFSET + ROWS_COUNTS.itemsize
    block = BLOCK_BYTES[Column.TRADE_REF.ledger]
    unused = PAGE + 100 * block
    found += [
        Place("identity: magic", ROWS_FILE, 0, 8),
        Place("identity: version", ROWS_FILE, 8, 12),
        Place("identity: checksum", ROWS_FILE, 12, 16),
        Place("identity: fields", ROWS_FILE, 16, ROWS_IDENTITY.itemsize),
        Place("header page: padding before the counts", ROWS_FILE, ROWS_IDENTITY.itemsize, COUNTS_OFFSET),
        Place("counts: checksum", ROWS_FILE, COUNTS_OFFSET, COUNTS_OFFSET + 4),
        Place("counts: clean", ROWS_FILE, COUNTS_OFFSET + 4, COUNTS_OFFSET + 8),
        Place("counts: numbers", ROWS_FILE, COUNTS_OFFSET + 8, counts),
        Place("header page: padding behind the counts", ROWS_FILE, counts, PAGE),
        Place("row header: symbol_id", ROWS_FILE, row, row + 2),
        Place("row header: schema_version", ROWS_FILE, row + 2, row + 4),
        Place("row header: minute_idx", ROWS_FILE, row + 4, row + 8),
        Place("row header: times", ROWS_FILE, row + 8, row + 24),
        Place("row header: reserved", ROWS_FILE, row + 24, row + 32),
        Place("slot: empty", ROWS_FILE, slot + 32, slot + 64),
        Place("block: padding", ROWS_FILE, PAGE + 390 * ROW_BYTES[Column.TRADE_REF.ledger], PAGE + block),
        Place("block never used: row header", ROWS_FILE, unused, unused + 32),
        Place("block never used: later row header", ROWS_FILE, unused + 160 * 5, unused + 160 * 5 + 32),
        Place("block never used: slot", ROWS_FILE, unused + 32, unused + 64),
        Place("block never used: padding", ROWS_FILE, unused + 390 * 160, unused + block),
        Place(
            "last block", ROWS_FILE, FILE_BYTES[Column.TRADE_REF.ledger] - block, FILE_BYTES[Column.TRADE_REF.ledger]
        ),
    ]
    return found


def _short_rows() -> list[Place]:
    kind = Column.AGGS_4H.ledger
    behind = PAGE + 3 * BLOCK_BYTES[kind] + 210 * ROW_BYTES[kind]
    return [
        Place("slot behind the close", SHORT_FILE, behind + 32, behind + ROW_BYTES[kind]),
        Place("row header behind the close", SHORT_FILE, behind, behind + 32),
    ]


def _maps() -> list[Place]:
    name, size = "maps/trade.map", RECORD_DTYPE[PayloadKind.TRADE].itemsize
    second = RECORDS_OFFSET + size
    return [
        *_header(name, size=PAGE),
        Place("mark: checksum", name, PAGE, PAGE + 4),
        Place("mark: clean", name, PAGE + 4, PAGE + 8),
        Place("mark: reserved", name, PAGE + 8, PAGE + 16),
        Place("mark: next id", name, PAGE + 16, PAGE + 24),
        Place("mark: unused", name, PAGE + 24, PAGE + 32),
        Place("mark: padding", name, PAGE + 32, 2 * PAGE),
        Place("record: no rows", name, RECORDS_OFFSET, second),
        Place("record: checksum", name, second, second + 4),
        Place("record: content hash", name, second + 8, second + 16),
        Place("record: fields", name, second + 16, second + size),
        Place("record: schema version", name, second + 4, second + 5),
    ]


def _symbols() -> list[Place]:
    name = "symbol-map.bin"
    return [
        *_header(name, size=PAGE),
        Place("first entry", name, PAGE, PAGE + 32),
        Place("last entry", name, PAGE + 3 * 32, PAGE + 4 * 32),
        Place("entry never used", name, PAGE + 500 * 32, PAGE + 501 * 32),
        Place("last entry of all", name, PAGE + 9_999 * 32, PAGE + 10_000 * 32),
    ]
