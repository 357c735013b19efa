"""Flat files that are good, or good enough: what is read, rejected, set aside and counted."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from engines.feeds.file_columns import columns_of, frame_types, size_unit
from engines.feeds.flatfile import NeedsExactPass, PassReport, SourceDamaged, read_batches
from engines.feeds.session_window import SessionWindow
from ledger.columns import Dataset

HOUR_NS = 3_600_000_000_000
OPEN_NS = 1_381_152_600_000_000_000
WINDOW = SessionWindow("2013-10-07", OPEN_NS, 390, OPEN_NS - 19 * HOUR_NS // 2, OPEN_NS + 29 * HOUR_NS // 2)
STOCK_TRADES = (
    "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape,"
    "trf_id,trf_timestamp"
)
STOCK_QUOTES = (
    "Ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp"
)
OPTION_TRADES_7 = "ticker,conditions,correction,exchange,price,sip_timestamp,size"
OPTION_TRADES_8 = "ticker,conditions,correction,exchange,participant_timestamp,price,sip_timestamp,size"
CONTRACT = "O:TWX131019C00070000"


def write(folder: Path, text: str | bytes) -> Path:
    """A gzip file of the text."""
    path = folder / "2013-10-07.csv.gz"
    path.write_bytes(gzip.compress(text.encode() if isinstance(text, str) else text, 1))
    return path


def trade(place: int, **changed: object) -> str:
    """One line of option trades, 7 columns."""
    fields: dict[str, object] = {
        "ticker": CONTRACT,
        "conditions": '"12,37"',
        "correction": "",
        "exchange": 314,
        "price": 1.5 + place,
        "sip_timestamp": OPEN_NS + place * 1_000_000,
        "size": place + 1,
    }
    fields.update(changed)
    return ",".join(str(value) for value in fields.values())


def read(
    path: Path,
    dataset: Dataset = Dataset.OPTION_TRADES,
    *,
    exact: bool | None = None,
    wanted: Callable[[str], bool] | None = None,
    bad_rows_max: int = 10,
) -> tuple[pl.DataFrame, PassReport]:
    """All rows; where exact is None, fast first and exact when asked for."""
    report = PassReport()
    try:
        frames = list(
            read_batches(
                path, dataset, WINDOW, report, wanted=wanted, bad_rows_max=bad_rows_max, exact=bool(exact), batch_rows=7
            )
        )
    except NeedsExactPass:
        if exact is not None:
            raise
        return read(path, dataset, exact=True, wanted=wanted, bad_rows_max=bad_rows_max)
    assert report.rows == (
        report.rows_kept + report.rows_unwanted + sum(report.rejected.values()) + len(report.quarantined)
    )
    return (pl.concat(frames) if frames else pl.DataFrame(schema=columns_of(dataset).types)), report


@pytest.mark.parametrize("exact", [False, True])
def test_both_readers_give_the_same_typed_rows(tmp_path: Path, exact: bool) -> None:
    """All columns in fixed order and type, absent and blank ones at their default."""
    lines = [trade(place) for place in range(20)] + [trade(20, conditions="", correction=1)]
    frame, report = read(write(tmp_path, "\n".join([OPTION_TRADES_7, *lines]) + "\n"), exact=exact)
    assert dict(frame.schema) == frame_types(Dataset.OPTION_TRADES)
    assert frame.height == report.rows == report.rows_kept == report.rows_of_day == 21
    assert frame.row(0, named=True) == {
        "ticker": CONTRACT,
        "sip_timestamp": OPEN_NS,
        "sequence_number": 0,
        "price": 1.5,
        "size": 1.0,
        "exchange": 314,
        "conditions": "12,37",
        "correction": 0,
        "participant_timestamp": 0,
        "id": "",
        "tape": 0,
        "trf_id": 0,
        "trf_timestamp": 0,
    }
    assert frame["conditions"][20] == "" and frame["correction"][20] == 1
    assert report.header == tuple(OPTION_TRADES_7.split(","))
    assert (report.size_unit, report.exact) == ("contracts", exact)


@pytest.mark.parametrize("exact", [False, True])
def test_stock_quotes_with_capital_ticker_and_empty_sides(tmp_path: Path, exact: bool) -> None:
    """`Ticker` is found, and a quote of 0/0 is a normal row."""
    line = f"BRK.B,12,49.41,3,0,0,0,1,,{OPEN_NS},3,{OPEN_NS},1,0"
    frame, report = read(write(tmp_path, f"{STOCK_QUOTES}\n{line}\n"), Dataset.STOCK_QUOTES, exact=exact)
    assert frame.row(0)[:9] == ("BRK.B", OPEN_NS, 3, 0.0, 0.0, 0, 49.41, 3.0, 12)
    assert report.rejected == {} and report.size_unit == "round_lots"


@pytest.mark.parametrize("exact", [False, True])
def test_columns_are_found_by_name_in_any_order_and_dress(tmp_path: Path, exact: bool) -> None:
    """BOM, CRLF, blanks and quotes in the header, unknown columns, another order: the same rows."""
    header = '\ufeff Size ,"TICKER",colour,sip_timestamp,Price,participant_timestamp'
    lines = [f'{n + 1},"{CONTRACT}","a,b",{OPEN_NS + n},"1.25",{OPEN_NS - 5}' for n in range(3)]
    frame, report = read(write(tmp_path, "\r\n".join([header, *lines])), exact=exact)
    assert frame["size"].to_list() == [1.0, 2.0, 3.0]
    assert frame["price"].to_list() == [1.25] * 3
    assert frame["participant_timestamp"].to_list() == [OPEN_NS - 5] * 3
    assert report.header == ("size", "ticker", "colour", "sip_timestamp", "price", "participant_timestamp")


@pytest.mark.parametrize("exact", [False, True])
def test_eight_column_option_trades(tmp_path: Path, exact: bool) -> None:
    """The older form with participant time."""
    line = f"{CONTRACT},12,0,314,{OPEN_NS - 1},2.5,{OPEN_NS},3"
    frame, _ = read(write(tmp_path, f"{OPTION_TRADES_8}\n{line}\n"), exact=exact)
    assert frame["participant_timestamp"].to_list() == [OPEN_NS - 1]


@pytest.mark.parametrize("exact", [False, True])
def test_several_gzip_members_are_one_file(tmp_path: Path, exact: bool) -> None:
    """Members may cut a line in two, and an empty one in between changes nothing."""
    data = ("\n".join([OPTION_TRADES_7, *[trade(place) for place in range(30)]]) + "\n").encode()
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(data[:333]) + gzip.compress(b"") + gzip.compress(data[333:]))
    assert read(path, exact=exact)[0].height == 30


def test_zero_padding_behind_the_last_member_is_allowed(tmp_path: Path) -> None:
    """Tape-style padding is no damage, though only the exact reader knows."""
    path = write(tmp_path, "\n".join([OPTION_TRADES_7, trade(0), trade(1)]) + "\n")
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    frame, report = read(path)
    assert frame.height == 2 and report.exact and report.quarantined == []


def test_header_alone_is_a_file_without_rows(tmp_path: Path) -> None:
    """No rows, no damage."""
    frame, report = read(write(tmp_path, OPTION_TRADES_7 + "\n"))
    assert frame.height == report.rows == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"price": "nan"}, "not_a_number_price"),
        ({"price": -1}, "negative_price"),
        ({"price": 0}, "zero_price"),
        ({"price": ""}, "missing_price"),
        ({"price": "1e999"}, "overflowing_price"),
        ({"size": -3}, "negative_size"),
        ({"size": "NaN"}, "not_a_number_size"),
        ({"size": ""}, "missing_size"),
        ({"sip_timestamp": ""}, "missing_sip_timestamp"),
        ({"sip_timestamp": -5}, "negative_sip_timestamp"),
        ({"sip_timestamp": "9" * 30}, "overflowing_sip_timestamp"),
        ({"sip_timestamp": OPEN_NS + 24 * HOUR_NS}, "other_day"),
        ({"sip_timestamp": WINDOW.day_end_ns}, "other_day"),
        ({"ticker": "O:TWX131319C00070000"}, "malformed_option_ticker"),
        ({"ticker": "O:TWX"}, "malformed_option_ticker"),
    ],
)
def test_bad_values_are_rejected_by_reason_and_not_quarantined(
    tmp_path: Path, changed: dict[str, object], reason: str
) -> None:
    """More bad values than bad_rows_max: rows go, the file stays good."""
    lines = [trade(place, **(changed if place % 2 else {})) for place in range(40)]
    frame, report = read(write(tmp_path, "\n".join([OPTION_TRADES_7, *lines]) + "\n"))
    assert report.rejected == {reason: 20} and report.quarantined == [] and frame.height == 20
    assert frame["size"].to_list() == [float(place + 1) for place in range(0, 40, 2)]


def test_a_trade_of_size_zero_is_kept(tmp_path: Path) -> None:
    """Official prices and corrections come with size 0."""
    frame, report = read(write(tmp_path, f"{OPTION_TRADES_7}\n{trade(0, size=0)}\n"))
    assert frame["size"].to_list() == [0.0] and report.rejected == {}


@pytest.mark.parametrize("column", ["bid_price", "ask_price", "bid_size", "ask_size"])
def test_negative_sides_of_quotes_are_rejected(tmp_path: Path, column: str) -> None:
    """Each of the four values is checked."""
    names = ["ticker", "ask_price", "ask_size", "bid_price", "bid_size", "sip_timestamp"]
    values = dict(zip(names, [CONTRACT, 1.5, 2, 1.25, 3, OPEN_NS], strict=True))
    bad = values | {column: -1}
    text = "\n".join([",".join(names), *(",".join(map(str, row.values())) for row in (values, bad))])
    frame, report = read(write(tmp_path, text), Dataset.OPTION_QUOTES)
    assert frame.height == 1 and report.rejected == {f"negative_{column}": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("garbage", "1 fields, the header names 7"),
        (f"{CONTRACT},12,,314,1.5", "5 fields, the header names 7"),
        (trade(0) + ",9,9", "9 fields, the header names 7"),
        (trade(0, ticker="???"), "ticker '???' is none"),
        (trade(0, ticker="AIG"), "ticker 'AIG' is none"),
        (trade(0, price="abc"), "price 'abc' is no number"),
        (trade(0, sip_timestamp="1.4e18"), "sip_timestamp '1.4e18' is no integer"),
        (trade(0, correction="x"), "correction 'x' is no integer"),
        (trade(0, exchange="9" * 12), "exchange '999999999999' is too large"),
        (trade(0, conditions="at the open"), "conditions 'at the open' is no list of codes"),
        ("", "blank line"),
    ],
)
def test_unreadable_lines_are_set_aside_and_named(tmp_path: Path, line: str, reason: str) -> None:
    """Up to the limit each is named by its line, and no symbol is made of garbage."""
    good = [trade(place) for place in range(50)]
    lines = [OPTION_TRADES_7, *good[:20], line, *good[20:], line, trade(60)]
    frame, report = read(write(tmp_path, "\n".join(lines) + "\n"))
    assert report.quarantined == [(22, reason), (53, reason)]
    assert report.first_bad == f"line 22: {reason}"
    assert frame.height == 51 and frame["ticker"].unique().to_list() == [CONTRACT]


def test_a_line_that_ends_before_its_last_optional_field_is_found(tmp_path: Path) -> None:
    """The required columns are there; only the line's length tells."""
    row = f"AIG,12,0,11,7,{OPEN_NS},49.5,2,{OPEN_NS},300,1,0,0"
    text = "\n".join([STOCK_TRADES, *[row] * 9, row.rsplit(",", 2)[0], *[row] * 9]) + "\n"
    frame, report = read(write(tmp_path, text), Dataset.STOCK_TRADES)
    assert report.quarantined == [(11, "11 fields, the header names 13")] and frame.height == 18


