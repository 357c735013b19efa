"""
The metrics of what lies on disk and what comes from outside: mapping files, symbols, space, sources, regions.

This module must never walk a directory: what it needs is in memory, or one ``stat`` away.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ledger.columns import Dataset, PayloadKind
from ledger.sources import SourceState
from ledger.state import State
from m17d.runner import Runner
from m17d.runway import SESSIONS, Runway
from m17d.wholeness import Wholeness


class StoreFamilies:
    """The families of one state's stores, sources and regions."""

    def __init__(self, state: State, runner: Runner, wholeness: Wholeness, runway: Runway) -> None:
        self._state = state
        self._runner = runner
        self._wholeness = wholeness
        self._runway = runway

    def families(self) -> Iterator[Metric]:
        """Every family."""
        yield from self._maps()
        yield from self._symbols()
        yield from self._space()
        yield from self._sources()
        yield from self._regions()

    def curve_date(self, payload_id: int) -> str:
        """Date of the curve of an rf_rate record, YYYY-MM-DD; ``none`` where there is no such record."""
        date = int(self._state.maps[PayloadKind.RF_RATE].get_many(np.array([payload_id]))[0]["curve_date"])
        return f"{date // 10_000:04d}-{date // 100 % 100:02d}-{date % 100:02d}" if date else "none"

    def _maps(self) -> Iterator[Metric]:
        records = GaugeMetricFamily(
            "m17_payload_records",
            "Payload ids given, by mapping file; ids end at 4294967295, gaps after crashes included.",
            labels=["kind"],
        )
        size = GaugeMetricFamily("m17_payload_map_bytes", "Size of a mapping file; it only grows.", labels=["kind"])
        for kind in PayloadKind:
            if kind is not PayloadKind.NONE:
                records.add_metric([kind.word], self._state.maps[kind].record_count)
                size.add_metric([kind.word], self._state.maps[kind].logical_bytes)
        yield from (records, size)
        runway = self._runway
        runway.look()
        yield GaugeMetricFamily("m17_artifacts", "Artifacts that records point into.", value=runway.artifacts)
        total = sum(runway.artifact_bytes.values())
        yield GaugeMetricFamily("m17_artifact_bytes", "Bytes of these artifacts, as they were written.", value=total)

    def _symbols(self) -> Iterator[Metric]:
        symbols = self._state.symbols
        yield GaugeMetricFamily("m17_symbols", "Symbols that have an id this year.", value=len(symbols))
        yield GaugeMetricFamily("m17_symbols_max", "Symbols that may have an id this year.", value=symbols.symbols_max)
        refused = len(self._runner.refused)
        yield GaugeMetricFamily(
            "m17_symbols_refused",
            "Symbols that the cap refused since the start; their rows are in no cell.",
            value=refused,
        )
        recovered = CounterMetricFamily(
            "m17_recovered_cells",
            "Cells that were set right when their session was mapped: broken seals, cells without record, old claims.",
            labels=["cause"],
        )
        for cause in ("seal", "dangling", "pending"):
            recovered.add_metric([cause], sum(getattr(report, cause) for report in self._state.repairs))
        yield recovered

    def _space(self) -> Iterator[Metric]:
        disk = shutil.disk_usage(self._state.directory)
        yield GaugeMetricFamily(
            "m17_disk_free_bytes", "Free bytes on the file system of the state directory.", value=disk.free
        )
        yield GaugeMetricFamily("m17_disk_bytes", "Size of that file system.", value=disk.total)
        each = self._runway.look().session_bytes
        if each:
            text = f"Sessions for which there is room, if each takes what the newest {SESSIONS} filled ones took."
            yield GaugeMetricFamily("m17_disk_runway_sessions", text, value=disk.free / each)
        blocked = float(bool(self._runner.blocked))
        yield GaugeMetricFamily(
            "m17_writes_blocked", "1 while nothing can be written, such as on a full disk; engines wait.", value=blocked
        )
        read_only = float(self._state.failure is not None)
        yield GaugeMetricFamily(
            "m17_state_read_only",
            "1 after a sync failed: nothing is written until the daemon is restarted.",
            value=read_only,
        )

    def _sources(self) -> Iterator[Metric]:
        sources = GaugeMetricFamily(
            "m17_sources",
            "Upstream files and streams by state; damaged ones are named by: m17ctl status.",
            labels=["state"],
        )
        rows = GaugeMetricFamily(
            "m17_source_rows",
            "Rows of the known sources by dataset, rejected ones and those outside the session included.",
            labels=["dataset"],
        )
        counts, rows_of = dict.fromkeys(SourceState, 0), dict.fromkeys(Dataset, 0)
        rejected = quarantined = 0
        for record in self._state.sources.all():
            counts[record.state] += 1
            rows_of[Dataset(record.dataset)] += record.rows
            rejected += sum(record.rejected.values())
            quarantined += len(record.quarantined)
        for state, number in counts.items():
            sources.add_metric([state.value], number)
        for dataset, number in rows_of.items():
            rows.add_metric([dataset.value], number)
        yield from (sources, rows)
        yield GaugeMetricFamily(
            "m17_rejected_rows", "Rows of the known sources that were refused for their values.", value=rejected
        )
        yield GaugeMetricFamily(
            "m17_quarantined_lines", "Unreadable lines of the known sources that were left out.", value=quarantined
        )

    def _regions(self) -> Iterator[Metric]:
        state, now_ns = self._state, self._state.system.now_ns()
        outstanding = state.regions.outstanding()
        left, stuck = self._wholeness.backlog()
        yield GaugeMetricFamily(
            "m17_priority_regions", "Priority regions that are not whole yet.", value=len(outstanding)
        )
        yield GaugeMetricFamily(
            "m17_priority_regions_stuck", "Of these, regions whose engine is paused, failed or missing.", value=stuck
        )
        yield GaugeMetricFamily(
            "m17_priority_backlog_minutes",
            "Windows of these regions that are not whole yet, as of a second ago.",
            value=left,
        )
        age = max(((now_ns - region.created_ns) / 1e9 for region in outstanding), default=0.0)
        yield GaugeMetricFamily(
            "m17_priority_region_age_seconds", "Age of the oldest region that is not whole.", value=age
        )
