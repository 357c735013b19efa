"""
Audit: who did what to the ledger, as lines people can read, each bound to the one before by its hash.

``audit/audit.log`` is NDJSON. A line's ``hash`` is the SHA-256 of the line up to and without ``,"hash":``, and the line
holds the hash of the line before, so nothing in the middle can be changed, dropped or moved unseen; whoever keeps
:attr:`AuditLog.head` outside also sees a cut end. By size the log is renamed to ``audit.0001.log`` and so on, and never
removed. This module must never change or drop a whole line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from ledger.errors import DamagedFile, SpaceError, StateReadOnly
from ledger.files import PathLike, System, read_whole

FOLDER: Final = "audit"
FILE_NAME: Final = "audit.log"
ROTATE_BYTES: Final = 16 << 20
"""A log of this size is put aside before the next line."""
FIRST_HASH: Final = "0" * 64
"""``previous_hash`` of the very first line."""

_ROTATED: Final = re.compile(r"audit\.(\d{4,})\.log", re.ASCII)
_HASH_FIELD: Final = b',"hash":"'
_HASH_BYTES: Final = len(_HASH_FIELD) + 64 + len(b'"}')


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """Who acted, as the kernel says; -1 where it does not (the daemon itself has its own ids)."""

    uid: int = -1
    gid: int = -1
    pid: int = -1
    user: str = ""


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line; the fields stand in this order."""

    seq: int
    """From 1, without holes, over all files."""
    ts_ns: int
    """ns UTC, never falling."""
    operator: Operator
    claimed: dict[str, Any] = {}
    """What the client said of itself; proves nothing."""
    op: str
    """``clear``, ``refresh``, ``undo``, ``recovery``, ..."""
    operation: str = ""
    """Name of the operation, by which it can be undone."""
    range: dict[str, Any] = {}
    """What was asked for: session, from, to, symbols, columns."""
    cells: dict[str, int] = {}
    """Cells changed, by column."""
    cause: str = ""
    result: str = ""
    digest: str = ""
    """Digest over the checksums of the cells before the change."""
    previous_hash: str
    hash: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One fault of the log."""

    file: str
    line: int
    """From 1, in its file."""
    reason: str


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(AuditRecord)


class AuditLog:
    """The log of a state directory, open for appending; one process at a time."""

    def __init__(
        self,
        directory: PathLike,
        system: System,
        *,
        rotate_bytes: int = ROTATE_BYTES,
        readonly: bool = False,
        closed: tuple[int, str] | None = None,
    ) -> None:
        """
        Open ``audit/audit.log`` in ``directory``, or make both.

        A last line that a crash tore is cut off; one that lacks only its end of line gets it. Damage before it is not
        touched; :meth:`verify` finds it.

        Args:
            directory: the state directory.
            system: makes the system calls, and tells the time.
            rotate_bytes: size from which the log is put aside.
            readonly: write nothing, make nothing.
            closed: the log's :attr:`head` when it was closed in order.

        Raises:
            DamagedFile: the log does not end where it was closed.
            SpaceError: the file system refused.
        """
        self._system = system
        self._rotate_bytes = rotate_bytes
        self._descriptor = -1
        self.folder = Path(directory) / FOLDER
        data = read_whole(system, self.folder / FILE_NAME) or b""
        good = _whole_lines(data)
        before = data[:good]
        older = [path for path in self.files() if path.name != FILE_NAME]
        if not before and older:
            before = read_whole(system, older[-1]) or b""
        self._seq, self._last_ns, self._hash = _end_of_chain(before)
        self._length = good
        self.torn_bytes = len(data) - good
        """Bytes of a torn last line that were found at open (and cut off, unless read-only)."""
        if closed is not None and (closed != self.head or self.torn_bytes):
            raise self._other_end(closed)
        if readonly:
            return
        system.make_directory(self.folder)
        self._descriptor = self._open_file()
        try:
            if self.torn_bytes:
                system.ftruncate(self._descriptor, good)
                system.fdatasync(self._descriptor)
            elif not before.endswith(b"\n") and data:
                self._length += system.pwrite(self._descriptor, b"\n", good)
                system.fdatasync(self._descriptor)
        except SpaceError:
            self.close()
            raise

    def _other_end(self, closed: tuple[int, str]) -> DamagedFile:
        path, (seq, _) = self.folder / FILE_NAME, self.head
        text = f"{path}: the log ends at line {seq}, it was closed at line {closed[0]}"
        if seq == closed[0]:
            text = f"{path}: the last line is not the one that the log was closed with"
        hint = "restore the log from a backup; or, to go on with what is there, remove the file named closed"
        return DamagedFile(text, hint=hint, path=str(path))

    @property
    def head(self) -> tuple[int, str]:
        """Sequence number and hash of the last line; ``(0, 64 zeros)`` when there is none."""
        return self._seq, self._hash

    def files(self) -> list[Path]:
        """The log's files, oldest first."""
        names = self._system.list_directory(self.folder)
        numbered = sorted((int(found[1]), name) for name in names if (found := _ROTATED.fullmatch(name)))
        return [self.folder / name for _, name in numbered] + [self.folder / FILE_NAME] * (FILE_NAME in names)

    def append(
        self,
        op: str,
        operator: Operator,
        *,
        claimed: dict[str, Any] | None = None,
        operation: str = "",
        where: dict[str, Any] | None = None,
        cells: dict[str, int] | None = None,
        cause: str = "",
        result: str = "",
        digest: str = "",
        durable: bool = True,
    ) -> AuditRecord:
        """
        Append one line and return it; synced before the return unless ``durable`` is false.

        The arguments are the fields of :class:`AuditRecord`; ``where`` is its ``range``.

        Raises:
            SpaceError: the file system refused; the log is as it was.
        """
        if self._descriptor < 0:
            raise StateReadOnly(f"{self.folder / FILE_NAME} is open read-only or closed")
        if self._length >= self._rotate_bytes:
            self._rotate()
        record = AuditRecord(
            seq=self._seq + 1,
            ts_ns=max(self._system.now_ns(), self._last_ns),
            operator=operator,
            claimed=claimed or {},
            op=op,
            operation=operation,
            range=where or {},
            cells=cells or {},
            cause=cause,
            result=result,
            digest=digest,
            previous_hash=self._hash,
        )
        body = _ENCODER.encode(record)[: -len(_HASH_FIELD + b'"}')]
        record = msgspec.structs.replace(record, hash=sha256(body).hexdigest())
        line = body + _HASH_FIELD + record.hash.encode() + b'"}\n'
        try:
            self._system.pwrite(self._descriptor, line, self._length)
            if durable:
                self._system.fdatasync(self._descriptor)
        except SpaceError:
            with suppress(SpaceError):
                self._system.ftruncate(self._descriptor, self._length)
            raise
        self._length += len(line)
        self._seq, self._last_ns, self._hash = record.seq, record.ts_ns, record.hash
        return record

    def append_recovery(self, where: dict[str, Any], cause: str, result: str) -> AuditRecord:
        """Record, durably, what opening a file found and did about it; see :meth:`append`."""
        return self.append("recovery", own_operator(), where=where, cause=cause, result=result)

    def flush(self) -> None:
        """Make lines appended without ``durable`` durable; raises :class:`SpaceError`."""
        if self._descriptor >= 0:
            self._system.fdatasync(self._descriptor)

    def tail(self, count: int) -> list[AuditRecord]:
        """The last ``count`` readable lines, oldest first."""
        found: list[AuditRecord] = []
        for path in reversed(self.files()):
            if len(found) >= count:
                break
            lines = reversed((read_whole(self._system, path) or b"").splitlines())
            for record in (_decoded(line) for line in lines):
                if record is not None and len(found) < count:
                    found.append(record)
        return found[::-1]

    def verify(self) -> list[Finding]:
        """Every line that is damaged, changed, missing or out of order, in the order of the log; none when it holds."""
        findings: list[Finding] = []
        seq, chain = 0, FIRST_HASH
        for path in self.files():
            data = read_whole(self._system, path) or b""
            for number, line in enumerate(data.splitlines(keepends=True), start=1):
                record = _decoded(line)
                for reason in _faults(line, record, seq, chain):
                    findings.append(Finding(path.name, number, reason))
                # The chain goes on from what the line says, so that one fault is reported once.
                seq, chain = (record.seq, record.hash) if record else (seq + 1, _line_hash(line))
        if findings or seq == self._seq:
            return findings
        return [Finding(FILE_NAME, 0, f"the log ends at seq {seq}, this process wrote up to {self._seq}")]

    def close(self) -> None:
        """Close the log; closing twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._system.close(descriptor)

    def _open_file(self) -> int:
        descriptor = self._system.open(self.folder / FILE_NAME, os.O_RDWR | os.O_CREAT)
        try:
            self._system.fsync_directory(self.folder)
        except SpaceError:
            self._system.close(descriptor)
            raise
        return descriptor

    def _rotate(self) -> None:
        self.flush()
        number = 1 + max(
            (int(found[1]) for path in self.files() if (found := _ROTATED.fullmatch(path.name))), default=0
        )
        self._system.rename(self.folder / FILE_NAME, self.folder / f"audit.{number:04d}.log")
        old = self._descriptor
        try:
            self._descriptor = self._open_file()
        except SpaceError:
            # The log goes on in the file it has; the next append tries again.
            with suppress(SpaceError):
                self._system.rename(self.folder / f"audit.{number:04d}.log", self.folder / FILE_NAME)
            raise
        self._length = 0
        self._system.close(old)


def own_operator() -> Operator:
    """The process itself, as the one who acts; its user is called ``m17d``."""
    return Operator(uid=os.getuid(), gid=os.getgid(), pid=os.getpid(), user="m17d")


def _whole_lines(data: bytes) -> int:
    """Length of ``data`` up to the last line that was written whole, with or without its end of line."""
    end = data.rfind(b"\n") + 1
    if end < len(data) and _fits(data[end:]):
        return len(data)
    # Zeros are sectors that never reached the disk; a single one that a flipped bit explains is no torn line.
    while end and b"\0" in (line := data[(start := data.rfind(b"\n", 0, end - 1) + 1) : end]):
        if line.count(0) == 1 and any(_fits(line.replace(b"\0", bytes((1 << bit,)))) for bit in range(8)):
            break
        end = start
    return end


def _fits(line: bytes) -> bool:
    """True where a line carries its own hash."""
    bare = line.removesuffix(b"\n")
    return bare[-_HASH_BYTES:] == _HASH_FIELD + _line_hash(bare).encode() + b'"}'


def _line_hash(line: bytes) -> str:
    """The hash a line should carry."""
    return sha256(line.removesuffix(b"\n")[:-_HASH_BYTES]).hexdigest()


def _decoded(line: bytes) -> AuditRecord | None:
    # A flipped bit makes a line no JSON, JSON of another shape, or no text.
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        return _DECODER.decode(line)
    return None


def _end_of_chain(data: bytes) -> tuple[int, int, str]:
    """seq, ts_ns and hash to go on from behind these lines; an unreadable last line counts by its own hash."""
    skipped = 0
    chain = ""
    for line in reversed(data.splitlines()):
        chain = chain or _line_hash(line)
        record = _decoded(line)
        if record is not None:
            return record.seq + skipped, record.ts_ns, chain if skipped else record.hash
        skipped += 1
    return skipped, 0, chain or FIRST_HASH


def _faults(line: bytes, record: AuditRecord | None, seq: int, chain: str) -> Iterator[str]:
    if record is None:
        yield "cannot be read"
        return
    if not line.endswith(b"\n"):
        yield "is torn: its end of line is missing"
    if not _fits(line):
        yield "was changed: its hash does not fit it"
    if record.seq != seq + 1:
        yield f"has seq {record.seq} where {seq + 1} is due: lines are missing or out of order"
    elif record.previous_hash != chain:
        yield "does not follow the line before it: that line was changed or replaced"
