"""Answers of mutations whose reader changes: each reader gets all of it, under its own id."""

from __future__ import annotations

from typing import Any, cast

import pytest

from m17d.envelopes import END
from m17d.outcomes import BackupReply
from m17d.outgoing import Outgoing
from m17d.peers import OPERATE, READ, Peer
from m17d.protocol import BackupRequest
from m17d.pushing import Pushing
from m17d.streams import Counters, EventLog, Limits, Origin
from m17d.turns import Turns

PEER = Peer(1000, 1000, 1, "operator", frozenset([READ, OPERATE]))
REQUEST = BackupRequest(directory="/b")


class Sent:
    """Takes what would leave through the socket."""

    def __init__(self) -> None:
        self.gone: set[bytes] = set()
        self.messages: list[tuple[bytes, int, str, int]] = []

    def frames(self, origin: Origin, kind: str, _body: Any, *_: Any, piece: int = 0, **__: Any) -> list[Any]:
        """What identifies a message."""
        return [(origin.id, kind, piece)]

    def send(self, route: bytes, frames: list[Any]) -> bool:
        """It is sent."""
        self.messages.append((route, *frames[0]))
        return True


def origin(route: bytes, number: int) -> Origin:
    """A backup asked for under one key."""
    return Origin(route, [], PEER, number, "backup", "one", REQUEST)


@pytest.mark.parametrize("turns", [0, 1])
def test_a_reader_that_takes_over_gets_every_piece(turns: int) -> None:
    """Before the first piece, and between the last piece and the end: the first reader was killed there."""
    sent, remembered = Sent(), list[str]()

    def attempt(_origin: Origin, step: Any) -> bool:
        step()
        return True

    pushing = Pushing(
        cast("Outgoing", sent),
        attempt,
        lambda key, *_: remembered.append(key),
        EventLog("e", 16),
        Limits(),
        Counters(),
        Turns(),
    )
    pushing.start(origin(b"first", 5), iter([BackupReply(directory="/b", files=1, bytes=2, seconds=0.0)]), 8)
    for _ in range(turns):
        pushing.turn()
    assert len(sent.messages) == turns
    sent.messages.clear()
    assert pushing.join_running(origin(b"second", 9))
    for _ in range(4):
        pushing.turn()
    assert sent.messages == [(b"second", 9, "backup", 0), (b"second", 9, END, 1)]
    assert remembered == ["one"]
