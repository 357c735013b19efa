"""
The engine ``trade_ws``: the websocket's trades into ``trade_ref``.

All it does is said in ``engines.live``; this module must never do more than name its column.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.live import LiveEngine
from ledger.columns import Column


def build(table: Mapping[str, Any], base: Path) -> LiveEngine:
    """
    The engine from its config table.

    Raises:
        msgspec.ValidationError, ValueError: a key or value of the table is wrong.
    """
    return LiveEngine("trade_ws", Column.TRADE_REF, table, base)
