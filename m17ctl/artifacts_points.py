"""
Points out of artifacts: one price a window, and single rows, of what the daemon named.

Only the columns and row groups that hold them are read. Polars is imported inside the functions. This module must never list a
directory of artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from m17ctl.artifacts import Run, joined, read_blocks, unreadable
from m17d.replies import ArtifactCell, ExportReply


def window_prices(
    pieces: Iterable[ExportReply], choose: Callable[[list[ArtifactCell]], list[ArtifactCell]]
) -> dict[int, float]:
    """
    The middle price of the trades of some windows, by minute_idx; a single odd print moves it little.

    Args:
        pieces: the daemon's answer to an export of one stock's trades in one session.
        choose: which of the cells to read; it gets them ascending by minute.

    Raises:
        CommandFailed: code ``damaged_file``, where an artifact cannot be read.
    """
    import polars

    places = [(joined(piece.artifact_root, piece.uris[cell.uri]), cell) for piece in pieces for cell in piece.cells]
    where = {cell.minute_idx: uri for uri, cell in places}
    cells = [
        cell for cell in choose(sorted((cell for _, cell in places), key=lambda one: one.minute_idx)) if cell.row_count
    ]
    if not cells:
        return {}
    runs = [Run(where[cell.minute_idx], cell.row_start, cell.row_count) for cell in cells]
    prices = polars.concat(list(read_blocks(runs, {"price": polars.Float64()})))["price"]
    windows = polars.DataFrame(
        {"minute": [cell.minute_idx for cell in cells], "rows": [cell.row_count for cell in cells]}
    )
    of_window = windows.select(polars.col("minute").repeat_by("rows").explode()).to_series()
    middle = polars.DataFrame({"minute": of_window, "price": prices}).group_by("minute").median()
    return dict(zip(middle["minute"].to_list(), middle["price"].to_list(), strict=True))


def single_row(pieces: Iterable[ExportReply]) -> dict[str, Any] | None:
    """
    The first row that the pieces name, by column; None where they name none.

    Raises:
        CommandFailed: code ``damaged_file``, where the artifact cannot be read.
    """
    import polars

    for piece in pieces:
        for cell in piece.cells:
            if cell.row_count:
                uri = joined(piece.artifact_root, piece.uris[cell.uri])
                try:
                    frame = polars.scan_parquet(uri, glob=False).slice(cell.row_start, 1).collect()
                except (polars.exceptions.PolarsError, OSError) as error:
                    raise unreadable(uri, str(error)) from None
                if frame.height != 1:
                    raise unreadable(uri, f"it ends before row {cell.row_start}")
                return frame.row(0, named=True)
    return None
