"""Files that are cut, longer, empty, gone, another's or of another version: refused with the reason, nothing written."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ledger.errors import (
    ChecksumMismatch,
    DamagedFile,
    FileVersionMismatch,
    LedgerError,
    NotALedgerFile,
    StateMissing,
)
from ledger.files import System
from ledger.layout import PAGE
from ledger.state import open_state
from ledger.undo import read_undo
from tests.ledger.rich import ARTIFACT, ROWS_FILE, SHORT_FILE, make_rich
from tests.ledger.states import EARLY_CLOSE, SESSION, copied, findings, in_memory

Change = Callable[[bytes], bytes]
WHOLE = ("format", "calendar", "symbol-map.bin", "sources", "regions", "maps/artifacts.map", "maps/trade.map", "closed")
"""Files without which, whole, a state does not open."""


def of_version(number: int) -> Change:
    """The header page of another version of the format, its checksum right."""

    def change(data: bytes) -> bytes:
        page = bytearray(data[:PAGE])
        page[8:12], page[12:16] = number.to_bytes(4, "little"), bytes(4)
        page[12:16] = zlib.crc32(page).to_bytes(4, "little")
        return bytes(page) + data[PAGE:]

    return change


def rows_of_version(number: int) -> Change:
    """The same for a file of rows, whose checksum does not cover the version."""
    return lambda data: data[:8] + number.to_bytes(4, "little") + data[12:]


ALIKE: dict[str, tuple[Change, type[LedgerError], str]] = {
    "empty": (lambda _data: b"", NotALedgerFile, "begins with b''"),
    "a gzip": (lambda data: b"\x1f\x8b" + bytes(len(data)), NotALedgerFile, "begins with"),
    "random bytes": (lambda data: os.urandom(8).replace(b"M", b"N") + data[8:], NotALedgerFile, "begins with"),
    "an older version": (of_version(0), FileVersionMismatch, "format version 0, this program reads 1"),
    "a newer version": (of_version(2), FileVersionMismatch, "format version 2, this program reads 1"),
    "cut in its header": (lambda data: data[:100], DamagedFile, "cut short: 100 bytes"),
    "one byte longer": (lambda data: data + b"\0", DamagedFile, ""),
    "a page of zeros longer": (lambda data: data + bytes(PAGE), DamagedFile, ""),
    "longer by garbage": (lambda data: data + b"garbage " * 9, DamagedFile, ""),
}
"""What can be wrong with every file that has a header page, and the error."""

CUT: dict[str, tuple[Change, str]] = {
    "by one byte": (lambda data: data[:-1], ""),
    "to its header": (lambda data: data[:PAGE], ""),
    "by a record": (lambda data: data[: -_last_frame(data)], "truncated"),
}
"""What can be cut off a file that has something behind its header page."""


def _last_frame(data: bytes) -> int:
    """Bytes of the last frame of a framed file."""
    at = last = PAGE
    while at < len(data):
        last, at = at, at + 8 + -(-int.from_bytes(data[at : at + 4], "little") // 8) * 8
    return len(data) - last


@dataclass(frozen=True)
class Case:
    """A file, what is done to it, and how it is refused."""

    file: str
    name: str
    change: Callable[[Path], None]
    error: type[LedgerError]
    reason: str


def written(change: Change, file: str) -> Callable[[Path], None]:
    """Put changed bytes in the place of a small file."""

    def apply(directory: Path) -> None:
        path = directory / file
        path.write_bytes(change(path.read_bytes()))

    return apply


def swapped(one: str, other: str) -> Callable[[Path], None]:
    """Two files change their names."""

    def apply(directory: Path) -> None:
        (directory / one).rename(directory / "between")
        (directory / other).rename(directory / one)
        (directory / "between").rename(directory / other)

    return apply


def removed(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).unlink()


def state_cases() -> Iterator[Case]:
    """Everything that keeps a state from opening."""
    for file in WHOLE:
        for name, (change, error, reason) in ALIKE.items():
            yield Case(file, name, written(change, file), error, reason)
        if file != "closed":
            yield Case(file, "gone", removed(file), StateMissing if file == "format" else DamagedFile, "")
    for file in ("calendar", "symbol-map.bin", "sources", "regions", "maps/artifacts.map", "maps/trade.map"):
        for name, (change, reason) in CUT.items():
            if name != "by a record" or file in ("sources", "regions", "maps/artifacts.map"):
                yield Case(file, f"cut {name}", written(change, file), DamagedFile, reason)
    pairs = (("sources", "regions"), ("maps/trade.map", "maps/greeks.map"), ("calendar", "sources"))
    for one, other in pairs:
        error = DamagedFile if one.startswith("maps") else NotALedgerFile
        yield Case(one, f"swapped with {other}", swapped(one, other), error, "")
    log = "audit/audit.log"
    lines: tuple[tuple[str, Change], ...] = (
        ("without its last line", lambda data: data[: data.rindex(b"\n", 0, -1) + 1]),
        ("empty", lambda _data: b""),
        ("cut in its last line", lambda data: data[:-30]),
        ("longer by a line", lambda data: data + data[: data.index(b"\n") + 1]),
    )
    for name, change in lines:
        yield Case(log, name, written(change, log), DamagedFile, "closed")
    yield Case(log, "gone", removed(log), DamagedFile, "closed")


def tree(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of the last change and checksum of the data of every file."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            status, system = path.stat(), System()
            descriptor, checksum = system.open(path, os.O_RDONLY), 0
            for start, end in system.extents(descriptor, 0, status.st_size):
                checksum = zlib.crc32(system.pread(descriptor, end - start, start), checksum)
            system.close(descriptor)
            found[path.relative_to(directory).as_posix()] = (status.st_size, status.st_mtime_ns, checksum)
    return found


@pytest.fixture(scope="module")
def rich(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed state with something in every file."""
    return make_rich(copied(template, tmp_path_factory.mktemp("rich") / "ledger.state"))


