"""The better source wins, but a short one never wipes out good minutes: ratios, absent symbols, lost races, accept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import ledger
from ledger.columns import Column, Dataset, Flag, OptionRows, Source, Status
from ledger.sources import SourceState, pack_symbols
from ledger.state import State
from m17ctl.client import Client
from m17d import protocol, replies
from m17d.committing import Counts, commit, look
from m17d.superseding import Guard
from tests.engines.planning import made_state
from tests.m17d import flat_files, live_cells
from tests.m17d.test_daemon import start, wait_for

SESSION = "2013-05-01"
TRADE = Column.TRADE_REF
CHAIN = "O:AAA130518C00010000", "O:AAA130518P00010000"


def lines_of(per_minute: dict[int, int], ticker: str = "AAA", *, shift_ns: int = 0) -> list[str]:
    """A header and so many trades in each of some minutes."""
    lines, number = [flat_files.HEADER], 0
    for minute, rows in per_minute.items():
        for row in range(rows):
            number += 1
            ts = flat_files.open_ns(SESSION) + minute * 60 * 10**9 + row * 10**8 + shift_ns
            lines.append(f"{ticker},,,11,{number},{ts},{10 + row / 100:.2f},{number},{ts},100,1,,0")
    return lines


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A state whose clock is a day after the session."""
    made, clock = made_state(tmp_path / "ledger.state")
    clock.time_ns = made.calendar.parse_time("2013-05-02T12:00")
    yield made
    made.close()


def cells(state: State, symbol: str = "AAA", column: Column = TRADE) -> np.ndarray:
    """The slots of a symbol."""
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    found: np.ndarray = rows.slots(column, np.array([state.symbols.resolve(symbol)]))[0].copy()
    return found


def rows_in(state: State, slots: np.ndarray) -> np.ndarray:
    """Rows that slots name."""
    found: np.ndarray = state.maps[TRADE.payload_kind].get_many(slots["payload_id"])["row_count"]
    return found


def test_a_file_with_enough_rows_takes_the_cells_and_one_with_too_few_does_not(state: State) -> None:
    """At nine tenths it takes them, below it does not; cells it does not take are suspect and keep every row."""
    live_cells.live(state, SESSION, lines_of({10: 10, 11: 10, 12: 10, 13: 1, 14: 1}))
    before = cells(state)
    task, batch = live_cells.read(state, SESSION, lines_of({10: 9, 11: 8, 12: 20, 14: 2}, shift_ns=5), Source.FLAT_FILE)
    counts = live_cells.put(state, task, batch)
    after = cells(state)

    assert counts.held_back == 2
    assert after["source"][[10, 11, 12, 13, 14]].tolist() == [3, 1, 3, 1, 3]
    assert rows_in(state, after)[[10, 11, 12, 13, 14]].tolist() == [9, 10, 20, 1, 2]
    assert np.flatnonzero(after["flags"] & Flag.SUSPECT).tolist() == [11, 13]
    for minute in (11, 13):
        assert after["checksum"][minute] == before["checksum"][minute]
        assert after["payload_id"][minute] == before["payload_id"][minute]
    empty = np.setdiff1d(np.arange(390), [10, 11, 12, 13, 14])
    assert (after["source"][empty] == Source.FLAT_FILE).all(), "no rows is content too, and the better source's word"


def test_equal_content_raises_the_source_and_nothing_else(state: State) -> None:
    """The checksum is the same, so nothing behind it is stale; no record is appended."""
    live_cells.live(state, SESSION, lines_of({10: 10}), partial=[10, 20])
    before, held = cells(state), state.maps[TRADE.payload_kind].next_id
    assert np.flatnonzero(before["flags"] & Flag.PARTIAL).tolist() == [10, 20]
    live_cells.put(state, *live_cells.read(state, SESSION, lines_of({10: 10}), Source.FLAT_FILE))
    after = cells(state)
    assert (after["checksum"] == before["checksum"]).all()
    assert (after["source"] == Source.FLAT_FILE).all()
    assert not (after["flags"] & Flag.PARTIAL).any()
    assert state.maps[TRADE.payload_kind].next_id == held


def test_a_worse_source_takes_nothing(state: State) -> None:
    """Neither rows nor their absence."""
    live_cells.put(state, *live_cells.read(state, SESSION, lines_of({10: 10}), Source.FLAT_FILE))
    before = cells(state)
    for source in (Source.WEBSOCKET, Source.REST):
        counts = live_cells.put(
            state, *live_cells.read(state, SESSION, lines_of({10: 20, 11: 5}), source, name=f"worse-{source}")
        )
        assert counts.applied == 0
    assert (cells(state) == before).all()


