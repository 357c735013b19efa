"""Kills and refusals: what the engines say, that they come back by themselves, and that no window is silently short."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ledger
from ledger.columns import Column, Flag, Status
from ledger.state import create_state
from tests.engines.feeds.test_stream import listening, self_signed
from tests.m17d.live_market import (
    Daemon,
    Replay,
    digests,
    files,
    live,
    replaying,
    run_until_idle,
    running,
    write_config,
)
from tests.m17d.test_replay import CONTRACTS, SESSION, write_market

QUOTES = ["AIG", "IBM", *CONTRACTS]
COLUMNS = (Column.TRADE_REF, Column.QUOTE_REF)
SAID = ("silent for", "max_connections", "the server closed")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stocks and three contracts, an hour and a half long."""
    folder = tmp_path_factory.mktemp("market")
    write_market(folder)
    return folder


@pytest.fixture(scope="module")
def batch(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of the files."""
    folder = tmp_path_factory.mktemp("batch")
    write_config(folder, SESSION[:4], files(market, SESSION))
    done = run_until_idle(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def compare(folder: Path, batch: Path) -> dict[str, int]:
    """Cells of the batch by what they are live: equal, partial, empty, or silently other than they should be."""
    counts = dict.fromkeys(("equal", "partial", "empty", "wrong"), 0)
    with (
        ledger.open(folder / "ledger.state", readonly=True) as live_state,
        ledger.open(batch / "ledger.state", readonly=True) as state,
    ):
        seq = state.calendar.session_seq(SESSION)
        for column in COLUMNS:
            for symbol_id in state.universe(SESSION).tolist():
                theirs = state.trade.session(seq).slots(column, np.array([symbol_id]))[0]
                mine_id = live_state.symbols.get(state.symbols.name(symbol_id))
                if mine_id is None or (theirs["status"] == Status.EMPTY).all():
                    continue
                mine = live_state.trade.session(seq).slots(column, np.array([mine_id]))[0]
                empty = mine["status"] != Status.FILLED
                partial = ~empty & (mine["flags"] & Flag.PARTIAL != 0)
                equal = ~empty & ~partial & (mine["checksum"] == theirs["checksum"])
                for name, mask in (("empty", empty), ("partial", partial), ("equal", equal)):
                    counts[name] += int(mask.sum())
                counts["wrong"] += int((~empty & ~partial & ~equal).sum())
    return counts


def rows_in(daemon: Daemon) -> int:
    """Trade cells with rows."""
    counts = daemon.cells(SESSION)["trade_ref"]
    return int(counts["filled"]) - int(counts["no_data"])


def played(daemon: Daemon) -> bool:
    """Whether both engines have everything in cells."""
    engines = [daemon.engine(name) for name in ("trade_ws", "quote")]
    return all("played" in one["detail"] and not one["backlog"] for one in engines) and whole(daemon)


def whole(daemon: Daemon) -> bool:
    """Whether no due trade cell is empty."""
    return not daemon.cells(SESSION)["trade_ref"]["empty"]


@pytest.mark.slow
def test_a_server_that_dies_is_waited_for_and_what_it_plays_again_is_not_there_twice(
    market: Path, batch: Path, tmp_path: Path
) -> None:
    """Degraded while it is away, partial windows, and in the end the rows of the day, because it plays it anew."""
    with replaying(market, SESSION, "--speed", "900") as replay:
        write_config(tmp_path, SESSION[:4], live(replay.url, quotes=QUOTES))
        with running(tmp_path) as daemon:
            daemon.until(lambda: rows_in(daemon) > 20, "some minutes are filled")
            replay.stop()
            daemon.until(
                lambda: daemon.engine("trade_ws")["state"] == "degraded", "the engine says that nobody answers"
            )
            detail = daemon.engine("trade_ws")["detail"]
            assert "waiting" in detail
            assert "next attempt in" in detail
            replay.start()
            daemon.until(lambda: played(daemon), "everything was played")
            assert daemon.engine("trade_ws")["state"] == "running"
            whys = daemon.ask("why", "trade_ref", "--session", SESSION)
            partial = next(one for one in whys if one["cause"] == "partial")
            assert partial["remedy"].startswith("m17ctl refill trade_ref")
            assert set(daemon.ask("coverage", SESSION, "--by", "source")["by_source"]) == {"websocket"}
            row = daemon.ask("row", "AIG", f"{SESSION}T10:00")
            assert row["slots"]["trade_ref"]["source"] == "websocket"
    counts = compare(tmp_path, batch)
    assert (counts["wrong"], counts["empty"]) == (0, 0)
    assert counts["partial"] > 0
    assert digests(tmp_path, SESSION) == digests(batch, SESSION)


@pytest.mark.parametrize(
    "victim",
    ["feed", pytest.param("daemon", marks=pytest.mark.slow), pytest.param("daemon by a word", marks=pytest.mark.slow)],
)
def test_nothing_is_silently_short_after_a_kill(market: Path, batch: Path, tmp_path: Path, victim: str) -> None:
    """Feed or daemon killed in the middle: minutes in flight are partial, all others are as the files have them."""
    with replaying(market, SESSION, "--speed", "900") as replay:
        write_config(tmp_path, SESSION[:4], live(replay.url, quotes=QUOTES))
        with running(tmp_path) as daemon:
            daemon.until(lambda: rows_in(daemon) > 20, "some minutes are filled")
            if victim == "feed":
                pids = daemon.feed_pids()
                assert len(pids) == 2
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                daemon.until(lambda: "feed process died" in daemon.log, "the death is seen")
            else:
                daemon.kill(signal.SIGTERM if victim == "daemon by a word" else signal.SIGKILL)
                daemon.start()
            daemon.until(lambda: played(daemon), "everything was played")
            assert not list((tmp_path / "ledger.state" / "temporary").rglob("*.rows"))
            assert not daemon.ask("verify")["findings"]
    counts = compare(tmp_path, batch)
    assert (counts["wrong"], counts["empty"]) == (0, 0)
    assert counts["equal"] > 1000
    assert counts["partial"] > 0


def test_a_feed_that_misbehaves_in_every_way_is_said_in_words_and_loses_nothing(
    market: Path, batch: Path, tmp_path: Path
) -> None:
    """It stalls, kicks, sends garbage, doubles and delays: a state with the reason, few attempts, and the day's digest."""
    faults = "stall=1500:3,kick=2400,garbage=7,duplicate=9,late=5:30"
    seen: set[tuple[str, str]] = set()
    with replaying(market, SESSION, "--speed", "900", "--faults", faults) as replay:
        write_config(
            tmp_path, SESSION[:4], live(replay.url, quotes=QUOTES, idle_timeout_s=1.0, refused_pause_s=0.5)
        )  # fmt: skip
        with running(tmp_path) as daemon:

            def over() -> bool:
                for name in ("trade_ws", "quote"):
                    one = daemon.engine(name)
                    seen.update((one["state"], said) for said in SAID if said in one["detail"])
                return played(daemon)

            daemon.until(over, "everything was played")
            text = daemon.ask("metrics")["text"]
    assert seen >= {("degraded", "silent for"), ("degraded", "max_connections")}
    assert digests(tmp_path, SESSION) == digests(batch, SESSION)
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("m17_feed"))
    assert float(numbers['m17_feed_drops_total{engine="trade_ws",reason="unreadable"}']) > 0
    assert float(numbers['m17_feed_drops_total{engine="trade_ws",reason="no_room"}']) == 0
    # Two stalls and one kick of two connections, and a little for a machine that is busy.
    assert 4 <= float(numbers['m17_feed_reconnects_total{engine="trade_ws"}']) <= 12


