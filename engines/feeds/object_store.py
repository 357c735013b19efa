"""
Files of a source, wherever they are: a local folder, or a bucket of an S3-compatible store, behind one interface.

A file gets its name when its length is right and, for ``.gz``, its whole gzip stream was read without complaint. Buckets
are in :mod:`engines.feeds.bucket_source`. This module must never write to a source, or leave a file under its name that
is not the whole object.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from engines.feeds.feed_errors import ObjectDamaged, SourceMissing, SourceRefused, SourceReplaced
from engines.feeds.gzip_check import GzipCheck

READ_BYTES: Final = 1024 * 1024
"""Bytes that are read at once."""

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
        """Bring the whole object to ``target`` and say what it is. See :class:`engines.feeds.bucket_source.BucketSource`."""

    def local_path(self, name: str) -> Path | None:
        """The file itself where it needs no download, else None."""


def open_source(address: str | Path, **settings: Any) -> FileSource:
    """
    The source at an address: ``s3://bucket[/prefix]``, or a local folder.

    Args:
        settings: of :class:`engines.feeds.bucket_source.BucketSource`; ignored for local folders.

    Raises:
        ValueError: the address has another scheme, or no bucket.
    """
    text = str(address)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "s3":
        from engines.feeds.bucket_source import BucketSource

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
        Copy a file, checked as a bucket's download does.

        Raises:
            SourceMissing: no such file.
            SourceReplaced: the file changed while it was copied.
            ObjectDamaged: its gzip stream is damaged.
            OSError: reading or writing failed.
        """
        facts = self.stat(name)
        partial = target.with_name(target.name + ".part")
        check = GzipCheck(name)
        with (self._folder / name).open("rb") as source, partial.open("wb") as sink:
            while piece := source.read(READ_BYTES):
                check.take(piece)
                sink.write(piece)
                if progress is not None:
                    progress(sink.tell(), facts.size)
            os.fsync(sink.fileno())
        if self.stat(name) != facts:
            partial.unlink()
            raise SourceReplaced(f"{self.address}/{name}", "the file changed while it was copied")
        refuse_damaged(check, f"{self.address}/{name}", partial)
        partial.replace(target)
        return facts


def refuse_damaged(check: GzipCheck, where: str, partial: Path) -> None:
    """
    Remove a file that is no whole gzip stream.

    Raises:
        ObjectDamaged: it was none.
    """
    if damage := check.damage():
        partial.unlink()
        raise ObjectDamaged(where, damage, "the object itself is damaged; ask for it to be replaced")
