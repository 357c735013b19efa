"""
The state of record of M17: a cell for every symbol, every minute of the trading year and every kind of data.

Importable alone; knows no engine, socket, process or config file. Reading the source, in order: ``columns`` (the
words), ``layout`` (the bytes), ``rows`` (one session of one ledger), ``records`` and ``maps`` (payloads),
``ledgers`` (the named setters), ``state`` (one object opens and closes it all), ``check`` (walks everything).

In a notebook, beside a running daemon::

    import ledger

    state = ledger.open("ledger.state", readonly=True)
    frame = state.scan("trade_ref", symbols="AIG", sessions="2013-10-07").collect()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from ledger.state import State


def open(directory: str | os.PathLike[str], *, readonly: bool = False) -> State:
    """
    Open a state directory; see :func:`ledger.state.open_state`.

    Raises:
        StateError: the directory cannot be used (missing, locked, damaged, of another version).
    """
    from ledger.state import open_state

    return open_state(directory, readonly=readonly)
