"""What the view looks at, without a screen: the axis, zooming, the selection, frames."""

from __future__ import annotations

import itertools

import pytest

from ledger.columns import Column
from m17ctl.tui.axis import DAY, Level, Span
from m17ctl.tui.cells import Grid
from m17ctl.tui.lines import lines_of
from m17ctl.tui.model import Model
from m17d.replies import GridReply
from tests.m17ctl.tui_world import EARLY, LAST_IN_USE, World


def model_of(world: World, symbol: str | None = "AAPL") -> Model:
    """A model that knows the year of a symbol."""
    model = Model(world.axis)
    model.set_symbol(symbol)
    for day in range(LAST_IN_USE + 1):
        put(model, world, day, DAY)
    model.cells.asked(range(len(world.axis)), DAY)
    model.learn_groups()
    return model


def put(model: Model, world: World, day: int, step: int) -> None:
    one = world.axis.days[day]
    cells, slab = world.slab(["own", "options"], day, step)
    groups = {"own": 1, "options": 1}
    reply = GridReply(
        session=one.session, open_ts=one.open_ts, windows=one.windows, groups=groups, columns=list(Column), cells=cells
    )
    model.cells.put(day, Grid.of(reply, slab, step))


@pytest.fixture
def world() -> World:
    return World()


# ---- the axis


@pytest.mark.parametrize("room", [12, 30, 53, 80, 130, 260])
@pytest.mark.parametrize(
    "span",
    [(0, 252 * DAY), (0, 22 * DAY), (3 * DAY, 4 * DAY), (3 * DAY + 60, 3 * DAY + 90), (EARLY * DAY, (EARLY + 1) * DAY)],
)
def test_a_cut_covers_the_span_once_in_whole_units(world: World, span: Span, room: int) -> None:
    """Buckets follow each other without gap or overlap, fit the room, and every unit is a whole number of them."""
    cut = world.axis.cut(span, room)
    wide = world.axis.level_of(span) is Level.MINUTES and cut.step_minutes == 1

    assert len(cut.buckets) <= max(room, len(cut.units))
    distinct = list(dict.fromkeys(cut.buckets))
    assert all(a[1] == b[0] or b[0] % DAY == 0 for a, b in itertools.pairwise(distinct))
    assert distinct[0][0] == span[0]
    assert distinct[-1][1] == world.axis.clip(span)[1] or cut.step_minutes >= DAY or span[1] - span[0] > DAY
    if not wide:
        assert len(distinct) == len(cut.buckets)
    for unit, (first, last) in zip(cut.units, cut.edges, strict=True):
        assert last > first
        assert cut.buckets[first][0] <= unit[0]
        assert cut.buckets[last - 1][1] >= min(unit[1], world.axis.clip(span)[1])


def test_an_early_close_has_seven_half_hours(world: World) -> None:
    """Its units end with it."""
    units = world.axis.units((EARLY * DAY, (EARLY + 1) * DAY))
    assert len(units) == 7
    assert units[-1] == (EARLY * DAY + 180, EARLY * DAY + 210)
    start, end = world.axis.bounds_ns((EARLY * DAY, (EARLY + 1) * DAY))
    assert end - start == 210 * 60 * 10**9


def test_positions_and_times_agree(world: World) -> None:
    """Inside sessions a minute each; between sessions the next open."""
    axis = world.axis
    for position in (0, 17, 3 * DAY + 389, EARLY * DAY + 209):
        assert axis.position(axis.start_ns(position)) == position
    after_close = axis.days[3].open_ts + 390 * 60 * 10**9
    assert axis.position(after_close) == 4 * DAY
    assert axis.position(0) == 0


# ---- zoom and selection


