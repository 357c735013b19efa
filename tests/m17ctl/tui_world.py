"""
A small world for the view: a year of sessions, a stock with options, and a connection that answers from it at once.

What is whole and what is not follows a rule of session and minute, so that a screen says the same every time.
"""

from __future__ import annotations

import datetime
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from ledger.columns import AGGREGATE_MINUTES, Column
from m17ctl.errors import RemoteFailure
from m17ctl.tui.axis import Axis, Day
from m17ctl.tui.questions import Job
from m17ctl.tui.view import Surroundings, View
from m17d import outcomes, protocol, replies

ZONE = ZoneInfo("America/New_York")
NAMES = replies.Counts.__struct_fields__
OPTION_COLUMNS = (Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF, Column.RF_RATE_REF)
_SLABS: dict[Any, tuple[int, bytes]] = {}
LAST_IN_USE = 120
"""Sessions up to this one are in use."""
EARLY = 100
"""This one closes after 210 minutes."""


def days() -> list[Day]:
    """Every weekday of 2014, the first 252 of them."""
    found = []
    date = datetime.date(2014, 1, 2)
    while len(found) < 252:
        if date.weekday() < 5:
            opened = datetime.datetime(date.year, date.month, date.day, 9, 30, tzinfo=ZONE)
            found.append(Day(date.isoformat(), int(opened.timestamp()) * 10**9, 210 if len(found) == EARLY else 390))
        date += datetime.timedelta(days=1)
    return found


