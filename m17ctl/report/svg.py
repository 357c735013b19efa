"""
Charts as inline SVG, in colours that survive colour blindness, each mark with its figures as a tooltip.

Pure: numbers in, markup out; text is escaped here. This module must never know what a chart is about, nor refer to
anything outside its own markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from m17ctl.report.markup import Markup

BLUE: Final = "var(--blue)"
SKY: Final = "var(--sky)"
ORANGE: Final = "var(--orange)"
VERMILION: Final = "var(--vermilion)"
PURPLE: Final = "var(--purple)"
GREY: Final = "var(--grey)"
INK: Final = "var(--ink)"
RULE: Final = "var(--rule)"
TRACK: Final = "var(--track)"
"""Colours of the page's style, which has them by day and by night."""
WIDTH: Final = 1000
"""Units across a chart; the page scales it to its own width."""


class Run(NamedTuple):
    """Neighbouring marks of a strip that look the same: ``[start, end)``."""

    start: int
    end: int
    color: str
    letter: str
    tip: str


class Strip(NamedTuple):
    """One line of a map."""

    label: str
    runs: Sequence[Run]
    note: str


class Dot(NamedTuple):
    """A value over a place, ``weight`` of 0 to 1 making it larger."""

    x: float
    y: float
    weight: float
    tip: str


def text(x: float, y: float, words: str, *, anchor: str = "start", color: str = INK, size: int = 12) -> str:
    """Words at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">{escape(words)}</text>'
    )


def rect(x: float, y: float, width: float, height: float, color: str, tip: str = "") -> str:
    """A filled rectangle."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}" fill="{color}" shape-rendering="crispEdges">{title}</rect>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = RULE, width: float = 1.0) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:.1f}"/>'
    )


def framed(height: float, marks: Sequence[str], label: str) -> Markup:
    """A chart of `WIDTH` by ``height`` units from its marks; ``label`` says what it shows to who cannot see it."""
    body = "".join(marks)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>')


def strips(lines: Sequence[Strip], length: int, ticks: Sequence[tuple[int, str]], label: str) -> Markup:
    """
    A map: time across, one line a strip, a label before it and a note behind.

    Args:
        lines: the strips, top first.
        length: how many marks a strip has.
        ticks: position and words along the time axis.
        label: see `framed`.
    """
    left, right, top, pitch = 130, 70, 22, 24
    unit = (WIDTH - left - right) / max(1, length)
    bottom = top + pitch * len(lines)
    marks = []
    for at, words in ticks:
        x = left + at * unit
        marks += [line(x, top - 4, x, bottom), text(x, 13, words, anchor="middle", size=11)]
    for index, strip in enumerate(lines):
        y = top + index * pitch
        marks.append(text(left - 8, y + 15, strip.label, anchor="end"))
        for run in strip.runs:
            x, width = left + run.start * unit, (run.end - run.start) * unit
            # Each reaches under its neighbour: a seam between two of one colour would look like a hole.
            under = 0.0 if run.end == length else 1.0
            marks.append(rect(x, y + 2, width + under, pitch - 5, run.color, run.tip))
            if run.letter and width >= 9:
                marks.append(text(x + width / 2, y + 15, run.letter, anchor="middle", color="#ffffff", size=11))
        marks.append(text(WIDTH - right + 8, y + 15, strip.note))
    return framed(bottom + 2, marks, label)


def bars(rows: Sequence[tuple[str, float, str]], label: str, *, color: str = BLUE, top_value: float = 0.0) -> Markup:
    """Horizontal bars: label, value, and its words behind the bar; on one scale, up to ``top_value`` where given."""
    left, right, pitch = 150, 250, 24
    top_value = top_value or max((value for _, value, _ in rows), default=0.0) or 1.0
    marks = []
    for index, (name, value, words) in enumerate(rows):
        y = index * pitch
        width = (WIDTH - left - right) * max(0.0, min(1.0, value / top_value))
        marks += [
            text(left - 8, y + 16, name, anchor="end"),
            rect(left, y + 3, WIDTH - left - right, pitch - 7, TRACK),
            rect(left, y + 3, max(width, 1.0 if value > 0 else 0.0), pitch - 7, color, f"{name}: {words}"),
            text(left + (WIDTH - left - right) + 8, y + 16, words),
        ]
    return framed(pitch * len(rows) + 2, marks, label)


