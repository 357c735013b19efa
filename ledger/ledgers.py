"""
The two ledgers: named setters, clears, reads and iterators over the sessions of the year.

Cells are addressed by (symbol_id, minute_idx). Every setter has a scalar path for one cell and a block path for arrays;
both give the same bytes. Sessions are mapped on first use, recovered when they are mapped for writing, and dropped when
idle. This module must never know what a payload says.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from ledger.calendar import Calendar
from ledger.columns import MINUTES_PER_SESSION, Column, Flag, LedgerKind, PayloadKind, Source
from ledger.errors import AddressError, MinuteOutOfSession, PayloadKindNotAllowed
from ledger.files import System
from ledger.layout import COLUMNS_OF, COUNTS_OFFSET, ROWS_COUNTS
from ledger.maps import PayloadMap
from ledger.recovery import Repaired, recover
from ledger.rows import Row, SessionPlace, SessionRows, Slot

_NS_IDLE: Final = 15 * 60 * 10**9


class Ledger:
    """
    One ledger over all sessions of the year; :class:`TradeLedger` and :class:`EnrichmentLedger` name its setters.

    ``on_repair`` is called with what :class:`Repaired` says when mapping a session found damage.
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
        on_repair: Callable[[Repaired], None] | None = None,
    ) -> None:
        self.calendar = calendar
        self.readonly = readonly
        self._system = system
        self._directory = directory
        self._maps = maps
        self._sessions: dict[int, SessionRows] = {}
        self._used_ns: dict[int, int] = {}
        self._on_repair = on_repair
        self._columns = frozenset(COLUMNS_OF[self.kind])
        self._clock = system.now_ns

    # ---- sessions

    def path(self, session_seq: int) -> Path:
        """The session's file."""
        return self._directory / f"{self.calendar.date(session_seq)}.rows"

    def exists(self, session_seq: int) -> bool:
        """True where the session has a file, mapped or not."""
        return session_seq in self._sessions or self.path(session_seq).exists()

    def existing(self) -> list[int]:
        """Sequence numbers of the sessions that have a file, ascending."""
        names = set(self._system.list_directory(self._directory))
        return [seq for seq in range(self.calendar.session_count) if f"{self.calendar.date(seq)}.rows" in names]

    def mapped(self) -> dict[int, SessionRows]:
        """The sessions mapped now, by sequence number; read only."""
        return self._sessions

    def session(self, session_seq: int) -> SessionRows:
        """
        The rows of a session, mapped and recovered on first use.

        Raises:
            UnknownSession: no such session.
            StateError: the file is not what it should be; other sessions go on.
            SpaceError: the file system refused.
        """
        rows = self._sessions.get(session_seq)
        now_ns = self._system.now_ns()
        if rows is None:
            place = self._session_place(session_seq)
            rows = SessionRows(self._system, self.path(session_seq), self.kind, place, readonly=self.readonly)
            try:
                if not self.readonly:
                    recover(rows, self._maps, now_ns, self._on_repair)
            except BaseException:
                rows.close()
                raise
            self._sessions[session_seq] = rows
        self._used_ns[session_seq] = now_ns
        return rows

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

    def counts(self, session_seq: int) -> np.ndarray | None:
        """
        Counts of statuses per column from the header page, without mapping the session.

        Returns:
            i64[columns, 4], or None where the session has no file or its counts are not clean.
        """
        rows = self._sessions.get(session_seq)
        if rows is not None:
            return rows.counts_status
        try:
            with self.path(session_seq).open("rb") as file:
                file.seek(COUNTS_OFFSET)
                data = file.read(ROWS_COUNTS.itemsize)
        except FileNotFoundError:
            return None

        stored = np.frombuffer(data, dtype=ROWS_COUNTS)[0]
        if not stored["clean"] or stored["crc"] != zlib.crc32(data[4:]):
            return None
        columns = len(COLUMNS_OF[self.kind])
        return stored["status"][:columns].astype(np.int64)

    def drop_idle(self, *, keep: frozenset[int] = frozenset(), idle_ns: int = _NS_IDLE) -> list[int]:
        """Close sessions unused for ``idle_ns`` (those in ``keep`` stay); returns what was closed."""
        now_ns = self._system.now_ns()
        idle = [seq for seq, used in self._used_ns.items() if seq not in keep and now_ns - used >= idle_ns]
        for seq in idle:
            self._sessions.pop(seq).close()
            del self._used_ns[seq]
        return idle

    def close(self) -> None:
        """Flush and close every session."""
        with ExitStack() as closing:
            for seq in sorted(self._sessions, reverse=True):
                closing.callback(self._sessions[seq].close)
            self._sessions.clear()
            self._used_ns.clear()

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


class TradeLedger(Ledger):
    """Sourced data and the aggressor: ``rf_rate_ref trade_ref quote_ref aggressor_ref``. Setters are :meth:`set`'s."""

    kind = LedgerKind.TRADE

    def set_rf_rate_ref(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``rf_rate_ref``; see :meth:`Ledger.set`."""
        return self.set(Column.RF_RATE_REF, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_trade_ref(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``trade_ref``; see :meth:`Ledger.set`."""
        return self.set(Column.TRADE_REF, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_quote_ref(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``quote_ref``; see :meth:`Ledger.set`."""
        return self.set(Column.QUOTE_REF, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggressor_ref(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggressor_ref``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGRESSOR_REF, symbol_id, minute_idx, payload_type, *rest, **named)

    def get_trade_row(self, symbol_id: int, minute_idx: int) -> Row:
        """One trade row; raises AddressError, ChecksumMismatch."""
        return self.get_row(symbol_id, minute_idx)


class EnrichmentLedger(Ledger):
    """Overlays and aggregates: ``greeks_ref aggs_1m .. aggs_4h``. Setters are :meth:`set`'s."""

    kind = LedgerKind.ENRICHMENT

    def set_greeks_ref(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``greeks_ref``; see :meth:`Ledger.set`."""
        return self.set(Column.GREEKS_REF, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggs_ref_1m(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggs_1m``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGS_1M, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggs_ref_5m(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggs_5m``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGS_5M, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggs_ref_10m(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggs_10m``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGS_10M, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggs_ref_30m(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggs_30m``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGS_30M, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggs_ref_1h(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggs_1h``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGS_1H, symbol_id, minute_idx, payload_type, *rest, **named)

    def set_aggs_ref_4h(
        self, symbol_id: Any, minute_idx: Any, payload_type: PayloadKind, *rest: Any, **named: Any
    ) -> Any:
        """Fill ``aggs_4h``; see :meth:`Ledger.set`."""
        return self.set(Column.AGGS_4H, symbol_id, minute_idx, payload_type, *rest, **named)

    def get_enrichment_row(self, symbol_id: int, minute_idx: int) -> Row:
        """One enrichment row; raises AddressError, ChecksumMismatch."""
        return self.get_row(symbol_id, minute_idx)
