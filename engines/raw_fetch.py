"""
What a fetcher does for the engines that read flat files: list months of a bucket, and bring objects to the state's folder.

A failure of the place comes back as :class:`Trouble`, not as a failed task: it passes by itself, so the engine waits and
asks again. A download stops where quiet hours begin, and what came stays. This module must never know the state.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engines.contract import Batch, Task, Workplace
from engines.feeds.object_store import ObjectFacts
from engines.hours import quiet_until
from engines.pauses import Trouble, trouble_of
from ledger.columns import Dataset

if TYPE_CHECKING:
    from engines.feeds.bucket_source import BucketSource

_PROGRESS_INTERVAL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and how to reach it; None takes the environment's. Credentials are never part of it."""

    address: str
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = True
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ListArguments:
    """Prefixes to list, and files of the state's folder that are not needed any more."""

    place: Place
    prefixes: tuple[str, ...]
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DownloadArguments:
    """
    One object to bring.

    Attributes:
        name: of the object, relative to the place.
        etag, size: as it was listed.
        target: where to, without what tells objects of one name apart; see :func:`target_of`.
        quiet: (start, end) in ns UTC, times that the line belongs to others.
        quiet_bytes_per_s: what may be used of it then; None stops the download.
        remove: files that make room first.
    """

    place: Place
    dataset: Dataset
    name: str
    etag: str
    size: int
    target: str
    quiet: tuple[tuple[int, int], ...] = ()
    quiet_bytes_per_s: float | None = None
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """Objects by prefix, of the prefixes that were listed before any trouble."""

    objects: dict[str, tuple[ObjectFacts, ...]] = field(default_factory=dict)
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """One object under its name, or why not; bytes that came, and that were there from before."""

    facts: ObjectFacts | None
    path: str = ""
    received: int = 0
    resumed: int = 0
    trouble: Trouble | None = None


class _Quiet(Exception):
    """Quiet hours began."""


def target_of(stem: str, etag: str) -> str:
    """Path of a downloaded object: another object of the same name has another path."""
    return f"{stem}-{''.join(letter for letter in etag if letter.isalnum())}.csv.gz"


def list_objects(task: Task, workplace: Workplace) -> Batch:
    """List prefixes, one request a thousand objects; the report is a :class:`Listed`."""
    from engines.feeds.feed_errors import FeedError

    arguments: ListArguments = task.arguments
    _remove(arguments.remove)
    source = _source(arguments.place)
    found: dict[str, tuple[ObjectFacts, ...]] = {}
    try:
        for done, prefix in enumerate(arguments.prefixes):
            workplace.progress(done, len(arguments.prefixes))
            found[prefix] = tuple(source.list(prefix))
    except FeedError as error:
        return Batch(report=Listed(found, trouble_of(error)))
    return Batch(report=Listed(found))


def download(task: Task, workplace: Workplace) -> Batch:
    """Bring one object, going on where an earlier attempt stopped; the report is a :class:`Downloaded`."""
    from engines.feeds.feed_errors import FeedError

    arguments: DownloadArguments = task.arguments
    _remove(arguments.remove)
    source = _source(arguments.place, lambda: _rate(arguments))
    Path(arguments.target).parent.mkdir(parents=True, exist_ok=True)
    facts = None
    try:
        # The part is named by the object it is of, so that its rest is found; the object may change meanwhile.
        facts = source.stat(arguments.name)
        first = Path(target_of(arguments.target, facts.etag))
        facts = source.download(arguments.name, first, progress=_seldom(workplace.progress))
        path = Path(target_of(arguments.target, facts.etag))
        if path != first:
            first.replace(path)
        return Batch(report=Downloaded(facts, str(path), source.counts.bytes_received, source.counts.bytes_resumed))
    except FeedError as error:
        trouble = trouble_of(error)
    except _Quiet:
        trouble = Trouble("quiet", "quiet hours began")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        trouble = Trouble(
            "budget", f"{error.strerror} while writing {arguments.target}", "make room on the file system"
        )
    return Batch(report=Downloaded(facts, "", source.counts.bytes_received, source.counts.bytes_resumed, trouble))


def _rate(arguments: DownloadArguments) -> float | None:
    if quiet_until(arguments.quiet, time.time_ns()) is None:
        return None
    if arguments.quiet_bytes_per_s is None:
        raise _Quiet
    return arguments.quiet_bytes_per_s


def _source(place: Place, rate: Callable[[], float | None] = lambda: None) -> BucketSource:
    from engines.feeds.bucket_source import BucketSource

    return BucketSource(
        place.address, endpoint=place.endpoint, region=place.region, path_style=place.path_style,
        timeout_seconds=place.timeout_s, rate=rate,
    )  # fmt: skip


def _seldom(progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Progress a few times a second, whatever the size of the pieces; the last always."""
    told_s = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if done == total or now_s - told_s >= _PROGRESS_INTERVAL_S:
            told_s = now_s
            progress(done, total)

    return tell


def _remove(paths: tuple[str, ...]) -> None:
    """Large files are not removed in the daemon's thread: it may take a disk some time."""
    for path in paths:
        Path(path).unlink(missing_ok=True)
