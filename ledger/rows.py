"""
One session of one ledger: the cells of a memory-mapped file of rows, read and written.

The rows are the truth; planes and counts are kept in step by every write. A slot is always written as one 32-byte
item, never field by field. The file under it is :class:`ledger.sessionfile.SessionFile`, the operations that take a
payload away or give it back are :class:`ledger.clearing.ClearingRows`.

Called from one thread. This module must never know what a payload says, where it is or who asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from ledger.clearing import ClearingRows, rectangle_of
from ledger.columns import MINUTES_PER_SESSION, SYMBOLS_MAX, Column, Flag, LedgerKind, PayloadKind, Source, Status
from ledger.errors import PayloadKindNotAllowed, RankConflict, VersionConflict
from ledger.files import System
from ledger.layout import (
    BLOCK_BYTES,
    PAGE,
    ROW_BYTES,
    SEAL_K0,
    SEAL_K1,
    SEAL_K2,
    SEAL_K3,
    SLOT_BYTES,
    SLOT_OFFSET,
)
from ledger.slots import (
    EMPTY_SLOT,
    WORDS,
    BrokenSlot,
    Outcome,
    Row,
    SessionPlace,
    Slot,
    unpack_slot,
)

__all__ = [
    "EMPTY_SLOT",
    "BrokenSlot",
    "Outcome",
    "Row",
    "SessionPlace",
    "SessionRows",
    "Slot",
    "unpack_slot",
]

_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_CELLS_AT_ONCE: Final = 8192
"""Cells per step of a large block write: their words stay in the cache."""
_FILLED: Final = np.uint8(Status.FILLED)
_unpack, _pack = WORDS.unpack_from, WORDS.pack


class SessionRows(ClearingRows):
    """
    The rows of one session of one ledger.

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
        """
        ``load=False`` leaves planes and counts empty: for who reads blocks and slots; nothing can be set then.

        ``later``: whoever makes it goes through :meth:`loading` before anything else.
        """
        super().__init__(system, path, kind, place, readonly=readonly, load=load, later=later)
        # The scalar path counts nanoseconds: views of single bytes and numbers are three times faster than arrays, and
        # one tuple is faster than as many attributes.
        block, row, plane = BLOCK_BYTES[kind], ROW_BYTES[kind], SYMBOLS_MAX * MINUTES_PER_SESSION
        self._settable = (
            {}
            if not load
            else {
                column: (
                    int(column.payload_kind),
                    PAGE + SLOT_OFFSET[column],
                    block,
                    row,
                    place.minutes,
                    index * plane,
                    index * 4,
                    self._map,
                    self.status.reshape(-1).data,
                    self.flags.reshape(-1).data,
                    self.counts_status.reshape(-1).data,
                    self.changes.data,
                    self.reserved.view(np.uint8).data,
                )
                for index, column in enumerate(self.columns)
            }
        )

    def _unmap(self) -> None:
        self._settable.clear()
        super()._unmap()

    # ---- one cell

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
        flags: Flag | int = Flag.NONE,
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
            SpaceError: the block could not be reserved, or a sync failed earlier.
            ValueError: a number does not fit its field.
        """
        # fmt: off
        (wanted_kind, offset, block, row, minutes, at, counts,
         mapped, status_bytes, flag_bytes, status_counts, changes, reserved) = self._settable[column]
        # fmt: on
        if not (0 <= symbol_id < SYMBOLS_MAX and 0 <= minute < minutes and reserved[symbol_id]):
            self._check_address(symbol_id, minute)
            self._touch_first(column, symbol_id, minute, expected_version)
        if kind != wanted_kind or not payload_id:
            raise _wrong_kind(column, kind, payload_id)
        if (payload_id | checksum | inputs) >> 32 or flags >> 5:
            raise _too_large(payload_id, checksum, inputs, int(flags))
        offset += symbol_id * block + minute * row
        w0, w1, w2, w3 = _unpack(mapped, offset)
        version = w1 & 0xFFFFFFFF
        if expected_version is not None and expected_version != version:
            raise VersionConflict(expected_version, version, column=column.value, symbol_id=symbol_id, minute=minute)
        low = wanted_kind | 512 | source << 16 | flags << 24
        if w0 & 0xFF00 == 512:
            if source < w0 >> 16 & 0xFF:
                raise _outranked(column, Source(w0 >> 16 & 0xFF), source)
            if w1 >> 32 == checksum and w3 & 0xFFFFFFFF == inputs:
                if w0 & 0xFFFFFFFF == low:
                    return version
                payload_id = w0 >> 32
        if self.clean or self.readonly or self._system.failure is not None:
            self._prepare(np.array([symbol_id]))
        version = (version + 1) & 0xFFFFFFFF
        w0 = low | payload_id << 32
        w1 = version | checksum << 32
        w2 = now_ns if now_ns > w2 else w2 + 1
        seal = (w0 * SEAL_K0 + w1 * SEAL_K1 + w2 * SEAL_K2 + inputs * SEAL_K3) >> 32 & 0xFFFFFFFF
        mapped[offset : offset + SLOT_BYTES] = _pack(w0, w1, w2, inputs | seal << 32)
        self.unsynced = True
        at += symbol_id * MINUTES_PER_SESSION + minute
        old_status = status_bytes[at]
        if old_status != 2:
            status_bytes[at] = 2
            status_counts[counts + old_status] -= 1
            status_counts[counts + 2] += 1
        old_flags = flag_bytes[at]
        if old_flags != flags:
            flag_bytes[at] = flags
            self._count_flags(counts >> 2, old_flags, flags)
        changes[symbol_id] = (changes[symbol_id] + 1) & 0xFFFFFFFF
        self.change_count += 1
        return version

    def _touch_first(self, column: Column, symbol_id: int, minute: int, expected_version: int | None) -> None:
        """Reserve a block before the first look at it, see ``_there``; a cell of it has version 0."""
        if expected_version:
            raise VersionConflict(expected_version, 0, column=column.value, symbol_id=symbol_id, minute=minute)
        self._prepare(np.array([symbol_id]))

    # ---- many cells

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
        expected_versions: np.ndarray | int | None = None,
        now_ns: int,
    ) -> np.ndarray:
        """
        Fill many cells, each at most once.

        Args:
            column: a column of this ledger.
            symbol_ids, minutes: integers [n]; minutes count from the session's open.
            payload_ids, checksums: u32[n] or scalars.
            inputs, flags: u32[n] and u8[n], or scalars.
            expected_versions: u32[n] or a scalar; a cell with another version is left alone.

        Returns:
            u8[n] of :class:`Outcome`.

        Raises:
            SpaceError: a block could not be reserved, or a sync failed earlier; nothing was written.
            ValueError: a cell is named twice, or a number does not fit its field.
        """
        symbol_ids, minutes = np.asarray(symbol_ids), np.asarray(minutes)
        values = [
            _fitting(given, bits) for given, bits in ((payload_ids, 32), (checksums, 32), (inputs, 32), (flags, 5))
        ]
        values.append(None if expected_versions is None else _fitting(expected_versions, 32))
        for value in values:
            if isinstance(value, np.ndarray) and value.shape != symbol_ids.shape:
                raise ValueError(f"{value.shape} values for {symbol_ids.shape} cells: one each is needed")
        rectangle = rectangle_of(symbol_ids, minutes)
        if rectangle is not None:
            shape = (len(rectangle[0]), len(rectangle[1]))
            shaped = [value.reshape(shape) if isinstance(value, np.ndarray) else value for value in values]
            return self._set_rectangle(column, *rectangle, shaped, source, now_ns).reshape(-1)
        self._check_addresses(symbol_ids, minutes)
        outcome = np.zeros(len(symbol_ids), dtype=np.uint8)
        if not len(symbol_ids):
            return outcome
        self._reserve_for(symbol_ids, values[4] is None or values[4] == 0)
        for start in range(0, len(symbol_ids), _CELLS_AT_ONCE):
            part = slice(start, start + _CELLS_AT_ONCE)
            some = [value[part] if isinstance(value, np.ndarray) else value for value in values]
            found = self._fill(column, (symbol_ids[part], minutes[part]), some, source, now_ns)
            if found is not None:
                outcome[part] = found
        return outcome

    def set_block(
        self,
        column: Column,
        symbol_ids: range,
        minutes: range,
        payload_ids: np.ndarray | int,
        checksums: np.ndarray | int,
        *,
        inputs: np.ndarray | int = 0,
        source: Source = Source.NONE,
        flags: np.ndarray | int = 0,
        expected_versions: np.ndarray | int | None = None,
        now_ns: int,
    ) -> np.ndarray:
        """
        Fill a rectangle of cells: consecutive symbols times consecutive minutes of the session.

        Args:
            symbol_ids, minutes: ranges with step 1.
            payload_ids, checksums, inputs, flags, expected_versions: as for :meth:`set_many`, shape [symbols, minutes].

        Returns:
            u8[symbols, minutes] of :class:`Outcome`; raises like :meth:`set_many`.
        """
        if symbol_ids.step != 1 or minutes.step != 1:
            raise ValueError("a rectangle has ranges with step 1")
        values = [
            _fitting(given, bits) for given, bits in ((payload_ids, 32), (checksums, 32), (inputs, 32), (flags, 5))
        ]
        values.append(None if expected_versions is None else _fitting(expected_versions, 32))
        return self._set_rectangle(column, symbol_ids, minutes, values, source, now_ns)

    def _set_rectangle(
        self, column: Column, symbol_ids: range, minutes: range, values: list[Any], source: Source, now_ns: int
    ) -> np.ndarray:
        outcome = np.zeros((len(symbol_ids), len(minutes)), dtype=np.uint8)
        if not outcome.size:
            return outcome
        for corner in (0, -1):
            self._check_address(symbol_ids[corner], minutes[corner])
        new = values[4] is None or np.any(values[4] == 0, axis=-1)
        self._reserve_for(np.arange(symbol_ids.start, symbol_ids.stop), new)
        step = max(1, _CELLS_AT_ONCE // len(minutes))
        across = slice(minutes.start, minutes.stop)
        for start in range(0, len(symbol_ids), step):
            part = slice(start, start + step)
            some = [value[part] if isinstance(value, np.ndarray) else value for value in values]
            down = slice(symbol_ids.start + start, min(symbol_ids.start + start + step, symbol_ids.stop))
            found = self._fill(column, (down, across), some, source, now_ns)
            if found is not None:
                outcome[part] = found
        return outcome

    def _reserve_for(self, symbol_ids: np.ndarray, new: Any) -> None:
        """Reserve every block that may be written (``new``: a fresh one may), so that a full disk is met before."""
        fresh = ~self.reserved[symbol_ids] & new
        if fresh.any() or self.readonly or self._system.failure is not None:
            self._prepare(symbol_ids[fresh])

    def _fill(
        self, column: Column, where: tuple[Any, Any], values: list[Any], source: Source, now_ns: int
    ) -> np.ndarray | None:
        """Fill the cells of one step; their outcomes, None where all were applied."""
        payload_ids, checksums, inputs, flags, expected = values
        if not np.all(payload_ids):
            raise PayloadKindNotAllowed(f"{column}: payload_id 0 names no payload")
        index = self._index[column]
        old = self._gather(index, where)
        held = self.status[index][where] == Status.FILLED
        if expected is None and not held.any():
            self._write_fill(column, where, old, [payload_ids, *values[1:4]], source, now_ns)
            return None
        first, second = old[..., 0], old[..., 1]
        old_source = (first >> np.uint64(16)) & np.uint64(0xFF)
        same = held & (second >> _SHIFT == checksums) & (old[..., 3] & _LOW == inputs)
        outcome = np.zeros(held.shape, dtype=np.uint8)
        if same.any():
            unmoved = same & ((first >> np.uint64(24)) & np.uint64(0xFF) == flags) & (old_source == int(source))
            outcome[unmoved] = Outcome.UNCHANGED
            payload_ids = np.where(same, first >> _SHIFT, payload_ids)
        outcome[held & (old_source > int(source))] = Outcome.OUTRANKED
        if expected is not None:
            outcome[second & _LOW != expected] = Outcome.CONFLICT
        if not outcome.any():
            self._write_fill(column, where, old, [payload_ids, *values[1:4]], source, now_ns)
            return None
        applied = outcome == Outcome.APPLIED
        if applied.any():
            some = [value[applied] if isinstance(value, np.ndarray) else value for value in (payload_ids, *values[1:4])]
            self._write_fill(column, _narrowed(where, applied), old[applied], some, source, now_ns)
        return outcome

    def _write_fill(
        self,
        column: Column,
        where: tuple[Any, Any],
        old: np.ndarray,
        values: list[Any],
        source: Source,
        now_ns: int,
    ) -> None:
        payload_ids, checksums, inputs, flags = values
        first: Any = int(column.payload_kind | Status.FILLED << 8 | source << 16)
        for part, bits in ((flags, 24), (payload_ids, 32)):
            first = first | (part << np.uint64(bits) if isinstance(part, np.ndarray) else part << bits)
        second = self._next_versions(old)
        second |= checksums << _SHIFT if isinstance(checksums, np.ndarray) else np.uint64(checksums << 32)
        flag_bytes = flags.astype(np.uint8) if isinstance(flags, np.ndarray) else flags
        if self.clean or self._system.failure is not None:
            self._prepare(np.zeros(0, dtype=np.int64))
        self._store(self._index[column], where, old, (first, second, inputs), Status.FILLED, flag_bytes, now_ns)

    # ---- readiness

    def ready(self, filled: tuple[Column, ...], lacking: Column) -> np.ndarray:
        """
        Cells of ``lacking`` that are not filled where all of ``filled`` are, from the planes.

        Returns:
            i64[n], ascending ``symbol_id * 390 + minute``.
        """
        last = self.symbols_end
        found = self.status[self._index[lacking], :last] != _FILLED
        other = np.empty_like(found)
        for column in filled:
            np.equal(self.status[self._index[column], :last], _FILLED, out=other)
            np.logical_and(found, other, out=found)
        return np.flatnonzero(found)


def _wrong_kind(column: Column, kind: PayloadKind, payload_id: int) -> PayloadKindNotAllowed:
    return PayloadKindNotAllowed(f"{column} takes {column.payload_kind.word}, not {kind.word} {payload_id}")


def _too_large(payload_id: int, checksum: int, inputs: int, flags: int) -> ValueError:
    return ValueError(f"payload_id {payload_id}, checksum {checksum}, inputs {inputs} or flags {flags} too large")


def _outranked(column: Column, held: Source, given: Source) -> RankConflict:
    return RankConflict(f"{column} holds a {held.word} payload; {given.word} ranks below it")


def _fitting(given: Any, bits: int) -> Any:
    """A Python int, or u64 of any shape, that fits a field of so many bits."""
    if isinstance(given, np.ndarray) and given.ndim:
        if given.dtype.itemsize * 8 > bits or given.dtype.kind != "u":
            wrong = given.size and (int(given.max()) >> bits or int(given.min()) < 0)
            if wrong or given.dtype.kind not in "ui":
                raise ValueError(f"a value does not fit {bits} unsigned bits")
        return given.astype(np.uint64)
    value = int(given)
    if value >> bits:
        raise ValueError(f"{value} does not fit {bits} unsigned bits")
    return value


def _narrowed(where: tuple[Any, Any], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index arrays of the chosen cells; ``chosen`` has the shape that ``where`` selects."""
    symbol_ids, minutes = where
    if isinstance(symbol_ids, slice):
        down, across = np.nonzero(chosen)
        return down + symbol_ids.start, across + minutes.start
    return symbol_ids[chosen], minutes[chosen]
