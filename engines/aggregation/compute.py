"""
One task of the aggregation engine in a worker: rows of trades, sides and Greeks to windows, hashed and staged.

Aggressor and Greeks rows are joined to their trade by its place in the trade cell. A pure function of its arguments and
the artifacts they name. Imports the kernel, so it must never be imported by the daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from engines.aggregation.columns import COUNT_FIELDS, COUNTS, KEY_FIELDS, KEYS, METRIC_FIELDS, METRICS, PLACE_FIELDS
from engines.aggregation.engine import AggregationArguments, CellRows, UnitArguments
from engines.aggregation.inputs import Method, OptionTrades, SessionInputs, Side, UnderlyingTrades
from engines.aggregation.kernel import WindowTable, aggregate_starts
from engines.contract import ArtifactFile, Batch, CellBlock, Task, TaskFailed, Workplace
from engines.derived_rows import MadeCells, hash_frame, read_inputs, records_of, text_codes
from engines.staging import StagedCells, cell_dtype
from ledger.columns import AGGREGATE_MINUTES, Column, Flag, PayloadKind
from ledger.frames import ArtifactWriter
from ledger.input_tables import COLUMNS, INPUT, footer_entries
from ledger.records import AGGREGATE_WINDOW
from ledger.roots import RootTable, option_root

_TRADE_COLUMNS: Final = ["ticker", "sip_timestamp", "price", "size"]
_AGGRESSOR_COLUMNS: Final = ["ordinal", "side", "method", "confidence", "print_class", "sets_price"]
_GREEKS_COLUMNS: Final = ["delta", "gamma", "spot"]
_SIDES: Final = {"unknown": Side.UNKNOWN, "buyer": Side.BUYER, "seller": Side.SELLER}
_METHODS: Final = {
    "unknown": Method.UNKNOWN,
    "nbbo_touch": Method.TOUCH,
    "nbbo_at_or_beyond": Method.AT_OR_BEYOND,
    "tick_rule": Method.TICK_RULE,
}
_NOT_TRADES: Final = ("cancelled", "official_price")
HASHED: Final = ("window", *KEYS, *COUNTS, *METRICS)
"""Columns of the content hash, in order."""
_INPUT_COLUMNS: Final = tuple(COLUMNS.index(one) for one in (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF))


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Compute one task.

    Raises:
        TaskFailed: an artifact is missing, or a row holds what no window can be made from.
    """
    arguments: AggregationArguments = task.arguments
    tables: dict[Column, list[tuple[int, WindowTable]]] = {column: [] for column in AGGREGATE_MINUTES}
    for index, unit in enumerate(arguments.units):
        inputs = SessionInputs(
            arguments.open_ns,
            _underlying(unit.own, workplace.artifact_root),
            _options(unit.options, workplace.artifact_root, arguments.roots),
        )
        for starts, columns in _by_starts(unit):
            windows = tuple(AGGREGATE_MINUTES[column] for column in columns)
            try:
                made = aggregate_starts(inputs, arguments.minutes, starts, windows, arguments.policy)
            except ValueError as error:
                raise TaskFailed(
                    f"{unit.symbol} {arguments.session}: {error}", hint="look at the trades of the session"
                ) from error
            for column in columns:
                tables[column].append((index, made[AGGREGATE_MINUTES[column]]))
    return _stage(arguments, tables, workplace)


def _by_starts(unit: UnitArguments) -> list[tuple[np.ndarray, list[Column]]]:
    """Columns that want windows at the same minutes, together, because the rows are then valued and sorted once."""
    groups: dict[bytes, tuple[np.ndarray, list[Column]]] = {}
    for column in AGGREGATE_MINUTES:
        if column in unit.windows:
            starts = unit.windows[column][0]
            groups.setdefault(starts.tobytes(), (starts, []))[1].append(column)
    return list(groups.values())


# ---- rows


