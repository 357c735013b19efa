"""Commands that change nothing: their JSON is the reply's own shape, their text says what matters first."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ledger.columns import Column, LedgerKind
from m17ctl.main import run
from m17ctl.terminal import Terminal
from m17d.outcomes import (
    AuditReply,
    DigestReply,
    DoctorReply,
    EngineReply,
    EnginesReply,
    Finding,
    MetricsReply,
    OperationRecord,
    Orphans,
    RegionReply,
    RegionsReply,
    VerifyReply,
)
from m17d.protocol import (
    AuditRequest,
    BulkRequest,
    CoverageRequest,
    DigestRequest,
    DoctorRequest,
    EnginesListRequest,
    LineageRequest,
    MetricsRequest,
    OperationRequest,
    PayloadRequest,
    PriorityListRequest,
    PriorityShowRequest,
    Range,
    Request,
    RowRequest,
    RowsRequest,
    SessionsListRequest,
    StatusRequest,
    SymbolsListRequest,
    SymbolsResolveRequest,
    VerifyRequest,
    WhyRequest,
)
from m17d.replies import (
    ROW_HEADER_FORMAT,
    SLOT_FORMAT,
    BulkReply,
    Cause,
    CoverageReply,
    EngineState,
    LineageCell,
    LineageReply,
    Operator,
    PayloadReply,
    Reply,
    RowsReply,
    SessionReply,
    SessionsReply,
    SourceReply,
    Space,
    StatusReply,
    SymbolReply,
    SymbolsReply,
    WhyReply,
)
from tests.m17ctl.fakes import MINUTE_NS, OPEN_NS, FakeConnection, counts, m17ctl, row, slot

SOURCE = SourceReply(
    dataset="us_stocks_sip/trades_v1",
    session="2013-10-07",
    state="damaged",
    uri="trades.csv.gz",
    bytes=2048,
    rows=12,
    rejected={"price": 3},
    detail="line 9: not a number",
)
STATUS = StatusReply(
    verdict="1 source is damaged: 25 cells of trade_ref are empty",
    version="0.1.0",
    pid=4711,
    uptime_s=7500.0,
    state_dir="/srv/ledger.state",
    year=2013,
    symbols=41,
    symbols_max=10_000,
    columns={Column.TRADE_REF: counts(filled=365, empty=25)},
    engines={"trade_flatfile": EngineState(state="degraded", detail="a file is damaged", backlog=25)},
    sources=[SOURCE],
    space=Space(free_bytes=3 << 30, session_bytes=300 << 20, runway_days=10.2),
    warnings=["12.0 % of trades share their time with a quote"],
)
COVERAGE = CoverageReply(
    session="2013-10-07",
    windows=390,
    symbols=2,
    columns={Column.TRADE_REF: counts(filled=755, empty=25), Column.QUOTE_REF: counts(filled=780)},
    out_of_session={"us_stocks_sip/trades_v1": {"rows": 7, "auction_rows": 2}},
)
CAUSE = Cause(
    cause="source damaged",
    columns=[Column.TRADE_REF],
    cells=11_400,
    symbols=40,
    first=OPEN_NS,
    last=OPEN_NS + 24 * MINUTE_NS,
    remedy="m17ctl refill trade_ref --session 2013-10-07 --cause damaged",
    detail="trades.csv.gz line 9",
)
LINEAGE = LineageReply(
    cell=LineageCell(
        column=Column.AGGRESSOR_REF,
        symbol="AIG",
        minute_idx=74491,
        start_ts=OPEN_NS,
        status="filled",
        payload_id=5,
        version=2,
        checksum=255,
        recipe="nbbo nearest-side",
        inputs=[
            LineageCell(
                column=Column.TRADE_REF,
                symbol="AIG",
                minute_idx=74491,
                start_ts=OPEN_NS,
                status="filled",
                artifact_uri="trade/a.parquet#rows=1-2",
                source=SOURCE,
                rows=(1, 2),
                record_count=1,
                lead_rows=7,
                first_ts=OPEN_NS + 12_000_345,
                last_ts=OPEN_NS + 12_000_345,
                current=False,
            )
        ],
    ),
    complete=False,
    left_out=1_200,
)
ENGINE = EngineReply(name="quote", state="paused", detail="", backlog=3, since_ns=OPEN_NS, paused_by="ana: outage")
REGION = RegionReply(
    id=3,
    symbol="AIG",
    start_ts=OPEN_NS,
    end_ts=OPEN_NS + 25 * MINUTE_NS,
    priority=900,
    columns=[Column.TRADE_REF],
    minutes=25,
    complete=5,
    state="active",
    operator="ana",
)
AIG = SymbolReply(symbol="AIG", symbol_id=3, underlying="AIG")
DAY = SessionReply(
    session="2013-10-07", session_seq=191, windows=390, open_ts=OPEN_NS, close_ts=OPEN_NS + 390 * MINUTE_NS
)
RANGE = Range(session="2013-10-07", from_ts="10:15", to_ts="10:40", symbols="AIG", contract="O:*")
RANGE_WORDS = ("--session", "2013-10-07", "--from", "10:15", "--to", "10:40", "--symbols", "AIG", "--contract", "O:*")
RECORD = OperationRecord(
    key="k", operation="op-7", op="clear", ts=OPEN_NS, outcome="applied", operator=Operator(uid=1, gid=1, pid=1)
)

CASES: list[tuple[tuple[str, ...], Request, Reply, Any]] = [
    (("status",), StatusRequest(), STATUS, STATUS),
    (
        ("coverage", "2013-10-07", "--by", "symbol", "--quality", "--symbols", "A*"),
        CoverageRequest(session="2013-10-07", by="symbol", quality=True, symbols="A*"),
        COVERAGE,
        COVERAGE,
    ),
    (
        ("row", "AIG", "2013-10-07T09:31", "--payload"),
        RowRequest(symbol="AIG", at="2013-10-07T09:31", payload=True),
        row(trade_ref=slot(payload={"record_count": 3, "artifact_uri": "trade/a.parquet#rows=1-4"})),
        row(trade_ref=slot(payload={"record_count": 3, "artifact_uri": "trade/a.parquet#rows=1-4"})),
    ),
    (
        ("payload", "trade", "17"),
        PayloadRequest(kind="trade", payload_id=17),
        PayloadReply(kind="trade", payload_id=17, record={"record_count": 3}),
        {"record_count": 3},
    ),
    (
        ("why", "trade_ref", "quote_ref", *RANGE_WORDS),
        WhyRequest(columns=[Column.TRADE_REF, Column.QUOTE_REF], range=RANGE),
        WhyReply(groups=[CAUSE]),
        [CAUSE],
    ),
    (
        ("lineage", "AIG", "09:30", "aggressor_ref", "--session", "2013-10-07"),
        LineageRequest(symbol="AIG", at="09:30", column=Column.AGGRESSOR_REF, session="2013-10-07"),
        LINEAGE,
        LINEAGE,
    ),
    (("symbols", "list", "--symbols", "A*"), SymbolsListRequest(symbols="A*"), SymbolsReply(symbols=[AIG]), [AIG]),
    (("symbols", "resolve", "AIG"), SymbolsResolveRequest(symbol="AIG"), AIG, AIG),
    (("sessions", "list"), SessionsListRequest(), SessionsReply(sessions=[DAY]), [DAY]),
    (("engines", "list"), EnginesListRequest(), EnginesReply(engines=[ENGINE]), [ENGINE]),
    (("priority", "list"), PriorityListRequest(), RegionsReply(regions=[REGION]), [REGION]),
    (("priority", "show", "3"), PriorityShowRequest(id=3), REGION, REGION),
    (
        ("digest", "2013-10-07"),
        DigestRequest(session="2013-10-07"),
        DigestReply(session="2013-10-07", digest="ab" * 32, columns={Column.TRADE_REF: "cd" * 32}),
        DigestReply(session="2013-10-07", digest="ab" * 32, columns={Column.TRADE_REF: "cd" * 32}),
    ),
    (("operation", "k"), OperationRequest(key="k"), RECORD, RECORD),
    (("metrics",), MetricsRequest(), MetricsReply(text="m17_cells 3\n"), MetricsReply(text="m17_cells 3\n")),
]
IDS = [" ".join(case[0][:2]) for case in CASES]


@pytest.mark.parametrize(("words", "request_due", "reply", "shown"), CASES, ids=IDS)
def test_json_is_the_reply(words: tuple[str, ...], request_due: Request, reply: Reply, shown: Any) -> None:
    """One request, exactly as the words say, and one line of JSON in the reply's shape."""
    ran = m17ctl(reply, "--json", *words)
    assert ran.asked == [request_due]
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == json.loads(msgspec.json.encode(shown))
    assert ran.out.count("\n") == 1
    assert ran.connection.closed


