"""
Log lines: to stderr, one line each; with a priority prefix under journald, with time and level elsewhere.

This module must never log to a file of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _OneLine(logging.Formatter):
    def __init__(self, *, journald: bool) -> None:
        super().__init__("%(message)s" if journald else "%(asctime)s %(levelname)s %(message)s")
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", " | ")
        return f"<{_PRIORITY.get(record.levelname, 6)}>{text}" if self._journald else text


def set_up() -> logging.Logger:
    """The daemon's logger, writing to stderr; journald is recognised by its JOURNAL_STREAM."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(journald="JOURNAL_STREAM" in os.environ))
    logger = logging.getLogger("m17d")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def log_line(logger: logging.Logger, level: str, message: str) -> None:
    """One line at a level given as a word."""
    logger.log(logging.getLevelNamesMapping()[level.upper()], "%s", message)
