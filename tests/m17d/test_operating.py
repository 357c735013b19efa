"""An operator's day over the socket: look, clear, refresh, undo, regions, accept, pause, and the keys that make it safe."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.columns import Column
from m17ctl.client import Client
from m17ctl.errors import RemoteFailure
from m17d import outcomes, protocol, replies
from tests.m17d import flat_files
from tests.m17d.test_daemon import start, wait_for
from tests.m17d.test_server import Wire

SESSION = "2013-05-01"
TRADES = [Column.TRADE_REF]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon over one file of trades; quotes are waited for."""
    folder = tmp_path_factory.mktemp("day")
    early = flat_files.open_ns(SESSION) - 60 * 10**9
    before_open = f"AAA,12,,11,1,{early},9.5,1,{early},10,1,,0"
    lines = flat_files.good_lines(SESSION)
    flat_files.write(folder, SESSION, flat_files.packed([lines[0], before_open, *lines[1:]]))
    flat_files.write_config(folder, [SESSION], engines="trade_flatfile quote")
    process = start(folder)
    wait_for(process, folder, "cells set")
    yield folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    """A client of the daemon."""
    with Client(root / "ledger.state" / "m17d.sock") as one:
        yield one


def whole(client: Client, timeout_s: float = 240) -> None:
    """Wait until the trades of the session are whole."""
    request = protocol.WaitRequest(columns=TRADES, range=protocol.Range(session=SESSION))
    end = time.monotonic() + timeout_s
    while not (reply := client.call(request)).whole:
        assert time.monotonic() < end, reply
        time.sleep(0.1)


def slot(client: Client, at: str) -> replies.SlotReply:
    """The trade cell of AAA at a time."""
    row = client.call(protocol.RowRequest(symbol="AAA", at=at, session=SESSION, payload=True))
    assert isinstance(row, replies.RowReply)
    return row.slots[Column.TRADE_REF]


def clear(client: Client, *, key: str | None = None, **fields: object) -> outcomes.OperationReply:
    """Clear AAA's trades from 10:00 to 10:30."""
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:30", symbols="AAA")
    reply = client.call(protocol.ClearRequest(columns=TRADES, range=chosen, cause="test", **fields), key=key)  # type: ignore[arg-type]
    assert isinstance(reply, outcomes.OperationReply)
    return reply


def test_row_has_the_documented_shape(client: Client) -> None:
    """Addresses, words and the record with its artifact's rows."""
    whole(client)
    row = client.call(protocol.RowRequest(symbol="AAA", at=f"{SESSION}T09:40:30", payload=True))
    assert row.window_id.endswith(":10")
    assert row.end_ts - row.start_ts == 60_000_000_000
    cell = row.slots[Column.TRADE_REF]
    assert (cell.status, cell.source, cell.payload_type) == ("filled", "flat_file", "trade")
    assert isinstance(cell.payload, dict)
    assert cell.payload["record_count"] == 1
    assert cell.payload["artifact_uri"].endswith("-1") is False
    assert "#rows=" in cell.payload["artifact_uri"]
    assert row.slots[Column.AGGS_1M].status == "empty"


def test_dry_run_says_what_would_go_and_changes_nothing(client: Client) -> None:
    """Counts, where it can be refilled from, and every version as before."""
    whole(client)
    before = slot(client, "10:00")
    reply = clear(client, dry_run=True)
    assert reply.dry_run
    assert reply.cleared == {Column.TRADE_REF: 30}
    assert reply.refillable.flat_file == 30
    assert slot(client, "10:00") == before


def test_cleared_range_is_filled_again_with_equal_content_and_a_higher_version(client: Client) -> None:
    """The engine reads the file for that symbol only; the checksum is the old one."""
    whole(client)
    before = slot(client, "10:00")
    clear(client)
    whole(client)
    after = slot(client, "10:00")
    assert after.checksum == before.checksum
    assert after.version == before.version + 2
    assert isinstance(after.payload, dict)


def test_mutation_may_wait_for_the_disk_and_a_repeat_of_it_too(client: Client, root: Path) -> None:
    """The reply says that its effect is durable; sent again, it is the same answer, as durable."""
    whole(client)
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:01", symbols="BBB")
    request = protocol.ClearRequest(columns=TRADES, range=chosen, cause="test")
    with Wire(root / "ledger.state" / "m17d.sock") as wire:
        for number, replayed in ((1, False), (2, True)):
            wire.send(request, number, key="durable-clear", durable=True)
            seen = []
            while not seen or seen[-1].more:
                seen.append(wire.receive()[0])
            assert [(one.kind, one.durable, one.replayed) for one in seen] == [
                ("clear", True, replayed), ("end", True, replayed),
            ]  # fmt: skip
    whole(client)


def test_refresh_keeps_the_old_payload_readable_until_the_new_one_is_there(client: Client) -> None:
    """Wanted cells stay filled, and equal content only takes the mark away."""
    whole(client)
    client.call(protocol.EnginesControlRequest(engine="trade_flatfile", action="pause", cause="hold"))
    chosen = protocol.Range(session=SESSION, from_ts="10:00", to_ts="10:01", symbols="AAA")
    reply = client.call(protocol.RefreshRequest(columns=TRADES, range=chosen, cause="look again"))
    assert reply.cleared == {Column.TRADE_REF: 1}
    marked = slot(client, "10:00")
    assert marked.status == "filled"
    assert marked.flags == ["wanted"]
    client.call(protocol.EnginesControlRequest(engine="trade_flatfile", action="resume"))
    whole(client)
    after = slot(client, "10:00")
    assert (after.flags, after.payload_id, after.version) == ([], marked.payload_id, marked.version + 1)


