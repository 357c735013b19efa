"""The Greeks engine: implied volatility and Greeks of option trades, from price, the underlying's mid and the curve."""

from engines.contract import EngineEntry
from ledger.columns import Column

ENGINE = EngineEntry(
    name="greeks",
    writes=(Column.GREEKS_REF,),
    build="engines.greeks.engine:build",
    summary="implied volatility and Greeks of option trades, into greeks_ref",
)
