"""
One pass over one flat file, from path to ordered chunks, restarted where it has to be.

The caller's sink is opened afresh for every attempt and told to throw everything away when the attempt ends early. What
the last sink holds when :func:`run_pass` returns is the whole file; when it raises, nothing may be kept. This module must
never commit anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from engines.feeds.canonical_order import SymbolOf
from engines.feeds.chunks import Chunk
from engines.feeds.flatfile import BAD_ROWS_MAX, BATCH_ROWS, read_batches
from engines.feeds.ordering import BUDGET_ROWS, CHUNK_ROWS, ordered_chunks
from engines.feeds.pass_report import NeedsExactPass, NeedsExternalSort, NeedsPlainPass, PassReport
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

COMPILED_BYTES: Final = 256 << 10
"""Packed size from which on a file is worth compiled code, which a worker loads in half a second."""


class Sink(Protocol):
    """Where the chunks of one attempt go."""

    def write(self, chunk: Chunk) -> None:
        """Take one chunk; nothing may be committed yet."""

    def abort(self) -> None:
        """Throw away every chunk: the attempt ended early."""


def run_pass(
    path: Path,
    dataset: Dataset,
    window: SessionWindow,
    sink_factory: Callable[[], Sink],
    *,
    symbol_of: SymbolOf,
    spill_dir: Path,
    wanted: Callable[[str], bool] | None = None,
    bad_rows_max: int = BAD_ROWS_MAX,
    batch_rows: int = BATCH_ROWS,
    budget_rows: int = BUDGET_ROWS,
    chunk_rows: int = CHUNK_ROWS,
) -> PassReport:
    """
    Read a file to its end into a sink and report on it.

    A first attempt reads fast, large files in compiled code, and trusts the file to be grouped. If that reader meets
    something that it does not know or cannot judge, or the file turns out not to be grouped, that sink is aborted and
    another attempt is made with a more careful reader, with the external sort, or both: four attempts at most.

    Args:
        sink_factory: opens the sink of one attempt.
        symbol_of: see :func:`engines.feeds.ordering.ordered_chunks`.
        spill_dir: an existing folder; a folder of its own is made in it for the pass and removed.
        wanted: see :func:`engines.feeds.flatfile.read_batches`.

    Returns:
        The report of the attempt that reached the end.

    Raises:
        SourceDamaged: the file is damaged; the sink was aborted.
        OSError: reading or spilling failed; the sink was aborted.
    """
    exact = external = False
    compiled = path.stat().st_size >= COMPILED_BYTES
    while True:
        report = PassReport()
        sink = sink_factory()
        complete = False
        try:
            with TemporaryDirectory(prefix="pass-", dir=spill_dir) as folder:
                batches = read_batches(
                    path, dataset, window, report, wanted=wanted, bad_rows_max=bad_rows_max, batch_rows=batch_rows,
                    exact=exact, compiled=compiled,
                )  # fmt: skip
                for chunk in ordered_chunks(
                    batches, dataset, window, symbol_of, report, spill_dir=Path(folder), budget_rows=budget_rows,
                    chunk_rows=chunk_rows, external=external,
                ):  # fmt: skip
                    sink.write(chunk)
            complete = True
            return report
        except NeedsPlainPass:
            compiled = False
        except NeedsExactPass:
            exact = True
        except NeedsExternalSort:
            external = True
        finally:
            if not complete:
                sink.abort()
