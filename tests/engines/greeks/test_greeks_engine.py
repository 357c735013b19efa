"""The Greeks engine on a small state: what blocks, what enters a print, and rows of tasks as its worker makes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from pyarrow import parquet

from engines.contract import Task, TaskFailed, Workplace
from engines.derivation import Cells
from engines.greeks.compute import MEANINGS, run
from engines.greeks.engine import GreeksDerivation, build, known_sessions
from engines.greeks.flags import GreeksFlag
from engines.greeks.policy import AM_SETTLED, CarryTable, GreeksSettings
from ledger.columns import WINDOW_NS, Column, Flag, PayloadKind, Source
from ledger.frames import ArtifactWriter
from ledger.maps import Artifact
from ledger.records import ABSENT_TENOR, NO_ROWS_ID, blank
from ledger.roots import RootTable
from ledger.state import State, create_state, open_state
from tests.engines.planning import at_once
from tests.ledger.states import copied

SESSION = "2014-06-06"
SECOND = 1_000_000_000
CALL, PUT = "O:A140621C00070000", "O:A140621P00070000"
RATE, TRADE, QUOTE, GREEKS = Column.RF_RATE_REF, Column.TRADE_REF, Column.QUOTE_REF, Column.GREEKS_REF
SYMBOLS = ["O:A", "A", "O:A1", "O:SPXW", "SPX", "O:B", "B"]
FLAT = [10] * 12


class Context:
    """What the derivation sees of a daemon that is not there."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.start_number = 1
        self.auto_recompute_sessions = 5

    def log(self, level: str, message: str) -> None:
        """Nobody reads it."""

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """Nothing above is about to change."""

    def is_settled(self, session: str, column: Column, symbol_ids: np.ndarray) -> bool:
        """Nothing above changes."""
        return True

    def regions(self, column: Column) -> list[Any]:
        """None."""
        return []


class Market:
    """Cells and rows of one session in a real state."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.seq = state.calendar.session_seq(SESSION)
        self.open_ns = int(state.calendar.open_ns[self.seq])
        self.files = 0

    def _set(self, column: Column, symbol: str, minutes: Any, ids: int, checksum: int, flags: int = 0) -> None:
        places = np.atleast_1d(np.asarray(minutes, dtype=np.int64))
        rows = self.state.ledger_of(column).session(self.seq)
        cells = np.full(len(places), self.state.symbols.resolve(symbol)), places
        rows.set_many(column, *cells, ids, checksum, flags=flags, source=Source.FLAT_FILE, now_ns=1)

    def nothing(self, column: Column, symbol: str, minutes: Any = range(390)) -> None:
        """Cells without rows."""
        self._set(column, symbol, list(minutes), NO_ROWS_ID, 77, int(Flag.NO_ROWS))

    def curve(self, symbol: str, tenors: list[int], minutes: Any = range(390)) -> None:
        """One curve over some minutes."""
        record = blank(PayloadKind.RF_RATE, 1)
        record["tenor_bps"], record["content_hash"] = tenors, abs(sum(tenors))
        self._set(
            RATE, symbol, list(minutes), self.state.maps[PayloadKind.RF_RATE].append(record), abs(sum(tenors)) % 9999
        )

    def rows(
        self, column: Column, symbol: str, minute: int, rows: list[tuple[Any, ...]], lead: int = 0, checksum: int = 5
    ) -> None:
        """One cell: (ticker, seconds into the minute, price) or (ticker, seconds, bid, ask); first ``lead`` before it."""
        start = self.open_ns + minute * WINDOW_NS
        frame = pl.DataFrame(
            {
                "ticker": [row[0] for row in rows],
                "sip_timestamp": [start + round(row[1] * SECOND) for row in rows],
                "sequence_number": list(range(len(rows))),
                **(
                    {"price": [float(row[2]) for row in rows], "size": [1.0 for _ in rows]}
                    if column is TRADE
                    else {"bid_price": [float(row[2]) for row in rows], "ask_price": [float(row[3]) for row in rows]}
                ),
            }
        )
        self.files += 1
        path = self.state.artifact_root / f"rows{self.files}.parquet"
        writer = ArtifactWriter(path)
        writer.write(frame)
        written = writer.finish()
        assert written is not None
        artifact = self.state.artifacts.append(
            Artifact(
                artifact_id=0,
                uri=path.name,
                checksum=written.checksum,
                bytes=written.bytes,
                rows=written.rows,
                column=column.value,
                session=SESSION,
                engine="t",
            )
        )
        record = blank(column.payload_kind, 1)
        record["artifact_id"], record["row_start"], record["row_count"] = artifact.artifact_id, lead, len(rows) - lead
        if lead:
            record["lead_count"] = lead
        self._set(column, symbol, minute, self.state.maps[column.payload_kind].append(record), checksum)

    def derivation(self, **settings: Any) -> GreeksDerivation:
        """A derivation over the state."""
        chosen = GreeksSettings(**settings)
        made = GreeksDerivation(chosen, CarryTable.load(chosen))
        made.start(Context(self.state))
        return made

    def made(self, derivation: GreeksDerivation, symbol: str, minutes: list[int]) -> tuple[pl.DataFrame, np.ndarray]:
        """Rows and staged cells of a task over some minutes of one symbol."""
        symbol_id = self.state.symbols.resolve(symbol)
        units = np.array([symbol_id])
        prints = derivation.judge(self.seq, GREEKS, units).prints[0, minutes]
        cells = Cells(GREEKS, np.full(len(minutes), symbol_id), np.array(minutes), prints)
        assert (derivation.weigh(self.seq, cells) > 0).all()
        task = Task("greeks", "k", SESSION, derivation.compute, at_once(derivation.arguments(SESSION, [cells])))
        batch = run(task, workplace(self.state))
        staged = np.load(batch.blocks[0].path)
        assert (staged["inputs"] == prints).all()
        return pl.read_parquet(self.state.artifact_root / batch.artifacts[0].uri), staged


def workplace(state: State) -> Workplace:
    """Where a worker writes."""
    return Workplace(state.artifact_root, state.temporary, "b", lambda _done, _total: None)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new state, made once."""
    folder = tmp_path_factory.mktemp("template") / "ledger.state"
    create_state(folder, year=2014)
    return folder


