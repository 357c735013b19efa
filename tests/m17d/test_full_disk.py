"""The daemon on a disk that fills up, and on one that turns read-only: engines pause, reads go on, nothing is lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column
from ledger.digests import session_digest
from m17ctl.client import Client
from m17ctl.errors import RemoteFailure
from m17d import protocol, replies
from tests.ledger.states import findings
from tests.ledger.test_power_images import command, make_image
from tests.m17d import flat_files
from tests.m17d.test_daemon import start, wait_for

SESSIONS = ["2013-05-01", "2013-05-02", "2013-05-03", "2013-05-06"]
TICKERS = tuple(f"T{number:03d}" for number in range(60))
SMALL, LARGE = "12m", "64m"
"""Room for two sessions and something, and for all of them."""
ROOM = 120.0
"""Seconds that anything may take on a busy machine."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with files to read, and ``disk`` in it to mount something on."""
    made = Path(tempfile.mkdtemp(prefix="m17-disk-"))
    (made / "disk").mkdir()
    for session in SESSIONS:
        flat_files.write(made, session, flat_files.packed(flat_files.good_lines(session, TICKERS)))
    flat_files.write_config(made, SESSIONS)
    config = made / "m17.toml"
    config.write_text(config.read_text().replace('"ledger.state"', '"disk/ledger.state"'))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def small(folder: Path) -> Iterator[Path]:
    """``disk`` is a tmpfs that is too small."""
    try:
        command("mount", "-t", "tmpfs", "-o", f"size={SMALL}", "none", folder / "disk")
    except OSError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield folder
    command("umount", folder / "disk")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + ROOM
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def status(client: Client) -> replies.StatusReply:
    """The page."""
    reply = client.call(protocol.StatusRequest())
    assert isinstance(reply, replies.StatusReply)
    return reply


def is_paused(client: Client) -> bool:
    """Whether the engine pauses because of the disk, and says so."""
    said = status(client).engines["trade_flatfile"]
    return said.state == "paused" and "No space left" in said.detail


def filled(client: Client) -> int:
    """Filled cells of trades."""
    return status(client).columns[Column.TRADE_REF].filled


def digests(state_dir: Path) -> list[object]:
    """Of every session, by another process's eyes."""
    with ledger.open(state_dir, readonly=True) as state:
        return [list(session_digest(state, session))[-1] for session in SESSIONS]


def test_full_disk_pauses_the_engines_and_room_lets_them_go_on(small: Path) -> None:
    """
    Paused with the reason; rows are read and verified meanwhile; with room the day ends as if nothing had been.

    Nobody has to ask for it, no record is written for nothing, and no page of a full tmpfs is touched (it would be SIGBUS).
    """
    state_dir, process = small / "disk" / "ledger.state", start(small)
    try:
        wait_for(process, small, "engines pause", timeout_s=ROOM)
        with Client(state_dir / "m17d.sock", timeout_s=120) as client:
            until(lambda: is_paused(client), "never paused")
            records = client.call(protocol.VerifyRequest()).orphans.records
            seen = status(client)
            assert seen.verdict.startswith("nothing is written")
            assert any("nothing is written" in one for one in seen.warnings)
            assert seen.space.free_bytes < 4 << 20
            assert seen.space.runway_days is not None
            assert seen.space.runway_days < 2
            row = client.call(protocol.RowRequest(symbol="T001", at=f"{SESSIONS[-1]}T10:00"))
            assert row.slots[Column.TRADE_REF].status == "filled"
            # Rows that were never touched, of a session that has a file and of one that has none.
            for session in (SESSIONS[0], "2013-06-03"):
                row = client.call(protocol.RowRequest(symbol="T059", at=f"{session}T10:00"))
                assert row.slots[Column.TRADE_REF].status in ("empty", "filled")
            with ledger.open(state_dir, readonly=True) as beside:
                assert beside.scan("trade_ref", sessions=SESSIONS[-1]).collect().height > 2_000
                newest = beside.trade.session(beside.calendar.session_seq(SESSIONS[-1]))
                # Blocks that nobody touched, among those that are there.
                assert newest.slots(Column.TRADE_REF, np.arange(40, 200))["version"].any(axis=1).sum() == 20
                assert newest.slots(Column.TRADE_REF, np.arange(300, 310), np.arange(10))["version"].max() == 0
                assert newest.slot(Column.TRADE_REF, 9_999, 389).version == 0
            assert status(client).pid == process.pid
            # Several attempts later it has still not written the same records again and again.
            end = time.monotonic() + 5
            until(lambda: time.monotonic() > end, "")
            found = client.call(protocol.VerifyRequest())
            assert found.findings == []
            assert found.orphans.records == records
            assert (small / "m17d.log").read_text().count("engines pause") == 1
            command("mount", "-o", f"remount,size={LARGE}", small / "disk")
            until(lambda: filled(client) == len(SESSIONS) * 60 * 390, "work was not resumed")
            assert "there is room again" in (small / "m17d.log").read_text()
            assert client.call(protocol.VerifyRequest()).findings == []
        seen_digests = digests(state_dir)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert findings(state_dir) == []
    calm = small / "calm"
    shutil.copytree(small / "flatfiles", calm / "flatfiles")
    flat_files.write_config(calm, SESSIONS)
    assert flat_files.run(calm).returncode == 0
    assert seen_digests == digests(calm / "ledger.state")


