"""
Benchmark: what a key costs in the view on a full year, from the key to the painted picture, at rest and beside a backfill.

The daemon is ``m17d run`` in a process of its own over 252 full sessions; the view runs here, with its own threads and
connections, on a screen of 160x50 without a terminal. Every key is timed until the screen that shows it was handed to the
driver, so that what waits for the socket, for a thread or for a frame is in the figure.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from textual._compositor import CompositorUpdate
from textual.pilot import Pilot
from textual.screen import Screen

from engines.feeds.synthetic_bulk import write_bulk
from ledger.columns import Dataset
from ledger.creation import create_state
from ledger.state import open_state
from m17ctl.client import Client
from m17ctl.tui import settings
from m17ctl.tui.axis import Axis, Level
from m17ctl.tui.pump import Pump
from m17ctl.tui.view import Surroundings, View
from m17d.protocol import EnginesListRequest, SessionsListRequest
from tests.m17d.daemon_process import running, socket_of
from tests.m17d.full_year import fill_sessions, names, price_sessions

REACH: Final = {"tui_key_p95_ms": 50.0, "tui_key_busy_p95_ms": 50.0}
STOCKS: Final = 20
BUSY_SESSIONS: Final = ("2013-12-24", "2013-12-26", "2013-12-27", "2013-12-30")
"""Left to the engines in the second part; 500 symbols each."""
BUSY_TICKERS: Final = 500
BUSY_TRADES: Final = 2_000_000
BUSY_QUOTES: Final = 600_000
SIZE: Final = (160, 50)
ROUNDS: Final = 9
ROUND: Final = (*"llh", "down", "up", "enter", *"hlh", "enter", *"lL", "enter", *"lh", *"oooio")
"""From the year to minutes and back, over lines and selections; every key changes the picture, and a round ends one month on."""


class _Timed(View):
    """The view, which says when the screen that follows a key was handed to the driver."""

    handled = shown = 0
    shown_s = 0.0

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.painted = asyncio.Event()

    def _moved(self) -> None:
        super()._moved()
        self.handled += 1

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        handled = self.handled
        super()._display(screen, renderable)
        if isinstance(renderable, CompositorUpdate):
            # Without a terminal the escape sequences are not made; a terminal waits for them.
            renderable.render_segments(self.console)
        if handled != self.shown:
            self.shown, self.shown_s = handled, time.perf_counter()
            self.painted.set()


def measure() -> list[dict[str, Any]]:
    """Both figures, over one year."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as name:
        folder = Path(name)
        _make_year(folder)
        with running(folder):
            rest, _ = asyncio.run(_keys(folder))
        for dataset, rows in ((Dataset.STOCK_TRADES, BUSY_TRADES), (Dataset.STOCK_QUOTES, BUSY_QUOTES)):
            for session in BUSY_SESSIONS:
                path = folder / "flat" / dataset.value / session[:4] / session[5:7] / f"{session}.csv.gz"
                write_bulk(path, dataset=dataset, session=session, rows=rows, tickers=BUSY_TICKERS)
        with running(folder):
            _wait_for_work(folder)
            busy, lasted = asyncio.run(_keys(folder))
        figures = [
            _figure("tui_key_p95_ms", rest, {}),
            _figure("tui_key_busy_p95_ms", busy, {"backfill_lasted": lasted}),
        ]
        # A figure taken beside an idle daemon says nothing.
        figures[1]["ok"] = bool(figures[1]["ok"] and lasted)
        return figures


def _make_year(folder: Path) -> None:
    """All sessions of 2013 full but the busy ones; the first stock has a price in every minute."""
    named = ", ".join(f'"{session}"' for session in BUSY_SESSIONS)
    lines = ['state_dir = "ledger.state"', "[calendar]", "year = 2013"]
    for engine in ("trade_flatfile", "quote", "nbbo", "aggregation"):
        # What is there stays as it is; new symbols have four letters.
        lines += [f"[engines.{engine}]", 'symbols = ["????"]']
        if engine in ("trade_flatfile", "quote"):
            lines += ['source = "flat"', f"sessions = [{named}]"]
    (folder / "m17.toml").write_text("\n".join(lines) + "\n")
    create_state(folder / "ledger.state", year=2013)
    with open_state(folder / "ledger.state") as state:
        state.allocate(names(STOCKS))
        full = range(state.calendar.session_seq(BUSY_SESSIONS[0]))
        fill_sessions(state, full, STOCKS)
        price_sessions(state, full)


def _wait_for_work(folder: Path) -> None:
    """Until something is made of files that were read."""
    end = time.monotonic() + 600
    with Client(socket_of(folder), 30) as client:
        while not any(
            one.name == "nbbo" and one.state == "running" for one in client.call(EnginesListRequest()).engines
        ):
            assert time.monotonic() < end, "no side was made within ten minutes"
            time.sleep(0.1)


async def _keys(folder: Path) -> tuple[dict[str, list[float]], bool]:
    """Milliseconds of every key, by key and level; whether engines still had work at the end."""
    path = socket_of(folder)
    with Client(path, 30) as client:
        axis = Axis.of(client.call(SessionsListRequest()).sessions)
        file = folder / "settings" / "tui.json"
        kept = settings.Settings(
            symbol=names(1)[0], first_session=axis.days[0].session, last_session=axis.days[-1].session
        )
        settings.save(file, "bench", kept)
        view = _Timed(
            Surroundings(
                axis=axis, zone=ZoneInfo("America/New_York"), state_dir="bench", settings_file=file,
                pump=lambda deliver: Pump(lambda: Client(path, 30), deliver),
            )
        )  # fmt: skip
        took: dict[str, list[float]] = {}
        async with view.run_test(size=SIZE) as pilot:
            # Rounds begin while counts and prices of the year arrive, as they do for a person.
            await asyncio.sleep(1)
            await pilot.press("g")
            for _ in range(ROUNDS):
                await _round(view, pilot, took)
        lasted = any(engine.backlog for engine in client.call(EnginesListRequest()).engines)
    return took, lasted


async def _round(view: _Timed, pilot: Pilot[Any], took: dict[str, list[float]]) -> None:
    for key in ROUND:
        level = view.model.level
        view.painted.clear()
        began_s = time.perf_counter()
        await pilot.press(key)
        await asyncio.wait_for(view.painted.wait(), 30)
        took.setdefault(f"{key} at {level.word}", []).append((view.shown_s - began_s) * 1e3)
    assert view.model.level is Level.YEAR


def _figure(name: str, took: dict[str, list[float]], detail: dict[str, Any]) -> dict[str, Any]:
    every = sorted(one for times in took.values() for one in times)
    value = every[int(len(every) * 0.95)]
    worst: Sequence[str] = sorted(took, key=lambda key: sorted(took[key])[len(took[key]) // 2], reverse=True)
    detail = {
        "keys": len(every),
        "p50_ms": round(every[len(every) // 2], 1),
        "max_ms": round(every[-1], 1),
        "slowest_key": f"{worst[0]}: {sorted(took[worst[0]])[len(took[worst[0]]) // 2]:.1f} ms",
        "cores": os.cpu_count(),
        **detail,
    }
    return {
        "name": name,
        "value": value,
        "unit": "ms",
        "reach": REACH[name],
        "ok": value < REACH[name],
        "detail": detail,
    }
