"""The table of commands that must work exactly so: every command, option and exit code, against one live daemon."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engines.feeds.synthetic_files import HEADERS
from ledger.columns import Column, Dataset
from m17ctl import main as m17ctl_main
from m17ctl.client import Client
from m17ctl.errors import OutcomeUnknown
from m17d import envelopes, protocol
from tests.m17d import flat_files
from tests.m17d.test_daemon import start, wait_for
from tests.m17d.wire_daemon import as_another_user, open_to_others

SESSION = "2013-05-01"
RANGE = ("--session", SESSION, "--from", "10:00", "--to", "10:30", "--symbols", "AAA")
COUNTS = {"empty", "pending", "filled", "cleared", "not_applicable", "not_due", "no_data", "suspect", "stale"}
PARTITION = COUNTS - {"no_data", "suspect", "stale"}
SLOT = {"status", "source", "flags", "payload_type", "payload_id", "version", "checksum", "inputs", "last_updated_ns"}
ROW = {"symbol", "symbol_id", "minute_idx", "window_id", "start_ts", "end_ts", "slots"}
REGION = {"id", "symbol", "start_ts", "end_ts", "priority", "columns", "minutes", "complete", "state", "operator"}
ENGINE = {"name", "state", "detail", "backlog", "since_ns", "reads", "writes", "restarts", "paused_by"}


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its answer."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its answer, an object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """Its failure."""
        found: dict[str, Any] = json.loads(self.err)["error"]
        assert set(found) >= {"code", "message", "hint"}
        return found


class Desk:
    """A daemon over two stocks, with quotes, and m17ctl in this process."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.socket = root / "ledger.state" / "m17d.sock"
        self._capsys = capsys

    def plain(self, *words: str) -> Ran:
        """Run a command as it is."""
        self._capsys.readouterr()
        code = m17ctl_main.run(["--socket", str(self.socket), *words])
        said = self._capsys.readouterr()
        return Ran(code, said.out, said.err)

    def __call__(self, *words: str, code: int = 0) -> Ran:
        """Run a command with ``--json`` behind it, which must end with a code."""
        ran = self.plain(*words, "--json")
        assert ran.code == code, (words, ran)
        return ran


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trades and quotes of two stocks, sides of their trades; option files are waited for."""
    folder = tmp_path_factory.mktemp("table")
    flat_files.write(folder, SESSION, flat_files.packed(flat_files.good_lines(SESSION)))
    start_ns = flat_files.open_ns(SESSION)
    quotes = [HEADERS[Dataset.STOCK_QUOTES]]
    for ticker in ("AAA", "BBB"):
        for number in range(39):
            ts = start_ns + number * 600 * 10**9 + 1
            quotes.append(f"{ticker},11,10.02,3,12,9.98,2,1,,{ts},{number + 1},{ts},1,")
    flat_files.write(folder, SESSION, flat_files.packed(quotes), "us_stocks_sip/quotes_v1")
    flat_files.write_config(folder, [SESSION], engines="trade_flatfile quote")
    with (folder / "m17.toml").open("a") as file:
        file.write("[engines.nbbo]\n")
    process = start(folder)
    wait_for(process, folder, "quote: us_stocks_sip", timeout_s=120)
    yield folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


@pytest.fixture
def m17ctl(root: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """The operator's hand; every column of the two stocks is whole."""
    desk = Desk(root, capsys)
    desk("wait", "--session", SESSION, "--symbols", "AAA,BBB", "--timeout", "240")
    return desk


def keys(found: Any, wanted: set[str]) -> None:
    """An object has at least these fields."""
    assert wanted <= set(found), wanted - set(found)


def test_status_and_coverage_count_every_cell_once(m17ctl: Desk) -> None:
    """The first six counts partition windows x universe; the others are parts of filled."""
    status = m17ctl("status").json
    keys(
        status,
        {
            "verdict",
            "version",
            "pid",
            "uptime_s",
            "state_dir",
            "year",
            "symbols",
            "symbols_max",
            "columns",
            "engines",
            "sources",
        },
    )
    assert all(set(one) >= {"state", "detail", "backlog"} for one in status["engines"].values())
    for options in ([], ["--by", "symbol"], ["--by", "minute"], ["--by", "source"], ["--quality"]):
        coverage = m17ctl("coverage", SESSION, *options).json
        keys(coverage, {"session", "windows", "symbols", "columns", "out_of_session"})
        assert set(coverage["columns"]) == set(Column)
        for counts in coverage["columns"].values():
            assert set(counts) == COUNTS
            assert sum(counts[name] for name in PARTITION) == coverage["windows"] * coverage["symbols"] == 780
            assert counts["no_data"] <= counts["filled"] and counts["suspect"] <= counts["filled"]
    assert set(m17ctl("coverage", SESSION, "--by", "symbol").json["by_symbol"]) == {"AAA", "BBB"}
    assert len(m17ctl("coverage", SESSION, "--by", "minute").json["by_minute"]) == 390
    # Options are waited for, so all is not well.
    assert m17ctl.plain("status", "--exit-code").code == 3


