"""
The engine ``anomaly``: looks at what others filled, and raises regions of low priority where it looks wrong.

It fills no cell. A region says which cells to serve first if there is anything to do; it changes none by itself. Symbols that
were written to since the last look are looked at, a few at a time, because planning shares the thread of the socket. This
module must never read an artifact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from engines.anomaly.findings import UNKNOWN, jumps, old_curves, silences
from engines.contract import Batch, Context, Health, Number, Task, Waiting
from ledger.absence import matches
from ledger.columns import WINDOW_NS, Column, Flag, Status
from ledger.state import State

KINDS: Final = ("silence", "jump", "old_curve")
_SYMBOLS_AT_ONCE: Final = 16
_HELP: Final = "Minutes that looked wrong, by kind; each is covered by a region, up to regions_max a session."


class AnomalyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[engines.anomaly]``: what looks wrong, and how urgent that is."""

    symbols: list[str] | None = None
    newest_sessions: Annotated[int, Meta(ge=1)] = 2
    """How many sessions with a source are looked at, the newest."""
    busy_rows: Annotated[int, Meta(ge=1)] = 20
    """Trades of a minute that is busy."""
    jump_factor: Annotated[float, Meta(gt=1)] = 20.0
    """A jump has more than so many times the trades of the middle one of the half hour around."""
    jump_rows: Annotated[int, Meta(ge=1)] = 1000
    """Trades that a jump has at least."""
    curve_days: Annotated[float, Meta(gt=0)] = 4.5
    """Age of a curve at the open that is too old; over a long weekend it is three and a half days."""
    priority: Annotated[int, Meta(ge=1, le=1000)] = 1
    regions_max: Annotated[int, Meta(ge=0)] = 20
    """Regions of one session; what is found beyond them is only counted."""


