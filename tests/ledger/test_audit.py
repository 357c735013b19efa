"""Audit: a chain of lines that shows what was changed, and the slots an operation took away."""

from __future__ import annotations

import errno
import json
from hashlib import sha256

import numpy as np
import pytest

from ledger.audit import FIRST_HASH, AuditLog, Operator
from ledger.errors import AddressError, ChecksumMismatch, DamagedFile, NotALedgerFile, SpaceError, StateReadOnly
from ledger.layout import SLOT
from ledger.undo import CELLS_PER_FRAME, list_undo, read_undo, remove_undo, write_undo

ANN = Operator(uid=1000, gid=100, pid=42, user="ann")


def write_lines(log: AuditLog, count: int) -> None:
    """``count`` lines with numbered causes."""
    for number in range(count):
        log.append("clear", ANN, cause=f"cause {number}", cells={"trade_ref": number})


def test_a_line_holds_all_that_was_said_and_comes_back(tmp_path, system):
    """Fields, the system's time, and one JSON object a line that anybody can read."""
    log = AuditLog(tmp_path, system)
    record = log.append(
        "clear",
        ANN,
        claimed={"user": "bob"},
        operation="op-1",
        where={"session": "2013-10-07", "symbols": "AIG"},
        cells={"trade_ref": 3},
        cause='late file \N{EM DASH} "quoted"\n',
        result="done",
        digest="ab12",
    )
    assert (record.seq, record.ts_ns, record.previous_hash) == (1, system.clock_ns, FIRST_HASH)
    log.close()
    log.close()
    lines = (tmp_path / "audit" / "audit.log").read_bytes().splitlines()
    assert len(lines) == 1
    read = json.loads(lines[0])
    assert read["operator"] == {"uid": 1000, "gid": 100, "pid": 42, "user": "ann"}
    assert read["cause"] == 'late file \N{EM DASH} "quoted"\n' and read["op"] == "clear"
    assert sha256(lines[0][: lines[0].rindex(b',"hash":')]).hexdigest() == read["hash"] == record.hash
    again = AuditLog(tmp_path, system, readonly=True)
    assert again.tail(5) == [record] and again.head == (1, record.hash)


def test_the_chain_goes_on_over_restarts_and_rotation(tmp_path, system):
    """Numbers without holes over many files, no file ever removed, tail across files."""
    for _ in range(4):
        log = AuditLog(tmp_path, system, rotate_bytes=600)
        write_lines(log, 5)
        log.close()
    names = [path.name for path in log.files()]
    assert len(names) > 4 and names[0] == "audit.0001.log" and names[-1] == "audit.log"
    log = AuditLog(tmp_path, system, rotate_bytes=600)
    assert log.verify() == []
    assert [record.seq for record in log.tail(100)] == list(range(1, 21))
    assert [record.seq for record in log.tail(3)] == [18, 19, 20]
    assert log.tail(0) == []
    log.close()


def test_time_never_falls_in_the_log(tmp_path, system):
    """A clock that jumps back an hour leaves the time standing."""
    log = AuditLog(tmp_path, system)
    first = log.append("clear", ANN)
    system.clock_ns -= 3_600_000_000_000
    assert log.append("clear", ANN).ts_ns == first.ts_ns
    log.close()


