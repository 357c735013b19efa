"""
The table of print classes: what a trade's condition and correction codes make of it.

The packaged table (``print_classes.csv`` beside this module, overridable by a file of the same form) maps the
upstream ids of stock and option trades to one class each, with the dates between which the id has that meaning
(``valid_from`` and ``valid_to``, both inclusive, empty = open). Sources: the upstream's published list of conditions
and their consolidated update rules, the trade conditions of OPRA in letter order (id = 201 + position in A-Z, a-z;
212, 213, 216 and 217 are inferred from the letter alone), and the correction indicators of the NYSE's TAQ records.
``sets_last`` follows the consolidated rule of the open and close. It differs from that rule on purpose in two places:
35 is treated as the 52 that replaced it, and 38 is a price marker, not a trade.

A print with several codes takes the most restrictive class; ``PrintClass`` is numbered in that order. A class decides
alone whether its prints set prices and whether they count, so that the class column of a row is all a reader needs;
the loader refuses a table where that is not so. The module must never drop a print: it only names classes.
"""

from __future__ import annotations

import csv
import datetime
import zlib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from importlib import resources
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Kind = Literal["condition", "correction"]

COLUMNS: Final = ("kind", "instrument", "code", "class", "sets_last", "valid_from", "valid_to", "name")
_CODE_MAX: Final = 2**31 - 1


class PrintClass(IntEnum):
    """Classes from the least to the most restrictive; int8 in arrays, the word in Parquet."""

    REGULAR = 0
    CROSS_OR_FLOOR = 1
    """A cross or a floor trade, at a price that counts."""
    AUCTION = 2
    LATE = 3
    """Reported late, but in sequence: no later trade was reported before it."""
    MULTI_LEG = 4
    """A leg of a package or a trade contingent on another; the price is that of the package."""
    ODD_LOT = 5
    EXTENDED = 6
    AVERAGE_OR_DERIVED = 7
    """An averaged, derived or specially settled price."""
    OUT_OF_SEQUENCE = 8
    """The price belongs to an earlier time than the report."""
    OFFICIAL_PRICE = 9
    """A market centre's statement of its open or close: a price with a size, but not a trade of its own."""
    CANCELLED = 10
    """A cancelled or erroneous trade, and the records that say so."""

    @property
    def word(self) -> str:
        """Lower-case word stored in rows."""
        return self.name.lower()


NOT_TRADES: Final = (PrintClass.OFFICIAL_PRICE, PrintClass.CANCELLED)
"""Classes that leave everything under ``prints = "eligible"``: counting them would count no trade, or one twice."""


class PrintTableError(ValueError):
    """The table cannot be read; the message says which file, which line and what to do."""


class PrintCode(NamedTuple):
    """One line of the table."""

    kind: Kind
    of_options: bool
    code: int
    print_class: PrintClass
    sets_last: bool
    valid_from: datetime.date
    valid_to: datetime.date
    name: str


