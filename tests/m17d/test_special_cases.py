"""
Sessions that are not like the others, each case defined here: half days, odd instruments, and a minute that is a crowd.

One synthetic half day, 2013-11-29 from 09:30 to 13:00, holds nearly all of them and is filled once per kind of option rows;
what only real files show (no file of quotes, an index) is in ``test_greeks_sessions``. Expected values are worked out
here from the rules, not asked of the engines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import ledger
from engines.greeks.flags import GreeksFlag
from ledger import roots
from ledger.columns import AGGREGATE_MINUTES, Column, Dataset, Flag, Status
from ledger.state import State
from m17d import protocol
from tests.engines import market
from tests.m17d.flat_files import open_ns
from tests.m17d.test_derived_sessions import fill, served

HALF_DAY, MINUTES = "2013-11-29", 210
MINUTE_NS, SECOND = 60_000_000_000, 1_000_000_000
CROWD, CROWD_MINUTE = 50_000, 30
SATURDAY, ADJUSTED = "O:AAA131130C00010000", "O:AAA1131221C00010000"
NEVER_TRADED, NEVER_QUOTED = "O:AAA131221P00010000", "O:AAA131221C00012000"
NO_QUOTES, INDEX, ORPHAN = "O:NOQ131221C00009000", "O:SPXW131129C01800000", "O:ZZZ131221C00010000"
NOTHING_BUT_UNDERLYING = {int(GreeksFlag.NO_UNDERLYING)}


def trades(ticker: str, seconds: list[float], price: float = 10.0) -> dict[Dataset, list[str]]:
    """Trades so many seconds behind the open, a cent up with every second one."""
    found = []
    for number, second in enumerate(seconds):
        at, paid = open_ns(HALF_DAY) + round(second * SECOND), f"{price + number % 2 / 100:.2f}"
        found.append(
            f"{ticker},,,314,{at},{paid},{at},{1 + number % 3}"
            if ticker.startswith("O:")
            else f"{ticker},,,11,{number},{at},{paid},{number + 1},{at},{100 + number % 7},1,,0"
        )
    return {Dataset.OPTION_TRADES if ticker.startswith("O:") else Dataset.STOCK_TRADES: found}


def quotes(ticker: str, price: float = 10.0, width: float = 0.02) -> dict[Dataset, list[str]]:
    """A quote every half minute, one second before the full and the half, from before the open to the close."""
    found = []
    for number in range(2 * MINUTES + 1):
        at = open_ns(HALF_DAY) + (30 * number - 1) * SECOND
        bid, ask = f"{price - width / 2:.2f}", f"{price + width / 2:.2f}"
        found.append(
            f"{ticker},314,{ask},5,314,{bid},4,{number + 1},{at}"
            if ticker.startswith("O:")
            else f"{ticker},12,{ask},3,11,{bid},2,1,604,{at},{number},{at},1,0"
        )
    return {Dataset.OPTION_QUOTES if ticker.startswith("O:") else Dataset.STOCK_QUOTES: found}


def write_session(folder: Path) -> None:
    """The files, the curve and nothing else."""
    every = [60.0 * minute for minute in range(MINUTES)]
    crowd = [60.0 * CROWD_MINUTE + number * 50e-6 for number in range(1, CROWD)]
    parts = [
        # The print at 13:00:00 is the closing cross: outside the session.
        trades("AAA", [*sorted([*every, *crowd]), 60.0 * MINUTES]),
        *(trades(one, every) for one in ("LONE", "NOQ")),
        *(quotes(one) for one in ("AAA", "LONE", "QUO", SATURDAY, NEVER_TRADED, ADJUSTED, INDEX)),
        trades(SATURDAY, [*every[::7], 60.0 * MINUTES - 0.5], 0.01),
        trades(NEVER_QUOTED, sorted([*every[::5], *crowd]), 0.05),
        trades(ADJUSTED, every[::9], 0.40),
        *(trades(one, every[::6], 2.0) for one in (NO_QUOTES, INDEX, ORPHAN)),
    ]
    market.write(folder / "flatfiles", parts, HALF_DAY)
    curve = {"date": "2013-11-27"} | {f"yield_{tenor}": 0.5 for tenor in ("1_month", "3_month", "1_year", "10_year")}
    (folder / "yields.json").write_text(json.dumps({"status": "OK", "results": [curve]}))


@pytest.fixture(scope="module", params=["chain", pytest.param("contract", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The half day, filled by all engines."""
    made: Path = tmp_path_factory.mktemp(request.param)
    write_session(made)
    source = f'source = "flatfiles"\nsessions = ["{HALF_DAY}"]\n'
    (made / "m17.toml").write_text(
        f'state_dir = "ledger.state"\noption_rows = "{request.param}"\n[calendar]\nyear = 2013\n'
        f'[engines.treasury]\nsource = "yields.json"\n[engines.trade_flatfile]\n{source}[engines.quote]\n{source}'
        "[engines.nbbo]\n[engines.greeks]\n[engines.aggregation]\n"
    )
    fill(made)
    return made


