"""
Benchmark: what a scrape costs with every session of a year mapped, when nothing moved and when one session did.

The exposition is the daemon's own, asked in this process, so that no socket is in the figure; ``gather`` cuts the same work
into steps, between which requests are answered.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from ledger.columns import Column, Flag
from m17d.config import read_config
from m17d.daemon import Daemon
from tests.bench.registry import in_turns
from tests.m17d.full_year import fill_session, fill_sessions, names

REACH: Final = {"scrape_year_ms": 20.0, "scrape_year_moved_ms": 20.0}
STOCKS: Final = 20
"""Of every session, with a chain each."""
STOCKS_MOVED: Final = 250
"""Of the last session, which moves."""
ROUNDS: Final = 9
ENGINES: Final = ("trade_flatfile", "quote", "nbbo", "greeks", "aggregation")


def measure() -> list[dict[str, Any]]:
    """Both figures, over one year."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as name:
        daemon = daemon_over(Path(name), STOCKS)
        try:
            daemon.state.allocate(names(STOCKS_MOVED))
            fill_session(daemon.state, daemon.state.calendar.session_count - 1, 0, STOCKS_MOVED)
            return _figures(daemon)
        finally:
            daemon.close()


def daemon_over(folder: Path, stocks: int, sessions: int = 10_000) -> Daemon:
    """A daemon in this process over the first full sessions of a year, all mapped, its engines at rest."""
    lines = ['state_dir = "ledger.state"', "[calendar]", "year = 2013"]
    for engine in ENGINES:
        lines += [f"[engines.{engine}]", *(['source = "none"'] if engine in ENGINES[:2] else [])]
    (folder / "m17.toml").write_text("\n".join(lines) + "\n")
    daemon = Daemon(read_config(folder / "m17.toml"), logging.getLogger("m17d-bench"))
    daemon.state.allocate(names(stocks))
    fill_sessions(daemon.state, range(min(sessions, daemon.state.calendar.session_count)), stocks)
    daemon.handlers.exposition.text()
    return daemon


def _figures(daemon: Daemon) -> list[dict[str, Any]]:
    text = daemon.handlers.exposition.text
    rows = daemon.state.trade.session(daemon.state.calendar.session_count - 1)
    cells = Column.TRADE_REF, np.arange(2 * STOCKS_MOVED), np.full(2 * STOCKS_MOVED, 5)

    def move() -> None:
        rows.flag_many(*cells, add=Flag.WANTED, now_ns=rows.now_ns())
        rows.flag_many(*cells, remove=Flag.WANTED, now_ns=rows.now_ns())

    def moved() -> None:
        move()
        text()

    # What moves the session is no part of the scrape, so it is timed alone and taken off; the last turn leaves all at rest.
    move_s, moved_s, still_s = in_turns(move, moved, text, rounds=ROUNDS)
    detail = {
        "sessions": daemon.state.calendar.session_count,
        "symbols": 2 * STOCKS,
        "symbols_moved": 2 * STOCKS_MOVED,
        "longest_step_ms": round(_longest_step_s(daemon, move) * 1e3, 2),
    }
    return [_figure("scrape_year_ms", still_s, detail), _figure("scrape_year_moved_ms", moved_s - move_s, detail)]


def _longest_step_s(daemon: Daemon, move: Callable[[], None]) -> float:
    """The longest that a request would have waited for one step of a scrape after a session moved."""
    longest = 0.0
    for _ in range(ROUNDS):
        move()
        began_s = time.perf_counter()
        for _ in daemon.handlers.exposition.gather():
            longest = max(longest, time.perf_counter() - began_s)
            began_s = time.perf_counter()
        began_s = time.perf_counter()
        daemon.handlers.exposition.text()
        longest = max(longest, time.perf_counter() - began_s)
    return longest


def _figure(name: str, seconds: float, detail: dict[str, Any]) -> dict[str, Any]:
    value = seconds * 1e3
    return {
        "name": name, "value": value, "unit": "ms", "reach": REACH[name], "ok": value < REACH[name], "detail": detail,
    }  # fmt: skip
