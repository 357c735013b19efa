"""
A line of prices in braille: two points across and four up a character, gaps left open, a scale beside it.

Pure; this module must never know where prices come from.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from m17ctl.tui.axis import Span

_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot at [row from the top][column]."""
_BLANK: Final = 0x2800


def points_of(prices: dict[int, float], buckets: Sequence[Span]) -> list[float | None]:
    """
    Two values for every bucket: the last price in its first and in its second half.

    A bucket that stands for the same minutes as its neighbour (a minute drawn wide) repeats its value.
    """
    found: list[float | None] = []
    ordered = sorted(prices)
    for start, end in buckets:
        first = bisect_left(ordered, start)
        middle = bisect_left(ordered, start + max(1, (end - start) // 2))
        last = bisect_left(ordered, end)
        early = prices[ordered[middle - 1]] if middle > first else None
        late = prices[ordered[last - 1]] if last > middle else None
        found += [early, early] if end - start == 1 else [early, late]
    return found


def chart(values: Sequence[float | None], height: int) -> tuple[list[str], float, float]:
    """
    Values as lines of braille, two to a character.

    Returns:
        ``height`` lines from the top, and the lowest and highest value (0 and 0 where there is none).
    """
    known = [value for value in values if value is not None]
    width = -(-len(values) // 2)
    if not known or height <= 0:
        return [" " * width] * height, 0.0, 0.0
    low, high = min(known), max(known)
    rows = height * 4
    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for x, value in enumerate(values):
        if value is None:
            continue
        y = rows // 2 if high == low else round((high - value) / (high - low) * (rows - 1))
        # One gap is bridged: in a wide view a bucket's half may be empty without anything missing.
        first = before[1] if before is not None and x - before[0] <= 2 else y
        for dot in range(min(first, y), max(first, y) + 1):
            cells[dot // 4][x // 2] |= _DOTS[dot % 4][x % 2]
        before = (x, y)
    return ["".join(chr(_BLANK + bits) if bits else " " for bits in row) for row in cells], low, high


def price_text(value: float) -> str:
    """A price for the scale: as many decimals as a person wants to read."""
    return f"{value:,.0f}" if value >= 10_000 else f"{value:,.2f}"
