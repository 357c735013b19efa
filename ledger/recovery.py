"""
Recovery: what a crash or a flipped bit left wrong in a session, found when it is mapped, audited, then set right.

Broken seals, filled cells without a good record, claims of an earlier process. This module must never repair a cell
before it was reported: a crash in between reports twice, and never hides a repair.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ledger.columns import Column, LedgerKind, PayloadKind, Status
from ledger.errors import DamagedFile
from ledger.maps import PayloadMap
from ledger.rows import BrokenSlot, SessionRows

_SYMBOLS_AT_ONCE: Final = 42
"""A step: 16,000 cells or so, a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What mapping a session had to set right: cells by cause, and pending cells released."""

    ledger: LedgerKind
    session: str
    seal: int
    dangling: int
    pending: int
    cells: list[BrokenSlot]
    headers: int = 0
    """Blocks, and the header page, whose fixed bytes were written again."""
    foreign: int = 0
    """Blocks of symbols that do not exist, without a filled cell, that were emptied."""


def recover(
    rows: SessionRows,
    maps: dict[PayloadKind, PayloadMap],
    symbols: int,
    now_ns: int,
    report: Callable[[Repaired], None] | None,
) -> Iterator[None]:
    """
    Set right what is wrong in a session that was just opened for writing; yields between steps of looking for it.

    Args:
        rows: the session.
        maps: the payload maps its cells point into.
        symbols: how many symbols have ids.
        now_ns: the clock, ns UTC.
        report: told, before anything is repaired, when there is something to repair.

    Raises:
        DamagedFile: cells of symbols that do not exist are filled; the next symbols would inherit them.
        SpaceError: the file system refused.
    """
    foreign = np.flatnonzero(rows.reserved[symbols:]) + symbols
    if (rows.status[:, foreign] == Status.FILLED).any():
        text = f"{rows.path}: it has filled cells of symbol_id {foreign[0]}, and only {symbols} symbols have ids"
        hint = "restore symbol-map.bin from a backup; or this file, from before those symbols"
        raise DamagedFile(text, hint=hint, path=str(rows.path))
    broken = [cell for cell in rows.broken if cell.symbol_id < symbols]
    dangling = [] if rows.clean else (yield from dangling_cells(rows, maps))
    pending: list[tuple[Column, np.ndarray, np.ndarray]] = []
    for column in rows.columns:
        end = min(rows.symbols_end, symbols)
        if not rows.counts_status[rows.column_index(column), Status.PENDING]:
            continue
        at, minutes = np.nonzero(rows.status[rows.column_index(column), :end] == Status.PENDING)
        if len(at):
            pending.append((column, at, minutes))
        yield
    cells, claimed = broken + dangling, sum(len(minutes) for _, _, minutes in pending)
    headers = len(rows.stained) + rows.stained_page
    if report is not None and (cells or claimed or headers or len(foreign)):
        found = Repaired(rows.kind, rows.place.date, len(broken), len(dangling), claimed, cells, headers, len(foreign))
        report(found)
    if headers:
        rows.wash()
    if len(foreign):
        rows.empty(foreign)
    for cell in cells:
        rows.repair(cell, now_ns=now_ns)
    for column, symbol_ids, minutes in pending:
        rows.release_pending(column, symbol_ids, minutes, now_ns=now_ns)


def dangling_cells(rows: SessionRows, maps: dict[PayloadKind, PayloadMap]) -> Generator[None, None, list[BrokenSlot]]:
    """Filled cells whose payload_id names no good record of the kind, or one with another checksum; yields between steps."""
    found: list[BrokenSlot] = []
    for column in rows.columns:
        payloads = maps[column.payload_kind]
        status = rows.status[rows.column_index(column)]
        for start in range(0, rows.symbols_end, _SYMBOLS_AT_ONCE):
            some, when = np.nonzero(status[start : min(start + _SYMBOLS_AT_ONCE, rows.symbols_end)] == Status.FILLED)
            if not len(some):
                continue
            some += start
            slots = rows.slots(column, some, when)
            records = payloads.get_many(slots["payload_id"], check=False)
            wrong = (records["content_hash"] >> np.uint64(32)).astype(np.uint32) != slots["checksum"]
            wrong |= records["schema_version"] == 0
            # Records before the last clean close were whole then; the others may be torn.
            recent = slots["payload_id"] >= payloads.clean_next_id
            recent[recent] = ~payloads.good(slots["payload_id"][recent])
            for index in np.flatnonzero(wrong | recent):
                found.append(BrokenSlot(column, int(some[index]), int(when[index])))
            yield
    return found
