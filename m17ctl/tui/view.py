"""
The application: keys to the desk, results from the pump to the desk and the screens.

Everything happens on the screen's own loop and nothing on it waits: what takes time is a job. This module must never compute
what is shown; the model and the drawing do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any, ClassVar, Final

from textual import on
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen

from m17ctl.tui import answers, deeds, questions, settings
from m17ctl.tui.axis import DAY, Axis, Level
from m17ctl.tui.canvas import Canvas
from m17ctl.tui.clipboard import copy
from m17ctl.tui.desk import SYMBOLS_MAX, Desk, NotThere
from m17ctl.tui.dialogs import ClearChoice, ClearDialog, PriorityPrompt, SymbolPrompt, WindowPicker
from m17ctl.tui.drawing import Drawing
from m17ctl.tui.lines import WINDOWS
from m17ctl.tui.model import Model
from m17ctl.tui.pages import FramePage, ListPage, TextPage
from m17ctl.tui.pump import Connected, Failed, Pump
from m17ctl.tui.texts import (
    LISTS,
    audit_rows,
    cell_text,
    cleared_text,
    engine_rows,
    engines_line,
    frame_page,
    help_text,
    raised_text,
    region_rows,
    why_text,
)
from m17d.outcomes import Event, SubscribeReply

_REFRESH_S: Final = 0.5
"""Sessions that moved are asked for again at most this often."""
_POLL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a view is made of: the year, where it remembers, and how it reaches the daemon."""

    axis: Axis
    zone: tzinfo
    state_dir: str
    settings_file: Path
    pump: Callable[[Callable[[object], object]], Pump]


