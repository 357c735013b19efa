"""A run until idle and sources that fail: which attempts it waits for, and what it leaves."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import engines.pauses
import ledger
from engines.contract import Engine, Retry, Waiting
from engines.pauses import Pause, Pausing, Trouble
from ledger.columns import Column, Status
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.patience import Patience
from tests.engines.feeds.scripted_source import Answer, page, refusal, serving
from tests.m17d import flat_files
from tests.m17d.test_treasury_engine import OPTION, SESSION, curve

SECOND_NS = 10**9


class Waits:
    """An engine that waits for something."""

    def __init__(self, *retries: Retry | None) -> None:
        self.retries = retries

    def waiting(self) -> list[Waiting]:
        """One for each attempt to come."""
        return [Waiting("unreachable", Column.TRADE_REF, SESSION, "busy", retry=one) for one in self.retries]


def test_attempts_within_the_patience_are_waited_for_and_each_is_said_once() -> None:
    """Not those that are over, nor those that come too long after the first failure in a row."""
    lines: list[str] = []
    patience = Patience(60, lambda _level, line: lines.append(line))

    def waits(now_s: float, *retries: Retry | None) -> bool:
        return patience.waits([cast("Engine", Waits(*retries))], round(now_s * SECOND_NS))

    assert not waits(0)
    assert not waits(0, None)
    first, second, third = (Retry(100 * SECOND_NS, due * SECOND_NS) for due in (115, 145, 205))
    assert waits(101, None, first) and waits(110, first, third)
    assert lines == ["not idle yet: tried again in 14 s: busy"]
    assert not waits(115, first), "it is the engine's now"
    assert waits(116, second)
    assert len(lines) == 2
    assert not waits(146, third)


@pytest.mark.parametrize("cause", ["unreachable", "denied", "damaged", "missing", "budget"])
def test_only_a_source_that_does_not_answer_is_worth_another_attempt(cause: str) -> None:
    """Failures in a row count from the first; another object of the name begins anew."""
    pausing = Pausing()
    first = pausing.after(Trouble(cause, "why"), 5 * SECOND_NS, None, "tag")
    second = pausing.after(Trouble(cause, "why"), 25 * SECOND_NS, first, "tag")
    other = pausing.after(Trouble(cause, "why"), 25 * SECOND_NS, first, "another")

    def began(pause: Pause) -> int | None:
        return pause.retry and pause.retry.first_failed_ns

    expected = [5 * SECOND_NS, 5 * SECOND_NS, 25 * SECOND_NS] if cause == "unreachable" else [None] * 3
    assert [began(one) for one in (first, second, other)] == expected
    assert second.retry is None or second.retry.due_ns == second.until_ns


def run(root: Path, source: str, **runner: Any) -> int:
    """A run until idle over a session whose curves come over HTTP; its exit code."""
    path = flat_files.write_config(root, [SESSION], keys='option_rows = "contract"')
    text = path.read_text().replace("[runner]", "\n".join(["[runner]", *(f"{k} = {v}" for k, v in runner.items())]))
    path.write_text(f'{text}[engines.treasury]\nsource = "{source}"\n')
    daemon = Daemon(read_config(path), logging.getLogger("m17d-test"))
    try:
        return daemon.run(until_idle=True).code
    finally:
        daemon.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session with an option; pauses are a tenth of what they are in life."""
    monkeypatch.setattr(engines.pauses, "FIRST_S", 1.5)
    monkeypatch.setenv("M17_API_KEY", "a-key")
    start = flat_files.open_ns(SESSION)
    rows = ["ticker,conditions,correction,exchange,price,sip_timestamp,size", f"{OPTION},,,314,1.5,{start + 5},2"]
    flat_files.write(tmp_path, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write(tmp_path, SESSION, flat_files.packed(rows), "us_options_opra/trades_v1")
    return tmp_path


def filled(root: Path) -> bool:
    """Whether every window of the option has its curve."""
    with ledger.open(root / "ledger.state", readonly=True) as state:
        rows = state.trade.session(state.calendar.session_seq(SESSION))
        cells = rows.slots(Column.RF_RATE_REF, np.array([state.symbols.resolve(OPTION)]))[0]
        return bool((cells["status"] == Status.FILLED).all())


def test_a_run_until_idle_waits_for_a_source_that_answers_again_in_a_moment(root: Path) -> None:
    """Two garbled answers, then a good one, all slow: asked three times, one after the other, everything is done, exit 0."""

    def answer(number: int, _target: str) -> Answer:
        time.sleep(0.5)
        return (200, {}, b"<html>") if number < 2 else page([curve("2013-05-03", 2.0)])

    with serving(answer) as (address, asked):
        assert run(root, address) == 0
    assert len(asked.targets) == 3
    assert filled(root)


def test_a_run_until_idle_does_not_wait_longer_than_its_patience(root: Path) -> None:
    """None at all: one attempt; a little: an attempt or two more; then exit 1 either way."""
    asks = []
    for patience_s in (0, 6):
        with serving(lambda _number, _target: (200, {}, b"<html>")) as (address, asked):
            assert run(root, address, patience_s=patience_s) == 1
        asks.append(len(asked.targets))
    assert asks[0] == 1
    assert 2 <= asks[1] <= 4
    assert not filled(root)


def test_a_run_until_idle_does_not_wait_where_the_key_is_refused(root: Path) -> None:
    """Another attempt would not change it."""
    with serving(lambda _number, _target: refusal(403)) as (address, asked):
        assert run(root, address) == 1
    assert len(asked.targets) == 1
