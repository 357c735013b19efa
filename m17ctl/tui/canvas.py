"""
The widget that shows the model: title, chart, axis, map, regions, selection, words and keys, line by line.

It draws what the model says when it is asked to, and hands on only lines that differ from what is on the screen. This module
must never change the model.
"""

from __future__ import annotations

from typing import Final

from rich.text import Text
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from m17ctl.tui.axis import Level
from m17ctl.tui.drawing import STYLES, Drawing, Layout

KEYS = "? keys  s symbol  hl move  Enter in  o out  x window  jk frames  p d w e r a  q"

_SOON_S: Final = 0.05
"""Answers that come within this time are drawn together; keys are drawn at once."""


class Canvas(Widget):
    """The main picture."""

    can_focus = True

    def __init__(self, drawing: Drawing) -> None:
        super().__init__()
        self.drawing = drawing
        self.status = ""
        """What the engines do, for the title."""
        self.trouble = ""
        """Why the daemon does not answer; empty while it does."""
        self.said = ""
        """A line that somebody has to know, instead of the keys."""
        self._lines: list[Text] = []
        self._strips: dict[int, Strip] = {}
        self._drawn_for = Size(0, 0)
        self.due = False
        """Something arrived that is not painted yet."""

    @property
    def layout_now(self) -> Layout:
        """How the screen is divided now."""
        return Layout.of(self.drawing.model, self.size.width, self.size.height)

    def redraw(self) -> None:
        """The model has changed: lines that say something else are painted."""
        self.due = False
        before, size = self._lines, self.size
        if not before or size != self._drawn_for:
            self._lines = []
            self.refresh()
            return
        self._lines = self.draw(size)
        for y, line in enumerate(self._lines):
            if not _same(line, before[y]):
                self._strips.pop(y, None)
                self.refresh(Region(0, y, size.width, 1))

    def redraw_soon(self) -> None:
        """Something arrived: paint it with what else comes in a moment."""
        if not self.due:
            self.due = True
            self.set_timer(_SOON_S, self._redraw_due)

    def _redraw_due(self) -> None:
        if self.due:
            self.redraw()

    def render_line(self, y: int) -> Strip:
        """One line of the picture."""
        size = self.size
        if not self._lines or size != self._drawn_for:
            self._lines, self._drawn_for = self.draw(size), size
            self._strips.clear()
        if y >= len(self._lines):
            return Strip.blank(size.width)
        strip = self._strips.get(y)
        if strip is None:
            line = self._lines[y].copy()
            line.truncate(size.width, overflow="ellipsis")
            strip = Strip(line.render(self.app.console)).adjust_cell_length(size.width).apply_style(self.rich_style)
            self._strips[y] = strip
        return strip

    def draw(self, size: Size) -> list[Text]:
        """Every line for a size; the last one is the last of the screen."""
        layout, drawing = Layout.of(self.drawing.model, size.width, size.height), self.drawing
        body = [
            self._title(size.width),
            *drawing.chart(layout),
            drawing.axis(layout),
            *drawing.lines(layout),
            drawing.regions(layout),
            drawing.marker(layout),
            *drawing.detail(layout),
        ]
        body.append(Text(drawing.legend(layout), style=STYLES["quiet"]))
        lines = [*body[: size.height - 1], *([Text()] * (size.height - 1 - len(body)))]
        last = Text(self.said, style=STYLES["partial"]) if self.said else Text(KEYS, style=STYLES["quiet"])
        return [*lines, last]

    def _title(self, width: int) -> Text:
        model = self.drawing.model
        where = model.level.word
        if model.level is not Level.YEAR:
            where += f" {self.drawing.when(model.place.span)}"
        else:
            where += f" {model.axis.days[0].session[:4]}"
        left = f"M17  {model.symbol or 'all symbols'}  {where}"
        if model.window is not None:
            left += f"  x {model.window}"
        right = self.trouble or self.status
        text = Text(left, style="bold")
        room = width - len(left) - 2
        if room > 10 and right:
            shown = right if len(right) <= room else right[: room - 1] + "…"
            text.append(" " * (width - len(left) - len(shown)))
            text.append(shown, STYLES["trouble"] if self.trouble else STYLES["quiet"])
        return text


def _same(one: Text, other: Text) -> bool:
    return one is other or (one.plain == other.plain and one.style == other.style and one.spans == other.spans)
