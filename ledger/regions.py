"""
Regions: what operators want first (priority regions) and what they switched on for good (activations).

A region says: these minutes of this symbol before others. It changes the order of work, never what a cell holds. Kept
in the framed file ``regions``, every change durable when it returns. This module must never look into a cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger.calendar import Calendar
from ledger.columns import MINUTES_PER_SESSION, WINDOW_NS, Column
from ledger.errors import AddressError, DamagedFile
from ledger.files import PathLike, System
from ledger.framed import FramedFile

FILE_NAME: Final = "regions"
FILE_VERSION: Final = 1
PRIORITY_MIN: Final = -1_000_000
PRIORITY_MAX: Final = 1_000_000


class RegionState(StrEnum):
    """Where a region stands."""

    ACTIVE = "active"
    COMPLETE = "complete"
    """Every cell it names was filled; it no longer changes the order of work."""
    REMOVED = "removed"
    """An operator took it back."""


class PriorityRegion(msgspec.Struct, frozen=True, kw_only=True, tag="region"):
    """``[start_ts, end_ts)`` of one symbol before others."""

    id: int
    """From 1, never used again."""
    symbol: str
    symbol_id: int
    start_ts: int
    """ns UTC."""
    end_ts: int
    """ns UTC, exclusive."""
    priority: int
    """Higher goes first."""
    columns: tuple[Column, ...] = ()
    """In slot order; empty means all."""
    created_ns: int
    """ns UTC."""
    operator: str = ""
    cause: str = ""
    state: RegionState = RegionState.ACTIVE
    activation: bool = False
    """True where it also activates its cells for good."""
    key: str = ""
    """The idempotency key of the request that raised it."""


class Activation(msgspec.Struct, frozen=True, kw_only=True, tag="activation"):
    """Cells that on-demand engines fill from now on."""

    symbol: str
    symbol_id: int
    first_session: str
    last_session: str
    """Included."""
    columns: tuple[Column, ...] = ()
    """In slot order; empty means all."""

    def covers(self, symbol_id: int, session: str, column: Column) -> bool:
        """True where the cells of the column, symbol and session are activated by this."""
        return (
            symbol_id == self.symbol_id
            and self.first_session <= session <= self.last_session
            and (not self.columns or column in self.columns)
        )


Regions = list[PriorityRegion]
"""What :meth:`RegionStore.list` returns; inside the class ``list`` is that method."""

_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODER: Final = msgspec.msgpack.Decoder(PriorityRegion | Activation)


class RegionStore:
    """Regions and activations of a state directory; regions may overlap."""

    def __init__(
        self, directory: PathLike, system: System, *, year: int = 0, readonly: bool = False, closed: int | None = None
    ) -> None:
        """
        Open the file ``regions`` in ``directory``, or make it; a torn tail is cut (``torn_bytes`` says how much).

        Removed regions stay, so that no id comes twice.

        Args:
            directory: the state directory.
            system: makes the system calls, and tells the time.
            year: the state's year; a file of another year is refused.
            readonly: write nothing.
            closed: where the file ended when it was closed in order.

        Raises:
            NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
            SpaceError: the file system refused.
        """
        path = Path(directory) / FILE_NAME
        self._system = system
        self._file, payloads = FramedFile.open(
            system, path, FILE_NAME, FILE_VERSION, {"year": year}, readonly=readonly, closed=closed
        )
        self.torn_bytes = self._file.torn_bytes
        self._regions: dict[int, PriorityRegion] = {}
        self._activations: list[Activation] = []
        self.changes = 0
        """Counted up by every record."""
        try:
            for payload in payloads:
                self._take(_DECODER.decode(payload))
        except msgspec.DecodeError as error:
            self._file.close()
            raise DamagedFile(f"{path}: a record cannot be read: {error}", path=str(path)) from error
        self._read = len(payloads)

    def compact(self) -> None:
        """
        Rewrite the file, atomically, when more than half of the records read at open are superseded.

        Raises:
            SpaceError: the file system refused; the file is the old one or the new one.
        """
        records = [*self._regions.values(), *self._activations]
        if 2 * len(records) < self._read:
            self._file.rewrite([_ENCODER.encode(record) for record in records])
            self._read = len(records)

    def add(
        self,
        *,
        symbol: str,
        symbol_id: int,
        start_ts: int,
        end_ts: int,
        priority: int,
        columns: Iterable[str] = (),
        operator: str = "",
        cause: str = "",
        activation: bool = False,
        key: str = "",
    ) -> PriorityRegion:
        """
        Add a region, durably, and return it with its id.

        Raises:
            AddressError: the range is empty, the priority out of bounds, or a column unknown.
            SpaceError: the file system refused; nothing was added.
        """
        if start_ts >= end_ts:
            hint = "FROM must lie before TO; ranges are half-open"
            raise AddressError(f"the region [{start_ts}, {end_ts}) is empty", hint=hint)
        if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
            hint = f"give a priority from {PRIORITY_MIN} to {PRIORITY_MAX}; higher goes first"
            raise AddressError(f"priority {priority} is out of bounds", hint=hint, priority=priority)
        region = PriorityRegion(
            id=max(self._regions, default=0) + 1,
            symbol=symbol,
            symbol_id=symbol_id,
            start_ts=start_ts,
            end_ts=end_ts,
            priority=priority,
            columns=in_slot_order(columns),
            created_ns=self._system.now_ns(),
            operator=operator,
            cause=cause,
            activation=activation,
            key=key,
        )
        self._write(region)
        return region

    def list(self, *, everything: bool = False) -> Regions:
        """Regions in order of work (priority falling, then id); with ``everything`` removed ones too."""
        found = [region for region in self._regions.values() if everything or region.state is not RegionState.REMOVED]
        return sorted(found, key=lambda region: (-region.priority, region.id))

    def outstanding(self) -> Regions:
        """Active regions in order of work."""
        return [region for region in self.list() if region.state is RegionState.ACTIVE]

    def show(self, region_id: int) -> PriorityRegion:
        """The region, removed or not; raises :class:`AddressError` when there never was one of that id."""
        region = self._regions.get(region_id)
        if region is None:
            hint = "list them with: m17ctl priority list"
            raise AddressError(f"there is no region {region_id}", hint=hint, region_id=region_id)
        return region

    def remove(self, region_id: int) -> PriorityRegion:
        """Take the region back, durably; done already is fine. Raises :class:`AddressError`, :class:`SpaceError`."""
        return self._set_state(region_id, RegionState.REMOVED)

    def complete(self, region_id: int) -> PriorityRegion:
        """
        Retire the region, durably; one that was removed stays removed.

        Raises:
            AddressError: there is no such region.
            SpaceError: the file system refused; the region is as it was.
        """
        region = self.show(region_id)
        return region if region.state is RegionState.REMOVED else self._set_state(region_id, RegionState.COMPLETE)

    def activate(
        self, *, symbol: str, symbol_id: int, first_session: str, last_session: str, columns: Iterable[str] = ()
    ) -> Activation:
        """Activate cells for good, durably; done already is fine. Raises :class:`AddressError`, :class:`SpaceError`."""
        if first_session > last_session:
            text = f"the sessions {first_session} to {last_session} are none"
            raise AddressError(text, hint="FROM must not lie behind TO")
        activation = Activation(
            symbol=symbol,
            symbol_id=symbol_id,
            first_session=first_session,
            last_session=last_session,
            columns=in_slot_order(columns),
        )
        if activation not in self._activations:
            self._write(activation)
        return activation

    @property
    def activations(self) -> tuple[Activation, ...]:
        """All activations, oldest first."""
        return tuple(self._activations)

    def is_activated(self, symbol_id: int, session: str, column: Column) -> bool:
        """True where an activation covers the cells of the column, symbol and session."""
        return any(activation.covers(symbol_id, session, column) for activation in self._activations)

    @property
    def length(self) -> int:
        """Bytes of the file up to the end of its last good record."""
        return self._file.length

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()

    def _set_state(self, region_id: int, state: RegionState) -> PriorityRegion:
        region = self.show(region_id)
        if region.state is state:
            return region
        changed = msgspec.structs.replace(region, state=state)
        self._write(changed)
        return changed

    def _write(self, record: PriorityRegion | Activation) -> None:
        self._file.append([_ENCODER.encode(record)])
        self._take(record)

    def _take(self, record: PriorityRegion | Activation) -> None:
        self.changes += 1
        if isinstance(record, PriorityRegion):
            self._regions[record.id] = record
        else:
            self._activations.append(record)


def in_slot_order(columns: Iterable[str]) -> tuple[Column, ...]:
    """The columns named, each once, in slot order; raises :class:`AddressError` for a word that is no column."""
    named = set(columns)
    unknown = sorted(named - set(Column))
    if unknown:
        hint = f"columns are {', '.join(Column)}"
        raise AddressError(f"{unknown[0]!r} is no column", hint=hint, column=unknown[0])
    return tuple(column for column in Column if column in named)


def expand(region: PriorityRegion, calendar: Calendar) -> NDArray[np.uint32]:
    """
    The windows of the year that overlap ``[start_ts, end_ts)``: u32 minute_idx, ascending; none outside sessions.

    Pure: depends on nothing but its arguments.
    """
    minutes = calendar.minutes.astype(np.int64)
    # Windows that end at or before start_ts are out (floor), windows that begin before end_ts are in (ceil).
    first = np.clip((region.start_ts - calendar.open_ns) // WINDOW_NS, 0, minutes)
    end = np.clip(-((calendar.open_ns - region.end_ts) // WINDOW_NS), 0, minutes)
    pieces = [
        np.arange(seq * MINUTES_PER_SESSION + first[seq], seq * MINUTES_PER_SESSION + end[seq], dtype=np.uint32)
        for seq in np.flatnonzero(first < end)
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint32)


def touches(region: PriorityRegion, calendar: Calendar, session: str) -> bool:
    """Whether some window of the session lies in the region."""
    seq = calendar.session_seq(session)
    return region.start_ts < calendar.close_ns(seq) and region.end_ts > int(calendar.open_ns[seq])
