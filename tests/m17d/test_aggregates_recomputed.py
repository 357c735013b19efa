"""
Aggregates of real sessions against a second implementation, from the Parquet artifacts, every column of every window chosen.

The rows come through ``scan`` and are put together here with Polars; the formulas are those of the slow reference in
``tests/engines/aggregation/reference.py``, in numpy and scipy. Nothing of the engine's own reading or joining is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

import ledger
from engines.aggregation.columns import COUNTS, METRICS
from engines.aggregation.inputs import OptionTrades, SessionInputs, UnderlyingTrades
from ledger.columns import AGGREGATE_MINUTES, Column
from ledger.state import State
from tests.engines.aggregation.reference import aggregate
from tests.m17d.test_derived_sessions import CHAINS, STOCKS, configure, fill
from tests.m17d.test_greeks_sessions import ENGINES as GREEKS_ENGINES
from tests.m17d.test_greeks_sessions import INDEX, NEWS
from tests.m17d.test_real_sessions import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared market data is not beside the project")

ENGINES = f"[engines.nbbo]\n{GREEKS_ENGINES}\n[engines.aggregation]"
SIDES = {"unknown": 0, "buyer": 1, "seller": 2}
METHODS = {"unknown": 0, "nbbo_touch": 1, "nbbo_at_or_beyond": 2, "tick_rule": 3}


class Case(NamedTuple):
    """A real underlying and session, and how its windows are chosen."""

    session: str
    option_rows: str
    underlying: str
    starts: tuple[int, ...]
    lengths: tuple[int, ...] = (1, 5, 10, 30, 60, 240)


EVERY = tuple(range(390))
CASES = [
    Case(CHAINS, "chain", "TWX", EVERY[::39]),
    Case(CHAINS, "chain", "AAPL", (0, 61, 184, 380)),
    Case(NEWS, "contract", "NWSA", EVERY[3::39]),
    Case(INDEX, "chain", "SPX", (0, 200, 388)),
]
SLOW_CASES = [
    Case(CHAINS, "contract", "AAPL", (97, 359)),
    Case(CHAINS, "chain", "TWX", EVERY),
    Case(NEWS, "contract", "NWSA", EVERY),
    Case(STOCKS, "chain", "BAC", (0, 389), (1, 5, 10)),
    Case(STOCKS, "chain", "IBM", (1, 150), (1, 30, 60)),
]


class Filled:
    """States by session and kind of option rows, filled by all engines when first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def state(self, session: str, option_rows: str) -> State:
        """Open for reading."""
        folder = self._root / f"{session}-{option_rows}"
        if not folder.exists():
            configure(folder, session, option_rows, nbbo=ENGINES)
            fill(folder)
        return ledger.open(folder / "ledger.state", readonly=True)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Nothing is filled yet."""
    return Filled(tmp_path_factory.mktemp("recomputed"))


def joined(state: State, session: str, symbols: str) -> pl.DataFrame:
    """Trades of some symbols with side, method, delta, gamma and spot beside them, by their place in the trade cell."""
    place = ["symbol", "minute", "ordinal"]
    trades = state.scan("trade_ref", symbols=symbols, sessions=session).collect()
    if not trades.height:
        return trades
    trades = trades.with_columns(pl.int_range(pl.len()).over("symbol", "minute").cast(pl.UInt32).alias("ordinal"))
    for column, names in (
        ("aggressor_ref", ["side", "method", "confidence"]),
        ("greeks_ref", ["delta", "gamma", "spot"]),
    ):
        rows = state.scan(column, symbols=symbols, sessions=session).collect()
        if rows.height:
            trades = trades.join(rows.select(*place, *names), on=place, how="left", validate="1:1")
    return trades.sort("minute", "symbol", "ordinal")


def inputs_of(state: State, case: Case) -> SessionInputs:
    """The rows of an underlying and its options as plain arrays."""
    own = joined(state, case.session, case.underlying)
    options = joined(state, case.session, f"O:{'SPXW' if case.underlying == 'SPX' else case.underlying}*")
    count, none = options.height, np.zeros(0)
    text = options["ticker"].cast(pl.String) if count else pl.Series([], dtype=pl.String)
    right = text.str.slice(-9, 1)

    def numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
        return frame[name].cast(pl.Float64).fill_null(math.nan).to_numpy() if name in frame.columns else none

    def codes(name: str, words: dict[str, int]) -> np.ndarray:
        return options[name].replace_strict(words, return_dtype=pl.UInt8).to_numpy() if count else none.astype(np.uint8)

    def minutes(frame: pl.DataFrame) -> np.ndarray:
        return frame["minute"].to_numpy() if frame.height else none.astype(np.uint16)

    def times(frame: pl.DataFrame) -> np.ndarray:
        return frame["sip_timestamp"].to_numpy() if frame.height else none.astype(np.int64)

    return SessionInputs(
        state.calendar.times(case.session).open_ns,
        UnderlyingTrades(
            minutes(own),
            times(own),
            numbers(own, "price"),
            numbers(own, "size"),
            np.ones(own.height, dtype=np.bool_),
            np.zeros(own.height, dtype=np.bool_),
        ),
        OptionTrades(
            minute=minutes(options),
            timestamp_ns=times(options),
            is_call=(right == "C").to_numpy(),
            price=numbers(options, "price"),
            size=numbers(options, "size"),
            multiplier=np.full(count, 100.0),
            strike=text.str.slice(-8).cast(pl.Float64).to_numpy() / 1000.0,
            delta=numbers(options, "delta"),
            gamma=numbers(options, "gamma"),
            spot=numbers(options, "spot"),
            side=codes("side", SIDES),
            method=codes("method", METHODS),
            confidence=numbers(options, "confidence"),
            standard=(~text.str.extract(r"^O:([A-Z]+\d*)\d{6}[CP]").str.contains(r"\d$")).to_numpy(),
            cancelled=np.zeros(count, dtype=np.bool_),
        ),
    )


def counts_of(inputs: SessionInputs, start: int, end: int) -> dict[str, int]:
    """The counts of a window, one by one; under ``prints = all`` nothing is left out as cancelled."""
    under, options = inputs.underlying, inputs.options
    own = int(((under.minute >= start) & (under.minute < end)).sum())
    inside = (options.minute >= start) & (options.minute < end)
    odd = inside & ~options.standard
    spot, last = options.spot.copy(), np.zeros(len(options.spot), dtype=bool)
    for i in np.flatnonzero(inside & options.standard & np.isnan(spot)):
        at = np.flatnonzero(under.timestamp_ns <= options.timestamp_ns[i])
        if len(at) and int(options.minute[i]) - int(under.minute[at[-1]]) <= 1:
            spot[i], last[i] = under.price[at[-1]], True
    used = inside & options.standard & ~np.isnan(spot)
    return {
        "underlying_trades": own,
        "underlying_left_out_cancelled": 0,
        "puts": int((used & ~options.is_call).sum()),
        "calls": int((used & options.is_call).sum()),
        "spot_from_last_trade": int((used & last).sum()),
        "null_delta": int((used & np.isnan(options.delta)).sum()),
        "null_gamma": int((used & np.isnan(options.gamma)).sum()),
        "left_out_cancelled": 0,
        "left_out_nonstandard": int(odd.sum()),
        "left_out_no_spot": int((inside & options.standard & np.isnan(spot)).sum()),
    }


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_CASES)],
    ids=lambda case: f"{case.underlying}-{case.session}-{case.option_rows}-{len(case.starts)}",
)
def test_every_column_equals_the_slow_recomputation(case: Case, filled: Filled) -> None:
    """All 150 metrics within 1e-9, all counts and keys exactly, of windows of every length, clipped ones included."""
    with filled.state(case.session, case.option_rows) as state:
        inputs = inputs_of(state, case)
        minutes = int(state.calendar.minutes[state.calendar.session_seq(case.session)])
        for column, length in AGGREGATE_MINUTES.items():
            if length not in case.lengths:
                continue
            rows = state.scan(column.value, symbols=case.underlying, sessions=case.session).collect()
            by_start = {row["minute"]: row for row in rows.iter_rows(named=True)} if rows.height else {}
            for start in case.starts:
                end = min(start + length, minutes)
                counts = counts_of(inputs, start, end)
                if not sum(counts.values()):
                    assert start not in by_start, "a window without trades has no row"
                    continue
                check(by_start[start], column, counts, inputs, start, length, minutes)


def check(
    row: dict[str, float],
    column: Column,
    counts: dict[str, int],
    inputs: SessionInputs,
    start: int,
    length: int,
    minutes: int,
) -> None:
    """One row against the reference."""
    place, end = f"{column.value} at {start}", min(start + length, minutes)
    assert {name: row[name] for name in COUNTS} == counts, place
    minute_ns, open_ns = 60_000_000_000, inputs.session_open_ns
    assert row["window"] == column.value.removeprefix("aggs_")
    assert (row["window_start_ns"], row["window_end_ns"]) == (open_ns + start * minute_ns, open_ns + end * minute_ns)
    assert (row["available_ns"], row["covered_minutes"], row["short"]) == (
        row["window_end_ns"],
        end - start,
        end - start < length,
    )
    expected = aggregate(inputs, minutes, length, start)
    assert list(expected) == list(METRICS)
    for name, value in expected.items():
        got = row[name]
        if math.isnan(value):
            assert got is None, f"{name} of {place}"
            continue
        # Skew cancels to nearly nothing in symmetric samples: there 1e-9 of a unit of skew is what can be asked.
        assert got == pytest.approx(value, rel=1e-9, abs=1e-9 if name.endswith("_skew") else 1e-300), (
            f"{name} of {place}"
        )


@pytest.mark.slow
def test_chain_rows_and_contract_rows_give_the_same_aggregates(filled: Filled) -> None:
    """How options map to symbols changes no digit of any window."""
    frames = []
    for option_rows in ("chain", "contract"):
        with filled.state(CHAINS, option_rows) as state:
            columns = [state.scan(column.value, sessions=CHAINS).collect() for column in AGGREGATE_MINUTES]
        frames.append([frame.drop("payload_id", "version").sort("symbol", "minute") for frame in columns])
    assert all(one.equals(other) for one, other in zip(*frames, strict=True))
    assert [frame.height for frame in frames[0]] == [778, 780, 780, 780, 780, 780]
