"""
The tasks of one derived engine: those it has made and offers, best first, and the cells of those at work.

This module must never judge a cell, nor start a task.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from engines.contract import NoRowsCells, Task
from engines.derivation import Cells
from ledger.columns import Column
from ledger.state import State


class Offers:
    """
    What is offered and what runs.

    Args:
        engine: its name.
        compute: the worker's function.
        state: the open state, for the names of symbols.
    """

    def __init__(self, engine: str, compute: str, state: State) -> None:
        self._engine = engine
        self._compute = compute
        self._state = state
        self.made: list[Task] = []
        """Made and not started yet, best first."""
        self._offered: dict[str, tuple[str, list[Cells], float]] = {}
        """Key -> session, cells, and when they began to be judged."""
        self._running: dict[str, tuple[str, list[Cells]]] = {}

    def offer(self, session: str, arguments: Any, made: list[Cells], priority: int, begun_s: float) -> None:
        """A task for a worker, made from what was judged at a (monotonic) time."""
        self._add(session, "", self._compute, arguments, made, priority, begun_s)

    def offer_no_rows(self, session: str, empty: list[NoRowsCells], priority: int, begun_s: float) -> None:
        """A task for the daemon itself: cells whose inputs have no rows."""
        made = [Cells(one.column, one.symbol_ids, one.minutes, one.inputs) for one in empty]
        self._add(session, " no rows", "", empty, made, priority, begun_s)

    def _add(
        self, session: str, what: str, compute: str, arguments: Any, made: list[Cells], priority: int, begun_s: float
    ) -> None:
        symbols = np.unique(np.concatenate([cells.symbol_ids for cells in made]))
        cells_total = sum(len(cells) for cells in made)
        check = 0
        for cells in made:
            for array in (cells.symbol_ids, cells.minutes, cells.prints):
                check = zlib.crc32(np.ascontiguousarray(array).tobytes(), check)
        names = self._state.symbols.name(int(symbols[0])) + (
            f" and {len(symbols) - 1} more" if len(symbols) > 1 else ""
        )
        # The check is over the prints: a task that failed is not tried again until its inputs change.
        key = f"{self._engine} {session} {names}{what}: {cells_total} cells ({check:08x})"
        self._offered[key] = (session, made, begun_s)
        self.made.append(
            Task(
                engine=self._engine,
                key=key,
                session=session,
                compute=compute,
                arguments=arguments,
                priority=priority,
                symbols=tuple(int(one) for one in symbols),
                cells=cells_total,
            )
        )

    def begun_s(self, task: Task) -> float:
        """When the cells of an offered task began to be judged, monotonic."""
        return self._offered[task.key][2]

    def drop(self, task: Task) -> None:
        """It is offered no longer."""
        self.made.remove(task)
        del self._offered[task.key]

    def started(self, task: Task) -> None:
        """It is at work."""
        self._running[task.key] = self._offered[task.key][:2]
        self.drop(task)

    def ended(self, task: Task) -> None:
        """It is over."""
        del self._running[task.key]

    def backlog(self) -> int:
        """Symbols of offered tasks, and tasks that run."""
        return len(self._running) + sum(len(task.symbols or ()) for task in self.made)

    def cells(self) -> int:
        """Cells of all of them."""
        running = sum(len(cells) for _, made in self._running.values() for cells in made)
        return running + sum(task.cells for task in self.made)

    def under_way(self, session: str, column: Column, units: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """bool[units, minutes]: cells of tasks that run, or wait to; ``units`` ascending."""
        busy = np.zeros(shape, dtype=bool)
        offered = [one[:2] for one in self._offered.values()]
        for where, made in (*self._running.values(), *offered):
            for cells in made:
                if where == session and cells.column is column:
                    mine = np.isin(cells.symbol_ids, units)
                    busy[np.searchsorted(units, cells.symbol_ids[mine]), cells.minutes[mine]] = True
        return busy
