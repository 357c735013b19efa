"""
One refill in a fetcher: windows of some symbols over REST, to one artifact and the staged cells of their session.

Rows go the way of a flat file's: canonical order, the same hash, the same records. A trade's price before is taken from
the cells before the window, or asked for where there are none. Symbols that were fetched whole before a failure are kept,
the others are not there at all. This module must never know the state directory, nor print or return the key.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from engines.contract import ArtifactFile, Batch, CellBlock, Task, Workplace
from engines.derived_rows import InputRows, read_inputs
from engines.feeds.feed_errors import FeedError, PageRepeated, ReplyMalformed, SourceFailing, SourceMissing
from engines.feeds.session_window import SessionWindow
from engines.pauses import Trouble, trouble_of
from engines.raw_pass import PARSER_VERSION, CellSink
from ledger.columns import WINDOW_NS, Column, Dataset, Flag, OptionRows, Source
from ledger.roots import option_root, symbol_of

if TYPE_CHECKING:
    import polars

    from engines.feeds.chunks import Chunk
    from engines.feeds.json_pages import PageSource
    from engines.feeds.pass_report import PassReport

_OF_SYMBOL: Final = (SourceMissing, SourceFailing, PageRepeated, ReplyMalformed)
"""Failures that may be one symbol's; two in a row are the source's."""
_RETRY_AFTER_MAX_S: Final = 20.0
"""What a fetcher waits for in its place; a longer Retry-After is the engine's to wait."""


@dataclass(frozen=True, slots=True)
class RestPlace:
    """Where to ask, and the environment variable that holds the key; the key itself is never part of a task."""

    address: str
    key_env: str
    timeout_s: float
    requests_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Windows [first, last) of one symbol, minutes from the open."""

    symbol: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Chain:
    """
    The contracts of a root that are asked for: those that traded on the day, and those that somebody listens to.

    Attributes:
        symbol: ``O:ROOT``; where each contract is a symbol, it stands for the contracts that have none yet.
        traded: contracts known to have traded; taken from a snapshot where ``snapshot_ns`` is 0.
        snapshot_ns: the daemon's clock when ``traded`` was looked up; contracts that traded before are all in it.
        is_of_day: False where the snapshot is of another day than the session's, so that some may be missing.
        known: contracts that are asked for by themselves.
    """

    symbol: str
    underlying: str
    traded: tuple[str, ...] = ()
    snapshot_ns: int = 0
    is_of_day: bool = True
    known: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RestArguments:
    """What one refill asks for: plain, picklable values."""

    place: RestPlace
    dataset: Dataset
    window: SessionWindow
    option_rows: OptionRows
    asks: tuple[Ask, ...]
    """By symbol, then time, without overlap."""
    chains: dict[str, Chain]
    """By symbol of the asks."""
    held: InputRows
    """Rows of cells that the asks leave alone; ``symbol`` is an index into ``symbols``."""
    symbols: tuple[str, ...]
    now_ns: int
    """The daemon's clock when the task was made."""
    sent: tuple[float, ...] = ()
    """When requests of the last minute were sent, monotonic."""


@dataclass(slots=True)
class RestResult:
    """What the daemon needs beside the cells."""

    done: list[Ask] = field(default_factory=list)
    failed: dict[str, Trouble] = field(default_factory=dict)
    """By symbol; others went on."""
    trouble: Trouble | None = None
    """What ended the refill early."""
    chains: dict[str, Chain] = field(default_factory=dict)
    """Those that a snapshot was taken for, by symbol."""
    rows: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    retried: dict[str, int] = field(default_factory=dict)
    sent: tuple[float, ...] = ()


def run(task: Task, workplace: Workplace) -> Batch:
    """Fetch what is asked for; the report is a :class:`RestResult`."""
    from engines.feeds.json_pages import PageSource
    from engines.feeds.pass_report import PassReport
    from engines.feeds.retrying import RequestBudget, RetryPolicy

    arguments: RestArguments = task.arguments
    place, column = arguments.place, arguments.dataset.column
    folder = workplace.artifact_root / column.value.removesuffix("_ref") / arguments.window.date
    path = folder / f"{workplace.batch_name}-{arguments.dataset.value.partition('/')[0]}.parquet"
    staged = workplace.temporary / f"{workplace.batch_name}-cells.npy"
    sink = CellSink(column, arguments.dataset, arguments.window, path, staged, _metadata(arguments), source=Source.REST)
    budget = RequestBudget(place.requests_per_minute, sent=arguments.sent)
    policy = RetryPolicy(retry_after_max_seconds=_RETRY_AFTER_MAX_S, seed=zlib.crc32(workplace.batch_name.encode()))
    result, report = RestResult(), PassReport()
    key = os.environ.get(place.key_env, "")
    try:
        with PageSource(place.address, key, timeout_seconds=place.timeout_s, policy=policy, budget=budget) as source:
            _Refill(arguments, workplace, source, sink, report, result).run()
            result.requests, result.retried = source.counts.requests, source.counts.retried
    except BaseException:
        sink.abort()
        raise
    result.rejected, result.sent = report.rejected, budget.sent
    return _batch(arguments, workplace, sink, result)


