"""Treasury yields, from a file or over HTTP, into ``rf_rate_ref`` of options and of underlyings that have options."""

from engines.contract import EngineEntry
from ledger.columns import Column

ENGINE = EngineEntry(
    name="treasury",
    writes=(Column.RF_RATE_REF,),
    build="engines.treasury.engine:build",
    summary="Treasury yield curves into rf_rate_ref",
)
