"""The alert rules and the dashboard: every metric they name exists, what they tell people to type exists, and they fire."""

from __future__ import annotations

import ast
import functools
import json
import logging
import operator
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from engines.contract import Number
from engines.feed_numbers import FeedNumbers
from ledger.columns import Column
from ledger.sources import SourceState
from m17ctl.main import MODULES
from m17d.config import read_config
from m17d.daemon import Daemon
from m17d.exposition import ENGINE_STATES, engine_families
from m17d.exposition_cells import QUALITIES, STATUSES
from tests.m17d import flat_files

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "m17-alerts.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
PANELS: list[dict[str, Any]] = [
    panel for panel in json.loads((DEPLOY / "grafana" / "m17.json").read_text())["panels"] if panel["type"] != "row"
]
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
}
WORDS: dict[str, set[str]] = {
    "column": set(Column),
    "status": set(STATUSES),
    "quality": set(QUALITIES),
    "cause": {"seal", "dangling", "pending", "unreachable", "denied"},
    "outcome": {"done", "failed"},
}
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
SIMPLE = re.compile(
    r"(?P<name>m17_\w+)(?:\{(?P<labels>[^}]*)\})? (?P<op>[<>]|==) (?P<limit>[\d.* ]+?)"
    r"(?: and on \(instance, job\) (?P<gate>m17_\w+) == 1)?"
)
Samples = dict[str, list[tuple[dict[str, str], float]]]
ENGINES = Path(__file__).resolve().parents[2] / "engines"
SPECIFIED = {
    "mutation latency": "m17_mutation_latency_seconds_bucket",
    "mutation throughput": "m17_mutations_total",
    "per-column lag": "m17_window_lag_minutes",
    "symbol-cardinality usage": "m17_symbols",
    "priority-region backlog": "m17_priority_backlog_minutes",
    "mapping-file growth": "m17_payload_map_bytes",
    "count of cleared refs": "m17_operator_cells_total",
    "repair throughput": "m17_repaired_cells_total",
    "slot-status ratios": "m17_slot_ratio",
    "treasury: curve lag": "m17_curves_behind",
    "treasury: recomputes by curve": "m17_recomputed_by_curve_cells_total",
    "flat files: record count": "m17_source_rows",
    "flat files: file offsets": "m17_engine_progress_ratio",
    "flat files: retries": "m17_rest_retries_total",
    "websocket: lag": "m17_feed_lag_seconds",
    "websocket: dropped messages": "m17_feed_drops_total",
    "websocket: reconnects": "m17_feed_reconnects_total",
    "quotes: NBBO coverage": "m17_nbbo_coverage_ratio",
    "nbbo: dependency lag": "m17_dependency_lag_minutes",
    "nbbo: recomputes": "m17_recomputed_cells_total",
    "aggregation: backlog": "m17_engine_backlog_tasks",
    "engines: busy share": "m17_worker_busy_seconds_total",
    "daemon: loop lag": "m17_loop_lag_seconds",
    "disk: runway": "m17_disk_runway_sessions",
}
"""What the specification and its issue want to be seen, and the series that is looked at for it."""
NOT_DRAWN = {
    "m17_artifacts": "its bytes are",
    "m17_build_info": "a label for whoever joins",
    "m17_workers_busy_ratio": "the rate of m17_worker_busy_seconds says it without sampling",
    "m17_curves": "how many are missing is drawn",
    "m17_download_resumed_bytes": "part of the downloaded bytes",
    "m17_relinked_windows": "part of the recomputed cells",
    "m17_metrics_left_out": "0 unless an engine of somebody else has too many series",
}
"""Families that no panel and no rule shows, each with its reason."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What a daemon with every kind of number says: name -> labels and value of each series."""
    folder = tmp_path_factory.mktemp("monitored")
    flat_files.write_config(folder, ["2013-05-01"], engines="trade_flatfile quote")
    with (folder / "m17.toml").open("a") as file:
        file.write(
            '[engines.treasury]\nsource = "curves.json"\n[engines.nbbo]\n[engines.greeks]\n[engines.aggregation]\n'
        )
    daemon = Daemon(read_config(folder / "m17.toml"), logging.getLogger("m17d-test"))
    try:
        text = daemon.handlers.exposition.text()
    finally:
        daemon.close()
    found: Samples = {}
    feed = FeedNumbers(events=1, drops={"late": 1}, connected=True, newest_ns=1).numbers(2)
    curve = Number("curve_age_seconds", "Age.", 1.0)
    for family in [*text_string_to_metric_families(text), *engine_families({"trade_ws": [*feed, curve]})[0]]:
        found.setdefault(family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    # Absent until there is something to say: the newest session's shares, and the room each session takes.
    from_records = ("nbbo_coverage_ratio", "unknown_aggressor_ratio", "tied_trades_ratio", "usable_greeks_ratio")
    for name in (*from_records, "disk_runway_sessions", "whole_ratio"):
        found.setdefault(f"m17_{name}", [])
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_of_an_expression_exists(name: str, samples: Samples) -> None:
    """A panel over a name that nothing gives is empty for ever, an alert over it never fires."""
    names = set(re.findall(r"\bm17_\w+", EXPRESSIONS[name]))
    known = set(samples) | {"m17_mutation_latency_seconds_bucket", "m17_request_seconds_count"}
    known |= {f"{one}_total" for one in samples}
    known |= {f"{one}{ending}" for one in numbers_of_engines() for ending in ("", "_total")}

    assert names
    assert names <= known


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_label_values_of_an_expression_are_words_that_occur(name: str) -> None:
    """``column="trades_ref"`` would never match."""
    for label, value in re.findall(r'(\w+)=~?"([^"$]+)"', EXPRESSIONS[name]):
        allowed = WORDS.get(label)
        if label == "state":
            allowed = set(ENGINE_STATES) if "m17_engine_state" in EXPRESSIONS[name] else set(SourceState)
        if label == "engine":
            allowed = {"nbbo", "greeks", "aggregation"}
        assert allowed is not None, label
        assert set(value.split("|")) <= allowed


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_look_at(rule: dict[str, Any]) -> None:
    """A page or a ticket, a summary, and commands that exist."""
    summary = rule["annotations"]["summary"]
    commands = re.findall(r"m17ctl ([a-z]+)", summary)

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(commands) <= set(MODULES)
    assert (
        commands or "systemctl" in summary or "journalctl" in summary or rule["alert"].startswith(("M17Feed", "M17Pay"))
    )


@functools.cache
def numbers_of_engines() -> set[str]:
    """Families that engines count themselves, as their source spells them."""
    calls = (
        node
        for path in ENGINES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Number"
    )
    named = (call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant))
    return {f"m17_{name}" for name in named if isinstance(name, str)}


