"""
Framed: an append-only file of framed records behind a header page; every append is durable when it returns.

What the small stores (sources, regions) stand on. It must never know what a record means, and never lose a record it
has said is written: a failed append is cut off again, a failed rewrite keeps the old file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ledger.closing import check_end
from ledger.errors import DamagedFile, SpaceError, StateReadOnly
from ledger.files import (
    HEADER_BYTES,
    BytesLike,
    PathLike,
    System,
    decode_header,
    encode_frame,
    encode_header,
    read_frames,
    read_whole,
    replace_file,
    write_atomically,
)


class FramedFile:
    """
    A file of framed records, open for appending (or, read-only, a path and nothing else).

    One record is one write and one sync, so a crash can only tear the last record, never one in the middle.
    """

    def __init__(
        self, system: System, path: Path, header: bytes, length: int, descriptor: int, torn_bytes: int
    ) -> None:
        self._system = system
        self._header = header
        self._descriptor = descriptor
        self.path = path
        self.length = length
        """Bytes of the file that hold the header and good frames."""
        self.torn_bytes = torn_bytes
        """Bytes of a torn tail that were found at open (and cut off, unless read-only)."""

    @classmethod
    def open(
        cls,
        system: System,
        path: PathLike,
        kind: str,
        version: int,
        facts: Mapping[str, Any],
        *,
        readonly: bool = False,
        closed: int | None = None,
        instead: Callable[[int], BytesLike] | None = None,
    ) -> tuple[FramedFile, list[bytes]]:
        """
        Open the file, or make it when it is missing, and return it with its payloads in order; cuts a torn tail.

        Args:
            system: makes the system calls.
            path: the file.
            kind: see :func:`ledger.files.encode_header`.
            version: version of the file's format.
            facts: what identifies the file; they must be on disk as well. JSON values only.
            readonly: write nothing: a missing file has no records, a torn tail stays.
            closed: where the file ended when it was closed in order, see :mod:`ledger.closing`.
            instead: given how many good records there are, the record to put in the place of a torn one; for files
                whose records are numbered and must not be numbered twice.

        Raises:
            NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: see :func:`decode_header`; DamagedFile
                also when the facts on disk are not ``facts``, a record in the middle is damaged, or the file does not
                end where it was closed.
            SpaceError: the file system refused.
        """
        target = Path(path)
        header = encode_header(kind, version, facts)
        data = read_whole(system, target)
        if data is None:
            if not readonly:
                write_atomically(system, target, header)
            data = header
        found = decode_header(data, kind, version, target)
        if found != dict(facts):
            text = f"{target} is another state's: its header says {found}, not {dict(facts)}"
            raise DamagedFile(text, path=str(target))
        payloads, length = read_frames(data, target, start=HEADER_BYTES)
        torn_bytes = len(data) - length
        check_end(target, size=len(data), good=length, closed=closed)
        if readonly:
            return cls(system, target, header, length, -1, torn_bytes), payloads
        descriptor = system.open(target, os.O_RDWR)
        try:
            if torn_bytes:
                if instead is not None:
                    payloads.append(bytes(instead(len(payloads))))
                    length += system.pwrite(descriptor, encode_frame(payloads[-1]), length)
                system.ftruncate(descriptor, length)
                system.fdatasync(descriptor)
        except SpaceError:
            system.close(descriptor)
            raise
        return cls(system, target, header, length, descriptor, torn_bytes), payloads

    def append(self, payloads: Iterable[BytesLike]) -> None:
        """
        Append records in order, durably, each with its own write and sync; meant for one or a few.

        Raises:
            SpaceError: the file system refused; that record and those behind it are not in the file.
        """
        self._must_be_writable()
        for payload in payloads:
            data = encode_frame(payload)
            try:
                self._system.pwrite(self._descriptor, data, self.length)
                self._system.fdatasync(self._descriptor)
            except SpaceError:
                with suppress(SpaceError):
                    self._system.ftruncate(self._descriptor, self.length)
                raise
            self.length += len(data)

    def rewrite(self, payloads: Sequence[BytesLike]) -> None:
        """
        Replace all records by these, atomically.

        Raises:
            SpaceError: the file system refused; the file holds the old records or the new ones, and can be appended to.
        """
        self._must_be_writable()
        data = b"".join((self._header, *(encode_frame(payload) for payload in payloads)))
        old, self._descriptor = self._descriptor, replace_file(self._system, self.path, data)
        self.length = len(data)
        try:
            self._system.fsync_directory(self.path.parent)
        finally:
            self._system.close(old)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._system.close(descriptor)

    def _must_be_writable(self) -> None:
        if self._descriptor < 0:
            raise StateReadOnly(f"{self.path} is open read-only or closed", path=str(self.path))
