"""
What a change reaches, on real rows: exactly the cells that depend on it move, once, and nothing moves when nothing changed.

One state of NWSA and its options is filled, then files and settings are changed one after the other as upstream and
operators do, and the daemon is run again; versions of all cells of all columns are compared before and after. What should
have moved is worked out here from the rules, from nothing that the engines remember.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import ledger
from ledger.columns import AGGREGATE_MINUTES, Column, Flag, Status
from tests.m17d.test_asof import copy_files
from tests.m17d.test_derived_sessions import fill
from tests.m17d.test_greeks_sessions import NEWS
from tests.m17d.test_real_sessions import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

Cell = tuple[Column, str, int]
MINUTE_NS = 60_000_000_000
CLOSE = 390


class World:
    """A folder with upstream files, a config and a state."""

    def __init__(self, folder: Path, option_rows: str) -> None:
        self.folder = folder
        self.option_rows = option_rows
        copy_files(folder, None)
        yields = json.loads((DATA / "treasury" / "treasury-yields.json").read_text())
        (folder / "yields.json").write_text(json.dumps(yields))
        self.configure()
        self.run()

    def configure(self, nbbo: str = "") -> None:
        """Write the config."""
        source = f'source = "flatfiles"\nsessions = ["{NEWS}"]\n'
        (self.folder / "m17.toml").write_text(
            f'state_dir = "ledger.state"\noption_rows = "{self.option_rows}"\n[calendar]\nyear = {NEWS[:4]}\n'
            f'[engines.treasury]\nsource = "yields.json"\n[engines.trade_flatfile]\n{source}[engines.quote]\n{source}'
            f"[engines.nbbo]\n{nbbo}[engines.greeks]\n[engines.aggregation]\n"
        )

    def run(self) -> str:
        """The daemon, until it has nothing to do."""
        return fill(self.folder)

    def path(self, dataset: str) -> Path:
        """An upstream file."""
        return self.folder / "flatfiles" / dataset / NEWS[:4] / NEWS[5:7] / f"{NEWS}.csv.gz"

    def rows(self, dataset: str) -> pl.DataFrame:
        """Its rows, as text."""
        return pl.read_csv(self.path(dataset), infer_schema=False)

    def replace(self, dataset: str, rows: pl.DataFrame) -> None:
        """Put other rows in its place, as upstream does."""
        self.path(dataset).write_bytes(gzip.compress(rows.write_csv().encode(), compresslevel=3))

    def slots(self) -> dict[Column, dict[str, np.ndarray]]:
        """All cells by column and symbol."""
        found: dict[Column, dict[str, np.ndarray]] = {}
        with ledger.open(self.folder / "ledger.state", readonly=True) as state:
            seq, universe = state.calendar.session_seq(NEWS), state.universe(NEWS)
            for column in Column:
                slots = state.ledger_of(column).session(seq).slots(column, universe)
                found[column] = {state.symbols.name(int(one)): slots[at].copy() for at, one in enumerate(universe)}
        return found

    def moved(self, change: Callable[[], object]) -> tuple[set[Cell], dict[Column, dict[str, np.ndarray]]]:
        """Cells whose version is another after a change and a run, each by exactly one; and all cells after it."""
        before = self.slots()
        change()
        self.run()
        after = self.slots()
        cells: set[Cell] = set()
        for column, by_symbol in after.items():
            for symbol, now in by_symbol.items():
                grown = now["version"].astype(np.int64) - before[column][symbol]["version"]
                assert set(np.unique(grown)) <= {0, 1}, (column, symbol, "made more than once")
                cells |= {(column, symbol, int(minute)) for minute in np.flatnonzero(grown)}
                assert (now["status"] == before[column][symbol]["status"]).all()
        assert self.run().count("cells set") == 0, "a second run finds nothing to do"
        return cells, after

    def symbol_of(self, ticker: str) -> str:
        """The symbol of a contract."""
        return "O:NWSA" if self.option_rows == "chain" else ticker

    def option_minutes(self) -> set[tuple[str, int]]:
        """Symbols and minutes with option trades."""
        return {(self.symbol_of(ticker), minute) for ticker, minute in self.prints("us_options_opra/trades_v1")}

    def prints(self, dataset: str) -> list[tuple[str, int]]:
        """Ticker and minute of the session of every row of a file in session."""
        with ledger.open(self.folder / "ledger.state", readonly=True) as state:
            open_ns = state.calendar.times(NEWS).open_ns
        at = (pl.col("sip_timestamp").cast(pl.Int64) - open_ns) // MINUTE_NS
        frame = self.rows(dataset).rename(str.lower).select("ticker", at.alias("minute"))
        return [(ticker, minute) for ticker, minute in frame.iter_rows() if 0 <= minute < CLOSE]


def windows(minutes: set[int]) -> set[Cell]:
    """The aggregates of NWSA whose windows hold one of the minutes."""
    return {
        (column, "NWSA", start)
        for column, length in AGGREGATE_MINUTES.items()
        for minute in minutes
        for start in range(max(0, minute - length + 1), minute + 1)
    }


@pytest.fixture(scope="module", params=["contract", pytest.param("chain", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests of this file; each starts from what the one before left."""
    return World(tmp_path_factory.mktemp(request.param), request.param)