@pytest.mark.parametrize(("words", "request_due", "reply", "shown"), CASES, ids=IDS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_is_there_at_any_width_and_plain_where_color_is_not_wanted(
    words: tuple[str, ...], request_due: Request, reply: Reply, shown: Any, width: int
) -> None:
    """The same answers for a person; no escape sequences where they are not wanted."""
    ran = m17ctl(reply, *words, width=width, environment={"NO_COLOR": "1"})
    assert ran.code == 0
    assert ran.out.strip()
    assert "\x1b" not in ran.out


def test_status_begins_with_the_verdict_and_names_what_is_wrong() -> None:
    """The first line is what is wrong now."""
    ran = m17ctl(STATUS, "status")
    lines = ran.out.splitlines()
    assert lines[0] == STATUS.verdict
    assert lines[1] == "warning: 12.0 % of trades share their time with a quote"
    assert "up 2 h 5 min" in lines[2]
    assert any(line.split()[:3] == ["trade_ref", "93.6", "%"] for line in lines)
    assert any(line.startswith("trade_flatfile  degraded") for line in lines)
    assert any("line 9: not a number" in line for line in lines)


def test_status_draws_how_far_columns_lay_behind() -> None:
    """Now, at most, and a line of the last minutes; nothing where none did."""
    late = msgspec.structs.replace(STATUS, lags={Column.QUOTE_REF: [0.0, 3.5, 7.0, 4.0]})
    ran = m17ctl(late, "status", width=80)
    line = next(line for line in ran.out.splitlines() if line.startswith("quote_ref") and "min" in line)
    assert line.split("  ") == ["quote_ref", "4 min 0 s", "7 min 0 s", " ▄█▅"]
    assert "behind" in ran.out
    assert "behind" not in m17ctl(STATUS, "status", width=80).out


def test_status_exits_3_only_when_asked_and_only_for_trouble() -> None:
    """A person may look at trouble without a failing shell."""
    assert m17ctl(STATUS, "status").code == 0
    assert m17ctl(STATUS, "status", "--exit-code").code == 3
    well = msgspec.structs.replace(STATUS, columns={Column.TRADE_REF: counts(filled=390)}, engines={}, sources=[])
    assert m17ctl(well, "status", "--exit-code").code == 0


def test_a_row_for_people_is_exactly_this() -> None:
    """Times on the exchange's clock, one line a column, the record below."""
    answer = row(
        trade_ref=slot(payload={"record_count": 3, "first_ts": OPEN_NS}),
        quote_ref=slot("empty", source="none", payload_id=0, version=0, checksum=0, last_updated_ns=0),
    )
    ran = m17ctl(answer, "row", "AIG", "2013-10-07T09:31")
    assert ran.out.splitlines() == [
        "AIG (id 3)  2013-10-07T09:31 to 09:32  window 2013:191:1, minute 74491",
        "",
        "column     status  source     flags  payload   version  checksum  inputs  updated",
        "trade_ref  filled  flat_file         trade 17        1  cafe0123          2013-10-07T09:30",
        "quote_ref  empty",
        "",
        "trade_ref:",
        "  record_count  3",
        "  first_ts      2013-10-07T09:30",
    ]


@pytest.mark.parametrize("flags", [[], ["partial", "suspect"]])
def test_a_row_on_80_columns_cuts_no_number(flags: list[str]) -> None:
    """Kinds and years go first, then prints, then times; a payload's number, version and checksum stay whole."""
    print_ = 0x12345678
    answer = row(
        trade_ref=slot(flags=flags, payload_id=123_456, version=12),
        aggressor_ref=slot(payload_id=874, version=1, inputs=print_),
    )
    ran = m17ctl(answer, "row", "AIG", "2013-10-07T09:31", width=80, environment={"NO_COLOR": "1"})
    _, trade, aggressor = (line.split() for line in ran.out.splitlines()[2:5])
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "…" not in ran.out
    when = [] if flags else ["10-07", "09:30"]
    assert trade == ["trade_ref", "filled", "flat_file", *flags, "123456", "12", "cafe0123", *when]
    assert ("12345678" in aggressor) is (not flags)


def test_regions_on_80_columns_keep_their_times() -> None:
    """Who raised a region and for which columns stands below it where the line is too short."""
    region = RegionReply(
        id=12, symbol="O:TWX", start_ts=OPEN_NS, end_ts=OPEN_NS + 30 * MINUTE_NS, priority=100, columns=list(Column), minutes=30,
        complete=4, state="active", operator="ana",
    )  # fmt: skip
    lines = m17ctl(RegionsReply(regions=[region]), "priority", "list", width=80).out.splitlines()
    assert lines[1].split() == ["12", "100", "O:TWX", "2013-10-07T09:30", "10:00", "4/30", "active"]
    assert lines[2].startswith("    by ana: rf_rate_ref trade_ref")
    assert max(map(len, lines)) <= 80


def test_rows_are_one_object_a_line_over_all_pieces() -> None:
    """A streamed answer is printed as it comes."""
    pieces = [RowsReply(rows=[row(0), row(1)]), RowsReply(rows=[row(2)])]
    ran = m17ctl(lambda request: pieces, "--json", "rows", "AIG", "2013-10-07")
    assert ran.asked == [RowsRequest(symbol="AIG", session="2013-10-07")]
    assert [json.loads(line)["minute_idx"] for line in ran.out.splitlines()] == [74490, 74491, 74492]
    text = m17ctl(lambda request: pieces, "rows", "AIG", "2013-10-07").out.splitlines()
    assert text[:2] == ["time   trade_ref", "09:30  F v1"]
    assert len(text) == 5


def test_coverage_on_a_terminal_is_a_map_of_columns() -> None:
    """One request, by minute; the hole shows where it is in time."""
    minutes = {
        str(OPEN_NS + at * MINUTE_NS): {
            Column.TRADE_REF: counts(empty=2) if 100 <= at < 125 else counts(filled=2),
            Column.QUOTE_REF: counts(filled=2),
        }
        for at in range(390)
    }
    answer = msgspec.structs.replace(COVERAGE, by_minute=minutes)
    ran = m17ctl(answer, "coverage", "2013-10-07", width=110, environment={"NO_COLOR": "1"})
    assert ran.asked == [CoverageRequest(session="2013-10-07", by="minute")]
    lines = ran.out.splitlines()
    assert lines[0] == "2013-10-07: 390 windows x 2 symbols, not whole: trade_ref"
    assert f"trade_ref  {'█' * 20}EEEEE{'█' * 53}   93.6 %" in lines
    assert f"quote_ref  {'█' * 78}    100 %" in lines
    assert "outside the session, us_stocks_sip/trades_v1: rows 7, auction rows 2" in lines
    piped = m17ctl(COVERAGE, "coverage", "2013-10-07")
    assert piped.asked == [CoverageRequest(session="2013-10-07")]
    assert "█" not in piped.out


def _slab(symbol_id: int, statuses: dict[int, tuple[int, int]]) -> tuple[BulkReply, bytes]:
    """Trade ledger rows of one symbol with these (status, flags) of trade_ref."""
    row_format = ROW_HEADER_FORMAT + SLOT_FORMAT
    rows = []
    for at, (status, flags) in sorted(statuses.items()):
        start = OPEN_NS + at * MINUTE_NS
        slot_values = (2, status, 3, flags, 1, 1, 1, 0, 0, 0)
        rows.append(struct.pack(row_format, symbol_id, 1, 74490 + at, start, start + MINUTE_NS, *slot_values))
    reply = BulkReply(
        ledger=LedgerKind.TRADE,
        session="2013-10-07",
        rows=len(rows),
        row_bytes=struct.calcsize(row_format),
        row_format=row_format,
        columns=[Column.TRADE_REF],
        symbols={symbol_id: "AIG"},
    )
    return reply, b"".join(rows)


def test_coverage_by_symbol_on_a_terminal_is_a_map_of_symbols() -> None:
    """Worst symbol first; a symbol without any set cell has a line too, and globs in a ticker are taken literally."""
    no_rows, unset = dict.fromkeys(range(50, 60), (2, 1)), dict.fromkeys(range(5), (0, 0))
    cells = dict.fromkeys(range(390), (2, 0)) | no_rows | unset
    by_symbol = {
        "AIG": {Column.TRADE_REF: counts(filled=385, empty=5, no_data=10)},
        "T[W]X": {Column.TRADE_REF: counts(empty=390)},
    }
    answer = msgspec.structs.replace(COVERAGE, by_symbol=by_symbol)
    bulk: list[BulkRequest] = []

    def daemon(request: Request) -> Any:
        if isinstance(request, BulkRequest):
            bulk.append(request)
            return [_slab(3, cells)] if request.range.symbols == "AIG" else []
        return SessionsReply(sessions=[DAY]) if isinstance(request, SessionsListRequest) else answer

    ran = m17ctl(daemon, "coverage", "2013-10-07", "--by", "symbol", width=110, environment={"NO_COLOR": "1"})
    lines = ran.out.splitlines()
    assert f"T[W]X  {'E' * 78}    0.0 %" in lines
    assert f"AIG    E{'█' * 9}··{'█' * 66}   98.7 %" in lines
    assert lines.index(f"T[W]X  {'E' * 78}    0.0 %") < lines.index(f"AIG    E{'█' * 9}··{'█' * 66}   98.7 %")
    assert [request.range.symbols for request in bulk] == ["T[[]W]X", "AIG"]
    assert {request.ledger for request in bulk} == {LedgerKind.TRADE}


def test_coverage_columns_limit_what_is_shown_and_judged() -> None:
    """`--columns` and `--exit-code` together ask about one column."""
    assert m17ctl(COVERAGE, "coverage", "2013-10-07", "--exit-code").code == 3
    ran = m17ctl(COVERAGE, "--json", "coverage", "2013-10-07", "--columns", "quote_ref", "--exit-code")
    assert ran.code == 0
    assert list(json.loads(ran.out)["columns"]) == ["quote_ref"]


def test_why_gives_each_cause_with_its_command() -> None:
    """What to paste stands on a line of its own."""
    ran = m17ctl(WhyReply(groups=[CAUSE]), "why", "trade_ref", "--session", "2013-10-07")
    assert ran.out.splitlines() == [
        "source damaged: 11,400 cells of 40 symbols, 2013-10-07T09:30 to 09:54",
        "  trade_ref",
        "  trades.csv.gz line 9",
        "  m17ctl refill trade_ref --session 2013-10-07 --cause damaged",
    ]


def test_why_sets_apart_what_is_no_trouble() -> None:
    """Filled cells and cells without data are explained in one line, and are no reason to exit 3."""
    fine = [msgspec.structs.replace(CAUSE, cause=cause, remedy="") for cause in ("filled", "no_data")]
    words = ("why", "trade_ref", "--session", "2013-10-07", "--exit-code")
    ran = m17ctl(WhyReply(groups=fine), *words)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "nothing to repair: every due, applicable cell of the range is filled, fresh and not suspect",
        "no trouble: filled 11,400, no data 11,400",
    ]
    assert m17ctl(WhyReply(groups=[*fine, CAUSE]), *words).code == 3


