"""The day report: parsed as a browser would, its figures held against the ledger, and nothing in it that needs a network."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from polars import col

import ledger
from ledger.columns import Column, Flag, Status
from m17ctl.artifacts_day import NEAR, DayFigures, Mover, Prints, Sides, Skew
from m17ctl.client import Client
from m17ctl.main import run
from m17ctl.report.cells import COLORS
from m17ctl.report.day import render
from m17ctl.report.svg import BLUE, WIDTH, Run, Strip, strips
from m17d import protocol
from m17d.outcomes import ReportReply
from m17d.replies import Cause, Counts, CoverageReply
from tests.filled_state import SESSION, copy_of, filled, needs_data
from tests.m17ctl.fakes import MINUTE_NS, OPEN_NS
from tests.m17d.test_derived_sessions import served

ZONE = ZoneInfo("America/New_York")


class Page(HTMLParser):
    """Tables by their key, what lies in charts, and every address that is named."""

    CLOSED_AT_ONCE = ("line", "rect", "polyline", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.charts: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self._table: list[list[str]] = []
        self._chart: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "srcset", "xlink:href", "action")
        ]
        self.addresses += re.findall(r"url\(([^)]*)\)", found.get("style") or "")
        if tag == "table":
            self._table = self.tables.setdefault(found["data-table"] or "", [])
        elif tag == "svg":
            self._chart = self.charts.setdefault(found["aria-label"] or "", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.CLOSED_AT_ONCE

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "svg" in self.open and self.open[-1] in ("title", "text"):
            self._chart.append(data)
        elif self.open and ("td" in self.open or "th" in self.open):
            self._table[-1][-1] += data

    def rows(self, key: str) -> list[dict[str, str]]:
        """The rows of a table by heading, the later of two equal headings winning."""
        head, *rows = self.tables[key]
        return [dict(zip(head, row, strict=True)) for row in rows]


def number(text: str) -> int:
    """``1,234`` or ``1,234 (5.6 %)``."""
    return int(text.split(" ", maxsplit=1)[0].replace(",", ""))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A daemon on the filled session."""
    with served(copy_of(filled(tmp_path_factory), tmp_path_factory.mktemp("report"))) as one:
        yield one


@pytest.fixture
def made(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Page, dict]:
    """The page of the session and what it was made of."""
    words = ("--socket", str(client.path), "--json", "report", SESSION, "--out", str(tmp_path / "day.html"))
    code = run(words)
    written = capsys.readouterr()
    assert code == 0, written.err
    return Page((tmp_path / "day.html").read_text()), json.loads(written.out)


def frames(client: Client, column: str) -> pl.DataFrame:
    """All rows of a column of the session, by way of the ledger."""
    with ledger.open(client.path.parent, readonly=True) as state:
        return state.scan(column, sessions=SESSION).collect()


@needs_data
def test_cells_are_those_of_the_slots(client: Client, made: tuple[Page, dict]) -> None:
    """Every count by column is what a scan of the slots finds, and the map is whole where all are."""
    page, _ = made
    rows = {row["column"]: row for row in page.rows("columns")}
    with ledger.open(client.path.parent, readonly=True) as state:
        universe, seq = state.universe(SESSION), state.calendar.session_seq(SESSION)
        for column in Column:
            slots = state.ledger_of(column).session(seq).slots(column, universe)
            filled_ones = slots["status"] == Status.FILLED
            row = rows[column.value]
            assert number(row["filled"]) == filled_ones.sum()
            for word, flag in (("no data", Flag.NO_ROWS), ("suspect", Flag.SUSPECT), ("partial", Flag.PARTIAL)):
                assert number(row[word]) == ((slots["flags"] & flag) != 0)[filled_ones].sum(), (column, word)
            last_set = int(slots["last_updated_ns"][filled_ones].max())
            assert made[1]["facts"]["lags"][column.value]["last_ts"] == last_set
    assert rows["trade_ref"]["whole"] == "100 %"
    (suspect,) = (row for row in page.rows("causes") if row["cause"] == "suspect")
    assert "quote_ref" in suspect["columns"]
    assert number(suspect["cells"]) >= 390, "those of the quotes, and what was made from them"
    chart = page.charts["coverage of the session by column and minute"]
    assert any(words.endswith("suspect 1") and words.startswith("09:30") for words in chart)


