"""
Opening: requests about a session that is not mapped yet wait for it in steps, while others are served.

To map a full day's file takes a second or two, most of it the check of its seals. This module must never answer a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from ledger.errors import AddressError
from ledger.state import State
from m17d import protocol
from m17d.envelopes import Answer, Piece, Rest
from m17d.replies import Reply

STEP_S: Final = 0.003
"""How long a session is mapped at a time."""
_NEED_ALL: Final = (
    protocol.AcceptRequest,
    protocol.BulkRequest,
    protocol.ClearRequest,
    protocol.CoverageRequest,
    protocol.DigestRequest,
    protocol.RefreshRequest,
    protocol.ReportRequest,
    protocol.SessionsOpenRequest,
    protocol.WaitRequest,
    protocol.WhyRequest,
)
"""Requests that look at all of a session; others look a few symbols up in its file, and map nothing."""


def session_seq_of(state: State, request: protocol.Request) -> int | None:
    """The session whose cells a request is about; None where it names none, or none of the year."""
    if not isinstance(request, _NEED_ALL):
        return None
    try:
        return state.calendar.session_seq(request.range.session if hasattr(request, "range") else request.session)
    except AddressError:
        # Whoever answers it says so.
        return None


def mapped(state: State, session_seq: int) -> Iterator[None]:
    """Map a session; yields between steps, and nothing where it is mapped already or one step is enough."""
    while not state.open_some(session_seq, time.monotonic() + STEP_S):
        yield


def answered_after(steps: Iterator[None], answer: Callable[[], Answer]) -> Iterator[Reply | Piece | Rest | None]:
    """What ``answer`` gives when the steps are over; yields None for each."""
    yield from steps
    found = answer()
    if isinstance(found, Iterator):
        yield from found
    else:
        yield found
