"""The view with real key presses, over a small world: what is on the screen, what is asked for, what is done."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from textual.pilot import Pilot

from ledger.columns import Column
from m17ctl.tui import deeds, questions, settings
from m17ctl.tui.axis import DAY, Level
from m17ctl.tui.canvas import Canvas
from m17ctl.tui.dialogs import ClearDialog, SymbolPrompt, WindowPicker
from m17ctl.tui.drawing import Drawing
from m17ctl.tui.pages import FramePage, ListPage, TextPage
from m17ctl.tui.pump import Connected
from m17ctl.tui.view import Arrived, View
from m17d import protocol
from m17d.outcomes import Event, SubscribeReply
from tests.m17ctl.tui_world import LAST_IN_USE, ZONE, DirectPump, World, view_of

SCREENS = Path(__file__).parent / "screens"
SMALL, LARGE = (80, 24), (160, 50)
Act = Callable[[View, "Pilot[Any]"], Awaitable[None]]


def text_of(view: View) -> str:
    """What is on the screen, line by line."""
    return "\n".join(strip.text.rstrip() for strip in view.screen._compositor.render_strips()) + "\n"


def drive(
    folder: Path, act: Act, *, world: World | None = None, size: tuple[int, int] = SMALL, at: str | None = "session"
) -> View:
    """Open a view where an earlier run left it (a session, the year; None: nowhere yet), act, and close it."""
    world = world or World()
    days = world.axis.days
    if at is not None:
        first, last = (days[0], days[-1]) if at == "year" else (days[LAST_IN_USE], days[LAST_IN_USE])
        kept = settings.Settings(symbol="AAPL", first_session=first.session, last_session=last.session)
        settings.save(folder / "m17" / "tui.json", "/srv/ledger.state", kept)
    view = view_of(world, folder)

    async def run() -> None:
        async with view.run_test(size=size) as pilot:
            await settled(pilot)
            await act(view, pilot)
            await settled(pilot)

    asyncio.run(run())
    return view


async def settled(pilot: Pilot[Any]) -> None:
    """Every message that is on its way has arrived and is painted."""
    await pilot.pause()
    while pilot.app.is_running and cast("View", pilot.app).canvas.due:
        await pilot.pause(0.01)


async def press(pilot: Pilot[Any], *keys: str) -> None:
    """Press keys, a text letter by letter."""
    await pilot.press(*keys)
    await settled(pilot)


async def symbol(pilot: Pilot[Any], name: str = "AAPL") -> None:
    """Answer the prompt."""
    await press(pilot, *name, "enter")


async def right(pilot: Pilot[Any], moves: int) -> None:
    """Some half hours to the right."""
    await press(pilot, *["l"] * moves)


def same_as_kept(name: str, text: str) -> None:
    """Compare with the kept screen; KEEP_SCREENS=1 keeps what is there now."""
    path = SCREENS / f"{name}.txt"
    if os.environ.get("KEEP_SCREENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} is another screen; look at both"


def pump_of(view: View) -> DirectPump:
    assert isinstance(view.pump, DirectPump)
    return view.pump


# ---- screens


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x50"])
@pytest.mark.parametrize("level", ["year", "month", "session", "minutes"])
def test_screens(tmp_path: Path, level: str, size: tuple[int, int]) -> None:
    """Each level at the smallest and at a comfortable size, as it was looked at and found right."""
    shown = []

    async def act(view: View, pilot: Pilot[Any]) -> None:
        if level == "month":
            await press(pilot, "o")
        if level in ("session", "minutes"):
            await press(pilot, "l", "l")
            prices = {minute: 640 + (minute * 7 % 50) / 10 + minute / 60 for minute in range(390)}
            view.model.learn_prices(LAST_IN_USE, prices)
        if level == "minutes":
            await press(pilot, "enter")
        await press(pilot, "escape")
        shown.append(text_of(view))

    drive(tmp_path, act, size=size, at="year" if level == "year" else "session")
    assert len(shown[0].splitlines()) == size[1]
    assert all(len(line) <= size[0] for line in shown[0].splitlines())
    same_as_kept(f"{level}_{size[0]}x{size[1]}", shown[0])


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (132, 43), (250, 70), (60, 16), (30, 8)])
def test_any_size_shows_a_whole_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    """Lines never run over the edge, and the title and the keys are always there, also where a map hardly fits."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        lines = text_of(view).splitlines()
        assert len(lines) == size[1]
        assert all(len(line) <= size[0] for line in lines)
        assert lines[0].startswith("M17  AAPL")
        assert lines[-1].startswith("? keys")

    drive(tmp_path, act, size=size)


