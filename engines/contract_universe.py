"""
Which contracts of some underlyings to listen to: the first of their chains, ranked over all pages by open interest and volume.

A contract that was chosen stays chosen until the day ends, because windows of a contract that nobody listens to any more
would look silent. Shared by the engines of one daemon that ask for the same chains. This module must never fetch in the
daemon; fetchers do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from engines.contract import Batch, Context, Health, Task, Workplace
from engines.feeds.option_chain import RankedContract
from engines.pauses import Pause, Pausing, Trouble, trouble_of
from ledger.state import State

_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ChainPlace:
    """Where chains are asked for; the key is in an environment variable."""

    address: str
    key_env: str
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class ChainArguments:
    """Underlyings whose chains are read."""

    place: ChainPlace
    underlyings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Contracts of all underlyings, best first; or why there are none now."""

    contracts: tuple[RankedContract, ...]
    trouble: Trouble | None = None


def fetch(task: Task, workplace: Workplace) -> Batch:
    """Read whole chains; the report is a :class:`Ranked`."""
    from engines.feeds.feed_errors import FeedError
    from engines.feeds.json_pages import PageSource
    from engines.feeds.option_chain import fetch_chain, ranked

    arguments: ChainArguments = task.arguments
    place, found = arguments.place, []
    key = os.environ.get(place.key_env, "")
    with PageSource(place.address, key, timeout_seconds=place.timeout_s) as source:
        try:
            for done, underlying in enumerate(arguments.underlyings):
                workplace.progress(done, len(arguments.underlyings))
                found += fetch_chain(source, underlying)
        except FeedError as error:
            return Batch(report=Ranked((), trouble_of(error)))
    return Batch(report=Ranked(tuple(ranked(found))))


class ContractUniverse:
    """
    The contracts to listen to.

    Args:
        place: of the data service.
        underlyings: such as ``TWX``; their chains are ranked together.
        contracts_max: how many contracts there may be.
        every_s: how often chains are read again.
    """

    def __init__(
        self, place: ChainPlace, underlyings: Iterable[str], contracts_max: int, every_s: float, context: Context
    ) -> None:
        self.contracts: tuple[str, ...] = ()
        """Ascending."""
        self.left_out = 0
        """Contracts with interest or volume that found no place."""
        self._arguments = ChainArguments(place, tuple(underlyings))
        self._contracts_max = contracts_max
        self._every_s = every_s
        self._state: State = context.state
        self._pausing = Pausing()
        self._pause: Pause | None = None
        self._read_ns = 0
        self._day = ""

    def close(self) -> None:
        """Nothing is held."""

    def tasks(self, engine: str) -> list[Task]:
        """The reading that is due, for the engine that asks first."""
        now_ns = self._state.system.now_ns()
        if self._pause is not None and self._pause.holds(now_ns):
            return []
        age_ns = now_ns - self._read_ns
        if self._pause is None and self._read_ns and 0 <= age_ns < self._every_s * _SECOND_NS:
            return []
        place, names = self._arguments.place, ", ".join(self._arguments.underlyings)
        return [
            Task(
                engine, f"chains of {names} at {place.address}", self._state.calendar.date(0),
                "engines.contract_universe:fetch", self._arguments, remote=True, makes_files=False, symbols=(),
            )
        ]  # fmt: skip

    def finished(self, report: Ranked) -> bool:
        """Take what was read; True where there are other contracts now."""
        now_ns = self._state.system.now_ns()
        if report.trouble is not None:
            self._pause = self._pausing.after(report.trouble, now_ns, self._pause)
            return False
        self._pause, self._read_ns = None, now_ns
        day = self._state.calendar.session_on(now_ns)
        kept = self.contracts if day == self._day else ()
        self._day = day
        worth = [one.ticker for one in report.contracts if one.score > 0]
        room = max(0, self._contracts_max - len(kept))
        fresh = [ticker for ticker in worth if ticker not in set(kept)]
        before, self.contracts = self.contracts, tuple(sorted([*kept, *fresh[:room]]))
        self.left_out = len(fresh) - min(len(fresh), room)
        return self.contracts != before

    def retry(self) -> None:
        """Ask again at once."""
        self._pause, self._read_ns = None, 0

    @property
    def pause(self) -> Pause | None:
        """Why chains are not read now, and until when; None where nothing is wrong."""
        return self._pause

    def health(self) -> Health | None:
        """Degraded while chains cannot be read; the contracts of before are listened to meanwhile."""
        if self._pause is None:
            return None
        return Health("degraded", self._pause.said(self._state.calendar))
