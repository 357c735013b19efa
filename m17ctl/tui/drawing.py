"""
The map and the chart as styled text: axis, lines, regions and selection, each drawn from the model for a width and height.

What does not change between keys is kept, so that a key costs a few lines of text. This module must never change the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Final, TypeVar

from rich.style import Style
from rich.text import Text

from m17ctl.formats import format_clock, format_share
from m17ctl.heatmap import COLORS, LEGEND, glyph, merge
from m17ctl.render import due, shorten, sound
from m17ctl.tui.axis import DAY, Cut, Level, Span
from m17ctl.tui.chart import chart, points_of, price_text
from m17ctl.tui.lines import Line
from m17ctl.tui.model import LABEL_WIDTH, SHARE_WIDTH, Model
from m17d.outcomes import RegionReply
from m17d.replies import Counts

T = TypeVar("T")

STYLES: Final = {
    "whole": Style(color="#56a0e8"),
    "partial": Style(color="#e8c547"),
    "trouble": Style(color="#f0703c", bold=True),
    "pending": Style(color="#5ec8d8"),
    "suspect": Style(color="#d98cd0", bold=True),
    "stale": Style(color="#e8c547", bold=True),
    "quiet": Style(color="#7f8790"),
}
"""Blue against orange and yellow: told apart by every common kind of colour blindness; letters say the same without."""
_SELECTED_STYLES: Final = {
    "whole": Style(color="#b9dcff"),
    "partial": Style(color="#fff0b0"),
    "trouble": Style(color="#ffb494", bold=True),
    "pending": Style(color="#b8f0f8"),
    "suspect": Style(color="#f8c8f2", bold=True),
    "stale": Style(color="#fff0b0", bold=True),
    "quiet": Style(color="#c8ced6"),
}
"""The same, lighter: a full block hides what lies behind it."""
_SELECTED: Final = Style(bgcolor="#3a4250")
_ROW: Final = Style(bold=True, underline=True)
_UNKNOWN: Final = "∙"
_CHART_MIN: Final = 4
_CHART_MAX: Final = 24
_MANY: Final = 1000
_PLACES: Final = 8
"""Pictures that are kept: the way from the year to minutes, twice."""
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TROUBLES: Final = ("pending", "empty", "cleared", "suspect", "stale", "no_data", "not_due", "not_applicable")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a screen is divided: characters of the map, lines of the chart and of the map."""

    room: int
    chart: int
    lines: int

    @classmethod
    def of(cls, model: Model, width: int, height: int) -> Layout:
        """For a screen; each aggregation window has a line of its own where the chart keeps four lines beside them."""
        # Title, axis, regions, selection, two lines of detail, legend and keys take eight.
        rest = max(1, height - 8)
        whole = len(model.lines(_MANY))
        lines = whole if rest - whole >= _CHART_MIN else len(model.lines(whole - 1))
        chart = min(_CHART_MAX, rest - lines)
        if chart < _CHART_MIN - 1:
            return cls(max(12, width - LABEL_WIDTH - 1 - SHARE_WIDTH), 0, min(lines, rest))
        return cls(max(12, width - LABEL_WIDTH - 1 - SHARE_WIDTH), chart, lines)


@dataclass(slots=True)
class _Kept:
    """The characters of a map as they were last drawn, and what each was made from."""

    version: int
    changes: list[int]
    """By bucket, see `Cells.changes`."""
    glyphs: list[list[str]]
    """[line][bucket], as all below."""
    counted: list[list[Counts | None]]
    shares: list[str]