@pytest.mark.parametrize(("keys", "name"), [("?", "help"), ("x", "window"), ("d", "clear"), ("w", "why"), ("p", "priority"),
                                            ("e", "engines"), ("r", "regions"), ("a", "audit")])  # fmt: skip
def test_pages(tmp_path: Path, keys: str, name: str) -> None:
    """Every page and dialog at 80x24."""
    shown = []

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await right(pilot, 2)
        if name == "regions":
            await press(pilot, "p", "enter")
        await press(pilot, {"?": "question_mark"}.get(keys, keys))
        shown.append(text_of(view))

    drive(tmp_path, act)
    same_as_kept(f"page_{name}", shown[0])


# ---- keys


def test_a_long_reason_goes_on_below_further_in_and_is_copied_whole(tmp_path: Path) -> None:
    """Between words, at every width; ``c`` gives the line as it is, to be pasted."""
    reason = "not one row in a complete source, although the symbol's other data is there: a corrected file is read by itself"

    async def act(view: View, pilot: Pilot[Any]) -> None:
        page = TextPage("Why", f"suspect: 3 cells\n  {reason}")
        view.push_screen(page)
        await settled(pilot)
        for size in (SMALL, (60, 24)):
            await pilot.resize_terminal(*size)
            await settled(pilot)
            lines = [line for line in text_of(view).splitlines()[2:-1] if line]
            assert lines[0].startswith("  not one row")
            assert all(line.startswith("    ") for line in lines[1:])
            assert " ".join(line.strip() for line in lines) == reason
        assert reason in page.plain

    drive(tmp_path, act)


def test_it_begins_with_a_prompt_and_the_newest_session(tmp_path: Path) -> None:
    """The first key is a symbol; what is selected then is where the data ends."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        assert isinstance(view.screen, SymbolPrompt)
        await symbol(pilot, "aapl")
        assert view.model.symbol == "AAPL"
        assert view.desk.options == ("O:AAPL",)
        assert view.model.level is Level.YEAR
        assert view.model.axis.days[LAST_IN_USE].session in view.model.sessions()

    drive(tmp_path, act, at=None)


def test_a_symbol_that_is_unknown_changes_nothing(tmp_path: Path) -> None:
    """It is said, and what was looked at stays."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "s")
        await symbol(pilot, "NOPE")
        assert view.model.symbol == "AAPL"
        assert "'NOPE' has no id this year (list them)" in text_of(view)
        await press(pilot, "s", "enter")
        assert view.model.symbol is None
        assert "all symbols" in text_of(view)

    drive(tmp_path, act)


def test_the_keys_of_the_map_move_and_zoom(tmp_path: Path) -> None:
    """h l Enter o i and their twins."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        at = view.model.place.cursor
        await press(pilot, "h", "h", "l")
        assert view.model.place.cursor == at - 1
        await press(pilot, "enter")
        assert view.model.level is Level.MONTH
        await press(pilot, "g", "right", "L", "L")
        assert view.model.place.selected == (1, 4)
        await press(pilot, "g", "enter")
        assert view.model.level is Level.SESSION
        await press(pilot, "G", "enter", "o", "o", "backspace")
        assert view.model.level is Level.YEAR
        await press(pilot, "i", "i", "i")
        assert view.model.level is Level.MINUTES
        await press(pilot, "enter")
        assert isinstance(view.screen, TextPage)
        assert "trade_ref" in text_of(view)
        await press(pilot, "escape")

    drive(tmp_path, act, at="year")


def test_one_column_alone_is_what_w_and_d_mean(tmp_path: Path) -> None:
    """down chooses a line, Esc takes all again."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await right(pilot, 2)
        await press(pilot, "down", "down", "w")
        why = [one for one in world.asked if isinstance(one, protocol.WhyRequest)]
        assert [(one.columns, one.range.symbols) for one in why] == [([Column.TRADE_REF], "AAPL")]
        assert "waiting: 30 cells" in text_of(view)
        assert "$ m17ctl accept --session 2014-06-19" in text_of(view)
        await press(pilot, "escape", "escape", "w")
        why = [one for one in world.asked if isinstance(one, protocol.WhyRequest)]
        assert [one.range.symbols for one in why] == ["AAPL", "AAPL", "O:AAPL"]
        assert len(why[-1].columns) > 5

    drive(tmp_path, act, world=world)


