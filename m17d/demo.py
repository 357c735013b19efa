"""
The demonstration: M17 on one synthetic session with planted defects, seen as an operator sees it.

It writes the session, runs a daemon on it, shows the map with its holes and their causes, repairs what can be repaired
and shows the map again. It talks to the daemon through ``m17ctl`` alone, and ends with 1 if what it shows is not true.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ledger
from engines.feeds.synthetic import Truth, write_session
from m17d.discovery import discover

SESSION: Final = "2026-03-10"
_IDLE_WAIT_S: Final = 240.0
_SETTLED_POLLS: Final = 3


class NotTrue(Exception):
    """Something that the demonstration shows is not so."""


@dataclass(slots=True)
class Stage:
    """One state directory with its daemon and the folder of its files."""

    root: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.root / "m17d.sock"

    def configure(self) -> None:
        """Write ``m17.toml`` with every engine there is."""
        lines = ['state_dir = "ledger.state"', "[socket]", 'path = "m17d.sock"', "[calendar]", f"year = {SESSION[:4]}"]
        for name in discover():
            lines.append(f"[engines.{name}]")
            if name in ("trade_flatfile", "quote"):
                lines += ['source = "flatfiles"', f'sessions = ["{SESSION}"]']
            elif name == "treasury":
                lines.append('source = "treasury/treasury-yields.json"')
        (self.root / "m17.toml").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start the daemon; its log goes to ``m17d.log``."""
        with (self.root / "m17d.log").open("ab") as log:
            command = [sys.executable, "-m", "m17d", "run", "--config", str(self.root / "m17.toml")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 30
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise NotTrue("the daemon did not start:\n" + (self.root / "m17d.log").read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """End the daemon, cleanly."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def ask(self, *words: str) -> Any:
        """What ``m17ctl --json`` answers."""
        command = [sys.executable, "-m", "m17ctl", "--socket", str(self.socket), "--json", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise NotTrue(f"m17ctl {' '.join(words)}: {done.stderr.strip()}")
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return lines[0] if len(lines) == 1 else lines

    def show(self, *words: str) -> None:
        """Run ``m17ctl`` as a person would, on this terminal."""
        print(f"\n$ m17ctl {' '.join(words)}", flush=True)
        command = [sys.executable, "-m", "m17ctl", "--socket", str(self.socket), *words]
        subprocess.run(command, timeout=120, check=False)

    def wait(self, what: str) -> None:
        """Wait until nothing is at work, saying how far it is."""
        started, calm = time.monotonic(), 0
        while calm < _SETTLED_POLLS:
            engines = self.ask("engines", "list")
            engines = engines if isinstance(engines, list) else [engines]
            working = [engine for engine in engines if engine["state"] == "running" or engine["backlog"]]
            calm = 0 if working else calm + 1
            seconds = time.monotonic() - started
            if seconds > _IDLE_WAIT_S:
                raise NotTrue(f"{what} did not end in {_IDLE_WAIT_S:.0f} s: {working}")
            _progress(f"{what}: {seconds:4.0f} s  {', '.join(engine['name'] for engine in working) or 'settling'}")
            time.sleep(0.4)
        _progress(f"{what}: {time.monotonic() - started:.1f} s, done", last=True)


def _progress(text: str, *, last: bool = False) -> None:
    """One line that is written over on a terminal, and only its end elsewhere."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    elif last:
        print(text, flush=True)


def say(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def demand(condition: bool, what: str) -> None:
    """Say that something is so, or end."""
    if not condition:
        raise NotTrue(what)
    print(f"   true: {what}", flush=True)


def check_counts(stage: Stage, truth: Truth) -> None:
    """Windows with rows, by symbol, are what the files hold."""
    coverage = stage.ask("coverage", SESSION, "--by", "symbol")
    windows = coverage["windows"]
    wrong = []
    stocks = 0
    for dataset, column in (("us_stocks_sip/trades_v1", "trade_ref"), ("us_stocks_sip/quotes_v1", "quote_ref")):
        for ticker, counts in truth.files[dataset].counts.items():
            found = coverage["by_symbol"][ticker][column]
            stocks += 1
            if found["filled"] != windows or found["filled"] - found["no_data"] != counts.session_minutes:
                wrong.append(f"{ticker} {column}")
    demand(not wrong, f"windows with rows of {stocks} stock series equal the generator's count {wrong or ''}".rstrip())


def planted(truth: Truth, kind: str) -> Any:
    """A planted defect by kind."""
    return next(defect for defect in truth.defects if defect.kind == kind)


def suspect_cells(stage: Stage, symbol: str, column: str) -> int:
    """How many cells of a column and symbol are suspect."""
    coverage = stage.ask("coverage", SESSION, "--by", "symbol", "--symbols", symbol)
    return sum(int(counts[column]["suspect"]) for counts in coverage["by_symbol"].values())


def run(root: Path, *, keep: bool) -> None:
    """The whole demonstration in a folder; raises NotTrue."""
    say("one session, written by a generator that knows the truth")
    truth = write_session(root / "demo", session=SESSION)
    whole = write_session(root / "whole", session=SESSION, damage=False)
    rows = sum(file.rows for file in truth.files.values())
    print(f"   {rows:,} rows in four files, {len(truth.defects)} planted defects:", flush=True)
    for defect in truth.defects:
        print(f"   - {defect.kind}: {defect.symbol or 'curve'}", flush=True)
    reference, stage = Stage(root / "whole"), Stage(root / "demo")
    for one in (reference, stage):
        one.configure()
    say("a daemon fills the ledger from the files")
    stage.start()
    try:
        stage.wait("filling")
        show_holes(stage, truth)
        repair(stage, root / "demo")
        compare(stage, reference, whole)
        say("what was planted, and what was found")
        show_usable(stage)
        check_sides(stage, whole)
        check_volatilities(stage, whole)
        late = planted(truth, "late_curve").facts
        demand(curve_date(stage) == late["curve_date"], f"the curve of {late['curve_date']} came and took its place")
        finish(stage, keep=keep)
    finally:
        if not keep or sys.exc_info()[0] is not None:
            stage.stop()
        reference.stop()


def show_holes(stage: Stage, truth: Truth) -> None:
    """The map with its holes, and why they are there."""
    silent, without = planted(truth, "silent_trades"), planted(truth, "chain_without_quotes")
    stage.show("status")
    stage.show("coverage", SESSION, "--by", "symbol", "--columns", "trade_ref,quote_ref")
    say("why: each cause in a line, with a command to paste")
    stage.show("why", "trade_ref", "quote_ref", "--session", SESSION)
    check_counts(stage, truth)
    minutes = silent.to_minute - silent.from_minute
    found = suspect_cells(stage, silent.symbol, "trade_ref")
    demand(found == minutes, f"{silent.symbol} is silent for {minutes} minutes, and exactly those are suspect")
    found = suspect_cells(stage, without.symbol, "quote_ref")
    stage.show("engines", "list")
    late = planted(truth, "late_curve").facts
    held = curve_date(stage)
    demand(
        held == late["held_until_repair"], f"the curve of {held} holds, because that of {late['curve_date']} is late"
    )
    demand(found == 390, f"{without.symbol} has trades and never a quote: all its 390 quote cells are suspect")


def curve_date(stage: Stage) -> str:
    """The date of the curve that an option's first window names."""
    row = stage.ask("row", "O:ACME", f"{SESSION}T09:30", "--payload")
    day = str(row["slots"]["rf_rate_ref"]["payload"]["curve_date"])
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def repair(stage: Stage, folder: Path) -> None:
    """Put the complete files in place, as upstream does a day later, and wait."""
    say("repair: upstream replaces the damaged files; the daemon sees it by itself")
    for path in sorted((folder / "repair").rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(folder / "repair")
            shutil.copyfile(path, target.with_suffix(".part"))
            target.with_suffix(".part").replace(target)
            print(f"   {target.relative_to(folder)}", flush=True)
    time.sleep(2.5)
    stage.wait("repairing")


def compare(stage: Stage, reference: Stage, whole: Truth) -> None:
    """The map again, and the digest of a run that never saw the damage."""
    stage.show("coverage", SESSION, "--by", "symbol", "--columns", "trade_ref,quote_ref")
    check_counts(stage, whole)
    say("the same session without damage, in another ledger")
    reference.start()
    reference.wait("filling")
    digest, expected = (one.ask("digest", SESSION) for one in (stage, reference))
    for column, value in expected["columns"].items():
        if digest["columns"][column] != value:
            raise NotTrue(f"the digest of {column} differs from the undamaged run's")
    demand(digest["digest"] == expected["digest"], f"digest equals the undamaged run's: {digest['digest'][:16]}")
    counts = stage.ask("coverage", SESSION)["columns"]
    for column in ("rf_rate_ref", "trade_ref", "quote_ref"):
        total = counts[column]["filled"] + counts[column]["empty"] + counts[column]["cleared"]
        demand(
            counts[column]["filled"] == total and not counts[column]["suspect"], f"{column}: 100 % filled, none suspect"
        )


def check_sides(stage: Stage, truth: Truth) -> None:
    """Of the trades whose side the standing quote tells, how many the aggressor rows have right, by method."""
    right: dict[str, list[int]] = {}
    planted_sides = {
        (ticker, ts, number): side
        for ticker, trades in truth.trades.items()
        for ts, number, side, placement, tied in zip(
            trades.sip_timestamp, trades.sequence_number, trades.side, trades.placement, trades.tied, strict=True
        )
        if placement in ("touch", "inside", "model") and not tied
    }
    with ledger.open(stage.root / "ledger.state", readonly=True) as state:
        rows = state.scan("aggressor_ref", sessions=SESSION).select(
            "ticker", "sip_timestamp", "sequence_number", "side", "method"
        )
        for ticker, ts, number, side, method in rows.collect().iter_rows():
            wanted = planted_sides.get((ticker, ts, number))
            if wanted is not None:
                counts = right.setdefault(method, [0, 0])
                counts[0] += side[:1].upper() == wanted
                counts[1] += 1
    for method, (good, total) in sorted(right.items()):
        print(f"   sides by {method}: {good:,} of {total:,} recovered ({100 * good / total:.1f} %)", flush=True)
    good, total = right["nbbo_touch"]
    demand(good == total, f"every one of {total:,} trades at the touch has its planted side")


def check_volatilities(stage: Stage, truth: Truth) -> None:
    """The implied volatility of option trades against the one their contract was priced with."""
    errors = []
    with ledger.open(stage.root / "ledger.state", readonly=True) as state:
        rows = state.scan("greeks_ref", sessions=SESSION).select("ticker", "iv", "usable", "vega").collect()
    for ticker, iv, usable, vega in rows.iter_rows():
        # A cent of price is 0.01 / vega of volatility; where that is more than a point the price says little.
        if usable and vega >= 1.0:
            errors.append(abs(iv - truth.contracts[ticker].implied_volatility))
    median = 100 * statistics.median(errors)
    print(f"   implied volatility of {len(errors):,} trades: median error {median:.2f} points", flush=True)
    demand(median < 1.0, "the median error of implied volatility is below one point")


def show_usable(stage: Stage) -> None:
    """Filled against usable, by column."""
    quality = stage.ask("coverage", SESSION, "--quality")["quality"]
    for column, counts in quality.items():
        if column in ("aggressor_ref", "greeks_ref"):
            print(f"   {column}: {counts['usable_rows']:,} of {counts['rows']:,} rows usable", flush=True)


def finish(stage: Stage, *, keep: bool) -> None:
    """Three commands to try."""
    say("try" + ("" if keep else " (with scripts/demo --keep, which leaves the daemon running)"))
    prefix = f"M17_SOCKET={stage.socket} .venv/bin/m17ctl"
    print(f"   {prefix} row DUNE {SESSION}T10:20 --payload")
    print(
        f"   {prefix} clear trade_ref --session {SESSION} --from 10:15 --to 10:40 --symbols ACME --cause 'try' --dry-run"
    )
    print(f"   {prefix} export trade_ref --session {SESSION} --symbols ACME --out acme.parquet", flush=True)


def main() -> int:
    """Entry point; 0 when everything shown was true."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="M17 on one synthetic session, from nothing.")
    parser.add_argument("--keep", action="store_true", help="leave the daemon and its folder")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="m17-demo-"))
    try:
        run(root, keep=arguments.keep)
    except NotTrue as error:
        print(f"\nm17 demo: not true: {error}", file=sys.stderr)
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    print("\nm17 demo: everything shown was true")
    return 0


if __name__ == "__main__":
    sys.exit(main())
