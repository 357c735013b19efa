"""
Prices before, set right: the cells of one symbol whose first trade of an instrument follows one that was replaced.

A trade carries the price of its instrument's trade before it. Where a window was fetched again, the next window of each of
its instruments may say another one than it should; such cells are made again with the same rows and the right price,
under the source they had. This module must never change a row otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.contract import ArtifactFile, Batch, CellBlock, Task, Workplace
from engines.derived_rows import InputRows, read_inputs
from engines.feeds.session_window import SessionWindow
from engines.raw_pass import PARSER_VERSION, CellSink
from ledger.columns import Dataset, Source

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, slots=True)
class RelinkArguments:
    """
    The cells of one symbol, from the first that was replaced on: arrays [n], ascending by minute.

    Attributes:
        first: minute that they were taken from on.
        cells: their rows; ``minute`` is from the open, ``symbol`` 0.
        sources, flags: u8[n], of the cells.
    """

    dataset: Dataset
    window: SessionWindow
    symbol: str
    first: int
    cells: InputRows
    sources: np.ndarray
    flags: np.ndarray


@dataclass(frozen=True, slots=True)
class Relinked:
    """How many cells said a wrong price."""

    symbol: str
    cells: int


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Make wrong cells again; the report is a :class:`Relinked`.

    Raises:
        TaskFailed: an artifact is missing.
    """
    arguments: RelinkArguments = task.arguments
    frame, owner = read_inputs(workplace.artifact_root, arguments.cells, ["ticker", "price", "previous_price"])
    if frame is None:
        return Batch(report=Relinked(arguments.symbol, 0))
    row, price = wrong_rows(frame, owner)
    wrong = np.unique(owner[row])
    blocks, artifacts = [], []
    for number, source in enumerate(sorted(set(arguments.sources[wrong].tolist()))):
        chosen = wrong[arguments.sources[wrong] == source]
        mine = np.isin(owner[row], chosen)
        # Rows of the chosen cells keep their order, so that a row's place among them is known.
        place = np.searchsorted(np.flatnonzero(np.isin(owner, chosen)), row[mine])
        block, artifact = _made(arguments, workplace, chosen, place, price[mine], Source(source), number)
        blocks.append(block)
        artifacts.append(artifact)
    return Batch(_numbered(blocks), artifacts, report=Relinked(arguments.symbol, len(wrong)))


def wrong_rows(frame: polars.DataFrame, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    First rows of an instrument in a cell that say another price before than the instrument's row before them.

    Args:
        frame: ``ticker``, ``price``, ``previous_price`` of cells in order of time, each in canonical order.
        owner: i64[rows], the cell of each row, ascending.

    Returns:
        i64[n], their places, ascending; f64[n], the price that they should say. The first row of an instrument of all is
        not judged: nothing is known of what was before it.
    """
    from engines.derived_rows import text_codes

    code, _ = text_codes(frame["ticker"])
    order = np.lexsort((np.arange(len(code)), code))
    price = frame["price"].to_numpy()[order]
    said = frame["previous_price"].fill_null(float("nan")).to_numpy()[order]
    follows = (code[order][1:] == code[order][:-1]) & (owner[order][1:] != owner[order][:-1])
    differs = follows & ~(said[1:] == price[:-1])
    at = np.flatnonzero(differs) + 1
    rows, right = order[at], price[at - 1]
    by_place = np.argsort(rows, kind="stable")
    return rows[by_place], right[by_place]


def _made(
    arguments: RelinkArguments,
    workplace: Workplace,
    chosen: np.ndarray,
    place: np.ndarray,
    price: np.ndarray,
    source: Source,
    number: int,
) -> tuple[CellBlock, ArtifactFile]:
    """The chosen cells with other prices at some places of their rows: an artifact of their own, and the block."""
    import polars as pl

    from engines.feeds.chunks import session_chunk
    from engines.feeds.file_columns import frame_types

    dataset, window = arguments.dataset, arguments.window
    cells = InputRows(arguments.cells.uris, arguments.cells.ranges[chosen])
    columns = ["symbol", "minute", *frame_types(dataset), "previous_price"]
    frame, owner = read_inputs(workplace.artifact_root, cells, columns)
    assert frame is not None
    previous = frame["previous_price"].fill_null(float("nan")).to_numpy().copy()
    previous[place] = price
    frame = frame.select(columns).with_columns(pl.Series("previous_price", previous, nan_to_null=True))
    column = dataset.column
    folder = workplace.artifact_root / column.value.removesuffix("_ref") / window.date
    name = f"{workplace.batch_name}-{number}"
    metadata = {
        "m17.dataset": dataset.value, "m17.session": window.date, "m17.source": source.word,
        "m17.parser_version": str(PARSER_VERSION),
    }  # fmt: skip
    sink = CellSink(
        column, dataset, window, folder / f"{name}.parquet", workplace.temporary / f"{name}-cells.npy", metadata,
        source=source,
    )  # fmt: skip
    minute = cells.ranges["minute"][owner].astype(np.int32)
    chunk = session_chunk(
        frame, [arguments.symbol], np.zeros(frame.height, np.int32), minute, frame["sip_timestamp"].to_numpy()
    )
    sink.write(chunk)
    written = sink.finish()
    assert written is not None
    flags = dict(zip(cells.ranges["minute"].tolist(), arguments.flags[chosen].tolist(), strict=True))
    count = sink.finish_cells(
        lambda staged: np.array([flags[one] for one in staged["minute"].tolist()], dtype=np.uint8)
    )
    uri = str(written.path.relative_to(workplace.artifact_root))
    artifact = ArtifactFile(uri, written.checksum, written.bytes, written.rows, column)
    return CellBlock(column, [arguments.symbol], sink.staged.path, count, source), artifact


def _numbered(blocks: list[CellBlock]) -> list[CellBlock]:
    """Each block's records name the batch's artifact of the block."""
    for number, block in enumerate(blocks, 1):
        cells = np.load(block.path, mmap_mode="r+")
        cells["record"]["artifact_id"] = number
        cells.flush()
    return blocks
