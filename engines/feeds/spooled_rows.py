"""
Spooled rows read back: the files of :mod:`engines.feeds.minute_spool` as the typed frames that a flat file gives.

Files are memory-mapped and rows taken for some tickers at a time, so that the memory is that of the part and not of the
minute. A block that is not whole, such as a killed writer leaves, ends its file. This module must never write a file.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.feeds.spool_blocks import HEADER, LAYOUT, MAGIC, ROW_BYTES, TEXT_COLUMNS
from ledger.columns import Column, Dataset

if TYPE_CHECKING:
    import polars

_NO_SEQUENCE: Final = frozenset({Dataset.OPTION_TRADES})
"""Files of these carry no sequence, and rows are ordered without one."""


@dataclass(slots=True)
class _Block:
    rows: int
    columns: dict[str, NDArray[Any]]
    id_ends: NDArray[np.int64] | None = None
    ids: bytes = b""


@dataclass(slots=True)
class _File:
    blocks: list[_Block] = field(default_factory=list)
    texts: dict[str, dict[int, str]] = field(default_factory=lambda: {name: {} for name in TEXT_COLUMNS})


def _read(path: Path, dataset: Dataset) -> _File:
    found = _File()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            return found
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    layout, row_bytes = LAYOUT[dataset.column], ROW_BYTES[dataset.column]
    trades = dataset.column is Column.TRADE_REF
    at = 0
    while at + HEADER.size <= size:
        magic, rows, text_bytes, id_bytes = HEADER.unpack_from(data, at)
        end = at + HEADER.size + text_bytes + rows * (row_bytes + trades) + id_bytes
        if magic != MAGIC or end > size:
            break
        at += HEADER.size
        texts = msgspec.msgpack.decode(data[at : at + text_bytes], type=dict[str, list[tuple[int, str]]])
        for name, pairs in texts.items():
            found.texts[name].update(pairs)
        at += text_bytes
        block = _Block(rows, {})
        for name, kind in layout.items():
            block.columns[name] = np.frombuffer(data, kind, rows, at)
            at += block.columns[name].nbytes
        if trades:
            block.id_ends = np.cumsum(np.frombuffer(data, np.uint8, rows, at), dtype=np.int64)
            block.ids = data[at + rows : at + rows + id_bytes]
        found.blocks.append(block)
        at = end
    return found


def look_into(path: Path, dataset: Dataset) -> tuple[int, tuple[str, ...]]:
    """How many whole rows a file has, and of which tickers."""
    file = _read(path, dataset)
    return sum(block.rows for block in file.blocks), tuple(sorted(file.texts["ticker"].values()))


class Spooled:
    """
    The rows of some files of one dataset.

    Attributes:
        tickers: whose rows, ascending.
        rows: i64[tickers], how many of each, redelivered ones included.
    """

    def __init__(self, paths: Sequence[Path], dataset: Dataset) -> None:
        self._dataset = dataset
        self._files = [_read(path, dataset) for path in paths]
        self._texts = {
            name: sorted({text for file in self._files for text in file.texts[name].values()}) for name in TEXT_COLUMNS
        }
        self._tables = [{name: self._table(file, name) for name in TEXT_COLUMNS} for file in self._files]
        self.tickers = self._texts["ticker"]
        self.rows = np.zeros(len(self.tickers), np.int64)
        for file, tables in zip(self._files, self._tables, strict=True):
            for block in file.blocks:
                self.rows += np.bincount(tables["ticker"][block.columns["ticker"]], minlength=len(self.tickers))

    def _table(self, file: _File, name: str) -> NDArray[np.uint32]:
        """u32[numbers of the file], the place of each number's text among all texts."""
        texts = file.texts[name]
        place = {text: index for index, text in enumerate(self._texts[name])}
        table = np.zeros(max(texts, default=0) + 1, np.uint32)
        for number, text in texts.items():
            table[number] = place[text]
        return table

    def frame(self, chosen: NDArray[np.bool_]) -> polars.DataFrame:
        """
        The rows of some tickers as :func:`engines.feeds.flatfile.read_batches` would yield them, redelivered ones once.

        Columns that the websocket does not carry (a trade's correction, participant times) have their default. Option
        trades have sequence 0, as in files; the feed's sequence is their id.

        Args:
            chosen: bool[tickers].
        """
        import polars as pl

        from engines.feeds.file_columns import frame_types

        parts: dict[str, list[Any]] = {name: [] for name in (*LAYOUT[self._dataset.column], "id")}
        for file, tables in zip(self._files, self._tables, strict=True):
            for block in file.blocks:
                ticker = tables["ticker"][block.columns["ticker"]]
                at = np.flatnonzero(chosen[ticker])
                if not len(at):
                    continue
                for name, column in block.columns.items():
                    values = column[at]
                    parts[name].append(tables[name][values] if name in tables else values)
                if block.id_ends is not None:
                    parts["id"].append(_ids_at(block, at))
        made = []
        for name, dtype in frame_types(self._dataset).items():
            made.append(self._series(name, dtype, parts))
        return redelivered_once(pl.DataFrame(made), self._dataset)

    def _series(self, name: str, dtype: Any, parts: dict[str, list[Any]]) -> polars.Series:
        import polars as pl

        pieces = parts.get(name, [])
        rows = sum(len(piece) for piece in parts["ticker"])
        if name == "id" and self._dataset in _NO_SEQUENCE:
            sequence = pl.Series(name, np.concatenate(parts["sequence_number"]) if rows else [], dtype=pl.Int64)
            return sequence.cast(pl.String).replace("0", "")
        if not pieces or (name == "sequence_number" and self._dataset in _NO_SEQUENCE):
            return pl.Series(name, [0 if dtype.is_numeric() else ""], dtype=dtype).new_from_index(0, rows)
        if name == "id":
            return pl.concat(pieces).alias(name)
        column = np.concatenate(pieces)
        if name in TEXT_COLUMNS:
            return pl.Series(name, self._texts[name], dtype=dtype).gather(column)
        return pl.Series(name, column, dtype=dtype)


def _ids_at(block: _Block, at: NDArray[np.int64]) -> polars.Series:
    import polars as pl
    import pyarrow as pa

    assert block.id_ends is not None
    offsets = np.zeros(block.rows + 1, np.int64)
    offsets[1:] = block.id_ends
    texts = pa.LargeStringArray.from_buffers(block.rows, pa.py_buffer(offsets), pa.py_buffer(block.ids))
    series = pl.from_arrow(texts.take(pa.array(at)))
    assert isinstance(series, pl.Series)
    return series


def redelivered_once(frame: polars.DataFrame, dataset: Dataset) -> polars.DataFrame:
    """
    The rows without those that came again: equal in everything, with a sequence that says that they are the same event.

    Rows without a sequence are all kept, because identical prints are real; so is a row that has another's sequence and
    other values. Order is not kept where something came again.

    Args:
        frame: columns of the dataset, as :meth:`Spooled.frame`.
    """
    import polars as pl

    by_id = dataset in _NO_SEQUENCE
    told = pl.col("id") != "" if by_id else pl.col("sequence_number") != 0
    key = pl.struct("ticker", "id" if by_id else "sequence_number")
    known = frame.filter(told)
    if not known.height or not known.select(key.is_duplicated().any()).item():
        return frame
    same = [name for name in frame.columns if by_id or name != "id"]
    return pl.concat([frame.filter(~told), known.unique(subset=same, keep="first", maintain_order=True)])
