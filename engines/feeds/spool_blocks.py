"""
The bytes of spooled rows: blocks of columns, each with the texts that its numbers stand for.

A block is a header (magic, rows, bytes of texts, bytes of ids), the texts as MessagePack, the columns one after the other
in the order of :data:`LAYOUT`, and for trades the length of each id and the ids. Little-endian; read only by the program
that wrote it, on the machine that wrote it. This module must never open a file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from engines.feeds.stream_events import Columns
from ledger.columns import Column, Dataset

HEADER: Final = struct.Struct("<4sIII")
MAGIC: Final = b"M17s"
SUFFIX: Final = ".rows"
OPEN_SUFFIX: Final = ".open"
"""Of a file that is being written, or whose writer was killed."""

LAYOUT: Final[dict[Column, dict[str, str]]] = {
    Column.TRADE_REF: {
        "ticker": "<u4", "sip_timestamp": "<i8", "sequence_number": "<i8", "price": "<f8", "size": "<f8",
        "exchange": "<i4", "conditions": "<u4", "tape": "<i4", "trf_id": "<i4", "trf_timestamp": "<i8",
    },
    Column.QUOTE_REF: {
        "ticker": "<u4", "sip_timestamp": "<i8", "sequence_number": "<i8", "bid_price": "<f8", "bid_size": "<f8",
        "bid_exchange": "<i4", "ask_price": "<f8", "ask_size": "<f8", "ask_exchange": "<i4", "conditions": "<u4",
        "indicators": "<u4", "tape": "<i4",
    },
}  # fmt: skip
"""Columns of a block and their types, in order; a trade's ids follow them."""
ROW_BYTES: Final = {
    column: sum(np.dtype(kind).itemsize for kind in layout.values()) for column, layout in LAYOUT.items()
}
TEXT_COLUMNS: Final = frozenset({"ticker", "conditions", "indicators"})
"""Columns of numbers that stand for texts."""

Texts = Mapping[str, Sequence[tuple[int, str]]]
"""By column, numbers and their texts."""


def name_of(dataset: Dataset, start_ns: int, number: int) -> str:
    """The name of a file without its suffix: dataset, minute since the epoch, and a number of its writer's."""
    return f"{dataset.value.replace('/', '.')}-{start_ns // 60_000_000_000}-{number:06d}"


def read_name(name: str) -> tuple[Dataset, int]:
    """
    Dataset and start (ns UTC) of a file.

    Raises:
        ValueError: the name is none of ours.
    """
    dataset, minute, _ = name.rsplit("-", 2)
    return Dataset(dataset.replace(".", "/")), int(minute) * 60_000_000_000


def block_of(dataset: Dataset, columns: Columns, texts: Texts) -> bytes:
    """
    The bytes of some rows.

    Args:
        columns: see :func:`engines.feeds.stream_events.trade_columns` and ``quote_columns``.
        texts: what the numbers mean that no earlier block of the file explained.
    """
    layout = LAYOUT[dataset.column]
    explained = msgspec.msgpack.encode(texts)
    parts = [np.ascontiguousarray(columns[name], dtype=kind).tobytes() for name, kind in layout.items()]
    ids = b""
    if "id" in columns:
        lengths, ids = _ids(columns["id"])
        parts += [lengths.tobytes(), ids]
    header = HEADER.pack(MAGIC, len(columns["ticker"]), len(explained), len(ids))
    return b"".join((header, explained, *parts))


def _ids(values: np.ndarray) -> tuple[np.ndarray, bytes]:
    """u8[rows], the length of each id in bytes, and the ids one after the other."""
    texts = values.tolist()
    whole = "".join(texts)
    if whole.isascii():
        return np.fromiter(map(len, texts), np.uint8, len(texts)), whole.encode()
    encoded = [text.encode() for text in texts]
    return np.fromiter(map(len, encoded), np.uint8, len(encoded)), b"".join(encoded)
