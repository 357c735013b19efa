"""Under systemd: the units hold, the daemon says when it is ready and that it lives, logs with priorities, and reloads."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.m17d import flat_files
from tests.m17d.test_daemon import wait_for

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SESSION = "2013-05-01"


class Unit:
    """A daemon as systemd runs it, and what it tells systemd."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(root / "notify"))
        self.notify.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(root / "notify"), "JOURNAL_STREAM": "8:1"}
        with (root / "m17d.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "m17d", "run", "--config", "m17.toml"],
                cwd=root, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def told(self) -> str:
        """The next thing that it tells systemd."""
        return self.notify.recv(256).decode()

    def forget(self) -> None:
        """Drop what it has told so far."""
        self.notify.setblocking(False)
        try:
            while True:
                self.notify.recv(256)
        except BlockingIOError:
            self.notify.settimeout(120)

    def logged(self, text: str) -> str:
        """The line of the log that has a text, once it is there."""
        wait_for(self.process, self.root, text)  # type: ignore[arg-type]
        return next(line for line in (self.root / "m17d.log").read_text().splitlines() if text in line)


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    """A daemon over one file."""
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(tmp_path, [SESSION])
    made = Unit(tmp_path)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        made.notify.close()


def test_it_is_ready_when_it_serves_lives_while_its_loop_turns_and_says_that_it_stops(unit: Unit) -> None:
    """READY when the socket is there; the watchdog is fed by the loop that serves requests, so a loop that hangs is not."""
    assert unit.told() == "READY=1"
    assert (unit.root / "ledger.state" / "m17d.sock").exists()
    assert [unit.told(), unit.told()] == ["WATCHDOG=1"] * 2
    unit.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    unit.forget()
    unit.notify.settimeout(2.5)
    with pytest.raises(TimeoutError):
        unit.told()
    unit.process.send_signal(signal.SIGCONT)
    unit.notify.settimeout(120)
    assert unit.told() == "WATCHDOG=1"
    unit.process.send_signal(signal.SIGTERM)
    while (said := unit.told()) == "WATCHDOG=1":
        pass
    assert said == "STOPPING=1"
    assert unit.process.wait(120) == 0


def test_log_lines_carry_priorities_and_the_config_is_read_again(unit: Unit) -> None:
    """Under journald each line begins with its priority; a config that cannot be used leaves the old one in force."""
    assert unit.logged("serving on").startswith("<6>")
    config = unit.root / "m17.toml"
    text = config.read_text()
    config.write_text(text + '[retention]\nsuperseded_days = 3\n[socket]\noperate_users = ["nobody"]\nmode = "0600"\n')
    unit.process.send_signal(signal.SIGHUP)
    line = unit.logged("reloaded")
    assert line.startswith("<6>") and line.endswith("; socket changed and need a restart")
    config.write_text(text + "[retention]\nsuperseded_days = -3\n")
    unit.process.send_signal(signal.SIGHUP)
    assert unit.logged("the old config holds").startswith("<3>")
    assert unit.process.poll() is None


def keys_of(name: str) -> dict[str, str]:
    """The keys of a unit; of one that stands twice, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(SCRIPTS / name)
    return {key: value for section in parser.sections() for key, value in parser[section].items()}


def test_units_say_what_the_daemon_needs() -> None:
    """Notification, watchdog above the interval at which it is fed, limits, hardening, reload, and a socket for its group."""
    service, listener = keys_of("m17d.service"), keys_of("m17d.socket")
    assert (service["Type"], service["NotifyAccess"], service["Restart"]) == ("notify", "main", "on-failure")
    assert int(service["WatchdogSec"]) >= 10
    assert int(service["LimitNOFILE"]) >= 65536 and service["MemoryMax"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert {service[key] for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices")} == {"yes"}
    assert service["ProtectSystem"] == "strict"
    assert listener["SocketMode"] == "0660" and listener["SocketGroup"] == service["Group"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify`, with the program and the user that are there."""
    for name in ("m17d.service", "m17d.socket"):
        text = (SCRIPTS / name).read_text()
        text = text.replace("/opt/m17/.venv/bin/m17d", sys.executable)
        text = re.sub(r"^((?:Socket)?(?:User|Group))=.*$", r"\1=root", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "m17d.service"), str(tmp_path / "m17d.socket")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "m17d" in line]
    assert said == [] and done.returncode == 0, done.stderr
