"""
The first bytes of a flat file: is it gzip, is there a header, does it name what is needed.

Columns are found by name, stripped and lower-cased. This module must never read beyond the header line.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path
from typing import Final

from engines.feeds.file_columns import columns_of
from engines.feeds.pass_report import SourceDamaged
from ledger.columns import Dataset

FETCH_AGAIN: Final = "fetch the file again and compare its size and checksum with the source's"
NOT_THE_FILE: Final = "check that the source is a Massive flat file of this dataset, comma separated, UTF-8"
_HEADER_BYTES_MAX: Final = 65_536
_KNOWN_SEPARATORS: Final = {";": "semicolon", "\t": "tab", "|": "bar", ":": "colon", " ": "space"}


def read_header(path: Path, dataset: Dataset) -> tuple[str, ...]:
    """
    Column names of a flat file, stripped and lower-cased, in file order.

    Raises:
        SourceDamaged: the file is empty, no gzip, no UTF-8, has no header, or its header lacks a required column.
        OSError: the file cannot be opened or read.
    """
    line = _first_line(path)
    if line[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in line:
        raise SourceDamaged(path, 1, "the header is UTF-16 or binary, not UTF-8", NOT_THE_FILE)
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceDamaged(path, 1, "the header is not UTF-8", NOT_THE_FILE) from None
    if text.count('"') % 2:
        raise SourceDamaged(path, 1, "unterminated quote in the header", FETCH_AGAIN)
    names = tuple(name.strip().lower() for name in next(csv.reader([text]), []))
    _check_names(path, dataset, names)
    return names


def _first_line(path: Path) -> bytes:
    """The first line without its line end; damage of the gzip stream before it ends is raised."""
    with path.open("rb") as raw:
        magic = raw.read(2)
        if not magic:
            raise SourceDamaged(path, None, "the file is empty", FETCH_AGAIN)
        if magic != b"\x1f\x8b":
            raise SourceDamaged(path, None, "not a gzip file", "the source must be a .csv.gz; fetch it again")
        raw.seek(0)
        try:
            line = gzip.GzipFile(fileobj=raw).readline(_HEADER_BYTES_MAX)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SourceDamaged(path, 1, f"the gzip stream is damaged: {error}", FETCH_AGAIN) from None
    if len(line) == _HEADER_BYTES_MAX:
        raise SourceDamaged(path, 1, f"no header: the first line has over {_HEADER_BYTES_MAX} bytes", NOT_THE_FILE)
    line = line.rstrip(b"\r\n")
    if not line.strip():
        raise SourceDamaged(path, 1, "no header: the first line is empty", FETCH_AGAIN)
    return line


def _check_names(path: Path, dataset: Dataset, names: tuple[str, ...]) -> None:
    columns = columns_of(dataset)
    missing = [name for name in columns.required if name not in names]
    if missing:
        for separator, word in _KNOWN_SEPARATORS.items():
            if len(names) == 1 and set(columns.required) & {name.strip(' "') for name in names[0].split(separator)}:
                raise SourceDamaged(path, 1, f"wrong delimiter: {word} instead of comma", NOT_THE_FILE)
        if not set(names) & set(columns.types):
            raise SourceDamaged(path, 1, "no header: the first line names no known column", NOT_THE_FILE)
        raise SourceDamaged(path, 1, f"missing required column: {', '.join(missing)}", NOT_THE_FILE)
    twice = sorted({name for name in names if name in columns.types and names.count(name) > 1})
    if twice:
        raise SourceDamaged(path, 1, f"column named twice: {', '.join(twice)}", NOT_THE_FILE)
