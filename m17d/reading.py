"""
Reading: what the read requests answer, from planes, slots and records.

Ranges and times as operators write them are resolved here, because only the daemon knows the calendar. This module must
never change anything, and never know a socket.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ledger.columns import MINUTES_PER_SESSION, UPSTREAM, Column, LedgerKind, PayloadKind, Source, Status
from ledger.coverage import (
    Planes,
    planes,
    sources_of,
    with_options,
)
from ledger.digests import session_digest
from ledger.errors import AddressError
from ledger.frames import NamedRows, named_rows
from ledger.layout import COLUMNS_OF, ROW_BYTES
from ledger.records import RECORD_RETIRED, describe
from ledger.rows import EMPTY_SLOT, Slot
from ledger.sources import SourceRecord
from ledger.state import State
from m17d import outcomes, protocol, replies
from m17d.envelopes import Piece, Refused
from m17d.lag_history import LagHistory
from m17d.measuring import Measuring, as_counts, totals
from m17d.opening import STEP_S
from m17d.quality import Quality
from m17d.runner import Runner
from m17d.runway import SHORT_DAYS, Runway
from m17d.verdict import look, verdict
from m17d.worth import Worth

_SLAB_BYTES = 1 << 20
_LOOKED_AT_MAX = 16
"""For so few symbols a session is not mapped: its file is looked into."""
_TIED_SHARE = 0.10
_EMPTY = replies.SlotReply(
    status="empty", source="none", flags=[], payload_type="none", payload_id=0, version=0, checksum=0, inputs=0,
    last_updated_ns=0,
)  # fmt: skip
"""A cell that was never written, of which most rows are made."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A range resolved: symbols of the session's universe and minutes [first, last) of the session."""

    session: str
    seq: int
    symbol_ids: np.ndarray
    first: int
    last: int
    contract: str | None

    @property
    def minutes(self) -> int:
        """How many windows it spans."""
        return self.last - self.first


