"""What engines count: names with units, sentences for operators, series that stay few."""

from __future__ import annotations

import re

import pytest

from engines.contract import Number
from engines.feed_numbers import FeedNumbers
from m17d.exposition import engine_families

NOW_NS = 1_381_152_600_000_000_000


def test_a_feed_says_what_it_delivered_dropped_and_how_late_it_is() -> None:
    """Counters count up, the lag is the newest event's age by its own time, and absent before the first event."""
    feed = FeedNumbers()
    assert "feed_lag_seconds" not in {number.name for number in feed.numbers(NOW_NS)}

    feed.events, feed.connected, feed.newest_ns = 10, True, NOW_NS - 1_500_000_000
    feed.drop("late")
    feed.drop("queue_full", 3)
    feed.drop("late", 2)

    shown = {(number.name, *number.labels.values()): number.value for number in feed.numbers(NOW_NS)}
    assert shown == {
        ("feed_events",): 10,
        ("feed_reconnects",): 0,
        ("feed_connected",): 1,
        ("feed_drops", "late"): 3,
        ("feed_drops", "queue_full"): 3,
        ("feed_lag_seconds",): 1.5,
    }


def test_numbers_of_several_engines_are_one_family() -> None:
    """The engine is a label; equal names meet in one family, and a counter gets its suffix."""
    both = {
        "trade_ws": [Number("feed_drops", "Dropped.", 2, counter=True, labels={"reason": "late"})],
        "quote": [Number("feed_drops", "Dropped.", 5, counter=True, labels={"reason": "late"})],
    }
    families, left_out = engine_families(both)

    assert [family.name for family in families] == ["m17_feed_drops"]
    assert [(sample.name, sample.labels, sample.value) for sample in families[0].samples] == [
        ("m17_feed_drops_total", {"engine": "trade_ws", "reason": "late"}, 2),
        ("m17_feed_drops_total", {"engine": "quote", "reason": "late"}, 5),
    ]
    assert left_out == 0


def test_an_engine_with_too_many_series_is_cut_and_counted() -> None:
    """A label that takes a symbol would fill the collector of a site; it costs the engine its own surplus only."""
    many = [Number("rows", "Rows.", 1, labels={"symbol": f"S{index}"}) for index in range(100)]
    families, left_out = engine_families({"loud": many, "calm": [Number("rows", "Rows.", 1, labels={"symbol": "A"})]})

    assert len(families[0].samples) == 65
    assert left_out == 36


@pytest.mark.parametrize("number", FeedNumbers(drops={"late": 1}, newest_ns=1).numbers(NOW_NS), ids=lambda n: n.name)
def test_a_number_speaks_to_an_operator(number: Number) -> None:
    """A lower-case name without the suffix that the exposition adds, and a whole sentence of help."""
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", number.name)
    assert not number.name.endswith("_total")
    assert number.help.endswith(".")
