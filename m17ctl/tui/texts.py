"""
The pages' words: help, root causes, one window's cells, and the rows of the lists.

Pure functions from replies to text. This module must never know a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from typing import Any, Final

from m17ctl.formats import NS, format_count, format_share, format_time
from m17ctl.heatmap import LEGEND
from m17ctl.render import bar, fields
from m17ctl.tui.answers import FrameResult
from m17ctl.tui.frame import frame_text
from m17d.outcomes import EngineReply, OperationReply, RegionReply
from m17d.replies import Cause, RowReply

HELP: Final = """\
The map: time across, columns down. A character is some minutes or sessions.

  h l  arrows     move the selection; past the edge: the next span
  H L  shift      extend it              g G    first and last
  Enter           zoom into the selection; on one minute: its cells
  o  Backspace    zoom out               i      in again, where o came from
  up down         one column alone; then p, d and w mean that column
  s               another symbol; an empty answer is all together
  x               aggregation window: engines are asked to fill it over the
                  selection (regions); none takes that back
  j k             next and previous aggregation frame; past the last: live
  c               copy the frame, the page or the map, as text: to the
                  clipboard and to a file
  p               priority region over the selection, drawn under the map
  d               clear the selection with a cause, after a look
  w               why the selection is as it is, and what to do about it
  e  r  a         engines, regions, audit log
  Ctrl+R          ask again for everything
  ?               this page              q      quit; symbol, span, window
                                                and priority are remembered

On the engines' page: p pause, u resume, t retry. On the regions' page: x
takes the region back.

