"""
The runway: for how many trading days there is room, if each takes what the newest filled sessions took.

Measured, not guessed: rows, artifacts and the share of the mapping files of the newest sessions that have artifacts. A
state without such a session has no history, and no runway is claimed for it. This module must never walk a directory.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

from ledger.state import State
from m17d.replies import Space

SESSIONS: Final = 5
"""Newest filled sessions whose size says how much the next one will take."""
SHORT_DAYS: Final = 10
"""A runway below this is warned of."""


class Runway:
    """Looks at the space of one state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.artifacts = 0
        """Artifacts that records point into, as of the last look."""
        self.artifact_bytes: dict[str, int] = {}
        """Session -> bytes of its artifacts, as they were written."""

    def look(self) -> Space:
        """Free bytes now, bytes of a session, and days; the latter two None without history."""
        self._take_artifacts()
        free = shutil.disk_usage(self._state.directory).free
        each = self._bytes_of_a_session()
        return Space(
            free_bytes=free,
            session_bytes=round(each) if each else None,
            runway_days=round(free / each, 1) if each else None,
        )

    def _take_artifacts(self) -> None:
        """Add up the artifacts that came since the last time."""
        artifacts = self._state.artifacts
        for artifact_id in range(self.artifacts + 1, len(artifacts) + 1):
            one = artifacts.get(artifact_id)
            self.artifact_bytes[one.session] = self.artifact_bytes.get(one.session, 0) + one.bytes
        self.artifacts = len(artifacts)

    def _bytes_of_a_session(self) -> float:
        """Bytes on the state's file system that a session takes: rows, artifacts, and its part of the mapping files."""
        state = self._state
        filled = sorted(session for session, size in self.artifact_bytes.items() if size)
        if not filled:
            return 0.0
        newest = filled[-SESSIONS:]
        here = os.stat(state.directory).st_dev == os.stat(state.artifact_root).st_dev
        total = sum(self.artifact_bytes[session] for session in newest) if here else 0
        for session in newest:
            for ledger in (state.trade, state.enrichment):
                path = ledger.path(state.calendar.session_seq(session))
                if path.exists():
                    total += path.stat().st_blocks * 512
        maps = sum(one.logical_bytes for one in state.maps.values()) / len(filled)
        return total / len(newest) + maps
