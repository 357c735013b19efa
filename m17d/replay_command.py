"""
What ``m17d replay`` was asked for, read and checked, and the server run until a signal.

This module must never do what the server does; it says in a line what cannot be done, and why.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

from engines.feeds.pass_report import SourceDamaged
from m17d.replay import ReplaySettings, run
from m17d.replay_faults import FAULTS, parse_faults
from m17d.replay_market import NothingToPlay, session_of


def replay_session(
    *, source: Path, session: str, speed: str, port: int, key: str, symbols: str, start: str, treasury: Path | None,
    milliseconds: bool, faults: str,
) -> int:  # fmt: skip
    """Serve until SIGINT or SIGTERM; the exit code: 0 then, 1 where nothing could be served, 2 for a wrong argument."""
    if faults == "?":
        for line in FAULTS.values():
            sys.stdout.write(f"{line}\n")
        return 0
    try:
        session_of(session)
        settings = ReplaySettings(
            source=source, session=session, speed=_speed(speed), port=port, key=key,
            symbols=tuple(filter(None, (each.strip() for each in symbols.split(",")))), treasury=treasury,
            start_minute=_minute(start), milliseconds=milliseconds, faults=parse_faults(faults),
        )  # fmt: skip
    except ValueError as error:
        sys.stderr.write(f"m17d: replay: {error}\n")
        return 2
    try:
        asyncio.run(_until_signal(settings))
    except (NothingToPlay, SourceDamaged, ValueError, OSError) as error:
        sys.stderr.write(f"m17d: replay: {error}\n")
        return 1
    return 0


async def _until_signal(settings: ReplaySettings) -> None:
    task = asyncio.ensure_future(run(settings, _tell))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e6:
        raise ValueError(f"--speed {text!r}: expected market seconds a second, above 0, or max")
    return speed


def _minute(text: str) -> int:
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", text)
    if found is None:
        raise ValueError(f"--from {text!r}: expected HH:MM")
    return int(found.group(1)) * 60 + int(found.group(2))
