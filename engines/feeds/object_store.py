"""
Files of a source, wherever they are: a local folder, or a bucket of an S3-compatible store, behind one interface.

A download goes to a temporary file by ranges, remembers beside it which object it is a part of (ETag and size), and goes
on where it stopped, in this process or the next; an object that was replaced meanwhile starts anew. The file gets its
name when its length is right and, for ``.gz``, its whole gzip stream is read back without complaint. Credentials and
endpoint come from the environment. This module must never write to a source, or leave a file under its name that is not
the whole object.

Environment: ``M17_S3_ENDPOINT`` (or ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``), ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION`` (or ``AWS_DEFAULT_REGION``).
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from engines.feeds.feed_errors import (
    FeedError,
    SourceFailing,
    SourceMissing,
    SourceRefused,
    SourceReplaced,
    SourceUnreachable,
)
from engines.feeds.retrying import RetryPolicy

if TYPE_CHECKING:
    from obstore.store import S3Store

RANGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one request; what a cut costs at most."""
ENDPOINT_VARIABLES: Final = ("M17_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_READ_BYTES: Final = 1024 * 1024
_GZIP_WINDOW: Final = 31

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """
    What is known of one object without reading it.

    Attributes:
        name: relative to the source, with ``/``.
        size: bytes.
        etag: changes when the content does; of local files it is made from inode, size and time of change.
        last_modified_ns: ns UTC.
    """

    name: str
    size: int
    etag: str
    last_modified_ns: int


@dataclass(slots=True)
class TransferCounts:
    """What downloads took: bytes that came, bytes that were there already, and failures that were tried again."""

    bytes_received: int = 0
    bytes_resumed: int = 0
    retried: dict[str, int] = field(default_factory=dict)


class FileSource(Protocol):
    """A place with files; what both kinds of source can do."""

    address: str
    """As it was given."""
    counts: TransferCounts

    def stat(self, name: str) -> ObjectFacts:
        """Facts of one object; SourceMissing where there is none."""

    def exists(self, name: str) -> bool:
        """Whether there is such an object; other failures are raised."""

    def list(self, prefix: str = "") -> Iterator[ObjectFacts]:
        """All objects whose name begins with ``prefix`` (whole folders), in order of name."""

    def download(self, name: str, target: Path, *, progress: Progress | None = None) -> ObjectFacts:
        """Bring the whole object to ``target`` and say what it is. See :class:`BucketSource`."""

    def local_path(self, name: str) -> Path | None:
        """The file itself where it needs no download, else None."""


def open_source(address: str | Path, **settings: Any) -> FileSource:
    """
    The source at an address: ``s3://bucket[/prefix]``, or a local folder.

    Args:
        settings: of :class:`BucketSource`; ignored for local folders.

    Raises:
        ValueError: the address has another scheme, or no bucket.
    """
    text = str(address)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "s3":
        return BucketSource(text, **settings)
    if scheme == "file":
        return FolderSource(Path(urlsplit(text).path))
    if scheme:
        raise ValueError(f"{text!r}: sources are local folders or s3://bucket/prefix, not {scheme}://")
    return FolderSource(Path(text))


class FolderSource:
    """A local folder; a download is a checked copy."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder)
        self.counts = TransferCounts()
        self._folder = folder

    def local_path(self, name: str) -> Path | None:
        """The file itself, whether it is there or not."""
        return self._folder / name

    def stat(self, name: str) -> ObjectFacts:
        """
        Facts of one file.

        Raises:
            SourceMissing: no such file.
            SourceRefused: it may not be looked at.
        """
        path = self._folder / name
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise SourceMissing(str(path), "no such file") from None
        except PermissionError:
            raise SourceRefused(str(path), "permission denied", "check the owner of the folder") from None
        etag = f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"
        return ObjectFacts(name, found.st_size, etag, found.st_mtime_ns)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.stat(name)
        except SourceMissing:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectFacts]:
        """Files below a folder of the source, in order of name; none where the folder is not there."""
        top = self._folder / prefix
        for path in sorted(each for each in top.rglob("*") if each.is_file()):
            yield self.stat(str(PurePosixPath(path.relative_to(self._folder))))

    def download(self, name: str, target: Path, *, progress: Progress | None = None) -> ObjectFacts:
        """
        Copy a file, checked as :meth:`BucketSource.download` does.

        Raises:
            SourceMissing: no such file.
            SourceReplaced: the file changed while it was copied.
            SourceFailing: its gzip stream is damaged.
            OSError: reading or writing failed.
        """
        facts = self.stat(name)
        partial = target.with_name(target.name + ".part")
        check = _GzipCheck(name)
        with (self._folder / name).open("rb") as source, partial.open("wb") as sink:
            while piece := source.read(_READ_BYTES):
                check.take(piece)
                sink.write(piece)
                if progress is not None:
                    progress(sink.tell(), facts.size)
            os.fsync(sink.fileno())
        if self.stat(name) != facts:
            partial.unlink()
            raise SourceReplaced(f"{self.address}/{name}", "the file changed while it was copied")
        check.end(f"{self.address}/{name}", partial)
        partial.replace(target)
        return facts


class _Partial(msgspec.Struct, frozen=True):
    """Of which object the partial file is a part; kept beside it."""

    address: str
    etag: str
    size: int


class BucketSource:
    """
    A bucket, or a prefix of it. Not for use by several threads at once.

    Args:
        address: ``s3://bucket[/prefix]``.
        endpoint: of the store; None takes the environment's, '' the provider's own.
        policy: attempts in a row without a byte, and their pauses.
        range_bytes: bytes of one request.
        bytes_per_second: cap of the transfer, None for none.
        timeout_seconds: without any byte.
        sleep, clock: how to wait and to measure the rate.

    Raises:
        ValueError: no bucket in the address.
    """

    def __init__(
        self,
        address: str,
        *,
        endpoint: str | None = None,
        policy: RetryPolicy | None = None,
        range_bytes: int = RANGE_BYTES,
        bytes_per_second: float | None = None,
        timeout_seconds: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"{address!r}: expected s3://bucket/prefix")
        self.address = address.rstrip("/")
        self.counts = TransferCounts()
        self._prefix = parts.path.strip("/")
        self._policy = policy or RetryPolicy()
        self._range_bytes = range_bytes
        self._bytes_per_second = bytes_per_second
        self._sleep = sleep
        self._clock = clock
        if endpoint is None:
            endpoint = next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), "")
        self._store = _store(parts.netloc, endpoint, timeout_seconds)

    def local_path(self, name: str) -> Path | None:  # noqa: ARG002  (the interface of all sources)
        """None: an object has to be downloaded."""
        return None

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _attempts[Answer](self, what: str, call: Callable[[], Answer]) -> Answer: ...


