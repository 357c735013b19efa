"""
What asks before something happens: which symbol, which window, which priority, what to clear and why.

Each is dismissed with a plain value, or None. This module must never ask the daemon: who opens a dialog does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Checkbox, Input, OptionList, Static
from textual.widgets.option_list import Option

from ledger.columns import Column
from m17ctl.render import cell_width
from m17ctl.tui.lines import WINDOWS
from m17d.outcomes import OperationReply

BOX = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > Vertical {{ width: 72; max-width: 96%; height: auto; max-height: 96%; padding: 0 1; border: round $primary; background: $surface; }}
{name} Input, {name} Checkbox {{ border: none; height: 1; padding: 0; margin: 0; }}
{name} Checkbox > .toggle--button {{ color: $foreground; background: $surface; text-style: none; }}
{name} Checkbox.-on > .toggle--button {{ color: $foreground; background: $surface; text-style: bold; }}
{name} OptionList {{ border: none; height: auto; max-height: 12; padding: 0; }}
"""
CANCEL: BindingType = ("escape", "leave", "Leave")


class Tick(Checkbox):
    """A box whose cross is there or not, so that it is seen without colour."""

    BUTTON_LEFT, BUTTON_INNER, BUTTON_RIGHT = "", "[ ]", ""

    def watch_value(self) -> None:
        """Draw the cross, or take it away."""
        self.BUTTON_INNER = "[x]" if self.value else "[ ]"
        super().watch_value()


class SymbolPrompt(ModalScreen[str | None]):
    """Which symbol; an empty answer is all symbols together."""

    CSS = BOX.format(name="SymbolPrompt")
    BINDINGS: ClassVar[list[BindingType]] = [CANCEL]

    def __init__(self, recent: list[str]) -> None:
        super().__init__()
        self._recent = recent

    def compose(self) -> ComposeResult:
        """A line to type in, and the symbols of before."""
        with Vertical():
            yield Static("Symbol, such as AAPL or O:AAPL; empty for all together")
            yield Input(id="symbol")
            if self._recent:
                yield Static("before: " + "  ".join(self._recent[:8]))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Tickers are case-sensitive in a feed, but nobody types them in lower case on purpose."""
        text = event.value.strip()
        self.dismiss(text.upper() if text.islower() else text)

    def action_leave(self) -> None:
        """Nothing changes."""
        self.dismiss(None)


class WindowPicker(ModalScreen[str | None]):
    """Which aggregation window; dismissed with its word, ``none`` for stopping, or None where nothing changes."""

    CSS = BOX.format(name="WindowPicker")
    BINDINGS: ClassVar[list[BindingType]] = [CANCEL]

    def __init__(self, chosen: str | None) -> None:
        super().__init__()
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        """The six windows, and none."""
        words = [*WINDOWS, "none"]
        options = [Option(self._text(word), id=word) for word in words]
        with Vertical():
            yield Static("Aggregation window: engines work on the selection for it")
            yield OptionList(*options, id="windows")

    def _text(self, word: str) -> str:
        meaning = "show all; stop what was started for a window here" if word == "none" else f"{WINDOWS[word].value}"
        return f"{word:5} {meaning}{'  (now)' if word == (self._chosen or 'none') else ''}"

    def on_mount(self) -> None:
        """Begin at what is chosen."""
        words = [*WINDOWS, "none"]
        self.query_one(OptionList).highlighted = words.index(self._chosen or "none")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Chosen."""
        self.dismiss(event.option.id)

    def action_leave(self) -> None:
        """Nothing changes."""
        self.dismiss(None)