def test_one_unreadable_line_more_than_allowed_is_damage(tmp_path: Path) -> None:
    """Ten pass, eleven do not; the first is named."""
    lines = [OPTION_TRADES_7, trade(0), *["garbage"] * 10, trade(1)]
    assert len(read(write(tmp_path, "\n".join(lines)))[1].quarantined) == 10
    with pytest.raises(SourceDamaged, match="more than 10 unreadable lines; the first: 1 fields") as caught:
        read(write(tmp_path, "\n".join([*lines, "more garbage"])))
    assert caught.value.line == 3
    with pytest.raises(SourceDamaged, match="more than 0"):
        read(write(tmp_path, "\n".join(lines)), bad_rows_max=0)


@pytest.mark.parametrize("exact", [False, True])
def test_only_wanted_tickers_are_kept_and_the_others_counted(tmp_path: Path, exact: bool) -> None:
    """The report says how many rows nobody wanted."""
    other = "O:AIG131019C00050000"
    lines = [OPTION_TRADES_7, *[trade(n, ticker=CONTRACT if n % 3 else other) for n in range(30)]]
    path = write(tmp_path, "\n".join(lines))
    frame, report = read(path, exact=exact, wanted=lambda ticker: ticker.startswith("O:TWX"))
    assert frame["ticker"].unique().to_list() == [CONTRACT]
    assert (frame.height, report.rows_unwanted, report.rows) == (20, 10, 30)
    frame, report = read(path, exact=exact, wanted=lambda ticker: False)
    assert (frame.height, report.rows_unwanted) == (0, 30)


