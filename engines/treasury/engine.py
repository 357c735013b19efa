"""
The engine ``treasury``: yield curves into ``rf_rate_ref``, for options and for underlyings that have options.

The source is read in a worker; which curve holds in which window is decided here from the calendar, and set in
rectangles. A late or revised curve replaces what it should have been. This module must never interpolate a curve.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from engines.contract import Batch, CellSpan, Context, Health, Task, TaskFailed, Waiting, Workplace
from engines.treasury.curves import EFFECTIVE_TIME, CurveEffective, holding, record_of
from ledger.absence import matches
from ledger.columns import Column, Flag, Source, Status
from ledger.content import checksum_of
from ledger.coverage import applicable, class_words, with_options
from ledger.state import State

_LOOK_INTERVAL_S: Final = 2.0
_COLUMN: Final = Column.RF_RATE_REF


class TreasuryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[engines.treasury]``: where curves come from and when they take effect."""

    source: Annotated[str, Meta(min_length=1)]
    """A JSON file in the shape of the service's reply, or the service's address (http:// or https://)."""
    symbols: list[str] | None = None
    curve_effective: CurveEffective = "18:00"
    poll_s: Annotated[float, Meta(ge=1)] = 300.0
    """How often an address is asked; the key comes from M17_API_KEY."""
    date_from: str | None = None
    """First curve to ask an address for; absent = a month before the year."""


@dataclass(frozen=True, slots=True)
class ReadArguments:
    """What a worker reads."""

    source: str
    date_from: str
    key: str


@dataclass(frozen=True, slots=True)
class _Held:
    """The curves known, ascending by effective time."""

    dates: list[str]
    tenors: list[tuple[int | None, ...]]
    effective_ts: np.ndarray
    checksums: np.ndarray


