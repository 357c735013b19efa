"""What the ledger's tests build on: a state that is copied, not made again, and cells that have good records."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ledger.check import Checked, Finding, verify
from ledger.columns import Column, PayloadKind, Source
from ledger.content import checksum_of, mix
from ledger.files import System, write_atomically
from ledger.maps import Artifact
from ledger.records import RECORD_RETIRED, blank
from ledger.state import State, create_state, open_state
from ledger.undo import list_undo

SESSION = "2013-10-07"
EARLY_CLOSE = "2013-11-29"
SYMBOLS = ["AIG", "TWX", "O:TWX", "SPY"]


def make_template(directory: Path) -> Path:
    """A state of 2013 with a few symbols; made once a run, because its calendar takes half a second."""
    create_state(directory, year=2013)
    with open_state(directory) as state:
        state.allocate(SYMBOLS)
    return directory


def in_memory() -> Path | None:
    """A folder where a sync costs nothing, for tests that open many states; None where there is none."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None


def copied(template: Path, directory: Path) -> Path:
    """A copy of a closed state; holes stay holes."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", "--sparse=always", template, directory], check=True)
    return directory


def hashes(seed: int, count: int) -> np.ndarray:
    """u64[count], content hashes that differ by seed and position."""
    return mix(np.arange(count, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 17))


def append(state: State, kind: PayloadKind, content: np.ndarray, artifact_id: int = 0) -> np.ndarray:
    """Append records of some contents, with one row each of an artifact or without rows; their ids."""
    records = blank(kind, len(content))
    records["content_hash"] = content
    if artifact_id:
        records["artifact_id"] = artifact_id
        records["row_start"], records["row_count"] = np.arange(len(content)), 1
    first = state.maps[kind].append(records)
    return np.arange(first, first + len(content))


def write_rows(state: State, name: str) -> bytes:
    """A file beside the artifacts, on disk; what it holds."""
    data = name.encode()
    write_atomically(state.system, state.artifact_root / name, data)
    return data


def add_rows(state: State, name: str, rows: int, *, session: str = SESSION) -> int:
    """An artifact of quotes with so many rows, on disk and in artifacts.map; its id, that of an earlier call's too."""
    known = state.artifacts.by_uri(name)
    if known is not None:
        return known.artifact_id
    data = write_rows(state, name)
    artifact = Artifact(
        artifact_id=0, uri=name, checksum=zlib.crc32(data), bytes=len(data), rows=rows, column="quote_ref",
        session=session, engine="test",
    )  # fmt: skip
    return state.artifacts.append(artifact).artifact_id


def put(state: State, column: Column, symbol_ids: Any, minute_idx: Any, seed: int, **named: Any) -> np.ndarray:
    """Fill cells with new records; their checksums."""
    content = hashes(seed, len(symbol_ids))
    ids = append(state, column.payload_kind, content)
    sums = checksum_of(content)
    named.setdefault("source", Source.FLAT_FILE)
    symbols, minutes = np.asarray(symbol_ids), np.asarray(minute_idx)
    state.ledger_of(column).set(column, symbols, minutes, column.payload_kind, ids, sums, **named)
    return sums


def first_minute(state: State, session: str = SESSION) -> int:
    """minute_idx of a session's first window."""
    return state.calendar.session_seq(session) * 390


def findings(directory: Path, system: System | None = None) -> list[Finding]:
    """What the checker finds in a closed state, without repairing it."""
    with open_state(directory, readonly=True, lock=True, system=system) as state:
        return findings_of(state)


def findings_of(state: State) -> list[Finding]:
    """What the checker finds in an open state."""
    checked = Checked()
    for _ in verify(state, checked):
        pass
    return checked.findings


def content(state: State) -> dict[str, Any]:
    """What a state says, without ids, clocks and places in files: equal before and after whatever must change nothing."""
    cells: dict[tuple[str, str, int], tuple[Any, ...]] = {}
    for ledger in (state.trade, state.enrichment):
        for seq in ledger.existing():
            rows = ledger.session(seq)
            for column in rows.columns:
                symbols, minutes = np.nonzero(rows.status[rows.column_index(column), : rows.symbols_end])
                slots = rows.slots(column, symbols, minutes)
                records = state.maps[column.payload_kind].get_many(slots["payload_id"])
                for at, slot in enumerate(slots):
                    key = (column.value, state.symbols.name(int(symbols[at])), seq * 390 + int(minutes[at]))
                    fields = [
                        int(slot[name]) for name in ("status", "source", "flags", "version", "checksum", "inputs")
                    ]
                    retired = bool(records["record_flags"][at] & RECORD_RETIRED)
                    cells[key] = (*fields, int(records["content_hash"][at]), retired)
    return {
        "symbols": state.symbols.names(),
        "cells": cells,
        "sources": state.sources.all(),
        "regions": [msgspec.structs.replace(one, created_ns=0) for one in state.regions.list(everything=True)],
        "activations": state.regions.activations,
        "artifacts": [artifact.uri for artifact in state.artifacts.all()],
        "undo": list_undo(state.directory, state.system),
        "audit": [(one.op, one.cause) for one in state.audit.tail(1000) if one.op != "recovery"],
        "files": sorted(
            path.name for path in state.artifact_root.rglob("*") if path.is_file() and path.suffix != ".tmp"
        ),
    }


def content_of(directory: Path) -> dict[str, Any]:
    """What a closed state says once it was opened for writing, and recovered."""
    with open_state(directory, flush_interval_s=3600) as state:
        return content(state)
