"""
Symbols: the file ``symbol-map.bin``, which gives every symbol of the year its u16 id in order of first appearance.

A header page and 10,000 fixed entries of 32 bytes, so that the file can be repaired with a hex editor while the daemon
is stopped; it is checked and indexed at open. New symbols are on disk, all of a call or none, before their ids leave
this module, because rows that name an id may reach the disk at any moment after. This module must never allocate an id
when asked to resolve one, and never give an id a second meaning.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ledger.columns import SYMBOLS_MAX
from ledger.errors import (
    AddressError,
    ChecksumMismatch,
    DamagedFile,
    SpaceError,
    StateReadOnly,
    SymbolCapReached,
    UnknownSymbol,
)
from ledger.files import (
    HEADER_BYTES,
    PathLike,
    System,
    decode_header,
    encode_header,
    read_whole,
    replace_file,
    write_atomically,
)

FILE_NAME: Final = "symbol-map.bin"
FILE_KIND: Final = "symbols"
FILE_VERSION: Final = 1
ENTRY: Final = struct.Struct("<B27sI")
"""length of the symbol u8 · symbol, ASCII, padded with zeros · crc32 over entry number u16 and the 28 bytes before."""
ENTRY_BYTES: Final = 32
ENTRIES_PER_SECTOR: Final = 512 // ENTRY_BYTES
"""A sector reaches the disk whole or not at all; more than one may reach it in any order."""
SYMBOL_BYTES_MAX: Final = 27
"""``O:`` + root of 6 + date of 6 + C or P + strike of 8 are 23 bytes."""

_UNUSED: Final = bytes(ENTRY_BYTES)

assert ENTRY.size == ENTRY_BYTES
assert SYMBOLS_MAX <= 1 << 16


@dataclass(frozen=True, slots=True)
class Allocation:
    """What :meth:`SymbolMap.allocate` gave, and what it had to refuse."""

    ids: tuple[int, ...]
    """One per symbol asked for, in order; -1 where refused."""
    allocated: tuple[str, ...]
    """Symbols that are new, in order of their ids."""
    refused: tuple[str, ...]
    """Symbols beyond the cap, in order of first appearance; known symbols are never refused."""
    symbols_max: int

    def require_all(self) -> tuple[int, ...]:
        """
        The ids, when all symbols have one.

        Raises:
            SymbolCapReached: some were refused; names the first ten and says how many. Facts: ``refused`` (all),
                ``refused_count``, ``symbols_max``.
        """
        if not self.refused:
            return self.ids
        count, named = len(self.refused), ", ".join(self.refused[:10])
        more = f" and {count - 10} more" if count > 10 else ""
        text = f"all {self.symbols_max} symbol ids of the year are taken; refused {count}: {named}{more}"
        facts = {"refused": list(self.refused), "refused_count": count, "symbols_max": self.symbols_max}
        raise SymbolCapReached(text, hint=None, **facts)


class SymbolMap:
    """Symbols and their ids, both ways; ids are 0, 1, 2 ... without holes."""

    def __init__(
        self, system: System, path: Path, names: list[str], header: bytes, symbols_max: int, descriptor: int
    ) -> None:
        self._system = system
        self._descriptor = descriptor
        self._names = names
        self._ids = {name: symbol_id for symbol_id, name in enumerate(names)}
        self._header = header
        self._exact = True
        """The file holds these names and nothing behind them; False after a failed write, until one succeeds."""
        self.path = path
        self.symbols_max = symbols_max
        """How many ids the year has."""
        self.torn_bytes = 0
        """Bytes behind the last symbol that were found at open (and zeroed, unless read-only): an interrupted write."""

    @classmethod
    def create(cls, directory: PathLike, system: System, *, year: int, symbols_max: int = SYMBOLS_MAX) -> SymbolMap:
        """Make an empty map for the year, durably, at full size; raises :class:`SpaceError`."""
        if not 1 <= symbols_max <= SYMBOLS_MAX:
            raise ValueError(f"symbols_max must be 1 to {SYMBOLS_MAX}, not {symbols_max}")
        header = encode_header(FILE_KIND, FILE_VERSION, {"year": year, "symbols_max": symbols_max})
        path = Path(directory) / FILE_NAME
        # Written, not sparse: an allocation must not fail for want of space, nor a map tear behind the file's end.
        write_atomically(system, path, header + bytes(SYMBOLS_MAX * ENTRY_BYTES))
        return cls.open(directory, system, year=year)

    @classmethod
    def open(cls, directory: PathLike, system: System, *, year: int, readonly: bool = False) -> SymbolMap:
        """
        Open the map, check every entry and build the inverse.

        The last entry may be torn by a crash while it was written; its id was never given, and is unused again. An
        entry that is damaged otherwise, or is empty or a duplicate before a good one, is an error, because rows on
        disk carry its id.

        Raises:
            NotALedgerFile, FileVersionMismatch, ChecksumMismatch, DamagedFile: the file, or the entry that the message
                names, cannot be trusted.
            SpaceError: the file system refused.
        """
        path = Path(directory) / FILE_NAME
        data = read_whole(system, path)
        if data is None:
            raise DamagedFile(f"{path} is missing", path=str(path))
        facts = decode_header(data, FILE_KIND, FILE_VERSION, path)
        if facts.get("year") != year:
            text = f"{path} is of the year {facts.get('year')}, not of {year}"
            raise DamagedFile(text, path=str(path), found=facts.get("year"), expected=year)
        if len(data) != HEADER_BYTES + SYMBOLS_MAX * ENTRY_BYTES:
            expected = HEADER_BYTES + SYMBOLS_MAX * ENTRY_BYTES
            raise DamagedFile(f"{path} has {len(data)} bytes, a symbol map has {expected}", path=str(path))
        names = _read_entries(data, path)
        descriptor = -1 if readonly else system.open(path, os.O_RDWR)
        symbols = cls(system, path, names, data[:HEADER_BYTES], int(facts["symbols_max"]), descriptor)
        symbols.torn_bytes = len(data.rstrip(b"\0")[HEADER_BYTES + len(names) * ENTRY_BYTES :])
        if symbols.torn_bytes and not readonly:
            try:
                symbols._write(b"".join((data[: HEADER_BYTES + len(names) * ENTRY_BYTES], bytes(symbols.torn_bytes))))
            except SpaceError:
                symbols.close()
                raise
        return symbols

    def __len__(self) -> int:
        """Ids given out."""
        return len(self._names)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._ids

    def __iter__(self) -> Iterator[str]:
        """Symbols in the order of their ids."""
        return iter(self._names)

    def resolve(self, symbol: str) -> int:
        """The symbol's id; raises :class:`UnknownSymbol`. Never allocates."""
        symbol_id = self._ids.get(symbol)
        if symbol_id is None:
            near = [name for name in self._names if name.lower() == symbol.lower()]
            hint = f"symbols are case-sensitive; there is {near[0]}" if near else None
            raise UnknownSymbol(f"{symbol!r} has no id this year", hint=hint, symbol=symbol)
        return symbol_id

    def get(self, symbol: str) -> int | None:
        """The symbol's id, or None."""
        return self._ids.get(symbol)

    def name(self, symbol_id: int) -> str:
        """The symbol of the id; raises :class:`UnknownSymbol`."""
        if not 0 <= symbol_id < len(self._names):
            text = f"symbol id {symbol_id} is not given out; {len(self._names)} are, from 0"
            raise UnknownSymbol(text, symbol_id=symbol_id)
        return self._names[symbol_id]

    def names(self) -> list[str]:
        """All symbols in the order of their ids; a copy."""
        return list(self._names)

    def glob(self, pattern: str) -> list[int]:
        """
        Ids of the symbols that fit one of the patterns, ascending.

        Args:
            pattern: globs (``*``, ``?``, ``[...]``; case-sensitive), several separated by commas, which no ticker has.
        """
        found: set[int] = set()
        for one in pattern.split(","):
            if any(letter in one for letter in "*?["):
                found.update(symbol_id for symbol_id, name in enumerate(self._names) if fnmatchcase(name, one))
            elif one in self._ids:
                found.add(self._ids[one])
        return sorted(found)

    def allocate(self, symbols: Sequence[str]) -> Allocation:
        """
        Ids for the symbols: known ones keep theirs, new ones get the next, in order, as far as the cap allows.

        Durable when it returns.

        Raises:
            AddressError: a symbol that no entry can hold (empty, not printable ASCII, longer than 27 bytes); nothing
                is allocated then.
            SpaceError: the file system refused; nothing is allocated.
        """
        new: list[str] = []
        refused: list[str] = []
        seen: set[str] = set()
        for symbol in symbols:
            if symbol in self._ids or symbol in seen:
                continue
            check_symbol(symbol)
            seen.add(symbol)
            (new if len(self._names) + len(new) < self.symbols_max else refused).append(symbol)
        if new:
            self._add(new)
        ids = tuple(self._ids.get(symbol, -1) for symbol in symbols)
        return Allocation(ids, tuple(new), tuple(refused), self.symbols_max)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._system.close(descriptor)

    def _add(self, new: list[str]) -> None:
        if self._descriptor < 0:
            raise StateReadOnly(f"{self.path} is open read-only or closed", path=str(self.path))
        first = len(self._names)
        entries = b"".join(encode_entry(first + at, symbol) for at, symbol in enumerate(new))
        in_place = self._exact and first // ENTRIES_PER_SECTOR == (first + len(new) - 1) // ENTRIES_PER_SECTOR
        self._exact = False
        if in_place:
            self._write_in_place(entries, HEADER_BYTES + first * ENTRY_BYTES)
        else:
            known = b"".join(encode_entry(symbol_id, symbol) for symbol_id, symbol in enumerate(self._names))
            self._write(b"".join((self._header, known, entries)))
        self._exact = True
        self._names.extend(new)
        self._ids.update({symbol: first + at for at, symbol in enumerate(new)})

    def _write_in_place(self, entries: bytes, offset: int) -> None:
        """Write and sync entries of one sector."""
        try:
            self._system.pwrite(self._descriptor, entries, offset)
            self._system.fdatasync(self._descriptor)
        except SpaceError:
            # What was written would be read as allocated at the next open.
            with suppress(SpaceError):
                self._system.pwrite(self._descriptor, bytes(len(entries)), offset)
            raise

    def _write(self, data: bytes) -> None:
        """Put a file that begins with ``data`` in the place of this one, synced."""
        whole = data.ljust(HEADER_BYTES + SYMBOLS_MAX * ENTRY_BYTES, b"\0")
        old, self._descriptor = self._descriptor, replace_file(self._system, self.path, whole)
        try:
            self._system.fsync_directory(self.path.parent)
        finally:
            self._system.close(old)


