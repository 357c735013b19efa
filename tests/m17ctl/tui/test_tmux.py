"""The whole way: a terminal of 80x24, real keys, a live daemon, a real session; a hole is made, seen, and filled again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.filled_state import SESSION, copy_of, filled, needs_data

pytestmark = [needs_data, pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")]
WAIT_S = 60


class Terminal:
    """One pane of a tmux server of its own."""

    def __init__(self, folder: Path, command: str) -> None:
        self._base = ["tmux", "-L", f"m17-{os.getpid()}", "-f", "/dev/null"]
        environment = {
            **os.environ,
            "XDG_STATE_HOME": str(folder / "state"),
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
        }
        subprocess.run([*self._base, "new-session", "-d", "-x", "80", "-y", "24", command], env=environment, check=True)

    def keys(self, *keys: str) -> None:
        """Press keys, one after the other."""
        subprocess.run([*self._base, "send-keys", *keys], check=True)

    def screen(self) -> str:
        """What is on it."""
        done = subprocess.run([*self._base, "capture-pane", "-p"], capture_output=True, text=True, check=True)
        return done.stdout

    def wait(self, what: str, holds: Callable[[str], bool]) -> str:
        """The first screen that holds; a terminal says nothing by itself, so it is looked at again and again."""
        end = time.monotonic() + WAIT_S
        while not holds(screen := self.screen()):
            assert time.monotonic() < end, f"{what}:\n{screen}"
            time.sleep(0.05)
        return screen

    def close(self) -> None:
        """End the server and what runs in it."""
        subprocess.run([*self._base, "kill-server"], check=False)


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """The view over a daemon on the filled session."""
    from tests.m17d.test_derived_sessions import served

    folder = copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("tmux"))
    with served(folder):
        socket = folder / "ledger.state" / "m17d.sock"
        one = Terminal(folder, f"{sys.executable} -m m17ctl --socket {socket} tui; sleep 60")
        try:
            yield one
        finally:
            one.close()


def line(screen: str, label: str) -> str:
    """The line of the map with a label; empty where there is none."""
    return next((one for one in screen.splitlines() if one.startswith(f"{label} ")), "")


def test_an_operator_looks_clears_and_sees_it_made_whole(terminal: Terminal) -> None:
    """Prompt, year, month, session, clear with a cause, the hole, the engines' repair, why, frames, quit."""
    terminal.wait("the prompt", lambda screen: "Symbol, such as AAPL" in screen)
    terminal.keys(*"AAPL", "Enter")
    screen = terminal.wait("the year", lambda screen: line(screen, "opt greeks_ref").endswith("100 %"))
    assert screen.startswith("M17  AAPL  year 2014")
    assert len(screen.splitlines()) == 24
    terminal.keys("Enter")
    terminal.wait("the month", lambda screen: "month 2014-06-02" in screen)
    terminal.keys("Enter")
    screen = terminal.wait(
        "the session with its prices", lambda screen: f"session {SESSION}" in screen and "65" in screen[80:100]
    )
    assert line(screen, "trade_ref").count("█") == 39

    terminal.keys("l", "l", "Down", "Down", "d")
    terminal.wait("what would go", lambda screen: "would go: 30 trade_ref" in screen)
    terminal.keys(*"bad", "Space", *"tape", "Enter")
    terminal.wait("armed", lambda screen: "Enter clears 30 cells now" in screen)
    terminal.keys("Enter")
    terminal.wait("done", lambda screen: "30 cells cleared" in screen)
    terminal.wait("whole again", lambda screen: line(screen, "trade_ref").endswith("100 %"))
    terminal.wait("and all behind it", lambda screen: line(screen, "aggressor_ref").endswith("100 %"))

    # A key right behind Esc would be another key to a terminal.
    terminal.keys("Escape")
    terminal.wait("all columns again", lambda screen: "all columns:" in screen)
    terminal.keys("w")
    terminal.wait("why", lambda screen: "  quote_ref, aggressor_ref\n" in screen and "$ m17ctl accept" in screen)
    terminal.keys("q")
    terminal.wait("the map", lambda screen: screen.startswith("M17  AAPL"))
    terminal.keys("a")
    terminal.wait("the audit log", lambda screen: "bad tape" in screen)
    terminal.keys("q")
    terminal.wait("the map", lambda screen: screen.startswith("M17  AAPL"))
    terminal.keys("x", "Home", "Down", "Enter")
    terminal.wait("the window", lambda screen: "x 5m" in screen.splitlines()[0])
    terminal.keys("j")
    screen = terminal.wait("the frame", lambda screen: screen.startswith(f"AAPL 5m {SESSION} 10:30 to 10:35"))
    assert "price  open 6" in screen
    terminal.keys("j", "j")
    terminal.wait("two frames on", lambda screen: screen.startswith(f"AAPL 5m {SESSION} 10:40 to 10:45"))
    terminal.keys("q", "q")
    terminal.wait("the end", lambda screen: "M17  AAPL" not in screen)
