"""Fixtures of the ledger's tests: a system that fails on demand and tells a time of its own."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.files import System
from ledger.state import State, open_state
from tests.ledger.states import copied, findings, make_template

START_NS = 1_381_152_660_000_000_000
"""What the clock of a faulty system says first: 2013-10-07 09:31 in New York."""


class FaultySystem(System):
    """
    Fails the ``fail_at``-th system call (from 1), or every call from there on, with ``fault``.

    ``fault`` is an errno, or ``"short"``: reads and writes then do half of what they were asked for.
    """

    def __init__(self, fail_at: int = 0, fault: int | str = errno.EIO, *, sticky: bool = False) -> None:
        super().__init__()
        self.fail_at, self.fault, self.sticky = fail_at, fault, sticky
        self.calls: list[str] = []
        self.fired = False
        self.clock_ns = START_NS

    def attempt(self, call: str, *arguments: Any) -> Any:
        """One system call, or the fault."""
        self.calls.append(call)
        at = len(self.calls)
        if self.fail_at and (at == self.fail_at or (self.sticky and at > self.fail_at)):
            self.fired = True
            if isinstance(self.fault, int):
                raise OSError(self.fault, "injected")
            if call == "pwrite" and len(arguments[1]) > 1:
                arguments = (arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
            if call == "pread" and arguments[1] > 1:
                arguments = (arguments[0], arguments[1] // 2, *arguments[2:])
        return super().attempt(call, *arguments)

    def now_ns(self) -> int:
        """Counts seconds from ``START_NS``."""
        self.clock_ns += 1_000_000_000
        return self.clock_ns


@pytest.fixture
def system() -> FaultySystem:
    """A system that works, with a clock of its own."""
    return FaultySystem()


@pytest.fixture
def faulty() -> type[FaultySystem]:
    """The class, for tests that choose the fault."""
    return FaultySystem


@pytest.fixture
def every_fault() -> Callable[[], Iterator[FaultySystem]]:
    """Systems that fail at the first call, at the second, ... until a run meets no fault any more; for each kind."""

    def systems() -> Iterator[FaultySystem]:
        for fault in (errno.ENOSPC, errno.EIO, errno.EINTR, "short"):
            for fail_at in range(1, 200):
                tried = FaultySystem(fail_at, fault)
                yield tried
                if not tried.fired:
                    break
            else:
                raise AssertionError("faults never end")

    return systems


@pytest.fixture(autouse=True)
def every_state_verifies(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever states a test leaves below its folder verify, once opened as a start opens them; damage is set right."""
    yield
    for name in {"tmp_path", "folder"} & set(request.fixturenames):
        place = request.node.funcargs.get(name)
        for path in sorted(place.rglob("format")) if isinstance(place, Path) and place.exists() else ():
            with open_state(path.parent):
                pass
            assert findings(path.parent) == [], path.parent


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed state with four symbols; copy it, never open it."""
    return make_template(tmp_path_factory.mktemp("template") / "ledger.state")


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A state directory of the test's own; what the test leaves must be opened once more, and verify."""
    path = copied(template, tmp_path / "ledger.state")
    yield path
    with open_state(path):
        pass
    assert findings(path) == []


@pytest.fixture
def state(directory: Path) -> Iterator[State]:
    """An open state of the test's own; the checker runs when the test is over."""
    opened = open_state(directory, flush_interval_s=3600)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def refused() -> Callable[[Path], LedgerError]:
    """How a state directory is refused, for reading and for writing alike, with nothing written."""

    def error_of(path: Path) -> LedgerError:
        before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
        errors = []
        for readonly in (True, False):
            with pytest.raises(LedgerError) as caught:
                open_state(path, readonly=readonly)
            errors.append(caught.value)
        assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before
        assert type(errors[0]) is type(errors[1])
        return errors[1]

    return error_of
