"""
Which instruments of one session traded in which minutes, at what price last, and what was taken as the price before.

A trade carries the price of the instrument's trade before it, so a minute that is replaced may change the first trade of
a later one. From what is kept here a live engine knows the price before, and which cells say another one and must be made
again. Derived from cells and thrown away at will. This module must never read a row or write a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ledger.columns import SYMBOLS_MAX

NOTHING_BEFORE = -32_768
"""Stands for the minute of a trade before where there is none."""


@dataclass(slots=True)
class _Minute:
    """Instruments that traded in one minute, ascending by code: arrays [n]."""

    codes: np.ndarray
    previous: np.ndarray
    last: np.ndarray


class LivePrices:
    """
    The trades of one session, an instrument and minute at a time. Minutes count from the open, below 0 before it.

    Args:
        minutes: windows of the session.
    """

    def __init__(self, minutes: int) -> None:
        self.seen = np.zeros((SYMBOLS_MAX, minutes), dtype=np.uint32)
        """u32[symbols, minutes]: the payload id of each cell whose trades are known here; 0 for none."""
        self.wrong: set[tuple[int, int]] = set()
        """(symbol id, minute) of cells whose first trade of an instrument says another price before than it should."""
        self._codes: dict[str, int] = {}
        self._names: list[str] = []
        self._symbols = np.zeros(0, dtype=np.int32)
        self._last_minute = np.zeros(0, dtype=np.int16)
        self._last_price = np.zeros(0)
        self._minutes: dict[int, _Minute] = {}

    def codes(self, tickers: list[str], symbol_ids: np.ndarray) -> np.ndarray:
        """
        i64[n], numbers of instruments; new ones are given to those that have none.

        Args:
            symbol_ids: [n], the symbol that each is kept under; -1 for one that the cap refused.
        """
        found = np.array([self._codes.setdefault(ticker, len(self._codes)) for ticker in tickers], dtype=np.int64)
        known = len(self._codes)
        self._names = list(self._codes) if known > len(self._names) else self._names
        if known > len(self._symbols):
            grown = max(64, 2 * known)
            for name, fill in (("_symbols", -1), ("_last_minute", NOTHING_BEFORE), ("_last_price", np.nan)):
                old = getattr(self, name)
                new = np.full(grown, fill, dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
        if len(found):
            self._symbols[found] = symbol_ids
        return found

    def known(self, tickers: list[str]) -> np.ndarray:
        """i64[n], numbers of instruments, -1 for those that never traded."""
        return np.array([self._codes.get(ticker, -1) for ticker in tickers], dtype=np.int64)

    def tickers_of(self, symbol_id: int, minute: int) -> list[str]:
        """Instruments of a symbol that traded in a minute."""
        held = self._minutes.get(minute)
        if held is None:
            return []
        return [self._names[code] for code in held.codes[self._symbols[held.codes] == symbol_id].tolist()]

    def before(self, codes: np.ndarray, minute: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The last trade of instruments before a minute.

        Args:
            codes: i64[n]; -1 for an instrument that never traded.

        Returns:
            i64[n], the minute it was in, NOTHING_BEFORE for none; f64[n], its price, NaN for none.
        """
        found = np.full(len(codes), NOTHING_BEFORE, dtype=np.int64)
        price = np.full(len(codes), np.nan)
        left = codes >= 0
        at = np.flatnonzero(left)
        newest = self._last_minute[codes[at]] < minute
        at = at[newest]
        found[at], price[at] = self._last_minute[codes[at]], self._last_price[codes[at]]
        left[at] = False
        for one in sorted((each for each in self._minutes if each < minute), reverse=True):
            if not left.any():
                break
            held, at = self._minutes[one], np.flatnonzero(left)
            place = np.searchsorted(held.codes, codes[at]).clip(max=max(len(held.codes) - 1, 0))
            hit = held.codes[place] == codes[at] if len(held.codes) else np.zeros(len(at), dtype=bool)
            found[at[hit]], price[at[hit]] = one, held.last[place[hit]]
            left[at[hit]] = False
        return found, price

    def learn(
        self,
        cells: list[tuple[int, int]],
        codes: np.ndarray,
        minutes: np.ndarray,
        previous: np.ndarray,
        last: np.ndarray,
    ) -> None:
        """
        Take over what some cells hold now, in place of what was known of them, and see which cells are wrong by it.

        Args:
            cells: (symbol id, minute) of what is replaced; an instrument that is not named any more no longer trades.
            codes, minutes, previous, last: [n], what the cells hold; minutes before the open belong to no cell.
        """
        touched: dict[int, list[np.ndarray]] = {}
        for minute in {minute for _, minute in cells}:
            gone = self._remove(minute, np.array([one for one, at in cells if at == minute], dtype=np.int64))
            touched.setdefault(minute, []).append(gone)
            self.wrong.difference_update((one, at) for one, at in cells if at == minute)
        for minute in np.unique(minutes).tolist():
            mine = minutes == minute
            self._add(minute, codes[mine], previous[mine], last[mine])
            touched.setdefault(minute, []).append(codes[mine])
        for minute, parts in sorted(touched.items()):
            self._check(minute, np.unique(np.concatenate(parts)))

    def _remove(self, minute: int, symbol_ids: np.ndarray) -> np.ndarray:
        held = self._minutes.get(minute)
        if held is None:
            return np.zeros(0, dtype=np.int64)
        gone = np.isin(self._symbols[held.codes], symbol_ids)
        removed = held.codes[gone]
        self._minutes[minute] = _Minute(held.codes[~gone], held.previous[~gone], held.last[~gone])
        stale = removed[self._last_minute[removed] == minute]
        if len(stale):
            self._last_minute[stale] = np.iinfo(np.int16).max
            self._last_minute[stale], self._last_price[stale] = self.before(stale, np.iinfo(np.int16).max)
        return removed

    def _add(self, minute: int, codes: np.ndarray, previous: np.ndarray, last: np.ndarray) -> None:
        held = self._minutes.get(minute)
        if held is not None:
            kept = ~np.isin(held.codes, codes)
            codes = np.concatenate([held.codes[kept], codes])
            previous, last = np.concatenate([held.previous[kept], previous]), np.concatenate([held.last[kept], last])
        order = np.argsort(codes, kind="stable")
        codes, previous, last = codes[order], previous[order], last[order]
        self._minutes[minute] = _Minute(codes, previous, last)
        newest = self._last_minute[codes] <= minute
        self._last_minute[codes[newest]], self._last_price[codes[newest]] = minute, last[newest]

    def _check(self, minute: int, codes: np.ndarray) -> None:
        """See whether the instruments say the right price before in this minute and in the next that they trade in."""
        self._judge(minute, codes)
        later = codes[self._last_minute[codes] > minute]
        for one in sorted(each for each in self._minutes if each > minute):
            if not len(later):
                return
            there = np.isin(later, self._minutes[one].codes)
            self._judge(one, later[there])
            later = later[~there]

    def _judge(self, minute: int, codes: np.ndarray) -> None:
        held = self._minutes.get(minute)
        if held is None or minute < 0 or not len(codes):
            return
        place = np.searchsorted(held.codes, codes).clip(max=max(len(held.codes) - 1, 0))
        mine = held.codes[place] == codes if len(held.codes) else np.zeros(len(codes), dtype=bool)
        codes, place = codes[mine], place[mine]
        _, price = self.before(codes, minute)
        said = held.previous[place]
        differs = (said != price) & ~(np.isnan(said) & np.isnan(price))
        self.wrong.update((int(one), minute) for one in np.unique(self._symbols[codes[differs]]) if one >= 0)
