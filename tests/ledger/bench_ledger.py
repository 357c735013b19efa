"""
Benchmark: the ledger's own figures, each beside what it is measured against, in turns.

SQLite and LMDB hold the same slots under (symbol, minute) and the same records under their ids, with the same
comparisons; memcpy copies the same rows. Every figure is the ratio of the medians of five rounds.
"""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np

from ledger.columns import Column, PayloadKind, Source, Status
from ledger.content import checksum_of, mix, no_rows_hash
from ledger.layout import SLOT_STRUCT, TRADE_ROW
from ledger.records import NO_ROWS_ID, blank
from ledger.rows import SessionRows
from ledger.state import State, create_state, open_state

NAMES: Final = (
    "set_cas_vs_sqlite",
    "set_cas_vs_lmdb",
    "commit_vs_sqlite",
    "commit_vs_lmdb",
    "fill_vs_memcpy",
    "ready_vs_sqlite",
    "ready_vs_rows",
    "restart_growth",
)
ROUNDS: Final = 5
SESSION: Final = "2013-10-07"
CAS_CELLS: Final = 20_000
COMMIT_CELLS: Final = 100_000
COMMIT_BATCH: Final = 1_000
SYMBOLS: Final = 10_000
MINUTES: Final = 390
FULL_SESSIONS: Final = 20
FULL_SYMBOLS: Final = 100
KIND: Final = PayloadKind.TRADE
SLOT: Final = struct.Struct(SLOT_STRUCT)
KEY: Final = struct.Struct(">HI")


