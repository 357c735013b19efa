"""
Jobs that change something: raise and take back regions, clear, pause engines. None is ever taken back by a newer one.

This module must never do what was not decided on a screen.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.columns import Column
from m17ctl.client import Client
from m17ctl.tui.answers import ClearResult, Raised, Said
from m17ctl.tui.questions import Emit, ListJob
from m17d.protocol import (
    ClearRequest,
    EnginesControlRequest,
    PriorityAddRequest,
    PriorityRemoveRequest,
    Range,
)


@dataclass(frozen=True, slots=True)
class RaiseJob:
    """Raise a region for each of some symbols."""

    purpose: str
    symbols: tuple[str, ...]
    start_ns: int
    end_ns: int
    priority: int
    columns: tuple[Column, ...] = ()

    @property
    def key(self) -> str:
        """Never taken back by another."""
        return f"raise {self.symbols} {self.start_ns} {self.end_ns} {self.columns}"

    def run(self, client: Client, emit: Emit) -> None:
        """One after the other."""
        raised = [
            client.call(
                PriorityAddRequest(
                    symbol=symbol,
                    from_ts=self.start_ns,
                    to_ts=self.end_ns,
                    priority=self.priority,
                    columns=list(self.columns),
                )
            )
            for symbol in self.symbols
        ]
        emit(Raised(self.purpose, raised))


@dataclass(frozen=True, slots=True)
class LowerJob:
    """Take regions back."""

    ids: tuple[int, ...]

    @property
    def key(self) -> str:
        """Never taken back by another."""
        return f"lower {self.ids}"

    def run(self, client: Client, emit: Emit) -> None:
        """One after the other, and the list afterwards."""
        for one in self.ids:
            client.call(PriorityRemoveRequest(id=one))
        ListJob("regions").run(client, emit)
        emit(Said(f"region {self.ids[0]} taken back" if len(self.ids) == 1 else f"{len(self.ids)} regions taken back"))


@dataclass(frozen=True, slots=True)
class ClearJob:
    """Clear cells, or say what a clear would take."""

    columns: tuple[Column, ...]
    ranges: tuple[Range, ...]
    cause: str
    dry_run: bool
    cascade: bool = False
    accept_loss: bool = False
    expect: tuple[int, ...] = ()
    """For each range, how many cells were shown before; other numbers refuse."""

    @property
    def key(self) -> str:
        """A newer look takes an older one's place; what changes something is never taken back."""
        return "clear?" if self.dry_run else f"clear {self.ranges}"

    def run(self, client: Client, emit: Emit) -> None:
        """Range by range."""
        replies = []
        for at, chosen in enumerate(self.ranges):
            request = ClearRequest(
                columns=list(self.columns),
                range=chosen,
                cause=self.cause,
                dry_run=self.dry_run,
                cascade=self.cascade,
                accept_loss=self.accept_loss,
                expect=self.expect[at] if self.expect else None,
            )
            replies.append(client.call(request))
        emit(ClearResult(replies, self.dry_run))


@dataclass(frozen=True, slots=True)
class EngineJob:
    """Pause, resume or retry an engine."""

    engine: str
    action: str

    @property
    def key(self) -> str:
        """Never taken back by another."""
        return f"engine {self.engine} {self.action}"

    def run(self, client: Client, emit: Emit) -> None:
        """And show the list as it is then."""
        client.call(EnginesControlRequest(engine=self.engine, action=self.action, cause="from the tui"))  # type: ignore[arg-type]
        ListJob("engines").run(client, emit)
