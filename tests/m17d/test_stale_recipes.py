"""A setting changes: the newest sessions are remade unasked, older ones when ``refresh --stale recipe`` asks, by the CLI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ledger
from ledger.columns import Column
from tests.m17d import flat_files
from tests.m17d.test_derived_sessions import fill, served

SESSIONS = ("2013-05-01", "2013-05-02", "2013-05-03", "2013-05-06", "2013-05-07", "2013-05-08", "2013-05-09")
OLD, NEW = SESSIONS[:2], SESSIONS[2:]


def configure(folder: Path, policy: str) -> None:
    """Sides of a stock over seven sessions; those of five are remade unasked, as by default."""
    source = f'source = "flatfiles"\nsessions = {json.dumps(SESSIONS)}\n'
    (folder / "m17.toml").write_text(
        f'state_dir = "ledger.state"\n[calendar]\nyear = 2013\n[engines.trade_flatfile]\n{source}[engines.quote]\n{source}'
        f'[engines.nbbo]\npolicy = "{policy}"\n'
    )


def quote_lines(session: str) -> list[str]:
    """A quote a second before every trade; the trade lies inside it, nearer to the ask."""
    start = flat_files.open_ns(session)
    lines = ["ticker,ask_price,ask_size,bid_price,bid_size,sequence_number,sip_timestamp"]
    for number in range(39):
        at, price = start + number * 600 * 10**9 - 500_000_000, 10 + number / 100
        lines.append(f"AAA,{price + 0.01:.2f},3,{price - 0.02:.2f},4,{number},{at}")
    return lines


def m17ctl(folder: Path, *words: str) -> Any:
    """What a command answers as JSON; it has to end well."""
    command = [sys.executable, "-m", "m17ctl", "--socket", str(folder / "ledger.state/m17d.sock"), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return answers[0] if len(answers) == 1 else answers


def versions(folder: Path, column: Column) -> dict[str, list[int]]:
    """Versions of a column's cells by session."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        rows = {session: state.ledger_of(column).session(state.calendar.session_seq(session)) for session in SESSIONS}
        symbol_id = state.symbols.resolve("AAA")
        return {session: one.slots(column, [symbol_id])[0]["version"].tolist() for session, one in rows.items()}


def methods(folder: Path, session: str) -> set[str]:
    """How the sides of a session were found."""
    with ledger.open(folder / "ledger.state", readonly=True) as state:
        return set(state.scan("aggressor_ref", sessions=session).select("method").collect()["method"])


def test_old_sessions_wait_for_refresh_stale_recipe_and_then_are_made_again_once(tmp_path: Path) -> None:
    """
    Sides of the five newest sessions follow the new policy by themselves; of an older one only the day that was asked for.

    ``why`` names cause and command before.
    """
    for session in SESSIONS:
        flat_files.write(tmp_path, session, flat_files.packed(flat_files.good_lines(session, ("AAA",))))
        flat_files.write(tmp_path, session, flat_files.packed(quote_lines(session)), "us_stocks_sip/quotes_v1")
    configure(tmp_path, "nearest-side")
    fill(tmp_path)
    assert all(methods(tmp_path, session) == {"nbbo_at_or_beyond"} for session in SESSIONS)
    first = versions(tmp_path, Column.AGGRESSOR_REF)

    configure(tmp_path, "touch-only")
    fill(tmp_path)
    assert methods(tmp_path, NEW[0]) == {"tick_rule", "unknown"}
    second = versions(tmp_path, Column.AGGRESSOR_REF)
    assert all(second[session] == [one + 1 for one in first[session]] for session in NEW)
    assert all(second[session] == first[session] for session in OLD)

    asked, left = OLD[1], OLD[0]
    with served(tmp_path) as client:
        del client
        (cause,) = m17ctl(tmp_path, "why", "aggressor_ref", "--session", asked)
        assert (cause["cause"], cause["cells"]) == ("recipe", 390)
        words = cause["remedy"].split()
        assert words[:2] == ["m17ctl", "refresh"]
        assert "--stale recipe" in cause["remedy"]
        preview = m17ctl(
            tmp_path, "refresh", "aggressor_ref", "--session", asked, "--stale", "inputs", "--cause", "x", "--dry-run"
        )
        assert preview["cleared"] == {"aggressor_ref": 0}
        done = m17ctl(tmp_path, "refresh", "aggressor_ref", "--session", asked, "--stale", "recipe", "--cause", "x")
        assert done["cleared"] == {"aggressor_ref": 390}
        m17ctl(tmp_path, "wait", "--session", asked, "--columns", "aggressor_ref", "--timeout", "60")
        counts = m17ctl(tmp_path, "coverage", left)["columns"]["aggressor_ref"]
        assert (counts["stale"], counts["filled"]) == (390, 390)
    third = versions(tmp_path, Column.AGGRESSOR_REF)
    assert third == {**second, asked: [one + 2 for one in first[asked]]}, "marked wanted, and made once"
    assert methods(tmp_path, asked) == {"tick_rule", "unknown"}
    assert methods(tmp_path, left) == {"nbbo_at_or_beyond"}