Characters:
{legend}
"""


def help_text() -> str:
    """The help page."""
    legend = "\n".join(f"  {character}  {meaning}" for character, meaning in LEGEND.items() if character != " ")
    return HELP.format(legend=f"{legend}\n  ∙  not known yet")


def why_text(causes: Sequence[Cause], zone: tzinfo) -> str:
    """Root causes, largest first, each with the command to paste."""
    shown = [cause for cause in causes if cause.cause not in ("filled", "not_applicable")]
    if not shown:
        return "every cell that applies is filled, fresh and sound"
    blocks = []
    for cause in shown:
        span = f"{format_time(cause.first, zone)} to {format_time(cause.last, zone)[11:16]}"
        symbols = f"{format_count(cause.symbols)} symbol{'' if cause.symbols == 1 else 's'}"
        head = f"{cause.cause}: {format_count(cause.cells)} cells of {symbols}, {span}"
        lines = [head, f"  {', '.join(cause.columns)}"]
        lines += [f"  {cause.detail}"] if cause.detail else []
        lines += [f"  $ {cause.remedy}"] if cause.remedy else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def cell_text(rows: Sequence[RowReply], zone: tzinfo) -> str:
    """Every column of one window, with the record of each filled cell."""
    blocks = []
    for row in rows:
        lines = [
            f"{row.symbol}  {row.window_id}  {format_time(row.start_ts, zone)} to {format_time(row.end_ts, zone)[11:16]}"
        ]
        for column, slot in row.slots.items():
            words = [slot.status, *slot.flags]
            words += [f"version {slot.version}"] if slot.version else []
            words += [f"from {slot.source}"] if slot.source != "none" else []
            lines.append(f"  {column:14} {', '.join(words)}")
            if isinstance(slot.payload, dict) and "no_rows" not in slot.flags:
                lines += [f"      {line}" for line in fields(_record(slot.payload, zone))]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _record(payload: dict[str, Any], zone: tzinfo) -> list[tuple[str, str]]:
    hidden = ("schema_version", "kind", "no_rows", "retired", "content_hash", "batch_id", "source", "compression")
    pairs = []
    for name, value in payload.items():
        if name in hidden or value in (None, 0, ""):
            continue
        if name.endswith("_ts") and isinstance(value, int):
            pairs.append((name, format_time(value, zone)))
        else:
            counted = isinstance(value, int) and name.endswith(("count", "rows", "trades"))
            pairs.append((name, format_count(value) if counted else str(value)))
    return pairs


LISTS: Final[dict[str, tuple[str, tuple[str, ...], dict[str, str]]]] = {
    "engines": (
        "Engines",
        ("engine", "state", "backlog", "set", "at work", "detail"),
        {"p": "pause", "u": "resume", "t": "retry"},
    ),
    "regions": (
        "Priority regions",
        ("id", "symbol", "when", "priority", "whole", "state", "by"),
        {"x": "take back"},
    ),
    "audit": ("Audit log, the newest first", ("time", "who", "what", "cells", "cause", "where", "result"), {}),
}
"""List to title, headers and the keys that act on a row."""


def engine_rows(engines: Sequence[EngineReply]) -> list[list[str]]:
    """One row an engine."""
    rows = []
    for engine in engines:
        running = engine.facts.get("running", [])
        work = "; ".join(f"{format_share(task['done'], task['total'])} {task['task']}" for task in running)
        counts = format_count(engine.facts.get("cells_set", 0))
        rows.append(
            [engine.name, engine.state, format_count(engine.backlog), counts, work, engine.paused_by or engine.detail]
        )
    return rows


def region_rows(regions: Sequence[RegionReply], zone: tzinfo) -> list[list[str]]:
    """One row a region, with how much of it is whole."""
    return [
        [
            str(region.id),
            region.symbol,
            span_text(region.start_ts, region.end_ts, zone),
            str(region.priority),
            f"{bar(region.complete, region.minutes, 8)} {format_count(region.complete)}/{format_count(region.minutes)}",
            region.state,
            region.operator,
        ]
        for region in regions
    ]


def span_text(start_ns: int, end_ns: int, zone: tzinfo) -> str:
    """``2014-06-06 09:30 to 10:00``, the second date only where it is another."""
    start, end = (format_time(one, zone).replace("T", " ") for one in (start_ns, end_ns))
    return f"{start} to {end[11:] if start[:10] == end[:10] else end}"


def audit_rows(records: Sequence[dict[str, Any]], zone: tzinfo) -> list[list[str]]:
    """One row a record, the newest first."""
    rows = []
    for record in reversed(records):
        operator = record.get("operator") or {}
        cells = sum(number for number in (record.get("cells") or {}).values())
        rows.append(
            [
                format_time(int(record["ts"]) // NS * NS, zone).replace("T", " "),
                str(operator.get("user") or operator.get("uid", "")),
                str(record.get("op", "")),
                format_count(cells) if cells else "",
                str(record.get("cause", "")),
                _where(record.get("range") or {}, zone),
                str(record.get("result", "")),
            ]
        )
    return rows


def _where(where: dict[str, Any], zone: tzinfo) -> str:
    """Where an operation took place: symbols and session or times, then whatever else the record says."""
    rest = {name: value for name, value in where.items() if value is not None}
    symbol = rest.pop("symbols", None) or rest.pop("symbol", "")
    session, start, end = rest.pop("session", ""), rest.pop("from", None), rest.pop("to", None)
    if isinstance(start, int) and isinstance(end, int):
        place = span_text(start, end, zone)
    else:
        place = " ".join(str(one) for one in (session, start, end) if one)
    columns = rest.pop("columns", [])
    others = [f"{name} {value}" for name, value in rest.items()]
    return " ".join([one for one in (str(symbol), place, ",".join(columns)) if one] + others)


def raised_text(regions: Sequence[RegionReply]) -> str:
    """What was raised, in a line."""
    names = ", ".join(f"#{region.id} {region.symbol}" for region in regions[:4])
    more = f" and {len(regions) - 4} more" if len(regions) > 4 else ""
    return f"raised at priority {regions[0].priority}: {names}{more}" if regions else "nothing was raised"


def cleared_text(replies: Sequence[OperationReply]) -> str:
    """What was cleared, and how it is taken back."""
    cells = sum(sum(reply.cleared.values()) for reply in replies)
    undo = "; ".join(f"m17ctl undo {reply.operation}" for reply in replies if sum(reply.cleared.values()))
    return f"{cells:,} cells cleared; to take it back: {undo}"


def frame_page(found: FrameResult, window: str, zone: tzinfo, width: int, *, live: bool) -> tuple[str, str]:
    """Title and text of an aggregation frame."""
    if found.row is None:
        at = format_time(found.start_ns, zone).replace("T", " ")
        title = f"{found.symbol} {window} {at}"
        lines = [
            f"no row: the cell of {found.column} is {found.status}",
            "w on the map says why, x asks engines to fill it",
        ]
    else:
        title, _, *lines = frame_text(found.symbol, window, found.session, found.row, zone, width)
    return title + ("  LIVE" if live else ""), "\n".join(lines)


def engines_line(engines: Sequence[EngineReply]) -> str:
    """For the title: what is wrong, else who works, else that all rest."""
    wrong = [f"{engine.name} {engine.state}" for engine in engines if engine.state in ("failed", "degraded", "paused")]
    work = [f"{engine.name} {engine.backlog:,}" for engine in engines if engine.backlog or engine.facts.get("running")]
    return "  ".join([*wrong, *work]) or "engines at rest"
