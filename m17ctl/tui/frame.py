"""
An aggregation frame as text that a person reads: what the window is, its counts, and a table of statistics by sample.

The text is what the screen shows and what ``c`` copies. Pure; this module must never open an artifact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any, Final

from m17ctl.formats import format_clock
from m17ctl.render import fields, table

STATISTICS: Final = (
    "total", "minimum", "q1", "q2", "q3", "maximum", "mean", "stddev", "skew", "kurtosis", "iqr", "mad", "cv", "mode", "bc",
    "dip_pval", "kde_peaks",
)  # fmt: skip
"""What a sample is described by; the rows of the table."""
_KEYS: Final = frozenset({
    "window", "window_start_ns", "window_end_ns", "available_ns", "symbol", "minute", "short", "covered_minutes",
})  # fmt: skip
_ROW_SPANS: Final = ("_row_start", "_row_end")
_CELL: Final = 14
_SIDES: Final = ("puts", "calls")


def frame_text(symbol: str, window: str, session: str, row: Mapping[str, Any], zone: tzinfo, width: int) -> list[str]:
    """
    The lines of a frame.

    Args:
        row: one row of an aggregate artifact, by column.
        zone: in which times are shown.
        width: characters a line may take.
    """
    start, end = int(row["window_start_ns"]), int(row["window_end_ns"])
    title = f"{symbol} {window} {session} {format_clock(start, zone)} to {format_clock(end, zone)}"
    if row.get("short"):
        title += f", short: {row.get('covered_minutes')} minutes to the close"
    samples, plain = split(row)
    lines = [title, ""]
    lines += _prices(plain)
    sides = {side: {name.removeprefix(f"{side}_"): value for name, value in plain.items() if name.startswith(f"{side}_")}
             for side in _SIDES}  # fmt: skip
    counts = [
        (name, number(value))
        for name, value in plain.items()
        if not name.startswith(("underlying_price_", *(f"{side}_" for side in _SIDES)))
    ]
    lines += _in_columns(counts, width)
    mix = list(dict.fromkeys(name for side in _SIDES for name in sides[side]))
    shares = [[name, *(number(sides[side].get(name)) for side in _SIDES)] for name in mix]
    lines += ["", *table(["share of trades", *_SIDES], shares, width=width, right="lrr")]
    at_once = max(1, (width - 10) // (_CELL + 2))
    names = list(samples)
    for at in range(0, len(names), at_once):
        some = names[at : at + at_once]
        rows = [
            [statistic, *(number(samples[name].get(statistic)) for name in some)]
            for statistic in STATISTICS
            if any(statistic in samples[name] for name in some)
        ]
        lines += ["", *table(["", *(_short(name) for name in some)], rows, width=width, right="l" + "r" * len(some))]
    return lines


def split(row: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The columns of a row as samples (name -> statistic -> value) and the others, in their order; keys left out."""
    samples: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    suffixes = sorted(STATISTICS, key=len, reverse=True)
    for name, value in row.items():
        if name in _KEYS or name.endswith(_ROW_SPANS):
            continue
        statistic = next((one for one in suffixes if name.endswith(f"_{one}")), None)
        if statistic is None:
            plain[name] = value
        else:
            samples.setdefault(name.removesuffix(f"_{statistic}"), {})[statistic] = value
    return samples, plain


def number(value: Any) -> str:
    """A number for people: five digits that matter, thousands apart, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        size = abs(value)
        if size >= 1e13 or (size and size < 1e-4):
            return f"{value:.4g}"
        decimals = 0 if size >= 100_000 else 2 if size >= 10 else 4
        return f"{value:,.{decimals}f}"
    return str(value)


def _prices(plain: Mapping[str, Any]) -> list[str]:
    names = ("open", "high", "low", "close")
    found = [(name, plain.get(f"underlying_price_{name}")) for name in names]
    return ["price  " + "  ".join(f"{name} {number(value)}" for name, value in found), ""]


def _in_columns(pairs: Sequence[tuple[str, str]], width: int) -> list[str]:
    """``name value`` pairs in as many columns as fit, read downward."""
    if not pairs:
        return []
    lines = fields(pairs)
    cell = max(map(len, lines)) + 3
    across = max(1, width // cell)
    down = -(-len(lines) // across)
    return ["".join(line.ljust(cell) for line in lines[at::down]).rstrip() for at in range(down)]


def _short(sample: str) -> str:
    return sample.replace("underlying_dollar_value", "dollar value").replace("_", " ")
