"""
An engine that listens: one raw column from the websocket of a data service, minute by minute as they close.

The feed is a process of its own and shared by all engines that name the same service (``live_feed``); what it brings is
made into cells dataset by dataset (``live_dataset``). This module says how the engine is, what it covers and what it
waits for. It must never compute a row.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from engines.contract import Batch, Context, Health, Number, Task, Waiting
from engines.contract_universe import ChainPlace, ContractUniverse, Ranked
from engines.feed_numbers import FeedNumbers
from engines.feeds.feed_messages import ClosedThrough, FeedMessage, FeedState, SpooledRows
from engines.feeds.stream_settings import CONTRACTS_MAX
from engines.live_dataset import LiveDataset
from engines.live_feed import FeedOptions, Line, LiveFeed, is_denied
from engines.live_source import refused_by_cap
from engines.live_topics import Wish, wish_of
from engines.symbol_globs import SymbolGlobs
from ledger.columns import Column, Dataset
from ledger.errors import LedgerError
from ledger.state import State

_LOOK_INTERVAL_S: Final = 2.0
DATASETS: Final = {
    (Column.TRADE_REF, False): Dataset.STOCK_TRADES,
    (Column.TRADE_REF, True): Dataset.OPTION_TRADES,
    (Column.QUOTE_REF, False): Dataset.STOCK_QUOTES,
    (Column.QUOTE_REF, True): Dataset.OPTION_QUOTES,
}


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[engines.trade_ws]``, and the keys of ``[engines.quote]`` that make it listen."""

    stream: Annotated[str, Meta(pattern=r"^wss?://[^/]+")]
    """The service, such as ``wss://socket.massive.com``; ``/stocks`` and ``/options`` are added to it."""
    key_env: Annotated[str, Meta(min_length=1)] = "M17_API_KEY"
    """Environment variable that holds the key; it is never in the file."""
    symbols: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    """Globs over tickers; absent = all. Quotes of options have no wildcard: contracts are named."""
    symbols_file: Annotated[str, Meta(min_length=1)] | None = None
    """Further globs, one a line; read again when it changes."""
    grace_s: Annotated[float, Meta(ge=0, le=60)] = 2.0
    """How long after its end a minute waits for its last events."""
    idle_timeout_s: Annotated[float, Meta(ge=0)] = 60.0
    """Longest silence of a connection that was busy; 0 = any."""
    refused_pause_s: Annotated[float, Meta(gt=0)] = 60.0
    """First pause after the service refused key or connection; doubled each time, up to ten minutes."""
    contracts_max: Annotated[int, Meta(ge=1)] = CONTRACTS_MAX
    """Option contracts of one connection."""
    rest: Annotated[str, Meta(pattern=r"^https?://[^/]+")] | None = None
    """Address of the data service, for ``chains``."""
    chains: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    """Underlyings whose contracts are listened to, ranked by open interest and volume."""
    chain_contracts: Annotated[int, Meta(ge=1)] = 499
    """How many contracts of all chains together."""
    chain_every_s: Annotated[float, Meta(ge=60)] = 900.0
    """How often chains are read again; contracts come, none goes before the day ends."""


STREAM_KEYS: Final = tuple(field.encode_name for field in msgspec.structs.fields(StreamConfig))