class Arrived(Message):
    """A result from a thread."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result


class View(App[int]):
    """The full-screen view."""

    TITLE = "M17"
    ENABLE_COMMAND_PALETTE = False
    CSS = "Canvas { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("question_mark", "help", "Help"),
        ("h,left", "move(-1)", "Left"),
        ("l,right", "move(1)", "Right"),
        ("H,shift+left", "extend(-1)", "Extend left"),
        ("L,shift+right", "extend(1)", "Extend right"),
        ("g,home", "select(True)", "First"),
        ("G,end", "select(False)", "Last"),
        ("up", "row(-1)", "Column above"),
        ("down", "row(1)", "Column below"),
        ("escape", "all_rows", "All columns"),
        ("enter", "zoom_in", "In"),
        ("o,backspace", "zoom_out", "Out"),
        ("i", "zoom_back", "In again"),
        ("s", "symbol", "Symbol"),
        ("x", "window", "Window"),
        ("j", "page(1)", "Next frame"),
        ("k", "page(-1)", "Frame before"),
        ("c", "copy", "Copy"),
        ("p", "prioritise", "First"),
        ("d", "clear", "Clear"),
        ("w", "why", "Why"),
        ("e", "list('engines')", "Engines"),
        ("r", "list('regions')", "Regions"),
        ("a", "list('audit')", "Audit"),
        ("ctrl+r", "ask_again", "Ask again"),
        ("q", "leave", "Quit"),
    ]

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__()
        self.surroundings = surroundings
        self.pump = surroundings.pump(lambda result: self.post_message(Arrived(result)))
        self.model = Model(surroundings.axis)
        self.desk = Desk(self.model, self.pump.submit, self.pump.drop_long)
        self.canvas = Canvas(Drawing(self.model, surroundings.zone))
        self.remembered = settings.load(surroundings.settings_file, surroundings.state_dir)
        self._frame_page: FramePage | None = None

    def compose(self) -> ComposeResult:
        """The picture is all there is."""
        yield self.canvas

    def on_mount(self) -> None:
        """Take up where the last run ended, or ask for a symbol."""
        self.canvas.focus()
        self.pump.start()
        kept, axis = self.remembered, self.surroundings.axis
        first, last = axis.index(kept.first_session), axis.index(kept.last_session)
        if first is not None and last is not None and first <= last:
            self.model.look_at((first * DAY, (last + 1) * DAY))
            self.desk.untouched = self.model.level is Level.YEAR
        self.set_interval(_REFRESH_S, self._ask_for_moved)
        self.set_interval(_POLL_S, self._poll)
        self._poll()
        if kept.symbol:
            self.pump.submit(questions.SymbolJob(kept.symbol))
        else:
            self.action_symbol()

    def on_resize(self) -> None:
        """Another width needs other resolutions."""
        self.call_after_refresh(self._fetch)

    def on_unmount(self) -> None:
        """Let the threads go."""
        self.pump.stop()

    def _fetch(self) -> None:
        if self.canvas.size.width:
            layout = self.canvas.layout_now
            self.desk.room, self.desk.height = layout.room, layout.lines
            self.desk.fetch_missing()
        self.canvas.redraw()

    def _ask_for_moved(self) -> None:
        if self.desk.ask_for_moved():
            self.canvas.redraw_soon()

    def _poll(self) -> None:
        """What has no event: how far tasks and regions are."""
        self.pump.submit(questions.ListJob("engines"))
        if self._page_of("regions") or any(region.state in ("active", "stuck") for region in self.model.regions):
            self.pump.submit(questions.ListJob("regions"))

    # ---- what arrives

    @on(Arrived)
    def take(self, message: Arrived) -> None:
        """One result, from any thread, in the order they came."""
        result = message.result
        match result:
            case Event():
                self.desk.take_event(result)
                if result.topic == "operation" and self._page_of("audit"):
                    self.pump.submit(questions.ListJob("audit"))
            case SubscribeReply():
                if result.resync:
                    self.desk.ask_again()
            case Connected():
                self.canvas.trouble = "" if result.there else f"no daemon: {result.message}"
                if result.there:
                    self.desk.ask_again()
            case Failed():
                self._take_failure(result)
            case _:
                self.desk.take(result)
                self._show(result)
        self._fetch() if isinstance(result, answers.SymbolResult) else self.canvas.redraw_soon()

    def _take_failure(self, failed: Failed) -> None:
        self.desk.failed(failed.job)
        looked = isinstance(failed.job, deeds.ClearJob) and failed.job.dry_run
        top = self._top()
        if looked and isinstance(top, ClearDialog):
            top.complain(failed.message)
        else:
            self.say(failed.message + (f" ({failed.hint})" if failed.hint else ""))

    def _show(self, result: object) -> None:
        """What a result means for the screens."""
        zone = self.surroundings.zone
        match result:
            case answers.Said(text=text):
                self.say(text)
            case answers.SymbolResult(symbol=symbol):
                if self.remembered.symbol == symbol and self.remembered.window in WINDOWS:
                    self.model.choose_window(self.remembered.window)
                self.remember()
            case answers.FrameResult():
                self._show_frame(result)
            case answers.WhyResult(title=title, causes=causes):
                self.push_screen(TextPage(title, why_text(causes, zone)))
            case answers.CellResult(rows=rows):
                self.push_screen(TextPage(f"{rows[0].symbol}: cells of a window", cell_text(rows, zone)))
            case answers.EnginesResult(engines=engines):
                self.canvas.status = engines_line(engines)
                self._show_list("engines", engine_rows(engines))
            case answers.RegionsResult(regions=regions):
                self._show_list("regions", region_rows(regions, zone))
            case answers.AuditResult(records=records):
                self._show_list("audit", audit_rows(records, zone))
            case answers.Raised(regions=regions):
                self.say(raised_text(regions))
            case answers.ClearResult(replies=replies, dry_run=True):
                top = self._top()
                if isinstance(top, ClearDialog):
                    top.show(replies)
            case answers.ClearResult(replies=replies):
                self.say(cleared_text(replies))
            case _:
                pass

    def say(self, text: str) -> None:
        """Something to know, in place of the keys until the next key."""
        self.canvas.said = text
        self.canvas.redraw()

    # ---- keys that move

    def _moved(self) -> None:
        self.canvas.said, self.desk.untouched = "", False
        self._fetch()

    def action_move(self, by: int) -> None:
        """Move the selection."""
        self.model.move(by)
        self._moved()

    def action_extend(self, by: int) -> None:
        """Extend the selection."""
        self.model.move(by, extend=True)
        self._moved()

    def action_select(self, first: bool) -> None:
        """The first or the last unit."""
        self.model.select(first)
        self._moved()

    def action_row(self, by: int) -> None:
        """One column alone, or all."""
        self.model.choose_row(by, self.canvas.layout_now.lines)
        self._moved()

    def action_all_rows(self) -> None:
        """All columns again."""
        self.model.row = None
        self._moved()

    def action_zoom_in(self) -> None:
        """Into the selection; on a minute, its cells."""
        if not self.model.zoom_in() and self.model.symbol is not None:
            symbols = (self.model.symbol, *self.desk.options)[:SYMBOLS_MAX]
            self.pump.submit(questions.CellJob(symbols, self.model.axis.start_ns(self.model.selection[0])))
        self._moved()

    def action_zoom_out(self) -> None:
        """Out by one level."""
        self.model.zoom_out()
        self._moved()

    def action_zoom_back(self) -> None:
        """In again."""
        self.model.zoom_back()
        self._moved()

    def action_ask_again(self) -> None:
        """Ask for everything again."""
        self.desk.ask_again()
        self.say("asked again for everything")

    # ---- symbol, window, frames

    def action_symbol(self) -> None:
        """Ask for another symbol."""

        def chosen(symbol: str | None) -> None:
            if symbol:
                self.pump.submit(questions.SymbolJob(symbol))
            elif symbol is not None:
                self.desk.look_at(None)
                self.remember()
                self._fetch()

        self.push_screen(SymbolPrompt(self.remembered.recent), chosen)

    def action_window(self) -> None:
        """Choose the aggregation window."""
        if self.model.symbol is None:
            self.say("choose a symbol first: s")
            return

        def chosen(word: str | None) -> None:
            if word is not None:
                self.say(self.desk.choose_window(None if word == "none" else word, self.remembered.priority))
                self.remember()
                self._fetch()

        self.push_screen(WindowPicker(self.model.window), chosen)

    def action_page(self, by: int) -> None:
        """The next or previous frame; as the page opens, the one that was left, or the one at another selection."""
        try:
            if self._frame_page is None:
                self.desk.open_frame()
            else:
                self.desk.page(by)
        except NotThere as error:
            self.say(str(error))
            return
        self.desk.fetch_frame()

    @on(FramePage.Turned)
    def _turned(self, message: FramePage.Turned) -> None:
        self.action_page(message.by)

    def _show_frame(self, found: answers.FrameResult) -> None:
        frame = self.model.frame
        if frame is None or found.start_ns != self.model.axis.start_ns(frame.position):
            return
        title, text = frame_page(found, frame.window, self.surroundings.zone, self.size.width - 2, live=frame.live)
        if self._frame_page is None:
            self._frame_page = FramePage(title)
            self.push_screen(self._frame_page, lambda _: self._leave_frames())
        self._frame_page.show(title, text)

    def _leave_frames(self) -> None:
        self._frame_page = None

    def action_copy(self) -> None:
        """Copy what is shown: a page, the frame, or the map."""
        screen = self.screen
        if isinstance(screen, (TextPage, ListPage)):
            text = screen.plain
        else:
            text = "\n".join(line.plain.rstrip() for line in self.canvas.draw(self.canvas.size)[:-1])
        said = copy(text, self.copy_to_clipboard, self.surroundings.settings_file.parent)
        self.say(said)
        if isinstance(screen, (TextPage, ListPage)):
            screen.say(said)

    # ---- regions, clearing, causes

    def action_prioritise(self) -> None:
        """Raise a region over the selection."""
        if self.model.symbol is None:
            self.say("a region is for one symbol: choose one with s")
            return

        def chosen(priority: int | None) -> None:
            if priority is not None:
                columns = self.desk.columns if self.model.row is not None else ()
                self.say(self.desk.raise_regions("priority", priority, columns))
                self.remember(priority=priority)

        what = f"{self.model.symbol}, {self.canvas.drawing.when(self.model.selection)}"
        self.push_screen(PriorityPrompt(what, self.remembered.priority), chosen)

    def action_clear(self) -> None:
        """Clear the selection, after a look at what would go."""
        try:
            ranges = self.desk.ranges()
        except NotThere as error:
            self.say(str(error))
            return
        what = f"{self.model.symbol or 'all symbols'}, {self.canvas.drawing.when(self.model.selection)}"
        dialog = ClearDialog(
            what,
            self.desk.columns,
            lambda cascade: self.pump.submit(self.desk.clear_job(ranges, None, cascade=cascade)),
        )

        def decided(choice: ClearChoice | None) -> None:
            if choice is not None:
                self.pump.submit(self.desk.clear_job(ranges, choice))

        self.push_screen(dialog, decided)

    def action_why(self) -> None:
        """Why the selection is as it is."""
        try:
            ranges = self.desk.ranges()
        except NotThere as error:
            self.say(str(error))
            return
        what = f"Why: {self.model.symbol or 'all symbols'}, {self.canvas.drawing.when(self.model.selection)}"
        self.pump.submit(questions.WhyJob(what, self.desk.columns, ranges))

    # ---- pages

    def action_help(self) -> None:
        """Every key."""
        self.push_screen(TextPage("M17: keys", help_text()))

    def action_list(self, what: str) -> None:
        """Engines, regions or the audit log."""
        title, headers, keys = LISTS[what]
        self.push_screen(ListPage(what, title, headers, keys))
        self.pump.submit(questions.ListJob(what))

    def _top(self) -> Screen[Any] | None:
        """The screen on top; none while the last one is taken down, when timers and results may still come."""
        stack = self.screen_stack
        return stack[-1] if stack else None

    def _page_of(self, what: str) -> ListPage | None:
        top = self._top()
        return top if isinstance(top, ListPage) and top.what == what else None

    def _show_list(self, what: str, rows: list[list[str]]) -> None:
        page = self._page_of(what)
        if page is not None:
            page.show(rows)

    @on(ListPage.Acted)
    def _acted(self, message: ListPage.Acted) -> None:
        if message.what == "engines":
            action = {"p": "pause", "u": "resume", "t": "retry"}[message.key]
            self.pump.submit(deeds.EngineJob(message.row, action))
        elif message.what == "regions":
            self.pump.submit(deeds.LowerJob((int(message.row),)))

    # ---- remembering

    def remember(self, priority: int | None = None) -> None:
        """Keep symbol, span, window and priority for the next run."""
        model, kept = self.model, self.remembered
        sessions = model.sessions(model.place.span)
        self.remembered = settings.Settings(
            symbol=model.symbol,
            first_session=sessions[0],
            last_session=sessions[-1],
            window=model.window,
            priority=kept.priority if priority is None else priority,
            recent=list(dict.fromkeys([one for one in [model.symbol, *kept.recent] if one]))[:16],
        )
        try:
            settings.save(self.surroundings.settings_file, self.surroundings.state_dir, self.remembered)
        except OSError as error:
            self.say(f"settings are not remembered: {error.filename}: {error.strerror}")

    def action_leave(self) -> None:
        """Remember, and quit."""
        self.remember()
        self.exit(0)
