"""
Cuts a stream of rows into chunks of whole cells, in canonical order, in bounded memory.

Files are normally grouped by ticker, and a chain's tickers are neighbours: a symbol is complete when another one begins,
and about a quarter of a million rows of complete symbols make a chunk. Two things break that:

- one symbol has more rows than the budget: its rows go to disk by time, and come back as chunks of whole minutes, which
  needs no restart because nothing of it was handed out;
- a symbol comes back after it was handed out: the file is not grouped. Chunks cannot be taken back, so
  :class:`NeedsExternalSort` is raised; the caller throws everything away and calls again with ``external=True``, which
  sends all rows through disk by symbol. :func:`engines.feeds.file_pass.run_pass` does it.

Chunk boundaries and the order of symbols across chunks differ between the ways; cells, their rows, row order and counts
do not. Memory holds about three times the budget. This module must never read the source itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engines.feeds.canonical_order import RowOrder, SymbolOf, minutes_from_open
from engines.feeds.chunks import Chunk, IntArray, outside_chunk
from engines.feeds.pass_report import NeedsExternalSort, PassReport
from engines.feeds.row_checks import ticker_runs
from engines.feeds.session_window import SessionWindow
from engines.feeds.spill import Spill, read_rows, write_rows
from ledger.columns import WINDOW_NS, Dataset

BUDGET_ROWS: Final = 1_000_000
"""Rows of unfinished symbols that are kept in memory."""
CHUNK_ROWS: Final = 250_000
"""Rows a chunk should have; a symbol or a minute is never split to keep to it."""
_BUCKETS: Final = 64


def ordered_chunks(
    batches: Iterable[pl.DataFrame],
    dataset: Dataset,
    window: SessionWindow,
    symbol_of: SymbolOf,
    report: PassReport,
    *,
    spill_dir: Path,
    budget_rows: int = BUDGET_ROWS,
    chunk_rows: int = CHUNK_ROWS,
    external: bool = False,
) -> Iterator[Chunk]:
    """
    Chunks of the session's rows, then chunks of the rows outside it.

    Args:
        batches: frames as :func:`engines.feeds.flatfile.read_batches` yields them.
        symbol_of: the symbol of a ticker, or None where its rows are refused. Called often: it must answer the same for
            the same ticker throughout.
        report: gets the counts per symbol, refused rows and rows out of time order.
        spill_dir: an empty folder for this call, removed by the caller.
        budget_rows: rows of unfinished symbols in memory. One minute of one symbol must fit.
        external: the file is known not to be grouped.

    Raises:
        NeedsExternalSort: throw away all chunks and call again with ``external=True``.
    """
    report.external = external
    order = RowOrder(dataset, window, symbol_of, report)
    stream = _Stream(order, window, symbol_of, report, spill_dir, budget_rows, min(chunk_rows, budget_rows))
    for batch in batches:
        rows, symbols = stream.admitted(batch)
        if not rows.height:
            continue
        if external:
            stream.set_aside(rows, symbols)
        else:
            yield from stream.grouped(rows, symbols)
        del batch, rows
    yield from stream.finish()


class _Stream:
    """Rows on their way: pending in memory, spilled, or held back until the end."""

    def __init__(
        self,
        order: RowOrder,
        window: SessionWindow,
        symbol_of: SymbolOf,
        report: PassReport,
        folder: Path,
        budget_rows: int,
        chunk_rows: int,
    ) -> None:
        self._order = order
        self._window = window
        self._symbol_of = symbol_of
        self._report = report
        self._folder = folder
        self._budget_rows = budget_rows
        self._chunk_rows = chunk_rows
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = 0
        self._pending_symbols: set[str] = set()
        self._closed: set[str] = set()
        self._spill: Spill | None = None
        self._spilled_symbol: str | None = None
        self._spills = 0
        self._outside: list[pl.DataFrame] = []
        self._outside_rows = 0
        self._outside_files: list[Path] = []
        self._outside_schema = pl.Schema()
        self._last_times: dict[str, dict[str, int]] = {}

    def admitted(self, batch: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.object_]]:
        """The rows whose ticker has a symbol, and the symbol of each run of tickers in them, object[runs]."""
        starts, heads = ticker_runs(batch["ticker"])
        known = {ticker: self._symbol_of(ticker) for ticker in heads.unique(maintain_order=True).to_list()}
        lengths = np.diff(starts, append=batch.height)
        names = heads.to_list()
        if None in known.values():
            for ticker, length in zip(names, lengths.tolist(), strict=True):
                if known[ticker] is None:
                    self._report.refuse(ticker, length)
            kept = np.fromiter((known[ticker] is not None for ticker in names), np.bool_, len(names))
            batch = batch.filter(pl.Series(np.repeat(kept, lengths)))
            starts, heads = ticker_runs(batch["ticker"])
            names = heads.to_list()
        symbols = np.empty(len(names), np.object_)
        symbols[:] = [known[ticker] for ticker in names]
        self._watch_time(batch, starts, names, symbols)
        return batch, symbols

    def _watch_time(
        self, batch: pl.DataFrame, starts: IntArray, names: list[str], symbols: NDArray[np.object_]
    ) -> None:
        """Count rows that are earlier than the row of their ticker before them, over batches too."""
        times = batch["sip_timestamp"].to_numpy()
        earlier = times[1:] < times[:-1]
        earlier[starts[1:] - 1] = False
        late = int(earlier.sum())
        firsts = times[starts].tolist()
        lasts = times[np.append(starts[1:], len(times)) - 1].tolist() if names else []
        for symbol, ticker, first, last in zip(symbols.tolist(), names, firsts, lasts, strict=True):
            of_symbol = self._last_times.setdefault(symbol, {})
            late += first < of_symbol.get(ticker, first)
            of_symbol[ticker] = last
        self._report.out_of_time_order_rows += late

    def set_aside(self, rows: pl.DataFrame, symbols: NDArray[np.object_]) -> None:
        """Send rows to disk by symbol."""
        if self._spill is None:
            self._spill = self._new_spill()
        bucket = {name: zlib.crc32(name.encode()) % _BUCKETS for name in set(symbols.tolist())}
        self._spill.add(rows, _per_row(rows, [bucket[name] for name in symbols.tolist()]))

    def grouped(self, rows: pl.DataFrame, symbols: NDArray[np.object_]) -> Iterator[Chunk]:
        """
        Take rows of a grouped file; hand out what is complete.

        Raises:
            NeedsExternalSort: a symbol is back whose rows were handed out.
        """
        if self._spill is not None:
            own = symbols == self._spilled_symbol
            mine = _per_row(rows, own).astype(np.bool_)
            self._spill_by_time(rows.filter(pl.Series(mine)))
            if own.all():
                return
            rows, symbols = rows.filter(pl.Series(~mine)), symbols[~own]
            yield from self._unspilled(by_time=True)
        present = set(symbols.tolist())
        if back := present & self._closed:
            raise NeedsExternalSort(f"{min(back)} is back after other symbols")
        self._pending.append(rows)
        self._pending_rows += rows.height
        self._pending_symbols |= present
        last = str(symbols[-1])
        del rows
        if self._pending_rows >= self._chunk_rows and len(self._pending_symbols) > 1:
            yield from self._all_but(last)
        if self._pending_rows > self._budget_rows:
            self._spill, self._spilled_symbol = self._new_spill(), last
            frames, self._pending = self._pending, []
            self._pending_rows, self._pending_symbols = 0, set()
            for frame in frames:
                self._spill_by_time(frame)

    def finish(self) -> Iterator[Chunk]:
        """Everything that is left, the rows outside the session at the end."""
        if self._spill is not None:
            yield from self._unspilled(by_time=self._spilled_symbol is not None)
        if self._pending_rows:
            frame, self._pending = pl.concat(self._pending), []
            yield from self._arranged(frame, None)
            del frame
        for path in self._outside_files:
            yield outside_chunk(read_rows(path, self._outside_schema), self._window)
            path.unlink()
        if self._outside_rows:
            yield outside_chunk(_by_symbol(self._outside), self._window)

    def _all_but(self, last: str) -> Iterator[Chunk]:
        """Hand out all pending symbols but the last, which may go on."""
        frame, self._pending = pl.concat(self._pending), []
        _, heads = ticker_runs(frame["ticker"])
        stays = _per_row(frame, [self._symbol_of(ticker) == last for ticker in heads.to_list()]).astype(np.bool_)
        first = int(stays.argmax())
        if stays[first:].all():
            done, rest = frame.head(first), frame.tail(frame.height - first)
        else:
            done, rest = frame.filter(pl.Series(~stays)), frame.filter(pl.Series(stays))
        # A copy, so that the rest does not keep the whole frame's memory.
        self._pending = [rest[np.arange(rest.height)]]
        self._pending_rows = rest.height
        closed = self._pending_symbols - {last}
        self._closed |= closed
        for symbol in closed:
            self._last_times.pop(symbol, None)
        self._pending_symbols = {last}
        del frame, rest
        yield from self._arranged(done, None)

    def _arranged(self, frame: pl.DataFrame, last_prices: dict[str, float] | None) -> Iterator[Chunk]:
        chunk, outside = self._order.arrange(frame, last_prices)
        del frame
        if outside.height:
            self._outside.append(outside)
            self._outside_rows += outside.height
            if self._outside_rows > self._budget_rows // 4:
                path = self._folder / f"outside-{len(self._outside_files):06d}.ipc"
                self._outside_schema = outside.schema
                write_rows(_by_symbol(self._outside), path)
                self._outside_files.append(path)
                self._outside, self._outside_rows = [], 0
        if chunk is not None:
            yield chunk

    def _new_spill(self) -> Spill:
        self._spills += 1
        return Spill(self._folder / f"spill-{self._spills:06d}", max(1, self._budget_rows // 3))

    def _spill_by_time(self, rows: pl.DataFrame) -> None:
        if rows.height and self._spill is not None:
            minutes = self._minutes(rows)
            self._spill.add(rows, minutes // (self._minutes_of_day // _BUCKETS + 1))

    @property
    def _minutes_of_day(self) -> int:
        return (self._window.day_end_ns - self._window.day_start_ns) // WINDOW_NS + 2

    def _minutes(self, rows: pl.DataFrame) -> IntArray:
        """Minute of the day of each row from 0, aligned to the windows, i64[rows]."""
        first = (self._window.day_start_ns - self._window.open_ns) // WINDOW_NS
        return minutes_from_open(rows["sip_timestamp"].to_numpy(), self._window).astype(np.int64) - first

    def _unspilled(self, *, by_time: bool) -> Iterator[Chunk]:
        """
        Bring spilled rows back as chunks.

        Args:
            by_time: buckets are times of one symbol, so that last prices go from one to the next; otherwise each bucket
                holds whole symbols.
        """
        spill, self._spill = self._spill, None
        if self._spilled_symbol is not None:
            self._closed.add(self._spilled_symbol)
            self._last_times.pop(self._spilled_symbol, None)
            self._spilled_symbol = None
        if spill is None:
            return
        last_prices: dict[str, float] = {}
        gathered: list[int] = []
        for bucket in [*sorted(spill.rows), None]:
            rows = spill.rows[bucket] if bucket is not None else 0
            if gathered and (bucket is None or sum(spill.rows[each] for each in gathered) + rows > self._chunk_rows):
                frame = pl.concat([piece for each in gathered for piece in spill.take(each)])
                yield from self._arranged(frame, last_prices if by_time else None)
                del frame
                gathered = []
            if rows > self._budget_rows and bucket is not None:
                yield from self._split(spill, bucket, last_prices if by_time else {})
            elif bucket is not None:
                gathered.append(bucket)

    def _split(self, spill: Spill, bucket: int, last_prices: dict[str, float]) -> Iterator[Chunk]:
        """Bring one bucket back that is over the budget: by symbols, and symbols over the budget by minutes."""
        counts: dict[str, IntArray] = {}
        for rows in spill.peek(bucket):
            names, owner = self._owners(rows)
            cell = owner * self._minutes_of_day + self._minutes(rows)
            found = np.bincount(cell, minlength=len(names) * self._minutes_of_day).reshape(len(names), -1)
            for name, per_minute in zip(names, found, strict=True):
                counts[name] = counts[name] + per_minute if name in counts else per_minute
        group_of = self._plan(counts)
        parts = self._new_spill()
        for rows in spill.take(bucket):
            names, owner = self._owners(rows)
            table = np.stack([group_of[name] for name in names])
            parts.add(rows, table[owner, self._minutes(rows)])
        for group in sorted(parts.rows):
            frame = pl.concat(list(parts.take(group)))
            yield from self._arranged(frame, last_prices)
            del frame

    def _owners(self, rows: pl.DataFrame) -> tuple[list[str], IntArray]:
        """Symbols in the rows, ascending, and the index of each row's, i64[rows]."""
        _, heads = ticker_runs(rows["ticker"])
        of_run = [str(self._symbol_of(ticker)) for ticker in heads.to_list()]
        names = sorted(set(of_run))
        place = {name: index for index, name in enumerate(names)}
        return names, _per_row(rows, [place[name] for name in of_run])

    def _plan(self, counts: dict[str, IntArray]) -> dict[str, IntArray]:
        """The group of each minute of each symbol, i64[minutes]; groups ascend with symbol and time."""
        plan: dict[str, IntArray] = {}
        group, filled = 0, 0
        for name in sorted(counts):
            per_minute = counts[name]
            total = int(per_minute.sum())
            groups = np.empty(len(per_minute), np.int64)
            if total <= self._budget_rows:
                if filled and filled + total > self._chunk_rows:
                    group, filled = group + 1, 0
                groups[:] = group
                filled += total
            else:
                group, filled = group + (filled > 0), 0
                for minute, rows in enumerate(per_minute.tolist()):
                    if filled and filled + rows > self._chunk_rows:
                        group, filled = group + 1, 0
                    groups[minute] = group
                    filled += rows
                group, filled = group + 1, 0
            plan[name] = groups
        return plan


def _per_row(frame: pl.DataFrame, per_run: list[int] | list[bool] | NDArray[np.generic]) -> IntArray:
    """A value per run of tickers, spread over the rows, i64[rows]."""
    starts, _ = ticker_runs(frame["ticker"])
    return np.repeat(np.asarray(per_run, np.int64), np.diff(starts, append=frame.height))


def _by_symbol(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Frames one after another, stably sorted by symbol."""
    frame = pl.concat(frames)
    symbols = frame["symbol"]
    return frame if symbols.is_sorted() else frame.sort("symbol", maintain_order=True)
