"""
Reads a gzip stream of one or more members to its end, and says whether it was whole.

This module must never keep what it inflates.
"""

from __future__ import annotations

import zlib
from typing import Final

_INFLATED_BYTES: Final = 4 * 1024 * 1024
_GZIP_WINDOW: Final = 31


class GzipCheck:
    """
    One check of one file; those whose name does not end in ``.gz`` pass unread.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self._inflater = zlib.decompressobj(_GZIP_WINDOW) if name.endswith(".gz") else None
        self._bytes = 0
        self._damage = ""

    def take(self, piece: bytes) -> None:
        """The next bytes."""
        if self._inflater is None or self._damage:
            return
        while piece:
            self._bytes += len(piece)
            try:
                if self._inflater.eof:
                    self._inflater = zlib.decompressobj(_GZIP_WINDOW)
                left = piece
                while left:
                    self._inflater.decompress(left, _INFLATED_BYTES)
                    left = self._inflater.unconsumed_tail
            except zlib.error as error:
                self._damage = f"the gzip stream is damaged: {error}"
                return
            piece = self._inflater.unused_data
            self._bytes -= len(piece)

    def damage(self) -> str:
        """All bytes were taken: what is wrong with them, or '' where they were whole, or no ``.gz``."""
        if self._inflater is not None and not self._damage and not self._inflater.eof:
            self._damage = "the gzip stream is cut short"
        return self._damage
