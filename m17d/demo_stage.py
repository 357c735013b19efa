"""
What the demonstrations are made of: a daemon in a folder, asked through ``m17ctl``, and sentences that must be true.

This module must never reach into the daemon: it stands where an operator stands.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_IDLE_WAIT_S: Final = 240.0
_SETTLED_POLLS: Final = 3
_START_WAIT_S: Final = 30.0


class NotTrue(Exception):
    """Something that the demonstration shows is not so."""


@dataclass(slots=True)
class Stage:
    """One state directory with its daemon and the folder of its files; ``environment`` is added to the daemon's."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.root / "m17d.sock"

    def configure(self, session: str, engines: dict[str, dict[str, Any]]) -> str:
        """Write ``m17.toml`` with some engines and their keys; its text."""
        self.root.mkdir(exist_ok=True)
        lines = ['state_dir = "ledger.state"', "[socket]", 'path = "m17d.sock"', "[calendar]", f"year = {session[:4]}"]
        for name, table in engines.items():
            lines += [f"[engines.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        text = "\n".join(lines) + "\n"
        (self.root / "m17.toml").write_text(text)
        return text

    def start(self) -> None:
        """Start the daemon; its log goes to ``m17d.log``."""
        self.process = self._run()
        end = time.monotonic() + _START_WAIT_S
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise NotTrue("the daemon did not start:\n" + (self.root / "m17d.log").read_text())
            time.sleep(0.05)

    def run_until_idle(self) -> None:
        """Run the daemon until nothing is left to do."""
        started, process = time.monotonic(), self._run("--until-idle")
        try:
            while process.poll() is None:
                seconds = time.monotonic() - started
                if seconds > _IDLE_WAIT_S:
                    raise NotTrue(f"the daemon was not idle within {_IDLE_WAIT_S:.0f} s")
                progress(f"filling: {seconds:4.0f} s")
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        progress(f"filling: {time.monotonic() - started:.1f} s, done", last=True)
        if process.returncode:
            raise NotTrue(f"the daemon ended with {process.returncode}:\n" + (self.root / "m17d.log").read_text())

    def _run(self, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "m17d", "run", "--config", str(self.root / "m17.toml"), *more]
        with (self.root / "m17d.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self.environment})

    def stop(self) -> None:
        """End the daemon, cleanly."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def ask(self, *words: str) -> Any:
        """What ``m17ctl --json`` answers."""
        command = [sys.executable, "-m", "m17ctl", "--socket", str(self.socket), "--json", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise NotTrue(f"m17ctl {' '.join(words)}: {done.stderr.strip()}")
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return lines[0] if len(lines) == 1 else lines

    def engines(self) -> list[dict[str, Any]]:
        """What ``engines list`` says."""
        found = self.ask("engines", "list")
        return found if isinstance(found, list) else [found]

    def show(self, *words: str) -> None:
        """Run ``m17ctl`` as a person would, on this terminal."""
        print(f"\n$ m17ctl {' '.join(words)}", flush=True)
        command = [sys.executable, "-m", "m17ctl", "--socket", str(self.socket), *words]
        subprocess.run(command, timeout=120, check=False)

    def wait(self, what: str) -> None:
        """Wait until nothing is at work, saying how far it is."""
        started, calm = time.monotonic(), 0
        while calm < _SETTLED_POLLS:
            working = [one for one in self.engines() if is_working(one["state"], one["detail"], one["backlog"])]
            calm = 0 if working else calm + 1
            seconds = time.monotonic() - started
            if seconds > _IDLE_WAIT_S:
                raise NotTrue(f"{what} did not end in {_IDLE_WAIT_S:.0f} s: {working}")
            progress(f"{what}: {seconds:4.0f} s  {', '.join(engine['name'] for engine in working) or 'settling'}")
            time.sleep(0.4)
        progress(f"{what}: {time.monotonic() - started:.1f} s, done", last=True)


def is_working(state: str, detail: str, backlog: int) -> bool:
    """Whether an engine has work; one that listens always runs, and has none once everything was played."""
    return bool(backlog) or (state == "running" and ": played" not in detail)


def progress(text: str, *, last: bool = False) -> None:
    """One line that is written over on a terminal, and only its end elsewhere."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    elif last:
        print(text, flush=True)


def say(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def demand(condition: bool, what: str) -> None:
    """Say that something is so, or end."""
    if not condition:
        raise NotTrue(what)
    print(f"   true: {what}", flush=True)
