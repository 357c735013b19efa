"""The compiled reader reads as the others do, to the bit, or leaves the file to them."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines.feeds.compiled_reader
import engines.feeds.file_pass
from engines.feeds.chunks import Chunk
from engines.feeds.file_columns import frame_types
from engines.feeds.file_pass import run_pass
from engines.feeds.flatfile import read_batches
from engines.feeds.pass_report import NeedsExactPass, NeedsPlainPass, PassReport, SourceDamaged
from engines.feeds.synthetic_bulk import write_bulk
from ledger.columns import Dataset
from tests.engines.feeds.test_flatfile_reading import (
    CONTRACT,
    OPEN_NS,
    OPTION_TRADES_7,
    STOCK_QUOTES,
    STOCK_TRADES,
    WINDOW,
    trade,
    write,
)

BULK = ("2013-10-07", 3_000, 40)


def compiled(path: Path, dataset: Dataset, batch_rows: int = 700) -> tuple[pl.DataFrame, PassReport]:
    """All rows by the compiled reader alone."""
    report = PassReport()
    frames = [*read_batches(path, dataset, WINDOW, report, batch_rows=batch_rows, compiled=True)]
    return (pl.concat(frames) if frames else pl.DataFrame(schema=frame_types(dataset))), report


def fast(path: Path, dataset: Dataset) -> tuple[pl.DataFrame, PassReport]:
    """All rows by the general reader."""
    report = PassReport()
    return pl.concat(read_batches(path, dataset, WINDOW, report)), report


@pytest.mark.parametrize("dataset", [each for each in Dataset if each is not Dataset.TREASURY_YIELDS])
def test_a_file_as_upstream_writes_it_is_read_as_the_general_reader_does(tmp_path: Path, dataset: Dataset) -> None:
    """Every dataset, over many blocks and frames: equal rows, types and counts, and no other reader is asked."""
    session, rows, tickers = BULK
    path = tmp_path / "day.csv.gz"
    write_bulk(path, dataset=dataset, session=session, rows=rows, tickers=tickers)
    frame, report = compiled(path, dataset)
    other, counted = fast(path, dataset)
    assert frame.height == rows
    assert frame.schema == other.schema
    assert frame.equals(other)
    assert report == counted


def test_blocks_end_in_the_middle_of_lines_and_files_without_a_line_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any size of block gives the same rows; so do two gzip members, cut in a line."""
    monkeypatch.setattr(engines.feeds.compiled_reader, "_LINE_BYTES_MAX", 200)
    text = "\n".join([STOCK_TRADES, *(stock(n) for n in range(60))]).encode()
    path = tmp_path / "day.csv.gz"
    path.write_bytes(gzip.compress(text[:1_000]) + gzip.compress(text[1_000:]) + bytes(7))
    whole, _ = compiled(path, Dataset.STOCK_TRADES)
    assert whole.height == 60
    for size in (201, 256, 1_000, len(text) - 1, len(text), len(text) + 1):
        monkeypatch.setattr(engines.feeds.compiled_reader, "_BLOCK_BYTES", size)
        assert compiled(path, Dataset.STOCK_TRADES, 7)[0].equals(whole)


