"""What every test runs under: fixed Hypothesis settings, no operator's environment, and where real data may be found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT / ".." / "shared" / "data"

# The same examples in every run, so that a red test stays red; `--hypothesis-profile storm` looks further.
settings.register_profile("house", deadline=None, max_examples=50, derandomize=True, database=None)
settings.register_profile("storm", deadline=None, max_examples=500, database=None, print_blob=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def no_operator_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the person who runs the tests enters them: no socket, no credentials, no terminal width."""
    for name in list(os.environ):
        if name.startswith(("M17_", "AWS_")) or name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sessions beside the project; without it the test is skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real sessions are not beside this project (../shared/data)")
    return SHARED_DATA.resolve()
