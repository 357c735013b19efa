"""
The checker: walks every slot, record, artifact, plane and count of a state and says what is wrong, where, and what to do.

Sessions that are not in use are read as they are on disk, so that nothing is repaired before it is found. It yields
between short steps, so that a daemon can run it between requests. What nothing names (orphans) is counted and is no
finding. This module must never write anything.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ledger.check_small import check_small_files
from ledger.columns import Column, PayloadKind, Status
from ledger.errors import LedgerError
from ledger.findings import Checked, Finding
from ledger.headerpage import counts_in, has_stray_bytes
from ledger.ledgers import Ledger
from ledger.maps import PayloadMap, mark_fault
from ledger.records import NO_ROWS_ID, RECORD_NO_ROWS, RECORD_RETIRED, good_at
from ledger.rows import SessionRows
from ledger.sessionfile import sound_slots
from ledger.state import State

_SYMBOLS_AT_ONCE: Final = 8
_RECORDS_AT_ONCE: Final = 8192
_BYTES_AT_ONCE: Final = 4 << 20
_EXAMPLES_MAX: Final = 20
_STAT_BLOCK_BYTES: Final = 512
"""Unit of ``st_blocks``, whatever the file system's block is."""
_SHIFT: Final = np.uint64(32)
_RESTART: Final = "start m17d once; mapping the session writes it again"
_REFILL: Final = "clear the cell; its engine fills it again"
__all__ = ["Checked", "Finding", "verify"]


def verify(state: State, checked: Checked, session: str | None = None) -> Iterator[None]:
    """
    Walk one session, or everything; yields between short steps.

    Args:
        state: open for writing, or for reading only (then a crash's leftovers are found and stay).
        checked: filled as the walk goes on.
        session: ``YYYY-MM-DD``; None for all sessions, and then records, orphans and the small files too.

    Raises:
        UnknownSession: no such session.
    """
    named = {kind: np.zeros(payloads.next_id + 1, dtype=bool) for kind, payloads in state.maps.items()}
    seqs = None if session is None else {state.calendar.session_seq(session)}
    chosen = [
        (ledger, seq)
        for ledger in (state.trade, state.enrichment)
        for seq in ledger.existing()
        if seqs is None or seq in seqs
    ]
    checked.bytes_total = sum(_bytes_on_disk(ledger.path(seq)) for ledger, seq in chosen)
    if session is None:
        checked.bytes_total += sum(_bytes_on_disk(payloads.path) for payloads in state.maps.values())
        checked.bytes_total += sum(artifact.bytes for artifact in state.artifacts.all())
    for ledger, seq in chosen:
        yield from _session(state, ledger, seq, checked, named)
    artifacts: set[int] = set()
    for kind in state.maps:
        yield from _records(state, kind, named[kind], checked, artifacts, everything=session is None)
    # Now it is known which artifacts are read.
    checked.bytes_total = checked.bytes + sum(
        state.artifacts.get(one).bytes for one in artifacts if one <= len(state.artifacts)
    )
    for artifact_id in sorted(artifacts):
        yield from _artifact(state, artifact_id, checked)
    if session is None:
        yield from check_small_files(state, checked)
        _orphans(state, artifacts, checked)
        yield


def _bytes_on_disk(path: Path) -> int:
    """What a sparse file takes; 0 for one that cannot be looked at."""
    try:
        return path.stat().st_blocks * _STAT_BLOCK_BYTES
    except OSError:
        return 0


# ---- sessions


def _session(
    state: State, ledger: Ledger, seq: int, checked: Checked, named: dict[PayloadKind, np.ndarray]
) -> Iterator[None]:
    mapped, where = ledger.mapped().get(seq), str(ledger.path(seq))
    if mapped is not None and not mapped.readonly:
        yield from _walk(state, mapped, where, checked, named, in_use=True)
        return
    try:
        rows = ledger.inspect(seq)
    except LedgerError as error:
        checked.find(error.code, str(error), where, error.hint)
        return
    try:
        yield from _walk(state, rows, where, checked, named, in_use=False)
    finally:
        rows.close()


def _walk(
    state: State,
    rows: SessionRows,
    where: str,
    checked: Checked,
    named: dict[PayloadKind, np.ndarray],
    *,
    in_use: bool,
) -> Iterator[None]:
    """Every block of one session's file, then its header page; ``in_use``: planes and counts are compared too."""
    before = rows.change_count
    counts = np.zeros((len(rows.columns), 4), dtype=np.int64)
    for first, last in rows.data_blocks():
        for start in range(first, last, _SYMBOLS_AT_ONCE):
            counts += _blocks(state, rows, start, min(start + _SYMBOLS_AT_ONCE, last), where, checked, named, in_use)
            yield
    if rows.closed:
        return
    stored = _header_page(rows, where, checked)
    if in_use and before == rows.change_count and (counts != rows.counts_status).any():
        hint = "restart m17d; counts are made anew from the rows"
        checked.find("counts", "the counts of statuses differ from a scan of the rows", where, hint)
    if not in_use and stored is not None and (counts != stored).any():
        hint = "start m17d once; counts are made anew from the rows"
        checked.find("counts", "the header's counts of statuses differ from a scan of the rows", where, hint)