class PriorityPrompt(ModalScreen[int | None]):
    """How urgent; dismissed with a priority."""

    CSS = BOX.format(name="PriorityPrompt")
    BINDINGS: ClassVar[list[BindingType]] = [CANCEL]

    def __init__(self, what: str, priority: int) -> None:
        super().__init__()
        self._what = what
        self._priority = priority

    def compose(self) -> ComposeResult:
        """A line with the priority of last time."""
        with Vertical():
            yield Static(f"Raise a priority region over {self._what}")
            yield Static("Priority 0 to 1000; a higher one is served sooner. Enter raises it, Esc leaves")
            yield Input(str(self._priority), id="priority", type="integer")
            yield Static("", id="wrong")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Within bounds, or say so."""
        text = event.value.strip()
        if text.isdigit() and 0 <= int(text) <= 1000:
            self.dismiss(int(text))
        else:
            self.query_one("#wrong", Static).update("a number from 0 to 1000")

    def action_leave(self) -> None:
        """Nothing is raised."""
        self.dismiss(None)


@dataclass(frozen=True, slots=True)
class ClearChoice:
    """What a person decided to clear; ``expect`` is how many cells were shown, one number a range."""

    cause: str
    cascade: bool
    accept_loss: bool
    expect: tuple[int, ...]


class ClearDialog(ModalScreen[ClearChoice | None]):
    """
    What would go, why, and then once more before it goes.

    What would go is looked at when it opens, and again when the choice changes.
    """

    CSS = BOX.format(name="ClearDialog")
    BINDINGS: ClassVar[list[BindingType]] = [CANCEL]

    def __init__(self, what: str, columns: tuple[Column, ...], look: Callable[[bool], object]) -> None:
        """``look`` asks for what would go, with or without what lies behind; the answer comes to :meth:`show`."""
        super().__init__()
        self._what = what
        self._columns = columns
        self._look = look
        self._found: list[OperationReply] = []
        self._armed = False

    def compose(self) -> ComposeResult:
        """What is selected, what would go, two choices and a cause."""
        with Vertical():
            yield Static(f"Clear {self._what}")
            yield Static("columns: " + ", ".join(self._columns))
            yield Static("looking what would go...", id="counts")
            yield Tick("and what was made from these cells (cascade)", id="cascade", compact=True)
            yield Tick("also cells that nothing could refill", id="loss", compact=True)
            yield Static("Cause, for the audit log:")
            yield Input(id="cause", placeholder="why")
            yield Static("Enter looks once more, Esc leaves everything as it is", id="next")

    def on_mount(self) -> None:
        """Begin with the cause, and look."""
        self.query_one("#cause", Input).focus()
        self._look(False)

    @property
    def cascade(self) -> bool:
        """Whether what lies behind goes too."""
        return self.query_one("#cascade", Tick).value

    def show(self, replies: list[OperationReply]) -> None:
        """What a clear would take now."""
        self._found, self._armed = replies, False
        cells = _summed([reply.cleared for reply in replies])
        behind = _summed([reply.dependents for reply in replies])
        lost = sum(reply.refillable.none for reply in replies)
        lines = [f"would go: {_words(cells)}"]
        if behind:
            lines.append(f"made from them and stale afterwards: {_words(behind)}")
        if lost:
            lines.append(f"{lost:,} cells could be refilled from nowhere")
        self.query_one("#counts", Static).update("\n".join(lines))
        self._say("Enter clears after one more Enter, Esc leaves everything as it is")

    def complain(self, text: str) -> None:
        """It could not be looked at."""
        self.query_one("#counts", Static).update(text)

    def _say(self, text: str) -> None:
        self.query_one("#next", Static).update(text)

    def on_checkbox_changed(self) -> None:
        """Other cells would go: look again."""
        self._armed, self._found = False, []
        self._look(self.cascade)

    def on_input_changed(self) -> None:
        """Another cause is another decision."""
        self._armed = False

    def on_input_submitted(self) -> None:
        """First arm, then clear."""
        cause = self.query_one("#cause", Input).value.strip()
        expect = tuple(sum(reply.cleared.values()) for reply in self._found)
        loss = self.query_one("#loss", Tick).value
        if not cause:
            self._say("a cause is needed: it is what the next person reads in the audit log")
        elif not self._found:
            self._say("not looked at yet: wait for the counts")
        elif not sum(expect):
            self._say("nothing would go: no cell there is filled")
        elif any(reply.refillable.none for reply in self._found) and not loss:
            self._say("some cells could be refilled from nowhere: tick the box to clear them too")
        elif not self._armed:
            self._armed = True
            self._say(f"Enter clears {sum(expect):,} cells now (m17ctl undo gives them back), Esc leaves them")
        else:
            self.dismiss(ClearChoice(cause, self.cascade, loss, expect))

    def action_leave(self) -> None:
        """Nothing is cleared."""
        self.dismiss(None)


def _summed(parts: list[dict[Column, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for column, number in part.items():
            if number:
                total[str(column)] = total.get(str(column), 0) + number
    return total


def _words(cells: dict[str, int]) -> str:
    text = ", ".join(f"{number:,} {column}" for column, number in cells.items())
    return text if cell_width(text) <= 400 else f"{sum(cells.values()):,} cells of {len(cells)} columns"