def test_every_kind_of_tampering_is_found(tmp_path, system):
    """Changed, removed, swapped, garbled, appended with a wrong hash; the finding names file and line."""
    log = AuditLog(tmp_path, system)
    write_lines(log, 5)
    log.close()
    path = tmp_path / "audit" / "audit.log"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    forged = lines[2].replace(b'"trade_ref":2', b'"trade_ref":9')
    assert forged != lines[2]
    rehashed = json.loads(forged)
    body = forged[: forged.rindex(b',"hash":')]
    rehashed_line = body + b',"hash":"' + sha256(body).hexdigest().encode() + b'"}\n'
    cases = [
        ([*lines[:2], forged, *lines[3:]], 3, "was changed"),
        ([*lines[:2], rehashed_line, *lines[3:]], 4, "does not follow"),
        ([*lines[:2], *lines[3:]], 3, "seq 4 where 3"),
        ([lines[0], lines[2], lines[1], *lines[3:]], 2, "seq 3 where 2"),
        ([*lines[:2], b"garbage\n", *lines[3:]], 3, "cannot be read"),
        ([*lines[:4], lines[4][:30]], 5, "cannot be read"),
        ([*lines, b'{"seq":6}\n'], 6, "cannot be read"),
    ]
    for changed, line, reason in cases:
        path.write_bytes(b"".join(changed))
        findings = AuditLog(tmp_path, system, readonly=True).verify()
        assert findings and findings[0].file == "audit.log"
        assert findings[0].line == line and reason in findings[0].reason, (reason, findings)
        assert path.read_bytes() == b"".join(changed)
    assert rehashed["hash"] != rehashed_line
    path.write_bytes(good)
    assert AuditLog(tmp_path, system, readonly=True).verify() == []


def test_a_removed_rotated_file_is_found(tmp_path, system):
    """Lines are missing where the file was."""
    log = AuditLog(tmp_path, system, rotate_bytes=600)
    write_lines(log, 8)
    log.close()
    (tmp_path / "audit" / "audit.0002.log").unlink()
    findings = AuditLog(tmp_path, system, readonly=True).verify()
    assert findings[0].file == "audit.0003.log" and "missing" in findings[0].reason


def test_a_cut_end_is_found_by_the_process_that_wrote_it(tmp_path, system):
    """Somebody shortens the file under a running daemon."""
    log = AuditLog(tmp_path, system)
    write_lines(log, 3)
    path = tmp_path / "audit" / "audit.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert "ends at seq 2" in log.verify()[0].reason
    log.close()


@pytest.mark.parametrize("tail", [b'{"seq":4,"ts', b"\0" * 4096, b'{"seq":4,\0\0\0\n'])
def test_a_torn_last_line_is_cut_and_counted(tmp_path, system, tail):
    """Half a line, pages of zeros, and a line with a hole go; the chain holds and goes on."""
    log = AuditLog(tmp_path, system)
    write_lines(log, 3)
    log.close()
    path = tmp_path / "audit" / "audit.log"
    with path.open("ab") as stream:
        stream.write(tail)
    log = AuditLog(tmp_path, system)
    assert log.torn_bytes == len(tail) and log.head[0] == 3
    write_lines(log, 1)
    assert log.verify() == []
    log.close()
    log = AuditLog(tmp_path, system)
    assert log.torn_bytes == 0 and log.head[0] == 4
    log.close()


def test_a_last_line_that_is_whole_is_never_cut(tmp_path, system):
    """Without its end of line it gets one; a flipped bit in it is found by verify, whatever byte it makes."""
    log = AuditLog(tmp_path, system)
    write_lines(log, 3)
    log.close()
    path = tmp_path / "audit" / "audit.log"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    log = AuditLog(tmp_path, system)
    write_lines(log, 1)
    assert log.verify() == [] and log.head[0] == 4 and path.read_bytes().startswith(good)
    log.close()

    blank = good.rindex(b" ")
    path.write_bytes(good[:blank] + b"\0" + good[blank + 1 :])
    log = AuditLog(tmp_path, system)
    write_lines(log, 1)
    assert log.torn_bytes == 0 and next(one.line for one in log.verify()) == 3
    log.close()


def test_a_log_that_does_not_end_where_it_was_closed_is_refused(tmp_path, system):
    """Lines cut off, the last one changed, something behind it: nothing is written."""
    log = AuditLog(tmp_path, system)
    write_lines(log, 3)
    head = log.head
    log.close()
    path = tmp_path / "audit" / "audit.log"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    other = lines[2].replace(b'"hash":"', b'"hash":"0')[:-4] + b'"}\n'
    for data, reason in (
        (lines[0] + lines[1], "ends at line 2, it was closed at line 3"),
        (b"", "ends at line 0, it was closed at line 3"),
        (lines[0] + lines[1] + other, "the last line is not the one"),
        (good + b"garbage", "the last line is not the one"),
    ):
        path.write_bytes(data)
        for readonly in (True, False):
            with pytest.raises(DamagedFile, match=reason):
                AuditLog(tmp_path, system, readonly=readonly, closed=head)
        assert path.read_bytes() == data
    path.write_bytes(good)
    AuditLog(tmp_path, system, closed=head).close()


