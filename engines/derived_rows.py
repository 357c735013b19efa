"""
Rows that derived cells are made from and the rows they become: read by ranges, hashed, staged with their cells.

The daemon says which row ranges of which artifacts a task reads; the worker reads each artifact once, by ranges, and
cuts in memory. Functions that need Polars import it themselves, because the daemon imports this module too. It must
never open the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engines.contract import ArtifactFile, Batch, CellBlock, TaskFailed, Workplace
from engines.staging import cell_dtype
from ledger.columns import WINDOW_NS, Column, Flag
from ledger.content import cell_hashes, no_rows_hash, row_hashes, text_hashes
from ledger.errors import UnknownPayload
from ledger.frames import ArtifactWriter, positions, read_ranges
from ledger.records import RECORD_NO_ROWS, RECORD_RETIRED, blank

if TYPE_CHECKING:
    import polars

    from ledger.state import State

GAP_ROWS_MAX: Final = 262_144
"""Rows between two ranges that are read and thrown away rather than read apart."""
RANGE: Final = np.dtype([("file", "<u4"), ("symbol", "<u4"), ("minute", "<i4"), ("start", "<i8"), ("count", "<i8")])
"""Rows of one cell: file and symbol as indexes, minute from the open (-1: the minute before it)."""


@dataclass(frozen=True, slots=True)
class InputRows:
    """Rows of upstream cells: RANGE[n] over files, in the order in which they are to be read."""

    uris: tuple[str, ...]
    """Relative to the artifact root."""
    ranges: np.ndarray

    @property
    def rows(self) -> int:
        """Rows of all ranges."""
        return int(self.ranges["count"].sum())


def readable(records: np.ndarray) -> np.ndarray:
    """bool[n]: records whose rows can still be read (a damaged record is zeroed, a retired one has lost its file)."""
    sound: np.ndarray = (records["schema_version"] != 0) & (records["record_flags"] & np.uint8(RECORD_RETIRED) == 0)
    return sound


def input_rows(
    state: State,
    artifact_ids: np.ndarray,
    symbols: np.ndarray,
    minutes: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
) -> InputRows:
    """
    Where the rows of cells are; ranges stay in the order given, one per cell.

    Args:
        artifact_ids: u32[n], 0 only where the count is 0.
        symbols: [n], index of each cell's symbol in the task.
        minutes, starts, counts: [n].
    """
    used, file = np.unique(artifact_ids, return_inverse=True)
    ranges = np.zeros(len(artifact_ids), dtype=RANGE)
    ranges["file"], ranges["symbol"], ranges["minute"] = file, symbols, minutes
    ranges["start"], ranges["count"] = starts, counts
    return InputRows(tuple(state.artifacts.get(int(one)).uri if one else "" for one in used), ranges)


def read_inputs(root: Path, inputs: InputRows, columns: list[str]) -> tuple[polars.DataFrame | None, np.ndarray]:
    """
    The rows of all ranges, one range after the other.

    Args:
        root: the artifact root.
        inputs: what to read; ranges of one file must not overlap.
        columns: names.

    Returns:
        the rows (None where there are none) and, for each, the index of its range, i64[rows].

    Raises:
        TaskFailed: an artifact is missing or shorter than its cells say.
    """
    import polars as pl

    ranges = inputs.ranges
    order = np.lexsort((ranges["start"], ranges["file"]))
    order = order[ranges["count"][order] > 0]
    if not len(order):
        return None, np.zeros(0, dtype=np.int64)
    frames = []
    for piece in np.split(order, _cuts(ranges[order])):
        path = root / inputs.uris[int(ranges["file"][piece[0]])]
        try:
            frames.append(read_ranges(path, ranges["start"][piece], ranges["count"][piece], columns))
        except UnknownPayload as error:
            raise TaskFailed(
                str(error), hint=error.hint or "clear the range and let the engines fill it again"
            ) from error
    frame = frames[0] if len(frames) == 1 else pl.concat(frames)
    counts = ranges["count"]
    owner = np.repeat(order, counts[order])
    if (np.diff(order) > 0).all():
        return frame, owner
    first = np.zeros(len(ranges), dtype=np.int64)
    first[order] = np.cumsum(counts[order]) - counts[order]
    wanted = np.sort(order)
    return frame[positions(first[wanted], counts[wanted])], np.repeat(wanted, counts[wanted])


def _cuts(ranges: np.ndarray) -> np.ndarray:
    """Where sorted ranges begin another file, or lie too far behind the range before."""
    ends = ranges["start"] + ranges["count"]
    apart = ranges["file"][1:] != ranges["file"][:-1]
    apart |= ranges["start"][1:] - ends[:-1] > GAP_ROWS_MAX
    return np.flatnonzero(apart) + 1


def text_codes(series: polars.Series) -> tuple[np.ndarray, list[str]]:
    """i64[n] index of each text among the column's texts, in order of appearance, and those; null counts as empty."""
    import polars as pl

    texts = series.cast(pl.String).fill_null("")
    known = texts.unique(maintain_order=True)
    codes = texts.cast(pl.Enum(known)).to_physical().to_numpy().astype(np.int64)
    return codes, known.to_list()