@pytest.mark.slow
def test_a_service_that_has_too_many_handshakes_is_left_alone_as_long_as_it_asks(
    market: Path, batch: Path, tmp_path: Path
) -> None:
    """HTTP 429 with Retry-After, at first and after a kick: degraded with the reason, few attempts, and the day's digest."""
    seen: set[str] = set()
    with replaying(market, SESSION, "--speed", "1200", "--faults", "busy=2:2,kick=2400") as replay:
        write_config(tmp_path, SESSION[:4], live(replay.url, quotes=QUOTES, refused_pause_s=0.5))
        with running(tmp_path) as daemon:

            def over() -> bool:
                one = daemon.engine("trade_ws")
                if "HTTP 429" in one["detail"]:
                    seen.add(one["state"])
                return played(daemon)

            daemon.until(over, "everything was played")
            assert daemon.engine("trade_ws")["state"] == "running"
            refusals = re.findall(r"the server answers HTTP 429; it asks for 2 s; next attempt in (\S+) s", daemon.log)
    assert seen == {"degraded"}
    # Twice at the beginning and twice after the kick, on two connections, and a little for a machine that is busy.
    assert 8 <= len(refusals) <= 16, daemon.log
    assert min(float(pause) for pause in refusals) >= 2.0
    assert digests(tmp_path, SESSION) == digests(batch, SESSION)


