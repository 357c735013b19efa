"""
One session of one ledger: a memory-mapped file of rows, its planes and its counts.

The rows are the truth; planes (u8[symbols, minutes] of status and of flags per column) and counts are derived, built
when the session is first used and kept in step by every write. A slot is always written as one 32-byte item, never
field by field. A block is reserved with ``fallocate`` before its first touch, so that a full disk is an error and never
a SIGBUS.

Called from one thread. This module must never know what a payload says, where it is or who asks.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ledger.columns import (
    MINUTES_PER_SESSION,
    SYMBOLS_MAX,
    WINDOW_NS,
    Column,
    Flag,
    LedgerKind,
    PayloadKind,
    Source,
    Status,
)
from ledger.errors import (
    ChecksumMismatch,
    DamagedFile,
    FileVersionMismatch,
    MinuteOutOfSession,
    NotALedgerFile,
    PayloadKindNotAllowed,
    RankConflict,
    StateReadOnly,
    UnknownSymbol,
    VersionConflict,
)
from ledger.files import System
from ledger.layout import (
    BLOCK_BYTES,
    COLUMNS_OF,
    COUNTS_OFFSET,
    FILE_BYTES,
    FLAG_COUNT,
    FORMAT_VERSION,
    PAGE,
    ROW_BYTES,
    ROW_HEADER_BYTES,
    ROW_SCHEMA_VERSION,
    ROWS_COUNTS,
    ROWS_IDENTITY,
    ROWS_MAGIC,
    SLOT_BYTES,
    SLOT_STRUCT,
    seal,
    seals,
)

_WORDS: Final = struct.Struct("<QQQQ")
_SLOT: Final = struct.Struct(SLOT_STRUCT)
_ROW_HEADER: Final = struct.Struct("<HHIqq8x")
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_READ_RETRIES: Final = 1000
_LOAD_BLOCKS: Final = 64


class Outcome(IntEnum):
    """What a block write did to one cell."""

    APPLIED = 0
    UNCHANGED = 1
    CONFLICT = 2
    OUTRANKED = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """One cell's metadata as plain values."""

    status: Status
    source: Source
    flags: Flag
    payload_type: PayloadKind
    payload_id: int
    version: int
    checksum: int
    inputs: int
    last_updated_ns: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a (symbol, minute) of one ledger. Times are ns since epoch UTC, [start_ts, end_ts)."""

    symbol_id: int
    minute_idx: int
    start_ts: int
    end_ts: int
    schema_version: int
    slots: dict[Column, Slot]


@dataclass(frozen=True, slots=True)
class SessionPlace:
    """Where a session lies in its year: everything a row file must know of the calendar."""

    year: int
    session_seq: int
    date: str
    open_ns: int
    minutes: int


@dataclass(frozen=True, slots=True)
class BrokenSlot:
    """A slot whose seal does not fit, found when the session was loaded."""

    column: Column
    symbol_id: int
    minute: int


EMPTY_SLOT: Final = Slot(Status.EMPTY, Source.NONE, Flag.NONE, PayloadKind.NONE, 0, 0, 0, 0, 0)


def unpack_slot(data: bytes) -> Slot | None:
    """The slot in 32 bytes, or None where its seal is broken."""
    w0, w1, w2, w3 = _WORDS.unpack(data)
    inputs = w3 & 0xFFFFFFFF
    if seal(w0, w1, w2, inputs) != w3 >> 32:
        return None
    if not w0 and not w1:
        return EMPTY_SLOT
    kind, status, source, flags, payload_id, version, checksum, updated, inputs, _ = _SLOT.unpack(data)
    return Slot(
        Status(status), Source(source), Flag(flags), PayloadKind(kind), payload_id, version, checksum, inputs, updated
    )


class SessionRows:
    """
    The rows of one session of one ledger.

    ``status`` and ``flags`` are u8[columns, symbols, 390] planes; read them, never write them. ``changes`` is
    u32[symbols], counted up at every write to a symbol, so that a planner looks only where something moved.
    """

    def __init__(self, system: System, path: Path, kind: LedgerKind, place: SessionPlace, *, readonly: bool) -> None:
        self.kind = kind
        self.place = place
        self.path = path
        self.columns = COLUMNS_OF[kind]
        self.readonly = readonly
        self.broken: list[BrokenSlot] = []
        self.dirty = False
        self.clean = True
        self.changes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        self.change_count = 0
        self._system = system
        self._index = {column: index for index, column in enumerate(self.columns)}
        self._fd = self._open_file()
        try:
            self._check_identity()
            access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
            self._map = mmap.mmap(self._fd, FILE_BYTES[kind], access=access)
        except BaseException:
            system.close(self._fd)
            raise
        self._slots = self._slot_view()
        shape = (len(self.columns), SYMBOLS_MAX, MINUTES_PER_SESSION)
        self.status = np.zeros(shape, dtype=np.uint8)
        self.flags = np.zeros(shape, dtype=np.uint8)
        self.counts_status = np.zeros((len(self.columns), 4), dtype=np.int64)
        self.counts_flags = np.zeros((len(self.columns), FLAG_COUNT), dtype=np.int64)
        self.reserved = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._load()

    # ---- opening and closing

    def _open_file(self) -> int:
        if self.readonly:
            return self._system.open(self.path, os.O_RDONLY)
        fd = self._system.open(self.path, os.O_RDWR | os.O_CREAT)
        if os.fstat(fd).st_size == 0:
            self._system.ftruncate(fd, FILE_BYTES[self.kind])
            self._system.pwrite(fd, self._identity(), 0)
            self._system.fdatasync(fd)
            self._system.fsync_directory(self.path.parent)
        return fd

    def _identity(self) -> bytes:
        page = np.zeros(1, dtype=ROWS_IDENTITY)
        page["magic"], page["version"] = ROWS_MAGIC, FORMAT_VERSION
        page["year"], page["session_seq"] = self.place.year, self.place.session_seq
        page["minutes"], page["columns"] = self.place.minutes, len(self.columns)
        page["symbols_max"], page["row_bytes"] = SYMBOLS_MAX, ROW_BYTES[self.kind]
        page["open_ns"], page["ledger"], page["date"] = self.place.open_ns, self.kind.value, self.place.date
        page["crc"] = zlib.crc32(page.tobytes()[16:])
        head: bytes = page.tobytes().ljust(COUNTS_OFFSET, b"\0")
        return head + self._counts_bytes(clean=True)

    def _check_identity(self) -> None:
        data = self._system.pread(self._fd, PAGE, 0)
        if len(data) < PAGE:
            raise DamagedFile(f"{self.path}: {len(data)} bytes, shorter than its header page")
        found = np.frombuffer(data, dtype=ROWS_IDENTITY, count=1)[0]
        if data[: len(ROWS_MAGIC)] != ROWS_MAGIC:
            raise NotALedgerFile(f"{self.path}: not a file of rows (magic {data[:8]!r})")
        if found["version"] != FORMAT_VERSION:
            raise FileVersionMismatch(
                f"{self.path}: format version {found['version']}, this M17 reads {FORMAT_VERSION}"
            )
        if found["crc"] != zlib.crc32(data[16 : ROWS_IDENTITY.itemsize]):
            raise ChecksumMismatch(f"{self.path}: the checksum of its header page does not fit")
        expected = self._identity()[: ROWS_IDENTITY.itemsize]
        if data[: ROWS_IDENTITY.itemsize] != expected:
            ours = np.frombuffer(expected, dtype=ROWS_IDENTITY)[0]
            names = [name for name in ROWS_IDENTITY.names or () if found[name] != ours[name]]
            raise DamagedFile(
                f"{self.path}: it is the file of another session or ledger (differs in {', '.join(names)})"
            )
        size = os.fstat(self._fd).st_size
        if size != FILE_BYTES[self.kind]:
            raise DamagedFile(f"{self.path}: {size} bytes, expected {FILE_BYTES[self.kind]}")

    def _slot_view(self) -> np.ndarray:
        base = np.frombuffer(self._map, dtype="V32", offset=PAGE + ROW_HEADER_BYTES, count=1)
        return as_strided(
            base,
            shape=(SYMBOLS_MAX, MINUTES_PER_SESSION, len(self.columns)),
            strides=(BLOCK_BYTES[self.kind], ROW_BYTES[self.kind], SLOT_BYTES),
            writeable=not self.readonly,
        )

    def _data_blocks(self) -> list[tuple[int, int]]:
        """Half-open ranges of symbol ids whose blocks may hold data, from the file system's extents."""
        ranges: list[tuple[int, int]] = []
        offset, end, block = PAGE, FILE_BYTES[self.kind], BLOCK_BYTES[self.kind]
        while offset < end:
            try:
                data = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(self._fd, data, os.SEEK_HOLE)
            first = max(data - PAGE, 0) // block
            last = min(-(-(hole - PAGE) // block), SYMBOLS_MAX)
            if ranges and first < ranges[-1][1]:
                first = ranges[-1][1]
            if last > first:
                ranges.append((first, last))
            offset = max(hole, offset + 1)
        return ranges

    def _load(self) -> None:
        stored = np.frombuffer(self._map, dtype=ROWS_COUNTS, count=1, offset=COUNTS_OFFSET)[0]
        self.clean = bool(stored["clean"]) and stored["crc"] == zlib.crc32(stored.tobytes()[4:])
        for first, last in self._data_blocks():
            for start in range(first, last, _LOAD_BLOCKS):
                self._load_blocks(start, min(start + _LOAD_BLOCKS, last))
        self._recount()

    def _load_blocks(self, first: int, last: int) -> None:
        block, row = BLOCK_BYTES[self.kind], ROW_BYTES[self.kind]
        data = self._system.pread(self._fd, (last - first) * block, PAGE + first * block)
        words = np.frombuffer(data, dtype="<u8").reshape(last - first, block // 8)
        rows = words[:, : MINUTES_PER_SESSION * row // 8].reshape(last - first, MINUTES_PER_SESSION, row // 8)
        headed = rows[:, 0, 0] != 0
        used = headed | rows[:, :, 4:].any(axis=(1, 2))
        self.reserved[first:last] = used
        for index in range(len(self.columns)):
            slot = rows[:, :, 4 + 4 * index : 8 + 4 * index]
            flat = slot[:, :, 0]
            sound = seals(slot) == slot[:, :, 3] >> _SHIFT
            self.status[index, first:last] = ((flat >> np.uint64(8)) & np.uint64(0xFF)).astype(np.uint8)
            self.flags[index, first:last] = ((flat >> np.uint64(24)) & np.uint64(0xFF)).astype(np.uint8)
            self._note_broken(index, first, sound)
        if not self.readonly:
            self._restamp(np.flatnonzero(used) + first, rows[used])

    def _note_broken(self, index: int, first: int, sound: np.ndarray) -> None:
        unknown = (self.status[index, first : first + len(sound)] > Status.CLEARED) & sound
        for symbol, minute in zip(*np.nonzero(~sound | unknown), strict=True):
            self.broken.append(BrokenSlot(self.columns[index], int(symbol) + first, int(minute)))
            self.status[index, symbol + first, minute] = Status.EMPTY
            self.flags[index, symbol + first, minute] = 0

    def _restamp(self, symbol_ids: np.ndarray, rows: np.ndarray) -> None:
        """Write row headers again where a crash or a flipped bit left them other than the calendar says."""
        if not len(symbol_ids):
            return
        wrong = (rows[:, :, :4] != self._headers(symbol_ids)).any(axis=(1, 2))
        for symbol_id in symbol_ids[wrong]:
            self._stamp(int(symbol_id))

    def _headers(self, symbol_ids: np.ndarray) -> np.ndarray:
        """u64[n, 390, 4], the row headers of some symbols."""
        minutes = np.arange(MINUTES_PER_SESSION, dtype=np.int64)
        starts = self.place.open_ns + minutes * WINDOW_NS
        starts[self.place.minutes :] = 0
        ends = np.where(starts > 0, starts + WINDOW_NS, 0)
        minute_idx = (self.place.session_seq * MINUTES_PER_SESSION + minutes).astype(np.uint64)
        headers = np.zeros((len(symbol_ids), MINUTES_PER_SESSION, 4), dtype=np.uint64)
        low = symbol_ids.astype(np.uint64)[:, None] | np.uint64(ROW_SCHEMA_VERSION << 16)
        headers[:, :, 0] = low | (minute_idx << _SHIFT)[None, :]
        headers[:, :, 1] = starts.view(np.uint64)[None, :]
        headers[:, :, 2] = ends.view(np.uint64)[None, :]
        return headers

    def _stamp(self, symbol_id: int) -> None:
        row = ROW_BYTES[self.kind]
        base = np.frombuffer(self._map, dtype="<u8", offset=PAGE + symbol_id * BLOCK_BYTES[self.kind], count=4)
        rows = as_strided(base, shape=(MINUTES_PER_SESSION, 4), strides=(row, 8), writeable=True)
        rows[:] = self._headers(np.array([symbol_id]))[0]

    def _recount(self) -> None:
        for index in range(len(self.columns)):
            used = self.status[index, self.reserved, : self.place.minutes]
            self.counts_status[index] = np.bincount(used.reshape(-1), minlength=4)[:4]
            flags = self.flags[index, self.reserved, : self.place.minutes]
            self.counts_flags[index] = [np.count_nonzero(flags & (1 << bit)) for bit in range(FLAG_COUNT)]

    def _counts_bytes(self, *, clean: bool) -> bytes:
        page = np.zeros(1, dtype=ROWS_COUNTS)
        page["clean"] = int(clean)
        if hasattr(self, "counts_status"):
            page["status"][0, : len(self.columns)] = self.counts_status
            page["flags"][0, : len(self.columns)] = self.counts_flags
        page["crc"] = zlib.crc32(page.tobytes()[4:])
        return page.tobytes()

    def flush(self, *, clean: bool = False) -> None:
        """
        Sync the rows to disk; with ``clean`` also say in the header that counts and rows agree.

        Called by the flusher after the maps of the same group were synced.

        Raises:
            SpaceError: the sync failed; the rows' state on disk is unknown.
        """
        self._system.fdatasync(self._fd)
        if clean and not self.readonly:
            self._system.pwrite(self._fd, self._counts_bytes(clean=True), COUNTS_OFFSET)
            self._system.fdatasync(self._fd)
            self.clean, self.dirty = True, False

    @property
    def descriptor(self) -> int:
        """The file descriptor, for the flusher to sync beside the thread that writes."""
        return self._fd

    def close(self) -> None:
        """Flush if written, then unmap and close; safe to call once only."""
        if self.dirty and not self.readonly:
            self.flush(clean=True)
        del self._slots
        self._map.close()
        self._system.close(self._fd)

    # ---- addresses

    def _check_address(self, symbol_id: int, minute: int) -> None:
        if not 0 <= symbol_id < SYMBOLS_MAX:
            raise UnknownSymbol(f"symbol_id {symbol_id} is not in 0..{SYMBOLS_MAX - 1}")
        if not 0 <= minute < self.place.minutes:
            raise MinuteOutOfSession(f"minute {minute} is not in 0..{self.place.minutes - 1} of {self.place.date}")

    def _check_addresses(self, symbol_ids: np.ndarray, minutes: np.ndarray) -> None:
        if len(symbol_ids) != len(minutes):
            raise ValueError(f"{len(symbol_ids)} symbols and {len(minutes)} minutes: one each is needed")
        if not len(symbol_ids):
            return
        if int(symbol_ids.max()) >= SYMBOLS_MAX or int(symbol_ids.min()) < 0:
            raise UnknownSymbol(f"symbol_id {int(symbol_ids.max())} is not in 0..{SYMBOLS_MAX - 1}")
        if int(minutes.max()) >= self.place.minutes or int(minutes.min()) < 0:
            raise MinuteOutOfSession(f"a minute is not in 0..{self.place.minutes - 1} of {self.place.date}")
        flat = symbol_ids.astype(np.int64) * MINUTES_PER_SESSION + minutes
        if len(flat) > 1 and not (np.diff(flat) > 0).all() and len(np.unique(flat)) != len(flat):
            raise ValueError("a cell is named twice in one block write")

    def _prepare(self, symbol_ids: np.ndarray) -> None:
        """Reserve the blocks of some symbols and take back the clean mark, before the first byte moves."""
        if self.readonly:
            raise StateReadOnly(f"{self.path} was opened for reading only")
        fresh = np.unique(symbol_ids[~self.reserved[symbol_ids]])
        for symbol_id in fresh:
            offset = PAGE + int(symbol_id) * BLOCK_BYTES[self.kind]
            self._system.fallocate(self._fd, offset, BLOCK_BYTES[self.kind])
        if self.clean:
            self._system.pwrite(self._fd, self._counts_bytes(clean=False), COUNTS_OFFSET)
            self._system.fdatasync(self._fd)
            self.clean = False
        self.dirty = True
        for symbol_id in fresh:
            self._stamp(int(symbol_id))
            self.reserved[symbol_id] = True
            self.counts_status[:, Status.EMPTY] += self.place.minutes

    def reserve(self, symbol_ids: np.ndarray) -> None:
        """
        Reserve the blocks of some symbols, so that no later write to them can meet a full disk.

        Raises:
            SpaceError: there is no room; nothing was written.
        """
        self._prepare(np.asarray(symbol_ids))

    # ---- reads

    def _offset(self, symbol_id: int, minute: int) -> int:
        return PAGE + symbol_id * BLOCK_BYTES[self.kind] + minute * ROW_BYTES[self.kind]

    def slot(self, column: Column, symbol_id: int, minute: int) -> Slot:
        """
        One cell.

        Raises:
            AddressError: no such symbol or minute.
            ChecksumMismatch: the seal stays broken; the cell is never served as good.
        """
        self._check_address(symbol_id, minute)
        offset = self._offset(symbol_id, minute) + ROW_HEADER_BYTES + SLOT_BYTES * self._index[column]
        for _ in range(_READ_RETRIES):
            found = unpack_slot(self._map[offset : offset + SLOT_BYTES])
            if found is not None:
                return found
        raise ChecksumMismatch(
            f"{self.path}: the seal of {column} at symbol_id {symbol_id}, minute {minute} is broken",
            column=column.value,
            symbol_id=symbol_id,
            minute=minute,
        )

    def row(self, symbol_id: int, minute: int) -> Row:
        """One row with all its slots; raises like :meth:`slot`."""
        self._check_address(symbol_id, minute)
        start = self.place.open_ns + minute * WINDOW_NS
        return Row(
            symbol_id,
            self.place.session_seq * MINUTES_PER_SESSION + minute,
            start,
            start + WINDOW_NS,
            ROW_SCHEMA_VERSION,
            {column: self.slot(column, symbol_id, minute) for column in self.columns},
        )

    def slots(self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray | None = None) -> np.ndarray:
        """
        Cells as an array of the SLOT dtype, a fresh copy with every seal checked.

        Args:
            column: a column of this ledger.
            symbol_ids: integers [n].
            minutes: integers [n], one for each symbol; None gives all minutes of the session for each symbol.

        Returns:
            SLOT[n], or SLOT[n, minutes] without ``minutes``.

        Raises:
            ChecksumMismatch: a seal stays broken after many retries.
        """
        from ledger.layout import SLOT

        index = self._index[column]
        for _ in range(_READ_RETRIES):
            if minutes is None:
                taken = self._slots[np.asarray(symbol_ids), : self.place.minutes, index]
            else:
                taken = self._slots[np.asarray(symbol_ids), np.asarray(minutes), index]
            words = np.ascontiguousarray(taken).view("<u8").reshape(*taken.shape, 4)
            if (seals(words) == words[..., 3] >> _SHIFT).all():
                return np.ascontiguousarray(taken).view(SLOT)
        raise ChecksumMismatch(f"{self.path}: a seal of {column} is broken", column=column.value)

    def slab(self, symbol_id: int) -> bytes:
        """The session's rows of one symbol as raw bytes, in row order; for bulk reads."""
        start = self._offset(symbol_id, 0)
        return self._map[start : start + self.place.minutes * ROW_BYTES[self.kind]]

    def now_ns(self) -> int:
        """The ledger's clock, ns since epoch UTC."""
        return self._system.now_ns()

    def column_index(self, column: Column) -> int:
        """Index of a column in the planes."""
        return self._index[column]

    # ---- writes: one cell

    def set_one(
        self,
        column: Column,
        symbol_id: int,
        minute: int,
        kind: PayloadKind,
        payload_id: int,
        checksum: int,
        *,
        inputs: int = 0,
        source: Source = Source.NONE,
        flags: Flag = Flag.NONE,
        expected_version: int | None = None,
        now_ns: int,
    ) -> int:
        """
        Fill one cell: one pack, one slice.

        Returns:
            the cell's version afterwards; unchanged where it already held this content.

        Raises:
            PayloadKindNotAllowed: the column takes another kind.
            VersionConflict: ``expected_version`` is given and is not the cell's.
            RankConflict: a filled cell came from a higher source.
            SpaceError: the block could not be reserved.
        """
        self._check_address(symbol_id, minute)
        if kind is not column.payload_kind or not payload_id:
            raise PayloadKindNotAllowed(f"{column} takes {column.payload_kind.word}, not {kind.word} {payload_id}")
        index = self._index[column]
        offset = self._offset(symbol_id, minute) + ROW_HEADER_BYTES + SLOT_BYTES * index
        w0, w1, w2, w3 = _WORDS.unpack(self._map[offset : offset + SLOT_BYTES])
        version = w1 & 0xFFFFFFFF
        if expected_version is not None and expected_version != version:
            raise VersionConflict(expected_version, version, column=column.value, symbol_id=symbol_id, minute=minute)
        old_status, old_source = w0 >> 8 & 0xFF, w0 >> 16 & 0xFF
        if old_status == 2:
            if source < old_source:
                raise RankConflict(f"{column} holds a {Source(old_source).word} payload; {source.word} ranks below it")
            if w1 >> 32 == checksum and w3 & 0xFFFFFFFF == inputs:
                kind, payload_id = PayloadKind(w0 & 0xFF), w0 >> 32
                if w0 >> 24 & 0xFF == flags and source == old_source:
                    return version
        if not self.reserved[symbol_id] or self.clean:
            self._prepare(np.array([symbol_id]))
        version = (version + 1) & 0xFFFFFFFF
        w0 = kind | 2 << 8 | source << 16 | flags << 24 | payload_id << 32
        w1 = version | checksum << 32
        w2 = now_ns if now_ns > w2 else w2 + 1
        self._map[offset : offset + SLOT_BYTES] = _WORDS.pack(w0, w1, w2, inputs | seal(w0, w1, w2, inputs) << 32)
        self._replane(index, symbol_id, minute, 2, flags)
        return version

    def _replane(self, index: int, symbol_id: int, minute: int, status: int, flags: int) -> None:
        old_status, old_flags = self.status[index, symbol_id, minute], int(self.flags[index, symbol_id, minute])
        if old_status != status:
            self.status[index, symbol_id, minute] = status
            self.counts_status[index, old_status] -= 1
            self.counts_status[index, status] += 1
        if old_flags != flags:
            self.flags[index, symbol_id, minute] = flags
            for bit in range(FLAG_COUNT):
                self.counts_flags[index, bit] += (flags >> bit & 1) - (old_flags >> bit & 1)
        self.changes[symbol_id] += 1
        self.change_count += 1

    # ---- writes: many cells

    def set_many(
        self,
        column: Column,
        symbol_ids: np.ndarray,
        minutes: np.ndarray,
        payload_ids: np.ndarray | int,
        checksums: np.ndarray | int,
        *,
        inputs: np.ndarray | int = 0,
        source: Source = Source.NONE,
        flags: np.ndarray | int = 0,
        expected_versions: np.ndarray | None = None,
        now_ns: int,
    ) -> np.ndarray:
        """
        Fill many cells, each at most once.

        Args:
            column: a column of this ledger.
            symbol_ids, minutes: integers [n]; minutes count from the session's open.
            payload_ids, checksums: u32[n] or scalars.
            inputs, flags: u32[n] and u8[n], or scalars.
            expected_versions: u32[n]; a cell with another version is left alone.

        Returns:
            u8[n] of :class:`Outcome`.

        Raises:
            SpaceError: a block could not be reserved; nothing was written.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        self._check_addresses(symbol_ids, minutes)
        index = self._index[column]
        outcome = np.full(len(symbol_ids), Outcome.APPLIED, dtype=np.uint8)
        if not len(symbol_ids):
            return outcome
        old = self._gather(index, symbol_ids, minutes)
        new_flags = np.broadcast_to(np.asarray(flags, dtype=np.uint64), outcome.shape)
        new_inputs = np.broadcast_to(np.asarray(inputs, dtype=np.uint64), outcome.shape)
        new_checksums = np.broadcast_to(np.asarray(checksums, dtype=np.uint64), outcome.shape)
        new_ids = np.broadcast_to(np.asarray(payload_ids, dtype=np.uint64), outcome.shape)
        if not new_ids.all():
            raise PayloadKindNotAllowed(f"{column}: payload_id 0 names no payload")
        filled = (old[:, 0] >> np.uint64(8)) & np.uint64(0xFF) == Status.FILLED
        old_source = (old[:, 0] >> np.uint64(16)) & np.uint64(0xFF)
        old_flags = (old[:, 0] >> np.uint64(24)) & np.uint64(0xFF)
        same = filled & (old[:, 1] >> _SHIFT == new_checksums) & (old[:, 3] & _LOW == new_inputs)
        outcome[same & (old_flags == new_flags) & (old_source == int(source))] = Outcome.UNCHANGED
        outcome[filled & (old_source > int(source))] = Outcome.OUTRANKED
        if expected_versions is not None:
            outcome[old[:, 1] & _LOW != expected_versions.astype(np.uint64)] = Outcome.CONFLICT
        applied = outcome == Outcome.APPLIED
        if not applied.any():
            return outcome
        self._prepare(symbol_ids[applied])
        kept_ids = np.where(same, old[:, 0] >> _SHIFT, new_ids)
        words = np.empty_like(old)
        words[:, 0] = np.uint64(column.payload_kind | Status.FILLED << 8 | source << 16)
        words[:, 0] |= new_flags << np.uint64(24)
        words[:, 0] |= kept_ids << _SHIFT
        words[:, 1] = self._next_versions(old) | new_checksums << _SHIFT
        words[:, 3] = new_inputs
        if not applied.all():
            symbol_ids, minutes, old, words = symbol_ids[applied], minutes[applied], old[applied], words[applied]
        self._scatter(index, symbol_ids, minutes, old, words, now_ns)
        return outcome

    def clear_many(self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, *, now_ns: int) -> np.ndarray:
        """
        Clear cells: payload fields zeroed, status cleared, version counted up; empty and cleared cells stay.

        Returns:
            bool[n], True where a cell was cleared.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        self._check_addresses(symbol_ids, minutes)
        index = self._index[column]
        status = self.status[index, symbol_ids, minutes]
        touched = (status == Status.FILLED) | (status == Status.PENDING)
        chosen, chosen_minutes = symbol_ids[touched], minutes[touched]
        if len(chosen):
            self._prepare(chosen)
            old = self._gather(index, chosen, chosen_minutes)
            words = np.zeros_like(old)
            words[:, 0] = np.uint64(Status.CLEARED << 8)
            words[:, 1] = self._next_versions(old)
            self._scatter(index, chosen, chosen_minutes, old, words, now_ns)
        return touched

    def flag_many(
        self,
        column: Column,
        symbol_ids: np.ndarray,
        minutes: np.ndarray,
        *,
        add: Flag = Flag.NONE,
        remove: Flag = Flag.NONE,
        now_ns: int,
    ) -> np.ndarray:
        """
        Add and remove flags of filled cells; the version counts up where a flag changed.

        Returns:
            bool[n], True where a cell changed.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        self._check_addresses(symbol_ids, minutes)
        index = self._index[column]
        old_flags = self.flags[index, symbol_ids, minutes]
        new_flags = (old_flags | np.uint8(add)) & np.uint8(~int(remove) & 0xFF)
        touched = (self.status[index, symbol_ids, minutes] == Status.FILLED) & (new_flags != old_flags)
        chosen, chosen_minutes = symbol_ids[touched], minutes[touched]
        if len(chosen):
            self._prepare(chosen)
            old = self._gather(index, chosen, chosen_minutes)
            words = old.copy()
            words[:, 0] &= np.uint64(0xFFFFFFFF00FFFFFF)
            words[:, 0] |= new_flags[touched].astype(np.uint64) << np.uint64(24)
            words[:, 1] = self._next_versions(old) | (old[:, 1] & ~_LOW)
            words[:, 3] &= _LOW
            self._scatter(index, chosen, chosen_minutes, old, words, now_ns)
        return touched

    def mark_pending(self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, *, now_ns: int) -> np.ndarray:
        """
        Claim cells that hold no payload; version and payload fields stay.

        Returns:
            bool[n], True where an empty or cleared cell became pending.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        self._check_addresses(symbol_ids, minutes)
        index = self._index[column]
        status = self.status[index, symbol_ids, minutes]
        touched = (status == Status.EMPTY) | (status == Status.CLEARED)
        self._restatus(index, symbol_ids[touched], minutes[touched], Status.PENDING, now_ns)
        return touched

    def release_pending(
        self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray, *, now_ns: int
    ) -> np.ndarray:
        """
        Give claimed cells back: cleared where the version is above 0, else empty.

        Returns:
            bool[n], True where a pending cell was released.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        self._check_addresses(symbol_ids, minutes)
        index = self._index[column]
        touched = self.status[index, symbol_ids, minutes] == Status.PENDING
        chosen, chosen_minutes = symbol_ids[touched], minutes[touched]
        if len(chosen):
            versions = self._gather(index, chosen, chosen_minutes)[:, 1] & _LOW
            seen = versions > 0
            self._restatus(index, chosen[seen], chosen_minutes[seen], Status.CLEARED, now_ns)
            self._restatus(index, chosen[~seen], chosen_minutes[~seen], Status.EMPTY, now_ns)
        return touched

    def restore_many(
        self,
        column: Column,
        symbol_ids: np.ndarray,
        minutes: np.ndarray,
        slots: np.ndarray,
        expected: np.ndarray,
        *,
        now_ns: int,
    ) -> np.ndarray:
        """
        Put back what an operation took away, where nobody wrote since.

        Args:
            slots: SLOT[n], the cells as they were.
            expected: u32[n], the versions the operation left; others are skipped.

        Returns:
            bool[n], True where a cell was restored; its version counts up.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        self._check_addresses(symbol_ids, minutes)
        index = self._index[column]
        current = self._gather(index, symbol_ids, minutes)
        touched = np.asarray(current[:, 1] & _LOW == expected.astype(np.uint64))
        if touched.any():
            chosen, chosen_minutes, old = symbol_ids[touched], minutes[touched], current[touched]
            self._prepare(chosen)
            words = np.ascontiguousarray(slots[touched]).view("<u8").reshape(-1, 4).copy()
            words[:, 1] = self._next_versions(old) | (words[:, 1] & ~_LOW)
            words[:, 3] &= _LOW
            self._scatter(index, chosen, chosen_minutes, old, words, now_ns)
        return touched

    def repair(self, broken: BrokenSlot, *, now_ns: int) -> None:
        """Set a cell whose bytes cannot be trusted to cleared, whatever they say; its version starts above them."""
        index = self._index[broken.column]
        symbol_ids, minutes = np.array([broken.symbol_id]), np.array([broken.minute])
        if broken.minute >= self.place.minutes:
            self._slots[broken.symbol_id, broken.minute, index] = np.void(b"\0" * SLOT_BYTES)
            return
        self._prepare(symbol_ids)
        old = self._gather(index, symbol_ids, minutes)
        old[:, 2] = np.minimum(old[:, 2], np.uint64(now_ns))
        words = np.zeros_like(old)
        words[:, 0] = np.uint64(Status.CLEARED << 8)
        words[:, 1] = self._next_versions(old)
        self._scatter(index, symbol_ids, minutes, old, words, now_ns)

    # ---- the one way bytes reach the map in blocks

    def _restatus(self, index: int, symbol_ids: np.ndarray, minutes: np.ndarray, status: Status, now_ns: int) -> None:
        if not len(symbol_ids):
            return
        self._prepare(symbol_ids)
        old = self._gather(index, symbol_ids, minutes)
        words = old.copy()
        words[:, 0] &= np.uint64(0xFFFFFFFFFFFF00FF)
        words[:, 0] |= np.uint64(status << 8)
        words[:, 3] &= _LOW
        self._scatter(index, symbol_ids, minutes, old, words, now_ns)

    def _gather(self, index: int, symbol_ids: np.ndarray, minutes: np.ndarray) -> np.ndarray:
        taken: Any = self._slots[symbol_ids, minutes, index]
        words: np.ndarray = taken.view("<u8").reshape(-1, 4)
        return words

    @staticmethod
    def _next_versions(old: np.ndarray) -> np.ndarray:
        versions: np.ndarray = ((old[:, 1] & _LOW) + np.uint64(1)) & _LOW
        return versions

    def _scatter(
        self, index: int, symbol_ids: np.ndarray, minutes: np.ndarray, old: np.ndarray, words: np.ndarray, now_ns: int
    ) -> None:
        """Clock and seal the words, store each slot as one item, and keep planes, counts and changes in step."""
        words[:, 2] = np.maximum(old[:, 2] + np.uint64(1), np.uint64(now_ns))
        words[:, 3] |= seals(words) << _SHIFT
        self._slots[symbol_ids, minutes, index] = words.view("V32")[:, 0]
        status = ((words[:, 0] >> np.uint64(8)) & np.uint64(0xFF)).astype(np.uint8)
        flags = ((words[:, 0] >> np.uint64(24)) & np.uint64(0xFF)).astype(np.uint8)
        self.counts_status[index] += np.bincount(status, minlength=4)
        self.counts_status[index] -= np.bincount(self.status[index, symbol_ids, minutes], minlength=4)
        old_flags = self.flags[index, symbol_ids, minutes]
        if flags.any() or old_flags.any():
            for bit in range(FLAG_COUNT):
                mask = np.uint8(1 << bit)
                change = np.count_nonzero(flags & mask) - np.count_nonzero(old_flags & mask)
                self.counts_flags[index, bit] += change
        self.status[index, symbol_ids, minutes] = status
        self.flags[index, symbol_ids, minutes] = flags
        np.add.at(self.changes, symbol_ids, 1)
        self.change_count += len(symbol_ids)