def hash_frame(frame: polars.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """u64[rows], the row hashes of some columns in the order given; texts by their hash, nulls as one value."""
    import polars as pl

    arrays = []
    for name in names:
        series = frame[name]
        if series.dtype in (pl.String, pl.Enum, pl.Categorical):
            codes, texts = text_codes(series)
            arrays.append(text_hashes(texts)[codes] if texts else np.zeros(0, dtype=np.uint64))
        elif series.dtype.is_float():
            arrays.append(series.fill_null(float("nan")).to_numpy())
        elif series.null_count():
            # Two columns: no integer can stand for null in all of them.
            arrays += [series.is_null().to_numpy(), series.fill_null(0).to_numpy()]
        else:
            arrays += [np.zeros(frame.height, dtype=bool), series.to_numpy()]
    return row_hashes(arrays)


@dataclass(frozen=True, slots=True)
class MadeCells:
    """The cells that a task made of one column: arrays [n], in the order of their rows."""

    column: Column
    symbols: tuple[str, ...]
    symbol: np.ndarray
    """Index into ``symbols``."""
    minute: np.ndarray
    prints: np.ndarray
    recipes: np.ndarray
    """u32: the print of the recipe alone, kept as the record's ``batch_id``."""
    row_count: np.ndarray
    """Rows of each cell; 0 makes it a cell without rows."""
    open_ns: int
    flags: np.ndarray | None = None


def records_of(made: MadeCells, hashes: np.ndarray) -> np.ndarray:
    """
    Records of the cells with everything set that all derived kinds share; the engine sets the rest.

    Args:
        hashes: u64[rows], :func:`hash_frame` of the rows.
    """
    kind = made.column.payload_kind
    records = blank(kind, len(made.symbol))
    counts = made.row_count.astype(np.int64)
    starts = np.cumsum(counts) - counts
    minute_ts = made.open_ns + made.minute.astype(np.int64) * WINDOW_NS
    records["content_hash"] = cell_hashes(kind, minute_ts, starts, counts, hashes)
    records["artifact_id"] = 1
    records["row_start"], records["row_count"] = starts, counts
    records["batch_id"] = made.recipes
    records["minute_ts"] = minute_ts
    return records


def stage(
    made: MadeCells, records: np.ndarray, frame: polars.DataFrame, session: str, workplace: Workplace, **metadata: Any
) -> Batch:
    """
    Write the rows as one artifact and stage the cells for the commit.

    Args:
        metadata: ``field_metadata`` for the artifact's columns, and key-value metadata of the file.
    """
    stem = made.column.value.removesuffix("_ref")
    path = workplace.artifact_root / stem / session / f"{workplace.batch_name}.parquet"
    fields = metadata.pop("field_metadata", {})
    writer = ArtifactWriter(path, metadata={"m17.session": session, **metadata}, field_metadata=fields)
    if frame.height:
        writer.write(frame)
    written = writer.finish()
    cells = np.zeros(len(records), dtype=cell_dtype(made.column.payload_kind))
    cells["symbol"], cells["minute"], cells["inputs"] = made.symbol, made.minute, made.prints
    if made.flags is not None:
        cells["flags"] = made.flags
    none = made.row_count == 0
    records[none] = blank(made.column.payload_kind, 1)
    records["record_flags"][none] = RECORD_NO_ROWS
    records["content_hash"][none] = no_rows_hash(made.column.payload_kind)
    cells["flags"][none] |= np.uint8(Flag.NO_ROWS)
    cells["record"] = records
    staged = workplace.temporary / f"{workplace.batch_name}-{stem}.npy"
    np.save(staged, cells)
    artifacts = []
    if written is not None:
        uri = str(written.path.relative_to(workplace.artifact_root))
        artifacts.append(ArtifactFile(uri, written.checksum, written.bytes, written.rows, made.column))
    return Batch([CellBlock(made.column, list(made.symbols), staged, len(cells))], artifacts)
