"""
The faults that the replay server makes on request, as a value, and the text that asks for them.

``disconnect=600,late=1000:5,429=7`` is a list of ``name=every[:amount]``. All of them are counted in events, frames,
requests or seconds of the session's own time, so a run with faults is as repeatable as one without. This module must
never do anything; it says what is to be done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Final

FAULTS: Final = {
    "disconnect": "disconnect=S: every S s of market time the connection is closed (1012); the next one goes on there",
    "abort": "abort=S: every S s the connection is cut without a word; the next one begins 5 s of market time earlier",
    "kick": "kick=S: every S s the client is told max_connections and closed (1008)",
    "stall": "stall=S[:W]: every S s nothing is sent for W s (5)",
    "cut": "cut=HH:MM-HH:MM: closed at the first time; what lies between is never sent",
    "duplicate": "duplicate=N: every Nth event is sent twice",
    "late": "late=N[:S]: every Nth event comes S s (5) of market time late",
    "garbage": "garbage=N: before every Nth frame comes one that is no frame",
    "429": "429=N[:S]: every Nth HTTP request is answered 429 with Retry-After S (1), and answered when it comes again",
    "500": "500=N: every Nth HTTP request is answered 500, and answered when it comes again",
    "busy": "busy=N[:S]: of N + 1 websocket handshakes in a row the first N are answered 429 with Retry-After S (1)",
    "repeat_page": "repeat_page=N: every Nth page names itself as the next one",
}
"""What each fault does; also the command's help."""

_SPAN: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_FIELD: Final = {"429": "too_many", "500": "broken"}


@dataclass(frozen=True, slots=True)
class Faults:
    """
    What goes wrong; 0 means never. See :data:`FAULTS`.

    Attributes:
        cut_minutes: minutes of the local day, from and to, or None.
    """

    disconnect: float = 0
    abort: float = 0
    kick: float = 0
    stall: float = 0
    stall_amount: float = 5
    cut_minutes: tuple[int, int] | None = None
    duplicate: int = 0
    late: int = 0
    late_amount: float = 5
    garbage: int = 0
    too_many: int = 0
    too_many_amount: float = 1
    broken: int = 0
    repeat_page: int = 0
    busy: int = 0
    busy_amount: float = 1


def parse_faults(text: str) -> Faults:
    """
    The faults of a list such as ``disconnect=600,late=1000:5``.

    Raises:
        ValueError: an unknown name, or an amount that is none; the message names it and what is known.
    """
    values: dict[str, Any] = {}
    names = {each.name: each for each in fields(Faults)}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, amount = part.partition("=")
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r}; known: {', '.join(FAULTS)}")
        if name == "cut":
            found = _SPAN.fullmatch(amount)
            if found is None:
                raise ValueError(f"{part!r}: expected {FAULTS[name]}")
            hours = [int(each) for each in found.groups()]
            values["cut_minutes"] = (hours[0] * 60 + hours[1], hours[2] * 60 + hours[3])
            if values["cut_minutes"][0] >= values["cut_minutes"][1]:
                raise ValueError(f"{part!r}: the end lies before the beginning")
            continue
        field = _FIELD.get(name, name)
        every, _, more = amount.partition(":")
        try:
            values[field] = int(every) if names[field].type == "int" else float(every)
            if more:
                if f"{field}_amount" not in names:
                    raise ValueError
                values[f"{field}_amount"] = float(more)
        except ValueError:
            raise ValueError(f"{part!r}: expected {FAULTS[name]}") from None
        if values[field] <= 0 or values.get(f"{field}_amount", 0) < 0:
            raise ValueError(f"{part!r}: expected {FAULTS[name]}")
    return Faults(**values)
