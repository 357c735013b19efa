"""
The print of derived cells: 32 bits over what a cell was made from and how.

A print covers (role, minute offset, checksum) of the upstream cells that count, and the *recipe*: engine, kernel version
and the settings that enter the result. Never an id, a version, a status or a clock, so clearing and refilling with equal
content makes nothing stale. A cell whose trade inputs all have no rows has the print of the recipe alone, because its
content depends on nothing else. This module must never read a ledger; it gets arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ledger.columns import Flag, Status
from ledger.content import mix, text_hash
from ledger.records import NO_ROWS_ID

Setting = str | int | float | bool

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MINUTE: Final = np.uint64(0xD1342543DE82EF95)
_SHIFT: Final = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Term:
    """One upstream cell of each derived cell: arrays of one shape, that of the derived cells."""

    role: str
    """What the upstream cell is to the derived one, such as ``quote``."""
    minute_offset: int
    """Its minute less the derived cell's."""
    checksum: np.ndarray
    """u32."""
    counts: np.ndarray
    """bool, see :func:`counted`."""


def recipe_hash(engine: str, kernel_version: int, settings: Mapping[str, Setting]) -> int:
    """
    64 bits over the engine's name, its kernel version and the settings by name, whatever their order.

    Floats count by their exact value, so 1 and 1.0 differ and -0.0 and 0.0 do; normalise settings that mean the same.
    """
    lines = [f"{name}={type(value).__name__}:{value!r}" for name, value in sorted(settings.items())]
    text = "\n".join((engine, str(kernel_version), *lines))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def recipe_print(recipe: int) -> int:
    """The print of the recipe alone: that of every cell whose trade inputs have no rows; never 0."""
    return int(_finish(np.zeros(1, dtype=np.uint64), np.array([recipe], dtype=np.uint64))[0])


def recipe_prints(recipes: np.ndarray) -> np.ndarray:
    """u32[n], :func:`recipe_print` of u64[n] recipes."""
    return _finish(np.zeros(len(recipes), dtype=np.uint64), recipes)


def counted(slots: np.ndarray) -> np.ndarray:
    """
    Which cells enter a print: those filled with rows.

    A cell flagged no rows whose payload is not the shared no-rows record counts too: it is a first window that holds
    nothing but quotes from before the open.

    Args:
        slots: SLOT, any shape.

    Returns:
        bool, the same shape.
    """
    with_rows = (slots["flags"] & np.uint8(Flag.NO_ROWS) == 0) | (slots["payload_id"] != NO_ROWS_ID)
    counts: np.ndarray = (slots["status"] == Status.FILLED) & with_rows
    return counts


def cell_prints(recipes: np.ndarray, terms: Sequence[Term], with_trades: np.ndarray) -> np.ndarray:
    """
    Prints of cells that are made from a few upstream cells each.

    Args:
        recipes: u64, broadcast against the cells ([n, 1] for one recipe per symbol).
        terms: the upstream cells.
        with_trades: bool[n, minutes], False where all trade inputs have no rows.

    Returns:
        u32[n, minutes], never 0.
    """
    # Cells without trades, which are nearly all of a chain's, have the print of their recipe: it is the same sum of nothing.
    prints = np.empty(with_trades.shape, dtype=np.uint32)
    prints[...] = _finish(np.zeros(np.shape(recipes), dtype=np.uint64), recipes)
    traded = np.nonzero(with_trades)
    sums = np.zeros(len(traded[0]), dtype=np.uint64)
    for term in terms:
        salt = np.uint64(text_hash(f"{term.role}{term.minute_offset:+d}"))
        values = mix(term.checksum[traded].astype(np.uint64) + salt)
        sums += np.where(term.counts[traded], values, np.uint64(0))
    prints[traded] = _finish(sums, np.broadcast_to(recipes, with_trades.shape)[traded])
    return prints


def set_values(role: str, symbol_hashes: np.ndarray, checksum: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    What each upstream cell adds to the sum of a set: mixed with its role, symbol name and session minute.

    Sums of these values mod 2^64 do not depend on the order of the set, nor on symbol ids.

    Args:
        role: such as ``trade``.
        symbol_hashes: u64[n], :func:`ledger.content.text_hash` of the names.
        checksum: u32[n, minutes] from the session's open on.
        counts: bool[n, minutes], see :func:`counted`.

    Returns:
        u64[n, minutes], 0 where a cell does not count.
    """
    minutes = np.arange(checksum.shape[1], dtype=np.uint64) * _MINUTE
    place = mix(mix(symbol_hashes + np.uint64(text_hash(role)))[:, None] + minutes[None, :])
    values = mix(place ^ (checksum.astype(np.uint64) * _GOLDEN))
    result: np.ndarray = np.where(counts, values, np.uint64(0))
    return result


def window_prints(
    recipe: int, sums: np.ndarray, with_trades: np.ndarray, window_minutes: int, before: np.ndarray | None = None
) -> np.ndarray:
    """
    Prints of the windows ``[T, T + window_minutes)`` of one symbol that start at every minute, clipped at the close.

    Args:
        recipe: of this column.
        sums: u64[minutes], the values of all upstream cells of each minute, added mod 2^64.
        with_trades: bool[minutes], True where a trade input of the minute has rows.
        window_minutes: length of the windows.
        before: u64[minutes], values of cells of the minute T - 1 that the window at T needs too; None for none.

    Returns:
        u32[minutes], never 0; the recipe's print where no minute of the window has trades.
    """
    minutes = len(sums)
    starts = np.arange(minutes)
    ends = np.minimum(starts + window_minutes, minutes)
    total = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(sums, dtype=np.uint64)])
    traded = np.concatenate([[0], np.cumsum(with_trades, dtype=np.int64)])
    inside = total[ends] - total[starts]
    if before is not None:
        inside = inside + mix(before + _GOLDEN)
    inside[traded[ends] == traded[starts]] = 0
    return _finish(inside, np.full(minutes, recipe, dtype=np.uint64))


def _finish(sums: np.ndarray, recipes: np.ndarray) -> np.ndarray:
    """u32, the upper half of sum and recipe mixed; 0 is left to raw cells, which have no inputs."""
    prints = (mix(sums + mix(recipes + _GOLDEN)) >> _SHIFT).astype(np.uint32)
    prints[prints == 0] = 1
    return prints
