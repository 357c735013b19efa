"""
Happenings: engines and regions that moved, which nobody reports by themselves, as events for whoever watches.

Asked every second. This module must never know who watches, nor change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m17d.runner import Runner
from m17d.wholeness import Wholeness, facts_of

Happening = tuple[str, dict[str, Any]]


class Happenings:
    """What moved since it was last asked, of things that nobody reports themselves."""

    def __init__(self, runner: Runner, wholeness: Wholeness) -> None:
        self._runner = runner
        self._wholeness = wholeness
        self._regions: dict[int, int] = {}

    def moved(self) -> Iterator[Happening]:
        """Engines whose state is another, and regions with another number of whole windows."""
        for name, before, health in self._runner.note_states():
            yield "engine", {"engine": name, "state": health.state, "before": before, "detail": health.detail}
        known = self._regions
        self._regions = self._wholeness.left()
        for region_id, left in self._regions.items():
            if region_id in known and known[region_id] != left:
                yield "region", facts_of(self._wholeness.show(region_id))
