"""
Which contracts of a chain matter: ``/v3/snapshot/options/{underlying}``, ranked over all of its pages.

The service sends contracts in order of ticker, so the first pages are not the first in rank: all are read before one is
chosen. This module must never stop at a limit before the last page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import msgspec

from engines.feeds.feed_errors import ReplyMalformed
from engines.feeds.json_pages import PageSource

PAGE_LIMIT: Final = 250
"""Contracts a page, the service's most."""


@dataclass(frozen=True, slots=True)
class RankedContract:
    """
    One contract; ``open_interest`` and ``volume`` in contracts, 0 where the service sends none.

    ``updated_ns`` is the time of the day's last trade, ns UTC, which says of which day the volume is; 0 where it is not sent.
    """

    ticker: str
    open_interest: float
    volume: float
    updated_ns: int = 0

    @property
    def score(self) -> float:
        """The larger of open interest and the day's volume."""
        return max(self.open_interest, self.volume)


class _Details(msgspec.Struct):
    ticker: str


class _Day(msgspec.Struct):
    volume: float | None = None
    last_updated: int | None = None


class _Snapshot(msgspec.Struct):
    details: _Details
    day: _Day | None = None
    open_interest: float | None = None


_SNAPSHOTS: Final = msgspec.json.Decoder(list[_Snapshot])


def fetch_chain(source: PageSource, underlying: str, *, limit: int | None = None) -> list[RankedContract]:
    """
    Contracts of an underlying, best first; see :func:`ranked`.

    Args:
        limit: how many to return; None returns all. All pages are read either way.

    Raises:
        FeedError: the chain was not read to its end.
    """
    found: dict[str, RankedContract] = {}
    for page in source.pages(f"/v3/snapshot/options/{quote(underlying)}", {"limit": str(PAGE_LIMIT)}):
        try:
            snapshots = _SNAPSHOTS.decode(page.results)
        except msgspec.DecodeError as error:
            raise ReplyMalformed(f"{page.address} (page {page.number})", f"results: {error}") from None
        for each in snapshots:
            day = each.day or _Day()
            found[each.details.ticker] = RankedContract(
                each.details.ticker, each.open_interest or 0.0, day.volume or 0.0, day.last_updated or 0
            )
    return ranked(found.values())[:limit]


def ranked(contracts: Iterable[RankedContract]) -> list[RankedContract]:
    """Contracts, best first: by the larger of open interest and volume, then volume, then ticker."""
    return sorted(contracts, key=lambda contract: (-contract.score, -contract.volume, contract.ticker))
