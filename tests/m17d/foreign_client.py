"""
A client of another hand: written from protocol.md alone, with pyzmq and msgspec and nothing of M17.

``python foreign_client.py SOCKET SESSION SYMBOL`` reads a row, reads in bulk against credit, clears a range twice under one
key, follows the events of it, and prints what it saw as one JSON object. It must never import a module of this project.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from typing import Any

import msgspec
import zmq

PATH, SESSION, SYMBOL = sys.argv[1:4]
K0_TO_STATUS = {0: "empty", 1: "pending", 2: "filled", 3: "cleared"}


class Caller:
    """One DEALER; answers are found by the id of their request."""

    def __init__(self) -> None:
        # "connect a plain Unix stream socket first"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(PATH)
        self.dealer = zmq.Context.instance().socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.dealer.setsockopt(zmq.IMMEDIATE, 1)
        self.dealer.connect(f"ipc://{PATH}")
        self.number = 0
        self.waiting: list[tuple[dict[str, Any], bytes]] = []

    def ask(self, body: dict[str, Any], **envelope: Any) -> int:
        """Send a request; its id."""
        self.number += 1
        self.dealer.send(msgspec.msgpack.encode({"protocol": 1, "id": self.number, "body": body, **envelope}))
        return self.number

    def answer(self, number: int, timeout_ms: int = 20_000) -> tuple[dict[str, Any], bytes]:
        """The next message for a request: envelope and slab."""
        end = time.monotonic() + timeout_ms / 1e3
        while time.monotonic() < end:
            for place, (envelope, _) in enumerate(self.waiting):
                if envelope["id"] == number:
                    return self.waiting.pop(place)
            if self.dealer.poll(200):
                frames = self.dealer.recv_multipart()
                self.waiting.append((msgspec.msgpack.decode(frames[0]), frames[1] if len(frames) > 1 else b""))
        raise TimeoutError(f"no answer to {number}")


def bulk(caller: Caller) -> dict[str, Any]:
    """Every row of the session in pieces of one credit each."""
    number = caller.ask({"op": "bulk", "ledger": "trade", "range": {"session": SESSION}}, credit=1)
    rows, filled, pieces, numbers = 0, 0, 0, []
    while True:
        envelope, slab = caller.answer(number)
        if not envelope.get("more", False):
            break
        body = envelope["body"]
        assert len(slab) == body["rows"] * body["row_bytes"]
        column = body["columns"].index("trade_ref")
        for row in struct.iter_unpack(body["row_format"], slab):
            # A header of five fields, then ten of each column; the second of a slot is its status.
            filled += K0_TO_STATUS[row[5 + 10 * column + 1]] == "filled"
            rows += 1
        pieces += 1
        numbers.append(envelope.get("piece", 0))
        caller.ask({"op": "credit", "stream": number, "pieces": 1})
    return {"kind": envelope["kind"], "rows": rows, "filled": filled, "pieces": pieces, "numbers": numbers}


def clear(caller: Caller) -> dict[str, Any]:
    """Clear half an hour, and send it again as if no answer had come."""
    chosen = {"session": SESSION, "from_ts": "10:00", "to_ts": "10:30", "symbols": SYMBOL}
    body = {"op": "clear", "columns": ["trade_ref"], "range": chosen, "cause": "a foreign hand"}
    key, answers = f"foreign-{os.urandom(8).hex()}", []
    deadline = int(time.time() * 1e3) + 20_000
    for _ in range(2):
        number = caller.ask(body, key=key, deadline_ms=deadline, claimed={"ssh": "10.1.2.3"})
        while True:
            envelope, _ = caller.answer(number)
            if envelope["kind"] == "clear":
                answers.append({"replayed": envelope.get("replayed", False), **envelope["body"]})
            if not envelope.get("more", False):
                break
    refused, _ = caller.answer(caller.ask(body))
    return {"answers": answers, "without_key": refused["body"]["code"]}


def main() -> None:
    """One of each kind of request."""
    caller = Caller()
    row, _ = caller.answer(caller.ask({"op": "row", "symbol": SYMBOL, "at": f"{SESSION}T10:00"}))
    read = bulk(caller)
    events = caller.ask({"op": "subscribe", "topics": ["slots"], "lease_ms": 20_000})
    subscribed, _ = caller.answer(events)
    changed = clear(caller)
    seen, numbers = None, []
    while seen is None:
        event, _ = caller.answer(events)
        numbers.append(event["body"]["seq"])
        if event["body"]["facts"].get("by") == "clear":
            seen = event["body"]["facts"]
    ended, _ = caller.answer(caller.ask({"op": "cancel", "stream": events}))
    unknown, _ = caller.answer(caller.ask({"op": "no_such_thing"}))
    print(
        json.dumps(
            {
                "row": row["body"],
                "version": row["version"],
                "bulk": read,
                "first_event": subscribed["body"]["seq"],
                "event_numbers": numbers,
                "event": seen,
                "clear": changed,
                "cancelled": ended["kind"],
                "unknown": unknown["body"]["code"],
            }
        )
    )
    caller.dealer.close()
    zmq.Context.instance().term()


if __name__ == "__main__":
    main()