def test_lineage_is_a_tree() -> None:
    """Down to the file and its rows, with what changed since."""
    out = m17ctl(LINEAGE, "lineage", "AIG", "2013-10-07T09:30", "aggressor_ref").out.splitlines()
    assert out == [
        "aggressor_ref AIG 2013-10-07T09:30  filled  payload 5 v2, checksum 000000ff",
        "├─ recipe nbbo nearest-side",
        "└─ trade_ref AIG 2013-10-07T09:30  filled  changed since",
        "   ├─ artifact trade/a.parquet#rows=1-2",
        "   └─ source us_stocks_sip/trades_v1 2013-10-07  trades.csv.gz",
        "      1 of its rows: AIG, SIP time 09:30:00.012000345 to 09:30:00.012000345, and 7 of the minute before the open",
        "1,200 further cells are not shown: ask for a shorter window",
        "not complete: a cell marked 'changed since' is not the one it was made from",
    ]


@pytest.mark.parametrize(("findings", "code"), [(0, 0), (2, 1)])
def test_verify_exits_1_for_findings_and_orphans_are_none(findings: int, code: int) -> None:
    """What no cell names is shown, and is no fault."""
    reply = VerifyReply(
        slots=1,
        payloads=2,
        artifacts=3,
        orphans=Orphans(files=4, bytes=5, records=6),
        findings=[Finding(code="seal", message="broken", hint="clear it", where="AIG")] * findings,
        bytes=3 << 20,
        seconds=12.3,
    )
    ran = m17ctl(reply, "--json", "verify", "2013-10-07")
    assert ran.asked == [VerifyRequest(session="2013-10-07")]
    assert ran.code == code
    assert json.loads(ran.out) == json.loads(msgspec.json.encode(reply))
    said = m17ctl(reply, "verify").out
    assert "m17ctl gc" in said
    assert "1 slots, 2 payloads, 3 artifacts: 3.0 MiB in 12 s" in said
    unnamed = msgspec.structs.replace(reply, orphans=Orphans(records=6), seconds=0.14)
    said = m17ctl(unnamed, "verify").out
    assert "3.0 MiB in 0.1 s" in said
    assert "gc" not in said and "6 records" in said


