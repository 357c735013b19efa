"""
Mapping files: append-only stores of fixed-size payload records, and the framed list of artifacts.

``payload_id`` is a record's position, from 1; id 1 is the kind's no-rows record. Ids are reserved durably in strides
before they are used, so that after any crash none is ever given twice: an unclean file goes on behind its last
reservation and leaves a gap. A record is synced before a slot names it. This module must never know a slot.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
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
from ledger.records import NO_ROWS_ID, RECORD_DTYPE, good_at, good_mask, is_good, no_rows_record, stamp

RECORDS_OFFSET: Final = 2 * PAGE
"""Records begin behind the header page and the mark page."""
ID_STRIDE: Final = 65_536
"""Ids reserved at once; the largest gap a crash leaves."""
_ID_MAX: Final = 2**32 - 1
_MARK: Final = struct.Struct("<IIQQQ")
"""crc · clean · reserved through · next id at the last clean close · unused."""


class PayloadMap:
    """
    The records of one kind. Written by one thread; reads check every record's CRC.

    Args:
        create: make the file when it is missing; False refuses, because ids would begin anew.

    Raises:
        NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
    """

    def __init__(self, system: System, path: Path, kind: PayloadKind, *, readonly: bool, create: bool = True) -> None:
        self.kind = kind
        self.path = path
        self.readonly = readonly
        self.record_bytes = RECORD_DTYPE[kind].itemsize
        self.torn_records = 0
        """Half-written records that were found, and voided, at open."""
        self.unsynced = False
        """Appended to since the last sync began."""
        self._system = gated(system)
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
            self._read_mark()
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

    def _read_mark(self) -> None:
        data = self._system.pread(self._fd, _MARK.size, PAGE)
        if len(data) < _MARK.size:
            raise DamagedFile(f"{self.path}: shorter than its mark page")
        crc, clean, self._reserved, self.clean_next_id, _ = _MARK.unpack(data)
        size = self._system.size(self._fd)
        end_id = max(size - RECORDS_OFFSET, 0) // self.record_bytes + 1
        if crc != zlib.crc32(data[4:]):
            # The mark itself is gone: everything on disk is suspect, and ids go on far behind its end.
            clean, self._reserved, self.clean_next_id = 0, end_id + ID_STRIDE, NO_ROWS_ID
        self.clean = bool(clean)
        if end_id < self.clean_next_id:
            raise DamagedFile(
                f"{self.path}: {end_id - 1} records, but it was closed with {self.clean_next_id - 1}: it was truncated"
            )
        # A reader beside a daemon may see the clean mark and then a file that has grown.
        if self.clean and not self.readonly and size != self._offset(self.clean_next_id):
            raise DamagedFile(
                f"{self.path}: {size} bytes, but it was closed with {self._offset(self.clean_next_id)}: it was extended"
            )
        self.next_id = self.clean_next_id
        if not self.clean:
            self.next_id = max(self._reserved, end_id - 1) + 1
            if not self.readonly:
                self._void_torn(end_id)

    def _void_torn(self, end_id: int) -> None:
        """Count what a crash left half-written behind the last clean close, and zero it."""
        first = max(self.clean_next_id, NO_ROWS_ID + 1)
        for start in range(first, end_id, ID_STRIDE):
            records = self._read_range(start, min(ID_STRIDE, end_id - start))
            raw = records.view(np.uint8).reshape(len(records), -1)
            torn = raw.any(axis=1) & ~good_mask(records, start)
            self.torn_records += int(torn.sum())
            for index in np.flatnonzero(torn):
                self._system.pwrite(self._fd, bytes(self.record_bytes), self._offset(start + int(index)))

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
            reserved = min(last + ID_STRIDE, _ID_MAX)
            self._system.pwrite(self._fd, self._mark(clean=False, reserved=reserved, next_id=self.clean_next_id), PAGE)
            self._system.fdatasync(self._fd)
            self._reserved, self.clean = reserved, False
        stamp(records, first)
        self._system.pwrite(self._fd, records.tobytes(), self._offset(first))
        self.unsynced = True
        self.next_id = last + 1
        return first

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
        view = self._view(int(ids.max()))
        inside = (ids >= 1) & (ids <= len(view))
        found[inside] = view[ids[inside] - 1]
        if check:
            # The no-rows record is named by millions of cells, and its sum holds for all of them.
            many = ids == NO_ROWS_ID
            bad = np.zeros(len(ids), dtype=bool)
            if many.any():
                bad[many] = not good_at(view[:1], np.array([NO_ROWS_ID]))[0]
            bad[~many] = ~good_at(found[~many], ids[~many])
            if bad.any():
                found[bad] = np.zeros(1, dtype=found.dtype)
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
        if not self.unsynced:
            return
        self.unsynced = False
        try:
            self._system.fdatasync(self._fd)
        except SpaceError:
            self.unsynced = True
            raise

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
                # What a refused append left behind the last record was never given an id.
                if self._system.size(self._fd) > self._offset(self.next_id):
                    self._system.ftruncate(self._fd, self._offset(self.next_id))
                self._system.fdatasync(self._fd)
                mark = self._mark(clean=True, reserved=self._reserved, next_id=self.next_id)
                self._system.pwrite(self._fd, mark, PAGE)
                self._system.fdatasync(self._fd)
                self.clean = True
        finally:
            self._map = None
            descriptor, self._fd = self._fd, -1
            self._system.close(descriptor)


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

    def __init__(self, system: System, path: Path, *, readonly: bool = False) -> None:
        self._file, payloads = FramedFile.open(system, path, "ART", FORMAT_VERSION, {}, readonly=readonly)
        decoder = msgspec.msgpack.Decoder(Artifact)
        try:
            self._artifacts = {artifact.artifact_id: artifact for artifact in map(decoder.decode, payloads)}
        except msgspec.DecodeError as error:
            self._file.close()
            raise DamagedFile(f"{path}: a record cannot be read: {error}", path=str(path)) from error
        self._by_uri = {artifact.uri: artifact for artifact in self._artifacts.values()}
        self.torn_bytes = self._file.torn_bytes
        """Bytes of a torn tail that were found at open (and cut off, unless read-only)."""

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

    def close(self) -> None:
        """Close the file."""
        self._file.close()