@pytest.fixture
def directory(rich: Path) -> Iterator[Path]:
    """A copy for each test; what is wrong with it stays wrong."""
    made = Path(tempfile.mkdtemp(prefix="m17-other-", dir=in_memory()))
    yield copied(rich, made / "ledger.state")
    shutil.rmtree(made)


@pytest.mark.parametrize("case", list(state_cases()), ids=lambda case: f"{case.file} {case.name}")
def test_a_state_with_another_file_is_refused_and_untouched(directory: Path, case: Case) -> None:
    """For writing, and for a checker, which reads alone: the file, the reason, a remedy; not a byte, not a time changes."""
    case.change(directory)
    before = tree(directory)
    for readonly in (True, False):
        with pytest.raises(LedgerError, match=case.reason or None) as caught:
            open_state(directory, readonly=readonly, lock=True)
        assert type(caught.value) is case.error, caught.value
        assert case.file in str(caught.value) or case.file == "format"
        assert caught.value.hint
        assert tree(directory) == before


ROW_CASES: dict[str, tuple[Callable[[Path], None], type[LedgerError], str]] = {
    "empty": (lambda path: os.truncate(path, 0), DamagedFile, "0 bytes, shorter than its header page"),
    "cut in its header": (lambda path: os.truncate(path, 100), DamagedFile, "100 bytes"),
    "cut by a byte": (lambda path: os.truncate(path, path.stat().st_size - 1), DamagedFile, "truncated"),
    "cut to its header": (lambda path: os.truncate(path, PAGE), DamagedFile, "truncated"),
    "one byte longer": (lambda path: os.truncate(path, path.stat().st_size + 1), DamagedFile, "extended"),
    "a gzip": (lambda path: _overwrite(path, lambda page: b"\x1f\x8b" + page[2:]), NotALedgerFile, "not a file of rows"),
    "an older version": (lambda path: _overwrite(path, rows_of_version(0)), FileVersionMismatch, "format version 0"),
    "a newer version": (lambda path: _overwrite(path, rows_of_version(2)), FileVersionMismatch, "format version 2"),
    "changed": (lambda path: _overwrite(path, lambda page: page[:20] + b"?" + page[21:]), ChecksumMismatch, "header page"),
    "another session's": (
        lambda path: swapped(ROWS_FILE, f"trade/{EARLY_CLOSE}.rows")(path.parents[1]), DamagedFile, "another session",
    ),
    "another ledger's": (
        lambda path: swapped(ROWS_FILE, f"enrichment/{EARLY_CLOSE}.rows")(path.parents[1]), DamagedFile, "another session",
    ),
}  # fmt: skip


