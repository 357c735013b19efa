"""Files: system calls that fail, atomic replacement, header pages and framed records."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import (
    ChecksumMismatch,
    DamagedFile,
    FileVersionMismatch,
    NotALedgerFile,
    SpaceError,
    StateFault,
    StateFull,
    StateReadOnly,
)
from ledger.files import (
    HEADER_BYTES,
    System,
    decode_header,
    encode_frame,
    encode_header,
    read_frames,
    read_whole,
    write_atomically,
)
from ledger.framed import FramedFile


@pytest.mark.parametrize("fault", [errno.EINTR, "short"])
def test_interrupted_and_short_calls_are_continued(tmp_path, faulty, fault):
    """Every single interrupted or halved call leaves the same bytes as none."""
    for fail_at in range(1, 10):
        system = faulty(fail_at, fault)
        descriptor = system.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        assert system.pwrite(descriptor, b"0123456789", 2) == 10
        system.fdatasync(descriptor)
        assert system.pread(descriptor, 100, 0) == b"\0\0" + b"0123456789"
        system.close(descriptor)


def test_all_short_writes_still_write_all(tmp_path, faulty):
    """A file system that only ever takes half still gets every byte."""
    system = faulty(1, "short", sticky=True)
    write_atomically(system, tmp_path / "file", bytes(range(200)))
    assert read_whole(System(), tmp_path / "file") == bytes(range(200))


def test_a_failed_call_names_call_file_and_errno(tmp_path, faulty):
    """The error says pwrite, the path it was opened with, and the errno; no space is a StateFull."""
    system = faulty(2, errno.ENOSPC)
    descriptor = system.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(StateFull) as caught:
        system.pwrite(descriptor, b"x", 0)
    assert caught.value.facts == {"call": "pwrite", "path": str(tmp_path / "file"), "errno": errno.ENOSPC}
    system.close(descriptor)
    with pytest.raises(StateFault, match="pread on descriptor 99999"):
        system.pread(99999, 1, 0)


def test_a_failed_sync_makes_the_state_read_only(tmp_path, faulty):
    """EIO from fdatasync is a StateReadOnly (the pages are lost), ENOSPC stays a StateFull."""
    for fault, expected in ((errno.EIO, StateReadOnly), (errno.ENOSPC, StateFull)):
        system = faulty(2, fault)
        descriptor = system.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        with pytest.raises(expected):
            system.fdatasync(descriptor)
        system.close(descriptor)


def test_an_interrupted_close_is_not_made_twice(tmp_path, faulty):
    """Linux frees the descriptor even then; closing again could close another's."""
    system = faulty(2, errno.EINTR)
    descriptor = system.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    system.close(descriptor)
    assert system.calls.count("close") == 1
    os.close(descriptor)


def test_arrays_and_nothing_can_be_written(tmp_path, system):
    """Any contiguous buffer counts in bytes; an empty one writes nothing."""
    descriptor = system.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert system.pwrite(descriptor, memoryview(b"12345678").cast("Q"), 0) == 8
    assert system.pwrite(descriptor, b"", 0) == 0
    assert system.size(descriptor) == 8
    system.fallocate(descriptor, 0, 4096)
    assert system.size(descriptor) == 4096
    system.close(descriptor)


def test_an_atomic_write_leaves_the_old_or_the_new_file_at_every_fault(tmp_path, every_fault):
    """Fail every call in turn: the file is old or new, whole, and no descriptor or temporary file is left."""
    path = tmp_path / "file"
    before = len(os.listdir("/proc/self/fd"))
    fired = 0
    for system in every_fault():
        write_atomically(System(), path, b"old")
        try:
            write_atomically(system, path, b"new and longer")
            assert path.read_bytes() == b"new and longer"
        except SpaceError:
            fired += 1
            assert path.read_bytes() in (b"old", b"new and longer")
            if system.calls[-1] == "unlink":
                assert os.listdir(tmp_path) == ["file"]
        if "close" not in system.calls[system.fail_at - 1 : system.fail_at]:
            assert len(os.listdir("/proc/self/fd")) == before
        else:
            before = len(os.listdir("/proc/self/fd"))
    assert fired >= 12


def test_a_header_gives_back_its_facts():
    """What was encoded is decoded, and two encodings of the same facts are the same bytes."""
    facts = {"year": 2013, "exchange": "XNYS", "list": [1, 2]}
    page = encode_header("calendar", 3, facts)
    assert len(page) == HEADER_BYTES and page[:8] == b"M17calen"
    assert decode_header(page + b"more", "calendar", 3, "f") == facts
    assert page == encode_header("calendar", 3, dict(reversed(facts.items())))