def test_damage_in_the_middle_does_not_stop_the_log(tmp_path, system):
    """It opens, goes on, changes no old line, and verify names the one fault."""
    log = AuditLog(tmp_path, system)
    write_lines(log, 3)
    log.close()
    path = tmp_path / "audit" / "audit.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"garbage\n")
    log = AuditLog(tmp_path, system)
    write_lines(log, 2)
    assert [(finding.line, finding.reason) for finding in log.verify()] == [(3, "cannot be read")]
    assert log.head[0] == 5
    log.close()


def test_a_crash_between_the_two_steps_of_rotation_loses_nothing(tmp_path, system):
    """Only audit.0001.log is there, or an empty audit.log beside it: the chain goes on."""
    for empty in (False, True):
        folder = tmp_path / str(empty)
        folder.mkdir()
        log = AuditLog(folder, system)
        write_lines(log, 2)
        log.close()
        (folder / "audit" / "audit.log").rename(folder / "audit" / "audit.0001.log")
        if empty:
            (folder / "audit" / "audit.log").touch()
        log = AuditLog(folder, system)
        write_lines(log, 1)
        assert log.verify() == [] and log.head[0] == 3
        log.close()


def test_recovery_lines_name_ledger_session_and_cause(tmp_path, system):
    """What opening a session set right."""
    log = AuditLog(tmp_path, system)
    where = {"ledger": "trade", "session": "2013-10-07"}
    record = log.append_recovery(where, "seal", "cleared 12 cells")
    assert record.op == "recovery" and record.cause == "seal" and "12" in record.result
    assert record.range == where
    log.close()
    with pytest.raises(StateReadOnly):
        log.append("clear", ANN)


def test_lines_are_durable_before_append_returns_unless_told_otherwise(tmp_path, system):
    """One write and one sync; without durable the sync comes with flush."""
    log = AuditLog(tmp_path, system)
    system.calls.clear()
    log.append("clear", ANN)
    log.append("clear", ANN, durable=False)
    log.flush()
    assert system.calls == ["pwrite", "fdatasync", "pwrite", "fdatasync"]
    log.close()


def test_a_failed_append_leaves_the_chain_whole_at_every_fault(tmp_path, every_fault, system):
    """Fail every call of open, append and rotation in turn; no line is lost, none is half there."""
    for number, failing in enumerate(every_fault()):
        folder = tmp_path / str(number)
        folder.mkdir()
        first = AuditLog(folder, system)
        write_lines(first, 2)
        first.close()
        try:
            log = AuditLog(folder, failing, rotate_bytes=900)
        except SpaceError:
            continue
        written = 2
        for _ in range(3):
            try:
                log.append("clear", ANN, cause="x" * 300)
                written += 1
            except SpaceError:
                assert failing.fired
        failing.fail_at = 0
        log.append("clear", ANN)
        assert log.verify() == []
        assert log.head[0] == written + 1 == len(log.tail(100))
        log.close()


def cells(count: int) -> dict[str, np.ndarray]:
    """Arrays of ``count`` different cells."""
    number = np.arange(count)
    slots = np.zeros(count, dtype=SLOT)
    slots["payload_id"], slots["version"], slots["status"], slots["last_updated_ns"] = number + 1, 7, 2, number * 1_000
    return {
        "column": number % 11,
        "symbol_id": number % 10_000,
        "minute_idx": number % 98_280,
        "version": number + 8,
        "slots": slots,
    }


