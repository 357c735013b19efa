"""
Slots and rows as plain values, and how 32 bytes become one.

What readers of :mod:`ledger.rows` get and what its writers report. This module must never touch a file or a mapping.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from ledger.columns import Column, Flag, PayloadKind, Source, Status
from ledger.layout import SLOT_STRUCT, seal

WORDS: Final = struct.Struct("<QQQQ")
"""A slot as four 64-bit words."""
_BLANK: Final = bytes(WORDS.size)
assert WORDS.size == struct.calcsize(SLOT_STRUCT) == 32


class Outcome(IntEnum):
    """What a block write did to one cell."""

    APPLIED = 0
    UNCHANGED = 1
    CONFLICT = 2
    OUTRANKED = 3


class Slot(msgspec.Struct, frozen=True):
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
    """A slot that cannot be trusted: a seal that does not fit, a word that does not exist, an id without a record."""

    column: Column
    symbol_id: int
    minute: int


_Words = tuple[Status, Source, Flag, PayloadKind]
_heads: Final[dict[int, _Words]] = {}
"""First four bytes of a slot to its words; a year has a few dozen, and looking them up costs a fifth of making them."""
EMPTY_SLOT: Final = Slot(Status.EMPTY, Source.NONE, Flag.NONE, PayloadKind.NONE, 0, 0, 0, 0, 0)


def unpack_slot(data: bytes) -> Slot | None:
    """The slot in 32 bytes, or None where its seal is broken."""
    if data == _BLANK:
        return EMPTY_SLOT
    w0, w1, w2, w3 = WORDS.unpack(data)
    inputs = w3 & 0xFFFFFFFF
    if seal(w0, w1, w2, inputs) != w3 >> 32:
        return None
    if not w0 and not w1:
        return EMPTY_SLOT
    words = _heads.get(w0 & 0xFFFFFFFF) or _words(w0 & 0xFFFFFFFF)
    return Slot(*words, w0 >> 32, w1 & 0xFFFFFFFF, w1 >> 32, inputs, w2 - (w2 >> 63 << 64))


def _words(head: int) -> _Words:
    kind, status, source, flags = head.to_bytes(4, "little")
    words = _heads[head] = Status(status), Source(source), Flag(flags), PayloadKind(kind)
    return words
