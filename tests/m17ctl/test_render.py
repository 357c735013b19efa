"""Tables, heat maps, sparklines, progress and formats: fixed pictures, widths that hold, nothing that needs colour."""

from __future__ import annotations

import io
import re
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.columns import Column
from m17ctl.formats import (
    format_bytes,
    format_duration,
    format_share,
    format_time,
    parse_date,
    parse_time,
    zone_of,
)
from m17ctl.heatmap import glyph, heat_map
from m17ctl.invocation import Invocation
from m17ctl.options import make_range, range_words
from m17ctl.render import busy_columns, cell_width, counts_table, fields, progress_line, shorten, sparkline, table, tree
from m17ctl.terminal import Terminal
from m17d.outcomes import Progress
from tests.m17ctl.fakes import MINUTE_NS, OPEN_NS, counts

NEW_YORK = zone_of("XNYS")


def _plain(text: str, color: str | None) -> str:
    return text


def test_a_heat_map_is_exactly_this_picture() -> None:
    """390 minutes in 72 cells: shades for shares, letters where nothing is whole, a legend of what occurs."""
    starts = [OPEN_NS + minute * MINUTE_NS for minute in range(390)]
    whole = [counts(filled=40, no_data=10)] * 390
    holes = [counts(filled=40)] * 100 + [counts(empty=40)] * 25 + [counts(filled=30, empty=10)] * 265
    waiting = [counts(filled=10, suspect=10)] * 30 + [counts(cleared=3, filled=1)] * 30 + [counts(not_due=5)] * 330
    lines = heat_map(
        [
            ("trade_ref", whole),
            ("quote_ref", holes),
            ("greeks_ref", waiting),
            ("aggs_1h", [counts(not_applicable=4)] * 390),
        ],
        starts,
        zone=NEW_YORK,
        width=72,
        paint=_plain,
    )
    assert lines == [
        "            09:30    11:00    12:30    14:00",
        "trade_ref   ███████████████████████████████████████    100 %",
        "quote_ref   ██████████EE▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓   76.6 %",
        "greeks_ref  SSS░░░---------------------------------    7.1 %",
        "aggs_1h                                                    -",
        "one character: 10 minutes   █ whole   ▓ two thirds whole   ▒ a third",
        "░ less   E empty   S suspect   - not due",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200, 500])
def test_a_heat_map_fits_the_terminal(width: int) -> None:
    """Every line of a map is at most as wide as the terminal."""
    starts = [OPEN_NS + minute * MINUTE_NS for minute in range(210)]
    lines = heat_map([("O:TWX131011C00070000", [counts(filled=1)] * 210)], starts, zone=UTC, width=width, paint=_plain)
    assert max(cell_width(line) for line in lines) <= width


@pytest.mark.parametrize(
    ("shown", "of"),
    [
        ("█", counts(filled=3)),
        ("█", counts(filled=3, no_data=2)),
        ("·", counts(filled=3, no_data=3)),
        ("▓", counts(filled=2, empty=1)),
        ("▒", counts(filled=1, empty=2)),
        ("░", counts(filled=1, empty=3)),
        ("E", counts(empty=3, cleared=1)),
        ("C", counts(cleared=2, pending=1)),
        ("P", counts(pending=1)),
        ("S", counts(filled=2, suspect=2)),
        ("T", counts(filled=2, stale=2)),
        ("-", counts(not_due=1, not_applicable=7)),
        (" ", counts(not_applicable=7)),
    ],
)
def test_a_glyph_says_what_its_cells_are(shown: str, of: object) -> None:
    """One character for every state, and full only where everything is whole."""
    assert glyph(of) == shown  # type: ignore[arg-type]


def test_a_strict_glyph_shows_the_smallest_trouble() -> None:
    """On a symbol's own line one hole in five minutes must be seen."""
    assert glyph(counts(filled=54, empty=1), strict=True) == "E"


def test_a_table_cuts_its_widest_column_to_the_width() -> None:
    """A long reason never breaks the columns before it."""
    rows = [["trade_flatfile", "failed", "1,234", "the file has no gzip trailer and cannot be read to its end"]]
    lines = table(("engine", "state", "backlog", "detail"), rows, width=60, right="llr")
    assert lines == [
        "engine          state   backlog  detail",
        "trade_flatfile  failed    1,234  the file has no gzip trail…",
    ]


@given(
    st.lists(
        st.lists(st.text(st.characters(categories=["L", "N", "Zs"]), max_size=40), min_size=3, max_size=3), max_size=4
    ),
    st.integers(min_value=30, max_value=120),
)
def test_no_line_of_a_table_is_wider_than_asked(rows: list[list[str]], width: int) -> None:
    """Whatever the cells hold, wide characters too."""
    assert all(cell_width(line) <= width for line in table(("a", "b", "c"), rows, width=width))


