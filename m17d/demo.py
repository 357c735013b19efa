"""
The demonstration: M17 on one synthetic session with planted defects, seen as an operator sees it; ``--live``: on a feed.

It writes the session, runs a daemon on it, shows the map with its holes and their causes, repairs what can be repaired
and shows the map again. It ends with 1 if what it shows is not true. What comes live is in ``m17d.demo_live``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import ledger
from engines.feeds.synthetic import Truth, write_session
from m17ctl.errors import ClientError
from m17d import demo_live, demo_trace
from m17d.demo_stage import NotTrue, Stage, demand, say
from m17d.discovery import discover

SESSION: Final = "2026-03-10"


def configure(stage: Stage) -> None:
    """Every engine there is but those that listen to a feed."""
    engines: dict[str, dict[str, Any]] = {name: {} for name in discover() if name != "trade_ws"}
    for name in ("trade_flatfile", "quote"):
        engines[name] = {"source": "flatfiles", "sessions": [SESSION]}
    engines["treasury"] = {"source": "treasury/treasury-yields.json"}
    stage.configure(SESSION, engines)


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
        configure(one)
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
        show_trace(stage)
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
    for column, one in counts.items():
        lacking = one["empty"] + one["pending"] + one["cleared"] + one["suspect"] + one["stale"]
        demand(not lacking, f"{column}: all {one['filled']:,} cells that can be are filled, none suspect, none stale")


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
    """Filled against usable, by column, and why rows are of no use."""
    quality = stage.ask("coverage", SESSION, "--quality")["quality"]
    for column, counts in ((name, one) for name, one in quality.items() if "usable_rows" in one):
        print(f"   {column}: {counts['usable_rows']:,} of {counts['rows']:,} rows usable", flush=True)
    stage.show("why", "aggressor_ref", "greeks_ref", "aggs_1m", "--session", SESSION)


def show_trace(stage: Stage) -> None:
    """One aggregate row, traced to its files and recomputed from the rows that its lineage names."""
    say("ACME from 10:20 to 10:25: traced to the files by lineage, recomputed from Parquet by one DuckDB statement")
    cell = stage.ask("lineage", "ACME", f"{SESSION}T10:20", "aggs_5m")["cell"]
    for line in demo_trace.summary(cell):
        print(f"   {line}", flush=True)
    with ledger.open(stage.root / "ledger.state", readonly=True) as state:
        held = state.scan("aggs_5m", symbols="ACME", sessions=SESSION).collect().row(50, named=True)
    apart = demo_trace.differences(demo_trace.recompute(cell, stage.root / "ledger.state/artifacts"), held)
    worst = max(apart.values())
    demand(worst < 1e-9, f"{len(apart)} metrics come out alike, the worst of them {worst:.0e} apart")


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
    parser = argparse.ArgumentParser(prog="scripts/demo", description="M17 on one session, from nothing.")
    parser.add_argument("--keep", action="store_true", help="leave the daemon and its folder")
    parser.add_argument("--live", action="store_true", help="the session comes from a live feed that breaks down")
    demo_live.add_arguments(parser)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="m17-demo-"))
    try:
        if arguments.live:
            demo_live.run(root, demo_live.play_of(arguments, SESSION), keep=arguments.keep)
        else:
            run(root, keep=arguments.keep)
    except (NotTrue, ClientError) as error:
        print(f"\nm17 demo: not true: {error}", file=sys.stderr)
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    print("\nm17 demo: everything shown was true")
    return 0


if __name__ == "__main__":
    sys.exit(main())