def test_operator_is_told_that_there_is_no_room(small: Path) -> None:
    """A clear needs room for its undo: it is refused whole, and the cells stay."""
    state_dir, process = small / "disk" / "ledger.state", start(small)
    try:
        wait_for(process, small, "engines pause", timeout_s=ROOM)
        with Client(state_dir / "m17d.sock", timeout_s=120) as client:
            until(lambda: is_paused(client), "never paused")
            filler = small / "disk" / "filler"
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 16, 1 << 12):
                    with suppress(OSError):
                        while file.write(bytes(size)):
                            pass
            asked = protocol.Range(session=SESSIONS[-1], symbols="T001")
            request = protocol.ClearRequest(columns=[Column.TRADE_REF], range=asked, cause="test")
            with pytest.raises(RemoteFailure) as refused:
                client.call(request)
            assert (refused.value.code, refused.value.exit_code) == ("state_full", 1)
            row = client.call(protocol.RowRequest(symbol="T001", at=f"{SESSIONS[-1]}T10:00"))
            assert row.slots[Column.TRADE_REF].status == "filled"
            filler.unlink()
            until(lambda: is_paused(client), "not paused any more")
            assert client.call(request).cleared[Column.TRADE_REF] == 390
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert findings(state_dir) == []


def test_disk_that_turns_read_only_pauses_everything_that_writes(folder: Path) -> None:
    """As ext4 does it when it meets an error: reads go on, writes are refused with the reason, a restart says so."""
    image, disk = folder / "image", folder / "disk"
    try:
        make_image(image)
        command("mount", "-o", "loop,errors=remount-ro", image, disk)
    except OSError as error:
        pytest.skip(f"no ext4 image can be mounted here: {error}")
    process = None
    try:
        device = subprocess.run(["findmnt", "-no", "SOURCE", disk], capture_output=True, text=True, check=True).stdout
        trigger = Path("/sys/fs/ext4") / Path(device.strip()).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("this kernel has no way to make ext4 meet an error")
        flat_files.write_config(folder, SESSIONS[:1])
        config = folder / "m17.toml"
        config.write_text(config.read_text().replace('"ledger.state"', '"disk/ledger.state"'))
        process = start(folder)
        with_cells = Client(disk / "ledger.state" / "m17d.sock", timeout_s=120)
        wait_for(process, folder, "cells set", timeout_s=ROOM)
        with with_cells as client:
            until(lambda: filled(client) == 60 * 390, "never whole")
            trigger.write_text("broken by a test")
            request = protocol.ClearRequest(
                columns=[Column.TRADE_REF], range=protocol.Range(session=SESSIONS[0], symbols="T001"), cause="test"
            )
            with pytest.raises(RemoteFailure) as refused:
                client.call(request)
            assert (refused.value.code, refused.value.exit_code) == ("state_read_only", 1)
            row = client.call(protocol.RowRequest(symbol="T001", at=f"{SESSIONS[0]}T10:00", payload=True))
            assert row.slots[Column.TRADE_REF].status == "filled"
            assert client.call(protocol.VerifyRequest()).findings == []
            assert status(client).pid == process.pid
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        command("umount", disk)
    log = (folder / "m17d.log").read_text()
    # It could not close in order, and says why; nothing else went wrong.
    assert code == 1
    assert log.splitlines()[-1].startswith("m17d: ")
    assert "Read-only file system" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert "Bus error" not in log
    # A repair of the disk, and it goes on as if nothing had been.
    with suppress(OSError):
        command("e2fsck", "-fy", image)
    command("mount", "-o", "loop", image, disk)
    try:
        assert flat_files.run(folder).returncode == 0
        assert findings(disk / "ledger.state") == []
    finally:
        command("umount", disk)