@given(st.text(max_size=40), st.integers(min_value=1, max_value=30))
def test_shortened_text_fits_and_says_that_it_was_cut(text: str, width: int) -> None:
    """An ellipsis stands where something went."""
    cut = shorten(text, width)
    assert cell_width(cut) <= width
    assert cut == text or cut.endswith("…")


def test_counts_leave_out_what_no_column_has() -> None:
    """A quiet year is a narrow table."""
    columns = {Column.TRADE_REF: counts(filled=390, no_data=3), Column.QUOTE_REF: counts(filled=389, empty=1)}
    assert counts_table(columns, width=None) == [
        "column      whole  empty  filled  no data",
        "trade_ref   100 %      0     390        3",
        "quote_ref  99.7 %      1     389        0",
    ]


def test_sparklines_progress_fields_and_trees_look_like_this() -> None:
    """Small pictures, fixed."""
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
    line = progress_line(50, 200, unit="cells", seconds=5.0, eta_s=None)
    assert line == "█████░░░░░░░░░░░░░░░ 50/200 cells  25.0 %  10/s  15 s left"
    assert progress_line(7, 0, unit="files", seconds=0.0, eta_s=None) == "7 files"
    line = progress_line(1 << 30, 1 << 32, unit="bytes", seconds=4.0, eta_s=None, detail="2 findings so far")
    assert line == "█████░░░░░░░░░░░░░░░ 1.0 GiB/4.0 GiB  25.0 %  256.0 MiB/s  12 s left  2 findings so far"
    assert progress_line(3 << 20, 0, unit="bytes", seconds=0.0, eta_s=None) == "3.0 MiB"
    assert fields([("a", "1"), ("long", "2")]) == ["a     1", "long  2"]
    assert tree("top", [["one", "two"], ["three"]]) == ["top", "├─ one", "│  two", "└─ three"]


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    """99.99 % is not whole, and one cell is not nothing."""
    assert format_share(99_999, 100_000) == "99.9 %"
    assert format_share(1, 100_000) == "0.1 %"
    assert (format_share(5, 5), format_share(0, 5), format_share(0, 0)) == ("100 %", "0.0 %", "-")


def test_sizes_and_durations() -> None:
    """Units that a person reads."""
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 * 2**40)] == ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]
    assert [format_duration(s) for s in (0.4, 59, 200, 7500, 100_000)] == [
        "0 s",
        "59 s",
        "3 min 20 s",
        "2 h 5 min",
        "1 d 3 h",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "2013-10-07",
        "2013-10-07T09:31",
        "2013-10-07 09:31:05.25",
        "09:31",
        "09:31:59",
        "2013-10-07T13:31Z",
        "13:31+02:00",
    ],
)
def test_times_in_accepted_forms_pass_as_text(text: str) -> None:
    """The daemon resolves them on the exchange's clock."""
    assert parse_time(text) == text


@pytest.mark.parametrize(
    "text", ["", "noon", "9:31", "2013-10-07T", "2013-10-0709:31", "24:00", "09:61", "-5", "12345"]
)
def test_what_is_no_time_is_refused_with_the_accepted_forms(text: str) -> None:
    """The message shows how to write it."""
    with pytest.raises(ValueError, match="write 2013-10-07T09:31"):
        parse_time(text)


def test_dates_must_exist() -> None:
    """The thirtieth of February is no session of any year."""
    assert parse_date("2013-02-28") == "2013-02-28"
    for text in ("2013-02-30", "20130228", "2013-2-28", "yesterday"):
        with pytest.raises(ValueError, match="is not a date"):
            parse_date(text)


@given(st.integers(min_value=1_356_998_400, max_value=1_388_534_399), st.integers(min_value=0, max_value=999_999_999))
def test_a_time_shown_in_utc_reads_back(seconds: int, fraction: int) -> None:
    """What is printed can be pasted."""
    shown = format_time(seconds * 10**9 + fraction, UTC)
    assert parse_time(shown) == shown
    assert shown.endswith("Z")


def test_times_are_shown_on_the_exchange_clock() -> None:
    """An exchange that is not known here gets UTC, marked as such."""
    assert format_time(OPEN_NS, NEW_YORK) == "2013-10-07T09:30"
    assert format_time(OPEN_NS, zone_of("XXXX")) == "2013-10-07T13:30Z"


