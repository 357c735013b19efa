"""The synthetic session: its bytes, its formats, and that what it claims to be true can be found again in the files."""

from __future__ import annotations

import bisect
import csv
import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from engines.feeds import synthetic_bulk
from engines.feeds.synthetic import Truth, write_bulk, write_session
from engines.feeds.synthetic_files import HEADERS, flat_file_path
from engines.feeds.synthetic_options import black_scholes_price, curve_rate, expiry_dates
from ledger.columns import Dataset

SHARED_DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
SESSION = "2026-03-10"
SCALE = 0.15
MINUTE_NS = 60_000_000_000
Row = dict[str, str]


class Tree:
    """One written session with its rows as upstream's readers see them."""

    def __init__(self, root: Path, truth: Truth) -> None:
        self.root = root
        self.truth = truth
        self._rows: dict[tuple[Dataset, bool], list[Row]] = {}

    def rows(self, dataset: Dataset, *, repaired: bool = False) -> list[Row]:
        """Rows of a file, header names lower-cased; the complete file where ``repaired``."""
        key = (dataset, repaired)
        if key not in self._rows:
            path = flat_file_path(self.root / "flatfiles", dataset, self.truth.session)
            complete = flat_file_path(self.root / "repair" / "flatfiles", dataset, self.truth.session)
            self._rows[key] = read_rows(complete if repaired and complete.exists() else path)
        return self._rows[key]

    def minute(self, row: Row) -> int:
        """Minute of the session, outside 0 to 389 for rows outside regular hours."""
        return (int(row["sip_timestamp"]) - self.truth.open_ns) // MINUTE_NS


