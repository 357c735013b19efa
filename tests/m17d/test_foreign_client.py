"""A client written from protocol.md alone, without a module of M17, asks a real daemon for one of each kind."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.m17d import flat_files
from tests.m17d.daemon_process import running, socket_of

CLIENT = Path(__file__).with_name("foreign_client.py")
SESSION = "2013-05-01"


def test_the_foreign_client_knows_nothing_of_this_project() -> None:
    """Standard library, zmq and msgspec."""
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(ast.parse(CLIENT.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "zmq", "msgspec"}


def test_it_reads_reads_in_bulk_changes_once_and_hears_of_it(tmp_path: Path) -> None:
    """Run where no module of the project can be found, against a daemon over one small file."""
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(tmp_path, [SESSION])
    with running(tmp_path, until="cells set"):
        command = [sys.executable, "-I", str(CLIENT), str(socket_of(tmp_path)), SESSION, "AAA"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["row"]["symbol"], said["row"]["slots"]["trade_ref"]["status"]) == ("AAA", "filled")
    assert (said["bulk"]["kind"], said["bulk"]["rows"], said["bulk"]["filled"]) == ("end", 780, 780)
    assert said["bulk"]["numbers"] == [*range(said["bulk"]["pieces"])]
    first, second = said["clear"]["answers"]
    assert first["cleared"] == {"trade_ref": 30}
    assert second == {**first, "replayed": True}
    assert said["clear"]["without_key"] == "bad_request"
    assert said["event"]["cells"] == 30
    assert said["event_numbers"] == [*range(said["first_event"], said["first_event"] + len(said["event_numbers"]))]
    assert (said["cancelled"], said["unknown"]) == ("end", "unsupported_operation")
