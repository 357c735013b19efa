"""
Files: the only place that touches the disk for the small files, and the seam where tests inject faults.

:class:`System` makes every system call of the ledger; a test passes a subclass whose :meth:`System.attempt` fails the
nth call. Above it: whole files replaced atomically, header pages that name their file, and framed records that survive
a torn tail (:mod:`ledger.framed` keeps a file of them).

This module must never know what a record means, and never look at the clock other than in :meth:`System.now_ns`.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ledger.errors import (
    ChecksumMismatch,
    DamagedFile,
    FileVersionMismatch,
    NotALedgerFile,
    SpaceError,
    StateReadOnly,
    from_os_error,
)

HEADER_BYTES: Final = 4096
"""Size of a header page."""
HEADER: Final = struct.Struct("<8sIII")
"""magic 8 bytes ('M17' + kind) · version u32 · crc32 u32 · length of the facts u32; the facts follow as JSON."""
FRAME: Final = struct.Struct("<II")
"""length of the payload u32 · crc32 over the length and the payload u32; the payload follows, padded to 8 bytes."""
FRAME_ALIGNMENT: Final = 8
TEMPORARY_SUFFIX: Final = ".tmp"
"""A file with this suffix is left over from an interrupted atomic write and may be removed."""

_CRC_FIELD: Final = slice(12, 16)
PathLike = str | os.PathLike[str]
BytesLike = bytes | bytearray | memoryview

_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "open": os.open,
    "pread": os.pread,
    "pwrite": os.pwrite,
    "fdatasync": os.fdatasync,
    "fsync": os.fsync,
    "fallocate": os.posix_fallocate,
    "rename": os.rename,
    "unlink": os.unlink,
    "ftruncate": os.ftruncate,
    "fstat": os.fstat,
    "lseek": os.lseek,
    "mkdir": os.mkdir,
    "listdir": os.listdir,
    "close": os.close,
}


class System:
    """
    The operating system as the ledger uses it.

    Every method does the whole of what its name says: interrupted calls are made again, short reads and writes are
    continued, and what fails is raised as the ledger's error (:func:`ledger.errors.from_os_error`) that names call and
    file. Only :meth:`attempt` makes system calls, one each; tests override it to fail the nth.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def attempt(self, call: str, *arguments: Any) -> Any:
        """Make exactly one system call, with the keyword-free arguments of its ``os`` function; the seam for tests."""
        return _CALLS[call](*arguments)

    def now_ns(self) -> int:
        """Wall clock, ns since the Unix epoch, UTC; the only clock of the ledger."""
        return time.time_ns()

    def open(self, path: PathLike, flags: int, mode: int = 0o640) -> int:
        """Open ``path`` with ``os.O_*`` flags (close-on-exec is added) and return the descriptor."""
        descriptor: int = self._do("open", path, os.fspath(path), flags | os.O_CLOEXEC, mode)
        self._paths[descriptor] = os.fspath(path)
        return descriptor

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read ``size`` bytes at ``offset``; fewer only where the file ends."""
        pieces: list[bytes] = []
        while size > 0:
            piece: bytes = self._do("pread", self.path_of(descriptor), descriptor, size, offset)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pwrite(self, descriptor: int, data: BytesLike, offset: int) -> int:
        """Write all of ``data`` (any C-contiguous buffer) at ``offset`` and return its size in bytes."""
        whole = memoryview(data)
        if not whole.nbytes:
            return 0
        view = whole.cast("B")
        done = 0
        while done < view.nbytes:
            written: int = self._do("pwrite", self.path_of(descriptor), descriptor, view[done:], offset + done)
            if written == 0:
                # A file system that accepts nothing and says nothing would loop for ever.
                raise from_os_error(OSError(errno.EIO, "wrote 0 bytes"), "pwrite", self.path_of(descriptor))
            done += written
        return done

    def fdatasync(self, descriptor: int) -> None:
        """
        Make the file's bytes durable.

        Raises:
            StateFull: no space; the pages stay dirty and may be synced again.
            StateReadOnly: any other failure: the kernel may have dropped the pages, so nothing may be written on.
        """
        self._sync("fdatasync", descriptor)

    def fsync_directory(self, path: PathLike) -> None:
        """Make creations, renames and removals inside the directory durable; raises as :meth:`fdatasync`."""
        descriptor = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._sync("fsync", descriptor)
        finally:
            self.close(descriptor)

    def fallocate(self, descriptor: int, offset: int, length: int) -> None:
        """Reserve ``length`` bytes at ``offset``, so that writing them cannot run out of space."""
        self._do("fallocate", self.path_of(descriptor), descriptor, offset, length)

    def rename(self, source: PathLike, target: PathLike) -> None:
        """Rename ``source`` over ``target`` atomically; durable only after :meth:`fsync_directory`."""
        old, new = os.fspath(source), os.fspath(target)
        self._do("rename", target, old, new)
        self._paths.update({descriptor: new for descriptor, path in list(self._paths.items()) if path == old})

    def unlink(self, path: PathLike) -> None:
        """Remove the file's name."""
        self._do("unlink", path, os.fspath(path))

    def ftruncate(self, descriptor: int, length: int) -> None:
        """Cut or extend the file to ``length`` bytes."""
        self._do("ftruncate", self.path_of(descriptor), descriptor, length)

    def size(self, descriptor: int) -> int:
        """Size of the open file in bytes."""
        status: os.stat_result = self._do("fstat", self.path_of(descriptor), descriptor)
        return status.st_size

    def extents(self, descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Half-open byte ranges between ``start`` and ``end`` that may hold data, ascending; holes lie between them."""
        path = self.path_of(descriptor)
        while start < end:
            try:
                data: int = self._do("lseek", path, descriptor, start, os.SEEK_DATA)
            except SpaceError as error:
                if error.facts["errno"] == errno.ENXIO:
                    return
                raise
            hole: int = self._do("lseek", path, descriptor, data, os.SEEK_HOLE)
            if data < end:
                yield data, min(hole, end)
            start = hole

    def make_directory(self, path: PathLike, mode: int = 0o750) -> None:
        """Make the directory and sync its parent; one that is there already is fine."""
        with suppress(FileExistsError):
            self._do("mkdir", path, os.fspath(path), mode, pass_on=FileExistsError)
            self.fsync_directory(Path(path).parent)

    def list_directory(self, path: PathLike) -> list[str]:
        """Names in the directory, sorted; none when there is no such directory."""
        try:
            names: list[str] = self._do("listdir", path, os.fspath(path), pass_on=FileNotFoundError)
        except FileNotFoundError:
            return []
        return sorted(names)

    def close(self, descriptor: int) -> None:
        """Close the descriptor; never made again when interrupted, because Linux has freed it by then."""
        path = self._paths.pop(descriptor, f"descriptor {descriptor}")
        try:
            self.attempt("close", descriptor)
        except InterruptedError:
            return
        except OSError as error:
            raise from_os_error(error, "close", path) from error

    def path_of(self, descriptor: int) -> str:
        """The path the descriptor was opened with, for messages."""
        return self._paths.get(descriptor, f"descriptor {descriptor}")

    def _sync(self, call: str, descriptor: int) -> None:
        path = self.path_of(descriptor)
        try:
            self._do(call, path, descriptor)
        except SpaceError as error:
            if error.facts["errno"] in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StateReadOnly(str(error), **error.facts) from error

    def _do(
        self, call: str, path: PathLike, *arguments: Any, pass_on: type[OSError] | tuple[type[OSError], ...] = ()
    ) -> Any:
        while True:
            try:
                return self.attempt(call, *arguments)
            except InterruptedError:
                continue
            except pass_on:
                raise
            except OSError as error:
                raise from_os_error(error, call, os.fspath(path)) from error


def read_whole(system: System, path: PathLike) -> bytes | None:
    """The file's bytes, or None when there is no such file; other failures raise :class:`SpaceError`."""
    try:
        descriptor = system.open(path, os.O_RDONLY)
    except SpaceError as error:
        if error.facts["errno"] == errno.ENOENT:
            return None
        raise
    try:
        return system.pread(descriptor, system.size(descriptor), 0)
    finally:
        system.close(descriptor)


def write_atomically(system: System, path: PathLike, data: BytesLike) -> None:
    """
    Replace the file by ``data`` so that, whatever happens, the old or the new file is there whole.

    A temporary name in the same directory, synced, renamed, the directory synced. After a failure the old file is
    untouched and the temporary one removed where that is still possible.

    Raises:
        SpaceError: the file system refused.
    """
    descriptor = replace_file(system, Path(path), data)
    system.close(descriptor)
    system.fsync_directory(Path(path).parent)


def replace_file(system: System, path: Path, data: BytesLike) -> int:
    """Put ``data``, synced, in the place of the file; its open descriptor. The directory is not synced yet."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    descriptor = -1
    try:
        descriptor = system.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        system.pwrite(descriptor, data, 0)
        system.fdatasync(descriptor)
        system.rename(temporary, path)
    except SpaceError:
        if descriptor >= 0:
            with suppress(SpaceError):
                system.close(descriptor)
        with suppress(SpaceError):
            system.unlink(temporary)
        raise
    return descriptor


def encode_header(kind: str, version: int, facts: Mapping[str, Any]) -> bytes:
    """
    A header page of 4096 bytes: magic, version, crc32, then the facts as JSON with sorted keys.

    Args:
        kind: what the file is, ASCII. The magic holds its first five letters, the facts all of them.
        version: version of the file's format, u32.
        facts: the file's identity (year, exchange, ...); JSON values only.
    """
    text = json.dumps({**facts, "kind": kind}, sort_keys=True, separators=(",", ":")).encode()
    if HEADER.size + len(text) > HEADER_BYTES:
        raise ValueError(f"the header's facts take {len(text)} bytes, {HEADER_BYTES - HEADER.size} fit")
    page = bytearray(HEADER_BYTES)
    HEADER.pack_into(page, 0, _magic(kind), version, 0, len(text))
    page[HEADER.size : HEADER.size + len(text)] = text
    page[_CRC_FIELD] = zlib.crc32(page).to_bytes(4, "little")
    return bytes(page)


def decode_header(data: BytesLike, kind: str, version: int, path: PathLike) -> dict[str, Any]:
    """
    The facts of a header page (the first 4096 bytes of ``data``), with ``kind`` taken out again.

    Raises:
        NotALedgerFile: the magic, or the full kind, is another's.
        FileVersionMismatch: another version of the format.
        ChecksumMismatch: the page's bytes changed.
        DamagedFile: the page is cut short, or its facts are not what was written.
    """
    magic, page, name = _magic(kind), bytearray(data[:HEADER_BYTES]), str(path)
    if page[:8] != magic:
        raise NotALedgerFile(
            f"{name} is not a {kind} file: it begins with {bytes(page[:8])!r}, not {magic!r}", path=name
        )
    found = int.from_bytes(page[8:12], "little")
    if len(page) >= 12 and found != version:
        text = f"{name} has format version {found}, this program reads {version}"
        raise FileVersionMismatch(text, path=name, found=found, expected=version)
    if len(page) < HEADER_BYTES:
        raise DamagedFile(f"{name} is cut short: {len(page)} bytes, its header alone has {HEADER_BYTES}", path=name)
    _, _, checksum, length = HEADER.unpack_from(page)
    page[_CRC_FIELD] = bytes(4)
    if zlib.crc32(page) != checksum:
        raise ChecksumMismatch(f"{name}: the checksum of the header page does not fit its bytes", path=name)
    try:
        facts = json.loads(bytes(page[HEADER.size : HEADER.size + length]))
    except ValueError as error:
        raise DamagedFile(f"{name}: the facts in its header cannot be read: {error}", path=name) from error
    if not isinstance(facts, dict):
        raise DamagedFile(f"{name}: the facts in its header are not a table", path=name)
    if (found_kind := facts.pop("kind", None)) != kind:
        raise NotALedgerFile(f"{name} is a {found_kind} file, not a {kind} file", path=name)
    return facts


def encode_frame(payload: BytesLike) -> bytes:
    """
    One framed record: length u32, crc32 u32 over length and payload, the payload, zeros up to a multiple of 8.

    The checksum covers the length, so that a run of zeros is never a frame.
    """
    length = len(payload)
    checksum = zlib.crc32(payload, zlib.crc32(length.to_bytes(4, "little")))
    return FRAME.pack(length, checksum) + bytes(payload) + bytes(-length % FRAME_ALIGNMENT)


def read_frames(
    data: BytesLike, path: PathLike = "frames", *, start: int = 0, tail_from: int | None = None
) -> tuple[list[bytes], int]:
    """
    The payloads of the frames in ``data`` from ``start`` on, and the offset behind the last good one.

    What does not read as a frame and has no good frame behind it is a torn tail: a write that a crash interrupted.

    Args:
        data: a file's bytes; frames begin at multiples of 8 counted from ``start``.
        path: for the message.
        start: where the first frame begins, in bytes.
        tail_from: damage at or behind this offset is a torn tail even with good frames behind it; for files that sync
            many frames at once, whose pages may reach the disk in any order. None: damage before a good frame is an
            error wherever it is.

    Raises:
        DamagedFile: a damaged frame has good frames behind it.
    """
    payloads: list[bytes] = []
    view = memoryview(data)
    offset = start
    while (end := _frame_end(view, offset)) is not None:
        length = int.from_bytes(view[offset : offset + 4], "little")
        payloads.append(bytes(view[offset + FRAME.size : offset + FRAME.size + length]))
        offset = end
    if tail_from is None or offset < tail_from:
        for later in range(offset + FRAME_ALIGNMENT, len(view) - FRAME.size + 1, FRAME_ALIGNMENT):
            if _frame_end(view, later) is not None:
                text = f"{path}: the record at byte {offset} is damaged, and good records follow from byte {later}"
                raise DamagedFile(text, path=str(path), offset=offset, next_good=later)
    return payloads, offset


def frame_at(system: System, descriptor: int, offset: int, size: int) -> tuple[bytes, int] | None:
    """The payload of the frame at an offset of a file of ``size`` bytes, and the offset behind it; None for no good one."""
    if offset + FRAME.size > size:
        return None
    length = int.from_bytes(system.pread(descriptor, 4, offset), "little")
    end = offset + FRAME.size + length + (-length % FRAME_ALIGNMENT)
    if end > size:
        return None
    data = system.pread(descriptor, end - offset, offset)
    if _frame_end(memoryview(data), 0) is None:
        return None
    return data[FRAME.size : FRAME.size + length], end


def _magic(kind: str) -> bytes:
    return b"M17" + kind.encode("ascii")[:5].ljust(5, b"\0")


def _frame_end(view: memoryview, offset: int) -> int | None:
    """Offset behind the frame (and its padding) at ``offset``, or None when there is no good frame."""
    if offset + FRAME.size > len(view):
        return None
    length = int.from_bytes(view[offset : offset + 4], "little")
    checksum = int.from_bytes(view[offset + 4 : offset + FRAME.size], "little")
    end = offset + FRAME.size + length + (-length % FRAME_ALIGNMENT)
    if end > len(view):
        return None
    behind = offset + FRAME.size + length
    payload = view[offset + FRAME.size : behind]
    if any(view[behind:end]):
        return None
    return end if zlib.crc32(payload, zlib.crc32(view[offset : offset + 4])) == checksum else None
