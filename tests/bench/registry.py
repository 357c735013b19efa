"""
Which benchmarks there are, and how one is run.

A benchmark is a module ``tests/**/bench_*.py`` with ``measure() -> dict | list of dict``: ``name``, ``value``, ``unit``,
``reach``, ``ok`` and ``detail`` (the figures of both sides). ``measure`` takes its own medians, of at least five rounds
in turns: :func:`in_turns` does that. Their names stand in the source as ``"name": "..."``, as keys of a dict ``REACH``
or in a tuple ``NAMES``, so that they can be listed without importing. A figure that could not be taken has the value
None and is not ok. Each module runs in a process of its own, so that memory and imports of one are not charged to another. This
module must never know a single benchmark.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypedDict

ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 1800.0
ROUNDS: Final = 5


class Result(TypedDict):
    """One figure. ``value`` and ``reach`` are null where it could not be taken; ``detail`` then says why."""

    name: str
    value: float | None
    unit: str
    reach: float | None
    ok: bool
    detail: dict[str, Any]


def discover(folder: Path) -> list[Path]:
    """Benchmark modules below a folder, in the order of their paths."""
    return sorted(folder.rglob("bench_*.py"))


def names_of(path: Path) -> tuple[str, ...]:
    """Names of a module's figures as its source spells them; nothing is imported."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            held, value = {"NAMES": ast.Tuple, "REACH": ast.Dict}.get(ast.unparse(target)), node.value
            if held is not None and value is not None and isinstance(value, held):
                return tuple(ast.literal_eval(value))
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            names += [
                value.value
                for key, value in pairs
                if isinstance(key, ast.Constant)
                and key.value == "name"
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ]
    return tuple(names)


def run_module(path: Path) -> list[Result]:
    """Import a benchmark module and measure, in this process."""
    module = importlib.import_module(".".join(path.resolve().relative_to(ROOT).with_suffix("").parts))
    measured = module.measure()
    return [check(each) for each in (measured if isinstance(measured, list) else [measured])]


def check(measured: dict[str, Any]) -> Result:
    """
    A figure as the table and the JSON need it.

    Raises:
        ValueError: a field is missing or unknown, or the value is not a finite number (None is: not taken).
    """
    if set(measured) != set(Result.__annotations__):
        raise ValueError(f"a figure has the fields {sorted(Result.__annotations__)}, not {sorted(measured)}")
    value, reach = measured["value"], measured["reach"]
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{measured['name']}: {value} is no figure")
    return Result(
        name=str(measured["name"]),
        value=None if value is None else float(value),
        unit=str(measured["unit"]),
        reach=None if reach is None else float(reach),
        ok=bool(measured["ok"]) and value is not None,
        detail=dict(measured["detail"]),
    )


def run_in_process(path: Path, *, timeout_s: float = TIMEOUT_S) -> list[Result]:
    """Measure in a new Python; where that fails, one result per name that is not ok and says why."""
    with tempfile.TemporaryDirectory(prefix="m17-bench-") as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "-m", "tests.bench", "--module", str(path), "--out", str(out)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return failed(path, f"no end after {timeout_s:.0f} s")
        if done.returncode != 0 or not out.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            return failed(path, said[-1] if said else f"ended with {done.returncode} and said nothing")
        results: list[Result] = json.loads(out.read_text())
    return results or failed(path, "measured nothing")


def failed(path: Path, reason: str) -> list[Result]:
    """The results of a benchmark that could not be taken, and why."""
    names = names_of(path) or (path.stem.removeprefix("bench_"),)
    return [Result(name=n, value=None, unit="", reach=None, ok=False, detail={"error": reason}) for n in names]


def in_turns(*sides: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, ...]:
    """
    Median seconds of each side, timed in turns so that what disturbs the machine disturbs all.

    Every side runs once before the clock starts, to compile and to warm.
    """
    for side in sides:
        side()
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for index, side in enumerate(sides):
            begin = time.perf_counter()
            side()
            taken[index].append(time.perf_counter() - begin)
    return tuple(statistics.median(seconds) for seconds in taken)
