"""Commands that change something: what they send, when they ask, what their answers exit with, and how a repair resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger.columns import Column
from m17ctl.errors import DaemonUnreachable, OutcomeUnknown, RemoteFailure
from m17d.outcomes import (
    AcceptReply,
    BackupReply,
    EngineReply,
    Failure,
    GcReply,
    OperationReply,
    Orphans,
    RegionReply,
    UndoReply,
    WaitReply,
)
from m17d.protocol import (
    AcceptRequest,
    BackupRequest,
    ClearRequest,
    EnginesControlRequest,
    GcRequest,
    PriorityAddRequest,
    PriorityRemoveRequest,
    Range,
    RefreshRequest,
    Request,
    SessionsListRequest,
    SessionsOpenRequest,
    SymbolsListRequest,
    UndoRequest,
    WaitRequest,
)
from m17d.replies import Cause, Reply, SessionReply, SessionsReply, SymbolReply, SymbolsReply
from tests.m17ctl.fakes import MINUTE_NS, OPEN_NS, m17ctl, operation

CLEAR = ("clear", "trade_ref", "--session", "2013-10-07", "--symbols", "AIG", "--cause", "bad prints")
CLEAR_REQUEST = ClearRequest(
    columns=[Column.TRADE_REF], range=Range(session="2013-10-07", symbols="AIG"), cause="bad prints"
)
REGION = RegionReply(
    id=3,
    symbol="AIG",
    start_ts=OPEN_NS,
    end_ts=OPEN_NS + MINUTE_NS,
    priority=900,
    columns=[],
    minutes=1,
    complete=0,
    state="active",
    operator="ana",
)
ENGINE = EngineReply(name="quote", state="paused")
DAY = SessionReply(
    session="2013-10-07", session_seq=191, windows=390, open_ts=OPEN_NS, close_ts=OPEN_NS + 390 * MINUTE_NS
)
WHOLE = WaitReply(whole=True, cells=25, remaining={})
BLOCKED = Cause(
    cause="waiting",
    columns=[Column.TRADE_REF],
    cells=5,
    symbols=1,
    first=OPEN_NS,
    last=OPEN_NS,
    remedy="m17ctl accept --session 2013-10-07",
)
NOT_WHOLE = WaitReply(whole=False, cells=25, remaining={Column.TRADE_REF: 5}, blocked=[BLOCKED])


def refused(code: str) -> RemoteFailure:
    return RemoteFailure(Failure(code=code, message=f"refused: {code}", hint="see"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only by sleeping, and sleeping takes none."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += max(seconds, 0.001)

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: now[0])


@pytest.mark.parametrize(
    ("words", "due", "reply"),
    [
        (CLEAR, CLEAR_REQUEST, operation()),
        (
            (*CLEAR, "--cascade", "--accept-loss", "--yes"),
            msgspec.structs.replace(CLEAR_REQUEST, cascade=True, accept_loss=True, confirmed=True),
            operation(),
        ),
        ((*CLEAR, "--dry-run"), msgspec.structs.replace(CLEAR_REQUEST, dry_run=True), operation(dry_run=True)),
        ((*CLEAR, "--expect", "25"), msgspec.structs.replace(CLEAR_REQUEST, expect=25, confirmed=True), operation()),
        (
            ("refresh", "trade_ref,quote_ref", "--session", "2013-10-07", "--cause", "x", "--stale", "recipe"),
            RefreshRequest(
                columns=[Column.TRADE_REF, Column.QUOTE_REF],
                range=Range(session="2013-10-07"),
                cause="x",
                stale="recipe",
            ),
            operation(),
        ),
        (
            ("accept", "--session", "2013-10-07", "--from", "10:15", "--columns", "quote_ref", "--cause", "y"),
            AcceptRequest(range=Range(session="2013-10-07", from_ts="10:15"), columns=[Column.QUOTE_REF], cause="y"),
            AcceptReply(operation="op-8", accepted={Column.QUOTE_REF: 4}),
        ),
        (
            (
                "priority",
                "add",
                "AIG",
                "10:15",
                "10:40",
                "--priority",
                "900",
                "--session",
                "2013-10-07",
                "--columns",
                "trade_ref",
                "quote_ref",
            ),
            PriorityAddRequest(
                symbol="AIG",
                from_ts="10:15",
                to_ts="10:40",
                priority=900,
                columns=[Column.TRADE_REF, Column.QUOTE_REF],
                session="2013-10-07",
            ),
            REGION,
        ),
        (("priority", "rm", "3"), PriorityRemoveRequest(id=3), REGION),
        (
            ("engines", "pause", "quote", "--cause", "outage"),
            EnginesControlRequest(engine="quote", action="pause", cause="outage"),
            ENGINE,
        ),
        (("engines", "resume", "quote"), EnginesControlRequest(engine="quote", action="resume"), ENGINE),
        (("engines", "retry", "quote"), EnginesControlRequest(engine="quote", action="retry"), ENGINE),
        (("sessions", "open", "2013-10-07"), SessionsOpenRequest(session="2013-10-07"), DAY),
        (
            ("backup", "/backups/monday"),
            BackupRequest(directory="/backups/monday"),
            BackupReply(directory="/backups/monday", files=3, bytes=4096, seconds=1.5),
        ),
        (
            ("gc", "--dry-run"),
            GcRequest(dry_run=True),
            GcReply(removed=Orphans(files=1), retired=Orphans(), dry_run=True),
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_change_sends_exactly_what_was_said_and_prints_the_reply(
    words: tuple[str, ...], due: Request, reply: Reply
) -> None:
    """One request; JSON in the reply's shape; something readable without."""
    ran = m17ctl(reply, "--json", *words)
    assert ran.asked == [due]
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == json.loads(msgspec.json.encode(reply))
    assert m17ctl(reply, *words).out.strip()


