"""
The words: every name that travels between the rooms of M17, spelled once.

A column's name is at once the struct field, the wire string, the metric label and the CLI word. Integers are the bytes
on disk. This module is a leaf that everybody imports, so it must never import anything but the standard library.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag, StrEnum
from functools import cached_property
from typing import Final

SYMBOLS_MAX: Final = 10_000
"""Symbols a year; ids are u16 in order of first appearance."""
MINUTES_PER_SESSION: Final = 390
"""Dense stride of minute_idx per session; an early close uses the first 210."""
WINDOW_NS: Final = 60_000_000_000
"""Length of one window in nanoseconds."""


class LedgerKind(StrEnum):
    """Which of the two ledgers a column lives in; also the name of its folder."""

    TRADE = "trade"
    ENRICHMENT = "enrichment"


class Column(StrEnum):
    """One column of the ledger, in slot order: the first four are the trade ledger's, the other seven enrichment's."""

    RF_RATE_REF = "rf_rate_ref"
    TRADE_REF = "trade_ref"
    QUOTE_REF = "quote_ref"
    AGGRESSOR_REF = "aggressor_ref"
    GREEKS_REF = "greeks_ref"
    AGGS_1M = "aggs_1m"
    AGGS_5M = "aggs_5m"
    AGGS_10M = "aggs_10m"
    AGGS_30M = "aggs_30m"
    AGGS_1H = "aggs_1h"
    AGGS_4H = "aggs_4h"

    @property
    def ledger(self) -> LedgerKind:
        """The ledger this column belongs to."""
        return LedgerKind.TRADE if self in TRADE_COLUMNS else LedgerKind.ENRICHMENT

    @property
    def slot_index(self) -> int:
        """Position of the column's slot inside its row, from 0."""
        columns = TRADE_COLUMNS if self in TRADE_COLUMNS else ENRICHMENT_COLUMNS
        return columns.index(self)

    @property
    def payload_kind(self) -> PayloadKind:
        """The only kind of payload this column accepts."""
        return _KIND_OF_COLUMN[self]


class Status(IntEnum):
    """Status of a cell."""

    EMPTY = 0
    PENDING = 1
    FILLED = 2
    CLEARED = 3

    @cached_property
    def word(self) -> str:
        """Lower-case wire word."""
        return self.name.lower()


class Source(IntEnum):
    """Where a raw cell came from; a higher source supersedes a lower one. Derived cells carry NONE."""

    NONE = 0
    WEBSOCKET = 1
    REST = 2
    FLAT_FILE = 3

    @cached_property
    def word(self) -> str:
        """Lower-case wire word."""
        return self.name.lower()


class Flag(IntFlag):
    """Flags of a cell; see the design's table of flags."""

    NONE = 0
    NO_ROWS = 1
    WANTED = 2
    PARTIAL = 4
    SHORT = 8
    SUSPECT = 16

    @cached_property
    def _words(self) -> tuple[str, ...]:
        return tuple(str(flag.name).lower() for flag in _FLAG_BITS if self & flag)

    @property
    def words(self) -> list[str]:
        """Lower-case wire words of the bits that are set, lowest bit first."""
        return list(self._words)


class PayloadKind(IntEnum):
    """Kind of payload; selects the mapping file a payload_id counts in."""

    NONE = 0
    RF_RATE = 1
    TRADE = 2
    QUOTE = 3
    AGGRESSOR = 4
    GREEKS = 5
    AGGREGATE = 6

    @cached_property
    def word(self) -> str:
        """Lower-case wire word, also the stem of the mapping file's name."""
        return self.name.lower()


class Dataset(StrEnum):
    """The upstream datasets, by their flat-file prefix."""

    STOCK_TRADES = "us_stocks_sip/trades_v1"
    STOCK_QUOTES = "us_stocks_sip/quotes_v1"
    OPTION_TRADES = "us_options_opra/trades_v1"
    OPTION_QUOTES = "us_options_opra/quotes_v1"
    TREASURY_YIELDS = "fed/treasury-yields"

    @property
    def column(self) -> Column:
        """The column this dataset's rows fill."""
        if self in (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES):
            return Column.TRADE_REF
        if self in (Dataset.STOCK_QUOTES, Dataset.OPTION_QUOTES):
            return Column.QUOTE_REF
        return Column.RF_RATE_REF

    @property
    def of_options(self) -> bool:
        """True where the dataset's instruments are option contracts."""
        return self in (Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES)


class OptionRows(StrEnum):
    """How option tickers map to symbols; chosen when the state is made."""

    CHAIN = "chain"
    CONTRACT = "contract"


class SymbolClass(StrEnum):
    """What a symbol is; decides which columns apply to it."""

    STOCK = "stock"
    """A stock or ETF."""
    INDEX = "index"
    """An underlying that no stock dataset covers."""
    CHAIN = "chain"
    """All contracts of one option root."""
    CONTRACT = "contract"
    """One option contract."""


TRADE_COLUMNS: Final = (Column.RF_RATE_REF, Column.TRADE_REF, Column.QUOTE_REF, Column.AGGRESSOR_REF)
ENRICHMENT_COLUMNS: Final = (
    Column.GREEKS_REF,
    Column.AGGS_1M,
    Column.AGGS_5M,
    Column.AGGS_10M,
    Column.AGGS_30M,
    Column.AGGS_1H,
    Column.AGGS_4H,
)
AGGREGATE_MINUTES: Final = {
    Column.AGGS_1M: 1,
    Column.AGGS_5M: 5,
    Column.AGGS_10M: 10,
    Column.AGGS_30M: 30,
    Column.AGGS_1H: 60,
    Column.AGGS_4H: 240,
}
"""Length in minutes of each aggregate column's window."""
RAW_COLUMNS: Final = (Column.RF_RATE_REF, Column.TRADE_REF, Column.QUOTE_REF)
"""Columns that come from upstream; the others are derived from cells."""
UPSTREAM: Final = {
    Column.RF_RATE_REF: (),
    Column.TRADE_REF: (),
    Column.QUOTE_REF: (),
    Column.AGGRESSOR_REF: (Column.TRADE_REF, Column.QUOTE_REF),
    Column.GREEKS_REF: (Column.RF_RATE_REF, Column.TRADE_REF, Column.QUOTE_REF),
    **dict.fromkeys(AGGREGATE_MINUTES, (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF)),
}
"""Which columns each column is made from."""

_FLAG_BITS: Final = (Flag.NO_ROWS, Flag.WANTED, Flag.PARTIAL, Flag.SHORT, Flag.SUSPECT)
_KIND_OF_COLUMN: Final = {
    Column.RF_RATE_REF: PayloadKind.RF_RATE,
    Column.TRADE_REF: PayloadKind.TRADE,
    Column.QUOTE_REF: PayloadKind.QUOTE,
    Column.AGGRESSOR_REF: PayloadKind.AGGRESSOR,
    Column.GREEKS_REF: PayloadKind.GREEKS,
    **dict.fromkeys(AGGREGATE_MINUTES, PayloadKind.AGGREGATE),
}

assert len(Column) == len(TRADE_COLUMNS) + len(ENRICHMENT_COLUMNS) == 11
