"""
Heat maps: time across, columns or symbols down, one character for some minutes of one line.

A map is read without colour: shades say how much is whole, letters say what is wrong where nothing is whole (on a
symbol's line: wherever anything is wrong). Pure functions; this module must never ask the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import Final

from m17ctl.formats import format_clock, format_share
from m17ctl.render import cell_width, due, shorten, sound
from m17d.replies import Counts

Painter = Callable[[str, str | None], str]

_STEPS: Final = (1, 2, 3, 5, 6, 10, 15, 30, 60, 120, 240)
_LABEL_MAX: Final = 28
_SHARE_WIDTH: Final = 7
LEGEND: Final = {
    "█": "whole",
    "·": "no data",
    "▓": "two thirds whole",
    "▒": "a third",
    "░": "less",
    "E": "empty",
    "P": "pending",
    "C": "cleared",
    "S": "suspect",
    "T": "stale",
    "-": "not due",
    " ": "not applicable",
}
COLORS: Final = {
    "█": "whole",
    "·": "quiet",
    "▓": "partial",
    "▒": "partial",
    "░": "trouble",
    "E": "trouble",
    "P": "pending",
    "C": "trouble",
    "S": "suspect",
    "T": "stale",
    "-": "quiet",
}
"""Character to a word of the palette, which each kind of screen has colours for."""


def glyph(counts: Counts, *, strict: bool = False) -> str:
    """
    The character of some cells.

    Whole cells (filled, fresh, not suspect) show as shade, or as a dot where all of them are known to have no rows; where
    none is whole, or with ``strict`` where any is not, the most frequent trouble shows as a letter.
    """
    total = due(counts)
    if total == 0:
        return "-" if counts.not_due else " "
    whole = sound(counts)
    if whole == total:
        return "·" if counts.no_data >= total else "█"
    if whole == 0 or strict:
        troubles = {
            "E": counts.empty,
            "C": counts.cleared,
            "P": counts.pending,
            "S": counts.suspect,
            "T": counts.stale,
        }
        return max(troubles, key=lambda letter: troubles[letter])
    return "▓" if 3 * whole >= 2 * total else "▒" if 3 * whole >= total else "░"


def merge(counts: Sequence[Counts]) -> Counts:
    """The sum of some counts."""
    return Counts(**{name: sum(getattr(c, name) for c in counts) for name in Counts.__struct_fields__})


def heat_map(
    lines: Sequence[tuple[str, Sequence[Counts]]],
    starts: Sequence[int],
    *,
    zone: tzinfo,
    width: int,
    paint: Painter,
    strict: bool = False,
) -> list[str]:
    """
    The lines of a map: an axis of times, one line a label, a legend of what occurs.

    Args:
        lines: label and the counts of each window, as many as ``starts``.
        starts: start of each window in ns UTC, ascending.
        zone: in which the axis is shown.
        width: cells that a line may take.
        paint: gives text a colour, or leaves it.
        strict: see `glyph`.
    """
    label_width = min(_LABEL_MAX, max((cell_width(label) for label, _ in lines), default=0))
    room = max(10, width - label_width - 2 - _SHARE_WIDTH - 2)
    step = next((s for s in _STEPS if -(-len(starts) // s) <= room), max(1, len(starts)))
    text = [" " * (label_width + 2) + _axis(starts[::step], zone)]
    seen: set[str] = set()
    for label, counts in lines:
        glyphs = [glyph(merge(counts[at : at + step]), strict=strict) for at in range(0, len(starts), step)]
        seen.update(glyphs)
        everything = merge(counts)
        name = shorten(label, label_width)
        share = format_share(sound(everything), due(everything)).rjust(_SHARE_WIDTH)
        shown = "".join(_painted_runs(glyphs, paint))
        text.append(f"{name}{' ' * (label_width - cell_width(name))}  {shown}  {share}".rstrip())
    legend = [
        f"{character} {meaning}" for character, meaning in LEGEND.items() if character in seen and character != " "
    ]
    each = "1 minute" if step == 1 else f"{step} minutes"
    text.extend(_wrapped([f"one character: {each}", *legend], width))
    return text


def _painted_runs(glyphs: Sequence[str], paint: Painter) -> list[str]:
    runs: list[str] = []
    at = 0
    while at < len(glyphs):
        end = at
        while end < len(glyphs) and glyphs[end] == glyphs[at]:
            end += 1
        runs.append(paint("".join(glyphs[at:end]), COLORS.get(glyphs[at])))
        at = end
    return runs


def _axis(starts: Sequence[int], zone: tzinfo) -> str:
    """Times over the first character and, where there is room, over half hours."""
    line = ""
    for index, start in enumerate(starts):
        clock = format_clock(start, zone)
        if index == 0 or (
            clock.endswith(("00", "30")) and index >= len(line) + 3 and index + len(clock) <= len(starts)
        ):
            line = line.ljust(index) + clock
    return line


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}   {part}" if lines[-1] else part
        if lines[-1] and cell_width(longer) > width:
            lines.append(part)
        else:
            lines[-1] = longer
    return lines
