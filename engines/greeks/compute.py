"""
One task of the Greeks engine in a worker: option trades, the underlying's quotes and curves to rows, hashed and staged.

A pure function of its arguments and the artifacts they name. Imports the kernel, so it must never be imported by the
daemon.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from engines.contract import Batch, Task, Workplace
from engines.derived_rows import MadeCells, hash_frame, read_inputs, records_of, stage, text_codes
from engines.greeks.arrays import GreeksColumns, OptionTrades, UnderlyingQuotes
from engines.greeks.curve import NO_CURVE, curve_of
from engines.greeks.engine import GreeksArguments
from engines.greeks.expiry import Contracts, Sessions, contracts_of
from engines.greeks.flags import FLAG_BITS, GreeksFlag, count_cells
from engines.greeks.kernel import compute_greeks
from engines.greeks.policy import KERNEL_VERSION, GreeksSettings
from ledger.columns import Column
from ledger.content import checksum_of

_TRADE_COLUMNS: Final = ["ticker", "sip_timestamp", "sequence_number", "price", "size"]
_QUOTE_COLUMNS: Final = ["sip_timestamp", "bid_price", "ask_price"]
HASHED: Final = (
    "ticker", "sip_timestamp", "price", "size", "ordinal", "iv", "delta", "gamma", "vega", "theta", "rho", "tau_years",
    "rate", "spot", "spot_bid", "spot_ask", "spot_ts", "spot_age_ns", "flags", "usable",
)  # fmt: skip
"""Columns of the content hash, in order. Not the sequence number: option trades of other sources have none."""
_BITS: Final = ", ".join(f"{int(flag)} {flag.words[0]}" for flag in FLAG_BITS)
MEANINGS: Final = {
    "symbol": ("symbol of the cell", "text"),
    "minute": ("minute of the session, from 0", "minutes"),
    "ticker": ("contract of the trade", "text"),
    "sequence_number": ("as the feed sent it", "number"),
    "sip_timestamp": ("SIP time of the trade", "ns since the epoch, UTC"),
    "price": ("price of the option", "USD per unit of the underlying"),
    "size": ("as the feed sent it", "contracts"),
    "ordinal": ("position of the trade in its trade cell, from 0", "rows"),
    "iv": (
        "implied volatility of the trade price, European Black-Scholes-Merton",
        "per 1.00 per square root of a year",
    ),
    "delta": ("change of price with the spot, net carry included", "USD per USD"),
    "gamma": ("change of delta with the spot", "per USD"),
    "vega": ("change of price with volatility", "USD per 1.00 of volatility"),
    "theta": ("change of price as time passes", "USD per year"),
    "rho": ("change of price with the rate", "USD per 1.00 of rate"),
    "tau_years": ("time from the trade to the expiry, ACT/365", "years"),
    "rate": ("interpolated from the curve in force, continuously compounded", "decimal per year"),
    "spot": ("mid of the underlying's quote, or its only side", "USD"),
    "spot_bid": ("bid of the underlying's last quote in this minute or the one before, used or not", "USD"),
    "spot_ask": ("ask of that quote", "USD"),
    "spot_ts": ("SIP time of that quote", "ns since the epoch, UTC"),
    "spot_age_ns": ("trade time less quote time", "ns"),
    "flags": (f"bits: {_BITS}", "bits"),
    "usable": ("implied volatility and all Greeks are there", "boolean"),
}
"""Meaning and unit of the columns, as written into the file; null everywhere means that there is no such value."""


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Compute one task.

    Raises:
        TaskFailed: an artifact is missing.
    """
    arguments: GreeksArguments = task.arguments
    cells = arguments.cells
    frame, cell = read_inputs(workplace.artifact_root, arguments.trades, _TRADE_COLUMNS)
    assert frame is not None, "a task without trades"
    quotes, quote_range = read_inputs(workplace.artifact_root, arguments.quotes, _QUOTE_COLUMNS)
    owner = arguments.quotes.ranges["symbol"][quote_range].astype(np.int64)
    columns = _computed(frame, cell, quotes, owner, arguments)
    rows = _rows(frame, cell, columns, arguments)
    row_count = np.bincount(cell, minlength=len(cells))
    made = MadeCells(
        Column.GREEKS_REF,
        arguments.symbols,
        cells["symbol"],
        cells["minute"],
        cells["inputs"],
        cells["recipe"],
        row_count,
        arguments.open_ns,
    )
    records = records_of(made, hash_frame(rows, HASHED))
    found = count_cells(columns.flags, columns.usable, np.concatenate([[0], np.cumsum(row_count)]))
    records["rf_rate_payload_id"] = cells["rate_id"]
    records["trade_payload_id"] = cells["trade_id"]
    records["quote_payload_id"] = cells["quote_id"]
    records["previous_quote_payload_id"] = cells["previous_quote_id"]
    records["greeks_version"] = KERNEL_VERSION
    records["checksum"] = checksum_of(records["content_hash"])
    records["observation_count"] = found.observation_count
    records["usable_rows"] = found.usable_rows
    records["flags_any"] = found.flags_any
    records["no_underlying"] = found.rows_with(GreeksFlag.NO_UNDERLYING)
    records["no_iv"] = found.rows_with(GreeksFlag.NO_IV)
    records["flag_rows"] = np.minimum(found.by_flag, np.iinfo(np.uint16).max)
    fields = {name: {"meaning": meaning, "unit": unit} for name, (meaning, unit) in MEANINGS.items()}
    return stage(made, records, rows, arguments.session, workplace, field_metadata=fields)


