"""The command line as a whole: options before and behind, exit codes, failures, help, completion and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from m17ctl.errors import ClientError, DaemonUnreachable, OutcomeUnknown, ProtocolMismatch, RemoteFailure, TimedOut
from m17ctl.main import MODULES, OPTIONAL, build
from m17d.outcomes import EXIT_CODES, Failure, WaitReply
from m17d.protocol import RowRequest
from tests.conftest import ROOT
from tests.m17ctl.fakes import m17ctl, row

_CLIENT_ERRORS: list[tuple[ClientError, int]] = [
    (DaemonUnreachable("no daemon at /run/m17d.sock: No such file or directory (errno 2)", "start it"), 7),
    (TimedOut("no answer within 10 s", "nothing was changed"), 8),
    (OutcomeUnknown("no answer within 10 s: outcome unknown", "send it again with: abc", key="abc"), 8),
    (ProtocolMismatch("the daemon speaks 3 to 4", "use the m17ctl of the daemon's version"), 9),
]


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("M17_", "_TYPER"))}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


@pytest.mark.parametrize(("error", "code"), _CLIENT_ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_of_the_client_is_one_line_a_hint_and_its_exit_code(error: ClientError, code: int) -> None:
    """Nothing goes to standard output, so that a pipe never takes a failure for a result."""
    ran = m17ctl(error, "row", "AIG", "2013-10-07T09:31")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err == f"m17ctl: {error}\n  hint: {error.hint}\n"


@pytest.mark.parametrize("code", sorted(EXIT_CODES))
def test_every_failure_of_the_daemon_has_its_exit_code_and_json_form(code: str) -> None:
    """The table of exit codes is the protocol's, whatever the command."""
    failure = RemoteFailure(Failure(code=code, message="it was refused", hint="do this"))
    ran = m17ctl(failure, "--json", "row", "AIG", "2013-10-07T09:31")
    assert ran.code == EXIT_CODES[code]
    assert ran.out == ""
    assert json.loads(ran.err) == {"error": {"code": code, "message": "it was refused", "hint": "do this"}}


def test_a_failure_code_that_is_not_in_the_table_exits_1() -> None:
    """A newer daemon may fail in ways that this side does not know."""
    assert m17ctl(RemoteFailure(Failure(code="new_trouble", message="x")), "status").code == 1


@pytest.mark.parametrize("place", ["before", "behind"])
def test_json_is_taken_before_and_behind_the_command(place: str) -> None:
    """`m17ctl --json row` and `m17ctl row --json` are the same."""
    words = ("row", "AIG", "2013-10-07T09:31")
    ran = m17ctl(row(), *(("--json", *words) if place == "before" else (*words, "--json")))
    assert ran.code == 0
    assert json.loads(ran.out)["symbol"] == "AIG"


@pytest.mark.parametrize(
    "arguments",
    [
        ("row", "AIG"),
        ("row", "AIG", "noon"),
        ("row", "AIG", "2013-10-07T25:00"),
        ("rows", "AIG", "10/07/2013"),
        ("clear", "trade_ref", "--session", "2013-10-07"),
        ("clear", "trades", "--session", "2013-10-07", "--cause", "x"),
        ("clear", "--session", "2013-10-07", "--cause", "x"),
        ("payload", "trade", "0"),
        ("payload", "trade", "four"),
        ("payload", "trades", "4"),
        ("coverage", "2013-10-07", "--by", "colour"),
        ("coverage", "2013-13-07"),
        ("--timeout", "soon", "status"),
        ("--timeout", "nan", "status"),
        ("priority", "add", "AIG", "10:15", "10:40", "--priority", "1001"),
        ("engines", "stop", "quote"),
        ("statsu",),
        ("status", "--nonsense"),
    ],
    ids=" ".join,
)
def test_bad_usage_exits_2_without_asking_the_daemon(arguments: tuple[str, ...]) -> None:
    """What the command line itself can see is said at once, on one line, in JSON too."""
    ran = m17ctl(row(), *arguments)
    assert (ran.code, ran.out, ran.asked) == (2, "", [])
    assert ran.err.startswith("m17ctl: ")
    in_json = m17ctl(row(), *arguments, "--json")
    assert in_json.code == 2
    assert json.loads(in_json.err)["error"]["code"] == "usage"


def test_a_mistyped_command_is_met_with_a_similar_one() -> None:
    """The suggestion knows all commands although they are built one at a time."""
    assert "'status'" in m17ctl(row(), "statsu").err


def test_socket_behind_the_command_says_where_it_goes() -> None:
    """The most likely slip gets the cure as its hint."""
    ran = m17ctl(row(), "status", "--socket", "x")
    assert ran.code == 2
    assert "go before the command" in ran.err


