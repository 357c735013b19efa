"""
The checker: walks every slot, record, artifact, plane and count of a state and says what is wrong, where, and what to do.

It yields between short steps, so that a daemon can run it between requests. What nothing names (orphans) is counted and
is no finding. This module must never repair anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ledger.columns import MINUTES_PER_SESSION, Flag, PayloadKind, Status
from ledger.errors import LedgerError
from ledger.frames import file_checksum
from ledger.layout import seals
from ledger.ledgers import Ledger
from ledger.records import RECORD_NO_ROWS, RECORD_RETIRED
from ledger.rows import SessionRows
from ledger.state import State

_SYMBOLS_AT_ONCE = 16
_FLAGS_KNOWN = int(Flag.NO_ROWS | Flag.WANTED | Flag.PARTIAL | Flag.SHORT | Flag.SUSPECT)
_SHIFT = np.uint64(32)
_EXAMPLES_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: a code, a sentence, the place, and what the operator can do."""

    code: str
    message: str
    where: str
    hint: str


@dataclass(slots=True)
class Checked:
    """What was walked, what was found, and what nothing names."""

    slots: int = 0
    payloads: int = 0
    artifacts: int = 0
    orphan_files: int = 0
    orphan_bytes: int = 0
    orphan_records: int = 0
    findings: list[Finding] = field(default_factory=list)

    def find(self, code: str, message: str, where: str, hint: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(code, message, where, hint))


def verify(state: State, checked: Checked, session: str | None = None) -> Iterator[None]:
    """
    Walk one session, or everything; yields between short steps.

    Args:
        checked: filled as the walk goes on.
        session: ``YYYY-MM-DD``; None for all sessions, and then orphans and the small files too.
    """
    named: dict[PayloadKind, set[int]] = {kind: set() for kind in state.maps}
    seqs = None if session is None else {state.calendar.session_seq(session)}
    for ledger in (state.trade, state.enrichment):
        for seq in ledger.existing():
            if seqs is None or seq in seqs:
                yield from _session(state, ledger, seq, checked, named)
    artifacts: set[int] = set()
    for kind, ids in named.items():
        yield from _records(state, kind, ids, checked, artifacts)
    for artifact_id in sorted(artifacts):
        _artifact(state, artifact_id, checked)
        yield
    if session is None:
        _orphans(state, artifacts, checked)
        yield
        for broken in state.audit.verify():
            checked.find("audit", str(broken), "audit", "keep the log; an edit of it cannot be undone")


def _session(
    state: State, ledger: Ledger, seq: int, checked: Checked, named: dict[PayloadKind, set[int]]
) -> Iterator[None]:
    where = str(ledger.path(seq))
    try:
        rows = ledger.session(seq)
    except LedgerError as error:
        checked.find(error.code, str(error), where, error.hint)
        return
    counts = np.zeros_like(rows.counts_status)
    used = np.flatnonzero(rows.reserved)
    for start in range(0, len(used), _SYMBOLS_AT_ONCE):
        for symbol_id in used[start : start + _SYMBOLS_AT_ONCE].tolist():
            counts += _block(state, rows, symbol_id, where, checked, named)
        yield
    if (counts != rows.counts_status).any():
        hint = "restart m17d; counts are made anew from the rows"
        checked.find("counts", "the counts of statuses differ from a scan of the rows", where, hint)


def _block(
    state: State, rows: SessionRows, symbol_id: int, where: str, checked: Checked, named: dict[PayloadKind, set[int]]
) -> np.ndarray:
    words = rows.read_blocks(symbol_id, symbol_id + 1)[0]
    minutes = rows.place.minutes
    place = f"{where} symbol_id {symbol_id}"
    if symbol_id >= len(state.symbols):
        checked.find(
            "symbol", "the block belongs to a symbol that has no id", place, "restore symbol-map.bin from a backup"
        )
    if (words[:, :4] != rows.headers(np.array([symbol_id]))[0]).any():
        checked.find(
            "header", "row headers differ from the calendar", place, "reopen the session; headers are written anew"
        )
    counts = np.zeros_like(rows.counts_status)
    for index, column in enumerate(rows.columns):
        slots = words[:, 4 + 4 * index : 8 + 4 * index]
        checked.slots += minutes
        status = (slots[:, 0] >> np.uint64(8) & np.uint64(0xFF)).astype(np.int64)
        flags = (slots[:, 0] >> np.uint64(24) & np.uint64(0xFF)).astype(np.int64)
        ids = (slots[:, 0] >> _SHIFT).astype(np.int64)
        kind = (slots[:, 0] & np.uint64(0xFF)).astype(np.int64)
        broken = seals(slots) != slots[:, 3] >> _SHIFT
        wrong = ~broken & ((status > Status.CLEARED) | (flags & ~_FLAGS_KNOWN != 0))
        filled = ~broken & (status == Status.FILLED)
        wrong |= filled & ((ids == 0) | (kind != column.payload_kind))
        wrong |= ~broken & (status != Status.FILLED) & (ids != 0)
        for code, mask in (("seal", broken), ("slot", wrong)):
            for minute in np.flatnonzero(mask)[:_EXAMPLES_MAX].tolist():
                text = f"{column}: " + ("the seal is broken" if code == "seal" else "the fields contradict each other")
                checked.find(code, text, f"{place} minute {minute}", "clear the cell; its engine fills it again")
        if (rows.status[index, symbol_id, ~broken] != status[~broken]).any():
            checked.find(
                "plane", f"{column}: the plane differs from the rows", place, "restart m17d; planes are derived"
            )
        _checksums(state, rows, index, filled, slots, place, checked)
        named[column.payload_kind].update(ids[filled].tolist())
        sound = np.where(broken, 0, np.minimum(status, 3))[:minutes]
        counts[index] = np.bincount(sound, minlength=4)
    return counts


