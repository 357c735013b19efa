"""
Ingest: a trades flat file to Parquet and staged cells, against gunzip alone; and its peak memory as the file doubles.

The floor is gunzip by isal on one core. The pass runs in a process of its own, as a worker's does. Peak memory is taken
on 20 M and on 40 M rows unless M17_BENCH_ROWS says otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engines.feeds.synthetic_bulk import write_bulk
from ledger.columns import Dataset

SESSION = "2013-05-01"
_RATIO_ROWS = 2_000_000
_ROUNDS = 5

_PASS = """
import json, resource, sys, time
from pathlib import Path
from engines.contract import Task, Workplace
from engines.feeds.session_window import SessionWindow
from engines.raw_pass import PassArguments, run
from ledger.columns import Dataset, OptionRows
path, root, open_ns, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
day = open_ns - 34_200 * 10**9
window = SessionWindow("2013-05-01", open_ns, 390, day, day + 86_400 * 10**9)
arguments = PassArguments(path, Dataset.STOCK_TRADES, window, OptionRows.CHAIN, (), 10, "", 0)
task = Task("bench", "bench", "2013-05-01", "", arguments)
seconds = []
for number in range(rounds):
    started = time.perf_counter()
    batch = run(task, Workplace(root, root, f"bench-{number}", lambda done, total: None))
    seconds.append(time.perf_counter() - started)
rows = batch.artifacts[0].rows
print(json.dumps({"seconds": seconds, "rows": rows, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def _pass(path: Path, root: Path, rounds: int) -> dict[str, Any]:
    from tests.m17d.flat_files import open_ns

    command = [sys.executable, "-c", _PASS, str(path), str(root), str(open_ns(SESSION)), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[3])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _gunzip_seconds(path: Path) -> float:
    from isal import igzip

    started = time.perf_counter()
    with igzip.open(path, "rb") as file:
        while file.read(1 << 20):
            pass
    return time.perf_counter() - started


def _write(root: Path, rows: int) -> Path:
    path = root / f"{rows}.csv.gz"
    write_bulk(
        path, dataset=Dataset.STOCK_TRADES, session=SESSION, rows=rows, tickers=min(9_000, max(10, rows // 1500))
    )
    return path


def measure() -> list[dict[str, Any]]:
    """``ingest_vs_gunzip`` (at least 0.2) and ``ingest_peak_mib`` (at most 1,024 on both sizes)."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        root = Path(folder)
        return [_ratio(root), _peak(root)]


def _ratio(root: Path) -> dict[str, Any]:
    path = _write(root, _RATIO_ROWS)
    detail: dict[str, Any] = {"rows": _RATIO_ROWS}
    gunzip = statistics.median(_gunzip_seconds(path) for _ in range(_ROUNDS))
    ours = statistics.median(_pass(path, root, _ROUNDS)["seconds"])
    detail |= {"gunzip_rows_per_s": round(_RATIO_ROWS / gunzip), "ingest_rows_per_s": round(_RATIO_ROWS / ours)}
    value = gunzip / ours
    return {
        "name": "ingest_vs_gunzip",
        "value": value,
        "unit": "ratio",
        "reach": 0.2,
        "ok": value >= 0.2,
        "detail": detail,
    }


def _peak(root: Path) -> dict[str, Any]:
    rows = int(os.environ.get("M17_BENCH_ROWS", "20000000"))
    peaks = {}
    for count in (rows, 2 * rows):
        path = _write(root, count)
        peaks[str(count)] = round(_pass(path, root, 1)["peak_mib"])
        path.unlink()
    value = max(peaks.values())
    return {
        "name": "ingest_peak_mib",
        "value": value,
        "unit": "MiB",
        "reach": 1024,
        "ok": value <= 1024,
        "detail": peaks,
    }
