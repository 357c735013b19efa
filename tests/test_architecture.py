"""The house holds: who imports whom, what starts without what, how long and how broad things may be."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture import (
    HEAVY,
    KERNELS,
    PACKAGES,
    ROOMS,
    ROOT,
    Import,
    imports_of,
    loaded_at_start,
    matches,
    objection,
    own_lines,
    sources,
)

# Ratchets: lowered when the tree is better than the number, never raised.
LINES_MAX = 61
BROAD_EXCEPTS = ["m17d.pool", "m17d.server"]
UNDOCUMENTED_MAX = 0
UNANNOTATED_MAX = 0

BESIDE_THE_DAEMON = ("m17d.demo", "m17d.replay")
"""Programs of their own in the daemon's folder; the daemon loads neither."""

BANNED_NAMES = ("utils", "util", "helpers", "helper", "common", "misc")
DISTRIBUTIONS = {"zmq": "pyzmq", "prometheus_client": "prometheus-client"}

PATHS = sources()
TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in PATHS.items()}
IMPORTS = {module: list(imports_of(tree, TREES)) for module, tree in TREES.items()}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def at(module: str, line: int) -> str:
    """``path:line`` of a place, as an editor understands it."""
    return f"{PATHS[module].relative_to(ROOT)}:{line}"


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function of a module, methods and nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions of a module and methods of its public classes whose names do not begin with an underscore."""
    bodies = [tree.body]
    bodies += [node.body for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return (node for body in bodies for node in body if isinstance(node, Function) and not node.name.startswith("_"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own in the project's root, without what this one inherited."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_import_is_one_its_room_allows() -> None:
    """Each line of the failure is a place, what it imports, and why it may not."""
    refused = [
        f"{at(module, found.line)}: {module} imports {found.name}: {reason}"
        for module, imports in IMPORTS.items()
        for found in imports
        if (reason := objection(module, found)) is not None
    ]

    assert not refused, "\n" + "\n".join(refused)


@pytest.mark.parametrize(
    ("module", "statement", "reason"),
    [
        ("ledger.rows", "import zmq", "knows no engine, socket"),
        ("ledger.rows", "from engines.nbbo import policy", "knows no engine, socket"),
        ("ledger.rows", "def f():\n    import polars", "knows no engine, socket"),
        ("ledger.frames", "import polars", "inside a function it may"),
        ("ledger.calendar", "def f():\n    import exchange_calendars", "importable alone"),
        ("ledger.columns", "import numpy", "standard library only"),
        ("ledger.rows", "from .slots import pack", "absolute"),
        ("engines.contract", "from ledger.state import State", "load in both for nothing"),
        ("engines.feeds.flatfile", "from ledger import state", "could not be used beside it"),
        ("engines.nbbo.plan", "from engines.greeks.flags import GreeksFlag", "not each other"),
        ("engines.nbbo.plan", "import m17d.runner", "not the daemon"),
        ("engines.nbbo.plan", "def f():\n    from numba import njit", "compiled code lives in kernels"),
        ("m17d.protocol", "import numpy", "the messages are a leaf"),
        ("m17d.server", "from ledger.state import State", "without the handlers"),
        ("m17d.handlers", "import zmq", "knows no socket"),
        ("m17d.handlers", "from m17d.server import Server", "knows no socket"),
        ("m17d.handlers", "from m17d.replay import run", "knows no socket"),
        ("m17d.replay", "from ledger.state import State", "no ledger"),
        ("m17ctl.render", "import numpy", "a person waits"),
        ("m17ctl.render", "def f():\n    import zmq", "a person waits"),
        ("m17ctl.commands.rows", "from ledger.state import State", "nothing else of the daemon"),
        ("m17ctl.commands.rows", "from m17d.handlers import handle", "nothing else of the daemon"),
    ],
)
def test_a_planted_import_is_refused_with_its_reason(module: str, statement: str, reason: str) -> None:
    """The table refuses what it is there to refuse, in functions too."""
    known = {*TREES, "engines.nbbo.policy", "engines.greeks.flags", "ledger.state", "m17d.runner", "m17d.replay"}
    found = list(imports_of(ast.parse(statement), dict.fromkeys(known)))

    assert [reason in (objection(module, each) or "") for each in found] == [True]


def test_every_room_of_the_table_but_the_future_ones_has_a_module() -> None:
    """A pattern that matches nothing is a room that was renamed and is no longer guarded."""
    empty = [room.modules for room in ROOMS if not any(matches(module, room.modules) for module in TREES)]

    assert [modules for modules in empty if not modules[0].startswith(("m17d.demo", "m17ctl."))] == []


def test_the_daemon_loads_nothing_heavy_at_start() -> None:
    """Neither the daemon nor what it builds of an engine reaches a heavy library at module level."""
    builds = [f"engines.{name}" for name in engines()] + [build_module(name) for name in engines()]
    daemon = [module for module in TREES if module.startswith("m17d") and not module.startswith(BESIDE_THE_DAEMON)]

    chains = loaded_at_start([*daemon, *filter(None, builds)], IMPORTS)

    reached = [f"{chains[name]}: {why}" for name, why in HEAVY.items() if name in chains]
    reached += [f"{chain}: not the daemon's" for name, chain in chains.items() if name.startswith(BESIDE_THE_DAEMON)]
    reached += [f"{chain}: a kernel" for name, chain in chains.items() if name in TREES and matches(name, KERNELS)]
    assert not reached, "\n" + "\n".join(reached)


def test_a_chain_to_a_heavy_library_is_found_through_packages() -> None:
    """The walk follows module-level imports, loads packages on the way, and leaves imports in functions alone."""
    imports = {
        "a": [Import(1, "b.c", lazy=False)],
        "b": [Import(1, "numba", lazy=False)],
        "b.c": [Import(1, "polars", lazy=True)],
    }

    assert loaded_at_start(["a"], imports) == {"a": "a", "b": "a > b", "b.c": "a > b.c", "numba": "a > b > numba"}


def engines() -> list[str]:
    """Folders under ``engines/`` that are engines: all but ``feeds`` and what carries no ENGINE yet."""
    names = (module.split(".")[1] for module in TREES if module.count(".") == 1 and module.startswith("engines."))
    return [name for name in names if build_module(name)]


def build_module(engine: str) -> str | None:
    """Module of the ``build`` that the engine's ENGINE names, read from its source."""
    path = PATHS[f"engines.{engine}"]
    found = re.search(r'\bbuild="([\w.]+):\w+"', path.read_text())
    return found.group(1) if found else None


