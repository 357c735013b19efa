"""
What an OPRA ticker says, and the instant at which such a contract ends.

Two policies. ``last-session-close``: the close of the last session on or before the expiry date, so that the monthlies
dated on Saturdays (before 2015) end on Friday; roots in ``am_settled`` end at that session's open. ``calendar-1600``: 16:00
New York on the literal date, holiday, Saturday or not. Sessions come as plain arrays: this module must never import the
ledger, a calendar package or numba.
"""

from __future__ import annotations

import datetime
import re
from functools import cache
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

NEW_YORK: Final = ZoneInfo("America/New_York")
ExpiryPolicy = Literal["last-session-close", "calendar-1600"]

_TICKER: Final = re.compile(r"O:([A-Z]{1,6}[0-9]{0,3})([0-9]{2})([0-9]{2})([0-9]{2})([CP])([0-9]{8})", re.ASCII)
_EPOCH_ORDINAL: Final = datetime.date(1970, 1, 1).toordinal()
_FRIDAY: Final = 4
_NS: Final = 1_000_000_000


class Contract(NamedTuple):
    """One option contract, as its ticker spells it."""

    root: str
    expiry: datetime.date
    """The literal date of the ticker."""
    is_call: bool
    strike: float
    """Dollars."""
    standard: bool
    """False where the root ends in a digit (adjusted deliverable)."""


class Sessions(NamedTuple):
    """The sessions that are known, ascending; arrays of one length. Better a few years too many than one too few."""

    days: NDArray[np.int64]
    """i64[s]: days since 1970-01-01."""
    open_ns: NDArray[np.int64]
    """i64[s]: ns since the epoch, UTC."""
    close_ns: NDArray[np.int64]
    """i64[s]: ns since the epoch, UTC."""


class Contracts(NamedTuple):
    """The contracts of a batch, one entry per ticker, as the kernel takes them (by trade: index with the ticker's code)."""

    strike: NDArray[np.float64]
    is_call: NDArray[np.bool_]
    expiry_ns: NDArray[np.int64]
    """i64[k]: ns since the epoch, UTC."""
    standard: NDArray[np.bool_]
    expiry_estimated: NDArray[np.bool_]
    """True where the expiry lies beyond the known sessions, so that holidays could not be considered."""


def parse_ticker(ticker: str) -> Contract:
    """
    Read ``O:`` + root + YYMMDD + C or P + strike x 1000 in eight digits; the year is 2000 + YY.

    Raises:
        ValueError: the ticker has another form, or its date does not exist.
    """
    match = _TICKER.fullmatch(ticker)
    if match is None:
        raise ValueError(
            f"malformed option ticker {ticker!r}: expected O: + root + YYMMDD + C or P + strike x 1000 in eight digits"
        )
    root, year, month, day, right, strike = match.groups()
    try:
        expiry = datetime.date(2000 + int(year), int(month), int(day))
    except ValueError as error:
        raise ValueError(f"malformed option ticker {ticker!r}: {year}{month}{day} is not a date") from error
    return Contract(root, expiry, right == "C", int(strike) / 1000.0, not root[-1].isdigit())


def expiry_ns(
    expiry: datetime.date, sessions: Sessions, *, policy: ExpiryPolicy, am_settled: bool = False
) -> tuple[int, bool]:
    """
    The instant a contract ends, ns since the epoch UTC, and whether it had to be estimated.

    Beyond the known sessions a Saturday or Sunday counts as the Friday before, the close is 16:00 and the open 09:30 New
    York, and the second value is True.

    Args:
        expiry: the literal date of the ticker.
        sessions: the known sessions; those of an empty array estimate everything.
        policy: which instant ends a contract.
        am_settled: the root settles on opening prices; not looked at under ``calendar-1600``.

    Raises:
        ValueError: ``policy`` is neither of the two.
    """
    if policy == "calendar-1600":
        return _new_york_ns(expiry, 16, 0), False
    if policy != "last-session-close":
        raise ValueError(f"expiry policy {policy!r}: use last-session-close or calendar-1600")
    weekday = expiry - datetime.timedelta(days=max(expiry.weekday() - _FRIDAY, 0))
    day = weekday.toordinal() - _EPOCH_ORDINAL
    position = int(np.searchsorted(sessions.days, day, side="right")) - 1
    if position < 0 or day > int(sessions.days[-1]):
        return (_new_york_ns(weekday, 9, 30) if am_settled else _new_york_ns(weekday, 16, 0)), True
    return int((sessions.open_ns if am_settled else sessions.close_ns)[position]), False


def contracts_of(
    tickers: list[str], sessions: Sessions, *, policy: ExpiryPolicy, am_settled: frozenset[str]
) -> Contracts:
    """
    Everything the kernel needs to know of the contracts of a batch.

    Args:
        tickers: one each, in the order of their codes.
        sessions: the known sessions.
        policy: which instant ends a contract.
        am_settled: roots that settle on opening prices.

    Raises:
        ValueError: as :func:`parse_ticker`, naming the first ticker that is malformed.
    """
    parsed = [parse_ticker(ticker) for ticker in tickers]
    known: dict[tuple[datetime.date, bool], tuple[int, bool]] = {}
    for contract in parsed:
        key = (contract.expiry, contract.root in am_settled)
        if key not in known:
            known[key] = expiry_ns(contract.expiry, sessions, policy=policy, am_settled=key[1])
    ends = [known[contract.expiry, contract.root in am_settled] for contract in parsed]
    return Contracts(
        strike=np.array([contract.strike for contract in parsed], dtype=np.float64),
        is_call=np.array([contract.is_call for contract in parsed], dtype=np.bool_),
        expiry_ns=np.array([end for end, _ in ends], dtype=np.int64),
        standard=np.array([contract.standard for contract in parsed], dtype=np.bool_),
        expiry_estimated=np.array([estimated for _, estimated in ends], dtype=np.bool_),
    )


@cache
def _new_york_ns(day: datetime.date, hour: int, minute: int) -> int:
    moment = datetime.datetime(day.year, day.month, day.day, hour, minute, tzinfo=NEW_YORK)
    return int(moment.timestamp()) * _NS
