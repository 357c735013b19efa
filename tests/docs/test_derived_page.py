"""The page about derived data names every word that a reader meets in the rows: flags with their bits, rules, counts, statistics."""

from __future__ import annotations

import re

from engines.aggregation.columns import COUNTS, KEYS, S17
from engines.greeks.flags import FLAG_BITS, REMARKS_ONLY
from engines.nbbo.policy import Method, Rule
from engines.nbbo.print_classes import PrintClass
from tests.docs.pages import text_of

PAGE = "docs/derived.md"


def test_every_flag_is_in_the_table_with_its_bit_and_whether_values_are_good() -> None:
    """One line each, in order; the remarks, and only they, say that the values are good."""
    lines = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", text_of(PAGE), re.MULTILINE)
    assert [(int(bit), word) for bit, word, _ in lines] == [(int(flag), flag.words[0]) for flag in FLAG_BITS]
    good = {word for _, word, text in lines if text.endswith("the values are good")}
    assert good == {flag.words[0] for flag in REMARKS_ONLY}


def test_rules_methods_classes_counts_and_statistics_are_named() -> None:
    """Nothing in a row is left to be guessed."""
    text = text_of(PAGE)
    words = [rule.value for rule in Rule] + [method.word for method in Method] + [one.word for one in PrintClass]
    words += [*COUNTS, *S17, *(key for key in KEYS if key != "covered_minutes")]
    assert [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)] == []