@pytest.mark.parametrize("count", [0, 1, 1_000, CELLS_PER_FRAME + 5])
def test_what_undo_keeps_comes_back(tmp_path, system, count):
    """Every array and the facts, in one part or several; the file is smaller than the slots."""
    kept = cells(count)
    size = write_undo(tmp_path, system, "clear-17", {"op": "clear", "cause": "c" * 9_000}, **kept)
    found = read_undo(tmp_path, system, "clear-17")
    assert len(found) == count and found.facts == {"op": "clear", "cause": "c" * 9_000}
    for name, values in kept.items():
        assert np.array_equal(getattr(found, name), values), name
    assert found.slots.dtype == SLOT and found.symbol_id.dtype == np.uint16
    assert count < 10_000 or size < count * 32 / 2
    assert list_undo(tmp_path, system) == ["clear-17"]


def test_undo_files_are_listed_and_removed(tmp_path, system):
    """Sorted; a leftover of an interrupted write is none; what is gone is an AddressError."""
    assert list_undo(tmp_path, system) == []
    for operation in ("b", "a"):
        write_undo(tmp_path, system, operation, {}, **cells(2))
    (tmp_path / "audit" / "undo" / "c.tmp").touch()
    assert list_undo(tmp_path, system) == ["a", "b"]
    remove_undo(tmp_path, system, "a")
    assert list_undo(tmp_path, system) == ["b"]
    for call in (remove_undo, read_undo):
        with pytest.raises(AddressError, match="nothing is kept of operation a"):
            call(tmp_path, system, "a")


@pytest.mark.parametrize("operation", ["", "../format", "a/b", ".hidden", "x" * 121, "a\n", "name.tmp"])
def test_operations_cannot_leave_their_folder(tmp_path, system, operation):
    """A name is a name, never a path."""
    with pytest.raises(AddressError):
        write_undo(tmp_path, system, operation, {}, **cells(1))
    with pytest.raises(AddressError):
        read_undo(tmp_path, system, operation)


def test_arrays_that_do_not_fit_are_refused(tmp_path, system):
    """Different lengths, half a slot, numbers too large; nothing is written."""
    for changes in (
        {"column": [0]},
        {"slots": bytes(63)},
        {"symbol_id": [1, 70_000]},
        {"version": [1, -1]},
        {"slots": bytes(96)},
    ):
        with pytest.raises(ValueError, match="fit"):
            write_undo(tmp_path, system, "a", {}, **{**cells(2), **changes})
    assert list_undo(tmp_path, system) == []
    write_undo(tmp_path, system, "a", {}, **{**cells(2), "slots": cells(2)["slots"].tobytes()})
    assert np.array_equal(read_undo(tmp_path, system, "a").slots, cells(2)["slots"])


def test_damaged_undo_files_are_never_restored_from(tmp_path, system):
    """Flipped bits, a cut end, another operation's file, another kind."""
    write_undo(tmp_path, system, "a", {"op": "clear"}, **cells(500))
    path = tmp_path / "audit" / "undo" / "a"
    good = path.read_bytes()
    (path.parent / "b").write_bytes(good)
    with pytest.raises(DamagedFile, match="of operation a"):
        read_undo(tmp_path, system, "b")
    for data, expected in (
        (good[:-9], DamagedFile),
        (good[:4096], DamagedFile),
        (good[:-30] + bytes([good[-30] ^ 1]) + good[-29:], DamagedFile),
        (good[:50] + b"?" + good[51:], ChecksumMismatch),
        (b"", NotALedgerFile),
    ):
        path.write_bytes(data)
        with pytest.raises(expected):
            read_undo(tmp_path, system, "a")


def test_undo_is_whole_or_absent_at_every_fault(tmp_path, every_fault, system):
    """After a failed write there is no file, or all of it; a full disk says so."""
    codes: dict[int | str, set[str]] = {}
    for number, failing in enumerate(every_fault()):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            write_undo(folder, failing, "a", {}, **cells(20))
        except SpaceError as error:
            codes.setdefault(failing.fault, set()).add(error.code)
        if list_undo(folder, system):
            assert len(read_undo(folder, system, "a")) == 20
        else:
            assert failing.fired
    assert codes[errno.ENOSPC] == {"state_full"}
    assert codes[errno.EIO] == {"state_fault", "state_read_only"}