def test_audit_is_one_record_a_line_and_a_broken_chain_exits_1() -> None:
    """Standard output holds records alone; the chain's state goes beside it."""
    record = {
        "ts": OPEN_NS,
        "operator": {"uid": 0, "gid": 0, "pid": 9, "user": "ana"},
        "op": "clear",
        "cause": "bad prints",
    }
    intact = AuditReply(records=[record], chain="intact")
    ran = m17ctl(intact, "--json", "audit", "--tail", "5", "--verify")
    assert ran.asked == [AuditRequest(tail=5, verify=True)]
    assert (ran.code, json.loads(ran.out), json.loads(ran.err)) == (0, record, {"chain": "intact"})
    broken = AuditReply(records=[record], chain="broken at record 1")
    assert m17ctl(broken, "audit", "--verify").code == 1
    text = m17ctl(AuditReply(records=[record]), "audit").out
    assert text == "2013-10-07T09:30  ana  clear  cause: bad prints\n"


def test_doctor_answers_while_the_daemon_is_down() -> None:
    """It is asked most when nothing else answers."""
    from m17ctl.errors import DaemonUnreachable

    ran = m17ctl(DaemonUnreachable("no daemon at x", "start it"), "--socket", "/nowhere/m17d.sock", "--json", "doctor")
    answer = json.loads(ran.out)
    assert ran.code == 7
    assert answer["facts"]["socket_state"] == "No such file or directory"
    assert answer["findings"][0]["code"] == "daemon_unreachable"
    well = m17ctl(DoctorReply(facts={"open_files": 1024}), "doctor")
    assert well.asked == [DoctorRequest()]
    assert (well.code, "nothing to complain about" in well.out) == (0, True)
    assert m17ctl(DoctorReply(facts={}, findings=[Finding(code="space", message="low")]), "doctor").code == 1


