"""
Committing: a batch's records and cells into the ledger, in short steps, records durable before a cell names them.

Each step takes a few milliseconds, so that requests are served between steps. Cells are set only where the version is
still the one the plan saw; equal content changes nothing and appends nothing. This module must never compute content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from engines.contract import Batch, CellBlock, CellSpan, NoRowsCells, Task
from ledger.columns import Column, Flag, Source, Status
from ledger.content import checksum_of, no_rows_hash
from ledger.maps import Artifact
from ledger.records import NO_ROWS_ID, RECORD_NO_ROWS
from ledger.rows import Outcome, SessionRows
from ledger.state import State

SLICE_CELLS: Final = 4096
_FILL_SYMBOLS: Final = 16


@dataclass(slots=True)
class Counts:
    """What a commit did, in cells and symbols."""

    applied: int = 0
    unchanged: int = 0
    conflicts: int = 0
    outranked: int = 0
    records: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, outcome: np.ndarray) -> None:
        """Count the outcomes of a block write."""
        counts = np.bincount(outcome, minlength=4)
        self.applied += int(counts[Outcome.APPLIED])
        self.unchanged += int(counts[Outcome.UNCHANGED])
        self.conflicts += int(counts[Outcome.CONFLICT])
        self.outranked += int(counts[Outcome.OUTRANKED])


@dataclass(frozen=True, slots=True)
class Seen:
    """Versions of a session's cells of some columns as the plan saw them."""

    versions: dict[Column, tuple[np.ndarray, np.ndarray]]
    """Column -> (position by symbol_id i32[symbols], -1 where the symbol had no block; u32[n, minutes])."""

    def expected(self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray) -> np.ndarray:
        """u32[n], the version each cell had; 0 where its block did not exist."""
        position, versions = self.versions[column]
        at = position[symbol_ids]
        result = np.zeros(len(symbol_ids), dtype=np.uint32)
        known = at >= 0
        result[known] = versions[at[known], minutes[known]]
        return result


def look(state: State, columns: tuple[Column, ...], session: str, symbols: tuple[int, ...] | None) -> Seen:
    """The versions of a session's cells now; of all symbols that have a block where ``symbols`` is None."""
    versions = {}
    seq = state.calendar.session_seq(session)
    for column in columns:
        rows = state.ledger_of(column).session(seq)
        chosen = np.flatnonzero(rows.reserved)
        if symbols is not None:
            chosen = np.array([one for one in symbols if rows.reserved[one]], dtype=np.int64)
        position = np.full(len(rows.reserved), -1, dtype=np.int32)
        position[chosen] = np.arange(len(chosen))
        versions[column] = (position, rows.slots(column, chosen)["version"].copy())
    return Seen(versions)


@dataclass(frozen=True, slots=True)
class _Cells:
    rows: SessionRows
    column: Column
    symbol_ids: np.ndarray
    minutes: np.ndarray
    payload_ids: np.ndarray
    checksums: np.ndarray
    inputs: np.ndarray
    flags: np.ndarray
    source: Source


def commit(state: State, task: Task, batch: Batch, seen: Seen, counts: Counts) -> Iterator[str]:
    """
    Commit a batch in steps; yields "step" between them and "sync" while it waits for the records to be durable.

    Raises:
        SpaceError: the file system refused; what was set stays, and the same batch may be committed again.
    """
    artifact_ids: dict[int, int] = {}
    used: set[int] = set()
    waiting: list[_Cells] = []
    for block in batch.blocks:
        ids = _ids(state, block, counts)
        for cells in _prepare(state, task, batch, block, ids, artifact_ids, used, counts):
            waiting.append(cells)
            yield "step"
    span_ids = [_span_record(state, span, counts) for span in batch.spans]
    assert state.flusher is not None
    generation = state.flusher.wrote(urgent=True)
    while not state.flusher.maps_durable(generation):
        yield "sync"
    for cells in waiting:
        _set(cells, seen, counts)
        yield "step"
    for block in batch.blocks:
        if block.fill_no_rows:
            yield from _fill(state, task, block, _ids(state, block, counts), seen, counts)
    for span, payload_id in zip(batch.spans, span_ids, strict=True):
        yield from _set_span(state, task, span, payload_id, seen, counts)
    state.flusher.wrote()
    _discard(state, batch, used)


