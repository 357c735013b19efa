"""
The daemon: the composition root, and the only module that knows everything.

It takes the lock, opens the state, starts the engines, listens, tells systemd that it is ready, and shuts down in the
reverse order. One thread owns ledgers and socket. This module must never interpret a request or a cell.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import zmq

from engines.contract import Deriving, Engine
from ledger.columns import Column
from ledger.errors import SpaceError
from ledger.regions import PriorityRegion
from ledger.roots import RootTable
from ledger.state import State, check_matches, create_state, open_state
from m17d.asking import Asking
from m17d.config import Config, ConfigError, read_config
from m17d.discovery import build
from m17d.handlers import Handlers
from m17d.listening import DESCRIPTORS_SAFE, Listening, raise_descriptor_limit
from m17d.logs import log_line
from m17d.patience import Patience
from m17d.peers import Peers
from m17d.places import Places
from m17d.pool import Pool
from m17d.publishing import Publishing
from m17d.runner import Runner, sessions_not_closed
from m17d.server import Server
from m17d.superseding import Guard

T = TypeVar("T")

_IDLE_MS: Final = 100
_BUSY_MS: Final = 0
_DROP_INTERVAL_S: Final = 30.0
_RETIRE_INTERVAL_S: Final = 1.0
_SLOWEST_WINDOW_S: Final = 60.0
_STEP_S: Final = 0.005
_IDLE_ROUNDS: Final = 3
_SPOOLED_S: Final = 7 * 86_400.0


@dataclass(slots=True)
class EngineContext:
    """What engines see of the daemon."""

    state: State
    logger: logging.Logger
    auto_recompute_sessions: int
    engines: dict[str, Engine]
    objects: dict[str, Any] = field(default_factory=dict)
    """What engines share, by key; each has ``close``."""
    asking: Asking = field(init=False)

    def __post_init__(self) -> None:
        """Regions are looked up in the state."""
        self.asking = Asking(self.state)

    @property
    def start_number(self) -> int:
        """Number of this daemon start; counted up at its first use."""
        return self.state.take_start_number()

    def log(self, level: str, message: str) -> None:
        """One line of the daemon's log."""
        log_line(self.logger, level, message)

    def regions(self, column: Column) -> list[PriorityRegion]:
        """Outstanding regions that need cells of the column, highest first; see :class:`Asking`."""
        return self.asking.regions(column)

    def changing(self, session: str, column: Column, symbol_ids: np.ndarray) -> np.ndarray | None:
        """Filled cells of a derived column that its engine is about to make again; None for no cell."""
        for engine in self.engines.values():
            if column in engine.writes and isinstance(engine, Deriving):
                return engine.changing(session, column, symbol_ids)
        return None

    def is_settled(self, session: str, column: Column, symbol_ids: np.ndarray) -> bool:
        """Whether :meth:`changing` would answer at once; where not, its engine has looked a little further."""
        for engine in self.engines.values():
            if column in engine.writes and isinstance(engine, Deriving):
                return engine.is_settled(session, symbol_ids)
        return True

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """The one object of a key, made by the first that asks."""
        if key not in self.objects:
            self.objects[key] = make()
        found: T = self.objects[key]
        return found

    def close(self) -> None:
        """Close what was shared."""
        for one in self.objects.values():
            one.close()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: the exit code, and lines for the operator."""

    code: int
    lines: list[str]


class Daemon:
    """One run of the daemon over one state; make it, then :meth:`run`, then :meth:`close`."""

    def __init__(self, config: Config, logger: logging.Logger) -> None:
        faulthandler.enable()
        self.config = config
        self.logger = logger
        self._say_few_descriptors(raise_descriptor_limit())
        self.started_s = time.monotonic()
        self._stopping = ""
        self._hangup = False
        self._retire_s = self._publish_s = 0.0
        self._gathering: Iterator[None] | None = None
        self._housekeeping: Iterator[None] | None = None
        self._slowest_s, self._slowest_since_s = 0.0, self.started_s
        self._drop_s = self.started_s + _DROP_INTERVAL_S
        self._undo = contextlib.ExitStack()
        try:
            self._open()
        except BaseException:
            self._undo.close()
            raise

    def _open(self) -> None:
        config, undo = self.config, self._undo
        engines = build(config)
        self.state = self._open_state()
        undo.callback(self.state.close)
        self._empty_temporary()
        listening = Listening.open(config.socket_path, mode=int(config.socket.mode, 8), group=config.socket.group)
        undo.callback(listening.close)
        self.runner = self._start_engines(engines)
        undo.callback(self.runner.stop)
        self.handlers = Handlers(self.state, self.runner, config, version=version("m17"))
        for line in self.handlers.found:
            log_line(self.logger, "warning", line)
        self.peers = Peers(operate_users=config.socket.operate_users, operate_groups=config.socket.operate_groups)
        self.server = Server(
            listening,
            self.handlers,
            peers=self.peers,
            version=version("m17"),
            turns=self.runner.turns,
        )
        undo.callback(self.server.close)
        metrics = config.metrics
        self.publishing = Publishing(
            textfile=config.path(metrics.textfile) if metrics.textfile else None, listen=metrics.listen
        )
        undo.callback(self.publishing.close)
        events = self.handlers.exposition.events
        events.socket, events.loop_lag_s = self.server.counters, lambda: self._slowest_s
        self.handlers.publish = self.server.publish
        self.runner.on_change = self.handlers.changing.taking.on_change = self.server.publish
        self._wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        undo.callback(os.close, self._wake_reader)
        undo.callback(os.close, wake_writer)
        self.state.on_group = lambda: _wake(wake_writer)
        undo.callback(setattr, self.state, "on_group", lambda: None)
        self.server.poller.register(self._wake_reader, zmq.POLLIN)

    def _say_few_descriptors(self, limit: int) -> None:
        if limit < DESCRIPTORS_SAFE:
            text = (
                f"at most {limit} open files, and this process may not have more: a flood of connections could end it"
            )
            log_line(self.logger, "warning", f"{text}; set LimitNOFILE=65536 in the unit, or ulimit -n 65536")

    def _open_state(self) -> State:
        config = self.config
        path = config.state_path
        if not (path / "format").exists():
            create_state(
                path,
                year=config.calendar.year,
                exchange=config.calendar.exchange,
                option_rows=config.option_rows,
            )
            log_line(self.logger, "info", f"made {path} for {config.calendar.exchange} {config.calendar.year}")
        roots = RootTable.load(config.path(config.roots)) if config.roots else None
        state = open_state(path, flush_interval_s=config.runner.flush_interval_ms / 1000, roots=roots)
        try:
            check_matches(
                state, year=config.calendar.year, exchange=config.calendar.exchange, option_rows=config.option_rows
            )
        except BaseException:
            state.close()
            raise
        return state

    def _empty_temporary(self) -> None:
        """Remove what an earlier run staged and did not commit; downloads are whole or go on where they stopped."""
        for path in sorted(self.state.temporary.glob("**/*"), reverse=True):
            if path.is_relative_to(self.state.downloads) or self._is_kept(path):
                continue
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()

    def _is_kept(self, path: Path) -> bool:
        """Rows that feeds spooled are in no cell yet; what no engine took for a week is of a service that is gone."""
        if not path.is_relative_to(self.state.feeds):
            return False
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime < _SPOOLED_S
        return True

    def _start_engines(self, engines: dict[str, Engine]) -> Runner:
        not_closed = sessions_not_closed(self.state)
        context = EngineContext(self.state, self.logger, self.config.runner.auto_recompute_sessions, engines)
        self._undo.callback(context.close)
        for engine in engines.values():
            engine.start(context)
        workers, fetchers = self._pool(self.config.workers, ""), self._pool(self.config.runner.fetchers, "-f")
        places = Places(workers, fetchers, self._pool(1, "-r") if workers.size == 1 else None)
        guard = Guard(self.state, self.config.runner.supersede_min_ratio)
        runner = Runner(self.state, engines, places, lambda level, text: log_line(self.logger, level, text), guard)
        for session in not_closed:
            runner.settle_later(session)
        return runner

    def _pool(self, size: int, kind: str) -> Pool:
        """Processes whose batches are named by this start of the daemon; ``kind`` tells pools apart."""
        return Pool(
            size,
            artifact_root=self.state.artifact_root,
            temporary=self.state.temporary,
            batch_prefix=lambda: f"{self.state.take_start_number():06d}{kind}",
        )

    # ---- the loop

    def run(self, *, until_idle: bool = False) -> Ending:
        """
        Serve and work until a signal, or until no engine has work that it could do.

        Returns:
            how it ended; with ``until_idle`` exit code 1 where a source is damaged or out of reach, an engine failed or
            the symbol cap refused somebody, else 0.
        """
        with self._signals():
            self._notify("READY=1")
            log_line(self.logger, "info", f"serving on {self.config.socket_path}, pid {os.getpid()}")
            idle_rounds = 0
            patience = Patience(self.config.runner.patience_s, lambda *said: log_line(self.logger, *said))
            while not self._stopping:
                turn_s = time.monotonic()
                busy = self.runner.step()
                step_s = time.monotonic() - turn_s
                wait_ms = _BUSY_MS if busy or self._gathering or self._housekeeping else _IDLE_MS
                self._poll(wait_ms)
                if until_idle:
                    idle = not busy and self.runner.is_idle() and not self._waits_for_retry(patience)
                    idle_rounds = idle_rounds + 1 if idle else 0
                    if idle_rounds >= _IDLE_ROUNDS:
                        break
                self._upkeep()
                # What the poll took beyond the longest wait was work, too.
                self._note_turn(max(step_s, time.monotonic() - turn_s - wait_ms / 1e3))
            self._notify("STOPPING=1")
        if self._stopping:
            log_line(self.logger, "info", f"stopping on {self._stopping}")
            self.runner.settle_now()
            return Ending(0, [])
        return self._ending()

    def _waits_for_retry(self, patience: Patience) -> bool:
        """Whether an engine that runs will soon try again what did not answer."""
        running = [engine for name, engine in self.runner.engines.items() if name not in self.runner.paused]
        return patience.waits(running, self.state.system.now_ns())

    def _note_turn(self, seconds: float) -> None:
        """Remember the slowest turn of the last minute or two, for the metric."""
        if time.monotonic() - self._slowest_since_s > _SLOWEST_WINDOW_S:
            self._slowest_s, self._slowest_since_s = 0.0, time.monotonic()
        self._slowest_s = max(self._slowest_s, seconds)

    def _reload(self) -> None:
        """Take from the config file what can change while running: who may operate, retention, metrics interval."""
        self._hangup = False
        try:
            fresh = read_config(self.config.file)
        except ConfigError as error:
            log_line(self.logger, "error", f"reload: {error}; the old config holds")
            return
        users, groups = fresh.socket.operate_users, fresh.socket.operate_groups
        self.peers.let_operate(users, groups)
        reloaded = msgspec.structs.replace(
            self.config,
            retention=fresh.retention,
            metrics=msgspec.structs.replace(self.config.metrics, interval_s=fresh.metrics.interval_s),
            socket=msgspec.structs.replace(self.config.socket, operate_users=users, operate_groups=groups),
        )
        kept = [name for name in fresh.__struct_fields__ if getattr(fresh, name) != getattr(reloaded, name)]
        self.config = self.handlers.config = self.handlers.upkeep.config = reloaded
        later = f"; {', '.join(kept)} changed and need a restart" if kept else ""
        log_line(self.logger, "info", f"reloaded who may operate, retention and the metrics' interval{later}")

    def _upkeep(self) -> None:
        now_s, turns = time.monotonic(), self.runner.turns
        if self._hangup:
            self._reload()
        if self.publishing.wanted and now_s >= self._publish_s:
            with turns.step("metrics"):
                self._publish(now_s)
        if now_s >= self._retire_s:
            self._retire_s = now_s + _RETIRE_INTERVAL_S
            self._notify("WATCHDOG=1")
            # A disk that refuses now may take it at the next turn.
            with contextlib.suppress(SpaceError), turns.step("regions"):
                for region in self.handlers.retire_regions():
                    words = f"{region.symbol}, {region.minutes} minutes at priority {region.priority}"
                    log_line(self.logger, "info", f"region {region.id} is whole and retires: {words}")
        if now_s >= self._drop_s:
            self._drop_s = now_s + _DROP_INTERVAL_S
            self._housekeeping = self._housekeeping or self.handlers.housekeeping()
        if self._housekeeping is not None:
            with turns.step("housekeeping"):
                self._keep_house(self._housekeeping)

    def _keep_house(self, steps: Iterator[None]) -> None:
        """A few milliseconds' work; what a full disk refuses is tried again in half a minute."""
        until_s = time.monotonic() + _STEP_S
        with contextlib.suppress(SpaceError):
            for _ in steps:
                if time.monotonic() > until_s:
                    return
        self._housekeeping = None

    def _publish(self, now_s: float) -> None:
        """A few milliseconds' work on the numbers that are given away; they are given when all is gathered."""
        if self._gathering is None:
            self._gathering = self.handlers.exposition.gather()
        for _ in self._gathering:
            if time.monotonic() - now_s > _STEP_S:
                return
        self._gathering = None
        self._publish_s = now_s + self.config.metrics.interval_s
        self.publishing.give(self.handlers.exposition.text())

    def _poll(self, timeout_ms: int) -> None:
        descriptors = set(self.runner.descriptors())
        for descriptor in descriptors:
            self.server.poller.register(descriptor, zmq.POLLIN)
        for ready in self.server.poll(timeout_ms):
            if ready == self._wake_reader:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_reader, 4096)
        for descriptor in descriptors:
            self.server.poller.unregister(descriptor)

    def _ending(self) -> Ending:
        lines = self.handlers.what_is_left()
        failed = any(self.runner.health(name).state == "failed" for name in self.runner.engines)
        bad = failed or bool(self.runner.failures or self.runner.refused or self.handlers.damaged_sources())
        causes = {one.cause for engine in self.runner.engines.values() for one in engine.waiting()}
        return Ending(1 if bad or causes & {"unreachable", "denied"} else 0, lines)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, _frame: Any) -> None:
            self._stopping = signal.Signals(number).name

        def hang_up(_number: int, _frame: Any) -> None:
            self._hangup = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _notify(self, message: str) -> None:
        """Tell systemd, where it listens; see sd_notify(3)."""
        address = os.environ.get("NOTIFY_SOCKET")
        if not address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)

    def close(self) -> None:
        """Close everything in the reverse order of opening."""
        self._undo.close()


def _wake(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError, OSError):
        os.write(descriptor, b"\0")
