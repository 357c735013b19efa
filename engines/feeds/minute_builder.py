"""
From columns of events to closed minutes, on event time.

A minute is closed when an event of the connection is later than its end plus a grace. Late events reopen it: the groups
they belong to (a ticker, or all contracts of an option root) are handed over again, whole, with a higher revision; after
``retain_minutes`` the minute is forgotten and late rows are handed over as additions. Redelivered events are found by
ticker and sequence and dropped; rows without a sequence are all kept, because identical prints are real. This module must
never read a clock: time is what the caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.feeds.closed_minutes import ClosedMinute, FeedCounts, empty_columns
from engines.feeds.stream_events import Columns, Tables
from ledger.columns import WINDOW_NS, Dataset

GRACE_NS: Final = 2_000_000_000
"""How long after its end a minute waits for its last events."""
RETAIN_MINUTES: Final = 10
"""How many closed minutes are kept for late events."""
_OPTION_TAIL: Final = 15
_SEQUENCE_BITS: Final = 40

Partial = Callable[[int, int], bool]


@dataclass(slots=True)
class _Minute:
    """Rows of one minute in blocks as they came; ``touched`` are the groups of late rows not yet handed over."""

    blocks: list[Columns] = field(default_factory=list)
    revision: int = -1
    touched: set[str] = field(default_factory=set)
    handed: int = 0

    def columns(self) -> Columns:
        """All rows, as one block from now on."""
        if len(self.blocks) > 1:
            self.blocks = [{name: np.concatenate([b[name] for b in self.blocks]) for name in self.blocks[0]}]
        return self.blocks[0]


def group_of(ticker: str) -> str:
    """What a late event makes new: its ticker, or the option root's chain (``O:TWX140621C00070000`` gives ``O:TWX``)."""
    return ticker[:-_OPTION_TAIL] if ticker.startswith("O:") and len(ticker) > _OPTION_TAIL + 2 else ticker