@pytest.fixture
def state(folder: Path) -> Any:
    """Its state, to read."""
    with ledger.open(folder / "ledger.state", readonly=True) as opened:
        yield opened


def symbol_of(state: State, ticker: str) -> str:
    """The symbol whose cells hold a ticker's rows."""
    return roots.symbol_of(ticker, state.option_rows)


def root_of(symbol: str) -> str:
    """A contract's chain; others are themselves."""
    return symbol[:-15] if len(symbol) > 15 else symbol


def slots(state: State, column: Column, symbol: str) -> np.ndarray:
    """All 390 places of a symbol."""
    rows = state.ledger_of(column).session(state.calendar.session_seq(HALF_DAY))
    return rows.slots(column, np.array([state.symbols.resolve(symbol)]))[0]


def rows_of(state: State, column: str, ticker: str) -> pl.DataFrame:
    """The rows of one ticker, in order of time."""
    found = state.scan(column, symbols=symbol_of(state, ticker), sessions=HALF_DAY).collect()
    return found.filter(pl.col("ticker").cast(pl.String) == ticker).sort("minute", "ordinal" if "ordinal" in found.columns else "sip_timestamp")  # fmt: skip


def windows_of(state: State, column: str, underlying: str) -> pl.DataFrame:
    """Aggregates of an underlying, ascending."""
    return state.scan(column, symbols=underlying, sessions=HALF_DAY).collect().sort("window_start_ns")


def test_a_half_day_has_210_windows_and_all_that_can_be_filled_is(folder: Path) -> None:
    """210 of 210, suspect only where a complete file lacks what should be there; the cross at 13:00:00 is outside."""
    with served(folder) as client:
        coverage = client.call(protocol.CoverageRequest(session=HALF_DAY, by="symbol"))
        assert coverage.windows == MINUTES
        for column, counts in coverage.columns.items():
            assert (counts.empty, counts.pending, counts.cleared, counts.stale) == (0, 0, 0, 0), column
            assert counts.filled + counts.not_applicable == MINUTES * coverage.symbols, column
        suspect = {
            symbol for symbol, columns in (coverage.by_symbol or {}).items() if any(one.suspect for one in columns.values())
        }  # fmt: skip
        # Trades without quotes, quotes without trades, options without their stock: of stocks and of whole roots.
        assert {root_of(one) for one in suspect} == {"NOQ", "O:NOQ", "QUO", "O:ZZZ"}
        assert coverage.out_of_session["us_stocks_sip/trades_v1"]["rows"] == 1


def test_windows_of_a_half_day_are_clipped_at_13_00_and_flagged_short(state: State) -> None:
    """A window that would end behind the close is short; every one of four hours is; none starts in the afternoon."""
    close_ns = open_ns(HALF_DAY) + MINUTES * MINUTE_NS
    for column, length in AGGREGATE_MINUTES.items():
        cells = slots(state, column, "LONE")
        assert (cells["status"][:MINUTES] == Status.FILLED).all()
        assert not cells["status"][MINUTES:].any()
        short = [at + length > MINUTES for at in range(MINUTES)]
        assert ((cells["flags"][:MINUTES] & Flag.SHORT) != 0).tolist() == short
        rows = windows_of(state, column.value, "LONE")
        assert rows["short"].to_list() == short
        assert rows["covered_minutes"].to_list() == [min(length, MINUTES - at) for at in range(MINUTES)]
        assert rows["window_end_ns"].max() == close_ns
        assert (rows["available_ns"] == rows["window_end_ns"]).all()