@pytest.fixture
def market(template: Path, tmp_path: Path) -> Iterator[Market]:
    """Chains of A, of an adjusted root, of an index and of B; curves everywhere, nothing else."""
    copied(template, tmp_path / "ledger.state")
    with open_state(tmp_path / "ledger.state") as state:
        state.allocate(SYMBOLS)
        made = Market(state)
        for symbol in SYMBOLS:
            if symbol.startswith("O:"):
                made.curve(symbol, FLAT)
        yield made


def ready(market: Market, symbol: str, derivation: GreeksDerivation | None = None) -> np.ndarray:
    """bool[390]."""
    units = np.array([market.state.symbols.resolve(symbol)])
    plane: np.ndarray = (derivation or market.derivation()).judge(market.seq, GREEKS, units).ready[0]
    return plane


def print_of(market: Market, symbol: str, minute: int, derivation: GreeksDerivation | None = None) -> int:
    """What the cell's print would be now."""
    units = np.array([market.state.symbols.resolve(symbol)])
    return int((derivation or market.derivation()).judge(market.seq, GREEKS, units).prints[0, minute])


def test_quotes_of_the_underlying_block_until_they_are_filled_and_those_of_an_index_never(market: Market) -> None:
    """T needs the underlying's T and T-1; the chain's own quotes are no input; SPX has no quotes to wait for."""
    for symbol in ("O:A", "O:SPXW"):
        market.nothing(TRADE, symbol)
    assert not ready(market, "O:A").any()
    market.nothing(QUOTE, "O:A")
    assert not ready(market, "O:A").any()
    market.nothing(QUOTE, "A", [0, 1, 2, 9])
    assert np.flatnonzero(ready(market, "O:A")).tolist() == [0, 1, 2]
    assert ready(market, "O:SPXW").all()


def test_only_options_have_greeks_and_an_underlying_touches_all_of_its_options(market: Market) -> None:
    """Written to A: its chain and its adjusted chain are judged again, the others are not."""
    derivation, ids = market.derivation(), [market.state.symbols.resolve(one) for one in SYMBOLS]
    assert derivation.applies(np.array(ids)).tolist() == [one.startswith("O:") for one in SYMBOLS]
    names = [market.state.symbols.name(int(one)) for one in derivation.affected(np.array([ids[1]]))]
    assert names == ["O:A", "O:A1"]
    assert derivation.affected(np.array([ids[0]])).tolist() == [ids[0]]


