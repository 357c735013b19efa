"""
The desk: the model, what is known and what was asked for, and the jobs that a decision turns into.

It stands between the screens and the pump: screens say what a person decided, the pump does jobs, the desk knows which. Pure but
for the function that takes jobs; tested without a screen. This module must never wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ledger.columns import Column
from m17ctl.render import due, sound
from m17ctl.tui import answers, deeds, questions
from m17ctl.tui.axis import DAY, Level, Span
from m17ctl.tui.dialogs import ClearChoice
from m17ctl.tui.lines import ALL, OPTIONS, OWN, WINDOWS, Line
from m17ctl.tui.model import Frame, Model
from m17ctl.tui.questions import Job
from m17ctl.tui.ranges import ranges_of
from m17d.outcomes import Event, RegionReply
from m17d.protocol import Range
from m17d.replies import Counts

SESSIONS_MAX = 31
"""A clear or a question over more sessions is refused: zoom in."""
SYMBOLS_MAX = 32
"""Regions are raised for at most so many symbols at once."""
_FOR_A_WINDOW = (Column.TRADE_REF, Column.QUOTE_REF, Column.RF_RATE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF)


class NotThere(Exception):
    """What was asked for makes no sense where the selection is; the message says what to do."""


@dataclass
class Desk:
    """
    What a view works with.

    Args:
        submit: takes a job; results come back through :meth:`take`.
        drop: forgets grids and prices that are still to come.
    """

    model: Model
    submit: Callable[[Job], object]
    drop: Callable[[], object]
    underlying: str = ""
    options: tuple[str, ...] = ()
    raised: dict[str, list[RegionReply]] = field(default_factory=dict)
    """Regions that this view raised, by purpose: ``priority`` or an aggregation window."""
    room: int = 0
    """Characters of the map; 0 before there is a screen."""
    height: int = 0
    """Lines of the map."""
    untouched: bool = True
    """Nobody has moved yet: the newest session is selected when it is known."""
    _dirty: set[str] = field(default_factory=set)
    _priced: set[tuple[str, int]] = field(default_factory=set)

    # ---- what is missing

    def fetch_missing(self) -> None:
        """Ask for everything that the picture needs and does not have."""
        if not self.room:
            return
        model = self.model
        cut = model.cut(self.room)
        self._fetch_grid(model.axis.whole, DAY)
        if model.level is not Level.YEAR:
            self._fetch_grid(model.place.span, model.step(cut))
        if self.underlying:
            self._fetch_prices(model.place.span, 1 if model.level >= Level.SESSION else max(1, cut.step_minutes // 2))

    def _fetch_grid(self, span: Span, step: int) -> None:
        lacking = self.model.cells.lacking(range(span[0] // DAY, (span[1] - 1) // DAY + 1), step)
        if lacking:
            # Sessions between that are known cost the daemon a look at what it kept.
            wanted = range(lacking[0], lacking[-1] + 1)
            self.model.cells.asked(wanted, step)
            sessions = tuple(self.model.axis.days[day].session for day in wanted)
            self.submit(questions.GridJob(self.model.symbol, sessions, step))

    def _fetch_prices(self, span: Span, step: int) -> None:
        step = DAY if step >= DAY // 2 else step
        wanted = tuple(
            one for one in self.model.sessions(span) if (one, step) not in self._priced and self._may_have_price(one)
        )
        if wanted:
            self._priced.update((one, step) for one in wanted)
            self.submit(questions.PriceJob(self.underlying, wanted, step))

    def _may_have_price(self, session: str) -> bool:
        """Sessions without a trade of the symbol are not asked for; before the year's counts came none is."""
        counts = self._counts_of(session, Column.TRADE_REF)
        return counts is not None and (counts.filled > counts.no_data or self.model.symbol != self.underlying)

    def _counts_of(self, session: str, column: Column) -> Counts | None:
        day = self.model.axis.index(session)
        assert day is not None
        parts = [(group, column) for group in (OWN, OPTIONS, ALL)]
        return self.model.cells.counts(parts, (day * DAY, (day + 1) * DAY), DAY)

    def ask_for_moved(self) -> bool:
        """Ask again for sessions that events named, together; False where none was."""
        if not self._dirty:
            return False
        for session in self._dirty:
            day = self.model.axis.index(session)
            if day is not None:
                self.model.cells.forget(day)
        self._priced = {one for one in self._priced if one[0] not in self._dirty}
        self._dirty.clear()
        self.fetch_missing()
        return True

    def ask_again(self) -> None:
        """Forget what is known and ask for it again; the picture stays until the answers come."""
        for day in range(len(self.model.axis)):
            self.model.cells.forget(day)
        self._priced.clear()
        self.submit(questions.ListJob("regions"))
        self.fetch_missing()

    # ---- what arrives

    def take_event(self, event: Event) -> None:
        """Something happened in the daemon."""
        match event.topic, event.facts.get("state"):
            case "task", "done":
                self._dirty.add(str(event.facts.get("session", "")))
            case "operation", _:
                self._dirty.update(self.model.sessions(self.model.place.span))
            case "region", _:
                self.submit(questions.ListJob("regions"))
            case _:
                pass

    def take(self, result: object) -> None:
        """A result that changes what is known; others are left alone."""
        match result:
            case answers.GridResult(symbol=symbol, session=session, grid=grid) if symbol == self.model.symbol:
                day = self.model.axis.index(session)
                if day is not None:
                    self.model.cells.put(day, grid)
                    self.model.learn_groups()
            case answers.GridEnd(symbol=symbol) if symbol == self.model.symbol:
                if self.untouched:
                    self.model.select_newest()
                self.fetch_missing()
                self.follow_live()
            case answers.PriceResult(symbol=symbol) as found if symbol == self.underlying:
                day = self.model.axis.index(found.session)
                if day is not None:
                    self.model.learn_prices(day, found.prices)
            case answers.SymbolResult() as found_symbol:
                self.look_at(found_symbol)
            case answers.RegionsResult(regions=regions):
                self._take_regions(regions)
            case answers.Raised(purpose=purpose, regions=regions):
                self.raised.setdefault(purpose, []).extend(regions)
                self.submit(questions.ListJob("regions"))
            case _:
                pass

    def _take_regions(self, regions: list[RegionReply]) -> None:
        mine = {self.model.symbol, self.underlying, *self.options}
        here = {region.id for some in self.raised.values() for region in some}
        self.model.regions = [
            one for one in regions if one.symbol in mine and (one.state in ("active", "stuck") or one.id in here)
        ]

    def failed(self, job: Job) -> None:
        """A job was not done: what it asked for is lacking again."""
        if isinstance(job, questions.GridJob):
            for session in job.sessions:
                day = self.model.axis.index(session)
                if day is not None:
                    self.model.cells.forget(day)
        elif isinstance(job, questions.PriceJob):
            self._priced = {one for one in self._priced if one[0] not in job.sessions}

    # ---- symbol and window

    def look_at(self, found: answers.SymbolResult | None) -> None:
        """Go to a symbol that the daemon knows, or to all together."""
        self.drop()
        self.model.set_symbol(None if found is None else found.symbol)
        self.underlying, self.options = ("", ()) if found is None else (found.underlying, found.options)
        self._priced.clear()
        if found is None:
            self.model.choose_window(None)
        self.submit(questions.ListJob("regions"))
        self.fetch_missing()

    def choose_window(self, word: str | None, priority: int) -> str:
        """
        Choose an aggregation window and have engines work for it over the selection; None takes that back.

        Returns:
            what happened, in a line.
        """
        self.model.choose_window(word)
        if word is None:
            waiting = {one.id for one in self.model.regions if one.state in ("active", "stuck")}
            mine = [one.id for purpose in WINDOWS for one in self.raised.pop(purpose, [])]
            taken = tuple(one for one in mine if one in waiting)
            if taken:
                self.submit(deeds.LowerJob(taken))
            self.fetch_missing()
            return f"all windows; {len(taken)} regions are taken back" if taken else "all windows"
        self.fetch_missing()
        column = WINDOWS[word]
        counts = self.model.cells.counts(
            [(OWN, column)], self.model.selection, self.model.step(self.model.cut(self.room))
        )
        if counts is not None and not counts.not_due and due(counts) == sound(counts) > 0:
            return f"{column} is whole there: nothing had to be started; j k page through its frames"
        self.raise_regions(word, priority, (*_FOR_A_WINDOW, column), everybody=True)
        return f"{column}: engines are asked to fill the selection; j k page through its frames"

    # ---- the selection in the daemon's words

    def chosen_lines(self) -> list[Line]:
        """The line that is looked at alone, or all."""
        lines = self.model.lines(self.height)
        at = self.model.row
        return lines if at is None or at >= len(lines) else [lines[at]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the chosen lines."""
        named = {column for line in self.chosen_lines() for column in line.columns}
        return tuple(column for column in Column if column in named)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbol and the options on it, as far as the chosen lines show them; empty for all symbols."""
        if self.model.symbol is None:
            return ()
        groups = {group for line in self.chosen_lines() for group in line.groups}
        own = (self.model.symbol,) if OWN in groups else ()
        return own + (self.options if OPTIONS in groups else ())

    def ranges(self) -> tuple[Range, ...]:
        """
        The selection as ranges, one a session and group.

        Raises:
            NotThere: nothing is known there, or there are too many sessions.
        """
        model = self.model
        sessions = [one for one in model.sessions() if self._is_known(one)]
        if not sessions:
            raise NotThere("no source has the symbol there")
        if len(sessions) > SESSIONS_MAX:
            raise NotThere(f"{len(sessions)} sessions are selected, at most {SESSIONS_MAX} at once: zoom in")
        return ranges_of(model.axis, model.selection, sessions, None if model.symbol is None else self.symbols)

    def _is_known(self, session: str) -> bool:
        counts = self._counts_of(session, Column.TRADE_REF)
        return counts is not None and any(getattr(counts, name) for name in counts.__struct_fields__)

    # ---- decisions

    def raise_regions(
        self, purpose: str, priority: int, columns: tuple[Column, ...], *, everybody: bool = False
    ) -> str:
        """
        Raise a region over the selection for each symbol; what was left out, in a line.

        Raises:
            NotThere: all symbols are looked at together.
        """
        if self.model.symbol is None:
            raise NotThere("a region is for one symbol: choose one with s")
        symbols = (self.model.symbol, *self.options) if everybody else self.symbols
        start, end = self.model.axis.bounds_ns(self.model.selection)
        self.submit(deeds.RaiseJob(purpose, symbols[:SYMBOLS_MAX], start, end, priority, columns))
        left_out = len(symbols) - SYMBOLS_MAX
        return f"{left_out} of {len(symbols)} symbols are left out: {SYMBOLS_MAX} at once" if left_out > 0 else ""

    def clear_job(self, ranges: tuple[Range, ...], choice: ClearChoice | None, *, cascade: bool = False) -> Job:
        """The clear that was decided on; without a decision a look at what would go."""
        if choice is None:
            return deeds.ClearJob(self.columns, ranges, "look", dry_run=True, cascade=cascade)
        return deeds.ClearJob(
            self.columns,
            ranges,
            choice.cause,
            dry_run=False,
            cascade=choice.cascade,
            accept_loss=choice.accept_loss,
            expect=choice.expect,
        )

    # ---- frames

    def open_frame(self) -> None:
        """
        The frame where paging ended, or the one at the selection.

        Raises:
            NotThere: no window is chosen.
        """
        if not self.model.open_frame():
            raise NotThere("choose an aggregation window first: x")

    def page(self, by: int) -> None:
        """
        Another frame.

        Raises:
            NotThere: no window is chosen.
        """
        if self.model.window is None:
            raise NotThere("choose an aggregation window first: x")
        self.model.page(by, self.model.newest_frame())

    def fetch_frame(self) -> None:
        """Ask for the frame that is looked at, and for what tells which is the newest."""
        frame = self.model.frame
        if frame is not None and self.underlying:
            axis = self.model.axis
            self._fetch_grid(axis.session_of(frame.position), 1)
            session, start = axis.day(frame.position).session, axis.start_ns(frame.position)
            self.submit(questions.FrameJob(self.underlying, frame.column, session, start))

    def follow_live(self) -> None:
        """While live, the newest frame is the one that is looked at."""
        frame, newest = self.model.frame, self.model.newest_frame()
        if frame is not None and frame.live and newest is not None and newest != frame.position:
            self.model.frame = Frame(frame.window, newest, live=True)
            self.fetch_frame()