def test_timeout_and_socket_reach_the_connection() -> None:
    """Both are given to whatever connects."""
    from m17ctl.invocation import Connection
    from m17ctl.main import run
    from m17ctl.terminal import Terminal
    from tests.m17ctl.fakes import FakeConnection

    seen: list[tuple[str | None, float]] = []

    def connect(socket: str | None, timeout_s: float) -> Connection:
        seen.append((socket, timeout_s))
        return FakeConnection(lambda request: row())

    import io

    terminal = Terminal(io.StringIO(), io.StringIO(), io.StringIO(), environment={})
    arguments = ["--socket", "/run/other.sock", "--timeout", "2.5", "--json", "row", "AIG", "2013-10-07T09:31"]
    assert run(arguments, terminal=terminal, connect=connect) == 0
    assert seen == [("/run/other.sock", 2.5)]


def test_a_reply_of_another_kind_is_a_protocol_mismatch() -> None:
    """A daemon that answers something else is not believed."""
    ran = m17ctl(WaitReply(whole=True, cells=0, remaining={}), "row", "AIG", "2013-10-07T09:31")
    assert ran.code == 9
    assert "WaitReply" in ran.err


def test_times_go_as_text_or_nanoseconds() -> None:
    """The daemon knows the exchange's clock; this side must not guess it."""
    texts = m17ctl(row(), "--json", "row", "AIG", "09:31", "--session", "2013-10-07").asked
    numbers = m17ctl(row(), "--json", "row", "AIG", "1381152660000000000").asked
    assert texts == [RowRequest(symbol="AIG", at="09:31", session="2013-10-07")]
    assert numbers == [RowRequest(symbol="AIG", at=1_381_152_660_000_000_000)]


def test_every_command_has_help_with_an_example_and_takes_json() -> None:
    """A person learns the tool from it, so that every command shows one use of itself."""
    for name in MODULES:
        if name in OPTIONAL:
            continue
        ran = m17ctl(row(), name, "--help")
        assert ran.code == 0, name
    command = build()
    for name in MODULES:
        if name in OPTIONAL:
            continue
        built = command.get_command(None, name)  # type: ignore[attr-defined]
        for leaf in [built] if not hasattr(built, "commands") else built.commands.values():
            assert leaf.epilog.startswith("Example: m17ctl "), name
            assert any("--json" in param.opts for param in leaf.params), name
            assert leaf.help, name


def test_every_example_of_the_help_is_a_command_line_that_parses() -> None:
    """An example that is refused teaches nothing."""
    import re
    import shlex

    command = build()
    for name in MODULES:
        if name in OPTIONAL:
            continue
        built = command.get_command(None, name)  # type: ignore[attr-defined]
        for leaf in [built] if not hasattr(built, "commands") else built.commands.values():
            line = re.split(r"\s[|&(]", leaf.epilog.removeprefix("Example: "))[0]
            if "export" in line or "repair" in line:
                continue
            error = RemoteFailure(Failure(code="busy", message="as asked"))
            assert m17ctl(error, *shlex.split(line)[1:]).code == 1, line


def test_no_arguments_shows_the_help() -> None:
    """Somebody who knows nothing learns what there is."""
    ran = m17ctl(row())
    assert ran.code == 2
    assert "Make it whole" in ran.err


def test_screens_that_are_not_installed_are_no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that could only fail is not offered."""
    monkeypatch.setattr("m17ctl.main.find_spec", lambda name: None)
    assert m17ctl(row(), "tui").code == 2
    assert not set(OPTIONAL) & set(build().list_commands(None))  # type: ignore[attr-defined]


def test_starting_imports_nothing_heavy() -> None:
    """A short command starts in the time of typer, zmq and msgspec."""
    script = (
        "import sys\n"
        "from m17ctl.main import run\n"
        "code = run(['--socket', '/nowhere/m17d.sock', '--json', 'row', 'AIG', '2013-10-07T09:31'])\n"
        "heavy = {'numpy', 'polars', 'pyarrow', 'rich', 'asyncio', 'pydantic', 'textual', 'exchange_calendars'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    ran = _python("-c", script)
    assert ran.stdout == "7 []\n", ran.stderr
    assert json.loads(ran.stderr)["error"]["code"] == "daemon_unreachable"


def test_the_completion_script_prints_and_completes_names_without_a_daemon() -> None:
    """Completion is static: it works while the daemon is down."""
    script = _python("-m", "m17ctl", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert script.returncode == 0, script.stderr
    assert "complete -o default -F _m17ctl_completion m17ctl" in script.stdout
    words = _python("-m", "m17ctl", _M17CTL_COMPLETE="complete_bash", COMP_WORDS="m17ctl pri", COMP_CWORD="1")
    assert words.stdout.split() == ["priority"]
    columns = _python(
        "-m", "m17ctl", _M17CTL_COMPLETE="complete_bash", COMP_WORDS="m17ctl clear aggs_1", COMP_CWORD="2"
    )
    assert columns.stdout.split() == ["aggs_1m", "aggs_10m", "aggs_1h"]
