"""
Mapping files: stores of fixed-size payload records that only grow, and the framed list of artifacts.

``payload_id`` is a record's position, from 1; id 1 is the kind's no-rows record. Ids are reserved durably in strides
before they are used, so that after any crash none is ever given twice: an unclean file goes on behind its last
reservation and leaves a gap. A record is synced before a slot names it. What a record says of its content never changes;
where its rows are may: retired by age, or read again. This module must never know a slot.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from ledger.columns import PayloadKind
from ledger.errors import DamagedFile, PayloadIdsExhausted, SpaceError, StateReadOnly, UnknownPayload, from_os_error
from ledger.files import System, decode_header, encode_header, write_atomically
from ledger.framed import FramedFile
from ledger.gate import gated
from ledger.layout import FORMAT_VERSION, PAGE
from ledger.records import NO_ROWS_ID, RECORD_DTYPE, RECORD_RETIRED, good_at, good_mask, is_good, no_rows_record, stamp

RECORDS_OFFSET: Final = 2 * PAGE
"""Records begin behind the header page and the mark page."""
ID_STRIDE: Final = 262_144
"""Ids reserved at once; the largest gap a crash leaves."""
_ID_MAX: Final = 2**32 - 1
_READ_RETRIES: Final = 100
_MARK: Final = struct.Struct("<IIQQQ")
"""crc · clean · reserved through · next id at the last clean close · unused."""


class PayloadMap:
    """
    The records of one kind. Written by one thread; reads check every record's CRC.

    Args:
        create: make the file when it is missing; False refuses, because ids would begin anew.
        beside: a daemon may be appending meanwhile; for readers.

    Raises:
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
    """

    def __init__(
        self,
        system: System,
        path: Path,
        kind: PayloadKind,
        *,
        readonly: bool,
        create: bool = True,
        beside: bool = False,
    ) -> None:
        self.kind = kind
        self.path = path
        self.readonly = readonly
        self.record_bytes = RECORD_DTYPE[kind].itemsize
        self.torn_records = 0
        """Half-written records that were found, and voided, at open."""
        self.mark_fault = ""
        """What is wrong with the mark page, in words; empty where nothing is."""
        self.unsynced = False
        """Appended to since the last sync began."""
        self._system = gated(system)
        self._syncing = threading.Lock()
        self._doubtful = False
        """A sync failed for want of space: what it should have written may be clean in memory and not on disk."""
        self._written_over: list[tuple[int, int]] = []
        """First ids and numbers of old records that were written since the last sync."""
        self._map: mmap.mmap | None = None
        if not path.exists():
            if readonly or not create:
                raise DamagedFile(f"{path} is missing", path=str(path))
            self._create()
        self._fd = self._system.open(path, os.O_RDONLY if readonly else os.O_RDWR)
        try:
            found = decode_header(self._system.pread(self._fd, PAGE, 0), "MAP", FORMAT_VERSION, path)
            if found != self._facts:
                raise DamagedFile(f"{path} is the map of {found.get('payload')}, not of {kind.word}", path=str(path))
            self._read_mark(beside=beside)
            self._synced_id = self.next_id
        except BaseException:
            self._system.close(self._fd)
            raise

    @property
    def _facts(self) -> dict[str, str | int]:
        return {"payload": self.kind.word, "record_bytes": self.record_bytes}

    def _create(self) -> None:
        record = no_rows_record(self.kind)
        stamp(record, NO_ROWS_ID)
        mark = self._mark(clean=True, reserved=NO_ROWS_ID, next_id=NO_ROWS_ID + 1).ljust(PAGE, b"\0")
        write_atomically(
            self._system, self.path, encode_header("MAP", FORMAT_VERSION, self._facts) + mark + record.tobytes()
        )

    @staticmethod
    def _mark(*, clean: bool, reserved: int, next_id: int) -> bytes:
        body = _MARK.pack(0, int(clean), reserved, next_id, 0)[4:]
        return struct.pack("<I", zlib.crc32(body)) + body

    def _read_mark(self, *, beside: bool) -> None:
        page = self._system.pread(self._fd, PAGE, PAGE)
        if len(page) < PAGE:
            raise self._damaged("cut short inside its mark page")
        crc, clean, self._reserved, self.clean_next_id, _ = _MARK.unpack_from(page)
        size = self._system.size(self._fd)
        end_id = max(size - RECORDS_OFFSET, 0) // self.record_bytes + 1
        self.mark_fault = mark_fault(page)
        if crc != zlib.crc32(page[4 : _MARK.size]):
            # The mark itself is gone: everything on disk is suspect, and ids go on far behind its end.
            clean, self._reserved, self.clean_next_id = 0, end_id + ID_STRIDE, NO_ROWS_ID
        self.clean = bool(clean)
        if end_id < self.clean_next_id:
            raise self._damaged(
                f"{end_id - 1} records, but it was closed with {self.clean_next_id - 1}: it was truncated"
            )
        # A reader beside a daemon may see the clean mark and then a file that has grown.
        if self.clean and not beside and size != self._offset(self.clean_next_id):
            raise self._damaged(
                f"{size} bytes, but it was closed with {self._offset(self.clean_next_id)}: it was extended"
            )
        if not beside and end_id > max(self._reserved + 1, self.clean_next_id):
            raise self._damaged(f"{end_id - 1} records, but only {self._reserved} ids were given: it was extended")
        self.next_id = self.clean_next_id if self.clean else max(self._reserved, end_id - 1) + 1
        if not self.readonly:
            if not self.clean:
                self._void_torn(end_id, size)
            if self.mark_fault:
                mark = self._mark(clean=self.clean, reserved=self._reserved, next_id=self.clean_next_id)
                self._system.pwrite(self._fd, mark.ljust(PAGE, b"\0"), PAGE)
                self._system.fdatasync(self._fd)

    def _damaged(self, what: str) -> DamagedFile:
        return DamagedFile(f"{self.path}: {what}", path=str(self.path))

    def _void_torn(self, end_id: int, size: int) -> None:
        """
        Zero what a crash left half-written behind the last clean close; what stays is good, and synced.

        The file gets the size that the gap behind it implies, so that the next mark may call everything before it clean
        and the next start looks at one run's records, however many runs before it were killed.
        """
        if size > self._offset(end_id):
            self.torn_records += 1
            self._system.ftruncate(self._fd, self._offset(end_id))
        first = max(self.clean_next_id, NO_ROWS_ID + 1)
        for start in range(first, end_id, ID_STRIDE):
            records = self._read_range(start, min(ID_STRIDE, end_id - start))
            raw = records.view(np.uint8).reshape(len(records), -1)
            torn = raw.any(axis=1) & ~good_mask(records, start)
            self.torn_records += int(torn.sum())
            for index in np.flatnonzero(torn):
                self._system.pwrite(self._fd, bytes(self.record_bytes), self._offset(start + int(index)))
        self._system.ftruncate(self._fd, self._offset(self.next_id))
        self._system.fdatasync(self._fd)
        self.clean_next_id = self.next_id

    def _offset(self, payload_id: int) -> int:
        return RECORDS_OFFSET + (payload_id - 1) * self.record_bytes

    def _read_range(self, first_id: int, count: int) -> np.ndarray:
        data = self._system.pread(self._fd, count * self.record_bytes, self._offset(first_id))
        whole = len(data) // self.record_bytes
        return np.frombuffer(data, dtype=RECORD_DTYPE[self.kind], count=whole)

    def append(self, records: np.ndarray) -> int:
        """
        Append records and return the id of the first; they are durable after the next sync.

        Args:
            records: structured array [n] of the kind's dtype; its CRCs are set in place.

        Raises:
            PayloadIdsExhausted: fewer than n ids are left.
            SpaceError: the file system refused; nothing was appended.
        """
        if self.readonly:
            raise StateReadOnly(f"{self.path} was opened for reading only")
        first, last = self.next_id, self.next_id + len(records) - 1
        if last > _ID_MAX:
            raise PayloadIdsExhausted(f"{self.path}: {_ID_MAX - first + 1} payload ids left, {len(records)} needed")
        if self.clean or last > self._reserved:
            with self._syncing:
                self._reserve(last + ID_STRIDE)
        stamp(records, first)
        self._system.pwrite(self._fd, np.ascontiguousarray(records).view(np.uint8).data, self._offset(first))
        self.unsynced = True
        self.next_id = last + 1
        return first

    def _reserve(self, last_id: int) -> None:
        """Let ids up to that one be given, durably; called with the lock of syncs, by the writer or in the course of a sync."""
        reserved = max(min(last_id, _ID_MAX), self._reserved)
        self._system.pwrite(self._fd, self._mark(clean=False, reserved=reserved, next_id=self.clean_next_id), PAGE)
        self._fdatasync()
        self._reserved, self.clean = reserved, False

    def retire(self, payload_ids: np.ndarray) -> None:
        """
        Mark records as retired where they stand: their rows are about to be removed. On disk after the next sync.

        Args:
            payload_ids: integers [n], ascending.

        Raises:
            SpaceError: the file system refused; some may be marked.
        """
        records = self.get_many(payload_ids)
        records["record_flags"] |= RECORD_RETIRED
        self._write_over(np.asarray(payload_ids, dtype=np.int64), records)

    def relocate(self, payload_ids: np.ndarray, records: np.ndarray) -> None:
        """
        Give retired records the place of rows that were read again, with equal content.

        Args:
            payload_ids: integers [n].
            records: structured array [n] of the kind's dtype.

        Raises:
            SpaceError: the file system refused; some may be moved.
            ValueError: a record's content is not what the retired one's was.
        """
        order = np.argsort(payload_ids, kind="stable")
        ids, given = np.asarray(payload_ids, dtype=np.int64)[order], records[order].copy()
        held = self.get_many(ids)
        if (held["content_hash"] != given["content_hash"]).any():
            raise ValueError("a record may only move to rows of equal content")
        self._write_over(ids, given)

    def _write_over(self, ids: np.ndarray, records: np.ndarray) -> None:
        """Write records at ids that were given before; a record never crosses a sector, so it is the old or the new."""
        if self.readonly:
            raise StateReadOnly(f"{self.path} was opened for reading only")
        if len(ids) and int(ids[-1]) >= self.next_id:
            raise UnknownPayload(f"{self.kind.word} has no record {int(ids[-1])}", payload_id=int(ids[-1]))
        with self._syncing:
            for run in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids) != 1) + 1):
                if not len(run):
                    continue
                first, mine = int(ids[run[0]]), records[run].copy()
                stamp(mine, first)
                self._written_over.append((first, len(run)))
                self.unsynced = True
                self._system.pwrite(self._fd, mine.view(np.uint8).data, self._offset(first))

    def get(self, payload_id: int) -> np.void:
        """
        One record.

        Raises:
            UnknownPayload: no good record has that id.
        """
        if 0 < payload_id <= _ID_MAX:
            data = self._system.pread(self._fd, self.record_bytes, self._offset(payload_id))
            if len(data) == self.record_bytes and is_good(data, payload_id):
                record: np.void = np.frombuffer(data, dtype=RECORD_DTYPE[self.kind])[0]
                return record
        raise UnknownPayload(f"{self.kind.word} has no good record {payload_id}", payload_id=payload_id)

    def get_many(self, payload_ids: np.ndarray, *, check: bool = True) -> np.ndarray:
        """
        Records in the order of the ids, a fresh array [n]; an id without a good record gives a zeroed one.

        Args:
            payload_ids: integers [n].
            check: False leaves the CRCs to the caller (see :meth:`good`); bytes that changed on disk come through.
        """
        ids = np.asarray(payload_ids).astype(np.int64)
        found = np.zeros(len(ids), dtype=RECORD_DTYPE[self.kind])
        if not len(ids):
            return found
        inside = ids >= 1
        found[inside] = self._picked(ids[inside])
        if check:
            # The no-rows record is named by millions of cells, and its sum holds for all of them.
            many = ids == NO_ROWS_ID
            bad = np.zeros(len(ids), dtype=bool)
            if many.any():
                bad[many] = not good_at(found[many][:1], np.array([NO_ROWS_ID]))[0]
            bad[~many] = ~good_at(found[~many], ids[~many])
            if bad.any() and self.readonly:
                # Another process may be writing an old record over, with equal content: it is whole a moment later.
                at = np.flatnonzero(bad & inside)
                for _ in range(_READ_RETRIES):
                    found[at] = self._picked(ids[at])
                    bad[at] = ~good_at(found[at], ids[at])
                    at = at[bad[at]]
                    if not len(at):
                        break
            if bad.any():
                found[bad] = np.zeros(1, dtype=found.dtype)
        return found

    def _picked(self, ids: np.ndarray) -> np.ndarray:
        """The records of some ids (from 1), zeroed behind the end of the file."""
        found = np.zeros(len(ids), dtype=RECORD_DTYPE[self.kind])
        try:
            view = self._view(int(ids.max(initial=0)))
        except SpaceError:
            # A file system that went read-only after an error maps no file any more; it still reads.
            for payload_id in np.unique(ids).tolist():
                record = self._read_range(payload_id, 1)
                if len(record):
                    found[ids == payload_id] = record[0]
            return found
        inside = ids <= len(view)
        found[inside] = view[ids[inside] - 1]
        return found

    def _view(self, largest_id: int) -> np.ndarray:
        """The whole file as records, mapped again when it has grown past the last mapping."""
        needed = min(self._offset(largest_id + 1), self._system.size(self._fd))
        if self._map is None or len(self._map) < needed:
            try:
                self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise from_os_error(error, "mmap", self.path) from error
        count = max(len(self._map) - RECORDS_OFFSET, 0) // self.record_bytes
        return np.frombuffer(self._map, dtype=RECORD_DTYPE[self.kind], count=count, offset=RECORDS_OFFSET)

    def good(self, payload_ids: np.ndarray) -> np.ndarray:
        """bool[n], True where the id has a record whose CRC fits."""
        known, inverse = np.unique(np.asarray(payload_ids), return_inverse=True)
        result: np.ndarray = good_at(self.get_many(known, check=False), known)[inverse]
        return result

    def sync(self) -> None:
        """Make what was appended durable, if anything was; raises :class:`SpaceError`. Any thread may call it."""
        with self._syncing:
            if not self.unsynced:
                return
            self.unsynced = False
            end = self.next_id
            try:
                if self._doubtful:
                    self._write_again(end)
                if not self.clean and self._reserved - end < ID_STRIDE // 2:
                    # Ids for what comes next with the same sync, so that the writer seldom waits for one of its own.
                    self._reserve(end + ID_STRIDE)
                else:
                    self._fdatasync()
            except SpaceError:
                self.unsynced = True
                raise
            self._doubtful, self._synced_id, self._written_over = False, end, []

    def _fdatasync(self) -> None:
        try:
            self._system.fdatasync(self._fd)
        except SpaceError:
            self._doubtful = True
            raise

    def _write_again(self, end: int) -> None:
        """After a sync that failed the kernel says that the pages are clean; another sync alone would write nothing."""
        appended = [(start, min(ID_STRIDE, end - start)) for start in range(self._synced_id, end, ID_STRIDE)]
        for start, count in (*self._written_over, *appended):
            records = self._read_range(start, count)
            if not good_mask(records, start).all():
                text = f"{self.path}: records written before a failed sync are gone from memory"
                self._system.failure = StateReadOnly(text, path=str(self.path))
                raise self._system.failure
            self._system.pwrite(self._fd, records.view(np.uint8).data, self._offset(start))

    def written(self) -> Iterator[tuple[int, int]]:
        """Half-open ranges of ids whose records may be in the file, ascending; the gaps that crashes left are passed."""
        size, behind = self._system.size(self._fd), 1
        for data, hole in self._system.extents(self._fd, RECORDS_OFFSET, size):
            first = max((data - RECORDS_OFFSET) // self.record_bytes + 1, behind)
            behind = min((hole - RECORDS_OFFSET - 1) // self.record_bytes + 2, self.next_id)
            if first < behind:
                yield first, behind

    def mark_page(self) -> bytes:
        """The mark page as it is in the file."""
        return self._system.pread(self._fd, PAGE, PAGE)

    @property
    def record_count(self) -> int:
        """Ids given so far, gaps after crashes included."""
        return self.next_id - 1

    @property
    def logical_bytes(self) -> int:
        """Size of the file in bytes."""
        return self._system.size(self._fd)

    def close(self) -> None:
        """Close the file, and say that it ended cleanly if it was written (unless a sync failed); twice is fine."""
        if self._fd < 0:
            return
        try:
            if not self.readonly and not self.clean and self._system.failure is None:
                # What a refused append left behind the last record was never given an id; and where ids went on behind
                # a crash and none was given since, the gap is made, so that size and mark agree.
                if self._system.size(self._fd) != self._offset(self.next_id):
                    self._system.ftruncate(self._fd, self._offset(self.next_id))
                if self._doubtful:
                    self._write_again(self.next_id)
                self._system.fdatasync(self._fd)
                mark = self._mark(clean=True, reserved=self._reserved, next_id=self.next_id)
                self._system.pwrite(self._fd, mark, PAGE)
                self._system.fdatasync(self._fd)
                self.clean = True
            elif not self.readonly and self._system.failure is None:
                self.sync()
        finally:
            self._map = None
            descriptor, self._fd = self._fd, -1
            self._system.close(descriptor)


def mark_fault(page: bytes) -> str:
    """What is wrong with a mark page, in words; empty where nothing is."""
    if int.from_bytes(page[:4], "little") != zlib.crc32(page[4 : _MARK.size]):
        return "the checksum of the mark page does not fit"
    return "the mark page has bytes where none belong" if any(page[_MARK.size :]) else ""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file that payloads point into."""

    artifact_id: int
    uri: str
    """Relative to the artifact root, such as ``trade/2013-10-07/000001-us_stocks_sip.parquet``."""
    checksum: int
    """CRC-32 of the file's bytes."""
    bytes: int
    rows: int
    column: str
    session: str
    engine: str