def test_a_print_covers_curve_trades_quotes_of_two_minutes_and_the_recipe(market: Market) -> None:
    """Each of them moves the print of exactly the cells that it enters, and equal content moves none."""
    market.rows(TRADE, "O:A", 5, [(CALL, 1, 1.0)])
    market.rows(TRADE, "O:B", 5, [("O:B140621C00070000", 1, 1.0)])
    market.nothing(QUOTE, "A", range(7))
    base = print_of(market, "O:A", 5)
    assert base == print_of(market, "O:A", 5)
    seen = {base}
    for column, symbol, minute in ((QUOTE, "A", 5), (QUOTE, "A", 4), (TRADE, "O:A", 5)):
        row = (CALL, 1, 1.0) if column is TRADE else ("A", 1, 1.0, 2.0)
        market.rows(column, symbol, minute, [row], checksum=99)
        seen.add(print_of(market, "O:A", 5))
    market.curve("O:A", [20] * 12)
    now = print_of(market, "O:A", 5)
    assert len(seen | {now}) == 5
    market.rows(QUOTE, "A", 6, [("A", 1, 1.0, 2.0)])
    market.rows(QUOTE, "O:A", 5, [(CALL, 1, 1.0, 2.0)])
    assert print_of(market, "O:A", 5) == now


def test_the_carry_of_one_underlying_and_the_settlement_of_one_root_move_no_other_print(market: Market) -> None:
    """Recipes are per symbol: A's carry is nothing to B, and no settlement rule but that of SPX to SPX."""
    every = np.array([market.state.symbols.resolve(one) for one in ("O:A", "O:SPXW", "O:B")])

    def moved(**settings: Any) -> list[bool]:
        now = market.derivation(**settings).recipes(market.seq, every)
        return [bool(one) for one in now != market.derivation().recipes(market.seq, every)]

    assert moved() == [False, False, False]
    assert moved(net_carry={"A": 0.02}) == [True, False, False]
    assert moved(net_carry={"A": -0.0}) == [False, False, False]
    assert moved(staleness_ms=500) == [True, True, True]
    chosen = GreeksSettings(am_settled=("SPXW",))
    given = GreeksDerivation(chosen, CarryTable.load(chosen), am_settled_given=True)
    given.start(Context(market.state))
    changed = given.recipes(market.seq, every) != market.derivation().recipes(market.seq, every)
    assert changed.tolist() == [False, True, False]


def test_the_table_of_roots_says_which_settle_at_the_open_unless_the_config_does(market: Market) -> None:
    """The packaged table and the documented default agree."""
    assert market.derivation().settings.am_settled == AM_SETTLED
    assert tuple(sorted(one for one, root in RootTable.load().entries.items() if root.am_settled)) == AM_SETTLED


def test_rows_stand_on_the_mid_in_force_across_minutes_and_from_before_the_open(market: Market) -> None:
    """The lead serves the first minute, T-1 serves T, T-2 serves nobody; values are null where there are none."""
    market.rows(QUOTE, "A", 0, [("A", -0.5, 69.9, 70.1), ("A", 30, 70.9, 71.1)], lead=1)
    market.rows(QUOTE, "A", 1, [("A", 59.5, 71.9, 72.1)])
    market.nothing(QUOTE, "A", range(2, 5))
    market.rows(TRADE, "O:A", 0, [(CALL, 0.2, 1.0), (PUT, 0.3, 1.0), (CALL, 30.0, 1.5)])
    market.rows(TRADE, "O:A", 2, [(CALL, 0.4, 2.5), (PUT, 20.0, 1.0)])
    market.rows(TRADE, "O:A", 3, [(CALL, 0.4, 2.5)])
    rows, cells = market.made(market.derivation(), "O:A", [0, 2, 3])
    assert rows["spot"].to_list() == [70.0, 70.0, 71.0, 72.0, None, None]
    assert rows["spot_age_ns"].to_list() == [
        7 * SECOND // 10,
        8 * SECOND // 10,
        0,
        9 * SECOND // 10,
        205 * SECOND // 10,
        None,
    ]
    stale = int(GreeksFlag.NO_UNDERLYING | GreeksFlag.NBBO_STALE)
    assert rows["flags"].to_list() == [0, 0, 0, 0, stale, int(GreeksFlag.NO_UNDERLYING)]
    assert rows["usable"].to_list() == rows["iv"].is_not_null().to_list() == [True] * 4 + [False] * 2
    assert (rows["rate"].to_list()[0], rows["rate"].to_list()[4]) == (pytest.approx(0.001), None)
    assert rows["delta"][1] == pytest.approx(rows["delta"][0] - 1, abs=0.02)
    assert rows["ordinal"].to_list() == [0, 1, 2, 0, 1, 0]
    record = cells["record"]
    assert record["usable_rows"].tolist() == [3, 1, 0]
    assert record["no_underlying"].tolist() == [0, 1, 1]
    assert (record["row_start"].tolist(), record["row_count"].tolist()) == ([0, 3, 5], [3, 2, 1])
    assert record["flags_any"].tolist() == [0, stale, 1]
    assert (record["checksum"] == record["content_hash"] >> np.uint64(32)).all()
    assert (record["previous_quote_payload_id"] != 0).tolist() == [False, True, True]


