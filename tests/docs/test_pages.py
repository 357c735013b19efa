"""
The pages, typed: commands run against a live daemon, settings pass its check, programs run; what cannot be run here is named.

One small state and one daemon serve every page; each page has a copy of the folder's files to itself where it writes.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

import engines
import ledger
from ledger.columns import Column
from m17ctl.client import Client
from m17ctl.main import MODULES, _load
from m17d import protocol
from m17d.config import (
    ConfigError,
    read_config,
)
from m17d.discovery import build
from tests.docs import small_market
from tests.docs.pages import PAGES, ROOT, Block, blocks, fits, text_of, typed
from tests.m17d import flat_files

pytestmark = pytest.mark.timeout(900)
"""Whoever types first waits for the daemon, its kernels and every cell, on a machine that may be busy."""

TYPED_ELSEWHERE: Final = {"docs/repair.md": "tests/docs/test_repair_page.py"}
ENGINE_PAGE: Final = "docs/engine.md"
NOT_RUN: Final = {
    "git": "a network",
    "python3": "makes an environment; scripts/bootstrap.py is tested by every run of scripts/test",
    ".venv/bin/pip": "installs",
    "useradd": "root", "groupadd": "root", "install": "root", "systemctl": "root", "journalctl": "root",
    "scripts/demo": "tests of its own", "scripts/test": "this",
    "promtool": "not everywhere; tests/deploy/test_monitoring.py types both where it is",
}  # fmt: skip
"""First word of a command -> why no test types it."""
NOT_TYPED: Final = {
    "m17ctl tui": "needs a terminal; tests/m17ctl/tui/test_tmux.py has one",
    "m17d run": "runs while the page is typed",
    "m17d replay --source flatfiles --session 2013-10-07 --speed": "serves until it is stopped; tests/m17d/test_replay.py",
    "m17d verify --state /var/lib": "the place of an installed state; the same is typed with another in docs/operation.md",
    ".venv/bin/m17d": "the same as m17d, typed elsewhere",
    "scripts/archive-ledger.sh /var/lib": "the place of an installed state; typed with another in docs/operation.md",
}
"""How a command begins -> why it is not typed as it stands."""
INSTEAD: Final = {
    "README.md": {
        "2026-03-10": "2013-10-07",
        "2014-06-06": "2013-10-07",
        "O:CALX": "O:TWX",
        "--state ledger.state": "--state made.state",
    }
}
"""Page -> what it says -> what is typed: the README shows the demonstration, here it is typed on the small market."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small market with a daemon that is at rest; the engine of `docs/engine.md` is among its engines."""
    root = tmp_path_factory.mktemp("pages")
    small_market.write(root, engines="[engines.anomaly]\n[engines.gap]\nbusy_rows = 20\n")
    write_engine(root)
    (root / "scripts").symlink_to(ROOT / "scripts")
    with (root / "m17d.log").open("wb") as log:
        command = [root / "bin" / "m17d", "run", "--config", "m17.toml"]
        process = subprocess.Popen(command, cwd=root, stderr=log, stdout=log, env=environment(root))
    try:
        socket = root / "ledger.state" / "m17d.sock"
        until(process, root, "the daemon listens", socket.exists)
        with Client(socket, 60) as client:
            until(process, root, "everything is filled", lambda: is_filled(client))
        yield root
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def until(process: subprocess.Popen[bytes], root: Path, what: str, holds: Callable[[], bool]) -> None:
    """Wait until something holds, with the log where it never does."""
    end = time.monotonic() + 600
    while not holds():
        assert process.poll() is None, (root / "m17d.log").read_text()
        assert time.monotonic() < end, f"{what}:\n{(root / 'm17d.log').read_text()}"
        time.sleep(0.1)


