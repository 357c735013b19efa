"""
A writer in a process of its own, that tells its events through a pipe and can be killed, or stopped, at any moment.

``python -m tests.ledger.killed DIRECTORY SEED PHASES POLICY`` writes pickled events to its standard output until it is
killed; with ``wait`` for phases it only opens the state, and recovers it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ledger.files import System
from tests.ledger.writer import ORDERED, Promises, Writer

ROOT = Path(__file__).resolve().parents[2]


class Victim:
    """The process, and everything it has told."""

    def __init__(
        self, directory: Path, seed: int, phases: list[str], promises: Promises, policy: str = ORDERED
    ) -> None:
        command = [sys.executable, "-m", "tests.ledger.killed", str(directory), str(seed), ",".join(phases), policy]
        self.promises = promises
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(pickle.dumps(promises))
        self.process.stdin.close()
        self._pipe = self.process.stdout
        self._read = bytearray()
        os.set_blocking(self._pipe.fileno(), False)

    def hear(self) -> Iterator[tuple[str, Any]]:
        """Take what was told since the last time."""
        while data := self._pipe.read(1 << 20):
            self._read += data
        while len(self._read) >= 4 and len(self._read) - 4 >= (size := int.from_bytes(self._read[:4], "little")):
            event = pickle.loads(self._read[4 : 4 + size])
            del self._read[: 4 + size]
            self.promises.take(event)
            yield event

    def wait_for(self, phase: str, timeout_s: float = 240) -> None:
        """Return as soon as it has told that it begins a phase."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if ("phase", phase) in list(self.hear()):
                return
            assert self.process.poll() is None, f"it ended by itself with {self.process.returncode}"
            time.sleep(0.0005)
        raise AssertionError(f"it never began {phase}")

    def stop(self) -> None:
        """SIGSTOP; when this returns it does nothing any more, and all that it told was heard."""
        self.process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.0005)
        list(self.hear())

    def kill(self) -> None:
        """SIGKILL; what it had told is heard."""
        self.process.kill()
        self.process.wait()
        list(self.hear())
        self._pipe.close()


def main() -> None:
    """Be the victim."""
    directory, seed, phases, policy = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4]
    chance = random.Random(seed)
    out, promises = sys.stdout.fileno(), pickle.load(sys.stdin.buffer)

    def tell(event: tuple[str, Any]) -> None:
        message = pickle.dumps(event)
        data = memoryview(len(message).to_bytes(4, "little") + message)
        while data:
            data = data[os.write(out, data) :]

    tell(("phase", "opening"))
    writer = Writer(directory, System(), chance, tell=tell, policy=policy, promises=promises)
    for ledger in (writer.state.trade, writer.state.enrichment):
        for seq in ledger.existing():
            ledger.session(seq)
    while True:
        if phases == ["wait"]:
            signal.pause()
        writer.step(chance.choice(phases))
        if policy != ORDERED or chance.random() < 0.3:
            write_back(writer, chance)


def write_back(writer: Writer, chance: random.Random) -> None:
    """What the kernel may do at any time: write some pages of the rows."""
    for ledger in (writer.state.trade, writer.state.enrichment):
        for rows in ledger.mapped().values():
            mapping = rows._map
            for symbol_id in chance.sample(range(6), 2):
                start = mmap.PAGESIZE * (1 + chance.randrange(4)) + symbol_id * (64 << 10)
                mapping.flush(start, mmap.PAGESIZE)


if __name__ == "__main__":
    main()
