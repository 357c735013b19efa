"""
Committing: a batch's records and cells into the ledger, in short steps, records durable before a cell names them.

Each step takes a few milliseconds, so that requests are served between steps. Cells are set only where the version is
still the one the plan saw; equal content changes nothing and appends nothing. This module must never compute content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.contract import RECORD_OFFSET, Batch, CellBlock, CellSpan, NoRowsCells, Task
from ledger.columns import Column, Flag, Source, Status
from ledger.content import checksum_of, no_rows_hash
from ledger.maps import Artifact
from ledger.records import NO_ROWS_ID, RECORD_NO_ROWS, RECORD_RETIRED
from ledger.retention import RETIRING
from ledger.rows import Outcome, SessionRows
from ledger.state import State
from m17d.changed import Changed
from m17d.superseding import Guard, ask_again, keep

SLICE_CELLS: Final = 4096
_FILL_SYMBOLS: Final = 16
_SLICES_PER_SYNC: Final = 16
_RESERVE_SYMBOLS: Final = 64


@dataclass(slots=True)
class Counts:
    """What a commit did, in cells and symbols."""

    applied: int = 0
    unchanged: int = 0
    conflicts: int = 0
    outranked: int = 0
    held_back: int = 0
    """Cells that kept what a worse source had brought, because the better one had far fewer rows."""
    records: int = 0
    refused: list[str] = field(default_factory=list)
    repaired: Counter[Column] = field(default_factory=Counter)
    """Cells that were cleared or wanted before."""
    remade: Counter[Column] = field(default_factory=Counter)
    """Cells that were filled before, and not wanted."""
    remade_by_curve: Counter[int] = field(default_factory=Counter)
    """Of those, the ones made with a curve, by its payload_id."""
    changed: dict[Column, Changed] = field(default_factory=dict)
    """Which cells were set, for events."""

    def add(self, outcome: np.ndarray) -> None:
        """Count the outcomes of a block write."""
        counts = np.bincount(outcome, minlength=4)
        self.applied += int(counts[Outcome.APPLIED])
        self.unchanged += int(counts[Outcome.UNCHANGED])
        self.conflicts += int(counts[Outcome.CONFLICT])
        self.outranked += int(counts[Outcome.OUTRANKED])

    def set(
        self,
        rows: SessionRows,
        column: Column,
        symbol_ids: np.ndarray,
        minutes: np.ndarray,
        *arguments: Any,
        curves: np.ndarray | None = None,
        **named: Any,
    ) -> np.ndarray:
        """Set cells of one column, see :meth:`SessionRows.set_many`, and count what they were before."""
        index = rows.column_index(column)
        status, flags = rows.status[index, symbol_ids, minutes], rows.flags[index, symbol_ids, minutes]
        outcome = rows.set_many(column, symbol_ids, minutes, *arguments, now_ns=rows.now_ns(), **named)
        self.add(outcome)
        applied = outcome == Outcome.APPLIED
        filled = status == Status.FILLED
        wanted = filled & (flags & np.uint8(Flag.WANTED) != 0)
        remade = applied & filled & ~wanted
        if applied.any():
            self.changed.setdefault(column, Changed()).note(symbol_ids[applied], minutes[applied])
        self.repaired[column] += int(np.count_nonzero(applied & ((status == Status.CLEARED) | wanted)))
        self.remade[column] += int(np.count_nonzero(remade))
        if curves is not None and remade.any():
            ids, numbers = np.unique(curves[remade], return_counts=True)
            self.remade_by_curve.update(dict(zip(ids.tolist(), numbers.tolist(), strict=True)))
        return outcome


@dataclass(frozen=True, slots=True)
class Seen:
    """Versions of a session's cells of some columns as the plan saw them."""

    versions: dict[Column, tuple[np.ndarray, np.ndarray]]
    """Column -> (position by symbol_id i32[symbols], -1 where all of the symbol's cells were empty; u32[n, minutes])."""
    first: int = 0
    """The first of those minutes."""

    def expected(self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray) -> np.ndarray:
        """u32[n], the version each cell had; 0 where it was empty."""
        position, versions = self.versions[column]
        at = position[symbol_ids]
        result = np.zeros(len(symbol_ids), dtype=np.uint32)
        known = at >= 0
        result[known] = versions[at[known], minutes[known] - self.first]
        return result


