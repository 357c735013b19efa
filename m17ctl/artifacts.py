"""
Artifacts read by this side: rows of Parquet files that the daemon named, picked and written as one file.

Rows come in the order in which they were named, and each as often; memory is bounded by a block of rows. Polars and
PyArrow are imported inside the functions that read and write. This module must never list a directory of artifacts: what
no cell names does not exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import translate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from m17ctl.invocation import CommandFailed
from m17d.outcomes import Progress
from m17d.replies import ExportReply

if TYPE_CHECKING:
    import polars

SUFFIXES: Final = (".parquet", ".csv", ".ndjson")
"""What the name of an exported file may end in."""
CONTRACT_COLUMNS: Final = ("instrument", "contract", "ticker")
"""Columns that name a row's instrument; the first that an artifact has is used."""
OUTSIDE_KEY: Final = b"m17.outside"
"""Key of an artifact's footer: JSON, symbol -> [row_start, row_count, ...] of its rows outside the session."""
_BLOCK_ROWS: Final = 1 << 20
_GAP_ROWS: Final = 1 << 16
"""Rows that are read and thrown away rather than beginning another read."""


class Run(NamedTuple):
    """Rows ``[start, start + rows)`` of one artifact."""

    uri: str
    start: int
    rows: int


class Written(msgspec.Struct, frozen=True):
    """What was written."""

    out: str
    rows: int
    cells: int
    artifacts: int
    bytes: int


class Selection:
    """The rows that some pieces of an export answer name: in order, neighbours joined, rows outside the session last."""

    def __init__(self, *, extended: bool = False) -> None:
        self.runs: list[Run] = []
        self.cells = 0
        self._extended = extended
        self._outside: list[Run] = []
        self._outside_of_symbol: dict[str, tuple[str, list[Run]]] = {}

    def add(self, piece: ExportReply) -> None:
        """Take one piece; its cells index its own list of artifacts."""
        uris = [joined(piece.artifact_root, uri) for uri in piece.uris]
        self.cells += len(piece.cells)
        for cell in piece.cells:
            _append(self.runs, Run(uris[cell.uri], cell.row_start, cell.row_count))
        for uri, _, start, count in piece.extended:
            _append(self._outside, Run(uris[uri], start, count))
        if self._extended:
            for path in uris:
                self._add_outside(path, piece.symbols.values())

    def _add_outside(self, uri: str, symbols: Iterable[str]) -> None:
        """
        Rows outside the session of some symbols, which an artifact's own footer names.

        Every pass over a symbol takes all of its day along, so of several artifacts the newest, which comes last, counts.
        """
        wanted = [symbol for symbol in symbols if self._outside_of_symbol.get(symbol, ("",))[0] != uri]
        if not wanted:
            return
        named = _outside_of(uri)
        for symbol in wanted:
            ranges = named.get(symbol, [])
            runs = [Run(uri, start, count) for start, count in zip(ranges[::2], ranges[1::2], strict=True)]
            self._outside_of_symbol[symbol] = (uri, runs)

    def ordered(self) -> list[Run]:
        """All runs, those outside the session last."""
        own = [run for _, runs in self._outside_of_symbol.values() for run in runs]
        return [*self.runs, *self._outside, *own]


def _outside_of(uri: str) -> dict[str, list[int]]:
    """Symbol -> [row_start, row_count, ...] of its rows outside the session, from the footer; empty where it has none."""
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(uri).metadata or {}
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(uri, str(error)) from None
    return msgspec.json.decode(footer.get(OUTSIDE_KEY, b"{}"), type=dict[str, list[int]])


def _append(runs: list[Run], run: Run) -> None:
    if run.rows <= 0:
        return
    if runs and runs[-1].uri == run.uri and runs[-1].start + runs[-1].rows == run.start:
        runs[-1] = Run(run.uri, runs[-1].start, runs[-1].rows + run.rows)
    else:
        runs.append(run)


def joined(root: str, uri: str) -> str:
    """The place of an artifact that opens: ``uri`` without its rows, below the artifact root."""
    return f"{root.rstrip('/')}/{uri.split('#', 1)[0]}"


def read_blocks(runs: list[Run], schema: Mapping[str, Any]) -> Iterator[polars.DataFrame]:
    """
    The rows of some runs, in order, as frames of at most about a million rows with the columns of ``schema``.

    Raises:
        CommandFailed: code ``damaged_file``, where an artifact cannot be read or is shorter than the cells say.
    """
    import polars

    for block in _blocks(runs):
        first, last = block[0], block[-1]
        span = last.start + last.rows - first.start
        try:
            lazy = polars.scan_parquet(first.uri, glob=False)
            named = lazy.collect_schema().names()
            frame = lazy.select(name for name in schema if name in named).slice(first.start, span).collect()
        except (polars.exceptions.PolarsError, OSError) as error:
            raise unreadable(first.uri, str(error)) from None
        if frame.height != span:
            raise unreadable(
                first.uri, f"it ends at row {first.start + frame.height}, a cell names row {first.start + span}"
            )
        parts = [frame.slice(run.start - first.start, run.rows) for run in block]
        whole = polars.concat(parts) if len(parts) > 1 else parts[0]
        yield whole.select(
            polars.col(name).cast(kind) if name in whole.columns else polars.lit(None, kind).alias(name)
            for name, kind in schema.items()
        )


