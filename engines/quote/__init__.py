"""Flat files of quotes, stocks and options, into ``quote_ref``, row for row, with the 60 s before the open."""

from engines.contract import EngineEntry
from ledger.columns import Column

ENGINE = EngineEntry(
    name="quote",
    writes=(Column.QUOTE_REF,),
    build="engines.quote.engine:build",
    summary="flat files of quotes into quote_ref",
)
