"""Cells as a live engine sets them, without a websocket: rows from lines of a flat file, under the live source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from engines.contract import Batch, Task
from engines.hours import window_of
from engines.raw_pass import PassArguments
from ledger.columns import Dataset, Flag, Source, Status
from ledger.content import no_rows_hash
from ledger.records import NO_ROWS_ID
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State
from m17d.committing import Counts, commit, look
from m17d.superseding import Guard
from tests.engines.planning import done
from tests.m17d import flat_files

ADDRESS = "ws://127.0.0.1:1/stocks"


def read(
    state: State, session: str, lines: list[str], source: Source, dataset: Dataset = Dataset.STOCK_TRADES, *,
    name: str = "live-1", upto: int | None = None, partial: Iterable[int] = (),
) -> tuple[Task, Batch]:  # fmt: skip
    """
    A task and its batch: lines of a flat file under a source.

    Args:
        upto: windows before it are over; None for all.
        partial: minutes that a gap overlaps.
    """
    path = state.temporary / f"{name}.csv.gz"
    path.write_bytes(flat_files.packed(lines))
    window = window_of(state.calendar, session)
    arguments = PassArguments(
        str(path), str(path), dataset, window, state.option_rows, (), 10, name, path.stat().st_size
    )  # fmt: skip
    task = Task("test", name, session, "engines.raw_pass:run", arguments)
    batch = done(task, state, name)
    path.unlink()
    (block,) = batch.blocks
    if block.count:
        cells = np.load(block.path, mmap_mode="r+")
        cells["record"]["source"] = int(source)
        cells["flags"][np.isin(cells["minute"], list(partial))] |= np.uint8(Flag.PARTIAL)
        cells.flush()
        if upto is not None:
            keep = np.array(cells[cells["minute"] < upto])
            np.save(block.path, keep)
            block = dataclasses.replace(block, count=len(keep))
    whole = upto is None and not list(partial)
    return task, dataclasses.replace(batch, blocks=[dataclasses.replace(block, source=source, fill_no_rows=whole)])


def put(state: State, task: Task, batch: Batch, guard: Guard | None = None) -> Counts:
    """Commit a batch as the runner does."""
    counts, column = Counts(), batch.blocks[0].column
    seen = look(state, (column,), task.session, None)
    _exhaust(commit(state, task, batch, seen, counts, guard or Guard(state)))
    return counts


def live(
    state: State, session: str, lines: list[str], dataset: Dataset = Dataset.STOCK_TRADES, *, name: str = "live-1",
    upto: int | None = None, partial: Iterable[int] = (),
) -> None:  # fmt: skip
    """Windows of a session as the live engine leaves them, and the open record of the stream."""
    partial = list(partial)
    task, batch = read(state, session, lines, Source.WEBSOCKET, dataset, name=name, upto=upto, partial=partial)
    put(state, task, batch)
    symbols = {one: state.symbols.resolve(one) for one in batch.blocks[0].symbols}
    without_rows(state, session, list(symbols.values()), dataset, upto=upto, partial=partial)
    counts = batch.report.report.symbols
    ids = sorted(symbols.values())
    names = {symbol_id: name for name, symbol_id in symbols.items()}
    columns = [[counts[names[one]][index] for one in ids] for index in range(2)]
    state.sources.put(
        SourceRecord(
            dataset=dataset.value, session=session, state=SourceState.OPEN, reason="a stream", name=ADDRESS,
            symbols=pack_symbols(ids, *columns, [0.0] * len(ids)),
        )
    )  # fmt: skip


def without_rows(
    state: State, session: str, ids: list[int], dataset: Dataset, *, upto: int | None, partial: Iterable[int]
) -> None:
    """The windows of symbols that are over and empty have no rows; partial where a gap overlaps."""
    column = dataset.column
    rows = state.trade.session(state.calendar.session_seq(session))
    last = rows.place.minutes if upto is None else upto
    empty = rows.status[rows.column_index(column), ids, :last] == Status.EMPTY
    at, minutes = np.nonzero(empty)
    gaps = np.isin(minutes, list(partial))
    rows.set_many(
        column, np.array(ids)[at], minutes, NO_ROWS_ID, no_rows_hash(column.payload_kind) >> 32,
        source=Source.WEBSOCKET, flags=np.where(gaps, Flag.NO_ROWS | Flag.PARTIAL, Flag.NO_ROWS).astype(np.uint8),
        now_ns=rows.now_ns(),
    )  # fmt: skip


def settled(state: State, session: str) -> None:
    """Fill what a complete source does not have, and set suspicion right."""
    from m17d.runner import settle

    _exhaust(settle(state, session, Counts(), Guard(state)))


def _exhaust(steps: Iterator[str]) -> None:
    for _ in steps:
        pass