def _blocks(runs: list[Run]) -> Iterator[list[Run]]:
    """Runs of one artifact that lie close enough, ascending, to be read at once."""
    block: list[Run] = []
    for run in _split(runs):
        if block:
            end = block[-1].start + block[-1].rows
            near = run.uri == block[0].uri and 0 <= run.start - end <= _GAP_ROWS
            if not near or run.start + run.rows - block[0].start > _BLOCK_ROWS:
                yield block
                block = []
        block.append(run)
    if block:
        yield block


def _split(runs: list[Run]) -> Iterator[Run]:
    for run in runs:
        for start in range(run.start, run.start + run.rows, _BLOCK_ROWS):
            yield Run(run.uri, start, min(_BLOCK_ROWS, run.start + run.rows - start))


def schema_of(runs: list[Run]) -> dict[str, Any]:
    """
    Columns of all artifacts of the runs, in the order of their first appearance, with their polars types.

    Raises:
        CommandFailed: code ``damaged_file``, where an artifact cannot be read.
    """
    import polars

    schema: dict[str, Any] = {}
    for uri in dict.fromkeys(run.uri for run in runs):
        try:
            found = polars.scan_parquet(uri, glob=False).collect_schema()
        except (polars.exceptions.PolarsError, OSError) as error:
            raise unreadable(uri, str(error)) from None
        for name, kind in found.items():
            schema.setdefault(name, kind)
    return schema


def write_rows(
    selection: Selection, out: Path, *, contract: str | None, on_progress: Callable[[Progress], None]
) -> Written:
    """
    Write the selected rows to ``out``: to a temporary name first, renamed when it is complete and synced.

    Args:
        selection: which rows.
        out: ends in one of `SUFFIXES`; an older file of that name is replaced.
        contract: only rows whose instrument passes this glob.
        on_progress: called after each block.

    Raises:
        CommandFailed: ``damaged_file`` for an artifact that cannot be read, ``nothing_selected`` where no row is left.
        OSError: ``out`` cannot be written.
    """
    runs = selection.ordered()
    schema = schema_of(runs)
    total, done, rows = sum(run.rows for run in runs), 0, 0
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            writer = _Writer(file, out.suffix)
            for frame in read_blocks(runs, schema):
                done += frame.height
                kept = _of_contract(frame, contract)
                rows += kept.height
                writer.write(kept)
                on_progress(Progress(done=done, total=total, unit="rows"))
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        if rows == 0:
            hint = "contracts are spelled as in the feed, such as O:TWX140621C00070000"
            raise CommandFailed("nothing_selected", f"no row passes --contract {contract}", hint)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    artifacts = len({run.uri for run in runs})
    return Written(out=str(out), rows=rows, cells=selection.cells, artifacts=artifacts, bytes=out.stat().st_size)


def _of_contract(frame: polars.DataFrame, contract: str | None) -> polars.DataFrame:
    import polars

    if contract is None:
        return frame
    name = next((name for name in CONTRACT_COLUMNS if name in frame.columns), None)
    if name is None:
        text = "the rows of this column name no contract"
        raise CommandFailed("bad_request", text, "leave --contract out")
    pattern = re.compile(translate(contract))
    names = [value for value in frame.get_column(name).unique().to_list() if value is not None]
    return frame.filter(polars.col(name).is_in([value for value in names if pattern.match(str(value))]))


class _Writer:
    """Frames of one schema to an open file, in the format of a suffix."""

    def __init__(self, file: IO[bytes], suffix: str) -> None:
        self._file = file
        self._suffix = suffix
        self._parquet: Any = None
        self._written = 0

    def write(self, frame: polars.DataFrame) -> None:
        if self._suffix == ".parquet":
            self._write_parquet(frame)
        elif frame.height and self._suffix == ".csv":
            _flat(frame).write_csv(self._file, include_header=self._written == 0)
        elif frame.height:
            frame.write_ndjson(self._file)
        self._written += frame.height

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def _write_parquet(self, frame: polars.DataFrame) -> None:
        import pyarrow.parquet

        table = frame.to_arrow()
        if self._parquet is None:
            self._parquet = pyarrow.parquet.ParquetWriter(self._file, table.schema, compression="zstd")
        if frame.height:
            self._parquet.write_table(table.cast(self._parquet.schema))


def _flat(frame: polars.DataFrame) -> polars.DataFrame:
    """Lists as text, which is all that CSV can hold."""
    import polars

    lists = [name for name, kind in frame.schema.items() if isinstance(kind, polars.List)]
    return frame.with_columns(polars.col(name).cast(polars.List(polars.String)).list.join(",") for name in lists)


def unreadable(uri: str, reason: str) -> CommandFailed:
    """The failure of an artifact that cannot be read."""
    text = f"artifact {uri} cannot be read: {' '.join(reason.split())[:300]}"
    return CommandFailed("damaged_file", text, "check the state with: m17ctl verify")
