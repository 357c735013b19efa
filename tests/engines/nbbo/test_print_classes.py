"""The table of print classes: what codes mean, which class wins, and what a table must not say."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from engines.nbbo.print_classes import COLUMNS, PrintClass, PrintTable, PrintTableError, counts

DAY = datetime.date(2024, 3, 8)
TABLE = PrintTable.load()


@pytest.mark.parametrize(
    ("conditions", "correction", "expected"),
    [
        (None, None, PrintClass.REGULAR),
        ("", 0, PrintClass.REGULAR),
        ("14,41", None, PrintClass.REGULAR),
        ("12,37", 0, PrintClass.EXTENDED),
        ("14,37,41", 0, PrintClass.ODD_LOT),
        ("2,10,41", None, PrintClass.AVERAGE_OR_DERIVED),
        ("2,32,41", None, PrintClass.OUT_OF_SEQUENCE),
        ("9,17,41", None, PrintClass.AUCTION),
        ("9", None, PrintClass.CROSS_OR_FLOOR),
        ("52,41", None, PrintClass.MULTI_LEG),
        ("30", None, PrintClass.LATE),
        ("16", None, PrintClass.OFFICIAL_PRICE),
        ("14,41", 1, PrintClass.REGULAR),
        ("14,41", 8, PrintClass.CANCELLED),
        ("15", "12", PrintClass.CANCELLED),
        (" 14 , 37 ", "", PrintClass.ODD_LOT),
    ],
)
def test_stock_codes(conditions: str | None, correction: int | str | None, expected: PrintClass) -> None:
    """The most restrictive class of a print's codes wins."""
    assert TABLE.classify_conditions([conditions], [correction], False, DAY).tolist() == [expected]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ("209", PrintClass.REGULAR),
        ("201", PrintClass.CANCELLED),
        ("202", PrintClass.OUT_OF_SEQUENCE),
        ("208", PrintClass.LATE),
        ("227", PrintClass.AUCTION),
        ("231", PrintClass.CROSS_OR_FLOOR),
        ("232", PrintClass.MULTI_LEG),
        ("247", PrintClass.AVERAGE_OR_DERIVED),
        ("248", PrintClass.EXTENDED),
        ("37", PrintClass.REGULAR),
    ],
)
def test_option_codes(conditions: str, expected: PrintClass) -> None:
    """Options have ids of their own; a stock's id means nothing there."""
    assert TABLE.classify_conditions([conditions], [None], True, DAY).tolist() == [expected]


def test_mixed_instruments_and_repeated_codes() -> None:
    """Prints of stocks and options in one call, in their order."""
    classes = TABLE.classify_conditions(["37", "37", "232", "37"], [0, 0, 0, 8], [False, True, True, False], DAY)
    assert classes.dtype == np.int8
    assert classes.tolist() == [PrintClass.ODD_LOT, PrintClass.REGULAR, PrintClass.MULTI_LEG, PrintClass.CANCELLED]


def test_unknown_codes_are_named_and_restrict_nothing() -> None:
    """An id out of the table, or out of its dates, is reported; odd lots are on the tape since 2013-12-09."""
    conditions, corrections = ["37,999", "37", "x", ""], [0, 99, 0, None]
    old = datetime.date(2013, 12, 6)
    assert TABLE.unknown_codes(conditions, corrections, False, DAY) == [
        ("condition", False, "999"),
        ("condition", False, "x"),
        ("correction", False, "99"),
    ]
    assert ("condition", False, "37") in TABLE.unknown_codes(conditions, corrections, False, old)
    assert TABLE.classify_conditions(["37"], [0], False, old).tolist() == [PrintClass.REGULAR]


