"""
Tables, sparklines, trees and progress as text that fits a width.

Pure functions from values to lines; nothing here writes, asks or knows the daemon. Everything stays readable without
colour. This module must never import rich: a short command would wait for it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from ledger.columns import Column
from m17ctl.formats import format_bytes, format_count, format_duration, format_share
from m17d.replies import Counts

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_NARROWEST: Final = 6
_LAST_NARROWEST: Final = 12
"""How far a last column of text gives way before others do."""


def cell_width(text: str) -> int:
    """How many terminal cells ``text`` takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """``text`` cut to ``width`` cells, with an ellipsis where something went."""
    if cell_width(text) <= width:
        return text
    kept = ""
    for character in text:
        if cell_width(kept + character) > width - 1:
            break
        kept += character
    return kept + "…"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, right: str = "", keep: int = 1
) -> list[str]:
    """
    Lines of a table: columns two spaces apart, headers above; numbers to the right where ``right`` has an r.

    Where ``width`` is given, lines are made to fit: the last column gives way first where it is text, then the widest
    ones. The first ``keep`` columns say what a line is about and are cut only when all else is six wide.
    """
    widths = [max([cell_width(header), *(cell_width(row[i]) for row in rows)]) for i, header in enumerate(headers)]
    if width is not None:
        numbers = [right[index : index + 1] == "r" for index in range(len(widths))]
        _fit(widths, width, keep, last_is_text=not numbers[-1])
    lines = []
    for row in (headers, *rows):
        cells = []
        for index, whole in enumerate(row):
            text = shorten(whole, widths[index])
            gap = " " * (widths[index] - cell_width(text))
            cells.append(gap + text if right[index : index + 1] == "r" else text + gap)
        lines.append("  ".join(cells).rstrip())
    return lines


def _fit(widths: list[int], width: int, keep: int, *, last_is_text: bool) -> None:
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    if last_is_text and len(widths) > keep:
        cut = max(0, min(excess, widths[-1] - _LAST_NARROWEST))
        widths[-1] -= cut
        excess -= cut
    excess = _cut(widths, range(keep, len(widths)), excess)
    _cut(widths, range(len(widths)), excess)


def _cut(widths: list[int], among: Sequence[int], excess: int) -> int:
    """Cut the widest of some columns, again and again, down to the narrowest; gives what could not be cut."""
    while excess > 0 and among:
        ordered = sorted((widths[index] for index in among), reverse=True)
        widest = max(among, key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            break
        second = ordered[1] if len(ordered) > 1 else 0
        cut = min(excess, max(1, widths[widest] - max(second, _NARROWEST)))
        widths[widest] -= cut
        excess -= cut
    return excess


def busy_columns(headers: Sequence[str], rows: Sequence[Sequence[str]], *, always: int) -> list[int]:
    """Which columns say something: the first ``always``, and those where some line has neither nothing nor a nought."""
    return [at for at in range(len(headers)) if at < always or any(row[at] not in ("", "0") for row in rows)]


def counts_table(columns: Mapping[Column, Counts], *, width: int | None, label: str = "column") -> list[str]:
    """
    Lines of a table of counts, one column of the ledger a row; statuses that no column has are left out.

    ``whole`` is the share of due, applicable cells that are filled, fresh and not suspect.
    """
    rows = [(str(column), counts) for column, counts in columns.items()]
    return named_counts_table(rows, width=width, label=label)


def named_counts_table(rows: Sequence[tuple[str, Counts]], *, width: int | None, label: str) -> list[str]:
    """Lines of a table of counts with free labels; see `counts_table`."""
    always = ("filled", "empty")
    words = [w for w in Counts.__struct_fields__ if w in always or any(getattr(c, w) for _, c in rows)]
    headers = [label, "whole", *(word.replace("_", " ") for word in words)]
    lines = [
        [name, format_share(sound(counts), due(counts)), *(format_count(getattr(counts, word)) for word in words)]
        for name, counts in rows
    ]
    return table(headers, lines, width=width, right="l" + "r" * (len(words) + 1))


def due(counts: Counts) -> int:
    """Due, applicable cells: empty, pending, cleared and filled ones."""
    return counts.empty + counts.pending + counts.filled + counts.cleared


def sound(counts: Counts) -> int:
    """Filled cells that are fresh and not suspect (a cell that is both counts as two, never below zero)."""
    return max(0, counts.filled - counts.suspect - counts.stale)


def sparkline(values: Sequence[float]) -> str:
    """One character a value, from low to high; a blank for what is zero."""
    top = max(values, default=0)
    if top <= 0:
        return " " * len(values)
    return "".join(" " if v <= 0 else _SPARKS[max(0, math.ceil(v / top * 8) - 1)] for v in values)


def bar(done: int, total: int, width: int) -> str:
    """A bar of ``width`` cells, full only when everything is done."""
    share = 0 if total <= 0 else min(width, done * width // total)
    return "█" * share + "░" * (width - share)


def progress_line(done: int, total: int, *, unit: str, seconds: float, eta_s: float | None, detail: str = "") -> str:
    """
    One line of progress: bar, count, share, rate and time left.

    Args:
        done: how many of ``total`` are done; ``total`` is 0 where unknown.
        unit: a plural noun.
        seconds: since the count was 0, for the rate.
        eta_s: seconds left where somebody knows better than the rate so far.
        detail: what is being worked on.
    """
    rate = done / seconds if seconds > 0 else 0.0
    if eta_s is None and rate > 0 and total:
        eta_s = (total - done) / rate
    if unit == "bytes":
        so_far, whole, speed = format_bytes(done), format_bytes(total), format_bytes(int(rate))
    else:
        so_far, whole = format_count(done), f"{format_count(total)} {unit}"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    if total:
        parts = [f"{bar(done, total, 20)} {so_far}/{whole}", format_share(done, total)]
    else:
        parts = [so_far if unit == "bytes" else f"{so_far} {unit}"]
    if rate > 0:
        parts.append(f"{speed}/s")
    if eta_s is not None:
        parts.append(f"{format_duration(eta_s)} left")
    return "  ".join([*parts, detail] if detail else parts)


def fields(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of ``name  value``, names padded to the longest."""
    longest = max((cell_width(name) for name, _ in pairs), default=0)
    return [f"{name}{' ' * (longest - cell_width(name))}  {value}".rstrip() for name, value in pairs]


def tree(label: str, children: Sequence[list[str]]) -> list[str]:
    """Lines of a tree: ``label`` above the lines of each child."""
    lines = [label]
    for index, child in enumerate(children):
        last = index == len(children) - 1
        for position, line in enumerate(child):
            edge = ("└─ " if last else "├─ ") if position == 0 else ("   " if last else "│  ")
            lines.append(edge + line)
    return lines
