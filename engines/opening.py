"""
Opening: how much of sessions that are not mapped one planning maps, however many there are that it would look at.

To map a full day's file takes a second or two, and a year has hundreds. This module must never write a cell.
"""

from __future__ import annotations

import time
from typing import Final

from ledger.ledgers import Ledger

OPENED_S: Final = 0.003
"""How long sessions are mapped in one planning."""


class Opening:
    """One planning's share, which begins with the first session that has to be mapped."""

    def __init__(self) -> None:
        self._until_s: float | None = None

    def is_mapped(self, ledger: Ledger, session_seq: int) -> bool:
        """Whether a session can be looked at now; where not, it is mapped a little, unless the share is used up."""
        if session_seq in ledger.mapped():
            return True
        now_s = time.monotonic()
        if self._until_s is None:
            self._until_s = now_s + OPENED_S
        elif now_s >= self._until_s:
            return not ledger.exists(session_seq)
        return ledger.open_some(session_seq, self._until_s)
