"""
Rows of raw slabs, as the bulk read brings them: as tuples, or described for numpy, which reads them where they are.

Must never import numpy: who wants arrays has it, who does not need not wait for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from m17d.replies import SLOT_FIELDS, BulkReply

_HEADER: Final = [("symbol_id", "<u2"), ("schema_version", "<u2"), ("minute_idx", "<u4"), ("start_ts", "<i8"),
                  ("end_ts", "<i8"), ("reserved", "V8")]  # fmt: skip
_SLOT: Final = [("payload_type", "u1"), ("status", "u1"), ("source", "u1"), ("flags", "u1"), ("payload_id", "<u4"),
                ("version", "<u4"), ("checksum", "<u4"), ("last_updated_ns", "<i8"), ("inputs", "<u4"),
                ("seal", "<u4")]  # fmt: skip


class SlabRow(NamedTuple):
    """One row of a raw slab: its address, and per column the ten fields of its slot in stored order."""

    symbol_id: int
    minute_idx: int
    start_ts: int
    end_ts: int
    slots: tuple[tuple[int, ...], ...]


def rows_of_slab(reply: BulkReply, slab: bytes) -> Iterator[SlabRow]:
    """
    The rows of a raw slab, unpacked with the format that came with it: some 400,000 a second.

    Raises:
        ValueError: the slab has not ``rows * row_bytes`` bytes.
    """
    _check(reply, slab)
    fields, head = SLOT_FIELDS, 5
    for row in struct.iter_unpack(reply.row_format, slab):
        slots = tuple(row[at : at + fields] for at in range(head, head + fields * len(reply.columns), fields))
        yield SlabRow(row[0], row[2], row[3], row[4], slots)


def slab_dtype(reply: BulkReply, slab: bytes) -> list[tuple[str, Any]]:
    """
    What a row of the slab is, for ``numpy.frombuffer(slab, dtype=slab_dtype(reply, slab))``: millions of rows a second.

    Returns:
        fields of the header (``symbol_id``, ``minute_idx``, ``start_ts`` and ``end_ts`` in ns UTC), then one of ten fields
        (``status``, ``version``, ...) for each column, under the column's word.

    Raises:
        ValueError: the slab has not ``rows * row_bytes`` bytes.
    """
    _check(reply, slab)
    return [*_HEADER, *((column.value, _SLOT) for column in reply.columns)]


def _check(reply: BulkReply, slab: bytes) -> None:
    if len(slab) != reply.rows * reply.row_bytes:
        raise ValueError(f"slab has {len(slab)} bytes, {reply.rows} rows of {reply.row_bytes} were announced")
