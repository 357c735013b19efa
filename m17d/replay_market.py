"""
What the replay server plays: the rows of one session of one asset class, in order of time, and their JSON.

Rows are read through the flat-file reader, kept as typed frames sorted by ticker and time, and turned into the
websocket's events a slice at a time, so that a large session costs its rows and not its JSON. The order of play is that
of time, then sequence, then kind; nothing else enters it. This module must never open a socket.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset
from m17d.replay_faults import Faults

if TYPE_CHECKING:
    import polars

NEW_YORK: Final = ZoneInfo("America/New_York")
MILLISECOND_NS: Final = 1_000_000
_PLAIN: Final = r"^[ !#-\[\]-~]*$"


class NothingToPlay(Exception):
    """There is no file of the session."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one dataset by ticker, time and sequence; ``first`` and ``count`` say where each ticker's lie."""

    dataset: Dataset
    frame: polars.DataFrame
    tickers: list[str]
    code: NDArray[np.int32]
    first: NDArray[np.int64]
    count: NDArray[np.int64]

    @property
    def is_trades(self) -> bool:
        """Trades or quotes."""
        return self.dataset in (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES)

    def of_ticker(self, ticker: str) -> polars.DataFrame:
        """The rows of one ticker in order of time; none where it is not known."""
        at = np.searchsorted(np.array(self.tickers), ticker) if self.tickers else 0
        if at >= len(self.tickers) or self.tickers[at] != ticker:
            return self.frame.head(0)
        return self.frame.slice(int(self.first[at]), int(self.count[at]))


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """
    The events of one asset class in the order of play.

    Attributes:
        trades, quotes: the rows.
        is_quote: bool[events].
        row: i64[events], index into trades or quotes.
        play_ns: i64[events], when each is sent, ascending, ns UTC.
    """

    trades: Rows
    quotes: Rows
    is_quote: NDArray[np.bool_]
    row: NDArray[np.int64]
    play_ns: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of events."""
        return len(self.row)

    def texts(
        self, begin: int, end: int, trades: NDArray[np.bool_], quotes: NDArray[np.bool_]
    ) -> tuple[list[str], NDArray[np.int64]]:
        """
        The wanted events of a slice as JSON objects, and their positions on the tape.

        Args:
            trades, quotes: bool[tickers] of either, which are wanted.
        """
        is_quote, row = self.is_quote[begin:end], self.row[begin:end]
        wanted = np.zeros(end - begin, np.bool_)
        wanted[is_quote] = quotes[self.quotes.code[row[is_quote]]]
        wanted[~is_quote] = trades[self.trades.code[row[~is_quote]]]
        at = np.flatnonzero(wanted)
        made = np.empty(len(at), np.object_)
        of_quotes = is_quote[at]
        for rows, mine, text in ((self.quotes, of_quotes, quote_texts), (self.trades, ~of_quotes, trade_texts)):
            if mine.any():
                made[mine] = text(rows.frame[row[at[mine]]])
        return made.tolist(), at + begin


def session_of(date: str) -> SessionWindow:
    """
    The day of a session in New York, as a feed needs it to read a file; always 390 windows from 09:30.

    Raises:
        ValueError: not a date.
    """
    day = datetime.date.fromisoformat(date)

    def at(day: datetime.date, hour: int, minute: int) -> int:
        local = datetime.datetime.combine(day, datetime.time(hour, minute), NEW_YORK)
        return int(local.timestamp()) * 1_000_000_000

    return SessionWindow(date, at(day, 9, 30), 390, at(day, 0, 0), at(day + datetime.timedelta(days=1), 0, 0))


def file_of(source: Path, dataset: Dataset, date: str) -> Path:
    """Where a flat file of the session lies: below ``source`` or below ``source/flatfiles``."""
    name = f"{dataset}/{date[:4]}/{date[5:7]}/{date}.csv.gz"
    below = source / "flatfiles"
    return (below if below.is_dir() else source) / name


def load_tape(
    source: Path,
    date: str,
    *,
    of_options: bool,
    faults: Faults,
    wanted: Callable[[str], bool] | None,
    milliseconds: bool,
) -> Tape:
    """
    Read the trades and quotes of an asset class; a file that is not there has no rows.

    Raises:
        SourceDamaged: a file is damaged.
    """
    datasets = (
        (Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES) if of_options else (Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES)
    )
    trades, quotes = (_load(source, each, date, wanted, milliseconds=milliseconds) for each in datasets)
    times = np.concatenate([rows.frame["sip_timestamp"].to_numpy() for rows in (trades, quotes)])
    sequence = np.concatenate([rows.frame["sequence_number"].to_numpy() for rows in (trades, quotes)])
    is_quote = np.repeat([False, True], [len(trades.code), len(quotes.code)])
    row = np.concatenate([np.arange(len(trades.code)), np.arange(len(quotes.code))])
    play = times - times % MILLISECOND_NS
    order = np.lexsort((is_quote, sequence, play))
    if faults.late:
        play = play.copy()
        play[order[faults.late - 1 :: faults.late]] += round(faults.late_amount * 1e9)
        order = order[np.argsort(play[order], kind="stable")]
    return Tape(trades, quotes, is_quote[order], row[order], play[order])


def _load(
    source: Path, dataset: Dataset, date: str, wanted: Callable[[str], bool] | None, *, milliseconds: bool
) -> Rows:
    import polars as pl

    from engines.feeds.file_columns import columns_of
    from engines.feeds.flatfile import NeedsExactPass, read_batches
    from engines.feeds.pass_report import PassReport

    path, window = file_of(source, dataset, date), session_of(date)
    frames: list[pl.DataFrame] = []
    if path.exists():
        try:
            frames = list(read_batches(path, dataset, window, PassReport(), wanted=wanted))
        except NeedsExactPass:
            frames = list(read_batches(path, dataset, window, PassReport(), wanted=wanted, exact=True))
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=columns_of(dataset).types)
    frame = frame.cast({pl.Categorical: pl.String})
    if dataset is Dataset.OPTION_TRADES:
        # Files of option trades carry no sequence; the feed does, and redelivered events are known by it.
        frame = frame.sort("sip_timestamp", "ticker", maintain_order=True).with_columns(
            sequence_number=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
        )
    if milliseconds:
        frame = frame.with_columns(pl.col("sip_timestamp") // MILLISECOND_NS * MILLISECOND_NS)
    frame = frame.sort("ticker", "sip_timestamp", "sequence_number", maintain_order=True)
    runs = frame["ticker"].rle().struct.unnest()
    count = runs["len"].to_numpy().astype(np.int64)
    tickers = runs["value"].to_list()
    code = np.repeat(np.arange(len(tickers), dtype=np.int32), count)
    return Rows(dataset, frame, tickers, code, np.cumsum(count) - count, count)


def trade_texts(frame: polars.DataFrame) -> list[str]:
    """Trades as the websocket's JSON objects, times in ms."""
    import polars as pl

    frame = frame.with_columns(id=_escaped(frame["id"]))
    text = pl.concat_str(
        pl.lit('{"ev":"T","sym":"'), "ticker", pl.lit('","x":'), "exchange",
        _unless("id", "", '"i":"', '"'), _unless("tape", 0, '"z":'), pl.lit(',"p":'), "price",
        pl.lit(',"s":'), _number("size"), _unless("conditions", "", '"c":[', "]"),
        pl.lit(',"t":'), pl.col("sip_timestamp") // MILLISECOND_NS, _unless("sequence_number", 0, '"q":'),
        _unless("trf_id", 0, '"trfi":'), _unless("trf_timestamp", 0, '"trft":', divided=MILLISECOND_NS), pl.lit("}"),
    )  # fmt: skip
    return frame.select(text.alias("text"))["text"].to_list()


