"""
One object opens and closes the state directory: the lock, the calendar, symbols, maps, both ledgers and the logs.

``create_state`` makes a directory, ``open_state`` opens one for writing (under an exclusive lock) or, lock-free, for
reading beside a daemon. This module must never interpret what is in a cell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ledger.audit import AuditLog
from ledger.calendar import FILE_NAME as CALENDAR_FILE
from ledger.calendar import Calendar, load_calendar
from ledger.closing import Closed, read_closed, remove_closed, write_closed
from ledger.columns import Column, LedgerKind, OptionRows, PayloadKind, SymbolClass
from ledger.creation import ARTIFACTS_FILE, BEGUN_FILE, FORMAT_FILE, START_FILE, UNVERIFIED_FILE, create_state
from ledger.errors import (
    DamagedFile,
    SpaceError,
    StateFull,
    StateMismatch,
    StateMissing,
    StateReadOnly,
)
from ledger.files import HEADER_BYTES, System, decode_header, encode_header, read_whole, write_atomically
from ledger.flush import Flusher
from ledger.gate import gated
from ledger.layout import FORMAT_VERSION
from ledger.ledgers import EnrichmentLedger, Ledger, TradeLedger
from ledger.lock import lock_directory
from ledger.maps import ArtifactMap, PayloadMap
from ledger.recovery import Repaired
from ledger.regions import FILE_NAME as REGIONS_FILE
from ledger.regions import RegionStore
from ledger.roots import RootTable, symbol_class, underlying_of
from ledger.sources import FILE_NAME as SOURCES_FILE
from ledger.sources import SourceStore
from ledger.symbols import Allocation, SymbolMap

if TYPE_CHECKING:
    import polars

__all__ = ["State", "check_matches", "create_state", "open_state"]


class State:
    """
    An open state directory. Make one with :func:`open_state`; use it as a context manager or call :meth:`close`.

    ``repairs`` lists what mapping sessions had to set right since it was opened.
    """

    def __init__(
        self,
        directory: Path,
        system: System,
        *,
        readonly: bool,
        lock: bool,
        flush_interval_s: float,
        roots: RootTable | None,
    ) -> None:
        self.directory = directory
        self.system = gated(system)
        self.readonly = readonly
        self.repairs: list[Repaired] = []
        self._classes: list[SymbolClass] = []
        self._underlyings: list[int] = []
        self._facts = np.zeros(0, dtype="U8"), np.zeros(0, dtype=np.int64)
        self._universes: dict[str, tuple[int, np.ndarray]] = {}
        self._start_number = 0
        self.on_group: Any = lambda: None
        self.ends: dict[str, Callable[[], int]] = {}
        """Small files that others keep in the state, by name: where each ends; noted when the state is closed."""
        self.flusher: Flusher | None = None
        self.sound_artifacts: dict[str, tuple[int, int, int]] = {}
        """Artifacts whose bytes were summed and found right: URI -> inode, size, mtime; kept by ledger.frames."""
        with ExitStack() as opened:
            if lock:
                opened.callback(os.close, lock_directory(directory))
            if not readonly:
                opened.push(self._closed)
            self._open(roots, opened, beside=not lock)
            if not readonly:
                self._recover()
                self.flusher = Flusher(
                    self._sync_maps, self._sync_rows, interval_s=flush_interval_s, on_group=self._group_ended
                )
            self._parts = opened.pop_all()

    def _open(self, roots: RootTable | None, opened: ExitStack, *, beside: bool) -> None:
        """Open every part; nothing is written but where a crash tore a file."""
        directory, system, readonly = self.directory, self.system, self.readonly
        is_whole = (directory / FORMAT_FILE).exists()
        if (directory / UNVERIFIED_FILE).exists() and not (readonly and is_whole):
            hint = f"make the backup again; or, when m17d verify finds nothing, remove the file {UNVERIFIED_FILE}"
            raise DamagedFile(f"{directory} is a copy that was not finished, or not verified", hint=hint)
        if not is_whole:
            raise StateMissing(f"{directory} holds no state (no file named {FORMAT_FILE})")
        self.format = read_page(directory / FORMAT_FILE, system, "FMT")
        self.year = int(self.format["year"])
        self.exchange = str(self.format["exchange"])
        self.option_rows = OptionRows(self.format["option_rows"])
        for name in (CALENDAR_FILE, ARTIFACTS_FILE, SOURCES_FILE, REGIONS_FILE):
            if not (directory / name).exists():
                raise DamagedFile(f"{directory / name} is missing", path=str(directory / name))
        self.calendar: Calendar = load_calendar(directory, system)
        if f"{self.calendar.fingerprint:#018x}" != self.format.get("calendar_fingerprint"):
            raise DamagedFile(f"{directory / CALENDAR_FILE} is not the calendar this state was made with")
        self.roots = roots or RootTable.load()
        # Beside a daemon the file comes and goes.
        self._last_closed = None if beside else read_closed(directory, system)
        ends = self._last_closed.lengths if self._last_closed else {}
        self.audit = AuditLog(
            directory, system, readonly=readonly, closed=self._last_closed.audit if self._last_closed else None
        )
        opened.callback(self.audit.close)
        self.artifacts = ArtifactMap(
            system, directory / ARTIFACTS_FILE, readonly=readonly, closed=ends.get(ARTIFACTS_FILE)
        )
        opened.callback(self.artifacts.close)
        self.sources = SourceStore(directory, system, year=self.year, readonly=readonly, closed=ends.get(SOURCES_FILE))
        opened.callback(self.sources.close)
        self.regions = RegionStore(directory, system, year=self.year, readonly=readonly, closed=ends.get(REGIONS_FILE))
        opened.callback(self.regions.close)
        self.symbols = SymbolMap.open(directory, system, year=self.year, readonly=readonly)
        opened.callback(self.symbols.close)
        self.maps: dict[PayloadKind, PayloadMap] = {}
        for kind in PayloadKind:
            if kind is not PayloadKind.NONE:
                path = directory / "maps" / f"{kind.word}.map"
                self.maps[kind] = PayloadMap(system, path, kind, readonly=readonly, create=False, beside=beside)
                opened.callback(self.maps[kind].close)
        arguments = (self.calendar, self.maps)
        named: dict[str, Any] = {"readonly": readonly, "symbols": self.symbols, "on_repair": self._repaired}
        self.trade = TradeLedger(system, directory / "trade", *arguments, **named)
        opened.callback(self.trade.close)
        self.enrichment = EnrichmentLedger(system, directory / "enrichment", *arguments, **named)
        opened.callback(self.enrichment.close)

    def _recover(self) -> None:
        """From here on the state is open: say so on disk, then report what a crash left in the small files."""
        if self._last_closed is not None:
            remove_closed(self.directory, self.system)
        if (self.directory / BEGUN_FILE).exists():
            self.system.unlink(self.directory / BEGUN_FILE)
        with suppress(StateFull):
            self.sources.compact()
            self.regions.compact()
        found = [
            ("symbol-map.bin", self.symbols.torn_bytes),
            (SOURCES_FILE, self.sources.torn_bytes),
            (REGIONS_FILE, self.regions.torn_bytes),
            (ARTIFACTS_FILE, self.artifacts.torn_bytes),
            ("audit/audit.log", self.audit.torn_bytes),
        ]
        for name, torn_bytes in found:
            if torn_bytes:
                self.audit.append_recovery({"file": name}, "torn record", f"cut {torn_bytes} bytes of a torn record")
        for payloads in self.maps.values():
            where = {"file": f"maps/{payloads.path.name}"}
            if payloads.mark_fault:
                result = f"{payloads.mark_fault}; it was written again, ids go on from {payloads.next_id}"
                self.audit.append_recovery(where, "mark", result)
            if payloads.torn_records:
                result = f"voided {payloads.torn_records} half-written records"
                self.audit.append_recovery(where, "torn record", result)

    def _closed(self, error_type: type[BaseException] | None, *_unused: object) -> None:
        """Everything is closed; say so, unless something failed on the way."""
        if error_type is None and self.failure is None:
            lengths = {
                # Of a file that nobody opened this time the last word holds.
                **(self._last_closed.lengths if self._last_closed else {}),
                **{name: length() for name, length in self.ends.items()},
                SOURCES_FILE: self.sources.length,
                REGIONS_FILE: self.regions.length,
                ARTIFACTS_FILE: self.artifacts.length,
            }
            write_closed(self.directory, self.system, Closed(lengths, self.audit.head))

    def closed_at(self, name: str) -> int | None:
        """Where a small file ended when the state was last closed in order; None where that is not known."""
        return self._last_closed.lengths.get(name) if self._last_closed else None

    # ---- durability

    def _group_ended(self) -> None:
        """A group was synced; called on the flusher's thread. Whoever waits for it sets ``on_group``."""
        self.on_group()

    @property
    def failure(self) -> StateReadOnly | None:
        """The sync that failed and made the state read-only until it is opened again; None while all is well."""
        return self.system.failure

    def make_durable(self, timeout_s: float | None = None) -> None:
        """
        Wait until everything that was written before this call is on disk.

        Args:
            timeout_s: longest wait in seconds; None for as long as it takes.

        Raises:
            StateReadOnly: a sync failed, or the state was opened for reading only.
            StateFull: no room for it in time; it stays in memory, and is tried again.
            TimeoutError: the disk did not answer in time.
        """
        if self.flusher is None:
            raise StateReadOnly(f"{self.directory} was opened for reading only")
        self.flusher.wait(self.flusher.wrote(urgent=True), timeout_s)

    def until_durable(self) -> Iterator[None]:
        """
        The same for whoever works in steps: yields while what was written before this call is not all on disk.

        Raises:
            StateReadOnly: a sync failed, or the state was opened for reading only.
            StateFull: a sync found no room; the next one tries again.
        """
        if self.flusher is None:
            raise StateReadOnly(f"{self.directory} was opened for reading only")
        before, generation = self.flusher.full, self.flusher.wrote(urgent=True)
        while not self.flusher.durable(generation):
            full = self.flusher.full
            if full is not None and full is not before:
                raise full
            yield

    def _sync_maps(self) -> None:
        for payloads in self.maps.values():
            payloads.sync()

    def _sync_rows(self) -> None:
        for ledger in (self.trade, self.enrichment):
            for rows in list(ledger.mapped().values()):
                if rows.unsynced:
                    rows.flush()

    def _repaired(self, report: Repaired) -> None:
        self.repairs.append(report)
        where = {"ledger": report.ledger.value, "session": report.session}
        for cause, count, what in (
            ("seal", report.seal, "cleared {} cells"),
            ("dangling", report.dangling, "cleared {} cells"),
            ("pending", report.pending, "released {} cells that an earlier process had claimed"),
            ("header", report.headers, "wrote fixed bytes of {} blocks again"),
            ("symbol", report.foreign, "emptied {} blocks of symbols that have no id"),
        ):
            if count:
                self.audit.append_recovery(where, cause, what.format(count))

    def refresh(self) -> None:
        """
        For a reader beside a daemon: take in the symbols, artifacts and sources that came since; cells are always as they are.

        ``scan`` does it by itself. A state that is open for writing knows them all.

        Raises:
            StateError: a file cannot be trusted any more; what was known before stays.
        """
        if not self.readonly:
            return
        directory, system = self.directory, self.system
        with ExitStack() as fresh:
            symbols = SymbolMap.open(directory, system, year=self.year, readonly=True)
            fresh.callback(symbols.close)
            artifacts = ArtifactMap(system, directory / ARTIFACTS_FILE, readonly=True)
            fresh.callback(artifacts.close)
            sources = SourceStore(directory, system, year=self.year, readonly=True)
            fresh.callback(sources.close)
            for old in (self.symbols, self.artifacts, self.sources):
                old.close()
            self.symbols, self.artifacts, self.sources = symbols, artifacts, sources
            self._universes.clear()
            self._parts.push(fresh.pop_all())

    # ---- what is where

    def open_some(self, session_seq: int, until_s: float) -> bool:
        """Map a session of both ledgers a piece at a time; see :meth:`ledger.ledgers.Ledger.open_some`."""
        return self.trade.open_some(session_seq, until_s) and self.enrichment.open_some(session_seq, until_s)

    def open_on(self, until_s: float) -> None:
        """Go on with sessions that are mapped in part, whoever began it."""
        self.trade.open_on(until_s)
        self.enrichment.open_on(until_s)

    @property
    def is_opening(self) -> bool:
        """True while a session is mapped in part."""
        return self.trade.is_opening or self.enrichment.is_opening

    def ledger_of(self, column: Column) -> Ledger:
        """The ledger that holds a column."""
        return self.trade if column.ledger is LedgerKind.TRADE else self.enrichment

    @property
    def artifact_root(self) -> Path:
        """Folder that artifact URIs are relative to."""
        return self.directory / "artifacts"

    @property
    def temporary(self) -> Path:
        """Folder for staged batches and spilled rows; emptied at start."""
        return self.directory / "temporary"

    @property
    def downloads(self) -> Path:
        """Folder for files of remote sources, whole ones and parts; kept over restarts, made when first needed."""
        return self.temporary / "downloads"

    @property
    def feeds(self) -> Path:
        """Folder where feed processes spool rows; kept over restarts, because what is there is in no cell yet."""
        return self.temporary / "feeds"

    def take_start_number(self) -> int:
        """The number of this start, counted up durably at its first use; it makes file names unique for ever."""
        if not self._start_number:
            path = self.directory / START_FILE
            if not path.exists() and len(self.artifacts):
                raise DamagedFile(f"{path} is missing, and artifacts carry its numbers", path=str(path))
            last = int(read_page(path, self.system, "STA")["start"]) if path.exists() else 0
            write_atomically(self.system, path, encode_header("STA", FORMAT_VERSION, {"start": last + 1}))
            self._start_number = last + 1
        return self._start_number

    # ---- symbols

    def allocate(self, symbols: list[str]) -> Allocation:
        """
        Give ids to symbols and to the underlyings of options among them, in order of appearance.

        Returns:
            what was given, durably, and what was refused; see :class:`ledger.symbols.Allocation`.

        Raises:
            AddressError, SpaceError: see :meth:`ledger.symbols.SymbolMap.allocate`; nothing was allocated.
        """
        wanted: list[str] = []
        for symbol in symbols:
            wanted.append(symbol)
            underlying = underlying_of(symbol, self.roots)
            if underlying is not None:
                wanted.append(underlying)
        return self.symbols.allocate(list(dict.fromkeys(wanted)))

    def class_of(self, symbol_id: int) -> SymbolClass:
        """What a symbol is."""
        self._learn_symbols()
        return self._classes[symbol_id]

    def underlying_id(self, symbol_id: int) -> int:
        """The id of an option symbol's underlying; a stock's or index's own id."""
        self._learn_symbols()
        return self._underlyings[symbol_id]

    def _learn_symbols(self) -> None:
        for symbol_id in range(len(self._classes), len(self.symbols)):
            symbol = self.symbols.name(symbol_id)
            self._classes.append(symbol_class(symbol, self.roots))
            underlying = underlying_of(symbol, self.roots)
            found = symbol_id if underlying is None else self.symbols.get(underlying)
            self._underlyings.append(symbol_id if found is None else found)

    def symbol_facts(self) -> tuple[np.ndarray, np.ndarray]:
        """(SymbolClass words, i64 ids of underlyings) of every symbol of the year; read-only arrays by symbol id."""
        self._learn_symbols()
        if len(self._facts[0]) != len(self._classes):
            words = np.array([one.value for one in self._classes], dtype="U8")
            self._facts = words, np.array(self._underlyings, dtype=np.int64)
            for array in self._facts:
                array.flags.writeable = False
        return self._facts

    def universe(self, session: str) -> np.ndarray:
        """
        The universe of a session: symbols with a row of that day in a complete or open source, the underlyings of its
        options, and those that the config spells out.

        Returns:
            i64[n] symbol ids, ascending.
        """
        signature = self.sources.changed(session)
        held = self._universes.get(session)
        if held is None or held[0] != signature:
            underlyings = self.symbol_facts()[1]
            ids = [record.symbol_ids().astype(np.int64) for record in self.sources.for_session(session)]
            named = np.concatenate([*ids, np.zeros(0, dtype=np.int64)])
            found = np.unique(np.concatenate([named, underlyings[named]]))
            found.flags.writeable = False
            held = self._universes[session] = (signature, found)
        return held[1]

    # ---- rows for users

    def scan(self, column: str, symbols: Any = None, sessions: Any = None) -> polars.LazyFrame:
        """Exactly the rows that the cells of a column name; see :func:`ledger.frames.scan`."""
        from ledger.frames import scan

        return scan(self, Column(column), symbols=symbols, sessions=sessions)

    def join_aggregates(self, frame: Any, column: str, **how: Any) -> polars.LazyFrame:
        """Rows with the aggregates that were available at their time; see :func:`ledger.asof.join_aggregates`."""
        from ledger.asof import join_aggregates

        return join_aggregates(self, frame, column, **how)

    # ---- closing

    def close(self) -> None:
        """
        Sync and close everything in the reverse order of opening, then let the lock go, whatever fails; twice is fine.

        Raises:
            SpaceError: something could not be synced; not raised again for a sync that failed before.
        """
        if self.flusher is not None:
            self.flusher.stop()
        failed_before = self.failure is not None
        try:
            self._parts.close()
        except SpaceError:
            if not failed_before:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.close()


