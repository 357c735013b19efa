"""What a config would do, said before it does it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ledger.columns import Column
from m17d import estimate
from m17d.config import Config, read_config

CONFIG = 'state_dir="ledger.state"\n[calendar]\nyear=2013\n[engines.trade_flatfile]\nsource="flat"\nsessions=["2013-10-07"]\n'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One session of one engine, with a file of stocks and none of options."""
    (tmp_path / "m17.toml").write_text(CONFIG)
    day = tmp_path / "flat" / "us_stocks_sip" / "trades_v1" / "2013" / "10"
    day.mkdir(parents=True)
    (day / "2013-10-07.csv.gz").write_bytes(bytes(13_000))
    return read_config(tmp_path / "m17.toml")


def test_files_bytes_and_rows_of_the_named_sessions(config: Config) -> None:
    """From the size of the file, which is not opened."""
    lines = estimate.estimate_work(config)
    assert lines[0] == "files      1 there, 1 not there"
    assert lines[1] == "bytes      12.7 KiB of gzip to read"
    assert lines[2] == "rows       about 1,000"


def test_a_number_of_sessions_names_none(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may call how many sessions it looks at ``sessions``."""
    counting = SimpleNamespace(
        config=SimpleNamespace(sessions=5), writes=(Column.TRADE_REF,), source=config.path("flat")
    )
    monkeypatch.setattr(estimate, "build", lambda _: {"counting": counting})
    assert "engine     counting: trade_ref" in estimate.check(config)
    assert estimate.estimate_work(config)[0] == "files      0 there, 0 not there"
