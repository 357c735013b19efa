"""The decision table of the aggressor rule, one line of it a case; every policy by its name, both ties, all counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

from engines.nbbo.arrays import OFFSET_NULL, QuoteArrays, TradeArrays
from engines.nbbo.kernel import classify, count_cells
from engines.nbbo.policy import Method, NbboPolicy, QuoteState, Rule, Side

NOW = 1_381_152_600_000_000_000 + 90_000_000_000
US, SECOND = 1_000, 1_000_000_000
NAN = math.nan

Quote = tuple[int, float, float]
"""Age in ns (negative: after the trade), bid, ask."""


class Line(NamedTuple):
    """One line of the table: what is known of a trade, and what is said of it under the default policy."""

    what: str
    price: float
    previous: float
    quotes: list[Quote]
    side: Side
    method: Method
    confidence: float
    offset_mid_bp: int | None
    state: QuoteState


BUYER, SELLER, UNKNOWN = Side.BUYER, Side.SELLER, Side.UNKNOWN
TOUCH, INSIDE, TICK, NEITHER = Method.NBBO_TOUCH, Method.NBBO_AT_OR_BEYOND, Method.TICK_RULE, Method.UNKNOWN
NORMAL, LOCKED, CROSSED, NONE = QuoteState.NORMAL, QuoteState.LOCKED, QuoteState.CROSSED, QuoteState.NONE
BOOK: list[Quote] = [(5, 10.00, 10.10)]

TABLE = [
    Line("at the ask", 10.10, NAN, BOOK, BUYER, TOUCH, 1.0, 50, NORMAL),
    Line("through the ask", 10.20, NAN, BOOK, BUYER, TOUCH, 1.0, 149, NORMAL),
    Line("below the ask by epsilon", 10.0999, NAN, BOOK, BUYER, TOUCH, 1.0, 50, NORMAL),
    Line("below the ask by more than epsilon", 10.0998, NAN, BOOK, BUYER, INSIDE, 0.7, 50, NORMAL),
    Line("at the bid", 10.00, NAN, BOOK, SELLER, TOUCH, 1.0, -50, NORMAL),
    Line("through the bid", 9.00, NAN, BOOK, SELLER, TOUCH, 1.0, -1045, NORMAL),
    Line("above the bid by epsilon", 10.0001, NAN, BOOK, SELLER, TOUCH, 1.0, -50, NORMAL),
    Line("above the bid by more than epsilon", 10.0002, NAN, BOOK, SELLER, INSIDE, 0.7, -50, NORMAL),
    Line("inside, nearer the ask, whatever the tick", 10.06, 11.0, BOOK, BUYER, INSIDE, 0.7, 10, NORMAL),
    Line("inside, nearer the bid, whatever the tick", 10.04, 9.0, BOOK, SELLER, INSIDE, 0.7, -10, NORMAL),
    Line("exactly at the mid", 10.05, 11.0, BOOK, BUYER, INSIDE, 0.7, 0, NORMAL),
    Line("spread below two epsilon: the ask is asked first", 1.00, NAN, [(5, 1.00, 1.0001)], BUYER, TOUCH, 1.0, 0, NORMAL),
    Line("a bid of 0 under a positive ask is actionable", 0.02, NAN, [(5, 0.0, 0.10)], SELLER, INSIDE, 0.7, -6000, NORMAL),
    Line("an ask of 0 is not; the bid is the mid", 10.1, 10.0, [(5, 10.0, 0.0)], BUYER, TICK, 0.5, 100, NORMAL),
    Line("0/0 is not, and has no mid", 10.1, 10.0, [(5, 0.0, 0.0)], BUYER, TICK, 0.5, None, NORMAL),
    Line("locked: snapshot kept, the tick decides, up", 10.1, 10.0, [(5, 10.0, 10.0)], BUYER, TICK, 0.5, 100, LOCKED),
    Line("locked: the tick decides, down", 9.9, 10.0, [(5, 10.0, 10.0)], SELLER, TICK, 0.5, -100, LOCKED),
    Line("locked: equal price, unknown", 10.0, 10.0, [(5, 10.0, 10.0)], UNKNOWN, NEITHER, 0.0, 0, LOCKED),
    Line("crossed: snapshot kept, the tick decides", 10.1, 10.0, [(5, 10.2, 10.0)], BUYER, TICK, 0.5, 0, CROSSED),
    Line("crossed: no price before, unknown", 10.1, NAN, [(5, 10.2, 10.0)], UNKNOWN, NEITHER, 0.0, 0, CROSSED),
    Line("no quote: uptick", 10.0002, 10.0, [], BUYER, TICK, 0.5, None, NONE),
    Line("no quote: downtick", 9.9998, 10.0, [], SELLER, TICK, 0.5, None, NONE),
    Line("no quote: up by no more than epsilon", 10.00005, 10.0, [], UNKNOWN, NEITHER, 0.0, None, NONE),
    Line("no quote: equal price has no memory", 10.0, 10.0, [], UNKNOWN, NEITHER, 0.0, None, NONE),
    Line("no quote, no price before", 10.0, NAN, [], UNKNOWN, NEITHER, 0.0, None, NONE),
    Line("quote of exactly the limit's age", 10.1, NAN, [(SECOND, 10.0, 10.1)], BUYER, TOUCH, 1.0, 50, NORMAL),
    Line("a microsecond older is stale", 10.1, 10.0, [(SECOND + US, 10.0, 10.1)], BUYER, TICK, 0.5, None, NONE),
    Line("a microsecond younger is not", 10.1, NAN, [(SECOND - US, 10.0, 10.1)], BUYER, TOUCH, 1.0, 50, NORMAL),
    Line("quote at the trade's own time is before it", 10.1, NAN, [(0, 10.0, 10.1)], BUYER, TOUCH, 1.0, 50, NORMAL),
    Line("of equal times the last holds", 10.1, NAN, [(5, 9.0, 9.1), (5, 10.1, 10.2)], SELLER, TOUCH, 1.0, -49, NORMAL),
    Line("a later quote is not looked at", 10.1, 10.0, [(-1, 10.1, 10.2)], BUYER, TICK, 0.5, None, NONE),
]  # fmt: skip


def market(line: Line) -> tuple[TradeArrays, QuoteArrays]:
    """A line's trade and quotes."""
    age, bid, ask = np.array(line.quotes, dtype=np.float64).reshape(-1, 3).T
    size = np.full(len(age), 3.0)
    return (
        TradeArrays(np.zeros(1, np.int32), np.array([NOW]), np.array([line.price]), np.array([line.previous])),
        QuoteArrays(np.zeros(len(age), np.int32), NOW - age.astype(np.int64), bid, ask, size, size),
    )


