"""
Benchmark: what a request costs over the socket of a real daemon, alone and while engines work on all cores.

The daemon is ``m17d run`` in a process of its own, the other side is the client that people use. The floor of a round
trip is a raw Unix socket between two processes that passes messages of the same sizes to and fro, in turns with ours.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.feeds.synthetic_bulk import write_bulk
from ledger.columns import Dataset, LedgerKind
from m17ctl.client import Client, rows_of_slab, slab_dtype
from m17d.envelopes import encode_reply, encode_request
from m17d.protocol import (
    BulkRequest,
    DoctorRequest,
    EnginesListRequest,
    PingRequest,
    Range,
    RowRequest,
    SymbolsListRequest,
)
from tests.m17d.daemon_process import running, socket_of

REACH: Final = {
    "roundtrip_vs_floor": 10.0,
    "roundtrip_busy_p99_ms": 25.0,
    "rows_read_per_s": 5_000_000.0,
    "cli_vs_imports": 2.0,
}
QUIET_SESSION: Final = "2013-05-03"
BUSY_SESSIONS: Final = ("2013-05-01", "2013-05-02", "2013-05-03", "2013-05-06")
QUIET_TICKERS: Final = 1_000
BUSY_TICKERS: Final = 2_000
BUSY_TRADES: Final = 2_000_000
BUSY_QUOTES: Final = 600_000
"""Of each session: the quotes are read first, so that sides and aggregates are made while trades are read."""
BUSY_REQUESTS: Final = 10_000
BUSY_ENGINES: Final = ("trade_flatfile", "nbbo", "aggregation")
ROUNDS: Final = 5
ROUNDTRIPS: Final = 2_000
"""A round."""
PROCESSES: Final = 7
_IMPORTS: Final = "import typer, zmq, msgspec"
_ECHO: Final = """
import socket, sys
own = socket.socket(fileno=int(sys.argv[1]))
size, answer = int(sys.argv[2]), bytes(int(sys.argv[3]))
while True:
    left = size
    while left:
        piece = own.recv(left)
        if not piece:
            sys.exit()
        left -= len(piece)
    own.sendall(answer)
"""


def measure() -> list[dict[str, Any]]:
    """The four figures of design section 9 that are about the socket."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        quiet, busy = Path(folder) / "quiet", Path(folder) / "busy"
        found = _quiet(quiet)
        return [*found, _busy(busy)]


def _figure(name: str, value: float, unit: str, detail: dict[str, Any], *, least: bool = False) -> dict[str, Any]:
    reach = REACH[name]
    ok = value >= reach if least else value <= reach
    return {"name": name, "value": value, "unit": unit, "reach": reach, "ok": ok, "detail": detail}


def _write(folder: Path, sessions: tuple[str, ...], sizes: dict[Dataset, int], tickers: int, engines: str) -> None:
    """Flat files and a config over them."""
    for session in sessions:
        for dataset, rows in sizes.items():
            path = folder / "flat" / dataset.value / session[:4] / session[5:7] / f"{session}.csv.gz"
            write_bulk(path, dataset=dataset, session=session, rows=rows, tickers=tickers)
    named = ", ".join(f'"{session}"' for session in sessions)
    lines = ['state_dir = "ledger.state"', "[calendar]", "year = 2013"]
    for engine in engines.split():
        lines.append(f"[engines.{engine}]")
        if engine in ("trade_flatfile", "quote"):
            lines += ['source = "flat"', f"sessions = [{named}]"]
    (folder / "m17.toml").write_text("\n".join(lines) + "\n")


# ---- alone


def _quiet(folder: Path) -> list[dict[str, Any]]:
    """A daemon with one session filled and nothing to do."""
    _write(folder, (QUIET_SESSION,), {Dataset.STOCK_TRADES: 100_000}, QUIET_TICKERS, "trade_flatfile")
    with running(folder), Client(socket_of(folder), 30) as client:
        _wait_filled(client)
        return [_roundtrip(client), _rows(client), _cli(socket_of(folder))]


def _wait_filled(client: Client) -> None:
    engines = client.call(EnginesListRequest()).engines
    end = time.monotonic() + 120
    while any(engine.backlog for engine in engines) or not client.call(SymbolsListRequest()).symbols:
        assert time.monotonic() < end, engines
        time.sleep(0.05)
        engines = client.call(EnginesListRequest()).engines
    for _ in range(50):
        # What settles after the commit takes turns of the loop; a ping waits for one.
        client.call(PingRequest())


def _roundtrip(client: Client) -> dict[str, Any]:
    request = RowRequest(symbol="AAAB", at=f"{QUIET_SESSION}T10:15")
    client.call(request)
    assert client.last_envelope is not None
    sizes = len(encode_request(request, 1, deadline_ms=1 << 40)), len(encode_reply(client.last_envelope))
    ours: list[float] = []
    floor: list[float] = []
    with _echo(*sizes) as peer:
        question = bytes(sizes[0])
        for _ in range(ROUNDS):
            times = []
            for _ in range(ROUNDTRIPS):
                started = time.perf_counter()
                client.call(request)
                times.append(time.perf_counter() - started)
            ours.append(statistics.median(times))
            times = []
            for _ in range(ROUNDTRIPS):
                started = time.perf_counter()
                peer.sendall(question)
                left = sizes[1]
                while left:
                    left -= len(peer.recv(left))
                times.append(time.perf_counter() - started)
            floor.append(statistics.median(times))
    ours_s, floor_s = statistics.median(ours), statistics.median(floor)
    detail = {
        "row_p50_us": round(ours_s * 1e6, 1),
        "floor_p50_us": round(floor_s * 1e6, 1),
        "request_bytes": sizes[0],
        "reply_bytes": sizes[1],
    }
    return _figure("roundtrip_vs_floor", ours_s / floor_s, "ratio", detail)