class LiveEngine:
    """
    One raw column from a websocket.

    Args:
        name: of the engine.
        column: what it fills.
        table: its config table.
        base: folder of the config file.

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table is wrong.
    """

    def __init__(self, name: str, column: Column, table: Mapping[str, Any], base: Path) -> None:
        self.name = name
        self.writes = (column,)
        self.config = msgspec.convert(table, StreamConfig)
        self._column = column
        config = self.config
        self._symbols = SymbolGlobs(config.symbols, base / config.symbols_file if config.symbols_file else None)
        self._looked_s = 0.0
        if config.chains and config.rest is None:
            raise ValueError("chains: rest, the address of the data service, is missing")
        self._universe: ContractUniverse | None = None
        self._contracts: tuple[str, ...] = ()
        self._wishes = self._wished()
        self._failure = ""
        self._feed: LiveFeed | None = None
        self._datasets: dict[bool, LiveDataset] = {}

    def _wished(self) -> dict[bool, Wish]:
        globs = self._symbols.globs or None
        contracts = [*self._symbols.globs, *self._contracts] if self.config.chains else globs
        return {
            False: wish_of(globs, self._column, of_options=False),
            True: wish_of(contracts, self._column, of_options=True),
        }

    # ---- the engine

    def start(self, context: Context) -> None:
        """Take the context, and ask the shared feed for its topics; nothing is connected yet."""
        self._context = context
        self._state: State = context.state
        config = self.config
        key = os.environ.get(config.key_env, "")
        if not key:
            self._failure = f"the environment variable {config.key_env} holds no key for {config.stream}"
            context.log("error", f"{self.name}: {self._failure}; set it where the daemon is started")
            return
        if config.chains and config.rest:
            place = ChainPlace(config.rest.rstrip("/"), config.key_env)
            asked = (config.chains, config.chain_contracts, config.chain_every_s)
            self._universe = context.shared(
                f"chains {place} {asked}", lambda: ContractUniverse(place, *asked, context=context)
            )
        options = FeedOptions(config.grace_s, config.idle_timeout_s, config.refused_pause_s, config.contracts_max)
        address = config.stream.rstrip("/")
        # A service has a folder of its own, so that what its dead feeds left is taken by nobody else.
        folder = self._state.feeds / f"{zlib.crc32(f'{address} {config.key_env}'.encode()):08x}"
        self._feed = context.shared(
            f"feed {address} {config.key_env}", lambda: LiveFeed(address, key, folder, options, context.log)
        )
        self._datasets = {
            of_options: LiveDataset(self.name, DATASETS[self._column, of_options], line.url, self._wishes[of_options], context)
            for of_options, line in self._feed.lines.items()
        }  # fmt: skip
        self._feed.join(self, self._column, self._wishes, options)

    def stop(self) -> None:
        """Write down what is known of the sessions; the feed is closed by who shares it."""
        for dataset in self._datasets.values():
            dataset.stop()

    def health(self) -> Health:
        """Failed where it cannot connect at all, degraded while it does not, else running, with counts."""
        if self._failure:
            return Health("failed", self._failure)
        states = [self._health_of(line) for line in self._lines()]
        if self._symbols.problem:
            states.append(Health("degraded", self._symbols.problem))
        chains = self._universe.health() if self._universe is not None else None
        if chains is not None:
            states.append(chains)
        refused = [one for wish in self._wishes.values() for one in wish.refused]
        if refused:
            what = f"quotes of options have no wildcard ({', '.join(refused[:3])}): name the contracts"
            states.append(Health("degraded", what))
        refused = refused_by_cap(self._state, [one.dataset for one in self._datasets.values()])
        if refused:
            what = f"the symbol cap refused {len(refused)} symbols ({', '.join(refused[:5])})"
            states.append(Health("degraded", what))
        worst = next(
            (state for state in ("failed", "degraded", "starting") for one in states if one.state == state), "running"
        )
        details = [one.detail for one in states if one.state == worst]
        return Health(worst, "; ".join(details) or "nothing is asked for")

    def _lines(self) -> list[Line]:
        lines = [] if self._feed is None else list(self._feed.lines.values())
        return [line for line in lines if self._column in line.wishes]

    def _health_of(self, line: Line) -> Health:
        if line.refused:
            return Health("failed", line.refused)
        if line.problem:
            return Health("degraded", f"{line.url}: {line.problem}")
        state = line.state
        if state is None:
            return Health("starting", f"{line.url}: the feed process starts")
        what = f"{line.url}: {state.state}" + (f" ({state.detail})" if state.detail else "")
        if state.state == "refused":
            return Health("failed" if is_denied(state) else "degraded", what)
        if state.state == "waiting":
            return Health("degraded", what)
        if not line.is_streaming:
            return Health("degraded" if line.failing_since_s else "starting", what)
        numbers = line.numbers[self._column]
        dropped = sum(numbers.drops.values())
        return Health("running", f"{what}, {numbers.events} events, {dropped} dropped")

    def numbers(self) -> list[Number]:
        """What its connections counted together."""
        total, lines = FeedNumbers(), self._lines()
        for line in lines:
            one = line.numbers[self._column]
            total.events += one.events
            total.reconnects += one.reconnects
            total.newest_ns = max(total.newest_ns, one.newest_ns)
            for reason, count in one.drops.items():
                total.drop(reason, count)
        for dataset in self._datasets.values():
            for reason, count in dataset.drops.items():
                total.drop(reason, count)
        total.connected = bool(lines) and all(line.is_streaming for line in lines)
        deaths = sum(line.deaths for line in lines)
        return [
            *total.numbers(self._state.system.now_ns()),
            Number("feed_process_deaths", "Times a feed process died and was started again.", deaths, counter=True),
            Number("feed_minutes_waiting", "Minutes of a dataset that came and are not in cells yet.", self.backlog()),
        ]

    def describe_priority_hooks(self) -> list[str]:
        """How regions change what it does."""
        return ["minutes are filled as they close; a region over live windows is served by REST or the flat file"]

    def backlog(self) -> int:
        """Spooled minutes of its datasets that are not in cells yet."""
        return sum(dataset.backlog for dataset in self._datasets.values())

    def covers(self, session: str, column: Column) -> np.ndarray | None:
        """bool[symbols]: those that its topics bring, in sessions that events came of."""
        if column is not self._column or not self._knows(session):
            return None
        covered = np.zeros(len(self._state.symbols), dtype=bool)
        for dataset in self._datasets.values():
            covered |= dataset.covers()
        return covered

    def covering(self, session: str) -> int:
        """How many symbols its topics bring, of a session that it knows."""
        if not self._knows(session):
            return 0
        return 1 + sum(int(dataset.covers().sum()) for dataset in self._datasets.values())

    def _knows(self, session: str) -> bool:
        """Whether a stream brought the session, now or before the last restart."""
        for dataset in self._datasets.values():
            if any(one.session == session for one in dataset.sessions()):
                return True
            record = self._state.sources.get(dataset.dataset.value, session)
            if record is not None and dataset.address in (record.stream, record.name):
                return True
        return False

    def waiting(self, session: str | None = None) -> list[Waiting]:
        """Connections and chains that are not there, for the newest session that they served."""
        found = []
        for line in self._lines():
            health = self._health_of(line)
            if health.state in ("running", "starting"):
                continue
            cause = "denied" if health.state == "failed" else "unreachable"
            found.append(Waiting(cause, self._column, self._newest(line.of_options), health.detail))
        pause = self._universe.pause if self._universe is not None else None
        if pause is not None:
            cause = "unreachable" if pause.trouble.cause == "missing" else pause.trouble.cause
            found.append(Waiting(cause, self._column, self._newest(True), pause.trouble.reason, retry=pause.retry))
        return [one for one in found if session in (None, one.session)]

    def _newest(self, of_options: bool) -> str:
        """The newest session that a connection served; before the first the one that is to come."""
        dataset = self._datasets.get(of_options)
        known = dataset.sessions() if dataset is not None else []
        return known[-1].session if known else self._today() or self._state.calendar.dates[-1]

    def _today(self) -> str | None:
        date = self._state.calendar.session_on(self._state.system.now_ns())
        try:
            self._state.calendar.session_seq(date)
        except LedgerError:
            return None
        return date

    def plan(self, limit: int) -> list[Task]:
        """The next minutes of each dataset."""
        self._look()
        self._open_today()
        chains = self._universe.tasks(self.name) if self._universe is not None else []
        return chains + [task for dataset in self._datasets.values() for task in dataset.tasks()][:limit]

    def _look(self) -> None:
        """Ask for other topics where the file of symbols was changed, or the contracts of chains did."""
        now_s = time.monotonic()
        if self._feed is None or now_s - self._looked_s < _LOOK_INTERVAL_S:
            return
        self._looked_s = now_s
        contracts = self._universe.contracts if self._universe is not None else ()
        if self._symbols.look() or contracts != self._contracts:
            self._contracts = contracts
            self._wishes = self._wished()
            for of_options, dataset in self._datasets.items():
                dataset.ask(self._wishes[of_options])
            self._feed.ask(self._column, self._wishes)

    def _open_today(self) -> None:
        """A session of the clock's own day is there from its open on, so that a feed that brings nothing is seen."""
        date = self._today()
        if date is None:
            return
        now_ns = self._state.system.now_ns()
        if now_ns < self._state.calendar.times(date).open_ns:
            return
        for line in self._lines():
            self._datasets[line.of_options].session_at(now_ns)

    def owns(self, task: Task) -> bool:
        """Whether it planned the task."""
        mine = ("engines.live_", "engines.contract_universe:")
        return task.compute.startswith(mine) or (not task.compute and task.engine == self.name)

    def started(self, task: Task) -> None:
        """It is at work."""
        for dataset in self._datasets.values():
            dataset.started(task)

    def ended(self, task: Task) -> None:
        """It is over."""
        for dataset in self._datasets.values():
            dataset.ended(task)

    def finished(self, task: Task, batch: Batch) -> None:
        """Its cells are set, or chains were read."""
        if isinstance(batch.report, Ranked):
            self._take_chains(batch.report)
            return
        for dataset in self._datasets.values():
            dataset.finished(task, batch)

    def _take_chains(self, report: Ranked) -> None:
        universe = self._universe
        assert universe is not None
        if report.trouble is not None:
            self._context.log("warning", f"{self.name}: {report.trouble.reason}; {report.trouble.hint}")
        if universe.finished(report):
            self._looked_s = 0.0
            left = f", {universe.left_out} found no place" if universe.left_out else ""
            self._context.log("info", f"{self.name}: {len(universe.contracts)} contracts of chains{left}")

    def failed(self, task: Task, reason: str, report: Any) -> None:
        """Given up until an operator asks for it."""
        del reason, report
        for dataset in self._datasets.values():
            dataset.failed(task)

    # ---- listening

    def descriptors(self) -> list[int]:
        """Descriptors that are readable when the feed says something."""
        return [] if self._feed is None else self._feed.descriptors()

    def listen(self) -> bool:
        """Take what the feed says; never waits."""
        heard = self._feed is not None and self._feed.pump()
        return heard or any(dataset.is_scanning for dataset in self._datasets.values())

    def expects(self) -> bool:
        """Whether the feed may still bring work by itself, or cells are still looked at."""
        if any(dataset.is_behind for dataset in self._datasets.values()):
            return True
        return self._feed is not None and self._feed.expects()

    def retry(self) -> None:
        """Connect again now, if it waits, read chains, and take up what was set aside."""
        if self._universe is not None:
            self._universe.retry()
        for dataset in self._datasets.values():
            dataset.retry()
        if self._feed is not None:
            self._feed.retry()

    def hear(self, message: SpooledRows | ClosedThrough | FeedMessage, *, of_options: bool) -> None:
        """Take a message of one connection."""
        dataset = self._datasets[of_options]
        if not isinstance(message, FeedState):
            dataset.hear(message)
        elif message.state == "played":
            dataset.played()