def test_eligible_and_counting_classes() -> None:
    """Which classes set prices, by instrument, and which are no trades at all."""
    classes = np.arange(len(PrintClass), dtype=np.int8)
    stock = {PrintClass(int(i)) for i in np.flatnonzero(TABLE.eligible(classes, False))}
    option = {PrintClass(int(i)) for i in np.flatnonzero(TABLE.eligible(classes, True))}
    assert stock == {PrintClass.REGULAR, PrintClass.CROSS_OR_FLOOR, PrintClass.AUCTION, PrintClass.LATE}
    assert option == stock | {PrintClass.MULTI_LEG}
    assert TABLE.eligible(np.full(2, PrintClass.MULTI_LEG, np.int8), [True, False]).tolist() == [True, False]
    assert {PrintClass(int(i)) for i in np.flatnonzero(~counts(classes))} == {
        PrintClass.OFFICIAL_PRICE,
        PrintClass.CANCELLED,
    }


def test_unequal_lengths_are_refused() -> None:
    """One correction for two conditions is a mistake of the caller."""
    with pytest.raises(ValueError, match="2 conditions, 1 corrections"):
        TABLE.classify_conditions(["", ""], [0], False, DAY)


def _table(tmp_path: Path, *lines: str, header: str = ",".join(COLUMNS)) -> Path:
    path = tmp_path / "classes.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def test_a_code_may_change_its_meaning_at_a_date(tmp_path: Path) -> None:
    """The session's date chooses the line; both ends are inclusive."""
    table = PrintTable.load(
        _table(tmp_path, "condition,stock,5,regular,1,,2015-06-30,a", "condition,stock,5,odd_lot,0,2015-07-01,,b")
    )
    days = [datetime.date(2015, 6, 30), datetime.date(2015, 7, 1)]
    classes = [table.classify_conditions(["5"], [None], False, day).tolist() for day in days]
    assert classes == [[PrintClass.REGULAR], [PrintClass.ODD_LOT]]
    assert table.fingerprint != TABLE.fingerprint


def test_fingerprint_ignores_names_and_order(tmp_path: Path) -> None:
    """Only what changes a result changes the recipe."""
    one, two = "condition,stock,5,regular,1,,,a", "condition,stock,6,odd_lot,0,,,b"
    first = PrintTable.load(_table(tmp_path, one, two)).fingerprint
    assert PrintTable.load(_table(tmp_path, two + "!", one)).fingerprint == first
    assert PrintTable.load(_table(tmp_path, one, two.replace("6", "7"))).fingerprint != first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("condition,stock,5,regular", "line 2: 4 fields"),
        ("state,stock,5,regular,1,,,a", "line 2: kind 'state'"),
        ("condition,bond,5,regular,1,,,a", "instrument 'bond'"),
        ("condition,stock,-5,regular,1,,,a", "code '-5'"),
        ("condition,stock,5,fine,1,,,a", "class 'fine'"),
        ("condition,stock,5,regular,yes,,,a", "sets_last 'yes'"),
        ("condition,stock,5,regular,0,,,a", "a regular print sets the last price"),
        ("condition,stock,5,cancelled,1,,,a", "no trades"),
        ("condition,stock,5,regular,1,1.1.2014,,a", "date '1.1.2014'"),
        ("condition,stock,5,regular,1,2015-01-01,2014-01-01,a", "after valid_to"),
        ("condition,stock,4,late,1,,,a\ncondition,stock,4,late,1,,,b", "line 3: condition 4 is there already"),
        ("condition,stock,4,late,1,,,a\ncondition,stock,5,late,0,,,b", "line 3: sets_last differs from condition 4"),
    ],
)
def test_bad_table_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    """The message says which file, which line and what is wrong."""
    path = _table(tmp_path, line)
    with pytest.raises(PrintTableError) as caught:
        PrintTable.load(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path))


def test_bad_header_is_refused(tmp_path: Path) -> None:
    """A table of another form is not guessed at."""
    with pytest.raises(PrintTableError, match="line 1: the header"):
        PrintTable.load(_table(tmp_path, header="code,class"))
