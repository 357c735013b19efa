"""The treasury engine over HTTP, by a clock of the test's own: late and missing curves, revisions, and a service that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.treasury.engine import TreasuryEngine
from ledger.columns import Column, Dataset, Flag, Source, Status
from ledger.records import ABSENT_TENOR
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State
from tests.engines.feeds.scripted_source import Answer, Asked, page, refusal, serving
from tests.engines.planning import TestContext, made_state, work_off

FRIDAY, MONDAY, TUESDAY = "2013-05-03", "2013-05-06", "2013-05-07"
STOCK, CHAIN = "AAA", "O:AAA"
COLUMN = Column.RF_RATE_REF


def curve(date: str, ten_year: float, **more: float) -> dict[str, Any]:
    """One result of the service; most tenors are left out."""
    return {"date": date, "yield_1_month": 0.03, "yield_10_year": ten_year, **more}


class Service:
    """The data service: curves that the test changes, and answers in their place."""

    def __init__(self) -> None:
        self.curves: list[dict[str, Any]] = []
        self.instead: Callable[[int, str], Answer | None] = lambda _number, _target: None
        self.asked = Asked()
        self.address = ""

    def answer(self, number: int, target: str) -> Answer:
        """Two curves a page, ascending."""
        other = self.instead(number, target)
        if other is not None:
            return other
        query = Asked([target]).queries()[0]
        first = int(query.get("cursor", "0"))
        known = [one for one in self.curves if one["date"] >= query.get("date.gte", "")]
        more = f"?cursor={first + 2}&date.gte={query.get('date.gte', '')}" if first + 2 < len(known) else None
        return page(known[first : first + 2], more)


class Desk:
    """A state with a session of a stock and its options, and the engine over a service."""

    def __init__(self, state: State, clock: Any, service: Service) -> None:
        self.state, self.clock, self.service = state, clock, service
        self.at(f"{MONDAY}T12:00")
        self.use(MONDAY, STOCK, CHAIN)

    def at(self, when: str) -> None:
        """Set the clock."""
        self.clock.time_ns = self.state.calendar.parse_time(when)

    def use(self, session: str, *symbols: str) -> None:
        """A session has these symbols."""
        self.state.allocate(list(symbols))
        ids = sorted(self.state.symbols.resolve(one) for one in symbols)
        rows = pack_symbols(ids, [1] * len(ids), [0] * len(ids), [0.0] * len(ids))
        self.state.sources.put(
            SourceRecord(dataset=Dataset.STOCK_TRADES.value, session=session, state=SourceState.COMPLETE, symbols=rows)
        )

    def engine(self, **keys: Any) -> TreasuryEngine:
        """The engine, as after a start of the daemon."""
        engine = TreasuryEngine({"source": self.service.address, **keys}, Path("/"))
        self.context = TestContext(self.state)
        engine.start(self.context)
        return engine

    def poll(self, engine: TreasuryEngine) -> None:
        """Ask again now."""
        engine.retry()
        work_off(engine, self.state)

    def cells(self, symbol: str, session: str = MONDAY) -> np.ndarray:
        """The slots of a symbol."""
        rows = self.state.trade.session(self.state.calendar.session_seq(session))
        found: np.ndarray = rows.slots(COLUMN, np.array([self.state.symbols.resolve(symbol)]))[0].copy()
        return found

    def ten_year(self, symbol: str, session: str = MONDAY) -> int:
        """The 10-year yield of a symbol's windows, in basis points; -1 where they have none."""
        slots = self.cells(symbol, session)
        if not (slots["status"] == Status.FILLED).all():
            return -1
        assert len(np.unique(slots["payload_id"])) == 1
        return int(self.state.maps[COLUMN.payload_kind].get(int(slots["payload_id"][0]))["tenor_bps"][9])


@pytest.fixture
def service() -> Iterator[Service]:
    """A service on loopback with two curves."""
    made = Service()
    made.curves = [curve("2013-05-02", 1.0), curve(FRIDAY, 2.0)]
    with serving(made.answer) as (address, asked):
        made.address, made.asked = address, asked
        yield made


