"""Refill over REST: windows that a gap left out become what the file would have brought, and nothing else is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines.contract import Task
from engines.feeds.rest_rows import fetch_rows
from engines.live_source import LiveSource
from engines.raw import FlatFileEngine
from engines.raw_rest import RestRefill
from engines.rest_pass import RestArguments
from ledger.columns import Column, Dataset, Flag, OptionRows, Source, Status
from ledger.digests import session_digest
from ledger.regions import PriorityRegion
from ledger.sources import SourceState
from ledger.state import State
from m17d.replay_faults import Faults
from tests.engines import market
from tests.engines.feeds.scripted_source import Answer, refusal
from tests.engines.market import CONTRACTS, SESSION
from tests.engines.planning import TestContext, made_state, work_off
from tests.m17d import live_cells

TRADES = (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES)
QUOTES = (Dataset.STOCK_QUOTES, Dataset.OPTION_QUOTES)
GAP = range(45, 70)
"""10:15 to 10:40."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Dataset, list[str]]]:
    """Two stocks and three contracts; the folder and the lines."""
    folder = tmp_path_factory.mktemp("market")
    parts = [market.stock(ticker, seed=seed) for seed, ticker in enumerate(("AAA", "BBB"))]
    parts += [market.contract(ticker, seed=seed) for seed, ticker in enumerate(CONTRACTS)]
    return folder, market.write(folder, parts)


class Desk:
    """A state whose clock stands where the session's first 120 windows are over, and engines over it."""

    def __init__(self, directory: Path, option_rows: OptionRows = OptionRows.CHAIN) -> None:
        self.state, self.clock = made_state(directory, option_rows=option_rows)
        self.at("2013-05-01T11:31")
        self.empty = directory.parent / "no files yet"

    def at(self, when: str) -> None:
        """Set the clock."""
        self.clock.time_ns = self.state.calendar.parse_time(when)

    def engine(self, address: str, column: Column = Column.TRADE_REF, **keys: Any) -> FlatFileEngine:
        """An engine with a folder without files, and REST."""
        name, datasets = ("trade_flatfile", TRADES) if column is Column.TRADE_REF else ("quote", QUOTES)
        table = {"source": str(self.empty), "rest": address, "rest_requests_per_minute": 100_000, **keys}
        engine = FlatFileEngine(name, column, datasets, table, Path("/"))
        self.context = TestContext(self.state)
        engine.start(self.context)
        return engine

    def live(self, lines: dict[Dataset, list[str]], *, upto: int, gap: range = GAP) -> None:
        """What a live feed brought: windows before ``upto``, without rows and partial where a gap was."""
        for number, (dataset, rows) in enumerate(sorted(lines.items())):
            kept = [rows[0], *(row for row in rows[1:] if _minute(row, dataset) not in gap)]
            live_cells.live(self.state, SESSION, kept, dataset, name=f"live-{number}", upto=upto, partial=gap)

    def cells(self, symbol: str, column: Column = Column.TRADE_REF) -> np.ndarray:
        """The slots of a symbol."""
        rows = self.state.trade.session(self.state.calendar.session_seq(SESSION))
        found: np.ndarray = rows.slots(column, np.array([self.state.symbols.resolve(symbol)]))[0].copy()
        return found

    def digests(self) -> tuple[str, str]:
        """Of trades and quotes."""
        for step in session_digest(self.state, SESSION):
            if step is not None:
                return step[1][Column.TRADE_REF], step[1][Column.QUOTE_REF]
        raise AssertionError


def _minute(row: str, dataset: Dataset) -> int:
    place = market.HEADERS[dataset].split(",").index("sip_timestamp")
    if dataset in (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES) and '"' in row:
        row = row.replace(row[row.index('"') : row.rindex('"') + 1], "")
    return (int(row.split(",")[place]) - market.open_ns(SESSION)) // (60_000 * market.MS)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desk]]:
    """Makes desks, and closes them."""
    monkeypatch.setenv("M17_API_KEY", "secret-key")
    made: list[Desk] = []

    def make(option_rows: OptionRows = OptionRows.CHAIN) -> Desk:
        made.append(Desk(tmp_path / str(len(made)) / "ledger.state", option_rows))
        return made[-1]

    yield make
    for one in made:
        one.state.close()


