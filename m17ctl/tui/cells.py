"""
What is known of cells: counts of a symbol's sessions at several resolutions, as the daemon sent them.

Numbers stay in the bytes they came in; a bucket's counts are added up when it is drawn. Pure; must never ask the daemon.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ledger.columns import Column
from m17ctl.tui.axis import DAY, Span
from m17d.replies import Counts, GridReply

COUNTS: Final = 9
_COLUMNS: Final = len(Column)
_INDEX: Final = {column: at for at, column in enumerate(Column)}
NOTHING: Final = Counts()

Part = tuple[str, Column]
"""A group (own, options or all) and a column of it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The counts of one session: u32[groups, columns, cells, 9], last index fastest."""

    groups: dict[str, int]
    cells: int
    step_minutes: int
    numbers: array[int]

    @classmethod
    def of(cls, reply: GridReply, slab: bytes, step_minutes: int) -> Grid:
        """From a piece of the daemon's answer."""
        numbers = array("I")
        assert numbers.itemsize == 4
        numbers.frombytes(slab)
        if sys.byteorder == "big":
            numbers.byteswap()
        return cls(reply.groups, reply.cells, step_minutes, numbers)

    def add(self, total: list[int], part: Part, first: int, last: int) -> None:
        """Add the counts of the minutes [first, last) of a group's column."""
        group = list(self.groups).index(part[0]) if part[0] in self.groups else -1
        if group < 0 or not self.groups[part[0]]:
            return
        at = (group * _COLUMNS + _INDEX[part[1]]) * self.cells
        start, end = first // self.step_minutes, min(-(-last // self.step_minutes), self.cells)
        for cell in range(at + start, at + end):
            for name in range(COUNTS):
                total[name] += self.numbers[cell * COUNTS + name]


class Cells:
    """The grids of one symbol, by session and resolution."""

    def __init__(self) -> None:
        self._grids: dict[tuple[int, int], Grid] = {}
        self._asked: dict[int, set[int]] = {}
        """Resolutions that were asked for, by session."""
        self.version = 0
        """Counted up at every change, for whoever keeps what it drew."""
        self._changes: dict[int, int] = {}

    def put(self, day: int, grid: Grid) -> None:
        """Take a session's counts."""
        self._grids[day, grid.step_minutes] = grid
        self._changed(day)

    def asked(self, days: Iterable[int], step_minutes: int) -> None:
        """These sessions are asked for; those that stay without counts have none of the symbol."""
        for day in days:
            self._asked.setdefault(day, set()).add(step_minutes)
            self._changed(day)

    def lacking(self, days: Iterable[int], step_minutes: int) -> list[int]:
        """Sessions that were not asked for yet at a resolution."""
        return [day for day in days if step_minutes not in self._asked.get(day, ())]

    def forget(self, day: int) -> None:
        """A session has moved: ask again, and show what is known until then."""
        self._asked.pop(day, None)

    def _changed(self, day: int) -> None:
        self.version += 1
        self._changes[day] = self._changes.get(day, 0) + 1

    def changes(self, span: Span) -> int:
        """How often what is known of the sessions of a span has changed; it only grows."""
        return sum(self._changes.get(day, 0) for day in range(span[0] // DAY, (span[1] - 1) // DAY + 1))

    def groups(self) -> dict[str, int]:
        """The most symbols of each group in any session."""
        found: dict[str, int] = {}
        for grid in self._grids.values():
            for name, size in grid.groups.items():
                found[name] = max(found.get(name, 0), size)
        return found

    def counts(self, parts: Sequence[Part], span: Span, step_minutes: int) -> Counts | None:
        """The counts of some columns over a span, from the given resolution; None where nothing is known of it."""
        total = [0] * COUNTS
        known = False
        for day in range(span[0] // DAY, (span[1] - 1) // DAY + 1):
            grid = self._grids.get((day, step_minutes))
            if grid is None:
                known = known or step_minutes in self._asked.get(day, ())
                continue
            known = True
            first, last = max(span[0] - day * DAY, 0), min(span[1] - day * DAY, DAY)
            for part in parts:
                grid.add(total, part, first, last)
        return _counts(total) if known else None


def _counts(total: list[int]) -> Counts:
    return Counts(**dict(zip(Counts.__struct_fields__, total, strict=True)))