def test_rest_over_live_has_the_same_guard(state: State) -> None:
    """A refill that brings fewer rows than the partial window has does not take it."""
    live_cells.live(state, SESSION, lines_of({10: 10, 11: 4}), partial=[10, 11])
    task, batch = live_cells.read(state, SESSION, lines_of({10: 2, 11: 8}, shift_ns=7), Source.REST, name="rest")
    assert live_cells.put(state, task, batch).held_back == 1
    after = cells(state)
    assert after["source"][[10, 11]].tolist() == [1, 2]
    assert after["flags"][[10, 11]].tolist() == [Flag.SUSPECT | Flag.PARTIAL, 0]


def test_a_wanted_cell_that_is_held_back_is_not_wanted_for_ever(state: State) -> None:
    """Asking again would bring the same; the operator clears the cell to take the better source's word."""
    live_cells.live(state, SESSION, lines_of({10: 10}))
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    where = np.array([state.symbols.resolve("AAA")]), np.array([10])
    rows.flag_many(TRADE, *where, add=Flag.WANTED, now_ns=rows.now_ns())
    short = live_cells.read(state, SESSION, lines_of({10: 1}, shift_ns=3), Source.FLAT_FILE)
    live_cells.put(state, *short)
    assert cells(state)["flags"][10] == Flag.SUSPECT
    rows.clear_many(TRADE, *where, now_ns=rows.now_ns())
    live_cells.put(state, *live_cells.read(state, SESSION, lines_of({10: 1}, shift_ns=3), Source.FLAT_FILE, name="2"))
    assert (cells(state)["source"][10], rows_in(state, cells(state))[10]) == (Source.FLAT_FILE, 1)


def test_a_cell_that_the_live_feed_changed_meanwhile_is_asked_for_again(state: State) -> None:
    """The plan saw another version: the better source does not take it blindly, and does not forget it."""
    live_cells.live(state, SESSION, lines_of({10: 10}))
    task, batch = live_cells.read(state, SESSION, lines_of({10: 12}, shift_ns=3), Source.FLAT_FILE)
    seen = look(state, (TRADE,), SESSION, None)
    live_cells.put(state, *live_cells.read(state, SESSION, lines_of({10: 11}), Source.WEBSOCKET, name="late"))
    counts = Counts()
    for _ in commit(state, task, batch, seen, counts, Guard(state)):
        pass
    assert counts.conflicts > 0
    after = cells(state)[10]
    assert (after["source"], int(after["flags"])) == (Source.WEBSOCKET, Flag.WANTED)


def test_versions_are_looked_up_only_of_symbols_with_a_cell_that_is_not_empty(state: State) -> None:
    """An empty cell has version 0; a cell that was set while only others of its symbol were is known by its own."""
    live_cells.live(state, SESSION, lines_of({10: 10}, "BBB"))
    bbb, others = state.symbols.resolve("BBB"), np.arange(len(state.symbols))
    seen = look(state, (TRADE, Column.QUOTE_REF), SESSION, None)
    assert np.flatnonzero(seen.versions[TRADE][0] >= 0).tolist() == [bbb]
    assert (seen.versions[Column.QUOTE_REF][0] < 0).all()
    rows = state.trade.session(state.calendar.session_seq(SESSION))
    for minute in (10, 11):
        minutes = np.full(len(others), minute)
        assert (seen.expected(TRADE, others, minutes) == rows.slots(TRADE, others, minutes)["version"]).all()
    some = look(state, (TRADE,), SESSION, tuple(others.tolist()), (10, 12))
    assert some.expected(TRADE, np.array([bbb]), np.array([10])) == rows.slots(TRADE, [bbb], [10])["version"]


def test_a_symbol_that_the_complete_file_lacks_keeps_its_live_minutes(state: State) -> None:
    """Its minutes with rows are suspect; those without become the file's word."""
    live_cells.live(state, SESSION, lines_of({10: 10, 11: 2}, "BBB"))
    record = state.sources.get(Dataset.STOCK_TRADES.value, SESSION)
    assert record is not None
    ids = [state.symbols.resolve("BBB")]
    state.sources.put(
        msgspec.structs.replace(
            record, state=SourceState.COMPLETE, symbols=pack_symbols(ids, [0], [1], [0.0]), name="file"
        )
    )
    live_cells.settled(state, SESSION)
    after = cells(state, "BBB")
    assert np.flatnonzero(after["flags"] & Flag.SUSPECT).tolist()[:2] == [10, 11]
    assert rows_in(state, after)[[10, 11]].tolist() == [10, 2]
    assert after["source"][12] == Source.FLAT_FILE


