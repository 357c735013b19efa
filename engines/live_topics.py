"""
What a live engine asks a feed for: from globs over tickers to topics, and to what is kept of a wildcard.

The service knows tickers and ``*``; it has no wildcard for quotes of options. This module must never open a connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import numpy as np

from ledger.columns import Column, OptionRows, SymbolClass
from ledger.roots import OPTION_PREFIX, symbol_of
from ledger.state import State

_WILD: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Wish:
    """
    What one engine wants of one asset class.

    Attributes:
        tickers: topics without their kind, such as ``AIG``, or ``("*",)``.
        globs: what is kept of a wildcard; none keeps all.
        refused: globs that the service has no topic for.
    """

    tickers: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def wish_of(patterns: list[str] | None, column: Column, *, of_options: bool) -> Wish:
    """
    The topics for some globs.

    Args:
        patterns: globs over tickers; None for all.
    """
    mine = [each for each in (patterns if patterns is not None else ["*"]) if _is_of(each, of_options=of_options)]
    spelled = tuple(dict.fromkeys(each for each in mine if not _WILD.intersection(each)))
    wild = tuple(dict.fromkeys(each for each in mine if _WILD.intersection(each)))
    if not wild:
        return Wish(spelled)
    if of_options and column is Column.QUOTE_REF:
        # Nobody who says "everything" expects quotes of a million contracts; who names a root does.
        return Wish(spelled, refused=tuple(each for each in wild if each.startswith(OPTION_PREFIX)))
    return Wish(("*",), () if {"*", OPTION_PREFIX + "*"}.intersection(wild) else (*spelled, *wild))


def _is_of(pattern: str, *, of_options: bool) -> bool:
    if pattern.startswith(OPTION_PREFIX):
        return of_options
    return not of_options or pattern[0] in _WILD


class Covered:
    """Which symbols a wish brings rows of, or would if there were any; kept while symbols come."""

    def __init__(self, wish: Wish, option_rows: OptionRows, *, of_options: bool) -> None:
        self._of_options = of_options
        self._wild = "*" in wish.tickers
        self._globs = wish.globs
        self._spelled = {_symbol(ticker, option_rows) for ticker in wish.tickers if ticker != "*"}
        self._mask = np.zeros(0, dtype=bool)

    @property
    def spelled(self) -> list[str]:
        """Symbols that are asked for by name, ascending."""
        return sorted(one for one in self._spelled if one)

    def mask(self, state: State) -> np.ndarray:
        """bool[symbols of the year]."""
        count = len(state.symbols)
        if len(self._mask) < count:
            fresh = [self._covers(state, symbol_id) for symbol_id in range(len(self._mask), count)]
            self._mask = np.concatenate([self._mask, np.array(fresh, dtype=bool)])
        return self._mask

    def _covers(self, state: State, symbol_id: int) -> bool:
        name, kind = state.symbols.name(symbol_id), state.class_of(symbol_id)
        if kind is SymbolClass.INDEX or (kind in (SymbolClass.CHAIN, SymbolClass.CONTRACT)) != self._of_options:
            return False
        if name in self._spelled:
            return True
        return self._wild and (not self._globs or any(fnmatchcase(name, each) for each in self._globs))

    def add(self, state: State, symbol_ids: np.ndarray) -> None:
        """Symbols that had rows are covered, whatever their name: a glob over contracts says nothing of a chain's."""
        self.mask(state)
        self._mask[symbol_ids] = True


def _symbol(ticker: str, option_rows: OptionRows) -> str:
    try:
        return symbol_of(ticker, option_rows)
    except ValueError:
        return ""
