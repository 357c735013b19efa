"""
Rows set aside on disk, in numbered buckets.

Within a bucket rows keep the order they were added in. The folder belongs to one pass and is removed with it by its
owner. This module must never look into the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

_COMPRESSION: Final = "lz4"


class Spill:
    """Buckets of rows in a folder; a buffer of bounded size is kept in memory."""

    def __init__(self, folder: Path, buffer_rows: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._buffer_rows = buffer_rows
        self._frames: list[pl.DataFrame] = []
        self._buckets: list[NDArray[np.int64]] = []
        self._buffered = 0
        self._files: dict[int, list[Path]] = {}
        self._written = 0
        self._schema = pl.Schema()
        self.rows: dict[int, int] = {}
        """Rows per bucket, written or not."""

    def add(self, frame: pl.DataFrame, buckets: NDArray[np.int64]) -> None:
        """
        Set rows aside.

        Args:
            buckets: i64[rows], the bucket of each row.
        """
        numbers, counts = np.unique(buckets, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.rows[number] = self.rows.get(number, 0) + count
        self._frames.append(frame)
        self._buckets.append(buckets)
        self._buffered += frame.height
        if self._buffered >= self._buffer_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, one file per bucket that has rows in it."""
        if not self._buffered:
            return
        self._schema = self._frames[0].schema
        frame, buckets = pl.concat(self._frames), np.concatenate(self._buckets)
        self._frames, self._buckets, self._buffered = [], [], 0
        order = np.argsort(buckets, kind="stable")
        frame, buckets = frame[order], buckets[order]
        starts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
        ends = np.append(starts[1:], len(buckets))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            path = self._folder / f"{self._written:08d}.ipc"
            self._written += 1
            write_rows(frame.slice(start, end - start), path)
            self._files.setdefault(int(buckets[start]), []).append(path)

    def take(self, bucket: int) -> Iterator[pl.DataFrame]:
        """The rows of a bucket, in the order they were added; each file is removed once it was handed out."""
        self.flush()
        for path in self._files.pop(bucket, []):
            yield read_rows(path, self._schema)
            path.unlink()

    def peek(self, bucket: int) -> Iterator[pl.DataFrame]:
        """The rows of a bucket, which stay."""
        self.flush()
        for path in self._files.get(bucket, []):
            yield read_rows(path, self._schema)


def write_rows(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame for :func:`read_rows`; numbered texts as plain ones, because the numbering may be much larger."""
    with path.open("wb") as file:
        frame.with_columns(pl.col(pl.Categorical).cast(pl.String)).write_ipc(file, compression=_COMPRESSION)


def read_rows(path: Path, schema: pl.Schema) -> pl.DataFrame:
    """Read a frame into memory, in the types it was written from."""
    with path.open("rb") as file:
        return pl.read_ipc(file).cast(schema)
