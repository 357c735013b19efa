"""
Supervising: which engines an operator paused, over restarts.

A small file in the state directory, rewritten whole at every change. This module must never start or stop a process.
"""

from __future__ import annotations

import json

from ledger.files import read_whole, write_atomically
from ledger.state import State
from m17d.runner import Runner

_FILE = "paused"


class Supervising:
    """Pauses of one state; the runner heeds them."""

    def __init__(self, state: State, runner: Runner) -> None:
        self._state = state
        self._runner = runner
        data = read_whole(state.system, state.directory / _FILE)
        kept: dict[str, str] = json.loads(data) if data else {}
        runner.paused.update({name: why for name, why in kept.items() if name in runner.engines})

    def pause(self, name: str, why: str) -> None:
        """Let an engine finish its tasks and take no more, until it is resumed; holds over restarts."""
        self._runner.paused[name] = why
        self._save()

    def resume(self, name: str) -> None:
        """Let an engine work again."""
        self._runner.paused.pop(name, None)
        self._save()
        self._runner.wake()

    def _save(self) -> None:
        text = json.dumps(self._runner.paused, sort_keys=True)
        write_atomically(self._state.system, self._state.directory / _FILE, text.encode())
