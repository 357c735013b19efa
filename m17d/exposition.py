"""
Exposition: the numbers of M17 in Prometheus text, computed from planes and stores when asked.

Things that happen are counted where they happen and read here; state is derived from header counts and planes, so a
gauge cannot disagree with ``status``. Nothing listens on the network unless the config asks for it. This module must
never keep state of its own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from ledger.columns import Column, PayloadKind, Status
from ledger.coverage import sessions_in_use, with_options
from ledger.sources import SourceState
from ledger.state import State
from m17d.reading import Reading
from m17d.runner import Runner

_MINUTE_NS: Final = 60_000_000_000
_RECENT_SESSIONS: Final = 5
"""Lag is looked for in this many of the newest sessions in use; older holes are counted, not timed."""


class Exposition:
    """Collects the metrics of one state; register once, scrape as often as wanted."""

    def __init__(self, state: State, runner: Runner, reading: Reading) -> None:
        self.state = state
        self.runner = runner
        self.reading = reading
        self.loop_lag_s: Callable[[], float] = lambda: 0.0
        self._started_s = time.monotonic()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> str:
        """The exposition, as ``m17ctl metrics`` prints it."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Every metric family; called by prometheus_client."""
        yield from self._cells()
        yield from self._engines()
        yield from self._stores()
        yield from self._sources_and_regions()
        yield from self._process()

    def _cells(self) -> Iterator[Metric]:
        cells = GaugeMetricFamily(
            "m17_slots", "Cells by column and status over the sessions in use; the same numbers as status.",
            labels=["column", "status"],
        )  # fmt: skip
        lag = GaugeMetricFamily(
            "m17_window_lag_minutes", "Minutes since the end of the oldest due window that is not filled, by column; 0 is none.",
            labels=["column"],
        )  # fmt: skip
        totals: dict[Column, dict[str, int]] = {column: {} for column in Column}
        sessions = sessions_in_use(self.state)
        for session in sessions:
            for column, counts in self.reading.session_counts(session).items():
                for name, number in counts.items():
                    totals[column][name] = totals[column].get(name, 0) + number
        for column, counts in totals.items():
            for name, number in counts.items():
                cells.add_metric([column.value, name], number)
            lag.add_metric([column.value], self._lag_minutes(column, sessions[-_RECENT_SESSIONS:]))
        yield cells
        yield lag

    def _lag_minutes(self, column: Column, sessions: list[str]) -> float:
        now_ns = self.state.system.now_ns()
        for session in sessions:
            universe = self.state.universe(session)
            if not len(universe):
                continue
            planes = self.reading.planes(session, column, universe, with_options(self.state, universe))
            open_cells = ((planes.state == Status.EMPTY) | (planes.state == Status.CLEARED)).any(axis=0)
            if open_cells.any():
                seq = self.state.calendar.session_seq(session)
                end = int(self.state.calendar.open_ns[seq]) + (int(np.argmax(open_cells)) + 1) * _MINUTE_NS
                return max(0.0, (now_ns - end) / _MINUTE_NS)
        return 0.0

    def _engines(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("m17_engine_state", "1 for the state an engine is in.", labels=["engine", "state"])
        backlog = GaugeMetricFamily("m17_engine_backlog_tasks", "Tasks an engine knows of.", labels=["engine"])
        tasks = CounterMetricFamily("m17_engine_tasks", "Tasks committed since the start.", labels=["engine"])
        cells = CounterMetricFamily(
            "m17_mutations",
            "Cells that engines set since the start, by what became of them.",
            labels=["engine", "outcome"],
        )
        deaths = CounterMetricFamily(
            "m17_worker_deaths", "Workers that died over a task of the engine.", labels=["engine"]
        )
        for name, engine in self.runner.engines.items():
            counts = self.runner.counts[name]
            state.add_metric([name, self.runner.health(name).state], 1)
            backlog.add_metric([name], engine.backlog())
            tasks.add_metric([name], counts.tasks)
            cells.add_metric([name, "applied"], counts.cells)
            cells.add_metric([name, "unchanged"], counts.unchanged)
            cells.add_metric([name, "dropped"], counts.dropped)
            deaths.add_metric([name], counts.deaths)
        yield from (state, backlog, tasks, cells, deaths)
        busy = GaugeMetricFamily("m17_workers_busy_ratio", "Share of the worker places at work.")
        busy.add_metric([], len(self.runner.pool.running()) / max(1, self.runner.pool.size))
        yield busy

    def _stores(self) -> Iterator[Metric]:
        records = GaugeMetricFamily("m17_payload_records", "Payload ids given, by mapping file.", labels=["kind"])
        size = GaugeMetricFamily("m17_payload_map_bytes", "Size of a mapping file.", labels=["kind"])
        for kind in PayloadKind:
            if kind is not PayloadKind.NONE:
                records.add_metric([kind.word], self.state.maps[kind].record_count)
                size.add_metric([kind.word], self.state.maps[kind].logical_bytes)
        symbols = GaugeMetricFamily("m17_symbols", "Symbols that have an id this year.")
        symbols.add_metric([], len(self.state.symbols))
        symbols_max = GaugeMetricFamily("m17_symbols_max", "Symbols that may have an id this year.")
        symbols_max.add_metric([], self.state.symbols.symbols_max)
        refused = GaugeMetricFamily("m17_symbols_refused", "Symbols that the cap refused since the start.")
        refused.add_metric([], len(self.runner.refused))
        repaired = CounterMetricFamily(
            "m17_recovered_cells", "Cells that mapping sessions set right, by cause.", labels=["cause"]
        )
        for cause in ("seal", "dangling", "pending"):
            repaired.add_metric([cause], sum(getattr(report, cause) for report in self.state.repairs))
        free = GaugeMetricFamily("m17_disk_free_bytes", "Free bytes on the file system of the state directory.")
        free.add_metric([], shutil.disk_usage(self.state.directory).free)
        yield from (records, size, symbols, symbols_max, refused, repaired, free)

    def _sources_and_regions(self) -> Iterator[Metric]:
        sources = GaugeMetricFamily("m17_sources", "Upstream files and streams by state.", labels=["state"])
        counts = dict.fromkeys(SourceState, 0)
        rejected = 0
        for record in self.state.sources.all():
            counts[record.state] += 1
            rejected += sum(record.rejected.values())
        for state, number in counts.items():
            sources.add_metric([state.value], number)
        rows = GaugeMetricFamily("m17_rejected_rows", "Rows of the known sources that were refused for their values.")
        rows.add_metric([], rejected)
        outstanding = self.state.regions.outstanding()
        regions = GaugeMetricFamily("m17_priority_regions", "Priority regions that are not whole yet.")
        regions.add_metric([], len(outstanding))
        age = GaugeMetricFamily("m17_priority_region_age_seconds", "Age of the oldest outstanding priority region.")
        now_ns = self.state.system.now_ns()
        age.add_metric([], max(((now_ns - region.created_ns) / 1e9 for region in outstanding), default=0.0))
        yield from (sources, rows, regions, age)

    def _process(self) -> Iterator[Metric]:
        uptime = GaugeMetricFamily("m17_uptime_seconds", "Seconds since this daemon started.")
        uptime.add_metric([], time.monotonic() - self._started_s)
        blocked = GaugeMetricFamily("m17_writes_blocked", "1 while nothing can be written, such as on a full disk.")
        blocked.add_metric([], float(bool(self.runner.blocked)))
        lag = GaugeMetricFamily("m17_loop_lag_seconds", "Longest turn of the daemon's loop in the last minute.")
        lag.add_metric([], self.loop_lag_s())
        files = GaugeMetricFamily("m17_open_files", "Open descriptors of the daemon.")
        files.add_metric([], len(os.listdir("/proc/self/fd")))
        yield from (uptime, blocked, lag, files)
