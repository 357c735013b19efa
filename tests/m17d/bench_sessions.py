"""
Whole sessions through all engines: how busy both places are, and what a session costs as it has more trades.

A synthetic session of stocks and chains comes from flat files through trades, quotes, curves, sides and Greeks to all six
aggregate lengths, from nothing to idle, in a daemon with two workers. The share of the time in which a place has work is
read from the tasks, not from the processor, so that it says what the planner does on a machine that others use too; what
the processor was used for is beside it, as seconds of the daemon and its workers. Growth is that of these seconds, from a
session to one of twice and four times the rows, each at its cheapest; starting the workers is in all of them.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from engines.feeds.synthetic import write_session
from m17d.config import read_config
from m17d.daemon import Daemon
from tests.bench.registry import ROUNDS

REACH: Final = {"session_places_busy": 0.6, "session_cost_growth": 1.25}
_SESSION: Final = "2026-03-10"
_WORKERS: Final = 2
_QUIET_S: Final = 1.0
"""So long nothing moves before it is asked whether anything is left: asking plans."""
_SCALES: Final = (0.5, 1.0, 2.0)
_CONFIG: Final = f"""
state_dir = "{{state}}"
[runner]
workers = {_WORKERS}
[calendar]
year = {_SESSION[:4]}
[engines.treasury]
source = "treasury/treasury-yields.json"
[engines.trade_flatfile]
source = "flatfiles"
sessions = ["{_SESSION}"]
[engines.quote]
source = "flatfiles"
sessions = ["{_SESSION}"]
[engines.nbbo]
[engines.greeks]
[engines.aggregation]
"""


class Run(NamedTuple):
    """One session, from nothing to idle."""

    wall_s: float
    """From the first task's start to the last commit."""
    cpu_s: float
    """Of the daemon and its workers, from their start to their end."""
    busy_s: float
    """Sum of the times in which tasks were at work."""
    by_engine: dict[str, float]

    @property
    def share(self) -> float:
        """Of the places' time, how much they had work."""
        return self.busy_s / (self.wall_s * _WORKERS)


def measure() -> list[dict[str, Any]]:
    """``session_places_busy`` (share of both places' time) and ``session_cost_growth`` (cost a row at 4x over 1x)."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        runs: dict[float, list[Run]] = {}
        rows: dict[float, int] = {}
        for scale in _SCALES:
            root = Path(folder) / f"{scale:g}"
            truth = write_session(root, session=_SESSION, scale=scale, damage=False)
            rows[scale] = sum(file.rows for name, file in truth.files.items() if "trades" in name)
            if not runs:
                _run(root, "warm")  # compiles
            rounds = ROUNDS if scale == _SCALES[-1] else 2
            runs[scale] = [_run(root, f"state-{number}") for number in range(rounds)]
    return [_busy(runs[_SCALES[-1]], rows[_SCALES[-1]]), _growth(runs, rows)]


def _run(root: Path, name: str) -> Run:
    (root / "m17.toml").write_text(_CONFIG.format(state=name))
    logger = logging.getLogger("bench")
    logger.addHandler(logging.NullHandler())
    before_s = _cpu_s()
    daemon = Daemon(read_config(root / "m17.toml"), logger)
    try:
        wall_s = _until_idle(daemon)
        by_engine = {one: daemon.runner.busy_s(one) for one in daemon.runner.engines}
    finally:
        daemon.close()
    return Run(wall_s, _cpu_s() - before_s, sum(by_engine.values()), by_engine)


def _until_idle(daemon: Daemon) -> float:
    """Step the runner until nothing is left; seconds from the first task on."""
    runner, first_s, last_s = daemon.runner, 0.0, 0.0
    while True:
        moved = runner.step()
        now_s = time.perf_counter()
        running = runner.pool.running()
        if running:
            first_s = first_s or now_s
        if runner.failures:
            raise AssertionError(next(iter(runner.failures.values())).reason)
        if moved or running:
            last_s = now_s
        elif now_s - last_s > _QUIET_S and runner.is_idle():
            break
        if not moved:
            time.sleep(0.001)
    return last_s - first_s


def _cpu_s() -> float:
    """Of this process and of those that have ended below it."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _busy(runs: list[Run], rows: int) -> dict[str, Any]:
    value, one = statistics.median(run.share for run in runs), runs[-1]
    return {
        "name": "session_places_busy",
        "value": value,
        "unit": "share of the time of both places",
        "reach": REACH["session_places_busy"],
        "ok": value >= REACH["session_places_busy"],
        "detail": {
            "trades": rows,
            "wall_s": statistics.median(run.wall_s for run in runs),
            "cpu_s": statistics.median(run.cpu_s for run in runs),
            "cores_of_the_machine": os.cpu_count(),
            **{f"{name}_task_s": seconds for name, seconds in one.by_engine.items() if seconds},
        },
    }


def _growth(runs: dict[float, list[Run]], rows: dict[float, int]) -> dict[str, Any]:
    cost = {scale: min(run.cpu_s for run in runs[scale]) for scale in _SCALES}
    first, last = _SCALES[0], _SCALES[-1]
    value = cost[last] / rows[last] / (cost[first] / rows[first])
    return {
        "name": "session_cost_growth",
        "value": value,
        "unit": "cost of a trade at 4x over that at 1x",
        "reach": REACH["session_cost_growth"],
        "ok": value <= REACH["session_cost_growth"],
        "detail": {f"cpu_s_of_{rows[scale]}_trades": cost[scale] for scale in _SCALES},
    }