def commit_no_rows(state: State, task: Task, counts: Counts) -> Iterator[str]:
    """
    Set the cells of a task that has nothing to compute; its record is as old as the state, so nothing waits for a sync.

    Raises:
        SpaceError: the file system refused; calling again sets what is left.
    """
    cells: NoRowsCells
    for cells in task.arguments:
        rows = state.ledger_of(cells.column).session(state.calendar.session_seq(task.session))
        for start in range(0, len(cells.minutes), SLICE_CELLS):
            part = slice(start, start + SLICE_CELLS)
            counts.add(
                rows.set_many(
                    cells.column,
                    cells.symbol_ids[part],
                    cells.minutes[part],
                    NO_ROWS_ID,
                    no_rows_hash(cells.column.payload_kind) >> 32,
                    inputs=cells.inputs[part],
                    flags=cells.flags[part] | np.uint8(Flag.NO_ROWS),
                    expected_versions=cells.versions[part],
                    now_ns=rows.now_ns(),
                )
            )
            yield "step"
    if state.flusher is not None:
        state.flusher.wrote()


def _ids(state: State, block: CellBlock, counts: Counts) -> np.ndarray:
    """i64[n], the symbol id of each symbol of the block; -1 where the cap refused it."""
    given = state.allocate(block.symbols)
    if given.refused:
        known = set(counts.refused)
        counts.refused.extend(name for name in given.refused if name not in known)
    found = [state.symbols.get(symbol) for symbol in block.symbols]
    return np.array([-1 if one is None else one for one in found], dtype=np.int64)


def _prepare(
    state: State,
    task: Task,
    batch: Batch,
    block: CellBlock,
    ids: np.ndarray,
    artifact_ids: dict[int, int],
    used: set[int],
    counts: Counts,
) -> Iterator[_Cells]:
    """Append the records of cells that change, slice by slice, and say what is to be set."""
    rows = state.ledger_of(block.column).session(state.calendar.session_seq(task.session))
    payloads = state.maps[block.column.payload_kind]
    cells = np.load(block.path, mmap_mode="r") if block.count else np.zeros(0, dtype=[("symbol", "<u2")])
    for start in range(0, len(cells), SLICE_CELLS):
        some = np.array(cells[start : start + SLICE_CELLS])
        some = some[ids[some["symbol"]] >= 0]
        if not len(some):
            continue
        symbol_ids, minutes = ids[some["symbol"]], some["minute"].astype(np.int64)
        records = some["record"].copy()
        checksums = checksum_of(records["content_hash"])
        current = rows.slots(block.column, symbol_ids, minutes)
        same = (current["status"] == Status.FILLED) & (current["checksum"] == checksums)
        same &= current["inputs"] == some["inputs"]
        payload_ids = current["payload_id"].copy()
        no_rows = records["record_flags"] & RECORD_NO_ROWS != 0
        payload_ids[no_rows & ~same] = NO_ROWS_ID
        fresh = np.flatnonzero(~same & ~no_rows)
        if len(fresh):
            new = records[fresh]
            for index in np.unique(new["artifact_id"]):
                if index:
                    used.add(int(index))
                    new["artifact_id"][new["artifact_id"] == index] = _artifact_id(
                        state, task, batch, index, artifact_ids
                    )
            first = payloads.append(new)
            payload_ids[fresh] = np.arange(first, first + len(fresh), dtype=np.uint32)
            counts.records += len(fresh)
        yield _Cells(
            rows, block.column, symbol_ids, minutes, payload_ids, checksums, some["inputs"], some["flags"], block.source
        )


def _artifact_id(state: State, task: Task, batch: Batch, index: int, known: dict[int, int]) -> int:
    """The id of the batch's artifact; recorded, durably, when the first record names it."""
    if index not in known:
        made = batch.artifacts[index - 1]
        found = state.artifacts.by_uri(made.uri)
        if found is None:
            found = state.artifacts.append(
                Artifact(
                    artifact_id=0,
                    uri=made.uri,
                    checksum=made.checksum,
                    bytes=made.bytes,
                    rows=made.rows,
                    column=made.column.value,
                    session=task.session,
                    engine=task.engine,
                )
            )
        known[index] = found.artifact_id
    return known[index]


def _set(cells: _Cells, seen: Seen, counts: Counts) -> None:
    now_ns = cells.rows.now_ns()
    counts.add(
        cells.rows.set_many(
            cells.column,
            cells.symbol_ids,
            cells.minutes,
            cells.payload_ids,
            cells.checksums,
            inputs=cells.inputs,
            source=cells.source,
            flags=cells.flags,
            expected_versions=seen.expected(cells.column, cells.symbol_ids, cells.minutes),
            now_ns=now_ns,
        )
    )


