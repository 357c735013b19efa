"""
Remedies: commands that an operator can paste, each for exactly the cells that it is to help.

A cause names its command with a place for the range; which cells those are is known only when all of them are gathered, and
may be others than the ones that were asked about: quotes that Greeks wait for are another symbol's. This module must never
decide what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engines.contract import Waiting
from ledger.columns import AGGREGATE_MINUTES, WINDOW_NS, Column
from ledger.state import State
from m17d.behind import Roots

RANGE: Final = "{range}"
"""Stands in a remedy for the range of the cells that it is for."""
COLUMNS: Final = "{columns}"
"""Stands in a remedy for their columns."""
WAIT: Final = f"m17ctl wait {RANGE} --columns {COLUMNS} --timeout 600"
"""Stay until the cells are whole."""
SYMBOLS_NAMED_MAX: Final = 100
"""So many symbols are named one by one where no glob says which."""


def refill(cause: str) -> str:
    """Have the cells made first, and stay until they are."""
    return f"m17ctl refill {COLUMNS} {RANGE} --cause '{cause}'"


def waiting_remedy(waiting: Waiting, engine: str) -> str:
    """What an operator can do about what an engine waits for."""
    match waiting.cause:
        case "waiting" if waiting.column is not Column.RF_RATE_REF:
            return f"m17ctl accept {RANGE} --columns {COLUMNS} --cause 'never published'"
        case "refused":
            return "m17ctl symbols list"
        case "quiet":
            return refill("needed before the close")
        case "budget":
            return "m17ctl doctor"
        case _:
            return f"m17ctl engines retry {engine}"


@dataclass(slots=True)
class Place:
    """The columns, symbols and minutes [first, last] of a session that a remedy is about, gathered over a cause's cells."""

    columns: set[Column] = field(default_factory=set)
    symbols: set[int] = field(default_factory=set)
    first: int = 390
    last: int = -1

    def add(self, column: Column, symbol_ids: np.ndarray, cells: np.ndarray) -> None:
        """Take in cells: i64[n], bool[n, minutes]."""
        at, minutes = np.nonzero(cells)
        if len(at):
            self.columns.add(column)
            self.symbols.update(symbol_ids[np.unique(at)].tolist())
            self.first, self.last = min(self.first, int(minutes.min())), max(self.last, int(minutes.max()))

    def add_roots(self, column: Column, chosen: np.ndarray, roots: Roots) -> None:
        """Take in the cells that stand behind some cells of a column: those that these are made from."""
        minutes = np.flatnonzero(chosen.any(axis=0))
        mine = np.asarray(chosen.any(axis=1))[roots.row]
        # One window back, as quotes are looked up; forward as far as the column's windows reach.
        first, end = max(int(minutes[0]) - 1, 0), int(minutes[-1]) + AGGREGATE_MINUTES.get(column, 1)
        near = roots.cells[mine]
        near[:, :first] = near[:, end:] = False
        self.add(roots.column, roots.symbol_ids[mine], near)


def fitted(state: State, remedy: str, session: str, place: Place, *, asked: str | None, chosen: np.ndarray) -> str:
    """
    A remedy for a place.

    Args:
        asked: the globs that the operator gave.
        chosen: i64[n], the symbols that they selected.
    """
    columns = ",".join(column.value for column in Column if column in place.columns)
    words = _range_words(state, session, place, asked, chosen) if RANGE in remedy else ""
    return remedy.replace(COLUMNS, columns).replace(RANGE, words)


def _range_words(state: State, session: str, place: Place, asked: str | None, chosen: np.ndarray) -> str:
    """The options that select a place: session, times where not the whole session, symbols where not all."""
    calendar = state.calendar
    seq = calendar.session_seq(session)
    words = [f"--session {session}"]
    if (place.first, place.last + 1) != (0, int(calendar.minutes[seq])):
        starts = (int(calendar.open_ns[seq]) + minute * WINDOW_NS for minute in (place.first, place.last + 1))
        first, last = (calendar.format_time(ts)[11:16] for ts in starts)
        words.append(f"--from {first} --to {last}")
    if place.symbols == set(chosen.tolist()):
        globs = asked
    elif len(place.symbols) == len(state.universe(session)):
        globs = None
    elif len(place.symbols) <= SYMBOLS_NAMED_MAX:
        globs = ",".join(state.symbols.name(one) for one in sorted(place.symbols))
    else:
        globs = asked if place.symbols <= set(chosen.tolist()) else None
    if globs is not None:
        words.append(f"--symbols '{globs}'")
    return " ".join(words)