def test_p_raises_regions_that_are_drawn(tmp_path: Path) -> None:
    """With the priority that was typed, for the symbol and its options; the bar says how far they are."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await right(pilot, 2)
        await press(pilot, "p", "backspace", "backspace", "backspace", "7", "0", "enter")
        raised = [one for one in world.asked if isinstance(one, protocol.PriorityAddRequest)]
        assert [(one.symbol, one.priority) for one in raised] == [("AAPL", 70), ("O:AAPL", 70)]
        start, end = view.model.axis.bounds_ns(view.model.selection)
        assert {(one.from_ts, one.to_ts) for one in raised} == {(start, end)}
        screen = text_of(view)
        assert "raised at priority 70: #1 AAPL, #2 O:AAPL" in screen
        (line,) = [line for line in screen.splitlines() if line.startswith("regions")]
        assert "━┄┄ #1 #2 33.3 %" in line

    assert drive(tmp_path, act, world=world).remembered.priority == 70


def test_a_priority_out_of_bounds_is_refused(tmp_path: Path) -> None:
    """And the dialog says what is allowed."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "p", "5", "0", "0", "0", "enter")
        assert "a number from 0 to 1000" in text_of(view)
        await press(pilot, "escape")
        assert not world.regions

    drive(tmp_path, act, world=world)


def test_d_shows_what_would_go_wants_a_cause_and_one_more_enter(tmp_path: Path) -> None:
    """Nothing is cleared before the second Enter; what was shown is what is cleared."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await right(pilot, 1)
        await press(pilot, "down", "down", "d")
        assert isinstance(view.screen, ClearDialog)
        assert "would go: 30 trade_ref" in text_of(view)
        assert "made from them and stale afterwards: 30 aggs_1m" in text_of(view)
        await press(pilot, "enter")
        assert "a cause is needed" in text_of(view)
        await press(pilot, *"bad", "enter")
        assert not world.cleared
        assert "Enter clears 30 cells now" in text_of(view)
        await press(pilot, "x", "enter")
        assert not world.cleared, "another cause is another decision"
        await press(pilot, "enter")
        assert len(world.cleared) == 30
        done = [one for one in world.asked if isinstance(one, protocol.ClearRequest) and not one.dry_run]
        assert [(one.cause, one.expect, one.cascade) for one in done] == [("badx", 30, False)]
        assert "30 cells cleared; to take it back: m17ctl undo op-00000007" in text_of(view)
        # The daemon says that something was done: the map asks again and shows the hole.
        view.post_message(Arrived(Event(seq=1, ts=0, topic="operation", facts={})))
        await settled(pilot)
        view._ask_for_moved()
        await press(pilot, "escape")
        assert "CCC" in text_of(view)

    drive(tmp_path, act, world=world)


def test_what_lies_behind_is_looked_at_again_when_it_is_ticked(tmp_path: Path) -> None:
    """The box asks anew, with the cascade."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "d", "shift+tab", "shift+tab", "space")
        looks = [one.cascade for one in world.asked if isinstance(one, protocol.ClearRequest)]
        assert looks[0] is False
        assert looks[-1] is True
        assert "[x] and what was made" in text_of(view)
        await press(pilot, "escape")
        assert not world.cleared

    drive(tmp_path, act, world=world)


