"""
Looking again at prices before: which symbols have windows behind one that was fetched over REST.

Noted when a refill is committed; after a start found in the cells, because a crash may lie between a refill and the look.
This module must never read a row: ``relink_pass`` does, in a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from engines.contract import Task
from engines.hours import window_of
from engines.relink_pass import RelinkArguments, Relinked
from engines.rest_cells import rows_of, with_rows
from ledger.columns import Column, Dataset, Source, Status, SymbolClass
from ledger.state import State

_COLUMN: Final = Column.TRADE_REF
_SCAN_SYMBOLS: Final = 256
"""Symbols that are looked at in one plan."""


class Relinking:
    """
    Plans the looks of one engine.

    Args:
        is_open: whether a dataset's session was not read from a file.
    """

    def __init__(
        self, engine: str, datasets: tuple[Dataset, ...], is_open: Callable[[Dataset, str], bool], state: State
    ) -> None:
        self._engine = engine
        self._datasets = datasets
        self._is_open = is_open
        self._state = state
        self._noted: dict[tuple[str, int], int] = {}
        self._scanned: dict[str, int] = {}
        self.cells = 0
        """Cells that said a wrong price."""

    def note(self, session: str, symbol_id: int, first: int) -> None:
        """Windows of a symbol from a minute on were replaced."""
        key = (session, symbol_id)
        self._noted[key] = min(first, self._noted.get(key, first))

    def tasks(self, sessions: list[str]) -> Iterator[Task]:
        """One task a symbol."""
        self._scan(sessions)
        for (session, symbol_id), first in list(self._noted.items()):
            task = self._task(session, symbol_id, first)
            if task is None:
                del self._noted[session, symbol_id]
            else:
                yield task

    def finished(self, task: Task, report: Relinked) -> None:
        """A symbol was looked at; noted again meanwhile it is looked at again."""
        arguments: RelinkArguments = task.arguments
        key = (task.session, self._state.symbols.resolve(report.symbol))
        self.cells += report.cells
        if self._noted.get(key) == arguments.first:
            del self._noted[key]

    def _task(self, session: str, symbol_id: int, first: int) -> Task | None:
        """None where no window with rows lies behind another one."""
        state = self._state
        of_options = state.class_of(symbol_id) is not SymbolClass.STOCK
        dataset = next((one for one in self._datasets if one.of_options == of_options), None)
        if dataset is None or not self._is_open(dataset, session):
            return None
        rows = state.trade.session(state.calendar.session_seq(session))
        minutes = np.flatnonzero(with_rows(rows, _COLUMN, symbol_id)[first:]) + first
        cells = rows_of(state, rows, _COLUMN, symbol_id, minutes, 0)
        if len(cells.ranges) < 2:
            return None
        minutes = cells.ranges["minute"].astype(np.int64)
        slots = rows.slots(_COLUMN, np.full(len(minutes), symbol_id), minutes)
        symbol = state.symbols.name(symbol_id)
        arguments = RelinkArguments(
            dataset, window_of(state.calendar, session), symbol, first, cells, slots["source"].copy(),
            slots["flags"].copy(),
        )  # fmt: skip
        return Task(
            engine=self._engine, key=f"prices before {symbol} {session} from minute {first}", session=session,
            compute="engines.relink_pass:run", arguments=arguments, symbols=(symbol_id,),
        )  # fmt: skip

    def _scan(self, sessions: list[str]) -> None:
        """After a start: note symbols with cells over REST, some symbols at a time."""
        for session in sessions:
            at = self._scanned.setdefault(session, 0)
            seq = self._state.calendar.session_seq(session)
            if at < 0 or not self._state.trade.exists(seq):
                continue
            rows = self._state.trade.session(seq)
            ids = np.flatnonzero(rows.reserved[at:])[:_SCAN_SYMBOLS] + at
            if not len(ids):
                self._scanned[session] = -1
                continue
            slots = rows.slots(_COLUMN, ids)
            over_rest = (slots["status"] == Status.FILLED) & (slots["source"] == Source.REST)
            for place in np.flatnonzero(over_rest.any(axis=1)).tolist():
                self.note(session, int(ids[place]), int(np.argmax(over_rest[place])))
            self._scanned[session] = int(ids[-1]) + 1
            return