class Reading:
    """Answers reads over one state; keeps nothing between requests."""

    def __init__(self, state: State, runner: Runner, *, version: str) -> None:
        self.state = state
        self.runner = runner
        self.version = version
        self.worth = Worth(state, runner)
        self._ties = Quality(state, Column.AGGRESSOR_REF, ("observation_count", "tied"))
        self._started_s = time.monotonic()
        self.measuring = Measuring(state, self)
        self.runway = Runway(state)
        self.lag_history = LagHistory(self.measuring)

    # ---- resolving

    def time_ns(self, when: protocol.Time, session: str | None = None) -> int:
        """A time as ns UTC; text is exchange-local unless it carries an offset. Raises Refused."""
        if isinstance(when, int):
            return when
        try:
            return self.state.calendar.parse_time(when, session)
        except (ValueError, AddressError) as error:
            raise Refused(
                "bad_request", str(error), "write 2013-10-07T09:31, 2013-10-07, or 09:31 with --session"
            ) from error

    def select(self, wanted: protocol.Range) -> Selection:
        """A range as symbols and minutes; raises UnknownSession, Refused nothing_selected."""
        calendar = self.state.calendar
        seq = calendar.session_seq(wanted.session)
        open_ns, minutes = int(calendar.open_ns[seq]), int(calendar.minutes[seq])
        first, last = 0, minutes
        if wanted.from_ts is not None:
            first = min(max(-(-(self.time_ns(wanted.from_ts, wanted.session) - open_ns) // 60_000_000_000), 0), minutes)
        if wanted.to_ts is not None:
            last = min(max(-(-(self.time_ns(wanted.to_ts, wanted.session) - open_ns) // 60_000_000_000), 0), minutes)
        universe = self.state.universe(wanted.session)
        chosen = self._matching(universe, wanted.symbols)
        if first >= last or not len(chosen):
            if first >= last:
                what, hint = (
                    "no window of it lies in the range",
                    f"it has {minutes} windows; --to is behind the last one",
                )
            else:
                what = f"no symbol of the session passes {wanted.symbols or '*'}"
                hint = "see: m17ctl coverage " + wanted.session
            raise Refused("nothing_selected", f"{wanted.session}: {what}", hint)
        return Selection(wanted.session, seq, chosen, first, last, wanted.contract)

    def _matching(self, universe: np.ndarray, pattern: str | None) -> np.ndarray:
        if pattern is None:
            return universe
        chosen: np.ndarray = universe[np.isin(universe, self.state.symbols.glob(pattern))]
        return chosen

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols], for which symbols of a session a configured engine should fill a column; None for none."""
        covered: np.ndarray | None = None
        for engine in self.runner.engines.values():
            if column in engine.writes:
                one = engine.covers(session, column)
                if one is not None:
                    covered = one if covered is None else covered | one
        return covered

    def stale(self, session: str, column: Column, symbol_ids: np.ndarray, by_recipe: bool | None = None) -> np.ndarray:
        """
        Which filled cells would get another print if they were made now.

        Args:
            by_recipe: True for those that another recipe made, False for those whose inputs changed, None for both.

        Returns:
            bool[n, minutes].
        """
        minutes = int(self.state.calendar.minutes[self.state.calendar.session_seq(session)])
        found = np.zeros((len(symbol_ids), minutes), dtype=bool)
        for name, engine in self.runner.deriving.items():
            if column not in self.runner.engines[name].writes:
                continue
            if by_recipe is not True:
                found |= engine.stale(session, column, symbol_ids)
            if by_recipe is not None:
                recipe = engine.stale_by_recipe(session, column, symbol_ids)
                found = recipe if by_recipe else found & ~recipe
        return found

    def planes(
        self, session: str, column: Column, symbol_ids: np.ndarray, options: np.ndarray, *, judged: bool = True
    ) -> Planes:
        """Cells of a column, with what the configured engines cover; without ``judged`` none shows as stale."""
        return planes(
            self.state,
            session,
            column,
            symbol_ids,
            covered=self.covers(session, column),
            has_options=options,
            now_ns=self.state.system.now_ns(),
            stale=self.stale(session, column, symbol_ids) if judged else None,
        )

    # ---- status

    def status(self) -> replies.StatusReply:
        """The whole state in one page."""
        in_use = self.measuring.sessions()
        counted = as_counts(totals(in_use))
        engines = {}
        for name in self.runner.engines:
            health = self.runner.health(name)
            engines[name] = replies.EngineState(
                state=health.state,
                detail=health.detail,
                backlog=self.runner.engines[name].backlog(),
                since_ns=self.runner.since_ns(name),
            )
        state, space = self.state, self.runway.look()
        return replies.StatusReply(
            verdict=verdict(self.state, self.runner, counted),
            look=look(in_use),
            version=self.version,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started_s, 3),
            state_dir=str(state.directory),
            year=state.year,
            symbols=len(state.symbols),
            symbols_max=state.symbols.symbols_max,
            columns={column: replies.Counts(**counts) for column, counts in counted.items()},
            engines=engines,
            sources=[source_reply(record) for record in state.sources.all()],
            space=space,
            warnings=self.warnings(space),
            lags=self.lag_history.until_now(in_use),
        )

    def warnings(self, space: replies.Space) -> list[str]:
        """What an operator should know beside the counts, a sentence each."""
        lines = [f"{failure.engine}: {failure.reason}" for failure in self.runner.failures.values()]
        lines += [f"{session} is not counted: {reason}" for session, reason in self.measuring.damaged.items()]
        if self.runner.blocked:
            lines.append(f"nothing is written: {self.runner.blocked}")
        if space.runway_days is not None and space.runway_days < SHORT_DAYS:
            lines.append(f"room for {space.runway_days:.1f} more trading days, at what the newest took")
        if self.runner.refused:
            named = ", ".join(list(self.runner.refused)[:5])
            lines.append(f"the symbol cap refused {len(self.runner.refused)} symbols, among them {named}")
        for repair in self.state.repairs:
            if repair.seal or repair.dangling:
                lines.append(
                    f"recovery of {repair.ledger} {repair.session}: {repair.seal} broken seals and "
                    f"{repair.dangling} dangling cells were cleared"
                )
        ties = self._ties.sums(self.measuring.sessions())
        if ties is not None and ties["tied"] > _TIED_SHARE * ties["observation_count"]:
            share = 100 * ties["tied"] / ties["observation_count"]
            lines.append(
                f"nbbo: {share:.0f} % of the newest session's trades share their exact time with a quote, so quote_tie "
                "decides their side"
            )
        return lines

    # ---- coverage

    def coverage(self, request: protocol.CoverageRequest) -> replies.CoverageReply:
        """Counts of a session by column, and by what was asked for."""
        state = self.state
        seq = state.calendar.session_seq(request.session)
        universe = state.universe(request.session)
        chosen = self._matching(universe, request.symbols)
        position = np.searchsorted(universe, chosen)
        options = with_options(state, universe)[position] if len(chosen) else np.zeros(0, dtype=bool)
        by_column = {column: self.planes(request.session, column, chosen, options) for column in Column}
        reply: dict[str, Any] = {}
        if request.by == "symbol":
            reply["by_symbol"] = {
                state.symbols.name(int(one)): {
                    column: replies.Counts(**cells.count(index)) for column, cells in by_column.items()
                }
                for index, one in enumerate(chosen)
            }
        elif request.by == "minute":
            starts = state.calendar.start_ts_array(state.calendar.windows(seq))
            reply["by_minute"] = {
                str(int(start)): {
                    column: replies.Counts(**cells.count(np.s_[:, minute])) for column, cells in by_column.items()
                }
                for minute, start in enumerate(starts)
            }
        elif request.by == "source":
            reply["by_source"] = self._by_source(request.session, chosen, by_column)
        if request.quality:
            reply["quality"] = self.worth.by_column(request.session, chosen)
        return replies.CoverageReply(
            session=request.session,
            windows=int(state.calendar.minutes[seq]),
            symbols=len(chosen),
            columns={column: replies.Counts(**cells.count()) for column, cells in by_column.items()},
            out_of_session=out_of_session(state, request.session),
            **reply,
        )

    def _by_source(
        self, session: str, chosen: np.ndarray, by_column: dict[Column, Planes]
    ) -> dict[str, dict[Column, replies.Counts]]:
        result: dict[str, dict[Column, replies.Counts]] = {}
        for column, cells in by_column.items():
            sources = sources_of(self.state, session, column, chosen)
            for source in Source:
                mask = sources == int(source)
                if mask.any():
                    result.setdefault(source.word, {})[column] = replies.Counts(**cells.count(mask))
        return result

    # ---- rows

    def row(self, request: protocol.RowRequest) -> replies.RowReply:
        """One window of one symbol over both ledgers."""
        symbol_id = self.state.symbols.resolve(request.symbol)
        minute_idx = self.state.calendar.minute_idx(self.time_ns(request.at, request.session))
        return self._row(symbol_id, minute_idx, payload=request.payload)

    def rows(self, request: protocol.RowsRequest) -> Iterator[replies.RowsReply]:
        """Every window of one symbol and session, in pieces."""
        symbol_id = self.state.symbols.resolve(request.symbol)
        windows = self.state.calendar.windows(self.state.calendar.session_seq(request.session))
        for start in range(0, len(windows), 30):
            some = windows[start : start + 30]
            yield replies.RowsReply(rows=[self._row(symbol_id, int(one), payload=request.payload) for one in some])

    def _row(self, symbol_id: int, minute_idx: int, *, payload: bool) -> replies.RowReply:
        state = self.state
        slots: dict[Column, replies.SlotReply] = {}
        start_ts = state.calendar.start_ts(minute_idx)
        seq, minute = divmod(minute_idx, MINUTES_PER_SESSION)
        for ledger in (state.trade, state.enrichment):
            columns = COLUMNS_OF[ledger.kind]
            if not ledger.exists(seq):
                slots.update(dict.fromkeys(columns, _EMPTY))
                continue
            for column, slot in zip(columns, ledger.session(seq).slots_of(symbol_id, minute), strict=True):
                slots[column] = _EMPTY if slot is EMPTY_SLOT else self._slot(column, slot, payload=payload)
        return replies.RowReply(
            symbol=state.symbols.name(symbol_id),
            symbol_id=symbol_id,
            minute_idx=minute_idx,
            window_id=state.calendar.window_id(minute_idx),
            start_ts=start_ts,
            end_ts=start_ts + 60_000_000_000,
            slots=slots,
        )

    def _slot(self, column: Column, slot: Slot, *, payload: bool) -> replies.SlotReply:
        reply = replies.SlotReply(
            status=slot.status.word,
            source=slot.source.word,
            flags=slot.flags.words,
            payload_type=slot.payload_type.word,
            payload_id=slot.payload_id,
            version=slot.version,
            checksum=slot.checksum,
            inputs=slot.inputs,
            last_updated_ns=slot.last_updated_ns,
        )
        if payload and slot.status is Status.FILLED:
            return msgspec.structs.replace(reply, payload=self.record(column.payload_kind, slot.payload_id))
        return reply

    def record(self, kind: PayloadKind, payload_id: int) -> dict[str, Any]:
        """A record's fields; raises UnknownPayload."""
        record = self.state.maps[kind].get(payload_id)
        artifact_id = int(record["artifact_id"])
        retired = int(record["record_flags"]) & RECORD_RETIRED
        uri = self.state.artifacts.get(artifact_id).uri if artifact_id and not retired else None
        return describe(record, uri)

    def payload(self, request: protocol.PayloadRequest) -> replies.PayloadReply:
        """One record of a mapping file."""
        kind = PayloadKind[request.kind.upper()]
        return replies.PayloadReply(
            kind=request.kind, payload_id=request.payload_id, record=self.record(kind, request.payload_id)
        )

    def bulk(self, request: protocol.BulkRequest) -> Iterator[Piece | None]:
        """Rows of a range as raw slabs, one symbol each."""
        selection = self.select(request.range)
        ledger = self.state.trade if request.ledger is LedgerKind.TRADE else self.state.enrichment
        columns = list(COLUMNS_OF[request.ledger])
        row_format = replies.ROW_HEADER_FORMAT + replies.SLOT_FORMAT * len(columns)
        row_bytes = ROW_BYTES[request.ledger]
        assert struct.calcsize(row_format) == row_bytes
        if not ledger.exists(selection.seq):
            return
        rows = ledger.session(selection.seq)
        chosen = selection.symbol_ids[rows.reserved[selection.symbol_ids]]
        at_once = max(1, _SLAB_BYTES // (selection.minutes * row_bytes))
        window = slice(selection.first * row_bytes, selection.last * row_bytes)
        for start in range(0, len(chosen), at_once):
            some = [int(one) for one in chosen[start : start + at_once]]
            body = replies.BulkReply(
                ledger=request.ledger,
                session=selection.session,
                rows=selection.minutes * len(some),
                row_bytes=row_bytes,
                row_format=row_format,
                columns=columns,
                symbols={one: self.state.symbols.name(one) for one in some},
            )
            yield Piece(body, b"".join(rows.slab(one)[window] for one in some))

    # ---- rows of artifacts

    def export(self, request: protocol.ExportRequest) -> Iterator[replies.ExportReply | None]:
        """
        Which rows of which artifacts the filled cells name; a piece per artifact.

        Rows outside the session are named by each artifact's own footer (``outside``), which the reader opens anyway.
        """
        state, selection = self.state, self.select(request.range)
        ledger = state.ledger_of(request.column)
        empty = replies.ExportReply(
            column=request.column,
            artifact_root=str(state.artifact_root),
            uris=[],
            cells=[],
            contract=selection.contract,
        )
        yield empty
        if not ledger.exists(selection.seq):
            return
        few = len(selection.symbol_ids) <= _LOOKED_AT_MAX
        while not few and not ledger.open_some(selection.seq, time.monotonic() + STEP_S):
            yield None
        with ledger.look(selection.seq) if few else nullcontext(ledger.session(selection.seq)) as rows:
            found = named_rows(state, rows, request.column, selection.symbol_ids) if rows is not None else []
        for named in found:
            yield from self._export_pieces(selection, named, empty)

    def _export_pieces(
        self, selection: Selection, named: NamedRows, empty: replies.ExportReply
    ) -> Iterator[replies.ExportReply]:
        """The cells of one artifact, some thousands a piece."""
        state = self.state
        uri = state.artifacts.get(named.artifact_id).uri
        inside = (named.minute >= selection.first) & (named.minute < selection.last)
        cells = [
            replies.ArtifactCell(0, *map(int, values))
            for values in zip(
                named.symbol_id[inside],
                selection.seq * 390 + named.minute[inside],
                named.row_start[inside],
                named.row_count[inside],
                named.payload_id[inside],
                named.version[inside],
                named.source[inside],
                named.flags[inside],
                strict=True,
            )
        ]
        names = {int(one): state.symbols.name(int(one)) for one in np.unique(named.symbol_id[inside])}
        for start in range(0, max(len(cells), 1), 5000):
            yield msgspec.structs.replace(empty, uris=[uri], cells=cells[start : start + 5000], symbols=names)

    # ---- names

    def symbol(self, symbol_id: int) -> replies.SymbolReply:
        """One symbol."""
        state = self.state
        underlying = state.symbols.name(state.underlying_id(symbol_id))
        return replies.SymbolReply(symbol=state.symbols.name(symbol_id), symbol_id=symbol_id, underlying=underlying)

    def symbols(self, pattern: str | None) -> Iterator[replies.SymbolsReply]:
        """Symbols by id, in pieces."""
        ids = self.state.symbols.glob(pattern) if pattern else range(len(self.state.symbols))
        chosen = list(ids)
        for start in range(0, max(len(chosen), 1), 1000):
            yield replies.SymbolsReply(symbols=[self.symbol(one) for one in chosen[start : start + 1000]])

    def session(self, name: str) -> replies.SessionReply:
        """One session; raises UnknownSession."""
        state = self.state
        seq = state.calendar.session_seq(name)
        mapped = "read_write" if seq in state.trade.mapped() or seq in state.enrichment.mapped() else "no"
        return replies.SessionReply(
            session=name,
            session_seq=seq,
            windows=int(state.calendar.minutes[seq]),
            open_ts=int(state.calendar.open_ns[seq]),
            close_ts=state.calendar.close_ns(seq),
            mapped=mapped,
            sources={record.dataset: record.state.value for record in state.sources.for_session(name)},
        )

    def sessions(self) -> replies.SessionsReply:
        """Every session of the year."""
        calendar = self.state.calendar
        return replies.SessionsReply(
            sessions=[self.session(calendar.date(seq)) for seq in range(calendar.session_count)]
        )

    def digest(self, session: str) -> Iterator[outcomes.DigestReply | None]:
        """The digest of a session's content."""
        self.state.calendar.session_seq(session)
        for step in session_digest(self.state, session):
            if step is None:
                yield None
            else:
                yield outcomes.DigestReply(session=session, digest=step[0], columns=step[1])

    def engines(self) -> outcomes.EnginesReply:
        """Every configured engine in full."""
        return outcomes.EnginesReply(engines=[self.engine(name) for name in self.runner.engines])

    def engine(self, name: str) -> outcomes.EngineReply:
        """One engine; raises Refused not_found."""
        engine = self.runner.engines.get(name)
        if engine is None:
            known = ", ".join(self.runner.engines) or "none"
            raise Refused("not_found", f"no engine {name} runs here", f"engines that run: {known}")
        health, counts = self.runner.health(name), self.runner.counts[name]
        progress = self.runner.progress(name)
        running = [
            {"task": task.key, "done": done, "total": total}
            for task, done, total in self.runner.running()
            if task.engine == name
        ]
        failures = [
            {"task": failure.key, "reason": failure.reason, "hint": failure.hint}
            for failure in self.runner.failures.values()
            if failure.engine == name
        ]
        return outcomes.EngineReply(
            name=name,
            state=health.state,
            detail=health.detail,
            backlog=engine.backlog(),
            since_ns=self.runner.since_ns(name),
            reads=_read_by(engine.writes),
            writes=list(engine.writes),
            restarts=counts.deaths + counts.faults,
            paused_by=self.runner.paused.get(name, ""),
            **(dataclasses.asdict(progress) if progress is not None else {}),
            facts={
                "tasks": counts.tasks,
                "cells_set": counts.cells,
                "cells_unchanged": counts.unchanged,
                "cells_dropped": counts.dropped,
                "cells_held_back": counts.held_back,
                "worker_deaths": counts.deaths,
                "running": running,
                "failures": failures,
                "waiting": [
                    {"cause": one.cause, "session": one.session, "detail": one.detail} for one in engine.waiting()[:200]
                ],
                "hooks": engine.describe_priority_hooks(),
            },
        )


def _read_by(writes: Sequence[Column]) -> list[Column]:
    """The columns that an engine's are made from."""
    needed = {source for column in writes for source in UPSTREAM[column]}
    return [column for column in Column if column in needed]


def source_reply(record: SourceRecord) -> replies.SourceReply:
    """A source as the wire shows it."""
    return replies.SourceReply(
        dataset=record.dataset,
        session=record.session,
        state=record.state.value,
        uri=record.name,
        bytes=record.size,
        rows=record.rows,
        rejected=dict(record.rejected),
        out_of_session={name: int(number) for name, number in record.out_of_session.items()},
        detail=record.reason
        or (f"line {record.first_bad.line}: {record.first_bad.reason}" if record.first_bad else ""),
    )


def out_of_session(state: State, session: str) -> dict[str, dict[str, int]]:
    """Rows outside the session by dataset, auctions apart."""
    return {
        record.dataset: {name: int(number) for name, number in record.out_of_session.items()}
        for record in state.sources.for_session(session)
        if record.out_of_session
    }
