"""
The columns of the four upstream files: which are needed, what type they get and how rows are ordered.

Files are read by column name, because names, case and columns differ by dataset and by age. This module must never read
a file; it only says what one should look like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from ledger.columns import Dataset

SHARES_SINCE: Final = "2025-11-03"
"""First session whose stock quotes count shares; before it they count round lots (predecessor facts, section 5.2)."""

TICKER_PATTERN: Final = r"^[A-Z0-9][A-Za-z0-9./+=^$#_-]{0,31}$"
"""A stock's ticker; anything else in that place means the line could not be read."""
OPTION_TICKER_PATTERN: Final = r"^O:[!-~]{1,30}$"
"""What an option's ticker looks like from afar; anything else means the line could not be read."""
CONTRACT_PATTERN: Final = r"^O:[A-Z][A-Z0-9.]{0,5}[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])[CP][0-9]{8}$"
"""OPRA form: root, expiry, right, strike x1000. A readable ticker off this form is a rejected row."""
CODES_PATTERN: Final = r"^(-?[0-9]{1,6}( *, *-?[0-9]{1,6}){0,63})?$"
"""A comma list of condition or indicator codes, or nothing."""
ID_BYTES_MAX: Final = 64
"""Longest trade id that is believed."""


@dataclass(frozen=True, slots=True)
class FileColumns:
    """
    What the files of one dataset hold.

    Attributes:
        types: yielded columns and their types, in order.
        required: columns without which a file cannot be read.
        positive: float columns whose values must be above 0.
        not_negative: float columns whose values must be 0 or above.
        codes: string columns that hold comma lists of codes.
        rest: order of rows that agree in ticker, time and sequence. The hashed columns come first, then those that only
            make the order total.
        size: the column or columns that count shares, lots or contracts.
    """

    types: dict[str, pl.DataType]
    required: tuple[str, ...]
    positive: tuple[str, ...]
    not_negative: tuple[str, ...]
    codes: tuple[str, ...]
    rest: tuple[str, ...]
    size: tuple[str, ...]


_TRADES: Final = FileColumns(
    types={
        "ticker": pl.String(),
        "sip_timestamp": pl.Int64(),
        "sequence_number": pl.Int64(),
        "price": pl.Float64(),
        "size": pl.Float64(),
        "exchange": pl.Int32(),
        "conditions": pl.String(),
        "correction": pl.Int32(),
        "participant_timestamp": pl.Int64(),
        "id": pl.String(),
        "tape": pl.Int32(),
        "trf_id": pl.Int32(),
        "trf_timestamp": pl.Int64(),
    },
    required=("ticker", "sip_timestamp", "price", "size"),
    positive=("price",),
    not_negative=("size",),
    codes=("conditions",),
    rest=(
        *("price", "size", "exchange", "conditions", "correction"),
        *("participant_timestamp", "id", "tape", "trf_id", "trf_timestamp"),
    ),
    size=("size",),
)

_QUOTES: Final = FileColumns(
    types={
        "ticker": pl.String(),
        "sip_timestamp": pl.Int64(),
        "sequence_number": pl.Int64(),
        "bid_price": pl.Float64(),
        "bid_size": pl.Float64(),
        "bid_exchange": pl.Int32(),
        "ask_price": pl.Float64(),
        "ask_size": pl.Float64(),
        "ask_exchange": pl.Int32(),
        "conditions": pl.String(),
        "indicators": pl.String(),
        "participant_timestamp": pl.Int64(),
        "tape": pl.Int32(),
        "trf_timestamp": pl.Int64(),
    },
    required=("ticker", "sip_timestamp", "bid_price", "bid_size", "ask_price", "ask_size"),
    positive=(),
    not_negative=("bid_price", "bid_size", "ask_price", "ask_size"),
    codes=("conditions", "indicators"),
    rest=(
        *("bid_price", "bid_size", "bid_exchange", "ask_price", "ask_size", "ask_exchange"),
        *("conditions", "indicators", "participant_timestamp", "tape", "trf_timestamp"),
    ),
    size=("bid_size", "ask_size"),
)

_OF_DATASET: Final = {
    Dataset.STOCK_TRADES: _TRADES,
    Dataset.OPTION_TRADES: _TRADES,
    Dataset.STOCK_QUOTES: _QUOTES,
    Dataset.OPTION_QUOTES: _QUOTES,
}


def frame_types(dataset: Dataset) -> dict[str, pl.DataType]:
    """The columns of frames that readers of a dataset yield: the file's, tickers and code lists as :func:`texts`."""
    columns = columns_of(dataset)
    return {**columns.types, **dict.fromkeys(("ticker", *columns.codes), texts())}


def texts() -> pl.DataType:
    """
    Type of tickers and code lists in frames: few different texts, so their numbers stand in for them.

    Frames of all passes in a process agree on the numbers; they are forgotten, and given to other texts, when the last
    column of this type is gone. Who keeps numbers keeps a column, and for no longer than its pass.
    """
    return pl.Categorical(pl.Categories("flat file texts"))


def columns_of(dataset: Dataset) -> FileColumns:
    """
    The columns of a dataset's flat files.

    Raises:
        ValueError: the dataset has no flat files.
    """
    columns = _OF_DATASET.get(dataset)
    if columns is None:
        raise ValueError(f"{dataset} has no flat files")
    return columns


def is_trades(dataset: Dataset) -> bool:
    """True where rows are trades and get a ``previous_price``."""
    return columns_of(dataset) is _TRADES


def size_unit(dataset: Dataset, date: str) -> str:
    """
    What the sizes of a file count: ``shares``, ``round_lots`` or ``contracts``.

    Args:
        date: the session, ``YYYY-MM-DD``; stock quotes changed their unit on :data:`SHARES_SINCE`.
    """
    if dataset.of_options:
        return "contracts"
    if dataset is Dataset.STOCK_QUOTES and date < SHARES_SINCE:
        return "round_lots"
    return "shares"