def test_rows_payloads_lineage_and_export_name_the_same_cells(m17ctl: Desk, tmp_path: Path) -> None:
    """Times are integer ns, words are words, and the record of a cell is the one that its id names."""
    row = m17ctl("row", "AAA", f"{SESSION}T10:00", "--payload").json
    keys(row, ROW)
    assert set(row["slots"]) == set(Column)
    assert row["window_id"].endswith(":30") and row["end_ts"] - row["start_ts"] == 60 * 10**9
    cell = row["slots"]["trade_ref"]
    keys(cell, SLOT | {"payload"})
    assert (cell["status"], cell["source"], cell["payload_type"], cell["flags"]) == ("filled", "flat_file", "trade", [])
    assert re.fullmatch(r"trade/.*\.parquet#rows=\d+-\d+", cell["payload"]["artifact_uri"])
    assert "payload" not in m17ctl("row", "AAA", "10:00", "--session", SESSION).json["slots"]["trade_ref"]
    assert m17ctl("payload", "trade", str(cell["payload_id"])).json == cell["payload"]
    rows = m17ctl("rows", "AAA", SESSION).lines
    assert len(rows) == 390 and [one["minute_idx"] % 390 for one in rows] == list(range(390))
    lineage = m17ctl("lineage", "AAA", f"{SESSION}T10:00", "aggressor_ref").json
    assert [one["column"] for one in lineage["cell"]["inputs"]][:2] == ["trade_ref", "quote_ref"]
    out = tmp_path / "rows.parquet"
    m17ctl("export", "trade_ref", "--session", SESSION, "--symbols", "AAA", "--extended", "--out", str(out))
    assert out.stat().st_size
    resolved = m17ctl("symbols", "resolve", "AAA").json
    assert set(resolved) == {"symbol", "symbol_id", "underlying"}
    assert resolved in m17ctl("symbols", "list").json


def test_clear_refresh_and_undo_say_what_goes_and_do_it_once(m17ctl: Desk) -> None:
    """Dry runs change nothing; expectations are kept; what was taken comes back, or is skipped where it was written since."""
    before = m17ctl("row", "AAA", f"{SESSION}T10:00").json
    clear = ("clear", "trade_ref", *RANGE, "--cause", "table")
    dry = m17ctl(*clear, "--dry-run", "--cascade").json
    keys(dry, {"operation", "cleared", "untouched", "dependents", "refillable", "dry_run"})
    assert dry["dry_run"] and dry["cleared"] == {"trade_ref": 30, "aggressor_ref": 30}
    assert set(dry["refillable"]) == {"flat_file", "rest", "derived", "none"}
    assert m17ctl("row", "AAA", f"{SESSION}T10:00").json == before
    assert m17ctl(*clear, "--expect", "29", code=5).error["code"] == "expectation_failed"
    engine = m17ctl("engines", "pause", "trade_flatfile", "--cause", "table").json
    keys(engine, ENGINE)
    assert engine["state"] == "paused"
    done = m17ctl(*clear, "--expect", "30").json
    assert done["cleared"] == {"trade_ref": 30} and done["dependents"]["aggressor_ref"] == 30
    why = m17ctl("why", "trade_ref", *RANGE).json
    assert set(why[0]) >= {"cause", "columns", "cells", "symbols", "first", "last", "remedy"}
    assert (why[0]["cause"], why[0]["cells"], why[0]["remedy"]) == (
        "paused", 30, "m17ctl engines resume trade_flatfile",
    )  # fmt: skip
    assert m17ctl("wait", *RANGE, "--columns", "trade_ref", "--timeout", "0.2", code=3).json["whole"] is False
    undone = m17ctl("undo", done["operation"]).json
    assert undone == {"operation": done["operation"], "restored": {"trade_ref": 30}, "skipped": {"trade_ref": 0}}
    partly = m17ctl(*clear, "--yes").json["operation"]
    m17ctl("engines", "resume", "trade_flatfile")
    m17ctl("wait", *RANGE, "--columns", "trade_ref", "--timeout", "60")
    assert m17ctl("undo", partly, code=5).json["skipped"] == {"trade_ref": 30}
    refresh = m17ctl("refresh", "trade_ref", *RANGE, "--cause", "table").json
    assert refresh["cleared"] == {"trade_ref": 30}
    # Nothing is stale, so nothing is taken.
    assert m17ctl("refresh", "aggressor_ref", *RANGE, "--cause", "table", "--stale", "recipe").json["cleared"] == {
        "aggressor_ref": 0
    }
    assert m17ctl("engines", "retry", "quote").json["name"] == "quote"
    assert {one["name"] for one in m17ctl("engines", "list").json} == {"trade_flatfile", "quote", "nbbo"}


