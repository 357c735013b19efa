"""
The two ledgers: named setters, clears, reads and iterators over the sessions of the year.

Cells are addressed by (symbol_id, minute_idx). Every setter has a scalar path for one cell and a block path for arrays;
both give the same bytes. Sessions are mapped on first use, recovered when they are mapped for writing, and dropped when
idle. This module must never know what a payload says.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from ledger.calendar import Calendar
from ledger.columns import MINUTES_PER_SESSION, SYMBOLS_MAX, Column, Flag, LedgerKind, PayloadKind, Source
from ledger.errors import AddressError, MinuteOutOfSession, PayloadKindNotAllowed, SpaceError, StateError, from_os_error
from ledger.files import System
from ledger.gate import gated
from ledger.headerpage import check_page, counts_in
from ledger.layout import COLUMNS_OF, FILE_BYTES, PAGE
from ledger.maps import PayloadMap
from ledger.recovery import Repaired, recover
from ledger.rows import Row, SessionPlace, SessionRows, Slot

_NS_IDLE: Final = 15 * 60 * 10**9
PLANE_BYTES_MAX: Final = 128 << 20
"""Planes that a ledger holds; when another session is mapped, those unused for longest are closed."""
_SESSIONS_RESIDENT: Final = 4
"""So many sessions, those used last, keep the pages of their rows in memory."""
_REFERENCES_OF_OURS: Final = 3
"""Of the dictionary, of the loop, and of the question."""


class Ledger:
    """
    One ledger over all sessions of the year; :class:`TradeLedger` and :class:`EnrichmentLedger` name its setters.

    ``symbols`` are those that have ids. ``on_repair`` is called with what :class:`Repaired` says when mapping a session
    found damage.
    """

    kind: LedgerKind

    def __init__(
        self,
        system: System,
        directory: Path,
        calendar: Calendar,
        maps: dict[PayloadKind, PayloadMap],
        *,
        readonly: bool,
        symbols: Sized = range(SYMBOLS_MAX),
        on_repair: Callable[[Repaired], None] | None = None,
    ) -> None:
        self.calendar = calendar
        self.readonly = readonly
        self._system = gated(system)
        self._directory = directory
        self._maps = maps
        self._folder = os.fspath(directory)
        self._sessions: dict[int, SessionRows] = {}
        self._used_ns: dict[int, int] = {}
        self._openings: dict[int, Iterator[None]] = {}
        """Sessions that are mapped in part."""
        self._resident = [-1] * _SESSIONS_RESIDENT
        """Sessions used last, the newest last; -1 is none."""
        self._symbols = symbols
        self._on_repair = on_repair
        self._columns = frozenset(COLUMNS_OF[self.kind])
        self._clock = self._system.clock

    # ---- sessions

    def path(self, session_seq: int) -> Path:
        """The session's file."""
        return self._directory / f"{self.calendar.date(session_seq)}.rows"

    def file_name(self, session_seq: int) -> str:
        """The same as text, for whoever asks for a year of them."""
        return f"{self._folder}/{self.calendar.date(session_seq)}.rows"

    def exists(self, session_seq: int) -> bool:
        """True where the session has a file, mapped or not."""
        # Not os.path.exists: it says no by an exception, and a year's sessions are asked for one after another.
        return session_seq in self._sessions or os.access(self.file_name(session_seq), os.F_OK)

    def existing(self) -> list[int]:
        """Sequence numbers of the sessions that have a file, ascending."""
        names = set(self._system.list_directory(self._directory))
        return [seq for seq, date in enumerate(self.calendar.dates) if f"{date}.rows" in names]

    def mapped(self) -> dict[int, SessionRows]:
        """The sessions mapped now, by sequence number; read only."""
        return self._sessions

    def session(self, session_seq: int) -> SessionRows:
        """
        The rows of a session, mapped and recovered on first use; after a failed sync mapped for reading only.

        Raises:
            UnknownSession: no such session.
            StateError: the file is not what it should be; other sessions go on.
            SpaceError: the file system refused.
        """
        rows = self._sessions.get(session_seq)
        if rows is None:
            for _ in self._openings.pop(session_seq, None) or self._open(session_seq):
                pass
            rows = self._sessions[session_seq]
        self._used_ns[session_seq] = self._system.now_ns()
        if session_seq != self._resident[-1]:
            self._note_resident(session_seq)
        return rows

    def open_some(self, session_seq: int, until_s: float) -> bool:
        """
        Map a session a piece at a time, where :meth:`session` would take its whole file at once.

        Args:
            until_s: go on until then, as ``time.monotonic`` counts; at least one piece is done.

        Returns:
            True where it is mapped now, or has no file; raises like :meth:`session`.
        """
        if session_seq in self._sessions or not self.exists(session_seq):
            return True
        # It keeps its place in the order: what was begun first is done first.
        steps = self._openings.setdefault(session_seq, self._open(session_seq))
        over = True
        try:
            for _ in steps:
                if time.monotonic() >= until_s:
                    over = False
                    return False
            return True
        finally:
            if over:
                del self._openings[session_seq]

    def open_on(self, until_s: float) -> None:
        """
        Go on with sessions that are mapped in part, the one that was begun first before the next, until the time is over.

        Raises like :meth:`session`, once for each.
        """
        for session_seq in list(self._openings):
            if not self.open_some(session_seq, until_s):
                return

    @property
    def is_opening(self) -> bool:
        """True while a session is mapped in part."""
        return bool(self._openings)

    def _open(self, session_seq: int) -> Iterator[None]:
        """Map and recover a session, a few milliseconds between yields; it is there when all are done."""
        place, readonly = self._session_place(session_seq), self.readonly or self._system.failure is not None
        path = self.path(session_seq)
        rows = SessionRows(self._system, path, self.kind, place, readonly=readonly, later=True)
        try:
            yield from rows.loading()
        except BaseException:
            rows.abandon()
            raise
        try:
            if not readonly:
                now_ns = self._system.now_ns()
                yield from recover(rows, self._maps, len(self._symbols), now_ns, self._on_repair)
        except BaseException:
            # Not called clean: what is wrong in it must be found again.
            rows.close(clean=False)
            raise
        self._sessions[session_seq] = rows
        self._used_ns[session_seq] = self._system.now_ns()
        self._make_room(session_seq)

    def _note_resident(self, session_seq: int) -> None:
        """Keep pages of the rows of the sessions used last, and let those of others go."""
        if session_seq in self._resident:
            self._resident.remove(session_seq)
        self._resident.append(session_seq)
        rows = self._sessions.get(self._resident.pop(0))
        if rows is not None:
            rows.let_pages_go()

    def _make_room(self, newest: int) -> None:
        """Keep planes within their bound: close the sessions unused for longest."""
        order = [seq for _, seq in sorted((used, seq) for seq, used in self._used_ns.items() if seq != newest)]
        held = sum(rows.plane_bytes for rows in self._sessions.values())
        for seq in order:
            if held <= PLANE_BYTES_MAX:
                return
            rows = self._sessions[seq]
            # Somebody who holds it is in the middle of something.
            if not rows.unsynced and sys.getrefcount(rows) <= _REFERENCES_OF_OURS:
                held -= rows.plane_bytes
                del rows
                with suppress(SpaceError):
                    self._close([seq])

    def _session_place(self, session_seq: int) -> SessionPlace:
        return SessionPlace(
            self.calendar.year,
            session_seq,
            self.calendar.date(session_seq),
            int(self.calendar.open_ns[session_seq]),
            int(self.calendar.minutes[session_seq]),
        )

    def inspect(self, session_seq: int) -> SessionRows:
        """
        The session's file opened for reading only, without planes and counts, nothing repaired; the caller closes it.

        Raises:
            UnknownSession, StateError, SpaceError: as :meth:`session`.
        """
        place = self._session_place(session_seq)
        return SessionRows(self._system, self.path(session_seq), self.kind, place, readonly=True, load=False)

    @contextmanager
    def look(self, session_seq: int) -> Iterator[SessionRows | None]:
        """
        The rows of a session, to read a few symbols of: the mapped ones, or its file opened for this and closed again.

        None where it has no file. Rows that are not mapped (``readonly``) have no planes; read their slots.
        """
        mapped = self._sessions.get(session_seq)
        if mapped is not None or not self.exists(session_seq):
            yield mapped
            return
        with closing(self.inspect(session_seq)) as rows:
            yield rows

    def counts(self, session_seq: int) -> np.ndarray | None:
        """
        Counts of statuses per column from the header page, without mapping the session.

        Returns:
            i64[columns, 4], or None where the session has no file, or one whose counts cannot be trusted.
        """
        rows = self._sessions.get(session_seq)
        if rows is not None:
            return rows.counts_status
        stored = self.stored_counts(session_seq)
        return None if stored is None else stored["status"][: len(COLUMNS_OF[self.kind])].astype(np.int64)

    def stored_counts(self, session_seq: int) -> np.void | None:
        """
        What the header page of a session's file says of its cells, mapped or not.

        Returns:
            A record of ``ROWS_COUNTS``, or None where there is no file, or one whose counts cannot be trusted.
        """
        path = self.path(session_seq)
        try:
            with path.open("rb") as file:
                page, size = file.read(PAGE), os.fstat(file.fileno()).st_size
            check_page(page, path, self.kind, self._session_place(session_seq))
        except (FileNotFoundError, StateError):
            return None
        except OSError as error:
            raise from_os_error(error, "read", path) from error
        stored = counts_in(page)
        return stored if stored is not None and stored["clean"] and size == FILE_BYTES[self.kind] else None

    def drop_idle(self, *, keep: frozenset[int] = frozenset(), idle_ns: int = _NS_IDLE) -> list[int]:
        """Close sessions unused for ``idle_ns`` (those in ``keep`` stay); returns what was closed."""
        now_ns = self._system.now_ns()
        idle = [seq for seq, used in self._used_ns.items() if seq not in keep and now_ns - used >= idle_ns]
        self._close(idle)
        return idle

    def close(self) -> None:
        """
        Flush and close every session, whatever fails.

        Raises:
            SpaceError: the first failure; what could not be flushed is looked through when it is opened again.
        """
        self._openings.clear()
        self._close(sorted(self._sessions, reverse=True))

    def _close(self, seqs: list[int]) -> None:
        with ExitStack() as stack:
            for seq in reversed(seqs):
                self._used_ns.pop(seq, None)
                stack.push(partial(_close_session, self._sessions.pop(seq)))
            # A clean session is not looked through when it is opened: what its cells name must be on disk before.
            if seqs and not self.readonly and self._system.failure is None:
                for payloads in self._maps.values():
                    payloads.sync()

    # ---- addresses

    def _place(self, minute_idx: int) -> tuple[SessionRows, int]:
        seq, minute = divmod(int(minute_idx), MINUTES_PER_SESSION)
        self.calendar.start_ts(int(minute_idx))
        return self.session(seq), minute

    def _by_session(self, minute_idx: np.ndarray) -> Iterator[tuple[SessionRows, np.ndarray, np.ndarray]]:
        """Rows, positions in the input and minutes of the session, session by session."""
        seqs, minutes = np.divmod(np.asarray(minute_idx, dtype=np.int64), MINUTES_PER_SESSION)
        for seq in np.unique(seqs):
            positions = np.flatnonzero(seqs == seq)
            yield self.session(int(seq)), positions, minutes[positions]

    # ---- reads

    def get_row(self, symbol_id: int, minute_idx: int) -> Row:
        """One row; raises AddressError, ChecksumMismatch."""
        rows, minute = self._place(minute_idx)
        return rows.row(symbol_id, minute)

    def slot(self, column: Column, symbol_id: int, minute_idx: int) -> Slot:
        """One cell; raises AddressError, ChecksumMismatch."""
        rows, minute = self._place(minute_idx)
        return rows.slot(column, symbol_id, minute)

    def iter_symbol(self, symbol_id: int, minutes: range) -> Iterator[Row]:
        """Rows of one symbol over a range of minute_idx, ascending; minutes that are no windows are passed over."""
        for minute_idx in minutes:
            if self.calendar.is_window(minute_idx):
                yield self.get_row(symbol_id, minute_idx)

    def iter_minute(self, minute_idx: int, symbols: range) -> Iterator[Row]:
        """Rows of one minute over a range of symbol ids, ascending."""
        rows, minute = self._place(minute_idx)
        for symbol_id in symbols:
            yield rows.row(symbol_id, minute)

    # ---- writes

    def set(
        self,
        column: Column,
        symbol_id: Any,
        minute_idx: Any,
        payload_type: PayloadKind,
        payload_id: Any,
        checksum: Any,
        *,
        inputs: Any = 0,
        source: Source = Source.NONE,
        flags: Any = Flag.NONE,
        expected_version: Any = None,
    ) -> Any:
        """
        Fill one cell, or many.

        Args:
            column: a column of this ledger.
            symbol_id, minute_idx: ints for one cell, integer arrays [n] for many (each cell at most once), or two
                ranges with step 1 for all cells of a rectangle, inside one session.
            payload_type: must be the column's kind.
            payload_id, checksum, inputs, flags: ints, or arrays [n] with arrays of cells, [symbols, minutes] with ranges.
            source: where raw data came from.
            expected_version: the compare-and-swap token(s), None for any.

        Returns:
            for one cell its version afterwards (int); for many u8[n] (or u8[symbols, minutes]) of
            :class:`ledger.rows.Outcome`.

        Raises:
            AddressError: no such cell.
            PayloadKindNotAllowed: the column takes another kind.
            VersionConflict, RankConflict: for one cell; with arrays they are outcomes instead.
            SpaceError: a block could not be reserved.
        """
        if column not in self._columns:
            raise AddressError(f"{column} is not a column of the {self.kind} ledger")
        if type(symbol_id) is int and type(minute_idx) is int:
            seq = minute_idx // MINUTES_PER_SESSION
            rows = self._sessions.get(seq)
            if rows is None:
                rows, _ = self._place(minute_idx)
            now_ns = self._used_ns[seq] = self._clock()
            return rows.set_one(
                column,
                symbol_id,
                minute_idx - seq * MINUTES_PER_SESSION,
                payload_type,
                payload_id,
                checksum,
                inputs=inputs,
                source=source,
                flags=flags,
                expected_version=expected_version,
                now_ns=now_ns,
            )
        if payload_type is not column.payload_kind:
            raise PayloadKindNotAllowed(f"{column} takes {column.payload_kind.word}, not {payload_type.word}")
        if isinstance(symbol_id, range) and isinstance(minute_idx, range):
            return self._set_rectangle(
                column, symbol_id, minute_idx, payload_id, checksum, inputs, source, flags, expected_version
            )
        if np.ndim(symbol_id) == 0 and np.ndim(minute_idx) == 0:
            return self.set(
                column,
                int(symbol_id),
                int(minute_idx),
                payload_type,
                int(payload_id),
                int(checksum),
                inputs=int(inputs),
                source=source,
                flags=Flag(int(flags)),
                expected_version=None if expected_version is None else int(expected_version),
            )
        named = {"inputs": inputs, "flags": flags, "expected_versions": expected_version}
        return self._set_cells(column, np.asarray(symbol_id), minute_idx, payload_id, checksum, source, named)

    def _set_cells(
        self,
        column: Column,
        symbol_ids: np.ndarray,
        minute_idx: Any,
        payload_id: Any,
        checksum: Any,
        source: Source,
        named: dict[str, Any],
    ) -> np.ndarray:
        """Fill many cells, session by session; what is an array has one element a cell."""
        outcome = np.zeros(len(symbol_ids), dtype=np.uint8)

        def pick(values: Any, positions: np.ndarray) -> Any:
            return values if values is None or np.ndim(values) == 0 else np.asarray(values)[positions]

        for rows, positions, minutes in self._by_session(minute_idx):
            outcome[positions] = rows.set_many(
                column,
                symbol_ids[positions],
                minutes,
                pick(payload_id, positions),
                pick(checksum, positions),
                source=source,
                now_ns=self._system.now_ns(),
                **{name: pick(values, positions) for name, values in named.items()},
            )
        return outcome

    def _set_rectangle(
        self,
        column: Column,
        symbol_ids: range,
        minute_idx: range,
        payload_id: Any,
        checksum: Any,
        inputs: Any,
        source: Source,
        flags: Any,
        expected_version: Any,
    ) -> np.ndarray:
        if not minute_idx:
            return np.zeros((len(symbol_ids), 0), dtype=np.uint8)
        rows, first = self._place(minute_idx[0])
        if self._place(minute_idx[-1])[0] is not rows:
            raise MinuteOutOfSession("a rectangle lies inside one session; set one for each session")
        return rows.set_block(
            column,
            symbol_ids,
            range(first, first + len(minute_idx)) if minute_idx.step == 1 else minute_idx,
            payload_id,
            checksum,
            inputs=inputs,
            source=source,
            flags=flags,
            expected_versions=expected_version,
            now_ns=self._clock(),
        )

    def clear_slot(self, column: Column, symbol_id: int, minute_idx: int) -> bool:
        """Clear one cell (the audit is the caller's); True where something was cleared."""
        rows, minute = self._place(minute_idx)
        cleared = rows.clear_many(column, np.array([symbol_id]), np.array([minute]), now_ns=self._system.now_ns())
        return bool(cleared[0])

    def clear(self, column: Column, symbol_id: np.ndarray, minute_idx: np.ndarray) -> np.ndarray:
        """Clear many cells; bool[n], True where something was cleared."""
        cleared = np.zeros(len(symbol_id), dtype=bool)
        for rows, positions, minutes in self._by_session(minute_idx):
            now_ns = self._system.now_ns()
            cleared[positions] = rows.clear_many(column, np.asarray(symbol_id)[positions], minutes, now_ns=now_ns)
        return cleared

    def mark_pending(self, column: Column, symbol_id: np.ndarray, minute_idx: np.ndarray) -> np.ndarray:
        """Claim cells without payload; bool[n], True where an empty or cleared cell became pending."""
        marked = np.zeros(len(symbol_id), dtype=bool)
        for rows, positions, minutes in self._by_session(minute_idx):
            now_ns = self._system.now_ns()
            marked[positions] = rows.mark_pending(column, np.asarray(symbol_id)[positions], minutes, now_ns=now_ns)
        return marked


