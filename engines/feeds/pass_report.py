"""
What one pass over a file found, and the ways it can end early.

::

    SourceDamaged       the file cannot be trusted: nothing of it may be committed
    Restart             not a failure: the pass starts again another way (see engines.feeds.file_pass)
    ├─ NeedsPlainPass       the compiled reader met something that is not as upstream writes it
    ├─ NeedsExactPass       the fast reader met something that it cannot judge
    └─ NeedsExternalSort    an instrument came back after its rows were handed out

Everything here is counted in file order and holds no clock, so the same file gives the same report. This module must
never decide whether a row is good; the readers do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REFUSED_NAMES_MAX: Final = 1_000
"""Refused tickers that are named; the rows of all are counted."""


class SourceDamaged(Exception):
    """
    The file is damaged; whatever was read of it must be thrown away.

    Attributes:
        path: the file.
        line: the line the damage was noticed on, from 1 (the header), or None where it belongs to no line.
        reason: what is wrong.
        hint: what the operator can do.
    """

    def __init__(self, path: Path, line: int | None, reason: str, hint: str) -> None:
        where = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason
        self.hint = hint

    def __reduce__(self) -> tuple[type[SourceDamaged], tuple[Path, int | None, str, str]]:
        """Keep all facts when a worker process sends the error home."""
        return (SourceDamaged, (self.path, self.line, self.reason, self.hint))


class Restart(Exception):
    """The pass has to start again another way; what was handed out so far is void."""


class NeedsPlainPass(Restart):
    """The compiled reader met something that it does not know."""


class NeedsExactPass(Restart):
    """The fast reader met something that only the exact reader can judge."""


class NeedsExternalSort(Restart):
    """The file is not grouped by instrument; it has to be sorted through disk."""


@dataclass(slots=True)
class PassReport:
    """
    Counts and facts of one pass; ``rows == rows_kept + rows_unwanted + sum(rejected.values()) + len(quarantined)``.

    Attributes:
        header: the file's column names, stripped and lower-cased, in file order.
        rows: data rows read, whatever became of them.
        rows_kept: rows that were handed on.
        rows_of_day: rows, kept or not, whose time lies in the session's local day.
        rows_unwanted: good rows of tickers that nobody wanted.
        rejected: rows refused for their values, by reason.
        quarantined: lines that could not be read: (line, reason).
        out_of_time_order_rows: kept rows with an earlier SIP time than the row of their ticker before them in the file.
        rows_in_session: rows that lie in a window of the session.
        rows_outside: rows of the day that lie in none.
        symbols: per symbol the rows in the session and outside it.
        rows_refused: rows whose ticker got no symbol; part of rows_kept, in no chunk.
        refused: rows per refused ticker, for the first :data:`REFUSED_NAMES_MAX` tickers.
        size_unit: what sizes count.
        exact: the exact reader was used.
        external: rows were sorted through disk from the start.
    """

    header: tuple[str, ...] = ()
    rows: int = 0
    rows_kept: int = 0
    rows_of_day: int = 0
    rows_unwanted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    quarantined: list[tuple[int, str]] = field(default_factory=list)
    out_of_time_order_rows: int = 0
    rows_in_session: int = 0
    rows_outside: int = 0
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows_refused: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    size_unit: str = ""
    exact: bool = False
    external: bool = False

    @property
    def first_bad(self) -> str | None:
        """The first line that could not be read, as ``line N: reason``."""
        if not self.quarantined:
            return None
        line, reason = self.quarantined[0]
        return f"line {line}: {reason}"

    def reject(self, reason: str, rows: int) -> None:
        """Count rows that were refused for their values."""
        if rows:
            self.rejected[reason] = self.rejected.get(reason, 0) + rows

    def refuse(self, ticker: str, rows: int) -> None:
        """Count rows whose ticker got no symbol."""
        self.rows_refused += rows
        if ticker in self.refused or len(self.refused) < REFUSED_NAMES_MAX:
            self.refused[ticker] = self.refused.get(ticker, 0) + rows

    def count_symbol(self, symbol: str, inside: int, outside: int) -> None:
        """Add rows to a symbol's counts."""
        before = self.symbols.get(symbol, (0, 0))
        self.symbols[symbol] = (before[0] + inside, before[1] + outside)
        self.rows_in_session += inside
        self.rows_outside += outside
