"""
One dataset of a live engine: spooled minutes in the order in which they came, made into tasks one after the other.

What is next stays the same until it is committed, so that a worker that dies costs nothing but time; what fails for good is
set aside and tried again when an operator asks for it. This module must never read a row: workers do.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from engines.contract import Batch, Context, Task
from engines.feeds.feed_messages import ClosedThrough, Gap, SpooledRows
from engines.live_following import Following
from engines.live_look import Looked
from engines.live_pass import BEFORE_OPEN, LiveResult
from engines.live_session import LiveSession
from engines.live_source import LiveSource
from engines.live_topics import Covered, Wish
from engines.live_work import Work, WorkMaker
from ledger.columns import Dataset, Status
from ledger.errors import LedgerError, UnknownSession
from ledger.roots import symbol_of
from ledger.state import State

ROWS_MAX: Final = 2_000_000
"""Rows of one task; a minute is never divided."""
_AFTER_CLOSE_MAX: Final = 30
"""Minutes behind the close that are counted together."""
_SESSIONS_MAX: Final = 3
_GAPS_MAX: Final = 4_096


class LiveDataset:
    """
    One dataset of one connection.

    Args:
        engine: name of the engine.
        dataset: its rows.
        address: of the stream.
        wish: what was asked for.
    """

    def __init__(self, engine: str, dataset: Dataset, address: str, wish: Wish, context: Context) -> None:
        self.dataset = dataset
        self.drops: dict[str, int] = {}
        """Rows that reached no cell here, by reason."""
        self._engine = engine
        self.address = address
        self._wish = wish
        self._context = context
        self._state: State = context.state
        self._covered = Covered(wish, self._state.option_rows, of_options=dataset.of_options)
        self._sessions: dict[str, LiveSession | None] = {}
        self._gaps: list[Gap] = []
        self._queue: deque[SpooledRows] = deque()
        self._maker = WorkMaker(self._state, dataset)
        self._current: Work | None = None
        self._aside: dict[str, Work] = {}
        self._following: dict[str, Following] = {}
        self._tasks = 0
        self._played = False

    # ---- what the feed says

    def hear(self, message: SpooledRows | ClosedThrough | Gap) -> None:
        """Take what concerns the dataset."""
        match message:
            case SpooledRows():
                if self.session_at(message.start_ns) is None:
                    self._drop("no_session", message.rows)
                    Path(message.path).unlink(missing_ok=True)
                else:
                    self._queue.append(message)
            case Gap():
                self._gaps.append(message)
                for session in self._sessions.values():
                    if session is not None:
                        session.take_gap(message)
            case ClosedThrough():
                self._closed(message.ns)

    def _closed(self, ns: int) -> None:
        self._played = False
        newest = self.session_at(ns - 1)
        for session in self._sessions.values():
            if session is not None and (session is newest or session.window.close_ns <= ns):
                session.closed = max(session.closed, min(session.minute(ns), session.window.minutes), 0)

    def played(self) -> None:
        """Everything that there was came: the newest session is over."""
        self._played = True
        known = [one for one in self._sessions.values() if one is not None]
        if known:
            known[-1].closed = known[-1].window.minutes

    def session_at(self, ts_ns: int) -> LiveSession | None:
        """The session whose day holds a time; None where the year has none that day."""
        date = self._state.calendar.session_on(ts_ns)
        if date not in self._sessions:
            try:
                self._sessions[date] = self._open(date)
            except UnknownSession:
                self._sessions[date] = None
        return self._sessions[date]

    def _open(self, date: str) -> LiveSession:
        state = self._state
        state.calendar.session_seq(date)
        globs = list(self._wish.globs or self._wish.tickers)
        source = LiveSource(
            state, self.dataset, date, name=self.address, globs=[] if globs == ["*"] else globs, spelled=self._spelled()
        )
        session = LiveSession(state, self.dataset, date, source)
        for gap in self._gaps:
            session.take_gap(gap)
        self._forget()
        if session.prices is not None:
            self._following[date] = Following(state, self._engine, session)
        source.put()
        self._covered.add(state, source.symbols())
        return session

    def _forget(self) -> None:
        """Let go of sessions of days ago; one that events come of after all is opened anew."""
        busy = {work.session.session for work in self._works()}
        busy |= {self._state.calendar.session_on(item.start_ns) for item in self._queue}
        known = [date for date in self._sessions if date not in busy]
        for date in known[: max(0, len(self._sessions) - _SESSIONS_MAX)]:
            session = self._sessions.pop(date)
            self._following.pop(date, None)
            if session is not None:
                session.source.put(now=True)
        del self._gaps[:-_GAPS_MAX]

    def _drop(self, reason: str, rows: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + rows

    # ---- what the engine asks

    @property
    def backlog(self) -> int:
        """Spooled minutes that are not in cells yet."""
        return len(self._queue) + sum(len(work.items) for work in self._works())

    def ask(self, wish: Wish) -> None:
        """What is asked for from now on; symbols that are spelled belong to the sessions that are open."""
        if wish == self._wish:
            return
        self._wish = wish
        self._covered = Covered(wish, self._state.option_rows, of_options=self.dataset.of_options)
        spelled = self._spelled()
        for session in self.sessions():
            if session.closed < session.window.minutes:
                session.source.spell(spelled)
                session.source.put()
            self._covered.add(self._state, session.source.symbols())

    def _spelled(self) -> list[int]:
        """Ids of the symbols that are asked for by name."""
        names = self._covered.spelled
        if names:
            self._state.allocate(names)
        return [one for one in map(self._state.symbols.get, names) if one is not None]

    def sessions(self) -> list[LiveSession]:
        """Sessions that events came of, or that were opened by the clock; oldest first."""
        return [one for one in self._sessions.values() if one is not None]

    def covers(self) -> np.ndarray:
        """bool[symbols of the year]."""
        return self._covered.mask(self._state)

    @property
    def is_scanning(self) -> bool:
        """Whether more slots wait to be looked at, which takes moments."""
        return any(one.is_scanning for one in self._following.values())

    @property
    def is_behind(self) -> bool:
        """Whether cells hold trades that it should know and does not."""
        return any(one.is_behind or one.wrong() for one in self._following.values())

    def tasks(self) -> list[Task]:
        """What could run now: the next minutes, what was set aside, and cells without rows."""
        looks = self._looks()
        if self._current is None:
            self._current = self._corrections() or self._gathered()
        return [*(self._task(work) for work in self._works()), *looks, *self._without_rows()]

    def _looks(self) -> list[Task]:
        """Cells of trades to look at, that somebody else filled or that were there before."""
        if self._current is not None and self._current.running is not None:
            # Its own cells are being set, and are learned when all are.
            return []
        found = []
        for following in self._following.values():
            following.step()
            task = following.task()
            if task is not None:
                found.append(task)
        return found

    def _corrections(self) -> Work | None:
        """Live cells that say a wrong price before, because what was before them was replaced."""
        for date, following in self._following.items():
            session = self._sessions.get(date)
            cells = following.wrong() if session is not None and not following.is_behind else []
            if cells and session is not None:
                self._tasks += 1
                key = f"{self.dataset.value} {date} live {self._tasks}: prices before of {len(cells)} cells"
                return Work(key, session, [], cells)
        return None

    def _works(self) -> list[Work]:
        return [*self._aside.values(), *([self._current] if self._current is not None else [])]

    # ---- the next task

    def _task(self, work: Work) -> Task:
        """The task of some work; made anew while it does not run, because cells may have changed."""
        if work.running is not None:
            return work.running
        if work.given_up is not None:
            return work.given_up
        session, minutes = work.session, work.minutes
        return Task(
            engine=self._engine,
            key=work.key,
            session=session.session,
            compute="engines.live_pass:run",
            arguments=self._maker.arguments(work),
            minutes=(minutes[0], minutes[-1] + 1) if minutes else (0, 0),
        )

    def _gathered(self) -> Work | None:
        """Spooled minutes of one session, from the first on, until they are enough; None where they must wait."""
        if not self._queue:
            return None
        session = self.session_at(self._queue[0].start_ns)
        assert session is not None
        following = self._following.get(session.session)
        if following is not None and not following.knows:
            return None
        taken, rows = 0, 0
        for item in self._queue:
            if self.session_at(item.start_ns) is not session:
                break
            # The quotes before the open stand in the first window's cell, so they go with it.
            joined = taken and session.minute(self._queue[taken - 1].start_ns) == BEFORE_OPEN
            if taken and rows + item.rows > ROWS_MAX and not joined:
                break
            taken += 1
            rows += item.rows
        items = [self._queue[index] for index in range(taken)]
        if self._must_wait(session, items, more=taken < len(self._queue)):
            return None
        for _ in items:
            self._queue.popleft()
        self._tasks += 1
        what = f"{sum(item.rows for item in items)} rows of {len(items)} minutes"
        return Work(f"{self.dataset.value} {session.session} live {self._tasks}: {what}", session, items)

    def _must_wait(self, session: LiveSession, items: list[SpooledRows], *, more: bool) -> bool:
        """Rows outside the session are in no hurry: those before the open go with it, those after the close in bulk."""
        minutes = [session.minute(item.start_ns) for item in items]
        if any(0 <= minute < session.window.minutes for minute in minutes):
            return False
        if self._played or more:
            return False
        if min(minutes) < 0:
            return not session.closed
        return len(items) < _AFTER_CLOSE_MAX

    # ---- cells without rows

    def _without_rows(self) -> list[Task]:
        tasks = []
        for session in self.sessions():
            cells = session.without_rows(self.covers(), self._done_upto(session), self._state.option_rows)
            if cells is None:
                continue
            first, last = int(cells.minutes.min()), int(cells.minutes.max())
            tasks.append(
                Task(
                    engine=self._engine,
                    key=f"{self.dataset.value} {session.session} no rows: {len(cells.minutes)} cells {first}-{last}",
                    session=session.session,
                    compute="",
                    arguments=[cells],
                    symbols=tuple(np.unique(cells.symbol_ids).tolist()),
                    cells=len(cells.minutes),
                )
            )
        return tasks

    def _done_upto(self, session: LiveSession) -> int:
        """Windows before it are over, and nothing that came of them waits."""
        waiting = [item for item in self._queue if self.session_at(item.start_ns) is session]
        if self._current is not None and self._current.session is session:
            waiting += self._current.items
        minutes = [session.minute(item.start_ns) for item in waiting if not item.late]
        first = min((max(minute, 0) for minute in minutes if minute < session.window.minutes), default=session.closed)
        return min(session.closed, first)

    # ---- what became of tasks

    def started(self, task: Task) -> None:
        """It is at work."""
        for work in self._works():
            if work.key == task.key:
                work.running = task

    def ended(self, task: Task) -> None:
        """It is over: committed, failed, or its worker died."""
        for work in self._works():
            if work.key == task.key:
                work.running = None

    def finished(self, task: Task, batch: Batch) -> None:
        """Its cells are set: what it was made of may go."""
        if isinstance(batch.report, Looked):
            for following in self._following.values():
                following.finished(task, batch.report)
            return
        if task.key in self._aside:
            work = self._aside.pop(task.key)
            work.session.failed.difference_update(work.minutes)
        elif self._current is not None and self._current.key == task.key:
            work, self._current = self._current, None
        else:
            return
        result: LiveResult = batch.report
        session = work.session
        for symbol, (rows_in, rows_out, volume) in sorted(result.symbols.items()):
            session.source.add(symbol, rows_in, rows_out, volume)
        session.source.add_outside(result.outside)
        if result.skipped:
            self._drop("cleared", result.skipped)
        self._covered.add(self._state, session.source.symbols())
        if session.prices is not None:
            self._learn(session, result)
        session.source.put()
        for item in work.items:
            with suppress(OSError):
                Path(item.path).unlink(missing_ok=True)

    def _learn(self, session: LiveSession, result: LiveResult) -> None:
        prices = session.prices
        assert prices is not None
        names = [self._state.symbols.get(symbol) for symbol in result.cell_symbols]
        ids = np.array([-1 if one is None else one for one in names], dtype=np.int64)
        of_cell, minutes = ids[result.cells["symbol"]], result.cells["minute"].astype(np.int64)
        known = of_cell >= 0
        of_cell, minutes, checksums = of_cell[known], minutes[known], result.cells["checksum"][known]
        slots = session.slots(of_cell, minutes)
        ours = (slots["status"] == Status.FILLED) & (slots["checksum"] == checksums)
        prices.seen[of_cell[ours], minutes[ours]] = slots["payload_id"][ours]
        symbols = [self._state.symbols.get(symbol_of(one, self._state.option_rows)) for one in result.tickers]
        codes = prices.codes(result.tickers, np.array([-1 if one is None else one for one in symbols], dtype=np.int64))
        traded = result.traded
        made = set(zip(of_cell[ours].tolist(), minutes[ours].tolist(), strict=True))
        of_ticker = np.array([-1 if one is None else one for one in symbols], dtype=np.int64)
        keep = np.array(
            [
                minute < 0 or (int(of_ticker[ticker]), minute) in made
                for ticker, minute in zip(traded["ticker"].tolist(), traded["minute"].tolist(), strict=True)
            ],
            dtype=bool,
        )
        traded = traded[keep]
        prices.learn(
            sorted(made), codes[traded["ticker"]], traded["minute"].astype(np.int64), traded["previous"], traded["last"]
        )

    def failed(self, task: Task) -> None:
        """Given up: its minutes wait until somebody asks for them, and their cells stay empty."""
        for following in self._following.values():
            following.failed(task)
        if self._current is not None and self._current.key == task.key:
            work, self._current = self._current, None
            work.session.failed.update(work.minutes)
            work.given_up = task
            self._aside[task.key] = work

    def retry(self) -> None:
        """What was set aside is made anew, as cells are now."""
        for work in self._aside.values():
            work.given_up = None

    def stop(self) -> None:
        """Write down what is known."""
        for session in self.sessions():
            with suppress(LedgerError):
                session.source.put(now=True)
