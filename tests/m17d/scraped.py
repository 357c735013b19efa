"""A scrape, and the same numbers from single rows by rules of their own: what tests of the metrics hold against each other."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ledger.columns import AGGREGATE_MINUTES, ENRICHMENT_COLUMNS, TRADE_COLUMNS, Column, Flag, Status
from m17d import protocol
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.envelopes import Claimed
from m17d.peers import OPERATE, READ, Context, Peer
from tests.filled_state import SESSION

Samples = dict[tuple[str, ...], float]
OPERATOR = Context(Peer(uid=0, gid=0, pid=1, user="test", roles=frozenset({READ, OPERATE})), claimed=Claimed())


def scrape(daemon: Daemon) -> Samples:
    """(name, label values in the order of their names ...) -> value."""
    found: Samples = {}
    for family in text_string_to_metric_families(daemon.handlers.exposition.text()):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def work(daemon: Daemon, timeout_s: float = 240) -> None:
    """Let the engines work until they have nothing to do."""
    end, idle = time.monotonic() + timeout_s, 0
    while idle < 3:
        assert time.monotonic() < end
        idle = 0 if daemon.runner.step() or not daemon.runner.is_idle() else idle + 1
        daemon._poll(5)
    daemon.handlers.retire_regions()


def ask(daemon: Daemon, request: Any) -> Any:
    """The answer of the handlers to a request, as the server would collect it."""
    answer = daemon.handlers.handle(request, OPERATOR)
    if isinstance(answer, Iterator):
        return [one for one in answer if one is not None][-1]
    return answer


def running(folder: Path) -> Iterator[Daemon]:
    """A daemon in this process, its engines at rest."""
    daemon = Daemon(read_config(folder / "m17.toml"), logging.getLogger("m17d-test"))
    try:
        work(daemon)
        yield daemon
    finally:
        daemon.close()


# ---- the scan: row by row, with rules of its own


def scanned(daemon: Daemon, now_ns: int) -> tuple[Counter[tuple[str, str]], dict[str, float], dict[str, float]]:
    """(cells by column and word, lag by column, lag of cells whose inputs are filled), from single rows."""
    state = daemon.state
    cells: Counter[tuple[str, str]] = Counter()
    open_ends: dict[str, list[int]] = defaultdict(list)
    ready_ends: dict[str, list[int]] = defaultdict(list)
    for session in sorted(set(state.sources.sessions())):
        seq = state.calendar.session_seq(session)
        names = {int(one): state.symbols.name(int(one)) for one in state.universe(session)}
        with_options = {name[2:] for name in names.values() if name.startswith("O:")}
        rows = {symbol: [row_of(state, symbol, seq * 390 + minute) for minute in range(390)] for symbol in names}
        for symbol, name in names.items():
            for column in Column:
                covered = engine_covers(daemon, session, column, symbol)
                applies = applicable(column, name, with_options)
                for minute in range(390):
                    end_ns = int(state.calendar.open_ns[seq]) + (minute + 1) * 60_000_000_000
                    slot = rows[symbol][minute][column]
                    word = Status(slot.status).word
                    if slot.status == Status.EMPTY and not applies:
                        word = "not_applicable"
                    elif slot.status == Status.EMPTY and not (covered and end_ns <= now_ns):
                        word = "not_due"
                    cells[column, word] += 1
                    if slot.status == Status.FILLED:
                        cells[column, "no_data"] += bool(slot.flags & Flag.NO_ROWS)
                        cells[column, "suspect"] += bool(slot.flags & Flag.SUSPECT)
                        cells[column, "sound"] += not slot.flags & Flag.SUSPECT
                    if word in ("empty", "pending", "cleared"):
                        open_ends[column].append(end_ns)
                        if inputs_filled(column, symbol, minute, rows, names):
                            ready_ends[column].append(end_ns)
    lag = {column.value: minutes_since(open_ends[column], now_ns) for column in Column}
    ready = {column.value: minutes_since(ready_ends[column], now_ns) for column in Column}
    return cells, lag, ready


def row_of(state: Any, symbol: int, minute_idx: int) -> dict[Column, Any]:
    slots = {}
    for columns, get in (
        (TRADE_COLUMNS, state.trade.get_trade_row),
        (ENRICHMENT_COLUMNS, state.enrichment.get_enrichment_row),
    ):
        row = get(symbol, minute_idx)
        slots.update({column: row.slots[column] for column in columns})
    return slots


def engine_covers(daemon: Daemon, session: str, column: Column, symbol: int) -> bool:
    masks = [one.covers(session, column) for one in daemon.runner.engines.values() if column in one.writes]
    return any(mask is not None and symbol < len(mask) and bool(mask[symbol]) for mask in masks)


def applicable(column: Column, name: str, with_options: set[str]) -> bool:
    option = name.startswith("O:")
    if column is Column.RF_RATE_REF:
        return option or name in with_options
    if column is Column.GREEKS_REF:
        return option
    return not option if column in AGGREGATE_MINUTES else True


def inputs_filled(
    column: Column, symbol: int, minute: int, rows: dict[int, list[dict[Column, Any]]], names: dict[int, str]
) -> bool:
    """Whether every input of a derived cell is filled, by the design's table of engines."""

    def filled_at(who: int, which: Column, at: int) -> bool:
        return at < 0 or rows[who][at][which].status == Status.FILLED

    if column is Column.AGGRESSOR_REF:
        return all(filled_at(symbol, *one) for one in (
            (Column.TRADE_REF, minute), (Column.QUOTE_REF, minute), (Column.QUOTE_REF, minute - 1)))  # fmt: skip
    if column is Column.GREEKS_REF:
        stock = next(one for one, name in names.items() if name == names[symbol][2:])
        own = filled_at(symbol, Column.TRADE_REF, minute) and filled_at(symbol, Column.RF_RATE_REF, minute)
        return own and all(filled_at(stock, Column.QUOTE_REF, at) for at in (minute, minute - 1))
    if column in AGGREGATE_MINUTES:
        members = [one for one, name in names.items() if name.removeprefix("O:") == names[symbol]]
        for at in range(minute, min(390, minute + AGGREGATE_MINUTES[column])):
            for member in members:
                wanted = [Column.TRADE_REF, Column.AGGRESSOR_REF]
                wanted += [Column.GREEKS_REF] if names[member].startswith("O:") else []
                if not all(filled_at(member, one, at) for one in wanted):
                    return False
        return True
    return True