def check_symbol(symbol: str) -> None:
    """Raises :class:`AddressError` for a symbol that no entry can hold: empty, not printable ASCII, over 27 bytes."""
    printable = symbol.isascii() and symbol.isprintable() and " " not in symbol
    if not printable or not 1 <= len(symbol) <= SYMBOL_BYTES_MAX:
        hint = f"a symbol has 1 to {SYMBOL_BYTES_MAX} printable ASCII letters and no blank"
        raise AddressError(f"{symbol!r} cannot be a symbol", hint=hint, symbol=symbol)


def encode_entry(symbol_id: int, symbol: str) -> bytes:
    """The 32 bytes of one entry; the checksum covers the id, so that an entry cannot stand in another's place."""
    body = bytes((len(symbol),)) + symbol.encode("ascii").ljust(SYMBOL_BYTES_MAX, b"\0")
    return body + _entry_checksum(symbol_id, body).to_bytes(4, "little")


def _entry_checksum(symbol_id: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(symbol_id.to_bytes(2, "little")))


def _read_entries(data: bytes, path: Path) -> list[str]:
    """Symbols in order, up to the first entry that is empty, or torn, with nothing behind it."""
    names: list[str] = []
    places: dict[str, int] = {}
    end = len(data.rstrip(b"\0"))
    for symbol_id, offset in enumerate(range(HEADER_BYTES, end, ENTRY_BYTES)):
        entry = data[offset : offset + ENTRY_BYTES]
        reason = _fault(symbol_id, entry)
        if reason is not None:
            if end <= offset + ENTRY.size - 4:
                # Its first bytes, no checksum, and nothing behind it: an interrupted write.
                break
            hint = "restore the file from a backup, or write the entry again with a hex editor while nobody has it open"
            text = f"{path}: entry {symbol_id} {reason}"
            raise ChecksumMismatch(text, hint=hint, path=str(path), entry=symbol_id)
        name = entry[1 : 1 + entry[0]].decode("ascii")
        if name in places:
            text = f"{path}: entries {places[name]} and {symbol_id} both hold {name}"
            raise DamagedFile(text, path=str(path), entry=symbol_id, symbol=name)
        places[name] = symbol_id
        names.append(name)
    return names


def _fault(symbol_id: int, entry: bytes) -> str | None:
    if entry == _UNUSED:
        return "is empty, and entries behind it are not"
    length, text, checksum = ENTRY.unpack(entry)
    if _entry_checksum(symbol_id, entry[:-4]) != checksum:
        return "is damaged (its checksum does not fit)"
    if not 1 <= length <= SYMBOL_BYTES_MAX or any(text[length:]):
        return "is damaged (its length does not fit)"
    return None
