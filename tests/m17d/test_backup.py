"""Copies of a state: through a running daemon, by the scripts that cron calls, and the state of a new year."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ledger
from ledger.columns import Column
from ledger.digests import session_digest
from ledger.errors import DamagedFile
from m17ctl.client import Client
from m17ctl.errors import RemoteFailure
from m17d import outcomes, protocol
from tests.ledger.states import findings
from tests.m17d import flat_files
from tests.m17d.test_daemon import start, wait_for

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = ["2013-05-01", "2013-05-02", "2013-05-03"]
TICKERS = tuple(f"T{number:03d}" for number in range(80))
SYMBOL_MAP = "symbol-map.bin"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a daemon in good order."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


def made(folder: Path) -> Path:
    """Files of three sessions and a config."""
    for session in SESSIONS:
        flat_files.write(folder, session, flat_files.packed(flat_files.good_lines(session, TICKERS)))
    flat_files.write_config(folder, SESSIONS)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose state is whole and closed; copy it, never change it."""
    folder = made(tmp_path_factory.mktemp("whole"))
    assert flat_files.run(folder).returncode == 0
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "-a", "--sparse=always", f"{whole}/.", tmp_path], check=True)
    return tmp_path


@pytest.fixture
def running(folder: Path) -> Iterator[Path]:
    """A daemon over the copy."""
    process = start(folder)
    wait_for(process, folder, "serving on", timeout_s=120)
    yield folder
    stop(process)


def client_of(folder: Path) -> Client:
    """A client of the daemon of a folder."""
    return Client(folder / "ledger.state" / "m17d.sock", timeout_s=120)


def backup(client: Client, target: Path) -> outcomes.BackupReply:
    """Have it made."""
    reply = client.call(protocol.BackupRequest(directory=str(target)), timeout_s=120)
    assert isinstance(reply, outcomes.BackupReply)
    return reply


def digests(state_dir: Path) -> list[object]:
    """Of every session."""
    with ledger.open(state_dir, readonly=True) as state:
        return [list(session_digest(state, session))[-1] for session in SESSIONS]


def disk_bytes(directory: Path) -> int:
    """What a directory takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*"))


def run_script(name: str, *arguments: object, tools: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One of the scripts, in a shell's way, with this interpreter's programs first, and ``tools`` before them."""
    path = ":".join([*([str(tools)] if tools else []), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [ROOT / "scripts" / name, *arguments]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )


def test_copy_made_while_engines_set_is_closed_and_can_be_finished(whole: Path, tmp_path: Path) -> None:
    """Whatever a copied row names was copied: it verifies, opens, and ends like the original."""
    process = start(made(tmp_path))
    try:
        wait_for(process, tmp_path, "serving on", timeout_s=120)
        with client_of(tmp_path) as client:
            done = backup(client, tmp_path / "copy" / "ledger.state")
            assert done.files > 10
    finally:
        stop(process)
    copy = tmp_path / "copy"
    assert findings(copy / "ledger.state") == []
    shutil.copytree(tmp_path / "flatfiles", copy / "flatfiles")
    flat_files.write_config(copy, SESSIONS)
    assert flat_files.run(copy).returncode == 0
    assert digests(copy / "ledger.state") == digests(whole / "ledger.state")


def test_repeated_backup_writes_what_changed(running: Path) -> None:
    """The second is small, holds the change, and stays sparse; the source's artifacts are not copied again."""
    target = running / "copy"
    with client_of(running) as client:
        first = backup(client, target)
        asked = protocol.Range(session=SESSIONS[0], symbols="T001")
        client.call(protocol.EnginesControlRequest(engine="trade_flatfile", action="pause"))
        client.call(protocol.ClearRequest(columns=[Column.TRADE_REF], range=asked, cause="test"))
        second = backup(client, target)
    assert second.bytes < first.bytes / 10
    assert findings(target) == []
    assert disk_bytes(target / "trade") < 2 * disk_bytes(running / "ledger.state" / "trade")
    with ledger.open(target, readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSIONS[0]))
        assert rows.slot(Column.TRADE_REF, state.symbols.resolve("T001"), 0).status.word == "cleared"
        assert [record.op for record in state.audit.tail(10)][-1] == "clear"


@pytest.mark.parametrize("what", ["artifact", "seal"])
def test_copy_of_something_damaged_is_not_called_done(running: Path, what: str) -> None:
    """The operator is told what is wrong and where, and nobody can open the copy."""
    state_dir, target = running / "ledger.state", running / "copy"
    with client_of(running) as client:
        # Mapped, and looked through by then: what is flipped now is found by nobody else.
        client.call(protocol.RowRequest(symbol="T001", at=f"{SESSIONS[0]}T10:00"))
    if what == "artifact":
        place, offset = next((state_dir / "artifacts").rglob("*.parquet")), 200
    else:
        place, offset = state_dir / "trade" / f"{SESSIONS[0]}.rows", 4096 + 32 + 32 + 12
    with place.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    with client_of(running) as client:
        with pytest.raises(RemoteFailure) as refused:
            backup(client, target)
        assert place.name in str(refused.value)
        assert (refused.value.code, refused.value.exit_code) == (
            ("state", 1) if what == "artifact" else ("checksum_mismatch", 1)
        )
    with pytest.raises(DamagedFile, match="not finished, or not verified"), ledger.open(target):
        pass