def _header_page(rows: SessionRows, where: str, checked: Checked) -> np.ndarray | None:
    """The counts that the header page claims to be right, None where it claims nothing."""
    page = rows.header_page()
    stored = counts_in(page)
    if stored is None:
        checked.find("counts", "the checksum of the counts does not fit", where, _RESTART)
        return None
    if has_stray_bytes(page):
        checked.find("padding", "the header page has bytes where none belong", where, _RESTART)
    claimed: np.ndarray = stored["status"][: len(rows.columns)].astype(np.int64)
    return claimed if stored["clean"] else None


def _blocks(
    state: State,
    rows: SessionRows,
    first: int,
    last: int,
    where: str,
    checked: Checked,
    named: dict[PayloadKind, np.ndarray],
    in_use: bool,
) -> np.ndarray:
    """Blocks of consecutive symbols; returns i64[columns, 4], their statuses."""
    words, padding = rows.read_blocks(first, last)
    checked.bytes += words.nbytes + padding.nbytes
    minutes = rows.place.minutes
    used = np.asarray(words.any(axis=(1, 2)) | padding.any(axis=1))
    symbol_ids = np.arange(first, last)[used]
    words = words[used]

    def find(code: str, mask: np.ndarray, message: str, hint: str) -> None:
        """Findings for a mask [symbols] or [symbols, minutes], the first few by place."""
        at = np.argwhere(mask)
        for found in at[:_EXAMPLES_MAX].tolist():
            minute = f" minute {found[1]}" if len(found) > 1 else ""
            more = f" (and {len(at) - _EXAMPLES_MAX} more)" if len(at) > _EXAMPLES_MAX and found is at[0] else ""
            checked.find(code, message + more, f"{where} symbol_id {symbol_ids[found[0]]}{minute}", hint)

    find("symbol", symbol_ids >= len(state.symbols), "the block's symbol has no id", "restore symbol-map.bin")
    find("header", (words[..., :4] != rows.headers(symbol_ids)).any(axis=2), "the row header is another's", _RESTART)
    find("padding", np.asarray(padding[used].any(axis=1)), "bytes behind the block's last row", _RESTART)
    counts = np.zeros((len(rows.columns), 4), dtype=np.int64)
    checked.slots += len(symbol_ids) * minutes * len(rows.columns)
    for index, column in enumerate(rows.columns):
        slots = words[..., 4 + 4 * index : 8 + 4 * index]
        head = slots[..., 0]
        sound = sound_slots(slots, column)
        status, ids = (head >> np.uint64(8) & np.uint64(0xFF)).astype(np.uint8), (head >> _SHIFT).astype(np.int64)
        filled = sound & (status == Status.FILLED)
        find("seal", ~sound, f"{column}: the seal is broken, or a word in it is unknown", _REFILL)
        find("slot", sound & (filled != (ids != 0)), f"{column}: status and payload_id contradict", _REFILL)
        behind = slots[:, minutes:].any(axis=2)
        find("slot", np.pad(behind, ((0, 0), (minutes, 0))), f"{column}: a cell behind the close", _REFILL)
        if in_use:
            plane = rows.status[index, symbol_ids]
            find("plane", (sound & (plane != status)).any(axis=1), f"{column}: the plane differs", "restart m17d")
        _named_records(state, column, filled, slots, named, find)
        inside = np.where(sound, status, 0)[:, :minutes]
        counts[index] = [np.count_nonzero(inside == value) for value in range(4)]
    return counts


def _named_records(
    state: State,
    column: Column,
    filled: np.ndarray,
    slots: np.ndarray,
    named: dict[PayloadKind, np.ndarray],
    find: Callable[[str, np.ndarray, str, str], None],
) -> None:
    """A filled cell's record exists, and its content hash begins with the slot's checksum."""
    if not filled.any():
        return
    ids = (slots[..., 0][filled] >> _SHIFT).astype(np.int64)
    records = state.maps[column.payload_kind].get_many(ids)
    seen = named[column.payload_kind]
    seen[ids[ids < len(seen)]] = True
    missing = np.zeros(filled.shape, dtype=bool)
    missing[filled] = records["schema_version"] == 0
    differs = np.zeros(filled.shape, dtype=bool)
    differs[filled] = (records["content_hash"] >> _SHIFT) != (slots[..., 1][filled] >> _SHIFT)
    find("dangling", missing, f"{column} names no good record", _REFILL)
    find("dangling", differs & ~missing, f"{column} has another checksum than its record", _REFILL)


