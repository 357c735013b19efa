"""
The engine ``greeks``: curve and option trades of T, the underlying's quotes of T and T-1, into ``greeks_ref`` of T.

An option symbol is a contract or a whole chain; either has one underlying. Quotes of an underlying that no dataset
covers count as filled without rows; those that have not come block. This module says what the inputs are and where
their rows lie; it must never read a row, nor import the kernel.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from engines.contract import Context, Remark, RowQuality
from engines.derivation import Cells, Judged, Steps, counted_as, recipe_words, upstream
from engines.derived import DerivedEngine
from engines.derived_rows import InputRows, input_rows, readable
from engines.greeks.expiry import Sessions
from engines.greeks.flags import FLAG_BITS, OPERATOR_TEXT, REMARKS_ONLY, GreeksFlag
from engines.greeks.policy import KERNEL_VERSION, CarryTable, GreeksSettings
from engines.scope import take_scope
from ledger.calendar import Calendar
from ledger.columns import Column, Status, SymbolClass
from ledger.coverage import applicable, class_words
from ledger.prints import Term, cell_prints, recipe_hash, recipe_prints
from ledger.records import NO_ROWS_ID, RECORD_NO_ROWS, TENOR_COUNT
from ledger.roots import OPTION_PREFIX, option_root
from ledger.rows import SessionRows
from ledger.state import State

_COLUMN: Final = Column.GREEKS_REF
_TRADE_WEIGHT: Final = 8
"""A trade is read, solved, hashed and written; a quote is only read."""
_MINUTES: Final = 512
"""Stride of (symbol, minute) pairs that are sorted as one number."""
_YEARS_AHEAD: Final = 4
_BLAMED: Final = {GreeksFlag.NO_UNDERLYING: Column.QUOTE_REF, GreeksFlag.NO_TREASURY: Column.RF_RATE_REF}
NO_CURVE_INDEX: Final = -1
CELL: Final = np.dtype(
    [
        ("symbol", "<u2"),
        ("minute", "<u2"),
        ("inputs", "<u4"),
        ("recipe", "<u4"),
        ("underlying", "<u2"),
        ("curve", "<i2"),
        ("rate_id", "<u4"),
        ("trade_id", "<u4"),
        ("quote_id", "<u4"),
        ("previous_quote_id", "<u4"),
    ]
)
"""
One cell of a task: symbol and underlying as indexes into their names, ``curve`` into the curves (``NO_CURVE_INDEX`` for
none), ``recipe`` the print of its recipe alone; payload ids 0 where the input has none.
"""


@dataclass(frozen=True, slots=True)
class GreeksArguments:
    """What one task of the engine computes: plain, picklable values."""

    session: str
    open_ns: int
    symbols: tuple[str, ...]
    underlyings: tuple[str, ...]
    net_carry: tuple[float, ...]
    """Per underlying: continuous yield per year as a decimal, in force on the session."""
    cells: np.ndarray
    """CELL[n], ascending by symbol, then minute."""
    curves: np.ndarray
    """i32[k, 12]: ``tenor_bps`` of the curves in force."""
    trades: InputRows
    """One range per cell, in the order of the cells."""
    quotes: InputRows
    """
    One range per quote cell of the underlyings (``symbol`` is an index into ``underlyings``), and one at minute -1 for
    the quotes before the open; ascending by underlying, then minute.
    """
    settings: GreeksSettings
    calendar: Sessions
    """The sessions that are known, for expiries."""


class GreeksDerivation:
    """
    The inputs and the recipe of Greeks.

    Args:
        settings: the policies.
        carry: net carry of underlyings.
        am_settled_given: whether the config names the roots in ``am_settled``; where not, the table of roots does.
    """

    name = "greeks"
    writes: tuple[Column, ...] = (_COLUMN,)
    compute = "engines.greeks.compute:run"
    divisible = True

    def __init__(self, settings: GreeksSettings, carry: CarryTable, *, am_settled_given: bool = False) -> None:
        self.settings = settings
        self.carry = carry
        self._am_settled_given = am_settled_given
        self._recipes: dict[tuple[float, bool], int] = {}
        self._underlying = np.zeros(0, dtype=np.int64)
        self._is_option = np.zeros(0, dtype=bool)
        self._at_open = np.zeros(0, dtype=bool)

    def start(self, context: Context) -> None:
        """Take the context."""
        self._state: State = context.state
        self._sessions = known_sessions(self._state.calendar)
        if not self._am_settled_given:
            entries = self._state.roots.entries
            settled = tuple(sorted(root for root, entry in entries.items() if entry.am_settled))
            self.settings = msgspec.structs.replace(self.settings, am_settled=settled)

    # ---- symbols

    def applies(self, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n]: options only."""
        none = np.zeros(len(symbol_ids), dtype=bool)
        return applicable(_COLUMN, class_words(self._state, symbol_ids), none)

    def affected(self, symbol_ids: np.ndarray) -> np.ndarray:
        """Options among the symbols, and the options of underlyings among them."""
        self._learn()
        touched = np.zeros(len(self._underlying), dtype=bool)
        touched[symbol_ids] = True
        found: np.ndarray = np.flatnonzero(self._is_option & (touched | touched[self._underlying]))
        return found

    def _learn(self) -> None:
        """Take note of symbols that are new."""
        state, known = self._state, len(self._underlying)
        if known == len(state.symbols):
            return
        fresh = range(known, len(state.symbols))
        options = [state.class_of(one) in (SymbolClass.CHAIN, SymbolClass.CONTRACT) for one in fresh]
        settled = frozenset(self.settings.am_settled) if self.settings.expiry == "last-session-close" else frozenset()
        at_open = [is_option and _root(state, one) in settled for one, is_option in zip(fresh, options, strict=True)]
        underlying = np.array([state.underlying_id(one) for one in fresh], dtype=np.int64)
        self._underlying = np.concatenate([self._underlying, underlying])
        self._is_option = np.concatenate([self._is_option, np.array(options, dtype=bool)])
        self._at_open = np.concatenate([self._at_open, np.array(at_open, dtype=bool)])

    def recipes(self, session_seq: int, units: np.ndarray) -> np.ndarray:
        """
        u64[n]: the recipe of each option symbol on a session.

        Of the settings, those that enter its own rows: carry of its underlying, and whether its own root is settled on
        opening prices. What else the table of roots says enters through the quotes that it leads to.
        """
        self._learn()
        day = datetime.date.fromisoformat(self._state.calendar.date(session_seq))
        found = np.zeros(len(units), dtype=np.uint64)
        for position, unit in enumerate(units.tolist()):
            carry = self.carry.on(self._state.symbols.name(int(self._underlying[unit])), day) + 0.0
            key = (carry, bool(self._at_open[unit]))
            recipe = self._recipes.get(key)
            if recipe is None:
                settings = {**self.settings.recipe(carry), "am_settled": key[1]}
                del settings["kernel"]
                recipe = self._recipes[key] = recipe_hash(self.name, KERNEL_VERSION, settings)
            found[position] = recipe
        return found

    def at_rest(self, session_seq: int, units: np.ndarray) -> None:
        """Not known without looking at the underlyings."""
        del session_seq, units

    def judge(self, session_seq: int, column: Column, units: np.ndarray) -> Judged:
        """Readiness and prints of all windows of some option symbols."""
        del column
        self._learn()
        state = self._state
        rates = upstream(state, session_seq, Column.RF_RATE_REF, units)
        trades = upstream(state, session_seq, Column.TRADE_REF, units)
        of_unit = self._underlying[units]
        underlyings, position = np.unique(of_unit, return_inverse=True)
        quotes = upstream(state, session_seq, Column.QUOTE_REF, underlyings).of(position)
        before = quotes.before()
        # An underlying that was refused an id stands in for itself: there is no telling what its quotes are.
        known = (of_unit != units)[:, None]
        terms = [
            Term("rf_rate", 0, rates.checksum, rates.counts),
            Term("trade", 0, trades.checksum, trades.counts),
            Term("quote", 0, quotes.checksum, quotes.counts),
            Term("quote", -1, before.checksum, before.counts),
        ]
        recipes = self.recipes(session_seq, units)
        return Judged(
            known & rates.filled & trades.filled & quotes.filled & before.filled,
            trades.counts,
            cell_prints(recipes[:, None], terms, trades.counts),
            recipe_prints(recipes),
        )

    # ---- what the rows are worth

    def quality(self, column: Column, records: np.ndarray) -> RowQuality:
        """Rows with all Greeks are usable; the flags say what the others lack, the general ones last."""
        del column
        general = (GreeksFlag.NO_UNDERLYING, GreeksFlag.NO_IV)
        remarks = []
        for flag in sorted(FLAG_BITS, key=lambda one: one in general):
            rows = records["flag_rows"][:, FLAG_BITS.index(flag)].astype(np.int64)
            word, text = str(flag.name).lower(), OPERATOR_TEXT[flag]
            remarks.append(Remark(word, text, rows, flag not in REMARKS_ONLY, _BLAMED.get(flag)))
        return RowQuality(counted_as(records, "observation_count"), counted_as(records, "usable_rows"), remarks)

    def recipe_of(self, session_seq: int, column: Column, unit: int) -> tuple[int, str]:
        """The carry of the underlying and the settlement of the root are part of it."""
        del column
        (recipe,) = recipe_prints(self.recipes(session_seq, np.array([unit]))).tolist()
        day = datetime.date.fromisoformat(self._state.calendar.date(session_seq))
        carry = self.carry.on(self._state.symbols.name(int(self._underlying[unit])), day)
        words = {**self.settings.recipe(carry), "am_settled": "yes" if self._at_open[unit] else "no"}
        return recipe, recipe_words(words)

    # ---- where the rows are

    def weigh(self, session_seq: int, cells: Cells) -> np.ndarray:
        """
        i64[n]: trades of each cell, weighed more, and its share of the quotes; -1 where an input cannot be read.

        Quotes of one underlying are read once, however many contracts need them.
        """
        self._learn()
        rows = self._state.trade.session(session_seq)
        underlying = self._underlying[cells.symbol_ids]
        earlier = np.maximum(cells.minutes - 1, 0)
        rates = self._records(rows, Column.RF_RATE_REF, cells.symbol_ids, cells.minutes)[1]
        trades = self._records(rows, Column.TRADE_REF, cells.symbol_ids, cells.minutes)[1]
        quotes = self._records(rows, Column.QUOTE_REF, underlying, cells.minutes)[1]
        before = self._records(rows, Column.QUOTE_REF, underlying, earlier)[1]
        _, place, sharing = np.unique(underlying * _MINUTES + cells.minutes, return_inverse=True, return_counts=True)
        share = (quotes["row_count"].astype(np.int64) + quotes["lead_count"]) // sharing[place]
        weight = trades["row_count"].astype(np.int64) * _TRADE_WEIGHT + share
        sound = readable(rates) & readable(trades) & (trades["row_count"] > 0) & readable(quotes) & readable(before)
        return np.where(sound, weight, -1)

    def _records(
        self, rows: SessionRows, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(payload ids, records) of filled cells; of others id 0 and the no-rows record."""
        slots = rows.slots(column, symbol_ids, minutes)
        ids = np.where(slots["status"] == Status.FILLED, slots["payload_id"], 0)
        records = self._state.maps[column.payload_kind].get_many(np.where(ids == 0, NO_ROWS_ID, ids))
        return ids, records

    def arguments(self, session: str, cells: list[Cells]) -> Steps[GreeksArguments]:
        """The task's cells, the curves, and the row ranges of trades and quotes."""
        self._learn()
        state, (mine,) = self._state, cells
        seq = state.calendar.session_seq(session)
        rows = state.trade.session(seq)
        units, symbol = np.unique(mine.symbol_ids, return_inverse=True)
        underlyings, underlying_of_unit = np.unique(self._underlying[units], return_inverse=True)
        underlying = underlying_of_unit[symbol]
        rate_ids, rates = self._records(rows, Column.RF_RATE_REF, mine.symbol_ids, mine.minutes)
        curves, curve = _curves(rate_ids, rates)
        yield
        trade_ids, trades = self._records(rows, Column.TRADE_REF, mine.symbol_ids, mine.minutes)
        yield
        quote_ids, _ = self._records(rows, Column.QUOTE_REF, underlyings[underlying], mine.minutes)
        yield
        earlier = np.maximum(mine.minutes - 1, 0)
        before_ids, _ = self._records(rows, Column.QUOTE_REF, underlyings[underlying], earlier)
        yield
        table = np.zeros(len(mine), dtype=CELL)
        table["symbol"], table["minute"], table["inputs"] = symbol, mine.minutes, mine.prints
        table["recipe"] = recipe_prints(self.recipes(seq, units))[symbol]
        table["underlying"], table["curve"] = underlying, curve
        table["rate_id"], table["trade_id"], table["quote_id"] = rate_ids, trade_ids, quote_ids
        table["previous_quote_id"] = np.where(mine.minutes > 0, before_ids, 0)
        names = tuple(state.symbols.name(int(one)) for one in underlyings)
        day = datetime.date.fromisoformat(session)
        quotes = self._quotes(rows, underlyings, underlying, mine.minutes)
        yield
        return GreeksArguments(
            session=session,
            open_ns=int(state.calendar.open_ns[seq]),
            symbols=tuple(state.symbols.name(int(one)) for one in units),
            underlyings=names,
            net_carry=tuple(self.carry.on(name, day) + 0.0 for name in names),
            cells=table,
            curves=curves,
            trades=input_rows(
                state, trades["artifact_id"], symbol, mine.minutes, trades["row_start"], trades["row_count"]
            ),
            quotes=quotes,
            settings=self.settings,
            calendar=self._sessions,
        )

    def _quotes(
        self, rows: SessionRows, underlyings: np.ndarray, underlying: np.ndarray, minutes: np.ndarray
    ) -> InputRows:
        """Ranges of every quote cell that some cell needs, once each, and of the quotes before the open."""
        first = underlying * _MINUTES
        needed = np.unique(np.concatenate([first + minutes, first + np.maximum(minutes - 1, 0)]))
        at, minute = np.divmod(needed, _MINUTES)
        records = self._records(rows, Column.QUOTE_REF, underlyings[at], minute)[1]
        lead = np.flatnonzero((minute == 0) & (records["lead_count"] > 0))
        places = np.concatenate([at * _MINUTES + minute + 1, at[lead] * _MINUTES])
        order = np.argsort(places, kind="stable")

        def both(name: str, lead_name: str) -> np.ndarray:
            joined: np.ndarray = np.concatenate([records[name], records[lead_name][lead]])[order]
            return joined

        return input_rows(
            self._state,
            both("artifact_id", "artifact_id"),
            np.concatenate([at, at[lead]])[order],
            np.concatenate([minute, np.full(len(lead), -1)])[order],
            both("row_start", "lead_start"),
            both("row_count", "lead_count"),
        )


def _root(state: State, symbol_id: int) -> str:
    """The root of a chain or contract."""
    name = state.symbols.name(symbol_id)
    if state.class_of(symbol_id) is SymbolClass.CHAIN:
        return name.removeprefix(OPTION_PREFIX)
    return option_root(name)


def _curves(rate_ids: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different curves among the records of cells, i32[k, 12], and each cell's index into them."""
    held = (rate_ids != 0) & (rates["record_flags"] & np.uint8(RECORD_NO_ROWS) == 0)
    curve = np.full(len(rates), NO_CURVE_INDEX, dtype=np.int16)
    if not held.any():
        return np.zeros((0, TENOR_COUNT), dtype=np.int32), curve
    curves, index = np.unique(rates["tenor_bps"][held], axis=0, return_inverse=True)
    curve[held] = index.reshape(-1)
    return curves, curve


def known_sessions(calendar: Calendar) -> Sessions:
    """The sessions of the calendar's year and of the years behind it that it knows, for expiries."""
    day, end = datetime.date(calendar.year, 1, 1), datetime.date(calendar.year + _YEARS_AHEAD, 1, 1)
    found: dict[str, tuple[int, int]] = {}
    while day < end:
        times = calendar.last_session_on_or_before(day.isoformat())
        if not times.literal:
            found.setdefault(times.date, (times.open_ns, times.close_ns))
        day += datetime.timedelta(days=1)
    days = np.array(list(found), dtype="datetime64[D]").astype(np.int64)
    hours = np.array(list(found.values()), dtype=np.int64).reshape(-1, 2)
    return Sessions(days, hours[:, 0].copy(), hours[:, 1].copy())


def build(table: Mapping[str, Any], base: Path) -> DerivedEngine:
    """
    The engine from its config table: the settings of :class:`GreeksSettings`, ``symbols`` and ``activation``.

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table, or a table of carry, is wrong.
    """
    rest = dict(table)
    scope = take_scope(rest)
    settings = msgspec.convert(rest, GreeksSettings)
    try:
        carry = CarryTable.load(settings, base)
    except OSError as error:
        raise ValueError(f"net_carry: {error.filename}: {error.strerror}") from error
    return DerivedEngine(GreeksDerivation(settings, carry, am_settled_given="am_settled" in rest), scope)