@needs_data
def test_figures_are_those_of_the_rows(client: Client, made: tuple[Page, dict]) -> None:
    """Classes, sides, usable rows, volatilities and flow, each computed another way from what the cells name."""
    page, _ = made
    sided = frames(client, "aggressor_ref")
    options = sided.filter(col("symbol").str.starts_with("O:"))
    by_asset = {row["asset"]: row for row in page.rows("prints")}
    assert number(by_asset["options"]["trades"]) == options.height
    assert number(by_asset["options"]["volume"]) == options["size"].sum()
    sides = {row["asset"]: row for row in page.rows("sides")}
    assert number(sides["options"]["side unknown"]) == options.filter(col("side") == "unknown").height > 0
    assert number(sides["stocks"]["at the exact mid"]) == sided["exact_mid"].sum() - options["exact_mid"].sum()

    greeks = frames(client, "greeks_ref")
    words = f"greeks_ref: {greeks['usable'].sum():,} of {greeks.height:,}"
    assert any(one.startswith(words) for one in page.charts["usable share of the rows of derived columns"])

    first = page.rows("skews")[0]
    near = [
        row
        for row in greeks.filter("usable").to_dicts()
        if row["ticker"].startswith("O:AAPL140606") and abs(float(row["ticker"][-8:]) / 1000 / row["spot"] - 1) <= NEAR
    ]
    weights, sums = 0, {"C": 0.0, "P": 0.0}
    for strike in {row["ticker"][-8:] for row in near}:
        ivs = {side: [row["iv"] for row in near if row["ticker"][-9:] == side + strike] for side in "CP"}
        weight = min(len(one) for one in ivs.values())
        weights += weight
        for side in "CP" if weight else "":
            sums[side] += pl.Series(ivs[side]).median() * weight  # type: ignore[operator]
    assert (first["underlying"], first["expiry"], number(first["trades"])) == ("AAPL", "2014-06-06", weights)
    assert first["calls - puts, points"] == f"{100 * (sums['C'] - sums['P']) / weights:+.2f}"

    twx = next(row for row in page.rows("movers") if row["underlying"] == "TWX")
    signs = {"buyer": 1, "seller": -1, "unknown": 0}
    stock = sum(signs[row["side"]] * row["price"] * row["size"] for row in sided.to_dicts() if row["symbol"] == "TWX")
    calls = frames(client, "aggs_1m").filter(col("symbol") == "TWX")["calls_signed_dadvv_total"].sum()
    assert (twx["stock"], twx["calls"]) == (f"{stock / 1e6:+,.2f} m", f"{calls / 1e3:+,.2f} k")
    assert [row["volume outside"] for row in page.rows("sources") if row["dataset"] == "us_stocks_sip/trades_v1"] == [
        "436,825"
    ]