def stock(place: int, **changed: object) -> str:
    """A line of stock trades."""
    fields: dict[str, object] = {
        "ticker": ("AAA", "BBB")[place // 30 % 2], "conditions": ("", "37", '"14,37,41"')[place % 3], "correction": "",
        "exchange": 11, "id": ("", f"{place}", "a name of over twelve letters")[place % 3],
        "participant_timestamp": OPEN_NS + place - 5, "price": f"{10 + place / 7:.4f}", "sequence_number": place,
        "sip_timestamp": OPEN_NS + place, "size": place, "tape": 1, "trf_id": "", "trf_timestamp": 0,
    }  # fmt: skip
    fields.update(changed)
    return ",".join(str(value) for value in fields.values())


@given(
    st.lists(st.one_of(st.decimals(0, 10**17, places=6), st.floats(1e-300, 1e300), st.integers(0, 10**30)), max_size=30)
)
def test_every_decimal_is_the_nearest_double(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    """However it is written: as Python reads it, to the bit, where the value is below 2**53."""
    texts = [str(value) for value in values] + [
        "0.1",
        "1234567.891",
        "9007199254740991",
        "0.30000000000000004",
        "5e-324",
    ]
    wanted = [float(text) for text in texts if 0 < float(text) < 2.0**53]
    path = write(tmp_path_factory.mktemp("day"), "\n".join([STOCK_TRADES, *(stock(1, price=text) for text in texts)]))
    assert compiled(path, Dataset.STOCK_TRADES)[0]["price"].to_list() == wanted


@pytest.mark.parametrize(
    "line",
    [
        stock(1, price="1e5"), stock(1, price="-1.5"), stock(1, size="-0"), stock(1, price="nan"), stock(1, price="inf"),
        stock(1, price=".5"), stock(1, price="5."), stock(1, price=" 5"), stock(1, price=""), stock(1, price="+5"),
        stock(1, price="1.2.3"), stock(1, price="-"), stock(1, price="0x10"), stock(1, price='"5"'), stock(1, price="1,5"),
        stock(1, sip_timestamp=""), stock(1, sip_timestamp="9223372036854775807"), stock(1, sip_timestamp=2**63),
        stock(1, sip_timestamp="-5"), stock(1, sip_timestamp="00000000000000000007"), stock(1, exchange=2**31),
        stock(1, exchange=-(2**31)), stock(1, exchange="1.0"), stock(1, correction="+1"), stock(1, sequence_number="x"),
        stock(1, ticker=""), stock(1, ticker='"AAA"'), stock(1, ticker="aaa"), stock(1, ticker="A A"), stock(1, ticker="É"),
        stock(1, ticker="AA"), stock(1, ticker="AAAA"), stock(1, conditions='""'), stock(1, conditions='"1, 2"'),
        stock(1, conditions='"1""2"'), stock(1, conditions="1;2"), stock(1, conditions='"1,2" '), stock(1, conditions='1"2'),
        stock(1, id="x" * 64), stock(1, id="x" * 65), stock(1, id='"a,b"'), stock(1, id="ü"), stock(1, id="\t"),
        stock(1, trf_timestamp=""), stock(1, trf_timestamp="1\r"), stock(1)[:-2], stock(1) + ",", stock(1) + ",1", "", " ",
        "garbage", ",,,,,,,,,,,,", '"', stock(1, id="a\x00b"), stock(1, id="a\x7fb"), "AAA" * 30_000,
    ],
)  # fmt: skip
def test_an_odd_line_ends_as_without_the_compiled_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Taken, rejected, set aside or damage: the same rows, counts and words."""
    lines = [STOCK_TRADES, *(stock(n) for n in range(40)), line, *(stock(n) for n in range(40, 60))]
    same_as_without(write(tmp_path, "\n".join(lines) + "\n"), Dataset.STOCK_TRADES, monkeypatch)
    same_as_without(write(tmp_path, "\n".join([*lines, line])), Dataset.STOCK_TRADES, monkeypatch)


@given(st.integers(0, 2**32))
def test_a_file_with_a_few_bytes_changed_ends_as_without_the_compiled_reader(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Whatever is changed where."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        dataset, lines = Dataset.STOCK_TRADES, [STOCK_TRADES, *(stock(n) for n in range(20))]
    else:
        dataset, lines = Dataset.OPTION_TRADES, [OPTION_TRADES_7, *(trade(n) for n in range(20))]
    text = bytearray("\n".join(lines).encode())
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines[0]) + 1, len(text))
        new = bytes(chance.choice(b',"\n\r .-+0159aAeEnN\x00\x7f\xff;') for _ in range(chance.randint(0, 2)))
        text[at : at + chance.randint(0, 2)] = new
    path = write(tmp_path_factory.mktemp("day"), bytes(text))
    with pytest.MonkeyPatch.context() as patch:
        same_as_without(path, dataset, patch)


class Kept:
    """Keeps the frames of the last attempt."""

    def __init__(self) -> None:
        self.frames: list[pl.DataFrame] = []

    def write(self, chunk: Chunk) -> None:
        """Keep it."""
        self.frames.append(chunk.frame)

    def abort(self) -> None:
        """Throw it away."""
        self.frames.clear()


def same_as_without(path: Path, dataset: Dataset, patch: pytest.MonkeyPatch) -> None:
    """A pass gives the same with the compiled reader as without: rows and report, or the same damage."""
    outcomes = []
    for bytes_from in (0, 2**62):
        patch.setattr(engines.feeds.file_pass, "COMPILED_BYTES", bytes_from)
        sink = Kept()
        try:
            report = run_pass(path, dataset, WINDOW, lambda sink=sink: sink, symbol_of=str, spill_dir=path.parent)  # type: ignore[misc]
        except SourceDamaged as damage:
            outcomes.append((None, (damage.line, damage.reason, damage.hint)))
            continue
        report.exact = False
        outcomes.append((pl.concat(sink.frames), report))
    (frame, told), (other, said) = outcomes
    assert told == said
    assert (frame is None) == (other is None)
    assert frame is None or frame.equals(other)


def test_an_option_whose_ticker_begins_like_the_one_before_is_another(tmp_path: Path) -> None:
    """Runs are told apart by the whole ticker, over frames and blocks, too."""
    tickers = [CONTRACT, CONTRACT, f"{CONTRACT}", CONTRACT[:-1] + "5", CONTRACT[:-1] + "5", CONTRACT]
    lines = [trade(place, ticker=ticker) for place, ticker in enumerate(tickers)]
    path = write(tmp_path, "\n".join([OPTION_TRADES_7, *lines]))
    for rows in (1, 2, 3, 100):
        assert compiled(path, Dataset.OPTION_TRADES, rows)[0]["ticker"].to_list() == tickers


def test_columns_that_nobody_knows_are_passed_over_and_absent_ones_have_their_default(tmp_path: Path) -> None:
    """Quoted or not."""
    header = STOCK_QUOTES.replace("indicators", "colour").replace(",tape", "")
    values = 'AAA,1,2.5,3,4,1.5,6,1,"red, or blue",5,6,{},8'
    path = write(tmp_path, "\n".join([header, *(values.format(OPEN_NS + n) for n in range(5))]))
    frame, _ = compiled(path, Dataset.STOCK_QUOTES)
    assert frame.height == 5
    assert frame.row(0, named=True) | {"conditions": "1", "indicators": "", "tape": 0, "ask_price": 2.5} == frame.row(
        0, named=True
    )


def test_more_different_code_lists_than_a_small_set_are_left_to_others(tmp_path: Path) -> None:
    """As are texts over seven bits and line ends of other systems."""
    lines = [trade(n, conditions=n) for n in range(5_000)]
    with pytest.raises(NeedsPlainPass):
        compiled(write(tmp_path, "\n".join([OPTION_TRADES_7, *lines])), Dataset.OPTION_TRADES)


def test_no_flipped_bit_of_the_packed_file_changes_a_row(tmp_path: Path) -> None:
    """CRC and length are compared: behind the gzip header a flipped bit is noticed, or it is one that says nothing."""
    good = write(tmp_path, "\n".join([OPTION_TRADES_7, *(trade(n) for n in range(300))]))
    data, path = bytearray(good.read_bytes()), tmp_path / "other.csv.gz"
    whole, _ = compiled(good, Dataset.OPTION_TRADES)
    noticed = 0
    for bit in range(80, 8 * len(data), 37):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            assert compiled(path, Dataset.OPTION_TRADES)[0].equals(whole)
        except (NeedsExactPass, NeedsPlainPass, SourceDamaged):
            noticed += 1
    assert noticed > 100
    assert 8 * len(data) / 37 - noticed < 10