def test_accepting_that_a_file_will_not_come_wipes_out_nothing(state: State) -> None:
    """Only what nobody filled gets no rows, suspect."""
    live_cells.live(state, SESSION, lines_of({10: 10}), upto=100)
    record = state.sources.get(Dataset.STOCK_TRADES.value, SESSION)
    assert record is not None
    before = cells(state)
    ids = [state.symbols.resolve("AAA")]
    state.sources.put(
        msgspec.structs.replace(record, state=SourceState.ABSENT, symbols=pack_symbols(ids, [0], [0], [0.0]))
    )
    live_cells.settled(state, SESSION)
    after = cells(state)
    assert (after[:100] == before[:100]).all()
    assert (after["flags"][100:] == Flag.NO_ROWS | Flag.SUSPECT).all()


@pytest.mark.parametrize("option_rows", ["chain", "contract"])
def test_a_shortened_file_leaves_good_live_minutes_and_accept_decides(tmp_path: Path, option_rows: str) -> None:
    """
    A live day of a stock and two contracts; the next day's files are valid and end at 11:30: after it nothing is lost.

    Windows before it are the file's, windows after it live and suspect; `why` says so, and accept takes them as they are.
    """
    per_minute = dict.fromkeys(range(0, 390, 3), 4)
    stock = lines_of(per_minute)
    header = "ticker,conditions,correction,exchange,price,sip_timestamp,size"
    option = [header]
    for ticker in CHAIN:
        for line in lines_of(per_minute, ticker)[1:]:
            fields = line.split(",")
            option.append(f"{ticker},,,314,{fields[6]},{fields[8]},2")
    (tmp_path / "m17.toml").touch()
    flat_files.write_config(tmp_path, [SESSION], keys=f'option_rows = "{option_rows}"')
    state, clock = made_state(tmp_path / "ledger.state", option_rows=OptionRows(option_rows))
    clock.time_ns = state.calendar.parse_time("2013-05-01T17:00")
    live_cells.live(state, SESSION, stock)
    live_cells.live(state, SESSION, option, Dataset.OPTION_TRADES, name="live-2")
    state.close()

    def until(line: str, column: int, minute: int) -> bool:
        return (int(line.split(",")[column]) - flat_files.open_ns(SESSION)) // (60 * 10**9) < minute

    short = [stock[0], *(line for line in stock[1:] if until(line, 8, 120))]
    flat_files.write(tmp_path, SESSION, flat_files.packed(short))
    short = [header, *(line for line in option[1:] if until(line, 5, 120))]
    flat_files.write(tmp_path, SESSION, flat_files.packed(short), "us_options_opra/trades_v1")
    process = start(tmp_path)
    try:
        wait_for(
            process,
            tmp_path,
            "us_options_opra/trades_v1 2013-05-01",
        )
        wait_for(process, tmp_path, "us_stocks_sip/trades_v1 2013-05-01")
        with Client(tmp_path / "ledger.state" / "m17d.sock") as client:
            symbols = ["AAA", *(CHAIN if option_rows == "contract" else ["O:AAA"])]
            for symbol in symbols:
                for minute, source in ((0, "flat_file"), (117, "flat_file"), (120, "websocket"), (387, "websocket")):
                    at = flat_files.open_ns(SESSION) + minute * 60 * 10**9
                    reply = client.call(protocol.RowRequest(symbol=symbol, at=at))
                    assert isinstance(reply, replies.RowReply)
                    slot = reply.slots[TRADE]
                    assert (slot.source, "suspect" in slot.flags) == (source, source == "websocket"), (symbol, minute)
            coverage = client.call(protocol.CoverageRequest(session=SESSION, by="source"))
            assert isinstance(coverage, replies.CoverageReply)
            counts = coverage.by_source["websocket"][TRADE]
            assert (counts.filled, counts.suspect) == (90 * len(symbols), 90 * len(symbols))
            why = client.call(protocol.WhyRequest(columns=[TRADE], range=protocol.Range(session=SESSION)))
            suspect = next(one for one in why.groups if one.cause == "suspect")
            assert "far fewer rows" in suspect.detail
            assert suspect.remedy.startswith("m17ctl accept")
            client.call(
                protocol.AcceptRequest(range=protocol.Range(session=SESSION), cause="the file is cut"), key="k1"
            )
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert flat_files.run(tmp_path).returncode == 0
    with ledger.open(tmp_path / "ledger.state", readonly=True) as opened:
        for symbol in symbols:
            held = cells(opened, symbol)
            assert not (held["flags"] & Flag.SUSPECT).any()
            assert (held["status"] == Status.FILLED).all()
            assert int((held["source"] == Source.WEBSOCKET).sum()) == 90
