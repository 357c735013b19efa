"""
Sections of the report about cells: the map of the session, counts by column, what is wrong and why, lags, operations.

Pure: the daemon's reply in, markup out. This module must never count a cell itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from typing import Any, Final

from ledger.columns import Column
from m17ctl.formats import format_bytes, format_clock, format_count, format_duration, format_share, format_time
from m17ctl.heatmap import LEGEND, glyph
from m17ctl.render import due, sound
from m17ctl.report.markup import Markup, code, legend, section, sentence, table
from m17ctl.report.svg import BLUE, GREY, ORANGE, PURPLE, SKY, VERMILION, Run, Strip, bars, strips
from m17d.outcomes import ReportReply
from m17d.replies import Cause, Counts

COLORS: Final = {
    "█": BLUE,
    "·": GREY,
    "▓": SKY,
    "▒": ORANGE,
    "░": "var(--sand)",
    "E": VERMILION,
    "C": "var(--rust)",
    "P": "var(--sage)",
    "S": PURPLE,
    "T": "var(--plum)",
    "-": "var(--rule)",
    " ": "var(--track)",
}
"""Colour of each character of the terminal's map; trouble carries its letter too."""
_NORMAL: Final = ("no_data",)
"""Causes that need nobody."""


def coverage_map(reply: ReportReply, zone: tzinfo) -> Markup:
    """Time across, columns down, one mark a minute."""
    by_minute = reply.coverage.by_minute
    minutes = (
        sorted((int(start), columns) for start, columns in by_minute.items()) if isinstance(by_minute, dict) else []
    )
    if not minutes or not reply.coverage.symbols:
        return section(
            "The session", "Which minutes of which column are whole.", sentence("No symbol is known in this session.")
        )
    starts = [start for start, _ in minutes]
    seen: set[str] = set()
    lines = []
    for column in Column:
        counts = [columns.get(column, Counts()) for _, columns in minutes]
        characters = [glyph(one) for one in counts]
        seen.update(characters)
        total = reply.coverage.columns.get(column, Counts())
        lines.append(
            Strip(column.value, _runs(characters, counts, starts, zone), format_share(sound(total), due(total)))
        )
    ticks = [
        (at, clock) for at, start in enumerate(starts) if (clock := format_clock(start, zone)).endswith(("00", "30"))
    ]
    entries = [(COLORS[character], LEGEND[character]) for character in LEGEND if character in seen]
    return section(
        "The session",
        "One mark is one minute over all symbols; whole = filled, fresh and not suspect. Pointing at a mark shows its counts.",
        strips(lines, len(starts), ticks, "coverage of the session by column and minute"),
        legend(entries),
    )


def _runs(characters: Sequence[str], counts: Sequence[Counts], starts: Sequence[int], zone: tzinfo) -> list[Run]:
    """Neighbours of one character and equal counts together."""
    runs: list[Run] = []
    at = 0
    while at < len(characters):
        end = at + 1
        while end < len(characters) and characters[end] == characters[at] and counts[end] == counts[at]:
            end += 1
        character, one = characters[at], counts[at]
        words = ", ".join(
            f"{name.replace('_', ' ')} {getattr(one, name):,}" for name in one.__struct_fields__ if getattr(one, name)
        )
        span = format_clock(starts[at], zone) + (f" to {format_clock(starts[end - 1], zone)}" if end - at > 1 else "")
        runs.append(Run(at, end, COLORS[character], character if character.isalpha() else "", f"{span}: {words}"))
        at = end
    return runs


def columns_table(reply: ReportReply) -> Markup:
    """Counts of cells by column."""
    facts = reply.facts
    rows = []
    for column, counts in reply.coverage.columns.items():
        numbers = [due(counts), counts.filled, counts.no_data, counts.empty, counts.cleared, counts.pending]
        numbers += [counts.suspect, counts.stale]
        numbers += [facts.get(word, {}).get(column.value, 0) for word in ("partial", "wanted")]
        numbers += [counts.not_due, counts.not_applicable]
        rows.append(
            [column.value, format_share(sound(counts), due(counts)), *(format_count(number) for number in numbers)]
        )
    headers = ["column", "whole", "due", "filled", "no data", "empty", "cleared", "pending"]
    headers += ["suspect", "stale", "partial", "wanted", "not due", "not applicable"]
    by_source = [
        f"{column}: " + ", ".join(f"{word.replace('_', ' ')} {format_count(number)}" for word, number in found.items())
        for column, found in facts.get("by_source", {}).items()
    ]
    return section(
        "Cells by column",
        "Due cells are those that should be filled by now; no data, suspect, stale, partial and wanted are parts of filled.",
        table(headers, rows, right="l" + "r" * (len(headers) - 1), key="columns"),
        sentence("Where filled cells came from: " + "; ".join(by_source) + ".") if by_source else "",
    )


