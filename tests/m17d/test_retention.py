"""Collection through the daemon: what it removes, what it must keep, and quotes whose rows went by age."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ledger
from ledger.columns import Column
from ledger.digests import session_digest
from ledger.errors import RowsRetired
from m17ctl.client import Client
from m17ctl.errors import RemoteFailure
from m17d import outcomes, protocol, replies
from m17d.envelopes import join_pieces
from tests import filled_state
from tests.filled_state import SESSION
from tests.m17d.test_daemon import start, wait_for

pytestmark = filled_state.needs_data
RETENTION = "[retention]\nsuperseded_days = 1\nquotes_days = 30\n"
DAY = protocol.Range(session=SESSION)
QUOTES, SIDES = [Column.QUOTE_REF], [Column.AGGRESSOR_REF]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon over a filled session of years ago, whose quotes are past their days."""
    target = filled_state.copy_of(
        filled_state.filled(tmp_path_factory), tmp_path_factory.mktemp("retention"), extra=RETENTION
    )
    process = start(target)
    wait_for(process, target, "serving on", timeout_s=120)
    yield target
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    """A client of the daemon."""
    with Client(folder / "ledger.state" / "m17d.sock", timeout_s=120) as one:
        yield one


def quotes_on_disk(folder: Path) -> list[Path]:
    """Artifacts of quotes."""
    return sorted((folder / "ledger.state" / "artifacts" / "quote").rglob("*.parquet"))


