"""
One file pass in a worker: a flat file to one artifact and the staged cells of its session.

Chunks arrive in canonical order; each cell's rows are hashed, its record encoded, its place in the artifact noted.
Everything is staged: nothing counts before the daemon commits it. This module must never know the state directory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engines.contract import ArtifactFile, Batch, CellBlock, Task, TaskFailed, Workplace
from engines.feeds.session_window import SessionWindow
from engines.staging import StagedCells
from ledger.columns import WINDOW_NS, Column, Dataset, Flag, OptionRows, Source
from ledger.content import cell_hashes, mix, row_hashes, text_hashes
from ledger.frames import ArtifactWriter, WrittenArtifact
from ledger.records import COMPRESSION_ZSTD, SCHEMA_VERSION, blank, no_rows_record
from ledger.roots import symbol_of

if TYPE_CHECKING:
    import polars

    from engines.feeds.chunks import Chunk
    from engines.feeds.pass_report import PassReport

PARSER_VERSION: Final = 1
"""Counted up when the same file would give other rows; files read by another version are read again."""

HASHED: Final = {
    Column.TRADE_REF: (
        "ticker", "sip_timestamp", "sequence_number", "price", "size", "exchange", "conditions", "correction",
        "previous_price",
    ),
    Column.QUOTE_REF: (
        "ticker", "sip_timestamp", "sequence_number", "bid_price", "bid_size", "bid_exchange", "ask_price", "ask_size",
        "ask_exchange", "conditions", "indicators",
    ),
}  # fmt: skip
"""Columns of the content hash, in order: those that every source has. A trade's id, tape and TRF are not among them."""
_CHUNKS_BEHIND: Final = 2
"""Chunks that may wait to be written, the one in work included."""
_UNSEQUENCED: Final = frozenset({Dataset.OPTION_TRADES})
_TEXT: Final = frozenset({"ticker", "conditions", "indicators"})


@dataclass(frozen=True, slots=True)
class PassArguments:
    """What one pass reads: plain, picklable values."""

    path: str
    """Where the file is read."""
    name: str
    """What it is called upstream, for people."""
    dataset: Dataset
    window: SessionWindow
    option_rows: OptionRows
    globs: tuple[str, ...]
    bad_rows_max: int
    etag: str
    size: int
    only: tuple[str, ...] | None = None
    """Symbols to read in a repair; None reads all that pass the globs."""
    refused: tuple[str, ...] = ()


@dataclass(slots=True)
class PassResult:
    """What the daemon needs beside the cells: counts and the symbols that were seen."""

    report: PassReport | None
    volume_outside: dict[str, float] = field(default_factory=dict)
    outside: dict[str, float] = field(default_factory=dict)
    damaged: str = ""


class RowHashes:
    """Row hashes of the chunks of one pass; a text is hashed once, however many chunks have it."""

    def __init__(self, column: Column, dataset: Dataset) -> None:
        import polars as pl

        from engines.feeds.file_columns import texts

        unsequenced = dataset in _UNSEQUENCED
        self._names = [name for name in HASHED[column] if not (unsequenced and name == "sequence_number")]
        self._no_texts = pl.Series([], dtype=texts())
        """Keeps the numbers of texts alive: the type alone does not, and a number would come to mean another text."""
        self._hashes = np.zeros(0, dtype=np.uint64)
        """By a text's number."""
        self._known = np.zeros(0, dtype=bool)

    def of(self, frame: polars.DataFrame) -> np.ndarray:
        """u64[rows], the row hashes of canonical rows; see :data:`HASHED`."""
        arrays = []
        for name in self._names:
            series = frame[name]
            # A missing price becomes NaN.
            arrays.append(self._of_texts(series) if name in _TEXT else series.to_numpy())
        return row_hashes(arrays)

    def _of_texts(self, series: polars.Series) -> np.ndarray:
        import polars as pl

        numbered = series.cast(self._no_texts.dtype)
        numbers = numbered.to_physical().to_numpy()
        missing = (int(numbers.max()) + 1 if len(numbers) else 0) - len(self._known)
        if missing > 0:
            more = missing + len(self._known)
            self._hashes = np.concatenate([self._hashes, np.zeros(more, dtype=np.uint64)])
            self._known = np.concatenate([self._known, np.zeros(more, dtype=bool)])
        known = self._known[numbers]
        if not known.all():
            fresh = numbered.filter(pl.Series(~known)).unique()
            places = fresh.to_physical().to_numpy()
            self._hashes[places], self._known[places] = text_hashes(fresh.cast(pl.String).to_list()), True
        hashes: np.ndarray = self._hashes[numbers]
        return hashes