def _computed(
    frame: pl.DataFrame, cell: np.ndarray, quotes: pl.DataFrame | None, owner: np.ndarray, arguments: GreeksArguments
) -> GreeksColumns:
    """
    The kernel's columns in the order of the trades; it is called once per underlying and curve.

    Args:
        cell: i64[trades], index of each trade's cell.
        owner: i64[quotes], index of each quote's underlying, ascending.
    """
    trades = _option_trades(frame, arguments.calendar, arguments.settings)
    of_cell = (
        arguments.cells["underlying"].astype(np.int64) * (len(arguments.curves) + 1) + arguments.cells["curve"] + 1
    )
    groups = np.unique(of_cell)
    group_of_trade = of_cell[cell]
    parts, places = [], []
    for group in groups.tolist():
        underlying, curve = divmod(group, len(arguments.curves) + 1)
        place = np.flatnonzero(group_of_trade == group)
        first, last = np.searchsorted(owner, [underlying, underlying + 1])
        parts.append(
            compute_greeks(
                OptionTrades._make(None if array is None else array[place] for array in trades),
                _quotes(quotes, int(first), int(last)),
                curve_of(arguments.curves[curve - 1]) if curve else NO_CURVE,
                arguments.net_carry[underlying],
                arguments.settings,
            )
        )
        places.append(place)
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.concatenate(places), kind="stable")
    return GreeksColumns._make(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True))


def _option_trades(frame: pl.DataFrame, calendar: Sessions, settings: GreeksSettings) -> OptionTrades:
    """The trades with what their tickers say."""
    codes, tickers = text_codes(frame["ticker"])
    contracts = _contracts(tickers, calendar, settings)
    return OptionTrades(
        frame["sip_timestamp"].to_numpy(),
        frame["price"].to_numpy(),
        contracts.strike[codes],
        contracts.is_call[codes],
        contracts.expiry_ns[codes],
        contracts.standard[codes],
        contracts.expiry_estimated[codes],
    )


def _contracts(tickers: list[str], calendar: Sessions, settings: GreeksSettings) -> Contracts:
    """
    The contracts; one whose ticker names no date that exists has strike 0, which the kernel flags BAD_RATIO.

    Intake knows the form of a ticker, not the lengths of months; one such row must not cost the cell the others.
    """
    settled = frozenset(settings.am_settled)
    try:
        return contracts_of(tickers, calendar, policy=settings.expiry, am_settled=settled)
    except ValueError:
        nothing = Contracts(np.zeros(1), np.ones(1, dtype=bool), np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool),
                            np.zeros(1, dtype=bool))  # fmt: skip
        found = []
        for ticker in tickers:
            try:
                found.append(contracts_of([ticker], calendar, policy=settings.expiry, am_settled=settled))
            except ValueError:
                found.append(nothing)
        return Contracts._make(np.concatenate(arrays) for arrays in zip(*found, strict=True))


def _quotes(quotes: pl.DataFrame | None, first: int, last: int) -> UnderlyingQuotes:
    """Some of the quotes, which are in the order of time."""
    if quotes is None:
        none = np.zeros(0)
        return UnderlyingQuotes(none.astype(np.int64), none, none)
    part = quotes[first:last]
    return UnderlyingQuotes(
        part["sip_timestamp"].to_numpy(),
        part["bid_price"].fill_null(0.0).to_numpy(),
        part["ask_price"].fill_null(0.0).to_numpy(),
    )


def _rows(frame: pl.DataFrame, cell: np.ndarray, columns: GreeksColumns, arguments: GreeksArguments) -> pl.DataFrame:
    """The rows as they are written: where they are, the trade, volatility and Greeks, and the spot they stand on."""
    where = arguments.cells
    counts = arguments.trades.ranges["count"]
    first = np.cumsum(counts) - counts
    quoted = columns.spot_age_ns >= 0
    timed = columns.tau_years > 0.0

    def only(values: np.ndarray, there: np.ndarray) -> pl.Series:
        return pl.select(pl.when(pl.Series(there)).then(pl.Series(values))).to_series()

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
            "ordinal": (np.arange(frame.height) - first[cell]).astype(np.uint32),
            **{
                name: only(getattr(columns, name), columns.usable)
                for name in ("iv", "delta", "gamma", "vega", "theta", "rho")
            },
            "tau_years": only(columns.tau_years, timed),
            "rate": only(columns.rate, timed),
            "spot": only(columns.spot, columns.spot > 0.0),
            "spot_bid": only(columns.spot_bid, quoted),
            "spot_ask": only(columns.spot_ask, quoted),
            "spot_ts": only(columns.spot_ts, quoted),
            "spot_age_ns": only(columns.spot_age_ns, quoted),
            "flags": columns.flags,
            "usable": columns.usable,
        }
    )
