"""Websocket events to closed minutes, columns and all, as a share of decoding the same frames and nothing else."""

from __future__ import annotations

import json
from typing import Any

from engines.feeds.stream_events import FRAME
from engines.feeds.stream_intake import StreamIntake
from tests.bench.registry import in_turns

EVENTS = 400_000
EVENTS_PER_FRAME = 50
TICKERS = 1_000
REACH = 0.3
_START_MS = 1_381_152_600_000


def frames(events: int = EVENTS) -> list[bytes]:
    """Frames of four quotes to a trade over five minutes; the same bytes every time."""
    made, state, frame = [], 1, []
    for number in range(events):
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        pick = state >> 33
        ticker, millisecond = f"SYM{pick % TICKERS}", _START_MS + number * 300_000 // events
        price = 10 + (pick % 9_000) / 100
        if pick % 5 == 0:
            frame.append(
                {"ev": "T", "sym": ticker, "x": 11, "i": str(number), "z": 1, "p": price, "s": 100,
                 "c": [12, 14, 41][: pick % 4], "t": millisecond, "q": number + 1}
            )  # fmt: skip
        else:
            frame.append(
                {"ev": "Q", "sym": ticker, "bx": 11, "bp": price, "bs": 3, "ax": 12, "ap": price + 0.01, "as": 5, "c": 1,
                 "t": millisecond, "q": number + 1, "z": 1}
            )  # fmt: skip
        if len(frame) == EVENTS_PER_FRAME:
            made.append(json.dumps(frame, separators=(",", ":")).encode())
            frame = []
    return made


def closed_rows(received: list[bytes]) -> int:
    """Rows of all closed minutes of the frames, through the same intake as a live connection's."""
    intake = StreamIntake(of_options=False)
    intake.subscribed()
    rows = 0
    for frame in received:
        intake.frame(frame)
        if intake.is_due:
            rows += sum(minute.rows for minute in intake.due())
    return rows + sum(minute.rows for minute in intake.finish())


def measure() -> dict[str, Any]:
    """The share of events a second that is left once minutes are made of the events."""
    received = frames()
    decoded, whole = in_turns(lambda: [FRAME.decode(frame) for frame in received], lambda: closed_rows(received))
    events = len(received) * EVENTS_PER_FRAME
    value = decoded / whole
    return {
        "name": "stream_vs_decode",
        "value": value,
        "unit": "share",
        "reach": REACH,
        "ok": value >= REACH and closed_rows(received) == events,
        "detail": {
            "decode_events_per_s": round(events / decoded),
            "closed_events_per_s": round(events / whole),
            "events": events,
        },
    }