class Drawing:
    """Draws one model."""

    def __init__(self, model: Model, zone: tzinfo) -> None:
        self.model = model
        self.zone = zone
        self._kept: dict[tuple[object, ...], _Kept] = {}
        """Of the last places, so that zooming out and in again counts only what changed meanwhile."""
        self._charts: dict[tuple[object, ...], list[Text]] = {}

    # ---- the chart

    def chart(self, layout: Layout) -> list[Text]:
        """The price of the underlying over the span, with its scale."""
        key = (self.model.prices_version, self.model.place.span, layout)
        found = self._charts.get(key)
        return _keep(self._charts, key, self._charted(layout) if found is None else found)

    def _charted(self, layout: Layout) -> list[Text]:
        model, cut = self.model, self.model.cut(layout.room)
        rows, low, high = chart(points_of(model.prices, cut.buckets), layout.chart)
        drawn = []
        for at, row in enumerate(rows):
            label = ""
            if high > low and at == 0:
                label = price_text(high)
            elif high > low and at == len(rows) - 1:
                label = price_text(low)
            elif high == low and at == len(rows) // 2:
                label = price_text(high) if high else "no price"
            line = Text(f"{label:>{LABEL_WIDTH}} ", style=STYLES["quiet"])
            line.append(row, STYLES["whole"])
            drawn.append(line)
        return drawn

    # ---- the map

    def axis(self, layout: Layout) -> Text:
        """Months, days or times over the first character of their unit, where there is room."""
        cut, level = self.model.cut(layout.room), self.model.level
        marks = ""
        for (start, _), (first, _) in zip(cut.units, cut.edges, strict=True):
            word = self._mark(level, start)
            if first >= len(marks) + (1 if marks else 0) and first + len(word) <= layout.room:
                marks = marks.ljust(first) + word
        return Text(" " * (LABEL_WIDTH + 1) + marks, style=STYLES["quiet"])

    def _mark(self, level: Level, position: int) -> str:
        axis = self.model.axis
        match level:
            case Level.YEAR:
                return _MONTHS[int(axis.day(position).session[5:7]) - 1]
            case Level.MONTH:
                return axis.day(position).session[8:]
            case _:
                return format_clock(axis.start_ns(position), self.zone)

    def lines(self, layout: Layout) -> list[Text]:
        """One line of characters a column, with the share that is whole."""
        model, cut = self.model, self.model.cut(layout.room)
        lines = model.lines(layout.lines)
        kept = self._glyphs(lines, cut, layout)
        first, end = self._selected(cut)
        drawn = []
        for at, line in enumerate(lines):
            alone = model.row == at
            text = Text(f"{shorten(line.label, LABEL_WIDTH):<{LABEL_WIDTH}} ", style=_ROW if alone else "")
            muted = model.row is not None and not alone
            for start, stop, character in _runs(kept.glyphs[at], first, end):
                selected = first <= start < end
                style = (_SELECTED_STYLES if selected else STYLES).get(COLORS.get(character, ""), Style())
                if muted:
                    style += Style(dim=True)
                text.append(character * (stop - start), style + _SELECTED if selected else style)
            text.append(" " * (layout.room - len(kept.glyphs[at])) + kept.shares[at].rjust(SHARE_WIDTH))
            drawn.append(text)
        return drawn

    def _selected(self, cut: Cut) -> Span:
        first, end = self.model.place.selected
        return cut.edges[first][0], cut.edges[end - 1][1]

    def _glyphs(self, lines: Sequence[Line], cut: Cut, layout: Layout) -> _Kept:
        """The characters of all lines; only buckets whose sessions changed are counted again."""
        cells = self.model.cells
        key = (cells, self.model.place.span, tuple(lines), layout)
        kept = self._kept.get(key)
        if kept is None:
            kept = _Kept(
                -1,
                [-1] * len(cut.buckets),
                [[_UNKNOWN] * len(cut.buckets) for _ in lines],
                [[None] * len(cut.buckets) for _ in lines],
                [""] * len(lines),
            )
        if kept.version != cells.version:
            self._count(kept, lines, cut)
            kept.version = cells.version
        return _keep(self._kept, key, kept)

    def _count(self, kept: _Kept, lines: Sequence[Line], cut: Cut) -> None:
        cells, step = self.model.cells, self.model.step(cut)
        changes = [cells.changes(bucket) for bucket in cut.buckets]
        moved = [at for at, count in enumerate(changes) if count != kept.changes[at]]
        kept.changes = changes
        if not moved:
            return
        for row, line in enumerate(lines):
            counted, glyphs = kept.counted[row], kept.glyphs[row]
            for at in moved:
                counts = cells.counts(line.parts, cut.buckets[at], step)
                if counts != counted[at] or counts is None:
                    counted[at] = counts
                    glyphs[at] = _UNKNOWN if counts is None else glyph(counts)
            known = [one for one in counted if one is not None]
            whole, total = sound(merge(known)), sum(map(due, known))
            kept.shares[row] = format_share(whole, total) if known else ""

    def regions(self, layout: Layout) -> Text:
        """Priority regions over the span: how much of each is whole, its number and share."""
        cut = self.model.cut(layout.room)
        row = [" "] * len(cut.buckets)
        labels: list[tuple[int, str]] = []
        for (start, end), regions in self._by_span().items():
            touched = [at for at, (first, last) in enumerate(cut.buckets) if first < end and start < last]
            if not touched:
                continue
            complete, minutes = sum(one.complete for one in regions), sum(one.minutes for one in regions)
            done = len(touched) * complete // max(1, minutes)
            for at, bucket in enumerate(touched):
                row[bucket] = "━" if at < done else "┄"
            states = {one.state for one in regions}
            share = format_share(complete, minutes) if "stuck" not in states else "stuck"
            labels.append((touched[-1] + 1, f"{' '.join(f'#{one.id}' for one in regions[:3])} {share}"))
        text = Text(f"{'regions' if labels else '':<{LABEL_WIDTH}} ", style=STYLES["quiet"])
        line = "".join(row)
        for end, label in labels:
            if line[end : end + len(label) + 1].strip() == "" and end + len(label) + 1 <= layout.room + SHARE_WIDTH:
                line = line[:end].ljust(end) + " " + label + line[end + len(label) + 1 :]
        text.append(line, STYLES["pending"])
        return text

    def _by_span(self) -> dict[Span, list[RegionReply]]:
        """Regions over the same span are drawn as one."""
        found: dict[Span, list[RegionReply]] = {}
        for region in self.model.regions:
            start, end = self.model.axis.position(region.start_ts), self.model.axis.position(region.end_ts)
            found.setdefault((start, max(end, start + 1)), []).append(region)
        return found

    def marker(self, layout: Layout) -> Text:
        """The selection bar, seen without colour."""
        first, end = self._selected(self.model.cut(layout.room))
        return Text(" " * (LABEL_WIDTH + 1 + first) + "▔" * (end - first), style=Style(bold=True))

    # ---- words

    def detail(self, layout: Layout) -> list[Text]:
        """Two lines about the selection: when it is, and what its cells are."""
        model, cut = self.model, self.model.cut(layout.room)
        lines = model.lines(layout.lines)
        chosen = lines if model.row is None or model.row >= len(lines) else [lines[model.row]]
        parts = [part for line in chosen for part in line.parts]
        counts = model.cells.counts(parts, model.selection, model.step(cut))
        name = "all columns" if len(chosen) > 1 else chosen[0].label
        first = Text(self.when(model.selection), style=Style(bold=True))
        return [first, Text(f"{name}: {words_of(counts)}", style=STYLES["quiet"])]

    def when(self, span: Span) -> str:
        """A span in words: a session with times, or sessions from and to."""
        axis = self.model.axis
        days = [axis.days[at] for at in range(span[0] // DAY, (span[1] - 1) // DAY + 1)]
        if len(days) > 1:
            return f"{days[0].session} to {days[-1].session}, {len(days)} sessions"
        start, end = axis.bounds_ns(span)
        return f"{days[0].session} {format_clock(start, self.zone)} to {format_clock(end, self.zone)}"

    def legend(self, layout: Layout) -> str:
        """What the characters mean that are on the screen."""
        kept = self._glyphs(self.model.lines(layout.lines), self.model.cut(layout.room), layout)
        seen = {character for row in kept.glyphs for character in row}
        return "  ".join(f"{character} {meaning}" for character, meaning in LEGEND.items() if character in seen - {" "})


def _keep(kept: dict[tuple[object, ...], T], key: tuple[object, ...], value: T) -> T:
    """Keep what was just used, and forget what was not used for longest."""
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > _PLACES:
        del kept[next(iter(kept))]
    return value


def words_of(counts: Counts | None) -> str:
    """Counts in words: how many are whole, and what the others are."""
    if counts is None:
        return "not known yet"
    total = due(counts)
    parts = [f"{sound(counts):,} of {total:,} whole"] if total else []
    parts += [f"{getattr(counts, name):,} {name.replace('_', ' ')}" for name in _TROUBLES if getattr(counts, name)]
    return ", ".join(parts) or "no cells: the symbol has no source there"


def _runs(glyphs: Sequence[str], first: int, end: int) -> list[tuple[int, int, str]]:
    """Equal characters together, cut where the selection begins and ends."""
    runs: list[tuple[int, int, str]] = []
    for at, character in enumerate(glyphs):
        if runs and runs[-1][2] == character and at not in (first, end):
            runs[-1] = (runs[-1][0], at + 1, character)
        else:
            runs.append((at, at + 1, character))
    return runs
