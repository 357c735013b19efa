"""
The engine ``quote``: flat files of stocks and options, the websocket, or both, into ``quote_ref``.

What it does is said in ``engines.raw`` for files and in ``engines.live`` for the websocket; where it has both, the better
source supersedes in the ledger, and the two know nothing of each other. This module must never do more than join them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.contract import Batch, Context, Health, Number, Task, Waiting
from engines.live import STREAM_KEYS, LiveEngine
from engines.raw import FlatFileEngine
from ledger.columns import Column, Dataset

NAME: Final = "quote"
_SHARED_KEYS: Final = frozenset({"symbols", "symbols_file", "key_env", "rest"})
"""Keys that mean the same to both."""
_STATES: Final = ("failed", "degraded", "starting", "paused", "running", "idle")
"""States of the two, the worst first."""


def build(table: Mapping[str, Any], base: Path) -> FlatFileEngine | LiveEngine | QuoteEngine:
    """
    The engine from its config table.

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table is wrong, or it has neither source nor stream.
    """
    if "stream" not in table:
        return _files(table, base)
    stream = LiveEngine(NAME, Column.QUOTE_REF, {key: table[key] for key in STREAM_KEYS if key in table}, base)
    own = {key: value for key, value in table.items() if key not in STREAM_KEYS or key in _SHARED_KEYS}
    if "source" in own:
        return QuoteEngine(_files(own, base), stream)
    if own.keys() - _SHARED_KEYS:
        raise ValueError(f"{', '.join(sorted(own.keys() - _SHARED_KEYS))}: for files, and there is no source of files")
    return stream


def _files(table: Mapping[str, Any], base: Path) -> FlatFileEngine:
    return FlatFileEngine(NAME, Column.QUOTE_REF, (Dataset.STOCK_QUOTES, Dataset.OPTION_QUOTES), table, base)


class QuoteEngine:
    """Files and the websocket as one engine."""

    name = NAME
    writes = (Column.QUOTE_REF,)

    def __init__(self, files: FlatFileEngine, stream: LiveEngine) -> None:
        self.files = files
        self.stream = stream
        self.config = files.config
        self.source = files.source

    def start(self, context: Context) -> None:
        """Take the context."""
        self.files.start(context)
        self.stream.start(context)

    def stop(self) -> None:
        """Let go of everything."""
        self.files.stop()
        self.stream.stop()

    def health(self) -> Health:
        """The worse of the two, with the details of both."""
        both = [self.files.health(), self.stream.health()]
        state = min((one.state for one in both), key=_STATES.index)
        return Health(state, "; ".join(one.detail for one in both if one.detail))

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return [*self.files.describe_priority_hooks(), *self.stream.describe_priority_hooks()]

    def plan(self, limit: int) -> list[Task]:
        """Minutes of the websocket first: they take moments. Each up to the limit, so that neither keeps the other out."""
        return [*self.stream.plan(limit), *self.files.plan(limit)]

    def started(self, task: Task) -> None:
        """It is at work."""
        self.files.started(task)
        self.stream.started(task)

    def ended(self, task: Task) -> None:
        """It is over."""
        self.files.ended(task)
        self.stream.ended(task)

    def finished(self, task: Task, batch: Batch) -> None:
        """Its cells are set."""
        (self.stream if self.stream.owns(task) else self.files).finished(task, batch)

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """The task failed for good."""
        (self.stream if self.stream.owns(task) else self.files).failed(task, reason, report)

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: what either brings."""
        masks = [
            mask for mask in (one.covers(session, column) for one in (self.files, self.stream)) if mask is not None
        ]
        return np.logical_or.reduce(masks) if masks else None

    def covering(self, session: str) -> int:
        """Both, told apart."""
        return 2 * self.stream.covering(session) + self.files.covering(session)

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """What either cannot do now."""
        return [*self.files.waiting(session), *self.stream.waiting(session)]

    def backlog(self) -> int:
        """Of both."""
        return self.files.backlog() + self.stream.backlog()

    def numbers(self) -> list[Number]:
        """Of both."""
        return [*self.files.numbers(), *self.stream.numbers()]

    def refills(self, session: str, column: Column) -> bool:
        """Whether windows of a session can be fetched over REST."""
        return self.files.refills(session, column)

    def lacks_file(self, session: str, dataset: Dataset) -> bool:
        """Whether the place of its files is known to have none of a session now."""
        return self.files.lacks_file(session, dataset)

    def descriptors(self) -> list[int]:
        """Of the websocket's feed."""
        return self.stream.descriptors()

    def listen(self) -> bool:
        """Take what the feed says."""
        return self.stream.listen()

    def expects(self) -> bool:
        """Whether the feed may bring work by itself."""
        return self.stream.expects()

    def retry(self) -> None:
        """Try again now whatever waits."""
        self.files.retry()
        self.stream.retry()