def test_an_option_dated_saturday_lives_until_the_close_of_the_half_day_before(state: State) -> None:
    """
    It is expiry day itself: years are counted to 13:00 of Friday, and within the last second one second is used.

    A cent for half a second at the money is a volatility of 1,400 %: beyond iv_max, and said so.
    """
    rows = rows_of(state, "greeks_ref", SATURDAY)
    left_ns = open_ns(HALF_DAY) + MINUTES * MINUTE_NS - rows["sip_timestamp"].to_numpy()
    years = np.maximum(left_ns, SECOND) / (365 * 86_400 * SECOND)
    assert rows["tau_years"].to_numpy() == pytest.approx(years, rel=1e-15)
    last = GreeksFlag.TAU_CLAMPED | GreeksFlag.IV_OUT_OF_RANGE | GreeksFlag.NO_IV
    assert rows["flags"].to_list() == [0] * (rows.height - 1) + [int(last)]
    assert rows["usable"].to_list() == [True] * (rows.height - 1) + [False]


def test_a_contract_that_never_traded_has_quotes_and_no_data_behind_them(state: State) -> None:
    """Its quote cells have rows; its trades, sides and Greeks are filled without rows, and nothing is suspect."""
    assert rows_of(state, "quote_ref", NEVER_TRADED).height == 2 * MINUTES
    if symbol_of(state, NEVER_TRADED) != NEVER_TRADED:
        return  # a chain's cells hold the other contracts too
    for column in (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF):
        cells = slots(state, column, NEVER_TRADED)[:MINUTES]
        assert (cells["status"] == Status.FILLED).all()
        assert (cells["flags"] == Flag.NO_ROWS).all()


def test_a_contract_without_quotes_has_sides_by_the_tick_rule_and_greeks(state: State) -> None:
    """Its own quotes are an input of the side alone; Greeks stand on the underlying's. One contract is never suspect."""
    sides = rows_of(state, "aggressor_ref", NEVER_QUOTED)
    assert set(sides["quote_state"]) == {"none"}
    assert set(sides["method"]) == {"tick_rule", "unknown"}
    assert sides["bid_price"].null_count() == sides.height
    greeks = rows_of(state, "greeks_ref", NEVER_QUOTED)
    assert greeks.height == sides.height
    assert greeks["spot"].null_count() < greeks.height
    cells = slots(state, Column.QUOTE_REF, symbol_of(state, NEVER_QUOTED))[:MINUTES]
    assert not (cells["flags"] & Flag.SUSPECT).any()


def test_an_adjusted_root_keeps_its_trades_and_sides_and_stays_out_of_the_aggregates(state: State) -> None:
    """Greeks flagged NONSTANDARD and nothing else; left out of the windows, and counted there."""
    sides, greeks = rows_of(state, "aggressor_ref", ADJUSTED), rows_of(state, "greeks_ref", ADJUSTED)
    assert sides.height == greeks.height == len(range(0, MINUTES, 9))
    assert "unknown" not in set(sides["side"][1:])
    assert set(greeks["flags"]) == {int(GreeksFlag.NONSTANDARD)}
    assert state.underlying_id(state.symbols.resolve(symbol_of(state, ADJUSTED))) == state.symbols.resolve("AAA")
    windows = windows_of(state, "aggs_1m", "AAA")
    assert windows["left_out_nonstandard"].to_list() == [int(at % 9 == 0) for at in range(MINUTES)]


def test_a_stock_without_options_has_windows_and_no_greeks(state: State) -> None:
    """Prices and dollars are there; everything about calls and puts is null or a count of 0."""
    windows = windows_of(state, "aggs_5m", "LONE")
    assert windows["underlying_trades"].to_list() == [min(5, MINUTES - at) for at in range(MINUTES)]
    assert windows.select(pl.col("calls", "puts").sum()).row(0) == (0, 0)
    about_options = [one for one in windows.columns if one.startswith(("calls_", "puts_"))]
    assert len(about_options) == 132
    assert all(windows[one].null_count() == MINUTES for one in about_options)
    for column in (Column.RF_RATE_REF, Column.GREEKS_REF):
        assert not slots(state, column, "LONE")["status"].any(), "not applicable"