class MinuteBuilder:
    """
    The minutes of one dataset of one connection.

    Args:
        dataset: whose rows these are.
        tables: the numbering of tickers and codes in the columns.
        counts: where rows are counted.
        grace_ns: see :data:`GRACE_NS`.
        retain_minutes: see :data:`RETAIN_MINUTES`.
        day: (start, end) in ns UTC; rows outside are refused as ``other_day``. None takes all.
    """

    def __init__(
        self,
        dataset: Dataset,
        tables: Tables,
        counts: FeedCounts,
        *,
        grace_ns: int = GRACE_NS,
        retain_minutes: int = RETAIN_MINUTES,
        day: tuple[int, int] | None = None,
    ) -> None:
        self.dataset = dataset
        self._tables = tables
        self._counts = counts
        self._grace_ns = grace_ns
        self._retain_ns = retain_minutes * WINDOW_NS
        self._day = day
        self._minutes: dict[int, _Minute] = {}
        self._closed_before = 0
        self._forgotten_before = 0

    @property
    def open_rows(self) -> int:
        """Rows that are kept, closed minutes included."""
        return sum(len(b["sip_timestamp"]) for minute in self._minutes.values() for b in minute.blocks)

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
        self._counts.rows += len(times)
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
        minute = self._minutes.get(start)
        if minute is None:
            minute = self._minutes[start] = _Minute()
        minute.blocks.append(columns)
        if start < self._closed_before:
            self._counts.rows_late += len(columns["ticker"])
            texts = self._tables.tickers.texts
            minute.touched.update(group_of(texts[number]) for number in np.unique(columns["ticker"]).tolist())

    def close(self, watermark_ns: int, partial: Partial) -> Iterator[ClosedMinute]:
        """
        Hand over what is due: minutes whose end and grace lie at or before ``watermark_ns``, and reopened ones.

        Args:
            partial: whether a gap overlaps ``[start, end)``.
        """
        before = watermark_ns - self._grace_ns
        before -= before % WINDOW_NS
        self._closed_before = max(self._closed_before, before)
        for start in sorted(self._minutes):
            if start >= self._closed_before:
                break
            minute = self._minutes[start]
            if minute.touched or minute.revision < 0:
                handed = self._handed(start, minute, partial)
                if handed is not None:
                    yield handed
        self._forget()

    def finish(self, partial: Partial) -> Iterator[ClosedMinute]:
        """Hand over everything that is left; minutes that are not over are not ``finished``."""
        for start in sorted(self._minutes):
            minute = self._minutes[start]
            if minute.touched or minute.revision < 0:
                handed = self._handed(start, minute, partial, finished=start < self._closed_before)
                if handed is not None:
                    yield handed
        self._minutes.clear()

    def _forget(self) -> None:
        self._forgotten_before = max(self._forgotten_before, self._closed_before - self._retain_ns)
        for start in [each for each in self._minutes if each < self._forgotten_before]:
            del self._minutes[start]

    def _handed(self, start: int, minute: _Minute, partial: Partial, *, finished: bool = True) -> ClosedMinute | None:
        columns = self._deduplicated(minute)
        forgotten = start < self._forgotten_before
        reopened = minute.revision >= 0 or forgotten
        groups = tuple(sorted(minute.touched)) if minute.touched else None
        if minute.revision >= 0 and len(columns["ticker"]) == minute.handed:
            # Late, but every row was there already.
            minute.touched.clear()
            return None
        minute.handed = len(columns["ticker"])
        if minute.revision >= 0 and groups is not None:
            columns = self._of_groups(columns, groups)
        minute.revision += 1
        minute.touched.clear()
        self._counts.minutes_closed += 1
        self._counts.minutes_reopened += reopened
        return self._message(
            start, columns, revision=minute.revision, whole=not forgotten, finished=finished,
            groups=groups if reopened else None, partial=partial(start, start + WINDOW_NS) or not finished,
        )  # fmt: skip

    def _deduplicated(self, minute: _Minute) -> Columns:
        """The minute's rows, redelivered ones once, in order of ticker number, time and sequence."""
        columns = minute.columns()
        ticker, sequence = columns["ticker"], columns["sequence_number"]
        rows = len(ticker)
        key = (ticker.astype(np.int64) << _SEQUENCE_BITS) | (sequence & ((1 << _SEQUENCE_BITS) - 1))
        ordered = np.sort(key[sequence != 0])
        if not (ordered[1:] == ordered[:-1]).any():
            return columns
        order = np.lexsort((columns["sip_timestamp"], sequence, ticker))
        names = [name for name in columns if name != "id"]
        twice = np.ones(rows - 1, np.bool_)
        for name in names:
            column = columns[name][order]
            twice &= column[1:] == column[:-1]
        twice &= sequence[order][1:] != 0
        keep = np.ones(rows, np.bool_)
        keep[order[1:][twice]] = False
        dropped = rows - int(keep.sum())
        if dropped:
            self._counts.rows_redelivered += dropped
            minute.blocks = [{name: column[keep] for name, column in columns.items()}]
        return minute.blocks[0]

    def _of_groups(self, columns: Columns, groups: tuple[str, ...]) -> Columns:
        wanted = set(groups)
        present = np.unique(columns["ticker"])
        texts = self._tables.tickers.texts
        chosen = [number for number in present.tolist() if group_of(texts[number]) in wanted]
        mine = np.isin(columns["ticker"], np.array(chosen, np.uint32))
        return {name: column[mine] for name, column in columns.items()}

    def _message(
        self, start: int, columns: Columns, *, revision: int, whole: bool, groups: tuple[str, ...] | None,
        finished: bool, partial: bool,
    ) -> ClosedMinute:  # fmt: skip
        """The rows with small numberings of their own, so that nothing of the feed's state travels."""
        made = dict(columns) if len(columns["ticker"]) else empty_columns(columns)
        order = np.lexsort((made["sequence_number"], made["sip_timestamp"]))
        texts = self._tables.tickers.texts
        present, ticker = np.unique(made["ticker"], return_inverse=True)
        names = [texts[number] for number in present.tolist()]
        by_name = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(names), np.uint32)
        rank[by_name] = np.arange(len(names), dtype=np.uint32)
        made["ticker"] = rank[ticker]
        order = order[np.argsort(made["ticker"][order], kind="stable")]
        made = {name: column[order] for name, column in made.items()}
        made["conditions"], conditions = _renumbered(made["conditions"], self._tables.conditions.texts)
        indicators: tuple[str, ...] = ()
        if "indicators" in made:
            made["indicators"], indicators = _renumbered(made["indicators"], self._tables.indicators.texts)
        return ClosedMinute(
            self.dataset, start, revision, whole, groups, finished, partial,
            tuple(names[index] for index in by_name), conditions, indicators, made,
        )  # fmt: skip


def _renumbered(column: NDArray[np.uint32], texts: list[str]) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
    present, numbers = np.unique(column, return_inverse=True)
    return numbers.astype(np.uint32), tuple(texts[number] for number in present.tolist())
