"""Real flat files: rows, minutes and volumes equal the independently counted ones."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from engines.feeds.chunks import Chunk
from engines.feeds.file_pass import run_pass
from engines.feeds.flatfile import PassReport, read_batches
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
FILES = sorted(str(path.relative_to(DATA)) for path in (DATA / "flatfiles").rglob("*.csv.gz"))

pytestmark = pytest.mark.skipif(not FILES, reason="../shared/data is absent")


def window_of(date: str) -> SessionWindow:
    """A regular New York session."""
    midnight = datetime.fromisoformat(date).replace(tzinfo=ZoneInfo("America/New_York"))
    opening = midnight.replace(hour=9, minute=30)
    start, open_, end = (int(t.timestamp()) * 10**9 for t in (midnight, opening, midnight + timedelta(days=1)))
    return SessionWindow(date, open_, 390, start, end)


class Tally:
    """Counts per ticker what the chunks hold."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.regular: dict[str, int] = {}
        self.minutes: dict[str, set[int]] = {}
        self.volume: dict[str, float] = {}
        self.cells: dict[tuple[str, int], int] = {}

    def write(self, chunk: Chunk) -> None:
        """Count one chunk."""
        size = pl.col("size").sum() if "size" in chunk.frame.columns else pl.lit(0.0)
        grouped = chunk.frame.group_by("ticker", maintain_order=True).agg(
            rows=pl.len(), volume=size, minutes=pl.col("minute").drop_nulls().unique()
        )
        for ticker, rows, volume, minutes in grouped.iter_rows():
            self.rows[ticker] = self.rows.get(ticker, 0) + rows
            self.regular[ticker] = self.regular.get(ticker, 0) + (0 if chunk.outside else rows)
            self.volume[ticker] = self.volume.get(ticker, 0.0) + volume
            self.minutes.setdefault(ticker, set()).update(minutes)
        for name, minute, count in zip(chunk.cell_names, chunk.cell_minute, chunk.row_count, strict=True):
            assert (name, int(minute)) not in self.cells
            self.cells[name, int(minute)] = int(count)

    def abort(self) -> None:
        """Real files need no restart."""
        raise AssertionError("restarted")


def expected_of(name: str) -> tuple[dict[str, Any], Dataset, str]:
    """Expected counts per ticker, dataset and date of a file."""
    parts = Path(name).parts
    date = parts[-1].removesuffix(".csv.gz")
    tickers = json.loads((DATA / "expected.json").read_text())["dates"][date]["tickers"]
    return tickers, Dataset("/".join(parts[1:3])), date


@pytest.mark.parametrize("name", FILES)
def test_real_file_equals_the_expected_counts(name: str, tmp_path: Path) -> None:
    """Per ticker: rows, rows in the session, minutes with rows, volume; in chain mode with a small budget."""
    tickers, dataset, date = expected_of(name)
    kind = "trade" if "trades" in dataset.value else "quote"
    tallies: list[Tally] = []

    def factory() -> Tally:
        tallies.append(Tally())
        return tallies[-1]

    def symbol_of(ticker: str) -> str:
        return ticker[:-15] if dataset.of_options else ticker

    report = run_pass(
        DATA / name, dataset, window_of(date), factory, symbol_of=symbol_of, spill_dir=tmp_path, batch_rows=50_000,
        budget_rows=200_000, chunk_rows=100_000,
    )  # fmt: skip
    assert not report.exact and report.rejected == {} and report.quarantined == []
    tally = tallies[-1]
    of_file = {ticker: own for ticker, own in tickers.items() if ticker.startswith("O:") is dataset.of_options}
    want = {ticker: own for ticker, own in of_file.items() if own.get(f"{kind}_rows", 0)}
    assert tally.rows == {ticker: own[f"{kind}_rows"] for ticker, own in want.items()}
    assert tally.regular == {ticker: own[f"{kind}_rows_regular"] for ticker, own in want.items()}
    minutes = {ticker: len(found) for ticker, found in tally.minutes.items()}
    assert minutes == {ticker: own[f"minutes_with_{kind}s"] for ticker, own in want.items()}
    if kind == "trade":
        assert tally.volume == {ticker: own["total_volume"] for ticker, own in want.items()}
    assert sum(tally.cells.values()) == sum(tally.regular.values()) == report.rows_in_session
    symbols = {symbol_of(ticker) for ticker in want}
    assert set(report.symbols) == symbols


def test_exact_reader_reads_real_files_equally() -> None:
    """Both readers, every column, row for row."""
    for name in FILES:
        _, dataset, date = expected_of(name)
        if (DATA / name).stat().st_size > 2_000_000:
            continue
        fast = pl.concat(list(read_batches(DATA / name, dataset, window_of(date), PassReport())))
        exact = pl.concat(list(read_batches(DATA / name, dataset, window_of(date), PassReport(), exact=True)))
        assert fast.equals(exact)
        assert np.all(fast["sip_timestamp"].to_numpy() > 0)