def test_what_nothing_could_refill_is_refused_and_taken_only_as_a_loss(m17ctl: Desk) -> None:
    """A file that is gone leaves its cells; they go with --accept-loss, and an undo gives them back."""
    path = m17ctl.root / "flatfiles" / flat_files.DATASET / "2013" / "05" / f"{SESSION}.csv.gz"
    hidden = path.with_suffix(".hidden")
    m17ctl("engines", "pause", "trade_flatfile")
    path.rename(hidden)
    try:
        clear = ("clear", "trade_ref", *RANGE, "--cause", "table", "--expect", "30")
        assert m17ctl(*clear, code=5).error["code"] == "would_lose_data"
        assert m17ctl(*clear, "--dry-run").json["refillable"]["none"] == 30
        operation = m17ctl(*clear, "--accept-loss").json["operation"]
        assert m17ctl("undo", operation).json["restored"] == {"trade_ref": 30}
    finally:
        hidden.rename(path)
        m17ctl("engines", "resume", "trade_flatfile")


def test_refill_regions_and_a_file_of_operations(m17ctl: Desk) -> None:
    """Refill ends when its range is whole; regions retire by themselves; a file is done in order, a line each."""
    words = ("refill", "trade_ref", "aggressor_ref", *RANGE, "--cause", "table")
    assert m17ctl(*words, "--dry-run").json["dry_run"]
    refill = m17ctl(*words, "--priority", "700", "--timeout", "60").json
    assert refill["wait"]["whole"] and refill["regions"][0]["priority"] == 700
    region = m17ctl(
        "priority", "add", "BBB", f"{SESSION}T10:00", f"{SESSION}T10:30", "--priority", "9", "--columns", "trade_ref"
    ).json
    keys(region, REGION)
    assert (region["minutes"], region["columns"]) == (30, ["trade_ref"])
    end = time.monotonic() + 240
    while (now := m17ctl("priority", "show", str(region["id"])).json)["state"] != "complete":
        assert time.monotonic() < end, now
        time.sleep(0.1)
    assert now["complete"] == 30
    assert region["id"] in [one["id"] for one in m17ctl("priority", "list").json]
    m17ctl("priority", "rm", str(region["id"]))
    assert region["id"] not in [one["id"] for one in m17ctl("priority", "list").json]
    file = m17ctl.root / "table.ndjson"
    lines = [
        {"op": "refresh", "columns": ["trade_ref"], "session": SESSION, "symbols": "BBB", "cause": "table"},
        {"op": "wait", "columns": ["trade_ref"], "session": SESSION, "timeout": 60},
        {"op": "undo", "operation": "op-99999999"},
    ]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    ran = m17ctl("repair", str(file), code=1)
    assert [(one["line"], one["op"], one["ok"]) for one in ran.lines] == [
        (1, "refresh", True), (2, "wait", True), (3, "undo", False),
    ]  # fmt: skip
    file.write_text(json.dumps(lines[0]) + '\n{"op": "wipe"}\n')
    refused = m17ctl("repair", str(file), code=2)
    assert refused.out == "" and "line 2" in refused.error["message"]


def test_proof_and_upkeep(m17ctl: Desk, tmp_path: Path) -> None:
    """Verify, digest, audit, metrics, backup, gc, accept, watch and doctor answer as documented."""
    verify = m17ctl("verify", SESSION).json
    keys(verify, {"slots", "payloads", "artifacts", "orphans", "findings"})
    assert set(verify["orphans"]) == {"files", "bytes", "records"} and not verify["findings"]
    digest = m17ctl("digest", SESSION).json
    assert set(digest) == {"session", "digest", "columns"} and set(digest["columns"]) == set(Column)
    (record,) = m17ctl("audit", "--tail", "1").lines
    keys(record, {"ts", "operator", "op"})
    assert set(record["operator"]) >= {"uid", "gid", "pid", "user"} and record["operator"]["uid"] == os.getuid()
    checked = m17ctl.plain("audit", "--tail", "1", "--verify", "--json")
    assert checked.code == 0 and json.loads(checked.err) == {"chain": "intact"}
    assert "# TYPE m17_cells" in m17ctl.plain("metrics").out or "m17_" in m17ctl.plain("metrics").out
    backup = m17ctl("backup", str(tmp_path / "copy")).json
    assert backup["files"] > 0
    assert m17ctl("gc", "--dry-run").json["dry_run"]
    doctor = m17ctl("doctor")
    assert {"m17", "open_files_limit", "file_system", "free_bytes", "state_dir_mode", "now_ns", "socket_mode"} <= set(
        doctor.json["facts"]
    )
    # The session's files of options are waited for: once they are taken as absent, nothing is left to accept.
    accepted = m17ctl("accept", "--session", SESSION, "--cause", "table").json
    assert set(accepted) == {"operation", "accepted", "sources", "dry_run"} and accepted["sources"]
    accept = m17ctl("accept", "--session", SESSION, "--cause", "table", code=6)
    assert accept.error["code"] == "nothing_selected"


