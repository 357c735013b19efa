"""
HTML in small: tables, sections, tiles, and the style of the page.

Everything that is not already markup is escaped here. This module must never know the ledger, nor name anything that a
browser would have to fetch.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def shown(value: str) -> str:
    """Text as markup."""
    return value if isinstance(value, Markup) else escape(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: str, key: str) -> Markup:
    """
    A table.

    Args:
        headers: one a column.
        rows: cells, escaped where they are no `Markup`.
        right: one letter a column, ``l`` or ``r``.
        key: names the table to who reads the page by program (``data-table``).
    """
    head = "".join(f"<th{_class(side, name)}>{escape(name)}</th>" for side, name in zip(right, headers, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(side, cell)}>{shown(cell)}</td>" for side, cell in zip(right, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return Markup(
        f'<div class="wide"><table data-table="{escape(key)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _class(side: str, cell: str) -> str:
    """Numbers stand right; noughts are faint, so that the others are seen."""
    return "" if side == "l" else ' class="r z"' if cell == "0" else ' class="r"'


def section(title: str, note: str, *parts: str) -> Markup:
    """A section with a heading, a line that says how to read it, and its parts."""
    body = "".join(shown(part) for part in parts)
    return Markup(f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>')


def heading(words: str) -> Markup:
    """A heading inside a section."""
    return Markup(f"<h3>{escape(words)}</h3>")


def sentence(words: str) -> Markup:
    """A paragraph."""
    return Markup(f"<p>{escape(words)}</p>")


def tile(value: str, words: str, kind: str = "") -> Markup:
    """A figure with its words; ``kind`` is ``good``, ``bad`` or nothing."""
    return Markup(f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(words)}</span></div>')


def tiles(*parts: Markup) -> Markup:
    """Tiles beside each other."""
    return Markup(f'<div class="tiles">{"".join(parts)}</div>')


def code(command: str) -> Markup:
    """A command to paste."""
    return Markup(f"<code>{escape(command)}</code>") if command else Markup("")


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Colours and what they mean."""
    parts = "".join(f'<span><i style="background:{color}"></i>{escape(words)}</span>' for color, words in entries)
    return Markup(f'<div class="legend">{parts}</div>')


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


STYLE: Final = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1d252c; --soft: #5b6670; --ink: #4a5560; --faint: #b3bac1;
  --rule: #e3e6ea; --hair: #eef0f2; --track: #f1f3f5; --grey: #c9ced4; --blue: #0072b2; --sky: #56b4e9; --orange: #e69f00;
  --vermilion: #d55e00; --purple: #b0568f; --sand: #e8c27a; --rust: #8c3a00;
  --sage: #7fb8a4; --plum: #6b5b95; --bad: #c04f00; --verdict: #e6f1f8; --verdict-bad: #fbeee5; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #12161a; --card: #1a2026; --text: #e4e8ec; --soft: #9aa5b0;
  --ink: #b4bec8; --faint: #55606b; --rule: #323b44; --hair: #262e36; --track: #242c34; --grey: #55606b; --blue: #3d9bd6; --sky: #8fd0f5;
  --orange: #e69f00; --vermilion: #ee7a30; --purple: #cf83b4; --sand: #a8873f;
  --rust: #a8501a; --sage: #7fb8a4; --plum: #8d7cbc; --bad: #f0884a; --verdict: #17303f; --verdict-bad: #3a251a; } }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0; }
header .sub { color: var(--ink); margin: 2px 0 14px; }
.verdict { padding: 10px 14px; border-radius: 6px; border-left: 6px solid var(--blue); background: var(--verdict); font-weight: 600; }
.verdict.bad { border-color: var(--vermilion); background: var(--verdict-bad); }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 18px 20px; margin-top: 16px; }
.note { color: var(--soft); margin: 2px 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px; margin-top: 14px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 18px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 12.5px; }
.tile.good b { color: var(--blue); } .tile.bad b { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12.5px; border-bottom: 2px solid var(--rule); padding: 4px 10px 4px 0; white-space: nowrap; }
td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--hair); vertical-align: top; }
td p { margin: 0 0 3px; } td.z { color: var(--faint); }
tr:last-child td { border-bottom: 0; }
.r { text-align: right; white-space: nowrap; }
code { font: 12px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--track); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; font-family: inherit; margin: 4px 0 10px; }
svg.spark { width: 120px; height: 30px; margin: -4px 0; display: inline-block; }
h3 { font-size: 14px; margin: 14px 0 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--ink); font-size: 12.5px; margin-bottom: 12px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
footer { color: var(--soft); font-size: 12.5px; margin-top: 18px; overflow-wrap: anywhere; }
@media print { body { background: #fff; font-size: 12px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } section { border: 0; padding: 0; margin-top: 22px; } tr, svg, .tile { break-inside: avoid; }
  h2, h3, .note, thead { break-after: avoid; } .tiles { grid-template-columns: repeat(7, 1fr); } .tile { padding: 6px 8px; }
  .tile b { font-size: 14px; } th, td { padding-right: 6px; } .wide { overflow: visible; } }
"""
