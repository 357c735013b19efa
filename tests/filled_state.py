"""One real session filled by every engine, once a test run: what looks at cells starts from a copy of it."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
SESSION = "2014-06-06"
"""AAPL and TWX with their options: trades, quotes, curves and everything derived."""
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")


def config(session: str = SESSION, extra: str = "") -> str:
    """A config of every batch engine over the shared data."""
    source = f'source = "{DATA / "flatfiles"}"\nsessions = {json.dumps([session])}\n'
    return (
        f'state_dir = "ledger.state"\n{extra}\n[runner]\nworkers = 2\n[calendar]\nyear = {session[:4]}\n'
        f'[engines.treasury]\nsource = "{DATA / "treasury" / "treasury-yields.json"}"\n'
        f"[engines.trade_flatfile]\n{source}[engines.quote]\n{source}"
        "[engines.nbbo]\n[engines.greeks]\n[engines.aggregation]\n"
    )


def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the filled state with its config; shared by all workers of a test run, so only ever copied."""
    base = tmp_path_factory.getbasetemp()
    # Every worker of xdist has a folder of its own below the run's.
    folder = (base.parent if base.name.startswith("popen-") else base) / "filled-session"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            (folder / "m17.toml").write_text(config())
            command = [sys.executable, "-m", "m17d", "run", "--config", "m17.toml", "--until-idle"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=560, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "done").touch()
    return folder


def copy_of(folder: Path, target: Path, *, extra: str = "") -> Path:
    """A copy of a folder's state, its files as sparse as they were, with a config of its own."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", folder / "ledger.state", target], check=True)
    (target / "m17.toml").write_text(config(extra=extra))
    return target
