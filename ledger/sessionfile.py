"""
The file under one session of one ledger: identity, mapping, blocks, planes, counts, syncs.

Planes (u8[symbols, minutes] of status and of flags per column) and counts are derived from the rows when the file is
opened. A block is reserved with ``fallocate`` and written through the file before its first touch through the mapping,
so that a full disk is an error and never a SIGBUS. This module must never decide what a cell becomes.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ledger.columns import MINUTES_PER_SESSION, SYMBOLS_MAX, WINDOW_NS, Column, LedgerKind, Status
from ledger.errors import (
    ChecksumMismatch,
    DamagedFile,
    FileVersionMismatch,
    NotALedgerFile,
    SpaceError,
    StateReadOnly,
    from_os_error,
)
from ledger.files import TEMPORARY_SUFFIX, System
from ledger.gate import gated
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
    seals,
)
from ledger.slots import BrokenSlot, SessionPlace

_SHIFT: Final = np.uint64(32)
_BLOCKS_AT_ONCE: Final = 64
_UNKNOWN_BITS: Final = np.uint64(0xE0FCFC00)
"""Bits of a slot's first word that no status, source or flag of this format uses."""


class SessionFile:
    """
    The file of one session of one ledger, opened, checked and mapped.

    ``status`` and ``flags`` are u8[columns, symbols, 390] planes; read them, never write them. ``changes`` is
    u32[symbols], counted up at every write to a symbol, so that a planner looks only where something moved.
    """

    def __init__(
        self,
        system: System,
        path: Path,
        kind: LedgerKind,
        place: SessionPlace,
        *,
        readonly: bool,
        load: bool = True,
    ) -> None:
        self.kind = kind
        self.place = place
        self.path = path
        self.columns = COLUMNS_OF[kind]
        self.readonly = readonly
        self.broken: list[BrokenSlot] = []
        self.restamped = 0
        """Blocks whose row headers were not what the calendar says, and were written again."""
        self.dirty = False
        """Written since the clean mark was taken back."""
        self.unsynced = False
        """Written since the last sync began."""
        self.clean = True
        self.changes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        self.change_count = 0
        self._system = gated(system)
        self._lock = threading.Lock()
        self._closed = False
        self._index = {column: index for index, column in enumerate(self.columns)}
        shape = (len(self.columns), SYMBOLS_MAX, MINUTES_PER_SESSION)
        self.status = np.zeros(shape, dtype=np.uint8)
        self.flags = np.zeros(shape, dtype=np.uint8)
        self.counts_status = np.zeros((len(self.columns), 4), dtype=np.int64)
        self.counts_flags = np.zeros((len(self.columns), FLAG_COUNT), dtype=np.int64)
        self.reserved = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._template = self._header_template()
        self._fd = self._open_file()
        try:
            self._check_identity()
            self._map = self._map_file()
            self._slots = self._slot_view()
            if load:
                self._load()
        except BaseException:
            self._system.close(self._fd)
            raise

    # ---- opening

    def _open_file(self) -> int:
        if self.readonly:
            return self._system.open(self.path, os.O_RDONLY)
        if not self.path.exists():
            self._create()
        return self._system.open(self.path, os.O_RDWR)

    def _create(self) -> None:
        """Make the file whole under a temporary name: a crash in between must not leave one without identity."""
        system, temporary = self._system, self.path.with_name(self.path.name + TEMPORARY_SUFFIX)
        fd = system.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            system.ftruncate(fd, FILE_BYTES[self.kind])
            system.pwrite(fd, self._identity() + self._counts_bytes(clean=True), 0)
            system.fdatasync(fd)
            system.rename(temporary, self.path)
        except SpaceError:
            with suppress(SpaceError):
                system.unlink(temporary)
            raise
        finally:
            system.close(fd)
        system.fsync_directory(self.path.parent)

    def _identity(self) -> bytes:
        page = np.zeros(1, dtype=ROWS_IDENTITY)
        page["magic"], page["version"] = ROWS_MAGIC, FORMAT_VERSION
        page["year"], page["session_seq"] = self.place.year, self.place.session_seq
        page["minutes"], page["columns"] = self.place.minutes, len(self.columns)
        page["symbols_max"], page["row_bytes"] = SYMBOLS_MAX, ROW_BYTES[self.kind]
        page["open_ns"], page["ledger"], page["date"] = self.place.open_ns, self.kind.value, self.place.date
        page["crc"] = zlib.crc32(page.tobytes()[16:])
        return page.tobytes().ljust(COUNTS_OFFSET, b"\0")

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
        size = self._system.size(self._fd)
        if size != FILE_BYTES[self.kind]:
            raise DamagedFile(f"{self.path}: {size} bytes, expected {FILE_BYTES[self.kind]}")

    def _map_file(self) -> mmap.mmap:
        access = mmap.ACCESS_READ if self.readonly else mmap.ACCESS_WRITE
        try:
            return mmap.mmap(self._fd, FILE_BYTES[self.kind], access=access)
        except OSError as error:
            raise from_os_error(error, "mmap", self.path) from error

    def _slot_view(self) -> np.ndarray:
        base = np.frombuffer(self._map, dtype="V32", offset=PAGE + ROW_HEADER_BYTES, count=1)
        return as_strided(
            base,
            shape=(SYMBOLS_MAX, MINUTES_PER_SESSION, len(self.columns)),
            strides=(BLOCK_BYTES[self.kind], ROW_BYTES[self.kind], SLOT_BYTES),
            writeable=not self.readonly,
        )

    # ---- loading: planes and counts from the rows

    def data_blocks(self) -> list[tuple[int, int]]:
        """Half-open ranges of symbol ids whose blocks may hold data, from the file system's extents."""
        ranges: list[tuple[int, int]] = []
        offset, end, block = PAGE, FILE_BYTES[self.kind], BLOCK_BYTES[self.kind]
        while offset < end:
            try:
                data = os.lseek(self._fd, offset, os.SEEK_DATA)
                hole = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise from_os_error(error, "lseek", self.path) from error
            first = max(data - PAGE, 0) // block
            last = min(-(-(hole - PAGE) // block), SYMBOLS_MAX)
            if ranges and first < ranges[-1][1]:
                first = ranges[-1][1]
            if last > first:
                ranges.append((first, last))
            offset = max(hole, offset + 1)
        return ranges

    def _load(self) -> None:
        stored = np.frombuffer(self._system.pread(self._fd, ROWS_COUNTS.itemsize, COUNTS_OFFSET), dtype=ROWS_COUNTS)[0]
        self.clean = bool(stored["clean"]) and stored["crc"] == zlib.crc32(stored.tobytes()[4:])
        for first, last in self.data_blocks():
            for start in range(first, last, _BLOCKS_AT_ONCE):
                self._load_blocks(start, min(start + _BLOCKS_AT_ONCE, last))
        self.recount()

    def read_blocks(self, first: int, last: int) -> np.ndarray:
        """u64[last - first, 390, words of a row], the blocks of some symbols as they are in the file, a copy."""
        block, row = BLOCK_BYTES[self.kind], ROW_BYTES[self.kind]
        data = self._system.pread(self._fd, (last - first) * block, PAGE + first * block)
        words = np.frombuffer(data, dtype="<u8").reshape(last - first, block // 8)
        rows: np.ndarray = words[:, : MINUTES_PER_SESSION * row // 8].reshape(last - first, MINUTES_PER_SESSION, -1)
        return rows

    def read_padding(self, first: int, last: int) -> np.ndarray:
        """u8[last - first, bytes], what stands behind the last row of the blocks of some symbols; a copy."""
        block, used = BLOCK_BYTES[self.kind], MINUTES_PER_SESSION * ROW_BYTES[self.kind]
        data = self._system.pread(self._fd, (last - first) * block, PAGE + first * block)
        return np.frombuffer(data, dtype=np.uint8).reshape(last - first, block)[:, used:]

    def header_page(self) -> bytes:
        """The header page as it is in the file."""
        return self._system.pread(self._fd, PAGE, 0)

    @property
    def closed(self) -> bool:
        """True when :meth:`close` was called."""
        return self._closed

    def _load_blocks(self, first: int, last: int) -> None:
        rows = self.read_blocks(first, last)
        used = (rows[:, 0, 0] != 0) | rows[:, :, 4:].any(axis=(1, 2))
        self.reserved[first:last] = used
        for index, column in enumerate(self.columns):
            slot = rows[:, :, 4 + 4 * index : 8 + 4 * index]
            flat = slot[:, :, 0]
            self.status[index, first:last] = ((flat >> np.uint64(8)) & np.uint64(0xFF)).astype(np.uint8)
            self.flags[index, first:last] = ((flat >> np.uint64(24)) & np.uint64(0xFF)).astype(np.uint8)
            for symbol, minute in np.argwhere(~sound_slots(slot, column)).tolist():
                self.broken.append(BrokenSlot(column, symbol + first, minute))
                self.status[index, symbol + first, minute] = Status.EMPTY
                self.flags[index, symbol + first, minute] = 0
        if not self.readonly:
            self._restamp(np.flatnonzero(used) + first, rows[used, :, :4])

    def _restamp(self, symbol_ids: np.ndarray, headers: np.ndarray) -> None:
        """Write row headers again where a crash or a flipped bit left them other than the calendar says."""
        for symbol_id in symbol_ids[(headers != self.headers(symbol_ids)).any(axis=(1, 2))].tolist():
            # A copy of the file may have holes where pages were zero: no store through the mapping before this.
            self._system.fallocate(self._fd, PAGE + symbol_id * BLOCK_BYTES[self.kind], BLOCK_BYTES[self.kind])
            base = np.frombuffer(self._map, dtype="<u8", offset=PAGE + symbol_id * BLOCK_BYTES[self.kind], count=4)
            rows = as_strided(base, shape=(MINUTES_PER_SESSION, 4), strides=(ROW_BYTES[self.kind], 8), writeable=True)
            rows[:] = self.headers(np.array([symbol_id]))[0]
            self.restamped += 1
            self.unsynced = True

    def _header_template(self) -> np.ndarray:
        """u64[390, 4], the row headers of symbol 0."""
        minutes = np.arange(MINUTES_PER_SESSION, dtype=np.int64)
        starts = self.place.open_ns + minutes * WINDOW_NS
        starts[self.place.minutes :] = 0
        minute_idx = (self.place.session_seq * MINUTES_PER_SESSION + minutes).astype(np.uint64)
        template = np.zeros((MINUTES_PER_SESSION, 4), dtype=np.uint64)
        template[:, 0] = np.uint64(ROW_SCHEMA_VERSION << 16) | (minute_idx << _SHIFT)
        template[:, 1] = starts.view(np.uint64)
        template[:, 2] = np.where(starts > 0, starts + WINDOW_NS, 0).view(np.uint64)
        return template

    def headers(self, symbol_ids: np.ndarray) -> np.ndarray:
        """u64[n, 390, 4], what the row headers of some symbols must be."""
        found = np.repeat(self._template[None], len(symbol_ids), axis=0)
        found[:, :, 0] |= symbol_ids.astype(np.uint64)[:, None]
        return found

    def recount(self) -> None:
        """Count statuses and flags again from the planes."""
        blocks = int(np.count_nonzero(self.reserved))
        last = int(np.flatnonzero(self.reserved)[-1]) + 1 if blocks else 0
        for index in range(len(self.columns)):
            status = self.status[index, :last, : self.place.minutes]
            flags = self.flags[index, :last, : self.place.minutes]
            counts = [np.count_nonzero(status == one) for one in (Status.PENDING, Status.FILLED, Status.CLEARED)]
            self.counts_status[index] = [blocks * self.place.minutes - sum(counts), *counts]
            self.counts_flags[index] = [np.count_nonzero(flags & np.uint8(1 << bit)) for bit in range(FLAG_COUNT)]

    # ---- blocks

    def _prepare(self, symbol_ids: np.ndarray) -> None:
        """Reserve the blocks of some symbols and take back the clean mark, before the first byte moves."""
        if self.readonly:
            raise StateReadOnly(f"{self.path} was opened for reading only", path=str(self.path))
        self._system.must_be_open()
        fresh = symbol_ids[~self.reserved[symbol_ids]]
        if len(fresh):
            fresh = np.unique(fresh)
            runs = np.split(fresh, np.flatnonzero(np.diff(fresh) != 1) + 1)
            block = BLOCK_BYTES[self.kind]
            for run in runs:
                self._system.fallocate(self._fd, PAGE + int(run[0]) * block, len(run) * block)
            self._take_back_clean_mark()
            for run in runs:
                self._stamp(run)
        elif self.clean:
            self._take_back_clean_mark()
        self.dirty = self.unsynced = True

    def _take_back_clean_mark(self) -> None:
        if self.clean:
            self._system.pwrite(self._fd, self._counts_bytes(clean=False), COUNTS_OFFSET)
            self._system.fdatasync(self._fd)
            self.clean = False

    def _stamp(self, run: np.ndarray) -> None:
        """Write the blocks of consecutive symbols with headers and empty slots; ten times faster than page faults."""
        block, row = BLOCK_BYTES[self.kind], ROW_BYTES[self.kind]
        for start in range(0, len(run), _BLOCKS_AT_ONCE):
            some = run[start : start + _BLOCKS_AT_ONCE]
            words = np.zeros((len(some), block // 8), dtype=np.uint64)
            rows = words[:, : MINUTES_PER_SESSION * row // 8].reshape(len(some), MINUTES_PER_SESSION, row // 8)
            rows[:, :, :4] = self.headers(some)
            self._system.pwrite(self._fd, words.data, PAGE + int(some[0]) * block)
            self.reserved[some] = True
            self.counts_status[:, Status.EMPTY] += self.place.minutes * len(some)

    def reserve(self, symbol_ids: np.ndarray) -> None:
        """
        Reserve the blocks of some symbols, so that no later write to them can meet a full disk.

        Raises:
            SpaceError: there is no room; no cell was written.
        """
        self._prepare(np.asarray(symbol_ids))

    # ---- durability

    def _counts_bytes(self, *, clean: bool) -> bytes:
        page = np.zeros(1, dtype=ROWS_COUNTS)
        page["clean"] = int(clean)
        page["status"][0, : len(self.columns)] = self.counts_status
        page["flags"][0, : len(self.columns)] = self.counts_flags
        page["crc"] = zlib.crc32(page.tobytes()[4:])
        return page.tobytes()

    def flush(self, *, clean: bool = False) -> None:
        """
        Sync the rows to disk; with ``clean`` also say in the header that counts and rows agree.

        Called by the flusher after the maps of the same group were synced; ``clean`` only by the thread that writes.
        Does nothing when the file is closed.

        Raises:
            SpaceError: the sync failed; the rows' state on disk is unknown.
        """
        with self._lock:
            if self._closed:
                return
            self.unsynced = False
            try:
                self._system.fdatasync(self._fd)
                if clean and not self.readonly:
                    # From here on the mark may be on disk: whatever fails, the next write must take it back.
                    self.clean = True
                    self._system.pwrite(self._fd, self._counts_bytes(clean=True), COUNTS_OFFSET)
                    self._system.fdatasync(self._fd)
                    self.dirty = False
            except SpaceError:
                self.unsynced = True
                raise

    @property
    def descriptor(self) -> int:
        """The file descriptor, for the flusher to sync beside the thread that writes."""
        return self._fd

    def close(self) -> None:
        """Flush if written, then unmap and close, whatever the flush says; closing twice is fine."""
        if self._closed:
            return
        try:
            if self.dirty and not self.readonly and self._system.failure is None:
                self.flush(clean=True)
        finally:
            with self._lock:
                self._closed = True
                self._unmap()
                self._system.close(self._fd)

    def _unmap(self) -> None:
        del self._slots
        with suppress(BufferError):  # somebody still looks at a view: the memory goes with it
            self._map.close()

    # ---- columns and clock

    def now_ns(self) -> int:
        """The ledger's clock, ns since epoch UTC."""
        return self._system.now_ns()

    def column_index(self, column: Column) -> int:
        """Index of a column in the planes."""
        return self._index[column]


def sound_slots(words: np.ndarray, column: Column) -> np.ndarray:
    """
    Which slots can be trusted: the seal fits, and status, source, flags and kind are words of this format.

    Args:
        words: u64[..., 4].
        column: the column they are of.

    Returns:
        bool[...].
    """
    first = words[..., 0]
    sound: np.ndarray = seals(words) == words[..., 3] >> _SHIFT
    sound &= first & _UNKNOWN_BITS == 0
    filled = first & np.uint64(0xFF00) == np.uint64(Status.FILLED << 8)
    sound &= ~filled | (first & np.uint64(0xFF) == np.uint64(column.payload_kind))
    return sound
