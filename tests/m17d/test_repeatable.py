"""
One digest, however a session came to be: workers, order, places, kills, clears and refills change no content.

Real sessions through the whole daemon with every engine, chain rows and contract rows. The storms kill daemons and single
workers with SIGKILL at seeded times and clear or refresh seeded ranges; a small one runs always, the large one with --slow.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import m17d.daemon
from engines.contract import Task, Workplace
from ledger.columns import Column
from m17ctl.client import Client
from m17d import protocol
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.pool import Done, Failed, NoRoom, Pool, compute, result_of
from tests.m17d.test_derived_sessions import CHAINS, configure, fill, served
from tests.m17d.test_greeks_sessions import ENGINES as GREEKS_ENGINES
from tests.m17d.test_greeks_sessions import NEWS
from tests.m17d.test_real_sessions import DATA, session_digest

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

ENGINES = f"[engines.nbbo]\n{GREEKS_ENGINES}\n[engines.aggregation]"
SMALL, LARGE = (NEWS, "contract"), (CHAINS, "chain")


class Calm:
    """Digests of undisturbed runs, each made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str, str], str] = {}

    def digest(self, session: str, option_rows: str) -> str:
        """Of a session filled by two workers, without an interruption."""
        key = (session, option_rows)
        if key not in self._known:
            folder = self._root / f"{session}-{option_rows}"
            configure(folder, session, option_rows, nbbo=ENGINES)
            fill(folder)
            self._known[key] = session_digest(folder, session)
        return self._known[key]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """Nothing is filled yet."""
    return Calm(tmp_path_factory.mktemp("calm"))


class InlinePool(Pool):
    """A pool without processes: a task is computed where it is given, in the daemon's own."""

    def __init__(self, size: int, **how: Any) -> None:
        super().__init__(size, **how)
        self._how = how
        self._results: list[Done | Failed | NoRoom] = []

    def start(self, task: Task) -> str:
        """Compute it at once."""
        self._sequence += 1
        name = f"{self._batch_prefix()}-{self._sequence:06d}"
        workplace = Workplace(self._how["artifact_root"], self._how["temporary"], name, lambda _done, _total: None)
        kind, body = compute(task, workplace)
        self._results.append(result_of(task, kind, body))
        return name

    def collect(self) -> list[Any]:
        """What was computed since the last call."""
        found, self._results = self._results, []
        return found


def backwards(folder: Path) -> None:
    """Name the engines in the opposite order, so that they are started in it."""
    head, *tables = (folder / "m17.toml").read_text().split("[engines.")
    (folder / "m17.toml").write_text(head + "".join(f"[engines.{one.strip()}\n" for one in reversed(tables)))


@pytest.mark.parametrize(
    ("case", "workers", "order"),
    [
        pytest.param(SMALL, 4, backwards),
        pytest.param(SMALL, 1, None, marks=pytest.mark.slow),
        pytest.param((NEWS, "chain"), 1, backwards, marks=pytest.mark.slow),
        pytest.param(LARGE, 1, None, marks=pytest.mark.slow),
        pytest.param(LARGE, 4, backwards, marks=pytest.mark.slow),
        pytest.param((CHAINS, "contract"), 4, None, marks=pytest.mark.slow),
    ],
)
def test_workers_and_order_of_engines_change_nothing(
    case: tuple[str, str], workers: int, order: Callable[[Path], None] | None, calm: Calm, tmp_path: Path
) -> None:
    """One worker, four, engines started first to last or last to first: the digest of the calm run."""
    configure(tmp_path, *case, workers=workers, nbbo=ENGINES)
    if order:
        order(tmp_path)
    fill(tmp_path)
    assert session_digest(tmp_path, case[0]) == calm.digest(*case)