def quote_texts(frame: polars.DataFrame) -> list[str]:
    """Quotes as the websocket's JSON objects, times in ms; one condition is a number, several are a list."""
    import polars as pl

    several = pl.col("conditions").str.contains(",", literal=True)
    text = pl.concat_str(
        pl.lit('{"ev":"Q","sym":"'), "ticker", pl.lit('","bx":'), "bid_exchange", pl.lit(',"bp":'), "bid_price",
        pl.lit(',"bs":'), _number("bid_size"), pl.lit(',"ax":'), "ask_exchange", pl.lit(',"ap":'), "ask_price",
        pl.lit(',"as":'), _number("ask_size"),
        pl.when(several).then(_unless("conditions", "", '"c":[', "]")).otherwise(_unless("conditions", "", '"c":')),
        _unless("indicators", "", '"i":[', "]"), pl.lit(',"t":'), pl.col("sip_timestamp") // MILLISECOND_NS,
        _unless("sequence_number", 0, '"q":'), _unless("tape", 0, '"z":'), pl.lit("}"),
    )  # fmt: skip
    return frame.select(text.alias("text"))["text"].to_list()


def _unless(name: str, absent: str | int, before: str, after: str = "", *, divided: int = 1) -> polars.Expr:
    """``,"key":value``, or nothing where the column has its default."""
    import polars as pl

    value = pl.col(name) // divided if divided > 1 else pl.col(name)
    filled = pl.concat_str(pl.lit("," + before), value, pl.lit(after))
    return pl.when(pl.col(name) == absent).then(pl.lit("")).otherwise(filled)


def _number(name: str) -> polars.Expr:
    """A size, whole where it is whole."""
    import polars as pl

    value = pl.col(name)
    whole = value.cast(pl.Int64, strict=False)
    return pl.when(value == whole).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))


def _escaped(texts: polars.Series) -> polars.Series:
    import polars as pl

    if texts.str.contains(_PLAIN).all():
        return texts
    return pl.Series("id", [json.dumps(text)[1:-1] for text in texts.to_list()], dtype=pl.String)
