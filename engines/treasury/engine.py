"""
The engine ``treasury``: yield curves into ``rf_rate_ref``, for options and for underlyings that have options.

The source is read in a worker; which curve holds in which window is decided here from the calendar, and set in
rectangles. A late or revised curve replaces what it should have been. This module must never interpolate a curve.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from engines.contract import Batch, CellSpan, Context, Doubt, Health, Number, Task, Waiting
from engines.opening import Opening
from engines.pauses import Pause, Pausing
from engines.treasury.curves import EFFECTIVE_TIME, CurveEffective, behind, holding, record_of
from engines.treasury.reading import Read, ReadArguments
from ledger.absence import matches
from ledger.columns import Column, Flag, Source, Status
from ledger.content import checksum_of
from ledger.coverage import applicable, class_words, mark, with_options
from ledger.records import ABSENT_TENOR
from ledger.state import State

_LOOK_INTERVAL_S: Final = 2.0
_FOREVER_S: Final = 1e9
_LAG_DAYS: Final = 10
"""Sessions that are looked back for curves that have not come."""
_CAUSES: Final = {"missing": "unreachable"}
_COLUMN: Final = Column.RF_RATE_REF


class TreasuryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[engines.treasury]``: where curves come from and when they take effect."""

    source: Annotated[str, Meta(min_length=1)]
    """A JSON file in the shape of the service's reply, or the service's address (http:// or https://)."""
    symbols: list[str] | None = None
    curve_effective: CurveEffective = "18:00"
    poll_s: Annotated[float, Meta(ge=1)] = 300.0
    """How often an address is asked."""
    key_env: Annotated[str, Meta(min_length=1)] = "M17_API_KEY"
    """Environment variable that holds the key of an address; it is never in the file."""
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    date_from: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    """First curve to ask an address for; absent = a month before the year."""


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
        self._pausing = Pausing()
        self._pause: Pause | None = None
        self._looked_s = -_FOREVER_S
        self._reads = 0
        self._whole: dict[str, set[tuple[int, ...]]] = {}
        self._filling: set[str] = set()
        self._passes = np.zeros(0, dtype=bool)
        self._backlog = 0

    def start(self, context: Context) -> None:
        """Take the context."""
        self._context = context
        self._state: State = context.state
        if self.remote:
            self._hold(self._remembered())

    def _remembered(self) -> dict[str, tuple[int | None, ...]]:
        """Curves that cells of an earlier run named, so that new symbols get them before the service answers."""
        payloads = self._state.maps[_COLUMN.payload_kind]
        records = payloads.get_many(np.arange(1, payloads.next_id))
        found: dict[str, tuple[int | None, ...]] = {}
        for record in records[records["curve_date"] > 0]:
            day = str(int(record["curve_date"]))
            date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            if int(record["effective_ts"]) == self._effective(date):
                found[date] = tuple(None if bps == ABSENT_TENOR else bps for bps in record["tenor_bps"].tolist())
        return found

    def _effective(self, date: str) -> int:
        """When a curve takes effect, ns UTC."""
        return self._state.calendar.parse_time(date + EFFECTIVE_TIME[self.config.curve_effective])

    def retry(self) -> None:
        """Ask again at once."""
        self._pause = None
        self._looked_s = -_FOREVER_S

    def stop(self) -> None:
        """Nothing is held."""

    def health(self) -> Health:
        """Degraded while the source cannot be read; else idle, with the newest curve and how far it lies behind."""
        if self._pause is not None:
            return Health("degraded", self._pause.said(self._state.calendar))
        if self._problem:
            return Health("degraded", self._problem)
        if not self._held.dates:
            return Health("idle", f"waiting for {self.source}")
        return Health("idle", f"{len(self._held.dates)} curves to {self._held.dates[-1]}{self._lag()}")

    def _lag(self) -> str:
        """In words, how far the curve of the newest session in use lies behind."""
        sessions = self._state.sources.sessions()
        doubts = self.doubts(sessions[-1]) if sessions else []
        return f"; {sessions[-1]}: {doubts[0].detail}" if doubts else ""

    def doubts(self, session: str) -> list[Doubt]:
        """Windows of a session that have an older curve than they should."""
        missing = self._missing(session)
        if not missing:
            return []
        held, number = self._held_at(session), len(missing)
        what = f"{number} curves behind" if number > 1 else "a curve behind"
        detail = f"the curve of {held} holds, {what}: that of {missing[-1]} has not come"
        return [Doubt(_COLUMN, "lagging", detail)]

    def _held_at(self, session: str) -> str | None:
        """Date of the curve that holds at a session's open, None for none."""
        opened = int(self._state.calendar.open_ns[self._state.calendar.session_seq(session)])
        at = int(holding(self._held.effective_ts, np.array([opened]))[0])
        return self._held.dates[at] if at >= 0 else None

    def _missing(self, session: str) -> list[str]:
        """Days whose curve should hold at a session's open, or be followed by one that does, and that have none here."""
        held, calendar = self._held_at(session), self._state.calendar
        if held is None:
            return []
        seq = calendar.session_seq(session)
        last = seq + 1 if self.config.curve_effective == "same-day" else seq
        return behind(held, [calendar.date(one) for one in range(max(0, last - _LAG_DAYS), last)])

    def numbers(self) -> list[Number]:
        """How old the curve in effect is, how many are known, and how far the newest session's lies behind."""
        now_ns = self._state.system.now_ns()
        effective = self._held.effective_ts[self._held.effective_ts <= now_ns]
        found = [Number("curves", "Yield curves that the treasury engine knows.", len(self._held.dates))]
        if len(effective):
            text = "Seconds since the newest known curve took effect; on a working day it should be less than a day and a half."
            found.append(Number("curve_age_seconds", text, (now_ns - int(effective[-1])) / 1e9))
        sessions = self._state.sources.sessions()
        if sessions:
            missing = len(self._missing(sessions[-1]))
            found.append(Number("curves_behind", "Curves that the newest session should have and has not.", missing))
        return found

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
        return self._named()

    def _named(self) -> np.ndarray:
        """bool[symbols]: names that pass the globs; only those that are new are looked at."""
        known, symbols = len(self._passes), self._state.symbols
        if known < len(symbols):
            fresh = [matches(self._globs, symbols.name(one)) for one in range(known, len(symbols))]
            self._passes = np.concatenate([self._passes, np.array(fresh, dtype=bool)])
        return self._passes

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Sessions without a curve, and a service that does not answer, for the newest session."""
        known = list(self._state.sources.sessions())
        found = []
        trouble, retry = (self._pause.trouble, self._pause.retry) if self._pause is not None else (None, None)
        for one in [session] if session is not None else known:
            opened = int(self._state.calendar.open_ns[self._state.calendar.session_seq(one)])
            if not self._held.dates:
                detail = trouble.reason if trouble else self._problem or f"{self.source} has not been read"
                cause = _CAUSES.get(trouble.cause, trouble.cause) if trouble else "waiting"
                found.append(Waiting(cause, _COLUMN, one, detail, retry=retry))
            elif opened < int(self._held.effective_ts[0]):
                detail = f"no curve is in effect on {one}: the first known is of {self._held.dates[0]}"
                found.append(Waiting("waiting", _COLUMN, one, detail))
            elif trouble and one == known[-1]:
                cause = _CAUSES.get(trouble.cause, trouble.cause)
                found.append(Waiting(cause, _COLUMN, one, trouble.reason, retry=retry))
        return found

    # ---- planning

    def plan(self, limit: int) -> list[Task]:
        """Read the source when it changed or is due; then sessions whose cells lack their curve, newest first."""
        tasks = []
        if self._is_due():
            self._looked_s = time.monotonic()
            self._look()
        if self._tag != self._read_tag:
            tasks.append(self._read_task())
            if not self.remote:
                # What is held may be another file's: its curves go into no cell any more.
                return tasks
        if not self._held.dates:
            return tasks
        opening = Opening()
        for session in sorted(self._state.sources.sessions(), reverse=True):
            task = self._fill_task(session, opening)
            if task is not None:
                tasks.append(task)
        self._backlog = len(tasks)
        return tasks[:limit]

    def _is_due(self) -> bool:
        if self.remote and self._tag != self._read_tag:
            # One question at a time: what was asked before has not been answered.
            return False
        if self._pause is not None:
            return not self._pause.holds(self._state.system.now_ns())
        interval_s = self.config.poll_s if self.remote else _LOOK_INTERVAL_S
        return time.monotonic() - self._looked_s >= interval_s

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
        arguments = ReadArguments(str(self.source))
        if self.remote:
            date_from = self.config.date_from or f"{self._state.year - 1}-12-01"
            arguments = ReadArguments(str(self.source), date_from, self.config.key_env, self.config.timeout_s)
        return Task(
            self.name,
            f"curves {self._tag}",
            self._state.calendar.date(0),
            "engines.treasury.reading:read",
            arguments,
            remote=self.remote,
            makes_files=False,
            symbols=(),
            subject="curves",
        )

    def _fill_task(self, session: str, opening: Opening) -> Task | None:
        """Symbols of the session whose cells do not hold the curve in force; one rectangle per curve."""
        state = self._state
        seq = state.calendar.session_seq(session)
        universe = state.universe(session)
        if session in self._filling:
            # Planned again at every cell that is set, the rest would be another task, and set twice.
            return None
        known = len(universe), len(self._held.dates)
        before = (*known, *mark(state.trade, seq))
        if not len(universe) or before in self._whole.get(session, ()):
            return None
        if not opening.is_mapped(state.trade, seq):
            # Asked again when it is.
            return None
        rows = state.trade.session(seq) if state.trade.exists(seq) else None
        applies = applicable(_COLUMN, class_words(state, universe), with_options(state, universe))
        ids = universe[applies & self._named()[universe]]
        starts = state.calendar.start_ts_array(state.calendar.windows(seq))
        curve = holding(self._held.effective_ts, starts)
        needed = ids if rows is None else self._lacking(rows, ids, curve)
        if not len(needed) or (curve < 0).all():
            # One that was mapped for this and dropped since is known by its file's mark, and not mapped again.
            self._whole[session] = {before, (*known, *mark(state.trade, seq))}
            return None
        spans = self._spans([state.symbols.name(int(one)) for one in needed], curve)
        key = f"rf_rate {session} {len(needed)} symbols, curve of {self._held.dates[int(curve[-1])]}"
        return Task(
            self.name,
            key,
            session,
            "engines.treasury.reading:fill",
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

    def started(self, task: Task) -> None:
        """Leave its session alone until its cells are set."""
        if task.symbols:
            self._filling.add(task.session)

    def ended(self, task: Task) -> None:
        """Look at its session again: its universe may have grown meanwhile."""
        if task.symbols:
            self._filling.discard(task.session)

    def finished(self, task: Task, batch: Batch) -> None:
        """Hold the curves that were read, or wait after trouble; what is held stays then."""
        if not isinstance(batch.report, Read):
            return
        self._read_tag, self._problem = task.key.removeprefix("curves "), ""
        trouble = batch.report.trouble
        if trouble is not None:
            self._pause = self._pausing.after(trouble, self._state.system.now_ns(), self._pause)
            self._context.log("warning", f"{self.name}: {trouble.reason}; {trouble.hint}")
            return
        self._pause = None
        known = dict(zip(self._held.dates, self._held.tenors, strict=True)) if self.remote else {}
        self._hold({**known, **{curve.date: curve.tenor_bps for curve in batch.report.curves}})

    def _hold(self, known: dict[str, tuple[int | None, ...]]) -> None:
        dates = sorted(known)
        effective = np.array([self._effective(date) for date in dates], dtype=np.int64)
        tenors = [known[date] for date in dates]
        records = [record_of(date, known[date], int(ts), 0) for date, ts in zip(dates, effective, strict=True)]
        hashes = np.concatenate([record["content_hash"] for record in records] or [np.zeros(0, dtype=np.uint64)])
        held = _Held(dates, tenors, effective, checksum_of(hashes))
        if (held.dates, held.tenors) != (self._held.dates, self._held.tenors):
            self._held = held
            self._whole.clear()

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """Remember why the source could not be read; it is read again when it changed or is due."""
        del report
        if task.key.startswith("curves "):
            self._problem, self._read_tag = reason, task.key.removeprefix("curves ")


def build(table: Mapping[str, Any], base: Path) -> TreasuryEngine:
    """The engine from its config table; raises msgspec.ValidationError for a bad key or value."""
    return TreasuryEngine(table, base)
