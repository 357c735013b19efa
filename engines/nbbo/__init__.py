"""The aggressor engine: which side of the market each trade took, from the NBBO in force at its SIP time."""

from engines.contract import EngineEntry
from ledger.columns import Column

ENGINE = EngineEntry(
    name="nbbo",
    writes=(Column.AGGRESSOR_REF,),
    build="engines.nbbo.engine:build",
    summary="trades against the quote in force, into aggressor_ref",
)
