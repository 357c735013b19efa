"""Minutes that look wrong, raised as regions of low priority: silence between busy minutes, old curves, jumps in counts."""

from engines.contract import EngineEntry

ENGINE = EngineEntry(
    name="anomaly",
    writes=(),
    build="engines.anomaly.engine:build",
    summary="Regions of low priority over minutes that look wrong",
)
