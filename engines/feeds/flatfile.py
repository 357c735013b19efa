"""
Reads one flat file (.csv.gz) as typed frames, in bounded memory, and says what is wrong with it.

Three readers, one result. The compiled one takes large files of the form that upstream writes, and sends all others to the
fast one (:class:`NeedsPlainPass`). The fast one streams through Polars with an explicit schema and without ``ignore_errors``, so a
field that does not fit its type stops it, as does every flaw of the gzip stream: Polars compares CRC and length of each
member and refuses what follows the last one. What Polars lets pass (short lines become nulls behind a ticker of garbage,
quotes may span lines) shows as a null or as a ticker, code list or id off its pattern. At any of these the fast reader
judges nothing: it raises :class:`NeedsExactPass`, and the caller throws away what it got and reads again with
``exact=True``, which names lines and has the last word. :func:`engines.feeds.file_pass.run_pass` does this dance.

Rows are only good when the iterator has ended: damage at the end of a file shows after most rows were handed out. This
module must never sort rows, and never return from a damaged file as if it had ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import polars as pl

from engines.feeds.exact_reader import ExactReader
from engines.feeds.file_columns import columns_of, frame_types, size_unit
from engines.feeds.file_header import FETCH_AGAIN, read_header
from engines.feeds.pass_report import NeedsExactPass, PassReport, SourceDamaged
from engines.feeds.row_checks import Doubtful, RowChecks
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

__all__ = ["BAD_ROWS_MAX", "BATCH_ROWS", "NeedsExactPass", "PassReport", "SourceDamaged", "read_batches", "size_unit"]

BATCH_ROWS: Final = 125_000
"""Rows per frame; larger ones are no faster and need more memory."""
_FRAMES_AHEAD: Final = 2
"""Frames that are read while the caller works on one; Polars alone waits for its caller."""
BAD_ROWS_MAX: Final = 10
"""Unreadable lines that are set aside before a file counts as damaged."""


def read_batches(
    path: Path,
    dataset: Dataset,
    window: SessionWindow,
    report: PassReport,
    *,
    wanted: Callable[[str], bool] | None = None,
    bad_rows_max: int = BAD_ROWS_MAX,
    batch_rows: int = BATCH_ROWS,
    exact: bool = False,
    compiled: bool = False,
) -> Iterator[pl.DataFrame]:
    """
    Rows of one file, in file order, as frames with the columns and types of :func:`columns_of` and without nulls.

    Tickers and code lists are :func:`texts`, times ns UTC, sizes as sent (their unit is ``report.size_unit``); absent optional columns and
    blank fields are 0 or ''. Code lists are comma lists without blanks, in the order sent.

    Args:
        path: the .csv.gz file.
        dataset: whose columns to expect.
        window: the session that the file is of; rows of another local day are rejected.
        report: a fresh report, filled while reading.
        wanted: keeps only tickers it is true for; called once per ticker and batch.
        bad_rows_max: unreadable lines that are set aside; one more is damage.
        batch_rows: rows per frame, about.
        exact: read with exact line numbers, several times slower.
        compiled: read in compiled code what is of the form that upstream writes; in workers, and worth it for large files.

    Raises:
        SourceDamaged: gzip truncated, wrong or followed by other bytes; no header, a required column missing, wrong
            delimiter, UTF-16, unterminated quote, a line over 64 KiB, binary data, too many unreadable lines, or rows
            but none of the session's day.
        NeedsExactPass: throw everything away and call again with a fresh report and ``exact=True``.
        NeedsPlainPass: the same without ``compiled``.
        OSError: the file cannot be read.
    """
    path = Path(path)
    header = read_header(path, dataset)
    report.header = header
    report.size_unit = size_unit(dataset, window.date)
    report.exact = exact
    checks = RowChecks(dataset, window, report, wanted)
    schema = _schema(header, dataset)
    if exact:
        frames = ExactReader(path, dataset, schema, window, report, checks, bad_rows_max).batches()
    elif compiled:
        from engines.feeds.compiled_reader import CompiledReader

        frames = _ahead(CompiledReader(path, dataset, schema, report, checks, batch_rows).batches())
    else:
        frames = _ahead(_fast_batches(path, dataset, schema, report, checks, max(bad_rows_max, 1), batch_rows))
    for frame in frames:
        if frame.height:
            yield frame
    if report.rows and not report.rows_of_day:
        day = f"{report.rows} rows, but none of {window.date}"
        raise SourceDamaged(path, None, day, f"check that the file is the session's; otherwise {FETCH_AGAIN}")


def _schema(header: tuple[str, ...], dataset: Dataset) -> dict[str, pl.DataType]:
    """Types in file order; columns that nobody knows are text under a name of their own."""
    types = frame_types(dataset)
    return {
        name if name in types else f"unknown {place}": types.get(name, pl.String()) for place, name in enumerate(header)
    }


def _ahead(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same frames, read on a thread of their own; what reading raises comes in its place."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        reading: deque[Future[pl.DataFrame | None]] = deque()
        try:
            while True:
                while len(reading) < _FRAMES_AHEAD:
                    reading.append(thread.submit(next, frames, None))
                frame = reading.popleft().result()
                if frame is None:
                    return
                yield frame
                del frame
        finally:
            for waiting in reading:
                waiting.cancel()


def _fast_batches(
    path: Path,
    dataset: Dataset,
    schema: dict[str, pl.DataType],
    report: PassReport,
    checks: RowChecks,
    short_lines_max: int,
    batch_rows: int,
) -> Iterator[pl.DataFrame]:
    chosen = [name for name in columns_of(dataset).types if name in schema]
    last = next(reversed(schema))
    blank_at_end = 0
    try:
        # The header is skipped, not read: Polars would want its names letter for letter.
        lazy = pl.scan_csv(path, schema=schema, has_header=False, skip_lines=1, glob=False).select(chosen)
        for raw in lazy.collect_batches(chunk_size=batch_rows, maintain_order=True):
            report.rows += raw.height
            if last in chosen:
                blank_at_end += raw[last].null_count()
            yield checks.accept(raw)
    except (pl.exceptions.PolarsError, OSError, Doubtful) as error:
        raise NeedsExactPass(f"{type(error).__name__} near row {report.rows}") from None
    # Lines that end early leave blanks in the last column. Few of them are suspicious; many are the source's habit.
    if 0 < blank_at_end <= max(short_lines_max, report.rows // 1_000) and blank_at_end < report.rows:
        raise NeedsExactPass(f"{blank_at_end} rows without a last field")
