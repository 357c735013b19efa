"""
The verdict: in one line of words what is wrong now, and the command that looks closer.

Said of counts and records that others hold. This module must never count a cell itself, nor change anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ledger.columns import Column
from ledger.coverage import COUNT_NAMES
from ledger.sources import SourceRecord, SourceState
from ledger.state import State
from m17d.measuring import InUse
from m17d.runner import Runner

_TROUBLES = [COUNT_NAMES.index(name) for name in ("empty", "cleared", "suspect", "stale")]
_COLUMNS_NAMED_MAX = 4


def verdict(
    state: State, runner: Runner, totals: dict[Column, dict[str, int]], sources: Sequence[SourceRecord] | None = None
) -> str:
    """In one line of words, what is wrong now; of the sources with ``sources`` where only some are asked about."""
    sources = list(state.sources.all()) if sources is None else sources
    damaged = sum(one.state is SourceState.DAMAGED for one in sources)
    waiting = sum(one.state is SourceState.WAITING for one in sources)
    health = {name: runner.health(name).state for name in runner.engines}
    parts = []
    if runner.blocked:
        parts.append(f"nothing is written: {runner.blocked}")
    if runner.refused:
        parts.append(f"the symbol cap refused {_count(len(runner.refused), 'symbol')}")
    for word in ("failed", "degraded"):
        if names := [name for name, found in health.items() if found == word]:
            parts.append(f"{word}: {', '.join(names)}")
    if runner.paused:
        parts.append(f"paused: {', '.join(runner.paused)}")
    if damaged:
        parts.append(f"{_count(damaged, 'damaged source')}")
    if open_cells := sum(counts["empty"] + counts["cleared"] for counts in totals.values()):
        parts.append(f"{_count(open_cells, 'due cell')} not filled")
    if waiting:
        parts.append(f"{_count(waiting, 'source')} waited for")
    for word in ("suspect", "stale"):
        if cells := sum(counts[word] for counts in totals.values()):
            parts.append(f"{_count(cells, f'{word} cell')}")
    if running := len(runner.running()):
        parts.append(f"{_count(running, 'task')} at work")
    return "; ".join(parts) if parts else "whole: every due cell is filled, fresh and sound"


def look(in_use: InUse) -> str:
    """The command that says why the cells of the newest session that has trouble are as they are; empty for none."""
    for session, measured in reversed(in_use):
        troubled = np.flatnonzero(measured.counts[:, _TROUBLES].sum(axis=1))
        if len(troubled):
            columns = [list(Column)[one].value for one in troubled]
            words = f"{','.join(columns)} " if len(columns) <= _COLUMNS_NAMED_MAX else ""
            return f"m17ctl why {words}--session {session}"
    return ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