def look(
    state: State,
    columns: tuple[Column, ...],
    session: str,
    symbols: tuple[int, ...] | None,
    minutes: tuple[int, int] | None = None,
) -> Seen:
    """
    The versions of a session's cells now.

    A task that sets no cell (``symbols`` empty) leaves its session alone: looking would make its files.

    Args:
        symbols: whose; None for all that have a cell that is not empty: an empty one has never been set, its version is 0.
        minutes: windows [first, last) of the session; None for all.
    """
    if symbols == ():
        return Seen({})
    versions: dict[Column, tuple[np.ndarray, np.ndarray]] = {}
    seq = state.calendar.session_seq(session)
    for column in columns:
        rows = state.ledger_of(column).session(seq)
        chosen = np.flatnonzero(rows.reserved)
        if symbols is not None:
            chosen = np.array([one for one in symbols if rows.reserved[one]], dtype=np.int64)
        chosen = chosen[rows.status[rows.column_index(column), chosen].any(axis=1)]
        position = np.full(len(rows.reserved), -1, dtype=np.int32)
        position[chosen] = np.arange(len(chosen))
        versions[column] = (position, _versions(rows, column, chosen, minutes))
    return Seen(versions, 0 if minutes is None else minutes[0])


def _versions(rows: SessionRows, column: Column, symbol_ids: np.ndarray, minutes: tuple[int, int] | None) -> np.ndarray:
    """u32[n, minutes]."""
    if minutes is None:
        return rows.versions(column, symbol_ids)
    across = np.arange(*minutes)
    found = rows.versions(column, np.repeat(symbol_ids, len(across)), np.tile(across, len(symbol_ids)))
    return found.reshape(len(symbol_ids), len(across))


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
    curves: np.ndarray | None
    """u32[n], payload ids of the curves the cells were made with; None for kinds without."""
    kept: tuple[np.ndarray, np.ndarray]
    """Symbol ids and minutes of cells that keep what they hold."""