class CellSink:
    """
    Takes the chunks of one attempt: writes the artifact, hashes cells, keeps their records.

    The artifact is written on a thread of its own, two chunks behind at most, so that reading and writing share the
    cores.
    """

    def __init__(
        self,
        column: Column,
        dataset: Dataset,
        window: SessionWindow,
        path: Path,
        staged: Path,
        metadata: dict[str, str],
        *,
        source: Source = Source.FLAT_FILE,
    ) -> None:
        self.column = column
        self.source = source
        self.symbols: dict[str, int] = {}
        self.volume_outside: dict[str, float] = {}
        self.outside_facts: dict[str, float] = {}
        self.outside_rows: dict[str, list[int]] = {}
        self.leads: dict[int, tuple[int, int, int]] = {}
        self.staged = StagedCells(staged, column.payload_kind)
        self._first: dict[int, int] = {}
        self._row_hashes = RowHashes(column, dataset)
        self._window = window
        self._kind = column.payload_kind
        self.writer = ArtifactWriter(path, metadata=metadata)
        self._rows = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="artifact")
        self._writing: deque[Future[None]] = deque()

    def write(self, chunk: Chunk) -> None:
        """Take one chunk."""
        base = self._rows
        self._rows += chunk.frame.height
        hashes = self._row_hashes.of(chunk.frame)
        if chunk.outside:
            self._take_outside(chunk, base, hashes)
        else:
            cells = self._cells(chunk, base, hashes)
            at = self.staged.append(cells)
            opening = np.flatnonzero(cells["minute"] == 0)
            self._first.update(zip(cells["symbol"][opening].tolist(), (at + opening).tolist(), strict=True))
        self._wait(_CHUNKS_BEHIND - 1)
        self._writing.append(self._thread.submit(self.writer.write, chunk.frame))

    def _wait(self, behind: int = 0) -> None:
        """Until so many chunks are being written or wait for it; raises what their writing raised."""
        while len(self._writing) > behind:
            self._writing.popleft().result()

    def finish(self, **footer: str) -> WrittenArtifact | None:
        """Wait for the last chunk and close the artifact; see :meth:`ledger.frames.ArtifactWriter.finish`."""
        self._wait()
        self._thread.shutdown()
        return self.writer.finish(**footer)

    def abort(self) -> None:
        """Throw the attempt away."""
        self._thread.shutdown()
        self.writer.abort()
        self.staged.abort()

    def _code(self, symbol: str) -> int:
        return self.symbols.setdefault(symbol, len(self.symbols))

    def _cells(self, chunk: Chunk, base: int, hashes: np.ndarray) -> np.ndarray:
        codes = np.array([self._code(symbol) for symbol in chunk.symbols], dtype=np.int64)
        cells = np.zeros(len(chunk.cell_minute), dtype=self.staged.dtype)
        cells["symbol"] = codes[chunk.cell_symbol]
        cells["minute"] = chunk.cell_minute
        records = cells["record"]
        records["schema_version"], records["kind"] = SCHEMA_VERSION, int(self._kind)
        starts = self._window.open_ns + chunk.cell_minute.astype(np.int64) * WINDOW_NS
        records["content_hash"] = cell_hashes(self._kind, starts, chunk.row_start, chunk.row_count, hashes)
        records["source"] = int(self.source)
        records["artifact_id"] = 1
        records["row_start"] = base + chunk.row_start
        records["row_count"] = chunk.row_count
        records["first_ts"], records["last_ts"] = chunk.first_ts, chunk.last_ts
        records["compression"] = COMPRESSION_ZSTD
        count = "record_count" if self.column is Column.TRADE_REF else "nbbo_sample_count"
        records[count] = chunk.row_count
        return cells

    def _take_outside(self, chunk: Chunk, base: int, hashes: np.ndarray) -> None:
        sizes = chunk.frame["size"].to_numpy() if self.column is Column.TRADE_REF else None
        for index, symbol in enumerate(chunk.symbols):
            code = self._code(symbol)
            start, count = int(chunk.symbol_row_start[index]), int(chunk.symbol_row_count[index])
            self.outside_rows.setdefault(symbol, []).extend((base + start, count))
            if sizes is not None:
                volume = float(sizes[start : start + count].sum())
                self.volume_outside[symbol] = self.volume_outside.get(symbol, 0.0) + volume
            if self.column is Column.QUOTE_REF and chunk.lead_count[index]:
                self._take_lead(code, chunk, index, base, hashes)
        if sizes is not None:
            self.count_auctions(chunk.frame)

    def _take_lead(self, code: int, chunk: Chunk, index: int, base: int, hashes: np.ndarray) -> None:
        """The 60 s of quotes before the open belong to the first window: hashed with it, counted nowhere."""
        start, count = chunk.lead_start[index : index + 1], chunk.lead_count[index : index + 1]
        before = np.array([self._window.open_ns - WINDOW_NS])
        lead_hash = int(cell_hashes(self._kind, before, start, count, hashes)[0])
        self.leads[code] = (base + int(start[0]), int(count[0]), lead_hash)

    def count_auctions(self, frame: polars.DataFrame) -> None:
        """Rows and volume outside the session; the close's auction prints (conditions 8, 15, 19) apart."""
        import polars as pl

        auction = pl.col("conditions").cast(pl.String).str.contains(r"(^|,)(8|15|16|17|19|25)(,|$)")
        found = frame.select(
            pl.len().alias("rows"),
            pl.col("size").sum().alias("volume"),
            auction.sum().alias("auction_rows"),
            pl.col("size").filter(auction).sum().alias("auction_volume"),
        ).row(0, named=True)
        for name, value in found.items():
            self.outside_facts[name] = self.outside_facts.get(name, 0) + (value or 0)

    def stage_no_rows(self, symbol: str, minutes: np.ndarray) -> None:
        """Cells without rows, i64[n] minutes from the open; a first window that has a lead is made in the end."""
        code = self._code(symbol)
        if code in self.leads:
            minutes = minutes[minutes != 0]
        cells = np.zeros(len(minutes), dtype=self.staged.dtype)
        cells["symbol"], cells["minute"], cells["flags"] = code, minutes, int(Flag.NO_ROWS)
        cells["record"] = no_rows_record(self._kind)[0]
        self.staged.append(cells)

    def finish_cells(self, flags_of: Callable[[np.ndarray], np.ndarray] | None = None) -> int:
        """
        Work the leads into the first windows and close the staged cells; how many there are.

        A lead without a first window makes one of no rows.

        Args:
            flags_of: u8[cells], further flags of the staged cells; called with all of them.
        """
        for code in sorted(self.leads.keys() - self._first.keys()):
            cell = np.zeros(1, dtype=self.staged.dtype)
            records, none = blank(self._kind, 1), np.zeros(1, dtype=np.int64)
            opening = np.array([self._window.open_ns])
            records["content_hash"] = cell_hashes(self._kind, opening, none, none, np.zeros(0, dtype=np.uint64))
            records["source"], records["artifact_id"] = int(self.source), 1
            cell[0] = (code, 0, 0, int(Flag.NO_ROWS), records[0])
            self._first[code] = self.staged.append(cell)
        cells = self.staged.finish()
        if cells is not None:
            for code, (start, count, lead_hash) in self.leads.items():
                record = cells["record"][self._first[code] : self._first[code] + 1]
                record["lead_start"], record["lead_count"] = start, count
                record["content_hash"] = mix(record["content_hash"] ^ np.uint64(lead_hash))
            if flags_of is not None:
                cells["flags"] |= flags_of(cells)
            cells.flush()
        return self.staged.count


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Compute one file pass.

    Raises:
        TaskFailed: the file is damaged; the reason names file, line and what is wrong.
    """
    from engines.feeds.file_pass import run_pass
    from engines.feeds.pass_report import SourceDamaged

    arguments: PassArguments = task.arguments
    column = arguments.dataset.column
    staged = workplace.temporary / f"{workplace.batch_name}-cells.npy"
    folder = workplace.artifact_root / column.value.removesuffix("_ref") / arguments.window.date
    path = folder / f"{workplace.batch_name}-{arguments.dataset.value.partition('/')[0]}.parquet"
    sinks: list[CellSink] = []

    def open_sink() -> CellSink:
        sinks.append(CellSink(column, arguments.dataset, arguments.window, path, staged, _metadata(arguments)))
        return sinks[-1]

    try:
        report = run_pass(
            Path(arguments.path),
            arguments.dataset,
            arguments.window,
            open_sink,
            symbol_of=_symbol_of(arguments),
            spill_dir=workplace.temporary,
            wanted=_wanted(arguments),
            bad_rows_max=arguments.bad_rows_max,
        )
    except SourceDamaged as damage:
        where = arguments.name if damage.line is None else f"{arguments.name}, line {damage.line}"
        reason = f"{where}: {damage.reason}"
        raise TaskFailed(reason, hint=damage.hint, report=PassResult(None, damaged=reason)) from damage
    return _batch(workplace, sinks[-1], report)


def _metadata(arguments: PassArguments) -> dict[str, str]:
    from engines.feeds.file_columns import size_unit

    return {
        "m17.dataset": arguments.dataset.value,
        "m17.session": arguments.window.date,
        "m17.size_unit": size_unit(arguments.dataset, arguments.window.date),
        "m17.source": Source.FLAT_FILE.word,
        "m17.parser_version": str(PARSER_VERSION),
    }


def _symbol_of(arguments: PassArguments) -> Any:
    def of(ticker: str) -> str | None:
        return symbol_of(ticker, arguments.option_rows)

    return of


def _wanted(arguments: PassArguments) -> Any:
    from fnmatch import fnmatchcase

    only = None if arguments.only is None else frozenset(arguments.only)
    if only is None and not arguments.globs:
        return None

    def wanted(ticker: str) -> bool:
        if arguments.globs and not any(fnmatchcase(ticker, pattern) for pattern in arguments.globs):
            return False
        return only is None or symbol_of(ticker, arguments.option_rows) in only

    return wanted


def _batch(workplace: Workplace, sink: CellSink, report: PassReport) -> Batch:
    written = sink.finish(**{"m17.outside": _outside_footer(sink)})
    count = sink.finish_cells()
    artifacts = []
    if written is not None:
        uri = str(written.path.relative_to(workplace.artifact_root))
        artifacts.append(ArtifactFile(uri, written.checksum, written.bytes, written.rows, sink.column))
    names = sorted(sink.symbols, key=sink.symbols.__getitem__)
    block = CellBlock(sink.column, names, sink.staged.path, count, Source.FLAT_FILE, fill_no_rows=True)
    return Batch([block], artifacts, report=PassResult(report, sink.volume_outside, sink.outside_facts))


def _outside_footer(sink: CellSink) -> str:
    """JSON: symbol -> [row_start, row_count, ...] of its rows outside the session."""
    import json

    return json.dumps(sink.outside_rows)
