"""
Collection: which artifacts nothing names any more, and their removal, in short steps.

An artifact is named by a filled cell, by the slots that a kept undo holds, or by being younger than the retention. The
files of a backup in progress are kept by not collecting meanwhile. This module must never remove what a cell names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ledger.columns import Column, PayloadKind, Status
from ledger.errors import from_os_error
from ledger.state import State
from ledger.undo import list_undo, read_undo

DAY_NS: Final = 24 * 3600 * 10**9


@dataclass(slots=True)
class Collected:
    """Artifact files that nothing names: how many, their bytes, which, and how many are in artifacts.map."""

    files: int = 0
    bytes: int = 0
    records: int = 0
    paths: list[Path] = field(default_factory=list)


def named_artifacts(state: State) -> Iterator[set[int] | None]:
    """The ids of artifacts that a cell or a kept undo names; yields None between steps and the set last."""
    named: set[int] = set()
    for ledger in (state.trade, state.enrichment):
        for seq in ledger.existing():
            rows = ledger.session(seq)
            for column in rows.columns:
                index = rows.column_index(column)
                symbols, minutes = np.nonzero(rows.status[index] == Status.FILLED)
                for start in range(0, len(symbols), 1 << 16):
                    part = slice(start, start + (1 << 16))
                    ids = rows.slots(column, symbols[part], minutes[part])["payload_id"]
                    named.update(_artifacts_of(state, column.payload_kind, ids))
                    yield None
    for operation in list_undo(state.directory, state.system):
        kept = read_undo(state.directory, state.system, operation)
        for index in np.unique(kept.column):
            kind = list(Column)[int(index)].payload_kind
            named.update(_artifacts_of(state, kind, kept.slots["payload_id"][kept.column == index]))
        yield None
    yield named


def _artifacts_of(state: State, kind: PayloadKind, payload_ids: np.ndarray) -> list[int]:
    found: list[int] = np.unique(state.maps[kind].get_many(np.unique(payload_ids))["artifact_id"]).tolist()
    return found


def collect(
    state: State, *, older_than_ns: int, current_prefix: str, dry_run: bool, result: Collected
) -> Iterator[None]:
    """
    Remove artifact files that nothing names and that are older than a time; yields between short steps.

    Args:
        older_than_ns: files changed after it stay, because a batch in work or a superseded window may want them.
        current_prefix: files whose names begin so belong to this daemon start and may be in work.
        dry_run: only count.

    Raises:
        SpaceError: the file system refused; what was removed is counted.
    """
    named: set[int] = set()
    for step in named_artifacts(state):
        if step is None:
            yield
        else:
            named = step
    uris = {state.artifacts.get(artifact_id).uri for artifact_id in named if artifact_id}
    for folder, _, names in sorted(os.walk(state.artifact_root)):
        for name in sorted(names):
            path = Path(folder) / name
            uri = path.relative_to(state.artifact_root).as_posix()
            if uri in uris:
                continue
            # What an earlier start left without recording it will never be named.
            left_behind = state.artifacts.by_uri(uri) is None and not name.lstrip(".").startswith(current_prefix)
            _remove(state, path, uri, None if left_behind else older_than_ns, dry_run=dry_run, result=result)
        yield


def _remove(state: State, path: Path, uri: str, older_than_ns: int | None, *, dry_run: bool, result: Collected) -> None:
    try:
        status = path.stat()
        if older_than_ns is not None and status.st_mtime_ns >= older_than_ns:
            return
        result.files += 1
        result.bytes += status.st_size
        result.paths.append(path)
        artifact = state.artifacts.by_uri(uri)
        result.records += 0 if artifact is None else 1
        if not dry_run:
            path.unlink()
    except OSError as error:
        raise from_os_error(error, "unlink", path) from error
