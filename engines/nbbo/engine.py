"""
The engine ``nbbo``: ``trade_ref`` of T and ``quote_ref`` of T and T-1 of the same symbol into ``aggressor_ref`` of T.

The first window's quotes from before the open are part of its own quote cell. This module says what the inputs are and
where their rows lie; it must never read a row, nor import the kernel.
"""

from __future__ import annotations

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
from engines.nbbo.policy import KERNEL_VERSION, NbboPolicy
from engines.nbbo.print_classes import PrintTable
from engines.scope import take_scope
from ledger.columns import MINUTES_PER_SESSION, Column, PayloadKind, Status, SymbolClass
from ledger.coverage import applicable, class_words
from ledger.prints import Term, cell_prints, recipe_hash, recipe_print
from ledger.records import NO_ROWS_ID
from ledger.state import State

_COLUMN: Final = Column.AGGRESSOR_REF
_TRADE_WEIGHT: Final = 4
"""A trade is read, classified, hashed and written; a quote is only read."""
CELL: Final = np.dtype(
    [
        ("symbol", "<u2"),
        ("minute", "<u2"),
        ("inputs", "<u4"),
        ("trade_id", "<u4"),
        ("quote_id", "<u4"),
        ("previous_quote_id", "<u4"),
    ]
)
"""One cell of a task: symbol as an index into its names; payload ids 0 where the input has none."""


@dataclass(frozen=True, slots=True)
class NbboArguments:
    """What one task of the engine computes: plain, picklable values."""

    session: str
    open_ns: int
    symbols: tuple[str, ...]
    of_options: np.ndarray
    """bool[symbols]."""
    cells: np.ndarray
    """CELL[n], ascending by symbol, then minute."""
    trades: InputRows
    """One range per cell, in the order of the cells."""
    quotes: InputRows
    """One range per quote cell, and one at minute -1 for the quotes before the open; ascending by symbol, then minute."""
    policy: NbboPolicy
    prints: PrintTable
    recipe: int
    """Print of the recipe alone."""


