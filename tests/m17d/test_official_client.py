"""The data service's own client library, pointed at ``m17d replay``; skipped where it is not installed, being no dependency."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.m17d.live_market import KEY, replaying
from tests.m17d.test_replay import SESSION, write_market

CLIENT = """
import json, sys
from massive import RESTClient, WebSocketClient

key, address, topics = sys.argv[1:]
kept = []

def handle(messages):
    kept.extend(messages)
    if len(kept) == 1200:
        rest = RESTClient(api_key=key, base=f"http://{address}")
        trades = list(rest.list_trades("AIG", timestamp_gte="2013-10-07", limit=100, order="asc"))
        print(json.dumps({
            "live": [[one.event_type, one.symbol, one.timestamp, one.sequence_number] for one in kept],
            "trades": [[one.sip_timestamp, one.price] for one in trades],
            "chain": [one.details.ticker for one in rest.list_snapshot_options_chain("AIG")],
            "yields": [one.date for one in rest.list_treasury_yields(limit=2, sort="date.asc")],
        }))
        sys.stdout.flush()
        raise SystemExit(0)

WebSocketClient(
    api_key=key, feed=address, market="stocks", subscriptions=topics.split(","), secure=False, max_reconnects=0
).run(handle)
"""


def test_the_official_client_hears_what_is_in_the_files(tmp_path: Path) -> None:
    """It connects, authenticates, subscribes, and gets every event in order; REST pages are followed to the end."""
    pytest.importorskip("massive", reason="the service's client library is not installed (pip install massive)")
    write_market(tmp_path)
    with replaying(tmp_path, SESSION) as replay:
        address = f"127.0.0.1:{replay.port}"
        command = [sys.executable, "-c", CLIENT, KEY, address, "T.AIG,Q.AIG,T.IBM"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    heard = json.loads(done.stdout)

    counts = {
        kind: sum(one[:2] == list(kind) for one in heard["live"]) for kind in (("T", "AIG"), ("Q", "AIG"), ("T", "IBM"))
    }
    assert set(counts.values()) == {400}
    times = [one[2] for one in heard["live"]]
    assert times == sorted(times)
    mine = [one[2] * 1_000_000 for one in heard["live"] if one[:2] == ["T", "AIG"]]
    assert [at for at, _ in heard["trades"]] == mine
    assert heard["chain"] == ["O:AIG131019C00050000", "O:AIG131019P00050000"]
    assert heard["yields"] == [f"2013-10-0{day}" for day in (1, 2, 3, 4, 7)]