def _overwrite(path: Path, change: Change) -> None:
    with path.open("r+b") as file:
        page = file.read(PAGE)
        file.seek(0)
        file.write(change(page))


@pytest.mark.parametrize("name", ROW_CASES)
def test_a_damaged_session_is_refused_and_the_others_go_on(directory: Path, name: str) -> None:
    """By mapping, by counting and by the checker; its file keeps every byte; cells elsewhere are read and written."""
    change, error, reason = ROW_CASES[name]
    change(directory / ROWS_FILE)
    before = tree(directory)[ROWS_FILE]
    for readonly in (True, False):
        with open_state(directory, readonly=readonly) as state:
            seq, other = (state.calendar.session_seq(session) for session in (SESSION, EARLY_CLOSE))
            with pytest.raises(error, match=reason) as caught:
                state.trade.session(seq)
            assert ROWS_FILE in str(caught.value) and caught.value.hint
            assert state.trade.counts(seq) is None
            good = state.trade if "ledger" in name else state.enrichment
            assert good.session(other).reserved.any()
    found = findings(directory)
    assert any(ROWS_FILE in one.where and one.code == error.code for one in found)
    assert tree(directory)[ROWS_FILE] == before


@pytest.mark.parametrize(
    "name", ["empty", "cut in its header", "an older version", "a newer version", "one byte longer"]
)
def test_another_undo_file_is_never_restored_from(directory: Path, name: str) -> None:
    """Refused when it is asked for, and found by the checker; the state opens."""
    change, error, reason = ALIKE[name]
    written(change, "audit/undo/op-7")(directory)
    with open_state(directory) as state, pytest.raises(error, match=reason or None):
        read_undo(directory, state.system, "op-7")
    assert [one.code for one in findings(directory)] == [error.code]


@pytest.mark.parametrize("name", ["empty", "cut", "longer", "gone", "another"])
def test_another_artifact_is_never_read(directory: Path, name: str) -> None:
    """A scan refuses the file, the checker finds it."""
    path = directory / "artifacts" / ARTIFACT
    data = path.read_bytes()
    path.unlink()
    changed = {
        "empty": b"",
        "cut": data[:-10],
        "longer": data + b"\0",
        "another": data[:50] + bytes([data[50] ^ 1]) + data[51:],
    }
    if name in changed:
        path.write_bytes(changed[name])
    with open_state(directory, readonly=True) as state, pytest.raises(LedgerError, match="parquet"):
        state.scan("trade_ref", sessions=SESSION).collect()
    found = findings(directory)
    assert [one.code for one in found] == ["artifact"]
    assert ARTIFACT in found[0].where and "clear trade_ref" in found[0].hint


def test_the_start_number_is_never_begun_anew(directory: Path) -> None:
    """Names of artifacts carry it: without the file, or with another, no number is given."""
    path = directory / "maps" / "start"
    good = path.read_bytes()
    for data, error in ((None, DamagedFile), (b"", NotALedgerFile), (of_version(2)(good), FileVersionMismatch)):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with open_state(directory) as state, pytest.raises(error, match="start"):
            state.take_start_number()
        path.write_bytes(good)
    with open_state(directory) as state:
        assert state.take_start_number() == 2


def test_rows_of_another_state_are_never_served(directory: Path, template: Path) -> None:
    """A session file of the same day from elsewhere names records of other content: found, and cleared by opening."""
    other = directory.parent / "other"
    make_rich(copied(template, other))
    with open_state(other) as state:
        minute = state.calendar.session_seq(EARLY_CLOSE) * 390
        state.trade.clear_slot(next(iter(state.trade.session(minute // 390).columns)), 0, minute)
        from tests.ledger.states import Column, put

        put(state, Column.AGGS_1H, [0, 1, 2], [minute, minute, minute], 99)
    shutil.copy(other / SHORT_FILE, directory / SHORT_FILE)
    assert "dangling" in {one.code for one in findings(directory)}