def usable(reply: ReportReply) -> Markup:
    """Rows against usable rows, by derived column."""
    quality = reply.coverage.quality
    found: dict[str, dict[str, int]] = quality if isinstance(quality, dict) else {}
    derived = [(name, one) for name, one in found.items() if one.get("rows") and "usable_rows" in one]
    shares = [
        (
            name,
            one["usable_rows"] / one["rows"],
            f"{format_count(one['usable_rows'])} of {format_count(one['rows'])}, {format_share(one['usable_rows'], one['rows'])}",
        )
        for name, one in derived
    ]
    lacks = [
        [name, word.replace("_", " "), format_count(number), format_share(number, one["rows"])]
        for name, one in derived
        for word, number in one.items()
        if word not in ("rows", "usable_rows")
    ]
    return section(
        "Filled against usable",
        "A cell can be filled and of little use: rows without a side, without a volatility, without a spot.",
        bars(shares, "usable share of the rows of derived columns", top_value=1.0)
        if shares
        else sentence("No derived rows."),
        table(["column", "what rows lack or carry", "rows", "share"], lacks, right="llrr", key="lacks")
        if lacks
        else "",
    )


def causes(reply: ReportReply, zone: tzinfo) -> Markup:
    """Groups of cells that are not as they should be, with a remedy each."""
    wrong = [cause for cause in reply.causes if cause.cause not in _NORMAL]
    rows = [_cause_row(cause, zone) for cause in wrong]
    silent = sum(cause.cells for cause in reply.causes if cause.cause in _NORMAL)
    headers = ["cause", "columns", "cells", "symbols", "from", "to", "what it is, and what to do"]
    return section(
        "What is wrong, and why",
        "Cells by root cause, suspect and partial windows included; the command is to be pasted.",
        table(headers, rows, right="llrrrrl", key="causes") if rows else sentence("Nothing."),
        sentence(
            f"{format_count(silent)} further cells have no data: their source was looked at and has no rows there."
        )
        if silent
        else "",
    )


def _cause_row(cause: Cause, zone: tzinfo) -> list[str]:
    what = Markup(
        sentence(cause.detail) if cause.detail and not cause.remedy else f"{sentence(cause.detail)}{code(cause.remedy)}"
    )
    columns = ", ".join(column.value for column in cause.columns)
    span = [format_clock(cause.first, zone), format_clock(cause.last, zone)]
    return [cause.cause.replace("_", " "), columns, format_count(cause.cells), format_count(cause.symbols), *span, what]


def lags(reply: ReportReply, zone: tzinfo) -> Markup:
    """How long after their end windows were filled."""
    found: dict[str, dict[str, Any]] = reply.facts.get("lags", {})
    rows = [
        [
            name,
            format_count(one["cells"]),
            *(format_duration(one[key]) for key in ("median_s", "p95_s", "max_s")),
            format_time(one["first_ts"] - one["first_ts"] % 1_000_000_000, zone),
            format_time(one["last_ts"] - one["last_ts"] % 1_000_000_000, zone),
        ]
        for name, one in found.items()
    ]
    headers = ["column", "filled", "median lag", "95 % within", "longest", "first set", "last set"]
    return section(
        "Lags",
        "From the end of a window until its cell was last set: seconds on a live day, long for a session filled from files later.",
        table(headers, rows, right="lrrrrrr", key="lags") if rows else sentence("Nothing is filled."),
    )


def sources(reply: ReportReply) -> Markup:
    """Upstream files and streams, with what lies outside the session."""
    rows = []
    for one in reply.sources:
        outside = one.out_of_session
        rejected = ", ".join(f"{word} {format_count(number)}" for word, number in one.rejected.items()) or "0"
        # A stream has no count of rows: what came of it is in the cells.
        brought = "" if one.state == "open" and not one.rows else format_count(one.rows)
        amounts = [format_count(outside.get(key, 0)) for key in ("rows", "volume", "auction_rows", "auction_volume")]
        rows.append([one.dataset, one.state, brought, rejected, *amounts, format_bytes(one.bytes), one.detail])
    headers = [
        "dataset",
        "state",
        "rows",
        "rejected",
        "rows outside",
        "volume outside",
        "auction rows",
        "auction volume",
        "size",
        "",
    ]
    return section(
        "Sources, auctions and what lies outside the session",
        "Rows before the open and from the close on are kept beside the session, in no cell; auction prints among them are counted apart.",
        table(headers, rows, right="llrrrrrrrl", key="sources") if rows else sentence("No source is known."),
    )


def operations(reply: ReportReply, zone: tzinfo) -> Markup:
    """What operators and recovery did to the session."""
    rows = []
    for one in reply.operations:
        who = one.get("operator", {})
        cells = ", ".join(f"{column} {format_count(number)}" for column, number in one.get("cells", {}).items())
        place = " ".join(str(one["range"][key]) for key in ("symbol", "symbols") if one.get("range", {}).get(key))
        when = format_time(one["ts"] - one["ts"] % 1_000_000_000, zone)
        rows.append(
            [
                when,
                who.get("user") or str(who.get("uid", "")),
                one["op"],
                place,
                cells,
                one.get("cause", ""),
                one.get("result", ""),
            ]
        )
    headers = ["when", "who", "what", "symbols", "cells", "cause", "result"]
    return section(
        "Repairs and other operations",
        "From the audit log, which also says who the operating system says it was.",
        table(headers, rows, right="lllllll", key="operations") if rows else sentence("None."),
    )