def test_zoom_goes_in_and_out_and_in_again(world: World) -> None:
    """Enter four times, o three times selects where one was, i goes back to it."""
    model = model_of(world)
    places = [model.place]
    for moves in (5, 3, 2):
        model.select(True)
        model.move(moves)
        assert model.zoom_in()
        places.append(model.place)
    assert model.level is Level.MINUTES
    day = model.place.span[0] // DAY
    assert world.axis.days[day].session == "2014-06-05"
    assert model.sessions() == ["2014-06-05"]
    model.move(7)
    assert not model.zoom_in(), "a minute is as far as it goes"

    for level in (Level.SESSION, Level.MONTH, Level.YEAR):
        inner = model.place.span
        assert model.zoom_out()
        assert model.level is level
        start, end = model.selection
        assert start <= inner[0]
        assert inner[0] < end
    assert not model.zoom_out()
    for _ in range(3):
        assert model.zoom_back()
    assert model.level is Level.MINUTES
    assert not model.zoom_back()


def test_of_a_month_the_newest_day_with_cells_is_selected(world: World) -> None:
    """Two keys lead from the year to a session that has something; a month without cells begins at its first day."""
    model = model_of(world)
    newest = world.axis.days[LAST_IN_USE].session
    model.select_newest()
    assert newest in model.sessions()
    model.zoom_in()
    assert model.level is Level.MONTH
    assert model.sessions() == [newest]
    model.zoom_out()
    model.select(False)
    model.zoom_in()
    assert model.place.selected == (0, 1)


def test_zooming_elsewhere_forgets_the_way_back(world: World) -> None:
    """After o and another Enter there is nothing to go back in to."""
    model = model_of(world)
    model.zoom_in()
    model.zoom_out()
    model.move(3)
    model.zoom_in()
    assert not model.zoom_back()


def test_several_units_zoom_together(world: World) -> None:
    """H and L extend; Enter shows what is selected and nothing else."""
    model = model_of(world)
    model.move(1)
    model.move(2, extend=True)
    assert [world.axis.day(model.selection[0]).session[:7], world.axis.day(model.selection[1] - 1).session[:7]] == [
        "2014-02",
        "2014-04",
    ]
    model.zoom_in()
    assert model.level is Level.MONTH
    assert model.sessions(model.place.span)[0] == "2014-02-03"
    model.select(True)
    model.move(-1, extend=True)
    assert model.place.selected == (0, 1), "an extension stops at the edge"


def test_moving_past_the_edge_goes_on(world: World) -> None:
    """In a month the next month, in a session the next session, over early closes too."""
    model = model_of(world)
    model.zoom_in()
    model.select(first=False)
    assert model.move(1)
    assert world.axis.day(model.place.span[0]).session == "2014-02-03"
    assert model.move(-1)
    assert world.axis.day(model.place.span[0]).session == "2014-01-02"
    assert model.place.cursor == len(world.axis.units(model.place.span)) - 1

    model.look_at((EARLY * DAY, (EARLY + 1) * DAY))
    model.zoom_in()
    for _ in range(6):
        assert model.move(len(world.axis.units(model.place.span)) - 1 - model.place.cursor) or True
        assert model.move(1)
    assert model.place.span == (EARLY * DAY + 180, EARLY * DAY + 210)
    model.select(first=False)
    assert model.move(1)
    assert model.place.span[0] == (EARLY + 1) * DAY
    assert model.move(-1)
    assert model.place.span == (EARLY * DAY + 180, EARLY * DAY + 210)


def test_the_ends_of_the_year_hold(world: World) -> None:
    """Nothing lies before the first session and behind the last."""
    model = model_of(world)
    assert not model.move(-1)
    model.look_at((251 * DAY, 252 * DAY))
    model.select(first=False)
    assert not model.move(1)


def test_the_newest_session_is_selected_at_first(world: World) -> None:
    """That is where people look."""
    model = model_of(world)
    model.select_newest()
    assert world.axis.days[LAST_IN_USE].session in model.sessions()


# ---- lines


