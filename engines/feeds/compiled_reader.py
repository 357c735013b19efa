"""
The compiled reader: large files of the form that upstream writes, at a multiple of the speed of a general reader.

It unpacks the gzip stream, with CRC and length of each member compared, and reads whole lines in compiled code. What it
is not sure of it does not judge: :class:`NeedsPlainPass` sends the file to the general reader, a flaw of the gzip stream to
the exact one. Reads in workers only; it must never hand on a value that another reader would read otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl
from isal import igzip, igzip_lib

from engines.feeds.file_columns import columns_of, texts
from engines.feeds.pass_report import NeedsExactPass, NeedsPlainPass, PassReport
from engines.feeds.row_checks import Doubtful, RowChecks
from ledger.columns import Dataset

if TYPE_CHECKING:
    from engines.feeds.kernel_csv import Columns

_BLOCK_BYTES: Final = 8 << 20
_LINE_BYTES_MAX: Final = 65_536
_LINE_FEED: Final = 10
_FLOAT: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)")


class CompiledReader:
    """
    Reads one file.

    Args:
        schema: names and types in file order; see :func:`engines.feeds.flatfile.read_batches`.
        batch_rows: rows per frame, at most.
    """

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        schema: dict[str, pl.DataType],
        report: PassReport,
        checks: RowChecks,
        batch_rows: int,
    ) -> None:
        from engines.feeds import kernel_csv

        self._kernel = kernel_csv
        self._path = path
        self._schema = schema
        self._report = report
        self._checks = checks
        self._rows_max = batch_rows
        columns = columns_of(dataset)
        self._chosen = [name for name in columns.types if name in schema]
        kinds = {name: self._kind(name, columns.types[name], columns.codes) for name in self._chosen}
        self._kinds = np.array([kinds.get(name, kernel_csv.UNUSED) for name in schema], np.int64)
        self._places = np.array(
            [int((self._kinds[:at] == kind).sum()) for at, kind in enumerate(self._kinds)], np.int64
        )
        self._needed = np.array([name in columns.required for name in schema], np.bool_)
        self._words = kernel_csv.new_words()
        self._known: list[str] = []
        self._numbered = pl.Series([], dtype=texts())

    def _kind(self, name: str, dtype: pl.DataType, codes: tuple[str, ...]) -> int:
        kernel = self._kernel
        if name == "ticker":
            return kernel.TICKER
        if name in codes:
            return kernel.CODES
        numbers = {"Int64": kernel.INTEGER, "Int32": kernel.SMALL, "Float64": kernel.DECIMAL}
        return numbers.get(str(dtype), kernel.TEXT)

    def batches(self) -> Iterator[pl.DataFrame]:
        """
        Frames of kept rows, in file order.

        Raises:
            NeedsPlainPass: something is not as upstream writes it.
            NeedsExactPass: the gzip stream is damaged.
        """
        for text in self._blocks():
            block, at = np.frombuffer(text, np.uint8), 0
            while at < len(block):
                out = self._kernel.new_columns(self._kinds, self._rows_max, len(block) - at)
                rows, at, runs, hard = self._kernel.scan(
                    block, at, self._rows_max, self._kinds, self._places, self._needed, self._words, out
                )
                if at < 0:
                    raise NeedsPlainPass(f"a line near row {self._report.rows + rows} is not plain")
                self._report.rows += rows
                try:
                    self._read_hard(text, out, hard)
                    frame = self._frame(text, out, rows, runs)
                    del out
                    yield self._checks.accept(frame)
                except Doubtful:
                    raise NeedsPlainPass(f"a value near row {self._report.rows} is in doubt") from None

    # ---- text

    def _blocks(self) -> Iterator[memoryview]:
        """Whole lines behind the header, the last one with its line feed, too; each is void when the next is asked for."""
        room = bytearray(_BLOCK_BYTES + 1)
        view, end, header = memoryview(room), 0, True
        with igzip.IGzipFile(self._path, "rb") as file:  # type: ignore[no-untyped-call]
            while True:
                size = -1
                while end < _BLOCK_BYTES and size:
                    size = self._read(file, view[end:_BLOCK_BYTES])
                    end += size
                if not size and end and room[end - 1] != _LINE_FEED:
                    room[end] = _LINE_FEED
                    end += 1
                begin, cut = 0, room.rfind(b"\n", 0, end) + 1
                if header:
                    begin, header = room.find(b"\n", 0, end) + 1, False
                if cut > begin:
                    yield view[begin:cut]
                if not size:
                    return
                if end - cut > _LINE_BYTES_MAX:
                    raise NeedsPlainPass("a line is very long")
                room[: end - cut] = room[cut:end]
                end -= cut

    def _read(self, file: igzip.IGzipFile, room: memoryview) -> int:
        """How much more text there is; CRC and length of each gzip member are compared at its end."""
        try:
            return int(file.readinto(room))
        except (OSError, EOFError, igzip_lib.IsalError) as error:  # type: ignore[misc]
            raise NeedsExactPass(f"the gzip stream is damaged: {error}") from None

    # ---- columns

    def _read_hard(self, text: memoryview, out: Columns, hard: int) -> None:
        """Decimals with too many digits, or an exponent, as Python reads them: to the nearest double."""
        for place, row, begin, end in out.hard[:hard].tolist():
            written = bytes(text[begin:end])
            if not _FLOAT.fullmatch(written):
                raise Doubtful
            out.decimals[place, row] = float(written)

    def _frame(self, text: memoryview, out: Columns, rows: int, runs: int) -> pl.DataFrame:
        kernel = self._kernel
        arrays: dict[int, np.ndarray] = {
            kernel.INTEGER: out.integers, kernel.SMALL: out.small, kernel.DECIMAL: out.decimals, kernel.CODES: out.codes,
        }  # fmt: skip
        made: dict[str, pl.Series] = {}
        for name, kind, place in zip(self._schema, self._kinds.tolist(), self._places.tolist(), strict=True):
            if kind == kernel.TICKER:
                made[name] = _tickers(text, out.runs[:runs], rows)
            elif kind == kernel.CODES:
                made[name] = self._words_so_far().gather(out.codes[place, :rows])
            elif kind == kernel.TEXT:
                made[name] = _strings(out.text_ends[: rows + 1], out.text)
            elif kind != kernel.UNUSED:
                made[name] = _plain(arrays[kind][place, :rows])
        return pl.DataFrame([made[name].alias(name) for name in self._chosen])

    def _words_so_far(self) -> pl.Series:
        """The texts that code columns point to."""
        count = int(self._words.known[0])
        if count > len(self._known):
            starts, text = self._words.starts.tolist(), self._words.text.tobytes()
            self._known += [text[starts[at] : starts[at + 1]].decode() for at in range(len(self._known), count)]
            self._numbered = pl.Series(self._known, dtype=pl.String).cast(texts())
        return self._numbered


def _plain(values: np.ndarray) -> pl.Series:
    """A column over an array, which is not copied."""
    import pyarrow

    series = pl.from_arrow(pyarrow.array(values))
    assert isinstance(series, pl.Series)
    return series


def _tickers(text: memoryview, runs: np.ndarray, rows: int) -> pl.Series:
    heads = pl.Series([str(text[begin:end], "ascii") for begin, end in runs[:, 1:3].tolist()], dtype=pl.String)
    lengths = np.diff(runs[:, 0], append=rows)
    return heads.cast(texts()).gather(np.repeat(np.arange(len(heads)), lengths))


def _strings(ends: np.ndarray, text: np.ndarray) -> pl.Series:
    import pyarrow

    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(text[: int(ends[-1])])]
    series = pl.from_arrow(pyarrow.LargeStringArray.from_buffers(len(ends) - 1, buffers[1], buffers[2]))
    assert isinstance(series, pl.Series)
    return series