def _close_session(rows: SessionRows, error_type: type[BaseException] | None, *_unused: object) -> None:
    rows.close(clean=error_type is None)


def _setter(column: Column) -> Callable[..., Any]:
    """The named setter of a column: :meth:`Ledger.set` without the column, and without its detours for one cell."""

    def set_column(
        self: Ledger,
        symbol_id: Any,
        minute_idx: Any,
        payload_type: PayloadKind,
        payload_id: Any,
        checksum: Any,
        *,
        inputs: Any = 0,
        source: Source = Source.NONE,
        flags: Any = Flag.NONE,
        expected_version: Any = None,
    ) -> Any:
        if type(symbol_id) is int and type(minute_idx) is int:
            seq = minute_idx // MINUTES_PER_SESSION
            rows = self._sessions.get(seq)
            if rows is not None:
                now_ns = self._used_ns[seq] = self._clock()
                return rows.set_one(
                    column,
                    symbol_id,
                    minute_idx - seq * MINUTES_PER_SESSION,
                    payload_type,
                    payload_id,
                    checksum,
                    inputs=inputs,
                    source=source,
                    flags=flags,
                    expected_version=expected_version,
                    now_ns=now_ns,
                )
        return self.set(
            column,
            symbol_id,
            minute_idx,
            payload_type,
            payload_id,
            checksum,
            inputs=inputs,
            source=source,
            flags=flags,
            expected_version=expected_version,
        )

    set_column.__doc__ = f"Fill ``{column.value}``; see :meth:`Ledger.set`."
    return set_column


