"""
Exposition: the numbers of M17 in Prometheus text, made when asked.

State comes from measuring, which ``status`` asks too, so a gauge cannot disagree with it; events are counted where they
happen and only read here. Labels take words of small fixed sets. This module must never keep state of its own, and never
listen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest

from engines.contract import SERIES_MAX, Number, Numbered
from ledger.columns import WINDOW_NS, Column
from ledger.state import State
from m17d.committing import Counts
from m17d.exposition_cells import CellFamilies
from m17d.exposition_stores import StoreFamilies
from m17d.latency import Latency
from m17d.reading import Reading
from m17d.runner import EngineCounts, Runner
from m17d.streams import Counters
from m17d.turns import SLOW_S, Turns
from m17d.wholeness import Wholeness

if TYPE_CHECKING:
    from collections import Counter

ENGINE_STATES: Final = ("starting", "running", "idle", "paused", "degraded", "failed")
CURVES_SHOWN: Final = 8
"""Recomputes are told apart by this many of the newest curves; those by older ones are one series."""


@dataclass(slots=True)
class Events:
    """What happened outside the engines since the start; each is counted where it happens."""

    operator: Mapping[str, Counter[Column]]
    """Cells by operation and column."""
    requests: Mapping[str, Latency]
    """By operation, how long the handler took to answer or to begin its stream."""
    turns: Turns
    socket: Counters | None = None
    loop_lag_s: Callable[[], float] = lambda: 0.0


class Exposition:
    """Collects the metrics of one state; register once, scrape as often as wanted."""

    def __init__(
        self, state: State, runner: Runner, reading: Reading, wholeness: Wholeness, events: Events, *, version: str
    ) -> None:
        self.state = state
        self.runner = runner
        self.events = events
        self._version = version
        self._cells = CellFamilies(state, reading.measuring)
        self._stores = StoreFamilies(state, runner, wholeness, reading.runway)
        self._started_s = time.monotonic()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def gather(self) -> Iterator[None]:
        """Measure what the next `text` says, in steps of milliseconds."""
        return self._cells.gather()

    def text(self) -> str:
        """The exposition, as ``m17ctl metrics`` prints it: of what was gathered before, or of now, all at once."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Every metric family; called by prometheus_client."""
        yield from self._cells.families()
        yield from self._engines()
        yield from self._commits()
        yield from self._recomputes()
        yield from self._numbers()
        yield from self._stores.families()
        yield from self._operator()
        yield from self._socket()
        yield from self._process()

    # ---- engines

    def _engines(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "m17_engine_state",
            "1 for the state that an engine is in, 0 for the others; failed and degraded want a look at: m17ctl engines list.",
            labels=["engine", "state"],
        )
        backlog = GaugeMetricFamily(
            "m17_engine_backlog_tasks",
            "Tasks that an engine knows of and has not done; it should fall to 0 between sessions.",
            labels=["engine"],
        )
        busy = CounterMetricFamily(
            "m17_worker_busy_seconds",
            "Seconds that workers spent on tasks of an engine; its rate over m17_workers is the share of work.",
            labels=["engine"],
        )
        progress = GaugeMetricFamily(
            "m17_engine_progress_ratio",
            "How much of what it has to do an engine has done, files by their bytes read; absent while it has nothing to do.",
            labels=["engine"],
        )
        for name, engine in self.runner.engines.items():
            now = self.runner.health(name).state
            for one in ENGINE_STATES:
                state.add_metric([name, one], float(one == now))
            backlog.add_metric([name], engine.backlog())
            busy.add_metric([name], self.runner.busy_s(name))
            done = self.runner.progress(name)
            if done is not None and done.total:
                progress.add_metric([name], done.done / done.total)
        yield from (state, backlog, busy, progress)
        size = self.runner.pool.workers.size
        yield _gauge("m17_workers", "Worker places of the daemon.", size)
        share = len(self.runner.pool.workers.running()) / max(1, size)
        yield _gauge(
            "m17_workers_busy_ratio", "Share of the worker places at work now; 1 for long means too few.", share
        )

    def _commits(self) -> Iterator[Metric]:
        tasks = CounterMetricFamily(
            "m17_engine_tasks",
            "Tasks since the start by how they ended; failed ones are kept until: m17ctl engines retry.",
            labels=["engine", "outcome"],
        )
        deaths = CounterMetricFamily(
            "m17_worker_deaths",
            "Workers that died over a task of the engine; its task is tried again.",
            labels=["engine"],
        )
        cells = CounterMetricFamily(
            "m17_mutations",
            "Cells that engines wrote since the start: applied, unchanged (equal content), dropped (somebody wrote first), held_back (the better source had far fewer rows).",
            labels=["engine", "outcome"],
        )
        latency = HistogramMetricFamily(
            "m17_mutation_latency_seconds",
            "From a batch handed in to its last cell set, the sync of its records included.",
            labels=["engine"],
        )
        for name, counts in self.runner.counts.items():
            tasks.add_metric([name, "done"], counts.tasks)
            tasks.add_metric([name, "failed"], counts.failed)
            deaths.add_metric([name], counts.deaths)
            cells.add_metric([name, "applied"], counts.cells)
            cells.add_metric([name, "unchanged"], counts.unchanged)
            cells.add_metric([name, "dropped"], counts.dropped)
            cells.add_metric([name, "held_back"], counts.held_back)
            latency.add_metric([name], counts.latency.cumulative(), counts.latency.sum_s)
        settled = self.runner.settled
        cells.add_metric(["settling", "applied"], settled.applied)
        cells.add_metric(["settling", "unchanged"], settled.unchanged)
        yield from (tasks, deaths, cells, latency)

    def _recomputes(self) -> Iterator[Metric]:
        repaired = CounterMetricFamily(
            "m17_repaired_cells",
            "Cells that were cleared or asked for again and hold a payload again; its rate is the repair throughput.",
            labels=["column"],
        )
        remade = CounterMetricFamily(
            "m17_recomputed_cells",
            "Filled cells made again because an input or the recipe changed; many, again and again, say that a source flaps.",
            labels=["column"],
        )
        every: list[EngineCounts | Counts] = [*self.runner.counts.values(), self.runner.settled]
        for column in Column:
            repaired.add_metric([column.value], sum(one.repaired[column] for one in every))
            remade.add_metric([column.value], sum(one.remade[column] for one in every))
        yield from (repaired, remade)
        by_curve = CounterMetricFamily(
            "m17_recomputed_by_curve_cells",
            f"Greeks made again, by the date of the curve they were made with; curves before the newest {CURVES_SHOWN} are one.",
            labels=["curve"],
        )
        for date, number in self._curves().items():
            by_curve.add_metric([date], number)
        yield by_curve

    def _curves(self) -> dict[str, int]:
        """Recomputed cells by curve date, newest first, the rest as ``older``."""
        numbers: dict[str, int] = {}
        for counts in self.runner.counts.values():
            for payload_id, number in counts.remade_by_curve.items():
                date = self._stores.curve_date(payload_id)
                numbers[date] = numbers.get(date, 0) + number
        newest = sorted(numbers, reverse=True)
        shown = {date: numbers[date] for date in newest[:CURVES_SHOWN]}
        if len(newest) > CURVES_SHOWN:
            shown["older"] = sum(numbers[date] for date in newest[CURVES_SHOWN:])
        return shown

    def _numbers(self) -> Iterator[Metric]:
        """What engines count themselves."""
        engines = self.runner.engines.items()
        families, left_out = engine_families(
            {name: one.numbers() for name, one in engines if isinstance(one, Numbered)}
        )
        yield from families
        yield _gauge("m17_metrics_left_out", "Series left out because an engine has too many; 0 is right.", left_out)

    # ---- operators, socket, process

    def _operator(self) -> Iterator[Metric]:
        cells = CounterMetricFamily(
            "m17_operator_cells",
            "Cells that operators cleared, asked for again (refresh) or took back (undo) since the start.",
            labels=["operation", "column"],
        )
        for operation, columns in self.events.operator.items():
            for column in Column:
                cells.add_metric([operation, column.value], columns[column])
        yield cells

    def _socket(self) -> Iterator[Metric]:
        requests = SummaryMetricFamily(
            "m17_request_seconds",
            "Requests by operation, and how long the daemon took to answer them or to begin their stream.",
            labels=["operation"],
        )
        for operation, latency in sorted(self.events.requests.items()):
            requests.add_metric([operation], latency.count, latency.sum_s)
        yield requests
        counters = self.events.socket
        if counters is not None:
            yield _counter("m17_request_failures", "Requests that were refused or failed.", counters.failures)
            yield _counter(
                "m17_internal_errors", "Requests that met a fault of M17; the log has each.", counters.internal
            )
            yield _counter(
                "m17_replies_dropped", "Replies that a client did not take in time.", counters.replies_dropped
            )
            yield _counter(
                "m17_events_lost",
                "Events that slow subscribers of watch did not get; they are told.",
                counters.events_lost,
            )

    def _process(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("m17_build_info", "1, labelled with the version that runs.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info
        yield _gauge("m17_uptime_seconds", "Seconds since this daemon started.", time.monotonic() - self._started_s)
        yield _gauge(
            "m17_loop_lag_seconds",
            "Longest turn of the daemon's loop in the last minute or two, waiting left out; requests wait this long.",
            self.events.loop_lag_s(),
        )
        yield from self._steps()
        yield _gauge("m17_open_files", "Open descriptors of the daemon.", len(os.listdir("/proc/self/fd")))
        yield _gauge("m17_resident_bytes", "Resident memory of the daemon, mapped ledgers included.", _resident_bytes())
        calendar, now_ns = self.state.calendar, self.state.system.now_ns()
        closes = calendar.open_ns + calendar.minutes.astype(np.int64) * WINDOW_NS
        open_now = bool(((calendar.open_ns <= now_ns) & (now_ns < closes)).any())
        yield _gauge("m17_session_open", "1 while the exchange is open, 0 outside the sessions of the year.", open_now)
        active = calendar.open_ns[0] - _WEEK_NS <= now_ns <= closes[-1] + _WEEK_NS
        yield _gauge("m17_year_active", "1 while today lies in the year of the state, 0 for an archived year.", active)

    def _steps(self) -> Iterator[Metric]:
        longest = GaugeMetricFamily(
            "m17_loop_step_seconds",
            "Longest step of the daemon's loop in the last minute or two, by what it did; whoever asked meanwhile waited for it.",
            labels=["step"],
        )
        slow = CounterMetricFamily(
            "m17_loop_slow_steps",
            f"Steps that took longer than {SLOW_S * 1e3:.0f} ms, by what they did.",
            labels=["step"],
        )
        for step, seconds in self.events.turns.longest().items():
            longest.add_metric([step], seconds)
        for step, times in self.events.turns.slow.items():
            slow.add_metric([step], times)
        yield longest
        yield slow


_WEEK_NS: Final = 7 * 86_400 * 10**9


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=float(value))


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def engine_families(numbers: Mapping[str, Sequence[Number]]) -> tuple[list[Metric], int]:
    """Numbers by engine as metric families, one a name; and how many series were left out where an engine has too many."""
    families: dict[str, Metric] = {}
    for engine, all_of_one in numbers.items():
        for number in all_of_one[:SERIES_MAX]:
            name = f"m17_{number.name}"
            if name not in families:
                family = CounterMetricFamily if number.counter else GaugeMetricFamily
                families[name] = family(name, number.help, labels=["engine", *number.labels])
            families[name].add_metric([engine, *number.labels.values()], number.value)  # type: ignore[attr-defined]
    return list(families.values()), sum(max(0, len(one) - SERIES_MAX) for one in numbers.values())
