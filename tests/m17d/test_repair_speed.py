"""How fast a repair is while everything else is being filled: its figures, printed."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.feeds.synthetic import write_bulk
from ledger.columns import Column, Dataset
from m17ctl.client import Client
from m17d import protocol
from tests.m17d.test_daemon import start, wait_for

REPAIRED, BACKFILLED = "2013-05-31", [f"2013-05-{day:02d}" for day in (1, 2, 3, 6, 7, 8, 9, 10, 13, 14, 15, 16)]
STOCKS, TRADES, QUOTES = 100, 200_000, 600_000
COLUMNS = [Column.TRADE_REF, Column.AGGRESSOR_REF, Column.AGGS_1M]


def write_session(root: Path, session: str) -> None:
    """Trades and quotes of one session."""
    for dataset, rows in ((Dataset.STOCK_TRADES, TRADES), (Dataset.STOCK_QUOTES, QUOTES)):
        path = root / "flatfiles" / dataset.value / session[:4] / session[5:7] / f"{session}.csv.gz"
        write_bulk(path, dataset=dataset, session=session, rows=rows, tickers=STOCKS)


def configure(root: Path, sessions: list[str], workers: int) -> None:
    """A daemon over these sessions, with sides and aggregates."""
    files = f'source = "flatfiles"\nsessions = {json.dumps(sessions)}\nsymbols = ["A*"]\n'
    (root / "m17.toml").write_text(
        f'state_dir = "ledger.state"\n[runner]\nworkers = {workers}\n[calendar]\nyear = 2013\n'
        f"[engines.trade_flatfile]\n{files}[engines.quote]\n{files}[engines.nbbo]\n[engines.aggregation]\n"
    )


def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until something is so."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s
        time.sleep(0.02)
    return time.monotonic() - began_s


def repair(client: Client) -> tuple[float, float, float]:
    """Clear 40 symbols x 25 minutes and have them first: seconds to all raw, to the first derived cell, and to all."""
    names = [f"AA{'AB'[number // 26]}{chr(ord('A') + number % 26)}" for number in range(40)]
    chosen = protocol.Range(session=REPAIRED, from_ts="10:15", to_ts="10:40", symbols=",".join(names))
    began_s = time.monotonic()
    client.call(protocol.ClearRequest(columns=COLUMNS, range=chosen, cause="speed", confirmed=True))
    for name in names:
        client.call(
            protocol.PriorityAddRequest(
                symbol=name, from_ts="10:15", to_ts="10:40", session=REPAIRED, priority=900, columns=COLUMNS
            )
        )

    def left(column: Column) -> int:
        reply = client.call(protocol.WaitRequest(columns=[column], range=chosen), timeout_s=60)
        return int(reply.remaining.get(column, 0))

    derived = left(Column.AGGRESSOR_REF)
    until(lambda: left(Column.TRADE_REF) == 0, 300)
    raw_s = time.monotonic() - began_s
    until(lambda: left(Column.AGGRESSOR_REF) < derived, 300)
    first_s = time.monotonic() - began_s
    until(lambda: not any(left(column) for column in COLUMNS), 300)
    return raw_s, first_s, time.monotonic() - began_s


@contextlib.contextmanager
def running(root: Path, text: str) -> Iterator[Client]:
    """A daemon that has said something, and a client of it."""
    process = start(root)
    try:
        wait_for(process, root, text, timeout_s=300)
        with Client(root / "ledger.state" / "m17d.sock", timeout_s=120) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def backlog(client: Client) -> int:
    """Tasks that engines know of."""
    return sum(one.backlog for one in client.call(protocol.EnginesListRequest()).engines)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("workers", [2, 1])
def test_repair_during_a_backfill_is_first_within_seconds_and_done_in_twice_the_idle_time(
    tmp_path: Path, workers: int
) -> None:
    """40 symbols x 25 minutes: first derived cell within 10 s, one pass for those symbols, at most twice the idle time."""
    write_session(tmp_path, REPAIRED)
    configure(tmp_path, [REPAIRED], workers)
    with running(tmp_path, "INFO aggregation: ") as client:
        until(lambda: not backlog(client), 600)
        repair(client)
        idle = repair(client)
    for session in BACKFILLED:
        write_session(tmp_path, session)
    configure(tmp_path, [*BACKFILLED, REPAIRED], workers)
    with running(tmp_path, "cells set") as client:
        busy = repair(client)
        left = backlog(client)
    log = (tmp_path / "m17d.log").read_text()
    passes = re.findall(rf"trade_flatfile: us_stocks_sip/trades_v1 {REPAIRED} \S+ (\d+ symbols)", log)
    print(f"40 symbols x 25 minutes, {workers} workers, seconds: raw cells, first derived cell, all")
    print(f"  idle              {idle[0]:6.1f} {idle[1]:6.1f} {idle[2]:6.1f}")
    print(f"  during a backfill {busy[0]:6.1f} {busy[1]:6.1f} {busy[2]:6.1f}   ({left} tasks of it left)")
    print(f"  passes of its file for it: {passes}")
    assert left, "the backfill was over before the repair"
    assert passes == ["40 symbols"]
    assert busy[1] <= 10
    assert busy[2] <= 2 * idle[2]
