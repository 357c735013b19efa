"""
``scripts/demo --live``: a session as it comes from a feed that breaks down in the morning, without an account.

``m17d replay`` serves a session on loopback as a data service does. A daemon listens to it, loses the connection for some
minutes, says which windows are partial, fetches them over REST, and in the end has the digest of a ledger that was made
from the session's files. This module must never reach into the daemon or the server: it starts them and looks at them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import re
import secrets
import subprocess
import sys
import time
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ledger.columns import Column
from m17ctl.client import Client
from m17d.demo_session import Play, prepare
from m17d.demo_stage import NotTrue, Stage, demand, is_working, progress, say
from m17d.protocol import CoverageRequest, EnginesListRequest, Range, WhyRequest
from m17d.replies import Counts

_PLAY_WAIT_S: Final = 180.0
_START_WAIT_S: Final = 60.0
_KEY_ENV: Final = "M17_DEMO_KEY"
_EVENTS: Final = re.compile(r"(\d+) events, (\d+) dropped")
_DERIVED: Final = ("nbbo", "greeks", "aggregation")
_SHOWN: Final = ("trade_ref", "quote_ref", "aggressor_ref", "aggs_1m")
_CONTRACTS: Final = 900
_POLL_S: Final = 0.3
_SETTLED_POLLS: Final = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a live demonstration."""
    parser.add_argument("--source", type=Path, help="with --live: a folder of flat files to play instead")
    parser.add_argument("--session", help="with --source: the session, YYYY-MM-DD")
    parser.add_argument("--speed", type=float, default=900.0, help="with --live: market seconds a second (900)")
    parser.add_argument("--cut", default="10:15-10:40", help="with --live: when there is no connection (10:15-10:40)")


def play_of(arguments: argparse.Namespace, synthetic: str) -> Play:
    """
    What the arguments ask for.

    Raises:
        NotTrue: a source without a session.
    """
    if arguments.source is not None and not arguments.session:
        raise NotTrue("--source needs --session YYYY-MM-DD")
    session = arguments.session if arguments.source is not None else synthetic
    return Play(arguments.source, session, arguments.speed, arguments.cut)


def run(root: Path, play: Play, *, keep: bool) -> None:
    """The whole demonstration in a folder; raises NotTrue."""
    say("a session in milliseconds and without corrections, as a websocket brings it")
    counts, chains = prepare(root, play)
    for dataset, rows in counts.items():
        print(f"   {rows:9,} rows of {dataset}", flush=True)
    key = secrets.token_hex(8)
    batch, live = Stage(root / "batch"), Stage(root / "live", {_KEY_ENV: key})
    with replaying(root, play, key, keep=keep) as (address, pid):
        try:
            configure(batch, live, play, address, chains)
            say("a daemon listens; nothing else brings it anything")
            live.start()
            watch(live, play)
            check_repaired(live, play)
            say("the same session from its files, in another ledger")
            batch.run_until_idle()
            compare(batch, live, play.session)
            finish(live, play, pid, keep=keep)
        finally:
            if not keep or sys.exc_info()[0] is not None:
                live.stop()


