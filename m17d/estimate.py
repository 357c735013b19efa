"""
Check-config and its estimate: what a config would do, before it does it.

Files are looked at, never read through; rows and hours are guesses from bytes, and say so. This module must never make
or change a state directory.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.contract import Engine
from ledger.calendar import Calendar, load_calendar, make_calendar
from ledger.columns import SYMBOLS_MAX, Dataset
from ledger.files import System
from ledger.layout import BLOCK_BYTES
from ledger.roots import RootTable
from m17d.config import Config, ConfigError
from m17d.discovery import build
from m17d.listening import check_socket_path

_ROWS_PER_BYTE: Final = {
    Dataset.STOCK_TRADES: 1 / 13.0,
    Dataset.STOCK_QUOTES: 1 / 14.0,
    Dataset.OPTION_TRADES: 1 / 11.0,
    Dataset.OPTION_QUOTES: 1 / 13.0,
}
"""Rows per byte of gzip, from real files of each dataset."""
_ARTIFACT_PER_BYTE: Final = 1.0
_ROWS_PER_S: Final = 1_000_000
"""Rows a worker reads, orders and writes in a second, on a slow core."""


@dataclass(frozen=True, slots=True)
class _Found:
    engine: str
    dataset: Dataset
    session: str
    path: Path
    size: int


def check(config: Config) -> list[str]:
    """
    Lines that say what would run; raises where it would not.

    Raises:
        ConfigError: an engine or key is wrong.
        ListeningError: the socket path cannot be used.
        StateError: the exchange has no calendar for the year, or the root table is damaged.
    """
    engines = build(config)
    if config.roots:
        RootTable.load(config.path(config.roots))
    check_socket_path(config.socket_path)
    calendar = _calendar(config)
    lines = [
        f"state      {config.state_path}" + ("" if (config.state_path / "format").exists() else " (will be made)"),
        f"calendar   {config.calendar.exchange} {config.calendar.year}: {calendar.session_count} sessions",
        f"options    {config.option_rows.value} rows",
        f"socket     {config.socket_path}",
        f"workers    {config.workers}",
    ]
    for name, engine in engines.items():
        sessions = _sessions(engine, calendar)
        lines.append(f"engine     {name}: {', '.join(engine.writes) or 'fills no column'}" + _span(sessions))
        source = getattr(engine, "source", None)
        if isinstance(source, Path) and not source.exists():
            raise ConfigError(f"[engines.{name}]: source {source} does not exist", "correct the path")
    if not engines:
        lines.append("engine     none: the daemon would only serve what is there")
    return lines


def _calendar(config: Config) -> Calendar:
    if (config.state_path / "calendar").exists():
        return load_calendar(config.state_path, System())
    return make_calendar(config.calendar.exchange, config.calendar.year)


def _span(sessions: list[str]) -> str:
    if not sessions:
        return ""
    return f"; {len(sessions)} session{'s' if len(sessions) > 1 else ''}, {sessions[0]} to {sessions[-1]}"


def _sessions(engine: Engine, calendar: Calendar) -> list[str]:
    """
    Sessions that a flat-file engine's config names; all of the year where it names none. Checks that they exist.

    An engine whose ``sessions`` is something else, such as how many it looks at, names none.
    """
    config: Any = getattr(engine, "config", None)
    if not isinstance(getattr(config, "sessions", 0), list | tuple | None):
        return []
    if config.sessions is not None:
        for session in config.sessions:
            calendar.session_seq(session)
        return sorted(set(config.sessions))
    every = [calendar.date(seq) for seq in range(calendar.session_count)]
    first, last = getattr(config, "from_", None), getattr(config, "to", None)
    return [one for one in every if (first is None or one >= first) and (last is None or one <= last)]


def estimate_work(config: Config) -> list[str]:
    """Lines that say how many files, bytes, rows, how much disk and how many hours the config means."""
    calendar = _calendar(config)
    found: list[_Found] = []
    missing = 0
    for name, engine in build(config).items():
        source = getattr(engine, "source", None)
        if not isinstance(source, Path):
            continue
        for session in _sessions(engine, calendar):
            for dataset in _datasets(engine):
                path = source / dataset.value / session[:4] / session[5:7] / f"{session}.csv.gz"
                if path.exists():
                    found.append(_Found(name, dataset, session, path, path.stat().st_size))
                else:
                    missing += 1
    size = sum(one.size for one in found)
    rows = sum(one.size * _ROWS_PER_BYTE[one.dataset] for one in found)
    symbols = min(SYMBOLS_MAX, max(1, int(rows / 2000)))
    sessions = len({one.session for one in found})
    blocks = sessions * symbols * sum(BLOCK_BYTES.values())
    disk = int(size * _ARTIFACT_PER_BYTE) + blocks
    hours = rows / _ROWS_PER_S / max(1, config.workers - 1) / 3600
    parent = config.state_path
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    lines = [
        f"files      {len(found)} there, {missing} not there",
        f"bytes      {_bytes(size)} of gzip to read",
        f"rows       about {rows:,.0f}",
        f"disk       about {_bytes(disk)} (artifacts {_bytes(size)}, rows {_bytes(blocks)}); {_bytes(free)} free",
        f"time       about {hours:.2f} hours on {config.workers} workers of {os.cpu_count()} cores",
    ]
    if disk > free:
        lines.append("warning    the disk is too small for this")
    return lines


def _datasets(engine: Engine) -> tuple[Dataset, ...]:
    return tuple(dataset for dataset in _ROWS_PER_BYTE if dataset.column in engine.writes)


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
