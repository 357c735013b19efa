"""Settings of the Greeks engine, their recipe, and the carry of an underlying."""

from __future__ import annotations

import datetime
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.greeks.policy import CarryTable, GreeksSettings

D = datetime.date


def test_defaults_are_the_documented_ones() -> None:
    """One second, last session's close, no carry."""
    settings = GreeksSettings()
    assert (settings.staleness_ms, settings.staleness_ns) == (1000, 1_000_000_000)
    assert settings.expiry == "last-session-close" and settings.intrinsic == "discounted"
    assert {"SPX", "NDX", "RUT", "VIX"} <= set(settings.am_settled)
    assert CarryTable.load(settings).on("SPY", D(2014, 6, 6)) == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"staleness_ms": -1},
        {"staleness_ms": 60_001},
        {"expiry": "noon"},
        {"intrinsic": "none"},
        {"iv_min": 0.0},
        {"iv_min": 2.0, "iv_max": 1.0},
        {"iv_max": float("nan")},
        {"net_carry": {"SPY": 3.0}},
        {"net_carry": {"SPY": float("inf")}},
    ],
)
def test_values_out_of_range_are_refused_in_code_and_in_config(fields: dict[str, Any]) -> None:
    """Settings made in Python and settings decoded from a file obey the same rules."""
    with pytest.raises(ValueError):
        GreeksSettings(**fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, GreeksSettings)


def test_unknown_settings_are_refused() -> None:
    """A misspelt key is an error."""
    with pytest.raises(msgspec.ValidationError, match="stalenes_ms"):
        msgspec.convert({"stalenes_ms": 5}, GreeksSettings)


def test_recipe_changes_with_every_setting_and_with_the_carry_in_force() -> None:
    """Equal settings give equal recipes, whatever order lists were written in; every field enters."""
    base = GreeksSettings(am_settled=("SPX", "NDX")).recipe(0.0)
    assert base == GreeksSettings(am_settled=("NDX", "SPX", "SPX"), net_carry={"SPY": 0.02}).recipe(0.0)
    others = [
        GreeksSettings(am_settled=("SPX", "NDX"), **fields).recipe(carry)
        for fields, carry in (
            ({"staleness_ms": 500}, 0.0),
            ({"expiry": "calendar-1600"}, 0.0),
            ({"iv_min": 1e-3}, 0.0),
            ({"iv_max": 5.0}, 0.0),
            ({"intrinsic": "undiscounted"}, 0.0),
            ({}, 0.01),
        )
    ] + [GreeksSettings(am_settled=("SPX",)).recipe(0.0)]
    assert all(other != base and list(other) == list(base) for other in others)


def test_carry_from_numbers_and_dated_files(tmp_path: Path) -> None:
    """The newest date not after the session holds; before the first, and for others, the carry is 0."""
    (tmp_path / "spy.csv").write_text("Date,Carry\n2014-01-02,0.018\n\n2014-06-06,0.02\n", encoding="utf-8")
    table = CarryTable.load(GreeksSettings(net_carry={"SPY": "spy.csv", "TWX": 0.015}), tmp_path)
    days = (D(2014, 1, 1), D(2014, 1, 2), D(2014, 6, 5), D(2014, 6, 6), D(2020, 1, 1))
    assert [table.on("SPY", day) for day in days] == [0.0, 0.018, 0.018, 0.02, 0.02]
    assert (table.on("TWX", D(1990, 1, 1)), table.on("AIG", D(2014, 1, 2))) == (0.015, 0.0)
    assert pickle.loads(pickle.dumps(table)) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the header"),
        ("day,carry\n", "line 1: expected the header"),
        ("date,carry\n", "no rows"),
        ("date,carry\n2014-01-02,x\n", "line 2: expected"),
        ("date,carry\n2014-01-02\n", "line 2: expected"),
        ("date,carry\n2014-13-02,0.1\n", "line 2: expected"),
        ("date,carry\n2014-01-02,nan\n", "line 2: carry nan"),
        ("date,carry\n2014-01-02,1.8\n2014-01-03,18\n", "line 3: carry 18"),
        ("date,carry\n2014-01-02,0.1\n2014-01-02,0.2\n", "line 3: 2014-01-02 does not come after"),
    ],
)
def test_faulty_carry_files_are_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    """The error says which file and line, and what was expected."""
    (tmp_path / "carry.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        CarryTable.load(GreeksSettings(net_carry={"SPY": "carry.csv"}), tmp_path)
    assert "carry.csv" in str(caught.value)


def test_reading_the_settings_imports_neither_numba_nor_polars() -> None:
    """The daemon parses its config with this module."""
    program = "import sys, engines.greeks.policy; sys.exit('polars' in sys.modules or 'numba' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
