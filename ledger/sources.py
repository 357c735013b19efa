"""
Sources: what is known about every upstream file or stream, one record per (dataset, session).

What makes absence a fact: a cell without rows is "no data" only because its source is complete here. Kept in the
framed, append-only file ``sources``, where the last record of a key holds. This module must never read an upstream.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ledger.errors import DamagedFile
from ledger.files import PathLike, System
from ledger.framed import FramedFile

FILE_NAME: Final = "sources"
FILE_VERSION: Final = 1

SYMBOL_ROWS: Final = np.dtype(
    [("symbol_id", "<u2"), ("rows_in", "<u4"), ("rows_outside", "<u4"), ("volume_outside", "<f8")]
)
"""Per symbol of a source: its rows in the session, outside it, and the volume outside; 18 bytes, packed."""
assert SYMBOL_ROWS.itemsize == 18


class SourceState(StrEnum):
    """What may be concluded from a source."""

    COMPLETE = "complete"
    """Read to its end: what it does not have does not exist."""
    DAMAGED = "damaged"
    """Cannot be read whole; nothing of it is used."""
    WAITING = "waiting"
    """Not there yet."""
    OPEN = "open"
    """A stream, or a file, that is still being read."""
    ABSENT = "absent"
    """An operator accepted that it will not come."""


class BadRow(msgspec.Struct, frozen=True):
    """One line of a source that could not be used."""

    line: int
    """From 1; the header is line 1."""
    reason: str


class SourceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known about one source."""

    dataset: str
    """See :class:`ledger.columns.Dataset`."""
    session: str
    """``YYYY-MM-DD``."""
    state: SourceState
    reason: str = ""
    """Why the state is not complete, in words."""
    name: str = ""
    """Path or URL, without credentials."""
    stream: str = ""
    """Address of the stream that brought rows of the session while its file is not there; empty for none."""
    size: int = 0
    """Bytes."""
    etag: str = ""
    header: list[str] = []
    """Names of the file's columns, in file order."""
    globs: list[str] = []
    """Symbols that were read; empty means all."""
    parser_version: int = 0
    rows: int = 0
    """Rows read, rejected ones included."""
    rows_in_session: int = 0
    rejected: dict[str, int] = {}
    """Rows by reason."""
    out_of_session: dict[str, int | float] = {}
    """Rows and volume outside the session, auctions apart: ``rows``, ``volume``, ``closing_auction_rows``, ..."""
    first_bad: BadRow | None = None
    quarantined: list[BadRow] = []
    symbols: bytes = b""
    """:data:`SYMBOL_ROWS` records, ascending by symbol_id; see :func:`pack_symbols`."""
    refused_symbols: int = 0
    """How many symbols found no id because the cap was reached."""
    refused_names: list[str] = []
    """The first of them."""
    accepted: list[tuple[int, int, int]] = []
    """(symbol_id, first minute, last minute exclusive): suspect cells that an operator took as they are."""
    start_number: int = 0
    """Which start of the daemon wrote this."""

    def symbol_rows(self) -> NDArray[np.void]:
        """:data:`SYMBOL_ROWS` array, ascending by symbol_id; read-only."""
        return np.frombuffer(self.symbols, dtype=SYMBOL_ROWS)

    def symbol_ids(self) -> NDArray[np.uint16]:
        """u16[n]: the symbols that have a row in this source, in session or not, ascending."""
        return np.ascontiguousarray(self.symbol_rows()["symbol_id"])


def pack_symbols(symbol_id: ArrayLike, rows_in: ArrayLike, rows_outside: ArrayLike, volume_outside: ArrayLike) -> bytes:
    """
    The ``symbols`` field of a record, sorted by symbol_id; all four of one length.

    Raises:
        ValueError: lengths differ, a symbol comes twice, or a number does not fit its type.
    """
    fields = (symbol_id, rows_in, rows_outside, volume_outside)
    given = [np.asarray(values) for values in fields]
    if len({array.shape for array in given}) != 1 or given[0].ndim != 1:
        raise ValueError(f"the arrays have the shapes {[array.shape for array in given]}")
    packed = np.empty(len(given[0]), dtype=SYMBOL_ROWS)
    for name, array in zip(packed.dtype.names or (), given, strict=True):
        packed[name] = array
        if not np.array_equal(packed[name], array, equal_nan=array.dtype.kind == "f"):
            raise ValueError(f"a value of {name} does not fit {packed.dtype[name]}")
    packed = packed[np.argsort(packed["symbol_id"], kind="stable")]
    if np.any(packed["symbol_id"][1:] == packed["symbol_id"][:-1]):
        raise ValueError("a symbol_id comes twice")
    return packed.tobytes()


