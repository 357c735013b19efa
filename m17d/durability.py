"""
Durability: an answer that is held back until what it tells of is on disk.

The flusher syncs in groups, some milliseconds apart when somebody waits; the daemon's loop goes on meanwhile. This module
must never block, nor answer before the group is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ledger.state import State
from m17d.envelopes import Answer, Piece, Rest
from m17d.outcomes import Progress
from m17d.replies import Reply

_REST: Final = Rest(0.002)


def when_durable(state: State, do: Callable[[], Answer]) -> Iterator[Reply | Piece | Rest | None]:
    """
    The pieces of a mutation's answer, the last one only when everything that was written before it is on disk.

    The mutation is done at the first step, so that one that is refused its place as a stream is not done at all.
    On a full disk it waits for room, for as long as the caller does; the effect is in the ledger meanwhile.

    Raises:
        StateReadOnly: a sync failed; whether the effect is on disk is not known before the state is opened again.
    """
    last: Piece | None = None
    answer = do()
    for item in answer if isinstance(answer, Iterator) else [answer]:
        if item is None or isinstance(item, Progress | Rest):
            yield item
            continue
        if last is not None:
            yield last
        last = item if isinstance(item, Piece) else Piece(item)
    assert state.flusher is not None
    generation = state.flusher.wrote(urgent=True)
    while not state.flusher.durable(generation):
        yield _REST
    if last is not None:
        yield last._replace(durable=True)
