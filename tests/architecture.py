"""
The import rules of the house as data, and how sources are read against them.

One table, :data:`ROOMS`: the first room that matches a module says what it may import, and why nothing else. The tests
are in ``test_architecture.py``. This file reads sources as text and must never import what it judges.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("ledger", "engines", "m17d", "m17ctl")

WIRE: Final = ("m17d.protocol", "m17d.outcomes", "m17d.replies", "m17d.envelopes")
SOCKET: Final = (
    *("m17d.server", "m17d.guard", "m17d.listening", "m17d.outgoing"),
    *("m17d.peers", "m17d.pushing", "m17d.streams"),
)
KERNELS: Final = (
    *("engines.*.kernel*", "engines.greeks.pricing", "engines.nbbo.in_force", "engines.nbbo.sides"),
    *("engines.aggregation.density", "engines.aggregation.dip", "engines.aggregation.moments"),
    *("engines.aggregation.ordered", "engines.aggregation.statistics"),
)
"""Compiled modules; with the one that gives them numba they are what only workers import."""

HEAVY: Final = {
    "numba": "compiling belongs to workers: 400 ms and 100 MB that the daemon would carry for nothing",
    "polars": "a thread pool beside the thread that owns ledger and socket, and 100 ms of start",
    "pyarrow": "30 MB and 100 ms of start; artifacts are read and written in workers",
    "exchange_calendars": "330 ms and 118 MB; it runs in a process of its own when a year is created",
    "pandas": "comes with exchange_calendars only",
    "websockets": "feeds run in spawned processes; the daemon takes what they made",
    "scipy": "checks kernels in tests, computes nothing",
}
"""What the daemon's process never loads at start."""


@dataclass(frozen=True)
class Import:
    """One imported module: where, whether inside a function, and whether for type checkers only."""

    line: int
    name: str
    lazy: bool
    typing: bool = False


@dataclass(frozen=True)
class Room:
    """``modules`` may import ``house`` and ``outside``; those in ``lazy`` only inside functions; and ``why``."""

    modules: tuple[str, ...]
    why: str
    house: tuple[str, ...] = ()
    outside: frozenset[str] = field(default_factory=frozenset)
    lazy: frozenset[str] = field(default_factory=frozenset)
    not_house: tuple[str, ...] = ()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ROOMS: Final = (
    Room(("ledger.columns",), "the words are everybody's: standard library only"),
    Room(("ledger",), "importing the package must cost nothing, or m17ctl pays for it", lazy=_names("ledger.state")),
    Room(
        ("ledger.frames", "ledger.asof"),
        "frames for users: their libraries load when a frame is asked for, not when a state is opened",
        house=("ledger.*",),
        outside=_names("numpy msgspec"),
        lazy=_names("polars pyarrow"),
    ),
    Room(
        ("ledger.*",),
        "the state of record is importable alone and knows no engine, socket, process or config file",
        house=("ledger.*",),
        outside=_names("numpy msgspec zstandard"),
    ),
    Room(("engines",), "the package names its rooms and loads none"),
    Room(
        ("engines.contract",),
        "what daemon and engines agree on must load in both for nothing",
        house=("ledger.columns",),
        outside=_names("numpy"),
    ),
    Room(
        ("engines.feeds", "engines.feeds.*"),
        "feeds turn files, REST and websockets into arrays; a feed that knew the ledger could not be used beside it",
        house=("engines.compiled", "engines.feeds", "engines.feeds.*", "ledger.columns"),
        outside=_names("numpy msgspec polars pyarrow isal obstore websockets zstandard"),
    ),
    Room(
        ("engines.*",),
        "engines meet in cells only: they know the ledger, the contract and the feeds, not the daemon, not each other",
        house=(
            "ledger",
            "ledger.*",
            "engines.contract",
            "engines.compiled",
            "engines.feeds",
            "engines.feeds.*",
            "engines.raw",
            "engines.raw_*",
            "engines.contract_universe",
            "engines.hours",
            "engines.pauses",
            "engines.rest_*",
            "engines.relink*",
            "engines.symbol_globs",
            "engines.staging",
            "engines.derivation",
            "engines.derived_rows",
            "engines.looking",
            "engines.opening",
            "engines.derived",
            "engines.offers",
            "engines.scope",
            "engines.feed_numbers",
            "engines.live",
            "engines.live_*",
        ),
        outside=_names("numpy msgspec polars pyarrow numba zstandard"),
    ),
    Room(
        WIRE,
        "the messages are a leaf: the CLI loads them, so they may cost msgspec and nothing more",
        house=("ledger.columns", *WIRE),
        outside=_names("msgspec"),
    ),
    Room(
        SOCKET,
        "the server knows bytes and sockets; with the ledger in hand it would answer without the handlers",
        house=("ledger.columns", "m17d.turns", *WIRE, *SOCKET),
        outside=_names("msgspec zmq"),
    ),
    Room(
        ("m17d.daemon", "m17d.main", "m17d.__main__", "m17d.estimate"),
        "the composition root knows everything of the daemon, and nothing of its clients",
        house=("ledger", "ledger.*", "engines", "engines.*", "m17d.*"),
        outside=_names("msgspec numpy prometheus_client typer zmq"),
        lazy=_names("rich"),
    ),
    Room(
        ("m17d.demo", "m17d.demo.*", "m17d.demo_*"),
        "the demo stands where an operator stands: it may use the client, and the generator of synthetic sessions",
        house=("ledger", "ledger.*", "engines.feeds.*", "m17d.*", "m17ctl.*"),
        outside=_names("msgspec numpy"),
        lazy=_names("duckdb polars pyarrow rich"),
    ),
    Room(
        ("m17d.replay", "m17d.replay_*"),
        "replay is an upstream of its own: it plays files and serves sockets, and knows no ledger and no daemon",
        house=("engines.feeds.*", "ledger.columns", "ledger.roots", "m17d.replay", "m17d.replay_*"),
        outside=_names("msgspec numpy polars websockets"),
    ),
    Room(
        ("m17d", "m17d.*"),
        "what is behind the server deals in meaning and knows no socket, so that it can be tested without one",
        house=("ledger", "ledger.*", "engines", "engines.contract", "engines.feeds.*", "m17d.*"),
        not_house=(
            "m17d.server",
            "m17d.guard",
            "m17d.listening",
            "m17d.outgoing",
            "m17d.pushing",
            "m17d.main",
            "m17d.replay",
            "m17d.replay_*",
        ),
        outside=_names("msgspec numpy prometheus_client"),
    ),
    Room(
        ("m17ctl.artifacts", "m17ctl.artifacts_*"),
        "the client reads Parquet itself; the daemon answers URIs and row ranges",
        house=("ledger.columns", *WIRE, "m17ctl.*"),
        outside=_names("msgspec numpy polars pyarrow obstore"),
    ),
    Room(
        ("m17ctl.tui", "m17ctl.tui.*", "m17ctl.tui_*"),
        "the terminal interface brings its own toolkit; no other command pays for it",
        house=("ledger.columns", *WIRE, "m17ctl.*"),
        outside=_names("msgspec textual rich"),
        lazy=_names("polars"),
    ),
    Room(
        ("m17ctl.client", "m17ctl.connection"),
        "one place for the transport and its errors",
        house=("ledger.columns", *WIRE, "m17ctl.*"),
        outside=_names("msgspec zmq"),
    ),
    Room(
        ("m17ctl", "m17ctl.*"),
        "the client knows the messages and nothing else of the daemon; a person waits for its start",
        house=("ledger.columns", *WIRE, "m17ctl", "m17ctl.*"),
        outside=_names("msgspec typer"),
        lazy=_names("rich"),
    ),
)


