"""
Which rows of a typed frame are kept: the one judge for the fast and the exact reader.

Rules, in order; a row is counted under the first that it breaks:

- an option ticker that is not in OPRA form (``malformed_option_ticker``)
- a time below 0 (``negative_sip_timestamp``), a time outside the session's local day (``other_day``)
- a price or size that is NaN, below 0, or 2**53 and above (``not_a_number_…``, ``negative_…``, ``overflowing_…``); a trade's price
  of 0 (``zero_price``). A trade's size may be 0 (official opening and closing prices, corrections), and so may any
  price and size of a quote (a side without interest)
- a ticker that nobody wants (counted as unwanted, not as rejected)

A missing value never gets here: it shows as null, and only the exact reader can tell a blank from a broken line. This
module must never read a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engines.feeds.file_columns import (
    CODES_PATTERN,
    CONTRACT_PATTERN,
    ID_BYTES_MAX,
    OPTION_TICKER_PATTERN,
    TICKER_PATTERN,
    columns_of,
    frame_types,
)
from engines.feeds.pass_report import PassReport
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

_TOO_LARGE: Final = 2.0**53
"""From here on a double no longer counts by ones; no price or size is that large."""

_CODES: Final = re.compile(CODES_PATTERN)
_CONTRACT: Final = re.compile(CONTRACT_PATTERN)

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


class Doubtful(Exception):
    """The frame holds something that only a look at its lines can judge."""


def ticker_runs(tickers: pl.Series) -> tuple[IntArray, pl.Series]:
    """
    Runs of equal tickers: row of each run's start, int64[runs], and each run's ticker.

    Args:
        tickers: series of :func:`engines.feeds.file_columns.texts` without nulls.
    """
    if not len(tickers):
        return np.empty(0, np.int64), tickers
    numbers = tickers.to_physical().to_numpy()
    starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(numbers[1:] != numbers[:-1]) + 1))
    return starts, tickers.gather(starts)


class RowChecks:
    """Judges the frames of one file and counts in its report."""

    def __init__(
        self,
        dataset: Dataset,
        window: SessionWindow,
        report: PassReport,
        wanted: Callable[[str], bool] | None,
    ) -> None:
        self._dataset = dataset
        self._columns = columns_of(dataset)
        self._floats = self._columns.not_negative + self._columns.positive
        self._window = window
        self._report = report
        self._wanted = wanted
        self._ticker = re.compile(OPTION_TICKER_PATTERN if dataset.of_options else TICKER_PATTERN)
        self._plain_codes: set[str] = set()
        """Code lists that were looked at and are good as they are."""

    def accept(self, raw: pl.DataFrame, *, by_line: bool = False) -> pl.DataFrame:
        """
        The rows to keep, with all columns of the dataset, absent ones at their default (0 or '').

        Args:
            raw: the columns that the file has, in their types; blank fields are null.
            by_line: each line was looked at, so an infinite value is a value and not the digits of a broken line.

        Raises:
            Doubtful: a required value is null, a ticker, code list or id is off its pattern, or a value is infinite;
                nothing was counted.
        """
        if any(raw[name].null_count() for name in self._columns.required):
            raise Doubtful
        starts, heads = ticker_runs(raw["ticker"])
        names = heads.unique(maintain_order=True).cast(pl.String).to_list()
        if not all(map(self._ticker.fullmatch, names)):
            raise Doubtful
        if not by_line and any(np.isinf(raw[name].to_numpy()).any() for name in self._floats):
            raise Doubtful
        frame = self._completed(raw)
        kept = self._good_values(frame, starts, heads, names)
        if self._wanted is not None:
            kept = self._only_wanted(kept, frame.height, starts, heads, names)
        if kept is not None:
            frame = frame.filter(pl.Series(kept))
        self._report.rows_kept += frame.height
        return frame

    def _completed(self, raw: pl.DataFrame) -> pl.DataFrame:
        """All columns in order, without nulls, code lists without blanks inside."""
        made: list[pl.Series] = []
        for name, dtype in frame_types(self._dataset).items():
            default = 0 if dtype.is_numeric() else ""
            if name not in raw.columns:
                made.append(_repeated(default, dtype, raw.height, name))
                continue
            values = raw[name].cast(dtype)
            if values.null_count():
                values = _filled(values, default)
            if name in self._columns.codes:
                values = self._normal_codes(values)
            elif name == "id" and (values.str.len_bytes().max() or 0) > ID_BYTES_MAX:  # type: ignore[operator]
                raise Doubtful
            made.append(values)
        return pl.DataFrame(made)

    def _normal_codes(self, values: pl.Series) -> pl.Series:
        """Code lists as sent, without blanks inside; refused where anything else is in them."""
        fresh = [text for text in values.unique().cast(pl.String).to_list() if text not in self._plain_codes]
        if not all(map(_CODES.fullmatch, fresh)):
            raise Doubtful
        if any(" " in text for text in fresh):
            return values.cast(pl.String).str.replace_all(" ", "", literal=True).cast(values.dtype)
        self._plain_codes.update(fresh)
        return values

    def _good_values(
        self, frame: pl.DataFrame, starts: IntArray, heads: pl.Series, names: list[str]
    ) -> BoolArray | None:
        """Mask of rows whose values are good, or None where all are; the others are counted by reason."""
        window = self._window
        times = frame["sip_timestamp"].to_numpy()
        floats = [(name, frame[name].to_numpy()) for name in self._floats]
        malformed = [name for name in names if not _CONTRACT.fullmatch(name)] if self._dataset.of_options else []
        in_day = not len(times) or bool(times.min() >= window.day_start_ns and times.max() < window.day_end_ns)
        fair = all(_within(values, positive=name in self._columns.positive) for name, values in floats)
        if in_day and fair and not malformed:
            self._report.rows_of_day += frame.height
            return None
        of_day = (times >= window.day_start_ns) & (times < window.day_end_ns)
        self._report.rows_of_day += int(of_day.sum())
        bad_ticker = np.repeat(heads.cast(pl.String).is_in(malformed).to_numpy(), _lengths(starts, frame.height))
        rules = [("malformed_option_ticker", bad_ticker), ("negative_sip_timestamp", times < 0), ("other_day", ~of_day)]
        for name, values in floats:
            rules += [(f"not_a_number_{name}", np.isnan(values)), (f"negative_{name}", values < 0)]
            rules += [(f"overflowing_{name}", values >= _TOO_LARGE)]
            rules += [(f"zero_{name}", values == 0)] if name in self._columns.positive else []
        kept = np.ones(frame.height, np.bool_)
        for reason, broken in rules:
            self._report.reject(reason, int((broken & kept).sum()))
            kept &= ~broken
        return kept

    def _only_wanted(
        self, kept: BoolArray | None, rows: int, starts: IntArray, heads: pl.Series, names: list[str]
    ) -> BoolArray | None:
        """The mask without tickers that nobody wants, whose rows are counted."""
        wanted = self._wanted
        unwanted = [name for name in names if wanted is not None and not wanted(name)]
        if not unwanted:
            return kept
        drop = np.repeat(heads.cast(pl.String).is_in(unwanted).to_numpy(), _lengths(starts, rows))
        kept = np.ones(rows, np.bool_) if kept is None else kept
        self._report.rows_unwanted += int((drop & kept).sum())
        result: BoolArray = kept & ~drop
        return result


def _within(values: NDArray[np.float64], *, positive: bool) -> bool:
    """True when all values are finite and not negative (above 0 where positive); a NaN makes both bounds false."""
    if not len(values):
        return True
    lowest = values.min()
    return bool((lowest > 0 if positive else lowest >= 0) and values.max() < _TOO_LARGE)


def _lengths(starts: IntArray, rows: int) -> IntArray:
    return np.diff(starts, append=rows)


def _filled(values: pl.Series, default: str | int) -> pl.Series:
    if values.null_count() == len(values):
        return _repeated(default, values.dtype, len(values), values.name)
    return values.fill_null(default)


def _repeated(value: str | int, dtype: pl.DataType, rows: int, name: str) -> pl.Series:
    return pl.Series(name, [value], dtype=dtype).new_from_index(0, rows)
