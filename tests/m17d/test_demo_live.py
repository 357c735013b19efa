"""The live demonstration, on a small session: what it shows is true, and it says so when it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m17d.demo_session import Play, prepare
from tests.m17d.test_replay import SESSION, write_market


def demonstrate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``scripts/demo`` in this environment."""
    command = [sys.executable, "-m", "m17d.demo", "--live", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
def test_a_session_comes_live_breaks_down_and_equals_its_files(tmp_path: Path) -> None:
    """Progress, a degraded engine, partial windows, REST, and the digest of every column."""
    write_market(tmp_path)
    done = demonstrate(
        *("--source", str(tmp_path), "--session", SESSION, "--speed", "1200", "--cut", "10:00-10:15")
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "trade_ws is degraded",
        "a gap of the feed overlaps",
        "windows have REST as their source",
        "true: trade_ref: live equals the files",
        "true: aggs_4h: live equals the files",
        "everything shown was true",
    ):
        assert said in done.stdout


def test_a_source_without_the_session_is_said_in_a_line(tmp_path: Path) -> None:
    """No traceback, and nothing was started."""
    done = demonstrate("--source", str(tmp_path), "--session", SESSION)
    assert done.returncode == 1
    assert f"{tmp_path}: no flat file of {SESSION}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_files_that_are_played_have_milliseconds_and_contracts_that_traded(tmp_path: Path) -> None:
    """The rows of the source, times cut, and the underlyings whose chains are listened to."""
    write_market(tmp_path / "source")
    (tmp_path / "root").mkdir()
    counts, underlyings = prepare(tmp_path / "root", Play(tmp_path / "source", SESSION, 900.0, "10:00-10:15"))
    assert counts == {
        "us_stocks_sip/trades_v1": 800,
        "us_stocks_sip/quotes_v1": 800,
        "us_options_opra/trades_v1": 300,
        "us_options_opra/quotes_v1": 300,
    }
    assert underlyings == ["AIG", "SPX"]
