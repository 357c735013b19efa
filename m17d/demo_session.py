"""
The session that a live demonstration plays: what it is, and its files as a websocket brings them.

A websocket carries milliseconds and no corrections, so files are cut to those before anybody reads them: then live minutes
equal those of the files to the checksum. This module must never change the files that it was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.feeds.synthetic import write_session
from engines.feeds.synthetic_files import flat_file_path
from ledger.columns import Dataset
from ledger.roots import RootTable, option_root
from m17d.demo_stage import NotTrue

_MILLISECOND_NS: Final = 1_000_000
_STOCKS: Final = (Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES)
_OPTIONS: Final = (Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES)


@dataclass(frozen=True, slots=True)
class Play:
    """
    What is played.

    Attributes:
        source: folder of flat files, or None for the synthetic session.
        session: ``YYYY-MM-DD``.
        speed: market seconds a second.
        cut: ``HH:MM-HH:MM`` without a connection.
        start: ``HH:MM`` that the play begins at.
    """

    source: Path | None
    session: str
    speed: float
    cut: str
    start: str = "09:00"


def prepare(root: Path, play: Play) -> tuple[dict[str, int], list[str]]:
    """
    The session's files in milliseconds under ``root``, and the curves.

    Quotes of contracts that never traded are left out: the chains' best contracts are listened to, and none of those is.

    Returns:
        Rows by dataset, and the underlyings of the contracts.
    """
    source = play.source
    if source is None:
        source = root / "written"
        write_session(source, session=play.session, damage=False)
    files = source / "flatfiles" if (source / "flatfiles").is_dir() else source
    traded = _tickers(flat_file_path(files, Dataset.OPTION_TRADES, play.session))
    counts = {}
    for dataset in (*_STOCKS, *_OPTIONS):
        path, keep = flat_file_path(files, dataset, play.session), traded if dataset in _OPTIONS else None
        if path.exists():
            target = flat_file_path(root / "flatfiles", dataset, play.session)
            counts[dataset.value] = _in_milliseconds(path, target, keep)
    if not counts:
        raise NotTrue(f"{source}: no flat file of {play.session}")
    name = Path("treasury") / "treasury-yields.json"
    curves = next((each for each in (source / name, source.parent / name) if each.exists()), None)
    if curves is not None:
        (root / "treasury").mkdir()
        (root / name).write_bytes(curves.read_bytes())
    roots = RootTable.load()
    return counts, sorted({roots.underlying(option_root(ticker)) for ticker in traded})


def _tickers(path: Path) -> list[str]:
    import polars as pl

    if not path.exists():
        return []
    found: list[str] = pl.read_csv(path, columns=["ticker"])["ticker"].unique().sort().to_list()
    return found


def _in_milliseconds(path: Path, target: Path, keep: list[str] | None) -> int:
    """Write a flat file with times cut to ms and trades without correction, of some tickers or all; number of rows."""
    import gzip

    import polars as pl

    frame = pl.read_csv(path, infer_schema=False)
    if keep is not None:
        frame = frame.filter(pl.col("ticker").is_in(keep))
    times = pl.col("sip_timestamp").cast(pl.Int64)
    frame = frame.with_columns(times // _MILLISECOND_NS * _MILLISECOND_NS)
    if "correction" in frame.columns:
        frame = frame.with_columns(correction=pl.lit(""))
    target.parent.mkdir(parents=True)
    with gzip.open(target, "wb", compresslevel=1) as stream:
        stream.write(frame.write_csv().encode())
    return frame.height
