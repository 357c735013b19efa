"""
Somebody else: a client in a process of its own that asks all the time, and says how long it waited and what the daemon grew.

``python bystander.py SOCKET PID`` pings until its standard input ends, then prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m17ctl.client import Client
from m17d.protocol import PingRequest

_ASKED_LEAST = 20
"""Times that it asks, however soon it is told to end."""


@dataclass(slots=True)
class Seen:
    """What a bystander saw; filled when it has ended."""

    asked: int = 0
    worst_ms: float = 0.0
    p99_ms: float = 0.0
    grown_bytes: int = 0
    """Most resident memory that the daemon had beyond what it began with."""

    def __str__(self) -> str:
        return (
            f"memory grew by {self.grown_bytes / 2**20:.1f} MiB at most; another client asked {self.asked} times and waited"
            f" {self.worst_ms:.1f} ms at worst, {self.p99_ms:.1f} ms in 99 of 100"
        )


@contextlib.contextmanager
def bystander(path: Path, process: int) -> Iterator[Seen]:
    """Run one while something happens to the daemon."""
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, __file__, str(path), str(process)]
    seen = Seen()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, text=True
    ) as asking:
        assert asking.stdin is not None and asking.stdout is not None
        assert asking.stdout.readline() == "asking\n"
        try:
            yield seen
        finally:
            asking.stdin.close()
            said = asking.stdout.read()
    assert asking.returncode == 0
    for name, value in json.loads(said).items():
        setattr(seen, name, value)


def resident_bytes(process: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def main() -> None:
    """Ask every few milliseconds, with as much patience as a person has."""
    process, over = int(sys.argv[2]), threading.Event()
    waits: list[float] = []
    with Client(sys.argv[1], 60) as client:
        client.call(PingRequest())
        before = most = resident_bytes(process)
        print("asking", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
        while not over.wait(0.004) or len(waits) < _ASKED_LEAST:
            started = time.perf_counter()
            client.call(PingRequest())
            waits.append((time.perf_counter() - started) * 1e3)
            most = max(most, resident_bytes(process))
    waits.sort()
    worst, p99 = (waits[-1], waits[int(len(waits) * 0.99)]) if waits else (0.0, 0.0)
    print(json.dumps({"asked": len(waits), "worst_ms": worst, "p99_ms": p99, "grown_bytes": most - before}))


if __name__ == "__main__":
    main()