_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODER: Final = msgspec.msgpack.Decoder(SourceRecord)


class SourceStore:
    """
    The records of a state directory; every :meth:`put` is durable when it returns.

    Superseded records stay in the file until :meth:`compact`.
    """

    def __init__(
        self, directory: PathLike, system: System, *, year: int = 0, readonly: bool = False, closed: int | None = None
    ) -> None:
        """
        Open the file ``sources`` in ``directory``, or make it; a torn tail is cut (``torn_bytes`` says how much).

        Args:
            directory: the state directory.
            system: makes the system calls.
            year: the state's year; a file of another year is refused.
            readonly: write nothing.
            closed: where the file ended when it was closed in order.

        Raises:
            NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file cannot be trusted.
            SpaceError: the file system refused.
        """
        path = Path(directory) / FILE_NAME
        self._file, payloads = FramedFile.open(
            system, path, FILE_NAME, FILE_VERSION, {"year": year}, readonly=readonly, closed=closed
        )
        self.torn_bytes = self._file.torn_bytes
        self.generation = 0
        """Counted up at every change; what was derived from the records holds while it stays."""
        self._changed: dict[str, int] = {}
        self._records: dict[tuple[str, str], SourceRecord] = {}
        self._sessions: dict[str, dict[str, SourceRecord]] = {}
        self._bytes, live = sum(map(len, payloads)), dict[tuple[str, str], int]()
        try:
            for payload in payloads:
                record = _DECODER.decode(payload)
                key = (record.session, record.dataset)
                self._records[key] = record
                self._sessions.setdefault(record.session, {})[record.dataset] = record
                live[key] = len(payload)
        except msgspec.DecodeError as error:
            self._file.close()
            raise DamagedFile(f"{path}: a record cannot be read: {error}", path=str(path)) from error

        self._live_bytes = sum(live.values())

    def compact(self) -> None:
        """
        Rewrite the file, atomically, when more than half of what was read at open is superseded.

        Raises:
            SpaceError: the file system refused; the file is the old one or the new one.
        """
        if 2 * self._live_bytes < self._bytes:
            self._file.rewrite([_ENCODER.encode(record) for record in self.all()])
            self._bytes = self._live_bytes

    def get(self, dataset: str, session: str) -> SourceRecord | None:
        """The record of the source, or None when nothing is known about it."""
        return self._records.get((session, dataset))

    def put(self, record: SourceRecord) -> bool:
        """
        Record, durably; False when that very record is there already (nothing is written then).

        Raises:
            SpaceError: the file system refused; the record of before still holds.
        """
        key = (record.session, record.dataset)
        if self._records.get(key) == record:
            return False
        payload = _ENCODER.encode(record)
        self._file.append([payload])
        # What is kept is what a restart would read: plain types, and no list the caller may still change.
        self._records[key] = _DECODER.decode(payload)
        self._sessions.setdefault(record.session, {})[record.dataset] = self._records[key]
        self.generation += 1
        self._changed[record.session] = self.generation
        return True

    def changed(self, session: str) -> int:
        """The generation at which a record of the session last changed; 0 where none did since the file was opened."""
        return self._changed.get(session, 0)

    def all(self) -> list[SourceRecord]:
        """All records, by session, then dataset."""
        return [self._records[key] for key in sorted(self._records)]

    def for_session(self, session: str) -> list[SourceRecord]:
        """Records of one session, by dataset."""
        held = self._sessions.get(session, {})
        return [held[dataset] for dataset in sorted(held)]

    def sessions(self) -> Sequence[str]:
        """Sessions that have a record, ascending."""
        return sorted(self._sessions)

    @property
    def length(self) -> int:
        """Bytes of the file up to the end of its last good record."""
        return self._file.length

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()
