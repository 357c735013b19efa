"""
Reads of a session's cells, and the operations that take a payload away, give it back or mark a cell.

Every change goes through one way: gather the words, make new ones, store each slot as one item, keep planes, counts and
changes in step. This module must never know what a payload says, where it is or who asks.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, SYMBOLS_MAX, WINDOW_NS, Column, Flag, Status
from ledger.errors import ChecksumMismatch, MinuteOutOfSession, UnknownSymbol
from ledger.layout import (
    BLOCK_BYTES,
    FLAG_COUNT,
    PAGE,
    ROW_BYTES,
    ROW_HEADER_BYTES,
    ROW_SCHEMA_VERSION,
    SEAL_CONSTANTS,
    SLOT,
    SLOT_BYTES,
    seals,
)
from ledger.sessionfile import SessionFile
from ledger.slots import EMPTY_SLOT, BrokenSlot, Row, Slot, unpack_slot

_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_READ_RETRIES: Final = 1000
_RECTANGLE_MIN: Final = 64
"""Fewer cells are not looked at for their shape."""
_MASK: Final = (1 << 64) - 1


class ClearingRows(SessionFile):
    """Reads, clears, flags, pending marks, undo and repair; :class:`ledger.rows.SessionRows` adds the setters."""

    # ---- addresses

    def _check_address(self, symbol_id: int, minute: int) -> None:
        if not 0 <= symbol_id < SYMBOLS_MAX:
            raise UnknownSymbol(f"symbol_id {symbol_id} is not in 0..{SYMBOLS_MAX - 1}", symbol_id=symbol_id)
        if not 0 <= minute < self.place.minutes:
            raise MinuteOutOfSession(f"minute {minute} is not in 0..{self.place.minutes - 1} of {self.place.date}")

    def _check_addresses(self, symbol_ids: np.ndarray, minutes: np.ndarray) -> None:
        if len(symbol_ids) != len(minutes):
            raise ValueError(f"{len(symbol_ids)} symbols and {len(minutes)} minutes: one each is needed")
        if not len(symbol_ids):
            return
        if int(minutes.max()) >= self.place.minutes or int(minutes.min()) < 0:
            raise MinuteOutOfSession(f"a minute is not in 0..{self.place.minutes - 1} of {self.place.date}")
        flat = symbol_ids.astype(np.int64) * MINUTES_PER_SESSION + minutes
        ascending = bool((flat[1:] > flat[:-1]).all())
        if ascending:
            lowest, highest = int(symbol_ids[0]), int(symbol_ids[-1])
        else:
            lowest, highest = int(symbol_ids.min()), int(symbol_ids.max())
        if highest >= SYMBOLS_MAX or lowest < 0:
            wrong = highest if highest >= SYMBOLS_MAX else lowest
            raise UnknownSymbol(f"symbol_id {wrong} is not in 0..{SYMBOLS_MAX - 1}", symbol_id=wrong)
        if not ascending and len(np.unique(flat)) != len(flat):
            raise ValueError("a cell is named twice in one block write")

    def _offset(self, symbol_id: int, minute: int) -> int:
        return PAGE + symbol_id * BLOCK_BYTES[self.kind] + minute * ROW_BYTES[self.kind]

    # ---- reads

    def slot(self, column: Column, symbol_id: int, minute: int) -> Slot:
        """
        One cell.

        Raises:
            AddressError: no such symbol or minute.
            ChecksumMismatch: the seal stays broken; the cell is never served as good.
        """
        self._check_address(symbol_id, minute)
        if not self._there(np.array([symbol_id]))[0]:
            return EMPTY_SLOT
        offset = self._offset(symbol_id, minute) + ROW_HEADER_BYTES + SLOT_BYTES * self._index[column]
        return self._slot_at(offset, column, symbol_id, minute)

    def _slot_at(self, offset: int, column: Column, symbol_id: int, minute: int) -> Slot:
        """The cell whose bytes are at an offset; where its seal is broken it may be in the middle of a write."""
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
        start = self.place.open_ns + minute * WINDOW_NS
        return Row(
            symbol_id,
            self.place.session_seq * MINUTES_PER_SESSION + minute,
            start,
            start + WINDOW_NS,
            ROW_SCHEMA_VERSION,
            dict(zip(self.columns, self.slots_of(symbol_id, minute), strict=True)),
        )

    def slots_of(self, symbol_id: int, minute: int) -> list[Slot]:
        """The slots of one row, in the order of the columns; raises like :meth:`slot`."""
        self._check_address(symbol_id, minute)
        at = self._offset(symbol_id, minute) + ROW_HEADER_BYTES
        count = len(self.columns)
        data = self._map[at : at + SLOT_BYTES * count]
        found = []
        for index in range(count):
            begin = index * SLOT_BYTES
            slot = unpack_slot(data[begin : begin + SLOT_BYTES])
            found.append(slot or self._slot_at(at + begin, self.columns[index], symbol_id, minute))
        return found

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
        across: Any = slice(0, self.place.minutes) if minutes is None else np.asarray(minutes)
        for _ in range(_READ_RETRIES):
            words = self._gather(self._index[column], (np.asarray(symbol_ids), across))
            if (seals(words) == words[..., 3] >> _SHIFT).all():
                found: np.ndarray = words.view(SLOT)[..., 0]
                return found
        raise ChecksumMismatch(f"{self.path}: a seal of {column} is broken", column=column.value)

    def versions(self, column: Column, symbol_ids: np.ndarray, minutes: np.ndarray | None = None) -> np.ndarray:
        """u32[n] or u32[n, minutes], as :meth:`slots`, for the writer: nobody else can be amid a write, so no seal is checked."""
        across: Any = slice(0, self.place.minutes) if minutes is None else np.asarray(minutes)
        found: np.ndarray = self._gather(self._index[column], (np.asarray(symbol_ids), across))[..., 1].astype(
            np.uint32
        )
        return found

    def slab(self, symbol_id: int) -> bytes:
        """The session's rows of one symbol as raw bytes, in row order; for bulk reads."""
        start = self._offset(symbol_id, 0)
        if not self._there(np.array([symbol_id]))[0]:
            return bytes(self.place.minutes * ROW_BYTES[self.kind])
        return self._map[start : start + self.place.minutes * ROW_BYTES[self.kind]]

    # ---- taking away, giving back, marking

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
        where = (symbol_ids[touched], minutes[touched])
        if len(where[0]):
            self._prepare(where[0])
            old = self._gather(index, where)
            words = (Status.CLEARED << 8, self._next_versions(old), 0)
            self._store(index, where, old, words, Status.CLEARED, 0, now_ns)
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
        where = (symbol_ids[touched], minutes[touched])
        if len(where[0]):
            self._prepare(where[0])
            old = self._gather(index, where)
            first = old[:, 0] & np.uint64(0xFFFFFFFF00FFFFFF)
            first |= new_flags[touched].astype(np.uint64) << np.uint64(24)
            words = (first, self._next_versions(old) | (old[:, 1] & ~_LOW), old[:, 3] & _LOW)
            self._store(index, where, old, words, Status.FILLED, new_flags[touched], now_ns)
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
        self._restatus(index, (symbol_ids[touched], minutes[touched]), Status.PENDING, now_ns)
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
            seen = self._gather(index, (chosen, chosen_minutes))[:, 1] & _LOW > 0
            self._restatus(index, (chosen[seen], chosen_minutes[seen]), Status.CLEARED, now_ns)
            self._restatus(index, (chosen[~seen], chosen_minutes[~seen]), Status.EMPTY, now_ns)
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
        current = self._gather(index, (symbol_ids, minutes))
        touched = np.asarray(current[:, 1] & _LOW == np.asarray(expected).astype(np.uint64))
        if touched.any():
            where, old = (symbol_ids[touched], minutes[touched]), current[touched]
            self._prepare(where[0])
            # Words, because numpy copies structures field by field.
            given = np.ascontiguousarray(slots).view("<u8").reshape(-1, 4)
            given = given if touched.all() else given[touched]
            words = (given[:, 0], self._next_versions(old) | (given[:, 1] & ~_LOW), given[:, 3] & _LOW)
            status = ((given[:, 0] >> np.uint64(8)) & np.uint64(0xFF)).astype(np.uint8)
            flags = ((given[:, 0] >> np.uint64(24)) & np.uint64(0xFF)).astype(np.uint8)
            self._store(index, where, old, words, status, flags, now_ns)
        return touched

    def repair(self, broken: BrokenSlot, *, now_ns: int) -> None:
        """Set a cell whose bytes cannot be trusted to cleared, whatever they say; its version starts above them."""
        index = self._index[broken.column]
        where = (np.array([broken.symbol_id]), np.array([broken.minute]))
        self._prepare(where[0])
        if broken.minute >= self.place.minutes:
            self._slots[broken.symbol_id, broken.minute, index] = np.void(b"\0" * SLOT_BYTES)
            self.unsynced = True
            return
        old = self._gather(index, where)
        old[:, 2] = np.minimum(old[:, 2], np.uint64(now_ns))
        self._store(index, where, old, (Status.CLEARED << 8, self._next_versions(old), 0), Status.CLEARED, 0, now_ns)

    def _restatus(self, index: int, where: tuple[np.ndarray, np.ndarray], status: Status, now_ns: int) -> None:
        if not len(where[0]):
            return
        self._prepare(where[0])
        old = self._gather(index, where)
        first = old[:, 0] & np.uint64(0xFFFFFFFFFFFF00FF)
        first |= np.uint64(status << 8)
        words = (first, old[:, 1], old[:, 3] & _LOW)
        self._store(index, where, old, words, status, self.flags[index][where], now_ns)

    # ---- the one way bytes reach the map in blocks

    def _gather(self, index: int, where: tuple[Any, Any]) -> np.ndarray:
        """u64[..., 4], the words of the cells that two index arrays, or two slices, select; a copy."""
        rectangle = None if isinstance(where[1], slice) else rectangle_of(*where)
        if rectangle is not None:
            return self._gather(index, _sliced(rectangle)).reshape(-1, 4)
        symbols, minutes = where
        ids = np.arange(symbols.start, symbols.stop) if isinstance(symbols, slice) else symbols
        there = self._there(ids)
        if there.all():
            taken: np.ndarray = np.ascontiguousarray(self._slots[(*where, index)])
        else:
            across = minutes if isinstance(minutes, slice) else minutes[there]
            held = self._slots[ids[there], across, index]
            taken = np.zeros((len(ids), *held.shape[1:]), dtype=held.dtype)
            taken[there] = held
        return taken.view("<u8").reshape(*taken.shape, 4)

    @staticmethod
    def _next_versions(old: np.ndarray) -> np.ndarray:
        versions: np.ndarray = old[..., 1] + np.uint64(1)
        versions &= _LOW
        return versions

    def _store(
        self,
        index: int,
        where: tuple[Any, Any],
        old: np.ndarray,
        new: tuple[Any, np.ndarray, Any],
        status: np.ndarray | int,
        flags: np.ndarray | int,
        now_ns: int,
    ) -> None:
        """
        Clock and seal new words, store each slot as one item, and keep planes, counts and changes in step.

        ``new`` is first word, second word and inputs; the first and the inputs may be ints that hold for all cells.
        """
        first, second, inputs = new
        clock = old[..., 2] + np.uint64(1)
        np.maximum(clock, np.uint64(now_ns), out=clock)
        total = second * np.uint64(SEAL_CONSTANTS[1])
        total += clock * np.uint64(SEAL_CONSTANTS[2])
        constant = 0
        for part, factor in ((first, SEAL_CONSTANTS[0]), (inputs, SEAL_CONSTANTS[3])):
            if isinstance(part, np.ndarray):
                total += part * np.uint64(factor)
            else:
                constant += int(part) * factor
        total += np.uint64(constant & _MASK)
        total &= ~_LOW
        total |= inputs if isinstance(inputs, np.ndarray) else np.uint64(inputs)
        words = np.empty(old.shape, dtype=np.uint64)
        words[..., 0], words[..., 1], words[..., 2], words[..., 3] = first, second, clock, total
        slots = words.view("V32")[..., 0]
        rectangle = None if isinstance(where[1], slice) else rectangle_of(*where)
        if rectangle is not None:
            where, shape = _sliced(rectangle), (len(rectangle[0]), len(rectangle[1]))
            slots = slots.reshape(shape)
            status = status.reshape(shape) if isinstance(status, np.ndarray) else status
            flags = flags.reshape(shape) if isinstance(flags, np.ndarray) else flags
        self._slots[(*where, index)] = slots
        self.unsynced = True
        self._replane(index, where, status, flags)

    def _replane(self, index: int, where: tuple[Any, Any], status: np.ndarray | int, flags: np.ndarray | int) -> None:
        status_plane, flag_plane = self.status[index], self.flags[index]
        old_status, old_flags = status_plane[where], flag_plane[where]
        size, first = old_status.size, int(old_status.flat[0])
        # Nearly always all cells were alike, and become alike.
        if (old_status == first).all():
            self.counts_status[index, first] -= size
        else:
            for value in range(4):
                self.counts_status[index, value] -= np.count_nonzero(old_status == value)
        if isinstance(status, np.ndarray):
            for value in range(4):
                self.counts_status[index, value] += np.count_nonzero(status == value)
        else:
            self.counts_status[index, status] += size
        if isinstance(flags, np.ndarray) or flags or old_flags.any():
            for bit in range(FLAG_COUNT):
                mask = np.uint8(1 << bit)
                if isinstance(flags, np.ndarray):
                    after = int(np.count_nonzero(flags & mask))
                else:
                    after = size if flags & int(mask) else 0
                self.counts_flags[index, bit] += after - int(np.count_nonzero(old_flags & mask))
            flag_plane[where] = flags
        status_plane[where] = status
        self.changes[where[0]] += np.uint32(1)
        self.change_count += size

    def _count_flags(self, index: int, old: int, new: int) -> None:
        for bit in range(FLAG_COUNT):
            self.counts_flags[index, bit] += (new >> bit & 1) - (old >> bit & 1)


def rectangle_of(symbol_ids: np.ndarray, minutes: np.ndarray) -> tuple[range, range] | None:
    """
    The ranges whose product the cells are, symbol by symbol; None where they are no such rectangle of a session.

    Args:
        symbol_ids, minutes: integers [n].
    """
    count = len(symbol_ids)
    if count < _RECTANGLE_MIN or len(minutes) != count:
        return None
    down = range(int(symbol_ids[0]), int(symbol_ids[-1]) + 1)
    across = range(int(minutes[0]), int(minutes[-1]) + 1)
    if len(down) * len(across) != count:
        return None
    # Slices would count from the end, or be cut.
    if down.start < 0 or down.stop > SYMBOLS_MAX or across.start < 0 or across.stop > MINUTES_PER_SESSION:
        return None
    shape = len(down), len(across)
    if not (minutes.reshape(shape) == np.asarray(across)).all():
        return None
    if not (symbol_ids.reshape(shape) == np.asarray(down)[:, None]).all():
        return None
    return down, across


def _sliced(rectangle: tuple[range, range]) -> tuple[slice, slice]:
    down, across = rectangle
    return slice(down.start, down.stop), slice(across.start, across.stop)