class PrintTable:
    """A loaded table; immutable, picklable."""

    def __init__(self, codes: Sequence[PrintCode]) -> None:
        self._codes = tuple(codes)

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """
        Read a table, by default the packaged one.

        Raises:
            PrintTableError: a line cannot be read or contradicts another one.
            OSError: the file cannot be opened.
        """
        if path is None:
            text = resources.files("engines.nbbo").joinpath("print_classes.csv").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        return cls(_parse(text, "print_classes.csv" if path is None else str(path)))

    @property
    def codes(self) -> tuple[PrintCode, ...]:
        """All lines, in the table's order."""
        return self._codes

    @property
    def fingerprint(self) -> int:
        """CRC-32 of the meaning of all lines, names left out, whatever their order; part of the recipe."""
        lines = sorted(repr((*code[:3], int(code.print_class), *code[4:-1])) for code in self._codes)
        return zlib.crc32("\n".join(lines).encode())

    def classify_conditions(
        self,
        conditions: Sequence[str | None],
        corrections: Sequence[int | str | None],
        of_options: bool | Sequence[bool] | NDArray[np.bool_],
        session: datetime.date,
    ) -> NDArray[np.int8]:
        """
        Class of each print.

        Each different triple is looked up once; callers with columns do best to pass their unique pairs and gather.
        An id that the table does not know at that date restricts nothing; ``unknown_codes`` names them.

        Args:
            conditions: n lists of ids as the feed has them, ``"14,41"``; empty or None = none.
            corrections: n correction indicators; empty or None = 0.
            of_options: whether the instruments are option contracts, for all or for each.
            session: the exchange's date, which selects the lines in force.

        Returns:
            i8[n] of ``PrintClass``.

        Raises:
            ValueError: the arguments differ in length.
        """
        keys = _keys(conditions, corrections, of_options)
        maps = self._maps(session)
        known = {key: _class_of(maps, *key) for key in dict.fromkeys(keys)}
        return np.fromiter((known[key] for key in keys), dtype=np.int8, count=len(keys))

    def unknown_codes(
        self,
        conditions: Sequence[str | None],
        corrections: Sequence[int | str | None],
        of_options: bool | Sequence[bool] | NDArray[np.bool_],
        session: datetime.date,
    ) -> list[tuple[Kind, bool, str]]:
        """
        The ids that ``classify_conditions`` would not know, as (kind, of options, text), sorted and once each.

        Raises:
            ValueError: the arguments differ in length.
        """
        maps = self._maps(session)
        unknown: set[tuple[Kind, bool, str]] = set()
        for condition, correction, options in dict.fromkeys(_keys(conditions, corrections, of_options)):
            for kind, text in _tokens(condition, correction):
                if _number(text) not in maps[kind, options]:
                    unknown.add((kind, options, text))
        return sorted(unknown)

    def eligible(
        self, classes: NDArray[np.int8], of_options: bool | Sequence[bool] | NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """
        May these prints set prices (last-eligible)?

        Multi-leg prints set the last price of an option, but not of a stock; the other classes are alike in both.

        Args:
            classes: i8[n] of ``PrintClass``.
            of_options: for all or for each.

        Returns:
            bool[n].
        """
        sets_last = np.zeros((2, len(PrintClass)), np.bool_)
        sets_last[:, PrintClass.REGULAR] = True
        for code in self._codes:
            sets_last[int(code.of_options), code.print_class] = code.sets_last
        options = np.broadcast_to(np.asarray(of_options, np.bool_), np.shape(classes)).astype(np.int8)
        result: NDArray[np.bool_] = sets_last[options, classes]
        return result

    def _maps(self, session: datetime.date) -> Mapping[tuple[Kind, bool], Mapping[int | None, PrintClass]]:
        """Code to class of the lines in force, by kind and instrument."""
        maps: dict[tuple[Kind, bool], dict[int | None, PrintClass]] = {}
        for options in (False, True):
            maps["condition", options] = {}
            maps["correction", options] = {}
        for code in self._codes:
            if code.valid_from <= session <= code.valid_to:
                maps[code.kind, code.of_options][code.code] = code.print_class
        return maps


def counts(classes: NDArray[np.int8]) -> NDArray[np.bool_]:
    """
    Do these prints count as trades under ``prints = "eligible"``?

    Args:
        classes: i8[n] of ``PrintClass``.

    Returns:
        bool[n]; False for ``NOT_TRADES``.
    """
    return ~np.isin(classes, NOT_TRADES)


def _keys(
    conditions: Sequence[str | None],
    corrections: Sequence[int | str | None],
    of_options: bool | Sequence[bool] | NDArray[np.bool_],
) -> list[tuple[str, str, bool]]:
    """One triple of texts and bool per print."""
    size = len(conditions)
    options = [of_options] * size if isinstance(of_options, bool) else [bool(value) for value in of_options]
    if not len(corrections) == len(options) == size:
        raise ValueError(
            f"{size} conditions, {len(corrections)} corrections, {len(options)} of_options: pass one each per print"
        )
    return [
        (condition or "", "" if correction is None else str(correction), option)
        for condition, correction, option in zip(conditions, corrections, options, strict=True)
    ]


def _tokens(condition: str, correction: str) -> list[tuple[Kind, str]]:
    """The single ids of one print."""
    tokens: list[tuple[Kind, str]] = [("condition", part.strip()) for part in condition.split(",") if part.strip()]
    if correction.strip():
        tokens.append(("correction", correction.strip()))
    return tokens


def _number(text: str) -> int | None:
    """The id, or None where the text is none."""
    return int(text) if text.isascii() and text.isdigit() else None


def _class_of(
    maps: Mapping[tuple[Kind, bool], Mapping[int | None, PrintClass]], condition: str, correction: str, options: bool
) -> PrintClass:
    """Most restrictive class of one print's ids."""
    return max(
        (maps[kind, options].get(_number(text), PrintClass.REGULAR) for kind, text in _tokens(condition, correction)),
        default=PrintClass.REGULAR,
    )


def _parse(text: str, source: str) -> list[PrintCode]:
    """All lines of a table, checked one by one and against each other."""
    lines = csv.reader(text.splitlines())
    header = tuple(next(lines, ()))
    if header != COLUMNS:
        raise PrintTableError(f"{source}, line 1: the header is {','.join(header)!r}, it must be {','.join(COLUMNS)!r}")
    codes: list[PrintCode] = []
    for number, fields in enumerate(lines, start=2):
        place = f"{source}, line {number}"
        if len(fields) != len(COLUMNS):
            raise PrintTableError(f"{place}: {len(fields)} fields, give {len(COLUMNS)}")
        code = _parse_line(dict(zip(COLUMNS, (field.strip() for field in fields), strict=True)), place)
        _check_against(codes, code, place)
        codes.append(code)
    return codes


def _parse_line(fields: Mapping[str, str], place: str) -> PrintCode:
    """One line."""
    kind: Kind
    if fields["kind"] == "condition":
        kind = "condition"
    elif fields["kind"] == "correction":
        kind = "correction"
    else:
        raise PrintTableError(f"{place}: kind {fields['kind']!r}, use condition or correction")
    if fields["instrument"] not in ("stock", "option"):
        raise PrintTableError(f"{place}: instrument {fields['instrument']!r}, use stock or option")
    code = _number(fields["code"])
    if code is None or code > _CODE_MAX:
        raise PrintTableError(f"{place}: code {fields['code']!r}, use a whole number")
    words = {print_class.word: print_class for print_class in PrintClass}
    if fields["class"] not in words:
        raise PrintTableError(f"{place}: class {fields['class']!r}, use one of {', '.join(words)}")
    if fields["sets_last"] not in ("0", "1"):
        raise PrintTableError(f"{place}: sets_last {fields['sets_last']!r}, use 0 or 1")
    return PrintCode(
        kind=kind,
        of_options=fields["instrument"] == "option",
        code=code,
        print_class=words[fields["class"]],
        sets_last=fields["sets_last"] == "1",
        valid_from=_date(fields["valid_from"], datetime.date.min, place),
        valid_to=_date(fields["valid_to"], datetime.date.max, place),
        name=fields["name"],
    )


def _date(text: str, default: datetime.date, place: str) -> datetime.date:
    """An ISO date, or the default where it is left open."""
    if not text:
        return default
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise PrintTableError(f"{place}: date {text!r}, use YYYY-MM-DD or leave it empty") from error


def _check_against(codes: Sequence[PrintCode], code: PrintCode, place: str) -> None:
    """Refuse a line that would make an answer depend on the order of lines, or a class on more than itself."""
    if code.valid_from > code.valid_to:
        raise PrintTableError(f"{place}: valid_from {code.valid_from} is after valid_to {code.valid_to}")
    if code.print_class == PrintClass.REGULAR and not code.sets_last:
        raise PrintTableError(f"{place}: a regular print sets the last price; use sets_last 1 or another class")
    if code.print_class in NOT_TRADES and code.sets_last:
        raise PrintTableError(f"{place}: {code.print_class.word} prints are no trades; use sets_last 0")
    for other in codes:
        if other[:3] == code[:3] and other.valid_from <= code.valid_to and code.valid_from <= other.valid_to:
            raise PrintTableError(f"{place}: {code.kind} {code.code} is there already for some of these dates")
        same_class = other.of_options == code.of_options and other.print_class == code.print_class
        if same_class and other.sets_last != code.sets_last:
            raise PrintTableError(
                f"{place}: sets_last differs from {other.kind} {other.code} of the same class {code.print_class.word}; "
                "a class decides it alone, so use another class"
            )
