"""
One task of a live engine in a worker: spooled minutes to one artifact and the staged cells of their session.

Rows go the way of a flat file's: canonical order, the same hash, the same records, so that live cells and those of the
file of the next day are equal where their rows are. A cell that held rows before is made of them and the new ones. This
module must never know the state directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from engines.contract import ArtifactFile, Batch, CellBlock, Task, TaskFailed, Workplace
from engines.derived_rows import InputRows, read_inputs
from engines.feeds.session_window import SessionWindow
from engines.live_partial import PartialWindows
from engines.raw_pass import PARSER_VERSION, CellSink
from ledger.columns import WINDOW_NS, Column, Dataset, Flag, OptionRows, Source
from ledger.content import checksum_of
from ledger.roots import symbol_of

if TYPE_CHECKING:
    import polars

    from engines.feeds.chunks import Chunk

PART_ROWS: Final = 1_000_000
"""Rows in memory at once; a symbol is never divided."""
BEFORE_OPEN: Final = -1
"""Minute of the 60 s before the open, whose quotes belong to the first window."""
MADE: Final = np.dtype([("symbol", "<u4"), ("minute", "<i4"), ("checksum", "<u4")])
TRADED: Final = np.dtype([("ticker", "<u4"), ("minute", "<i4"), ("previous", "<f8"), ("last", "<f8")])
"""One instrument in one minute: the price before its first trade there (NaN for none), and that of its last."""


@dataclass(frozen=True, slots=True)
class Before:
    """
    The trade before the first one of an instrument in a minute, as the ledger knows it: arrays [n].

    ``minutes`` are those asked about, from the open; ``found`` those of the trade before, its price in ``prices``.
    """

    tickers: tuple[str, ...]
    minutes: np.ndarray
    found: np.ndarray
    prices: np.ndarray


@dataclass(frozen=True, slots=True)
class HeldCells:
    """Cells that are made again with what they hold: arrays [n], and where their rows are."""

    symbols: tuple[str, ...]
    minutes: np.ndarray
    rows: InputRows
    """Ranges, no order; ``symbol`` and ``minute`` of a range are not looked at."""


@dataclass(frozen=True, slots=True)
class LiveArguments:
    """What one task makes: plain, picklable values."""

    dataset: Dataset
    window: SessionWindow
    option_rows: OptionRows
    source: Source
    files: tuple[str, ...]
    """Of :mod:`engines.feeds.minute_spool`."""
    held: HeldCells | None
    before: Before | None
    """For trades; None for quotes."""
    partial: PartialWindows
    """Windows that a gap overlaps."""
    marked: tuple[tuple[str, int, int], ...] = ()
    """(symbol, minute, flags) that cells get beside those of gaps."""
    skipped: tuple[tuple[str, int], ...] = ()
    """(symbol, minute) of cells that get no rows: an operator took away what they had."""


@dataclass(slots=True)
class LiveResult:
    """What the daemon needs beside the cells."""

    symbols: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """Rows that came: in the session, outside it, and the volume outside."""
    outside: dict[str, float] = field(default_factory=dict)
    redelivered: int = 0
    skipped: int = 0
    """Rows of cells that get none."""
    cell_symbols: list[str] = field(default_factory=list)
    cells: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=MADE))
    """MADE[n], the cells of the batch; ``symbol`` is an index into ``cell_symbols``."""
    tickers: list[str] = field(default_factory=list)
    traded: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=TRADED))
    """TRADED[n], of trades, those of minutes before the open included."""


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Compute one task.

    Raises:
        TaskFailed: the rows that a cell holds cannot be read any more, or a spooled file is gone.
    """
    from engines.feeds.canonical_order import RowOrder
    from engines.feeds.chunks import outside_chunk
    from engines.feeds.pass_report import PassReport

    arguments: LiveArguments = task.arguments
    column, session = arguments.dataset.column, arguments.window.date
    stem = arguments.dataset.value.partition("/")[0]
    path = (
        workplace.artifact_root / column.value.removesuffix("_ref") / session / f"{workplace.batch_name}-{stem}.parquet"
    )
    staged = workplace.temporary / f"{workplace.batch_name}-cells.npy"
    sink = CellSink(
        column, arguments.dataset, arguments.window, path, staged, _metadata(arguments), source=arguments.source
    )
    result, report, outside = LiveResult(), PassReport(), []
    order = RowOrder(arguments.dataset, arguments.window, _symbol_of(arguments.option_rows), report)
    links = _Links(arguments, result) if arguments.before is not None else None
    try:
        for frame in _frames(arguments, workplace, result):
            chunk, left = order.arrange(frame, None)
            if links is not None:
                chunk = links.linked(chunk, left)
            if chunk is not None:
                sink.write(chunk)
            lead = _lead(left, arguments.window) if column is Column.QUOTE_REF else left.clear()
            if lead.height:
                outside.append(lead)
            if left.height and column is Column.TRADE_REF:
                sink.count_auctions(left)
        if outside:
            sink.write(outside_chunk(_one(outside), arguments.window))
    except BaseException:
        sink.abort()
        raise
    return _batch(arguments, workplace, sink, result)


