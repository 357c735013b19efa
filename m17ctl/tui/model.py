"""
What is looked at: symbol, span, selection, aggregation window and frame, and what has to be fetched to show it.

Every key is a method; none of them waits. Pure: tested without a screen. This module must never ask the daemon, nor look at
a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from ledger.columns import AGGREGATE_MINUTES, Column
from m17ctl.tui.axis import DAY, Axis, Cut, Level, Span
from m17ctl.tui.cells import Cells
from m17ctl.tui.lines import ALL, OPTIONS, OWN, WINDOWS, Line, lines_of
from m17d.outcomes import RegionReply

LABEL_WIDTH: Final = 18
SHARE_WIDTH: Final = 8


@dataclass(frozen=True, slots=True)
class Place:
    """A span looked at, and the units selected in it (both ends included)."""

    span: Span
    anchor: int
    cursor: int

    @property
    def selected(self) -> Span:
        """First and last selected unit + 1."""
        return min(self.anchor, self.cursor), max(self.anchor, self.cursor) + 1


@dataclass(frozen=True, slots=True)
class Frame:
    """One aggregation window: its column and start; ``live`` follows the newest."""

    window: str
    position: int
    live: bool = False

    @property
    def column(self) -> Column:
        """The column whose cell holds it."""
        return WINDOWS[self.window]


@dataclass
class Model:
    """
    The state of the view.

    Args:
        axis: the sessions of the year.
        symbol: None looks at all symbols together.
    """

    axis: Axis
    symbol: str | None = None
    window: str | None = None
    frame: Frame | None = None
    place: Place = field(init=False)
    cells: Cells = field(default_factory=Cells)
    prices: dict[int, float] = field(default_factory=dict)
    """Position -> price of the underlying in the window there; changed by :meth:`learn_prices` only."""
    prices_version: int = 0
    """Counted up when prices come or go."""
    regions: list[RegionReply] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=lambda: {ALL: 0})
    row: int | None = None
    """The line that is looked at alone; None for all."""

    def __post_init__(self) -> None:
        self.place = Place(self.axis.whole, 0, 0)
        self._behind: list[Place] = []
        self._ahead: list[Place] = []
        self._cut: tuple[Span, int, Cut] | None = None
        self._framed: Span | None = None
        """The selection that the frame was taken from."""

    # ---- what is shown

    @property
    def level(self) -> Level:
        """How far in the view is."""
        return self.axis.level_of(self.place.span)

    def cut(self, room: int) -> Cut:
        """The span cut for a width of characters; the last one is kept, since a picture asks for it many times."""
        span = self.place.span
        if self._cut is None or self._cut[:2] != (span, room):
            self._cut = (span, room, self.axis.cut(span, room))
        return self._cut[2]

    def step(self, cut: Cut) -> int:
        """At which resolution the counts of a cut are asked for and looked up, in minutes."""
        return 1 if self.level >= Level.SESSION else min(cut.step_minutes, DAY)

    def lines(self, height: int) -> list[Line]:
        """The lines of the map."""
        return lines_of(self.groups, self.window, height)

    @property
    def selection(self) -> Span:
        """The selected span in positions."""
        units = self.axis.units(self.place.span)
        first, end = self.place.selected
        return self.axis.clip((units[first][0], units[end - 1][1]))

    def sessions(self, span: Span | None = None) -> list[str]:
        """Sessions that a span touches; those of the selection without one."""
        start, end = self.selection if span is None else span
        return [self.axis.days[at].session for at in range(start // DAY, (end - 1) // DAY + 1)]

    # ---- keys: selection and zoom

    def move(self, by: int, *, extend: bool = False) -> bool:
        """Move the selection by units; with ``extend`` its other end stays. True where it moved."""
        last = len(self.axis.units(self.place.span)) - 1
        cursor = min(max(self.place.cursor + by, 0), last)
        anchor = self.place.anchor if extend else cursor
        moved = (anchor, cursor) != (self.place.anchor, self.place.cursor)
        self.place = replace(self.place, anchor=anchor, cursor=cursor)
        if not moved and by and not extend:
            return self._turn(1 if by > 0 else -1)
        return moved

    def _turn(self, by: int) -> bool:
        """Past the edge: the next month, session or block of minutes, with its nearest unit selected."""
        start, end = self.place.span
        if self.level is Level.YEAR:
            return False
        outside = end if by > 0 else start - 1
        if not 0 <= outside < len(self.axis) * DAY:
            return False
        match self.level:
            case Level.MONTH:
                span = self.axis.month_of(outside)
            case Level.SESSION:
                span = self.axis.session_of(outside)
            case _:
                span = self._beside(start, end, by)
        last = len(self.axis.units(span)) - 1
        cursor = 0 if by > 0 else last
        self.place = Place(span, cursor, cursor)
        return True

    def _beside(self, start: int, end: int, by: int) -> Span:
        """As many minutes beside a span, in the next session where this one ends."""
        day, length = start // DAY, end - start
        windows = self.axis.days[day].windows
        if by > 0:
            if end - day * DAY >= windows:
                return (day + 1) * DAY, (day + 1) * DAY + length
            return end, min(end + length, day * DAY + windows)
        if start == day * DAY:
            close = (day - 1) * DAY + self.axis.days[day - 1].windows
            return close - length, close
        return max(start - length, day * DAY), start

    def select(self, first: bool) -> None:
        """Select the first or the last unit."""
        at = 0 if first else len(self.axis.units(self.place.span)) - 1
        self.place = replace(self.place, anchor=at, cursor=at)

    def zoom_in(self) -> bool:
        """
        Look at the selection alone; False where it is a single minute, which has a page of its own.

        Of a month the newest day with cells is selected, so that two keys lead from the year to a session to look at.
        """
        span = self.selection
        if span[1] - span[0] <= 1:
            return False
        if span == self.axis.clip(self.place.span):
            return True
        self._behind.append(self.place)
        self._ahead.clear()
        self.place = Place(span, 0, 0)
        if self.level is Level.MONTH:
            self.select_newest()
        return True

    def zoom_out(self) -> bool:
        """One level out, with what was looked at selected; False at the year."""
        if self.level is Level.YEAR:
            return False
        self._ahead.append(self.place)
        span = self.place.span
        if self._behind and self._behind[-1].span[0] <= span[0] and span[1] <= self._behind[-1].span[1]:
            self.place = self._behind.pop()
        else:
            self._behind.clear()
            self.place = Place(self.axis.around(span), 0, 0)
        self._select(span)
        return True

    def zoom_back(self) -> bool:
        """In again, to where the last zoom out came from; False where there was none."""
        if not self._ahead:
            return False
        self._behind.append(self.place)
        self.place = self._ahead.pop()
        return True

    def _select(self, span: Span) -> None:
        """Select the units that a span touches."""
        touched = [
            at for at, unit in enumerate(self.axis.units(self.place.span)) if unit[0] < span[1] and span[0] < unit[1]
        ]
        if touched:
            self.place = replace(self.place, anchor=touched[0], cursor=touched[-1])

    def select_newest(self) -> None:
        """Select the unit of the newest session of what is looked at that has a cell."""
        first, end = self.place.span
        for day in range((end - 1) // DAY, first // DAY - 1, -1):
            span = day * DAY, (day + 1) * DAY
            parts = [(group, Column.TRADE_REF) for group in (OWN, OPTIONS, ALL)]
            counts = self.cells.counts(parts, span, DAY)
            if counts is not None and counts.filled + counts.empty + counts.pending + counts.cleared:
                self._select(span)
                return

    def look_at(self, span: Span, selected: Span | None = None) -> None:
        """Go to a span, as settings remember it."""
        self._behind.clear()
        self._ahead.clear()
        self.place = Place(span, 0, 0)
        if selected is not None:
            self._select(selected)

    def choose_row(self, by: int, height: int) -> None:
        """Move over the lines; off either end all are looked at again."""
        count = len(self.lines(height))
        at = (0 if by > 0 else count - 1) if self.row is None else self.row + by
        self.row = at if 0 <= at < count else None

    # ---- symbols, windows, frames

    def set_symbol(self, symbol: str | None) -> None:
        """Look at another symbol, at the same span."""
        self.symbol = symbol
        self.cells, self.prices, self.frame, self.row = Cells(), {}, None, None
        self.prices_version += 1
        self.groups = {ALL: 0} if symbol is None else {OWN: 1, OPTIONS: 0}

    def learn_prices(self, day: int, prices: dict[int, float]) -> None:
        """Take prices of a session, by minute of the session."""
        self.prices.update({day * DAY + minute: price for minute, price in prices.items()})
        self.prices_version += 1

    def learn_groups(self) -> None:
        """Take over what the counts say of the symbol's options."""
        found = self.cells.groups()
        if found:
            self.groups = found

    def choose_window(self, window: str | None) -> None:
        """Choose the aggregation window; the frame begins at the selection. None shows all and ends paging."""
        self.window = window
        self.frame = None
        self.open_frame()

    def open_frame(self) -> bool:
        """The frame where paging ended, or the one at the selection where that moved since; False without a window."""
        if self.window is None:
            return False
        if self.frame is None or self._framed != self.selection:
            self.frame, self._framed = self.frame_at(self.selection[0], self.window), self.selection
        return True

    def frame_at(self, position: int, window: str) -> Frame:
        """The frame of the grid of frames from the open that holds a position."""
        length = minutes_of(window)
        day, minute = divmod(position, DAY)
        return Frame(window, day * DAY + minute // length * length)

    def page(self, by: int, newest: int | None) -> bool:
        """
        The next or previous frame; past the last one is live.

        Args:
            newest: position of the newest frame there is, None where there is none.

        Returns:
            False where there is nowhere to go.
        """
        if self.window is None:
            return False
        frame = self.frame or self.frame_at(self.selection[0], self.window)
        if frame.live:
            if by > 0 or newest is None:
                return False
            self.frame = self.frame_at(newest, self.window)
            return True
        position = self._paged(frame, by)
        if position is None or (by > 0 and (newest is None or position > newest)):
            if by < 0:
                return False
            self.frame = replace(frame, position=frame.position if newest is None else newest, live=True)
            return True
        self.frame = replace(frame, position=position)
        return True

    def _paged(self, frame: Frame, by: int) -> int | None:
        """Start of the frame before or behind, over the ends of sessions; None past the ends of the year."""
        length = minutes_of(frame.window)
        day, minute = divmod(frame.position, DAY)
        minute += by * length
        if 0 <= minute < self.axis.days[day].windows:
            return day * DAY + minute
        day += 1 if by > 0 else -1
        if not 0 <= day < len(self.axis):
            return None
        last = (self.axis.days[day].windows - 1) // length * length
        return day * DAY + (0 if by > 0 else last)

    def newest_frame(self) -> int | None:
        """Position of the newest filled cell of the chosen window among the sessions that are known by minute."""
        if self.window is None:
            return None
        part = ((OWN, WINDOWS[self.window]),)
        length = minutes_of(self.window)
        for day in range(len(self.axis) - 1, -1, -1):
            whole = self.cells.counts(part, (day * DAY, (day + 1) * DAY), DAY)
            if whole is None or not whole.filled:
                continue
            last = (self.axis.days[day].windows - 1) // length * length
            for minute in range(last, -1, -length):
                at = day * DAY + minute
                cell = self.cells.counts(part, (at, at + 1), 1)
                if cell is None:
                    return day * DAY + last
                if cell.filled:
                    return at
        return None


def minutes_of(window: str) -> int:
    """Length of an aggregation window in minutes."""
    return AGGREGATE_MINUTES[WINDOWS[window]]
