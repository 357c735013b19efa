"""
The fields of plain CSV lines, straight into columns: one look at each byte.

It knows exactly what upstream writes: integers and decimals without blanks or exponents, printable ASCII, quotes only
around a whole field. Anything else ends the scan with a doubt, and somebody slower decides: it must never guess a value.
Imports numba, so workers only.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.compiled import njit

UNUSED: Final = 0
INTEGER: Final = 1
SMALL: Final = 2
DECIMAL: Final = 3
TICKER: Final = 4
CODES: Final = 5
TEXT: Final = 6
"""Kinds of columns: not taken, i64, i32, f64, text in runs, text of a small set, any text."""

WORDS_MAX: Final = 4_096
"""Different texts of all columns of kind CODES in a file; more are no small set."""
_SLOTS: Final = 4 * WORDS_MAX
_WORD_BYTES: Final = 1 << 18
_HARD_MAX: Final = 4_096
"""Decimals of one scan that need a slower look."""
_COMMA: Final = 44
_NEWLINE: Final = 10
_QUOTE: Final = 34
_MINUS: Final = 45
_POINT: Final = 46
_POWERS: Final = 10.0 ** np.arange(20)
_EXACT: Final = 1 << 53
_LARGEST: Final = (1 << 63) - 1


class Words(NamedTuple):
    """The texts of columns of kind CODES, numbered as they came; kept from scan to scan."""

    slots: NDArray[np.int32]
    """i32[slots], 1 + number of the text, 0 for none; open addressing by hash."""
    hashes: NDArray[np.uint64]
    starts: NDArray[np.int32]
    """i32[words + 1], where each lies in ``text``."""
    text: NDArray[np.uint8]
    known: NDArray[np.int64]
    """i64[1]."""


class Columns(NamedTuple):
    """What one scan fills: room for ``rows_max`` rows, a line of each array for a column of its kind."""

    integers: NDArray[np.int64]
    small: NDArray[np.int32]
    decimals: NDArray[np.float64]
    codes: NDArray[np.int32]
    """i32[columns, rows], numbers of :class:`Words`."""
    text_ends: NDArray[np.int64]
    """i64[rows + 1], where each row's text ends in ``text``."""
    text: NDArray[np.uint8]
    runs: NDArray[np.int64]
    """i64[rows, 4], of each run of equal tickers its first row, and where the ticker begins and ends in the block."""
    hard: NDArray[np.int64]
    """i64[n, 4], of each decimal that is not read: column, row, begin and end in the block."""


def new_words() -> Words:
    """No text yet."""
    return Words(
        np.zeros(_SLOTS, np.int32),
        np.zeros(WORDS_MAX, np.uint64),
        np.zeros(WORDS_MAX + 1, np.int32),
        np.zeros(_WORD_BYTES, np.uint8),
        np.zeros(1, np.int64),
    )


def new_columns(kinds: NDArray[np.int64], rows_max: int, block_bytes: int) -> Columns:
    """
    Room for one scan.

    Args:
        kinds: of the columns, in file order.
    """

    def lines(kind: int) -> int:
        return int((kinds == kind).sum())

    texts = lines(TEXT)
    return Columns(
        np.empty((lines(INTEGER), rows_max), np.int64),
        np.empty((lines(SMALL), rows_max), np.int32),
        np.empty((lines(DECIMAL), rows_max), np.float64),
        np.empty((lines(CODES), rows_max), np.int32),
        np.zeros(rows_max + 1 if texts else 1, np.int64),
        np.empty(block_bytes if texts else 1, np.uint8),
        np.empty((rows_max, 4), np.int64),
        np.empty((_HARD_MAX, 4), np.int64),
    )


@njit(cache=True, nogil=True)
def _number(words: Words, block: NDArray[np.uint8], begin: int, end: int) -> int:
    """The number of a text, a new one where it is new; -1 where there is no room."""
    value = np.uint64(14_695_981_039_346_656_037)
    for at in range(begin, end):
        value = (value ^ np.uint64(block[np.uintp(at)])) * np.uint64(1_099_511_628_211)
    slot = np.int64((value ^ (value >> np.uint64(32))) & np.uint64(_SLOTS - 1))
    while words.slots[slot]:
        number = words.slots[slot] - 1
        first, last = words.starts[number], words.starts[number + 1]
        if words.hashes[number] == value and last - first == end - begin:
            same = True
            for at in range(end - begin):
                same &= words.text[first + at] == block[begin + at]
            if same:
                return number
        slot = (slot + 1) & (_SLOTS - 1)
    number = words.known[0]
    first = words.starts[number]
    if number >= WORDS_MAX or first + end - begin > _WORD_BYTES:
        return -1
    for at in range(end - begin):
        words.text[first + at] = block[begin + at]
    words.starts[number + 1] = first + end - begin
    words.hashes[number] = value
    words.slots[slot] = number + 1
    words.known[0] = number + 1
    return number


@njit(cache=True, nogil=True)
def _text(block: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int]:
    """Begin and end of a text field, and where the next field begins; that is 0 for a doubt."""
    quoted = block[np.uintp(at)] == _QUOTE
    at += quoted
    begin = at
    byte = block[np.uintp(at)]
    if quoted:
        while byte != _QUOTE and 32 <= byte < 127:
            at += 1
            byte = block[np.uintp(at)]
        if byte != _QUOTE or block[np.uintp(at + 1)] != stop:
            return 0, 0, 0
        return begin, at, at + 2
    while byte not in (_COMMA, _QUOTE) and 32 <= byte < 127:
        at += 1
        byte = block[np.uintp(at)]
    return (begin, at, at + 1) if byte == stop else (0, 0, 0)