def test_header_faults_each_have_their_own_error():
    """Magic before version before checksum before shape."""
    page = encode_header("rows", 1, {"year": 2013})
    cases = [
        (b"", NotALedgerFile),
        (b"\x1f\x8b garbage", NotALedgerFile),
        (encode_header("maps", 1, {}), NotALedgerFile),
        (encode_header("rows2", 1, {}), NotALedgerFile),
        (encode_header("rows", 2, {"year": 2013}), FileVersionMismatch),
        (page[:40] + b"?" + page[41:], ChecksumMismatch),
        (page[:12] + b"????" + page[16:], ChecksumMismatch),
        (page[:-1] + b"?", ChecksumMismatch),
        (page[:1000], DamagedFile),
        (page[:9], DamagedFile),
    ]
    for data, expected in cases:
        with pytest.raises(expected, match="some/file"):
            decode_header(data, "rows", 1, "some/file")
    with pytest.raises(NotALedgerFile, match="calendula"):
        decode_header(encode_header("calendula", 1, {}), "calendar", 1, "some/file")
    with pytest.raises(ValueError, match="fit"):
        encode_header("rows", 1, {"text": "x" * 5000})


@settings(max_examples=50, deadline=None)
@given(st.integers(0, HEADER_BYTES * 8 - 1))
def test_any_flipped_bit_of_a_header_is_found(bit):
    """No bit of the page may change unseen."""
    page = bytearray(encode_header("rows", 1, {"year": 2013}))
    page[bit // 8] ^= 1 << bit % 8
    with pytest.raises((NotALedgerFile, FileVersionMismatch, ChecksumMismatch)):
        decode_header(page, "rows", 1, "f")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_frames_cut_anywhere_read_up_to_the_cut(payloads, data):
    """Every prefix of a file of frames reads as the frames that are whole in it."""
    frames = [encode_frame(payload) for payload in payloads]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))
    found, length = read_frames(whole[:cut])
    assert found == payloads[: len(found)]
    assert length == sum(map(len, frames[: len(found)])) <= cut
    assert len(found) == len(payloads) or cut < length + len(frames[len(found)])


def test_zeros_behind_the_last_frame_are_a_torn_tail():
    """Pages that never reached the disk read as zeros, and are no frames."""
    good = encode_frame(b"payload")
    assert read_frames(good + bytes(4096)) == ([b"payload"], len(good))


def test_a_damaged_frame_before_a_good_one_is_damage_not_a_torn_tail():
    """The message names both offsets; behind ``tail_from`` it is a torn tail all the same."""
    first, second, third = (encode_frame(text) for text in (b"first one", b"second", b"third"))
    broken = bytearray(first + second + third)
    broken[len(first) + 9] ^= 1
    with pytest.raises(DamagedFile, match=f"byte {len(first)} is damaged.* from byte {len(first + second)}"):
        read_frames(bytes(broken), "some/file")
    assert read_frames(bytes(broken), tail_from=len(first)) == ([b"first one"], len(first))


def test_a_framed_file_keeps_its_records_and_cuts_a_torn_tail(tmp_path, system):
    """Records come back in order; half a record is cut and its size told; read-only cuts nothing."""
    path = tmp_path / "file"
    file, payloads = FramedFile.open(system, path, "kind", 1, {"year": 2013})
    assert payloads == []
    file.append([b"one", b"two"])
    file.close()
    file.close()
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(encode_frame(b"three")[:11])
    file, payloads = FramedFile.open(system, path, "kind", 1, {"year": 2013}, readonly=True)
    assert (payloads, file.torn_bytes, path.stat().st_size) == ([b"one", b"two"], 11, size + 11)
    with pytest.raises(StateReadOnly):
        file.append([b"three"])
    file, payloads = FramedFile.open(system, path, "kind", 1, {"year": 2013})
    assert (payloads, file.torn_bytes, path.stat().st_size) == ([b"one", b"two"], 11, size)
    file.rewrite([b"only"])
    file.append([b"more"])
    file.close()
    assert FramedFile.open(system, path, "kind", 1, {"year": 2013}, readonly=True)[1] == [b"only", b"more"]
    with pytest.raises(DamagedFile, match="another state's"):
        FramedFile.open(system, path, "kind", 1, {"year": 2014})


def test_a_failed_append_leaves_the_records_of_before_at_every_fault(tmp_path, every_fault):
    """Fail every call of append and rewrite in turn; what is read back is what the process believes, and goes on."""
    for number, system in enumerate(every_fault()):
        path = tmp_path / f"file{number}"
        clean = System()
        first, _ = FramedFile.open(clean, path, "kind", 1, {})
        first.append([b"one"])
        first.close()
        try:
            file, believed = FramedFile.open(system, path, "kind", 1, {})
        except SpaceError:
            continue
        try:
            file.append([b"two" * 50])
            believed.append(b"two" * 50)
        except SpaceError:
            assert system.fired
        try:
            file.rewrite([b"compact"])
            believed = [b"compact"]
        except SpaceError:
            found = FramedFile.open(clean, path, "kind", 1, {}, readonly=True)[1]
            assert found in (believed, [b"compact"])
            believed = found
        with suppress(SpaceError):
            file.append([b"three"])
            believed.append(b"three")
        assert FramedFile.open(clean, path, "kind", 1, {}, readonly=True)[1] == believed
        system.fail_at = 0
        file.append([b"four"])
        assert FramedFile.open(clean, path, "kind", 1, {}, readonly=True)[1] == [*believed, b"four"]
        file.close()