def test_a_file_rewritten_with_equal_rows_moves_nothing(world: World) -> None:
    """Other bytes, equal content: no version, no checksum, no print."""
    before = world.slots()
    moved, after = world.moved(
        lambda: [
            world.replace(dataset, world.rows(dataset))
            for dataset in ("us_options_opra/trades_v1", "us_stocks_sip/quotes_v1")
        ]
    )
    assert not moved
    for column, by_symbol in after.items():
        for symbol, slots in by_symbol.items():
            for name in ("checksum", "inputs", "flags", "payload_id"):
                assert (slots[name] == before[column][symbol][name]).all(), (column, symbol, name)


def test_one_option_trade_moves_its_minute_where_its_price_reaches_and_the_windows_that_hold_them(world: World) -> None:
    """Another price: its own minute, that of the contract's next trade (it is the price before it), Greeks, windows."""
    dataset = "us_options_opra/trades_v1"
    rows = world.rows(dataset).with_row_index("at")
    counts = rows.group_by("ticker", maintain_order=True).agg(
        pl.col("at").sort_by(pl.col("sip_timestamp").cast(pl.Int64))
    )
    ticker, at = next((ticker, at) for ticker, at in counts.iter_rows() if len(at) >= 3)
    prints = world.prints(dataset)
    assert len(prints) == rows.height, "every option trade of this file is in session"
    first, second = prints[at[0]][1], prints[at[1]][1]
    price = pl.when(pl.col("at") == at[0]).then((pl.col("price").cast(pl.Float64) + 0.35).round(2).cast(pl.String))
    changed = rows.with_columns(price.otherwise("price").alias("price")).drop("at")
    moved, _ = world.moved(lambda: world.replace(dataset, changed))
    symbol = world.symbol_of(ticker)
    columns = (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF)
    expected = {(column, symbol, minute) for column in columns for minute in (first, second)}
    assert moved == expected | windows({first, second})


@pytest.mark.slow
def test_one_trade_of_the_stock_moves_windows_and_reaches_no_greeks(world: World) -> None:
    """Its size: its own minute and windows; those a minute later that start with option trades, whose spot it may be."""
    dataset, minute = "us_stocks_sip/trades_v1", 137
    rows = world.rows(dataset).with_row_index("at")
    (at,) = (
        i for i, (_, one) in zip(session_rows(world, dataset), world.prints(dataset), strict=True) if one == minute
    )
    size = pl.when(pl.col("at") == at).then((pl.col("size").cast(pl.Int64) + 100).cast(pl.String)).otherwise("size")
    moved, _ = world.moved(lambda: world.replace(dataset, rows.with_columns(size.alias("size")).drop("at")))
    expected = {(column, "NWSA", minute) for column in (Column.TRADE_REF, Column.AGGRESSOR_REF)} | windows({minute})
    if any(one == minute + 1 for _, one in world.option_minutes()):
        expected |= {(column, "NWSA", minute + 1) for column in AGGREGATE_MINUTES}
    assert moved == expected


def session_rows(world: World, dataset: str) -> list[int]:
    """Positions of the rows of a file that lie in session."""
    with ledger.open(world.folder / "ledger.state", readonly=True) as state:
        times = state.calendar.times(NEWS)
    at = world.rows(dataset).rename(str.lower)["sip_timestamp"].cast(pl.Int64)
    return at.is_between(times.open_ns, times.close_ns, closed="left").arg_true().to_list()


@pytest.mark.slow
def test_one_quote_of_the_stock_moves_two_minutes_of_its_sides_and_of_its_options_greeks(world: World) -> None:
    """Its bid size only: aggressors of T and T+1 where there are trades, Greeks likewise, windows over those."""
    dataset = "us_stocks_sip/quotes_v1"
    with_options = {minute for _, minute in world.option_minutes()}
    own = {minute for _, minute in world.prints("us_stocks_sip/trades_v1")}
    minute = next(one for one in sorted(with_options) if {one, one + 1} <= own and one + 1 not in with_options)
    rows = world.rows(dataset).with_row_index("at")
    at = next(
        i for i, (_, one) in zip(session_rows(world, dataset), world.prints(dataset), strict=True) if one == minute
    )
    price = pl.when(pl.col("at") == at).then((pl.col("ask_price").cast(pl.Float64) + 0.01).round(2).cast(pl.String))
    changed = rows.with_columns(price.otherwise("ask_price").alias("ask_price")).drop("at")
    moved, after = world.moved(lambda: world.replace(dataset, changed))
    greeks = {(Column.GREEKS_REF, symbol, one) for symbol, one in world.option_minutes() if one in (minute, minute + 1)}
    sides = {(Column.AGGRESSOR_REF, "NWSA", one) for one in (minute, minute + 1)}
    expected = {(Column.QUOTE_REF, "NWSA", minute)} | greeks | sides
    direct = {cell for cell in moved if cell[0] not in AGGREGATE_MINUTES}
    assert direct == expected
    # A window moves where the content of a side or a Greek in it does; an equal row remade moves nothing further.
    assert {cell for cell in moved if cell[0] in AGGREGATE_MINUTES} <= windows({minute, minute + 1})
    assert (Column.AGGS_1M, "NWSA", minute) in moved
    del after


