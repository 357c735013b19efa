"""Collection and retirement: what is removed is named by nothing on disk either, whenever the power goes."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ledger.collection import Collected, collect
from ledger.columns import Column, PayloadKind, Status
from ledger.content import checksum_of
from ledger.errors import StateFull
from ledger.records import RECORD_RETIRED
from ledger.state import State, open_state
from tests.ledger.powercut import Disk
from tests.ledger.states import SESSION, add_rows, append, findings, first_minute, hashes

OLD_NS = 1 << 62
"""Everything is older."""
CUTS = 40


@pytest.fixture
def disk(directory: Path) -> Disk:
    """The disk under the state's folder."""
    return Disk(directory.parent)


@pytest.fixture
def held(directory: Path, disk: Disk) -> Iterator[State]:
    """A state on that disk, which syncs only when it is asked."""
    with open_state(directory, system=disk, flush_interval_s=3600) as state:
        yield state


def fill_quotes(state: State, name: str, seed: int) -> np.ndarray:
    """Ten quotes with a row each of a new artifact; their payload ids."""
    contents = hashes(seed, 10)
    ids = append(state, PayloadKind.QUOTE, contents, add_rows(state, name, 10))
    minutes = first_minute(state) + np.arange(10)
    # No cell is set before its record is on disk, as in a commit.
    state.maps[PayloadKind.QUOTE].sync()
    state.trade.set_quote_ref(np.zeros(10, int), minutes, PayloadKind.QUOTE, ids, checksum_of(contents))
    return ids


def gc(state: State, **named: object) -> Collected:
    """Collect everything that may go."""
    result = Collected()
    arguments: dict[str, object] = {"older_than_ns": OLD_NS, "current_prefix": "x", "dry_run": False, **named}
    for _ in collect(state, result=result, **arguments):  # type: ignore[arg-type]
        pass
    return result


def every_cut_verifies(disk: Disk, folder: Path, state: State) -> None:
    """Whatever the disk may hold now is a sound state once it was opened."""
    chance = random.Random(7)
    for number in range(CUTS):
        image = folder / f"image{number}"
        disk.cut(image, chance)
        with open_state(image / state.directory.name) as left:
            for seq in left.trade.existing():
                left.trade.session(seq)
        assert findings(image / state.directory.name) == [], number
        shutil.rmtree(image)


def test_a_file_that_rows_on_disk_still_name_is_not_removed(
    held: State, disk: Disk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cells that were set anew a moment ago, unsynced: a cut brings the old ones back, and their rows must be there."""
    fill_quotes(held, "old.parquet", 1)
    held.make_durable(120)
    fill_quotes(held, "new.parquet", 2)
    assert gc(held).files == 1
    every_cut_verifies(disk, tmp_path_factory.mktemp("cuts"), held)


def test_rows_that_went_by_age_are_named_by_no_record_on_disk(
    held: State, disk: Disk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nor by the records that older cells on disk name."""
    fill_quotes(held, "old.parquet", 1)
    held.make_durable(120)
    ids = fill_quotes(held, "new.parquet", 2)
    result = gc(held, retire_sessions=(SESSION,))
    assert (result.retired_files, result.retired_records, result.files) == (1, 10, 1)
    assert (held.maps[PayloadKind.QUOTE].get_many(ids)["record_flags"] & RECORD_RETIRED).all()
    rows = held.trade.session(held.calendar.session_seq(SESSION))
    assert (rows.status[rows.column_index(Column.QUOTE_REF), 0, :10] == Status.FILLED).all()
    every_cut_verifies(disk, tmp_path_factory.mktemp("cuts"), held)


@pytest.mark.parametrize("retired", [(), (SESSION,)])
def test_nothing_is_removed_while_the_disk_is_too_full_to_sync(
    held: State, disk: Disk, retired: tuple[str, ...]
) -> None:
    """The collection says so instead of waiting for ever; when there is room again it removes what it would have."""
    fill_quotes(held, "old.parquet", 1)
    held.make_durable(120)
    fill_quotes(held, "new.parquet", 2)
    disk.refuse = lambda call, path: errno.ENOSPC if call == "fdatasync" and path.endswith((".rows", ".map")) else 0
    with pytest.raises(StateFull, match="fdatasync"):
        gc(held, retire_sessions=retired)
    assert sorted(path.name for path in held.artifact_root.iterdir()) == ["new.parquet", "old.parquet"]
    disk.refuse = lambda _call, _path: 0
    assert gc(held, retire_sessions=retired).files == 1 + bool(retired)


def test_a_dry_run_syncs_nothing(held: State, disk: Disk) -> None:
    """It only counts."""
    fill_quotes(held, "old.parquet", 1)
    held.make_durable(120)
    fill_quotes(held, "new.parquet", 2)
    synced: list[str] = []
    disk.moment = lambda call: synced.append(call) if call == "fdatasync" else None
    assert gc(held, dry_run=True).files == 1
    assert synced == []
    assert sorted(path.name for path in held.artifact_root.iterdir()) == ["new.parquet", "old.parquet"]