def classified(line: Line, **settings: Any) -> dict[str, Any]:
    """The columns of a line's trade."""
    columns = classify(*market(line), NbboPolicy(**settings))
    return {name: array[0].item() for name, array in columns._asdict().items()}


@pytest.mark.parametrize("line", TABLE, ids=[line.what for line in TABLE])
def test_every_line_of_the_table(line: Line) -> None:
    """Side, method, confidence, offset and the quote's state under the default settings."""
    row = classified(line)
    offset = None if row["offset_mid_bp"] == OFFSET_NULL else row["offset_mid_bp"]
    found = (row["side"], row["method"], row["confidence"], offset, row["quote_state"])
    assert found == (line.side, line.method, line.confidence, line.offset_mid_bp, line.state)
    assert math.isnan(row["bid"]) == (line.state is NONE)


@pytest.mark.parametrize("line", TABLE, ids=[line.what for line in TABLE])
@pytest.mark.parametrize("rule", list(Rule))
def test_every_policy_by_its_name(rule: Rule, line: Line) -> None:
    """At the touch all agree but for the name; inside and at the mid each does what it says; without a quote none differs."""
    row, default = classified(line, policy=rule.value), classified(line)
    mid, actionable = row["exact_mid"], default["method"] in (TOUCH, INSIDE)
    tick = classified(line._replace(quotes=[]))["side"]
    if not actionable:
        expected = default["side"]
    elif rule is Rule.LEE_READY:
        expected = tick if mid else BUYER if line.price > (row["bid"] + row["ask"]) / 2 else SELLER
    elif rule is Rule.TOUCH_ONLY and default["method"] == INSIDE:
        expected = tick
    elif rule is Rule.NEAREST_SIDE_MID_UNKNOWN and mid and default["method"] == INSIDE:
        expected = UNKNOWN
    else:
        expected = default["side"]
    assert row["side"] == expected


@pytest.mark.parametrize("line", [line for line in TABLE if line.method is TICK], ids=lambda line: line.what)
def test_without_the_tick_rule_these_lines_are_unknown(line: Line) -> None:
    """The quote alone decides nothing there, and no offset is added."""
    row = classified(line, tick_rule=False)
    assert (row["side"], row["method"], row["confidence"]) == (UNKNOWN, NEITHER, 0.0)


def test_before_takes_no_quote_of_the_trades_own_time() -> None:
    """Under the other tie rule the quote before it holds; both rules say that there was a tie."""
    line = Line("tied", 10.1, NAN, [(7, 10.1, 10.2), (0, 10.0, 10.1)], BUYER, TOUCH, 1.0, 50, NORMAL)
    for tie, side in (("at-or-before", BUYER), ("before", SELLER)):
        row = classified(line, quote_tie=tie)
        assert (row["side"], row["quote_tied"]) == (side, True)


def test_counts_of_a_cell_are_those_of_its_lines() -> None:
    """Locked, crossed, stale, missing, tied, exactly at the mid, unknown and usable: each trade once where it belongs."""
    rows = [classified(line) for line in TABLE]
    totals = np.zeros(8, dtype=np.int64)
    for line in TABLE:
        counts = count_cells(classify(*market(line), NbboPolicy()), np.array([0]), np.array([1]))
        totals += np.array([int(one[0]) for one in counts])
    names = ("locked", "crossed", "stale", "missing", "tied", "exact_mid", "unknown", "usable")
    said = dict(zip(names, totals.tolist(), strict=True))
    assert said == {
        "locked": 3,
        "crossed": 2,
        "stale": 1,
        "missing": 6,
        "tied": 1,
        "exact_mid": 1,
        "unknown": sum(row["side"] == UNKNOWN for row in rows),
        "usable": sum(row["side"] != UNKNOWN for row in rows),
    }
