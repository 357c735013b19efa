"""
Regional: how far regions are, by minute and column, all of a session at once and only where something moved.

A refill of many symbols makes as many regions; looked at one by one every second they would hold up requests. This module must
never change a region or a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, Column
from ledger.regions import PriorityRegion, expand
from ledger.state import State
from m17d.standing import Standing


@dataclass(slots=True)
class RegionProgress:
    """Windows of a region, how many of them are whole in every column that counts there, and how many by column."""

    minutes: int = 0
    complete: int = 0
    by_column: dict[Column, int] = field(default_factory=dict)


Windows = list[tuple[PriorityRegion, tuple[Column, ...], np.ndarray]]
"""Regions that touch a session, their columns, and their minutes of it, i64 from the open."""


class Regional:
    """
    The progress of regions of one state.

    Args:
        standing: how cells of a column and some symbols of a session stand.
        signature: of a session; equal while none of its cells moved.
        columns: those that a region is about.
    """

    def __init__(
        self,
        state: State,
        standing: Callable[[str, Column, np.ndarray], Standing],
        signature: Callable[[str], Any],
        columns: Callable[[PriorityRegion], tuple[Column, ...]],
    ) -> None:
        self._state = state
        self._standing = standing
        self._signature = signature
        self._columns = columns
        self._held: dict[str, tuple[Any, dict[int, RegionProgress]]] = {}

    def progress(self, regions: Iterable[PriorityRegion]) -> dict[int, RegionProgress]:
        """How far each region is, by its id."""
        wanted = list(regions)
        found = {region.id: RegionProgress(by_column=dict.fromkeys(self._columns(region), 0)) for region in wanted}
        sessions: dict[int, Windows] = {}
        for region in wanted:
            minute_idx = expand(region, self._state.calendar).astype(np.int64)
            found[region.id].minutes = len(minute_idx)
            for seq in np.unique(minute_idx // MINUTES_PER_SESSION).tolist():
                minutes = minute_idx[minute_idx // MINUTES_PER_SESSION == seq] % MINUTES_PER_SESSION
                sessions.setdefault(seq, []).append((region, self._columns(region), minutes))
        for seq, windows in sessions.items():
            for region_id, part in self._of_session(self._state.calendar.date(seq), windows).items():
                found[region_id].complete += part.complete
                for column, number in part.by_column.items():
                    found[region_id].by_column[column] += number
        return found

    def _of_session(self, session: str, windows: Windows) -> dict[int, RegionProgress]:
        """What a session adds; kept while its cells and the configured columns stay as they are."""
        signature = (self._signature(session), len(self._state.symbols))
        held = self._held.get(session)
        if held is None or held[0] != signature:
            held = self._held[session] = (signature, {})
        parts = held[1]
        self._look(session, [one for one in windows if one[0].id not in parts], parts)
        return {region.id: parts[region.id] for region, _, _ in windows}

    def _look(self, session: str, windows: Windows, parts: dict[int, RegionProgress]) -> None:
        symbols: dict[Column, set[int]] = {}
        for region, columns, _ in windows:
            for column in columns:
                symbols.setdefault(column, set()).add(region.symbol_id)
        ids = {column: np.array(sorted(those), dtype=np.int64) for column, those in symbols.items()}
        standings = {column: self._standing(session, column, those) for column, those in ids.items()}
        for region, columns, minutes in windows:
            part = parts[region.id] = RegionProgress()
            whole, counted = np.ones(len(minutes), dtype=bool), np.zeros(len(minutes), dtype=bool)
            for column in columns:
                row = int(np.searchsorted(ids[column], region.symbol_id))
                counts, sound = standings[column].counts[row, minutes], standings[column].whole[row, minutes]
                part.by_column[column] = int(np.count_nonzero(sound & counts))
                whole &= sound | ~counts
                counted |= counts
            part.complete = int(np.count_nonzero(whole & counted))
