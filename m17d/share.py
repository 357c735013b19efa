"""
Share: in what order tasks start, so that repairs cannot starve live minutes, nor live minutes repairs.

Regions go first by priority. But while both wait, every second start is a task of the session that is open now: both have
half of the starts for certain, and either has all where the other has nothing. This module must never start a task.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.contract import Task


class Share:
    """Remembers whose turn it is."""

    def __init__(self) -> None:
        self._live_last = False

    def order(self, tasks: Sequence[Task], live_session: str) -> list[Task]:
        """
        Tasks in the order in which they should start.

        Args:
            tasks: with the best of each priority first.
            live_session: the session that is open now; empty for none.
        """
        ranked = sorted(tasks, key=lambda task: -task.priority)
        live = [task for task in ranked if task.session == live_session and task.priority <= 0]
        repairs = [task for task in ranked if task.priority > 0]
        if not live or not repairs:
            return ranked
        mixed: list[Task] = []
        turns = (repairs, live) if self._live_last else (live, repairs)
        for first, second in zip(*turns, strict=False):
            mixed += (first, second)
        taken = {task.key for task in mixed}
        return mixed + [task for task in ranked if task.key not in taken]

    def started(self, task: Task, live_session: str) -> None:
        """A task was started."""
        if task.priority > 0 or task.session == live_session:
            self._live_last = task.priority <= 0
