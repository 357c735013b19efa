"""
The exact reader: every line with its number, at the price of speed.

It unpacks the file itself, in blocks of whole lines. A block that reads cleanly in one piece is taken as it is; any
other is read line by line, and each bad line is named. What it says about a file is final. A field never spans lines in
these files, so a line with an odd number of quotes is an unterminated quote. It must never hand on a value that it had
to guess.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import polars as pl

from engines.feeds.file_columns import (
    CODES_PATTERN,
    ID_BYTES_MAX,
    OPTION_TICKER_PATTERN,
    TICKER_PATTERN,
    columns_of,
)
from engines.feeds.file_header import FETCH_AGAIN, NOT_THE_FILE
from engines.feeds.pass_report import PassReport, SourceDamaged
from engines.feeds.row_checks import Doubtful, RowChecks
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

LINE_BYTES_MAX: Final = 65_536
"""A longer line is damage: the longest real line has a few hundred bytes."""
_BLOCK_BYTES: Final = 8 << 20
_PACKED_BYTES: Final = 1 << 16
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_FLOAT: Final = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|nan|inf)", re.IGNORECASE
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BITS: Final[dict[pl.DataType, int]] = {pl.Int32(): 31, pl.Int64(): 63}

Value = str | int | float | None


class Unreadable(Exception):
    """The line cannot be read; its text says why."""


class Rejected(Exception):
    """The line can be read and its row is refused; its text is the reason that is counted."""


class ExactReader:
    """Reads one file line by line where needed, with exact line numbers."""

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        schema: dict[str, pl.DataType],
        window: SessionWindow,
        report: PassReport,
        checks: RowChecks,
        bad_rows_max: int,
    ) -> None:
        self._path = path
        self._columns = columns_of(dataset)
        self._schema = schema
        self._chosen = [name for name in self._columns.types if name in schema]
        self._ticker = re.compile(OPTION_TICKER_PATTERN if dataset.of_options else TICKER_PATTERN)
        self._codes = re.compile(CODES_PATTERN)
        self._window = window
        self._report = report
        self._checks = checks
        self._bad_rows_max = bad_rows_max
        self._lines_unpacked = 0

    def batches(self) -> Iterator[pl.DataFrame]:
        """
        Frames of kept rows, in file order.

        Raises:
            SourceDamaged: see :func:`engines.feeds.flatfile.read_batches`.
        """
        for first_line, block in self._blocks():
            lines = block.count(b"\n") + (not block.endswith(b"\n"))
            self._report.rows += lines
            frame = self._whole(block, lines)
            yield self._by_line(first_line, block) if frame is None else frame

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, whole lines) behind the header."""
        line, tail, header, size = 1, b"", True, 0
        pieces: list[bytes] = []
        for piece in chain(self._unpacked(), (None,)):
            if piece is not None:
                pieces.append(piece)
                size += len(piece)
                self._lines_unpacked += piece.count(b"\n")
                if size < _BLOCK_BYTES:
                    continue
            block = tail + b"".join(pieces)
            pieces, size = [], 0
            cut = len(block) if piece is None else block.rfind(b"\n") + 1
            block, tail = block[:cut], block[cut:]
            if header and block:
                header, line, block = False, 2, block[block.find(b"\n") + 1 or len(block) :]
            if block:
                yield line, block
                line += block.count(b"\n")
            if len(tail) > LINE_BYTES_MAX:
                raise SourceDamaged(self._path, line, f"a line of over {LINE_BYTES_MAX} bytes", FETCH_AGAIN)

    def _unpacked(self) -> Iterator[bytes]:
        """The text of all gzip members; CRC and length are compared by zlib at the end of each."""
        member: zlib._Decompress | None = None
        with self._path.open("rb") as raw:
            while packed := raw.read(_PACKED_BYTES):
                while packed:
                    if member is None:
                        packed = packed.lstrip(b"\0")
                        if not packed:
                            break
                        if packed[:1] != b"\x1f":
                            raise self._broken("other bytes behind the last gzip member")
                        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
                    try:
                        yield member.decompress(packed)
                    except zlib.error as error:
                        raise self._broken(f"the gzip stream is damaged: {error}") from None
                    packed = member.unused_data
                    member = None if member.eof else member
        if member is not None:
            raise self._broken("the gzip stream is truncated")

    def _broken(self, reason: str) -> SourceDamaged:
        return SourceDamaged(self._path, self._lines_unpacked + 1, reason, FETCH_AGAIN)

    def _whole(self, block: bytes, lines: int) -> pl.DataFrame | None:
        """The block's rows when all of it reads cleanly, else None."""
        try:
            raw = pl.read_csv(block, has_header=False, schema=self._schema)
            if raw.height != lines or raw[raw.columns[-1]].null_count() not in (0, lines) or b"\0" in block:
                return None
            return self._checks.accept(raw.select(self._chosen))
        except (pl.exceptions.PolarsError, Doubtful):
            return None

    def _by_line(self, first_line: int, block: bytes) -> pl.DataFrame:
        rows: list[list[Value]] = []
        for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), first_line):
            try:
                rows.append(self._row(number, line))
            except Rejected as rejected:
                self._report.reject(str(rejected), 1)
            except Unreadable as unreadable:
                self._quarantine(number, str(unreadable))
        types = {name: self._schema[name] for name in self._chosen}
        return self._checks.accept(pl.DataFrame(rows, schema=types, orient="row"), by_line=True)

    def _quarantine(self, line: int, reason: str) -> None:
        bad = self._report.quarantined
        bad.append((line, reason))
        if len(bad) > self._bad_rows_max:
            text = f"more than {self._bad_rows_max} unreadable lines; the first: {bad[0][1]}"
            raise SourceDamaged(self._path, bad[0][0], text, f"{FETCH_AGAIN}, or raise bad_rows_max")

    def _row(self, number: int, line: bytes) -> list[Value]:
        """The line's values in column order, None for blank optional ones."""
        fields = self._fields(number, line)
        if len(fields) != len(self._schema):
            raise Unreadable(f"{len(fields)} fields, the header names {len(self._schema)}")
        by_name = dict(zip(self._schema, fields, strict=True))
        if not self._ticker.match(by_name["ticker"]):
            raise Unreadable(f"ticker {by_name['ticker'][:40]!r} is none")
        values, refusal = [], ""
        for name in self._chosen:
            try:
                values.append(self._value(name, by_name[name]))
            except Rejected as rejected:
                # An unreadable field further right outweighs a bad value, so the row is refused only at its end.
                refusal = refusal or str(rejected)
                values.append(None)
        if refusal:
            time = values[self._chosen.index("sip_timestamp")]
            if isinstance(time, int) and self._window.day_start_ns <= time < self._window.day_end_ns:
                self._report.rows_of_day += 1
            raise Rejected(refusal)
        return values

    def _fields(self, number: int, line: bytes) -> list[str]:
        if len(line) > LINE_BYTES_MAX:
            raise SourceDamaged(self._path, number, f"a line of over {LINE_BYTES_MAX} bytes", FETCH_AGAIN)
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            raise SourceDamaged(self._path, number, "binary data, not UTF-8 text", FETCH_AGAIN) from None
        if _CONTROL.search(text):
            raise SourceDamaged(self._path, number, "binary data, control characters", FETCH_AGAIN)
        if not text.strip():
            raise Unreadable("blank line")
        if '"' not in text:
            return text.split(",")
        if text.count('"') % 2:
            raise SourceDamaged(self._path, number, "unterminated quote", NOT_THE_FILE)
        try:
            return next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise Unreadable(f"quotes: {error}") from None

    def _value(self, name: str, text: str) -> Value:
        """One field in its type; a blank is a missing value where the column is required and null elsewhere."""
        dtype = self._columns.types[name]
        if dtype == pl.String:
            if name in self._columns.codes and not self._codes.match(text):
                raise Unreadable(f"{name} {text[:40]!r} is no list of codes")
            if name == "id" and len(text.encode()) > ID_BYTES_MAX:
                raise Unreadable(f"id of {len(text.encode())} bytes")
            return text
        text = text.strip()
        required = name in self._columns.required
        if not text:
            if required:
                raise Rejected(f"missing_{name}")
            return None
        if dtype == pl.Float64:
            if not _FLOAT.fullmatch(text):
                raise Unreadable(f"{name} {text[:40]!r} is no number")
            return float(text)
        if not _INTEGER.fullmatch(text):
            raise Unreadable(f"{name} {text[:40]!r} is no integer")
        value = int(text) if len(text) < 40 else 1 << 100
        if not -(1 << _BITS[dtype]) <= value < 1 << _BITS[dtype]:
            if required:
                raise Rejected(f"overflowing_{name}")
            raise Unreadable(f"{name} {text[:40]!r} is too large")
        return value
