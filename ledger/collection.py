"""
Collection: which artifacts nothing names any more, and their removal, in short steps.

An artifact is named by a filled cell whose record has its rows, by the slots that a kept undo holds, or by a batch in
work; what nothing names is kept until its file is as old as the retention. Before the first file goes, everything is
synced: rows on disk that are older than those in memory may still name it, and a power cut would bring them back. The
files of a backup in progress are kept by not collecting meanwhile. Undos that are as old as the retention are forgotten
first; while it goes on no other may be, or a cell that comes back would be missed. This module must never remove what a
cell names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ledger.columns import Column, PayloadKind, Status
from ledger.errors import from_os_error
from ledger.ledgers import Ledger
from ledger.records import RECORD_RETIRED
from ledger.retention import Retired, retire
from ledger.state import State
from ledger.undo import OPEN_FOLDER, UndoReader, list_undo, remove_undo, undo_path

DAY_NS: Final = 24 * 3600 * 10**9
_SYMBOLS_AT_ONCE: Final = 8
_SHIFT: Final = np.uint64(32)


@dataclass(slots=True)
class Collected:
    """
    Artifact files that nothing names: how many, their bytes, which, and how many are in artifacts.map.

    ``retired`` counts apart what lost its rows by age: files, bytes, and the records that were marked.
    """

    files: int = 0
    bytes: int = 0
    records: int = 0
    paths: list[Path] = field(default_factory=list)
    retired_files: int = 0
    retired_bytes: int = 0
    retired_records: int = 0
    undos: int = 0
    """Operations that were too old to be undone any more, and are forgotten."""


def named_artifacts(state: State, forgotten: Collection[str] = ()) -> Iterator[set[int] | None]:
    """
    The ids of artifacts that a cell or a kept undo names; yields None between steps and the set last.

    Args:
        forgotten: operations whose undo counts as gone.
    """
    named: set[int] = set()
    for ledger in (state.trade, state.enrichment):
        for seq in ledger.existing():
            for ids in _named_by_cells(state, ledger, seq):
                named.update(ids)
                yield None
    # Kept undos last: what a clear took away meanwhile is there, if it was not seen in the rows.
    for operation in list_undo(state.directory, state.system):
        if operation in forgotten:
            continue
        with UndoReader(state.directory, state.system, operation) as reader:
            for _ in reader.check():
                yield None
            # The undo of a refresh takes a mark away and gives no payload back.
            for kept in reader.pieces() if reader.facts.get("op") != "refresh" else ():
                for index in np.unique(kept.column):
                    kind = list(Column)[int(index)].payload_kind
                    named.update(_artifacts_of(state, kind, kept.slots["payload_id"][kept.column == index]))
                yield None
    yield named


def _forget_undos(state: State, older_than_ns: int, *, dry_run: bool) -> set[str]:
    """Operations whose undo is older than a time, forgotten; those that have come to no end yet stay."""
    old = set()
    for operation in list_undo(state.directory, state.system):
        path = undo_path(state.directory, operation)
        if _status(path).st_mtime_ns < older_than_ns and not (state.directory / OPEN_FOLDER / operation).exists():
            old.add(operation)
            if not dry_run:
                remove_undo(state.directory, state.system, operation)
    return old


def _named_by_cells(state: State, ledger: Ledger, seq: int) -> Iterator[list[int]]:
    """Artifacts by the slots as they are in the file, sound or not, so that no session has to be mapped for this."""
    with ledger.look(seq) as rows:
        if rows is None:
            return
        for first, last in rows.data_blocks():
            for start in range(first, last, _SYMBOLS_AT_ONCE):
                words = rows.read_blocks(start, min(start + _SYMBOLS_AT_ONCE, last))[0]
                for index, column in enumerate(rows.columns):
                    head = words[..., 4 + 4 * index]
                    filled = head >> np.uint64(8) & np.uint64(0xFF) == np.uint64(Status.FILLED)
                    yield _artifacts_of(state, column.payload_kind, head[filled] >> _SHIFT)


def _artifacts_of(state: State, kind: PayloadKind, payload_ids: np.ndarray) -> list[int]:
    records = state.maps[kind].get_many(np.unique(payload_ids))
    rowed = records["record_flags"] & RECORD_RETIRED == 0
    found: list[int] = np.unique(records["artifact_id"][rowed]).tolist()
    return found


def collect(
    state: State,
    *,
    older_than_ns: int,
    current_prefix: str,
    dry_run: bool,
    result: Collected,
    retire_sessions: Collection[str] = (),
    in_work: Callable[[], Collection[str]] = tuple,
) -> Iterator[None]:
    """
    Remove artifact files that nothing names and that are older than a time; yields between short steps.

    Args:
        older_than_ns: files changed after it stay, because somebody may still read a superseded window; what was taken
            before it can be undone no more.
        current_prefix: files whose names begin so belong to this daemon start and may be in work.
        dry_run: only count.
        retire_sessions: their quotes lose their rows first; see :mod:`ledger.retention`.
        in_work: URIs of artifacts that a batch brought whose cells are not set yet; asked when files are removed.

    Raises:
        SpaceError: the file system refused, or had no room to sync; what was removed is counted.
    """
    forgotten = _forget_undos(state, older_than_ns, dry_run=dry_run)
    result.undos = len(forgotten)
    yield
    retired = Retired()
    yield from retire(state, retire_sessions, retired, dry_run=dry_run)
    result.retired_records = retired.records
    named: set[int] = set()
    for step in named_artifacts(state, forgotten):
        if step is None:
            yield
        else:
            named = step
    if not dry_run:
        yield from state.until_durable()
    by_age = {state.artifacts.get(artifact_id).uri for artifact_id in retired.artifacts}
    uris = {state.artifacts.get(artifact_id).uri for artifact_id in named if artifact_id} - by_age
    for folder, _, names in sorted(os.walk(state.artifact_root)):
        uris.update(in_work())
        for name in sorted(names):
            path = Path(folder) / name
            uri = path.relative_to(state.artifact_root).as_posix()
            is_known, is_ours = state.artifacts.by_uri(uri) is not None, name.lstrip(".").startswith(current_prefix)
            # What a worker of this start is about to hand in is in no list yet; a later start finds it left behind.
            if uri in uris or (is_ours and not is_known):
                continue
            age = older_than_ns if is_known and uri not in by_age else None
            _remove(state, path, uri, age, dry_run=dry_run, result=result, by_age=uri in by_age)
        yield


def _remove(
    state: State, path: Path, uri: str, older_than_ns: int | None, *, dry_run: bool, result: Collected, by_age: bool
) -> None:
    status = _status(path)
    if older_than_ns is not None and status.st_mtime_ns >= older_than_ns:
        return
    if not dry_run:
        state.system.unlink(path)
    if by_age:
        result.retired_files += 1
        result.retired_bytes += status.st_size
        return
    result.files += 1
    result.bytes += status.st_size
    result.paths.append(path)
    result.records += state.artifacts.by_uri(uri) is not None


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise from_os_error(error, "stat", path) from error
