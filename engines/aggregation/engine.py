"""
The engine ``aggregation``: trades, aggressors and Greeks of an underlying and its options into ``aggs_1m`` .. ``aggs_4h``.

One unit of work is an underlying and a session; the cells stand on the underlying's symbol and look forward,
``[T, T + w)``, clipped at the close. Heavy units are split by start minutes. This module says what the inputs are and
where their rows lie; it must never read a row, nor import the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from engines.aggregation.members import INPUTS, Members, MinuteSums
from engines.aggregation.policy import KERNEL_VERSION, AggregationPolicy
from engines.contract import Context, Remark, RowQuality
from engines.derivation import Cells, Judged, Steps, counted_as, recipe_words
from engines.derived import DerivedEngine
from engines.derived_rows import InputRows, input_rows, readable
from engines.looking import Look
from engines.scope import take_scope
from ledger.columns import AGGREGATE_MINUTES, MINUTES_PER_SESSION, Column, Flag
from ledger.coverage import applicable, class_words
from ledger.prints import recipe_hash, recipe_print, window_prints
from ledger.records import NO_ROWS_ID
from ledger.roots import RootTable
from ledger.state import State

WRITES: Final = tuple(AGGREGATE_MINUTES)
WEIGHT_MAX: Final = 24_000_000
"""Rows that the windows of one task read, each row once in every window that holds it; about 5 s."""
_CELL_WEIGHT: Final = 3_000
"""What a window costs beside its rows, as rows."""
_SESSIONS_KEPT: Final = 4
_UNITS_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class CellRows:
    """Input cells with trades: ranges and payload ids, one each per cell, ascending by minute, then symbol name."""

    symbols: tuple[str, ...]
    """Names that the ranges' symbols index."""
    rows: tuple[InputRows, InputRows, InputRows]
    """Trades, aggressors, Greeks."""
    payload_ids: np.ndarray
    """u32[cells, 3]: in the same order, 0 where the input has no rows."""


@dataclass(frozen=True, slots=True)
class UnitArguments:
    """One underlying: the windows to make and the rows they are made from."""

    symbol: str
    windows: dict[Column, tuple[np.ndarray, np.ndarray]]
    """Column -> (start minutes i64[k] ascending, prints u32[k])."""
    own: CellRows
    options: CellRows


@dataclass(frozen=True, slots=True)
class AggregationArguments:
    """What one task of the engine computes: plain, picklable values."""

    session: str
    open_ns: int
    minutes: int
    """Minutes of the session."""
    first_minute_idx: int
    """``minute_idx`` of the session's first minute."""
    units: tuple[UnitArguments, ...]
    policy: AggregationPolicy
    roots: RootTable
    recipes: dict[Column, int]
    """Print of the recipe alone, by column."""