def digest(folder: Path) -> object:
    """The session's digest, by another process's eyes."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        return list(session_digest(state, SESSION))[-1]


def why(client: Client, columns: list[Column], **range_: object) -> dict[str, replies.Cause]:
    """Causes of some cells."""
    asked = protocol.Range(session=SESSION, **range_)  # type: ignore[arg-type]
    reply = client.call(protocol.WhyRequest(columns=columns, range=asked))
    return {group.cause: group for group in reply.groups}


def counts(client: Client) -> dict[Column, replies.Counts]:
    """Coverage by column."""
    reply = client.call(protocol.CoverageRequest(session=SESSION))
    assert isinstance(reply, replies.CoverageReply)
    return reply.columns


def gc(client: Client, **fields: bool) -> outcomes.GcReply:
    """Collect."""
    reply = client.call(protocol.GcRequest(**fields))
    assert isinstance(reply, outcomes.GcReply)
    return reply


def eventually_whole(client: Client, columns: list[Column], range_: protocol.Range) -> None:
    """Wait until the columns are whole there."""
    end = time.monotonic() + 240
    while not (reply := client.call(protocol.WaitRequest(columns=columns, range=range_))).whole:
        assert time.monotonic() < end, reply
        time.sleep(0.1)


def test_undo_keeps_quotes_from_going_by_age(client: Client, folder: Path) -> None:
    """What a kept undo would give back keeps its rows; undone, they go with the next collection."""
    client.call(protocol.EnginesControlRequest(engine="quote", action="pause"))
    chosen = protocol.Range(session=SESSION, symbols="AAPL", from_ts="10:00", to_ts="10:01")
    taken = client.call(protocol.ClearRequest(columns=QUOTES, range=chosen, cause="test"))
    before = quotes_on_disk(folder)
    assert gc(client, dry_run=True).retired.files < len(before)
    gc(client)
    kept = quotes_on_disk(folder)
    assert kept
    undone = client.call(protocol.UndoRequest(operation=taken.operation, cause="test"))
    assert undone.restored == {Column.QUOTE_REF: 1}
    row = client.call(protocol.RowRequest(symbol="AAPL", at="10:00", session=SESSION, payload=True))
    uri = row.slots[Column.QUOTE_REF].payload["artifact_uri"]
    assert (folder / "ledger.state" / "artifacts" / uri.partition("#")[0]).exists()
    client.call(protocol.EnginesControlRequest(engine="quote", action="resume"))


def test_quotes_go_by_age_and_everything_else_stays(client: Client, folder: Path) -> None:
    """Cells, digest and freshness are as before; the reply of a dry run says what the collection then does."""
    before, seen = counts(client), digest(folder)
    assert quotes_on_disk(folder)
    planned = gc(client, dry_run=True)
    assert quotes_on_disk(folder)
    done = gc(client)
    assert quotes_on_disk(folder) == []
    assert (planned.retired.files, planned.retired.records) == (done.retired.files, done.retired.records)
    assert done.retired.records > 0
    assert gc(client).retired.files == 0
    after = counts(client)
    assert after == before
    assert after[Column.AGGRESSOR_REF].stale == after[Column.GREEKS_REF].stale == 0
    assert digest(folder) == seen
    heard: list[outcomes.Progress] = []
    found = client.call(protocol.VerifyRequest(), on_progress=heard.append)
    assert found.findings == []
    assert found.orphans.files == 0
    size = sum(path.stat().st_size for path in (folder / "ledger.state" / "artifacts").rglob("*.parquet"))
    assert found.bytes > size and found.seconds > 0
    assert heard and all(one.unit == "bytes" and 0 < one.done <= one.total for one in heard)
    last = client.call(protocol.AuditRequest(tail=2)).records
    assert [record["op"] for record in last] == ["gc", "gc"]


def test_every_reader_says_that_the_rows_went_by_age(client: Client, folder: Path) -> None:
    """``row``, ``why``, ``lineage``, ``export`` and ``scan``, each in its way; other columns are read as ever."""
    row = client.call(protocol.RowRequest(symbol="AAPL", at="10:00", session=SESSION, payload=True))
    cell = row.slots[Column.QUOTE_REF]
    assert cell.status == "filled"
    assert (cell.payload["retired"], cell.payload["artifact_uri"]) == (True, None)
    assert cell.payload["nbbo_sample_count"] > 0
    causes = why(client, QUOTES)
    assert causes["retired"].cells > 0
    assert causes["retired"].remedy.startswith("m17ctl refill quote_ref")
    lineage = client.call(protocol.LineageRequest(symbol="AAPL", at="10:00", session=SESSION, column="aggressor_ref"))
    quotes = [one for one in lineage.cell.inputs if one.column is Column.QUOTE_REF]
    assert quotes
    assert all(one.retired and not one.artifact_uri and one.record_count for one in quotes)
    assert lineage.complete
    with pytest.raises(RemoteFailure) as refused:
        join_pieces(list(client.stream(protocol.ExportRequest(column=Column.QUOTE_REF, range=DAY))))
    assert (refused.value.code, refused.value.exit_code) == ("rows_retired", 6)
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        with pytest.raises(RowsRetired, match=SESSION):
            state.scan("quote_ref", sessions=SESSION)
        assert state.scan("trade_ref", symbols="AAPL", sessions=SESSION).collect().height > 0


def test_cells_that_only_such_quotes_could_make_again_are_not_cleared_lightly(client: Client) -> None:
    """Sides and Greeks would be lost; aggregates are made from these and can be made again."""
    chosen = protocol.Range(session=SESSION, symbols="AAPL", from_ts="10:00", to_ts="10:05")
    with pytest.raises(RemoteFailure) as refused:
        client.call(protocol.ClearRequest(columns=SIDES, range=chosen, cause="test"))
    assert refused.value.code == "would_lose_data"
    dry = client.call(protocol.ClearRequest(columns=SIDES, range=chosen, cause="test", dry_run=True))
    assert dry.refillable.none == dry.cleared[Column.AGGRESSOR_REF] == 5
    dry = client.call(protocol.ClearRequest(columns=[Column.AGGS_1M], range=chosen, cause="test", dry_run=True))
    assert dry.refillable.none == 0


def test_quotes_are_read_again_when_somebody_wants_them(client: Client, folder: Path) -> None:
    """A refresh brings rows and cells back to what they were, without touching a checksum; then sides can be made."""
    seen = digest(folder)
    chosen = protocol.Range(session=SESSION, symbols="AAPL")
    near = protocol.Range(session=SESSION, symbols="AAPL", from_ts="10:00", to_ts="10:05")
    taken = client.call(protocol.ClearRequest(columns=SIDES, range=near, cause="test", accept_loss=True))
    assert taken.cleared[Column.AGGRESSOR_REF] == 5
    lost = why(client, SIDES, symbols="AAPL", from_ts="10:00", to_ts="10:05")
    assert lost["retired"].cells == 5
    client.call(protocol.RefreshRequest(columns=QUOTES, range=chosen, cause="wanted", confirmed=True))
    end = time.monotonic() + 240
    while {"wanted", "retired"} & why(client, QUOTES, symbols="AAPL").keys():
        assert time.monotonic() < end
        time.sleep(0.1)
    eventually_whole(client, SIDES, near)
    while digest(folder) != seen:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert quotes_on_disk(folder)
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        rows = state.scan("quote_ref", symbols="AAPL", sessions=SESSION).collect()
        sides = state.scan("aggressor_ref", symbols="AAPL", sessions=SESSION).collect()
    assert len(np.unique(rows["minute_idx"])) > 300
    assert sides.height > 0
    assert client.call(protocol.VerifyRequest()).findings == []


def test_command_says_what_went(folder: Path) -> None:
    """In words, once no task reads the session."""
    command = [
        sys.executable,
        "-m",
        "m17ctl",
        "--socket",
        str(folder / "ledger.state" / "m17d.sock"),
        "gc",
        "--dry-run",
    ]
    end, said = time.monotonic() + 120, ""
    # A session that a task reads is left for the next time.
    while "of quotes by their age" not in said:
        assert time.monotonic() < end, said
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "would remove" in said


def undo_file(folder: Path, operation: str) -> Path:
    """Where the slots that an operation took are kept."""
    return folder / "ledger.state" / "audit" / "undo" / operation


def test_undos_as_old_as_the_retention_are_forgotten_and_younger_ones_stay(client: Client, folder: Path) -> None:
    """A dry run counts them; then they are gone, the reply, the audit log and the command say how many."""
    client.call(protocol.EnginesControlRequest(engine="nbbo", action="pause"))
    taken = []
    for minute in ("11:00", "11:01"):
        near = protocol.Range(
            session=SESSION, symbols="AAPL", from_ts=minute, to_ts=f"{minute[:-1]}{int(minute[-1]) + 1}"
        )
        taken.append(client.call(protocol.ClearRequest(columns=SIDES, range=near, cause="test", accept_loss=True)))
    assert [one.cleared for one in taken] == [{Column.AGGRESSOR_REF: 1}] * 2
    old, young = (one.operation for one in taken)
    # Whatever earlier tests left is forgotten first.
    age = time.time() - 2 * 24 * 3600
    for path in undo_file(folder, old).parent.iterdir():
        if path.name != young:
            os.utime(path, (age, age))
    planned = gc(client, dry_run=True)
    assert planned.undos == len(list(undo_file(folder, old).parent.iterdir())) - 1 >= 1
    assert undo_file(folder, old).exists()
    words = [sys.executable, "-m", "m17ctl", "--socket", str(folder / "ledger.state" / "m17d.sock"), "gc"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"forgot {planned.undos} operations that are too old to be undone" in said
    assert not undo_file(folder, old).exists()
    assert undo_file(folder, young).exists()
    record = client.call(protocol.AuditRequest(tail=1)).records[0]
    assert (record["op"], record["result"].rpartition(", ")[2]) == ("gc", f"forgot {planned.undos} undos")
    with pytest.raises(RemoteFailure) as refused:
        client.call(protocol.UndoRequest(operation=old, cause="test"))
    assert refused.value.exit_code == 6
    undone = client.call(protocol.UndoRequest(operation=young, cause="test"))
    assert undone.restored == {Column.AGGRESSOR_REF: 1}
    assert gc(client).undos == 0
    assert client.call(protocol.VerifyRequest()).findings == []
    client.call(protocol.EnginesControlRequest(engine="nbbo", action="resume"))
