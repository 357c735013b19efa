"""Canonical order, cells, previous prices and spilling: the result depends on content alone."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.feeds.chunks import Chunk
from engines.feeds.file_columns import columns_of
from engines.feeds.file_pass import run_pass
from engines.feeds.ordering import ordered_chunks
from engines.feeds.pass_report import REFUSED_NAMES_MAX, NeedsExternalSort, PassReport
from engines.feeds.session_window import SessionWindow
from ledger.columns import WINDOW_NS, Dataset

HOUR_NS = 3_600_000_000_000
OPEN_NS = 1_381_152_600_000_000_000
WINDOW = SessionWindow("2013-10-07", OPEN_NS, 390, OPEN_NS - 19 * HOUR_NS // 2, OPEN_NS + 29 * HOUR_NS // 2)
TRADES = columns_of(Dataset.OPTION_TRADES)
QUOTES = columns_of(Dataset.OPTION_QUOTES)
KEYS = ("ticker", "sip_timestamp", "sequence_number")


def root(ticker: str) -> str:
    """The chain of an option ticker."""
    return ticker[:-15]


def frame_of(rows: list[tuple[str, int, int, float, float, str]]) -> pl.DataFrame:
    """Trades of (ticker, ns after the open, sequence, price, size, conditions)."""
    return pl.DataFrame(
        {
            "ticker": [row[0] for row in rows],
            "sip_timestamp": [OPEN_NS + row[1] for row in rows],
            "sequence_number": [row[2] for row in rows],
            "price": [row[3] for row in rows],
            "size": [row[4] for row in rows],
            "exchange": [300] * len(rows),
            "conditions": [row[5] for row in rows],
            "correction": [0] * len(rows),
            "participant_timestamp": [0] * len(rows),
            "id": [""] * len(rows),
            "tape": [0] * len(rows),
            "trf_id": [0] * len(rows),
            "trf_timestamp": [0] * len(rows),
        },
        schema=TRADES.types,
    )


def order(
    frame: pl.DataFrame,
    symbol_of: object = root,
    *,
    batch_rows: int = 1_000,
    external: bool = False,
    dataset: Dataset = Dataset.OPTION_TRADES,
    **limits: int,
) -> tuple[list[Chunk], PassReport]:
    """Chunks of a frame, restarted through disk when asked for."""
    report = PassReport()
    with TemporaryDirectory() as folder:
        try:
            batches = frame.iter_slices(batch_rows)
            chunks = list(
                ordered_chunks(
                    batches,
                    dataset,
                    WINDOW,
                    symbol_of,  # type: ignore[arg-type]
                    report,
                    spill_dir=Path(folder),
                    external=external,
                    **limits,
                )
            )
        except NeedsExternalSort:
            assert not external
            return order(frame, symbol_of, batch_rows=batch_rows, external=True, dataset=dataset, **limits)
    return chunks, report


def expected(frame: pl.DataFrame, symbol_of: object = root, *, trades: bool = True) -> pl.DataFrame:
    """The specification in plain Polars: sort everything in memory."""
    columns = TRADES if trades else QUOTES
    symbols = [symbol_of(ticker) for ticker in frame["ticker"].to_list()]  # type: ignore[operator]
    frame = frame.with_columns(pl.Series("symbol", symbols)).sort(*KEYS, *columns.rest)
    if trades:
        frame = frame.with_columns(previous_price=pl.col("price").shift(1).over("ticker"))
    signed = (pl.col("sip_timestamp") - OPEN_NS) // WINDOW_NS
    frame = frame.with_columns(signed=signed, outside=(signed < 0) | (signed >= WINDOW.minutes))
    frame = frame.sort("outside", "symbol", "signed", *KEYS, *columns.rest)
    minute = pl.when("outside").then(None).otherwise(pl.col("signed")).cast(pl.UInt16)
    names = ["symbol", "minute", *columns.types, *(["previous_price"] if trades else [])]
    return frame.with_columns(minute=minute).select(names)


def joined(chunks: list[Chunk]) -> pl.DataFrame:
    """All rows, session first, symbols ascending; rows within a symbol as the chunks hold them."""
    session = [chunk.frame for chunk in chunks if not chunk.outside]
    outside = [chunk.frame for chunk in chunks if chunk.outside]
    parts = [pl.concat(part).sort("symbol", maintain_order=True) for part in (session, outside) if part]
    return pl.concat(parts)


def check_chunks(chunks: list[Chunk]) -> None:
    """What a chunk says about its rows is true, and no cell is split."""
    assert [chunk.outside for chunk in chunks] == sorted(chunk.outside for chunk in chunks)
    seen: set[tuple[str, int]] = set()
    for chunk in chunks:
        frame = chunk.frame
        assert chunk.symbols == sorted(set(chunk.symbols)) == frame["symbol"].unique().sort().to_list()
        assert int(chunk.symbol_row_count.sum()) == frame.height
        for name, start, count in zip(chunk.symbols, chunk.symbol_row_start, chunk.symbol_row_count, strict=True):
            assert frame["symbol"][int(start) : int(start + count)].unique().to_list() == [name]
        if chunk.outside:
            assert len(chunk.row_start) == 0 and frame["minute"].null_count() == frame.height
            for name, start, count in zip(chunk.symbols, chunk.lead_start, chunk.lead_count, strict=True):
                times = frame["sip_timestamp"]
                lead = frame.filter(pl.col("symbol") == name, times >= OPEN_NS - WINDOW_NS, times < OPEN_NS)
                assert lead.height == count and frame.slice(int(start), int(count)).equals(lead)
            continue
        assert not chunk.lead_count.any()
        assert int(chunk.row_count.sum()) == frame.height and (chunk.row_count > 0).all()
        for place, name in enumerate(chunk.cell_names):
            start, count, minute = (int(a[place]) for a in (chunk.row_start, chunk.row_count, chunk.cell_minute))
            cell = frame.slice(start, count)
            assert cell["symbol"].unique().to_list() == [name] and cell["minute"].unique().to_list() == [minute]
            assert (chunk.first_ts[place], chunk.last_ts[place]) == (
                cell["sip_timestamp"].min(),
                cell["sip_timestamp"].max(),
            )
            assert (name, minute) not in seen
            seen.add((name, minute))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([f"O:{name}131019C{strike:08d}" for name in ("AA", "B", "CCC") for strike in (1, 2)]),
        st.integers(-3, 395).flatmap(lambda minute: st.integers(0, 3).map(lambda k: minute * WINDOW_NS + k * 10**9)),
        st.integers(0, 2),
        st.sampled_from([1.0, 1.5, 2.0]),
        st.sampled_from([1.0, 2.0]),
        st.sampled_from(["", "12", "12,37"]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=50, deadline=None)
@given(
    rows=ROWS, seed=st.integers(0, 9), budget_rows=st.sampled_from([4, 15, 1_000]), chunk_rows=st.sampled_from([3, 20])
)
def test_grouped_shuffled_and_spilled_give_the_same_rows(
    rows: list[tuple[str, int, int, float, float, str]], seed: int, budget_rows: int, chunk_rows: int
) -> None:
    """Whatever the order in the file and the memory allowed, and equal to sorting everything at once."""
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    want = expected(frame_of(rows))
    for each in (sorted(rows), rows, shuffled):
        chunks, report = order(frame_of(each), batch_rows=7, budget_rows=budget_rows, chunk_rows=chunk_rows)
        check_chunks(chunks)
        assert joined(chunks).equals(want, null_equal=True)
        counts = {
            name: (len(own) - own["minute"].null_count(), own["minute"].null_count())
            for (name,), own in want.partition_by("symbol", as_dict=True).items()
        }
        assert report.symbols == counts
        assert report.rows_in_session + report.rows_outside == len(rows)


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 9))
def test_quotes_order_the_same_in_contract_mode(rows: list[tuple[str, int, int, float, float, str]], seed: int) -> None:
    """Each contract its own symbol, no previous price."""
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)

    def quotes(of: list[tuple[str, int, int, float, float, str]]) -> pl.DataFrame:
        trades = frame_of(of)
        values = {"bid_price": "price", "ask_price": "price", "bid_size": "size", "ask_size": "size"}
        return trades.select(
            [
                pl.col(values.get(name, name)).alias(name)
                if values.get(name, name) in trades.columns
                else pl.lit("" if dtype == pl.String else 7, dtype=dtype).alias(name)
                for name, dtype in QUOTES.types.items()
            ]
        )

    want = expected(quotes(rows), str, trades=False)
    for budget_rows in (5, 1_000):
        chunks, _ = order(
            quotes(shuffled), str, dataset=Dataset.OPTION_QUOTES, batch_rows=9, budget_rows=budget_rows, chunk_rows=5
        )
        check_chunks(chunks)
        assert "previous_price" not in chunks[0].frame.columns
        assert joined(chunks).equals(want, null_equal=True)


def test_previous_price_crosses_the_open_and_the_close() -> None:
    """Pre-open and post-close trades count; the first of an instrument has none."""
    one, two = "O:AA131019C00000001", "O:AA131019C00000002"
    close = WINDOW.close_ns - OPEN_NS
    rows = [
        (one, -5, 0, 1.0, 1.0, ""),
        (one, 0, 0, 2.0, 1.0, ""),
        (two, 1, 0, 9.0, 1.0, ""),
        (one, close, 0, 3.0, 1.0, ""),
    ]
    chunks, _ = order(frame_of(rows))
    assert chunks[0].frame.select("ticker", "previous_price").rows() == [(one, 1.0), (two, None)]
    assert chunks[1].frame.select("sip_timestamp", "previous_price").rows() == [
        (OPEN_NS - 5, None),
        (OPEN_NS + close, 2.0),
    ]


def test_rows_out_of_time_order_are_sorted_and_counted() -> None:
    """Counted per instrument, over batches, and also where the file is not grouped."""
    one, two = "O:AA131019C00000001", "O:AA131019C00000002"
    rows = [(one, 9, 0, 1.0, 1.0, ""), (one, 3, 0, 2.0, 1.0, ""), (two, 1, 0, 3.0, 1.0, ""), (one, 2, 0, 4.0, 1.0, "")]
    for batch_rows in (1, 2, 100):
        chunks, report = order(frame_of(rows), batch_rows=batch_rows)
        assert report.out_of_time_order_rows == 2
        assert chunks[0].frame["price"].to_list() == [4.0, 2.0, 1.0, 3.0]


def test_a_symbol_that_comes_back_needs_the_external_sort() -> None:
    """Rows that were handed out cannot be taken back."""
    rows = [(f"O:{'ABCDEFGH'[n % 8]}131019C00000001", n, 0, 1.0, 1.0, "") for n in range(64)]
    with TemporaryDirectory() as folder, pytest.raises(NeedsExternalSort, match="is back"):
        list(
            ordered_chunks(
                frame_of(rows).iter_slices(4),
                Dataset.OPTION_TRADES,
                WINDOW,
                root,
                PassReport(),
                spill_dir=Path(folder),
                budget_rows=16,
                chunk_rows=8,
            )
        )


def test_one_symbol_over_the_budget_needs_no_restart() -> None:
    """Its rows go through disk by time; last prices and whole minutes survive."""
    numbers = random.Random(3)
    big = [
        (f"O:BIG131019C{n % 5:08d}", numbers.randrange(-9, 400) * WINDOW_NS + n, n, n % 7 + 1.0, 1.0, "")
        for n in range(900)
    ]
    small = [("O:A131019C00000001", n, n, 1.0, 1.0, "") for n in range(3)]
    last = [("O:Z131019C00000001", n, n, 1.0, 1.0, "") for n in range(3)]
    rows = [*small, *sorted(big), *last]
    chunks, report = order(frame_of(rows), batch_rows=50, budget_rows=100, chunk_rows=100)
    assert not report.external and len(chunks) > 9
    assert max(chunk.frame.height for chunk in chunks) <= 250
    check_chunks(chunks)
    assert joined(chunks).equals(expected(frame_of(rows)), null_equal=True)


def test_one_minute_over_the_budget_is_kept_whole() -> None:
    """A cell is never split, whatever the budget."""
    rows = [("O:A131019C00000001", n, n, 1.0 + n, 1.0, "") for n in range(300)]
    chunks, _ = order(frame_of(rows), batch_rows=20, budget_rows=50, chunk_rows=50)
    assert [chunk.frame.height for chunk in chunks] == [300]
    assert chunks[0].frame["previous_price"].to_list() == [None, *[1.0 + n for n in range(299)]]


def test_refused_tickers_are_counted_and_named() -> None:
    """Their rows are in no chunk."""
    rows = [(f"O:{name}131019C00000001", n, 0, 1.0, 1.0, "") for name in "ABC" for n in range(4)]
    chunks, report = order(
        frame_of(rows), lambda ticker: None if ticker.startswith("O:B") else root(ticker), batch_rows=5
    )
    assert joined(chunks)["symbol"].unique().sort().to_list() == ["O:A", "O:C"]
    assert report.refused == {"O:B131019C00000001": 4} and report.rows_refused == 4
    chunks, report = order(frame_of(rows), lambda ticker: None)
    assert chunks == [] and report.rows_refused == 12


def test_names_of_refused_tickers_are_bounded() -> None:
    """Rows of all are counted, names of the first."""
    report = PassReport()
    for number in range(REFUSED_NAMES_MAX + 5):
        report.refuse(str(number), 2)
    assert len(report.refused) == REFUSED_NAMES_MAX and report.rows_refused == 2 * REFUSED_NAMES_MAX + 10


def test_run_pass_restarts_for_bad_lines_and_for_ungrouped_files(tmp_path: Path) -> None:
    """Both restarts in one file: the last sink holds everything, earlier ones are aborted, no file is left."""
    rows = [(f"O:{'ABCDEFGH'[n % 8]}131019C00000001", n * 10**9, 0, 1.0 + n, 1.0, "12") for n in range(400)]
    lines = [f"{row[0]},{row[5]},,300,{row[3]},{OPEN_NS + row[1]},{row[4]}" for row in rows]
    lines.insert(350, "garbage")
    path = tmp_path / "x.csv.gz"
    path.write_bytes(
        gzip.compress("\n".join(["ticker,conditions,correction,exchange,price,sip_timestamp,size", *lines]).encode())
    )
    sinks: list[list[Chunk]] = []
    aborted: list[int] = []

    class Sink:
        def __init__(self) -> None:
            self.number = len(sinks)
            sinks.append([])

        def write(self, chunk: Chunk) -> None:
            sinks[self.number].append(chunk)

        def abort(self) -> None:
            aborted.append(self.number)

    report = run_pass(
        path, Dataset.OPTION_TRADES, WINDOW, Sink, symbol_of=root, spill_dir=tmp_path, batch_rows=16, budget_rows=64,
        chunk_rows=32,
    )  # fmt: skip
    assert len(sinks) == 3 and aborted == [0, 1]
    assert report.external and report.exact
    assert report.quarantined == [(352, "1 fields, the header names 7")]
    assert joined(sinks[-1]).equals(expected(frame_of(rows)), null_equal=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.csv.gz"]


def test_a_sink_that_fails_is_aborted(tmp_path: Path) -> None:
    """The error of the sink goes on to the caller."""
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(f"ticker,price,sip_timestamp,size\nO:A131019C00000001,1,{OPEN_NS},1\n".encode()))
    aborted: list[bool] = []

    class Full:
        def write(self, chunk: Chunk) -> None:
            raise OSError(28, "no space left")

        def abort(self) -> None:
            aborted.append(True)

    with pytest.raises(OSError, match="no space"):
        run_pass(path, Dataset.OPTION_TRADES, WINDOW, Full, symbol_of=root, spill_dir=tmp_path)
    assert aborted == [True]