def test_options_without_a_stock_are_filled_and_flagged(state: State) -> None:
    """An index is in no dataset; ZZZ is in no file: their Greeks say NO_UNDERLYING, their windows count what was left out."""
    for ticker, underlying in ((INDEX, "SPX"), (ORPHAN, "ZZZ")):
        rows = rows_of(state, "greeks_ref", ticker)
        assert rows.height == len(range(0, MINUTES, 6))
        assert set(rows["flags"]) == NOTHING_BUT_UNDERLYING
        windows = windows_of(state, "aggs_1m", underlying)
        assert windows["left_out_no_spot"].to_list() == [1] * rows.height
        assert windows["underlying_price_open"].null_count() == windows.height
    assert not slots(state, Column.QUOTE_REF, "SPX")["status"].any(), "not applicable"
    assert (slots(state, Column.TRADE_REF, "ZZZ")[:MINUTES]["flags"] & Flag.NO_ROWS).all()


def test_a_stock_with_trades_and_no_quotes_gives_its_options_no_greeks_but_a_spot(state: State) -> None:
    """Complete quotes without one row of NOQ: suspect there, Greeks flagged; aggregates take the last trade as spot."""
    cells = slots(state, Column.QUOTE_REF, "NOQ")[:MINUTES]
    assert (cells["flags"] == Flag.NO_ROWS | Flag.SUSPECT).all()
    assert set(rows_of(state, "greeks_ref", NO_QUOTES)["flags"]) == NOTHING_BUT_UNDERLYING
    windows = windows_of(state, "aggs_1m", "NOQ")
    traded = windows.filter(pl.col("calls") > 0)
    assert traded.height == len(range(0, MINUTES, 6))
    assert traded.select(pl.col("spot_from_last_trade", "null_delta").sum()).row(0) == (traded.height, traded.height)
    assert set(traded["calls_dadvv_total"]) == {0.0}


def test_a_stock_with_quotes_and_no_trades_has_windows_without_rows(state: State) -> None:
    """No trade, no row: sides and every window are filled and hold nothing; such silence of a stock's trades is suspect."""
    for column, extra in ((Column.TRADE_REF, Flag.SUSPECT), (Column.AGGRESSOR_REF, 0), (Column.AGGS_1M, 0)):
        cells = slots(state, column, "QUO")[:MINUTES]
        assert (cells["status"] == Status.FILLED).all()
        assert (cells["flags"] == Flag.NO_ROWS | extra).all(), column
    assert not state.scan("aggs_1m", symbols="QUO", sessions=HALF_DAY).collect().height


def test_a_minute_of_50_000_trades_is_one_cell_whose_rows_all_count(state: State) -> None:
    """Of a stock and of a contract in the same minute: one row each in every column, all of them in the windows."""
    for column in ("trade_ref", "aggressor_ref"):
        assert rows_of(state, column, "AAA").filter(pl.col("minute") == CROWD_MINUTE).height == CROWD
    for column in ("trade_ref", "aggressor_ref", "greeks_ref"):
        assert rows_of(state, column, NEVER_QUOTED).filter(pl.col("minute") == CROWD_MINUTE).height == CROWD
    prints = rows_of(state, "trade_ref", "AAA").filter(pl.col("minute") == CROWD_MINUTE)
    calls = rows_of(state, "trade_ref", NEVER_QUOTED).filter(pl.col("minute") == CROWD_MINUTE)
    window = windows_of(state, "aggs_1m", "AAA").row(CROWD_MINUTE, named=True)
    assert window["underlying_trades"] == CROWD
    assert window["calls"] == CROWD
    assert window["underlying_dollar_value_total"] == pytest.approx((prints["price"] * prints["size"]).sum(), rel=1e-12)
    assert window["calls_dollar_value"] == pytest.approx(100 * (calls["price"] * calls["size"]).sum(), rel=1e-12)