def test_words_that_name_nothing_are_6_and_words_that_are_none_are_2(m17ctl: Desk) -> None:
    """Not found, and usage; each with what to do."""
    absent: list[Sequence[str]] = [
        ("row", "ZZZ", f"{SESSION}T10:00"),
        ("row", "AAA", f"{SESSION}T08:00"),
        ("coverage", "2013-05-04"),
        ("payload", "trade", "4000000"),
        ("undo", "op-77777777"),
        ("priority", "show", "999"),
        ("priority", "rm", "999"),
        ("engines", "pause", "nobody"),
        ("clear", "trade_ref", "--session", SESSION, "--symbols", "ZZZ", "--cause", "x"),
        ("symbols", "resolve", "ZZZ"),
        ("operation", "no-such-key"),
    ]
    for words in absent:
        assert m17ctl(*words, code=6).error["hint"], words
    unusable: list[Sequence[str]] = [
        ("nonsense",),
        ("clear",),
        ("clear", "no_column", *RANGE, "--cause", "x"),
        ("clear", "trade_ref", "--session", "yesterday", "--cause", "x"),
        ("clear", "trade_ref", *RANGE),
        ("row", "AAA", "10 o'clock"),
        ("priority", "add", "AAA", f"{SESSION}T10:00"),
    ]
    for words in unusable:
        ran = m17ctl.plain(*words)
        assert ran.code == 2 and "hint:" in ran.err, (words, ran)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_reader_without_the_role_gets_4_and_a_sentence_and_is_audited(m17ctl: Desk) -> None:
    """Nobody may read where the socket lets them, and change nothing; a socket that is closed to them says so."""
    open_to_others(m17ctl.root)
    state = m17ctl.socket.parent
    root_mode, state_mode, socket_mode = (path.stat().st_mode & 0o777 for path in (m17ctl.root, state, m17ctl.socket))

    def as_nobody(*words: str) -> Ran:
        def work() -> str:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = m17ctl_main.run(["--socket", str(m17ctl.socket), "--json", *words])
            return json.dumps([code, out.getvalue(), err.getvalue()])

        open_to_others(m17ctl.root)  # again: another run of the tests closes the folder that it shares with this one
        return Ran(*json.loads(as_another_user(65534, work)))

    try:
        for path in (m17ctl.root, state):
            path.chmod(0o755)
        closed = as_nobody("status")
        assert (closed.code, closed.error["code"]) == (4, "permission_denied")
        m17ctl.socket.chmod(0o666)
        assert as_nobody("status").code == 0
        refused = as_nobody("clear", "trade_ref", *RANGE, "--cause", "x", "--yes")
        assert refused.code == 4 and "operate" in refused.error["message"]
        (record,) = m17ctl("audit", "--tail", "1").lines
        assert record["operator"]["uid"] == 65534 and record["result"].startswith("denied")
    finally:
        m17ctl.socket.chmod(socket_mode)
        state.chmod(state_mode)
        m17ctl.root.chmod(root_mode)


def test_daemon_that_is_down_stopped_or_of_another_protocol(
    m17ctl: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 at once, whatever the timeout; 8 with the key under which it can be sent again; 9 for another protocol."""
    assert m17ctl_main.run(["--socket", str(tmp_path / "none.sock"), "--timeout", "86400", "status"]) == 7
    pid = m17ctl("status").json["pid"]
    with Client(m17ctl.socket) as client:
        client.call(protocol.PingRequest())
        os.kill(pid, signal.SIGSTOP)
        try:
            assert m17ctl.plain("--timeout", "0.3", "status").code == 8
            with pytest.raises(OutcomeUnknown) as unknown:
                client.call(protocol.EnginesControlRequest(engine="quote", action="retry"), timeout_s=0.3)
            assert unknown.value.exit_code == 8 and unknown.value.key in unknown.value.hint
        finally:
            os.kill(pid, signal.SIGCONT)
    # It arrived after its deadline, so it was not done, and asking by its key says so.
    assert m17ctl("operation", unknown.value.key, code=6).error["code"] == "not_found"
    monkeypatch.setattr(envelopes, "PROTOCOL_MAX", 99)
    assert m17ctl("status", code=9).error["code"] in ("protocol_version", "protocol_mismatch")
