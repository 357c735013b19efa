"""Flat files of trades, stocks and options, into ``trade_ref``: every row of the file, each with its previous price."""

from engines.contract import EngineEntry
from ledger.columns import Column

ENGINE = EngineEntry(
    name="trade_flatfile",
    writes=(Column.TRADE_REF,),
    build="engines.trade_flatfile.engine:build",
    summary="flat files of trades into trade_ref",
)
