"""
What one task of a live engine is made of, and what its worker needs: files, rows that cells hold, prices before, gaps.

This module must never read a row or start a task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engines.contract import Task
from engines.derived_rows import input_rows, readable
from engines.feeds.feed_messages import SpooledRows
from engines.live_pass import BEFORE_OPEN, Before, HeldCells, LiveArguments
from engines.live_prices import NOTHING_BEFORE
from engines.live_session import LiveSession
from ledger.columns import Column, Dataset, Flag, Source, Status
from ledger.roots import symbol_of
from ledger.state import State

_KEPT_FLAGS: Final = np.uint8(Flag.WANTED | Flag.PARTIAL | Flag.SUSPECT)


@dataclass(slots=True)
class Work:
    """What one task makes cells of: its session, its spooled minutes, its other cells."""

    key: str
    session: LiveSession
    items: list[SpooledRows]
    cells: list[tuple[int, int]] = field(default_factory=list)
    """(symbol id, minute) of cells that are made again without new rows."""
    running: Task | None = None
    given_up: Task | None = None
    """Of work that was set aside, until it is asked for again."""

    @property
    def minutes(self) -> list[int]:
        """Minutes of the cells that it may set, ascending, once each; the minute before the open counts as the first."""
        found = {self.session.minute(item.start_ns) for item in self.items} | {minute for _, minute in self.cells}
        if self.session.column is Column.QUOTE_REF and BEFORE_OPEN in found:
            found.add(0)
        return sorted(minute for minute in found if 0 <= minute < self.session.window.minutes)


class WorkMaker:
    """Says for some work of one dataset what its worker needs."""

    def __init__(self, state: State, dataset: Dataset) -> None:
        self._state = state
        self._dataset = dataset

    def arguments(self, work: Work) -> LiveArguments:
        """What the worker needs, as cells are now."""
        session, option_rows = work.session, self._state.option_rows
        touched = self._touched(work)
        ids = np.array([symbol_id for symbol_id, _, _ in touched], dtype=np.int64)
        at = np.array([minute for _, minute, _ in touched], dtype=np.int64)
        slots = session.slots(ids, at)
        filled = slots["status"] == Status.FILLED
        marks = np.where(filled, slots["flags"] & _KEPT_FLAGS, 0).astype(np.uint8)
        late = np.array([late for _, _, late in touched], dtype=bool)
        failed = np.isin(at, np.array(sorted(session.failed), dtype=np.int64))
        marks[late & ~filled & failed] |= np.uint8(Flag.PARTIAL)
        skipped = late & (slots["status"] == Status.CLEARED)
        partial = session.partial(option_rows)
        # What a dead feed left of a minute may not be all that it had.
        left = [session.minute(item.start_ns) for item in work.items if not item.finished]
        partial.everywhere[[max(minute, 0) for minute in left if minute < session.window.minutes]] = True
        return LiveArguments(
            dataset=self._dataset,
            window=session.window,
            option_rows=option_rows,
            source=Source.WEBSOCKET,
            files=tuple(item.path for item in work.items),
            held=self._held(slots, ids, at, filled & (slots["source"] == Source.WEBSOCKET)),
            before=None if session.prices is None else self._before(work, touched),
            partial=partial,
            marked=tuple((self._state.symbols.name(int(one)), int(minute), int(flags))
                         for one, minute, flags in zip(ids, at, marks, strict=True) if flags),
            skipped=tuple((self._state.symbols.name(int(one)), int(minute))
                          for one, minute in zip(ids[skipped], at[skipped], strict=True)),
        )  # fmt: skip

    def _touched(self, work: Work) -> list[tuple[int, int, bool]]:
        """(symbol id, minute, whether it was closed before) of the known cells that it may set, once each."""
        found: dict[tuple[int, int], bool] = dict.fromkeys(work.cells, True)
        session = work.session
        for item in work.items:
            minute = session.minute(item.start_ns)
            if self._dataset.column is Column.QUOTE_REF and minute == BEFORE_OPEN:
                minute = 0
            if not 0 <= minute < session.window.minutes:
                continue
            for symbol in {symbol_of(ticker, self._state.option_rows) for ticker in item.tickers}:
                symbol_id = self._state.symbols.get(symbol)
                if symbol_id is not None:
                    found[symbol_id, minute] = found.get((symbol_id, minute), True) and item.late
        return [(symbol_id, minute, late) for (symbol_id, minute), late in sorted(found.items())]

    def _held(self, slots: np.ndarray, ids: np.ndarray, minutes: np.ndarray, own: np.ndarray) -> HeldCells | None:
        """The rows that cells hold already, which are made again with the new ones."""
        state, kind = self._state, self._dataset.column.payload_kind
        if not own.any():
            return None
        records = state.maps[kind].get_many(slots["payload_id"][own])
        sound = readable(records)
        chosen, records = np.flatnonzero(own)[sound], records[sound]
        starts, counts = [records["row_start"]], [records["row_count"]]
        if "lead_start" in (records.dtype.names or ()):
            starts.append(records["lead_start"])
            counts.append(records["lead_count"])
        times = len(starts)
        rows = input_rows(
            state, np.tile(records["artifact_id"], times), np.zeros(len(records) * times, dtype=np.int64),
            np.zeros(len(records) * times, dtype=np.int64), np.concatenate(starts), np.concatenate(counts),
        )  # fmt: skip
        if not rows.rows:
            return None
        names = tuple(state.symbols.name(int(one)) for one in ids[chosen])
        return HeldCells(names, minutes[chosen], rows)

    def _before(self, work: Work, touched: Iterable[tuple[int, int, bool]]) -> Before:
        """The price before each instrument's first trade in each minute, as far as it is known here."""
        prices, session = work.session.prices, work.session
        assert prices is not None
        wanted: dict[int, dict[str, None]] = {}
        for item in work.items:
            wanted.setdefault(session.minute(item.start_ns), {}).update(dict.fromkeys(item.tickers))
        for symbol_id, minute, _ in touched:
            wanted.setdefault(minute, {}).update(dict.fromkeys(prices.tickers_of(symbol_id, minute)))
        tickers: list[str] = []
        minutes, found, before = [], [], []
        for minute, names in sorted(wanted.items()):
            mine = list(names)
            when, price = prices.before(prices.known(mine), minute)
            known = when != NOTHING_BEFORE
            tickers += [name for name, there in zip(mine, known.tolist(), strict=True) if there]
            minutes.append(np.full(int(known.sum()), minute, dtype=np.int64))
            found.append(when[known])
            before.append(price[known])
        if not minutes:
            none = np.zeros(0, dtype=np.int64)
            return Before((), none, none, np.zeros(0))
        return Before(tuple(tickers), np.concatenate(minutes), np.concatenate(found), np.concatenate(before))