def _checksums(
    state: State,
    rows: SessionRows,
    index: int,
    filled: np.ndarray,
    slots: np.ndarray,
    place: str,
    checked: Checked,
) -> None:
    """A filled cell's record exists, and its content hash begins with the slot's checksum."""
    column = rows.columns[index]
    at = np.flatnonzero(filled)
    if not len(at):
        return
    records = state.maps[column.payload_kind].get_many((slots[at, 0] >> _SHIFT).astype(np.int64))
    missing = records["schema_version"] == 0
    differs = ~missing & ((records["content_hash"] >> _SHIFT) != (slots[at, 1] >> _SHIFT))
    for mask, text in ((missing, "names no record"), (differs, "has another checksum than its record")):
        for minute in at[mask][:_EXAMPLES_MAX].tolist():
            hint = "clear the cell; its engine fills it again"
            checked.find("dangling", f"{column} {text}", f"{place} minute {minute % MINUTES_PER_SESSION}", hint)


def _records(state: State, kind: PayloadKind, ids: set[int], checked: Checked, artifacts: set[int]) -> Iterator[None]:
    """Every named record has a good CRC, and points into its artifact."""
    payloads = state.maps[kind]
    ordered = np.array(sorted(ids), dtype=np.int64)
    for start in range(0, len(ordered), 2048):
        some = ordered[start : start + 2048]
        records, good = payloads.get_many(some), payloads.good(some)
        checked.payloads += len(some)
        for payload_id in some[~good][:_EXAMPLES_MAX].tolist():
            hint = "clear the cells that name it; their engines fill them again"
            checked.find("record", f"{kind.word} record {payload_id} is damaged", str(payloads.path), hint)
        retired = records["record_flags"] & RECORD_RETIRED != 0
        pointing = good & ~retired & (records["artifact_id"] > 0)
        ends = records["row_start"].astype(np.int64) + records["row_count"]
        for artifact_id in np.unique(records["artifact_id"][pointing]).tolist():
            mine = pointing & (records["artifact_id"] == artifact_id)
            artifacts.add(artifact_id)
            try:
                rows = state.artifacts.get(artifact_id).rows
            except LedgerError as error:
                checked.find("artifact", str(error), f"{payloads.path}", "restore maps/artifacts.map from a backup")
                continue
            if int(ends[mine].max()) > rows:
                text = f"{kind.word} records point behind row {rows} of artifact {artifact_id}"
                checked.find("rows", text, str(payloads.path), "clear the cells that name them")
        lost = good & ~retired & (records["artifact_id"] == 0) & (records["row_count"] > 0)
        lost &= records["record_flags"] & RECORD_NO_ROWS == 0
        for payload_id in some[lost][:_EXAMPLES_MAX].tolist():
            checked.find(
                "record", f"{kind.word} record {payload_id} has rows and no artifact", str(payloads.path), "clear it"
            )
        yield


def _artifact(state: State, artifact_id: int, checked: Checked) -> None:
    try:
        artifact = state.artifacts.get(artifact_id)
    except LedgerError:
        return
    path = state.artifact_root / artifact.uri
    checked.artifacts += 1
    hint = f"clear {artifact.column} of {artifact.session}; its engine makes the rows again"
    if not path.exists():
        checked.find("artifact", "the file is missing", str(path), hint)
    elif path.stat().st_size != artifact.bytes:
        checked.find("artifact", f"{path.stat().st_size} bytes, {artifact.bytes} were written", str(path), hint)
    elif file_checksum(path) != artifact.checksum:
        checked.find("artifact", "the checksum of its bytes does not fit", str(path), hint)


def _orphans(state: State, artifacts: set[int], checked: Checked) -> None:
    """Files and artifact records that no cell names."""
    known = {state.artifacts.get(one).uri for one in artifacts if one <= len(state.artifacts)}
    for path in sorted(state.artifact_root.rglob("*")):
        if path.is_file() and path.relative_to(state.artifact_root).as_posix() not in known:
            checked.orphan_files += 1
            checked.orphan_bytes += path.stat().st_size
    checked.orphan_records = len(state.artifacts) - len(artifacts)