@pytest.mark.parametrize(
    "module", ["m17d.protocol", "m17d.envelopes", "m17ctl.main", "m17ctl.client", "m17ctl.commands.rows", "ledger"]
)
def test_what_a_person_waits_for_starts_without_numpy(module: str) -> None:
    """Numpy alone would double the start of a short command."""
    done = run(
        "-c", f"import sys, {module}; print([n for n in ('numpy', 'polars', 'textual', 'rich') if n in sys.modules])"
    )

    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_module_of_the_client_starts_without_numpy() -> None:
    """By the sources: no command reaches numpy or polars at module level, artifacts and tui excepted."""
    light = [m for m in TREES if m.startswith("m17ctl") and not m.startswith(("m17ctl.artifacts", "m17ctl.tui"))]

    chains = loaded_at_start(light, IMPORTS)

    assert [chains[name] for name in ("numpy", *HEAVY, "textual", "rich") if name in chains] == []


def test_the_daemon_refuses_to_run_without_asserts() -> None:
    """Under -O the asserts that guard the layout are gone; the daemon says so and ends."""
    done = run("-O", "-m", "m17d", "check-config", "--config", "nowhere.toml")

    assert done.returncode != 0
    assert "-O" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", sorted(TREES))
def test_a_module_says_what_it_is_for(module: str) -> None:
    """Every module has a docstring, a name that says something, and no bases to inherit from."""
    tree = TREES[module]
    bases = [
        at(module, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and (
            any(ast.unparse(base) in ("ABC", "abc.ABC") for base in node.bases)
            or any("ABCMeta" in ast.unparse(keyword) for keyword in node.keywords)
            or node.name.endswith("Controller")
        )
    ]

    assert (ast.get_docstring(tree) or "").strip(), f"{at(module, 1)}: no docstring"
    assert not {part.lower() for part in module.split(".")} & set(BANNED_NAMES), f"{at(module, 1)}: name the subject"
    assert not any(found.name == "abc" for found in IMPORTS[module]), f"{module}: a Protocol, not a base class"
    assert not bases, f"{bases}: a Protocol for a seam, named jobs instead of a Controller"


@pytest.mark.parametrize("module", sorted(m for m, path in PATHS.items() if path.name == "__init__.py"))
def test_a_package_imports_nothing(module: str) -> None:
    """Re-exports are where circular imports and slow starts are born; an engine's ENGINE is the one exception."""
    loads = [found for found in IMPORTS[module] if not found.lazy and found.name.partition(".")[0] in PACKAGES]
    entry = ["engines.contract", "ledger.columns"] if module.startswith("engines.") else []
    names = {"ENGINE", "__all__"} if module.startswith("engines.") else {"__all__"}
    held = [node for node in TREES[module].body if isinstance(node, ast.ClassDef | ast.Assign | ast.AnnAssign)]
    targets = {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        for node in held
        if not isinstance(node, ast.ClassDef)
    }

    assert [at(module, found.line) for found in loads if found.name not in entry] == []
    assert not [node for node in held if isinstance(node, ast.ClassDef)]
    assert targets <= names
    assert [node.name for node in functions(TREES[module])] in ([], ["open"] if module == "ledger" else [])


def test_no_function_is_longer_than_the_longest_of_today() -> None:
    """A ratchet: the number goes down with the longest function, never up."""
    lengths = {
        at(m, node.lineno) + f" {node.name}": own_lines(node) for m, tree in TREES.items() for node in functions(tree)
    }
    longest = max(lengths.values())

    assert longest <= LINES_MAX, "\n".join(place for place, lines in lengths.items() if lines > LINES_MAX)
    assert longest == LINES_MAX, f"the longest function has {longest} lines now: lower LINES_MAX"


def test_own_lines_leave_docstring_and_decorators_out() -> None:
    """A docstring costs nothing: long ones are welcome."""
    tree = ast.parse('@cache\ndef f():\n    """\n    Long.\n    """\n    a = 1\n    return a\n')

    assert [own_lines(node) for node in functions(tree)] == [3]


def test_broad_excepts_stand_in_two_places_only() -> None:
    """Around one request and around one engine step; a handler that ends in a bare raise only tidies up."""
    broad = [
        (module, handler.lineno)
        for module, tree in TREES.items()
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler) and is_broad(handler)
    ]

    assert [module for module, _ in sorted(broad)] == BROAD_EXCEPTS, [at(*place) for place in broad]


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes everything and does not raise it again."""
    caught = (
        {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)} if handler.type else {"Exception"}
    )
    last = handler.body[-1]
    return bool(caught & {"Exception", "BaseException"}) and not (isinstance(last, ast.Raise) and last.exc is None)


@pytest.mark.parametrize(
    ("handler", "broad"),
    [
        ("except:\n    pass", True),
        ("except Exception:\n    log()", True),
        ("except (OSError, BaseException):\n    log()", True),
        ("except BaseException:\n    close()\n    raise", False),
        ("except OSError:\n    pass", False),
    ],
)
def test_a_broad_except_is_recognised(handler: str, broad: bool) -> None:
    """The count above counts what it says."""
    tree = ast.parse(f"try:\n    f()\n{handler}\n")

    assert [is_broad(node) for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)] == [broad]


def test_public_functions_are_documented_and_annotated() -> None:
    """A ratchet on what a reader of the API meets; compiled functions are typed by their callers."""
    public = [(module, node) for module, tree in TREES.items() for node in public_functions(tree)]
    compiled = {id(node) for _, node in public if any("njit" in ast.unparse(each) for each in node.decorator_list)}
    overloads = {id(node) for _, node in public if any("overload" in ast.unparse(each) for each in node.decorator_list)}
    undocumented = [at(m, n.lineno) for m, n in public if not ast.get_docstring(n) and id(n) not in overloads]
    unannotated = [at(m, n.lineno) for m, n in public if n.returns is None and id(n) not in compiled]

    assert len(undocumented) <= UNDOCUMENTED_MAX, undocumented
    assert len(unannotated) <= UNANNOTATED_MAX, unannotated


def test_what_is_computed_knows_no_clock_no_chance_and_no_shortcut() -> None:
    """Equal inputs give equal rows: nothing random, no time of day, no reordered float sums in an engine's kernel."""
    forbidden = re.compile(
        r"^(time\.(time|time_ns|monotonic|perf_counter)(_ns)?|datetime\.(datetime\.)?(now|utcnow|today)|date\.today"
        r"|np\.random\..*|random\..*|uuid\..*|secrets\..*)$"
    )
    kernels = [module for module in TREES if matches(module, (*KERNELS, "engines.*.compute*", "engines.*.inputs"))]
    calls = [(m, node) for m in kernels for node in ast.walk(TREES[m]) if isinstance(node, ast.Call)]
    found = [
        f"{at(m, node.lineno)}: {ast.unparse(node.func)}"
        for m, node in calls
        if forbidden.match(ast.unparse(node.func))
    ]
    found += [
        f"{at(m, node.lineno)}: {k.arg}"
        for m, node in calls
        for k in node.keywords
        if k.arg in ("fastmath", "parallel")
    ]

    assert kernels
    assert found == []


def test_every_library_that_is_imported_is_declared() -> None:
    """What the code imports is in the dependencies of pyproject.toml, and nothing is declared for nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What the demonstration alone needs is an extra, which scripts/demo installs.
    wanted = project["dependencies"] + project["optional-dependencies"]["demo"]
    declared = {re.split(r"[\[<>=]", each)[0].lower() for each in wanted}
    imported = {found.name.partition(".")[0] for imports in IMPORTS.values() for found in imports}
    outside = {DISTRIBUTIONS.get(name, name) for name in imported - set(PACKAGES) - sys.stdlib_module_names}

    assert outside <= declared, f"import without a dependency: {sorted(outside - declared)}"


def test_every_dependency_is_bounded_and_pinned() -> None:
    """Each one has a lower and an upper bound, and constraints.txt its exact version and no address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    pins = [line for line in Path(ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}

    assert [each for each in wanted if not re.search(r">=[\d.]+(,<[\d.]+)?$", each)] == []
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert {re.split(r"[\[<>=]", each)[0].lower().replace("_", "-") for each in wanted} - pinned == set()


def test_the_changelog_knows_the_version() -> None:
    """The version of pyproject.toml is the newest heading of the changelog."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == version
