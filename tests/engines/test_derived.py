"""Planning of derived cells: what is taken, when, in what pieces, and that nothing is planned where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines.derivation
from engines.contract import Batch, Task
from engines.derivation import Cells, Judged
from engines.derived import DerivedEngine
from engines.nbbo.engine import NbboArguments, NbboDerivation
from engines.nbbo.policy import NbboPolicy
from engines.nbbo.print_classes import PrintTable
from engines.scope import Scope
from ledger.columns import Column, Flag, PayloadKind, Source, Status
from ledger.content import no_rows_hash
from ledger.maps import Artifact
from ledger.prints import recipe_print
from ledger.records import NO_ROWS_ID, blank
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State, create_state, open_state
from m17d.committing import Counts, commit_no_rows
from tests.ledger.states import copied

SESSION, OLDER = "2013-10-07", "2013-10-04"
TRADE, QUOTE, AGGRESSOR = Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF
KIND = {TRADE: PayloadKind.TRADE, QUOTE: PayloadKind.QUOTE, AGGRESSOR: PayloadKind.AGGRESSOR}


class Context:
    """What an engine sees of a daemon that is not there."""

    def __init__(self, state: State, auto_recompute_sessions: int = 5) -> None:
        self.state = state
        self.start_number = 1
        self.auto_recompute_sessions = auto_recompute_sessions
        self.wanted: list[Any] = []

    def log(self, level: str, message: str) -> None:
        """Nobody reads it."""

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """Nothing above is about to change."""

    def is_settled(self, session: str, column: Column, symbol_ids: np.ndarray) -> bool:
        """Nothing above changes."""
        return True

    def regions(self, column: Column) -> list[Any]:
        """The regions a test asked for."""
        return self.wanted if column is AGGRESSOR else []


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are taken at once, although something has just touched them."""
    monkeypatch.setattr(engines.derived, "_QUIET_S", -1.0)
    monkeypatch.setattr(engines.derived, "_PLAN_S", 60.0)
    monkeypatch.setattr(engines.derived, "_JUDGE_S", 60.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new state, made once."""
    path = tmp_path_factory.mktemp("made") / "s"
    create_state(path, year=2013)
    return path


@pytest.fixture
def state(made: Path, tmp_path: Path) -> Iterator[State]:
    """A state of three symbols in two sessions, without a cell."""
    copied(made, tmp_path / "s")
    with open_state(tmp_path / "s") as opened:
        opened.allocate(["AAA", "BBB", "O:AAA"])
        opened.artifacts.append(
            Artifact(
                artifact_id=0,
                uri="t.parquet",
                checksum=0,
                bytes=0,
                rows=0,
                column="trade_ref",
                session=SESSION,
                engine="t",
            )
        )
        for session in (OLDER, SESSION):
            symbols = pack_symbols([0, 1, 2], [1, 1, 1], [0, 0, 0], [0.0, 0.0, 0.0])
            opened.sources.put(
                SourceRecord(dataset="d", session=session, state=SourceState.COMPLETE, name="f", symbols=symbols)
            )
        yield opened


def engine_of(
    state: State, policy: NbboPolicy | None = None, scope: Scope | None = None, **context: int
) -> DerivedEngine:
    """The aggressor engine over the state."""
    made = DerivedEngine(NbboDerivation(policy or NbboPolicy(), PrintTable.load()), scope or Scope())
    made.start(Context(state, **context))
    return made


def put(state: State, column: Column, symbol: int, minutes: list[int], salt: int = 0, session: str = SESSION) -> None:
    """Fill cells with rows whose content is that of the salt; salt -1 fills them without rows."""
    rows = state.ledger_of(column).session(state.calendar.session_seq(session))
    cells = np.full(len(minutes), symbol), np.array(minutes)
    if salt < 0:
        empty = no_rows_hash(KIND[column]) >> 32
        rows.set_many(column, *cells, NO_ROWS_ID, empty, flags=int(Flag.NO_ROWS), source=Source.FLAT_FILE, now_ns=1)
        return
    records = blank(KIND[column], len(minutes))
    records["content_hash"] = [(1 + salt + 1000 * minute + 7 * symbol) << 32 for minute in minutes]
    records["artifact_id"], records["row_count"] = 1, 10
    records["row_start"] = np.array(minutes) * 10
    first = state.maps[KIND[column]].append(records)
    ids, checksums = (
        np.arange(first, first + len(minutes)),
        (records["content_hash"] >> np.uint64(32)).astype(np.uint32),
    )
    rows.set_many(column, *cells, ids, checksums, source=Source.FLAT_FILE, now_ns=1)


def fill_all(state: State, session: str = SESSION) -> None:
    """Trades at three minutes of AAA, quotes everywhere; nothing else has rows."""
    everywhere = list(range(390))
    for symbol in (0, 1, 2):
        put(state, TRADE, symbol, everywhere, -1, session)
        put(state, QUOTE, symbol, everywhere, 5 if symbol == 0 else -1, session)
    put(state, TRADE, 0, [0, 10, 11], 3, session)


def commit(state: State, engine: DerivedEngine, task: Task) -> None:
    """Do a task: no-rows cells as the daemon does, others as if a worker had."""
    engine.started(task)
    if not task.compute:
        assert list(commit_no_rows(state, task, Counts())) != []
    else:
        arguments: NbboArguments = task.arguments
        records = blank(PayloadKind.AGGRESSOR, len(arguments.cells))
        records["content_hash"] = np.arange(1, len(records) + 1).astype(np.uint64) << np.uint64(40)
        records["artifact_id"], records["row_count"], records["batch_id"] = 1, 1, arguments.recipe
        first = state.maps[PayloadKind.AGGRESSOR].append(records)
        units = np.array([state.symbols.resolve(name) for name in arguments.symbols])
        rows = state.trade.session(state.calendar.session_seq(task.session))
        rows.set_many(
            AGGRESSOR,
            units[arguments.cells["symbol"]],
            arguments.cells["minute"].astype(np.int64),
            np.arange(first, first + len(records)),
            (records["content_hash"] >> np.uint64(32)).astype(np.uint32),
            inputs=arguments.cells["inputs"],
            now_ns=1,
        )
    engine.ended(task)
    engine.finished(task, Batch())


def work_off(state: State, engine: DerivedEngine) -> list[Task]:
    """Do tasks until there are none."""
    done: list[Task] = []
    while tasks := engine.plan(8):
        for task in tasks:
            commit(state, engine, task)
        done += tasks
        assert len(done) < 50
    assert not engine.is_looking()
    return done


def minutes_of(task: Task) -> list[int]:
    """The minutes of a task's cells."""
    found: list[int] = task.arguments.cells["minute"].tolist()
    return found


def test_nothing_is_planned_before_the_inputs_are_filled(state: State) -> None:
    """Trades alone make no cell ready; quotes of T alone do not where those of T-1 are open."""
    engine = engine_of(state)
    assert engine.plan(8) == []
    put(state, TRADE, 0, [10, 11], 1)
    put(state, QUOTE, 0, [11], 1)
    assert engine.plan(8) == []
    put(state, QUOTE, 0, [10], 1)
    (task,) = engine.plan(8)
    assert minutes_of(task) == [11]


def test_cells_without_trades_are_filled_without_a_worker_and_hold_the_print_of_the_recipe(state: State) -> None:
    """Three windows go to a worker, the others hold the no-rows record."""
    fill_all(state)
    engine = engine_of(state)
    done = work_off(state, engine)
    computed = [task for task in done if task.compute]
    assert [minutes_of(task) for task in computed] == [[0, 10, 11]]
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    cells = rows.slots(AGGRESSOR, np.array([0, 1, 2]))
    assert (cells["status"] == Status.FILLED).all()
    quiet = cells["flags"] & Flag.NO_ROWS != 0
    assert int((~quiet).sum()) == 3
    derivation = engine.derivation
    assert isinstance(derivation, NbboDerivation)
    assert set(cells["inputs"][quiet].tolist()) == {recipe_print(derivation.recipe)}
    assert len(set(cells["inputs"][~quiet].tolist())) == 3


def test_task_names_every_input_once_with_its_rows(state: State) -> None:
    """Quotes of T and T-1 of all cells, each range once, and ids for the lineage."""
    fill_all(state)
    task = next(task for task in engine_of(state).plan(8) if task.compute)
    arguments: NbboArguments = task.arguments
    assert arguments.symbols == ("AAA",)
    assert arguments.trades.ranges["minute"].tolist() == [0, 10, 11]
    assert arguments.quotes.ranges["minute"].tolist() == [0, 9, 10, 11]
    assert arguments.quotes.ranges["start"].tolist() == [0, 90, 100, 110]
    assert arguments.cells["previous_quote_id"].tolist()[0] == 0
    assert arguments.cells["previous_quote_id"].tolist()[2] == arguments.cells["quote_id"].tolist()[1]


def test_a_changed_input_makes_exactly_the_cells_behind_it_stale_and_they_are_made_once(state: State) -> None:
    """A quote minute touches the trades of T and T+1; a quote without trades behind it touches nothing."""
    fill_all(state)
    engine = engine_of(state)
    work_off(state, engine)
    put(state, QUOTE, 0, [10], 99)
    put(state, QUOTE, 0, [200], 99)
    stale = engine.stale(SESSION, AGGRESSOR, np.array([0, 1]))
    assert np.argwhere(stale).tolist() == [[0, 10], [0, 11]]
    assert not engine.stale_by_recipe(SESSION, AGGRESSOR, np.array([0, 1])).any()
    (task,) = work_off(state, engine)
    assert minutes_of(task) == [10, 11]
    assert not engine.stale(SESSION, AGGRESSOR, np.array([0, 1])).any()


def test_refill_with_equal_content_plans_nothing(state: State) -> None:
    """Cleared, the inputs make a cell neither stale nor ready; refilled alike, nothing is to be done."""
    fill_all(state)
    engine = engine_of(state)
    work_off(state, engine)
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    rows.clear_many(TRADE, np.array([0]), np.array([10]), now_ns=2)
    assert engine.plan(8) == []
    assert not engine.stale(SESSION, AGGRESSOR, np.array([0])).any()
    put(state, TRADE, 0, [10], 3)
    assert engine.plan(8) == []
    assert not engine.is_looking()


def test_planning_looks_only_where_something_moved(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first look a change of one symbol is judged for that symbol only."""
    fill_all(state)
    engine = engine_of(state)
    work_off(state, engine)
    judged: list[list[int]] = []
    judge = engine.derivation.judge

    def watched(seq: int, column: Column, units: np.ndarray) -> Judged:
        judged.append(units.tolist())
        return judge(seq, column, units)

    monkeypatch.setattr(engine.derivation, "judge", watched)
    assert engine.plan(8) == []
    assert judged == []
    put(state, QUOTE, 1, [5], 77)
    assert engine.plan(8) == []
    assert judged == [[1]]


def test_units_with_a_task_at_work_are_judged_when_it_is_over_or_late(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own cells are committed in slices; judged at each, they would cost more than their rows."""
    fill_all(state)
    engine = engine_of(state)
    tasks = engine.plan(8)
    for task in tasks:
        engine.started(task)
    judged: list[list[int]] = []
    judge = engine.derivation.judge

    def watched(seq: int, column: Column, units: np.ndarray) -> Judged:
        judged.append(units.tolist())
        return judge(seq, column, units)

    monkeypatch.setattr(engine.derivation, "judge", watched)
    put(state, QUOTE, 1, [5], 77)
    assert engine.plan(8) == []
    assert judged == []
    assert engine.is_looking()
    monkeypatch.setattr(engines.derived, "_LATE_S", -1.0)
    assert engine.plan(8) == []
    assert judged[0] == [1]
    judged.clear()
    monkeypatch.setattr(engines.derived, "_LATE_S", 3600.0)
    put(state, QUOTE, 1, [6], 77)
    assert engine.plan(8) == []
    assert judged == []
    for task in tasks:
        engine.ended(task)
    engine.plan(8)
    assert judged[0] == [0, 1, 2]


def test_wanted_cells_are_made_again_and_running_ones_are_not_offered_twice(state: State) -> None:
    """A refresh is work although nothing is stale; while it is under way nobody else gets it."""
    fill_all(state)
    engine = engine_of(state)
    work_off(state, engine)
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    rows.flag_many(AGGRESSOR, np.array([0, 1]), np.array([10, 3]), add=Flag.WANTED, now_ns=2)
    tasks = engine.plan(8)
    assert [(task.compute != "", task.cells) for task in tasks] == [(False, 1), (True, 1)]
    for task in tasks:
        engine.started(task)
    assert engine.plan(8) == []
    for task in tasks:
        engine.ended(task)
    assert len(engine.plan(8)) == 2


def test_another_recipe_is_remade_unasked_only_in_the_newest_sessions(state: State) -> None:
    """Older sessions stay stale for the reason recipe; there a changed input is still remade."""
    for session in (OLDER, SESSION):
        fill_all(state, session)
    work_off(state, engine_of(state))
    engine = engine_of(state, NbboPolicy(policy="touch-only"), auto_recompute_sessions=1)
    done = work_off(state, engine)
    assert {task.session for task in done} == {SESSION}
    ids = np.array([0, 1, 2])
    assert not engine.stale(SESSION, AGGRESSOR, ids).any()
    assert engine.stale(OLDER, AGGRESSOR, ids).all()
    assert engine.stale_by_recipe(OLDER, AGGRESSOR, ids).all()
    rows = state.trade.session(state.calendar.session_seq(OLDER))
    rows.clear_many(AGGRESSOR, np.array([0]), np.array([10]), now_ns=2)
    (task,) = engine.plan(8)
    assert (task.session, minutes_of(task)) == (OLDER, [10])


def test_newest_session_goes_first_and_regions_before_it(state: State) -> None:
    """The order of tasks follows regions, then dates."""
    for session in (OLDER, SESSION):
        fill_all(state, session)
    engine = engine_of(state)
    assert [task.session for task in engine.plan(8)] == [SESSION, SESSION, OLDER, OLDER]

    class Region:
        symbol_id, priority = 0, 9
        start_ts = int(state.calendar.open_ns[state.calendar.session_seq(OLDER)])
        end_ts = start_ts + 60 * 10**9

    context = engine._context
    assert isinstance(context, Context)
    context.wanted = [Region()]
    tasks = engine.plan(8)
    assert [(task.session, task.priority) for task in tasks[:2]] == [(OLDER, 9), (OLDER, 9)]


def test_on_demand_nothing_is_planned_before_a_region_activates_it_and_then_for_good(state: State) -> None:
    """Only the activated symbol's cells of that session are made, with rows and without; another engine goes on so."""
    for session in (OLDER, SESSION):
        fill_all(state, session)
    scope = Scope(activation="on-demand")
    engine = engine_of(state, scope=scope)
    assert work_off(state, engine) == []
    covered = engine.covers(SESSION, AGGRESSOR)
    assert covered is not None and not covered.any()
    state.regions.activate(
        symbol="AAA", symbol_id=0, first_session=SESSION, last_session=SESSION, columns=[Column.AGGS_1M]
    )
    done = work_off(state, engine)
    assert {task.session for task in done} == {SESSION}
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    filled = rows.status[rows.column_index(AGGRESSOR), :3, :390] == Status.FILLED
    # The option's sides are inputs of the stock's aggregates; BBB was not asked for.
    assert filled.all(axis=1).tolist() == [True, False, True]
    put(state, TRADE, 0, [20], 4)
    (task,) = work_off(state, engine_of(state, scope=scope))
    assert minutes_of(task) == [20]


def test_heavy_symbols_are_cut_and_light_ones_put_together(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task weighs more than the bound, unless one cell does; every cell is in one task."""
    fill_all(state)
    put(state, TRADE, 1, [1, 2], 4)
    put(state, QUOTE, 1, [0, 1, 2], 4)
    engine = engine_of(state)
    computed = [minutes_of(task) for task in engine.plan(8) if task.compute]
    assert computed == [[0, 10, 11, 1, 2]]
    monkeypatch.setattr(engines.derivation, "ROWS_MAX", 60)
    pieces = [task for task in engine_of(state).plan(20) if task.compute]
    assert all(task.cells == 1 for task in pieces)
    assert sorted(minutes_of(task)[0] for task in pieces) == [0, 1, 2, 10, 11]


def test_a_task_that_failed_keeps_its_key_until_its_inputs_change_and_its_units_go_alone(state: State) -> None:
    """So the runner knows it again, and the others of the group are made without it."""
    fill_all(state)
    put(state, TRADE, 1, [1], 4)
    put(state, QUOTE, 1, [0, 1], 4)
    engine = engine_of(state)
    (task,) = [task for task in engine.plan(8) if task.compute]
    engine.started(task)
    engine.ended(task)
    engine.failed(task, "boom", None)
    alone = [one for one in engine.plan(8) if one.compute]
    assert [one.arguments.symbols for one in alone] == [("AAA",), ("BBB",)]
    assert [one.key for one in engine.plan(8) if one.compute] == [one.key for one in alone]
    put(state, TRADE, 1, [1], 5)
    renewed = [one.key for one in engine.plan(8) if one.compute]
    assert renewed[0] == alone[0].key
    assert renewed[1] != alone[1].key


def test_recent_changes_wait_until_the_unit_is_whole_or_quiet(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch under commit is not planned in shreds, and until then the engine says that it is still looking."""
    monkeypatch.setattr(engines.derived, "_QUIET_S", 3600.0)
    put(state, TRADE, 0, [10, 11], 1)
    put(state, QUOTE, 0, [9, 10], 1)
    engine = engine_of(state)
    assert engine.plan(8) == []
    assert engine.is_looking()
    fill_all(state)
    assert [minutes_of(task) for task in engine.plan(8) if task.compute] == [[0, 10, 11]]


def test_a_withdrawn_task_gives_all_its_units_back(state: State) -> None:
    """One of them moved, and the others have nothing to be noticed by; units judged again meanwhile stay open."""
    fill_all(state)
    engine = engine_of(state)
    everything = sum(task.cells for task in engine.plan(8))
    look = engine._looks[SESSION]
    units, notes = np.array([0, 1, 2]), look.notes[:3].copy()
    assert everything == 3 * 390
    assert not look.open
    put(state, TRADE, 1, [5], 4)
    again = engine.plan(8)
    assert sum(task.cells for task in again) == everything
    assert {one for task in again for one in task.symbols or ()} == {0, 1, 2}
    put(state, TRADE, 2, [5], 4)
    engine.judge_a_little()
    assert 2 in look.open
    look.taken(units, notes)
    assert 2 in look.open
    work_off(state, engine)
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    assert (rows.status[rows.column_index(AGGRESSOR), :3] == Status.FILLED).all()


def many_symbols(state: State) -> np.ndarray:
    """300 stocks more, in the session's universe; their ids."""
    ids = np.array(state.allocate([f"M{number:03d}" for number in range(300)]).ids)
    packed = pack_symbols(ids, np.ones(300), np.zeros(300), np.zeros(300))
    state.sources.put(
        SourceRecord(dataset="many", session=SESSION, state=SourceState.COMPLETE, name="f", symbols=packed)
    )
    return ids


def test_symbols_that_wait_for_the_other_file_are_sifted_not_judged(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trades of a whole day are there, and no quotes: one look at the planes; what has a side is judged all the same."""
    ids = many_symbols(state)
    for symbol in ids.tolist():
        put(state, TRADE, symbol, [10, 11], 1)
    put(state, AGGRESSOR, int(ids[7]), [10], 1)
    engine = engine_of(state)
    judged: list[int] = []
    judge = engine.derivation.judge

    def watched(seq: int, column: Column, units: np.ndarray) -> Judged:
        judged.extend(units.tolist() if seq == state.calendar.session_seq(SESSION) else [])
        return judge(seq, column, units)

    monkeypatch.setattr(engine.derivation, "judge", watched)
    assert engine.plan(8) == []
    assert judged == [ids[7]]
    assert not engine.is_looking()
    put(state, QUOTE, int(ids[3]), [10, 11], 1)
    (task,) = engine.plan(8)
    assert task.symbols == (ids[3],)
    assert minutes_of(task) == [11]


def test_sifting_finds_what_judging_each_symbol_finds(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over symbols of every kind: with and without trades, quotes, sides, marks of a refresh, and with stale sides."""
    ids, chance = many_symbols(state), np.random.default_rng(3)
    for column, share in ((TRADE, 0.5), (QUOTE, 0.3), (AGGRESSOR, 0.2)):
        for symbol in ids[chance.random(300) < share].tolist():
            put(state, column, symbol, list(range(20)), 1)
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    sides = ids[(rows.status[rows.column_index(AGGRESSOR), ids, 5] == Status.FILLED)][:10]
    rows.flag_many(AGGRESSOR, sides, np.full(len(sides), 5), add=Flag.WANTED, now_ns=2)
    found = []
    for least in (256, 1 << 20):
        monkeypatch.setattr(engines.derived, "_SIFTED_MIN", least)
        engine = engine_of(state)
        assert engine.is_looking()
        engine.judge_a_little()
        look = engine._looks[SESSION]
        assert not look.has_unjudged()
        assert look.open and look.stale_cells()
        found.append((look.open, look.stale_cells()))
    assert found[0] == found[1]


def test_a_task_whose_inputs_are_cleared_while_it_is_put_together_is_not_offered(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Planning pauses between judging and finding the rows. A cell cleared in between would be read as one without rows, under
    the print of what it held: filled again with that, nobody would notice. At whatever pause it happens.
    """
    for pause in range(40):
        first = state.calendar.session_seq(SESSION) * 390
        state.trade.clear(AGGRESSOR, np.arange(3).repeat(390), first + np.tile(np.arange(390), 3))
        fill_all(state)
        engine = engine_of(state)
        monkeypatch.setattr(engines.derived, "_PLAN_S", -1.0)
        for _ in range(pause):
            if any(task.compute for task in engine.plan(8)):
                return
        state.trade.clear(QUOTE, np.array([0]), np.array([first + 9]))
        monkeypatch.setattr(engines.derived, "_PLAN_S", 60.0)
        for task in engine.plan(8):
            if task.compute:
                assert 10 not in minutes_of(task)
                assert task.arguments.cells["previous_quote_id"][task.arguments.cells["minute"] == 11].all()
        put(state, QUOTE, 0, [9], 1)
    pytest.fail("no task was ever offered")


def test_cells_come_in_parts_of_whole_symbols() -> None:
    """Every cell in one part, none of an empty list."""
    ids = np.array([1, 1, 4, 4, 4, 9])
    cells = Cells(TRADE, ids, np.arange(6), np.ones(6, dtype=np.uint32))
    assert [part.symbol_ids.tolist() for part in cells.by_units(2)] == [[1, 1, 4, 4, 4], [9]]
    assert [part.minutes.tolist() for part in cells.by_units(1)] == [[0, 1], [2, 3, 4], [5]]
    assert [len(part) for part in cells.by_units(7)] == [6]
    assert list(cells.part(slice(0, 0)).by_units(1)) == []