def test_x_asks_engines_for_a_window_and_none_takes_it_back(tmp_path: Path) -> None:
    """Where it is whole nothing is started; where it is not, regions are raised, and lowered again."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await right(pilot, 1)
        await press(pilot, "x")
        assert isinstance(view.screen, WindowPicker)
        await press(pilot, "home", "enter")
        assert view.model.window == "1m"
        assert "nothing had to be started" in text_of(view)
        world.cleared.update(("own", Column.AGGS_10M, LAST_IN_USE, minute) for minute in range(30, 60))
        await press(pilot, "ctrl+r", "x", "down", "down", "enter")
        assert view.model.window == "10m"
        assert [(one.symbol, Column.AGGS_10M in one.columns) for one in world.regions] == [
            ("AAPL", True),
            ("O:AAPL", True),
        ]
        await press(pilot, "x", "end", "enter")
        assert view.model.window is None
        assert not world.regions
        assert "2 regions taken back" in text_of(view)

    drive(tmp_path, act, world=world)


def test_j_and_k_page_frames_to_live_and_back(tmp_path: Path) -> None:
    """The first j shows the frame at the selection; past the newest is live."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "j")
        assert "choose an aggregation window first" in text_of(view)
        await press(pilot, "x", "end", "up", "up", "enter")
        assert view.model.window == "1h"
        await press(pilot, "G", "j")
        assert isinstance(view.screen, FramePage)
        first = view.model.frame
        assert first is not None
        assert first.position == LAST_IN_USE * DAY + 360, "where the selection is now, not where the window was chosen"
        await press(pilot, *["j"] * 9)
        assert view.model.frame is not None
        assert view.model.frame.live
        assert "LIVE" in text_of(view)
        await press(pilot, "k", "k")
        assert not view.model.frame.live
        assert "LIVE" not in text_of(view)
        assert view.model.frame != first
        left = view.model.frame
        await press(pilot, "escape", "j")
        assert isinstance(view.screen, FramePage)
        assert view.model.frame == left, "opened again where it was left"

    drive(tmp_path, act)


def test_live_follows_the_newest_frame(tmp_path: Path) -> None:
    """When another frame is filled, it is the one that is looked at."""
    world = World()
    world.cleared.update(("own", Column.AGGS_1H, LAST_IN_USE, minute) for minute in range(300, 390))

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "x", "end", "up", "up", "enter", "j", *["j"] * 9)
        assert view.model.frame is not None
        assert (view.model.frame.live, view.model.frame.position) == (True, LAST_IN_USE * DAY + 240)
        world.cleared.clear()
        day = view.model.axis.days[LAST_IN_USE].session
        view.post_message(Arrived(Event(seq=1, ts=0, topic="task", facts={"state": "done", "session": day})))
        await settled(pilot)
        view._ask_for_moved()
        await settled(pilot)
        assert view.model.frame.position == LAST_IN_USE * DAY + 360

    drive(tmp_path, act, world=world)


def test_c_copies_what_is_shown(tmp_path: Path) -> None:
    """The map, a page, a list; each to the file beside the settings."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "c")
        copied = (tmp_path / "m17" / "copied.txt").read_text()
        assert copied.startswith("M17  AAPL  session")
        assert "opt greeks_ref" in copied
        assert "copied to the clipboard" in text_of(view)
        assert view.clipboard == copied[:-1]
        await press(pilot, "w", "c")
        assert (tmp_path / "m17" / "copied.txt").read_text().startswith("Why: AAPL, 2014-06-19")
        await press(pilot, "escape", "e", "c")
        assert "trade_flatfile" in (tmp_path / "m17" / "copied.txt").read_text()

    drive(tmp_path, act)


def test_engines_are_paused_and_regions_taken_back_on_their_pages(tmp_path: Path) -> None:
    """The keys act on the row under the cursor."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "p", "enter", "e", "j", "p")
        assert world.paused == {"nbbo": "pause"}
        assert "paused" in text_of(view)
        await press(pilot, "u", "escape", "r")
        assert isinstance(view.screen, ListPage)
        await press(pilot, "x")
        assert [one.id for one in world.regions] == [2]

    drive(tmp_path, act, world=world)


# ---- what is remembered, and what goes wrong


def test_the_next_run_begins_where_this_one_ended(tmp_path: Path) -> None:
    """Symbol, span and window."""

    async def leave(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "x", "down", "enter")
        await press(pilot, "q")

    before = drive(tmp_path, leave)

    async def act(view: View, pilot: Pilot[Any]) -> None:
        assert not isinstance(view.screen, SymbolPrompt)
        assert (view.model.symbol, view.model.window) == ("AAPL", before.model.window)
        assert view.model.place.span == before.model.place.span
        await press(pilot, "s")
        assert "before: AAPL" in text_of(view)
        await press(pilot, "escape")

    drive(tmp_path, act, at=None)