def test_lines_show_what_the_symbol_has() -> None:
    """Options have lines of their own; windows share one where there is no room, or stand alone when chosen."""
    both = {"own": 1, "options": 1}
    labels = [line.label for line in lines_of(both, None, 100)]
    assert labels[:4] == ["rf_rate_ref", "trade_ref", "quote_ref", "aggressor_ref"]
    assert labels[4:8] == ["opt trade_ref", "opt quote_ref", "opt aggressor_ref", "opt greeks_ref"]
    assert labels[8:] == ["aggs_1m", "aggs_5m", "aggs_10m", "aggs_30m", "aggs_1h", "aggs_4h"]
    assert [line.label for line in lines_of(both, None, 10)][8:] == ["aggs_*"]
    assert [line.label for line in lines_of(both, "30m", 100)][8:] == ["aggs_30m"]
    assert [line.label for line in lines_of({"own": 1, "options": 0}, None, 5)][-1] == "aggs_*"
    assert [line.label for line in lines_of({"all": 9}, None, 100)] == list(Column)


# ---- counts


def test_counts_add_up_over_groups_columns_and_time(world: World) -> None:
    """A session by session, by minute and by half hour has the same sum."""
    model = model_of(world)
    for step in (30, 1):
        put(model, world, LAST_IN_USE, step)
    span = LAST_IN_USE * DAY, (LAST_IN_USE + 1) * DAY
    parts = [("own", Column.QUOTE_REF), ("options", Column.TRADE_REF)]
    sums = [model.cells.counts(parts, span, step) for step in (DAY, 30, 1)]
    assert sums[0] == sums[1] == sums[2]
    assert sums[0] is not None
    assert (sums[0].filled, sums[0].empty) == (750, 30)
    half = model.cells.counts([("own", Column.QUOTE_REF)], (span[0] + 60, span[0] + 90), 30)
    assert half is not None
    assert half.empty == 30


def test_what_was_not_asked_for_is_not_known_and_what_came_empty_is_nothing(world: World) -> None:
    """No answer yet is another thing than no cell."""
    model = model_of(world)
    parts = [("own", Column.TRADE_REF)]
    far = (200 * DAY, 201 * DAY)
    assert model.cells.counts(parts, far, 30) is None
    nothing = model.cells.counts(parts, far, DAY)
    assert nothing is not None
    assert nothing.filled == nothing.empty == 0
    model.cells.forget(3)
    assert model.cells.lacking(range(5), DAY) == [3]
    assert model.cells.counts(parts, (3 * DAY, 4 * DAY), DAY) is not None, "shown until the answer comes"


# ---- frames


def test_frames_page_over_sessions_and_end_live(world: World) -> None:
    """j goes on over the close into the next session; past the newest is live; k comes back to it."""
    model = model_of(world)
    put(model, world, LAST_IN_USE, 1)
    model.look_at((LAST_IN_USE * DAY - DAY, LAST_IN_USE * DAY))
    model.select(first=False)
    model.choose_window("30m")
    assert model.frame is not None
    assert model.frame.position == LAST_IN_USE * DAY - 30
    newest = model.newest_frame()
    assert newest == LAST_IN_USE * DAY + 360

    starts = []
    while model.page(1, newest):
        assert model.frame is not None
        starts.append(model.frame.position)
    assert model.frame.live
    assert starts == [*range(LAST_IN_USE * DAY, newest + 1, 30), newest]
    assert not model.page(1, newest)
    assert model.page(-1, newest)
    assert (model.frame.position, model.frame.live) == (newest, False)


def test_frames_of_an_early_close_end_with_it(world: World) -> None:
    """The last 4h frame of 210 minutes is the first one."""
    model = model_of(world)
    model.look_at((EARLY * DAY, (EARLY + 1) * DAY))
    model.choose_window("4h")
    assert model.page(1, LAST_IN_USE * DAY)
    assert model.frame is not None
    assert model.frame.position == (EARLY + 1) * DAY
    assert model.page(-1, LAST_IN_USE * DAY)
    assert model.frame.position == EARLY * DAY


def test_without_a_window_there_are_no_frames(world: World) -> None:
    """None ends paging."""
    model = model_of(world)
    assert not model.page(1, 0)
    model.choose_window("5m")
    model.choose_window(None)
    assert model.frame is None
    assert model.newest_frame() is None