@njit(cache=True, nogil=True)
def _integer(block: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int]:
    """Value, digits and where the next field begins, 0 for a doubt; no digits where the field is blank."""
    negative = block[np.uintp(at)] == _MINUS
    at += negative
    begin = at
    value = np.uint64(0)
    digit = np.uint8(block[np.uintp(at)] - np.uint8(48))
    while digit <= 9:
        value = value * np.uint64(10) + np.uint64(digit)
        at += 1
        digit = np.uint8(block[np.uintp(at)] - np.uint8(48))
    digits = at - begin
    if block[np.uintp(at)] != stop or digits > 19 or value > np.uint64(_LARGEST) or (negative and not digits):
        return 0, 0, 0
    whole = np.int64(value)
    return (-whole if negative else whole), digits, at + 1  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def _decimal(block: NDArray[np.uint8], at: int, stop: int) -> tuple[float, int, int]:
    """
    Value, digits and where the next field begins, 0 where it takes a slower look; no digits where the field is blank.

    A whole number below 2**53 over a power of ten up to 10**19 is the nearest double, as one division rounds once.
    """
    negative = block[np.uintp(at)] == _MINUS
    at += negative
    begin = at
    value = np.uint64(0)
    digit = np.uint8(block[np.uintp(at)] - np.uint8(48))
    while digit <= 9:
        value = value * np.uint64(10) + np.uint64(digit)
        at += 1
        digit = np.uint8(block[np.uintp(at)] - np.uint8(48))
    digits, behind = at - begin, 0
    if block[np.uintp(at)] == _POINT:
        at += 1
        begin = at
        digit = np.uint8(block[np.uintp(at)] - np.uint8(48))
        while digit <= 9:
            value = value * np.uint64(10) + np.uint64(digit)
            at += 1
            digit = np.uint8(block[np.uintp(at)] - np.uint8(48))
        behind = at - begin
        if not digits or not behind:
            return 0.0, 0, 0
    digits += behind
    if block[np.uintp(at)] != stop or digits > 19 or value >= np.uint64(_EXACT) or (negative and not digits):
        return 0.0, 0, 0
    number = np.float64(value)
    if behind:
        number /= _POWERS[behind]
    return (-number if negative else number), digits, at + 1


@njit(cache=True, nogil=True)
def _same(block: NDArray[np.uint8], at: int, first: int, last: int) -> int:
    """Where the next field begins when this one is the ticker of before; else 0."""
    for offset in range(last - first):
        if block[np.uintp(at + offset)] != block[np.uintp(first + offset)]:
            return 0
    return at + last - first + 1 if block[np.uintp(at + last - first)] == _COMMA else 0


@njit(cache=True, nogil=True)
def _noted(table: NDArray[np.int64], at: int, first: int, second: int, third: int, fourth: int) -> int:
    """Write a line of a table; how many it has then."""
    table[at, 0], table[at, 1], table[at, 2], table[at, 3] = first, second, third, fourth
    return at + 1


@njit(cache=True, nogil=True)
def _copied(block: NDArray[np.uint8], begin: int, end: int, text: NDArray[np.uint8], filled: int) -> int:
    """Copy bytes behind others; where they end."""
    for offset in range(end - begin):
        text[filled + offset] = block[begin + offset]
    return filled + end - begin


@njit(cache=True, nogil=True)
def scan(
    block: NDArray[np.uint8],
    begin: int,
    rows_max: int,
    kinds: NDArray[np.int64],
    places: NDArray[np.int64],
    needed: NDArray[np.bool_],
    words: Words,
    out: Columns,
) -> tuple[int, int, int, int]:
    """
    Read whole lines until the block or the room for rows ends.

    Args:
        block: u8[n], ends with a line feed.
        begin: where to begin.
        kinds: i64[columns] in file order.
        places: i64[columns], the line of the arrays of its kind.
        needed: bool[columns], whether a blank field is a doubt.

    Returns:
        rows, where the next line begins, runs of tickers, decimals that are not read. A doubt ends the scan: the next
        line is then -1.
    """
    at, row, runs, hard, filled = begin, 0, 0, 0, 0
    first, last = 0, 0
    columns = len(kinds)
    while at < len(block) and row < rows_max:
        for column in range(columns):
            stop = _NEWLINE if column == columns - 1 else _COMMA
            kind, place = kinds[column], places[column]
            if kind in (INTEGER, SMALL):
                whole, digits, after = _integer(block, at, stop)
                if not after or (not digits and needed[column]):
                    return row, -1, 0, 0
                if kind == INTEGER:
                    out.integers[place, row] = whole
                else:
                    if not -(1 << 31) <= whole < (1 << 31):
                        return row, -1, 0, 0
                    out.small[place, row] = whole
                at = after
            elif kind == DECIMAL:
                value, digits, after = _decimal(block, at, stop)
                if not after:
                    start, end, after = _text(block, at, stop)
                    if not after or hard == len(out.hard):
                        return row, -1, 0, 0
                    hard = _noted(out.hard, hard, place, row, start, end)
                elif not digits and needed[column]:
                    return row, -1, 0, 0
                out.decimals[place, row] = value
                at = after
            elif kind == TICKER and last > first and _same(block, at, first, last) and stop == _COMMA:
                at += last - first + 1
            else:
                start, end, after = _text(block, at, stop)
                if not after:
                    return row, -1, 0, 0
                if kind == TICKER:
                    first, last = start, end
                    runs = _noted(out.runs, runs, row, first, last, 0)
                elif kind == CODES:
                    number = _number(words, block, start, end)
                    if number < 0:
                        return row, -1, 0, 0
                    out.codes[place, row] = number
                elif kind == TEXT:
                    filled = _copied(block, start, end, out.text, filled)
                    out.text_ends[row + 1] = filled
                at = after
        row += 1
    return row, at, runs, hard