def measure() -> list[dict[str, Any]]:
    """All eight figures: name, value, unit, reach, ok, detail (both sides, medians of five)."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        path = Path(folder)
        return [*_cas(path / "cas"), *_commit(path / "commit"), *_day(path / "day"), _restart(path / "restart")]


def _figure(name: str, value: float, reach: float, detail: dict[str, Any], *, most: bool = False) -> dict[str, Any]:
    ok = value <= reach if most else value >= reach
    return {"name": name, "value": value, "unit": "ratio", "reach": reach, "ok": ok, "detail": detail}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _medians(*sides: Callable[[], float]) -> list[float]:
    """Median seconds of each side, measured in turns, so that a slow moment of the machine hits all of them."""
    taken = [[side() for side in sides] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


@contextmanager
def _state(directory: Path, **named: Any) -> Iterator[State]:
    create_state(directory, year=2013)
    with open_state(directory, **named) as state:
        yield state


# ---- one checked slot write


def _cas(folder: Path) -> list[dict[str, Any]]:
    """One compare-and-swap through the public setter; SQLite autocommit (WAL, NORMAL), LMDB one transaction (nosync)."""
    folder.mkdir()
    every = [(symbol, minute) for symbol in range(500) for minute in range(MINUTES)]
    cells = random.Random(17).sample(every, CAS_CELLS)
    database = _sqlite(folder / "cas.sqlite", "NORMAL")
    database.executemany(
        "INSERT INTO slots VALUES (?, ?, 2, 0, 0)", [(symbol, minute) for symbol in range(500) for minute in range(390)]
    )
    environment = lmdb.open(str(folder / "lmdb"), map_size=1 << 30, sync=False, metasync=False)
    with environment.begin(write=True) as transaction:
        for cell in cells:
            transaction.put(KEY.pack(*cell), SLOT.pack(2, 2, 3, 0, 0, 0, 0, 0, 0, 0))
    with _state(folder / "ledger.state", flush_interval_s=3600) as state:
        first = state.calendar.session_seq(SESSION) * MINUTES
        state.trade.session(first // MINUTES).reserve(np.arange(500))
        windows = [(symbol, first + minute) for symbol, minute in cells]
        ours, sqlites, lmdbs = ([0] * CAS_CELLS for _ in range(3))

        def through_ledger() -> float:
            setter = state.trade.set_trade_ref
            started = time.perf_counter()
            for at, (symbol, minute_idx) in enumerate(windows):
                version = ours[at]
                ours[at] = setter(
                    symbol, minute_idx, KIND, 7, version + 1, source=Source.FLAT_FILE, expected_version=version
                )
            return time.perf_counter() - started

        def through_sqlite() -> float:
            sql = "UPDATE slots SET version = version + 1, checksum = ? WHERE symbol = ? AND minute = ? AND version = ?"
            started = time.perf_counter()
            for at, (symbol, minute) in enumerate(cells):
                version = sqlites[at]
                if database.execute(sql, (version + 1, symbol, minute, version)).rowcount != 1:
                    raise AssertionError("SQLite lost a version")
                sqlites[at] = version + 1
            return time.perf_counter() - started

        def through_lmdb() -> float:
            started = time.perf_counter()
            for at, (symbol, minute) in enumerate(cells):
                version, key = lmdbs[at], KEY.pack(symbol, minute)
                with environment.begin(write=True) as transaction:
                    if SLOT.unpack(transaction.get(key))[5] != version:
                        raise AssertionError("LMDB lost a version")
                    slot = SLOT.pack(2, 2, 3, 0, 7, version + 1, version + 1, time.time_ns(), 0, 0)
                    transaction.put(key, slot)
                lmdbs[at] = version + 1
            return time.perf_counter() - started

        ledger_s, sqlite_s, lmdb_s = _medians(through_ledger, through_sqlite, through_lmdb)
    database.close()
    environment.close()
    detail = {
        "ledger_sets_per_s": round(CAS_CELLS / ledger_s),
        "sqlite_sets_per_s": round(CAS_CELLS / sqlite_s),
        "lmdb_sets_per_s": round(CAS_CELLS / lmdb_s),
    }
    return [
        _figure("set_cas_vs_sqlite", sqlite_s / ledger_s, 5, detail),
        _figure("set_cas_vs_lmdb", lmdb_s / ledger_s, 1.5, detail),
    ]


def _sqlite(path: Path, synchronous: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(f"PRAGMA synchronous = {synchronous}")
    columns = "symbol INTEGER, minute INTEGER, status INTEGER, version INTEGER, checksum INTEGER"
    database.execute(f"CREATE TABLE slots ({columns}, PRIMARY KEY (symbol, minute)) WITHOUT ROWID")
    database.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, body BLOB)")
    return database


# ---- batches to durable


def _commit(folder: Path) -> list[dict[str, Any]]:
    """
    100,000 cells in batches of 1,000, from arrays to durable, records encoded inside the clock.

    SQLite (WAL, FULL) and LMDB (sync) commit each batch before the next, because their callers wait there. The ledger
    is used as the daemon uses it: a batch is handed over and becomes durable with its group; the clock stops when the
    last one is. No cell is set before its record is durable.
    """
    folder.mkdir()
    content = mix(np.arange(COMMIT_CELLS, dtype=np.uint64))
    symbols, minutes = np.divmod(np.arange(COMMIT_CELLS), MINUTES)
    with _state(folder / "ledger.state") as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        rows.reserve(np.unique(symbols))
        rounds = {"ledger": 0, "sqlite": 0, "lmdb": 0}

        def through_ledger() -> float:
            rounds["ledger"] += 1
            return _seconds(
                lambda: _commit_ledger(state, rows, symbols, minutes, content + np.uint64(rounds["ledger"]))
            )

        def through_sqlite() -> float:
            rounds["sqlite"] += 1
            path = folder / f"{rounds['sqlite']}.sqlite"
            database = _sqlite(path, "FULL")
            taken = _seconds(lambda: _commit_sqlite(database, symbols, minutes, content))
            database.close()
            return taken

        def through_lmdb() -> float:
            rounds["lmdb"] += 1
            environment = lmdb.open(str(folder / f"lmdb{rounds['lmdb']}"), map_size=1 << 30, max_dbs=2)
            taken = _seconds(lambda: _commit_lmdb(environment, symbols, minutes, content))
            environment.close()
            return taken

        ledger_s, sqlite_s, lmdb_s = _medians(through_ledger, through_sqlite, through_lmdb)
    detail = {
        "ledger_cells_per_s": round(COMMIT_CELLS / ledger_s),
        "sqlite_cells_per_s": round(COMMIT_CELLS / sqlite_s),
        "lmdb_cells_per_s": round(COMMIT_CELLS / lmdb_s),
        "note": "the ledger's batches become durable in groups; SQLite FULL and LMDB sync each batch",
    }
    return [
        _figure("commit_vs_sqlite", sqlite_s / ledger_s, 10, detail),
        _figure("commit_vs_lmdb", lmdb_s / ledger_s, 3, detail),
    ]


def _encoded(content: np.ndarray) -> np.ndarray:
    records = blank(KIND, len(content))
    records["content_hash"] = content
    records["source"] = int(Source.FLAT_FILE)
    records["record_count"] = 1
    return records


def _commit_ledger(
    state: State, rows: SessionRows, symbols: np.ndarray, minutes: np.ndarray, content: np.ndarray
) -> None:
    flusher, payloads = state.flusher, state.maps[KIND]
    assert flusher is not None
    waiting: list[tuple[int, slice, int]] = []
    for start in range(0, COMMIT_CELLS, COMMIT_BATCH):
        part = slice(start, start + COMMIT_BATCH)
        first = payloads.append(_encoded(content[part]))
        waiting.append((flusher.wrote(urgent=True), part, first))
        while waiting and flusher.maps_durable(waiting[0][0]):
            _set_batch(rows, symbols, minutes, content, *waiting.pop(0)[1:])
    for generation, part, first in waiting:
        while not flusher.maps_durable(generation):
            time.sleep(0.0001)
        _set_batch(rows, symbols, minutes, content, part, first)
    last = flusher.wrote(urgent=True)
    while not flusher.durable(last):
        time.sleep(0.0001)


def _set_batch(
    rows: SessionRows, symbols: np.ndarray, minutes: np.ndarray, content: np.ndarray, part: slice, first: int
) -> None:
    ids = np.arange(first, first + COMMIT_BATCH)
    sums = checksum_of(content[part])
    rows.set_many(
        Column.TRADE_REF, symbols[part], minutes[part], ids, sums, source=Source.FLAT_FILE, now_ns=rows.now_ns()
    )


def _commit_sqlite(database: sqlite3.Connection, symbols: np.ndarray, minutes: np.ndarray, content: np.ndarray) -> None:
    for start in range(0, COMMIT_CELLS, COMMIT_BATCH):
        part = slice(start, start + COMMIT_BATCH)
        body, sums = _encoded(content[part]).tobytes(), checksum_of(content[part]).tolist()
        size = len(body) // COMMIT_BATCH
        ids = range(start + 1, start + 1 + COMMIT_BATCH)
        bodies = (body[at : at + size] for at in range(0, len(body), size))
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO records VALUES (?, ?)", zip(ids, bodies, strict=True))
        database.executemany(
            "INSERT OR REPLACE INTO slots VALUES (?, ?, 2, 1, ?)",
            zip(symbols[part].tolist(), minutes[part].tolist(), sums, strict=True),
        )
        database.execute("COMMIT")


def _commit_lmdb(environment: Any, symbols: np.ndarray, minutes: np.ndarray, content: np.ndarray) -> None:
    slots, records = environment.open_db(b"slots"), environment.open_db(b"records", integerkey=True)
    identity = struct.Struct("=Q")
    for start in range(0, COMMIT_CELLS, COMMIT_BATCH):
        part = slice(start, start + COMMIT_BATCH)
        body, sums = _encoded(content[part]).tobytes(), checksum_of(content[part]).tolist()
        size, now_ns = len(body) // COMMIT_BATCH, time.time_ns()
        with environment.begin(write=True) as transaction:
            with transaction.cursor(records) as cursor:
                bodies = (body[at : at + size] for at in range(0, len(body), size))
                ids = (identity.pack(one) for one in range(start + 1, start + 1 + COMMIT_BATCH))
                cursor.putmulti(zip(ids, bodies, strict=True), append=True)
            with transaction.cursor(slots) as cursor:
                cells = zip(
                    symbols[part].tolist(), minutes[part].tolist(), sums, range(start + 1, start + 1001), strict=True
                )
                pairs = (
                    (KEY.pack(symbol, minute), SLOT.pack(2, 2, 3, 0, one, 1, checksum, now_ns, 0, 0))
                    for symbol, minute, checksum, one in cells
                )
                cursor.putmulti(pairs)


# ---- a full day


def _day(folder: Path) -> list[dict[str, Any]]:
    """One payload over 10,000 x 390 cells against memcpy of those rows; which cells are ready, against SQLite and rows."""
    with _state(folder, flush_interval_s=3600) as state:
        first = state.calendar.session_seq(SESSION) * MINUTES
        rows = state.trade.session(first // MINUTES)
        rows.reserve(np.arange(SYMBOLS))
        windows, counter = range(first, first + MINUTES), iter(range(1, 1000))

        def fill() -> float:
            return _seconds(
                lambda: state.trade.set_quote_ref(range(SYMBOLS), windows, PayloadKind.QUOTE, 1, next(counter))
            )

        fill()
        size = SYMBOLS * MINUTES * TRADE_ROW.itemsize
        memcpy_s, fill_s = _medians(_memcpy(size), fill)
        detail = {
            "fill_cells_per_s": round(SYMBOLS * MINUTES / fill_s),
            "fill_rows_gb_per_s": round(size / fill_s / 1e9, 2),
            "memcpy_gb_per_s": round(size / memcpy_s / 1e9, 2),
        }
        fills = _figure("fill_vs_memcpy", memcpy_s / fill_s, 0.2, detail)
        # A third ready: trades and quotes everywhere, and the aggressor on two cells of three.
        rows.set_block(Column.TRADE_REF, range(SYMBOLS), range(MINUTES), 1, 1, now_ns=rows.now_ns())
        flat = np.flatnonzero(np.arange(SYMBOLS * MINUTES) % 3)
        rows.set_many(Column.AGGRESSOR_REF, flat // MINUTES, flat % MINUTES, 1, 1, now_ns=rows.now_ns())
        return [fills, *_ready(folder, rows)]


def _memcpy(size: int) -> Callable[[], float]:
    """Copies so many bytes between two arrays that were touched before."""
    target, origin = np.zeros(size // 8), np.ones(size // 8)
    target[:] = origin
    return lambda: _seconds(lambda: np.copyto(target, origin))


def _ready(folder: Path, rows: SessionRows) -> list[dict[str, Any]]:
    database = sqlite3.connect(folder / "ready.sqlite")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("CREATE TABLE slots (cell INTEGER PRIMARY KEY, trade INTEGER, quote INTEGER, aggressor INTEGER)")
    planes = [rows.status[rows.column_index(column)].reshape(-1).tolist() for column in rows.columns[1:]]
    database.executemany("INSERT INTO slots VALUES (?, ?, ?, ?)", zip(range(SYMBOLS * MINUTES), *planes, strict=True))
    database.execute("CREATE INDEX ready ON slots (trade, quote, aggressor)")
    database.commit()
    del planes
    mapped = np.memmap(rows.path, dtype=np.uint8, mode="r", offset=4096).reshape(SYMBOLS, -1)
    blocks = mapped[:, : MINUTES * TRADE_ROW.itemsize].reshape(SYMBOLS, MINUTES, -1).view(TRADE_ROW)[..., 0]

    def by_planes() -> np.ndarray:
        return rows.ready((Column.TRADE_REF, Column.QUOTE_REF), Column.AGGRESSOR_REF)

    def by_rows() -> np.ndarray:
        found = blocks["trade_ref"]["status"] == Status.FILLED
        found &= blocks["quote_ref"]["status"] == Status.FILLED
        found &= blocks["aggressor_ref"]["status"] != Status.FILLED
        return np.flatnonzero(found)

    def by_sqlite() -> list[tuple[int]]:
        sql = "SELECT cell FROM slots WHERE trade = 2 AND quote = 2 AND aggressor IN (0, 1, 3)"
        return database.execute(sql).fetchall()

    if not (len(by_planes()) == len(by_sqlite()) and (by_planes() == by_rows()).all()):
        raise AssertionError("the three sides disagree about what is ready")
    planes_s, rows_s, sqlite_s = _medians(
        *(lambda work=work: _seconds(work) for work in (by_planes, by_rows, by_sqlite))
    )
    database.close()
    detail = {
        "planes_ms": round(planes_s * 1e3, 2),
        "rows_ms": round(rows_s * 1e3, 1),
        "sqlite_ms": round(sqlite_s * 1e3, 1),
        "ready_cells": len(by_planes()),
    }
    return [
        _figure("ready_vs_sqlite", sqlite_s / planes_s, 30, detail),
        _figure("ready_vs_rows", rows_s / planes_s, 15, detail),
    ]


# ---- opening


def _restart(folder: Path) -> dict[str, Any]:
    """
    Time until the daemon says that it is ready, with 20 full sessions over an empty state; both closed cleanly before.

    A process of its own each time, engines configured, from its start to READY=1 as systemd would get it.
    """
    folder.mkdir()
    full, empty = _daemon_folder(folder / "full"), _daemon_folder(folder / "empty")
    create_state(empty / "ledger.state", year=2013)
    with open_state(empty / "ledger.state"):
        pass
    with _state(full / "ledger.state", flush_interval_s=3600) as state:
        state.allocate([f"S{number:03d}" for number in range(FULL_SYMBOLS)])
        for seq in range(FULL_SESSIONS):
            # Every cell of every column; 100 symbols keep the disk small.
            windows = range(seq * MINUTES, seq * MINUTES + int(state.calendar.minutes[seq]))
            for column in Column:
                kind = column.payload_kind
                state.ledger_of(column).set(
                    column, range(FULL_SYMBOLS), windows, kind, NO_ROWS_ID, no_rows_hash(kind) >> 32, flags=1
                )
    os.sync()
    _ready_s(empty)
    full_s, empty_s = _medians(lambda: _ready_s(full), lambda: _ready_s(empty))
    detail = {
        "full_ms": round(full_s * 1e3),
        "empty_ms": round(empty_s * 1e3),
        "sessions": FULL_SESSIONS,
        "cells": FULL_SESSIONS * FULL_SYMBOLS * MINUTES * len(Column),
    }
    return _figure("restart_growth", full_s / empty_s, 1.5, detail, most=True)


def _daemon_folder(folder: Path) -> Path:
    """A folder with a config whose engines find nothing to read."""
    folder.mkdir()
    source = 'source = "nothing"\nsessions = ["2013-12-31"]\n'
    (folder / "m17.toml").write_text(
        'state_dir = "ledger.state"\n[calendar]\nyear = 2013\n'
        f"[engines.trade_flatfile]\n{source}[engines.quote]\n{source}[engines.nbbo]\n[engines.greeks]\n[engines.aggregation]\n"
    )
    return folder


def _ready_s(folder: Path) -> float:
    """Seconds from starting the daemon until it is ready; it is ended in good order."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "m17d", "run", "--config", str(folder / "m17.toml")],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            taken = time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(120)
    (folder / "notify").unlink()
    return taken
