"""
Histories of one cell, and whether they could have happened one operation at a time.

The search of Wing and Gong with Lowe's memory of what was tried: an operation takes effect at one moment between its call
and its answer; one that was never answered at one moment after its call, or never; the engine fills a cell that is not
filled, or wanted, at any moment. The cell's version counts every effect, so that nothing can hide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

NEVER = 1 << 62


class Cell(NamedTuple):
    """What a cell is between two operations."""

    status: str
    version: int
    wanted: bool
    taken: str = ""
    """The operation that made this version, if it may be undone; nothing older can be."""
    was_wanted: bool = False
    """Whether the cell was wanted before that operation."""


@dataclass(frozen=True)
class Op:
    """
    One operation on one cell, as its caller saw it; times are ns of one clock.

    ``answer`` is what it got: of a read (status, version, wanted), of a change whether it had an effect; None for no answer.
    ``name`` is that of the operation which a clear or refresh was, or which an undo undoes.
    """

    kind: str
    called: int
    answered: int = NEVER
    answer: object = None
    name: str = ""


def effects(cell: Cell, op: Op) -> Iterator[tuple[Cell, object]]:
    """What an operation does to a cell, and answers."""
    match op.kind:
        case "read":
            yield cell, (cell.status, cell.version, cell.wanted)
        case "clear" | "refresh":
            applies = cell.status == "filled" and not (op.kind == "refresh" and cell.wanted)
            if not applies:
                yield cell, False
                return
            status = "cleared" if op.kind == "clear" else "filled"
            yield Cell(status, cell.version + 1, op.kind == "refresh", op.name, cell.wanted), True
        case "undo clear" | "undo refresh":
            if not op.name or cell.taken != op.name:
                yield cell, False
                return
            yield Cell("filled", cell.version + 1, op.kind == "undo clear" and cell.was_wanted), True
        case _:
            raise AssertionError(op.kind)


def filled_by_engine(cell: Cell) -> Cell | None:
    """The cell after its engine set it; None where the engine leaves it alone."""
    if cell.status == "filled" and not cell.wanted:
        return None
    return Cell("filled", cell.version + 1, False)


def linearization(history: list[Op], first: Cell) -> list[str] | None:
    """
    An order in which the operations could have happened one by one, engine included; None where there is none.

    Args:
        history: all operations on one cell.
        first: what the cell was before any of them.
    """
    ops = sorted(history, key=lambda op: op.called)
    tried: set[tuple[int, Cell]] = set()
    stack: list[tuple[int, Cell, list[str]]] = [(0, first, [])]
    everything = sum(1 << index for index, op in enumerate(ops) if op.answered != NEVER)
    while stack:
        done, cell, order = stack.pop()
        if done & everything == everything:
            return order
        if (done, cell) in tried:
            continue
        tried.add((done, cell))
        left = [index for index in range(len(ops)) if not done >> index & 1]
        # Versions never go back, so a read of an older one can no longer be placed.
        if any(isinstance(seen := ops[index].answer, tuple) and seen[1] < cell.version for index in left):
            continue
        # Nothing that was called after another's answer may come before that other.
        horizon = min(ops[index].answered for index in left)
        possible = [index for index in left if ops[index].called <= horizon]
        idle, changing = [], []
        for index in possible:
            op = ops[index]
            for after, answer in effects(cell, op):
                if op.answered == NEVER or op.answer == answer:
                    step = (done | 1 << index, after, [*order, f"{op.kind} {answer}"])
                    (idle if after == cell and op.answered != NEVER else changing).append(step)
        if idle:
            # What fits and changes nothing may as well happen now.
            stack.append(idle[0])
            continue
        refilled = filled_by_engine(cell)
        if refilled is not None:
            stack.append((done, refilled, [*order, "engine"]))
        stack += [step for step in changing if step[1] != cell]
    return None


def with_ghosts(history: list[Op], deaths: list[int]) -> list[Op]:
    """
    A history in which changes that were on their way when the daemon died may have happened once more.

    A caller sends again what was not answered; where the daemon died between the effect and the memory of its key, the
    effect is there and nobody was told, or the next start takes it back.
    """
    ghosts: list[Op] = []
    for number, op in enumerate(history):
        if op.kind == "read" or not any(op.called <= at <= op.answered for at in deaths):
            continue
        if op.kind.startswith("undo"):
            ghosts.append(replace(op, answered=NEVER, answer=None))
            continue
        name = f"ghost {number}"
        ghosts.append(replace(op, answered=NEVER, answer=None, name=name))
        ghosts.append(Op(f"undo {op.kind}", op.called, name=name))
    return history + ghosts