@contextlib.contextmanager
def replaying(root: Path, play: Play, key: str, *, keep: bool) -> Iterator[tuple[str, int]]:
    """``m17d replay`` for a while; its address without the scheme, and its process."""
    command = [sys.executable, "-m", "m17d", "replay", "--source", str(root), "--session", play.session]
    command += ["--port", "0", "--key", key, "--from", play.start, "--speed", str(play.speed)]
    command += ["--faults", f"cut={play.cut}", "--milliseconds"]
    log = root / "replay.log"
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        end = time.monotonic() + _START_WAIT_S
        while not (found := re.search(r"ws://(\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise NotTrue(f"the replay server does not listen: {log.read_text()}")
            time.sleep(0.05)
        print(f"   {log.read_text().splitlines()[0]}", flush=True)
        yield found.group(1), process.pid
    finally:
        if not keep or sys.exc_info()[0] is not None:
            process.terminate()
            process.wait(30)


def configure(batch: Stage, live: Stage, play: Play, address: str, chains: list[str]) -> None:
    """A ledger that reads files, and one that listens; the second one's config is shown."""
    derived: dict[str, dict[str, Any]] = {name: {} for name in _DERIVED}
    files = {"source": "../flatfiles", "sessions": [play.session]}
    has_curves = (live.root.parent / "treasury").exists()
    curves = {"treasury": {"source": "../treasury/treasury-yields.json"}} if has_curves else {}
    batch.configure(play.session, {**curves, "trade_flatfile": files, "quote": files, **derived})
    service = {"key_env": _KEY_ENV, "rest": f"http://{address}"}
    rest = {**service, "source": "no-files-yet", "rest_requests_per_minute": 30_000, "rest_sessions": 1}
    stream = {"key_env": _KEY_ENV, "stream": f"ws://{address}"}
    chosen = {"chains": chains, "chain_contracts": _CONTRACTS} if chains else {}
    curves = {"treasury": {"key_env": _KEY_ENV, "source": f"http://{address}"}} if has_curves else {}
    text = live.configure(
        play.session,
        {**curves, "trade_ws": stream, "trade_flatfile": rest, "quote": {**stream, **rest, **chosen}, **derived},
    )
    (live.root / "no-files-yet").mkdir()
    print(re.sub(r"(?m)^", "   ", text).rstrip(), flush=True)


class _Watch:
    """Looks at a daemon until everything was played and nothing is at work; says what happens when it happens."""

    def __init__(self, live: Stage, play: Play) -> None:
        self._live = live
        self._session = play.session
        self._cut = play.cut.partition("-")[0]
        self._began = time.monotonic()
        self._state = ""
        self.partial = 0
        self.engines: dict[str, Any] = {}

    def run(self) -> None:
        calm, counts = 0, dict[str, Counts]()
        with Client(self._live.socket, 30) as client:
            while calm < _SETTLED_POLLS:
                self.engines = {one.name: one for one in client.call(EnginesListRequest()).engines}
                if time.monotonic() - self._began > _PLAY_WAIT_S:
                    said = "".join(f"\n  {one.name}: {one.state}, {one.detail}" for one in self.engines.values())
                    raise NotTrue(f"the session did not end in {_PLAY_WAIT_S:.0f} s:{said}")
                self._tell_state()
                counts = client.call(CoverageRequest(session=self._session)).columns
                if counts["trade_ref"].filled and not self.partial:
                    self._tell_partial(client)
                progress(self._position(counts))
                over = all(": played" in self.engines[name].detail for name in ("trade_ws", "quote"))
                working = any(is_working(one.state, one.detail, one.backlog) for one in self.engines.values())
                calm = calm + 1 if over and not working else 0
                time.sleep(_POLL_S)
            progress(self._position(counts), last=True)

    def _tell_state(self) -> None:
        listener = self.engines["trade_ws"]
        if listener.state not in (self._state, "starting"):
            progress(f"   {self._seconds()} trade_ws is {listener.state}: {listener.detail}", last=True)
            self._state = listener.state

    def _tell_partial(self, client: Client) -> None:
        """Show why windows are partial, the first time that those of the cut are."""
        columns = [Column.TRADE_REF, Column.QUOTE_REF]
        groups = client.call(WhyRequest(columns=columns, range=Range(session=self._session))).groups
        found = [one for one in groups if one.cause == "partial" and _local(one.last) >= self._cut]
        if found:
            self.partial = sum(one.cells for one in found)
            progress("", last=True)
            self._live.show("why", "trade_ref", "quote_ref", "--session", self._session)

    def _position(self, counts: dict[str, Counts]) -> str:
        """How far the ledger is, in a line."""
        filled = ", ".join(f"{one.removesuffix('_ref')} {counts[one].filled:,}" for one in _SHOWN)
        return f"   {self._seconds()} windows filled: {filled}"

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._began:3.0f} s "


def watch(live: Stage, play: Play) -> None:
    """Look on while the session is played."""
    look = _Watch(live, play)
    look.run()
    demand(look.partial > 0, f"{look.partial} windows were partial when the connection was gone, at once and by name")
    for name in ("trade_ws", "quote"):
        counted = [(int(events), int(dropped)) for events, dropped in _EVENTS.findall(look.engines[name].detail)]
        demand(
            not any(dropped for _, dropped in counted),
            f"{name}: {sum(events for events, _ in counted):,} events came, none was dropped",
        )


def _local(ns: int) -> str:
    at = datetime.datetime.fromtimestamp(ns // 1_000_000_000, zoneinfo.ZoneInfo("America/New_York"))
    return at.strftime("%H:%M")


def check_repaired(live: Stage, play: Play) -> None:
    """What was partial came over REST."""
    say("what the cut took away came over REST, the same morning")
    live.show("coverage", play.session, "--by", "source", "--columns", "trade_ref,quote_ref")
    sources = live.ask("coverage", play.session, "--by", "source")["by_source"]
    refilled = sum(int(sources.get("rest", {}).get(name, {}).get("filled", 0)) for name in ("trade_ref", "quote_ref"))
    demand(refilled > 0, f"{refilled} windows have REST as their source, the others the websocket")
    found = live.ask("why", "trade_ref", "quote_ref", "--session", play.session)
    whys = found if isinstance(found, list) else [found]
    demand(not any(one["cause"] == "partial" for one in whys), "no window is partial any more")


def compare(batch: Stage, live: Stage, session: str) -> None:
    """The digests of both ledgers."""
    batch.start()
    try:
        expected, found = batch.ask("digest", session), live.ask("digest", session)
    finally:
        batch.stop()
    for column, value in expected["columns"].items():
        demand(found["columns"][column] == value, f"{column}: live equals the files, {value[:16]}")
    demand(found["digest"] == expected["digest"], f"the digest of the session: {found['digest'][:16]}")


def finish(live: Stage, play: Play, replay_pid: int, *, keep: bool) -> None:
    """Commands to try."""
    say("try" + ("" if keep else " (with scripts/demo --live --keep, which leaves daemon and feed running)"))
    prefix = f"M17_SOCKET={live.socket} .venv/bin/m17ctl"
    print(f"   {prefix} engines list")
    print(f"   {prefix} coverage {play.session} --by source", flush=True)
    if keep and live.process is not None:
        print(f"   kill {live.process.pid} {replay_pid}; rm -r {live.root.parent}    # to end it", flush=True)
