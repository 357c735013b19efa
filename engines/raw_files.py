"""
Where the flat files of an engine are: what there is of a dataset and session, and where its bytes can be read.

A folder has them at once; a bucket (``engines.raw_bucket``) has to be asked, and its objects brought. Both are seen
through :class:`Upstream`. This module must never read what is in a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from engines.contract import Context, Health, Number, Task, Waiting
from ledger.columns import Dataset


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of an engine's table that say where flat files are and how they are brought."""

    source: Annotated[str, Meta(min_length=1)]
    """Folder that holds ``us_stocks_sip`` and ``us_options_opra``, or ``s3://bucket[/prefix]``."""
    published: Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "11:00"
    """Exchange-local time of the next day by which a session's files are there; before it none is waited for."""
    endpoint: str | None = None
    """Of the store, such as ``https://files.massive.com``; absent = ``M17_S3_ENDPOINT`` or ``AWS_ENDPOINT_URL_S3``."""
    region: str | None = None
    """Absent = ``AWS_REGION``, or ``us-east-1``."""
    path_style: bool = True
    """The bucket is part of the path; false makes it part of the host's name."""
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """Without a byte, after which a request is given up and made again."""
    check_s: Annotated[float, Meta(ge=1)] = 300.0
    """How often a bucket is listed for sessions of the last two weeks; for older ones 24 times more rarely."""
    quiet_hours: bool = True
    """Nothing is downloaded while the exchange is open, and before it opens, unless a region asks."""
    quiet_before_minutes: Annotated[int, Meta(ge=0, le=600)] = 15
    quiet_mib_per_s: Annotated[float, Meta(gt=0)] = 8.0
    """What a region's download may use of the line in quiet hours."""
    download_budget_gib: Annotated[float, Meta(gt=0)] = 50.0
    """What downloaded files of this engine may take of the disk, parts included."""
    source_days: Annotated[float, Meta(ge=0)] = 3.0
    """How long a downloaded file is kept after it was read, for repairs."""


@dataclass(frozen=True, slots=True)
class UpstreamFile:
    """
    One upstream file: what it is called, and what is there.

    Attributes:
        address: path or URL, without credentials.
        size: bytes.
        etag: changes when the content does; '' where there is no such file.
    """

    dataset: Dataset
    session: str
    address: str
    size: int = 0
    etag: str = ""

    @property
    def exists(self) -> bool:
        """Whether it is there."""
        return bool(self.etag)


@dataclass(frozen=True, slots=True)
class Need:
    """A file whose bytes are needed, the priority of the highest region that asks for it, and the ids it is for."""

    file: UpstreamFile
    priority: int


class Upstream(Protocol):
    """A place with flat files, as the engines see it; cheap, because it is asked in the daemon's thread."""

    def start(self, context: Context) -> None:
        """Take the context."""

    def find(self, dataset: Dataset, session: str) -> UpstreamFile | None:
        """What is there of a session, or None while that is not known."""

    def path(self, file: UpstreamFile) -> Path | None:
        """Where the file can be read now, None where it has to be brought."""

    def tasks(self, sessions: Iterable[str], needs: list[Need], limit: int) -> list[Task]:
        """What has to be asked or brought: for sessions that are looked for, and files that are needed, best first."""

    def finished(self, task: Task, report: Any) -> tuple[UpstreamFile, str] | None:
        """Take what a task brought; a file that can never be used as it is, and why, or None."""

    def waiting(self) -> list[Waiting]:
        """What cannot be asked or brought now, and why."""

    def health(self) -> Health | None:
        """In words, what is wrong or being brought; None where nothing is."""

    def numbers(self) -> list[Number]:
        """What was brought and is kept, for the metrics."""

    def retry(self) -> None:
        """Ask again at once."""

    def started(self, task: Task) -> None:
        """One of its tasks, or of the engine's, is at work."""

    def ended(self, task: Task) -> None:
        """It is over, whatever became of it."""


def name_of(dataset: Dataset, session: str) -> str:
    """The upstream name of a session's file, relative to the source."""
    return f"{dataset.value}/{session[:4]}/{session[5:7]}/{session}.csv.gz"


class FolderFiles:
    """Flat files below a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, context: Context) -> None:
        """Nothing is needed."""

    def find(self, dataset: Dataset, session: str) -> UpstreamFile:
        """What is there now: one ``stat``."""
        # Text, not paths: a year of sessions is looked for every two seconds, in the daemon's loop.
        path = f"{self._folder}/{name_of(dataset, session)}"
        try:
            found = os.stat(path)
        except OSError:
            return UpstreamFile(dataset, session, path)
        return UpstreamFile(dataset, session, path, found.st_size, f"{found.st_size:x}-{found.st_mtime_ns:x}")

    def path(self, file: UpstreamFile) -> Path:
        """The file itself."""
        return Path(file.address)

    def tasks(self, sessions: Iterable[str], needs: list[Need], limit: int) -> list[Task]:  # noqa: ARG002
        """None: everything is there."""
        return []

    def finished(self, task: Task, report: Any) -> tuple[UpstreamFile, str] | None:  # noqa: ARG002
        """Never called."""
        return None

    def waiting(self) -> list[Waiting]:
        """Nothing."""
        return []

    def health(self) -> Health | None:
        """Nothing to say."""
        return None

    def numbers(self) -> list[Number]:
        """None."""
        return []

    def retry(self) -> None:
        """Nothing is put off."""

    def started(self, task: Task) -> None:
        """Nothing to note."""

    def ended(self, task: Task) -> None:
        """Nothing to note."""