def test_undo_of_a_clear_restores_what_nobody_wrote_since(client: Client) -> None:
    """With the engine paused the cells come back as they were, by a higher version."""
    whole(client)
    client.call(protocol.EnginesControlRequest(engine="trade_flatfile", action="pause"))
    before = slot(client, "10:00")
    operation = clear(client).operation
    assert slot(client, "10:00").status == "cleared"
    reply = client.call(protocol.UndoRequest(operation=operation))
    assert reply.restored == {Column.TRADE_REF: 30}
    assert reply.skipped == {Column.TRADE_REF: 0}
    after = slot(client, "10:00")
    assert (after.status, after.payload_id, after.checksum) == ("filled", before.payload_id, before.checksum)
    assert after.version == before.version + 2
    client.call(protocol.EnginesControlRequest(engine="trade_flatfile", action="resume"))


def test_mutation_sent_twice_under_one_key_is_done_once(client: Client) -> None:
    """The second answer is the first one, and nothing is cleared again; the key cannot carry another request."""
    whole(client)
    first = clear(client, key="once-and-only-once")
    whole(client)
    version = slot(client, "10:00").version
    assert clear(client, key="once-and-only-once") == first
    assert slot(client, "10:00").version == version
    with pytest.raises(RemoteFailure, match="another request"):
        clear(client, key="once-and-only-once", accept_loss=True)


def test_cells_that_nothing_could_refill_are_refused(client: Client, root: Path) -> None:
    """Without its file a range is not cleared, unless the loss is accepted."""
    whole(client)
    chosen = protocol.Range(session=SESSION, symbols="AAA")
    with pytest.raises(RemoteFailure) as refusal:
        client.call(protocol.ClearRequest(columns=TRADES, range=chosen, cause="test", expect=1))
    assert refusal.value.exit_code == 5


def test_region_is_worked_first_and_retires_by_itself(client: Client) -> None:
    """Its minutes are counted, and it is complete once they are whole."""
    whole(client)
    reply = client.call(
        protocol.PriorityAddRequest(
            symbol="AAA", from_ts=f"{SESSION}T10:00", to_ts=f"{SESSION}T10:30", priority=9, columns=TRADES
        )
    )
    assert (reply.minutes, reply.priority) == (30, 9)
    end = time.monotonic() + 240
    while (now := client.call(protocol.PriorityShowRequest(id=reply.id))).state != "complete":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert now.whole == {Column.TRADE_REF: 30}


def test_absent_source_is_declared_by_accept(client: Client) -> None:
    """Waiting quotes become suspect no-rows cells, and why named the file before."""
    whole(client)
    chosen = protocol.Range(session=SESSION)
    before = client.call(protocol.WhyRequest(columns=[Column.QUOTE_REF], range=chosen))
    assert [group.cause for group in before.groups] == ["waiting"]
    assert "does not exist" in before.groups[0].detail
    client.call(protocol.AcceptRequest(range=chosen, columns=[Column.QUOTE_REF], cause="never published"))
    end = time.monotonic() + 240
    while (counts := client.call(protocol.CoverageRequest(session=SESSION)).columns[Column.QUOTE_REF]).suspect != 780:
        assert time.monotonic() < end, counts
        time.sleep(0.1)
    assert counts.filled == counts.no_data == 780


def test_every_change_is_in_the_audit_log_and_its_chain_holds(client: Client) -> None:
    """Who, what, which cells, why; and the hash chain verifies."""
    whole(client)
    clear(client)
    reply = client.call(protocol.AuditRequest(verify=True))
    assert reply.chain == "intact"
    cleared = [record for record in reply.records if record["op"] == "clear"]
    assert cleared
    assert cleared[0]["cause"] == "test"
    assert cleared[0]["cells"] == {"trade_ref": 30}
    assert cleared[0]["operator"]["uid"] >= 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (protocol.RowRequest(symbol="ZZZ", at=f"{SESSION}T10:00"), "unknown_symbol"),
        (protocol.RowRequest(symbol="AAA", at=f"{SESSION}T08:00"), "minute_out_of_session"),
        (protocol.RowRequest(symbol="AAA", at="10 o'clock"), "bad_request"),
        (protocol.CoverageRequest(session="2013-05-04"), "unknown_session"),
        (protocol.PayloadRequest(kind="trade", payload_id=4_000_000), "unknown_payload"),
        (protocol.UndoRequest(operation="op-77777777"), "address"),
        (protocol.PriorityShowRequest(id=999), "address"),
        (protocol.EnginesControlRequest(engine="nobody", action="pause"), "not_found"),
    ],
)
def test_refusals_carry_their_code_and_a_hint(client: Client, request_: protocol.Request, code: str) -> None:
    """Each way of naming what is not there has its code."""
    with pytest.raises(RemoteFailure) as refusal:
        client.call(request_)
    assert refusal.value.code == code
    assert refusal.value.hint


def test_export_writes_the_rows_of_the_cells_and_with_extended_those_outside(
    client: Client, root: Path, tmp_path: Path
) -> None:
    """The file has the rows that the cells name, in their order, and on request the artifact's rows outside the session."""
    import polars as pl

    from m17ctl.main import run as m17ctl

    # What the tests before this one cleared may be on its way yet.
    whole(client)
    socket = str(root / "ledger.state" / "m17d.sock")
    for options, rows in (([], 39), (["--extended"], 40)):
        out = tmp_path / f"rows{rows}.parquet"
        words = ["export", "trade_ref", "--session", SESSION, "--symbols", "AAA", "--out", str(out), *options]
        assert m17ctl(["--socket", socket, *words]) == 0
        frame = pl.read_parquet(out)
        assert frame.height == rows
        assert frame["minute"].null_count() == rows - 39
