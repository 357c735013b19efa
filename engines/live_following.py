"""
Following the cells of trades: what others put there, or what was there at the start, is learned.

A live minute takes the price before from what is known here, so it must know what REST or a file brought, and after a
restart what was live before; cells that turn out to say a wrong price before are made again. This module must never read a
row: a worker does.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from engines.contract import Task
from engines.derived_rows import input_rows, readable
from engines.live_look import LookArguments, Looked
from engines.live_session import LiveSession
from ledger.columns import SYMBOLS_MAX, Column, Flag, Source, Status, SymbolClass
from ledger.rows import SessionRows
from ledger.state import State

_SYMBOLS_AT_ONCE: Final = 64
_ROWS_AT_ONCE: Final = 2_000_000
_CELLS_AT_ONCE: Final = 8_192
_STEP_S: Final = 0.006
_COLUMN: Final = Column.TRADE_REF


class Following:
    """
    The trades of one session of one dataset.

    Args:
        engine: name of the engine that answers for the tasks.
        session: has the prices.
    """

    def __init__(self, state: State, engine: str, session: LiveSession) -> None:
        self._state = state
        self._engine = engine
        self._session = session
        self._mark = (-1, 0)
        self._changes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        self._unseen = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._mine = np.zeros(0, dtype=bool)
        self._unknown: dict[tuple[int, int], None] = {}
        self._looking: Task | None = None
        self._looks = 0
        self.knows = False
        """Whether everything that was there at the start is known."""

    @property
    def is_scanning(self) -> bool:
        """Whether more slots wait to be compared."""
        return bool(self._unseen.any())

    @property
    def is_behind(self) -> bool:
        """Whether cells may hold trades that are not known yet."""
        return bool(self._unknown) or self._looking is not None or self.is_scanning

    def step(self) -> None:
        """Notice what changed and compare the slots of some symbols, for a few milliseconds; cheap where nothing did."""
        if not self._state.trade.exists(self._session.seq):
            self.knows = True
            return
        rows = self._state.trade.session(self._session.seq)
        if self._mark != (rows.change_count, id(rows)):
            if self._mark[1] != id(rows):
                self._changes[:] = 0
            self._mark = (rows.change_count, id(rows))
            changed = rows.changes != self._changes
            self._changes[:] = rows.changes
            mine = self._own_symbols()
            self._unseen[: len(mine)] |= changed[: len(mine)] & mine
        end = time.monotonic() + _STEP_S
        while self._unseen.any() and time.monotonic() < end:
            symbol_ids = np.flatnonzero(self._unseen)[:_SYMBOLS_AT_ONCE]
            self._unseen[symbol_ids] = False
            self._compare(rows, symbol_ids)
        self.knows = self.knows or not self.is_behind

    def _own_symbols(self) -> np.ndarray:
        """bool[symbols of the year]: those whose trades are in the dataset."""
        count, of_options = len(self._state.symbols), self._session.dataset.of_options
        if len(self._mine) < count:
            options = (SymbolClass.CHAIN, SymbolClass.CONTRACT)
            fresh = [(self._state.class_of(one) in options) == of_options for one in range(len(self._mine), count)]
            self._mine = np.concatenate([self._mine, np.array(fresh, dtype=bool)])
        return self._mine

    def _compare(self, rows: SessionRows, symbol_ids: np.ndarray) -> None:
        """Note cells whose trades are not known, and forget those of cells that lost them."""
        prices = self._session.prices
        assert prices is not None
        slots = rows.slots(_COLUMN, symbol_ids)
        held = (slots["status"] == Status.FILLED) & (slots["flags"] & np.uint8(Flag.NO_ROWS) == 0)
        payload_ids = np.where(held, slots["payload_id"], 0)
        at, minutes = np.nonzero(payload_ids != prices.seen[symbol_ids])
        gone: list[tuple[int, int]] = []
        for symbol_id, minute, there in zip(
            symbol_ids[at].tolist(), minutes.tolist(), held[at, minutes].tolist(), strict=True
        ):
            if there:
                self._unknown[symbol_id, minute] = None
            else:
                self._unknown.pop((symbol_id, minute), None)
                prices.seen[symbol_id, minute] = 0
                gone.append((symbol_id, minute))
        if gone:
            none = np.zeros(0, dtype=np.int64)
            prices.learn(gone, none, none, np.zeros(0), np.zeros(0))

    def task(self) -> Task | None:
        """The next cells to look at."""
        if self._looking is not None:
            return self._looking
        if not self._unknown:
            return None
        cells = np.array(sorted(self._unknown)[:_CELLS_AT_ONCE], dtype=np.int64)
        symbol_ids, minutes = cells[:, 0], cells[:, 1]
        slots = self._session.slots(symbol_ids, minutes)
        records = self._state.maps[_COLUMN.payload_kind].get_many(slots["payload_id"])
        sound = readable(records) & (records["row_count"] > 0) & (slots["status"] == Status.FILLED)
        for symbol_id, minute in cells[~sound].tolist():
            # Nothing of it can be read; whoever fills it again is seen.
            self._unknown.pop((symbol_id, minute))
        sound &= np.cumsum(np.where(sound, records["row_count"], 0)) <= max(_ROWS_AT_ONCE, int(records["row_count"][0]))
        if not sound.any():
            return None
        symbol_ids, minutes, records = symbol_ids[sound], minutes[sound], records[sound]
        rows = input_rows(
            self._state, records["artifact_id"], np.zeros(len(records), dtype=np.int64), minutes, records["row_start"],
            records["row_count"],
        )  # fmt: skip
        self._looks += 1
        key = f"{self._session.dataset.value} {self._session.session} look {self._looks}: {len(records)} cells"
        arguments = LookArguments(symbol_ids, minutes, slots["payload_id"][sound].copy(), rows)
        self._looking = Task(
            engine=self._engine, key=key, session=self._session.session, compute="engines.live_look:run",
            arguments=arguments, makes_files=False, symbols=(),
        )  # fmt: skip
        return self._looking

    def finished(self, task: Task, looked: Looked) -> bool:
        """Take over what was seen; False where the task is another's."""
        if self._looking is None or self._looking.key != task.key:
            return False
        arguments: LookArguments = task.arguments
        prices = self._session.prices
        assert prices is not None
        self._forget(arguments)
        cells = list(zip(arguments.symbol_ids.tolist(), arguments.minutes.tolist(), strict=True))
        prices.seen[arguments.symbol_ids, arguments.minutes] = arguments.payload_ids
        owners = np.full(len(looked.tickers), -1, dtype=np.int64)
        owners[looked.traded["ticker"]] = arguments.symbol_ids[looked.cell]
        codes = prices.codes(looked.tickers, owners)
        traded = looked.traded
        prices.learn(
            cells, codes[traded["ticker"]], traded["minute"].astype(np.int64), traded["previous"], traded["last"]
        )
        # What was replaced meanwhile is seen again.
        self._unseen[np.unique(arguments.symbol_ids)] = True
        return True

    def failed(self, task: Task) -> None:
        """What cannot be read is not known; the cells are as they are."""
        if self._looking is not None and self._looking.key == task.key:
            self._forget(task.arguments)

    def _forget(self, arguments: LookArguments) -> None:
        self._looking = None
        for symbol_id, minute in zip(arguments.symbol_ids.tolist(), arguments.minutes.tolist(), strict=True):
            self._unknown.pop((symbol_id, minute), None)

    def wrong(self) -> list[tuple[int, int]]:
        """(symbol id, minute) of live cells that say a wrong price before, at most some thousand; others' are left alone."""
        prices = self._session.prices
        assert prices is not None
        if not prices.wrong:
            return []
        cells = np.array(sorted(prices.wrong)[:_CELLS_AT_ONCE], dtype=np.int64)
        slots = self._session.slots(cells[:, 0], cells[:, 1])
        live = (slots["status"] == Status.FILLED) & (slots["source"] == Source.WEBSOCKET)
        prices.wrong.difference_update((one, minute) for one, minute in cells[~live].tolist())
        return [(one, minute) for one, minute in cells[live].tolist()]
