"""A real daemon as a process of its own, for benchmarks and storms: ``m17d run`` in a folder, and what it takes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from m17ctl.client import Client
from m17ctl.errors import ClientError
from m17d.protocol import PingRequest

START_SECONDS = 240.0
STOP_SECONDS = 240.0


@contextlib.contextmanager
def running(
    folder: Path, *, until: str = "", descriptors: int = 0, path: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """
    ``m17d run`` over ``m17.toml`` of a folder, serving; its log in ``m17d.log``. Ended in good order, or it fails.

    Args:
        until: words of the log to wait for.
        descriptors: soft limit to start with; 0 for this process's.
        path: the socket, where the config names another.
    """
    with (folder / "m17d.log").open("ab") as log:
        command = [sys.executable, "-m", "m17d", "run", "--config", "m17.toml"]
        if descriptors:
            command = ["sh", "-c", f'ulimit -S -n {descriptors} && exec "$@"', "sh", *command]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_served(path or socket_of(folder), process)
        end = time.monotonic() + START_SECONDS
        while until not in (folder / "m17d.log").read_text():
            assert process.poll() is None and time.monotonic() < end, (folder / "m17d.log").read_text()[-2_000:]
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
    assert code == 0, (folder / "m17d.log").read_text()[-2_000:]


def socket_of(folder: Path) -> Path:
    """Where a daemon of a folder listens."""
    return folder / "ledger.state" / "m17d.sock"


def wait_served(path: Path, process: subprocess.Popen[bytes], timeout_s: float = START_SECONDS) -> None:
    """Wait until the daemon answers."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            with Client(path, 5) as client:
                client.call(PingRequest())
                return
        except ClientError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no daemon at {path}: {error}") from error
            time.sleep(0.02)
