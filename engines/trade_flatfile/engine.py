"""
The engine ``trade_flatfile``: flat files of stocks and options into ``trade_ref``.

All it does is said in ``engines.raw``; this module must never do more than name its column and datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.raw import FlatFileEngine
from ledger.columns import Column, Dataset


def build(table: Mapping[str, Any], base: Path) -> FlatFileEngine:
    """
    The engine from its config table.

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table is wrong.
    """
    return FlatFileEngine(
        "trade_flatfile", Column.TRADE_REF, (Dataset.STOCK_TRADES, Dataset.OPTION_TRADES), table, base
    )