class ArtifactMap:
    """artifact_id -> URI, checksum and row count; small, framed, synced at every append."""

    def __init__(self, system: System, path: Path, *, readonly: bool = False, closed: int | None = None) -> None:
        self._file, payloads = FramedFile.open(
            system, path, "ART", FORMAT_VERSION, {}, readonly=readonly, closed=closed, instead=_torn_artifact
        )
        decoder = msgspec.msgpack.Decoder(Artifact)
        try:
            self._artifacts = {artifact.artifact_id: artifact for artifact in map(decoder.decode, payloads)}
        except msgspec.DecodeError as error:
            self._file.close()
            raise DamagedFile(f"{path}: a record cannot be read: {error}", path=str(path)) from error
        self._by_uri = {artifact.uri: artifact for artifact in self._artifacts.values()}
        self.torn_bytes = self._file.torn_bytes
        """Bytes of a torn tail that were found at open (and replaced by an artifact without rows, unless read-only)."""

    def append(self, artifact: Artifact) -> Artifact:
        """Record an artifact under the next id and return it with that id; durable when it returns."""
        given = msgspec.structs.replace(artifact, artifact_id=len(self._artifacts) + 1)
        self._file.append([msgspec.msgpack.encode(given)])
        self._artifacts[given.artifact_id] = given
        self._by_uri[given.uri] = given
        return given

    def get(self, artifact_id: int) -> Artifact:
        """The artifact; raises :class:`UnknownPayload` for an id that was never given."""
        found = self._artifacts.get(artifact_id)
        if found is None:
            raise UnknownPayload(f"no artifact {artifact_id}", artifact_id=artifact_id)
        return found

    def by_uri(self, uri: str) -> Artifact | None:
        """The artifact of a URI, None where there is none."""
        return self._by_uri.get(uri)

    def all(self) -> list[Artifact]:
        """Every artifact in id order."""
        return [self._artifacts[artifact_id] for artifact_id in sorted(self._artifacts)]

    def __len__(self) -> int:
        return len(self._artifacts)

    @property
    def length(self) -> int:
        """Bytes of the file up to the end of its last good record."""
        return self._file.length

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _torn_artifact(count: int) -> bytes:
    """Takes the id of a torn record out of use: should a payload name it all the same, it finds no rows, not others'."""
    artifact_id = count + 1
    torn = Artifact(
        artifact_id=artifact_id,
        uri=f"torn/{artifact_id}",
        checksum=0,
        bytes=0,
        rows=0,
        column="",
        session="",
        engine="",
    )
    return msgspec.msgpack.encode(torn)