def test_content_does_not_depend_on_how_the_work_is_divided(market: Market) -> None:
    """Cells made together and alone have equal hashes."""
    for minute in range(5):
        market.rows(QUOTE, "A", minute, [("A", 2 + minute, 69.9 + minute / 10, 70.1 + minute / 10)])
        market.rows(TRADE, "O:A", minute, [(CALL, 2.5 + minute, 1.0), (PUT, 2.1 + minute, 1.1)])
    derivation = market.derivation()
    _, together = market.made(derivation, "O:A", list(range(5)))
    hashes = together["record"]["content_hash"].copy()
    for minute in range(5):
        _, alone = market.made(derivation, "O:A", [minute])
        assert alone["record"]["content_hash"][0] == hashes[minute]


def test_each_cell_has_the_curve_that_its_own_rate_cell_names(market: Market) -> None:
    """Two curves in one task, and one without a published tenor: rows with it are flagged NO_TREASURY."""
    market.curve("O:A", [500] * 12, range(1, 2))
    market.curve("O:A", [ABSENT_TENOR] * 12, range(2, 3))
    for minute in range(3):
        market.rows(QUOTE, "A", minute, [("A", 1, 69.9, 70.1)])
        market.rows(TRADE, "O:A", minute, [(CALL, 1.5, 1.0)])
    rows, cells = market.made(market.derivation(), "O:A", [0, 1, 2])
    assert rows["rate"].to_list() == [pytest.approx(0.001), pytest.approx(0.05), None]
    assert rows["flags"].to_list() == [0, 0, int(GreeksFlag.NO_TREASURY)]
    assert len(set(cells["record"]["rf_rate_payload_id"].tolist())) == 3


def test_index_adjusted_and_impossible_contracts_are_filled_and_flagged(market: Market) -> None:
    """No quotes of SPX, a root that ends in a digit, a thirtieth of February: flagged, and no task fails."""
    market.rows(TRADE, "O:SPXW", 1, [("O:SPXW140606C01900000", 1, 10.0)])
    rows, cells = market.made(market.derivation(), "O:SPXW", [1])
    assert rows["flags"].to_list() == [int(GreeksFlag.NO_UNDERLYING)]
    assert cells["record"]["usable_rows"].tolist() == [0]
    market.rows(QUOTE, "A", 0, [("A", 0.5, 69.9, 70.1)])
    market.rows(QUOTE, "A", 1, [("A", 0.5, 69.9, 70.1)])
    market.rows(TRADE, "O:A1", 1, [("O:A1140621C00070000", 1, 1.0)])
    assert market.made(market.derivation(), "O:A1", [1])[0]["flags"].to_list() == [int(GreeksFlag.NONSTANDARD)]
    market.rows(TRADE, "O:A", 1, [("O:A140230C00070000", 1, 1.0), (CALL, 1, 1.0)])
    rows, _ = market.made(market.derivation(), "O:A", [1])
    assert rows["flags"].to_list() == [int(GreeksFlag.BAD_RATIO), 0]


def test_a_saturday_expiry_ends_on_friday_and_expiry_day_ends_at_the_close(market: Market) -> None:
    """The 21st of June 2014 is a Saturday; on the day itself the time to 16:00 is left."""
    sessions = known_sessions(market.state.calendar)
    assert np.datetime64("2014-01-02") == sessions.days[0].astype("datetime64[D]")
    assert sessions.days[-1] > (np.datetime64("2016-12-01") - np.datetime64("1970-01-01")).astype(int)
    assert (np.diff(sessions.days) > 0).all()
    market.rows(QUOTE, "A", 0, [("A", 0.0, 69.9, 70.1)])
    market.rows(TRADE, "O:A", 0, [(CALL, 0.0, 1.0), ("O:A140606C00070000", 0.0, 1.0)])
    rows, _ = market.made(market.derivation(), "O:A", [0])
    year = 365 * 86_400
    assert rows["tau_years"].to_list() == [
        pytest.approx((14 * 86_400 + 6.5 * 3600) / year, rel=1e-12),
        pytest.approx(6.5 * 3600 / year, rel=1e-12),
    ]