# ---- records and artifacts


def _records(
    state: State, kind: PayloadKind, named: np.ndarray, checked: Checked, artifacts: set[int], *, everything: bool
) -> Iterator[None]:
    """Records have good CRCs and point into their artifacts: those that cells name, or all that were ever given."""
    payloads, where = state.maps[kind], str(state.maps[kind].path)
    if fault := mark_fault(payloads.mark_page()):
        checked.find("mark", fault, where, "start m17d once; the page is written again")
    for ids in _written_ids(payloads) if everything else _pieces(np.flatnonzero(named)):
        records = payloads.get_many(ids, check=False)
        checked.bytes += records.nbytes
        good = good_at(records, ids)
        used = named[ids] if everything else np.ones(len(ids), dtype=bool)
        checked.payloads += int(np.count_nonzero(good))
        checked.orphan_records += int(np.count_nonzero(good & ~used & (ids != NO_ROWS_ID)))
        # Ids that a crash skipped are zeros; behind the last clean close it may also have torn some, until next open.
        written = records.view(np.uint8).reshape(len(records), -1).any(axis=1) & (ids < payloads.clean_next_id)
        for payload_id in ids[~good & (used | written)][:_EXAMPLES_MAX].tolist():
            hint = "clear the cells that name it, if any; their engines fill them again"
            checked.find("record", f"{kind.word} record {payload_id} is damaged", f"{where} record {payload_id}", hint)
        _pointers(state, records, ids, good & used, where, checked, artifacts)
        yield


def _written_ids(payloads: PayloadMap) -> Iterator[np.ndarray]:
    for first, last in payloads.written():
        yield from _pieces(np.arange(first, last))


def _pieces(ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), _RECORDS_AT_ONCE):
        yield ids[start : start + _RECORDS_AT_ONCE]


def _pointers(
    state: State, records: Any, ids: np.ndarray, chosen: np.ndarray, where: str, checked: Checked, artifacts: set[int]
) -> None:
    chosen = chosen & (records["record_flags"] & RECORD_RETIRED == 0)
    ends = records["row_start"].astype(np.int64) + records["row_count"]
    for artifact_id in np.unique(records["artifact_id"][chosen]).tolist():
        mine = chosen & (records["artifact_id"] == artifact_id)
        if not artifact_id:
            mine &= (records["row_count"] > 0) & (records["record_flags"] & RECORD_NO_ROWS == 0)
            for payload_id in ids[mine][:_EXAMPLES_MAX].tolist():
                checked.find("record", "it has rows and no artifact", f"{where} record {payload_id}", _REFILL)
            continue
        artifacts.add(artifact_id)
        try:
            rows = state.artifacts.get(artifact_id).rows
        except LedgerError as error:
            checked.find("artifact", str(error), where, "restore maps/artifacts.map from a backup")
            continue
        if int(ends[mine].max()) > rows:
            checked.find("rows", f"records point behind row {rows} of artifact {artifact_id}", where, _REFILL)


def _artifact(state: State, artifact_id: int, checked: Checked) -> Iterator[None]:
    """The file is there, as long as it was, with the bytes that were written."""
    try:
        artifact = state.artifacts.get(artifact_id)
    except LedgerError:
        return
    path = state.artifact_root / artifact.uri
    checked.artifacts += 1
    hint = f"clear {artifact.column} of {artifact.session}; its engine makes the rows again"
    checksum = size = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_BYTES_AT_ONCE):
                checksum, size = zlib.crc32(piece, checksum), size + len(piece)
                checked.bytes += len(piece)
                yield
    except OSError as error:
        checked.find("artifact", f"it cannot be read: {error.strerror}", str(path), hint)
        return
    if size != artifact.bytes:
        checked.find("artifact", f"{size} bytes, {artifact.bytes} were written", str(path), hint)
    elif checksum != artifact.checksum:
        checked.find("artifact", "the checksum of its bytes does not fit", str(path), hint)


def _orphans(state: State, artifacts: set[int], checked: Checked) -> None:
    """Artifact files that no cell names."""
    known = {state.artifacts.get(one).uri for one in artifacts if one <= len(state.artifacts)}
    for path in sorted(state.artifact_root.rglob("*")):
        if path.is_file() and path.relative_to(state.artifact_root).as_posix() not in known:
            checked.orphan_files += 1
            checked.orphan_bytes += path.stat().st_size