@pytest.mark.parametrize(("dry_run", "said"), [(True, "would forget"), (False, "forgot")])
def test_a_collection_says_how_many_operations_can_be_undone_no_more(dry_run: bool, said: str) -> None:
    """Only where there are any; a daemon of before does not say it."""
    none = GcReply(removed=Orphans(), dry_run=dry_run)
    some = GcReply(removed=Orphans(), undos=3, dry_run=dry_run)
    words = ("gc", "--dry-run") if dry_run else ("gc",)
    assert f"{said} 3 operations that are too old to be undone" in m17ctl(some, *words).out
    assert "undone" not in m17ctl(none, *words).out


def test_a_relative_backup_directory_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The daemon has another working directory."""
    monkeypatch.chdir(tmp_path)
    ran = m17ctl(BackupReply(directory="x", files=0, bytes=0, seconds=0.0), "backup", "monday")
    assert ran.asked == [BackupRequest(directory=str(tmp_path / "monday"))]


def _threshold(request: Request) -> Any:
    """A daemon for which 11,400 cells are too many to go unasked."""
    assert isinstance(request, (ClearRequest, RefreshRequest))
    if not request.dry_run and not request.confirmed:
        return refused("confirm_required")
    return operation(11_400, dry_run=request.dry_run)


def test_above_the_threshold_the_dry_run_is_shown_and_a_yes_clears() -> None:
    """What would go is seen before the question; only then is it confirmed."""
    ran = m17ctl(_threshold, *CLEAR, answers="y\n")
    assert ran.asked == [
        CLEAR_REQUEST,
        msgspec.structs.replace(CLEAR_REQUEST, dry_run=True),
        msgspec.structs.replace(CLEAR_REQUEST, confirmed=True),
    ]
    assert ran.code == 0
    assert "would clear: 11,400 cells (trade_ref 11,400)" in ran.err
    assert "clear 11,400 cells? [y/N]" in ran.err
    assert ran.out.splitlines()[0] == "cleared: 11,400 cells (trade_ref 11,400)"
    assert ran.out.splitlines()[-1] == "operation op-7; take it back with: m17ctl undo op-7"


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yesterday\n"])
def test_anything_but_yes_changes_nothing(answer: str) -> None:
    """Silence is no consent."""
    ran = m17ctl(_threshold, *CLEAR, answers=answer)
    assert ran.code == 5
    assert not any(isinstance(request, ClearRequest) and request.confirmed for request in ran.asked)


def test_without_a_terminal_much_is_refused_and_the_hint_says_how() -> None:
    """A script must say --yes or --expect N."""
    ran = m17ctl(_threshold, "--json", *CLEAR)
    assert (ran.code, ran.out) == (5, "")
    error = json.loads(ran.err)["error"]
    assert error["code"] == "confirm_required"
    assert "--expect 11400" in error["hint"]
    assert m17ctl(_threshold, *CLEAR, "--yes").code == 0


@pytest.mark.parametrize(("restored", "skipped", "code"), [(25, 0, 0), (20, 5, 1), (0, 5, 5), (0, 0, 5)])
def test_undo_exits_by_how_much_it_restored(restored: int, skipped: int, code: int) -> None:
    """0 all, 1 some, 5 none."""
    reply = UndoReply(operation="op-9", restored={Column.TRADE_REF: restored}, skipped={Column.TRADE_REF: skipped})
    ran = m17ctl(reply, "--json", "undo", "op-7")
    assert ran.asked == [UndoRequest(operation="op-7")]
    assert ran.code == code
    assert json.loads(ran.out)["restored"] == {"trade_ref": restored}


def test_an_unknown_outcome_prints_the_key() -> None:
    """With it the operator finds out, or sends it again safely."""
    ran = m17ctl(OutcomeUnknown("no answer: outcome unknown, idempotency key k1", "ask", key="k1"), *CLEAR)
    assert ran.code == 8
    assert "k1" in ran.err


def test_wait_asks_until_the_range_is_whole() -> None:
    """Columns may be separated by commas or blanks."""
    answers = iter([NOT_WHOLE, NOT_WHOLE, WHOLE])
    words = ("wait", "--session", "2013-10-07", "--columns", "trade_ref", "quote_ref", "--timeout", "60")
    ran = m17ctl(lambda request: next(answers), "--json", *words)
    due = WaitRequest(columns=[Column.TRADE_REF, Column.QUOTE_REF], range=Range(session="2013-10-07"))
    assert ran.asked == [due, due, due]
    assert ran.code == 0
    assert json.loads(ran.out)["whole"] is True


def test_wait_that_is_not_whole_in_time_exits_3_with_what_is_in_the_way() -> None:
    """Not yet is not failed; the text names the causes and their commands."""
    ran = m17ctl(NOT_WHOLE, "wait", "--session", "2013-10-07", "--timeout", "5")
    assert ran.code == 3
    assert ran.asked[0] == WaitRequest(columns=list(Column), range=Range(session="2013-10-07"))
    assert ran.out.splitlines()[0] == "not whole: 5 cells (trade_ref 5) of 25 left"
    assert "  m17ctl accept --session 2013-10-07" in ran.out
    once = m17ctl(NOT_WHOLE, "wait", "--session", "2013-10-07", "--timeout", "0")
    assert (once.code, len(once.asked)) == (3, 1)


def test_wait_outlives_a_daemon_that_restarts() -> None:
    """A repair may take longer than a daemon lives; one that never answered is not waited for."""
    gone = DaemonUnreachable("no daemon", "start it")
    answers = iter([NOT_WHOLE, gone, gone, WHOLE])
    assert m17ctl(lambda request: next(answers), "wait", "--session", "2013-10-07").code == 0
    assert m17ctl(gone, "wait", "--session", "2013-10-07").code == 7
    forever = iter([NOT_WHOLE])
    assert m17ctl(lambda request: next(forever, gone), "wait", "--session", "2013-10-07").code == 7


def _repairing(request: Request) -> Any:
    match request:
        case RefreshRequest():
            return operation()
        case SymbolsListRequest():
            return SymbolsReply(symbols=[SymbolReply(symbol="AIG", symbol_id=3, underlying="AIG")])
        case SessionsListRequest():
            return SessionsReply(sessions=[DAY])
        case PriorityAddRequest():
            return REGION
        case _:
            return WHOLE


def test_refill_is_refresh_region_and_wait() -> None:
    """In this order; without --from and --to the region is the session."""
    words = ("refill", "trade_ref", "--session", "2013-10-07", "--symbols", "AIG", "--cause", "gap")
    ran = m17ctl(_repairing, "--json", *words)
    asked = Range(session="2013-10-07", symbols="AIG")
    assert ran.asked == [
        RefreshRequest(columns=[Column.TRADE_REF], range=asked, cause="gap"),
        SymbolsListRequest(symbols="AIG"),
        SessionsListRequest(),
        PriorityAddRequest(
            symbol="AIG",
            from_ts=DAY.open_ts,
            to_ts=DAY.close_ts,
            priority=500,
            columns=[Column.TRADE_REF],
            session="2013-10-07",
        ),
        WaitRequest(columns=[Column.TRADE_REF], range=asked),
    ]
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert (answer["operation"]["operation"], answer["regions"][0]["id"], answer["wait"]["whole"]) == ("op-7", 3, True)


def test_refill_of_cells_that_are_all_empty_goes_on_to_region_and_wait() -> None:
    """Nothing to mark is no reason not to fill."""

    def daemon(request: Request) -> Any:
        return refused("nothing_selected") if isinstance(request, RefreshRequest) else _repairing(request)

    ran = m17ctl(daemon, "refill", "trade_ref", "--session", "2013-10-07", "--cause", "gap")
    assert ran.code == 0
    assert isinstance(ran.asked[-1], WaitRequest)
    assert ran.out.splitlines() == ["region 3 at priority 900", "whole: 25 cells"]


def test_refill_exits_3_when_not_whole_in_time_and_shows_progress_on_a_terminal() -> None:
    """Rate and count while it runs, what is in the way at its end."""

    def daemon(request: Request) -> Any:
        return NOT_WHOLE if isinstance(request, WaitRequest) else _repairing(request)

    words = ("refill", "trade_ref", "--session", "2013-10-07", "--cause", "gap", "--timeout", "3")
    ran = m17ctl(daemon, *words, answers="", width=100)
    assert ran.code == 3
    assert "0/5 cells" in ran.err
    assert "blocked: waiting" in ran.err
    assert "not whole: 5 cells" in ran.out


FILE = b"""# after the outage
{"op": "pause", "engine": "quote", "cause": "outage"}
{"op": "clear", "columns": ["trade_ref"], "session": "2013-10-07", "from": "10:15", "to": "10:40", "symbols": "AIG"}