def test_a_key_that_the_service_does_not_take_fails_the_engine_and_is_not_tried_over_and_over(
    market: Path, tmp_path: Path
) -> None:
    """Failed, with the reason, for minutes; an operator may have it tried at once. The key is in no answer and no log."""
    with replaying(market, SESSION, "--speed", "max", "--key", "the-right-key") as replay:
        write_config(tmp_path, SESSION[:4], {"trade_ws": live(replay.url)["trade_ws"]})
        with running(tmp_path, M17_API_KEY="the-wrong-key") as daemon:
            daemon.until(lambda: daemon.engine("trade_ws")["state"] == "failed", "the engine has failed")
            detail = daemon.engine("trade_ws")["detail"]
            assert "auth_failed: authentication failed; next attempt in 60.0 s" in detail
            assert "failed: trade_ws" in daemon.ask("status")["verdict"]
            daemon.ask("engines", "retry", "trade_ws")
            daemon.until(lambda: "next attempt in 60.0 s" in daemon.engine("trade_ws")["detail"], "it was tried again")
            assert (
                "the-wrong-key" not in daemon.log + str(daemon.ask("engines", "list")) + daemon.ask("metrics")["text"]
            )
            daemon.kill(signal.SIGTERM)
            daemon.environment["M17_API_KEY"] = "the-right-key"
            daemon.start()
            daemon.until(lambda: "played" in daemon.engine("trade_ws")["detail"], "the right key is taken")


def test_a_symbol_beyond_the_cap_is_refused_by_name_and_the_others_go_on(market: Path, tmp_path: Path) -> None:
    """The year has room for one of two new symbols: the other's rows are in no cell, and three places say so."""
    names = [f"S{number:05d}" for number in range(9_999)]
    create_state(tmp_path / "ledger.state", year=int(SESSION[:4]), symbols=names)
    with replaying(market, SESSION) as replay:
        write_config(tmp_path, SESSION[:4], {"trade_ws": {"stream": f"{replay.url}/stocks"}})
        with running(tmp_path) as daemon:
            daemon.until(lambda: "cap refused" in daemon.engine("trade_ws")["detail"], "the engine says it")
            daemon.until(lambda: rows_in(daemon) > 50, "the other symbol has cells")
            one = daemon.engine("trade_ws")
            text = daemon.ask("metrics")["text"]
            daemon.kill(signal.SIGTERM)
        done = run_until_idle(tmp_path)
    taken = {"AIG", "IBM"} - {name.rpartition("(")[2].rstrip(")") for name in [one["detail"]]}
    (refused,) = {"AIG", "IBM"} - taken
    assert (one["state"], one["detail"]) == ("degraded", f"the symbol cap refused 1 symbols ({refused})")
    assert "m17_symbols_refused 1.0" in text
    assert done.returncode == 1
    assert refused in done.stdout + done.stderr
    with ledger.open(tmp_path / "ledger.state", readonly=True) as state:
        assert {state.symbols.get(name) for name in ("AIG", "IBM")} == {9_999, None}