def commit(state: State, task: Task, batch: Batch, seen: Seen, counts: Counts, guard: Guard) -> Iterator[str]:
    """
    Commit a batch in steps; yields "step" between them and "sync" while it waits for the records to be durable.

    Raises:
        SpaceError: the file system refused; what was set stays, and the same batch may be committed again.
    """
    artifact_ids: dict[int, int] = {}
    used: set[int] = set()
    waiting: list[_Cells] = []
    assert state.flusher is not None
    for block in batch.blocks:
        # Before the first record: a batch that waits for room is committed again, and records are never taken back.
        yield from _reserve(state, task, block, counts)
    for block in batch.blocks:
        ids = _ids(state, block, counts)
        for cells in _prepare(state, task, batch, block, ids, artifact_ids, used, counts, guard):
            waiting.append(cells)
            if len(waiting) % _SLICES_PER_SYNC == 0:
                # Synced while the next are prepared, so that little is left to wait for.
                state.flusher.wrote(urgent=True)
            yield "step"
    span_ids = [_span_record(state, span, counts) for span in batch.spans]
    generation = state.flusher.wrote(urgent=True)
    while not state.flusher.maps_durable(generation):
        yield "sync"
    for cells in waiting:
        _set(cells, seen, counts)
        yield "step"
    for block in batch.blocks:
        if block.fill_no_rows:
            yield from _fill(state, task, block, _ids(state, block, counts), seen, counts, guard)
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
            counts.set(
                rows,
                cells.column,
                cells.symbol_ids[part],
                cells.minutes[part],
                NO_ROWS_ID,
                no_rows_hash(cells.column.payload_kind) >> 32,
                inputs=cells.inputs[part],
                source=cells.source,
                flags=cells.flags[part] | np.uint8(Flag.NO_ROWS),
                expected_versions=cells.versions[part],
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


def _reserve(state: State, task: Task, block: CellBlock, counts: Counts) -> Iterator[str]:
    """Reserve the rows of every symbol that the block sets cells of."""
    ids = _ids(state, block, counts)
    if block.count and not block.fill_no_rows:
        ids = ids[np.unique(np.load(block.path, mmap_mode="r")["symbol"])]
    rows = state.ledger_of(block.column).session(state.calendar.session_seq(task.session))
    for start in range(0, len(ids), _RESERVE_SYMBOLS):
        some = ids[start : start + _RESERVE_SYMBOLS]
        rows.reserve(some[some >= 0])
        yield "step"


def _prepare(
    state: State,
    task: Task,
    batch: Batch,
    block: CellBlock,
    ids: np.ndarray,
    artifact_ids: dict[int, int],
    used: set[int],
    counts: Counts,
    guard: Guard,
) -> Iterator[_Cells]:
    """
    Append the records of cells that change, slice by slice, and say what is to be set.

    Cells move as rows of 64-bit words: to choose or copy among structured ones costs ten times that.
    """
    if not block.count:
        return
    rows = state.ledger_of(block.column).session(state.calendar.session_seq(task.session))
    payloads = state.maps[block.column.payload_kind]
    cells = np.load(block.path, mmap_mode="r")
    staged = cells.view("<u8").reshape(len(cells), -1)
    for start in range(0, len(cells), SLICE_CELLS):
        words = np.array(staged[start : start + SLICE_CELLS])
        words = _chosen(words, ids[words.view(cells.dtype)["symbol"][:, 0]] >= 0)
        if not len(words):
            continue
        some = words.view(cells.dtype)[:, 0]
        symbol_ids, minutes = ids[some["symbol"]], some["minute"].astype(np.int64)
        current = rows.slots(block.column, symbol_ids, minutes)
        back = guard.holds_back(block.column, current, some["record"]["row_count"], block.source)
        kept = symbol_ids[back], minutes[back]
        if back.any():
            words, symbol_ids, minutes, current = words[~back], symbol_ids[~back], minutes[~back], current[~back]
            some = words.view(cells.dtype)[:, 0]
        records = some["record"]
        checksums = checksum_of(records["content_hash"])
        same = (current["status"] == Status.FILLED) & (current["checksum"] == checksums)
        same &= current["inputs"] == some["inputs"]
        payload_ids = current["payload_id"].copy()
        _read_again(state, task, batch, block.column, payload_ids, records, same, artifact_ids, used)
        no_rows = records["record_flags"] & RECORD_NO_ROWS != 0
        payload_ids[no_rows & ~same] = NO_ROWS_ID
        fresh = ~same & ~no_rows
        new = _chosen(words[:, RECORD_OFFSET // 8 :], fresh).view(records.dtype)[:, 0]
        if len(new):
            _name_artifacts(state, task, batch, new, artifact_ids, used)
            first = payloads.append(new)
            payload_ids[fresh] = np.arange(first, first + len(new), dtype=np.uint32)
            counts.records += len(new)
        # Copies, so that what is kept until the records are durable is no more than what is to be set.
        yield _Cells(
            rows,
            block.column,
            symbol_ids,
            minutes,
            payload_ids,
            checksums,
            some["inputs"].copy(),
            some["flags"].copy(),
            block.source,
            records["rf_rate_payload_id"].copy() if "rf_rate_payload_id" in (records.dtype.names or ()) else None,
            kept,
        )


def _chosen(words: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows of u64[n, words], contiguous; nearly always all."""
    return np.ascontiguousarray(words) if chosen.all() else words[chosen]


def _name_artifacts(
    state: State, task: Task, batch: Batch, records: np.ndarray, artifact_ids: dict[int, int], used: set[int]
) -> None:
    """Put the ledger's ids of artifacts in place of their numbers in the batch; notes which are used."""
    numbers = records["artifact_id"].copy()
    for number in np.unique(numbers).tolist():
        if number:
            used.add(number)
            records["artifact_id"][numbers == number] = _artifact_id(state, task, batch, number, artifact_ids)


def _read_again(
    state: State,
    task: Task,
    batch: Batch,
    column: Column,
    payload_ids: np.ndarray,
    records: np.ndarray,
    same: np.ndarray,
    known: dict[int, int],
    used: set[int],
) -> None:
    """
    Where a cell holds this very content and its rows were removed by age, have its record find them in the new artifact.

    Args:
        same: bool[n], cells of equal checksum; they need not move.
    """
    if column is not RETIRING:
        return
    at = np.flatnonzero(same)
    held = state.maps[column.payload_kind].get_many(payload_ids[at])
    lost = (held["record_flags"] & RECORD_RETIRED != 0) & (held["content_hash"] == records["content_hash"][at])
    found = at[lost]
    each = found[np.unique(payload_ids[found], return_index=True)[1]]
    again = records[each]
    _name_artifacts(state, task, batch, again, known, used)
    state.maps[column.payload_kind].relocate(payload_ids[each], again)


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
    expected = seen.expected(cells.column, cells.symbol_ids, cells.minutes)
    outcome = counts.set(
        cells.rows,
        cells.column,
        cells.symbol_ids,
        cells.minutes,
        cells.payload_ids,
        cells.checksums,
        curves=cells.curves,
        inputs=cells.inputs,
        source=cells.source,
        flags=cells.flags,
        expected_versions=expected,
    )
    lost = outcome == Outcome.CONFLICT
    ask_again(cells.rows, cells.column, cells.symbol_ids[lost], cells.minutes[lost], cells.source)
    if len(cells.kept[0]):
        counts.held_back += keep(cells.rows, cells.column, *cells.kept, seen.expected(cells.column, *cells.kept))


def _fill(
    state: State, task: Task, block: CellBlock, ids: np.ndarray, seen: Seen, counts: Counts, guard: Guard
) -> Iterator[str]:
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
        fill_no_rows(rows, block.column, ids[some][at], minute, block.source, seen, counts, guard)
        yield "step"


def fill_no_rows(
    rows: SessionRows,
    column: Column,
    symbol_ids: np.ndarray,
    minutes: np.ndarray,
    source: Source,
    seen: Seen | None,
    counts: Counts,
    guard: Guard,
    *,
    suspect: bool = False,
) -> None:
    """
    Fill cells with the no-rows record, leaving alone those that hold it already from no worse source and are not wanted.

    A cell that has rows of a worse source keeps them, and is suspect.
    """
    if not len(symbol_ids):
        return
    slots = rows.slots(column, symbol_ids, minutes)
    held = (slots["status"] == Status.FILLED) & (slots["flags"] & Flag.NO_ROWS != 0) & (slots["source"] >= source)
    held &= slots["flags"] & (Flag.WANTED | Flag.PARTIAL) == 0
    back = guard.holds_back(column, slots, 0, source)
    if back.any():
        versions = None if seen is None else seen.expected(column, symbol_ids[back], minutes[back])
        counts.held_back += keep(rows, column, symbol_ids[back], minutes[back], versions)
    symbol_ids, minutes = symbol_ids[~held & ~back], minutes[~held & ~back]
    if not len(symbol_ids):
        return
    counts.set(
        rows,
        column,
        symbol_ids,
        minutes,
        NO_ROWS_ID,
        no_rows_hash(column.payload_kind) >> 32,
        source=source,
        flags=int(Flag.NO_ROWS | (Flag.SUSPECT if suspect else Flag.NONE)),
        expected_versions=None if seen is None else seen.expected(column, symbol_ids, minutes),
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
        counts.set(
            rows,
            span.column,
            symbol_ids,
            cells,
            payload_id,
            checksum,
            inputs=span.inputs,
            source=span.source,
            expected_versions=seen.expected(span.column, symbol_ids, cells),
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
