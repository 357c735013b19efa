"""
One task of the aggressor engine in a worker: rows of trades and quotes to classified rows, hashed and staged.

A pure function of its arguments and the artifacts they name. Imports the kernel, so it must never be imported by the
daemon.
"""

from __future__ import annotations

import datetime
from typing import Final

import numpy as np
import polars as pl

from engines.contract import Batch, Task, Workplace
from engines.derived_rows import MadeCells, hash_frame, read_inputs, records_of, stage, text_codes
from engines.nbbo.arrays import OFFSET_NULL, AggressorColumns, QuoteArrays, TradeArrays
from engines.nbbo.engine import NbboArguments
from engines.nbbo.kernel import classify, count_cells
from engines.nbbo.policy import Method, NbboPolicy, QuoteState, Rule, Side
from engines.nbbo.print_classes import PrintClass, counts
from ledger.columns import Column

_TRADE_COLUMNS: Final = [
    "ticker", "sip_timestamp", "sequence_number", "price", "size", "conditions", "correction", "previous_price",
]  # fmt: skip
_QUOTE_COLUMNS: Final = ["ticker", "sip_timestamp", "bid_price", "ask_price", "bid_size", "ask_size"]
HASHED: Final = (
    "ticker", "sip_timestamp", "price", "size", "ordinal", "previous_price", "print_class", "sets_price", "side",
    "method", "confidence", "offset_mid_bp", "bid_price", "ask_price", "bid_size", "ask_size", "quote_timestamp",
    "quote_age_ns", "quote_state", "quote_tied", "quote_stale", "exact_mid",
)  # fmt: skip
"""Columns of the content hash, in order. Not the sequence number: option trades of other sources have none."""
MEANINGS: Final = {
    "symbol": ("symbol of the cell", "text"),
    "minute": ("minute of the session, from 0", "minutes"),
    "ticker": ("instrument of the trade", "text"),
    "sip_timestamp": ("SIP time of the trade", "ns since the epoch, UTC"),
    "sequence_number": ("as the feed sent it", "number"),
    "ordinal": ("position of the trade in its trade cell, from 0", "rows"),
    "price": ("price of the trade", "USD"),
    "size": ("as the feed sent it; see size_unit of the trade's artifact", "shares or contracts"),
    "previous_price": (
        "of the same instrument's trade before it that day; under prints = eligible, one that sets prices",
        "USD",
    ),
    "print_class": ("class of the condition and correction codes", "word"),
    "sets_price": ("the print may set the last price", "boolean"),
    "side": ("who took the initiative", "word"),
    "method": (
        "what decided the side; nbbo_touch is at the quote or through it, nbbo_at_or_beyond inside the spread",
        "word",
    ),
    "confidence": ("1 touch, 0.7 inside the spread, 0.5 tick rule, 0 unknown", "fraction 0..1"),
    "offset_mid_bp": ("(price - mid) / mid, rounded half away from zero", "basis points"),
    "bid_price": ("bid of the quote in force", "USD"),
    "ask_price": ("ask of the quote in force", "USD"),
    "bid_size": ("bid size of the quote in force, as the feed sent it", "see size_unit of the quote's artifact"),
    "ask_size": ("ask size of the quote in force, as the feed sent it", "see size_unit of the quote's artifact"),
    "quote_timestamp": ("SIP time of the quote in force", "ns since the epoch, UTC"),
    "quote_age_ns": ("trade time less quote time", "ns"),
    "quote_state": ("state of the quote in force; none where none is", "word"),
    "quote_tied": ("the trade shares its exact time with a quote of its instrument", "boolean"),
    "quote_stale": ("no quote is in force, but there is an older one", "boolean"),
    "exact_mid": ("the price is the mid of the quote in force", "boolean"),
}
"""Meaning and unit of the columns, as written into the file; null means that there is no such value."""


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Compute one task.

    Raises:
        TaskFailed: an artifact is missing.
    """
    arguments: NbboArguments = task.arguments
    frame, cell = read_inputs(workplace.artifact_root, arguments.trades, _TRADE_COLUMNS)
    assert frame is not None, "a task without trades"
    quotes, _ = read_inputs(workplace.artifact_root, arguments.quotes, _QUOTE_COLUMNS)
    frame = _with_classes(frame, cell, arguments)
    if arguments.policy.prints == "eligible":
        frame, cell = _eligible(frame, cell)
    columns = _classified(frame, cell, quotes, arguments)
    rows = _rows(frame, cell, columns, arguments)
    row_count = np.bincount(cell, minlength=len(arguments.cells))
    made = MadeCells(
        Column.AGGRESSOR_REF,
        arguments.symbols,
        arguments.cells["symbol"],
        arguments.cells["minute"],
        arguments.cells["inputs"],
        np.full(len(arguments.cells), arguments.recipe, dtype=np.uint32),
        row_count,
        arguments.open_ns,
    )
    records = records_of(made, hash_frame(rows, HASHED))
    records["trade_payload_id"] = arguments.cells["trade_id"]
    records["quote_payload_id"] = arguments.cells["quote_id"]
    records["previous_quote_payload_id"] = arguments.cells["previous_quote_id"]
    records["observation_count"] = row_count
    found = count_cells(columns, np.cumsum(row_count) - row_count, row_count)
    for name in ("locked", "crossed", "stale", "missing", "tied", "exact_mid", "unknown_side"):
        records[name] = getattr(found, name)
    records["usable_rows"] = found.usable
    fields = {name: {"meaning": meaning, "unit": unit} for name, (meaning, unit) in MEANINGS.items()}
    return stage(made, records, rows, arguments.session, workplace, field_metadata=fields)


def _with_classes(frame: pl.DataFrame, cell: np.ndarray, arguments: NbboArguments) -> pl.DataFrame:
    """The trades with ``ordinal``, ``print_class`` (code) and ``sets_price``."""
    of_options = arguments.of_options[arguments.cells["symbol"]][cell]
    condition_codes, conditions = text_codes(frame["conditions"])
    correction_codes, corrections = text_codes(frame["correction"].fill_null(0))
    # One number for each triple: few differ, and those that occur are found by counting, not by sorting rows.
    key = (condition_codes * len(corrections) + correction_codes) * 2 + of_options
    known = np.flatnonzero(np.bincount(key, minlength=1))
    pair, option = np.divmod(known, 2)
    condition, correction = np.divmod(pair, len(corrections))
    class_of = np.zeros(int(known[-1]) + 1, dtype=np.int8)
    class_of[known] = arguments.prints.classify_conditions(
        [conditions[code] for code in condition],
        [corrections[code] for code in correction],
        option.astype(bool),
        datetime.date.fromisoformat(arguments.session),
    )
    classes = class_of[key]
    sets_price = arguments.prints.eligible(classes, of_options)
    counts_of = arguments.trades.ranges["count"]
    first = np.cumsum(counts_of) - counts_of
    return frame.with_columns(
        pl.Series("ordinal", (np.arange(frame.height) - first[cell]).astype(np.uint32)),
        pl.Series("print_class", classes),
        pl.Series("sets_price", sets_price),
    )


def _by_instrument(frame: pl.DataFrame, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """i64[rows] each: the rows by cell, then instrument, and for each of these places that of its instrument's first."""
    codes, _ = text_codes(frame["ticker"])
    order = np.lexsort((np.arange(frame.height), codes, cell))
    sorted_codes, sorted_cell = codes[order], cell[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (sorted_codes[1:] != sorted_codes[:-1]) | (sorted_cell[1:] != sorted_cell[:-1])
    return order, np.flatnonzero(new)[np.cumsum(new) - 1] if len(order) else order


def _eligible(frame: pl.DataFrame, cell: np.ndarray) -> tuple[pl.DataFrame, np.ndarray]:
    """
    Only prints that count, each with the price of the last one before it that sets prices.

    Looks back within the cell; where no such print lies there, the stored price before the instrument's first trade of
    the cell holds, because nothing outside the cell's inputs may be read.
    """
    order, group = _by_instrument(frame, cell)
    price = frame["price"].to_numpy()[order]
    stored = frame["previous_price"].fill_null(float("nan")).to_numpy()[order]
    setting = np.where(frame["sets_price"].to_numpy()[order], np.arange(len(order)), -1)
    last = np.concatenate([[-1], np.maximum.accumulate(setting)[:-1]]) if len(order) else setting
    previous = np.empty(len(order))
    previous[order] = np.where(last >= group, price[last], stored[group])
    keep = counts(frame["print_class"].to_numpy())
    renewed = frame.with_columns(pl.Series("previous_price", previous).fill_nan(None))
    return renewed.filter(pl.Series(keep)), cell[keep]


def _last_different_prices(frame: pl.DataFrame, cell: np.ndarray, policy: NbboPolicy) -> np.ndarray:
    """
    f64[rows]: the last price before each trade that differs from its own, as far back as its cell goes.

    Where the previous price is equal, what that price differed from; the previous price itself where the cell does not
    say. Under ``eligible`` only prints that set prices are looked back over.
    """
    order, group = _by_instrument(frame, cell)
    price = frame["price"].to_numpy()[order]
    previous = frame["previous_price"].fill_null(float("nan")).to_numpy()[order]
    differs = np.abs(price - previous) > policy.epsilon
    setting = frame["sets_price"].to_numpy()[order] if policy.prints == "eligible" else np.ones(len(order), dtype=bool)
    last = np.maximum.accumulate(np.where(differs & setting, np.arange(len(order)), -1))
    found = np.empty(len(order))
    found[order] = np.where(~differs & (last >= group), previous[last], previous)
    return found


def _classified(
    frame: pl.DataFrame, cell: np.ndarray, quotes: pl.DataFrame | None, arguments: NbboArguments
) -> AggressorColumns:
    """The kernel's columns in the order of the trades; it wants them by instrument, then time."""
    policy = arguments.policy
    previous = frame["previous_price"].fill_null(float("nan")).to_numpy()
    if policy.rule is Rule.LEE_READY and policy.tick_rule:
        previous = _last_different_prices(frame, cell, policy)
    codes, tickers = text_codes(frame["ticker"])
    order = np.argsort(codes, kind="stable")
    in_order = bool((codes[1:] >= codes[:-1]).all())
    trades = TradeArrays(
        codes.astype(np.int32),
        frame["sip_timestamp"].to_numpy(),
        frame["price"].to_numpy(),
        previous,
    )
    if not in_order:
        trades = TradeArrays._make(array[order] for array in trades)
    columns = classify(trades, _quote_arrays(quotes, tickers), policy)
    if in_order:
        return columns
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return AggressorColumns._make(array[back] for array in columns)


def _quote_arrays(quotes: pl.DataFrame | None, tickers: list[str]) -> QuoteArrays:
    """Quotes of the instruments that traded, by instrument, then time; they come by symbol, minute, instrument, time."""
    none = np.zeros(0)
    if quotes is None:
        return QuoteArrays(none.astype(np.int32), none.astype(np.int64), none, none, none, none)
    traded = quotes.with_columns(
        pl.col("ticker").cast(pl.String).cast(pl.Enum(tickers), strict=False).to_physical().alias("code")
    ).filter(pl.col("code").is_not_null())
    codes = traded["code"].to_numpy().astype(np.int32)
    if not (codes[1:] >= codes[:-1]).all():
        order = np.argsort(codes, kind="stable")
        traded, codes = traded[order], codes[order]
    return QuoteArrays(
        codes,
        traded["sip_timestamp"].to_numpy(),
        traded["bid_price"].to_numpy(),
        traded["ask_price"].to_numpy(),
        traded["bid_size"].to_numpy(),
        traded["ask_size"].to_numpy(),
    )


def _rows(frame: pl.DataFrame, cell: np.ndarray, columns: AggressorColumns, arguments: NbboArguments) -> pl.DataFrame:
    """The rows as they are written: where they are, the trade, its class, the side, the quote used."""
    where = arguments.cells
    in_force = columns.quote_age_ns >= 0

    def words(codes: np.ndarray, kind: type[Side | Method | QuoteState | PrintClass]) -> pl.Series:
        names = [member.name.lower() for member in sorted(kind)]
        return pl.Series(names, dtype=pl.Enum(names)).gather(codes)

    def quoted(values: np.ndarray) -> pl.Series:
        return pl.select(pl.when(pl.Series(in_force)).then(pl.Series(values))).to_series()

    offset = pl.Series(columns.offset_mid_bp)
    symbols = pl.Series(arguments.symbols, dtype=pl.Enum(list(arguments.symbols)))
    return pl.DataFrame(
        {
            "symbol": symbols.gather(where["symbol"][cell]),
            "minute": where["minute"][cell].astype(np.uint16),
            "ticker": frame["ticker"],
            "sip_timestamp": frame["sip_timestamp"],
            "sequence_number": frame["sequence_number"],
            "price": frame["price"],
            "size": frame["size"],
            "ordinal": frame["ordinal"],
            "previous_price": frame["previous_price"],
            "print_class": words(frame["print_class"].to_numpy(), PrintClass),
            "sets_price": frame["sets_price"],
            "side": words(columns.side, Side),
            "method": words(columns.method, Method),
            "confidence": columns.confidence,
            "offset_mid_bp": pl.select(pl.when(offset != OFFSET_NULL).then(offset)).to_series(),
            "bid_price": quoted(columns.bid),
            "ask_price": quoted(columns.ask),
            "bid_size": quoted(columns.bid_size),
            "ask_size": quoted(columns.ask_size),
            "quote_timestamp": quoted(columns.quote_ts_ns),
            "quote_age_ns": quoted(columns.quote_age_ns),
            "quote_state": words(columns.quote_state, QuoteState),
            "quote_tied": columns.quote_tied,
            "quote_stale": columns.quote_stale,
            "exact_mid": columns.exact_mid,
        }
    )