class NbboDerivation:
    """The aggressor's inputs and recipe."""

    name = "nbbo"
    writes: tuple[Column, ...] = (_COLUMN,)
    compute = "engines.nbbo.compute:run"
    divisible = True

    def __init__(self, policy: NbboPolicy, prints: PrintTable) -> None:
        self.policy = policy
        self.prints = prints
        settings = dict(policy.recipe())
        del settings["kernel"]
        self.recipe = recipe_hash(self.name, KERNEL_VERSION, {**settings, "print_classes": prints.fingerprint})

    def start(self, context: Context) -> None:
        """Take the context."""
        self._state: State = context.state

    def applies(self, symbol_ids: np.ndarray) -> np.ndarray:
        """bool[n]: everything but an index."""
        none = np.zeros(len(symbol_ids), dtype=bool)
        return applicable(_COLUMN, class_words(self._state, symbol_ids), none)

    def affected(self, symbol_ids: np.ndarray) -> np.ndarray:
        """The symbols themselves: trades and quotes of one instrument stay together."""
        return symbol_ids

    def at_rest(self, session_seq: int, units: np.ndarray) -> np.ndarray | None:
        """bool[n]: symbols without a side and without a minute that has both trades and quotes, by the planes of the day."""
        ledger = self._state.trade
        if not ledger.exists(session_seq):
            return np.ones(len(units), dtype=bool)
        rows = ledger.session(session_seq)
        ready = rows.ready((Column.TRADE_REF, Column.QUOTE_REF), _COLUMN)
        first = units.astype(np.int64) * MINUTES_PER_SESSION
        none_ready = np.searchsorted(ready, first) == np.searchsorted(ready, first + MINUTES_PER_SESSION)
        own = rows.status[rows.column_index(_COLUMN)]
        none_ready[none_ready] = ~(own[units[none_ready]] == Status.FILLED).any(axis=1)
        return none_ready

    def judge(self, session_seq: int, column: Column, units: np.ndarray) -> Judged:
        """Readiness and prints of all windows of some symbols."""
        del column
        trades = upstream(self._state, session_seq, Column.TRADE_REF, units)
        quotes = upstream(self._state, session_seq, Column.QUOTE_REF, units)
        before = quotes.before()
        terms = [
            Term("trade", 0, trades.checksum, trades.counts),
            Term("quote", 0, quotes.checksum, quotes.counts),
            Term("quote", -1, before.checksum, before.counts),
        ]
        return Judged(
            trades.filled & quotes.filled & before.filled,
            trades.counts,
            cell_prints(np.array([[self.recipe]], dtype=np.uint64), terms, trades.counts),
            np.full(len(units), recipe_print(self.recipe), dtype=np.uint32),
        )

    # ---- where the rows are

    def weigh(self, session_seq: int, cells: Cells) -> np.ndarray:
        """i64[n]: rows of the trade and quote cells, trades weighed more; -1 where an input cannot be read any more."""
        rows = self._state.trade.session(session_seq)
        trades = self._records(rows, Column.TRADE_REF, cells.symbol_ids, cells.minutes, check=True)[1]
        quotes = self._records(rows, Column.QUOTE_REF, cells.symbol_ids, cells.minutes, check=True)[1]
        before = self._records(rows, Column.QUOTE_REF, cells.symbol_ids, np.maximum(cells.minutes - 1, 0), check=True)[
            1
        ]
        weight = trades["row_count"].astype(np.int64) * _TRADE_WEIGHT
        weight += quotes["row_count"].astype(np.int64) + quotes["lead_count"]
        sound = readable(trades) & (trades["row_count"] > 0) & readable(quotes) & readable(before)
        return np.where(sound, weight, -1)

    def _records(
        self, rows: Any, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, *, check: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(payload ids, records) of filled cells; of others id 0 and the no-rows record. Weighing has checked them."""
        slots = rows.slots(column, symbol_ids, minutes)
        ids = np.where(slots["status"] == Status.FILLED, slots["payload_id"], 0)
        kind: PayloadKind = column.payload_kind
        return ids, self._state.maps[kind].get_many(np.where(ids == 0, NO_ROWS_ID, ids), check=check)

    def arguments(self, session: str, cells: list[Cells]) -> Steps[NbboArguments]:
        """The task's cells, and the row ranges of their inputs."""
        state, (mine,) = self._state, cells
        seq = state.calendar.session_seq(session)
        rows = state.trade.session(seq)
        units, symbol = np.unique(mine.symbol_ids, return_inverse=True)
        trade_ids, trades = self._records(rows, Column.TRADE_REF, mine.symbol_ids, mine.minutes)
        yield
        quote_ids, _ = self._records(rows, Column.QUOTE_REF, mine.symbol_ids, mine.minutes)
        before_ids, _ = self._records(rows, Column.QUOTE_REF, mine.symbol_ids, np.maximum(mine.minutes - 1, 0))
        yield
        table = np.zeros(len(mine), dtype=CELL)
        table["symbol"], table["minute"], table["inputs"] = symbol, mine.minutes, mine.prints
        table["trade_id"], table["quote_id"] = trade_ids, quote_ids
        table["previous_quote_id"] = np.where(mine.minutes > 0, before_ids, 0)
        options = (SymbolClass.CHAIN, SymbolClass.CONTRACT)
        quotes = self._quotes(rows, units, symbol, mine.minutes)
        yield
        return NbboArguments(
            session=session,
            open_ns=int(state.calendar.open_ns[seq]),
            symbols=tuple(state.symbols.name(int(one)) for one in units),
            of_options=np.array([state.class_of(int(one)) in options for one in units], dtype=bool),
            cells=table,
            trades=input_rows(
                state, trades["artifact_id"], symbol, mine.minutes, trades["row_start"], trades["row_count"]
            ),
            quotes=quotes,
            policy=self.policy,
            prints=self.prints,
            recipe=recipe_print(self.recipe),
        )

    # ---- what the rows are worth

    def quality(self, column: Column, records: np.ndarray) -> RowQuality:
        """Rows with a side are usable."""
        del column
        quotes = Column.QUOTE_REF
        remarks = [
            Remark(word, text, counted_as(records, word), word == "unknown_side", source)
            for word, text, source in (
                ("unknown_side", "no quote in force decided, and the price had not moved", quotes),
                ("missing", "no quote at all at or before the trade, in its minute or the one before", quotes),
                ("stale", "the last quote is older than staleness_ms", quotes),
                ("locked", "the quote in force is locked", None),
                ("crossed", "the quote in force is crossed", None),
                ("tied", "the trade shares its exact time with a quote: quote_tie decides", None),
                ("exact_mid", "the price is exactly the mid", None),
            )
        ]
        return RowQuality(counted_as(records, "observation_count"), counted_as(records, "usable_rows"), remarks)

    def recipe_of(self, session_seq: int, column: Column, unit: int) -> tuple[int, str]:
        """One recipe for all cells."""
        del session_seq, column, unit
        return recipe_print(self.recipe), recipe_words(self.policy.recipe())

    def _quotes(self, rows: Any, units: np.ndarray, symbol: np.ndarray, minutes: np.ndarray) -> InputRows:
        """Ranges of every quote cell that some cell needs, once each, and of the quotes before the open."""
        needed = np.unique(np.concatenate([symbol * 512 + minutes, symbol * 512 + np.maximum(minutes - 1, 0)]))
        at, minute = np.divmod(needed, 512)
        records = self._records(rows, Column.QUOTE_REF, units[at], minute)[1]
        lead = np.flatnonzero((minute == 0) & (records["lead_count"] > 0))
        places = np.concatenate([at * 512 + minute + 1, at[lead] * 512])
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


def build(table: Mapping[str, Any], base: Path) -> DerivedEngine:
    """
    The engine from its config table: the settings of :class:`NbboPolicy`, ``symbols``, ``activation`` and ``print_classes`` (a file).

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table is wrong.
    """
    rest = dict(table)
    scope = take_scope(rest)
    path = rest.pop("print_classes", None)
    policy = msgspec.convert(rest, NbboPolicy)
    try:
        prints = PrintTable.load(None if path is None else base / Path(str(path)).expanduser())
    except OSError as error:
        raise ValueError(f"print_classes: {path}: {error.strerror}") from error
    return DerivedEngine(NbboDerivation(policy, prints), scope)