{"op": "priority", "symbol": "AIG", "session": "2013-10-07", "from": "10:15", "to": "10:40", "priority": 900}
{"op": "undo", "operation": "op-1"}
{"op": "resume", "engine": "quote"}
{"op": "wait", "columns": "trade_ref,quote_ref", "range": {"session": "2013-10-07"}, "timeout": 5}
"""


def _operating(request: Request) -> Any:
    match request:
        case ClearRequest():
            return operation()
        case PriorityAddRequest():
            return REGION
        case UndoRequest():
            return UndoReply(operation="op-2", restored={Column.TRADE_REF: 1}, skipped={})
        case EnginesControlRequest():
            return ENGINE
        case _:
            return WHOLE


def test_repair_does_each_line_in_order_with_a_result_line_each() -> None:
    """Lines keep their numbers over comments and empty lines."""
    ran = m17ctl(_operating, "repair", "-", "--cause", "bad prints", stdin=FILE)
    results = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0
    assert [(result["line"], result["op"], result["ok"]) for result in results] == [
        (2, "pause", True),
        (3, "clear", True),
        (5, "priority", True),
        (6, "undo", True),
        (7, "resume", True),
        (8, "wait", True),
    ]
    assert results[1]["result"]["cleared"] == {"trade_ref": 25}
    assert ran.asked[1] == ClearRequest(
        columns=[Column.TRADE_REF],
        range=Range(session="2013-10-07", from_ts="10:15", to_ts="10:40", symbols="AIG"),
        cause="bad prints",
        confirmed=True,
    )


def test_a_failed_line_does_not_stop_the_lines_behind_it_unless_asked() -> None:
    """The engine that was paused must be resumed."""

    def daemon(request: Request) -> Any:
        return refused("would_lose_data") if isinstance(request, ClearRequest) else _operating(request)

    ran = m17ctl(daemon, "repair", "-", "--cause", "x", stdin=FILE)
    results = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 1
    assert [result["ok"] for result in results] == [True, False, True, True, True, True]
    assert results[1]["error"] == {"code": "would_lose_data", "message": "refused: would_lose_data", "hint": "see"}
    stopped = m17ctl(daemon, "repair", "-", "--cause", "x", "--stop", stdin=FILE)
    assert (stopped.code, len(stopped.out.splitlines())) == (1, 2)


def test_a_repair_that_was_interrupted_does_each_operation_once_when_run_again() -> None:
    """Keys come from content and line, so that the daemon, which does a key once, sees the same ones again."""
    left = [3]

    def dying(request: Request) -> Any:
        left[0] -= 1
        return DaemonUnreachable("no daemon", "start it") if left[0] < 0 else _operating(request)

    first = m17ctl(dying, "repair", "-", "--cause", "x", stdin=FILE)
    assert first.code == 7
    assert "stopped at line 6, 3 of the operations left; run the same file again" in first.err
    second = m17ctl(_operating, "repair", "-", "--cause", "x", stdin=FILE)
    assert second.code == 0
    assert first.keys == second.keys[:4]
    assert first.asked == second.asked[:4]
    mutations = [key for key in second.keys if key is not None]
    assert len(set(mutations)) == len(mutations) == 5


def test_another_content_or_run_makes_other_keys() -> None:
    """The same words on another day are another repair only if the operator says so."""
    keys = m17ctl(_operating, "repair", "-", "--cause", "x", stdin=FILE).keys
    assert keys == m17ctl(_operating, "repair", "-", "--cause", "x", stdin=FILE).keys
    assert not set(keys[:5]) & set(m17ctl(_operating, "repair", "-", "--cause", "x", stdin=FILE + b"\n").keys[:5])
    assert not set(keys[:5]) & set(m17ctl(_operating, "repair", "-", "--run", "b", "--cause", "x", stdin=FILE).keys[:5])


def test_a_repair_by_who_may_not_operate_stops_at_the_first_line_with_exit_4() -> None:
    """Every other line would be refused, too, and audited."""
    ran = m17ctl(refused("permission_denied"), "repair", "-", "--cause", "x", stdin=FILE)
    assert ran.code == 4
    assert len(ran.asked) == len(ran.out.splitlines()) == 1
    assert json.loads(ran.out)["error"]["code"] == "permission_denied"


def test_a_repair_dry_run_changes_nothing() -> None:
    """Clears are previewed, everything else is only checked."""
    ran = m17ctl(_operating, "repair", "-", "--cause", "x", "--dry-run", stdin=FILE)
    assert ran.code == 0
    assert [type(request) for request in ran.asked] == [ClearRequest]
    assert isinstance(ran.asked[0], ClearRequest) and ran.asked[0].dry_run


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"op": "format"}', "op 'format' is not one of clear, refresh"),
        (b'{"columns": []}', "op None"),
        (b'{"op": "pause"}', "engine"),
        (b'{"op": "pause", "engine": "quote", "why": "x"}', "why"),
        (b'{"op": "clear", "columns": ["trades"], "session": "2013-10-07", "cause": "x"}', "trades"),
        (b'{"op": "clear", "columns": ["trade_ref"], "session": "2013-10-07"}', "cause"),
        (b'{"op": "clear", "columns": ["trade_ref"], "session": "monday", "cause": "x"}', "session"),
        (b'{"op": "clear", "columns": ["trade_ref"], "session": "2013-10-07", "from": "ten", "cause": "x"}', "from"),
        (b'{"op": "clear", "columns": ["trade_ref"], "range": {"day": "2013-10-07"}, "cause": "x"}', "'day'"),
        (b'{"op": "clear", "columns": ["trade_ref"], "range": 3, "cause": "x"}', "range is not an object"),
        (b'{"op": "clear", "confirmed": false, "columns": ["trade_ref"], "session": "2013-10-07"}', "confirmed"),
        (b'{"op": "wait", "columns": ["trade_ref"], "session": "2013-10-07", "timeout": "soon"}', "timeout"),
        (b'{"op": "priority", "symbol": "AIG", "from": "10:15", "to": "10:40", "priority": 5000}', "priority"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_one_bad_line_stops_a_repair_before_its_first_operation(line: bytes, reason: str) -> None:
    """The message names the line; nothing was sent."""
    ran = m17ctl(_operating, "--json", "repair", "-", stdin=b'{"op": "resume", "engine": "quote"}\n' + line)
    assert (ran.code, ran.out, ran.asked) == (2, "", [])
    error = json.loads(ran.err)["error"]
    assert error["message"].startswith("line 2: ")
    assert reason in error["message"]


def test_a_repair_of_nothing_exits_6_and_a_missing_file_is_named(tmp_path: Path) -> None:
    """An empty file is most likely the wrong one."""
    assert m17ctl(_operating, "repair", "-", stdin=b"# nothing\n").code == 6
    missing = m17ctl(_operating, "repair", str(tmp_path / "none.ndjson"))
    assert missing.code == 6
    assert "none.ndjson" in missing.err


def test_an_operation_reply_of_a_dry_run_offers_no_undo() -> None:
    """There is nothing to take back."""
    reply: OperationReply = operation(dry_run=True)
    out = m17ctl(reply, *CLEAR, "--dry-run").out
    assert out.startswith("would clear: 25 cells")
    assert "made from them: 25 cells (aggressor_ref 25)" in out
    assert "can be refilled from: flat files 25" in out
    assert "undo" not in out
