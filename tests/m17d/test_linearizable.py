"""
Four clients clear, refresh, undo and prioritise the same cells while their engine fills them and the daemon is killed:
every cell's recorded history could have happened one operation at a time, and no acknowledged region is lost.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ledger.columns import Column
from m17ctl.client import Client
from m17ctl.errors import ClientError, DaemonUnreachable, OutcomeUnknown, RemoteFailure
from m17d import protocol
from tests.ledger.states import findings
from tests.m17d import flat_files
from tests.m17d.histories import NEVER, Cell, Op, UndecidedError, effects, filled_by_engine, linearization, with_ghosts
from tests.m17d.test_daemon import start, wait_for

SESSION = "2013-05-01"
CELLS = (("AAA", "10:00"), ("AAA", "10:10"), ("BBB", "10:00"))
CLIENTS = 4
ROOT = Path(__file__).resolve().parents[2]


class Rival:
    """One client process: does what chance says to one cell after the other, and writes down what it saw."""

    def __init__(self, socket: Path, seed: int, out: Path) -> None:
        self.client = Client(socket, timeout_s=120)
        self.chance = random.Random(seed)
        self.out = out.open("w")
        self.known: list[tuple[int, str, str]] = []
        """Operations that may be undone: cell, kind, name."""

    def run(self, stop: Path) -> None:
        """Go on until the file is there."""
        while not stop.exists():
            which = self.chance.randrange(len(CELLS))
            self.step(which, self.chance.choices(("read", "clear", "refresh", "undo", "region"), (5, 2, 2, 3, 1))[0])
            time.sleep(self.chance.random() * 0.03)
        self.out.close()

    def step(self, which: int, kind: str) -> None:
        """One operation."""
        symbol, at = CELLS[which]
        chosen = protocol.Range(session=SESSION, from_ts=at, to_ts=at[:-1] + "1", symbols=symbol)
        trades = [Column.TRADE_REF]
        if kind == "read":
            self.tell(which, kind, lambda: (self.read(symbol, at), ""))
        elif kind == "clear":
            request = protocol.ClearRequest(columns=trades, range=chosen, cause="rivalry")
            self.take(which, kind, request)
        elif kind == "refresh":
            self.take(which, kind, protocol.RefreshRequest(columns=trades, range=chosen, cause="rivalry"))
        elif kind == "undo" and self.known:
            which, what, name = self.known.pop(self.chance.randrange(len(self.known)))
            self.tell(which, f"undo {what}", lambda: (self.undo(name), name), name)
        elif kind == "region":
            self.region(symbol)

    def read(self, symbol: str, at: str) -> list[object]:
        """Status, version, wanted."""
        row = self.client.call(protocol.RowRequest(symbol=symbol, at=at, session=SESSION))
        slot = row.slots[Column.TRADE_REF]
        return [slot.status, slot.version, "wanted" in slot.flags]

    def take(self, which: int, kind: str, request: protocol.ClearRequest | protocol.RefreshRequest) -> None:
        """Clear or refresh, and remember how to undo it."""

        def ask() -> tuple[object, str]:
            reply = self.client.call(request)
            taken = bool(sum(reply.cleared.values()))
            if taken:
                self.known.append((which, kind, reply.operation))
            return taken, reply.operation

        self.tell(which, kind, ask)

    def undo(self, name: str) -> bool:
        """Whether the cell was set back."""
        try:
            reply = self.client.call(protocol.UndoRequest(operation=name, cause="rivalry"))
        except RemoteFailure as failure:
            if failure.code != "address":
                raise
            return False
        return bool(sum(reply.restored.values()))

    def region(self, symbol: str) -> None:
        """Add a region; sometimes remove it again."""
        request = protocol.PriorityAddRequest(
            symbol=symbol, from_ts="09:40", to_ts="09:50", priority=1, session=SESSION
        )
        with suppress(ClientError):
            added = self.client.call(request)
            self.write({"region": added.id})

    def tell(self, which: int, kind: str, ask: Callable[[], tuple[object, str]], name: str = "") -> None:
        """Do it, and write down when it was called and answered, and what it got."""
        called = time.monotonic_ns()
        entry: dict[str, object] = {"cell": which, "kind": kind, "called": called, "name": name}
        try:
            answer, name = ask()
            entry |= {"answered": time.monotonic_ns(), "answer": answer, "name": name}
        except DaemonUnreachable:
            # That is a promise that nothing was done: what was done all the same is an effect without an operation.
            return
        except OutcomeUnknown:
            # Nobody knows whether it was done.
            pass
        self.write(entry)

    def write(self, entry: dict[str, object]) -> None:
        """One line."""
        self.out.write(json.dumps(entry) + "\n")


def histories(files: list[Path]) -> tuple[list[list[Op]], list[int]]:
    """What the rivals wrote down, cell by cell, and the regions that they were given."""
    found: list[list[Op]] = [[] for _ in CELLS]
    regions = []
    for file in files:
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "region" in entry:
                regions.append(entry["region"])
                continue
            answer = entry.get("answer")
            answer = tuple(answer) if isinstance(answer, list) else answer
            op = Op(entry["kind"], entry["called"], entry.get("answered", NEVER), answer, entry["name"])
            found[entry["cell"]].append(op)
    return found, regions


def storm(folder: Path, kills: int, calm_s: float, seed: int) -> dict[str, int]:
    """Rivals over a daemon that is killed now and then; judges what they saw. Returns figures."""
    flat_files.write(folder, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    flat_files.write_config(folder, [SESSION])
    socket, deaths, stop = folder / "ledger.state" / "m17d.sock", [], folder / "stop"
    process = start(folder)
    wait_for(process, folder, "cells set", timeout_s=120)
    with Client(socket, timeout_s=120) as client:
        row = [client.call(protocol.RowRequest(symbol=one, at=at, session=SESSION)) for one, at in CELLS]
    first = [Cell(one.slots[Column.TRADE_REF].status, one.slots[Column.TRADE_REF].version, False) for one in row]
    files = [folder / f"rival{number}" for number in range(CLIENTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rivals = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.m17d.test_linearizable", socket, str(seed + number), file, stop],
            env=environment,
            cwd=ROOT,
        )
        for number, file in enumerate(files)
    ]
    try:
        for _ in range(kills):
            time.sleep(calm_s)
            process.kill()
            process.wait()
            # Not before it is gone: until then it may still have done something.
            deaths.append(time.monotonic_ns())
            process = start(folder)
            wait_for(process, folder, "serving on", timeout_s=120)
        time.sleep(calm_s)
        stop.touch()
        assert [rival.wait(120) for rival in rivals] == [0] * CLIENTS
        found, regions = histories(files)
        with Client(socket, timeout_s=120) as client:
            # Every region that somebody was promised is known, with the id he was given.
            assert len(set(regions)) == len(regions)
            for one in regions:
                assert client.call(protocol.PriorityShowRequest(id=one)).id == one
            assert client.call(protocol.VerifyRequest()).findings == []
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    for number, history in enumerate(found):
        judged = with_ghosts(history, deaths)
        assert linearization(judged, first[number]) is not None, (
            seed,
            CELLS[number],
            sorted(judged, key=lambda op: op.called),
        )
    assert findings(folder / "ledger.state") == []
    changes = sum(op.kind != "read" and op.answer is True for history in found for op in history)
    return {"operations": sum(map(len, found)), "changes": changes, "regions": len(regions), "kills": kills}


def test_histories_of_rivals_are_linearizable(tmp_path: Path) -> None:
    """A few seconds, and a death in the middle."""
    done = storm(tmp_path, kills=1, calm_s=2.5, seed=20130501)
    assert done["operations"] > 40
    assert done["changes"] > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_histories_of_rivals_are_linearizable_at_length(tmp_path: Path) -> None:
    """Many deaths, another seed each time; printed, so that a history can be had again."""
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"\nrivals: seed {seed}")
    print(f"rivals: {storm(tmp_path, kills=20, calm_s=3.0, seed=seed)}")


def test_checker_finds_what_could_not_have_happened() -> None:
    """A lost clear, a read of the past, a version counted twice, an undo of what was changed since."""
    first = Cell("filled", 1, False)
    read = Op("read", 0, 1, ("filled", 1, False))
    clear = Op("clear", 2, 3, True, "op-1")
    refilled = Op("read", 4, 5, ("filled", 3, False))
    assert linearization([read, clear, refilled], first) == [
        "read ('filled', 1, False)", "clear True", "engine", "read ('filled', 3, False)",
    ]  # fmt: skip
    for wrong in (
        Op("read", 4, 5, ("filled", 1, False)),
        Op("read", 4, 5, ("filled", 2, False)),
        Op("read", 4, 5, ("cleared", 3, False)),
        Op("read", 4, 5, ("filled", 5, False)),
    ):
        assert linearization([read, clear, wrong], first) is None
    # While the clear is on its way both are possible; once somebody saw the new, nobody sees the old.
    slow = Op("clear", 2, 20, True, "op-1")
    old, new = Op("read", 4, 5, ("filled", 1, False)), Op("read", 6, 7, ("cleared", 2, False))
    assert linearization([slow, old, new], first) is not None
    backwards = [slow, Op("read", 4, 5, ("cleared", 2, False)), Op("read", 6, 7, ("filled", 1, False))]
    assert linearization(backwards, first) is None
    undo = Op("undo clear", 6, 7, True, "op-1")
    assert linearization([clear, undo, Op("read", 8, 9, ("filled", 3, False))], first) is not None
    assert linearization([clear, refilled, undo], first) is None
    lost = Op("clear", 2, NEVER, None)
    assert linearization([lost, Op("read", 9, 10, ("filled", 1, False))], first) is not None
    assert linearization([lost, Op("read", 9, 10, ("cleared", 2, False))], first) is not None
    ghosts = with_ghosts([Op("clear", 2, 9, False)], [5])
    assert linearization([*ghosts, Op("read", 10, 11, ("filled", 3, False))], first) is not None
    # What the dead daemon may have done was done before it died.
    alive = Op("read", 6, 7, ("filled", 1, False))
    assert linearization([*ghosts, alive, Op("read", 10, 11, ("filled", 3, False))], first) is None
    # A read that changes nothing is not put before an operation in doubt that is over when it is called.
    doubtful, late = Op("clear", 2, 5), Op("read", 6, 7, ("cleared", 2, False))
    assert linearization([Op("refresh", 1, 30, False), Op("read", 3, 20, ("cleared", 2, False)), doubtful, late], first)


def made_up(seed: int, operations: int) -> tuple[list[Op], list[int]]:
    """A history of four clients that happened, one operation at a time, and when the daemon died meanwhile."""
    chance = random.Random(seed)
    cell, now, names, deaths = Cell("filled", 1, False), 0, [""], []
    busy = [0] * CLIENTS
    history: list[Op] = []
    for number in range(operations):
        now += chance.randrange(1, 10)
        client = min(range(CLIENTS), key=lambda one: busy[one])
        now = max(now, busy[client] + 1)
        kind = chance.choices(("read", "clear", "refresh", "undo clear", "undo refresh"), (5, 2, 2, 2, 1))[0]
        name = chance.choice(names[-4:]) if kind.startswith("undo") else "" if kind == "read" else f"op-{number}"
        if chance.random() < 0.3 and (refilled := filled_by_engine(cell)) is not None:
            cell = refilled
        called, answered = now - chance.randrange(now - busy[client]), now + chance.randrange(20)
        cell, answer = next(effects(cell, Op(kind, called, answered, name=name)))
        if answer is True and kind in ("clear", "refresh"):
            names.append(name)
        history.append(Op(kind, called, answered, answer, name))
        busy[client] = answered
        if number % 100 == 99:
            deaths.append(now)
    return history, deaths


@pytest.mark.parametrize("seed", range(6))
def test_checker_decides_long_histories_in_few_states(seed: int) -> None:
    """Of thousands of operations and dozens of deaths, whether they could have happened or not."""
    history, deaths = made_up(seed, 4_000)
    first, judged = Cell("filled", 1, False), with_ghosts(history, deaths)
    assert len(judged) > len(history) + 20
    assert linearization(judged, first, at_most=30_000) is not None
    # Late in it a read saw what had long gone, or what came long after: everything before is gone through, and nothing fits.
    reads = [index for index, op in enumerate(history) if op.kind == "read"]
    read = reads[-60]
    for seen in (reads[-120], reads[-1]):
        judged[read] = replace(history[read], answer=history[seen].answer)
        assert linearization(judged, first, at_most=30_000) is None
    with pytest.raises(UndecidedError, match=r"100 states, \d+ of 4000 operations"):
        linearization(with_ghosts(history, deaths), first, at_most=100)


if __name__ == "__main__":
    Rival(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])).run(Path(sys.argv[4]))