class AnomalyEngine:
    """Raises regions over minutes that look wrong."""

    name = "anomaly"
    writes: tuple[Column, ...] = ()

    def __init__(self, config: AnomalyConfig) -> None:
        self.config = config
        self._seen: dict[str, np.ndarray] = {}
        self._raised: dict[str, set[tuple[str, Column, int]]] = {}
        self._counted: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._left = 0

    def start(self, context: Context) -> None:
        """Take the context; what an earlier run raised is not raised again."""
        self._log = context.log
        self._state: State = context.state
        for region in self._state.regions.list(everything=True):
            if region.operator == self.name:
                self._known(self._state.calendar.session_on(region.start_ts)).add(
                    (region.symbol, region.columns[0], region.start_ts)
                )

    def stop(self) -> None:
        """Nothing is held."""

    def health(self) -> Health:
        """What was found since the start."""
        found = ", ".join(f"{number:,} of {kind}" for kind, number in self._counted.items() if number)
        return Health("running" if self._left else "idle", f"found {found}" if found else "nothing looks wrong")

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return [f"raises regions of priority {self.config.priority}; those of others change nothing here"]

    def plan(self, limit: int) -> list[Task]:
        """Look at some symbols that were written to; there is never a task, because no cell is filled here."""
        del limit
        self._left = 0
        for session in sorted(self._state.sources.sessions(), reverse=True)[: self.config.newest_sessions]:
            changed = self._changed(session)
            for symbol_id in changed[:_SYMBOLS_AT_ONCE]:
                self._look(session, int(symbol_id))
            self._left += max(0, len(changed) - _SYMBOLS_AT_ONCE)
        return []

    def finished(self, task: Task, batch: Batch) -> None:
        """No task is ever planned."""

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """No task is ever planned."""

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """No column: nothing is due because of this engine."""
        del session, column
        return None

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Nothing."""
        del session
        return []

    def backlog(self) -> int:
        """Symbols that were written to and not looked at yet."""
        return self._left

    def numbers(self) -> list[Number]:
        """Findings by kind since the start."""
        return [Number("anomalies", _HELP, self._counted[kind], counter=True, labels={"kind": kind}) for kind in KINDS]

    # ---- looking

    def _changed(self, session: str) -> np.ndarray:
        """Symbols of the session, by the globs, that were written to since they were looked at."""
        seq = self._state.calendar.session_seq(session)
        if not self._state.trade.exists(seq):
            return np.zeros(0, dtype=np.int64)
        changes = self._state.trade.session(seq).changes
        # What was seen is kept one higher, so that 0 means never.
        seen = self._seen.setdefault(session, np.zeros(len(changes), dtype=np.int64))
        universe = self._state.universe(session)
        written: np.ndarray = universe[seen[universe] != changes[universe].astype(np.int64) + 1]
        return written

    def _look(self, session: str, symbol_id: int) -> None:
        """Look at one symbol of a session and raise what is found."""
        seq, name = self._state.calendar.session_seq(session), self._state.symbols.name(symbol_id)
        rows = self._state.trade.session(seq)
        self._seen[session][symbol_id] = int(rows.changes[symbol_id]) + 1
        if not matches(list(self.config.symbols or []), name):
            return
        config, open_ts = self.config, int(self._state.calendar.open_ns[seq])
        counts = self._of_records(rows, Column.TRADE_REF, symbol_id, "record_count")
        curves = self._of_records(rows, Column.RF_RATE_REF, symbol_id, "effective_ts")
        found = {
            ("silence", Column.TRADE_REF): silences(counts, config.busy_rows),
            ("jump", Column.TRADE_REF): jumps(counts, config.jump_factor, config.jump_rows),
            ("old_curve", Column.RF_RATE_REF): old_curves(curves, open_ts, config.curve_days),
        }
        for (kind, column), minutes in found.items():
            for first, last in _runs(minutes):
                self._raise(session, name, column, kind, open_ts + first * WINDOW_NS, open_ts + last * WINDOW_NS)

    def _of_records(self, rows: Any, column: Column, symbol_id: int, field: str) -> np.ndarray:
        """i64[minutes], a field of the records that a symbol's cells name; 0 without rows, `UNKNOWN` where not filled."""
        slots = rows.slots(column, np.array([symbol_id]))[0]
        filled = slots["status"] == Status.FILLED
        with_rows = filled & (slots["flags"] & np.uint8(Flag.NO_ROWS) == 0)
        values = np.where(filled, 0, UNKNOWN)
        records = self._state.maps[column.payload_kind].get_many(slots["payload_id"][with_rows])
        values[with_rows] = records[field]
        return values

    def _raise(self, session: str, symbol: str, column: Column, kind: str, start_ts: int, end_ts: int) -> None:
        known = self._known(session)
        if (symbol, column, start_ts) in known:
            return
        known.add((symbol, column, start_ts))
        self._counted[kind] += (end_ts - start_ts) // WINDOW_NS
        if len(known) > self.config.regions_max:
            return
        region = self._state.regions.add(
            symbol=symbol,
            symbol_id=self._state.symbols.resolve(symbol),
            start_ts=start_ts,
            end_ts=end_ts,
            priority=self.config.priority,
            columns=[column],
            operator=self.name,
            cause=kind,
        )
        when = self._state.calendar.format_time(start_ts)[:16]
        self._log("warning", f"anomaly: {kind} of {symbol} at {when}, region {region.id}")

    def _known(self, session: str) -> set[tuple[str, Column, int]]:
        return self._raised.setdefault(session, set())


def _runs(minutes: np.ndarray) -> list[tuple[int, int]]:
    """Neighbouring minutes together, as [first, last)."""
    edges = [0, *(np.flatnonzero(np.diff(minutes) > 1) + 1).tolist(), len(minutes)]
    return [(int(minutes[first]), int(minutes[last - 1]) + 1) for first, last in pairwise(edges) if last > first]


def build(table: Mapping[str, Any], base: Path) -> AnomalyEngine:
    """The engine of a config table; raises msgspec.ValidationError for a bad key or value."""
    del base
    return AnomalyEngine(msgspec.convert(table, AnomalyConfig))
