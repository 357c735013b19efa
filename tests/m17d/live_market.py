"""A replay server and a live daemon as processes, and what they are asked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import ledger
from ledger.columns import Column
from ledger.digests import column_digest
from m17ctl.client import Client
from m17d import protocol

KEY = "a-key-of-the-test"
ENVIRONMENT = {**os.environ, "M17_API_KEY": KEY}


class Replay:
    """``m17d replay`` on a port of its own, which it keeps when it is started again."""

    def __init__(self, source: Path, session: str, *arguments: str) -> None:
        self.command = [
            *(sys.executable, "-m", "m17d", "replay", "--source", str(source), "--session", session),
            *(arguments or ("--speed", "max")),
        ]
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Listen."""
        command = [*self.command, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            found = re.match(r"ws://127.0.0.1:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                return
        raise AssertionError(f"the replay server does not listen: {said}")

    @property
    def url(self) -> str:
        """What a config names as stream."""
        return f"ws://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it, by force."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(120)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None


@contextlib.contextmanager
def replaying(source: Path, session: str, *arguments: str) -> Iterator[Replay]:
    """A replay server for a while."""
    replay = Replay(source, session, *arguments)
    try:
        yield replay
    finally:
        replay.stop()


def write_config(folder: Path, year: str, engines: dict[str, dict[str, Any]], option_rows: str = "chain") -> Path:
    """``m17.toml`` in a folder, with some engines and their keys."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['state_dir = "ledger.state"', f'option_rows = "{option_rows}"', "[runner]", "workers = 2"]
    lines += ["[calendar]", f"year = {year}"]
    for name, table in engines.items():
        lines.append(f"[engines.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path = folder / "m17.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def live(url: str, *, trades: list[str] | None = None, quotes: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """The two live engines of a config."""
    return {
        name: {"stream": url, **({"symbols": symbols} if symbols else {}), **more}
        for name, symbols in (("trade_ws", trades), ("quote", quotes))
    }


def files(source: Path, session: str, symbols: list[str] | None = None) -> dict[str, Any]:
    """The two flat-file engines of a config."""
    table = {"source": str(source), "sessions": [session], **({"symbols": symbols} if symbols else {})}
    return {"trade_flatfile": table, "quote": table}


def run_until_idle(folder: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """The daemon until nothing is left to do."""
    command = [sys.executable, "-m", "m17d", "run", "--config", str(folder / "m17.toml"), "--until-idle"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env=ENVIRONMENT, cwd=folder
    )


def digests(
    folder: Path, session: str, columns: tuple[Column, ...] = (Column.TRADE_REF, Column.QUOTE_REF)
) -> dict[str, str]:
    """The digest of trades and of quotes, or of other columns, read beside whoever runs."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        return {
            column.value: [step for step in column_digest(state, session, column) if step is not None][-1]
            for column in columns
        }


class Daemon:
    """A running daemon, asked through ``m17ctl``."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {**ENVIRONMENT, **environment}
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it; its log goes to ``m17d.log``."""
        (self.folder / "ledger.state" / "m17d.sock").unlink(missing_ok=True)
        command = [sys.executable, "-m", "m17d", "run", "--config", str(self.folder / "m17.toml")]
        with (self.folder / "m17d.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, cwd=self.folder)
        self.until((self.folder / "ledger.state" / "m17d.sock").exists, "the daemon listens")

    def until(self, true: Callable[[], Any], what: str, timeout_s: float = 240) -> Any:
        """Ask until something is so; what was answered then."""
        end = time.monotonic() + timeout_s
        while True:
            found = true()
            if found:
                return found
            assert self.process is None or self.process.poll() is None, f"the daemon ended:\n{self.log}"
            assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}\n{self.log[-4000:]}"
            time.sleep(0.1)

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "m17d.log").read_text()

    def ask(self, *words: str) -> Any:
        """What ``m17ctl --json`` answers; one object, or a list of those on lines."""
        command = [
            sys.executable,
            "-m",
            "m17ctl",
            "--socket",
            str(self.folder / "ledger.state" / "m17d.sock"),
            "--json",
        ]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"m17ctl {' '.join(words)}: {done.stdout}{done.stderr}"
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return lines[0] if len(lines) == 1 else lines

    def call(self, request: Any) -> Any:
        """What the daemon answers, as plain values, without a process of ``m17ctl``."""
        with Client(self.folder / "ledger.state" / "m17d.sock", 120) as client:
            return msgspec.to_builtins(client.call(request))

    def engine(self, name: str) -> dict[str, Any]:
        """One of ``engines list``."""
        return next(one for one in self.call(protocol.EnginesListRequest())["engines"] if one["name"] == name)

    def cells(self, session: str) -> dict[str, Any]:
        """COUNTS of a session by column."""
        columns: dict[str, Any] = self.call(protocol.CoverageRequest(session=session))["columns"]
        return columns

    def feed_pids(self) -> list[int]:
        """Feed processes of the daemon."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(entry.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    found.append(int(entry.parent.name))
        return [pid for pid in found if list_feeds(pid)]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, by force or by a word."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(120)
            self.process = None


def list_feeds(pid: int) -> list[str]:
    """Folders of spooled rows that a process holds open: a feed's lock."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(entry)
                if "/temporary/feeds/" in target and target.endswith(("-stocks", "-options")):
                    found.append(target)
    return found


@contextlib.contextmanager
def running(folder: Path, **environment: str) -> Iterator[Daemon]:
    """A daemon for a while; killed at the end if it still runs."""
    daemon = Daemon(folder, **environment)
    try:
        yield daemon
    finally:
        daemon.kill()
