"""Who may not operate is told so with exit 4, and is in the audit log, however often."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

import pytest

from ledger.audit import Operator
from ledger.state import create_state, open_state
from m17ctl.client import Client
from m17ctl.main import run as m17ctl
from m17d.denials import WRITTEN_A_MINUTE, Denials
from m17d.protocol import AuditRequest
from tests.m17d import flat_files
from tests.m17d.daemon_process import running
from tests.m17d.wire_daemon import as_another_user

SESSION = "2013-05-01"
NOBODY = 65_533


def test_a_reader_gets_exit_4_and_a_sentence_and_the_attempt_is_audited(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Over the real socket as another user: a look is allowed, every change is not, and the kernel's uid is written down."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(tmp_path, [SESSION])
    # Not below pytest's own folder, which another run may close to others at any time.
    public = tempfile.TemporaryDirectory(prefix="m17-")
    request.addfinalizer(public.cleanup)
    os.chmod(public.name, 0o755)
    socket = f"{public.name}/open.sock"
    config = tmp_path / "m17.toml"
    config.write_text(config.read_text() + f'[socket]\nmode = "0666"\npath = "{socket}"\n')

    def attempt(*words: str) -> str:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = m17ctl(["--socket", socket, *words])
        return f"{code} {said.getvalue()}"

    chosen = ("clear", "trade_ref", "--session", SESSION, "--cause", "I may not")
    with running(tmp_path, until="cells set", path=Path(socket)):
        looked = as_another_user(NOBODY, lambda: attempt(*chosen, "--dry-run"))
        denied = as_another_user(NOBODY, lambda: attempt(*chosen, "--yes"))
        paused = as_another_user(NOBODY, lambda: attempt("engines", "pause", "trade_flatfile"))
        with Client(socket) as client:
            records = client.call(AuditRequest(tail=2, verify=True))
    assert looked.startswith("0 ")
    assert denied.startswith("4 ") and f"({NOBODY}) may not clear: it needs the role operate" in denied
    assert "operate_users or operate_groups" in denied
    assert paused.startswith("4 ")
    assert [(one["op"], one["operator"]["uid"], one["result"]) for one in records.records] == [
        ("clear", NOBODY, "denied: role operate needed"),
        ("engines_control", NOBODY, "denied: role operate needed"),
    ]
    assert records.chain == "intact"


def test_one_who_tries_all_day_is_written_down_in_a_few_lines(tmp_path: Path) -> None:
    """Ten singly, the rest of the minute as a number, and the next minute again; another user has lines of their own."""
    create_state(tmp_path / "s", year=2013)
    now = [0.0]
    with open_state(tmp_path / "s") as state:
        before = state.audit.head[0]
        denials = Denials(state, lambda: now[0])
        me, other = (Operator(uid=uid, gid=1, pid=1, user="") for uid in (7, 8))
        for _ in range(5_000):
            denials.note("clear", me, {})
        denials.note("gc", other, {"ssh": "10.0.0.1"})
        assert state.audit.head[0] - before == WRITTEN_A_MINUTE + 1
        now[0] = 61.0
        denials.settle()
        denials.settle()
        last = state.audit.tail(1)[0]
        assert (last.op, last.operator.uid) == ("denied", 7)
        assert f"{5_000 - WRITTEN_A_MINUTE} more attempts" in last.result
        denials.note("clear", me, {})
        assert state.audit.head[0] - before == WRITTEN_A_MINUTE + 3
        assert state.audit.verify() == []