def _metadata(arguments: RestArguments) -> dict[str, str]:
    from engines.feeds.file_columns import size_unit

    return {
        "m17.dataset": arguments.dataset.value,
        "m17.session": arguments.window.date,
        "m17.size_unit": size_unit(arguments.dataset, arguments.window.date),
        "m17.source": Source.REST.word,
        "m17.parser_version": str(PARSER_VERSION),
    }


@dataclass(slots=True)
class _Fetched:
    """One ask's rows in canonical order, and the symbols whose windows it fills."""

    ask: Ask
    chunk: Chunk | None
    outside: polars.DataFrame | None
    names: list[str]


class _Refill:
    """The symbols of one task, one after the other."""

    def __init__(
        self,
        arguments: RestArguments,
        workplace: Workplace,
        source: PageSource,
        sink: CellSink,
        report: PassReport,
        result: RestResult,
    ) -> None:
        from engines.feeds.canonical_order import RowOrder

        self._arguments = arguments
        self._source = source
        self._sink = sink
        self._report = report
        self._result = result
        self._order = RowOrder(arguments.dataset, arguments.window, self._symbol_of, report)
        self._prices = _held_prices(arguments, workplace)
        self._progress = workplace.progress

    def _symbol_of(self, ticker: str) -> str:
        return symbol_of(ticker, self._arguments.option_rows)

    def run(self) -> None:
        """Fetch all symbols; what ends it early is in the result. Nothing of a symbol is written before all of it came."""
        groups: dict[str, list[Ask]] = {}
        for ask in self._arguments.asks:
            groups.setdefault(ask.symbol, []).append(ask)
        in_a_row = 0
        for done, (symbol, asks) in enumerate(groups.items()):
            self._progress(done, len(groups))
            try:
                fetched = [self._fetch(ask) for ask in asks]
            except FeedError as error:
                in_a_row += 1
                if in_a_row > 1 or not isinstance(error, _OF_SYMBOL):
                    self._result.trouble = trouble_of(error)
                    return
                self._result.failed[symbol] = trouble_of(error)
                continue
            in_a_row = 0
            for one in fetched:
                self._write(one)
            self._result.done.extend(asks)
        self._progress(len(groups), len(groups))

    def _fetch(self, ask: Ask) -> _Fetched:
        """Rows of one ask, in order, with the prices before them."""
        import polars as pl

        from engines.feeds.rest_rows import fetch_rows

        arguments, window = self._arguments, self._arguments.window
        start_ns, end_ns = window.open_ns + ask.first * WINDOW_NS, window.open_ns + ask.last * WINDOW_NS
        if arguments.dataset.column is Column.QUOTE_REF and ask.first == 0:
            # The quotes of the 60 s before the open stand in the first window's cell.
            start_ns -= WINDOW_NS
        tickers = self._tickers(ask)
        frames = [
            frame
            for ticker in tickers
            for frame in fetch_rows(self._source, arguments.dataset, ticker, start_ns, end_ns, window, self._report)
        ]
        per_contract = ask.symbol in arguments.chains and arguments.option_rows is OptionRows.CONTRACT
        names = tickers if per_contract else [ask.symbol]
        if not frames:
            return _Fetched(ask, None, None, names)
        frame = pl.concat(frames)
        prices = self._prices_before(ask, frame, start_ns)
        chunk, outside = self._order.arrange(frame, prices)
        if prices is not None:
            self._prices.setdefault(ask.symbol, []).append((ask.last - 1, prices))
        return _Fetched(ask, chunk, outside if outside.height else None, names)

    def _tickers(self, ask: Ask) -> list[str]:
        """The instruments of a symbol: itself, or the contracts of its root that traded or are listened to."""
        chain = self._result.chains.get(ask.symbol) or self._arguments.chains.get(ask.symbol)
        if chain is None:
            return [ask.symbol]
        if not chain.snapshot_ns:
            chain = self._result.chains[ask.symbol] = self._snapshot(chain)
        found = {one for one in chain.traded if one not in chain.known}
        if self._arguments.option_rows is OptionRows.CHAIN:
            found.update(ticker for _, prices in self._prices.get(ask.symbol, ()) for ticker in prices)
        return sorted(found)

    def _snapshot(self, chain: Chain) -> Chain:
        """The contracts of a root that traded on the session's day, as the service's snapshot has them now."""
        from engines.feeds.option_chain import fetch_chain

        window = self._arguments.window
        root = chain.symbol.removeprefix("O:")
        ranked = [one for one in fetch_chain(self._source, chain.underlying) if option_root(one.ticker) == root]
        traded = [one for one in ranked if one.volume > 0]
        of_day = [
            one for one in traded if not one.updated_ns or window.day_start_ns <= one.updated_ns < window.day_end_ns
        ]
        names = tuple(sorted({one.ticker for one in of_day} | set(chain.traded)))
        return replace(chain, traded=names, snapshot_ns=self._arguments.now_ns, is_of_day=bool(of_day) or not traded)

    def _prices_before(self, ask: Ask, frame: polars.DataFrame, start_ns: int) -> dict[str, float] | None:
        """The price before of every instrument in the rows, from cells and earlier asks, or asked for; None for quotes."""
        import polars as pl

        from engines.feeds.rest_rows import price_before

        arguments = self._arguments
        if arguments.dataset.column is not Column.TRADE_REF:
            return None
        prices: dict[str, float] = {}
        for minute, held in sorted(self._prices.get(ask.symbol, ()), key=lambda one: one[0]):
            if minute < ask.first:
                prices.update(held)
        for ticker in frame["ticker"].unique().cast(pl.String).sort().to_list():
            if ticker not in prices:
                price = price_before(self._source, arguments.dataset, ticker, start_ns, arguments.window, self._report)
                if price is not None:
                    prices[ticker] = price
        return prices

    def _write(self, fetched: _Fetched) -> None:
        """Write an ask's rows and stage its cells, those without rows too."""
        from engines.feeds.chunks import outside_chunk

        ask, chunk = fetched.ask, fetched.chunk
        asked = np.arange(ask.first, ask.last)
        filled: dict[str, np.ndarray] = {}
        if chunk is not None:
            self._sink.write(chunk)
            for index, symbol in enumerate(chunk.symbols):
                filled[symbol] = chunk.cell_minute[chunk.cell_symbol == index].astype(np.int64)
                self._result.rows[symbol] = self._result.rows.get(symbol, 0) + int(chunk.symbol_row_count[index])
        if fetched.outside is not None:
            self._sink.write(outside_chunk(fetched.outside, self._arguments.window))
        for symbol in dict.fromkeys([*fetched.names, *filled]):
            self._sink.stage_no_rows(symbol, np.setdiff1d(asked, filled.get(symbol, asked[:0])))