def test_engines_at_work_show_how_far_they_are() -> None:
    """Share and total in the engine's unit, and the time that is left; nothing where nothing is to do."""
    working = EngineReply(name="nbbo", state="running", backlog=2, done=450, total=1_500, unit="cells", eta_s=75.2)
    out = m17ctl(EnginesReply(engines=[working, ENGINE]), "engines", "list").out.splitlines()
    assert "30.0 % of 1,500 cells" in out[1] and "1 min 15 s" in out[1]
    assert "%" not in out[2]
    assert "2013-10-07" in out[2] and "…" not in "".join(out)


def test_the_zone_is_asked_for_before_a_stream_and_never_inside() -> None:
    """A request in the middle of a stream would read past its pieces."""
    order: list[str] = []

    def pieces(request: Request) -> Iterator[RowsReply]:
        for at in range(2):
            order.append(f"piece {at}")
            yield RowsReply(rows=[row(at)])

    class Watched(FakeConnection):
        def call(self, request: Request, **given: Any) -> Any:
            order.append(type(request).__name__)
            return super().call(request, **given)

        def stream(self, request: Request, **given: Any) -> Iterator[Any]:
            yield from pieces(request)

    out = io.StringIO()
    terminal = Terminal(out, out, environment={}, is_terminal=False, interactive=False)
    code = run(
        ("rows", "AIG", "2013-10-07"), terminal=terminal, connect=lambda _path, _s: Watched(lambda _request: None)
    )
    assert (code, order) == (0, ["HelloRequest", "piece 0", "piece 1"])
