"""A mapping file that a crash left open and that nobody appended to since closes, and opens, as what it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ledger.columns import PayloadKind
from ledger.files import System
from ledger.maps import PayloadMap
from ledger.records import blank


@pytest.mark.parametrize("appended_after", [0, 3])
def test_a_crash_and_a_calm_run_leave_a_file_that_opens(tmp_path: Path, appended_after: int) -> None:
    """Ids go on behind the gap of the crash, also where the run after it gave none; records of before stay readable."""
    path, system = tmp_path / "trade.map", System()
    crashed = PayloadMap(system, path, PayloadKind.TRADE, readonly=False)
    first = crashed.append(blank(PayloadKind.TRADE, 5))
    os.close(crashed._fd)  # killed: no mark says that it ended cleanly
    calm = PayloadMap(system, path, PayloadKind.TRADE, readonly=False)
    behind = calm.next_id
    if appended_after:
        assert calm.append(blank(PayloadKind.TRADE, appended_after)) == behind
    calm.close()

    for readonly in (True, False):
        opened = PayloadMap(system, path, PayloadKind.TRADE, readonly=readonly)
        assert opened.next_id == behind + appended_after
        assert len(opened.get_many(np.arange(first, first + 5))) == 5
        assert opened.get(first + 4)["schema_version"] == 1
        opened.close()
