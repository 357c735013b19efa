"""OPRA tickers and the instant their contracts end, under both policies."""

from __future__ import annotations

import datetime
from typing import cast

import numpy as np
import pytest

from engines.greeks.expiry import Contract, ExpiryPolicy, Sessions, contracts_of, expiry_ns, parse_ticker
from engines.greeks.policy import AM_SETTLED
from ledger.roots import RootTable, option_root

D = datetime.date


def ns(text: str) -> int:
    """Nanoseconds since the epoch of an ISO time with offset."""
    return int(datetime.datetime.fromisoformat(text).timestamp()) * 1_000_000_000


def sessions(*rows: tuple[str, str, str, str]) -> Sessions:
    """Sessions from (date, open, close, offset)."""
    return Sessions(
        np.array([(D.fromisoformat(day) - D(1970, 1, 1)).days for day, _, _, _ in rows], dtype=np.int64),
        np.array([ns(f"{day}T{opens}{offset}") for day, opens, _, offset in rows], dtype=np.int64),
        np.array([ns(f"{day}T{closes}{offset}") for day, _, closes, offset in rows], dtype=np.int64),
    )


KNOWN = sessions(
    ("2014-04-16", "09:30", "16:00", "-04:00"),
    ("2014-04-17", "09:30", "16:00", "-04:00"),  # the day before Good Friday
    ("2014-06-20", "09:30", "16:00", "-04:00"),
    ("2014-07-03", "09:30", "13:00", "-04:00"),
    ("2014-12-31", "09:30", "16:00", "-05:00"),
)


def test_ticker_is_read_from_the_right() -> None:
    """Root, date, right, strike in thousandths, and whether the deliverable is standard."""
    assert parse_ticker("O:TWX140621C00070000") == Contract("TWX", D(2014, 6, 21), True, 70.0, True)
    assert parse_ticker("O:TWX1140621P00067500") == Contract("TWX1", D(2014, 6, 21), False, 67.5, False)
    assert parse_ticker("O:SPXW210106C03700000") == Contract("SPXW", D(2021, 1, 6), True, 3700.0, True)
    assert parse_ticker("O:F160229P00012001").strike == 12.001


@pytest.mark.parametrize(
    "ticker", ["TWX140621C00070000", "O:TWX140621C0007000", "O:TWX150229C00070000", "O:twx140621C00070000"]
)
def test_malformed_tickers_are_refused(ticker: str) -> None:
    """Another form, or a date that does not exist."""
    with pytest.raises(ValueError, match="malformed option ticker"):
        parse_ticker(ticker)


def test_parser_and_root_table_read_the_same_root() -> None:
    """The ledger's mapping and the engine's parser agree."""
    for ticker in ("O:TWX140621C00070000", "O:TWX1140621P00067500", "O:A12140621P00067500"):
        assert parse_ticker(ticker).root == option_root(ticker)


@pytest.mark.parametrize(
    ("expiry", "am_settled", "expected"),
    [
        (D(2014, 6, 20), False, "2014-06-20T16:00-04:00"),
        (D(2014, 6, 21), False, "2014-06-20T16:00-04:00"),  # dated on a Saturday
        (D(2014, 6, 21), True, "2014-06-20T09:30-04:00"),
        (D(2014, 4, 18), False, "2014-04-17T16:00-04:00"),  # Good Friday
        (D(2014, 4, 19), True, "2014-04-17T09:30-04:00"),
        (D(2014, 7, 3), False, "2014-07-03T13:00-04:00"),  # early close
        (D(2014, 7, 5), False, "2014-07-03T13:00-04:00"),
        (D(2014, 12, 31), False, "2014-12-31T16:00-05:00"),
    ],
)
def test_last_session_close(expiry: datetime.date, am_settled: bool, expected: str) -> None:
    """The last session on or before the date; its close, or its open where the root settles in the morning."""
    assert expiry_ns(expiry, KNOWN, policy="last-session-close", am_settled=am_settled) == (ns(expected), False)


@pytest.mark.parametrize(
    ("expiry", "am_settled", "expected"),
    [
        (D(2016, 1, 15), False, "2016-01-15T16:00-05:00"),
        (D(2015, 1, 17), False, "2015-01-16T16:00-05:00"),
        (D(2015, 7, 19), True, "2015-07-17T09:30-04:00"),
        (D(2013, 1, 18), False, "2013-01-18T16:00-05:00"),
    ],
)
def test_beyond_the_known_sessions_the_end_is_estimated(expiry: datetime.date, am_settled: bool, expected: str) -> None:
    """Weekends are stepped over, daylight saving is kept, and the second value says that it is an estimate."""
    assert expiry_ns(expiry, KNOWN, policy="last-session-close", am_settled=am_settled) == (ns(expected), True)
    assert expiry_ns(expiry, sessions(), policy="last-session-close", am_settled=am_settled)[1]


def test_a_weekend_behind_the_last_known_session_is_not_an_estimate() -> None:
    """A Sunday goes back to the Friday that is the last known session, so nothing has to be guessed."""
    until_friday = sessions(("2014-06-20", "09:30", "16:00", "-04:00"))
    assert expiry_ns(D(2014, 6, 22), until_friday, policy="last-session-close") == (ns("2014-06-20T16:00-04:00"), False)


def test_calendar_1600_is_the_literal_date() -> None:
    """Holiday, Saturday, morning settlement and early closes make no difference; daylight saving does."""
    for expiry, expected in (
        (D(2014, 6, 21), "2014-06-21T16:00-04:00"),
        (D(2014, 7, 3), "2014-07-03T16:00-04:00"),
        (D(2014, 12, 25), "2014-12-25T16:00-05:00"),
    ):
        for am_settled in (False, True):
            found = expiry_ns(expiry, KNOWN, policy="calendar-1600", am_settled=am_settled)
            assert found == (ns(expected), False)


def test_unknown_policy_is_refused() -> None:
    """A word that is neither policy is named."""
    with pytest.raises(ValueError, match="'noon'"):
        expiry_ns(D(2014, 6, 20), KNOWN, policy=cast("ExpiryPolicy", "noon"))


def test_contracts_of_a_batch() -> None:
    """One entry per ticker in the order given, settled in the morning only for the roots named."""
    tickers = ["O:SPX140621C01900000", "O:SPXW140620P01900000", "O:TWX1140621C00070000", "O:TWX160115C00070000"]
    found = contracts_of(tickers, KNOWN, policy="last-session-close", am_settled=frozenset({"SPX"}))
    assert found.strike.tolist() == [1900.0, 1900.0, 70.0, 70.0]
    assert found.is_call.tolist() == [True, False, True, True]
    assert found.standard.tolist() == [True, True, False, True]
    assert found.expiry_estimated.tolist() == [False, False, False, True]
    assert found.expiry_ns[:3].tolist() == [ns(f"2014-06-20T{t}-04:00") for t in ("09:30", "16:00", "16:00")]
    assert contracts_of([], KNOWN, policy="calendar-1600", am_settled=frozenset()).strike.size == 0


def test_roots_settled_in_the_morning_are_those_of_the_packaged_table() -> None:
    """The default setting and the table of roots cannot drift apart."""
    table = RootTable.load()
    assert {root for root, entry in table.entries.items() if entry.am_settled} == set(AM_SETTLED)
