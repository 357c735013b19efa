"""
What `m17ctl watch` does between the daemon and the terminal: which events pass, where to go on, what an event says in words.

This module must never drop an event without saying so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import msgspec

from m17ctl.errors import DaemonUnreachable
from m17ctl.formats import encode_json, format_clock, format_count, format_time
from m17ctl.invocation import CommandFailed, Invocation
from m17d.outcomes import Event, SubscribeReply

_RESTART_SECONDS: Final = 60.0
"""How long a daemon that went away is waited for: as long as a restart may take."""
_AGAIN_SECONDS: Final = 0.5
_SAVE_SECONDS: Final = 0.5
_MS: Final = 1_000_000
_SECOND: Final = 1000 * _MS


class Position(msgspec.Struct, frozen=True):
    """Where to go on: the number of the next event, and which start of the daemon counts so."""

    epoch: str = ""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events pass; None lets all pass. An event that does not name what is asked for does not pass."""

    engine: str | None = None
    session: str | None = None
    symbols: str | None = None

    def passes(self, event: Event) -> bool:
        """Whether an event names the engine, session and a symbol that are wanted."""
        facts = event.facts
        if self.engine is not None and self.engine not in (facts.get("engine"), facts.get("by")):
            return False
        if self.session is not None and facts.get("session") != self.session:
            return False
        return self.symbols is None or self._names_symbol(facts)

    def _names_symbol(self, facts: dict[str, Any]) -> bool:
        named = [facts["symbol"]] if "symbol" in facts else facts.get("symbols", [])
        assert self.symbols is not None
        # An event names a few symbols of many: it may be about the wanted one.
        unnamed = facts.get("symbols_total", 0) > len(named)
        return unnamed or any(fnmatchcase(str(one), glob) for one in named for glob in self.symbols.split(","))


class Watch:
    """
    One run of `watch`.

    Args:
        topics: none means all.
        begin: where to begin; None begins now.
        file: where the position is kept, so that another run goes on there; None keeps none.
    """

    def __init__(
        self, invocation: Invocation, topics: list[str], begin: Position | None, file: Path | None, idle_s: float | None
    ) -> None:
        self._invocation = invocation
        self._topics = topics
        self._position = begin
        self._file = file
        self._idle_s = idle_s
        self._saved_s = 0.0

    @property
    def epoch(self) -> str:
        """Which start of the daemon numbers the events; with an event's number it says where to go on."""
        return "" if self._position is None else self._position.epoch

    def events(self) -> Iterator[Event]:
        """
        Events as they come, over a restart of the daemon too; what cannot be had any more is said.

        Raises:
            ClientError: see `m17ctl.client`; `DaemonUnreachable` when the daemon stays away.
        """
        invocation, away_since = self._invocation, None
        heard = False
        try:
            while True:
                try:
                    for one in self._subscribed():
                        heard, away_since = True, None
                        if isinstance(one, Event):
                            yield one
                            self._passed(one)
                    return
                except DaemonUnreachable:
                    now = invocation.now()
                    if away_since is None:
                        away_since = now
                        if heard:
                            self._say(f"the daemon went away; waiting up to {_RESTART_SECONDS:.0f} s for it")
                    if not heard or now - away_since > _RESTART_SECONDS:
                        raise
                    invocation.connection.close()
                    invocation.sleep(_AGAIN_SECONDS)
        finally:
            self._save()

    def _subscribed(self) -> Iterator[Event | SubscribeReply]:
        at = self._position
        stream = self._invocation.connection.subscribe(
            *self._topics,
            from_seq=at.seq if at is not None and at.epoch else None,
            epoch=at.epoch if at is not None and at.epoch else None,
            idle_s=self._idle_s,
        )
        for one in stream:
            if isinstance(one, SubscribeReply):
                if one.resync:
                    self._say("earlier events are gone; read the state with: m17ctl status")
                if at is None or one.epoch != at.epoch or one.resync:
                    self._position = Position(one.epoch, one.seq)
            elif one.lost:
                self._say(f"{one.lost} events before this one were lost")
            yield one

    def _passed(self, event: Event) -> None:
        assert self._position is not None
        self._position = Position(self._position.epoch, event.seq + 1)
        if self._invocation.now() - self._saved_s >= _SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        """Keep the position; an event may come twice after a kill, none is passed over."""
        if self._file is None or self._position is None:
            return
        self._saved_s = self._invocation.now()
        part = self._file.with_name(f".{self._file.name}.{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(self._position) + b"\n")
        part.replace(self._file)

    def _say(self, text: str) -> None:
        self._invocation.terminal.complain(f"m17ctl: {text}")


def kept_position(file: Path) -> Position | None:
    """
    Where a run that kept its position in a file ended; None where there is no file yet.

    Raises:
        CommandFailed: the file is something else.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Position)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        hint = "name another file, or remove it to begin anew"
        raise CommandFailed("bad_request", f"{file} holds no position of m17ctl watch: {error}", hint) from None


def words_of(invocation: Invocation, event: Event) -> str:
    """An event in words; one of a topic or with facts that this version does not know by its facts."""
    try:
        text = _words(invocation, event.topic, event.facts)
    except KeyError:
        text = " ".join(f"{name}={_fact(value)}" for name, value in event.facts.items())
    # Milliseconds always, so that lines stand below each other.
    when = f"{format_time(event.ts // _SECOND * _SECOND + 1, invocation.zone)[:19]}.{event.ts % _SECOND // _MS:03d}"
    return f"{when}  {event.topic:9}  {text}".rstrip()


def _words(invocation: Invocation, topic: str, facts: dict[str, Any]) -> str:
    match topic:
        case "slots":
            return _slots(invocation, facts)
        case "engine":
            detail = f" ({facts['detail']})" if facts.get("detail") else ""
            return f"{facts['engine']}: {facts['before']} -> {facts['state']}{detail}"
        case "region":
            whole = f"{format_count(facts['complete'])} of {format_count(facts['minutes'])} windows whole"
            return f"#{facts['id']} {facts['symbol']} {facts['state']}, {whole}"
        case "task":
            cells = f", {format_count(facts['cells'])} cells" if "cells" in facts else ""
            return f"{facts['engine']} {facts['state']}: {facts.get('reason') or facts['key']}{cells}"
        case "operation":
            about = (
                ("operation", ""),
                ("engine", ""),
                ("action", ""),
                ("region", "region "),
                ("symbol", ""),
                ("session", ""),
            )
            what = "".join(f" {word}{facts[name]}" for name, word in about if facts.get(name))
            return f"{facts['op'].replace('_', ' ')}{what} by {facts.get('user') or 'somebody'}, key {facts['key']}"
        case _:
            raise KeyError(topic)


def _slots(invocation: Invocation, facts: dict[str, Any]) -> str:
    symbols = ", ".join(facts["symbols"][:3])
    more = facts["symbols_total"] - min(3, len(facts["symbols"]))
    who = symbols + (f" and {format_count(more)} more" if more > 0 else "")
    first, last = (format_clock(facts[name], invocation.zone) for name in ("first", "last"))
    done = {"clear": "cleared", "refresh": "asked for again", "undo": "given back"}.get(
        facts["by"], f"set by {facts['by']}"
    )
    return f"{facts['column']} {facts['session']} {who}: {format_count(facts['cells'])} cells {done}, {first} to {last}"


def _fact(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else encode_json(value).decode()