def _held_prices(arguments: RestArguments, workplace: Workplace) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """By symbol, (minute, last price by ticker) of the cells that are left alone; of quotes the tickers alone count."""
    import polars as pl

    trades, ranges = arguments.dataset.column is Column.TRADE_REF, arguments.held.ranges
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    frame, owner = read_inputs(workplace.artifact_root, arguments.held, ["ticker", "price"] if trades else ["ticker"])
    if frame is None:
        return found
    price = pl.col("price") if trades else pl.lit(0.0)
    last = (
        frame.select(pl.col("ticker").cast(pl.String), price.alias("price"), pl.Series("owner", owner))
        .group_by("owner", "ticker", maintain_order=True)
        .agg(pl.col("price").last())
    )
    by_range: dict[int, dict[str, float]] = {}
    for one, ticker, value in last.iter_rows():
        by_range.setdefault(one, {})[ticker] = value
    for one, prices in sorted(by_range.items()):
        symbol = arguments.symbols[int(ranges["symbol"][one])]
        found.setdefault(symbol, []).append((int(ranges["minute"][one]), prices))
    return found


def _batch(arguments: RestArguments, workplace: Workplace, sink: CellSink, result: RestResult) -> Batch:
    written = sink.finish()
    names = sorted(sink.symbols, key=sink.symbols.__getitem__)
    unsure = {symbol for symbol, chain in {**arguments.chains, **result.chains}.items() if not chain.is_of_day}
    chains = np.array([_chain_of(name, arguments.option_rows) in unsure for name in names], dtype=bool)

    def flags_of(cells: np.ndarray) -> np.ndarray:
        # Contracts that traded only in the window may be missing: the file of the next day has them.
        flags: np.ndarray = np.where(chains[cells["symbol"]], np.uint8(Flag.PARTIAL), np.uint8(0))
        return flags

    count = sink.finish_cells(flags_of if chains.any() else None)
    artifacts = []
    if written is not None:
        uri = str(written.path.relative_to(workplace.artifact_root))
        artifacts.append(ArtifactFile(uri, written.checksum, written.bytes, written.rows, sink.column))
    block = CellBlock(sink.column, names, sink.staged.path, count, Source.REST)
    return Batch([block] if count else [], artifacts, report=result)


def _chain_of(symbol: str, option_rows: OptionRows) -> str:
    """The symbol that a chain is asked for under; a stock's own name."""
    contract = option_rows is OptionRows.CONTRACT and symbol.startswith("O:")
    return f"O:{option_root(symbol)}" if contract else symbol
