"""
Pages of documentation as what they ask a reader to type: commands, settings, programs.

This file reads Markdown and must never run anything.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


class Block(NamedTuple):
    """A fenced block: its language, what stands behind it on the fence, its text, and the line of the page it begins at."""

    language: str
    note: str
    text: str
    line: int


class Typed(NamedTuple):
    """A command as a shell takes it, and the lines below it."""

    command: str
    shown: list[str]


def text_of(page: str) -> str:
    """The page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order."""
    text = text_of(page)
    found = re.finditer(r"^```(\w*)(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(one[1], one[2].strip(), one[3], text.count("\n", 0, one.start()) + 1)
        for one in found
        if one[1] in languages
    ]


def typed(text: str) -> list[Typed]:
    """The commands of a console block, in order; a remark behind two spaces and ``#`` is none of theirs."""
    found: list[Typed] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Typed(re.sub(r"\s{2,}# .*$", "", line[2:]), []))
        elif line.startswith("> "):
            found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line[2:]}")
        else:
            found[-1].shown.append(line)
    return found


def fits(said: str, shown: list[str]) -> bool:
    """Whether what was said is what is shown; ``…`` stands for anything, over several lines where it is a line's start or end."""
    pattern = re.escape("\n".join(shown)).replace("…", ".*?")
    return re.fullmatch(pattern, said.strip("\n"), re.DOTALL) is not None