class World:
    """What there is, and what was asked and done."""

    def __init__(self) -> None:
        self.axis = Axis(days())
        self.cleared: set[tuple[str, Column, int, int]] = set()
        """(group, column, day, minute)."""
        self.regions: list[outcomes.RegionReply] = []
        self.asked: list[Any] = []
        self.paused: dict[str, str] = {}
        self.down = ""
        """Why nothing is answered; empty while all is well."""

    # ---- cells

    def name_of(self, group: str, column: Column, day: int, minute: int) -> tuple[str, str]:
        """(status, quality) of a cell by the rule."""
        applies = column in OPTION_COLUMNS if group == "options" else column is not Column.GREEKS_REF
        if not applies:
            return "not_applicable", ""
        if day > LAST_IN_USE:
            return "not_due", ""
        if (group, column, day, minute) in self.cleared:
            return "cleared", ""
        if day == LAST_IN_USE and column is Column.QUOTE_REF and group == "own" and 60 <= minute < 90:
            return "empty", ""
        if day == LAST_IN_USE and column is Column.AGGRESSOR_REF and group == "own" and 60 <= minute < 91:
            return "empty", ""
        if day == 50 and column is Column.QUOTE_REF and group == "options":
            return "filled", "suspect"
        if minute % 7 == 3 and group == "options" and column is Column.TRADE_REF:
            return "filled", "no_data"
        return "filled", ""

    def counts(self, group: str, column: Column, day: int, first: int, last: int) -> list[int]:
        """COUNTS of some minutes."""
        total = dict.fromkeys(NAMES, 0)
        for minute in range(first, last):
            status, quality = self.name_of(group, column, day, minute)
            total[status] += 1
            if quality:
                total[quality] += 1
        return [total[name] for name in NAMES]

    def slab(self, groups: list[str], day: int, step: int) -> tuple[int, bytes]:
        """(cells, u32 of [groups, columns, cells, 9]); made once for each kind of day."""
        windows = self.axis.days[day].windows
        kind = day if day in (50, LAST_IN_USE) else -1
        key = (tuple(groups), kind, windows, step, frozenset(cell for cell in self.cleared if cell[2] == day))
        if key not in _SLABS:
            _SLABS[key] = self._slab(groups, day, step, windows)
        return _SLABS[key]

    def _slab(self, groups: list[str], day: int, step: int, windows: int) -> tuple[int, bytes]:
        numbers = array("I")
        for group in groups:
            for column in Column:
                for first in range(0, windows, step):
                    numbers.extend(self.counts(group, column, day, first, min(first + step, windows)))
        return -(-windows // step), numbers.tobytes()


class WorldClient:
    """Answers as `m17ctl.client.Client` would, from a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def grids(self, request: protocol.GridRequest) -> Iterator[tuple[replies.GridReply, bytes]]:
        world = self.world
        self._ask(request)
        groups = {"all": 3} if request.symbol is None else {"own": 1, "options": 1}
        first, last = world.axis.index(request.from_session), world.axis.index(request.to_session)
        assert first is not None
        assert last is not None
        for day in range(first, min(last, LAST_IN_USE) + 1):
            one = world.axis.days[day]
            names = ["own"] if request.symbol is None else list(groups)
            cells, slab = world.slab(names, day, request.step_minutes)
            yield (
                replies.GridReply(
                    session=one.session,
                    open_ts=one.open_ts,
                    windows=one.windows,
                    groups=groups,
                    columns=list(Column),
                    cells=cells,
                ),
                slab,
            )

    def stream(self, request: protocol.Request) -> Iterator[replies.Reply]:
        """Exports name nothing here: prices are given to the model by the tests that need them."""
        self._ask(request)
        return iter(())

    def call(self, request: protocol.Request) -> Any:
        self._ask(request)
        match request:
            case protocol.SymbolsResolveRequest(symbol=symbol) if symbol not in ("AAPL", "O:AAPL"):
                raise RemoteFailure(
                    outcomes.Failure(code="unknown_symbol", message=f"{symbol!r} has no id this year", hint="list them")
                )
            case protocol.SymbolsResolveRequest(symbol=symbol):
                return replies.SymbolReply(symbol=symbol, symbol_id=1, underlying="AAPL")
            case protocol.SymbolsListRequest():
                option = replies.SymbolReply(symbol="O:AAPL", symbol_id=2, underlying="AAPL")
                return replies.SymbolsReply(symbols=[option])
            case protocol.EnginesListRequest():
                return outcomes.EnginesReply(engines=[self._engine(name) for name in ("trade_flatfile", "nbbo")])
            case protocol.PriorityListRequest():
                return outcomes.RegionsReply(regions=self.world.regions)
            case protocol.PriorityAddRequest():
                return self._raise(request)
            case protocol.PriorityRemoveRequest(id=number):
                self.world.regions = [one for one in self.world.regions if one.id != number]
                return outcomes.RegionsReply(regions=[])
            case protocol.ClearRequest():
                return self._clear(request)
            case protocol.WhyRequest():
                cause = replies.Cause(
                    cause="waiting", columns=[Column.QUOTE_REF], cells=30, symbols=1, first=self.world.axis.start_ns(0),
                    last=self.world.axis.start_ns(29), remedy="m17ctl accept --session 2014-06-19", detail="no file",
                )  # fmt: skip
                return replies.WhyReply(groups=[cause])
            case protocol.EnginesControlRequest(engine=name, action=action):
                self.world.paused[name] = action
                return self._engine(name)
            case protocol.AuditRequest():
                record = {
                    "ts": self.world.axis.start_ns(0),
                    "operator": {"user": "ana"},
                    "op": "clear",
                    "cause": "test",
                }
                where = {"session": "2014-06-06", "columns": ["trade_ref"], "symbols": "AAPL"}
                return outcomes.AuditReply(records=[{**record, "range": where, "cells": {"trade_ref": 3}}])
            case protocol.RowRequest(symbol=symbol, at=at):
                return self._row(symbol, int(at))
            case _:
                raise AssertionError(f"nothing for {request}")

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self, request: protocol.Request) -> None:
        self.world.asked.append(request)
        if self.world.down:
            raise RemoteFailure(outcomes.Failure(code="internal", message=self.world.down))

    def _engine(self, name: str) -> outcomes.EngineReply:
        state = "paused" if self.world.paused.get(name) == "pause" else "idle"
        return outcomes.EngineReply(name=name, state=state, backlog=0, facts={"cells_set": 12, "running": []})

    def _raise(self, request: protocol.PriorityAddRequest) -> outcomes.RegionReply:
        region = outcomes.RegionReply(
            id=len(self.world.regions) + 1,
            symbol=request.symbol,
            start_ts=int(request.from_ts),
            end_ts=int(request.to_ts),
            priority=request.priority,
            columns=request.columns,
            minutes=30,
            complete=10,
            state="active",
            operator="ana",
        )
        self.world.regions.append(region)
        return region

    def _clear(self, request: protocol.ClearRequest) -> outcomes.OperationReply:
        axis = self.world.axis
        day = axis.index(request.range.session)
        assert day is not None
        opened = axis.days[day].open_ts
        first = 0 if request.range.from_ts is None else (int(request.range.from_ts) - opened) // 60_000_000_000
        last = 390 if request.range.to_ts is None else (int(request.range.to_ts) - opened) // 60_000_000_000
        group = "options" if str(request.range.symbols).startswith("O:") else "own"
        taken = {
            column: [(group, column, day, m) for m in range(first, last) if self.world.name_of(group, column, day, m)[0] == "filled"]
            for column in request.columns
        }  # fmt: skip
        counts = {column: len(cells) for column, cells in taken.items()}
        if request.expect is not None and request.expect != sum(counts.values()):
            raise RemoteFailure(outcomes.Failure(code="expectation_failed", message="other cells would go"))
        if not request.dry_run:
            self.world.cleared.update(cell for cells in taken.values() for cell in cells)
        return outcomes.OperationReply(
            operation="" if request.dry_run else "op-00000007",
            cleared=counts,
            untouched={},
            dependents={Column.AGGS_1M: 30},
            refillable=outcomes.Refillable(flat_file=sum(counts.values())),
            dry_run=request.dry_run,
        )

    def _row(self, symbol: str, at: int) -> replies.RowReply:
        day, minute = divmod(self.world.axis.position(at), 390)
        slots = {}
        for column in Column:
            group = "options" if symbol.startswith("O:") else "own"
            status, _ = self.world.name_of(group, column, day, minute)
            status = status if status in ("filled", "cleared") else "empty"
            # An aggregate that is filled has no rows here: there is no artifact to open.
            flags = ["no_rows"] if status == "filled" and column in AGGREGATE_MINUTES else []
            slots[column] = replies.SlotReply(
                status=status, source="none", flags=flags, payload_type="", payload_id=0, version=1, checksum=0,
                inputs=0, last_updated_ns=0,
            )  # fmt: skip
        start = at - at % 60_000_000_000
        return replies.RowReply(
            symbol=symbol, symbol_id=1, minute_idx=0, window_id="2014:0:0", start_ts=start, end_ts=start + 60_000_000_000,
            slots=slots,
        )  # fmt: skip


class DirectPump:
    """Does every job where it is submitted, unless it is held back."""

    def __init__(self, world: World, deliver: Callable[[object], object]) -> None:
        from m17ctl.tui.pump import Failed

        self._failed = Failed
        self.client = WorldClient(world)
        self.deliver = deliver
        self.jobs: list[Job] = []
        self.held: list[Job] | None = None
        """A list collects jobs instead of doing them."""
        self.dropped = 0

    def start(self) -> None:
        """There are no threads."""

    def stop(self) -> None:
        """There are no threads."""

    def drop_long(self) -> None:
        """Nothing waits."""
        self.dropped += 1

    def submit(self, job: Job) -> None:
        """Do it now."""
        self.jobs.append(job)
        if self.held is not None:
            self.held.append(job)
            return
        try:
            job.run(self.client, self._emit)  # type: ignore[arg-type]
        except RemoteFailure as error:
            self.deliver(self._failed(job, str(error), error.hint))

    def _emit(self, result: object) -> bool:
        self.deliver(result)
        return True


def view_of(world: World, folder: Path) -> View:
    """A view over a world, its settings in a folder."""
    return View(
        Surroundings(
            axis=world.axis,
            zone=ZONE,
            state_dir="/srv/ledger.state",
            settings_file=folder / "m17" / "tui.json",
            pump=lambda deliver: DirectPump(world, deliver),  # type: ignore[arg-type,return-value]
        )
    )
