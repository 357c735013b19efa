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
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import msgspec
import zmq

from engines.contract import Engine
from ledger.columns import Column
from ledger.regions import PriorityRegion
from ledger.roots import RootTable
from ledger.state import State, check_matches, create_state, open_state
from m17d.config import Config, ConfigError, read_config
from m17d.discovery import build
from m17d.handlers import Handlers
from m17d.listening import Listening, raise_descriptor_limit
from m17d.logs import log_line
from m17d.peers import Peers
from m17d.pool import Pool
from m17d.publishing import Publishing
from m17d.runner import Runner
from m17d.server import Server

_IDLE_MS: Final = 100
_BUSY_MS: Final = 0
_DROP_INTERVAL_S: Final = 30.0
_RETIRE_INTERVAL_S: Final = 1.0
_SLOWEST_WINDOW_S: Final = 60.0
_IDLE_ROUNDS: Final = 3


@dataclass(slots=True)
class EngineContext:
    """What engines see of the daemon."""

    state: State
    logger: logging.Logger
    auto_recompute_sessions: int

    @property
    def start_number(self) -> int:
        """Number of this daemon start; counted up at its first use."""
        return self.state.take_start_number()

    def log(self, level: str, message: str) -> None:
        """One line of the daemon's log."""
        log_line(self.logger, level, message)

    def regions(self, column: Column) -> list[PriorityRegion]:
        """Outstanding regions that name the column, highest first."""
        return [region for region in self.state.regions.outstanding() if not region.columns or column in region.columns]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: the exit code, and lines for the operator."""

    code: int
    lines: list[str]


class Daemon:
    """One run of the daemon over one state; make it, then :meth:`run`, then :meth:`close`."""

    def __init__(self, config: Config, logger: logging.Logger) -> None:
        faulthandler.enable()
        raise_descriptor_limit()
        self.config = config
        self.logger = logger
        self.started_s = time.monotonic()
        self._stopping = ""
        self._hangup = False
        self._retire_s = self._publish_s = 0.0
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
        self.server = Server(
            listening,
            self.handlers,
            peers=Peers(operate_users=config.socket.operate_users, operate_groups=config.socket.operate_groups),
            version=version("m17"),
        )
        undo.callback(self.server.close)
        metrics = config.metrics
        self.publishing = Publishing(
            textfile=config.path(metrics.textfile) if metrics.textfile else None, listen=metrics.listen
        )
        undo.callback(self.publishing.close)
        self.handlers.exposition.loop_lag_s = lambda: self._slowest_s
        self.handlers.publish = self.server.publish
        self.runner.on_change = self.server.publish
        self._wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        undo.callback(os.close, self._wake_reader)
        undo.callback(os.close, wake_writer)
        self.state.on_group = lambda: _wake(wake_writer)
        undo.callback(setattr, self.state, "on_group", lambda: None)
        self.server.poller.register(self._wake_reader, zmq.POLLIN)

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
        """Remove what an earlier run staged and did not commit."""
        for path in sorted(self.state.temporary.glob("**/*"), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()

    def _start_engines(self, engines: dict[str, Engine]) -> Runner:
        context = EngineContext(self.state, self.logger, self.config.runner.auto_recompute_sessions)
        for engine in engines.values():
            engine.start(context)
        pool = Pool(
            self.config.workers,
            artifact_root=self.state.artifact_root,
            temporary=self.state.temporary,
            batch_prefix=lambda: f"{self.state.take_start_number():06d}",
        )
        return Runner(self.state, engines, pool, lambda level, message: log_line(self.logger, level, message))

    # ---- the loop

    def run(self, *, until_idle: bool = False) -> Ending:
        """
        Serve and work until a signal, or until no engine has work that it could do.

        Returns:
            how it ended; with ``until_idle`` exit code 1 where a source is damaged, an engine failed or the symbol cap
            refused somebody, else 0.
        """
        with self._signals():
            self._notify("READY=1")
            log_line(self.logger, "info", f"serving on {self.config.socket_path}, pid {os.getpid()}")
            idle_rounds = 0
            while not self._stopping:
                turn_s = time.monotonic()
                busy = self.runner.step()
                self._note_turn(time.monotonic() - turn_s)
                self._poll(_BUSY_MS if busy else _IDLE_MS)
                if until_idle:
                    idle_rounds = idle_rounds + 1 if not busy and self.runner.is_idle() else 0
                    if idle_rounds >= _IDLE_ROUNDS:
                        break
                self._upkeep()
            self._notify("STOPPING=1")
        if self._stopping:
            log_line(self.logger, "info", f"stopping on {self._stopping}")
            return Ending(0, [])
        return self._ending()

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
        kept = [
            name
            for name in ("state_dir", "calendar", "option_rows", "roots", "runner", "engines", "socket")
            if getattr(fresh, name) != getattr(self.config, name)
        ]
        self.config = msgspec.structs.replace(self.config, retention=fresh.retention, metrics=fresh.metrics)
        self.handlers.config = self.handlers.upkeep.config = self.config
        later = f"; {', '.join(kept)} changed and need a restart" if kept else ""
        log_line(self.logger, "info", f"reloaded retention and metrics{later}")

    def _upkeep(self) -> None:
        now_s = time.monotonic()
        if self._hangup:
            self._reload()
        if self.publishing.wanted and now_s >= self._publish_s:
            self._publish_s = now_s + self.config.metrics.interval_s
            self.publishing.give(self.handlers.exposition.text())
        if now_s >= self._retire_s:
            self._retire_s = now_s + _RETIRE_INTERVAL_S
            self._notify("WATCHDOG=1")
            self.handlers.retire_regions()
        if now_s >= self._drop_s:
            self._drop_s = now_s + _DROP_INTERVAL_S
            self.handlers.housekeeping()

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
        bad = bool(self.runner.failures or self.runner.refused or self.handlers.damaged_sources())
        return Ending(1 if bad else 0, lines)

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
