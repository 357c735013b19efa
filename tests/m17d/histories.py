"""
Histories of one cell, and whether they could have happened one operation at a time.

The search of Wing and Gong with Lowe's memory of what was tried, over one cell at a time, since operations on different
cells do not meet. An operation takes effect at one moment between its call and its answer; one of which nobody knows whether
it was done takes effect at one moment between its call and its end, or never; the engine fills a cell that is not filled, or
wanted, at any moment. The cell's version counts every effect, so that nothing can hide, and a read of an older version
ends a wrong guess at once.

What is held of a state is only what can still differ: the first operation that is not placed, those placed behind it, and
those placed in doubt that are not over. So a step costs what happens at one moment, not the length of the history, and
guesses about an operation in doubt are forgotten when it is over. A search that grows all the same ends with an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

NEVER = 1 << 62
STATES_AT_MOST = 200_000


class UndecidedError(Exception):
    """So many states were looked at that the search would not end in a useful time."""


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

    ``answer`` is what it got: of a read (status, version, wanted), of a change whether it had an effect; None where nobody
    knows whether it was done, then ``answered`` is when it is over. ``name`` is that of the operation which a clear or refresh
    was, or which an undo undoes.
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


class _State(NamedTuple):
    """How far a search is; those that are equal go on equally."""

    low: int
    """The first operation that was answered and is not placed."""
    ahead: int
    """Bit n: the operation n behind ``low`` is placed."""
    doubts: int
    """Bit n: the doubtful operation n is placed, and not over."""
    cell: Cell


class _Path(NamedTuple):
    """The way to a state, last step first."""

    before: _Path | None
    step: str


class _Search:
    """The operations of one history, and what may come next."""

    def __init__(self, history: list[Op]) -> None:
        ops = sorted(history, key=lambda op: op.called)
        self.sure = [op for op in ops if op.answer is not None]
        self.doubtful = [op for op in ops if op.answer is None]
        self.oldest = [NEVER] * (len(self.sure) + 1)
        """The oldest version that any read from here on saw."""
        for index in range(len(self.sure) - 1, -1, -1):
            self.oldest[index] = min(self.oldest[index + 1], _version_seen(self.sure[index]))

    def possible(self, state: _State) -> list[int] | None:
        """
        Operations that may be the next; None where one that is left saw a version that is gone.

        Nothing that was called after another's answer may come before that other.
        """
        found, index, horizon = [], state.low, NEVER
        while index < len(self.sure) and self.sure[index].called <= horizon:
            if not state.ahead >> (index - state.low) & 1:
                found.append(index)
                horizon = min(horizon, self.sure[index].answered)
                if _version_seen(self.sure[index]) < state.cell.version:
                    return None
            index += 1
        if self.oldest[index] < state.cell.version:
            return None
        return [index for index in found if self.sure[index].called <= horizon]

    def doubts(self, state: _State, now: int) -> Iterator[tuple[int, Op]]:
        """Doubtful operations that are neither placed nor over."""
        for number, op in enumerate(self.doubtful):
            if op.answered >= now and not state.doubts >> number & 1:
                yield number, op

    def placed(self, state: _State, index: int, cell: Cell, now: int) -> _State:
        """After an operation that was answered."""
        low, ahead = state.low, state.ahead | 1 << (index - state.low)
        while ahead & 1:
            low, ahead = low + 1, ahead >> 1
        return self._settled(_State(low, ahead, state.doubts, cell), now)

    def doubted(self, state: _State, number: int, cell: Cell, now: int) -> _State:
        """After a doubtful operation."""
        return self._settled(state._replace(doubts=state.doubts | 1 << number, cell=cell), now)

    def _settled(self, state: _State, now: int) -> _State:
        if not state.doubts:
            return state
        over = sum(1 << number for number, op in enumerate(self.doubtful) if op.answered < now)
        return state._replace(doubts=state.doubts & ~over)

    def steps(self, state: _State, now: int) -> list[tuple[_State, int, str]]:
        """States behind this one, the likeliest last; ``now`` is the latest call of what is placed."""
        possible = self.possible(state)
        if possible is None:
            return []
        horizon = min((self.sure[index].answered for index in possible), default=NEVER)
        idle, changing = [], []
        for index in possible:
            op = self.sure[index]
            for after, answer in effects(state.cell, op):
                if op.answer == answer:
                    then = max(now, op.called)
                    step = (self.placed(state, index, after, then), then, f"{op.kind} {answer}")
                    (idle if after == state.cell else changing).append(step)
        doubts = [(number, op) for number, op in self.doubts(state, now) if op.called <= horizon]
        if idle and all(op.answered >= idle[0][1] for _, op in doubts):
            # What fits and changes nothing may as well happen now, unless a doubtful operation would be over then.
            return idle[:1]
        doubted = []
        for number, op in doubts:
            for after, answer in effects(state.cell, op):
                if after != state.cell:
                    then = max(now, op.called)
                    doubted.append((self.doubted(state, number, after, then), then, f"{op.kind} {answer}, in doubt"))
        refilled = filled_by_engine(state.cell)
        engine = [] if refilled is None else [(state._replace(cell=refilled), now, "engine")]
        return doubted + engine + changing + idle


def _version_seen(op: Op) -> int:
    return op.answer[1] if isinstance(op.answer, tuple) else NEVER


def linearization(history: list[Op], first: Cell, at_most: int = STATES_AT_MOST) -> list[str] | None:
    """
    An order in which the operations could have happened one by one, engine included; None where there is none.

    Args:
        history: all operations on one cell.
        first: what the cell was before any of them.
        at_most: states to look at.

    Raises:
        UndecidedError: that many states did not decide it.
    """
    search = _Search(history)
    tried: set[_State] = set()
    stack: list[tuple[_State, int, _Path | None]] = [(_State(0, 0, 0, first), 0, None)]
    while stack:
        state, now, path = stack.pop()
        if state.low == len(search.sure):
            return _steps_of(path)
        if state in tried:
            continue
        if len(tried) == at_most:
            raise UndecidedError(f"{at_most} states, {state.low} of {len(search.sure)} operations")
        tried.add(state)
        stack += [(after, then, _Path(path, step)) for after, then, step in search.steps(state, now)]
    return None


def _steps_of(path: _Path | None) -> list[str]:
    order = []
    while path is not None:
        order.append(path.step)
        path = path.before
    return order[::-1]


def with_ghosts(history: list[Op], deaths: list[int]) -> list[Op]:
    """
    A history in which changes that were on their way when the daemon died may have happened once more.

    A caller sends again what was not answered; where the daemon died between the effect and the memory of its key, the
    effect is there and nobody was told, or the next start takes it back before it answers anybody.
    """
    ghosts: list[Op] = []
    for number, op in enumerate(history):
        for death in deaths:
            if op.kind == "read" or not op.called <= death <= op.answered:
                continue
            if op.kind.startswith("undo"):
                ghosts.append(replace(op, answered=death, answer=None))
                continue
            name = f"ghost {number} {death}"
            ghosts.append(replace(op, answered=death, answer=None, name=name))
            ghosts.append(Op(f"undo {op.kind}", death, op.answered, name=name))
    return history + ghosts