class TradeLedger(Ledger):
    """Sourced data and the aggressor: ``rf_rate_ref trade_ref quote_ref aggressor_ref``. Setters are :meth:`set`'s."""

    kind = LedgerKind.TRADE

    set_rf_rate_ref = _setter(Column.RF_RATE_REF)
    set_trade_ref = _setter(Column.TRADE_REF)
    set_quote_ref = _setter(Column.QUOTE_REF)
    set_aggressor_ref = _setter(Column.AGGRESSOR_REF)

    def get_trade_row(self, symbol_id: int, minute_idx: int) -> Row:
        """One trade row; raises AddressError, ChecksumMismatch."""
        return self.get_row(symbol_id, minute_idx)


class EnrichmentLedger(Ledger):
    """Overlays and aggregates: ``greeks_ref aggs_1m .. aggs_4h``. Setters are :meth:`set`'s."""

    kind = LedgerKind.ENRICHMENT

    set_greeks_ref = _setter(Column.GREEKS_REF)
    set_aggs_ref_1m = _setter(Column.AGGS_1M)
    set_aggs_ref_5m = _setter(Column.AGGS_5M)
    set_aggs_ref_10m = _setter(Column.AGGS_10M)
    set_aggs_ref_30m = _setter(Column.AGGS_30M)
    set_aggs_ref_1h = _setter(Column.AGGS_1H)
    set_aggs_ref_4h = _setter(Column.AGGS_4H)

    def get_enrichment_row(self, symbol_id: int, minute_idx: int) -> Row:
        """One enrichment row; raises AddressError, ChecksumMismatch."""
        return self.get_row(symbol_id, minute_idx)