def _lead(frame: polars.DataFrame, window: SessionWindow) -> polars.DataFrame:
    """The quotes of the 60 s before the open; what else lies outside the session is counted and comes with the file."""
    import polars as pl

    return frame.filter(pl.col("sip_timestamp").is_between(window.open_ns - WINDOW_NS, window.open_ns, closed="left"))


def _one(frames: list[polars.DataFrame]) -> polars.DataFrame:
    import polars as pl

    # Parts are whole symbols, ascending, and so are the rows of each.
    return pl.concat(frames)


def _metadata(arguments: LiveArguments) -> dict[str, str]:
    from engines.feeds.file_columns import size_unit

    return {
        "m17.dataset": arguments.dataset.value,
        "m17.session": arguments.window.date,
        "m17.size_unit": size_unit(arguments.dataset, arguments.window.date),
        "m17.source": arguments.source.word,
        "m17.parser_version": str(PARSER_VERSION),
    }


def _symbol_of(option_rows: OptionRows) -> Callable[[str], str | None]:
    def of(ticker: str) -> str | None:
        return symbol_of(ticker, option_rows)

    return of


def _frames(arguments: LiveArguments, workplace: Workplace, result: LiveResult) -> Iterator[polars.DataFrame]:
    """Rows of whole symbols, spooled and held ones, in parts of about PART_ROWS rows, symbols ascending."""
    import polars as pl

    from engines.feeds.spooled_rows import Spooled, redelivered_once

    held = _held(arguments, workplace)
    try:
        spooled = Spooled([Path(one) for one in arguments.files], arguments.dataset)
    except FileNotFoundError as error:
        raise TaskFailed(
            f"{error.filename} is gone", hint="the minute comes with the flat file, or over REST"
        ) from error
    names = [symbol_of(ticker, arguments.option_rows) for ticker in spooled.tickers]
    extra = [] if held is None else held["symbol"].unique().to_list()
    symbols = sorted({*names, *extra})
    place = {name: index for index, name in enumerate(symbols)}
    of_ticker = np.array([place[name] for name in names], dtype=np.int64)
    rows = np.bincount(of_ticker, weights=spooled.rows, minlength=len(symbols)).astype(np.int64)
    if held is not None:
        for name, count in held.group_by("symbol").len().iter_rows():
            rows[place[name]] += count
    part = np.cumsum(rows) // PART_ROWS
    for one in np.unique(part):
        mine = part == one
        chosen = mine[of_ticker]
        frame = spooled.frame(chosen)
        result.redelivered += int(spooled.rows[chosen].sum()) - frame.height
        frame = _without_skipped(frame, arguments, result)
        if held is not None:
            some = held.filter(pl.col("symbol").is_in([name for name in symbols if mine[place[name]]]))
            both = pl.concat([some.select(frame.columns), frame])
            whole = redelivered_once(both, arguments.dataset)
            result.redelivered += both.height - whole.height
            _count(whole, some, arguments, result)
            frame = whole
        else:
            _count(frame, None, arguments, result)
        if frame.height:
            yield frame


def _without_skipped(frame: polars.DataFrame, arguments: LiveArguments, result: LiveResult) -> polars.DataFrame:
    import polars as pl

    if not arguments.skipped or not frame.height:
        return frame
    tickers = frame["ticker"].unique().to_list()
    symbols = {ticker: symbol_of(ticker, arguments.option_rows) for ticker in tickers}
    at = (frame["sip_timestamp"].to_numpy() - arguments.window.open_ns) // WINDOW_NS
    pairs = set(arguments.skipped)
    names = [symbols[ticker] for ticker in frame["ticker"].to_list()]
    kept = np.array([pair not in pairs for pair in zip(names, at.tolist(), strict=True)], dtype=bool)
    result.skipped += int((~kept).sum())
    return frame.filter(pl.Series(kept))


