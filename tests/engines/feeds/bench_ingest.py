"""
Ingest: a trades flat file to Parquet and filled cells, against gunzip alone; and its peak memory as the file doubles.

The whole way is in the clock: the runner of the daemon gives the pass to a spawned worker and commits what it brings,
until the cells are durable. A small file of another session is read before, so that the worker is warm. The floor is
gunzip by isal on one core, taken in turn with ours. Peak memory is the worker's, on 20 M and on 40 M rows unless
M17_BENCH_ROWS says otherwise.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from engines.feeds.synthetic_bulk import write_bulk
from ledger.columns import Column, Dataset, Status
from m17d.config import read_config
from m17d.daemon import Daemon

SESSION: Final = "2013-05-01"
WARM_SESSION: Final = "2013-05-02"
"""Newer, so that it is read first."""
_RATIO_ROWS: Final = 8_000_000
_ROWS_PER_TICKER: Final = 4_000
"""A day of US stock trades has some 35 M rows of 9,000 tickers."""
_ROUNDS: Final = 5
_CONFIG: Final = """
state_dir = "{folder}/ledger.state"
[runner]
workers = 1
[calendar]
year = 2013
[engines.trade_flatfile]
source = "{folder}"
sessions = ["{warm}", "{session}"]
"""


def _file(root: Path, session: str) -> Path:
    return root / Dataset.STOCK_TRADES.value / session[:4] / session[5:7] / f"{session}.csv.gz"


def _write(root: Path, rows: int) -> Path:
    """The file that is measured and, of the newer session, the small one before it."""
    for session, count in ((WARM_SESSION, 20_000), (SESSION, rows)):
        tickers = max(5, min(9_000, count // _ROWS_PER_TICKER))
        write_bulk(_file(root, session), dataset=Dataset.STOCK_TRADES, session=session, rows=count, tickers=tickers)
    return _file(root, SESSION)


class _Run:
    """One state filled from the files, from nothing; how long the large one took, and the worker's peak memory."""

    def __init__(self, root: Path) -> None:
        shutil.rmtree(root / "ledger.state", ignore_errors=True)
        (root / "m17.toml").write_text(_CONFIG.format(folder=root, warm=WARM_SESSION, session=SESSION))
        self.seconds, self.peak_mib, self.cells = 0.0, 0.0, 0
        self._started_s = 0.0
        logger = logging.getLogger("bench")
        logger.addHandler(logging.NullHandler())
        daemon = Daemon(read_config(root / "m17.toml"), logger)
        try:
            self._fill(daemon)
        finally:
            daemon.close()

    def _fill(self, daemon: Daemon) -> None:
        runner, state = daemon.runner, daemon.state
        runner.on_change = self._note
        while not self.seconds:
            if not runner.step():
                time.sleep(0.001)
            if runner.failures:
                raise AssertionError(next(iter(runner.failures.values())).reason)
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        self.cells = int(rows.counts_status[rows.column_index(Column.TRADE_REF), Status.FILLED])
        self.peak_mib = max(_peak_mib(process) for process in _children())

    def _note(self, _kind: str, facts: dict[str, Any]) -> None:
        if SESSION in facts.get("key", ""):  # events of tasks have one; those of cells have none
            if facts["state"] == "started":
                self._started_s = time.perf_counter()
            elif facts["state"] == "done":
                self.seconds = time.perf_counter() - self._started_s


def _children() -> list[int]:
    me = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]


def _peak_mib(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _gunzip_seconds(path: Path) -> float:
    from isal import igzip

    started = time.perf_counter()
    with igzip.open(path, "rb") as file:
        while file.read(1 << 20):
            pass
    return time.perf_counter() - started


def measure() -> list[dict[str, Any]]:
    """``ingest_vs_gunzip`` (at least 0.2) and ``ingest_peak_mib`` (at most 1,024 on both sizes)."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        return [_ratio(Path(folder)), _peak(Path(folder))]


def _ratio(root: Path) -> dict[str, Any]:
    path = _write(root, _RATIO_ROWS)
    gunzip: list[float] = []
    ours: list[_Run] = []
    for _ in range(_ROUNDS):
        gunzip.append(_gunzip_seconds(path))
        ours.append(_Run(root))
    gunzip_s, ours_s = statistics.median(gunzip), statistics.median(run.seconds for run in ours)
    value = gunzip_s / ours_s
    return {
        "name": "ingest_vs_gunzip",
        "value": value,
        "unit": "ratio",
        "reach": 0.2,
        "ok": value >= 0.2,
        "detail": {
            "rows": _RATIO_ROWS,
            "cells": ours[0].cells,
            "gunzip_rows_per_s": round(_RATIO_ROWS / gunzip_s),
            "ingest_rows_per_s": round(_RATIO_ROWS / ours_s),
        },
    }


def _peak(root: Path) -> dict[str, Any]:
    rows = int(os.environ.get("M17_BENCH_ROWS", "20000000"))
    peaks = {}
    for count in (rows, 2 * rows):
        _write(root, count)
        peaks[str(count)] = round(_Run(root).peak_mib)
    value = max(peaks.values())
    return {
        "name": "ingest_peak_mib",
        "value": value,
        "unit": "MiB",
        "reach": 1024,
        "ok": value <= 1024,
        "detail": peaks,
    }
