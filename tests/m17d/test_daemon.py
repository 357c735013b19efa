"""The daemon as a process: locks, refusals, signals, and a kill in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ledger
from ledger.columns import Column, Status
from ledger.digests import session_digest
from tests.m17d import flat_files

SESSION = "2013-05-01"


def start(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A daemon in the background, its log in ``m17d.log``."""
    command = [sys.executable, "-m", "m17d", "run", "--config", str(root / "m17.toml"), *arguments]
    with (root / "m17d.log").open("wb") as log:
        return subprocess.Popen(command, cwd=root, stderr=log, stdout=log)


def wait_for(process: subprocess.Popen[bytes], root: Path, text: str, timeout_s: float = 240) -> None:
    """Wait until the log has the text."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        seen = (root / "m17d.log").read_text()
        if text in seen:
            return
        assert process.poll() is None, seen
        time.sleep(0.02)
    raise AssertionError(f"no {text!r} in {seen}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one good file and a config for it."""
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(tmp_path, [SESSION])
    return tmp_path


def test_second_daemon_says_who_holds_the_state_and_touches_nothing(root: Path) -> None:
    """Its message names the holder's process id; socket and files stay as they were."""
    first = start(root)
    try:
        wait_for(first, root, "serving on")
        socket = root / "ledger.state" / "m17d.sock"
        before = (socket.stat().st_ino, sorted(os.listdir(root / "ledger.state")))
        second = flat_files.run(root)
        assert second.returncode == 1
        assert f"process {first.pid}" in second.stderr
        assert (socket.stat().st_ino, sorted(os.listdir(root / "ledger.state"))) == before
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 0
    assert not socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_daemon_cleanly(root: Path, number: int) -> None:
    """Exit 0, the socket gone, the lock free, and the state opens without repairs."""
    process = start(root)
    wait_for(process, root, "cells set")
    process.send_signal(number)
    assert process.wait(120) == 0
    with ledger.open(root / "ledger.state") as state:
        state.trade.session(state.calendar.session_seq(SESSION))
        assert state.repairs == []


def test_socket_path_that_is_too_long_is_refused_with_its_length(root: Path) -> None:
    """The message gives the limit, and the exit code is not 0."""
    config = root / "m17.toml"
    config.write_text(config.read_text() + f'[socket]\npath = "{"x" * 120}"\n')
    done = flat_files.run(root)
    assert done.returncode != 0
    assert "107" in done.stderr


def test_state_of_another_year_is_refused(root: Path) -> None:
    """A config that does not fit the disk says what differs; nothing is reset."""
    assert flat_files.run(root).returncode == 0
    config = root / "m17.toml"
    config.write_text(config.read_text().replace("year = 2013", "year = 2014").replace(SESSION, "2014-05-01"))
    done = flat_files.run(root)
    assert done.returncode == 1
    assert "calendar.year = 2014" in done.stderr
    assert "2013" in done.stderr


def test_directory_without_permission_is_said(tmp_path: Path) -> None:
    """A state directory that cannot be made is an error with path and errno, not a traceback."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    flat_files.write_config(tmp_path, [SESSION])
    config = tmp_path / "m17.toml"
    config.write_text(config.read_text().replace('"ledger.state"', '"file/ledger.state"'))
    (tmp_path / "flatfiles").mkdir()
    done = flat_files.run(tmp_path)
    assert done.returncode == 1
    assert str(blocker) in done.stderr
    assert "Traceback" not in done.stderr


def test_day_that_is_no_session_is_refused(root: Path) -> None:
    """A configured date without a session is named before anything runs."""
    config = root / "m17.toml"
    config.write_text(config.read_text().replace(SESSION, "2013-05-04"))
    done = flat_files.run(root)
    assert done.returncode == 1
    assert "2013-05-04" in done.stderr


def test_kill_in_the_middle_then_start_again_ends_with_the_same_digest(tmp_path: Path) -> None:
    """SIGKILL while files are read and committed; the next run completes with the digest of an undisturbed one."""
    sessions = ["2013-05-01", "2013-05-02", "2013-05-03", "2013-05-06"]
    tickers = tuple(f"T{number:03d}" for number in range(120))
    digests = []
    for name in ("calm", "killed"):
        folder = tmp_path / name
        for session in sessions:
            flat_files.write(folder, session, flat_files.packed(flat_files.good_lines(session, tickers)))
        flat_files.write_config(folder, sessions)
        if name == "killed":
            for _ in range(3):
                process = start(folder)
                wait_for(process, folder, "serving on")
                time.sleep(0.9)
                process.kill()
                process.wait()
        assert flat_files.run(folder).returncode == 0
        with ledger.open(folder / "ledger.state", readonly=True) as state:
            digests.append([list(session_digest(state, session))[-1] for session in sessions])
    assert digests[0] == digests[1]


def test_daemon_refuses_to_run_without_asserts() -> None:
    """``python -O`` deletes the checks that the code relies on."""
    done = subprocess.run([sys.executable, "-O", "-m", "m17d", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "-O" in done.stderr


def test_killed_before_settling_the_next_one_settles(tmp_path: Path) -> None:
    """What a complete source does not have is filled by the next daemon, although no engine comes back to the session."""
    kill = "import os, signal, m17d.runner as r; r.settle = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
    run = "from m17d.main import main; main()"
    digests = []
    for name in ("calm", "killed"):
        folder = tmp_path / name
        flat_files.write(folder, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
        flat_files.write_config(folder, [SESSION], extra='symbols = ["AAA", "BBB", "CCC"]')
        if name == "killed":
            command = [sys.executable, "-c", kill + run, "run", "--config", "m17.toml", "--until-idle"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == -signal.SIGKILL, done.stderr
        assert flat_files.run(folder).returncode == 0
        with ledger.open(folder / "ledger.state", readonly=True) as state:
            rows = state.trade.session(state.calendar.session_seq(SESSION))
            unset = rows.status[rows.column_index(Column.TRADE_REF), state.symbols.resolve("CCC")] != Status.FILLED
            assert not unset[: rows.place.minutes].any()
            digests.append(list(session_digest(state, SESSION))[-1])
    assert digests[0] == digests[1]
