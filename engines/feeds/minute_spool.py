"""
From columns of events to one file a minute, on event time.

Rows go to disk as they come, so that memory holds one block however busy the market is, and a reader that is behind costs
disk and not rows. A minute is closed when the time is past its end plus a grace; rows that come later go to files of
their own. A file is a sequence of blocks that explain themselves (:mod:`engines.feeds.spooled_rows` reads them), so that
what a killed feed wrote can still be used. Where the disk has no room left rows are dropped, counted, and told as a gap.
This module must never read a clock: time is what the caller says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from engines.feeds.feed_messages import Gap, RowCounts, SpooledRows
from engines.feeds.spool_blocks import OPEN_SUFFIX, SUFFIX, block_of, name_of
from engines.feeds.stream_events import Columns, Tables
from ledger.columns import WINDOW_NS, Dataset

GRACE_NS: Final = 2_000_000_000
"""How long after its end a minute waits for its last events."""
FREE_BYTES_MIN: Final = 1 << 30
"""Free bytes of the file system under which rows are dropped rather than written."""
_CHECK_BYTES: Final = 32 << 20


@dataclass(slots=True)
class _Minute:
    """A file that is being written: what is in it, and which texts it has explained."""

    path: Path
    late: bool
    rows: int = 0
    bytes: int = 0
    explained: dict[str, np.ndarray] = field(default_factory=dict)

    def fresh(self, name: str, numbers: np.ndarray, known: int) -> np.ndarray:
        """u32[n], numbers that the file has not explained yet, of a table of ``known`` texts."""
        have = self.explained.get(name)
        if have is None or len(have) < known:
            grown = np.zeros(max(64, 2 * known), np.bool_)
            if have is not None:
                grown[: len(have)] = have
            have = self.explained[name] = grown
        left = numbers[~have[numbers]]
        new: np.ndarray = np.unique(left) if len(left) else left
        return new


class MinuteSpool:
    """
    The minutes of one dataset of one connection.

    Args:
        folder: where files go; it exists.
        dataset: whose rows these are.
        tables: the numbering of tickers and codes in the columns.
        counts: where rows are counted.
        grace_ns: see :data:`GRACE_NS`.
        day: (start, end) in ns UTC; rows outside are refused as ``other_day``. None takes all.
        free_bytes_min: see :data:`FREE_BYTES_MIN`.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        tables: Tables,
        counts: RowCounts,
        *,
        grace_ns: int = GRACE_NS,
        day: tuple[int, int] | None = None,
        free_bytes_min: int = FREE_BYTES_MIN,
    ) -> None:
        self.dataset = dataset
        self.closed_before_ns = 0
        self._folder = folder
        self._tables = {"ticker": tables.tickers, "conditions": tables.conditions, "indicators": tables.indicators}
        self._counts = counts
        self._grace_ns = grace_ns
        self._day = day
        self._free_bytes_min = free_bytes_min
        self._minutes: dict[int, _Minute] = {}
        self._late: dict[int, _Minute] = {}
        self._files = 0
        self._unchecked = _CHECK_BYTES
        self._no_room = ""
        self._gaps: list[Gap] = []

    @property
    def has_late(self) -> bool:
        """Whether late rows wait to be handed over."""
        return bool(self._late)

    def take(self, columns: Columns) -> int:
        """
        Take rows in any order.

        Returns:
            The latest event time among them, ns UTC; 0 where there is none.
        """
        times = columns["sip_timestamp"]
        if not len(times):
            return 0
        first, last = int(times.min()), int(times.max())
        if self._day is not None and (first < self._day[0] or last >= self._day[1]):
            fair = (times >= self._day[0]) & (times < self._day[1])
            self._counts.rejected["other_day"] = self._counts.rejected.get("other_day", 0) + int((~fair).sum())
            return self.take({name: column[fair] for name, column in columns.items()})
        start = first - first % WINDOW_NS
        if last < start + WINDOW_NS:
            self._put(start, columns)
            return last
        starts = times - times % WINDOW_NS
        for each in np.unique(starts).tolist():
            mine = starts == each
            self._put(each, {name: column[mine] for name, column in columns.items()})
        return last

    def _put(self, start: int, columns: Columns) -> None:
        rows = len(columns["sip_timestamp"])
        late = start < self.closed_before_ns
        minutes = self._late if late else self._minutes
        minute = minutes.get(start)
        if minute is None:
            self._files += 1
            path = self._folder / (name_of(self.dataset, start, self._files) + OPEN_SUFFIX)
            minute = minutes[start] = _Minute(path, late)
        if not self._has_room():
            self._drop(columns, self._no_room)
            return
        fresh = {
            name: minute.fresh(name, columns[name], len(table.texts))
            for name, table in self._tables.items()
            if name in columns
        }
        texts = {
            name: [(number, self._tables[name].texts[number]) for number in numbers.tolist()]
            for name, numbers in fresh.items()
        }
        block = block_of(self.dataset, columns, texts)
        try:
            with minute.path.open("ab") as file:
                file.write(block)
        except OSError as error:
            # Whatever part of the block was written would stand before the next one.
            self._cut(minute)
            self._unchecked = _CHECK_BYTES
            self._drop(columns, f"{minute.path.parent}: {error.strerror}")
            return
        for name, numbers in fresh.items():
            minute.explained[name][numbers] = True
        minute.rows += rows
        minute.bytes += len(block)
        self._unchecked += len(block)
        self._counts.rows += rows
        self._counts.late += rows * late

    def _has_room(self) -> bool:
        if self._unchecked >= _CHECK_BYTES or self._no_room:
            self._unchecked = 0
            try:
                found = os.statvfs(self._folder)
                free = found.f_bavail * found.f_frsize
                self._no_room = f"{free >> 20} MiB free in {self._folder}" if free < self._free_bytes_min else ""
            except OSError as error:
                self._no_room = f"{self._folder}: {error.strerror}"
        return not self._no_room

    @staticmethod
    def _cut(minute: _Minute) -> None:
        try:
            os.truncate(minute.path, minute.bytes)
        except OSError:
            # The folder is gone or broken: a reader stops at the first block that is not whole.
            return

    def _drop(self, columns: Columns, reason: str) -> None:
        times = columns["sip_timestamp"]
        self._counts.dropped += len(times)
        self._gaps.append(Gap(int(times.min()), int(times.max()), f"{len(times)} rows dropped: {reason}"))

    def dropped(self) -> list[Gap]:
        """Gaps of rows that were dropped since the last call."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def close(self, watermark_ns: int) -> list[SpooledRows]:
        """Hand over the minutes whose end and grace lie at or before ``watermark_ns``."""
        before = watermark_ns - self._grace_ns
        self.closed_before_ns = max(self.closed_before_ns, before - before % WINDOW_NS)
        due = [start for start in sorted(self._minutes) if start < self.closed_before_ns]
        return self._handed(self._minutes, due)

    def late(self) -> list[SpooledRows]:
        """Hand over rows that came after their minute was closed."""
        return self._handed(self._late, sorted(self._late))

    def finish(self) -> list[SpooledRows]:
        """Hand over everything that is left; minutes that are not over are not ``finished``."""
        return self.late() + self._handed(self._minutes, sorted(self._minutes), finished=False)

    def _handed(self, minutes: dict[int, _Minute], starts: list[int], *, finished: bool = True) -> list[SpooledRows]:
        handed = []
        for start in starts:
            minute = minutes.pop(start)
            if not minute.rows:
                minute.path.unlink(missing_ok=True)
                continue
            path = minute.path.with_name(minute.path.name.removesuffix(OPEN_SUFFIX) + SUFFIX)
            try:
                minute.path.rename(path)
            except OSError as error:
                self._counts.rows -= minute.rows
                self._counts.dropped += minute.rows
                reason = f"{minute.rows} rows dropped: {path.parent}: {error.strerror}"
                self._gaps.append(Gap(start, start + WINDOW_NS - 1, reason))
                continue
            texts = self._tables["ticker"].texts
            tickers = tuple(texts[number] for number in np.flatnonzero(minute.explained["ticker"]).tolist())
            handed.append(SpooledRows(self.dataset, start, str(path), minute.rows, tickers, minute.late, finished))
        return handed