def is_filled(client: Client) -> bool:
    """Whether every cell that anybody should fill is filled, down to the last windows."""
    columns = client.call(protocol.StatusRequest()).columns
    open_cells = sum(one.empty + one.pending + one.cleared + one.stale for one in columns.values())
    filled = columns[Column.AGGS_4H].filled if columns else 0
    return not open_cells and filled == 390 * len(small_market.STOCKS) * len(small_market.SESSIONS)


def write_engine(root: Path) -> None:
    """The files that the page about engines shows, below the folder, and an `m17d` that knows of them."""
    for block in blocks(ENGINE_PAGE, "python"):
        path = root / block.note.removeprefix("file=")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    (root / "bin").mkdir()
    program = f"#!{sys.executable}\nimport engines\nengines.__path__.append({str(root / 'engines')!r})\n"
    (root / "bin" / "m17d").write_text(
        program + 'if __name__ == "__main__":\n    from m17d.main import main\n    main()\n'
    )
    (root / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for name in ("m17d", "python"):
        (root / "bin" / name).chmod(0o755)


def environment(root: Path) -> dict[str, str]:
    """Where an operator of that folder works."""
    path = f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    more = {
        "M17_SOCKET": "ledger.state/m17d.sock",
        "NO_COLOR": "1",
        "M17_API_KEY": "key",
        "HOME": str(root),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, "PATH": path, **more}


def commands(page: str) -> list[tuple[str, list[str]]]:
    """What of a page is typed here, as it is typed, and what is shown below it."""
    found = []
    for block in blocks(page, "console"):
        for command, shown in typed(block.text):
            word = command.split(maxsplit=1)[0]
            if word in NOT_RUN or any(command.startswith(start) for start in NOT_TYPED):
                continue
            found.append((replaced(command, INSTEAD.get(page, {})), shown))
    return found


def replaced(text: str, instead: dict[str, str]) -> str:
    """The text with the right sides for the left ones."""
    for there, here in instead.items():
        text = text.replace(there, here)
    return text


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TYPED_ELSEWHERE])
def test_commands_of_a_page_run(world: Path, page: str) -> None:
    """In order, each ending with 0; where the page shows an answer with …, it fits."""
    for command, shown in commands(page):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=world,
            env=environment(world),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{page}: {command}\n{said}"
        if page != "README.md" and shown:
            assert fits(said, shown), f"{page}: {command}\n-- said:\n{said}\n-- shown:\n" + "\n".join(shown)