def says(daemon: Daemon, name: str, said: str) -> bool:
    """Whether an engine is degraded, and says of what, and when it will be tried again."""
    engine = daemon.engine(name)
    return engine["state"] == "degraded" and said in engine["detail"] and "next attempt in" in engine["detail"]


def test_a_place_that_cannot_be_reached_is_said_in_words(tmp_path: Path) -> None:
    """No such host; a certificate that nobody vouches for; no key: each engine says which, and the daemon serves on."""
    with listening(self_signed(tmp_path)) as port:
        tables: dict[str, dict[str, Any]] = {
            "trade_ws": {"stream": "ws://no.such.host.invalid/stocks"},
            "quote": {"stream": f"wss://localhost:{port}/stocks", "symbols": ["AIG"]},
        }
        write_config(tmp_path, SESSION[:4], tables)
        with running(tmp_path) as daemon:
            for name, said in (("trade_ws", "gaierror"), ("quote", "SSLCertVerificationError")):
                # It is tried again and again, so that what it says between attempts is looked for, not what it says now.
                daemon.until(lambda one=(name, said): says(daemon, *one), f"{name} says it")  # type: ignore[misc]
    write_config(tmp_path, SESSION[:4], {"trade_ws": {"stream": "ws://127.0.0.1:1", "key_env": "M17_NO_SUCH_KEY"}})
    done = run_until_idle(tmp_path)
    assert done.returncode == 1
    assert "M17_NO_SUCH_KEY holds no key" in done.stdout + done.stderr


def test_one_connection_an_asset_class_and_no_more(market: Path, tmp_path: Path) -> None:
    """Who has the service's one connection already keeps it; the engines wait, and get it when it is free."""
    import asyncio

    from websockets.asyncio.client import connect

    async def hold(replay: Replay, daemon: Daemon) -> None:
        async with connect(f"{replay.url}/stocks") as socket:
            await socket.recv()
            await socket.send('{"action":"auth","params":"a-key-of-the-test"}')
            await socket.recv()
            daemon.start()
            await asyncio.to_thread(
                daemon.until,
                lambda: "max_connections" in daemon.engine("trade_ws")["detail"],
                "the engine is told that the connection is taken",
            )
            assert daemon.engine("trade_ws")["state"] == "degraded"

    with replaying(market, SESSION) as replay:
        write_config(tmp_path, SESSION[:4], live(f"{replay.url}/stocks", refused_pause_s=0.5))
        daemon = Daemon(tmp_path)
        try:
            daemon.kill()
            asyncio.run(hold(replay, daemon))
            daemon.until(lambda: played(daemon), "the connection is free, and used")
            assert len(daemon.feed_pids()) == 1
        finally:
            daemon.kill()


@pytest.mark.slow
def test_a_paused_engine_loses_nothing(market: Path, batch: Path, tmp_path: Path) -> None:
    """Minutes wait on disk while it is paused, and are filled when it is resumed; the other engine goes on."""
    with replaying(market, SESSION, "--speed", "1000") as replay:
        write_config(tmp_path, SESSION[:4], live(replay.url, quotes=QUOTES))
        with running(tmp_path) as daemon:
            daemon.ask("engines", "pause", "trade_ws")
            daemon.until(lambda: "played" in daemon.engine("quote")["detail"], "everything was played")
            assert daemon.engine("trade_ws")["state"] == "paused"
            assert daemon.engine("trade_ws")["backlog"] > 0
            assert rows_in(daemon) == 0
            daemon.ask("engines", "resume", "trade_ws")
            daemon.until(lambda: played(daemon), "everything is filled")
            text = daemon.ask("metrics")["text"]
    assert digests(tmp_path, SESSION) == digests(batch, SESSION)
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("m17_feed"))
    assert float(numbers['m17_feed_events_total{engine="trade_ws"}']) == 1100
    assert float(numbers['m17_feed_connected{engine="quote"}']) == 1
    assert all(float(value) == 0 for name, value in numbers.items() if name.startswith("m17_feed_drops"))
