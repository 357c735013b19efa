"""
Refill over REST: which windows of the newest sessions to fetch, while no file of the day is out.

A window is fetched where it is cleared, wanted, partial, or was never filled although it is over; regions first, then the
newest session. One refill of an engine runs at a time, so that the budget of requests is kept. A window that was replaced has
the next ones of its instruments looked at again (``relink_pass``). This module must never fetch; fetchers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta

from engines.contract import Context, Health, Number, Task, Waiting
from engines.feeds.session_window import SessionWindow
from engines.hours import window_of
from engines.pauses import Pause, Pausing
from engines.raw_files import SourceConfig
from engines.relink_pass import RelinkArguments, Relinked
from engines.relinking import Relinking
from engines.rest_cells import around, ranges
from engines.rest_needs import Need, Needs, is_stream
from engines.rest_pass import Ask, Chain, RestArguments, RestPlace, RestResult
from ledger.columns import Column, Dataset, OptionRows
from ledger.roots import is_contract, option_root
from ledger.sources import SourceRecord, SourceState, pack_symbols
from ledger.state import State

_ASKS_MAX: Final = 64
"""Asks of one refill: what came is in cells within a minute or so."""
_DONE: Final = (SourceState.COMPLETE, SourceState.ABSENT)


class RestConfig(SourceConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of an engine's table that let it refill windows over REST."""

    rest: Annotated[str, Meta(pattern=r"^https?://[^/]+")] | None = None
    """Address of the data service, such as ``https://api.massive.com``; absent = no refill."""
    key_env: Annotated[str, Meta(min_length=1)] = "M17_API_KEY"
    """Environment variable that holds the key; it is never in the file."""
    rest_requests_per_minute: Annotated[int, Meta(ge=1)] | None = 300
    rest_sessions: Annotated[int, Meta(ge=1, le=10)] = 2
    """How many of the newest sessions are refilled."""
    rest_after_s: Annotated[float, Meta(ge=0)] = 60.0
    """How long a window must be over."""
    rest_timeout_s: Annotated[float, Meta(gt=0)] = 20.0