@contextmanager
def _echo(question_bytes: int, answer_bytes: int) -> Iterator[socket.socket]:
    """A raw Unix socket to another process that answers every question of a size with so many bytes."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", _ECHO, str(theirs.fileno()), str(question_bytes), str(answer_bytes)]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.wait(10)


def _rows(client: Client) -> dict[str, Any]:
    """Every row of the session as slabs, each looked into through an array; unpacked into tuples beside it."""
    request = BulkRequest(ledger=LedgerKind.TRADE, range=Range(session=QUIET_SESSION))
    arrays: list[float] = []
    rows = 0
    for _ in range(ROUNDS + 1):
        started, rows, filled = time.perf_counter(), 0, 0
        for reply, slab in client.slabs(request):
            found = np.frombuffer(slab, dtype=slab_dtype(reply, slab))
            rows += len(found)
            filled += int((found["trade_ref"]["status"] == 2).sum())
        arrays.append(rows / (time.perf_counter() - started))
        assert rows == filled == QUIET_TICKERS * 390, (rows, filled)
    started, unpacked = time.perf_counter(), 0
    for reply, slab in client.slabs(request):
        unpacked += sum(1 for _ in rows_of_slab(reply, slab))
    detail = {"rows": rows, "as_tuples_per_s": round(unpacked / (time.perf_counter() - started))}
    return _figure("rows_read_per_s", statistics.median(arrays[1:]), "rows/s", detail, least=True)


def _cli(path: Path) -> dict[str, Any]:
    """Whole processes in turns."""
    row = [
        str(Path(sys.executable).with_name("m17ctl")),
        "--socket",
        str(path),
        "row",
        "AAAB",
        f"{QUIET_SESSION}T10:15",
    ]
    sides = (row, [sys.executable, "-c", _IMPORTS])
    taken: list[list[float]] = [[], []]
    for _ in range(PROCESSES + 1):
        for side, command in enumerate(sides):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken[side].append(time.perf_counter() - started)
    ours, imports = (statistics.median(each[1:]) for each in taken)
    detail = {"m17ctl_row_ms": round(ours * 1e3, 1), "imports_ms": round(imports * 1e3, 1)}
    return _figure("cli_vs_imports", ours / imports, "ratio", detail)


# ---- while engines work


def _busy(folder: Path) -> dict[str, Any]:
    """Rows asked one after another while files are read and sides and aggregates are made of them, on all cores."""
    sizes = {Dataset.STOCK_TRADES: BUSY_TRADES, Dataset.STOCK_QUOTES: BUSY_QUOTES}
    _write(folder, BUSY_SESSIONS, sizes, BUSY_TICKERS, "quote trade_flatfile nbbo aggregation")
    with running(folder), Client(socket_of(folder), 60) as client:
        symbols = _wait_for_work(client)
        before, seen = _engines(client), set[str]()
        times: list[float] = []
        choose = random.Random(17)
        started = time.perf_counter()
        while len(times) < BUSY_REQUESTS or not seen.issuperset(BUSY_ENGINES):
            minute = f"{choose.randrange(10, 16)}:{choose.randrange(60):02d}"
            request = RowRequest(symbol=choose.choice(symbols), at=f"{choose.choice(BUSY_SESSIONS)}T{minute}")
            asked = time.perf_counter()
            client.call(request)
            times.append(time.perf_counter() - asked)
            if len(times) % 100 == 0:
                # Outside the clock: whom the requests were served beside.
                engines = client.call(EnginesListRequest()).engines
                seen |= {engine.name for engine in engines if engine.state == "running"}
                if not any(engine.backlog for engine in engines):
                    break
        seconds, after = time.perf_counter() - started, _engines(client)
        longest = client.call(DoctorRequest()).facts["longest_steps"]
    times.sort()
    lasted = after["backlog"] > 0
    detail = {
        "requests": len(times),
        "seconds": round(seconds, 1),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "max_ms": round(times[-1] * 1e3, 1),
        "longest_steps": longest,
        "cores": os.cpu_count(),
        "engines_seen_running": sorted(seen),
        "cells_set_meanwhile": after["cells"] - before["cells"],
        "backfill_lasted": lasted,
    }
    figure = _figure("roundtrip_busy_p99_ms", times[int(len(times) * 0.99)] * 1e3, "ms", detail)
    # A figure taken beside an idle daemon says nothing.
    figure["ok"] = bool(figure["ok"] and lasted and seen.issuperset(BUSY_ENGINES))
    return figure


def _wait_for_work(client: Client) -> list[str]:
    """Names of all symbols, as soon as sides are made: the quotes are read then, and the trades of one session."""
    end = time.monotonic() + 600
    while not any(one.name == "nbbo" and one.state == "running" for one in client.call(EnginesListRequest()).engines):
        assert time.monotonic() < end, "no side was made within ten minutes"
        time.sleep(0.1)
    return [one.symbol for one in client.call(SymbolsListRequest()).symbols]


def _engines(client: Client) -> dict[str, int]:
    engines = client.call(EnginesListRequest()).engines
    cells = sum(int(engine.facts["cells_set"]) for engine in engines)
    return {"backlog": sum(engine.backlog for engine in engines), "cells": cells}