def read_rows(path: Path) -> list[Row]:
    with gzip.open(path, "rt", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        names = [name.lower() for name in next(reader)]
        return [dict(zip(names, row, strict=True)) for row in reader]


def file_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def quote_book(rows: list[Row]) -> dict[str, tuple[list[int], list[tuple[float, float]]]]:
    """Times and (bid, ask) of each ticker's quotes, in the order of the file."""
    book: dict[str, tuple[list[int], list[tuple[float, float]]]] = {}
    for row in rows:
        times, prices = book.setdefault(row["ticker"], ([], []))
        times.append(int(row["sip_timestamp"]))
        prices.append((float(row["bid_price"]), float(row["ask_price"])))
    return book


def silent_runs(minutes: set[int]) -> Iterator[tuple[int, int]]:
    """Half-open runs of session minutes that are not in the set."""
    present = [-1, *sorted(minutes & set(range(390))), 390]
    for left, right in pairwise(present):
        if right - left > 1:
            yield left + 1, right


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("damaged")
    return Tree(root, write_session(root, session=SESSION, scale=SCALE))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("whole")
    return Tree(root, write_session(root, session=SESSION, scale=SCALE, damage=False))


def test_two_calls_with_equal_arguments_give_equal_bytes(damaged: Tree, tmp_path: Path) -> None:
    """Nothing but the arguments enters a byte, and the seed does enter."""
    assert asdict(write_session(tmp_path / "again", session=SESSION, scale=SCALE)) == asdict(damaged.truth)
    assert file_bytes(tmp_path / "again") == file_bytes(damaged.root)
    write_session(tmp_path / "other", session=SESSION, scale=SCALE, seed=18)
    for dataset in HEADERS:
        path = flat_file_path(Path("flatfiles"), dataset, SESSION)
        assert (tmp_path / "other" / path).read_bytes() != (damaged.root / path).read_bytes()


def test_gzip_header_names_no_time_and_no_file(damaged: Tree) -> None:
    """Flags and modification time of the gzip member are zero."""
    for path in damaged.root.rglob("*.gz"):
        assert path.read_bytes()[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"


def test_full_scale_has_the_promised_number_of_rows(tmp_path: Path) -> None:
    """The default session has 150,000 to 250,000 rows, damaged or complete."""
    truth = write_session(tmp_path)
    assert 150_000 <= sum(file.rows for file in truth.files.values()) <= 250_000
    assert 150_000 <= sum(file.complete_rows for file in truth.files.values()) <= 250_000


@pytest.mark.parametrize("dataset", list(HEADERS))
def test_header_is_that_of_the_real_files(damaged: Tree, dataset: Dataset) -> None:
    """Byte for byte the header line of a real flat file of the dataset."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real market data (shared/data beside the project) is absent")
    real = next((SHARED_DATA / "flatfiles" / dataset.value).rglob("*.csv.gz"))
    written = flat_file_path(damaged.root / "flatfiles", dataset, SESSION)
    with gzip.open(real, "rb") as expected, gzip.open(written, "rb") as found:
        assert found.readline() == expected.readline()


@pytest.mark.parametrize("dataset", list(HEADERS))
def test_rows_are_grouped_by_ticker_then_in_time_order(whole: Tree, dataset: Dataset) -> None:
    """Tickers ascend once, times never fall inside one, sequence numbers are unique in the file and rise with time."""
    rows = whole.rows(dataset)
    keys = [(row["ticker"], int(row["sip_timestamp"])) for row in rows]
    assert keys == sorted(keys)
    if "sequence_number" in rows[0]:
        by_sequence = sorted(rows, key=lambda row: int(row["sequence_number"]))
        assert [int(row["sequence_number"]) for row in by_sequence] == list(range(1, len(rows) + 1))
        times = [int(row["sip_timestamp"]) for row in by_sequence]
        assert times == sorted(times)


@pytest.mark.parametrize("dataset", list(HEADERS))
def test_every_value_parses_as_its_column_demands(damaged: Tree, dataset: Dataset) -> None:
    """Whole numbers where upstream sends them, finite prices, positive trade sizes, codes as a comma list."""
    whole_numbers = {"exchange", "sip_timestamp", "participant_timestamp", "size", "sequence_number", "tape", "id"}
    whole_numbers |= {"ask_exchange", "bid_exchange", "ask_size", "bid_size", "trf_timestamp"}
    for row in damaged.rows(dataset):
        assert all(int(row[name]) >= 0 for name in whole_numbers & row.keys())
        prices = [float(row[name]) for name in ("price", "ask_price", "bid_price") if name in row]
        assert all(math.isfinite(price) and price >= 0 for price in prices)
        if "price" in row:
            assert prices[0] > 0 and int(row["size"]) > 0
            assert all(code.isdigit() for code in row["conditions"].split(",") if row["conditions"])
        assert not dataset.of_options or row["ticker"].startswith("O:")


def test_trade_ids_run_per_ticker_and_exchange(whole: Tree) -> None:
    """An id is unique within ticker and exchange."""
    keys = [(row["ticker"], row["exchange"], row["id"]) for row in whole.rows(Dataset.STOCK_TRADES)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("tree", ["damaged", "whole"])
@pytest.mark.parametrize("dataset", list(HEADERS))
def test_truth_counts_equal_a_recount(tree: str, dataset: Dataset, request: pytest.FixtureRequest) -> None:
    """Counts of the written and of the complete file, from nothing but their rows."""
    written: Tree = request.getfixturevalue(tree)
    truth = written.truth.files[dataset.value]
    assert written.root / truth.path == flat_file_path(written.root / "flatfiles", dataset, SESSION)
    sizes = ("size",) if dataset.column.value == "trade_ref" else ("bid_size", "ask_size")
    for repaired, total, counts in (
        (False, truth.rows, truth.counts),
        (True, truth.complete_rows, truth.complete_counts),
    ):
        rows = written.rows(dataset, repaired=repaired)
        assert len(rows) == total
        recount: dict[str, tuple[int, int, set[int], int]] = {}
        for row in rows:
            all_rows, regular, minutes, size = recount.get(row["ticker"], (0, 0, set(), 0))
            minute = written.minute(row)
            if 0 <= minute < 390:
                minutes.add(minute)
                regular, size = regular + 1, size + sum(int(row[name]) for name in sizes)
            recount[row["ticker"]] = (all_rows + 1, regular, minutes, size)
        assert {ticker: (r, s, len(m), z) for ticker, (r, s, m, z) in recount.items()} == {
            ticker: (count.rows, count.session_rows, count.session_minutes, count.session_size)
            for ticker, count in counts.items()
        }


def test_truth_json_is_the_returned_truth(damaged: Tree) -> None:
    """The file says what the object says."""
    assert json.loads((damaged.root / "truth.json").read_text()) == asdict(damaged.truth)


def test_truth_keys_are_the_rows_of_the_complete_files(damaged: Tree) -> None:
    """Per ticker the truth's times and sequence numbers are those of the complete file, in its order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for dataset in (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES):
        for row in damaged.rows(dataset, repaired=True):
            key = (int(row["sip_timestamp"]), int(row.get("sequence_number", 0)))
            found.setdefault(row["ticker"], []).append(key)
    truths = damaged.truth.trades
    assert found == {
        ticker: list(zip(truth.sip_timestamp, truth.sequence_number, strict=True)) for ticker, truth in truths.items()
    }
    for truth in truths.values():
        assert len(truth.side) == len(truth.placement) == len(truth.tied) == len(truth.sip_timestamp)


def test_damaged_tree_differs_from_the_whole_one_only_where_planted(damaged: Tree, whole: Tree) -> None:
    """The files of defects 1 to 3 differ, all others are equal bytes, and the repair tree is the whole one's bytes."""
    broken, sound = file_bytes(damaged.root), file_bytes(whole.root)
    planted = {file for defect in damaged.truth.defects for file in defect.files}
    assert len(planted) == 3
    assert {path for path in sound if broken[path] != sound[path]} == planted | {"truth.json"}
    repair = {path for path in broken if path.startswith("repair/")}
    assert repair == {f"repair/{path}" for path in planted} == broken.keys() - sound.keys()
    assert all(broken[path] == sound[path.removeprefix("repair/")] for path in repair)


def test_whole_session_names_only_defects_that_stay(damaged: Tree, whole: Tree) -> None:
    """The block and the Saturday are planted in both, the first three only in the damaged one."""
    kinds = {defect.kind for defect in damaged.truth.defects}
    assert kinds == {"silent_trades", "chain_without_quotes", "late_curve", "cancelled_block", "saturday_expiry"}
    assert {defect.kind for defect in whole.truth.defects} == {"cancelled_block", "saturday_expiry"}


def test_writing_whole_over_damaged_leaves_nothing_to_repair(tmp_path: Path) -> None:
    """A repair file of an earlier call does not outlive its damage."""
    write_session(tmp_path, scale=0.02)
    assert any(path.is_file() for path in (tmp_path / "repair").rglob("*"))
    write_session(tmp_path, scale=0.02, damage=False)
    assert not any(path.is_file() for path in (tmp_path / "repair").rglob("*"))


def test_silent_stock_lacks_exactly_its_trades_of_the_planted_minutes(damaged: Tree) -> None:
    """The missing rows are all of DUNE from 10:15 to 10:40; its quotes go on in every one of those minutes."""
    defect = next(defect for defect in damaged.truth.defects if defect.kind == "silent_trades")
    minutes = range(defect.from_minute, defect.to_minute)
    at_1015 = int(datetime(2026, 3, 10, 14, 15, tzinfo=UTC).timestamp()) * 10**9
    assert damaged.truth.open_ns + defect.from_minute * MINUTE_NS == at_1015 and len(minutes) == 25
    kept = {tuple(row.items()) for row in damaged.rows(Dataset.STOCK_TRADES)}
    missing = [row for row in damaged.rows(Dataset.STOCK_TRADES, repaired=True) if tuple(row.items()) not in kept]
    assert len(missing) == defect.facts["missing_rows"]
    assert {row["ticker"] for row in missing} == {defect.symbol}
    assert {damaged.minute(row) for row in missing} == set(minutes)
    quotes = [row for row in damaged.rows(Dataset.STOCK_QUOTES) if row["ticker"] == defect.symbol]
    assert set(minutes) <= {damaged.minute(row) for row in quotes}


@pytest.mark.parametrize("scale", [0.01, SCALE])
def test_nothing_else_falls_silent(tmp_path: Path, scale: float) -> None:
    """No stock and no root's quotes rest for 15 minutes, except where planted, however few rows there are."""
    tree = Tree(tmp_path, write_session(tmp_path, scale=scale))
    minutes: dict[tuple[str, str], set[int]] = {}
    for dataset in (Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES, Dataset.OPTION_QUOTES):
        for row in tree.rows(dataset):
            symbol = row["ticker"][:-15] if dataset.of_options else row["ticker"]
            minutes.setdefault((dataset.value, symbol), set()).add(tree.minute(row))
    long = {(key, run) for key, present in minutes.items() for run in silent_runs(present) if run[1] - run[0] >= 15}
    assert long == {((Dataset.STOCK_TRADES.value, "DUNE"), (45, 70))}
    assert {symbol for _, symbol in minutes} == {"ACME", "BORE", "CALX", "DUNE", "ELMO", "O:ACME", "O:BORE"}


def test_unquoted_chain_has_trades_and_not_one_quote(damaged: Tree) -> None:
    """O:CALX trades all day; every quote of it is in the complete file only."""
    quoted = {row["ticker"][:-15] for row in damaged.rows(Dataset.OPTION_QUOTES)}
    assert quoted == {"O:ACME", "O:BORE"}
    assert {row["ticker"][:-15] for row in damaged.rows(Dataset.OPTION_QUOTES, repaired=True)} == quoted | {"O:CALX"}
    trades = [row for row in damaged.rows(Dataset.OPTION_TRADES) if row["ticker"].startswith("O:CALX")]
    assert len({damaged.minute(row) for row in trades}) > 50


def test_late_curve_is_the_one_that_holds_for_the_session(damaged: Tree, whole: Tree) -> None:
    """The curve in effect at the open is absent, older ones and the session's own (not yet in effect) are there."""
    late = json.loads((damaged.root / "treasury/treasury-yields.json").read_text())
    full = json.loads((damaged.root / "repair/treasury/treasury-yields.json").read_text())
    days = [curve["date"] for curve in full["results"]]
    truth = damaged.truth
    assert truth.curve_date == "2026-03-09" and truth.curve_effective_ns < truth.open_ns
    assert days == sorted(days) and days[-2:] == [truth.curve_date, SESSION] and len(days) == full["count"] == 11
    assert [curve["date"] for curve in late["results"]] == [day for day in days if day != truth.curve_date]
    assert next(curve for curve in full["results"] if curve["date"] == truth.curve_date) == {
        "date": truth.curve_date,
        **truth.curve,
    }
    ten_years = {curve["yield_10_year"] for curve in full["results"]}
    assert len(ten_years) == len(days), "curves that agree could be mistaken for one another"


def test_yields_have_the_shape_of_the_real_file(damaged: Tree) -> None:
    """The keys of document and curve are those of the real yields."""
    real = SHARED_DATA / "treasury" / "treasury-yields.json"
    if not real.is_file():
        pytest.skip("the real market data (shared/data beside the project) is absent")
    expected, found = (
        json.loads(real.read_text()),
        json.loads((damaged.root / "treasury/treasury-yields.json").read_text()),
    )
    assert found.keys() == expected.keys()
    assert {tuple(curve) for curve in found["results"]} == {tuple(expected["results"][0])}


def test_planted_side_is_what_the_standing_quote_tells(whole: Tree) -> None:
    """At touch, inside and model the quote at or before the trade is fresh, normal, and nearer on the planted side."""
    checked: dict[str, int] = {}
    for trades, quotes in (
        (Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES),
        (Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES),
    ):
        book = quote_book(whole.rows(quotes))
        ordinal: dict[str, int] = {}
        for row in whole.rows(trades):
            ticker, at, price = row["ticker"], int(row["sip_timestamp"]), float(row["price"])
            position = ordinal.get(ticker, 0)
            ordinal[ticker] = position + 1
            truth = whole.truth.trades[ticker]
            side, placement = truth.side[position], truth.placement[position]
            if truth.tied[position] or side == "U":
                continue
            times, prices = book[ticker]
            standing = bisect.bisect_right(times, at) - 1
            bid, ask = prices[standing]
            assert at - times[standing] <= 1_000_000_000 and ask > bid > 0
            checked[placement] = checked.get(placement, 0) + 1
            if placement == "mid":
                assert price == pytest.approx((bid + ask) / 2, abs=1e-9)
                continue
            assert side == ("B" if abs(ask - price) <= abs(price - bid) else "S")
            if placement == "touch":
                assert price == (ask if side == "B" else bid)
            else:
                assert bid < price < ask
    assert min(checked[placement] for placement in ("touch", "inside", "mid", "model")) > 20


def test_only_the_millisecond_stock_with_ties_has_them(whole: Tree) -> None:
    """DUNE's trades tie with quotes for a third or more; option trades and the other stocks' trades hardly ever do."""
    shares = {ticker: float(np.mean(truth.tied)) for ticker, truth in whole.truth.trades.items()}
    assert shares.pop("DUNE") > 0.3
    assert max(share for ticker, share in shares.items() if len(ticker) == 4) < 0.01
    assert not any(share for ticker, share in shares.items() if ticker.startswith("O:"))
    finer = {
        row["ticker"].removeprefix("O:")[:4]
        for dataset in HEADERS
        for row in whole.rows(dataset)
        if int(row["sip_timestamp"]) % 1_000_000
    }
    assert finer == {"ACME", "CALX", "ELMO"}


def test_black_scholes_price_is_the_textbooks() -> None:
    """Hull, Options, Futures and Other Derivatives: S 42, K 40, r 10 %, volatility 20 %, six months."""
    prices = black_scholes_price(42.0, 40.0, 0.5, 0.1, 0.2, np.array([True, False]))
    assert prices == pytest.approx([4.759422392871535, 0.8085993729000958], abs=1e-12)


def test_curve_rate_interpolates_log_discount_factors(whole: Tree) -> None:
    """Flat before the first tenor, and between tenors linear in -r x t."""
    curve = whole.truth.curve
    halfway = (0.25 * curve["yield_3_month"] + 0.5 * curve["yield_6_month"]) / 2 / 0.375
    rates = curve_rate(curve, [0.001, 0.25, 0.375]) * 100
    assert rates == pytest.approx([curve["yield_1_month"], curve["yield_3_month"], halfway])


def price_by_hand(spot: float, strike: float, years: float, rate: float, volatility: float, right: str) -> float:
    """Black-Scholes-Merton in scalars, written apart from the generator's."""
    cdf = NormalDist().cdf
    d1 = (math.log(spot / strike) + (rate + volatility**2 / 2) * years) / (volatility * math.sqrt(years))
    d2 = d1 - volatility * math.sqrt(years)
    call = spot * cdf(d1) - strike * math.exp(-rate * years) * cdf(d2)
    return call if right == "C" else call - spot + strike * math.exp(-rate * years)


def test_option_quotes_enclose_the_price_at_the_planted_volatility(whole: Tree) -> None:
    """With the stock's mid at that time and the session's curve, for every quote of every contract."""
    book = quote_book(whole.rows(Dataset.STOCK_QUOTES))
    rows = whole.rows(Dataset.OPTION_QUOTES)
    assert len({row["ticker"] for row in rows}) == len(whole.truth.contracts) == 162
    for row in rows:
        contract, at = whole.truth.contracts[row["ticker"]], int(row["sip_timestamp"])
        times, prices = book[contract.underlying]
        standing = bisect.bisect_right(times, at) - 1
        years = (contract.expiry_ns - at) / 1e9 / 31_536_000
        rate = float(curve_rate(whole.truth.curve, years))
        spot = sum(prices[standing]) / 2
        price = price_by_hand(spot, contract.strike, years, rate, contract.implied_volatility, contract.right)
        assert at - times[standing] <= 1_000_000_000
        assert float(row["bid_price"]) <= price <= float(row["ask_price"])


def test_model_trades_give_their_planted_volatility_back(whole: Tree) -> None:
    """Solving a model print for its volatility, from the files and the curve alone, finds the contract's."""
    book = quote_book(whole.rows(Dataset.STOCK_QUOTES))
    ordinal: dict[str, int] = {}
    solved = 0
    for row in whole.rows(Dataset.OPTION_TRADES):
        ticker, at, price = row["ticker"], int(row["sip_timestamp"]), float(row["price"])
        position = ordinal.get(ticker, 0)
        ordinal[ticker] = position + 1
        truth, contract = whole.truth.trades[ticker], whole.truth.contracts[ticker]
        times, prices = book[contract.underlying]
        standing = bisect.bisect_right(times, at) - 1
        assert at - times[standing] <= 1_000_000_000
        assert sum(prices[standing]) / 2 == pytest.approx(truth.spot[position], abs=1e-9)
        if truth.placement[position] != "model":
            continue
        years = (contract.expiry_ns - at) / 1e9 / 31_536_000
        low, high = 0.01, 2.0
        for _ in range(50):
            guess = (low + high) / 2
            terms = (truth.spot[position], contract.strike, years, truth.rate[position], guess, contract.right)
            low, high = (guess, high) if price_by_hand(*terms) < price else (low, guess)
        assert low == pytest.approx(contract.implied_volatility, abs=1e-4)
        solved += 1
    assert solved > 100


def test_smile_gives_neighbours_different_volatilities(whole: Tree) -> None:
    """No two contracts of one chain and expiry share a volatility, so that a mix-up shows."""
    for root in ("ACME", "BORE", "CALX"):
        for expiry in {contract.expiry_date for contract in whole.truth.contracts.values()}:
            chosen = [c for c in whole.truth.contracts.values() if (c.underlying, c.expiry_date) == (root, expiry)]
            assert len(chosen) == 18
            assert len({c.implied_volatility for c in chosen}) >= 14
            assert all(0.1 < c.implied_volatility < 1.0 for c in chosen)


def test_cancelled_block_stands_in_the_file_far_from_the_market(damaged: Tree) -> None:
    """One print with the cancelled correction code, 4 % above the quote, larger than all else of its minute."""
    defect = next(defect for defect in damaged.truth.defects if defect.kind == "cancelled_block")
    corrected = [row for row in damaged.rows(Dataset.STOCK_TRADES) if row["correction"]]
    assert [(row["ticker"], row["correction"], row["conditions"]) for row in corrected] == [("ELMO", "8", "9,41")]
    row = corrected[0]
    assert (int(row["sip_timestamp"]), float(row["price"])) == (defect.facts["sip_timestamp"], defect.facts["price"])
    assert damaged.minute(row) == defect.from_minute == defect.to_minute - 1
    times, prices = quote_book(damaged.rows(Dataset.STOCK_QUOTES))["ELMO"]
    assert float(row["price"]) > 1.03 * prices[bisect.bisect_right(times, int(row["sip_timestamp"])) - 1][1]


def test_saturday_expiry_ends_at_the_close_of_the_friday_before(whole: Tree) -> None:
    """Contracts dated 2026-04-18 are priced to 16:00 New York on 2026-04-17; the others to their own date."""
    friday_close = int(datetime(2026, 4, 17, 20, tzinfo=UTC).timestamp()) * 10**9
    expiries = {(c.expiry_date, c.expiry_ns) for c in whole.truth.contracts.values()}
    assert ("2026-04-18", friday_close) in expiries
    assert {day for day, _ in expiries} == {"2026-03-13", "2026-03-20", "2026-04-18"}
    traded = {row["ticker"][-15:-9] for row in whole.rows(Dataset.OPTION_TRADES)}
    assert traded == {"260313", "260320", "260418"}


def test_expiries_of_any_weekday_are_three_different_dates_ahead() -> None:
    """A weekly Friday, a later monthly, and a Saturday behind both, also in the week of the third Friday."""
    for day in np.arange("2026-01-01", "2027-01-01", dtype="datetime64[D]").tolist():
        weekly, monthly, saturday = expiry_dates(day)
        assert day < weekly < monthly < saturday
        assert (weekly.weekday(), monthly.weekday(), saturday.weekday()) == (4, 4, 5)
        assert 15 <= monthly.day <= 21 and 16 <= saturday.day <= 22


def test_auctions_and_extended_hours_are_marked(whole: Tree) -> None:
    """Each stock opens inside the session, closes outside it, and trades before and after it as Form T."""
    for ticker in ("ACME", "BORE", "CALX", "DUNE", "ELMO"):
        rows = [row for row in whole.rows(Dataset.STOCK_TRADES) if row["ticker"] == ticker]
        minutes = {
            row["conditions"]: whole.minute(row) for row in rows if row["conditions"] in ("15", "16", "17", "19")
        }
        assert minutes == {"17": 0, "16": 0, "19": 390, "15": 390}
        outside = [row for row in rows if not 0 <= whole.minute(row) < 390 and row["conditions"] not in ("15", "19")]
        assert {row["conditions"].split(",")[0] for row in outside} == {"12"}
        assert min(map(whole.minute, outside)) < 0 and max(map(whole.minute, outside)) >= 390


def test_odd_lots_carry_their_code(whole: Tree) -> None:
    """Below 100 shares always 37, from 100 never."""
    for row in whole.rows(Dataset.STOCK_TRADES):
        assert (int(row["size"]) < 100) == ("37" in row["conditions"].split(","))


def test_some_prints_are_identical_in_everything_the_feed_sends(whole: Tree) -> None:
    """Equal option rows exist: only an ordinal tells them apart."""
    rows = [tuple(row.values()) for row in whole.rows(Dataset.OPTION_TRADES)]
    assert len(set(rows)) < len(rows)


def test_quote_sizes_are_round_lots_before_the_feed_changed(tmp_path: Path) -> None:
    """Before 2025-11-03 a stock quote's size counts hundreds, from then on shares."""
    old = Tree(tmp_path / "old", write_session(tmp_path / "old", session="2025-10-31", scale=0.01))
    new = Tree(tmp_path / "new", write_session(tmp_path / "new", session="2025-11-03", scale=0.01))
    assert (old.truth.quote_size_unit, new.truth.quote_size_unit) == ("round_lots", "shares")
    assert max(int(row["ask_size"]) for row in old.rows(Dataset.STOCK_QUOTES)) < 100
    assert all(int(row["ask_size"]) % 100 == 0 for row in new.rows(Dataset.STOCK_QUOTES))


@pytest.mark.parametrize(("session", "utc_hour"), [("2026-03-06", 14), ("2026-03-09", 13)])
def test_open_follows_new_york_over_the_change_of_clocks(tmp_path: Path, session: str, utc_hour: int) -> None:
    """09:30 in New York is 14:30 UTC in winter and 13:30 in summer; Monday's curve is Friday's."""
    truth = write_session(tmp_path, session=session, scale=0.01)
    opened = datetime.fromtimestamp(truth.open_ns / 1e9, tz=UTC)
    assert (opened.hour, opened.minute) == (utc_hour, 30)
    assert truth.close_ns - truth.open_ns == 390 * MINUTE_NS
    if session == "2026-03-09":
        assert truth.curve_date == "2026-03-06"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"session": "2026-03-14"}, "Saturday"),
        ({"session": "10 March"}, "10 March"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": math.nan}, "scale nan"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_arguments_are_named_and_write_nothing(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    """The error says which value is wrong, before any file is made."""
    with pytest.raises(ValueError, match=message):
        write_session(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dataset", list(HEADERS))
def test_bulk_file_has_its_rows_in_order_over_chunk_borders(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, tickers and header as asked; grouped, times never falling, sequence numbers unique and rising."""
    monkeypatch.setattr(synthetic_bulk, "CHUNK_ROWS", 700)
    path = tmp_path / "bulk.csv.gz"
    write_bulk(path, dataset=dataset, session=SESSION, rows=5_003, tickers=41)
    with gzip.open(path, "rt") as stream:
        assert stream.readline().rstrip("\n") == HEADERS[dataset]
    rows = read_rows(path)
    keys = [(row["ticker"], int(row["sip_timestamp"])) for row in rows]
    assert len(rows) == 5_003 and keys == sorted(keys) and len({ticker for ticker, _ in keys}) == 41
    if "sequence_number" in rows[0]:
        numbered = [(row["ticker"], int(row["sequence_number"])) for row in rows]
        assert numbered == sorted(numbered) and len({number for _, number in numbered}) == len(rows)
    for row in rows:
        assert min(float(row[name]) for name in ("price", "ask_price", "bid_price") if name in row) > 0
        assert "bid_price" not in row or float(row["bid_price"]) < float(row["ask_price"])


def test_bulk_bytes_depend_on_the_arguments_alone(tmp_path: Path) -> None:
    """Two calls agree to the byte, another seed does not."""
    for name, seed in (("one", 17), ("two", 17), ("three", 18)):
        write_bulk(tmp_path / name, dataset=Dataset.STOCK_TRADES, session=SESSION, rows=2_000, tickers=7, seed=seed)
    one, two, three = ((tmp_path / name).read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize(
    ("dataset", "rows", "tickers", "message"),
    [
        (Dataset.TREASURY_YIELDS, 10, 1, "no flat file"),
        (Dataset.STOCK_TRADES, 10, 0, "tickers 0"),
        (Dataset.STOCK_TRADES, 3, 4, "rows 3"),
    ],
)
def test_bulk_refuses_counts_it_cannot_keep(
    tmp_path: Path, dataset: Dataset, rows: int, tickers: int, message: str
) -> None:
    """The error names the argument, and no file is left behind."""
    with pytest.raises(ValueError, match=message):
        write_bulk(tmp_path / "bulk.csv.gz", dataset=dataset, session=SESSION, rows=rows, tickers=tickers)
    assert not (tmp_path / "bulk.csv.gz").exists()