def lines_over(
    series: Sequence[tuple[str, str, Sequence[float]]], ticks: Sequence[str], label: str, *, height: int = 200
) -> Markup:
    """
    Shares from 0 to 1 over equal steps, one line a series.

    Args:
        series: name, colour, one value for each of ``ticks``.
        ticks: words below the axis.
        label: see `framed`.
        height: units.
    """
    left, right, top, bottom = 50, 150, 12, height - 26
    highest = max((value for _, _, values in series for value in values), default=0.0)
    scale = next((one for one in (0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= one), 1.0)
    step = (WIDTH - left - right) / max(1, len(ticks) - 1)
    marks = []
    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        marks += [
            line(left, y, WIDTH - right, y),
            text(left - 6, y + 4, f"{scale * part * 25:g} %", anchor="end", size=11),
        ]
    marks += [text(left + at * step, height - 8, words, anchor="middle", size=11) for at, words in enumerate(ticks)]
    ends: list[float] = []
    for name, color, values in series:
        points = [
            (left + at * step, bottom - (bottom - top) * min(1.0, value / scale)) for at, value in enumerate(values)
        ]
        marks.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        for (x, y), words, value in zip(points, ticks, values, strict=True):
            tip = escape(f"{name} {words}: {value:.1%}")
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{tip}</title></circle>')
        y = points[-1][1] + 4
        while any(abs(y - other) < 14 for other in ends):
            y -= 14
        ends.append(y)
        marks.append(text(WIDTH - right + 10, y, name, color=color))
    return framed(height, marks, label)


def dots(
    points: Sequence[Dot], ticks: Sequence[tuple[float, str]], unit: str, label: str, *, height: int = 170
) -> Markup:
    """
    Values around zero, each hanging from the zero line.

    Args:
        points: ``x`` in the units of ``ticks``.
        ticks: place and words below the axis.
        unit: of the values, behind the scale's numbers.
        label: see `framed`.
        height: units.
    """
    left, right, top, bottom = 60, 30, 12, height - 26
    reach = max((abs(point.y) for point in points), default=0.0) or 1.0
    nice = 10 ** math.floor(math.log10(reach))
    reach = next(nice * step for step in (1, 1.5, 2, 3, 4, 6, 8, 10) if nice * step >= reach)
    first, last = min(x for x, _ in ticks), max(x for x, _ in ticks)
    middle = (top + bottom) / 2

    def across(x: float) -> float:
        return left + 20 + (WIDTH - left - right - 40) * ((x - first) / (last - first) if last > first else 0.5)

    marks = []
    for value in (-reach, -reach / 2, 0.0, reach / 2, reach):
        y = middle - (bottom - top) / 2 * value / reach
        marks.append(line(left, y, WIDTH - right, y, INK if value == 0 else RULE))
        marks.append(text(left - 6, y + 4, f"{value:+g}{unit}" if value else "0", anchor="end", size=11))
    end = -100.0
    for x, words in ticks:
        if across(x) - end >= 74:
            end = across(x)
            marks.append(text(end, height - 8, words, anchor="middle", size=11))
    for point in points:
        x, y = across(point.x), middle - (bottom - top) / 2 * point.y / reach
        color = BLUE if point.y >= 0 else VERMILION
        marks.append(line(x, middle, x, y, color, 1.5))
        radius, tip = 3.5 + 5 * point.weight, escape(point.tip)
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}"><title>{tip}</title></circle>')
    return framed(height, marks, label)


def spark(values: Sequence[float], tip: str) -> Markup:
    """A small line around zero, for a table."""
    if not values:
        return Markup("")
    reach = max(abs(value) for value in values) or 1.0
    step = 116 / max(1, len(values))
    points = " ".join(f"{2 + (at + 1) * step:.1f},{15 - 13 * value / reach:.1f}" for at, value in enumerate(values))
    return Markup(
        f'<svg class="spark" viewBox="0 0 120 30" role="img" aria-label="{escape(tip)}"><title>{escape(tip)}</title>'
        f'<line x1="2" y1="15" x2="118" y2="15" stroke="{GREY}"/>'
        f'<polyline fill="none" stroke="{BLUE}" stroke-width="1.6" points="2,15 {points}"/></svg>'
    )
