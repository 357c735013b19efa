"""
Measuring: how the sessions in use stand, column by column, counted again only where something moved.

``status`` and the metrics are both made of what this module says, so that they cannot disagree. Counts of a session that
is mapped come from its counts in step and a look at the cells that no engine covers; of one that is not, from its header
page. This module must never count an event, nor write a cell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ledger.columns import RAW_COLUMNS, WINDOW_NS, Column, Flag, Status
from ledger.coverage import (
    COUNT_NAMES,
    applicable,
    class_words,
    counts_unmapped,
    mark,
    sessions_in_use,
    stored_counts,
    with_options,
)
from ledger.errors import LedgerError
from ledger.layout import COLUMNS_OF
from ledger.rows import SessionRows
from ledger.state import State
from m17d.opening import mapped

if TYPE_CHECKING:
    from m17d.reading import Reading

Signature = tuple[Any, ...]
_HELD_PER_SESSION: Final = 2
"""A session that was mapped to be measured is known by both names: its file's, and its mapping's."""


@dataclass(slots=True)
class Measured:
    """One session at one moment; ``counts`` is i64[columns, 9] in the order of Column and COUNT_NAMES."""

    counts: np.ndarray
    first_open: dict[Column, int | None] = field(default_factory=dict)
    """Minute of the session, 0 to 389, of the oldest due cell that is not filled; None for none. Found when asked for."""
    first_ready: dict[Column, int | None] = field(default_factory=dict)
    """The same among cells whose inputs are all filled."""

    def open_cells(self, column: Column) -> int:
        """Due cells of the column that are not filled: empty, pending or cleared."""
        row = self.counts[_INDEX[column]]
        return int(row[0] + row[1] + row[3])

    def is_known_whole(self, column: Column, *, ready: bool) -> bool:
        """Whether it was searched and has no open cell, or with ``ready`` none whose inputs are all filled."""
        return (self.first_ready if ready else self.first_open).get(column, 0) is None

    def with_rows(self, column: Column) -> int:
        """Filled cells of the column that have rows."""
        row = self.counts[_INDEX[column]]
        return int(row[2] - row[6])


_INDEX: Final = {column: index for index, column in enumerate(Column)}
_FILLED, _STALE = COUNT_NAMES.index("filled"), COUNT_NAMES.index("stale")
_OPEN: Final = [COUNT_NAMES.index(name) for name in ("empty", "pending", "cleared")]
InUse = list[tuple[str, Measured]]
"""Sessions and how they stand."""


class Measuring:
    """The sessions of one state, measured; keeps what it found until the session's cells, sources or engines change."""

    def __init__(self, state: State, reading: Reading) -> None:
        self.state = state
        self.reading = reading
        self.blocked: Callable[[str, Column, np.ndarray], np.ndarray] | None = None
        """bool[n, minutes], cells of some symbols behind inputs that are not filled; from whoever knows."""
        self.damaged: dict[str, str] = {}
        """Sessions that could not be read when they were last measured, and why."""
        self._held: dict[str, dict[Signature, Measured]] = {}
        self._universes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    # ---- what is asked

    def session(self, session: str) -> Measured:
        """How a session stands now."""
        signature = self.signature(session)
        held = self._held.setdefault(session, {})
        found = held.get(signature)
        if found is None:
            found = Measured(self._count(session))
            self._keep(session, signature, found)
            self._keep(session, self.signature(session), found)
        return found

    def opening(self, session: str) -> Iterator[None]:
        """
        Map a session that a crash left, in steps, as its header page does not say how it stands.

        Whoever does this first finds :meth:`session` quick.
        """
        held = self._held.get(session)
        if held is not None and self.signature(session) in held:
            return
        seq = self.state.calendar.session_seq(session)
        # What is wrong with a file is said by who measures it.
        with contextlib.suppress(LedgerError):
            for ledger in (self.state.trade, self.state.enrichment):
                if seq not in ledger.mapped() and stored_counts(ledger, seq) is None:
                    yield from mapped(self.state, seq)

    def sessions(self) -> InUse:
        """
        The sessions in use, oldest first, each as it stands now.

        Stale are the cells that their engine has judged so: a moment after a write it may not have come to them yet.
        """
        return [(session, found) for session in self.names() if (found := self.readable(session)) is not None]

    def readable(self, session: str) -> Measured | None:
        """As :meth:`session`; None where its file cannot be read, which is kept in ``damaged``: the others go on."""
        try:
            found = self.session(session)
        except LedgerError as error:
            self.damaged[session] = f"{error}; {error.hint}" if error.hint else str(error)
            return None
        self.damaged.pop(session, None)
        return found

    def names(self) -> list[str]:
        """The sessions in use, oldest first; whoever asks for them is about to look at how they stand."""
        runner = self.reading.runner
        for name in runner.paused:
            # Others look when they are asked to plan.
            if name in runner.deriving:
                runner.deriving[name].judge_a_little()
        return sessions_in_use(self.state)

    def lag_minutes(self, column: Column, in_use: InUse, *, ready: bool = False) -> float:
        """
        Minutes from the end of the oldest due window whose cell is empty, pending or cleared to now; 0 where there is none.

        Args:
            in_use: what :meth:`sessions` said.
            ready: only cells whose inputs are all filled, so that their own engine is what they wait for.
        """
        for session, measured in in_use:
            found = measured.first_ready if ready else measured.first_open
            if column not in found:
                if not measured.open_cells(column):
                    continue
                find = self._first_ready if ready else self._first_open
                found[column] = find(session, column, measured)
                self._keep(session, self.signature(session), measured)
            minute = found[column]
            if minute is not None:
                seq = self.state.calendar.session_seq(session)
                end_ns = int(self.state.calendar.open_ns[seq]) + (minute + 1) * WINDOW_NS
                return max(0.0, (self.state.system.now_ns() - end_ns) / WINDOW_NS)
        return 0.0

    # ---- what it is derived from

    def signature(self, session: str) -> Signature:
        """Equal while nothing that the counts are made of has moved."""
        state = self.state
        seq = state.calendar.session_seq(session)
        now_ns = state.system.now_ns()
        return (
            mark(state.trade, seq),
            mark(state.enrichment, seq),
            state.sources.changed(session),
            min(now_ns, state.calendar.close_ns(seq)) // WINDOW_NS,
            len(state.regions.activations),
            tuple(engine.known_stale(session)[0] for engine in self.reading.runner.deriving.values()),
            tuple(engine.covering(session) for engine in self.reading.runner.scheduled.values()),
        )

    def _keep(self, session: str, signature: Signature, measured: Measured) -> None:
        held = self._held[session]
        held[signature] = measured
        while len(held) > _HELD_PER_SESSION:
            del held[next(iter(held))]

    def universe(self, session: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Symbols of the session, their classes in words, and which of them have options there."""
        universe = self.state.universe(session)
        held = self._universes.get(session)
        if held is None or held[0] is not universe:
            if held is None or not np.array_equal(held[0], universe):
                held = (universe, class_words(self.state, universe), with_options(self.state, universe))
            held = self._universes[session] = (universe, held[1], held[2])
        return held

    def _count(self, session: str) -> np.ndarray:
        covers = {column: self.reading.covers(session, column) for column in Column}
        counts = np.zeros((len(Column), len(COUNT_NAMES)), dtype=np.int64)
        universe, words, options = self.universe(session)
        seq = self.state.calendar.session_seq(session)
        for ledger in (self.state.trade, self.state.enrichment):
            unmapped = counts_unmapped(self.state, ledger, session, covers, now_ns=self.state.system.now_ns())
            if unmapped is not None:
                for column, found in unmapped.items():
                    counts[_INDEX[column]] = [found[name] for name in COUNT_NAMES]
                continue
            rows = ledger.session(seq)
            for column in COLUMNS_OF[ledger.kind]:
                covered = served(covers[column], universe)
                applies = applicable(column, words, options)
                quick = self._quick(rows, column, universe, applies, covered)
                if quick is None:
                    counted = self.reading.planes(session, column, universe, options, judged=False).count()
                    quick = np.array([counted[name] for name in COUNT_NAMES], dtype=np.int64)
                counts[_INDEX[column]] = quick
        for engine in self.reading.runner.deriving.values():
            for column, stale in engine.known_stale(session)[1].items():
                counts[_INDEX[column], _STALE] = min(stale, counts[_INDEX[column], _FILLED])
        return counts

    def _quick(
        self, rows: SessionRows, column: Column, universe: np.ndarray, applies: np.ndarray, served: np.ndarray
    ) -> np.ndarray | None:
        """
        COUNTS of a column from the counts that every write keeps in step.

        Returns:
            i64[9]; None where a cell is set that does not apply, is not covered, is not over or not of the universe, so that
            every cell must be looked at.
        """
        minutes = rows.place.minutes
        due = int(np.clip((self.state.system.now_ns() - rows.place.open_ns) // WINDOW_NS, 0, minutes))
        index = rows.column_index(column)
        inside = np.zeros(len(rows.reserved), dtype=bool)
        inside[universe[applies & served]] = True
        outside = np.flatnonzero(rows.reserved & ~inside)
        status = rows.status[index]
        if status[outside, :minutes].any() or (due < minutes and status[universe, due:minutes].any()):
            return None
        _, pending, filled, cleared = (int(one) for one in rows.counts_status[index])
        countable = int((applies & served).sum())
        not_applicable = int((~applies).sum()) * minutes
        empty = countable * due - pending - filled - cleared
        not_due = len(universe) * minutes - not_applicable - countable * due
        flags = rows.counts_flags[index]
        no_rows, suspect = int(flags[_bit(Flag.NO_ROWS)]), int(flags[_bit(Flag.SUSPECT)])
        parts = (empty, pending, filled, cleared, not_applicable, not_due, no_rows, suspect, 0)
        return np.array(parts, dtype=np.int64)

    # ---- the oldest open cell

    def _first_open(self, session: str, column: Column, measured: Measured) -> int | None:
        if not measured.counts[_INDEX[column], 1:4].any():
            # Nothing is set, and something is due: the first window is.
            return 0
        return _first(self._open(session, column)[1])

    def _first_ready(self, session: str, column: Column, measured: Measured) -> int | None:
        del measured
        symbol_ids, cells = self._open(session, column)
        if len(cells) and column not in RAW_COLUMNS and self.blocked is not None:
            cells = cells & ~self.blocked(session, column, symbol_ids)
        return _first(cells)

    def _open(self, session: str, column: Column) -> tuple[np.ndarray, np.ndarray]:
        """i64[n], the symbols that have due cells which are not filled, and these cells: bool[n, minutes]."""
        universe, words, options = self.universe(session)
        seq, ledger = self.state.calendar.session_seq(session), self.state.ledger_of(column)
        having = applicable(column, words, options)
        if ledger.exists(seq):
            # Most symbols are whole: what costs is only asked of the others.
            rows = ledger.session(seq)
            status = rows.status[rows.column_index(column), universe, : rows.place.minutes]
            having = (having & (status != Status.FILLED).any(axis=1)) | (
                (status != Status.EMPTY) & (status != Status.FILLED)
            ).any(axis=1)
        symbol_ids = universe[having]
        state = self.reading.planes(session, column, symbol_ids, options[having], judged=False).state
        found: np.ndarray = (state == Status.EMPTY) | (state == Status.PENDING) | (state == Status.CLEARED)
        some = found.any(axis=1)
        return symbol_ids[some], found[some]


def totals(in_use: InUse) -> np.ndarray:
    """i64[columns, 9]: the counts of some sessions together."""
    return np.sum(
        [measured.counts for _, measured in in_use] or [np.zeros((len(Column), len(COUNT_NAMES)))], axis=0
    ).astype(np.int64)


def open_sessions(in_use: InUse) -> list[np.ndarray]:
    """By column, in the order of Column: i64[n], places of the sessions that have due cells which are not filled."""
    if not in_use:
        return [np.zeros(0, dtype=np.int64) for _ in Column]
    counts = np.array([measured.counts for _, measured in in_use])
    having: np.ndarray = counts[:, :, _OPEN].sum(axis=2) > 0
    return [np.flatnonzero(row) for row in having.T]


def as_counts(counts: np.ndarray) -> dict[Column, dict[str, int]]:
    """COUNTS by column from i64[columns, 9]."""
    return {
        column: dict(zip(COUNT_NAMES, row, strict=True)) for column, row in zip(Column, counts.tolist(), strict=True)
    }


def served(cover: np.ndarray | None, universe: np.ndarray) -> np.ndarray:
    """bool[n], which of some symbols a mask over the symbols of the year covers; None covers none."""
    served = np.zeros(len(universe), dtype=bool)
    if cover is not None:
        known = universe < len(cover)
        served[known] = cover[universe[known]]
    return served


def _first(cells: np.ndarray) -> int | None:
    """First minute of bool[n, minutes] in which a cell is True."""
    minutes = np.flatnonzero(cells.any(axis=0))
    return int(minutes[0]) if len(minutes) else None


def _bit(flag: Flag) -> int:
    return int(flag).bit_length() - 1