@pytest.mark.slow
def test_a_revised_curve_moves_every_rate_and_the_greeks_of_minutes_with_trades(world: World) -> None:
    """One basis point at one tenor: all rates in force, Greeks where options traded, windows over Greeks that changed."""
    path = world.folder / "yields.json"
    document = json.loads(path.read_text())
    rows = document["results"] if isinstance(document, dict) else document
    (day,) = (row for row in rows if row["date"] == "2013-06-27")
    tenor = next(name for name in day if name.startswith("yield_1_month"))
    before = world.slots()

    def revise() -> None:
        day[tenor] = round(float(day[tenor]) + 0.01, 4)
        path.write_text(json.dumps(document))

    moved, after = world.moved(revise)
    rates = {cell for cell in moved if cell[0] is Column.RF_RATE_REF}
    assert rates == {(Column.RF_RATE_REF, symbol, at) for symbol in after[Column.RF_RATE_REF] for at in range(CLOSE)}
    greeks = {(Column.GREEKS_REF, symbol, minute) for symbol, minute in world.option_minutes()}
    assert {cell for cell in moved if cell[0] is Column.GREEKS_REF} == greeks
    assert not {cell for cell in moved if cell[0] in (Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF)}
    changed = {
        minute for _, symbol, minute in greeks
        if after[Column.GREEKS_REF][symbol]["checksum"][minute] != before[Column.GREEKS_REF][symbol]["checksum"][minute]
    }  # fmt: skip
    assert changed
    assert {cell for cell in moved if cell[0] in AGGREGATE_MINUTES} == windows(changed)


@pytest.mark.slow
def test_another_policy_moves_every_side_and_the_windows_over_those_that_changed(world: World) -> None:
    """A recipe is in every print, rows or not; what lies behind moves only where content did. And back again."""
    before = world.slots()
    moved, after = world.moved(lambda: world.configure('policy = "touch-only"\ntick_rule = false\n'))
    sides = {(Column.AGGRESSOR_REF, symbol, at) for symbol in after[Column.AGGRESSOR_REF] for at in range(CLOSE)}
    assert {cell for cell in moved if cell[0] is Column.AGGRESSOR_REF} == sides
    changed = {
        minute for _, symbol, minute in sides
        if after[Column.AGGRESSOR_REF][symbol]["checksum"][minute] != before[Column.AGGRESSOR_REF][symbol]["checksum"][minute]
    }  # fmt: skip
    assert 0 < len(changed) < CLOSE
    assert {cell for cell in moved if cell[0] in AGGREGATE_MINUTES} == windows(changed)
    assert {cell[0] for cell in moved} == {Column.AGGRESSOR_REF, *AGGREGATE_MINUTES}
    world.moved(world.configure)
    for column, by_symbol in world.slots().items():
        for symbol, slots in by_symbol.items():
            for name in ("checksum", "inputs"):
                assert (slots[name] == before[column][symbol][name]).all(), (column, symbol)


@pytest.mark.slow
def test_a_symbol_that_leaves_a_replaced_file_becomes_no_data_and_what_was_made_from_it_follows(world: World) -> None:
    """All trades of one contract are gone upstream: its cells hold no rows now, higher versions, and are not suspect."""
    dataset = "us_options_opra/trades_v1"
    rows, prints = world.rows(dataset), world.prints(dataset)
    ticker, minute = prints[-1]
    minutes = {one for name, one in prints if name == ticker}
    others = {one for name, one in prints if name != ticker and world.symbol_of(name) == world.symbol_of(ticker)}
    moved, after = world.moved(lambda: world.replace(dataset, rows.filter(pl.col("ticker") != ticker)))
    symbol = world.symbol_of(ticker)
    columns = (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF)
    assert moved == {(column, symbol, one) for column in columns for one in minutes} | windows(minutes)
    if minute not in others:
        for column in columns:
            slot = after[column][symbol][minute]
            assert (slot["status"], slot["flags"]) == (Status.FILLED, Flag.NO_ROWS)
