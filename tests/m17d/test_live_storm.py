"""A storm of events through replay server, feed process and daemon into cells: nothing dropped, memory flat; slow."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import BinaryIO, cast

import pytest

import ledger
from engines.feeds.synthetic_bulk import write_bulk
from ledger.columns import Dataset
from m17d.replay_market import file_of, session_of
from tests.m17d.live_market import Daemon, live, replaying, running, write_config

SESSION = "2013-10-07"
EVENTS = int(os.environ.get("M17_STORM_EVENTS", "2000000"))
"""120,000,000 are ten minutes of 200,000 a second."""
TICKERS = 500
GROWTH_MIB = 128
"""What a process may have more of in the second half of the storm than in the first."""


def market(folder: Path) -> int:
    """Flat files of a storm of ten minutes from the open on, four quotes to a trade; how many events there are."""
    for dataset, rows in ((Dataset.STOCK_TRADES, EVENTS // 5), (Dataset.STOCK_QUOTES, EVENTS - EVENTS // 5)):
        path = file_of(folder, dataset, SESSION)
        write_bulk(path, dataset=dataset, session=SESSION, rows=rows, tickers=TICKERS)
        squeeze(path)
    return EVENTS


def squeeze(path: Path) -> None:
    """Bring the times of a day's file into ten minutes; their order stays."""
    import polars as pl

    window = session_of(SESSION)
    begin_ns = window.open_ns - 300_000_000_000
    time_ns = pl.col("sip_timestamp", "participant_timestamp")
    frame = pl.read_csv(path, infer_schema_length=None).with_columns(
        (time_ns - begin_ns) // 41 + window.open_ns + 1_000_000
    )
    with gzip.open(path, "wb", compresslevel=1) as file:
        frame.write_csv(cast("BinaryIO", file))


def anonymous_mib(pid: int) -> float:
    """Memory of a process that is its own: mapped files, such as the ledger's, left out."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Watch:
    """Looks at a daemon and its feed while events come."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._daemon = daemon
        self._pids = {"daemon": daemon.process.pid, "feed": daemon.until(daemon.feed_pids, "the feed runs")[0]}
        self.memory: dict[str, list[float]] = {name: [] for name in self._pids}
        """MiB by process, from the first event to the last cell."""
        self.began_s = self.streamed_s = 0.0

    def over(self) -> bool:
        """Note how things are; whether everything was played and is in cells."""
        engines = [self._daemon.engine(name) for name in ("trade_ws", "quote")]
        played = all("played" in one["detail"] for one in engines)
        now_s = time.monotonic()
        if not self.began_s and (played or any("streaming" in one["detail"] for one in engines)):
            self.began_s = now_s
        if not self.streamed_s and played:
            self.streamed_s = now_s
        if self.began_s:
            for name, pid in self._pids.items():
                self.memory[name].append(anonymous_mib(pid))
        return played and not any(one["backlog"] for one in engines)


@pytest.mark.slow
def test_a_storm_is_taken_whole_and_in_flat_memory(tmp_path: Path) -> None:
    """As fast as it is taken: every event is in a cell, none was dropped, and no process grows with the events."""
    within = market(tmp_path / "market")
    with replaying(tmp_path / "market", SESSION, "--speed", "max") as replay:
        write_config(tmp_path, SESSION[:4], live(f"{replay.url}/stocks"))
        with running(tmp_path) as daemon:
            watch = Watch(daemon)
            daemon.until(watch.over, "everything is in cells", 1_500)
            text = daemon.ask("metrics")["text"]
            ended_s = time.monotonic()
    drops = [line for line in text.splitlines() if line.startswith("m17_feed_drops_total")]
    took_s, whole_s = watch.streamed_s - watch.began_s, ended_s - watch.began_s
    print(
        f"\n{EVENTS:,} events within {took_s:.1f} s to the feed, within {whole_s:.1f} s to cells: {EVENTS / whole_s:,.0f} a second"
    )
    for name, mib in watch.memory.items():
        half = len(mib) // 2
        print(
            f"{name}: {mib[0]:.0f} MiB at first, {mib[half]:.0f} in the middle, {mib[-1]:.0f} at last, at most {max(mib):.0f}"
        )
        assert max(mib[half:]) < max(mib[: half + 1]) + GROWTH_MIB
    assert drops
    assert all(float(line.rpartition(" ")[2]) == 0 for line in drops), drops
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        rows = [
            state.scan(column, sessions=SESSION).select("ticker").collect().height
            for column in ("trade_ref", "quote_ref")
        ]
    assert sum(rows) == within
