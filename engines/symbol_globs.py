"""
Which symbols an engine takes: globs of its config table, and globs of a file that may grow while the daemon runs.

The file has one glob a line; blank lines and what follows ``#`` count for nothing. This module must never know which
symbols there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

WILD: Final = frozenset("*?[")
"""A glob without any of these spells a symbol."""


class SymbolGlobs:
    """
    The globs of an engine; empty means all symbols.

    Args:
        patterns: of the config, None for none.
        file: of further globs, None for none.

    Raises:
        ValueError: the file cannot be read, or has no glob in it.
    """

    def __init__(self, patterns: list[str] | None, file: Path | None) -> None:
        self._patterns = list(patterns or [])
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self.problem = ""
        """Why the file cannot be read now; the globs of before hold."""
        self.globs: list[str] = self._patterns
        if file is not None and (not self.look() or self.problem):
            raise ValueError(self.problem or f"{file}: no symbol in it")

    def look(self) -> bool:
        """Read the file again where it was changed; True where that gave other globs."""
        if self._file is None:
            return False
        try:
            status = self._file.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return False
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.problem = f"symbols_file {self._file}: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            return False
        self._seen, self.problem = seen, ""
        found = [text for line in lines if (text := line.partition("#")[0].strip())]
        if not found:
            self.problem = f"symbols_file {self._file}: no symbol in it"
            return False
        globs = list(dict.fromkeys([*self._patterns, *found]))
        changed = globs != self.globs
        self.globs = globs
        return changed

    @property
    def spelled(self) -> list[str]:
        """Symbols that are spelled without a wildcard."""
        return [glob for glob in self.globs if not WILD.intersection(glob)]
