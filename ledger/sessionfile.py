"""
The file under one session of one ledger: identity, mapping, blocks, planes, counts, syncs.

Planes (u8[symbols, minutes] of status and of flags per column) and counts are derived from the rows when the file is
opened. A block is reserved with ``fallocate`` and written through the file before its first touch through the mapping,
so that a full disk is an error and never a SIGBUS. This module must never decide what a cell becomes.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ledger.columns import MINUTES_PER_SESSION, SYMBOLS_MAX, WINDOW_NS, Column, LedgerKind, Status
from ledger.errors import (
    DamagedFile,
    SpaceError,
    StateReadOnly,
    from_os_error,
)
from ledger.files import TEMPORARY_SUFFIX, System
from ledger.gate import gated
from ledger.headerpage import check_page, counts_in, encode_counts, encode_page, has_stray_bytes
from ledger.layout import (
    BLOCK_BYTES,
    COLUMNS_OF,
    COUNTS_OFFSET,
    FILE_BYTES,
    FLAG_COUNT,
    PAGE,
    ROW_BYTES,
    ROW_HEADER_BYTES,
    ROW_SCHEMA_VERSION,
    SLOT_BYTES,
    seals,
)
from ledger.slots import BrokenSlot, SessionPlace

_SHIFT: Final = np.uint64(32)
_BLOCKS_AT_ONCE: Final = 64
_LOADED_AT_ONCE: Final = 24
"""Blocks between two yields of a load: two or three milliseconds."""
_HUGE_SYMBOLS_MIN: Final = 2_500
_ASK_EACH_MAX: Final = 32
"""So many blocks are asked about one by one; for more all extents of the file are read."""
_BYTES_AT_ONCE: Final = 4 << 20
_NO_MAPPING: Final = frozenset({errno.EROFS, errno.EIO})
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
        later: bool = False,
    ) -> None:
        self.kind = kind
        self.place = place
        self.path = path
        self.columns = COLUMNS_OF[kind]
        self.readonly = readonly
        self.broken: list[BrokenSlot] = []
        self.stained: list[int] = []
        """Symbols whose block holds other bytes than it must in row headers, or any behind the last row."""
        self.stained_page = False
        """The header page's counts do not fit their checksum, or it has bytes where none belong."""
        self.unsynced = False
        """Written since the last sync began."""
        self.clean = True
        """The header on disk may say that counts and rows agree; taken back, synced, before a cell changes."""
        self.changes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        self.change_count = 0
        self._system = gated(system)
        self._lock = threading.Lock()
        self._synced_changes = np.zeros(SYMBOLS_MAX, dtype=np.uint32)
        self._doubtful = False
        """A sync failed for want of space: what it should have written may be clean in memory and not on disk."""
        self._closed = False
        self._index = {column: index for index, column in enumerate(self.columns)}
        shape = (len(self.columns), SYMBOLS_MAX, MINUTES_PER_SESSION)
        # Planes that stay empty take no memory: clearing it would cost more than all that a look into the file reads.
        self._plane_memory = [_plane_memory(math.prod(shape)) for _ in range(2 * load)]
        planes = [np.frombuffer(memory, dtype=np.uint8).reshape(shape) for memory in self._plane_memory]
        empty: np.ndarray = np.broadcast_to(np.uint8(0), shape)
        self.status: np.ndarray = planes[0] if load else empty
        self.flags: np.ndarray = planes[1] if load else empty
        self.counts_status = np.zeros((len(self.columns), 4), dtype=np.int64)
        self.counts_flags = np.zeros((len(self.columns), FLAG_COUNT), dtype=np.int64)
        self.reserved = np.zeros(SYMBOLS_MAX, dtype=bool)
        self._seen = np.zeros(SYMBOLS_MAX, dtype=bool)
        """Blocks that a reader has seen data in."""
        self._template = self._header_template()
        self._fd = self._open_file()
        try:
            self._check_page()
            self._map = self._map_file()
            self._slots = self._slot_view()
            try:
                for _ in self.loading() if load and not later else ():
                    pass
            except BaseException:
                SessionFile._unmap(self)
                raise
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
            system.pwrite(fd, encode_page(self.kind, self.place, self._counts_bytes(clean=True)), 0)
            system.fdatasync(fd)
            system.rename(temporary, self.path)
        except SpaceError:
            with suppress(SpaceError):
                system.unlink(temporary)
            raise
        finally:
            system.close(fd)
        system.fsync_directory(self.path.parent)

    def _check_page(self) -> None:
        check_page(self._system.pread(self._fd, PAGE, 0), self.path, self.kind, self.place)
        size = self._system.size(self._fd)
        if size != FILE_BYTES[self.kind]:
            change = "truncated" if size < FILE_BYTES[self.kind] else "extended"
            raise DamagedFile(
                f"{self.path}: {size} bytes, expected {FILE_BYTES[self.kind]}: it was {change}", path=str(self.path)
            )

    def _map_file(self) -> mmap.mmap:
        access = mmap.ACCESS_READ if self.readonly else mmap.ACCESS_WRITE
        try:
            return mmap.mmap(self._fd, FILE_BYTES[self.kind], access=access)
        except OSError as error:
            if self.readonly and error.errno in _NO_MAPPING:
                return self._read_in()
            raise from_os_error(error, "mmap", self.path) from error

    def _read_in(self) -> mmap.mmap:
        """The file in memory instead, for reading: a file system that went read-only after an error maps no file any more."""
        memory = mmap.mmap(-1, FILE_BYTES[self.kind])
        for data, hole in self._system.extents(self._fd, 0, FILE_BYTES[self.kind]):
            for start in range(data, hole, _BYTES_AT_ONCE):
                piece = self._system.pread(self._fd, min(_BYTES_AT_ONCE, hole - start), start)
                memory[start : start + len(piece)] = piece
        return memory

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
        block = BLOCK_BYTES[self.kind]
        for data, hole in self._system.extents(self._fd, PAGE, FILE_BYTES[self.kind]):
            first, last = (data - PAGE) // block, -(-(hole - PAGE) // block)
            if ranges and first < ranges[-1][1]:
                first = ranges[-1][1]
            if last > first:
                ranges.append((first, last))
        return ranges

    def loading(self) -> Iterator[None]:
        """Planes and counts from the rows, a few milliseconds between yields; the rest of a constructor that left it for later."""
        page = self.header_page()
        stored = counts_in(page)
        self.clean = stored is not None and bool(stored["clean"])
        self.stained_page = stored is None or has_stray_bytes(page)
        blocks = self.data_blocks()
        self._expect(sum(last - first for first, last in blocks))
        for first, last in blocks:
            for start in range(first, last, _LOADED_AT_ONCE):
                self._load_blocks(start, min(start + _LOADED_AT_ONCE, last))
                yield
        for index in range(len(self.columns)):
            self._recount_column(index)
            yield

    def read_blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The blocks of some symbols as they are in the file, a copy.

        Returns:
            u64[last - first, 390, words of a row], and u64[last - first, words], what stands behind the last rows.
        """
        block, used = BLOCK_BYTES[self.kind], MINUTES_PER_SESSION * ROW_BYTES[self.kind] // 8
        data = self._system.pread(self._fd, (last - first) * block, PAGE + first * block)
        words = np.frombuffer(data, dtype="<u8").reshape(last - first, block // 8)
        return words[:, :used].reshape(last - first, MINUTES_PER_SESSION, -1), words[:, used:]

    def header_page(self) -> bytes:
        """The header page as it is in the file."""
        return self._system.pread(self._fd, PAGE, 0)

    @property
    def closed(self) -> bool:
        """True when :meth:`close` was called."""
        return self._closed

    def _load_blocks(self, first: int, last: int) -> None:
        rows, padding = self.read_blocks(first, last)
        # Any byte counts: a power cut may have lost the first page of a block, and kept others.
        used = rows.any(axis=(1, 2))
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
        stained = np.asarray(padding.any(axis=1))
        stained[used] |= (rows[used, :, :4] != self.headers(np.flatnonzero(used) + first)).any(axis=(1, 2))
        self.stained += (np.flatnonzero(stained) + first).tolist()

    def wash(self) -> None:
        """
        Write again what never changes where a crash or a flipped bit left it other: row headers, and zeros between.

        Raises:
            SpaceError: the file system refused.
        """
        block, used = BLOCK_BYTES[self.kind], MINUTES_PER_SESSION * ROW_BYTES[self.kind]
        for symbol_id in self.stained:
            start = PAGE + symbol_id * block
            # A copy of the file may have holes where pages were zero: no store through the mapping before this.
            self._system.fallocate(self._fd, start, block)
            self._system.pwrite(self._fd, bytes(block - used), start + used)
            if self.reserved[symbol_id]:
                base = np.frombuffer(self._map, dtype="<u8", offset=start, count=4)
                strides = (ROW_BYTES[self.kind], 8)
                rows = as_strided(base, shape=(MINUTES_PER_SESSION, 4), strides=strides, writeable=True)
                rows[:] = self.headers(np.array([symbol_id]))[0]
        if self.stained_page:
            self.clean = False
            page = encode_page(self.kind, self.place, self._counts_bytes(clean=False))
            self._system.pwrite(self._fd, page.ljust(PAGE, b"\0"), 0)
        self.unsynced |= bool(self.stained) or self.stained_page
        self.stained, self.stained_page = [], False

    def empty(self, symbol_ids: np.ndarray) -> None:
        """
        Write zeros over the blocks of some symbols, as if they had never been touched.

        Raises:
            SpaceError: the file system refused.
        """
        for symbol_id in symbol_ids.tolist():
            block = BLOCK_BYTES[self.kind]
            self._take_back_clean_mark()
            self._system.pwrite(self._fd, bytes(block), PAGE + symbol_id * block)
            self.reserved[symbol_id] = False
            self.status[:, symbol_id], self.flags[:, symbol_id] = 0, 0
            self.unsynced = True
        self.recount()

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

    @property
    def symbols_end(self) -> int:
        """One behind the last symbol that has a block; planes are zero from there on."""
        return int(np.flatnonzero(self.reserved)[-1]) + 1 if self.reserved.any() else 0

    def recount(self) -> None:
        """Count statuses and flags again from the planes."""
        for index in range(len(self.columns)):
            self._recount_column(index)

    def _recount_column(self, index: int) -> None:
        blocks, last = int(np.count_nonzero(self.reserved)), self.symbols_end
        status = self.status[index, :last, : self.place.minutes]
        flags = self.flags[index, :last, : self.place.minutes]
        counts = [np.count_nonzero(status == one) for one in (Status.PENDING, Status.FILLED, Status.CLEARED)]
        self.counts_status[index] = [blocks * self.place.minutes - sum(counts), *counts]
        self.counts_flags[index] = [np.count_nonzero(flags & np.uint8(1 << bit)) for bit in range(FLAG_COUNT)]

    # ---- blocks

    def _expect(self, symbols: int) -> None:
        """Let planes that are about to hold many symbols take huge pages: a third faster, and nothing is wasted."""
        if symbols >= _HUGE_SYMBOLS_MIN:
            for memory in self._plane_memory:
                with suppress(OSError):
                    memory.madvise(mmap.MADV_HUGEPAGE)

    def _there(self, symbol_ids: np.ndarray) -> np.ndarray:
        """
        bool[n], which symbols have a block. The others may not be looked at through the mapping.

        On tmpfs a look at a hole takes a page, and a full one answers with SIGBUS. A reader asks the file system about the
        blocks it has not seen, because another process may have made them since.
        """
        there: np.ndarray = self.reserved[symbol_ids] | self._seen[symbol_ids]
        if self.readonly and not there.all():
            unseen = np.unique(symbol_ids[~there])
            block = BLOCK_BYTES[self.kind]
            if len(unseen) > _ASK_EACH_MAX:
                for first, last in self.data_blocks():
                    self._seen[first:last] = True
            else:
                for symbol_id in unseen.tolist():
                    start = PAGE + symbol_id * block
                    self._seen[symbol_id] = any(True for _ in self._system.extents(self._fd, start, start + block))
            there = self.reserved[symbol_ids] | self._seen[symbol_ids]
        return there

    def _prepare(self, symbol_ids: np.ndarray) -> None:
        """Reserve the blocks of some symbols and take back the clean mark, before the first byte moves."""
        if self.readonly:
            raise StateReadOnly(f"{self.path} was opened for reading only", path=str(self.path))
        self._system.must_be_open()
        fresh = symbol_ids[~self.reserved[symbol_ids]]
        if len(fresh):
            fresh = np.unique(fresh)
            self._expect(len(fresh))
            runs = np.split(fresh, np.flatnonzero(np.diff(fresh) != 1) + 1)
            block = BLOCK_BYTES[self.kind]
            for run in runs:
                self._system.fallocate(self._fd, PAGE + int(run[0]) * block, len(run) * block)
            self._take_back_clean_mark()
            for run in runs:
                self._stamp(run)
        elif self.clean:
            self._take_back_clean_mark()
        self.unsynced = True

    def _take_back_clean_mark(self) -> None:
        if self.clean:
            self._system.pwrite(self._fd, self._counts_bytes(clean=False), COUNTS_OFFSET)
            self._fdatasync()
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
        return encode_counts(self.counts_status, self.counts_flags, clean=clean)

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
            changes = self.changes.copy()
            try:
                if self._doubtful:
                    self._dirty_again(np.flatnonzero(changes != self._synced_changes))
                self._fdatasync()
                self._doubtful, self._synced_changes = False, changes
                if clean and not self.readonly:
                    # From here on the mark may be on disk: whatever fails, the next write must take it back.
                    self.clean = True
                    self._system.pwrite(self._fd, self._counts_bytes(clean=True), COUNTS_OFFSET)
                    self._fdatasync()
            except SpaceError:
                self.unsynced = True
                raise

    def _fdatasync(self) -> None:
        try:
            self._system.fdatasync(self._fd)
        except SpaceError:
            self._doubtful = True
            raise

    def _dirty_again(self, symbol_ids: np.ndarray) -> None:
        """
        Write one row header into each page of some blocks, so that the next sync writes the pages.

        After a sync that failed the kernel says that they are clean. Headers never change, so this may run beside the
        thread that writes slots.
        """
        block, row = BLOCK_BYTES[self.kind], ROW_BYTES[self.kind]
        rows = sorted({-(-page // row) for page in range(0, MINUTES_PER_SESSION * row, PAGE)})
        for symbol_id in symbol_ids.tolist():
            headers = self.headers(np.array([symbol_id]))[0]
            for at in rows:
                self._system.pwrite(self._fd, headers[at].tobytes(), PAGE + symbol_id * block + at * row)

    def close(self, *, clean: bool = True) -> None:
        """
        Flush if written or left unclean, then unmap and close, whatever the flush says; closing twice is fine.

        Args:
            clean: say in the header that counts and rows agree; only when everything that the cells name is on disk.
        """
        if self._closed:
            return
        try:
            if (self.unsynced or not self.clean) and not self.readonly and self._system.failure is None:
                self.flush(clean=clean)
        finally:
            with self._lock:
                self._closed = True
                self._unmap()
                self._system.close(self._fd)

    def abandon(self) -> None:
        """Close what was not loaded to the end; the file stays as it is."""
        with self._lock:
            self._closed = True
            self._unmap()
            self._system.close(self._fd)

    def _unmap(self) -> None:
        del self._slots
        with suppress(BufferError):  # somebody still looks at a view: the memory goes with it
            self._map.close()

    def let_pages_go(self) -> None:
        """Give back the memory of pages that were looked at; the file keeps them, and so does the system if it can."""
        if not self._closed:
            self._map.madvise(mmap.MADV_DONTNEED)

    @property
    def plane_bytes(self) -> int:
        """Memory that the planes take, as far as symbols have blocks."""
        return int(np.count_nonzero(self.reserved)) * MINUTES_PER_SESSION * 2 * len(self.columns)

    # ---- columns and clock

    def now_ns(self) -> int:
        """The ledger's clock, ns since epoch UTC."""
        return self._system.now_ns()

    def column_index(self, column: Column) -> int:
        """Index of a column in the planes."""
        return self._index[column]


def _plane_memory(size: int) -> mmap.mmap:
    """
    Zeros that take memory page by page, as they are written.

    In huge pages, which NumPy asks for, each column of a session with few symbols would take two megabytes and more.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


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