def _joined(cells: CellRows, root: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """Trades with the aggressor's and the Greeks' columns beside them (null where there is no row), and their minutes."""
    trades, aggressors, greeks = cells.rows
    frame, cell = read_inputs(root, trades, _TRADE_COLUMNS)
    if frame is None:
        return pl.DataFrame(), np.zeros(0, dtype=np.uint16)
    count = trades.ranges["count"].astype(np.int64)
    first = np.cumsum(count) - count
    parts = [frame]
    for inputs, columns in ((aggressors, _AGGRESSOR_COLUMNS), (greeks, _GREEKS_COLUMNS)):
        rows, owner = read_inputs(root, inputs, columns)
        if rows is None:
            continue
        if "ordinal" in columns:
            ordinal = rows["ordinal"].to_numpy().astype(np.int64)
            rows = rows.drop("ordinal")
        else:
            held = inputs.ranges["count"].astype(np.int64)
            ordinal = np.arange(rows.height) - (np.cumsum(held) - held)[owner]
        # Cells that are being remade may hold more rows than their trades; the print has them made again.
        fits = np.flatnonzero(ordinal < count[owner])
        at = np.full(frame.height, -1, dtype=np.int64)
        at[first[owner[fits]] + ordinal[fits]] = fits
        parts.append(_gathered(rows, at))
    return pl.concat(parts, how="horizontal"), trades.ranges["minute"][cell].astype(np.uint16)


def _gathered(rows: pl.DataFrame, at: np.ndarray) -> pl.DataFrame:
    """Rows by position, null where the position is -1."""
    index = pl.Series("at", at, dtype=pl.Int64)
    return rows.select(pl.all().gather(pl.select(pl.when(index >= 0).then(index)).to_series()))


def _numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
    """f64[rows], NaN where there is no value."""
    if name not in frame.columns:
        return np.full(frame.height, np.nan)
    return frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _words(frame: pl.DataFrame, name: str, codes: dict[str, Side] | dict[str, Method]) -> np.ndarray:
    """u8[rows], the codes of a column of words; null is unknown."""
    if name not in frame.columns:
        return np.zeros(frame.height, dtype=np.uint8)
    places, texts = text_codes(frame[name])
    known = np.array([codes[text or "unknown"] for text in texts], dtype=np.uint8)
    return known[places] if len(known) else np.zeros(frame.height, dtype=np.uint8)


def _cancelled(frame: pl.DataFrame) -> np.ndarray:
    """bool[rows]: a print that is none, or that the aggressor engine left out."""
    if "print_class" not in frame.columns:
        return np.ones(frame.height, dtype=bool)
    return frame["print_class"].cast(pl.String).fill_null("cancelled").is_in(_NOT_TRADES).to_numpy()


def _underlying(cells: CellRows, root: Path) -> UnderlyingTrades:
    frame, minute = _joined(cells, root)
    none = np.zeros(0)
    if not len(minute):
        flags = none.astype(bool)
        return UnderlyingTrades(minute, none.astype(np.int64), none, none, flags, flags)
    sets_price = np.zeros(len(minute), dtype=bool)
    if "sets_price" in frame.columns:
        sets_price = frame["sets_price"].fill_null(value=False).to_numpy()
    return UnderlyingTrades(
        minute,
        frame["sip_timestamp"].to_numpy(),
        _numbers(frame, "price"),
        _numbers(frame, "size"),
        sets_price,
        _cancelled(frame),
    )


def _options(cells: CellRows, root: Path, roots: RootTable) -> OptionTrades:
    frame, minute = _joined(cells, root)
    codes, tickers = np.zeros(0, dtype=np.int64), list[str]()
    if len(minute):
        codes, tickers = text_codes(frame["ticker"])
    names = [option_root(ticker) for ticker in tickers]
    times = frame["sip_timestamp"].to_numpy() if len(minute) else np.zeros(0, dtype=np.int64)
    confidence = _numbers(frame, "confidence")
    return OptionTrades(
        minute=minute,
        timestamp_ns=times,
        is_call=np.array([ticker[-9] == "C" for ticker in tickers], dtype=bool)[codes],
        price=_numbers(frame, "price"),
        size=_numbers(frame, "size"),
        multiplier=np.array([roots.multiplier(name) for name in names], dtype=np.float64)[codes],
        strike=np.array([int(ticker[-8:]) / 1000.0 for ticker in tickers], dtype=np.float64)[codes],
        delta=_numbers(frame, "delta"),
        gamma=_numbers(frame, "gamma"),
        spot=_numbers(frame, "spot"),
        side=_words(frame, "side", _SIDES),
        method=_words(frame, "method", _METHODS),
        confidence=confidence,
        standard=np.array([roots.is_standard(name) for name in names], dtype=bool)[codes],
        cancelled=_cancelled(frame),
    )


# ---- windows


def _frame(symbols: tuple[str, ...], column: Column, tables: list[tuple[int, WindowTable]]) -> pl.DataFrame:
    """The rows of one window length as they are written."""
    frames = []
    for index, table in tables:
        data: dict[str, pl.Series] = {
            "symbol": pl.repeat(symbols[index], len(table.start_minute), dtype=pl.String, eager=True),
            "minute": pl.Series(table.start_minute.astype(np.uint16)),
            "window": pl.repeat(
                column.value.removeprefix("aggs_"), len(table.start_minute), dtype=pl.String, eager=True
            ),
        }
        data |= {name: pl.Series(getattr(table, name)) for name in KEYS}
        data |= {name: pl.Series(table.counts[:, at].astype(np.uint32)) for at, name in enumerate(COUNTS)}
        data |= {name: pl.Series(table.metrics[:, at].copy()).fill_nan(None) for at, name in enumerate(METRICS)}
        frames.append(pl.DataFrame(data))
    return pl.concat(frames)


def _stage(
    arguments: AggregationArguments, tables: dict[Column, list[tuple[int, WindowTable]]], workplace: Workplace
) -> Batch:
    """Write all windows as one artifact, by column, symbol and minute, and stage their cells."""
    symbols = tuple(unit.symbol for unit in arguments.units)
    path = workplace.artifact_root / "aggregate" / arguments.session / f"{workplace.batch_name}.parquet"
    fields = {field.name: field.metadata for field in (*PLACE_FIELDS, *KEY_FIELDS, *COUNT_FIELDS, *METRIC_FIELDS)}
    writer = ArtifactWriter(path, metadata={"m17.session": arguments.session}, field_metadata=fields)
    table, places = _input_table(arguments)
    blocks, columns = [], [column for column in tables if tables[column]]
    for column in columns:
        frame = _frame(symbols, column, tables[column])
        cells = _cells(arguments, column, tables[column], frame, places)
        cells["record"]["row_start"] += writer.rows
        writer.write(frame)
        staged = StagedCells(workplace.temporary / f"{workplace.batch_name}-{column.value}.npy", PayloadKind.AGGREGATE)
        staged.append(cells)
        staged.finish()
        blocks.append(CellBlock(column, list(symbols), staged.path, len(cells)))
    written = writer.finish(**table)
    assert written is not None, "a task without windows"
    uri = str(written.path.relative_to(workplace.artifact_root))
    return Batch(blocks, [ArtifactFile(uri, written.checksum, written.bytes, written.rows, columns[0])])


def _cells(
    arguments: AggregationArguments,
    column: Column,
    tables: list[tuple[int, WindowTable]],
    frame: pl.DataFrame,
    places: list[np.ndarray],
) -> np.ndarray:
    """The staged cells of one column; their rows begin at 0."""
    counts = np.concatenate([table.counts for _, table in tables])
    symbol = np.repeat([index for index, _ in tables], [len(table.start_minute) for _, table in tables])
    minute = np.concatenate([table.start_minute for _, table in tables])
    short = np.concatenate([table.short for _, table in tables])
    prints = np.concatenate([arguments.units[index].windows[column][1] for index, _ in tables])
    made = MadeCells(
        column,
        tuple(unit.symbol for unit in arguments.units),
        symbol,
        minute,
        prints,
        np.full(len(minute), arguments.recipes[column], dtype=np.uint32),
        np.ones(len(minute), dtype=np.int64),
        arguments.open_ns,
    )
    records = records_of(made, hash_frame(frame, HASHED))
    covered = np.concatenate([table.covered_minutes for _, table in tables])
    records["window"], records["short"], records["covered_minutes"] = AGGREGATE_WINDOW[column], short, covered
    # The span of session minutes that the window covers, as minute_idx, half-open.
    records["source_span_start"] = arguments.first_minute_idx + minute
    records["source_span_end"] = arguments.first_minute_idx + minute + covered
    of = {name: counts[:, at] for at, name in enumerate(COUNTS)}
    records["option_trades"] = of["puts"] + of["calls"]
    records["usable_rows"] = of["underlying_trades"] + of["puts"] + of["calls"] - of["null_delta"]
    records["left_out"] = sum(values for name, values in of.items() if "left_out" in name)
    for name in ("spot_from_last_trade", "null_delta", *(one for one in COUNTS if one.startswith("left_out_"))):
        records[name] = of[name]
    for index in np.unique(symbol):
        mine = symbol == index
        offsets = places[int(index)]
        records["inputs_start"][mine] = offsets[minute[mine]]
        records["inputs_count"][mine] = offsets[minute[mine] + covered[mine]] - offsets[minute[mine]]
    staged = np.zeros(len(minute), dtype=cell_dtype(column.payload_kind))
    staged["symbol"], staged["minute"], staged["inputs"], staged["record"] = symbol, minute, prints, records
    staged["flags"] = np.where(short, np.uint8(Flag.SHORT), np.uint8(0))
    return staged


def _input_table(arguments: AggregationArguments) -> tuple[dict[str, str], list[np.ndarray]]:
    """
    The input cells with rows, for lineage: footer entries, and by unit where the minutes' entries begin.

    Ascending by unit, then minute, so that a window's inputs of its own minutes are one run.
    """
    names: list[str] = []
    pieces, places, total = [], [], 0
    for unit in arguments.units:
        entries = []
        for cells in (unit.own, unit.options):
            at, kind = np.nonzero(cells.payload_ids)
            table = np.zeros(len(at), dtype=INPUT)
            table["symbol"] = len(names) + cells.rows[0].ranges["symbol"][at]
            table["minute"] = cells.rows[0].ranges["minute"][at]
            table["column"] = np.array(_INPUT_COLUMNS, dtype=np.uint8)[kind]
            table["payload_id"] = cells.payload_ids[at, kind]
            names.extend(cells.symbols)
            entries.append(table)
        both = np.concatenate(entries)
        both = both[np.argsort(both["minute"], kind="stable")]
        places.append(total + np.searchsorted(both["minute"], np.arange(arguments.minutes + 1)))
        pieces.append(both)
        total += len(both)
    return footer_entries(np.concatenate(pieces), names), places