class TreasuryEngine:
    """Yield curves into rf_rate_ref."""

    name = "treasury"
    writes = (_COLUMN,)

    def __init__(self, table: Mapping[str, Any], base: Path) -> None:
        self.config = msgspec.convert(table, TreasuryConfig)
        self.remote = self.config.source.startswith(("http://", "https://"))
        self.source: Path | str = self.config.source if self.remote else base / Path(self.config.source).expanduser()
        self._globs = list(self.config.symbols or [])
        self._held = _Held([], [], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint32))
        self._tag = ""
        self._read_tag = ""
        self._problem = ""
        self._looked_s = -_LOOK_INTERVAL_S
        self._reads = 0
        self._whole: dict[str, tuple[int, int, int]] = {}
        self._backlog = 0

    def start(self, context: Context) -> None:
        """Take the context."""
        self._context = context
        self._state: State = context.state

    def stop(self) -> None:
        """Nothing is held."""

    def health(self) -> Health:
        """Degraded while the source cannot be read; else idle, with the newest curve."""
        if self._problem:
            return Health("degraded", self._problem)
        if not self._held.dates:
            return Health("idle", f"waiting for {self.source}")
        return Health("idle", f"{len(self._held.dates)} curves to {self._held.dates[-1]}{self._lag()}")

    def _lag(self) -> str:
        """In words, how far the newest curve lies behind the newest session in use."""
        sessions = self._state.sources.sessions()
        if not sessions:
            return ""
        before = [date for date in self._held.dates if date < sessions[-1]]
        held = before[-1] if before else "none"
        missing = self._state.calendar.sessions_between(held, sessions[-1])[1:-1] if before else []
        return f"; {sessions[-1]} has the curve of {held}, {len(missing)} sessions behind" if missing else ""

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return ["curves are set for whole sessions at once; regions change nothing but their order"]

    def backlog(self) -> int:
        """Sessions known to lack their curve."""
        return self._backlog

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: all that pass the globs, in every session."""
        del session
        if column is not _COLUMN:
            return None
        names = self._state.symbols.names()
        return np.array([matches(self._globs, name) for name in names], dtype=bool)

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Sessions before the first curve, or all while there is none."""
        found = []
        for one in [session] if session is not None else list(self._state.sources.sessions()):
            seq = self._state.calendar.session_seq(one)
            opened = int(self._state.calendar.open_ns[seq])
            if not len(self._held.effective_ts) or opened < int(self._held.effective_ts[0]):
                detail = self._problem or (
                    f"no curve is in effect on {one}: the first known is of {self._held.dates[0]}"
                    if self._held.dates
                    else f"{self.source} has not been read"
                )
                found.append(Waiting("waiting", _COLUMN, one, detail))
        return found

    # ---- planning

    def plan(self, limit: int) -> list[Task]:
        """Read the source when it changed or is due; then sessions whose cells lack their curve, newest first."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= (self.config.poll_s if self.remote and self._read_tag else _LOOK_INTERVAL_S):
            self._looked_s = now_s
            self._look()
        if self._tag != self._read_tag:
            return [self._read_task()]
        if not self._held.dates:
            return []
        tasks = []
        for session in sorted(self._state.sources.sessions(), reverse=True):
            task = self._fill_task(session)
            if task is not None:
                tasks.append(task)
        self._backlog = len(tasks)
        return tasks[:limit]

    def _look(self) -> None:
        if self.remote:
            self._reads += 1
            self._tag = f"poll {self._reads}"
            return
        assert isinstance(self.source, Path)
        try:
            status = self.source.stat()
            self._tag = f"{status.st_size:x}-{status.st_mtime_ns:x}"
        except OSError as error:
            self._problem = f"{self.source}: {error.strerror}"
            self._tag = self._read_tag

    def _read_task(self) -> Task:
        date_from = self.config.date_from or f"{self._state.year - 1}-12-01"
        arguments = ReadArguments(str(self.source), date_from, os.environ.get("M17_API_KEY", "") if self.remote else "")
        session = self._state.calendar.date(0)
        return Task(
            self.name,
            f"curves {self._tag}",
            session,
            "engines.treasury.engine:read",
            arguments,
            makes_files=False,
            symbols=(),
        )

    def _fill_task(self, session: str) -> Task | None:
        """Symbols of the session whose cells do not hold the curve in force; one rectangle per curve."""
        state = self._state
        seq = state.calendar.session_seq(session)
        universe = state.universe(session)
        rows = state.trade.session(seq) if state.trade.exists(seq) else None
        signature = (len(universe), -1 if rows is None else rows.change_count, len(self._held.dates))
        if not len(universe) or self._whole.get(session) == signature:
            return None
        applies = applicable(_COLUMN, class_words(state, universe), with_options(state, universe))
        named = np.array([matches(self._globs, state.symbols.name(int(one))) for one in universe], dtype=bool)
        ids = universe[applies & named]
        starts = state.calendar.start_ts_array(state.calendar.windows(seq))
        curve = holding(self._held.effective_ts, starts)
        needed = ids if rows is None else self._lacking(rows, ids, curve)
        if not len(needed) or (curve < 0).all():
            self._whole[session] = signature
            return None
        spans = self._spans([state.symbols.name(int(one)) for one in needed], curve)
        key = f"rf_rate {session} {len(needed)} symbols, curve of {self._held.dates[int(curve[-1])]}"
        return Task(
            self.name,
            key,
            session,
            "engines.treasury.engine:fill",
            spans,
            makes_files=False,
            symbols=tuple(int(one) for one in needed),
        )

    def _lacking(self, rows: Any, ids: np.ndarray, curve: np.ndarray) -> np.ndarray:
        """Symbols with a cell that is not filled, is wanted, or holds another curve at the session's ends."""
        index, minutes = rows.column_index(_COLUMN), rows.place.minutes
        have = curve >= 0
        status = rows.status[index, ids, :minutes][:, have]
        flags = rows.flags[index, ids, :minutes][:, have]
        lacks = ((status != Status.FILLED) | (flags & np.uint8(Flag.WANTED) != 0)).any(axis=1)
        for minute in (int(np.argmax(have)), minutes - 1):
            held = rows.slots(_COLUMN, ids, np.full(len(ids), minute))["checksum"]
            lacks |= held != self._held.checksums[curve[minute]]
        needed: np.ndarray = ids[lacks]
        return needed

    def _spans(self, symbols: list[str], curve: np.ndarray) -> list[CellSpan]:
        edges = [0, *(np.flatnonzero(np.diff(curve)) + 1).tolist(), len(curve)]
        spans = []
        for first, last in pairwise(edges):
            at = int(curve[first])
            if at >= 0:
                spans.append(CellSpan(_COLUMN, symbols, first, last, self._record(at), source=Source.REST))
        return spans

    def _record(self, at: int) -> np.ndarray:
        held = self._held
        later = int(held.effective_ts[at + 1]) if at + 1 < len(held.dates) else 0
        return record_of(held.dates[at], held.tenors[at], int(held.effective_ts[at]), later)

    # ---- what came back

    def finished(self, task: Task, batch: Batch) -> None:
        """Hold the curves that were read."""
        if batch.report is None:
            return
        self._read_tag, self._problem = task.key.removeprefix("curves "), ""
        known = dict(zip(self._held.dates, self._held.tenors, strict=True)) if self.remote else {}
        known.update({curve.date: curve.tenor_bps for curve in batch.report})
        dates = sorted(known)
        suffix = EFFECTIVE_TIME[self.config.curve_effective]
        effective = np.array([self._state.calendar.parse_time(date + suffix) for date in dates], dtype=np.int64)
        tenors = [known[date] for date in dates]
        records = [record_of(date, known[date], int(ts), 0) for date, ts in zip(dates, effective, strict=True)]
        hashes = np.concatenate([record["content_hash"] for record in records] or [np.zeros(0, dtype=np.uint64)])
        self._held = _Held(dates, tenors, effective, checksum_of(hashes))
        self._whole.clear()

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """Remember why the source could not be read; it is read again when it changed or is due."""
        del report
        if task.key.startswith("curves "):
            self._problem, self._read_tag = reason, task.key.removeprefix("curves ")


def read(task: Task, workplace: Workplace) -> Batch:
    """
    Read all curves of the source; runs in a worker.

    Raises:
        TaskFailed: it cannot be read; names the source and what is wrong.
    """
    del workplace
    from engines.feeds.feed_errors import FeedError
    from engines.feeds.json_pages import PageSource
    from engines.feeds.treasury_yields import fetch_yields, read_yields

    arguments: ReadArguments = task.arguments
    try:
        if not arguments.source.startswith(("http://", "https://")):
            return Batch(report=read_yields(Path(arguments.source)))
        source = PageSource(arguments.source, arguments.key)
        try:
            return Batch(report=fetch_yields(source, date_from=arguments.date_from))
        finally:
            source.close()
    except FeedError as error:
        raise TaskFailed(str(error), hint=error.hint) from error


def fill(task: Task, workplace: Workplace) -> Batch:
    """The spans were made when the task was planned; the commit sets them."""
    del workplace
    return Batch(spans=task.arguments)


def build(table: Mapping[str, Any], base: Path) -> TreasuryEngine:
    """The engine from its config table; raises msgspec.ValidationError for a bad key or value."""
    return TreasuryEngine(table, base)
