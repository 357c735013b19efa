"""
Copying out of a terminal: the terminal's own clipboard (OSC 52), which works over SSH, and always a file beside it.

A terminal that does not know OSC 52 ignores it without a word, so the text is kept in a file too, whose path is said. This
module must never write to the screen but through the function it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

OSC_52_BYTES_MAX: Final = 74_000
"""More than this many bytes of text and common terminals drop all of it."""


def copy(text: str, send: Callable[[str], object], directory: Path) -> str:
    """
    Copy a text, and say in a line where it is.

    Args:
        send: puts a text on the terminal's clipboard.
        directory: where the file ``copied.txt`` is put.
    """
    sent = len(text.encode()) <= OSC_52_BYTES_MAX
    if sent:
        send(text)
    path = directory / "copied.txt"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        return f"copied to the clipboard; {path}: {error.strerror}" if sent else f"not copied: {path}: {error.strerror}"
    return f"copied to the clipboard and to {path}" if sent else f"too long for the clipboard; copied to {path}"
