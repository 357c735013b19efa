"""
Reading curves in a process of its own: from a file, or over HTTP with all pages.

A service that does not answer is :class:`Trouble` that passes, not a failed task; a file that is no curves is a failed one,
until it changes. This module must never hold the key: it takes it from the environment where it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engines.contract import Batch, Task, TaskFailed, Workplace
from engines.feeds.treasury_yields import Curve
from engines.pauses import Trouble, trouble_of


@dataclass(frozen=True, slots=True)
class ReadArguments:
    """What to read: a path or an address, and for an address the first date and the variable that holds the key."""

    source: str
    date_from: str = ""
    key_env: str = ""
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Read:
    """The curves, ascending by date, or why there are none now."""

    curves: list[Curve]
    trouble: Trouble | None = None
    requests: int = 0


def read(task: Task, workplace: Workplace) -> Batch:
    """
    Read all curves of a source; the report is a :class:`Read`.

    Raises:
        TaskFailed: the file cannot be read; names it and what is wrong.
    """
    del workplace
    from engines.feeds.feed_errors import FeedError
    from engines.feeds.json_pages import PageSource
    from engines.feeds.treasury_yields import fetch_yields, read_yields

    arguments: ReadArguments = task.arguments
    try:
        if not arguments.key_env:
            return Batch(report=Read(read_yields(Path(arguments.source))))
    except (FeedError, OSError) as error:
        hint = getattr(error, "hint", "") or "check the file's owner"
        raise TaskFailed(str(error), hint=hint) from error
    key = os.environ.get(arguments.key_env, "")
    with PageSource(arguments.source, key, timeout_seconds=arguments.timeout_s) as source:
        try:
            curves = fetch_yields(source, date_from=arguments.date_from)
        except FeedError as error:
            return Batch(report=Read([], trouble_of(error), source.counts.requests))
        return Batch(report=Read(curves, None, source.counts.requests))


def fill(task: Task, workplace: Workplace) -> Batch:
    """The spans were made when the task was planned; the commit sets them."""
    del workplace
    return Batch(spans=task.arguments)
