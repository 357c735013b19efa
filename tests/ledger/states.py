"""What the ledger's tests build on: a state that is copied, not made again, and cells that have good records."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ledger.check import Checked, Finding, verify
from ledger.columns import Column, PayloadKind, Source
from ledger.content import checksum_of, mix
from ledger.files import System
from ledger.records import blank
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
    subprocess.run(["cp", "-r", "--sparse=always", template, directory], check=True)
    return directory


def hashes(seed: int, count: int) -> np.ndarray:
    """u64[count], content hashes that differ by seed and position."""
    return mix(np.arange(count, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 17))


def append(state: State, kind: PayloadKind, content: np.ndarray) -> np.ndarray:
    """Append records without rows of some contents; their ids."""
    records = blank(kind, len(content))
    records["content_hash"] = content
    first = state.maps[kind].append(records)
    return np.arange(first, first + len(content))


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
                    cells[key] = (*fields, int(records["content_hash"][at]))
    return {
        "symbols": state.symbols.names(),
        "cells": cells,
        "sources": state.sources.all(),
        "regions": [msgspec.structs.replace(one, created_ns=0) for one in state.regions.list(everything=True)],
        "activations": state.regions.activations,
        "artifacts": [artifact.uri for artifact in state.artifacts.all()],
        "undo": list_undo(state.directory, state.system),
        "audit": [(one.op, one.cause) for one in state.audit.tail(1000) if one.op != "recovery"],
        "files": sorted(path.name for path in state.artifact_root.rglob("*") if path.is_file()),
    }


def content_of(directory: Path) -> dict[str, Any]:
    """What a closed state says once it was opened for writing, and recovered."""
    with open_state(directory, flush_interval_s=3600) as state:
        return content(state)
