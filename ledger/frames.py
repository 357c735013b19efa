"""
Frames: artifacts written, read and scanned as Parquet, with Polars and PyArrow imported only where they are used.

An artifact is written under a temporary name, synced and renamed before anything names it. ``scan`` gives exactly the
rows that cells name, once; nobody globs the artifacts folder. This module must never set a cell.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ledger.columns import Column, Flag, Source, Status
from ledger.errors import ChecksumMismatch, RowsRetired, UnknownPayload, from_os_error
from ledger.maps import Artifact
from ledger.records import RECORD_RETIRED
from ledger.rows import SessionRows

if TYPE_CHECKING:
    import polars
    import pyarrow
    import pyarrow.parquet

    from ledger.state import State

ROW_GROUP_ROWS: Final = 65_536
COMPRESSION_LEVEL: Final = 1
_UNIQUE: Final = frozenset({"id", "price", "previous_price", "bid_price", "ask_price"})
"""Columns other than times and counters whose values repeat too rarely for a dictionary."""
_ORDERED: Final = frozenset({"symbol", "ticker", "minute", "sip_timestamp"})
"""Columns that rows are ordered by: bounds of a row group let a reader skip it; of any other they cost a sixth for nothing."""


@dataclass(frozen=True, slots=True)
class WrittenArtifact:
    """A finished artifact: its CRC-32, size in bytes and rows."""

    path: Path
    checksum: int
    bytes: int
    rows: int


class _ChecksummedFile:
    """A binary file for PyArrow that counts and checksums what passes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)
        self.checksum = 0
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()