def test_directory_that_holds_something_else_is_refused(running: Path) -> None:
    """Nothing in it is touched; nor may a copy lie inside the state."""
    other = running / "other"
    other.mkdir()
    (other / "letter").write_text("dear")
    with client_of(running) as client:
        with pytest.raises(RemoteFailure) as refused:
            backup(client, other)
        assert refused.value.code == "state_exists"
        with pytest.raises(RemoteFailure) as refused:
            backup(client, running / "ledger.state" / "copy")
        assert refused.value.code == "bad_request"
    assert [path.name for path in other.iterdir()] == ["letter"]


@pytest.mark.parametrize("is_running", [False, True])
def test_archive_is_restored_to_an_equal_state(folder: Path, is_running: bool) -> None:
    """By the scripts, as cron calls them; holes stay holes both ways."""
    archive, target = folder / "archive.tar.zst", folder / "restored.state"
    process = start(folder) if is_running else None
    try:
        if process is not None:
            wait_for(process, folder, "serving on", timeout_s=120)
        done = run_script("archive-ledger.sh", folder / "ledger.state", archive)
        assert done.returncode == 0, done.stderr
    finally:
        if process is not None:
            stop(process)
    assert [path.name for path in folder.glob(".m17-backup*")] == []
    assert archive.stat().st_size < 4 << 20
    done = run_script("restore-ledger.sh", archive, target)
    assert done.returncode == 0, done.stderr
    assert digests(target) == digests(folder / "ledger.state")
    assert findings(target) == []
    assert disk_bytes(target) < 2 * disk_bytes(folder / "ledger.state")
    again = run_script("restore-ledger.sh", archive, target)
    assert again.returncode == 1
    assert "exists" in again.stderr


@pytest.mark.parametrize("code", [0, 2])
def test_archive_whose_tar_is_cut_short_is_not_made(folder: Path, code: int) -> None:
    """A tar that stops in the middle, whether it says so or not: no archive, no checksum, and the last archive stays."""
    archive, tools = folder / "archive.tar.zst", folder / "tools"
    tools.mkdir()
    (tools / "tar").write_text(
        f'#!/bin/sh\ncase " $* " in *" -cf "*) ;; *) exec {shutil.which("tar")} "$@" ;; esac\n'
        f'{shutil.which("tar")} "$@" | head -c 70000\nexit {code}\n'
    )
    (tools / "tar").chmod(0o755)
    done = run_script("archive-ledger.sh", folder / "ledger.state", archive, tools=tools)
    assert done.returncode != 0
    assert "archived" not in done.stdout
    assert [path.name for path in folder.glob("archive*")] == []
    assert run_script("archive-ledger.sh", folder / "ledger.state", archive).returncode == 0
    before = [path.read_bytes() for path in sorted(folder.glob("archive*"))]
    assert run_script("archive-ledger.sh", folder / "ledger.state", archive, tools=tools).returncode != 0
    assert [path.read_bytes() for path in sorted(folder.glob("archive*"))] == before


def test_archive_that_changed_is_not_restored(folder: Path) -> None:
    """By its checksum; and without one nothing is believed."""
    archive, target = folder / "archive.tar.zst", folder / "restored.state"
    assert run_script("archive-ledger.sh", folder / "ledger.state", archive).returncode == 0
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    done = run_script("restore-ledger.sh", archive, target)
    assert (done.returncode, "checksum" in done.stderr) == (1, True)
    archive.with_name(archive.name + ".sha256").unlink()
    done = run_script("restore-ledger.sh", archive, target)
    assert (done.returncode, "missing" in done.stderr) == (1, True)
    assert not target.exists()


def test_new_year_begins_with_the_symbols_that_were_asked_for(folder: Path) -> None:
    """In their old order; the old state is as it was, and running over it is no hindrance."""
    before = (folder / "ledger.state" / SYMBOL_MAP).read_bytes()
    command = [
        sys.executable,
        "-m",
        "m17d",
        "roll",
        "--year",
        "2014",
        "--state",
        "2014.state",
        "--keep-symbols",
        "T07*",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "10 symbols" in done.stdout
    with (
        ledger.open(folder / "2014.state", readonly=True) as new,
        ledger.open(folder / "ledger.state", readonly=True) as old,
    ):
        assert new.symbols.names() == [name for name in old.symbols.names() if name.startswith("T07")]
        assert (new.year, new.exchange, new.option_rows) == (2014, old.exchange, old.option_rows)
    assert (folder / "ledger.state" / SYMBOL_MAP).read_bytes() == before
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "2014.state" in again.stderr
