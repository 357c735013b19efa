"""``m17ctl wait`` against the real answers: how long it will still take, from cells that are cleared and come back."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ledger.columns import Column
from m17d import protocol
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.peers import Context, Peer
from tests.m17ctl.fakes import m17ctl
from tests.m17d import flat_files

SESSION = "2013-05-01"
ME = Peer(os.getuid(), os.getgid(), os.getpid(), "me", frozenset({"read", "operate"}))
WAIT = ("wait", "--session", SESSION, "--symbols", "AAA", "--columns", "trade_ref")
HALF_HOURS = ("10:00", "10:30", "11:00", "11:30", "12:00")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A day of two stocks, filled, in a daemon that does not run: no engine refills what is cleared."""
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(tmp_path, [SESSION])
    done = flat_files.run(tmp_path)
    assert done.returncode == 0, done.stderr
    opened = Daemon(read_config(tmp_path / "m17.toml"), logging.getLogger("m17d-test"))
    yield opened
    opened.close()


def asked(daemon: Daemon, request: protocol.Request, key: str = "") -> Any:
    """A request's answer, all steps taken."""
    answer = daemon.handlers.handle(request, Context(ME, key))
    return [one for one in answer if one is not None][-1] if isinstance(answer, Iterator) else answer


def test_wait_says_how_long_it_takes_at_the_speed_of_the_range(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing before anything has come back; thirty of 120 cells in half a minute leave a minute and a half; whole at last."""
    operations = []
    for number, (start, end) in enumerate(itertools.pairwise(HALF_HOURS)):
        chosen = protocol.Range(session=SESSION, from_ts=start, to_ts=end, symbols="AAA")
        clear = protocol.ClearRequest(columns=[Column.TRADE_REF], range=chosen, cause="test", accept_loss=True)
        operations.append(asked(daemon, clear, f"clear-{number}").operation)
    now = [1_000.0]

    def sleep(_seconds: float) -> None:
        now[0] += 30.0
        asked(daemon, protocol.UndoRequest(operation=operations.pop(0), cause="test"), f"undo-{len(operations)}")

    # Not the whole process's: the daemon's flusher sleeps, too.
    for module in ("m17d.wholeness", "m17ctl.invocation"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))

    def handler(request: protocol.Request) -> Any:
        return asked(daemon, request)

    first = m17ctl(handler, "--json", *WAIT, "--timeout", "0")
    assert first.code == 3
    assert json.loads(first.out)["remaining"] == {"trade_ref": 120}
    assert json.loads(first.out)["eta_s"] is None
    later = m17ctl(handler, *WAIT, "--timeout", "30")
    assert later.code == 3
    assert "about 1 min 30 s left at the speed so far" in later.out.replace("\n", " "), later.out
    seen = m17ctl(handler, "--json", *WAIT, "--timeout", "0")
    assert json.loads(seen.out)["eta_s"] == pytest.approx(90.0)
    shown = m17ctl(handler, *WAIT, answers="", width=100)
    assert shown.code == 0
    assert "60/90 cells  66.7 %  1.0/s  30 s left" in shown.err, shown.err
    assert "whole: 390 cells" in shown.out
