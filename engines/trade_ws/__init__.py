"""Trades of a data service's websocket, stocks and options, into ``trade_ref``, minute by minute as they close."""

from engines.contract import EngineEntry
from ledger.columns import Column

ENGINE = EngineEntry(
    name="trade_ws",
    writes=(Column.TRADE_REF,),
    build="engines.trade_ws.engine:build",
    summary="a websocket's trades into trade_ref",
)