def test_carry_of_the_underlying_reaches_the_kernel(market: Market) -> None:
    """A dividend yield makes the forward lower, so the same call price needs a higher volatility."""
    market.rows(QUOTE, "A", 0, [("A", 0.0, 69.9, 70.1)])
    market.rows(TRADE, "O:A", 0, [(CALL, 0.5, 1.5)])
    without, _ = market.made(market.derivation(), "O:A", [0])
    carried, _ = market.made(market.derivation(net_carry={"A": 0.1}), "O:A", [0])
    other, _ = market.made(market.derivation(net_carry={"B": 0.1}), "O:A", [0])
    assert carried["iv"][0] > without["iv"][0] + 0.01
    assert other["iv"][0] == without["iv"][0]


def test_every_computed_column_carries_its_meaning_and_unit(market: Market) -> None:
    """In the field metadata of the artifact."""
    market.rows(QUOTE, "A", 0, [("A", 0.0, 69.9, 70.1)])
    market.rows(TRADE, "O:A", 0, [(CALL, 0.5, 1.5)])
    market.made(market.derivation(), "O:A", [0])
    (path,) = market.state.artifact_root.glob("greeks/*/*.parquet")
    schema = parquet.read_schema(path)
    assert set(schema.names) == set(MEANINGS)
    for name, (meaning, unit) in MEANINGS.items():
        metadata = schema.field(name).metadata
        assert (metadata[b"meaning"].decode(), metadata[b"unit"].decode()) == (meaning, unit)


def test_a_missing_artifact_fails_the_task_and_a_damaged_record_is_not_planned(market: Market) -> None:
    """The file is named with its remedy; a retired input weighs below zero."""
    market.rows(QUOTE, "A", 0, [("A", 0.0, 69.9, 70.1)])
    market.rows(TRADE, "O:A", 0, [(CALL, 0.5, 1.5)])
    (market.state.artifact_root / "rows1.parquet").unlink()
    with pytest.raises(TaskFailed, match=r"rows1\.parquet") as failure:
        market.made(market.derivation(), "O:A", [0])
    assert "clear the range" in failure.value.hint
    cells = Cells(
        GREEKS, np.array([market.state.symbols.resolve("O:A")]), np.array([9]), np.array([1], dtype=np.uint32)
    )
    assert market.derivation().weigh(market.seq, cells).tolist() == [-1]


def test_the_quotes_of_an_underlying_count_once_however_many_contracts_need_them(market: Market) -> None:
    """Three contracts in one minute share the weight of its quotes."""
    symbols = [f"O:A140621C000{strike}000" for strike in (70, 71, 72)]
    market.state.allocate(symbols)
    market.rows(QUOTE, "A", 3, [("A", second, 69.9, 70.1) for second in range(30)])
    for symbol in symbols:
        market.rows(TRADE, symbol, 3, [(symbol, 1, 1.0)])
    ids = np.array(sorted(market.state.symbols.resolve(one) for one in symbols))
    cells = Cells(GREEKS, ids, np.full(3, 3), np.ones(3, dtype=np.uint32))
    assert market.derivation().weigh(market.seq, cells).tolist() == [18, 18, 18]
    arguments = at_once(market.derivation().arguments(SESSION, [cells]))
    assert arguments.quotes.rows == 30
    assert arguments.underlyings == ("A",)


def test_config_takes_settings_globs_and_tables_of_carry_and_refuses_the_rest(tmp_path: Path) -> None:
    """Unknown keys, bad values and missing files are errors that name them."""
    (tmp_path / "a.csv").write_text("date,carry\n2014-01-01,0.02\n")
    engine = build({"symbols": ["O:TWX*"], "net_carry": {"A": "a.csv", "B": 0.01}, "expiry": "calendar-1600"}, tmp_path)
    assert engine.name == "greeks"
    with pytest.raises(msgspec.ValidationError, match="stalenes"):
        build({"stalenes_ms": 5}, tmp_path)
    with pytest.raises(ValueError, match=r"none\.csv"):
        build({"net_carry": {"A": "none.csv"}}, tmp_path)
    with pytest.raises(ValueError, match="60000"):
        build({"staleness_ms": 60_001}, tmp_path)


def test_the_daemon_side_imports_neither_numba_nor_polars() -> None:
    """The kernel and the frames are the worker's."""
    code = "import sys, engines.greeks.engine; print({'numba', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