def minutes_since(ends_ns: list[int], now_ns: int) -> float:
    return (now_ns - min(ends_ns)) / 60e9 if ends_ns else 0.0


def compare(daemon: Daemon, now_ns: int, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Every gauge of cells against the scan and against status; the scrape."""
    monkeypatch.setattr(daemon.state.system, "now_ns", lambda: now_ns)
    found = scrape(daemon)
    cells, lag, ready = scanned(daemon, now_ns)
    status = ask(daemon, protocol.StatusRequest())
    for column in Column:
        counts = status.columns[column]
        for word in ("empty", "pending", "filled", "cleared", "not_applicable", "not_due"):
            assert found["m17_slots", column, word] == cells[column, word] == getattr(counts, word), (column, word)
        for word in ("no_data", "suspect"):
            assert found["m17_filled_slots", column, word] == cells[column, word] == getattr(counts, word)
        assert found["m17_filled_slots", column, "stale"] == counts.stale
        due = sum(cells[column, word] for word in ("empty", "pending", "filled", "cleared"))
        if due:
            for word in ("empty", "pending", "filled", "cleared"):
                assert found["m17_slot_ratio", column, word] == pytest.approx(cells[column, word] / due), (column, word)
            sound = cells[column, "sound"] - counts.stale
            assert found["m17_whole_ratio", column] == pytest.approx(sound / due)
        else:
            assert ("m17_whole_ratio", column) not in found
            assert ("m17_slot_ratio", column, "filled") not in found
        assert found["m17_window_lag_minutes", column] == pytest.approx(lag[column]), column
        if ("m17_dependency_lag_minutes", column) in found:
            assert found["m17_dependency_lag_minutes", column] == pytest.approx(ready[column]), column
    assert found["m17_symbols",] == len(daemon.state.symbols)
    return found


NOW_NS = 1_400_000_000_000_000_000
"""A day in 2014, so that the year of the small state is over."""


def records_of(daemon: Daemon, column: Column, name: str) -> int:
    """Sum of a count over the records that the filled cells of the session name, one by one."""
    state = daemon.state
    rows = state.ledger_of(column).session(state.calendar.session_seq(SESSION))
    total = 0
    for symbol in state.universe(SESSION).tolist():
        for minute in range(390):
            slot = rows.slot(column, symbol, minute)
            if slot.status == Status.FILLED:
                total += int(state.maps[column.payload_kind].get(slot.payload_id)[name])
    return total


def gained(before: Samples, after: Samples, *key: str) -> float:
    return after[key] - before[key]