@pytest.fixture
def desk(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk on Monday noon; nobody sleeps."""
    monkeypatch.setenv("M17_API_KEY", "secret-key")
    monkeypatch.setattr("engines.feeds.json_pages.time.sleep", lambda _: None)
    monkeypatch.setitem(_page_source().__init__.__kwdefaults__, "sleep", lambda _: None)
    state, clock = made_state(tmp_path / "ledger.state")
    yield Desk(state, clock, service)
    state.close()


def _page_source() -> Any:
    from engines.feeds.json_pages import PageSource

    return PageSource


def test_all_pages_are_asked_for_with_key_and_first_date(desk: Desk) -> None:
    """Of a month before the year on; a tenor that is not published is absent, a source is REST."""
    desk.service.curves.append(curve(MONDAY, 9.0))
    work_off(desk.engine(), desk.state)
    queries = desk.service.asked.queries()
    assert len(queries) == 2
    assert queries[0]["date.gte"] == "2012-12-01"
    assert all(query["apiKey"] == "secret-key" for query in queries)
    assert desk.ten_year(CHAIN) == desk.ten_year(STOCK) == 200, "Monday's own curve would look ahead"
    slot = desk.cells(CHAIN)[0]
    record = desk.state.maps[COLUMN.payload_kind].get(int(slot["payload_id"]))
    assert (slot["source"], int(record["tenor_bps"][1]), int(record["curve_date"])) == (
        Source.REST, ABSENT_TENOR, 20130503,
    )  # fmt: skip
    assert record["effective_ts"] == desk.state.calendar.parse_time(f"{FRIDAY}T18:00")


def test_same_day_curves_look_ahead_as_before(desk: Desk) -> None:
    """Where that is asked for."""
    desk.service.curves.append(curve(MONDAY, 9.0))
    work_off(desk.engine(curve_effective="same-day"), desk.state)
    assert desk.ten_year(CHAIN) == 900


def test_a_late_curve_is_placed_by_its_effective_time_and_the_lag_is_visible_until_it_comes(desk: Desk) -> None:
    """Friday's curve comes on Monday: until then Monday holds Thursday's, says so, and counts it; then all is repaired."""
    desk.service.curves.pop()
    engine = desk.engine()
    work_off(engine, desk.state)
    assert desk.ten_year(CHAIN) == 100
    (doubt,) = engine.doubts(MONDAY)
    assert (doubt.column, doubt.cause) == (COLUMN, "lagging")
    assert doubt.detail == f"the curve of 2013-05-02 holds, a curve behind: that of {FRIDAY} has not come"
    assert "behind" in engine.health().detail
    assert {one.name: one.value for one in engine.numbers()}["curves_behind"] == 1
    before = desk.cells(CHAIN)["version"]

    desk.service.curves.append(curve(FRIDAY, 2.0))
    desk.poll(engine)
    assert desk.ten_year(CHAIN) == 200
    assert (desk.cells(CHAIN)["version"] == before + 1).all()
    assert engine.doubts(MONDAY) == []
    assert {one.name: one.value for one in engine.numbers()}["curves_behind"] == 0


def test_a_revision_overwrites_with_a_higher_version_and_the_same_again_changes_nothing(desk: Desk) -> None:
    """By content: no record, no version, however often it is asked."""
    engine = desk.engine()
    work_off(engine, desk.state)
    held = desk.state.maps[COLUMN.payload_kind].next_id
    cells = desk.cells(CHAIN)
    for _ in range(3):
        desk.poll(engine)
    assert desk.state.maps[COLUMN.payload_kind].next_id == held
    assert (desk.cells(CHAIN) == cells).all()
    desk.service.curves[-1] = curve(FRIDAY, 2.5)
    desk.poll(engine)
    assert desk.ten_year(CHAIN) == 250
    assert (desk.cells(CHAIN)["version"] == cells["version"] + 1).all()


def test_curves_hold_over_weekends_and_holidays_and_one_dated_on_a_holiday_holds_from_the_next_session(
    desk: Desk,
) -> None:
    """Stocks trade on Columbus Day and no curve comes: nothing lags. A curve dated on Memorial Day holds on Tuesday."""
    desk.service.curves += [curve("2013-05-24", 3.0), curve("2013-05-27", 4.0)]
    desk.service.curves += [curve("2013-10-10", 5.0), curve("2013-10-11", 6.0)]
    for session in ("2013-05-28", "2013-10-14", "2013-10-15"):
        desk.use(session, STOCK, CHAIN)
    engine = desk.engine()
    work_off(engine, desk.state)
    assert desk.ten_year(CHAIN, "2013-05-28") == 400
    assert desk.ten_year(CHAIN, "2013-10-14") == desk.ten_year(CHAIN, "2013-10-15") == 600
    assert engine.doubts("2013-10-15") == []


def test_new_symbols_get_the_curves_that_hold(desk: Desk) -> None:
    """When they come into a session, and after a restart while the service is away."""
    engine = desk.engine()
    work_off(engine, desk.state)
    desk.use(TUESDAY, "BBB", "O:BBB")
    work_off(engine, desk.state)
    assert desk.ten_year("O:BBB", TUESDAY) == 200
    desk.service.instead = lambda _number, _target: refusal(503)
    again = desk.engine()
    desk.use(TUESDAY, "CCC", "O:CCC")
    work_off(again, desk.state)
    assert desk.ten_year("O:CCC", TUESDAY) == 200
    assert again.health().state == "degraded"


def test_a_session_whose_cells_are_being_set_is_not_planned_again(desk: Desk) -> None:
    """Its universe grows as files come in; the newcomers are set by the next task, and nobody twice."""
    engine = desk.engine()
    work_off(engine, desk.state)
    desk.use(TUESDAY, "BBB", "O:BBB")
    (task,) = engine.plan(4)
    engine.started(task)
    desk.use(TUESDAY, "CCC", "O:CCC")
    assert engine.plan(4) == []
    engine.ended(task)
    (later,) = engine.plan(4)
    assert not set(task.symbols or ()) & set(later.symbols or ())


def test_wanted_cells_are_set_again(desk: Desk) -> None:
    """A refresh is an order, also where nothing changed."""
    engine = desk.engine()
    work_off(engine, desk.state)
    rows = desk.state.trade.session(desk.state.calendar.session_seq(MONDAY))
    where = np.array([desk.state.symbols.resolve(CHAIN)]), np.array([5])
    rows.flag_many(COLUMN, *where, add=Flag.WANTED, now_ns=rows.now_ns())
    work_off(engine, desk.state)
    assert not (desk.cells(CHAIN)["flags"] & Flag.WANTED).any()


@pytest.mark.parametrize(
    ("answer", "cause", "said"),
    [
        (refusal(500), "unreachable", "HTTP 500"),
        (refusal(429, {"Retry-After": "0"}), "unreachable", "HTTP 429"),
        (refusal(429, {"Retry-After": "200"}), "unreachable", "HTTP 429"),
        (refusal(403), "denied", "HTTP 403"),
        (page([{"yield_10_year": 1.0}]), "unreachable", "date"),
        (page([curve(FRIDAY, 1e9)]), "unreachable", "cannot be"),
        ((200, {}, b"<html>"), "unreachable", "not a page of JSON"),
    ],
)
def test_a_service_that_fails_is_a_clear_state_and_recovers_without_help(
    desk: Desk, answer: Answer, cause: str, said: str
) -> None:
    """Bounded attempts, then a pause with its reason and its end; what is held goes on holding; then all is well again."""
    engine = desk.engine()
    work_off(engine, desk.state)
    desk.service.curves.append(curve(MONDAY, 3.0))
    desk.use(TUESDAY, STOCK, CHAIN)
    desk.service.instead = lambda _number, _target: answer
    asked = len(desk.service.asked.targets)
    desk.poll(engine)
    assert len(desk.service.asked.targets) - asked <= 5
    health = engine.health()
    assert health.state == "degraded"
    assert said in health.detail
    assert f"tried again at {MONDAY}T12:0" in health.detail
    assert "secret-key" not in health.detail + repr(desk.context.lines)
    assert desk.ten_year(CHAIN, TUESDAY) == 200, "what is known holds meanwhile"
    assert engine.plan(4) == []
    assert [one.cause for one in engine.waiting()] == [cause]

    desk.service.instead = lambda _number, _target: None
    desk.clock.time_ns += 250 * 10**9
    work_off(engine, desk.state)
    assert engine.health().state == "idle"
    assert desk.ten_year(CHAIN, TUESDAY) == 300
    assert engine.waiting() == []


def test_before_the_first_curve_the_reason_is_the_services(desk: Desk) -> None:
    """A session without any curve waits for what is wrong, by its cause."""
    desk.service.instead = lambda _number, _target: refusal(401)
    engine = desk.engine()
    work_off(engine, desk.state)
    (waiting,) = engine.waiting(MONDAY)
    assert (waiting.cause, "HTTP 401" in waiting.detail) == ("denied", True)
    assert not desk.state.trade.exists(desk.state.calendar.session_seq(MONDAY))


def test_a_page_that_repeats_once_costs_a_request(desk: Desk) -> None:
    """The curves are the same."""
    desk.service.curves.append(curve(MONDAY, 3.0))
    first = page(desk.service.curves[:2], "?cursor=2")
    desk.service.instead = lambda number, _target: first if number == 1 else None
    engine = desk.engine()
    work_off(engine, desk.state)
    assert engine.health().detail.startswith("3 curves")


def test_names_that_do_not_resolve_and_hosts_that_speak_no_tls_are_told_apart(desk: Desk) -> None:
    """Each with its own words."""
    for source, said in (
        ("http://no.such.host.invalid", "no such host (DNS)"),
        (desk.service.address.replace("http:", "https:"), "TLS failed"),
        ("http://127.0.0.1:1", "Connection refused"),
    ):
        engine = desk.engine(source=source, timeout_s=60)
        work_off(engine, desk.state)
        assert said in engine.health().detail


def test_the_real_file_over_http_is_the_real_file(
    shared_data: Path, tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served in pages of two, the curves of a year make the cells that the file makes."""
    path = shared_data / "treasury" / "treasury-yields.json"
    results = json.loads(path.read_bytes())["results"]
    desk.service.curves = sorted((one for one in results if one["date"] < "2014"), key=lambda one: str(one["date"]))
    for session in ("2013-06-28", "2013-10-07", "2013-10-15"):
        desk.use(session, STOCK, CHAIN)
    work_off(desk.engine(), desk.state)
    monkeypatch.chdir(tmp_path)
    state, clock = made_state(tmp_path / "other.state")
    other = Desk(state, clock, desk.service)
    for session in ("2013-06-28", "2013-10-07", "2013-10-15"):
        other.use(session, STOCK, CHAIN)
    engine = TreasuryEngine({"source": str(path)}, Path("/"))
    engine.start(TestContext(state))
    work_off(engine, state)
    for session in ("2013-06-28", "2013-10-07", "2013-10-15"):
        assert other.ten_year(CHAIN, session) > 0
        assert (other.cells(CHAIN, session)["checksum"] == desk.cells(CHAIN, session)["checksum"]).all()
    state.close()
