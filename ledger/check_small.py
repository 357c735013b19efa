"""
The checker's look at the small files, as they are on disk: each is read anew, whatever is held of it in memory.

This module must never write anything, nor know a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ledger.calendar import FILE_NAME as CALENDAR_FILE
from ledger.calendar import load_calendar
from ledger.creation import ARTIFACTS_FILE, FORMAT_FILE, START_FILE
from ledger.documents import (
    KEYS_FILE,
    KEYS_KIND,
    KEYS_VERSION,
    MARK_KIND,
    PAUSED_FILE,
    PAUSED_KIND,
    read_document,
)
from ledger.errors import AddressError, LedgerError
from ledger.files import TEMPORARY_SUFFIX
from ledger.findings import RESTORE, Checked
from ledger.framed import FramedFile
from ledger.maps import ArtifactMap
from ledger.regions import FILE_NAME as REGIONS_FILE
from ledger.regions import RegionStore
from ledger.sources import FILE_NAME as SOURCES_FILE
from ledger.sources import SourceStore
from ledger.state import State, read_page
from ledger.symbols import FILE_NAME as SYMBOLS_FILE
from ledger.symbols import SymbolMap
from ledger.undo import OPEN_FOLDER, UndoReader, list_undo, undo_path

_CUT: Final = "open the state once; the tail is cut. Or restore it from a backup"


def check_small_files(state: State, checked: Checked) -> Iterator[None]:
    """Everything but rows, records and artifacts; yields between short steps."""
    directory, system, year = state.directory, state.system, state.year

    def look(path: Path, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except LedgerError as error:
            checked.find(error.code, str(error), str(path), error.hint or RESTORE)
            return None

    look(directory / FORMAT_FILE, lambda: read_page(directory / FORMAT_FILE, system, "FMT"))
    if (directory / START_FILE).exists():
        look(directory / START_FILE, lambda: read_page(directory / START_FILE, system, "STA"))
    calendar = look(directory / CALENDAR_FILE, lambda: load_calendar(directory, system))
    if calendar is not None and calendar.fingerprint != state.calendar.fingerprint:
        checked.find("calendar", "the calendar is another's", str(directory / CALENDAR_FILE), RESTORE)
    symbols = look(directory / SYMBOLS_FILE, lambda: SymbolMap.open(directory, system, year=year, readonly=True))
    if symbols is not None and symbols.names() != state.symbols.names():
        checked.find("symbol", "the symbols on disk differ from those in use", str(symbols.path), RESTORE)
    yield
    stores: tuple[tuple[Path, Callable[[], Any]], ...] = (
        (directory / SYMBOLS_FILE, lambda: symbols),
        (directory / SOURCES_FILE, lambda: SourceStore(directory, system, year=year, readonly=True)),
        (directory / REGIONS_FILE, lambda: RegionStore(directory, system, year=year, readonly=True)),
        (directory / ARTIFACTS_FILE, lambda: ArtifactMap(system, directory / ARTIFACTS_FILE, readonly=True)),
        (directory / KEYS_FILE, lambda: _keys(state)),
    )
    for path, opened in stores:
        store = look(path, opened)
        if store is not None and store.torn_bytes:
            text = f"its last {store.torn_bytes} bytes are no record: a crash tore it, or they changed"
            checked.find("torn", text, str(path), _CUT)
        yield
    look(directory / PAUSED_FILE, lambda: read_document(system, directory / PAUSED_FILE, PAUSED_KIND))
    for mark in system.list_directory(directory / OPEN_FOLDER):
        path = directory / OPEN_FOLDER / mark
        if not mark.endswith(TEMPORARY_SUFFIX):
            look(path, lambda path=path: read_document(system, path, MARK_KIND))  # type: ignore[misc]
    yield
    for operation in list_undo(directory, system):
        try:
            with UndoReader(directory, system, operation) as reader:
                yield from reader.check()
        except AddressError:
            continue  # forgotten meanwhile
        except LedgerError as error:
            checked.find(error.code, str(error), str(undo_path(directory, operation)), error.hint or RESTORE)
        yield
    for broken in state.audit.verify():
        where = f"{state.audit.folder / broken.file} line {broken.line}"
        checked.find("audit", f"the line {broken.reason}", where, "keep the log; an edit of it cannot be undone")
    yield


def _keys(state: State) -> FramedFile:
    """The answers that a daemon remembers; where they ended is known while nobody has the state open for writing."""
    closed = state.closed_at(KEYS_FILE) if state.readonly else None
    facts = {"year": state.year}
    path = state.directory / KEYS_FILE
    return FramedFile.open(state.system, path, KEYS_KIND, KEYS_VERSION, facts, readonly=True, closed=closed)[0]