def _held(arguments: LiveArguments, workplace: Workplace) -> polars.DataFrame | None:
    """The rows that cells hold, with their symbol."""
    import polars as pl

    from engines.feeds.file_columns import frame_types

    if arguments.held is None:
        return None
    types = frame_types(arguments.dataset)
    held = read_inputs(workplace.artifact_root, arguments.held.rows, ["symbol", *types])[0]
    return (
        None
        if held is None
        else held.with_columns(
            pl.col("symbol").cast(pl.String), *(pl.col(name).cast(kind) for name, kind in types.items())
        )
    )


def _count(
    frame: polars.DataFrame, held: polars.DataFrame | None, arguments: LiveArguments, result: LiveResult
) -> None:
    """Add the rows that are new to the counts by symbol."""
    for sign, rows in ((1, frame), (-1, held)):
        if rows is None or not rows.height:
            continue
        for ticker, rows_in, rows_out, volume in _counted(rows, arguments.window):
            symbol = symbol_of(ticker, arguments.option_rows)
            had = result.symbols.get(symbol, (0, 0, 0.0))
            result.symbols[symbol] = (had[0] + sign * rows_in, had[1] + sign * rows_out, had[2] + sign * volume)


def _counted(frame: polars.DataFrame, window: SessionWindow) -> Iterator[tuple[str, int, int, float]]:
    """(ticker, rows in the session, rows outside it, volume outside it)."""
    import polars as pl

    inside = pl.col("sip_timestamp").is_between(window.open_ns, window.close_ns, closed="left")
    size = pl.col("size") if "size" in frame.columns else pl.lit(0.0)
    volume = pl.when(inside).then(0.0).otherwise(size).sum()
    found = frame.group_by("ticker", maintain_order=True).agg(
        inside.sum().alias("inside"), (~inside).sum().alias("outside"), volume.alias("volume")
    )
    for ticker, rows_in, rows_out, total in found.iter_rows():
        yield ticker, rows_in, rows_out, float(total or 0.0)