class RestRefill:
    """
    Refills windows of one raw column.

    Args:
        engine: name of the engine; it answers for the tasks.
    """

    def __init__(self, engine: str, column: Column, datasets: tuple[Dataset, ...], config: RestConfig) -> None:
        assert config.rest is not None
        self._engine = engine
        self._column = column
        self._datasets = datasets
        self._config = config
        self.place = RestPlace(
            config.rest.rstrip("/"), config.key_env, config.rest_timeout_s, config.rest_requests_per_minute
        )
        self._contracts: tuple[str, ...] = ()
        self._running: Task | None = None
        self._number = 0
        self._pausing = Pausing()
        self._pause: Pause | None = None
        self._pauses: dict[tuple[str, str], Pause] = {}
        self._chains: dict[tuple[str, str], Chain] = {}
        self._sent: tuple[float, ...] = ()
        self.windows = self.requests = 0
        self.retried: dict[str, int] = {}
        self.backlog = 0

    def start(self, context: Context) -> None:
        """Take the context."""
        self._context = context
        self._state: State = context.state
        self._needs = Needs(context.state, self._column, self._config.rest_after_s)
        self._relinking = Relinking(self._engine, self._datasets, self.is_open, context.state)

    # ---- which sessions

    def sessions(self, allowed: Any) -> list[str]:
        """
        Sessions to refill, newest first: those that a stream brings, then the newest that have begun by the clock.

        A stream may play a day of long ago, of which the clock knows nothing. ``allowed(session)`` bounds them.
        """
        state = self._state
        begun = int(np.searchsorted(state.calendar.open_ns, state.system.now_ns(), side="right"))
        newest = [state.calendar.date(seq) for seq in range(max(0, begun - self._config.rest_sessions), begun)]
        names = {dataset.value for dataset in self._datasets}
        mine = [one for one in state.sources.all() if one.dataset in names and one.state not in _DONE]
        streams = {one.session for one in mine if is_stream(one)}
        open_ones = [one for one in mine if one.state is SourceState.OPEN]
        others = {*newest, *(one.session for one in open_ones)} - streams
        chosen = [*sorted(streams, reverse=True), *sorted(others, reverse=True)]
        return sorted([one for one in chosen if allowed(one)][: self._config.rest_sessions], reverse=True)

    def is_open(self, dataset: Dataset, session: str) -> bool:
        """Whether no file of a session was read to its end."""
        record = self._state.sources.get(dataset.value, session)
        return record is None or record.state not in _DONE

    # ---- planning

    def tasks(
        self,
        sessions: list[str],
        named: dict[Dataset, set[int]],
        covered: Callable[[str], np.ndarray],
        listened: tuple[str, ...],
    ) -> list[Task]:
        """
        The next refill, and cells to look at again.

        Args:
            sessions: newest first.
            named: ids of symbols that the config spells, by dataset.
            listened: contracts that the config spells, which are asked for whether they traded or not.
            covered: of a session, bool[symbols] that the engine takes.
        """
        self._contracts = listened
        found = [*self._relinking.tasks(sessions)] if self._column is Column.TRADE_REF else []
        if self._running is not None:
            return [*found, self._running]
        now_ns = self._state.system.now_ns()
        needs: list[Need] = []
        for session in sessions:
            open_ones = [dataset for dataset in self._datasets if self.is_open(dataset, session)]
            for dataset in open_ones:
                self._open_record(dataset, session, named.get(dataset, set()))
            mask = covered(session)
            for dataset in open_ones:
                needs += self._needs.of(session, dataset, mask, now_ns)
        self.backlog = len(needs)
        if not needs or (self._pause is not None and self._pause.holds(now_ns)):
            return found
        needs = [need for need in needs if not self._is_paused(need, now_ns)]
        asked = self._priorities()

        def order(need: Need) -> tuple[int, int, str, int]:
            priority = asked.get((need.session, need.symbol_id), 0)
            return (-priority, -int(need.session.replace("-", "")), need.dataset.value, need.symbol_id)

        needs.sort(key=order)
        if needs:
            first = order(needs[0])[:3]
            alike = [need for need in needs if order(need)[:3] == first]
            found.append(self._refill(alike, now_ns, -first[0]))
        return found

    def _open_record(self, dataset: Dataset, session: str, spelled: set[int]) -> None:
        """Symbols that the config spells belong to a session that no stream brings."""
        if spelled and self._state.sources.get(dataset.value, session) is None:
            ids = sorted(spelled)
            zeros = [0] * len(ids)
            self._state.sources.put(
                SourceRecord(
                    dataset=dataset.value, session=session, state=SourceState.OPEN,
                    reason="no file yet: windows come over REST", name=self.place.address,
                    symbols=pack_symbols(ids, zeros, zeros, zeros),
                )
            )  # fmt: skip

    def _priorities(self) -> dict[tuple[str, int], int]:
        """Of the highest region of each session and symbol that has one."""
        found: dict[tuple[str, int], int] = {}
        calendar = self._state.calendar
        for region in self._context.regions(self._column):
            first, last = (calendar.session_on(ts) for ts in (region.start_ts, region.end_ts - 1))
            for session in calendar.sessions_between(first, last):
                key = (session, region.symbol_id)
                found[key] = max(region.priority, found.get(key, 0))
        return found

    def _is_paused(self, need: Need, now_ns: int) -> bool:
        pause = self._pauses.get((need.session, self._state.symbols.name(need.symbol_id)))
        return pause is not None and pause.holds(now_ns)

    # ---- the next refill

    def _refill(self, needs: list[Need], now_ns: int, priority: int) -> Task:
        """One task: needs of one priority, session and dataset, as far as asks go."""
        session, dataset = needs[0].session, needs[0].dataset
        window = window_of(self._state.calendar, session)
        asks: dict[str, list[Ask]] = {}
        members: dict[int, np.ndarray] = {}
        taken: list[Need] = []
        count = 0
        for need in needs:
            runs = ranges(need.minutes)
            if taken and count + len(runs) > _ASKS_MAX:
                break
            count += len(runs)
            taken.append(need)
            name = self._state.symbols.name(need.symbol_id)
            asks[name] = [Ask(name, first, last) for first, last in runs]
            members[need.symbol_id] = need.minutes
        chains = self._chains_of(session, dataset, taken, asks, window)
        self._number += 1
        ordered = tuple(ask for name in sorted(asks) for ask in asks[name])
        held = around(self._state, session, self._column, members)
        arguments = RestArguments(
            place=self.place, dataset=dataset, window=window, option_rows=self._state.option_rows, asks=ordered,
            chains=chains, held=held, symbols=tuple(self._state.symbols.name(one) for one in members), now_ns=now_ns,
            sent=self._sent,
        )  # fmt: skip
        windows = sum(ask.last - ask.first for ask in ordered)
        key = f"rest {dataset.value} {session} {self._number}: {windows} windows of {len(asks)} symbols"
        known = tuple(sorted(members))
        return Task(
            engine=self._engine, key=key, session=session, compute="engines.rest_pass:run", arguments=arguments,
            remote=True, priority=priority, symbols=known, cells=windows,
        )  # fmt: skip

    def _chains_of(
        self, session: str, dataset: Dataset, needs: list[Need], asks: dict[str, list[Ask]], window: SessionWindow
    ) -> dict[str, Chain]:
        """The roots that are asked for; where contracts are symbols, windows of a root for contracts without one too."""
        if not dataset.of_options:
            return {}
        state, chains = self._state, {}
        per_contract = state.option_rows is OptionRows.CONTRACT
        minutes: dict[str, list[np.ndarray]] = {}
        underlyings: dict[str, str] = {}
        for need in needs:
            name = state.symbols.name(need.symbol_id)
            symbol = f"O:{option_root(name)}" if per_contract else name
            minutes.setdefault(symbol, []).append(need.minutes)
            underlyings[symbol] = state.symbols.name(state.underlying_id(need.symbol_id))
        for symbol, parts in minutes.items():
            wanted = np.unique(np.concatenate(parts))
            end_ns = window.open_ns + (int(wanted[-1]) + 1) * 60_000_000_000
            chain = self._chains.get((session, symbol))
            if chain is None or chain.snapshot_ns < end_ns:
                chain = Chain(symbol, underlyings[symbol], self._listened(symbol))
            if per_contract:
                members = (state.symbols.name(one) for one in state.universe(session).tolist())
                known = frozenset(name for name in members if is_contract(name) and f"O:{option_root(name)}" == symbol)
                chain = replace(chain, known=known)
                asks[symbol] = [Ask(symbol, first, last) for first, last in ranges(wanted)]
            chains[symbol] = chain
        return chains

    def _listened(self, symbol: str) -> tuple[str, ...]:
        root = symbol.removeprefix("O:")
        return tuple(one for one in self._contracts if option_root(one) == root)

    # ---- what became of tasks

    def owns(self, task: Task) -> bool:
        """Whether it planned the task."""
        return isinstance(task.arguments, RestArguments | RelinkArguments)

    def started(self, task: Task) -> None:
        """A refill is at work: the same task is planned until it is over."""
        if isinstance(task.arguments, RestArguments):
            self._running = task

    def ended(self, task: Task) -> None:
        """It is over, whatever became of it."""
        if isinstance(task.arguments, RestArguments):
            self._running = None
            self._needs.forget()

    def finished(self, task: Task, report: RestResult | Relinked) -> None:
        """Its cells are set."""
        if isinstance(report, Relinked):
            self._relinking.finished(task, report)
            return
        self._take(task, report)

    def _take(self, task: Task, report: RestResult) -> None:
        now_ns, session = self._state.system.now_ns(), task.session
        self._sent = report.sent
        self.requests += report.requests
        for kind, number in report.retried.items():
            self.retried[kind] = self.retried.get(kind, 0) + number
        self._chains.update({(session, symbol): chain for symbol, chain in report.chains.items()})
        for ask in report.done:
            self.windows += ask.last - ask.first
            self._pauses.pop((session, ask.symbol), None)
            symbol_id = self._state.symbols.get(ask.symbol)
            if symbol_id is not None:
                self._relinking.note(session, symbol_id, ask.first)
                self._note_unsure(session, ask, symbol_id, task.arguments, report)
        for symbol in report.rows:
            symbol_id = self._state.symbols.get(symbol)
            if symbol_id is not None:
                first = min(ask.first for ask in report.done)
                self._relinking.note(session, symbol_id, first)
        for symbol, trouble in report.failed.items():
            before = self._pauses.get((session, symbol))
            self._pauses[session, symbol] = self._pausing.after(trouble, now_ns, before)
        self._pause = None if report.trouble is None else self._pausing.after(report.trouble, now_ns, self._pause)

    def _note_unsure(
        self, session: str, ask: Ask, symbol_id: int, arguments: RestArguments, report: RestResult
    ) -> None:
        """Windows of a chain that stay partial because contracts may be missing are not asked for again and again."""
        chain = report.chains.get(ask.symbol) or arguments.chains.get(ask.symbol)
        if chain is not None and not chain.is_of_day:
            self._needs.leave(session, symbol_id, np.arange(ask.first, ask.last))

    def retry(self) -> None:
        """Forget all pauses."""
        self._pause = None
        self._pauses.clear()
        self._needs.leave_nothing()

    # ---- what is said

    def waiting(self, sessions: Iterable[str]) -> list[Waiting]:
        """What cannot be fetched now, and why."""
        found = []
        if self._pause is not None:
            trouble, retry = self._pause.trouble, self._pause.retry
            cause = "unreachable" if trouble.cause == "missing" else trouble.cause
            found += [Waiting(cause, self._column, session, trouble.reason, retry=retry) for session in sessions]
        for (session, symbol), pause in self._pauses.items():
            symbol_id = self._state.symbols.get(symbol)
            ids = () if symbol_id is None else (symbol_id,)
            found.append(Waiting("unreachable", self._column, session, pause.trouble.reason, ids, pause.retry))
        return found

    def health(self) -> Health | None:
        """Degraded while the service cannot be reached, or symbols cannot be had; None where nothing is wrong."""
        pauses = [self._pause] if self._pause is not None else list(self._pauses.values())
        if not pauses:
            return None
        return Health("degraded", max(pauses, key=lambda one: one.until_ns).said(self._state.calendar))

    def numbers(self) -> list[Number]:
        """What was asked and refilled."""
        found = [
            Number("rest_requests", "Requests that refills sent over REST since the start.", self.requests, counter=True),
            Number("refilled_windows", "Windows fetched over REST since the start.", self.windows, counter=True),
            Number(
                "relinked_windows", "Windows made again because a trade's price before was replaced.", self._relinking.cells,
                counter=True,
            ),
            Number("refill_symbols_waiting", "Symbols with windows that REST should bring and has not.", self.backlog),
        ]  # fmt: skip
        for kind in ("429", "5xx", "unreachable", "page_repeated"):
            text = "Requests over REST that failed and were sent again, by kind."
            found.append(Number("rest_retries", text, self.retried.get(kind, 0), counter=True, labels={"kind": kind}))
        return found