def test_a_daemon_that_goes_away_is_said_and_asked_again(tmp_path: Path) -> None:
    """The picture stays; when it is back everything is asked for anew."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        before = text_of(view).splitlines()[8:16]
        world.down = "no daemon at the path"
        view.post_message(Arrived(Connected(there=False, message="no daemon at ledger.state/m17d.sock")))
        await press(pilot, "h", "l")
        assert "no daemon" in text_of(view).splitlines()[0]
        assert text_of(view).splitlines()[8:16] == before
        world.down = ""
        asked = len(world.asked)
        view.post_message(Arrived(Connected(there=True)))
        await settled(pilot)
        assert "no daemon" not in text_of(view).splitlines()[0]
        assert any(isinstance(one, protocol.GridRequest) for one in world.asked[asked:])

    drive(tmp_path, act, world=world)


def test_lost_events_make_it_ask_again(tmp_path: Path) -> None:
    """A subscription that could not go on where it stopped says so."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        pump_of(view).jobs.clear()
        view.post_message(Arrived(SubscribeReply(epoch="e", seq=9, lease_ms=1, resync=True)))
        await settled(pilot)
        assert any(isinstance(job, questions.GridJob) for job in pump_of(view).jobs)

    drive(tmp_path, act)


def test_a_failed_look_is_shown_in_the_dialog(tmp_path: Path) -> None:
    """Not behind it."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        world.down = "the disk is full"
        await press(pilot, "d")
        assert isinstance(view.screen, ClearDialog)
        assert "the disk is full" in text_of(view)
        await press(pilot, *"why", "enter")
        assert "not looked at yet" in text_of(view)

    drive(tmp_path, act, world=world)


@pytest.mark.parametrize("keys", [["g", "w"], ["g", "d"]])
def test_a_selection_without_cells_is_no_range(tmp_path: Path, keys: list[str]) -> None:
    """Nothing is asked where nothing is known, and too much is refused with what to do."""
    world = World()

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await press(pilot, "G", keys[1])
        assert "no source has the symbol there" in text_of(view)
        await press(pilot, "g", "L", "L", keys[1])
        assert "zoom in" in text_of(view)
        assert not [one for one in world.asked if isinstance(one, (protocol.WhyRequest, protocol.ClearRequest))]

    drive(tmp_path, act, world=world, at="year")


def test_no_color_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection, trouble and ticks are seen by their characters."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def act(view: View, pilot: Pilot[Any]) -> None:
        await right(pilot, 2)
        await press(pilot, "escape")
        same_as_kept_but_prices = text_of(view)
        assert "▔▔▔" in same_as_kept_but_prices
        assert "EEE" in same_as_kept_but_prices

    drive(tmp_path, act)


# ---- what is kept between keys


def test_what_is_kept_between_keys_is_never_another_picture(tmp_path: Path) -> None:
    """After any key, and after cells moved, the screen says what a view says that keeps nothing."""
    world = World()
    keys = [
        "h",
        "enter",
        "down",
        "enter",
        "l",
        "L",
        "enter",
        "h",
        "o",
        "o",
        "escape",
        "o",
        "i",
        "o",
        "s",
        *"AAPL",
        "enter",
    ]

    async def act(view: View, pilot: Pilot[Any]) -> None:
        for at, key in enumerate([*keys, *keys[:8]]):
            await press(pilot, key)
            if at in (8, 20):
                world.cleared.update(("own", Column.TRADE_REF, LAST_IN_USE, minute) for minute in range(120))
                view.action_ask_again()
                await press(pilot, "h")
            if view.screen is view.screen_stack[0]:
                fresh = Canvas(Drawing(view.model, ZONE))
                fresh.status, fresh.said = view.canvas.status, view.canvas.said
                lines = fresh.draw(view.canvas.size)
                assert text_of(view) == "".join(f"{line.plain.rstrip()}\n" for line in lines), key

    drive(tmp_path, act, world=world, at="year")


def test_nothing_on_the_screens_loop_waits_for_the_daemon(tmp_path: Path) -> None:
    """With every answer held back, keys still move, zoom and open pages."""

    async def act(view: View, pilot: Pilot[Any]) -> None:
        pump_of(view).held = []
        await press(
            pilot, "h", "enter", "l", "l", "enter", "l", "o", "o", "i", "question_mark", "escape", "e", "escape"
        )
        assert view.model.level is Level.MONTH
        assert pump_of(view).held
        assert not any(isinstance(job, deeds.ClearJob) for job in pump_of(view).held)

    drive(tmp_path, act, at="year")