class _Links:
    """
    Previous prices of live trades: of the row before in the minute, else of the instrument's trade before it.

    That is the last one of the task's own minutes before, or what the ledger knows, whichever is later.
    """

    def __init__(self, arguments: LiveArguments, result: LiveResult) -> None:
        before = arguments.before
        assert before is not None
        self._window = arguments.window
        self._known = {
            (ticker, minute): (found, price)
            for ticker, minute, found, price in zip(
                before.tickers, before.minutes.tolist(), before.found.tolist(), before.prices.tolist(), strict=True
            )
        }
        self._result = result
        self._place: dict[str, int] = {}

    def linked(self, chunk: Chunk | None, outside: polars.DataFrame) -> Chunk | None:
        """The chunk with its previous prices; notes which instruments traded when."""
        import polars as pl

        inside = None if chunk is None else chunk.frame
        groups = [_groups(frame, self._window) for frame in (inside, outside) if frame is not None and frame.height]
        if not groups:
            return chunk
        tickers = [ticker for each in groups for ticker in each.tickers]
        minutes = np.concatenate([each.minutes for each in groups])
        last = np.concatenate([each.last for each in groups])
        codes = {ticker: index for index, ticker in enumerate(sorted(set(tickers)))}
        code = np.array([codes[ticker] for ticker in tickers], dtype=np.int64)
        previous = self._previous(tickers, code, minutes, last)
        self._note(tickers, minutes, previous, last)
        if chunk is None:
            return None
        starts, prices = groups[0].starts, chunk.frame["price"].to_numpy()
        column = np.empty(len(prices), dtype=np.float64)
        column[1:] = prices[:-1]
        column[starts] = previous[: len(starts)]
        frame = chunk.frame.with_columns(pl.Series("previous_price", column, nan_to_null=True))
        return replace(chunk, frame=frame)

    def _previous(self, tickers: list[str], code: np.ndarray, minutes: np.ndarray, last: np.ndarray) -> np.ndarray:
        """f64[groups]: the price before each group's first trade; NaN for none."""
        order = np.lexsort((minutes, code))
        previous = np.full(len(code), np.nan)
        own = np.full(len(code), np.iinfo(np.int64).min)
        same = code[order[1:]] == code[order[:-1]]
        later, earlier = order[1:][same], order[:-1][same]
        previous[later], own[later] = last[earlier], minutes[earlier]
        for index, ticker in enumerate(tickers):
            known = self._known.get((ticker, int(minutes[index])))
            if known is not None and known[0] > own[index]:
                previous[index] = known[1]
        return previous

    def _note(self, tickers: list[str], minutes: np.ndarray, previous: np.ndarray, last: np.ndarray) -> None:
        traded = np.zeros(len(tickers), dtype=TRADED)
        traded["ticker"] = [self._place.setdefault(ticker, len(self._place)) for ticker in tickers]
        traded["minute"], traded["previous"], traded["last"] = minutes, previous, last
        self._result.traded = np.concatenate([self._result.traded, traded])
        self._result.tickers = list(self._place)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Runs of one instrument in one minute: arrays [n]."""

    starts: np.ndarray
    tickers: list[str]
    minutes: np.ndarray
    last: np.ndarray


def _groups(frame: polars.DataFrame, window: SessionWindow) -> _Groups:
    from engines.feeds.canonical_order import minutes_from_open
    from engines.feeds.row_checks import ticker_runs

    minute = minutes_from_open(frame["sip_timestamp"].to_numpy(), window).astype(np.int64)
    runs, _ = ticker_runs(frame["ticker"])
    starts = np.union1d(runs, np.flatnonzero(np.diff(minute)) + 1)
    ends = np.append(starts[1:], frame.height) - 1
    prices = frame["price"].to_numpy()
    return _Groups(starts, frame["ticker"].gather(starts).to_list(), minute[starts], prices[ends])


def _batch(arguments: LiveArguments, workplace: Workplace, sink: CellSink, result: LiveResult) -> Batch:
    written = sink.finish()
    count = sink.finish_cells(_flags_of(arguments, sink))
    artifacts = []
    if written is not None:
        uri = str(written.path.relative_to(workplace.artifact_root))
        artifacts.append(ArtifactFile(uri, written.checksum, written.bytes, written.rows, sink.column))
    names = sorted(sink.symbols, key=sink.symbols.__getitem__)
    # Who has rows outside the session only has no cell of them, and belongs to the session all the same.
    seen = {symbol for symbol, (rows_in, rows_out, _) in result.symbols.items() if rows_in > 0 or rows_out > 0}
    names += sorted(seen - sink.symbols.keys())
    result.cell_symbols, result.outside = names, sink.outside_facts
    result.cells = np.zeros(count, dtype=MADE)
    if count:
        cells = np.load(sink.staged.path, mmap_mode="r")
        result.cells["symbol"], result.cells["minute"] = cells["symbol"], cells["minute"]
        result.cells["checksum"] = checksum_of(np.array(cells["record"]["content_hash"]))
    return Batch([CellBlock(sink.column, names, sink.staged.path, count, arguments.source)], artifacts, report=result)


def _flags_of(arguments: LiveArguments, sink: CellSink) -> Callable[[np.ndarray], np.ndarray]:
    """u8[cells], the flags of staged cells beside no rows: partial where a gap overlaps, and what they are marked with."""
    kept = {
        (sink.symbols[symbol], minute): flags for symbol, minute, flags in arguments.marked if symbol in sink.symbols
    }
    masks = {code: arguments.partial.own(name) for name, code in sink.symbols.items()}
    own = {code: mask for code, mask in masks.items() if mask is not None}

    def of(cells: np.ndarray) -> np.ndarray:
        minutes = cells["minute"].astype(np.int64)
        partial = arguments.partial.everywhere[minutes]
        for code, mask in own.items():
            mine = cells["symbol"] == code
            partial[mine] |= mask[minutes[mine]]
        flags = np.where(partial, np.uint8(Flag.PARTIAL), np.uint8(0))
        if kept:
            pairs = zip(cells["symbol"].tolist(), minutes.tolist(), strict=True)
            flags |= np.array([kept.get(pair, 0) for pair in pairs], dtype=np.uint8)
        return flags

    return of