def test_fast_reader_asks_for_the_exact_one_instead_of_judging(tmp_path: Path) -> None:
    """The restart is explicit."""
    path = write(tmp_path, "\n".join([OPTION_TRADES_7, trade(0), "garbage"]))
    with pytest.raises(NeedsExactPass):
        read(path, exact=False)


def test_size_units() -> None:
    """Stock quotes changed from round lots to shares on 2025-11-03."""
    assert size_unit(Dataset.STOCK_TRADES, "2013-10-07") == "shares"
    assert size_unit(Dataset.STOCK_QUOTES, "2025-10-31") == "round_lots"
    assert size_unit(Dataset.STOCK_QUOTES, "2025-11-03") == "shares"
    assert size_unit(Dataset.OPTION_QUOTES, "2025-11-03") == "contracts"
    assert size_unit(Dataset.OPTION_TRADES, "2013-10-07") == "contracts"


def test_dataset_without_flat_files_is_refused() -> None:
    """The Treasury curve is no flat file."""
    with pytest.raises(ValueError, match="no flat files"):
        columns_of(Dataset.TREASURY_YIELDS)


@pytest.mark.parametrize("minutes", [0, 391])
def test_session_window_refuses_impossible_sessions(minutes: int) -> None:
    """A session has 1 to 390 windows."""
    with pytest.raises(ValueError, match="1 to 390"):
        SessionWindow("2013-10-07", OPEN_NS, minutes, WINDOW.day_start_ns, WINDOW.day_end_ns)