def read_page(path: Path, system: System, kind: str) -> dict[str, Any]:
    """
    The facts of a file that is one header page.

    Raises:
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
    """
    data = read_whole(system, path) or b""
    facts = decode_header(data, kind, FORMAT_VERSION, path)
    if len(data) != HEADER_BYTES:
        raise DamagedFile(f"{path}: {len(data)} bytes, expected {HEADER_BYTES}: it was extended", path=str(path))
    return facts


def open_state(
    directory: str | os.PathLike[str],
    *,
    readonly: bool = False,
    system: System | None = None,
    flush_interval_s: float = 1.0,
    roots: RootTable | None = None,
    lock: bool | None = None,
) -> State:
    """
    Open a state directory.

    Args:
        directory: the state directory, such as ``ledger.state``.
        readonly: read beside a daemon, without the lock; nothing is repaired or written.
        system: the operating system, or a test's.
        flush_interval_s: how long something may stay unsynced when nobody waits for it.
        roots: the root table, the packaged one by default.
        lock: take the directory's lock; by default where ``readonly`` is false. A checker reads only, but alone.

    Raises:
        StateMissing, StateLocked, StateMismatch, NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile.
    """
    path = Path(directory)
    if not path.is_dir():
        raise StateMissing(f"{path} is not a directory")
    return State(
        path,
        system or System(),
        readonly=readonly,
        lock=not readonly if lock is None else lock,
        flush_interval_s=flush_interval_s,
        roots=roots,
    )


def check_matches(state: State, *, year: int, exchange: str, option_rows: OptionRows) -> None:
    """
    Refuse a config that does not fit the disk.

    Raises:
        StateMismatch: names what differs and both values.
    """
    pairs = (
        ("calendar.year", year, state.year),
        ("calendar.exchange", exchange, state.exchange),
        ("option_rows", option_rows.value, state.option_rows.value),
    )
    for name, wanted, found in pairs:
        if wanted != found:
            raise StateMismatch(f"the config says {name} = {wanted!r}, {state.directory} was made with {found!r}")