@pytest.mark.parametrize("case", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_inline_equals_pool(case: tuple[str, str], calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in the daemon's own process, task by task, instead of by workers."""
    monkeypatch.setattr(m17d.daemon, "Pool", InlinePool)
    configure(tmp_path, *case, nbbo=ENGINES)
    daemon = Daemon(read_config(tmp_path / "m17.toml"), logging.getLogger("m17d-test"))
    try:
        assert daemon.run(until_idle=True).code == 0
    finally:
        daemon.close()
    assert session_digest(tmp_path, case[0]) == calm.digest(*case)


class Storm:
    """Seeded kills and repairs of one state."""

    def __init__(self, folder: Path, session: str, seed: int) -> None:
        self.folder = folder
        self.session = session
        self.random = random.Random(seed)
        self.kills = {"daemon": 0, "worker": 0}

    def start(self) -> subprocess.Popen[bytes]:
        """A daemon that runs."""
        command = [sys.executable, "-m", "m17d", "run", "--config", "m17.toml"]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill_something(self, longest_s: float) -> None:
        """Run the daemon for a moment, then kill it, or single workers of it until it has run for long enough."""
        daemon = self.start()
        until = time.monotonic() + longest_s
        while True:
            time.sleep(self.random.uniform(0.05, longest_s / 2))
            workers = workers_of(daemon.pid)
            if workers and self.random.random() < 0.5 and time.monotonic() < until:
                os.kill(self.random.choice(workers), signal.SIGKILL)
                self.kills["worker"] += 1
                continue
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            self.kills["daemon"] += 1
            return

    def repair(self, client: Client) -> None:
        """Clear or refresh a seeded range of seeded columns, with or without what was made from it."""
        columns = self.random.sample(list(Column), self.random.randint(1, 4))
        first = self.random.randrange(0, 380)
        last = min(390, first + self.random.choice([1, 7, 60, 390]))
        begin, end = (f"{(570 + at) // 60:02d}:{(570 + at) % 60:02d}" for at in (first, last))
        symbols = self.random.choice([None, "O:*", "*0"])
        where = protocol.Range(session=self.session, from_ts=begin, to_ts=end, symbols=symbols)
        kind = self.random.choice([protocol.ClearRequest, protocol.RefreshRequest])
        how = {"cascade": self.random.random() < 0.5} if kind is protocol.ClearRequest else {}
        client.call(kind(columns=columns, range=where, cause="storm", confirmed=True, **how))


def workers_of(pid: int) -> list[int]:
    """The worker processes of a daemon; not the one that tracks resources for Python."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    except OSError:
        return []  # one ended while it was looked at


def nothing_selected(error: Exception) -> bool:
    """Whether a range had no symbol or cell that could be touched."""
    return getattr(error, "code", "") == "nothing_selected"


@pytest.mark.parametrize(
    ("case", "kills"),
    [
        pytest.param(SMALL, 2),
        pytest.param((NEWS, "chain"), 20, marks=pytest.mark.slow),
        pytest.param(LARGE, 20, marks=pytest.mark.slow),
        pytest.param((CHAINS, "contract"), 20, marks=pytest.mark.slow),
    ],
)
def test_after_random_kills_the_digest_is_that_of_the_calm_run(
    case: tuple[str, str], kills: int, calm: Calm, tmp_path: Path
) -> None:
    """SIGKILL of daemons and of single workers at seeded times while the session is filled, then one run to the end."""
    configure(tmp_path, *case, nbbo=ENGINES)
    storm = Storm(tmp_path, case[0], seed=20)
    while sum(storm.kills.values()) < kills:
        storm.kill_something(4.0 if case[0] == CHAINS else 2.0)
    fill(tmp_path)
    assert session_digest(tmp_path, case[0]) == calm.digest(*case)
    verified = subprocess.run(
        [sys.executable, "-m", "m17d", "verify", "--state", "ledger.state"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize(
    ("case", "repairs"),
    [
        pytest.param(SMALL, 2),
        pytest.param((NEWS, "chain"), 20, marks=pytest.mark.slow),
        pytest.param(LARGE, 20, marks=pytest.mark.slow),
        pytest.param((CHAINS, "contract"), 12, marks=pytest.mark.slow),
    ],
)
def test_after_clears_and_refreshes_of_random_ranges_the_digest_is_that_of_the_calm_run(
    case: tuple[str, str], repairs: int, calm: Calm, tmp_path: Path
) -> None:
    """While engines fill what the ones before took away; every second time the daemon is killed over it."""
    configure(tmp_path, *case, nbbo=ENGINES)
    fill(tmp_path)
    assert session_digest(tmp_path, case[0]) == calm.digest(*case)
    storm = Storm(tmp_path, case[0], seed=4)
    done = 0
    while done < repairs:
        with served(tmp_path) as client:
            for _ in range(min(2, repairs - done)):
                try:
                    storm.repair(client)
                except Exception as error:
                    if not nothing_selected(error):
                        raise
                done += 1
                time.sleep(storm.random.uniform(0.0, 0.8))
        storm.kill_something(1.0)
    fill(tmp_path)
    assert session_digest(tmp_path, case[0]) == calm.digest(*case)