def _fill(state: State, task: Task, block: CellBlock, ids: np.ndarray, seen: Seen, counts: Counts) -> Iterator[str]:
    """Fill with no rows every window of the block's symbols that the block has no cell for."""
    rows = state.ledger_of(block.column).session(state.calendar.session_seq(task.session))
    minutes = rows.place.minutes
    named = np.zeros((len(ids), minutes), dtype=bool)
    if block.count:
        cells = np.load(block.path, mmap_mode="r")
        named[cells["symbol"], cells["minute"]] = True
    chosen = np.flatnonzero(ids >= 0)
    for start in range(0, len(chosen), _FILL_SYMBOLS):
        some = chosen[start : start + _FILL_SYMBOLS]
        at, minute = np.nonzero(~named[some])
        fill_no_rows(rows, block.column, ids[some][at], minute, block.source, seen, counts)
        yield "step"


def fill_no_rows(
    rows: SessionRows,
    column: Column,
    symbol_ids: np.ndarray,
    minutes: np.ndarray,
    source: Source,
    seen: Seen | None,
    counts: Counts,
    *,
    suspect: bool = False,
) -> None:
    """Fill cells with the no-rows record, leaving alone those that hold it already and are not wanted."""
    if not len(symbol_ids):
        return
    index = rows.column_index(column)
    flags = rows.flags[index, symbol_ids, minutes]
    held = (rows.status[index, symbol_ids, minutes] == Status.FILLED) & (flags & np.uint8(Flag.NO_ROWS) != 0)
    held &= flags & np.uint8(Flag.WANTED | Flag.PARTIAL) == 0
    symbol_ids, minutes = symbol_ids[~held], minutes[~held]
    if not len(symbol_ids):
        return
    counts.add(
        rows.set_many(
            column,
            symbol_ids,
            minutes,
            NO_ROWS_ID,
            no_rows_hash(column.payload_kind) >> 32,
            source=source,
            flags=int(Flag.NO_ROWS | (Flag.SUSPECT if suspect else Flag.NONE)),
            expected_versions=None if seen is None else seen.expected(column, symbol_ids, minutes),
            now_ns=rows.now_ns(),
        )
    )


def _span_record(state: State, span: CellSpan, counts: Counts) -> int:
    """The payload id of a span's record; appended only where the mapping file has none of that content."""
    payloads = state.maps[span.column.payload_kind]
    known = payloads.get_many(np.arange(1, payloads.next_id))
    same = np.flatnonzero((known["content_hash"] == span.record["content_hash"][0]) & (known["schema_version"] > 0))
    if len(same):
        return int(same[-1]) + 1
    counts.records += 1
    return payloads.append(span.record.copy())


def _set_span(state: State, task: Task, span: CellSpan, payload_id: int, seen: Seen, counts: Counts) -> Iterator[str]:
    """Set a rectangle of cells to one payload, a few symbols a step."""
    rows = state.ledger_of(span.column).session(state.calendar.session_seq(task.session))
    ids = np.array([state.symbols.resolve(symbol) for symbol in span.symbols], dtype=np.int64)
    minutes = np.arange(span.first_minute, span.last_minute)
    checksum = int(checksum_of(span.record["content_hash"])[0])
    for start in range(0, len(ids), _FILL_SYMBOLS):
        some = ids[start : start + _FILL_SYMBOLS]
        symbol_ids, cells = np.repeat(some, len(minutes)), np.tile(minutes, len(some))
        counts.add(
            rows.set_many(
                span.column,
                symbol_ids,
                cells,
                payload_id,
                checksum,
                inputs=span.inputs,
                source=span.source,
                expected_versions=seen.expected(span.column, symbol_ids, cells),
                now_ns=rows.now_ns(),
            )
        )
        yield "step"


def _discard(state: State, batch: Batch, used: set[int]) -> None:
    """Remove artifacts that no record came to name, and the staged cells."""
    for index, made in enumerate(batch.artifacts, 1):
        if index not in used and state.artifacts.by_uri(made.uri) is None:
            (state.artifact_root / made.uri).unlink(missing_ok=True)
    for block in batch.blocks:
        if block.count:
            Path(block.path).unlink(missing_ok=True)
