"""
One object opens and closes the state directory: the lock, the calendar, symbols, maps, both ledgers and the logs.

``create_state`` makes a directory, ``open_state`` opens one for writing (under an exclusive lock) or, lock-free, for
reading beside a daemon. This module must never interpret what is in a cell.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from ledger.audit import AuditLog, own_operator
from ledger.calendar import Calendar, load_calendar, make_calendar
from ledger.columns import SYMBOLS_MAX, Column, LedgerKind, OptionRows, PayloadKind, SymbolClass
from ledger.errors import (
    DamagedFile,
    SpaceError,
    StateExists,
    StateLocked,
    StateMismatch,
    StateMissing,
    StateReadOnly,
)
from ledger.files import System, decode_header, encode_header, read_whole, write_atomically
from ledger.flush import Flusher
from ledger.gate import gated
from ledger.layout import FORMAT_VERSION, ROW_SCHEMA_VERSION, SEAL_CONSTANTS
from ledger.ledgers import EnrichmentLedger, Ledger, TradeLedger
from ledger.maps import ArtifactMap, PayloadMap
from ledger.recovery import Repaired
from ledger.regions import RegionStore
from ledger.roots import RootTable, symbol_class, underlying_of
from ledger.sources import SourceStore
from ledger.symbols import Allocation, SymbolMap

if TYPE_CHECKING:
    import polars

_FOLDERS: Final = ("trade", "enrichment", "maps", "audit", "audit/undo", "artifacts", "temporary")
_START_FILE: Final = "maps/start"


def create_state(
    directory: str | os.PathLike[str],
    *,
    year: int,
    exchange: str = "XNYS",
    option_rows: OptionRows = OptionRows.CHAIN,
    system: System | None = None,
) -> None:
    """
    Make a state directory for one year of one exchange.

    Raises:
        StateExists: something is already there.
        StateError: the exchange or year has no calendar.
        SpaceError: the file system refused.
    """
    system, path = system or System(), Path(directory)
    if (path / "format").exists():
        raise StateExists(f"{path} already holds a state")
    if path.exists() and any(path.iterdir()):
        raise StateExists(f"{path} is not empty, and holds no state", hint="choose an empty or new directory")
    calendar = make_calendar(exchange, year)
    path.mkdir(parents=True, exist_ok=True)
    for folder in _FOLDERS:
        system.make_directory(path / folder)
    calendar.save(path, system)
    # Everything is made here, so that what is missing later was lost, and is refused.
    ArtifactMap(system, path / "maps" / "artifacts.map").close()
    SourceStore(path, system, year=year).close()
    RegionStore(path, system, year=year).close()
    SymbolMap.create(path, system, year=year).close()
    for kind in PayloadKind:
        if kind is not PayloadKind.NONE:
            PayloadMap(system, path / "maps" / f"{kind.word}.map", kind, readonly=False).close()
    facts = {
        "exchange": exchange,
        "year": year,
        "option_rows": option_rows.value,
        "symbols_max": SYMBOLS_MAX,
        "row_schema_version": ROW_SCHEMA_VERSION,
        "seal_constants": [f"{constant:#018x}" for constant in SEAL_CONSTANTS],
        "calendar_fingerprint": f"{calendar.fingerprint:#018x}",
    }
    # Written last: a directory without it is no state yet.
    write_atomically(system, path / "format", encode_header("FMT", FORMAT_VERSION, facts))


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
        self.sound_artifacts: dict[str, tuple[int, int, int]] = {}
        """Artifacts whose bytes were summed and found right: URI -> inode, size, mtime; kept by ledger.frames."""
        self._allocating = threading.Lock()
        with ExitStack() as opened:
            if lock:
                opened.callback(os.close, _lock(directory))
            self._open(flush_interval_s, roots, opened)
            self._parts = opened.pop_all()

    def _open(self, flush_interval_s: float, roots: RootTable | None, opened: ExitStack) -> None:
        directory, system, readonly = self.directory, self.system, self.readonly
        page = read_whole(system, directory / "format")
        if page is None:
            raise StateMissing(f"{directory} holds no state (no file named format)")
        self.format: dict[str, Any] = decode_header(page, "FMT", FORMAT_VERSION, directory / "format")
        self.year = int(self.format["year"])
        self.exchange = str(self.format["exchange"])
        self.option_rows = OptionRows(self.format["option_rows"])
        self.calendar: Calendar = load_calendar(directory, system)
        if f"{self.calendar.fingerprint:#018x}" != self.format.get("calendar_fingerprint"):
            raise DamagedFile(f"{directory / 'calendar'} is not the calendar this state was made with")
        self.roots = roots or RootTable.load()
        for name in ("maps/artifacts.map", "sources", "regions"):
            if not (directory / name).exists():
                raise DamagedFile(f"{directory / name} is missing", path=str(directory / name))
        self.symbols = SymbolMap.open(directory, system, year=self.year, readonly=readonly)
        opened.callback(self.symbols.close)
        self.maps: dict[PayloadKind, PayloadMap] = {}
        for kind in PayloadKind:
            if kind is not PayloadKind.NONE:
                path = directory / "maps" / f"{kind.word}.map"
                self.maps[kind] = PayloadMap(system, path, kind, readonly=readonly, create=False)
                opened.callback(self.maps[kind].close)
        self.artifacts = ArtifactMap(system, directory / "maps" / "artifacts.map", readonly=readonly)
        opened.callback(self.artifacts.close)
        self.sources = SourceStore(directory, system, year=self.year, readonly=readonly)
        opened.callback(self.sources.close)
        self.regions = RegionStore(directory, system, year=self.year, readonly=readonly)
        opened.callback(self.regions.close)
        self.audit = AuditLog(directory, system, readonly=readonly)
        opened.callback(self.audit.close)
        for payloads in self.maps.values():
            if payloads.torn_records:
                result = f"voided {payloads.torn_records} half-written records"
                where = {"file": f"maps/{payloads.path.name}"}
                self.audit.append("recovery", own_operator(), where=where, cause="torn record", result=result)
        arguments = (self.calendar, self.maps)
        self.trade = TradeLedger(system, directory / "trade", *arguments, readonly=readonly, on_repair=self._repaired)
        opened.callback(self.trade.close)
        self.enrichment = EnrichmentLedger(
            system, directory / "enrichment", *arguments, readonly=readonly, on_repair=self._repaired
        )
        opened.callback(self.enrichment.close)
        self._classes: list[SymbolClass] = []
        self._underlyings: list[int] = []
        self._universes: dict[str, tuple[tuple[int, int], np.ndarray]] = {}
        self._start_number = 0
        self.on_group: Any = lambda: None
        self.flusher: Flusher | None = None
        if not readonly:
            self.flusher = Flusher(
                self._sync_maps, self._sync_rows, interval_s=flush_interval_s, on_group=self._group_ended
            )

    # ---- durability

    def _group_ended(self) -> None:
        """A group was synced; called on the flusher's thread. Whoever waits for it sets ``on_group``."""
        self.on_group()

    @property
    def failure(self) -> StateReadOnly | None:
        """The sync that failed and made the state read-only until it is opened again; None while all is well."""
        return self.system.failure

    def _sync_maps(self) -> None:
        with self._allocating:
            self.symbols.flush()
        for payloads in self.maps.values():
            payloads.sync()

    def _sync_rows(self) -> None:
        for ledger in (self.trade, self.enrichment):
            for rows in list(ledger.mapped().values()):
                if rows.unsynced:
                    rows.flush()

    def _repaired(self, report: Repaired) -> None:
        self.repairs.append(report)
        for cause, cells in (("seal", report.seal), ("dangling", report.dangling)):
            if cells:
                self.audit.append_recovery(report.ledger.value, report.session, cause, cells)

    # ---- what is where

    def ledger_of(self, column: Column) -> Ledger:
        """The ledger that holds a column."""
        return self.trade if column.ledger is LedgerKind.TRADE else self.enrichment

    @property
    def artifact_root(self) -> Path:
        """Folder that artifact URIs are relative to."""
        return self.directory / "artifacts"

    @property
    def temporary(self) -> Path:
        """Folder for staged batches, spilled rows and downloads; emptied at start."""
        return self.directory / "temporary"

    def take_start_number(self) -> int:
        """The number of this start, counted up durably at its first use; it makes file names unique for ever."""
        if not self._start_number:
            path = self.directory / _START_FILE
            data = read_whole(self.system, path)
            last = int(decode_header(data, "STA", FORMAT_VERSION, path)["start"]) if data else 0
            write_atomically(self.system, path, encode_header("STA", FORMAT_VERSION, {"start": last + 1}))
            self._start_number = last + 1
        return self._start_number

    # ---- symbols

    def allocate(self, symbols: list[str]) -> Allocation:
        """
        Give ids to symbols and to the underlyings of options among them, in order of appearance.

        Returns:
            what was given and what was refused; see :class:`ledger.symbols.Allocation`.
        """
        wanted: list[str] = []
        for symbol in symbols:
            wanted.append(symbol)
            underlying = underlying_of(symbol, self.roots)
            if underlying is not None:
                wanted.append(underlying)
        # Not while the flusher syncs the map: it would take what is written meanwhile for synced.
        with self._allocating:
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

    def universe(self, session: str) -> np.ndarray:
        """
        The universe of a session: symbols with a row of that day in a complete or open source, the underlyings of its
        options, and those that the config spells out.

        Returns:
            i64[n] symbol ids, ascending.
        """
        signature = (self.sources.generation, len(self.symbols))
        held = self._universes.get(session)
        if held is None or held[0] != signature:
            ids: set[int] = set()
            for record in self.sources.for_session(session):
                for symbol_id in record.symbol_ids().tolist():
                    ids.add(symbol_id)
                    ids.add(self.underlying_id(symbol_id))
            found = np.array(sorted(ids), dtype=np.int64)
            found.flags.writeable = False
            held = self._universes[session] = (signature, found)
        return held[1]

    # ---- rows for users

    def scan(self, column: str, symbols: Any = None, sessions: Any = None) -> polars.LazyFrame:
        """Exactly the rows that the cells of a column name; see :func:`ledger.frames.scan`."""
        from ledger.frames import scan

        return scan(self, Column(column), symbols=symbols, sessions=sessions)

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

    def __exit__(self, *unused: object) -> None:
        self.close()


def _lock(directory: Path) -> int:
    """Take the directory's lock, or say who holds it. On the directory itself, because a lock file can be unlinked."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StateMissing(f"{directory} does not exist") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(os.fstat(descriptor))
        os.close(descriptor)
        raise StateLocked(f"{directory} is held by {holder}", directory=str(directory)) from error
    return descriptor


def _holder(status: os.stat_result) -> str:
    """Which process holds the flock of a file, from /proc/locks."""
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return "another process"
    for line in lines:
        fields = line.split()
        if "FLOCK" in fields and place in fields:
            pid = fields[4]
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                name = ""
            return f"process {pid}" + (f" ({name})" if name else "")
    return "another process"


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
