"""
The pages beside the map: a text to read, a frame of aggregates, and the lists of engines, regions and the audit log.

A page shows what it is given and says what was chosen. This module must never ask the daemon.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Static

PAGE_CSS = """
{name} {{ background: $background; }}
{name} #head {{ height: 1; text-style: bold; }}
{name} #foot {{ height: 1; color: $text-muted; dock: bottom; }}
{name} VerticalScroll {{ height: 1fr; scrollbar-size-vertical: 1; }}
{name} DataTable {{ height: 1fr; scrollbar-size-vertical: 1; }}
"""


class TextPage(Screen[None]):
    """A text that may be longer than the screen."""

    CSS = PAGE_CSS.format(name="TextPage")
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q", "close", "Back"),
        ("j,down", "scroll(1)", "Down"),
        ("k,up", "scroll(-1)", "Up"),
        ("space,pagedown", "scroll(10)", "Page down"),
        ("pageup", "scroll(-10)", "Page up"),
    ]

    def __init__(self, title: str, text: str | Text, foot: str = "Esc back  j k scroll  c copy") -> None:
        super().__init__()
        self._head = title
        self._text = text
        self._foot = foot

    def compose(self) -> ComposeResult:
        """Title, text, keys."""
        yield Static(self._head, id="head", markup=False)
        with VerticalScroll():
            yield Static(self._folded(), id="text", markup=False)
        yield Static(self._foot, id="foot", markup=False)

    def _folded(self) -> str | Text:
        """The text as it fits: lines that are indented go on below, further in; others fit, or go on as they are."""
        # The bar that scrolls takes a character where it is shown.
        width = self.app.size.width - 1
        if isinstance(self._text, Text):
            return self._text
        return "\n".join(part for line in self._text.split("\n") for part in _fold(line, width))

    def on_resize(self) -> None:
        """Another width folds otherwise."""
        self.query_one("#text", Static).update(self._folded())

    @property
    def plain(self) -> str:
        """What ``c`` copies."""
        return f"{self._head}\n\n{self._text.plain if isinstance(self._text, Text) else self._text}"

    def show(self, title: str, text: str | Text) -> None:
        """Another text in its place."""
        self._head, self._text = title, text
        if self.is_mounted:
            self.query_one("#head", Static).update(title)
            self.query_one("#text", Static).update(self._folded())

    def say(self, text: str) -> None:
        """Something to know, in place of the keys."""
        self.query_one("#foot", Static).update(text)

    def action_scroll(self, lines: int) -> None:
        """Up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_close(self) -> None:
        """Back to the map."""
        self.dismiss()


def _fold(line: str, width: int) -> list[str]:
    words = line.lstrip()
    indent = line[: len(line) - len(words)]
    if len(line) <= width or not indent:
        return [line]
    return textwrap.wrap(words, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


class FramePage(TextPage):
    """One aggregation window; ``j`` and ``k`` page, arrows scroll."""

    CSS = PAGE_CSS.format(name="FramePage")
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q", "close", "Back"),
        ("j", "turn(1)", "Next frame"),
        ("k", "turn(-1)", "Frame before"),
        ("down", "scroll(1)", "Down"),
        ("up", "scroll(-1)", "Up"),
        ("space,pagedown", "scroll(10)", "Page down"),
        ("pageup", "scroll(-10)", "Page up"),
    ]

    class Turned(Message):
        """Another frame is wanted: the next or the one before."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    def __init__(self, title: str) -> None:
        super().__init__(title, "", "Esc back  j k frames, past the last is live  arrows scroll  c copy  x window")

    def action_turn(self, by: int) -> None:
        """Ask for it."""
        self.post_message(self.Turned(by))


class ListPage(Screen[None]):
    """A table that is kept up to date; keys act on the row under the cursor."""

    CSS = PAGE_CSS.format(name="ListPage")
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q", "close", "Back"),
        ("j", "down", "Down"),
        ("k", "up", "Up"),
    ]

    class Acted(Message):
        """A key on a row: the row's first cell, as the table was given it."""

        def __init__(self, what: str, key: str, row: str) -> None:
            super().__init__()
            self.what, self.key, self.row = what, key, row

    def __init__(self, what: str, title: str, headers: Sequence[str], keys: dict[str, str]) -> None:
        super().__init__()
        self.what = what
        self._head = title
        self._headers = headers
        self._keys = keys
        self._rows: list[list[str]] | None = None

    def compose(self) -> ComposeResult:
        """Title, table, keys."""
        yield Static(self._head, id="head", markup=False)
        yield DataTable(cursor_type="row", zebra_stripes=False)
        keys = "  ".join(f"{key} {meaning}" for key, meaning in self._keys.items())
        yield Static(
            "  ".join(part for part in ("Esc back", "j k move", keys, "c copy") if part), id="foot", markup=False
        )

    def on_mount(self) -> None:
        """The headers stay."""
        self.query_one(DataTable).add_columns(*self._headers)
        if self._rows is not None:
            self.show(self._rows)

    def show(self, rows: list[list[str]]) -> None:
        """Rows in place of those of before; the cursor stays on its row's first cell where that is still there."""
        if not self.is_mounted:
            self._rows = rows
            return
        table: DataTable[Any] = self.query_one(DataTable)
        held = self.chosen
        self._rows = rows
        table.clear()
        for row in rows:
            table.add_row(*row)
        if held is not None:
            at = next((index for index, row in enumerate(rows) if row[0] == held), None)
            if at is not None:
                table.move_cursor(row=at)

    @property
    def chosen(self) -> str | None:
        """First cell of the row under the cursor."""
        table: DataTable[Any] = self.query_one(DataTable)
        rows = self._rows or []
        return rows[table.cursor_row][0] if rows and 0 <= table.cursor_row < len(rows) else None

    @property
    def plain(self) -> str:
        """What ``c`` copies."""
        from m17ctl.render import table

        return "\n".join([self._head, "", *table(self._headers, self._rows or [], width=None)])

    def say(self, text: str) -> None:
        """Something to know, in place of the keys."""
        self.query_one("#foot", Static).update(text)

    def action_down(self) -> None:
        """The next row."""
        self.query_one(DataTable).action_cursor_down()

    def action_up(self) -> None:
        """The row before."""
        self.query_one(DataTable).action_cursor_up()

    def on_key(self, event: Any) -> None:
        """A key of this list's own acts on the row."""
        row = self.chosen
        if event.key in self._keys and row is not None:
            event.stop()
            self.post_message(self.Acted(self.what, event.key, row))

    def action_close(self) -> None:
        """Back to the map."""
        self.dismiss()
