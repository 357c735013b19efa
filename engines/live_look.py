"""
Looking at trades that cells hold already: which instruments, what price before, what price last.

Run in a worker for cells that another engine filled, or that were there when the daemon started. This module must never
change a row or know the state directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engines.contract import Batch, Task, Workplace
from engines.derived_rows import InputRows, read_inputs, text_codes
from engines.live_pass import TRADED


@dataclass(frozen=True, slots=True)
class LookArguments:
    """Cells of one session: arrays [n], and their rows, a range each in the same order."""

    symbol_ids: np.ndarray
    minutes: np.ndarray
    payload_ids: np.ndarray
    rows: InputRows


@dataclass(slots=True)
class Looked:
    """What the cells hold."""

    tickers: list[str] = field(default_factory=list)
    traded: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=TRADED))
    """TRADED[n]."""
    cell: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """i64[n], the cell that each of them is in."""


def run(task: Task, workplace: Workplace) -> Batch:
    """
    Read the cells; the report is a :class:`Looked`.

    Raises:
        TaskFailed: an artifact is missing or shorter than its cells say.
    """
    arguments: LookArguments = task.arguments
    frame, owner = read_inputs(workplace.artifact_root, arguments.rows, ["ticker", "price", "previous_price"])
    if frame is None:
        return Batch(report=Looked())
    code, tickers = text_codes(frame["ticker"])
    starts = np.flatnonzero(np.append(True, (code[1:] != code[:-1]) | (owner[1:] != owner[:-1])))
    ends = np.append(starts[1:], len(code)) - 1
    traded = np.zeros(len(starts), dtype=TRADED)
    traded["ticker"], traded["minute"] = code[starts], arguments.minutes[owner[starts]]
    traded["previous"] = frame["previous_price"].fill_null(float("nan")).to_numpy()[starts]
    traded["last"] = frame["price"].to_numpy()[ends]
    return Batch(report=Looked(tickers, traded, owner[starts]))
