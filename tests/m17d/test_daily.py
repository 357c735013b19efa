"""What the report of a day is made of, on two small days of which one waits for its files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ledger.columns import Column
from m17d.daemon import Daemon
from m17d.daily import report
from m17d.outcomes import ReportReply
from tests.m17d import flat_files
from tests.m17d.test_exposition import running

FILLED, WAITING = "2013-05-01", "2013-05-02"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Trades of one day; nothing of the next."""
    root = tmp_path_factory.mktemp("daily")
    flat_files.write(root, FILLED, flat_files.packed(flat_files.good_lines(FILLED)))
    flat_files.write_config(root, [FILLED, WAITING])
    yield from running(root)


def of(daemon: Daemon, session: str) -> ReportReply:
    """The report, all steps taken."""
    handlers = daemon.handlers
    *_, last = report(daemon.state, handlers.reading, handlers.explaining, session)
    assert last is not None
    return last


def test_a_day_is_judged_by_its_own_sources(daemon: Daemon) -> None:
    """What another day waits for is not this day's trouble."""
    assert "waited for" in of(daemon, WAITING).verdict
    assert {one.state for one in of(daemon, WAITING).sources} == {"waiting"}
    found = of(daemon, FILLED)
    datasets = [one for one in found.sources if one.state == "waiting"]
    assert ("waited for" in found.verdict) == bool(datasets)
    assert len(datasets) < len(list(daemon.state.sources.all())) - 1


def test_lags_are_counted_from_the_slots(daemon: Daemon) -> None:
    """Every filled cell once, from the end of its window to when it was set, in seconds."""
    facts, state = of(daemon, FILLED).facts, daemon.state
    seq = state.calendar.session_seq(FILLED)
    slots = state.trade.session(seq).slots(Column.TRADE_REF, state.universe(FILLED))
    ends = state.calendar.start_ts_array(state.calendar.windows(seq)) + 60 * 10**9
    lags = np.sort(((slots["last_updated_ns"] - ends) // 10**6).reshape(-1)) / 1000
    said = facts["lags"]["trade_ref"]
    assert (said["cells"], said["max_s"]) == (slots.size, lags[-1])
    assert said["median_s"] == lags[len(lags) // 2]
    assert facts["by_source"] == {"trade_ref": {"flat_file": slots.size}}
    assert facts["partial"] == facts["wanted"] == {}
