"""Compiled code is made anew whenever anything that it was compiled from changes, and kept nowhere unsafe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines import compiled
from tests.architecture import KERNELS, ROOT, imports_of, loaded_at_start, matches, sources
from tests.test_architecture import TREES


def test_sources_are_the_kernels_and_all_that_they_import() -> None:
    """A module of the house that a kernel reaches, but that the fingerprint leaves out, would leave old code in force."""
    imports = {module: list(imports_of(tree, TREES)) for module, tree in TREES.items()}
    kernels = [module for module, found in imports.items() if any(one.name == "engines.compiled" for one in found)]
    assert kernels and all(matches(module, KERNELS) for module in kernels)
    # The packages' own ``__init__`` name the contract; nothing of it enters compiled code.
    beside = ("engines.compiled", "engines.contract")
    reached = [name for name in loaded_at_start(kernels, imports) if name in TREES and name not in beside]
    paths = sources()
    code = {str(paths[name].relative_to(ROOT)) for name in reached if paths[name].name != "__init__.py"}
    assert code == set(compiled.SOURCES)


def test_every_kernel_takes_njit_from_the_one_place() -> None:
    """Numba imported past it would keep its code beside the sources again."""
    found = [name for name, tree in TREES.items() for one in imports_of(tree, TREES) if one.name.startswith("numba")]
    assert found == ["engines.compiled"]


def test_one_changed_line_changes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's name is the content of all sources."""
    before = compiled.fingerprint()
    for name in compiled.SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(compiled, "_ROOT", tmp_path)
    assert compiled.fingerprint() == before
    with (tmp_path / "engines/aggregation/dip_table.py").open("a") as file:
        file.write("\n")
    assert compiled.fingerprint() != before


def test_a_cache_that_cannot_be_written_is_replaced_by_one_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a folder that another user could have filled; and what a parent chose is taken as it is."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    alone = compiled.cache_folder()
    assert alone.name.startswith("m17-numba-") and alone.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    chosen = compiled.cache_folder()
    assert chosen == tmp_path / compiled.fingerprint()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(chosen))
    assert compiled.cache_folder() == chosen


def test_what_other_versions_left_long_ago_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only folders named like its own, only old ones."""
    old, recent, foreign = tmp_path / "0123456789abcdef", tmp_path / "fedcba9876543210", tmp_path / "numbers"
    for folder in (old, recent, foreign):
        folder.mkdir()
    ago = time.time() - 40 * 86_400
    os.utime(old, (ago, ago))
    os.utime(foreign, (ago, ago))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiled.cache_folder()
    assert (old.exists(), recent.exists(), foreign.exists()) == (False, True, True)


def test_machine_code_lands_in_the_folder(tmp_path: Path) -> None:
    """A fresh process that compiles a kernel writes below the folder, and nothing beside the sources."""
    code = "from engines.aggregation.ordered import quantile; import numpy; quantile(numpy.arange(3.0), 3, 0.5)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)
    assert list((tmp_path / compiled.fingerprint()).rglob("*.nbc"))
