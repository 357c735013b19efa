"""Flat files that cannot be trusted: every kind of damage ends in SourceDamaged, never in fewer rows."""

from __future__ import annotations

import gzip
import pickle
import random
from pathlib import Path

import pytest

import engines.feeds.file_pass
from engines.feeds.chunks import Chunk
from engines.feeds.file_pass import run_pass
from engines.feeds.flatfile import NeedsExactPass, PassReport, SourceDamaged, read_batches
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

HOUR_NS = 3_600_000_000_000
OPEN_NS = 1_381_152_600_000_000_000
WINDOW = SessionWindow("2013-10-07", OPEN_NS, 390, OPEN_NS - 19 * HOUR_NS // 2, OPEN_NS + 29 * HOUR_NS // 2)
HEADER = "ticker,conditions,correction,exchange,price,sip_timestamp,size"


class Recorder:
    """A sink that remembers whether it was aborted."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.aborted = False

    def write(self, chunk: Chunk) -> None:
        """Keep the chunk."""
        self.chunks.append(chunk)

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True


@pytest.fixture(autouse=True, params=["fast", "compiled"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which reader a pass begins with: what it says of damage is the same."""
    monkeypatch.setattr(engines.feeds.file_pass, "COMPILED_BYTES", 0 if request.param == "compiled" else 2**62)


def lines(count: int) -> list[str]:
    """Good lines that do not compress to nothing."""
    numbers = random.Random(5)
    return [
        f'O:TWX131019C{70_000 + n // 50:08d},"12,{n % 40}",,314,{numbers.randrange(1, 9_999) / 100},'
        f"{OPEN_NS + n * 1_000_000},{n % 9 + 1}"
        for n in range(count)
    ]


def good(count: int = 3_000) -> str:
    """A good file's text."""
    return "\n".join([HEADER, *lines(count)]) + "\n"


def damaged(folder: Path, data: bytes, bad_rows_max: int = 10) -> SourceDamaged:
    """Run a pass over the bytes and return the damage; no sink may be left with rows."""
    path = folder / "2013-10-07.csv.gz"
    path.write_bytes(data)
    sinks: list[Recorder] = []

    def factory() -> Recorder:
        sinks.append(Recorder())
        return sinks[-1]

    with pytest.raises(SourceDamaged) as caught:
        run_pass(
            path,
            Dataset.OPTION_TRADES,
            WINDOW,
            factory,
            symbol_of=str,
            spill_dir=folder,
            batch_rows=500,
            bad_rows_max=bad_rows_max,
        )
    assert all(sink.aborted for sink in sinks)
    assert caught.value.hint and caught.value.reason in str(caught.value) and str(path) in str(caught.value)
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    return caught.value


def with_middle(middle: bytes) -> bytes:
    """A gzip file with bytes between its lines 1001 and 1002."""
    whole = lines(2_000)
    head = "\n".join([HEADER, *whole[:1_000]]) + "\n"
    return gzip.compress(head.encode() + middle + ("\n".join(whole[1_000:]) + "\n").encode())


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_truncated_gzip(tmp_path: Path, keep: float) -> None:
    """Wherever the file ends early, near the start or the end."""
    data = gzip.compress(good().encode())
    assert "truncated" in damaged(tmp_path, data[: int(len(data) * keep)]).reason


@pytest.mark.parametrize("missing", [1, 4, 8, 9])
def test_truncated_trailer(tmp_path: Path, missing: int) -> None:
    """All rows are there and the trailer is not."""
    damage = damaged(tmp_path, gzip.compress(good().encode())[:-missing])
    assert "truncated" in damage.reason and damage.line == 3_002


@pytest.mark.parametrize("byte", [-8, -5, -4, -1])
def test_wrong_crc_or_length(tmp_path: Path, byte: int) -> None:
    """One bit of the trailer."""
    data = bytearray(gzip.compress(good().encode()))
    data[byte] ^= 1
    assert "gzip stream is damaged" in damaged(tmp_path, bytes(data)).reason


def test_damage_in_an_earlier_or_later_member(tmp_path: Path) -> None:
    """Each member has a trailer of its own."""
    first, second = gzip.compress(good(1_000).encode()), gzip.compress("\n".join(lines(1_000)).encode())
    broken = first[:-8] + b"abcd" + first[-4:]
    assert "damaged" in damaged(tmp_path, broken + second).reason
    assert "truncated" in damaged(tmp_path, first + second[:-3]).reason
    assert "truncated" in damaged(tmp_path, first + second[:5]).reason


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Storm: a bit anywhere behind the gzip header."""
    data = gzip.compress(good(300).encode())
    numbers = random.Random(11)
    for _ in range(40):
        broken = bytearray(data)
        broken[numbers.randrange(10, len(data))] ^= 1 << numbers.randrange(8)
        damaged(tmp_path, bytes(broken))


def test_other_bytes_behind_the_last_member(tmp_path: Path) -> None:
    """A second download appended to the first, or an error page."""
    data = gzip.compress(good().encode())
    assert "behind the last gzip member" in damaged(tmp_path, data + b"<html>").reason
    assert "behind the last gzip member" in damaged(tmp_path, data + b"\0\0x").reason


def test_empty_file(tmp_path: Path) -> None:
    """Zero bytes, and a gzip file of zero bytes."""
    assert damaged(tmp_path, b"").reason == "the file is empty"
    assert "no header" in damaged(tmp_path, gzip.compress(b"")).reason


def test_not_gzip(tmp_path: Path) -> None:
    """Plain CSV under the name of a gzip file."""
    assert damaged(tmp_path, good().encode()).reason == "not a gzip file"


@pytest.mark.parametrize("column", ["ticker", "price", "sip_timestamp", "size"])
def test_missing_required_column_is_named(tmp_path: Path, column: str) -> None:
    """The reason says which."""
    damage = damaged(tmp_path, gzip.compress(good().replace(column, "other", 1).encode()))
    assert damage.reason == f"missing required column: {column}" and damage.line == 1


def test_column_named_twice(tmp_path: Path) -> None:
    """Case does not tell two columns apart."""
    assert "named twice: size" in damaged(tmp_path, gzip.compress(f"{HEADER},SIZE\n".encode())).reason


def test_no_header(tmp_path: Path) -> None:
    """The first line is a row."""
    assert "no header" in damaged(tmp_path, gzip.compress("\n".join(lines(50)).encode())).reason
    assert "no header" in damaged(tmp_path, gzip.compress(b"\n" + good().encode())).reason
    assert "no header" in damaged(tmp_path, gzip.compress(b"x" * 100_000)).reason


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolon"), ("\t", "tab"), ("|", "bar")])
def test_wrong_delimiter(tmp_path: Path, separator: str, word: str) -> None:
    """The delimiter that was found is named."""
    text = good().replace('"', "").replace(",", separator)
    assert damaged(tmp_path, gzip.compress(text.encode())).reason == f"wrong delimiter: {word} instead of comma"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16(tmp_path: Path, encoding: str) -> None:
    """With and without a byte order mark."""
    assert "UTF-16" in damaged(tmp_path, gzip.compress(good().encode(encoding))).reason


@pytest.mark.parametrize(
    "line",
    [
        f'O:TWX131019C00070000,"12,,314,1.5,{OPEN_NS},3\n',
        f'O:TWX131019C00070000,12,,314,1.5,{OPEN_NS},"3\n',
        f'"O:TWX131019C00070000,12,,314,1.5,{OPEN_NS},3\n',
        f'O:TWX131019C00070000,"12\n13",,314,1.5,{OPEN_NS},3\n',
    ],
)
def test_unterminated_quote(tmp_path: Path, line: str) -> None:
    """In any column; the line is named."""
    damage = damaged(tmp_path, with_middle(line.encode()))
    assert damage.reason == "unterminated quote" and damage.line == 1_002


def test_unterminated_quote_in_the_last_line(tmp_path: Path) -> None:
    """Nothing comes behind it."""
    text = good(100) + f'O:TWX131019C00070000,"12,,314,1.5,{OPEN_NS},3'
    damage = damaged(tmp_path, gzip.compress(text.encode()))
    assert damage.reason == "unterminated quote" and damage.line == 102


@pytest.mark.parametrize("place", [0, 1, 4, 6])
def test_huge_field(tmp_path: Path, place: int) -> None:
    """Two megabytes in one field of any type."""
    fields = ["O:TWX131019C00070000", "12", "", "314", "1.5", str(OPEN_NS), "3"]
    fields[place] = "1" * 2_000_000
    damage = damaged(tmp_path, with_middle((",".join(fields) + "\n").encode()))
    assert "line of over 65536 bytes" in damage.reason and damage.line == 1_002


def test_huge_line_without_an_end(tmp_path: Path) -> None:
    """Memory stays bounded where no line ends for many blocks."""
    damage = damaged(tmp_path, gzip.compress(good(10).encode() + b"7" * 30_000_000))
    assert "line of over" in damage.reason and damage.line == 12


@pytest.mark.parametrize("junk", [b"\x00" * 200, bytes(range(256)) * 4, b"O:TWX131019C00070000,\xff\xfe,,1,1.5,5,3\n"])
def test_binary_in_the_middle(tmp_path: Path, junk: bytes) -> None:
    """Zeros, all bytes, text that is not UTF-8."""
    damage = damaged(tmp_path, with_middle(junk))
    assert damage.line is not None and damage.line >= 1_002
    assert "binary data" in damage.reason


def test_rows_but_none_of_the_day(tmp_path: Path) -> None:
    """Another day's file under this day's name."""
    text = good().replace(f",{str(OPEN_NS)[:6]}", ",138215")
    damage = damaged(tmp_path, gzip.compress(text.encode()))
    assert damage.reason == "3000 rows, but none of 2013-10-07"


def test_too_many_unreadable_lines(tmp_path: Path) -> None:
    """The first is named by line and reason."""
    damage = damaged(tmp_path, with_middle(b"garbage\n" * 11))
    assert damage.line == 1_002 and "more than 10 unreadable lines" in damage.reason
    assert "1 fields" in damaged(tmp_path, with_middle(b"garbage\n" * 3), bad_rows_max=2).reason


def test_truncated_file_hands_out_rows_before_it_is_noticed(tmp_path: Path) -> None:
    """Why nothing may be committed before the end: the fast reader yields, then raises."""
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(good(100_000).encode())[:-4])
    batches = read_batches(path, Dataset.OPTION_TRADES, WINDOW, PassReport(), batch_rows=1_000)
    assert next(batches).height > 0
    with pytest.raises(NeedsExactPass):
        list(batches)


def test_missing_file_is_no_damage(tmp_path: Path) -> None:
    """A source that is not there is the caller's to judge."""
    with pytest.raises(FileNotFoundError):
        next(read_batches(tmp_path / "none.csv.gz", Dataset.OPTION_TRADES, WINDOW, PassReport()))


def test_damage_travels_between_processes() -> None:
    """Pickled and back with all facts."""
    before = SourceDamaged(Path("a.csv.gz"), 7, "why", "what to do")
    after = pickle.loads(pickle.dumps(before))
    assert (after.path, after.line, after.reason, after.hint) == (Path("a.csv.gz"), 7, "why", "what to do")
    assert str(after) == str(before) == "a.csv.gz, line 7: why"