def whole(desk: Desk, lines: dict[Dataset, list[str]], upto: int) -> Desk:
    """The same session without a gap, as the live feed would have brought it."""
    desk.live(lines, upto=upto, gap=range(0))
    return desk


@pytest.mark.parametrize("option_rows", [OptionRows.CHAIN, OptionRows.CONTRACT])
def test_a_gap_is_refilled_to_what_the_day_without_a_gap_has(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]], option_rows: OptionRows
) -> None:
    """Stocks, a chain and its contracts; prices before over both edges of the gap; windows without rows; the digest."""
    folder, lines = files
    torn, sound = desk(option_rows), whole(desk(option_rows), lines, 120)
    torn.live(lines, upto=120)
    assert torn.digests() != sound.digests()
    with market.rest(folder) as (address, asked):
        for column in (Column.TRADE_REF, Column.QUOTE_REF):
            engine = torn.engine(address, column)
            work_off(engine, torn.state)
            assert engine.backlog() == 0
    assert torn.digests() == sound.digests()
    for symbol in ("AAA", "O:AAA" if option_rows is OptionRows.CHAIN else CONTRACTS[0]):
        for column in (Column.TRADE_REF, Column.QUOTE_REF):
            cells = torn.cells(symbol, column)
            assert (cells["source"][45:70] == Source.REST).all()
            assert not (cells["flags"] & Flag.PARTIAL).any()
            assert set(cells["source"][:45].tolist()) == {Source.WEBSOCKET}
    kinds = {target.split("?")[0].split("/")[2] for target in asked.targets}
    assert kinds == {"trades", "quotes", "snapshot"}
    assert "secret-key" not in repr(torn.context.lines)