class ArtifactWriter:
    """
    Writes one Parquet artifact: zstd, row groups of at most 65,536 rows.

    Args:
        path: final path; its folder is made.
        metadata: key-value metadata of the file, such as ``size_unit``.
        field_metadata: per column, meanings and units.
    """

    def __init__(
        self,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        field_metadata: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.path = path
        self.rows = 0
        self._metadata = dict(metadata or {})
        self._field_metadata = dict(field_metadata or {})
        self._temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _ChecksummedFile(self._temporary)
        except OSError as error:
            raise from_os_error(error, "open", self._temporary) from error
        self._writer: Any = None

    def write(self, frame: polars.DataFrame) -> None:
        """Append rows; every frame must have the same columns. Raises SpaceError."""
        table = frame.to_arrow()
        try:
            if self._writer is None:
                self._writer = self._open(table.schema)
            self._writer.write_table(table.replace_schema_metadata(None), row_group_size=ROW_GROUP_ROWS)
        except OSError as error:
            self.abort()
            raise from_os_error(error, "write", self._temporary) from error
        self.rows += table.num_rows

    def _open(self, schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
        """
        The writer of frames of this schema.

        Numbered texts are written as they are numbered, which costs a third, but they are plain texts to every reader:
        the schema that says so is stored by hand.
        """
        import pyarrow
        import pyarrow.parquet

        fields = []
        for field in schema:
            dtype = pyarrow.large_string() if pyarrow.types.is_dictionary(field.type) else field.type
            fields.append(pyarrow.field(field.name, dtype, metadata=dict(self._field_metadata.get(field.name, {}))))
        stored = pyarrow.schema(fields, metadata=self._metadata)
        writer = pyarrow.parquet.ParquetWriter(
            self._file,
            pyarrow.schema([field.with_metadata(None) for field in schema]),
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=[field.name for field in stored if not _is_long(field)],
            column_encoding={field.name: "DELTA_BINARY_PACKED" for field in stored if _is_counter(field)},
            write_statistics=[field.name for field in stored if field.name in _ORDERED],
            store_schema=False,
        )
        schema_text = base64.b64encode(stored.serialize().to_pybytes()).decode()
        writer.add_key_value_metadata({"ARROW:schema": schema_text, **self._metadata})
        return writer

    def finish(self, **footer: str) -> WrittenArtifact | None:
        """
        Close, sync, rename; None (and no file) when nothing was written.

        Args:
            footer: further key-value metadata that was not known before the last row, such as ``outside``.

        Raises:
            SpaceError: the file system refused.
        """
        if self._writer is None:
            self.abort()
            return None
        try:
            if footer:
                self._writer.add_key_value_metadata(footer)
            self._writer.close()
            self._file.sync()
            self._file.close()
            os.rename(self._temporary, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            self.abort()
            raise from_os_error(error, "rename", self.path) from error
        return WrittenArtifact(self.path, self._file.checksum, self._file.size, self.rows)

    def abort(self) -> None:
        """Give up and remove the temporary file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _is_long(field: pyarrow.Field) -> bool:
    """True for columns of mostly different values, which a dictionary would only make slower and larger."""
    return _is_counter(field) or field.name in _UNIQUE


def _is_counter(field: pyarrow.Field) -> bool:
    """True for times and counters, written as differences: half the bytes, twice as fast as through a dictionary."""
    return str(field.type) in ("int64", "uint64") or field.name == "minute"


def file_checksum(path: Path) -> int:
    """CRC-32 of a whole file's bytes."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def sound_artifact(state: State, artifact: Artifact) -> Path:
    """
    The path of an artifact whose bytes are those that were written; each file is summed once while it does not change.

    Raises:
        UnknownPayload: the file is missing.
        ChecksumMismatch: its bytes are others.
    """
    path = state.artifact_root / artifact.uri
    try:
        status = path.stat()
    except FileNotFoundError as error:
        hint = "clear the range and let the engines fill it again"
        raise UnknownPayload(f"{path} is missing", hint=hint, path=str(path)) from error
    seen = (status.st_ino, status.st_size, status.st_mtime_ns)
    if state.sound_artifacts.get(artifact.uri) != seen:
        if status.st_size != artifact.bytes or file_checksum(path) != artifact.checksum:
            raise ChecksumMismatch(f"{path}: its bytes are not those that were written", path=str(path))
        state.sound_artifacts[artifact.uri] = seen
    return path


def read_ranges(
    path: Path, starts: np.ndarray, counts: np.ndarray, columns: Sequence[str] | None = None
) -> polars.DataFrame:
    """
    Rows of an artifact, by row group, cut in memory.

    Args:
        path: the Parquet file.
        starts, counts: i64[n] row ranges, ascending and without overlap.
        columns: names to read; None for all.

    Returns:
        the rows of all ranges, in file order.

    Raises:
        UnknownPayload: the file is missing or shorter than the ranges say.
    """
    import polars as pl

    if not path.exists():
        raise UnknownPayload(
            f"{path} is missing", hint="clear the range and let the engines fill it again", path=str(path)
        )
    total = int(counts.sum())
    if not total:
        return pl.scan_parquet(path).select(columns or pl.all()).head(0).collect()
    first, last = int(starts[0]), int((starts + counts).max())
    frame = pl.scan_parquet(path).select(columns or pl.all()).slice(first, last - first).collect()
    if frame.height < last - first:
        raise UnknownPayload(f"{path} has no row {last - 1}", path=str(path))
    if total == last - first:
        return frame
    return frame[positions(starts - first, counts)]


def positions(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """i64[sum(counts)], the row numbers of ranges, one range after the other."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    offsets = np.repeat(starts.astype(np.int64) - (ends - counts), counts)
    numbers: np.ndarray = offsets + np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    return numbers


@dataclass(frozen=True, slots=True)
class NamedRows:
    """Rows that cells of one column and session name in one artifact; arrays [n], ascending by row_start."""

    artifact_id: int
    symbol_id: np.ndarray
    minute: np.ndarray
    row_start: np.ndarray
    row_count: np.ndarray
    payload_id: np.ndarray
    version: np.ndarray
    source: np.ndarray
    flags: np.ndarray


def named_rows(state: State, rows: SessionRows, column: Column, symbol_ids: np.ndarray) -> list[NamedRows]:
    """
    Where the rows of a column's filled cells are, by artifact, for some symbols of one session.

    Returns:
        one :class:`NamedRows` per artifact, ascending by artifact_id; cells without rows name nothing.
    """
    index = rows.column_index(column)
    if rows.readonly:
        slots = rows.slots(column, symbol_ids)
        keep = (slots["status"] == Status.FILLED) & (slots["flags"] & Flag.NO_ROWS == 0)
        at, minutes = np.nonzero(keep)
        chosen, symbols = slots[at, minutes], symbol_ids[at]
    else:
        keep = rows.status[index, symbol_ids] == Status.FILLED
        keep &= rows.flags[index, symbol_ids] & Flag.NO_ROWS == 0
        at, minutes = np.nonzero(keep)
        symbols = symbol_ids[at]
        chosen = rows.slots(column, symbols, minutes)
    records = state.maps[column.payload_kind].get_many(chosen["payload_id"])
    if retired := int(np.count_nonzero(records["record_flags"] & RECORD_RETIRED)):
        text = f"the rows of {retired} cells of {column} in {rows.place.date} were removed by age"
        raise RowsRetired(text, column=column.value, session=rows.place.date, cells=retired)
    wrong = (records["content_hash"] >> np.uint64(32)).astype(np.uint32) != chosen["checksum"]
    wrong |= records["schema_version"] == 0
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ChecksumMismatch(
            f"{column} of symbol_id {int(symbols[first])}, minute {int(minutes[first])} of {rows.place.date} names "
            f"record {int(chosen['payload_id'][first])}, which is damaged ({int(wrong.sum())} such cells)",
            column=column.value,
            symbol_id=int(symbols[first]),
            minute=int(minutes[first]),
        )
    found: list[NamedRows] = []
    for artifact_id in np.unique(records["artifact_id"]):
        mine = np.flatnonzero((records["artifact_id"] == artifact_id) & (records["row_count"] > 0))
        mine = mine[np.argsort(records["row_start"][mine], kind="stable")]
        if artifact_id and len(mine):
            found.append(
                NamedRows(
                    int(artifact_id),
                    symbols[mine],
                    minutes[mine],
                    records["row_start"][mine].astype(np.int64),
                    records["row_count"][mine].astype(np.int64),
                    chosen["payload_id"][mine],
                    chosen["version"][mine],
                    chosen["source"][mine],
                    chosen["flags"][mine],
                )
            )
    return found


def scan(state: State, column: Column, *, symbols: Any = None, sessions: Any = None) -> polars.LazyFrame:
    """
    Exactly the rows that the cells of a column name, once.

    Args:
        column: whose cells.
        symbols: a glob, a list of globs or symbols, or None for all.
        sessions: a date, a list of dates, or None for all that exist.

    Returns:
        a lazy frame: the artifact's columns, then ``session``, ``minute_idx``, ``payload_id``, ``version``, ``source``
        (word) and ``cell_flags`` (integer); ordered by session, artifact and row. Where no cell has rows it is empty with
        the same columns; those of the artifacts only if the state holds one of this column that can be read.

    Raises:
        RowsRetired: a session's quotes were removed by age; name the other sessions.
        UnknownSession, UnknownSymbol, StateError.
    """
    import polars as pl

    state.refresh()
    ledger, frames = state.ledger_of(column), []
    wanted = _symbol_ids(state, symbols)
    for seq in _session_seqs(state, column, sessions):
        rows = ledger.session(seq)
        for named in named_rows(state, rows, column, wanted):
            frames.append(_lazy(state, rows, named))
    return pl.concat(frames, how="diagonal_relaxed") if frames else _without_rows(state, column)


def _without_rows(state: State, column: Column) -> polars.LazyFrame:
    """The columns that rows of a column have, so that who selects or joins them need not ask whether there are any."""
    import polars as pl

    words = {"session": pl.String, "minute_idx": pl.UInt32, "payload_id": pl.UInt32, "version": pl.UInt32}
    cells = pl.LazyFrame(schema={**words, "source": pl.String, "cell_flags": pl.UInt8})
    for artifact in reversed(state.artifacts.all()):
        path = state.artifact_root / artifact.uri
        if artifact.column == column.value and path.exists():
            return pl.concat([pl.scan_parquet(path).clear(), cells], how="horizontal")
    return cells


def _lazy(state: State, rows: SessionRows, named: NamedRows) -> polars.LazyFrame:
    import polars as pl

    path = sound_artifact(state, state.artifacts.get(named.artifact_id))
    first, last = int(named.row_start[0]), int(named.row_start[-1] + named.row_count[-1])
    counts = named.row_count
    words = np.array([source.word for source in Source])
    cells = pl.LazyFrame(
        {
            "row": positions(named.row_start - first, counts),
            "session": pl.repeat(rows.place.date, int(counts.sum()), eager=True),
            "minute_idx": np.repeat(rows.row(0, 0).minute_idx + named.minute, counts).astype(np.uint32),
            "payload_id": np.repeat(named.payload_id, counts),
            "version": np.repeat(named.version, counts),
            "source": np.repeat(words[named.source], counts),
            "cell_flags": np.repeat(named.flags, counts),
        }
    )
    frame = pl.scan_parquet(path).slice(first, last - first)
    if int(counts.sum()) == last - first:
        return pl.concat([frame, cells.drop("row")], how="horizontal")
    numbered = frame.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    return numbered.join(cells, on="row", how="inner", maintain_order="left").drop("row")


def _symbol_ids(state: State, symbols: Any) -> np.ndarray:
    if symbols is None:
        return np.arange(len(state.symbols), dtype=np.int64)
    patterns = [symbols] if isinstance(symbols, str) else list(symbols)
    found: set[int] = set()
    for pattern in patterns:
        if any(character in pattern for character in "*?["):
            found.update(index for index, name in enumerate(state.symbols.names()) if fnmatchcase(name, pattern))
        else:
            found.add(state.symbols.resolve(pattern))
    return np.array(sorted(found), dtype=np.int64)


def _session_seqs(state: State, column: Column, sessions: Any) -> Iterable[int]:
    existing = set(state.ledger_of(column).existing())
    if sessions is None:
        return sorted(existing)
    names = [sessions] if isinstance(sessions, str) else list(sessions)
    return [seq for seq in map(state.calendar.session_seq, names) if seq in existing]
