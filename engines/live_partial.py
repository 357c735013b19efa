"""
Windows that a gap overlaps, of a whole connection and of single tickers or globs of tickers.

A plain value that goes to workers. This module must never know a connection or a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ledger.columns import OptionRows
from ledger.roots import OPTION_PREFIX, symbol_of

_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class PartialWindows:
    """
    Attributes:
        everywhere: bool[minutes], windows that a gap of the connection overlaps.
        of_symbol: by symbol, bool[minutes], windows that a gap of its own overlaps.
        of_glob: by glob over tickers, likewise.
    """

    everywhere: np.ndarray
    of_symbol: dict[str, np.ndarray]
    of_glob: dict[str, np.ndarray]

    @staticmethod
    def of_minutes(minutes: int) -> PartialWindows:
        """No window of so many is partial."""
        return PartialWindows(np.zeros(minutes, dtype=bool), {}, {})

    def add(self, ticker: str | None, mask: np.ndarray, option_rows: OptionRows) -> None:
        """A gap of a ticker, a glob over tickers, or of all (None, ``*``) overlaps windows, bool[minutes]."""
        if ticker in (None, "*"):
            self.everywhere[:] |= mask
            return
        assert ticker is not None
        is_glob = not _WILD.isdisjoint(ticker)
        held, name = (self.of_glob, ticker) if is_glob else (self.of_symbol, symbol_of(ticker, option_rows))
        held[name] = held[name] | mask if name in held else mask

    def own(self, symbol: str) -> np.ndarray | None:
        """bool[minutes], windows that gaps of a symbol's own tickers overlap; None where it has no such gap."""
        masks = [mask for glob, mask in self.of_glob.items() if _may_be_of(glob, symbol)]
        if symbol in self.of_symbol:
            masks.append(self.of_symbol[symbol])
        return np.logical_or.reduce(masks) if masks else None


def _may_be_of(glob: str, symbol: str) -> bool:
    """Whether a ticker of the symbol may pass the glob; of a chain, whose contracts are not at hand, as far as is known."""
    if fnmatchcase(symbol, glob):
        return True
    if not symbol.startswith(OPTION_PREFIX):
        return False
    known = glob[: min(glob.find(sign) for sign in _WILD if sign in glob)]
    return known.startswith(symbol) or symbol.startswith(known)