@needs_data
def test_the_page_needs_no_network_and_names_operations(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No address at all; an operation on the session is in it, with its cause as it was written."""
    where = protocol.Range(session=SESSION, symbols="TWX", from_ts="10:00", to_ts="10:05")
    client.call(
        protocol.ClearRequest(columns=[Column.TRADE_REF], range=where, cause="<b>bad</b> & worse", confirmed=True)
    )
    out = tmp_path / "day.html"
    assert run(("--socket", str(client.path), "report", SESSION, "--out", str(out))) == 0
    assert str(out) in capsys.readouterr().out
    text = out.read_text()
    page = Page(text)
    assert page.addresses == []
    assert not re.search(r"https?:|@import|<script|<link|<img|<iframe", text)
    (row,) = page.rows("operations")
    assert (row["what"], row["cells"], row["cause"]) == ("clear", "trade_ref 5", "<b>bad</b> & worse")


def small_reply(**more: object) -> ReportReply:
    """Two minutes of one symbol, one of them suspect."""
    good, bad = Counts(filled=1), Counts(filled=1, suspect=1)
    by_minute = {str(OPEN_NS): {Column.TRADE_REF: good}, str(OPEN_NS + MINUTE_NS): {Column.TRADE_REF: bad}}
    coverage = CoverageReply(
        session="2013-10-07",
        windows=2,
        symbols=1,
        columns={Column.TRADE_REF: Counts(filled=2, suspect=1)},
        by_minute=by_minute,
    )
    return ReportReply(session="2013-10-07", verdict="1 suspect cell", coverage=coverage, **more)  # type: ignore[arg-type]


def test_a_page_is_made_of_what_there_is() -> None:
    """Names that would be markup stay text; the suspect minute has its letter and colour; flow and skew are drawn."""
    cause = Cause(
        cause="suspect",
        columns=[Column.TRADE_REF],
        cells=1,
        symbols=1,
        first=OPEN_NS,
        last=OPEN_NS,
        remedy="m17ctl accept --symbols 'A<B'",
        detail="look",
    )
    figures = DayFigures(
        [Prints("stocks", "odd_lot", 3, 30.0)],
        [Sides("stocks", 0, 3, 1, 1, 0, 0)],
        [Skew("A<B", "2013-10-19", 1, 2, 0.25, 0.27)],
        [Mover("A<B", 1.5e9, 0.0, 2e6, 10.0, 11.0, [1.0, -2.0])],
    )
    page = Page(render(small_reply(causes=[cause]), figures, zone=ZONE, exchange="XNYS", foot="made"))
    assert [row["underlying"] for row in page.rows("movers")] == ["A<B"]
    assert page.rows("movers")[0]["net"] == "+1.50 bn"
    assert page.rows("movers")[0]["change"] == "+10.00 %"
    assert "m17ctl accept --symbols 'A<B'" in page.rows("causes")[0]["what it is, and what to do"]
    chart = page.charts["coverage of the session by column and minute"]
    assert "S" in chart, "trouble is told by letter, not by colour alone"
    assert "09:31: filled 1, suspect 1" in chart
    assert page.rows("skews")[0]["calls - puts, points"] == "-2.00"
    assert page.charts["call minus put volatility of A<B by expiry"][-1].startswith("2013-10-19: calls 25.00%")


def test_a_session_without_anything_has_a_page() -> None:
    """Every section says that there is nothing."""
    reply = ReportReply(
        session="2013-10-07",
        verdict="whole",
        coverage=CoverageReply(session="2013-10-07", windows=390, symbols=0, columns={}),
    )
    page = Page(render(reply, DayFigures([], [], [], []), zone=ZONE, exchange="XNYS", foot="made"))
    assert set(page.tables) == {"columns"}
    assert "No source is known." in page.text
    assert "No strike at the money" in page.text


def test_every_colour_is_known_by_day_and_by_night() -> None:
    """A colour that the style does not have would be black; one that only the day has would be lost on the dark page."""
    cause = Cause(
        cause="suspect", columns=[], cells=1, symbols=1, first=OPEN_NS, last=OPEN_NS, remedy="x", detail="look"
    )
    figures = DayFigures(
        [Prints("stocks", "odd_lot", 3, 30.0)],
        [Sides("stocks", at, 3, 1, 1, 0, 0) for at in (0, 1)],
        [Skew("A", "2013-10-19", 1, 2, 0.25, 0.27)],
        [Mover("A", 1.5e9, 0.0, 2e6, 10.0, 11.0, [1.0, -2.0])],
    )
    text = render(small_reply(causes=[cause]), figures, zone=ZONE, exchange="XNYS", foot="made")
    day, night = (
        dict(re.findall(r"--([\w-]+): (#\w+)", rule)) for rule in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    )
    used = set(re.findall(r"var\(--([\w-]+)\)", text + " ".join(COLORS.values())))
    assert len(used) > 12
    assert used <= set(day) == set(night)
    outside = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert set(re.findall(r'(?:fill|stroke|background:)="?(#\w+)', outside)) <= {"#ffffff"}
    assert all(one.startswith("var(") for one in COLORS.values())


def test_neighbours_of_a_strip_leave_no_seam() -> None:
    """Each mark reaches under the next, the last one ends where the strip does."""
    runs = [Run(0, 3, BLUE, "", "a"), Run(3, 4, BLUE, "", "b"), Run(4, 7, BLUE, "", "c")]
    marks = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', strips([Strip("one", runs, "")], 7, [], "map")
    )
    spans = [(float(x), float(x) + float(width)) for x, width in marks]
    assert [end > start + 0.5 for (_, end), (start, _) in itertools.pairwise(spans)] == [True, True]
    assert spans[-1][1] == pytest.approx(WIDTH - 70, abs=0.1)