def test_every_family_is_drawn_or_says_why_not(samples: Samples) -> None:
    """The newest metric too: whoever adds one adds where it is looked at."""
    shown = {name.removesuffix("_total") for one in EXPRESSIONS.values() for name in re.findall(r"\bm17_\w+", one)}
    shown |= {name.removesuffix("_bucket").removesuffix("_count") for name in shown}
    suffixes = ("_total", "_created", "_bucket", "_count", "_sum")
    families = {name for name in samples if not name.endswith(suffixes)} | numbers_of_engines()
    assert len(numbers_of_engines()) > 15
    assert families - shown == set(NOT_DRAWN)


@pytest.mark.parametrize("what", SPECIFIED)
def test_what_the_specification_names_is_looked_at(what: str) -> None:
    """By a panel or a rule."""
    assert any(re.search(rf"\b{SPECIFIED[what]}\b", one) for one in EXPRESSIONS.values()), SPECIFIED[what]


def test_the_specification_is_alerted_on() -> None:
    """Lag, staleness, enrichment backlog, repeated recomputes, stuck regions; and space, damage and dead engines."""
    wanted = {
        "M17TradesLate", "M17QuotesStale", "M17EnrichmentBacklog", "M17CurveRevisionsRecompute", "M17RegionStuck",
        "M17RegionOld", "M17DiskRunwayShort", "M17WritesBlocked", "M17SourceDamaged", "M17EngineFailed", "M17Absent",
    }  # fmt: skip
    assert wanted <= set(EXPRESSIONS)
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def fires(rule: dict[str, Any], samples: Samples) -> bool | None:
    """Whether a rule of the form METRIC{LABELS} OP NUMBER [and GATE == 1] holds; None for a rule of another form."""
    match = SIMPLE.fullmatch(rule["expr"])
    if match is None:
        return None
    wanted = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"] or ""))
    limit = 1.0
    for factor in match["limit"].split("*"):
        limit *= float(factor)
    gate = match["gate"] is None or any(value == 1 for _, value in samples.get(match["gate"], []))
    return gate and any(
        OPERATORS[match["op"]](value, limit)
        for labels, value in samples.get(match["name"], [])
        if wanted.items() <= labels.items()
    )


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if SIMPLE.fullmatch(rule["expr"])], ids=lambda rule: rule["alert"]
)
def test_a_simple_rule_fires_beyond_its_limit_and_not_before(rule: dict[str, Any], samples: Samples) -> None:
    """Evaluated here too, for places without promtool: at the limit's other side it is silent, beyond it fires."""
    match = SIMPLE.fullmatch(rule["expr"])
    assert match is not None
    limit = 1.0
    for factor in match["limit"].split("*"):
        limit *= float(factor)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"] or ""))
    calm, wild = {">": (limit, limit + 1), "<": (limit, limit / 2), "==": (1 - limit, limit)}[match["op"]]
    gates: Samples = {match["gate"]: [({}, 1.0)]} if match["gate"] else {}

    assert fires(rule, {match["name"]: [(labels, calm)], **gates}) is False
    assert fires(rule, {match["name"]: [(labels, wild)], **gates}) is True
    if match["gate"]:
        assert fires(rule, {match["name"]: [(labels, wild)], match["gate"]: [({}, 0.0)]}) is False


def test_most_rules_are_simple_and_a_fresh_daemon_fires_none_of_them(samples: Samples) -> None:
    """A daemon that has nothing to do and waits for its first file is no reason to wake anybody."""
    evaluated = {rule["alert"]: fires(rule, samples) for rule in RULES}
    # The feed of the fixture has not said anything since 1970.
    assert [name for name, found in evaluated.items() if found] == []
    assert sum(found is not None for found in evaluated.values()) >= 18


def test_every_rule_is_tested_below_its_limit_and_beyond() -> None:
    """The newest rule too: promtool's tests expect it to be silent at a time, and to fire at another."""
    tests = yaml.safe_load((ALERTS.parent / "m17-alerts.test.yml").read_text())["tests"]
    expected = [(one["alertname"], bool(one["exp_alerts"])) for test in tests for one in test["alert_rule_test"]]

    for fires_then in (False, True):
        assert {name for name, fired in expected if fired is fires_then} == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("arguments", [["check", "rules", "m17-alerts.yml"], ["test", "rules", "m17-alerts.test.yml"]])
def test_promtool_agrees(arguments: list[str]) -> None:
    """The rules are valid, and their unit tests pass."""
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=ALERTS.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_laid_out() -> None:
    """Panels have titles, descriptions, distinct ids, and do not lie over each other."""
    places: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
