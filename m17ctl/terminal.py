"""
Where the operator reads and answers: standard streams, width, colour, progress and questions.

Results go to standard output, everything else (errors, progress, questions) to standard error, so that a pipe carries
results alone. This module must never talk to the daemon, and never write a control sequence to what is no terminal.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Final, TextIO

_COLORS: Final = {
    "whole": "94",
    "partial": "33",
    "trouble": "1;91",
    "pending": "36",
    "suspect": "1;35",
    "stale": "1;33",
    "quiet": "2",
    "bold": "1",
}
"""Blue against orange and yellow, never green against red; every colour's meaning is said in words or letters too."""
_FALLBACK: Final = str.maketrans(
    {
        "█": "#",
        "▓": "+",
        "▒": "=",
        "░": "-",
        "·": ".",
        "─": "-",
        "├": "|",
        "│": "|",
        "└": "`",
        "…": "~",
        "▁": "_",
        "▂": "_",
        "▃": "-",
        "▄": "-",
        "▅": "=",
        "▆": "=",
        "▇": "#",
        "≥": ">",
    }
)

_PAINTED: Final = re.compile(r"(\x1b\[[0-9;]+m)([^\x1b]*)(\x1b\[0m)")
"""A line that is painted as a whole."""
_NO_PROSE: Final = ("m17ctl ", "$ ", "├", "│", "└")
"""How commands to paste and trees begin."""


class Terminal:
    """
    The three standard streams and what they can show.

    ``width`` is the terminal's columns, or None where standard output is a file or pipe (nothing is cut then).
    """

    def __init__(
        self,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        stdin: TextIO | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        is_terminal: bool | None = None,
        interactive: bool | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._stdin = sys.stdin if stdin is None else stdin
        environment = os.environ if environment is None else environment
        self.is_terminal = self._stdout.isatty() if is_terminal is None else is_terminal
        both = self._stdin.isatty() and self._stderr.isatty()
        self.interactive = both if interactive is None else interactive
        """Whether a question can be asked and answered."""
        self.shows_progress = self._stderr.isatty() if interactive is None else interactive
        self.color = self.is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        size = shutil.get_terminal_size((100, 24)) if self.is_terminal and width is None else None
        self.width: int | None = width if size is None else size.columns
        self.height: int = height if height is not None else (size.lines if size is not None else 24)
        self._plain_text = not _can_show_shades(self._stdout)
        self._progress_length = 0

    def line(self, text: str = "") -> None:
        """Write one line of the result; on a terminal a longer one goes on, indented, below, between words."""
        self.end_progress()
        for part in self._wrapped(text):
            self._stdout.write(self._shown(part) + "\n")

    def write_bytes(self, data: bytes) -> None:
        """Write encoded JSON and a line end to the result, and let the reader of a pipe see it."""
        self.end_progress()
        self._stdout.write(data.decode("utf-8") + "\n")

    def flush(self) -> None:
        """Let the reader of a pipe see what was written."""
        self._stdout.flush()

    def complain(self, text: str) -> None:
        """Write one line to standard error."""
        self.end_progress()
        self._stderr.write(text + "\n")
        self._stderr.flush()

    def paint(self, text: str, color: str | None) -> str:
        """``text`` in a colour of this module's table, or as it is where colour is not wanted."""
        if not self.color or color is None or not text:
            return text
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"

    def progress(self, text: str) -> None:
        """Show ``text`` as the one changing line on a terminal; nothing elsewhere."""
        if not self.shows_progress:
            return
        text = text[: (self.width or 100) - 1]
        self._stderr.write("\r" + text.ljust(self._progress_length))
        self._stderr.flush()
        self._progress_length = len(text)

    def end_progress(self) -> None:
        """Take the changing line away."""
        if self._progress_length:
            self._stderr.write("\r" + " " * self._progress_length + "\r")
            self._stderr.flush()
            self._progress_length = 0

    def confirm(self, question: str) -> bool:
        """Ask on standard error; only y and yes mean yes."""
        self.end_progress()
        self._stderr.write(f"{question} [y/N] ")
        self._stderr.flush()
        return self._stdin.readline().strip().lower() in ("y", "yes")

    def read_all(self) -> bytes:
        """Everything on standard input."""
        data = getattr(self._stdin, "buffer", None)
        return data.read() if data is not None else self._stdin.read().encode("utf-8")

    def _wrapped(self, text: str) -> list[str]:
        """Prose that is too long, in lines; tables, trees, fields and commands to paste stay in one piece."""
        words = text.lstrip()
        room = (self.width or 0) - (len(text) - len(words)) - 2
        if not self.is_terminal or len(text) <= (self.width or len(text)):
            return [text]
        painted = _PAINTED.fullmatch(text)
        if painted is not None:
            before, inside, after = painted.groups()
            return [before + part + after for part in self._wrapped(inside)]
        if "\x1b" in text:
            return [text]
        if "  " in words or words.startswith(_NO_PROSE) or max(map(len, words.split())) > room:
            return [text]
        indent = text[: len(text) - len(words)]
        return textwrap.wrap(
            words,
            room + len(indent) + 2,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
        )

    def _shown(self, text: str) -> str:
        return text.translate(_FALLBACK) if self._plain_text else text


def _can_show_shades(stream: TextIO) -> bool:
    try:
        "█░─▁".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