def test_color_only_on_a_terminal_that_wants_it() -> None:
    """NO_COLOR and pipes get plain text."""

    def painted(environment: dict[str, str], is_terminal: bool) -> str:
        terminal = Terminal(
            io.StringIO(), io.StringIO(), io.StringIO(), environment=environment, is_terminal=is_terminal
        )
        return terminal.paint("x", "trouble")

    assert painted({}, True) == "\x1b[1;91mx\x1b[0m"
    assert painted({"NO_COLOR": "1"}, True) == "x"
    assert painted({"TERM": "dumb"}, True) == "x"
    assert painted({}, False) == "x"


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_a_painted_sentence_breaks_between_words_as_a_plain_one(environment: dict[str, str]) -> None:
    """Every line has the colour of the whole, and none is longer than the terminal."""
    out, verdict = io.StringIO(), "415 suspect cells; 2 sources are damaged; 3 sources are waiting for their files"
    terminal = Terminal(out, io.StringIO(), io.StringIO(), environment=environment, is_terminal=True, width=40)
    terminal.line(terminal.paint(verdict, "trouble"))
    lines = out.getvalue().splitlines()
    plain = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= 40
    assert " ".join(line.strip() for line in plain) == verdict
    assert all(line == (terminal.paint(text, "trouble")) for line, text in zip(lines, plain, strict=True))


def test_a_terminal_without_shades_gets_plain_characters() -> None:
    """A map in a C locale is still a map."""
    raw = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(raw, encoding="ascii"), io.StringIO(), io.StringIO(), environment={})
    terminal.line("█▓▒░·")
    terminal.flush()
    assert raw.getvalue() == b"#+=-.\n"


def test_a_range_is_pasted_as_it_was_given() -> None:
    """Globs are quoted, so that the shell leaves them alone."""
    asked = make_range("2013-10-07", "10:15", None, "O:TWX*")
    assert range_words(asked) == "--session 2013-10-07 --from 10:15 --symbols 'O:TWX*'"


def test_what_a_line_is_about_is_cut_last() -> None:
    """The text at the end gives way first, then the widest others; leading columns only when all else is narrow."""
    rows = [["2013-10-07", "us_options_opra/quotes_v1", "waiting", "a reason that is much too long for the line"]]
    lines = table(("session", "source", "state", "detail"), rows, width=64, right="", keep=3)
    assert lines[1] == "2013-10-07  us_options_opra/quotes_v1  waiting  a reason that i…"
    lines = table(("session", "source", "state", "detail"), rows, width=36, right="", keep=1)
    assert lines[1].startswith("2013-10-07  ")
    assert all(cell_width(line) <= 36 for line in lines)


def test_columns_that_say_nothing_are_left_out() -> None:
    """Nothing and noughts say nothing; the first columns always stay."""
    rows = [["a", "0", "", "0", "x"], ["b", "0", "", "3", ""]]
    assert busy_columns(("n", "o", "p", "q", "r"), rows, always=2) == [0, 1, 3, 4]


def test_prose_breaks_between_words_and_commands_do_not() -> None:
    """On a terminal; a table's line, a tree, a path that fits nowhere and a command to paste stay in one piece."""
    out = io.StringIO()
    terminal = Terminal(out, out, is_terminal=True, interactive=False, width=20, environment={"NO_COLOR": "1"})
    whole = (
        "m17ctl why trade_ref --session 2013-10-07",
        "├─ artifact trade/2013-10-07/x.parquet",
        "a  b  cccccccccccccccccccccc d",
    )
    for line in ("  one two three four five", *whole, "see /a/path/that/is/longer/than/a/line"):
        terminal.line(line)
    assert out.getvalue().splitlines() == [
        "  one two three four",
        "    five",
        *whole,
        "see /a/path/that/is/longer/than/a/line",
    ]


def test_progress_says_how_fast_and_how_long_still() -> None:
    """From when the work began; work that begins anew counts anew."""
    err = io.StringIO()
    clock = iter([0.0, 10.0, 20.0, 20.0, 25.0])
    terminal = Terminal(io.StringIO(), err, io.StringIO(), is_terminal=True, interactive=True, width=100)
    invocation = Invocation(terminal, lambda _path, _seconds: pytest.fail("nobody is asked"))
    invocation.now = lambda: next(clock)
    invocation.show_progress(Progress(done=0, total=400, unit="rows"))
    invocation._began_s = 0.0
    invocation.show_progress(Progress(done=100, total=400, unit="rows"))
    assert "100/400 rows  25.0 %  10/s  30 s left" in err.getvalue().splitlines()[-1]
    invocation.show_progress(Progress(done=0, total=50, unit="files"))
    invocation.show_progress(Progress(done=25, total=50, unit="files"))
    assert "25/50 files  50.0 %  5.0/s  5 s left" in err.getvalue().split("\r")[-1]