def test_the_next_window_of_every_instrument_has_its_price_before_again(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """The cells behind the gap said the price from before it; they are made again under their own source, and stay live."""
    folder, lines = files
    torn, sound = desk(), whole(desk(), lines, 120)
    torn.live(lines, upto=120)
    behind = torn.cells("AAA")["checksum"][70:].copy()
    with market.rest(folder) as (address, _):
        done = work_off(torn.engine(address), torn.state)
    assert [task.key.split(" from")[0] for task in done if task.compute.startswith("engines.relink")]
    after = torn.cells("AAA")
    first = 70 + int(np.flatnonzero(after["flags"][70:] & Flag.NO_ROWS == 0)[0])
    assert after["checksum"][first] != behind[first - 70]
    assert after["source"][first] == Source.WEBSOCKET
    assert (after["checksum"] == sound.cells("AAA")["checksum"]).all()


def test_prices_before_are_set_right_after_a_crash_between_refill_and_relink(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """A new process finds the symbols that have cells over REST, and looks at what lies behind them."""
    folder, lines = files
    torn, sound = desk(), whole(desk(), lines, 120)
    torn.live(lines, upto=120)
    with market.rest(folder) as (address, _):
        engine = torn.engine(address)
        while any(not task.compute.startswith("engines.relink") for task in engine.plan(4)):
            _one_refill(engine, torn.state)
        assert torn.digests()[0] != sound.digests()[0]
        work_off(torn.engine(address), torn.state)
    assert torn.digests()[0] == sound.digests()[0]


def _one_refill(engine: FlatFileEngine, state: State) -> None:
    from m17d.committing import Counts, commit, look
    from m17d.superseding import Guard
    from tests.engines.planning import done

    task = next(one for one in engine.plan(4) if one.compute.startswith("engines.rest"))
    seen = look(state, engine.writes, task.session, task.symbols)
    engine.started(task)
    batch = done(task, state, f"crash-{task.key.split()[3]}".replace(":", ""))
    for _ in commit(state, task, batch, seen, Counts(), Guard(state)):
        pass
    engine.ended(task)
    engine.finished(task, batch)


def test_without_a_stream_the_symbols_that_are_spelled_are_fetched_from_the_open_on(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """Trades before the open give the first price before; quotes of the minute before the open lead the first window."""
    folder, lines = files
    over, file = desk(), desk()
    over.at("2013-05-01T10:00")
    with market.rest(folder) as (address, _):
        for column in (Column.TRADE_REF, Column.QUOTE_REF):
            work_off(over.engine(address, column, symbols=["AAA"], rest_after_s=0), over.state)
    for number, dataset in enumerate((Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES)):
        only = [lines[dataset][0], *(row for row in lines[dataset] if row.startswith("AAA,"))]
        live_cells.put(
            file.state, *live_cells.read(file.state, SESSION, only, Source.FLAT_FILE, dataset, name=f"file-{number}")
        )
    for column in (Column.TRADE_REF, Column.QUOTE_REF):
        refilled, read = over.cells("AAA", column), file.cells("AAA", column)
        assert (refilled["status"] == Status.FILLED).tolist() == [True] * 30 + [False] * 360
        assert (refilled["checksum"][:30] == read["checksum"][:30]).all()
        assert (refilled["source"][:30] == Source.REST).all()
    record = over.state.sources.get(Dataset.STOCK_TRADES.value, SESSION)
    assert record is not None
    assert (record.state, record.name) == (SourceState.OPEN, address)


def test_only_windows_that_lack_something_are_asked_for(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """Cleared and wanted ones too; not what is whole, not what is suspect, not what is not over for long enough."""
    folder, lines = files
    one = desk()
    stocks = {dataset: rows for dataset, rows in lines.items() if not dataset.of_options}
    one.live(stocks, upto=120, gap=range(0))
    rows = one.state.trade.session(one.state.calendar.session_seq(SESSION))
    ids = {name: one.state.symbols.resolve(name) for name in ("AAA", "BBB")}

    def at(symbol: str, *minutes: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(minutes), ids[symbol]), np.array(minutes)

    now = rows.now_ns()
    rows.clear_many(Column.TRADE_REF, *at("AAA", 10, 11, 12, 30), now_ns=now)
    rows.flag_many(Column.TRADE_REF, *at("BBB", 20, 21), add=Flag.WANTED, now_ns=now)
    rows.flag_many(Column.TRADE_REF, *at("BBB", 40), add=Flag.SUSPECT | Flag.PARTIAL, now_ns=now)
    one.at("2013-05-01T11:31")
    with market.rest(folder) as (address, asked):
        engine = one.engine(address)
        (task,) = engine.plan(4)
        arguments: RestArguments = task.arguments
        assert [(ask.symbol, ask.first, ask.last) for ask in arguments.asks] == [
            ("AAA", 10, 13), ("AAA", 30, 31), ("BBB", 20, 22),
        ]  # fmt: skip
        work_off(engine, one.state)
    ranges = [query for query in asked.queries() if query["order"] == "asc"]
    assert len(ranges) == 3
    assert not (one.cells("BBB")["flags"] & Flag.WANTED).any()
    assert one.cells("BBB")["flags"][40] == Flag.SUSPECT | Flag.PARTIAL
    assert (one.cells("AAA")["status"][[10, 11, 12, 30]] == Status.FILLED).all()


def test_a_minute_is_asked_for_when_it_has_been_over_for_long_enough(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """Upstream needs its time, and the live feed may still bring it."""
    folder, lines = files
    one = desk()
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120, gap=range(0))
    with market.rest(folder) as (address, _):
        engine = one.engine(address, rest_after_s=90)
        for when, last in (("11:32", 0), ("11:32:29", 0), ("11:32:31", 121), ("11:33:31", 122)):
            one.at(f"2013-05-01T{when}")
            tasks = [task for task in engine.plan(4) if task.compute.startswith("engines.rest")]
            assert (tasks[0].arguments.asks[-1].last if tasks else 0) == last


def refill_end(engine: FlatFileEngine) -> int:
    """Where the windows end that the next refill asks for; 0 where there is none."""
    refills = [task for task in engine.plan(4) if task.compute.startswith("engines.rest")]
    return max((ask.last for task in refills for ask in task.arguments.asks), default=0)


def test_a_stream_that_ended_before_its_session_did_leaves_a_tail_that_is_fetched_the_next_day(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """No stream brings what was missing at the close of a day that is over."""
    folder, lines = files
    torn, sound = desk(), whole(desk(), lines, 390)
    torn.live(lines, upto=120, gap=range(0))
    torn.at("2013-05-02T08:00")
    with market.rest(folder) as (address, _):
        for column in (Column.TRADE_REF, Column.QUOTE_REF):
            work_off(torn.engine(address, column), torn.state)
    assert torn.digests() == sound.digests()
    assert (torn.cells("AAA")["source"][120:] == Source.REST).all()


def test_what_a_stream_of_another_day_is_about_to_bring_is_left_to_it_until_it_falls_silent(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """A replayed day: the clock says nothing of what is still to come; what was filled last does."""
    folder, lines = files
    one = desk()
    one.at("2013-08-01T12:00")
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120, gap=range(0))
    with market.rest(folder) as (address, _):
        engine = one.engine(address)
        for when, end in (("12:00:01", 0), ("12:01:59", 0), ("12:02:31", 390)):
            one.at(f"2013-08-01T{when}")
            assert refill_end(engine) == end, when


def test_a_session_that_is_listed_and_streamed_is_waited_for_and_its_partial_windows_are_refilled(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """One record says both, that the file is not there and what the stream brought; nobody takes it from the other."""
    folder, lines = files
    one = desk()
    one.at("2013-08-01T12:00")
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120)
    key = (Dataset.STOCK_TRADES.value, SESSION)
    universe = one.state.universe(SESSION).tolist()
    source = LiveSource(one.state, Dataset.STOCK_TRADES, SESSION, name=live_cells.ADDRESS, globs=[], spelled=[])
    source.add("AAA", 1, 0, 0.0)
    source.put()
    with market.rest(folder) as (address, _):
        engine = one.engine(address, sessions=[SESSION, "2013-05-02"])
        assert refill_end(engine) == 70
        record = one.state.sources.get(*key)
        assert record is not None
        assert (record.state, record.stream) == (SourceState.WAITING, live_cells.ADDRESS)
        source.add("BBB", 1, 0, 0.0)
        source.put(now=True)
        engine.retry()
        held = one.state.sources.generation
        assert refill_end(engine) == 70
        assert one.state.sources.generation == held, "the record changes hands"
        work_off(engine, one.state)
        assert [one.detail for one in engine.waiting(SESSION) if one.cause == "waiting"]
    assert one.state.universe(SESSION).tolist() == universe
    for symbol in ("AAA", "BBB"):
        cells = one.cells(symbol)
        assert not (cells["flags"] & Flag.PARTIAL).any()
        assert (cells["source"][GAP] == Source.REST).all()
    record = one.state.sources.get(*key)
    assert record is not None
    one.state.sources.put(msgspec.structs.replace(record, state=SourceState.ABSENT))
    source.add("AAA", 1, 0, 0.0)
    source.put(now=True)
    record = one.state.sources.get(*key)
    assert record is not None
    assert record.state is SourceState.ABSENT, "what an operator accepted is taken back by a stream"
    assert record.symbol_rows()["rows_in"].sum() > 0


def test_a_session_whose_file_was_read_is_left_to_the_file(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """A complete source refills itself; REST ranks below it."""
    folder, lines = files
    one = desk()
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120)
    record = one.state.sources.get(Dataset.STOCK_TRADES.value, SESSION)
    assert record is not None
    one.state.sources.put(msgspec.structs.replace(record, state=SourceState.COMPLETE))
    with market.rest(folder) as (address, asked):
        assert one.engine(address).plan(4) == []
    assert asked.targets == []


def test_regions_go_first_then_the_newest_session(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """A region over BBB has it fetched before AAA."""
    folder, lines = files
    one = desk()
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120)
    with market.rest(folder) as (address, _):
        engine = one.engine(address)
        start = one.state.calendar.parse_time(f"{SESSION}T10:20")
        region = PriorityRegion(
            id=1, symbol="BBB", symbol_id=one.state.symbols.resolve("BBB"), start_ts=start, end_ts=start + 60 * 10**9,
            priority=9, created_ns=start,
        )  # fmt: skip
        one.context.asked.append(region)
        done = work_off(engine, one.state)
    refills = [task for task in done if task.compute.startswith("engines.rest")]
    assert [(task.priority, task.arguments.asks[0].symbol) for task in refills] == [(9, "BBB"), (0, "AAA")]


def test_only_contracts_that_traded_or_are_listened_to_are_asked_for(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]], tmp_path: Path
) -> None:
    """Not the thousands of a chain that did not; one that is spelled, or whose quotes the feed brings, anyway."""
    folder, lines = files
    quiet = [f"O:AAA130622C000{strike}000" for strike in range(15, 25)]
    quoted = [
        *lines[Dataset.OPTION_QUOTES],
        *(f"{one},314,1.1,5,314,1.0,4,1,{market.open_ns(SESSION)}" for one in quiet),
    ]
    other = tmp_path / "quoted"
    market.write(other, [{**{dataset: rows[1:] for dataset, rows in lines.items()}, Dataset.OPTION_QUOTES: quoted[1:]}])
    one = desk()
    live = {dataset: list(rows) for dataset, rows in lines.items() if dataset.of_options}
    live[Dataset.OPTION_QUOTES].append(f"{quiet[5]},314,1.1,5,314,1.0,4,1,{market.open_ns(SESSION) + 44 * 60 * 10**9}")
    one.live(live, upto=120)
    assert folder != other
    with market.rest(other) as (address, asked):
        work_off(one.engine(address, Column.QUOTE_REF, symbols=["O:AAA*", quiet[3]]), one.state)
    names = {target.split("?")[0].rpartition("/")[2] for target in asked.targets if "/v3/quotes/" in target}
    assert names == {*CONTRACTS, quiet[3], quiet[5]}


def test_a_chain_whose_snapshot_is_of_another_day_stays_partial_and_is_not_asked_for_again(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """Contracts that traded only in the gap may be missing; what is known is refilled, the file brings the rest."""
    folder, lines = files
    one = desk()
    one.live({dataset: rows for dataset, rows in lines.items() if dataset.of_options}, upto=120)

    def later(_: int, target: str) -> Answer | None:
        from tests.engines.feeds.scripted_source import page

        if "/snapshot/" not in target:
            return None
        day = {"volume": 5, "last_updated": market.open_ns(SESSION) + 86_400 * 10**9}
        return page([{"details": {"ticker": "O:AAA130622C00099000"}, "day": day}])

    with market.rest(folder, instead=later) as (address, asked):
        engine = one.engine(address)
        work_off(engine, one.state)
        count = len(asked.targets)
        assert engine.plan(4) == []
        assert count == len(asked.targets)
    cells = one.cells("O:AAA")
    assert (cells["source"][45:70] == Source.REST).all()
    assert (cells["flags"][45:70] & Flag.PARTIAL != 0).all()
    assert "O:AAA130622C00099000" not in repr(asked.targets)


FAULTS = {
    "429": (Faults(too_many=3, too_many_amount=0), "429"),
    "500": (Faults(broken=4), "5xx"),
    "repeated page": (Faults(repeat_page=3), "page_repeated"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_that_pass_are_waited_out(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy service, a failing one, a page that repeats: the same cells in the end, and the retries are counted."""
    folder, lines = files
    faults, counted = FAULTS[kind]
    monkeypatch.setitem(fetch_rows.__kwdefaults__, "limit", 50)
    pause = "engines.feeds.retrying.RetryPolicy.pause_seconds"
    monkeypatch.setattr(pause, lambda policy, _: 0.0 if policy.base_seconds < 1 else 15.0)
    torn, sound = desk(), whole(desk(), {Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, 120)
    torn.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120)
    with market.rest(folder, faults) as (address, _):
        engine = torn.engine(address)
        for _ in range(5):
            work_off(engine, torn.state)
            torn.clock.time_ns += 400 * 10**9
    for symbol in ("AAA", "BBB"):
        assert (torn.cells(symbol)["checksum"][:120] == sound.cells(symbol)["checksum"][:120]).all()
    numbers = {(one.name, *one.labels.values()): one.value for one in engine.numbers()}
    assert numbers["rest_retries", counted] > 0
    assert numbers[("refilled_windows",)] >= 50


@pytest.mark.parametrize(
    ("answer", "cause", "said"),
    [
        (refusal(401), "denied", "HTTP 401"),
        (refusal(503), "unreachable", "HTTP 503"),
        (refusal(429, {"Retry-After": "90"}), "unreachable", "HTTP 429"),
    ],
)
def test_a_service_that_does_not_serve_is_a_pause_and_loses_nothing(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]], answer: Answer, cause: str, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Bounded attempts, the state says why and until when; symbols that came before it are kept; then it goes on."""
    folder, lines = files
    monkeypatch.setattr("engines.feeds.retrying.RetryPolicy.pause_seconds", lambda *_: 1.0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    one = desk()
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120)
    failing = [True]

    def sometimes(_: int, target: str) -> Answer | None:
        return answer if failing[0] and "/BBB" in target else None

    with market.rest(folder, instead=sometimes) as (address, asked):
        engine = one.engine(address)
        work_off(engine, one.state)
        assert (one.cells("AAA")["source"][45:70] == Source.REST).all()
        assert (one.cells("BBB")["source"][45:70] == Source.WEBSOCKET).all()
        assert [waiting.cause for waiting in engine.waiting()] in (["unreachable"], [cause], [cause, cause])
        health = engine.health()
        assert health.state == "degraded"
        assert said in health.detail
        assert "tried again at 2013-05-01T11:3" in health.detail
        assert len(asked.targets) < 20
        failing[0] = False
        if "429" in said:
            one.clock.time_ns += 80 * 10**9
            assert engine.plan(4) == [], "it asked for 90 s"
        one.clock.time_ns += 20 * 10**9
        work_off(engine, one.state)
    assert (one.cells("BBB")["source"][45:70] == Source.REST).all()
    assert engine.health().state == "idle"
    assert engine.waiting() == []


def test_the_budget_goes_over_from_one_refill_to_the_next(
    desk: Callable[..., Desk], files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """What a refill sent counts in the next one's minute."""
    folder, lines = files
    one = desk()
    one.live({Dataset.STOCK_TRADES: lines[Dataset.STOCK_TRADES]}, upto=120)
    with market.rest(folder) as (address, asked):
        engine = one.engine(address)
        tasks: list[Task] = work_off(engine, one.state)
        assert tasks
        rest = engine._rest
        assert isinstance(rest, RestRefill)
        assert len(rest._sent) == len(asked.targets)


def test_rounded_times_hash_as_a_file_of_rounded_times(
    desk: Callable[..., Desk], tmp_path: Path, files: tuple[Path, dict[Dataset, list[str]]]
) -> None:
    """REST rounds nanoseconds; the same rows in a file of that precision have the same checksums."""
    _, lines = files
    rows = []
    for line in lines[Dataset.STOCK_TRADES][1:2_000]:
        at = str(int(line.split(",")[-5]) + 84_600)
        rows.append(line.replace(f",{line.split(',')[-5]},", f",{at},"))
    folder = tmp_path / "rounded"
    market.write(folder, [{Dataset.STOCK_TRADES: rows}])
    over, file = desk(), desk()
    with market.rest(folder) as (address, _):
        work_off(over.engine(address, symbols=["AAA"]), over.state)
    text = [market.HEADERS[Dataset.STOCK_TRADES], *rows]
    live_cells.put(file.state, *live_cells.read(file.state, SESSION, text, Source.FLAT_FILE))
    assert (over.cells("AAA")["checksum"][:20] == file.cells("AAA")["checksum"][:20]).all()
