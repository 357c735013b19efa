"""The doctor: each thing that may be wrong is said with what to do, and nothing is said of what is right."""

from __future__ import annotations

import logging
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from m17d import doctoring
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.doctoring import Doctoring, file_system_kind
from tests.m17d import flat_files


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that does not run."""
    root = tmp_path_factory.mktemp("doctor")
    flat_files.write_config(root, ["2013-05-01"])
    made = Daemon(read_config(root / "m17.toml"), logging.getLogger("m17d-test"))
    yield made
    made.close()


@pytest.fixture
def doctor(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Doctoring:
    """Its doctor, in surroundings where nothing is wrong."""
    monkeypatch.setattr(doctoring, "file_system_kind", lambda _path: "ext4")
    monkeypatch.setattr(doctoring, "memory_max", lambda: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (65536, 65536))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 0, 1 << 40))
    return daemon.handlers.doctoring


class Usage(NamedTuple):
    """What a disk holds."""

    total: int
    used: int
    free: int


def codes(doctor: Doctoring) -> list[str]:
    """What it complains about; each with what to do."""
    found = doctor.doctor().findings
    assert all(one.message and one.hint for one in found)
    return [one.code for one in found]


def test_nothing_is_said_of_what_is_right(doctor: Doctoring) -> None:
    """And the facts are there: versions, limits, room."""
    assert codes(doctor) == []
    facts: dict[str, Any] = doctor.doctor().facts
    assert facts["m17"] == doctor.running and facts["numpy"] and facts["pyzmq"]
    assert facts["open_files"] > 0 and facts["processes_limit"] == 65536
    assert facts["state_dir_mode"].startswith("0")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("file_system_kind", lambda _path: "btrfs", "file_system"),
        ("file_system_kind", lambda _path: "nfs4", "file_system"),
        ("file_system_kind", lambda _path: "tmpfs", "file_system"),
        ("memory_max", lambda: 1 << 30, "memory"),
        ("_version", lambda _name: "9.9.9", "version"),
    ],
)
def test_surroundings_that_will_be_trouble_are_named(
    doctor: Doctoring, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, code: str
) -> None:
    """File systems that copy, of a network or in memory; little memory; another version on the disk."""
    monkeypatch.setattr(doctoring, name, value)
    assert codes(doctor) == [code]


def test_limits_of_files_and_processes_are_named(doctor: Doctoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few for a flood of connections, or for the workers."""
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (100, 100))
    assert codes(doctor) == ["open_files_limit", "processes_limit"]


def test_room_is_counted_in_bytes_and_in_sessions(doctor: Doctoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 2 GiB, or room for fewer than ten sessions like the newest."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 0, 1 << 30))
    assert codes(doctor) == ["space"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 0, 9 << 30))
    monkeypatch.setattr(doctor.runway, "_bytes_of_a_session", lambda: float(1 << 30))
    assert codes(doctor) == ["runway"]
    assert doctor.doctor().facts["runway_days"] == 9.0


def test_state_that_anybody_may_write_and_a_clock_that_was_set_back_are_named(
    doctor: Doctoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit log remembers a later time than now."""
    directory = doctor.state.directory
    mode = directory.stat().st_mode & 0o7777
    directory.chmod(mode | 0o002)
    try:
        assert codes(doctor) == ["permissions"]
    finally:
        directory.chmod(mode)
    newest = doctor.state.audit.append_recovery({}, "test", "test")
    monkeypatch.setattr(doctor.state.system, "now_ns", lambda: newest.ts_ns - 60 * 10**9)
    assert codes(doctor) == ["clock"]


def test_kind_of_a_file_system_is_that_of_the_longest_mount(tmp_path: Path) -> None:
    """/proc is told from what lies under the root."""
    assert file_system_kind(Path("/proc/self")) == "proc"
    assert file_system_kind(tmp_path) not in ("", "proc")


def test_a_daemon_that_may_have_few_descriptors_says_so_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood could end it, and it may not raise its limit: the log has the limit and what to do."""
    flat_files.write_config(tmp_path, ["2013-05-01"])
    for limit, said in ((256, True), (1_024, False)):
        caplog.clear()
        monkeypatch.setattr("m17d.daemon.raise_descriptor_limit", lambda limit=limit: limit)
        Daemon(read_config(tmp_path / "m17.toml"), logging.getLogger("m17d-test")).close()
        assert ("at most 256 open files" in caplog.text) is said
        assert ("LimitNOFILE=65536" in caplog.text) is said
