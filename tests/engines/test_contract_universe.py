"""Contracts to listen to: ranked over all pages of all chains, at most so many, none lost within a day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.contract_universe import ChainPlace, ContractUniverse, Ranked
from engines.live import LiveEngine
from ledger.columns import Column, Dataset
from tests.engines.feeds.scripted_source import Answer, page, refusal, serving
from tests.engines.planning import TestContext, done, made_state


def ticker(number: int, root: str = "AAA") -> str:
    """A contract."""
    return f"O:{root}130518C{number:08d}"


def contract(number: int, interest: float, volume: float, root: str = "AAA") -> dict[str, Any]:
    """One result of the service."""
    return {"details": {"ticker": ticker(number, root)}, "day": {"volume": volume}, "open_interest": interest}


class Desk:
    """A universe over chains that the test changes."""

    def __init__(self, directory: Path, address: str) -> None:
        self.state, self.clock = made_state(directory)
        self.clock.time_ns = self.state.calendar.parse_time("2013-05-01T09:00")
        self.universe = ContractUniverse(
            ChainPlace(address, "M17_API_KEY"), ("AAA", "BBB"), 4, 900.0, TestContext(self.state)
        )

    def read(self) -> bool:
        """Do what is due; whether the contracts changed."""
        changed = False
        for task in self.universe.tasks("trade_ws"):
            report = done(task, self.state).report
            assert isinstance(report, Ranked)
            changed |= self.universe.finished(report)
        return changed


CHAINS: dict[str, list[dict[str, Any]]] = {}
FAILING = [False]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Chains in pages of two; the best stand on the last one."""
    monkeypatch.setenv("M17_API_KEY", "key")
    monkeypatch.setattr("engines.feeds.retrying.RetryPolicy.pause_seconds", lambda policy, _: policy.base_seconds / 1e3)
    FAILING[0] = False
    CHAINS.clear()
    CHAINS["AAA"] = [contract(1, 1, 0), contract(2, 0, 0), contract(3, 5, 9), contract(4, 100, 1)]
    CHAINS["BBB"] = [contract(1, 2, 0, "BBB"), contract(2, 50, 60, "BBB")]

    def answer(_: int, target: str) -> Answer:
        if FAILING[0]:
            return refusal(500)
        path, _, query = target.partition("?")
        at = int(query.partition("cursor=")[2].partition("&")[0] or 0)
        found = CHAINS[path.rpartition("/")[2]]
        return page(found[at : at + 2], f"?cursor={at + 2}" if at + 2 < len(found) else None)

    with serving(answer) as (address, _):
        made = Desk(tmp_path / "ledger.state", address)
        yield made
        made.state.close()


def test_the_best_of_all_chains_are_chosen_and_those_without_interest_are_not(desk: Desk) -> None:
    """By the larger of open interest and volume; what finds no place is counted."""
    assert desk.read()
    assert desk.universe.contracts == tuple(sorted((ticker(4), ticker(2, "BBB"), ticker(3), ticker(1, "BBB"))))
    assert desk.universe.left_out == 1


def test_chains_are_read_again_when_due_and_nothing_goes_before_the_day_ends(desk: Desk) -> None:
    """A contract that is listened to stays; a better one takes a free place only, until the next day."""
    CHAINS["AAA"] = CHAINS["AAA"][2:]
    del CHAINS["BBB"][0]
    assert desk.read()
    assert not desk.read(), "not due"
    CHAINS["AAA"] += [contract(8, 900, 0), contract(9, 800, 0)]
    desk.clock.time_ns += 901 * 10**9
    assert desk.read()
    assert desk.universe.contracts == tuple(sorted((ticker(3), ticker(4), ticker(8), ticker(2, "BBB"))))
    assert desk.universe.left_out == 1
    desk.clock.time_ns += 86_400 * 10**9
    assert desk.read()
    assert desk.universe.contracts == tuple(sorted((ticker(4), ticker(8), ticker(9), ticker(2, "BBB"))))


def test_a_service_that_fails_leaves_the_contracts_and_is_asked_again(desk: Desk) -> None:
    """Degraded with its reason, then well again."""
    desk.read()
    before = desk.universe.contracts
    FAILING[0] = True
    desk.clock.time_ns += 901 * 10**9
    assert not desk.read()
    assert desk.universe.contracts == before
    health = desk.universe.health()
    assert health is not None
    assert "HTTP 500" in health.detail
    FAILING[0] = False
    desk.universe.retry()
    desk.read()
    assert desk.universe.health() is None


def test_engines_that_ask_for_the_same_chains_share_one_reading(desk: Desk) -> None:
    """The second engine plans the same task, which runs once; both listen to its contracts."""
    context = TestContext(desk.state)
    table = {
        "stream": "ws://127.0.0.1:1", "rest": desk.universe._arguments.place.address, "chains": ["AAA"],
        "symbols": ["IBM"], "chain_contracts": 2,
    }  # fmt: skip
    engines = [LiveEngine(name, column, table, Path("/")) for name, column in
               (("trade_ws", Column.TRADE_REF), ("quote", Column.QUOTE_REF))]  # fmt: skip
    for engine in engines:
        engine.start(context)
    tasks = [task for engine in engines for task in engine.plan(8) if task.remote]
    assert len({task.key for task in tasks}) == 1
    engines[0].finished(tasks[0], done(tasks[0], desk.state))
    for engine in engines:
        engine._looked_s = 0.0
        engine.plan(8)
        assert set(engine._wishes[True].tickers) == {ticker(3), ticker(4)}
        assert engine._wishes[False].tickers == ("IBM",)
    assert {one.dataset for one in engines[0]._datasets.values()} == {Dataset.STOCK_TRADES, Dataset.OPTION_TRADES}
    for engine in engines:
        engine.stop()
    context.close()
