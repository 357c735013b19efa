"""A scrape with a whole year mapped: what it costs when nothing moved, and when one session did."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ledger.columns import Column, Flag
from m17d.config import read_config
from m17d.daemon import Daemon
from tests.m17d.full_year import fill_session, names

ENGINES = '[engines.trade_flatfile]\nsource="none"\n[engines.quote]\nsource="none"\n'
DERIVED = "[engines.nbbo]\n[engines.greeks]\n[engines.aggregation]\n"


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """252 sessions of 16 symbols, all columns, every tenth with holes; all mapped, engines at rest."""
    folder = tmp_path_factory.mktemp("year")
    (folder / "m17.toml").write_text(f'state_dir="ledger.state"\n[calendar]\nyear=2013\n{ENGINES}{DERIVED}')
    daemon = Daemon(read_config(folder / "m17.toml"), logging.getLogger("m17d-test"))
    try:
        daemon.state.allocate(names(8))
        for seq in range(daemon.state.calendar.session_count):
            fill_session(daemon.state, seq, 20 if seq % 10 == 0 else 0)
        daemon.handlers.exposition.text()
        yield daemon
    finally:
        daemon.close()


def median_ms(scrape: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median of nine scrapes; ``before`` is not timed."""
    found = []
    for _ in range(9):
        before()
        began_s = time.perf_counter()
        scrape()
        found.append((time.perf_counter() - began_s) * 1e3)
    return statistics.median(found)


@pytest.mark.slow
def test_a_scrape_costs_less_than_20_ms(year: Daemon) -> None:
    """With 504 files mapped; the best of three medians, because the machine may be busy with something else."""
    rows = year.state.trade.session(251)
    cells = Column.TRADE_REF, np.arange(16), np.full(16, 5)

    def change() -> None:
        rows.flag_many(*cells, add=Flag.WANTED, now_ns=rows.now_ns())
        rows.flag_many(*cells, remove=Flag.WANTED, now_ns=rows.now_ns())

    text = year.handlers.exposition.text
    assert min(median_ms(text) for _ in range(3)) < 20
    assert min(median_ms(text, change) for _ in range(3)) < 20