def sources() -> dict[str, Path]:
    """Every module of the project by its dotted name, sorted."""
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(
    tree: ast.AST, modules: Mapping[str, object], *, lazy: bool = False, typing: bool = False
) -> Iterator[Import]:
    """
    Every import below ``tree``. ``from package import name`` counts as ``package.name`` where that is a module.

    Args:
        modules: names of the project's modules.
        lazy: whether the tree is already inside a function.
        typing: whether it is already inside ``if TYPE_CHECKING``, which never runs.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(node.lineno, full if full in modules else base, lazy, typing)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports_of(node, modules, lazy=lazy or function or guarded, typing=typing or guarded)


def room_of(module: str) -> Room:
    """The first room of the table that matches; every module has one."""
    return next(room for room in ROOMS if matches(module, room.modules))


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted name matches one of the patterns (``*`` crosses dots)."""
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def objection(module: str, found: Import) -> str | None:
    """Why ``module`` may not import ``found``, or None where it may."""
    room, name = room_of(module), found.name
    top = name.partition(".")[0]
    if name.startswith("."):
        return "imports are absolute: a search for a module finds all its users"
    if top in sys.stdlib_module_names or (found.typing and top not in PACKAGES):
        return None
    if top in PACKAGES:
        own_engine = module.split(".")[1:2] if module.startswith("engines.") else []
        own = bool(own_engine) and name.split(".")[:2] == ["engines", *own_engine]
        allowed = (own or matches(name, room.house)) and not matches(name, room.not_house)
        return None if allowed or (found.lazy and name in room.lazy) else room.why
    if top == "numba" and not matches(module, ("engines.compiled", *KERNELS)):
        return f"compiled code lives in kernels ({', '.join(KERNELS)}), which only workers import"
    if top in room.outside or (found.lazy and top in room.lazy):
        return None
    return room.why + ("; inside a function it may" if top in room.lazy else "")


def loaded_at_start(roots: list[str], imports: Mapping[str, list[Import]]) -> dict[str, str]:
    """
    Everything that importing ``roots`` loads at module level, packages included.

    Returns:
        For each module, project's or not, the chain of modules that leads to it, in words.
    """
    chains = {root: root for root in roots}
    queue = list(roots)
    while queue:
        module = queue.pop()
        for found in imports.get(module, []):
            parts = found.name.split(".")
            for name in (".".join(parts[: size + 1]) for size in range(len(parts))):
                if not found.lazy and name not in chains:
                    chains[name] = f"{chains[module]} > {name}"
                    queue.append(name)
    return chains


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from ``def`` to its end, docstring and decorators left out."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines
