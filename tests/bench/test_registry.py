"""Benchmarks are found, run apart, and reported as the table and the JSON promise."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench import registry

GOOD = """
def measure():
    return {"name": "quick", "value": 4.0, "unit": "times", "reach": 2.0, "ok": True, "detail": {"ours": 1, "theirs": 4}}
"""
SLOW = GOOD.replace('"quick"', '"slow"').replace('"ok": True', '"ok": False')
BROKEN = 'NAMES = ("first", "second")\nimport a_library_that_is_not_there\n'


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty project whose benchmarks the command runs, with the registry beside them."""
    bench = tmp_path / "tests" / "bench"
    bench.mkdir(parents=True)
    for package in (bench, bench.parent):
        # Regular packages, or an installed project's `tests` would come before them.
        (package / "__init__.py").write_text("")
    for name in ("__main__.py", "registry.py"):
        (bench / name).write_text((Path(registry.__file__).parent / name).read_text())
    (tmp_path / "tests" / "__init__.py").write_text("")  # a package, or the installed project's tests would be found
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(command, "FOLDER", tmp_path / "tests")
    return tmp_path / "tests"


def test_json_is_one_object_with_every_field(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly ``benchmarks``, in the order of paths, and exit 0 when all reach."""
    (folder / "bench_quick.py").write_text(GOOD)

    assert command.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "benchmarks": [
            {
                "name": "quick",
                "value": 4.0,
                "unit": "times",
                "reach": 2.0,
                "ok": True,
                "detail": {"ours": 1, "theirs": 4},
            }
        ]
    }


def test_a_figure_out_of_reach_makes_the_run_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1, and the table says NO."""
    (folder / "bench_quick.py").write_text(GOOD)
    (folder / "bench_slow.py").write_text(SLOW)

    assert command.main([]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("quick", "slow"))]
    assert rows == [["quick", "4.00", "2.00", "yes", "times"], ["slow", "4.00", "2.00", "NO", "times"]]


def test_a_benchmark_that_cannot_run_says_why_and_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing library is a result under every name of the module, and the next module still runs."""
    (folder / "bench_broken.py").write_text(BROKEN)
    (folder / "bench_quick.py").write_text(GOOD)

    assert command.main(["--json"]) == 1
    results = json.loads(capsys.readouterr().out)["benchmarks"]
    assert [(each["name"], each["ok"]) for each in results] == [("first", False), ("second", False), ("quick", True)]
    assert "a_library_that_is_not_there" in results[0]["detail"]["error"]


@pytest.mark.parametrize("name", ["quick", "bench_quick"])
def test_only_runs_what_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """By the figure's name or the module's."""
    (folder / "bench_quick.py").write_text(GOOD)
    (folder / "bench_slow.py").write_text(SLOW)

    assert command.main(["--json", "--only", name]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["benchmarks"]] == ["quick"]


def test_an_unknown_name_is_a_usage_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and how to find the right one."""
    (folder / "bench_quick.py").write_text(GOOD)

    assert command.main(["--only", "quack"]) == 2
    assert "--list" in capsys.readouterr().err


def test_no_benchmarks_is_not_success(folder: Path) -> None:
    """An empty table proves nothing."""
    assert folder.is_dir()
    assert command.main(["--json"]) == 1


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (GOOD, ("quick",)),
        ('REACH = {"a": 1.0, "b": 2.0}\n', ("a", "b")),
        ('REACH: float = 4.0\ndef measure():\n    return {"name": "c"}\n', ("c",)),
        (BROKEN, ("first", "second")),
        ("def measure():\n    return []\n", ()),
    ],
)
def test_names_are_read_without_importing(tmp_path: Path, source: str, names: tuple[str, ...]) -> None:
    """Each way a module may spell them; a library that is missing does not matter."""
    path = tmp_path / "bench_x.py"
    path.write_text(source)

    assert registry.names_of(path) == names


def test_a_figure_that_was_not_taken_is_not_ok() -> None:
    """A module whose other side is not installed says None, whatever else it claims."""
    untaken = {"name": "n", "value": None, "unit": "u", "reach": 1.0, "ok": True, "detail": {"error": "no lmdb"}}

    assert (registry.check(untaken)["value"], registry.check(untaken)["ok"]) == (None, False)


@pytest.mark.parametrize("change", [{"value": float("nan")}, {"extra": 1}, {"value": float("inf")}])
def test_a_figure_that_is_none_is_refused(change: dict[str, object]) -> None:
    """NaN and unknown fields would make JSON that nobody can read."""
    good = {"name": "n", "value": 1.0, "unit": "u", "reach": 1.0, "ok": True, "detail": {}}

    assert registry.check(good)["value"] == 1.0
    with pytest.raises(ValueError, match="figure"):
        registry.check({**good, **change})


def test_sides_are_timed_in_turns_after_a_warm_run() -> None:
    """One warm run each, then a, b, a, b ...; medians in the order of the sides."""
    calls: list[str] = []

    def quick() -> None:
        calls.append("a")

    def slow() -> None:
        calls.append("b")
        time.sleep(0.002)

    a, b = registry.in_turns(quick, slow, rounds=3)

    assert "".join(calls) == "ab" * 4
    assert a < 0.002 <= b


def test_a_benchmark_that_never_ends_is_stopped(folder: Path) -> None:
    """The others get their turn."""
    path = folder / "bench_endless.py"
    path.write_text('NAMES = ("endless",)\nimport time\ntime.sleep(60)\n')

    assert "no end" in registry.run_in_process(path, timeout_s=0.5)[0]["detail"]["error"]
