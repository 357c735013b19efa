"""
Aggregation: the rolling statistics of an underlying over its own trades and those of its options.

Windows of 1, 5, 10, 30, 60 and 240 minutes start at every minute of a session. ``columns`` has the words, ``policy``
the settings, ``inputs`` turns rows into samples, ``kernel`` computes the windows (compiled, in workers only).
"""

from engines.contract import EngineEntry
from ledger.columns import AGGREGATE_MINUTES

ENGINE = EngineEntry(
    name="aggregation",
    writes=tuple(AGGREGATE_MINUTES),
    build="engines.aggregation.engine:build",
    summary="trades, aggressors and Greeks of an underlying and its options, into aggs_1m .. aggs_4h",
)
