"""What every test of an engine starts from."""

from __future__ import annotations

import pytest

from engines import derived


@pytest.fixture(autouse=True)
def planning_without_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call plans to its end, however slow the machine is: `plan` may else return before it has found anything."""
    monkeypatch.setattr(derived, "_PLAN_S", 600.0)
    monkeypatch.setattr(derived, "_JUDGE_S", 600.0)