def test_what_is_not_typed_is_on_a_page() -> None:
    """An excuse for a command that no page has is left over; only commands of ours and excused ones are on pages."""
    lines = [command for page in PAGES for block in blocks(page, "console") for command, _ in typed(block.text)]
    assert [word for word in NOT_RUN if not any(line.split()[0] == word for line in lines)] == []
    assert [start for start in NOT_TYPED if not any(line.startswith(start) for line in lines)] == []
    ours = (
        "cat",
        "cp",
        "m17ctl",
        "m17d",
        "export",
        "scripts/archive-ledger.sh",
        "scripts/restore-ledger.sh",
        "scripts/check",
        "scripts/bench",
        ".venv/bin/m17d",
    )
    assert {line.split()[0] for line in lines} - set(NOT_RUN) - set(ours) == set()


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_a_page_pass_the_check(tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of settings is a config, or part of one; keys, values and engines are known."""
    write_engine(tmp_path)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path / "engines")])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    try:
        for block in blocks(page, "toml"):
            check_settings(tmp_path / "m17.toml", page, block)
    finally:
        for name in [name for name in sys.modules if name.startswith("engines.gap")]:
            del sys.modules[name]


def check_settings(path: Path, page: str, block: Block) -> None:
    """Read the block as the daemon would, with what every config needs before it."""
    table = tomllib.loads(block.text)
    (path.parent / "symbols.txt").write_text("AIG\nO:TWX131019C00070000\n")
    missing = "" if "state_dir" in table else 'state_dir = "ledger.state"\n'
    behind = "" if "calendar" in table else "\n[calendar]\nyear = 2013\n"
    path.write_text(missing + block.text + behind)
    try:
        build(read_config(path))
    except ConfigError as error:
        pytest.fail(f"{page}:{block.line}: {error}")


@pytest.mark.parametrize("page", [page for page in PAGES if page != ENGINE_PAGE and blocks(page, "python")])
def test_programs_of_a_page_run(world: Path, page: str) -> None:
    """The page's programs, one after the other in one interpreter, as in a notebook."""
    program = "\n".join(block.text for block in blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=world,
        env=environment(world),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{page}\n{done.stderr}"


def test_the_engine_of_the_page_has_thirty_lines_and_finds_the_gap(world: Path) -> None:
    """As the page promises; blank lines are not counted. Its region is that of the silent minute, in both engines' eyes."""
    text = next(block.text for block in blocks(ENGINE_PAGE, "python") if block.note.endswith("engine.py"))
    assert len([line for line in text.splitlines() if line.strip()]) <= 30
    with ledger.open(world / "ledger.state", readonly=True) as state:
        found = [(one.operator, one.symbol, one.start_ts) for one in state.regions.list(everything=True)]
    silent = [flat_files.open_ns(session) + small_market.SILENT * 60 * 10**9 for session in small_market.SESSIONS]
    assert ("gap", "AIG", silent[-1]) in found
    assert [one for one in found if one[0] == "gap"] == [("gap", "AIG", silent[-1])]
    assert {("anomaly", "AIG", start) for start in silent} <= set(found)


def settings() -> list[type[msgspec.Struct]]:
    """What tables of a config are read into: every struct of config and engines that refuses unknown keys, the newest too."""
    found: list[type[msgspec.Struct]] = []
    for path in (ROOT / "m17d" / "config.py", *sorted((ROOT / "engines").rglob("*.py"))):
        if "forbid_unknown_fields=True" not in path.read_text():
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        structs = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        found += [
            one for one in structs if one.__module__ == module.__name__ and one.__struct_config__.forbid_unknown_fields
        ]
    return found


def typable() -> list[tuple[str, list[str]]]:
    """Every command of `m17ctl`, those of groups too, with its long options."""
    found = []
    for name in MODULES:
        command = _load(name)
        for below in getattr(command, "commands", {"": command}).values():
            words = name if below is command else f"{name} {below.name}"
            found.append((words, [option for one in below.params for option in one.opts if option.startswith("--")]))
    return found


def missing(text: str) -> list[str]:
    """Commands, options and settings that a text does not name."""
    found = [words for words, _ in typable() if not re.search(rf"m17ctl (--json )?{words}\b", text)]
    found += [f"{words} {one}" for words, options in typable() for one in options if not re.search(rf"{one}\b", text)]
    for struct in settings():
        names = [one.encode_name for one in msgspec.structs.fields(struct)]
        found += [f"{struct.__name__}.{name}" for name in names if not re.search(rf"\b{name}\b", text)]
    return found


def test_every_command_every_option_and_every_setting_is_on_a_page() -> None:
    """What a person can type is written down somewhere."""
    assert missing("\n".join(text_of(page) for page in PAGES)) == []


def test_what_no_page_names_is_found() -> None:
    """Without a page's words its command, option and setting are missing: the test above can fail."""
    assert len(settings()) >= 14
    text = "\n".join(text_of(page) for page in PAGES)
    for word, told in (
        ("symbols resolve", "symbols resolve"), ("--cascade", "clear --cascade"), ("rest_after_s", "RestConfig.rest_after_s"),
        ("quotes_days", "RetentionConfig.quotes_days"),
    ):  # fmt: skip
        assert told in missing(text.replace(word, ""))


def test_links_lead_somewhere() -> None:
    """Every relative link of a page is a file, and an anchor one of its headings."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text_of(page)):
            if target and "://" not in target:
                assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