class AggregationDerivation:
    """The aggregates' inputs and recipe."""

    name = "aggregation"
    writes: tuple[Column, ...] = WRITES
    compute = "engines.aggregation.compute:run"
    divisible = False

    def __init__(self, policy: AggregationPolicy) -> None:
        self.policy = policy
        self.recipes: dict[Column, int] = {}
        self._members: dict[int, Members] = {}
        self._held: tuple[Any, MinuteSums] | None = None
        self._weighed: tuple[Any, dict[int, tuple[np.ndarray, np.ndarray]]] = (None, {})

    def start(self, context: Context) -> None:
        """Take the context; the recipe covers the table of roots, which says what a contract delivers."""
        self._context = context
        self._state: State = context.state
        settings = dict(self.policy.recipe())
        del settings["kernel"]
        settings["roots"] = self._state.roots.fingerprint()
        self.recipes = {
            column: recipe_hash(self.name, KERNEL_VERSION, {**settings, "window_minutes": length})
            for column, length in AGGREGATE_MINUTES.items()
        }

    def applies(self, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n]: stocks and indices, with options or without."""
        none = np.zeros(len(symbol_ids), dtype=bool)
        return applicable(Column.AGGS_1M, class_words(self._state, symbol_ids), none)

    def affected(self, symbol_ids: np.ndarray) -> np.ndarray:
        """The underlyings of the symbols."""
        return np.unique(np.array([self._state.underlying_id(int(one)) for one in symbol_ids], dtype=np.int64))

    def members(self, session_seq: int) -> Members:
        """The members of a session; the last few sessions are kept."""
        members = self._members.pop(session_seq, None)
        if members is None:
            members = Members(self._state, session_seq, spot_from_aggressors=self.policy.prints == "eligible")
        self._members[session_seq] = members
        while len(self._members) > _SESSIONS_KEPT:
            del self._members[next(iter(self._members))]
        return members

    def _sums(self, session_seq: int, units: np.ndarray) -> MinuteSums:
        """The same for all six columns of a look."""
        members = self.members(session_seq)
        key = (session_seq, units.tobytes(), members.mark())
        if self._held is None or self._held[0] != key:
            self._held = (key, members.sums(units))
        return self._held[1]

    def at_rest(self, session_seq: int, units: np.ndarray) -> None:
        """Not known without looking at the members."""
        del session_seq, units

    def judge(self, session_seq: int, column: Column, units: np.ndarray) -> Judged:
        """Readiness and prints of the windows of one length over some underlyings."""
        sums, length = self._sums(session_seq, units), AGGREGATE_MINUTES[column]
        count, minutes = sums.values.shape
        ready = ~_any_inside(~sums.filled, length) & sums.filled_before

        # All units in one run, with minutes that hold nothing between them, so that no window meets another unit.
        def run(plane: np.ndarray) -> np.ndarray:
            padded = np.zeros((count, minutes + length), dtype=plane.dtype)
            padded[:, :minutes] = plane
            return padded.reshape(-1)

        prints = window_prints(self.recipes[column], run(sums.values), run(sums.traded), length, run(sums.before))
        flags = np.zeros((count, minutes), dtype=np.uint8)
        flags[:, np.arange(minutes) + length > minutes] = np.uint8(Flag.SHORT)
        return Judged(
            ready,
            _any_inside(sums.traded, length),
            prints.reshape(count, minutes + length)[:, :minutes],
            np.full(count, recipe_print(self.recipes[column]), dtype=np.uint32),
            flags,
            # What lies above is judged for it, which is only worth while where a window could be made.
            self._changing(session_seq, units, length) if ready.any() else None,
        )

    def may_judge(self, session: str, session_seq: int, units: np.ndarray, until_s: float) -> bool:
        """
        Whether judging some underlyings takes a moment; where not, what it needs was looked at until then.

        An underlying may have thousands of options: all at once would hold up whoever waits for the daemon.
        """
        members = self.members(session_seq)
        if not members.look(units, until_s):
            return False
        if not self._sums(session_seq, units).filled.any():
            return True
        ids = np.concatenate([units, *(members.options(int(unit)) for unit in units)])
        return all(self._context.is_settled(session, source, ids) for source in INPUTS[1:])

    def _changing(self, session_seq: int, units: np.ndarray, length: int) -> np.ndarray | None:
        """bool[units, minutes]: windows over sides or Greeks that are about to be made again; None for no window."""
        session, members = self._state.calendar.date(session_seq), self.members(session_seq)
        mine = [np.concatenate([[unit], members.options(int(unit))]) for unit in units]
        ids, of_unit = np.concatenate(mine), np.repeat(np.arange(len(units)), [len(one) for one in mine])
        minutes: np.ndarray | None = None
        for source in INPUTS[1:]:
            cells = self._context.changing(session, source, ids)
            if cells is not None:
                minutes = np.zeros((len(units), cells.shape[1]), dtype=bool) if minutes is None else minutes
                np.logical_or.at(minutes, of_unit, cells)
        if minutes is None:
            return None
        windows = _any_inside(minutes, length)
        windows[:, 1:] |= minutes[:, :-1]
        return windows

    # ---- what the rows are worth

    def quality(self, column: Column, records: np.ndarray) -> RowQuality:
        """Rows are the trades of a window, each counted in every window that holds it; usable those that went in whole."""
        del column
        quotes = Column.QUOTE_REF
        remarks = [
            Remark(word, text, counted_as(records, word), word != "spot_from_last_trade", source)
            for word, text, source in (
                ("left_out_no_spot", "no mid in its Greeks, and no trade of the underlying in T or T-1", quotes),
                ("left_out_nonstandard", "adjusted deliverable: what it delivers is not known", None),
                ("left_out_cancelled", "the print was cancelled", None),
                (
                    "null_delta",
                    "no delta: counted with 0 in dadvv and gadvv; see why greeks_ref of its options",
                    quotes,
                ),
                ("spot_from_last_trade", "the underlying's last trade stands in for the mid", None),
            )
        ]
        usable = counted_as(records, "usable_rows")
        rows = usable + counted_as(records, "null_delta") + counted_as(records, "left_out")
        return RowQuality(rows, usable, remarks)

    def recipe_of(self, session_seq: int, column: Column, unit: int) -> tuple[int, str]:
        """One recipe per window length; the table of roots is part of it."""
        del session_seq, unit
        words = {**self.policy.recipe(), "roots": f"{self._state.roots.fingerprint():016x}"}
        return recipe_print(self.recipes[column]), recipe_words(words)

    # ---- where the rows are

    def weigh(self, session_seq: int, cells: Cells) -> np.ndarray:
        """i64[n]: rows that each window reads; -1 where an input cannot be read any more."""
        weight = np.full(len(cells), _CELL_WEIGHT, dtype=np.int64)
        length = AGGREGATE_MINUTES[cells.column]
        for unit in np.unique(cells.symbol_ids):
            rows, sound = self._rows_of(session_seq, int(unit))
            mine = np.flatnonzero(cells.symbol_ids == unit)
            starts = cells.minutes[mine]
            ends = np.minimum(starts + length, len(rows))
            total = np.concatenate([[0], np.cumsum(rows)])
            broken = np.concatenate([[0], np.cumsum(~sound)])
            weight[mine] += total[ends] - total[starts]
            weight[mine[broken[ends] > broken[np.maximum(starts - 1, 0)]]] = -1
        return weight

    def _rows_of(self, session_seq: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`_rows_by_minute`, the same for all six columns of a look."""
        key = (session_seq, self.members(session_seq).mark())
        if self._weighed[0] != key or len(self._weighed[1]) >= _UNITS_KEPT:
            self._weighed = (key, {})
        if unit not in self._weighed[1]:
            self._weighed[1][unit] = self._rows_by_minute(session_seq, unit)
        return self._weighed[1][unit]

    def _rows_by_minute(self, session_seq: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """(i64[minutes] trades, bool[minutes] all readable) of an underlying and its options."""
        minutes = int(self._state.calendar.minutes[session_seq])
        members = self.members(session_seq)
        _, minute, ids = members.cells(np.concatenate([[unit], members.options(unit)]))
        rows, sound = np.zeros(minutes, dtype=np.int64), np.ones(minutes, dtype=bool)
        for index, column in enumerate(INPUTS):
            there = ids[:, index] != 0
            records = self._state.maps[column.payload_kind].get_many(ids[there, index])
            sound[minute[there][~readable(records)]] = False
            if column is Column.TRADE_REF:
                np.add.at(rows, minute[there], records["row_count"].astype(np.int64))
        return rows, sound

    def arguments(self, session: str, cells: list[Cells]) -> Steps[AggregationArguments]:
        """The task's windows by underlying, and the row ranges of their inputs."""
        state = self._state
        seq = state.calendar.session_seq(session)
        made = []
        for unit in np.unique(np.concatenate([one.symbol_ids for one in cells])):
            made.append((yield from self._unit(seq, int(unit), cells)))
        return AggregationArguments(
            session=session,
            open_ns=int(state.calendar.open_ns[seq]),
            minutes=int(state.calendar.minutes[seq]),
            first_minute_idx=seq * MINUTES_PER_SESSION,
            units=tuple(made),
            policy=self.policy,
            roots=state.roots,
            recipes={column: recipe_print(recipe) for column, recipe in self.recipes.items()},
        )

    def _unit(self, seq: int, unit: int, cells: list[Cells]) -> Steps[UnitArguments]:
        windows = {}
        minutes = int(self._state.calendar.minutes[seq])
        needed, before = np.zeros(minutes, dtype=bool), np.zeros(minutes, dtype=bool)
        for one in cells:
            mine = one.part(one.symbol_ids == unit)
            if len(mine):
                windows[one.column] = (mine.minutes, mine.prints)
                for start in mine.minutes:
                    needed[start : start + AGGREGATE_MINUTES[one.column]] = True
                before[np.maximum(mine.minutes - 1, 0)] = True
        yield
        own = yield from self._cell_rows(seq, np.array([unit], dtype=np.int64), needed | before)
        options = yield from self._cell_rows(seq, self.members(seq).options(unit), needed)
        return UnitArguments(self._state.symbols.name(unit), windows, own, options)

    def _cell_rows(self, seq: int, symbol_ids: np.ndarray, needed: np.ndarray) -> Steps[CellRows]:
        """Where the rows of the trade cells of some minutes are, and those made from them."""
        state = self._state
        at, minute, ids = self.members(seq).cells(symbol_ids)
        chosen = np.flatnonzero(needed[minute])
        chosen = chosen[np.lexsort((at[chosen], minute[chosen]))]
        at, minute, ids = at[chosen], minute[chosen], ids[chosen]
        rows = []
        for index, column in enumerate(INPUTS):
            yield
            records = state.maps[column.payload_kind].get_many(np.where(ids[:, index] != 0, ids[:, index], NO_ROWS_ID))
            rows.append(
                input_rows(state, records["artifact_id"], at, minute, records["row_start"], records["row_count"])
            )
        names = tuple(state.symbols.name(int(one)) for one in symbol_ids)
        return CellRows(names, (rows[0], rows[1], rows[2]), ids)


class AggregationEngine(DerivedEngine):
    """The aggregates, planned: light underlyings together, heavy ones in runs of start minutes over all columns."""

    # Every commit of every option touches its underlying, and nothing is ready before the last.
    settle_s = 0.15
    units_a_step = 8
    units_a_weighing = 1
    derivation: AggregationDerivation

    def _may_judge(self, session: str, look: Look, units: np.ndarray, until_s: float) -> bool:
        """Whether all options of the underlyings were looked at, and it is known which of their cells will change."""
        return self.derivation.may_judge(session, look.seq, units, until_s)

    def _cut(self, made: list[Cells], weights: list[np.ndarray]) -> Iterator[list[Cells]]:
        return _pieces(made, weights)


def _pieces(made: list[Cells], weights: list[np.ndarray]) -> Iterator[list[Cells]]:
    """Cells in pieces of at most WEIGHT_MAX: whole underlyings, or runs of start minutes of one; never part of a start."""
    if not made:
        return
    keys = [cells.symbol_ids * MINUTES_PER_SESSION + cells.minutes for cells in made]
    starts, position = np.unique(np.concatenate(keys), return_inverse=True)
    weight = np.zeros(len(starts), dtype=np.int64)
    np.add.at(weight, position, np.maximum(np.concatenate(weights), 0))
    unit = starts // MINUTES_PER_SESSION
    _, first = np.unique(unit, return_index=True)
    cuts, total = [0], 0
    for begin, end in zip(first, [*first[1:], len(starts)], strict=True):
        heavy = int(weight[begin:end].sum())
        if total and total + heavy > WEIGHT_MAX:
            cuts.append(int(begin))
            total = 0
        if heavy > WEIGHT_MAX:
            run = (np.cumsum(weight[begin:end]) - 1) // WEIGHT_MAX
            cuts.extend((begin + 1 + np.flatnonzero(np.diff(run))).tolist())
            heavy = WEIGHT_MAX
        total += heavy
    for low, high in zip(cuts, [*cuts[1:], len(starts)], strict=True):
        piece = []
        for cells, key, of_cell in zip(made, keys, weights, strict=True):
            place = np.searchsorted(starts, key)
            chosen = cells.part((place >= low) & (place < high) & (of_cell >= 0))
            if len(chosen):
                piece.append(chosen)
        if piece:
            yield piece


def _any_inside(plane: np.ndarray, length: int) -> np.ndarray:
    """bool[units, minutes]: whether a minute of the window that starts there is marked."""
    minutes = plane.shape[1]
    total = np.zeros((plane.shape[0], minutes + 1), dtype=np.int64)
    np.cumsum(plane, axis=1, out=total[:, 1:])
    starts = np.arange(minutes)
    inside: np.ndarray = total[:, np.minimum(starts + length, minutes)] > total[:, starts]
    return inside


def build(table: Mapping[str, Any], base: Path) -> AggregationEngine:
    """
    The engine from its config table: the settings of :class:`AggregationPolicy`, ``symbols`` and ``activation``.

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table is wrong.
    """
    del base
    rest = dict(table)
    scope = take_scope(rest)
    return AggregationEngine(AggregationDerivation(msgspec.convert(rest, AggregationPolicy)), scope)
