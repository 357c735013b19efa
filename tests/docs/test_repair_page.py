"""The page "repair in five minutes", typed: every command of it runs, and says what the page says it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.columns import Column
from m17ctl.client import Client
from m17d.protocol import StatusRequest
from m17d.wholeness import BLOCKING
from tests.docs import cut_morning
from tests.docs.pages import blocks, fits, text_of, typed
from tests.m17d.test_daemon import start, wait_for

PAGE = "docs/repair.md"


def until_filled(root: Path, timeout_s: float = 600) -> None:
    """Wait until no due cell is empty; in how many tasks they are made is the engines' affair."""
    end = time.monotonic() + timeout_s
    with Client(root / "ledger.state" / "m17d.sock") as client:
        while True:
            counts = client.call(StatusRequest()).columns.get(Column.AGGRESSOR_REF)
            if counts is not None and counts.filled and not counts.empty:
                return
            assert time.monotonic() < end, counts
            time.sleep(0.1)


@pytest.fixture(scope="module")
def morning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon over the session with the hole, at rest."""
    root = tmp_path_factory.mktemp("morning")
    cut_morning.write(root)
    process = start(root)
    try:
        wait_for(process, root, "serving on")
        until_filled(root)
        yield root
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def test_every_command_of_the_page_runs_and_says_what_is_shown(morning: Path) -> None:
    """In one shell session's environment, in order; each ends with 0."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment["M17_SOCKET"] = "ledger.state/m17d.sock"
    commands = [one for block in blocks(PAGE, "console") for one in typed(block.text)]
    assert len(commands) > 15
    for command, shown in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=morning,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{said}"
        assert fits(said, shown), f"{command}\n-- said:\n{said}\n-- shown:\n" + "\n".join(shown)


def test_page_explains_every_cause_that_waits_for_an_operator() -> None:
    """Whatever `wait` may name as standing in the way has its row."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text_of(PAGE), re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"`(\w+)`", row)} >= BLOCKING
