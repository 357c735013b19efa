"""Charts, frames and the places of a selection, as text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engines.aggregation.columns import COUNTS, METRICS
from m17ctl.tui import settings
from m17ctl.tui.axis import DAY
from m17ctl.tui.chart import chart, points_of, price_text
from m17ctl.tui.clipboard import OSC_52_BYTES_MAX, copy
from m17ctl.tui.frame import frame_text, number, split
from m17ctl.tui.ranges import ranges_of
from m17ctl.tui.texts import help_text, span_text
from m17ctl.tui.view import View
from tests.m17ctl.tui_world import EARLY, ZONE, World


def test_a_line_of_prices_goes_where_the_prices_go() -> None:
    """Up is up, the extremes are the scale, and a gap stays a gap."""
    rows, low, high = chart([1.0, 2.0, None, None, None, None, 4.0, 3.0], 2)
    assert (low, high) == (1.0, 4.0)
    assert [len(row) for row in rows] == [4, 4]
    assert rows[0].strip()[-1:], "the highest is in the upper line"
    assert rows[0][1] == rows[1][1] == " "
    assert chart([None, None], 3) == ([" "] * 3, 0.0, 0.0)
    flat, low, high = chart([5.0, 5.0], 1)
    assert flat != [" "]
    assert low == high == 5.0


def test_points_are_the_last_price_of_each_half() -> None:
    """Two a bucket; a bucket of one minute says its price twice."""
    prices = {0: 10.0, 4: 11.0, 5: 12.0, 9: 13.0, 12: 14.0}
    assert points_of(prices, [(0, 10), (10, 20), (12, 13), (30, 40)]) == [
        11.0,
        13.0,
        14.0,
        None,
        14.0,
        14.0,
        None,
        None,
    ]
    assert price_text(12345.6) == "12,346"
    assert price_text(645.5) == "645.50"


# ---- frames


def row() -> dict[str, object]:
    """An aggregate row with every column there is, each with a number of its own."""
    found: dict[str, object] = {"symbol": "AAPL", "minute": 5, "window": "5m"}
    found |= {"window_start_ns": 1_402_061_700_000_000_000, "window_end_ns": 1_402_062_000_000_000_000}
    found |= {"available_ns": 1_402_062_000_000_000_000, "covered_minutes": 5, "short": False}
    found |= {name: 100 + at for at, name in enumerate(COUNTS)}
    return found | {name: 1000.5 + at for at, name in enumerate(METRICS)}


@pytest.mark.parametrize("width", [78, 120, 200])
def test_a_frame_shows_every_metric_and_fits(width: int) -> None:
    """All 150 metrics and all counts, once each, in lines that fit the terminal."""
    values = row()
    lines = frame_text("AAPL", "5m", "2014-06-06", values, ZONE, width)
    text = "\n".join(lines)
    assert lines[0] == "AAPL 5m 2014-06-06 09:35 to 09:40"
    assert all(len(line) <= width for line in lines)
    missing = [name for name in (*METRICS, *COUNTS) if number(values[name]) not in text]
    assert missing == []


def test_columns_are_told_apart_by_their_statistic() -> None:
    """A new sample or a new plain column shows without a change here."""
    samples, plain = split({"puts_dadvv_mean": 1.0, "puts_dadvv_dip_pval": 0.5, "new_sample_q1": 2.0, "somethings": 7})
    assert samples == {"puts_dadvv": {"mean": 1.0, "dip_pval": 0.5}, "new_sample": {"q1": 2.0}}
    assert plain == {"somethings": 7}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (0.0, "0.0000"), (1.5, "1.5000"), (-12345.678, "-12,345.68"), (5.2e8, "520,000,000"),
     (1e-7, "1e-07"), (3, "3"), (True, "yes"), (2e14, "2e+14")],
)  # fmt: skip
def test_numbers_are_read_not_counted(value: object, text: str) -> None:
    """Five digits that matter."""
    assert number(value) == text


# ---- ranges, settings, copying, help


def test_a_selection_becomes_ranges_of_sessions_and_groups() -> None:
    """Times only where a session is cut; contracts of one root are one pattern."""
    axis = World().axis
    sessions = [axis.days[at].session for at in (3, 4)]
    whole = ranges_of(axis, (3 * DAY, 5 * DAY), sessions, ["AAPL", "O:AAPL"])
    assert [(one.session, one.symbols, one.from_ts) for one in whole] == [
        (session, symbol, None) for session in sessions for symbol in ("AAPL", "O:AAPL")
    ]
    (cut,) = ranges_of(axis, (3 * DAY + 30, 3 * DAY + 60), sessions[:1], None)
    assert cut.symbols is None
    assert cut.from_ts == axis.days[3].open_ts + 30 * 60 * 10**9
    assert cut.to_ts == axis.days[3].open_ts + 60 * 60 * 10**9
    (early,) = ranges_of(axis, (EARLY * DAY, EARLY * DAY + 210), [axis.days[EARLY].session], ["BRK.B"])
    assert early.from_ts is None
    contracts = ["O:TWX140621C00070000", "O:TWX140621P00070000", "O:TWX1140621C00070000"]
    patterns = [one.symbols for one in ranges_of(axis, (3 * DAY, 4 * DAY), sessions[:1], contracts)]
    assert patterns == [f"O:{root}{'[0-9]' * 6}[CP]{'[0-9]' * 8}" for root in ("TWX", "TWX1")]


def test_settings_are_remembered_by_state(tmp_path: Path) -> None:
    """Two states, two places; a file that is not ours is as none."""
    path = settings.settings_path({"XDG_STATE_HOME": str(tmp_path)})
    assert path == tmp_path / "m17" / "tui.json"
    assert settings.load(path, "/a") == settings.Settings()
    settings.save(path, "/a", settings.Settings(symbol="AAPL", window="5m", priority=7))
    settings.save(path, "/b", settings.Settings(symbol="IBM"))
    assert settings.load(path, "/a").symbol == "AAPL"
    assert settings.load(path, "/b").symbol == "IBM"
    assert os.listdir(path.parent) == ["tui.json"]
    path.write_text("{broken")
    assert settings.load(path, "/a") == settings.Settings()
    path.write_text(json.dumps({"states": {"/a": {"priority": 5000}}}))
    assert settings.load(path, "/a") == settings.Settings(), "a value out of bounds is no setting"


def test_a_copy_is_on_the_clipboard_and_in_a_file(tmp_path: Path) -> None:
    """What a terminal would drop goes to the file alone, and is said."""
    sent: list[str] = []
    assert "clipboard and to" in copy("short", sent.append, tmp_path / "m17")
    assert (tmp_path / "m17" / "copied.txt").read_text() == "short\n"
    assert "too long" in copy("x" * (OSC_52_BYTES_MAX + 1), sent.append, tmp_path / "m17")
    assert sent == ["short"]
    (tmp_path / "file").touch()
    assert "Not a directory" in copy("y", sent.append, tmp_path / "file" / "m17")


def test_every_key_is_on_the_help_page() -> None:
    """And the page fits 80 columns."""
    text = help_text()
    assert all(len(line) < 80 for line in text.splitlines())
    words = {"question_mark": "?", "enter": "Enter", "backspace": "Backspace", "ctrl+r": "Ctrl+R", "escape": "", "home": "",
             "end": "", "left": "", "right": "", "shift+left": "shift", "shift+right": "shift"}  # fmt: skip
    for binding in View.BINDINGS:
        assert isinstance(binding, tuple)
        for key in binding[0].split(","):
            assert words.get(key, key) in text, key


def test_a_span_says_its_date_once() -> None:
    """The second date only where it is another."""
    axis = World().axis
    start = axis.days[0].open_ts
    assert span_text(start, start + 30 * 60 * 10**9, ZONE) == "2014-01-02 09:30 to 10:00"
    assert span_text(start, axis.days[1].open_ts, ZONE) == "2014-01-02 09:30 to 2014-01-03 09:30"
