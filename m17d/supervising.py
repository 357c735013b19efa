"""
Supervising: which engines an operator paused, over restarts.

A small file in the state directory, rewritten whole at every change. This module must never start or stop a process.
"""

from __future__ import annotations

from ledger.documents import PAUSED_FILE, PAUSED_KIND, read_document, write_document
from ledger.state import State
from m17d.runner import Runner

_HINT = "remove the file, start m17d, and pause the engines again that are to stand still"


class Supervising:
    """Pauses of one state; the runner heeds them."""

    def __init__(self, state: State, runner: Runner) -> None:
        self._state = state
        self._runner = runner
        kept: dict[str, str] = read_document(state.system, state.directory / PAUSED_FILE, PAUSED_KIND, _HINT) or {}
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
        paused = dict(sorted(self._runner.paused.items()))
        write_document(self._state.system, self._state.directory / PAUSED_FILE, PAUSED_KIND, paused)
