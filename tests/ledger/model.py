"""The ledger as a dictionary: what every operation makes of a cell, in the plainest words, to compare the real one with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ledger.columns import Column, Flag, PayloadKind, Source, Status
from ledger.rows import Outcome, Slot

Key = tuple[Column, int, int]
"""column, symbol_id, minute_idx."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; a cell that was never touched equals ``Cell()``."""

    status: Status = Status.EMPTY
    source: Source = Source.NONE
    flags: Flag = Flag.NONE
    payload_type: PayloadKind = PayloadKind.NONE
    payload_id: int = 0
    version: int = 0
    checksum: int = 0
    inputs: int = 0
    last_updated_ns: int = 0

    def as_slot(self) -> Slot:
        """The cell as the ledger reads it; empty cells read as zeros whatever their clock says."""
        updated = 0 if not self.version and self.status is Status.EMPTY else self.last_updated_ns
        return Slot(
            self.status, self.source, self.flags, self.payload_type, self.payload_id, self.version, self.checksum,
            self.inputs, updated,
        )  # fmt: skip


@dataclass(slots=True)
class Model:
    """Every cell that is not ``Cell()``."""

    cells: dict[Key, Cell] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> Cell:
        return self.cells.get(key, Cell())

    def _put(self, key: Key, cell: Cell, now_ns: int) -> None:
        self.cells[key] = replace(cell, last_updated_ns=max(now_ns, self[key].last_updated_ns + 1))

    def set(
        self, key: Key, payload_id: int, checksum: int, inputs: int, source: Source, flags: Flag,
        expected: int | None, now_ns: int,
    ) -> Outcome:  # fmt: skip
        """Fill: compare first, then rank, then content."""
        old = self[key]
        if expected is not None and expected != old.version:
            return Outcome.CONFLICT
        if old.status is Status.FILLED:
            if source < old.source:
                return Outcome.OUTRANKED
            if (old.checksum, old.inputs) == (checksum, inputs):
                if (old.source, old.flags) == (source, flags):
                    return Outcome.UNCHANGED
                payload_id = old.payload_id
        kind = key[0].payload_kind
        new = Cell(Status.FILLED, source, flags, kind, payload_id, old.version + 1, checksum, inputs)
        self._put(key, new, now_ns)
        return Outcome.APPLIED

    def clear(self, key: Key, now_ns: int) -> bool:
        """Take the payload, or the claim, away."""
        old = self[key]
        if old.status not in (Status.FILLED, Status.PENDING):
            return False
        self._put(key, Cell(Status.CLEARED, version=old.version + 1), now_ns)
        return True

    def flag(self, key: Key, add: Flag, remove: Flag, now_ns: int) -> bool:
        """Change the flags of a filled cell."""
        old = self[key]
        flags = Flag((old.flags | add) & ~remove)
        if old.status is not Status.FILLED or flags == old.flags:
            return False
        self._put(key, replace(old, flags=flags, version=old.version + 1), now_ns)
        return True

    def pend(self, key: Key, now_ns: int) -> bool:
        """Claim a cell without payload; the version stays."""
        old = self[key]
        if old.status not in (Status.EMPTY, Status.CLEARED):
            return False
        self._put(key, replace(old, status=Status.PENDING), now_ns)
        return True

    def release(self, key: Key, now_ns: int) -> bool:
        """Give a claim back to where it came from."""
        old = self[key]
        if old.status is not Status.PENDING:
            return False
        self._put(key, replace(old, status=Status.CLEARED if old.version else Status.EMPTY), now_ns)
        return True

    def restore(self, key: Key, kept: Cell, expected: int, now_ns: int) -> bool:
        """Undo: give back what was kept where nobody wrote since."""
        old = self[key]
        if old.version != expected:
            return False
        self._put(key, replace(kept, version=old.version + 1), now_ns)
        return True

    def repair(self, key: Key, now_ns: int) -> None:
        """A cell that cannot be trusted is cleared, its version above what stood there."""
        old = self[key]
        self.cells[key] = replace(old, last_updated_ns=min(old.last_updated_ns, now_ns))
        self._put(key, Cell(Status.CLEARED, version=old.version + 1), now_ns)

    def reopen(self, now_ns: int) -> None:
        """Claims of an earlier process end."""
        for key in list(self.cells):
            self.release(key, now_ns)
