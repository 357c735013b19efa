"""
Creation: a state directory for one year of one exchange, made whole or begun again.

The file ``format`` comes last: a directory without it is no state. A marker comes first, and says that the making was
interrupted, so that the next call goes on instead of refusing a directory that is not empty. This module must never touch
a directory that holds anything else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from ledger.calendar import FILE_NAME as CALENDAR_FILE
from ledger.calendar import Calendar, make_calendar
from ledger.columns import SYMBOLS_MAX, OptionRows, PayloadKind
from ledger.errors import StateExists
from ledger.files import System, encode_header, write_atomically
from ledger.layout import FORMAT_VERSION, ROW_SCHEMA_VERSION, SEAL_CONSTANTS
from ledger.maps import ArtifactMap, PayloadMap
from ledger.regions import FILE_NAME as REGIONS_FILE
from ledger.regions import RegionStore
from ledger.sources import FILE_NAME as SOURCES_FILE
from ledger.sources import SourceStore
from ledger.symbols import FILE_NAME as SYMBOLS_FILE
from ledger.symbols import SymbolMap

FORMAT_FILE: Final = "format"
START_FILE: Final = "maps/start"
ARTIFACTS_FILE: Final = "maps/artifacts.map"
FOLDERS: Final = ("trade", "enrichment", "maps", "audit", "audit/undo", "artifacts", "temporary")
UNVERIFIED_FILE: Final = "backup.incomplete"
"""While it is there the directory is a copy that was not finished, or not verified."""
BEGUN_FILE: Final = "creation.incomplete"
"""While it is there, and no ``format``, the making was interrupted."""


def create_state(
    directory: str | os.PathLike[str],
    *,
    year: int,
    exchange: str = "XNYS",
    option_rows: OptionRows = OptionRows.CHAIN,
    symbols: Sequence[str] = (),
    system: System | None = None,
) -> None:
    """
    Make a state directory for one year of one exchange; after a failure, or a crash, the same call begins again.

    Args:
        directory: new, or empty.
        year, exchange: whose sessions.
        option_rows: how option tickers become symbols.
        symbols: those that get their ids at once, in this order.
        system: the operating system, or a test's.

    Raises:
        StateExists: something is already there.
        StateError: the exchange or year has no calendar.
        SpaceError: the file system refused.
    """
    system, path = system or System(), Path(directory)
    names = system.list_directory(path)
    if FORMAT_FILE in names:
        raise StateExists(f"{path} already holds a state")
    if names and BEGUN_FILE not in names:
        raise StateExists(f"{path} is not empty, and holds no state", hint="choose an empty or new directory")
    calendar = make_calendar(exchange, year)
    for folder in (*reversed(path.absolute().parents), path):
        if not folder.exists():
            system.make_directory(folder)
    system.close(system.open(path / BEGUN_FILE, os.O_RDWR | os.O_CREAT))
    system.fsync_directory(path)
    for folder in (path / name for name in FOLDERS):
        system.make_directory(folder)
    _make_files(path, system, calendar, symbols)
    facts = {
        "exchange": exchange,
        "year": year,
        "option_rows": option_rows.value,
        "symbols_max": SYMBOLS_MAX,
        "row_schema_version": ROW_SCHEMA_VERSION,
        "seal_constants": [f"{constant:#018x}" for constant in SEAL_CONSTANTS],
        "calendar_fingerprint": f"{calendar.fingerprint:#018x}",
    }
    write_atomically(system, path / FORMAT_FILE, encode_header("FMT", FORMAT_VERSION, facts))
    system.unlink(path / BEGUN_FILE)


def _make_files(path: Path, system: System, calendar: Calendar, symbols: Sequence[str]) -> None:
    """Every file that a state has from its begin, so that what is missing later was lost, and is refused."""
    kinds = [kind for kind in PayloadKind if kind is not PayloadKind.NONE]
    files = (CALENDAR_FILE, SOURCES_FILE, REGIONS_FILE, SYMBOLS_FILE, ARTIFACTS_FILE, START_FILE)
    for name in (*files, *(f"maps/{kind.word}.map" for kind in kinds)):
        if (path / name).exists():
            system.unlink(path / name)
    calendar.save(path, system)
    ArtifactMap(system, path / ARTIFACTS_FILE).close()
    SourceStore(path, system, year=calendar.year).close()
    RegionStore(path, system, year=calendar.year).close()
    with closing(SymbolMap.create(path, system, year=calendar.year)) as made:
        made.allocate(symbols)
    for kind in kinds:
        PayloadMap(system, path / "maps" / f"{kind.word}.map", kind, readonly=False).close()
    write_atomically(system, path / START_FILE, encode_header("STA", FORMAT_VERSION, {"start": 0}))
