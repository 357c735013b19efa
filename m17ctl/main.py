"""
The entry point `m17ctl`: which commands there are, how they are found, and how failures become exit codes.

A command's module is imported when the command is named (or all are listed), so that a short command starts fast; numpy,
polars, rich and asyncio must never be imported on that path. Nothing but this module exits the process.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_command_from_info

from m17ctl.client import Client
from m17ctl.coercion import lighten
from m17ctl.errors import ClientError
from m17ctl.invocation import EXIT_FAILED, EXIT_USAGE, Connection, Invocation
from m17ctl.terminal import Terminal

if TYPE_CHECKING:
    from typer._click import Command, Context
    from typer._click.formatting import HelpFormatter

EXIT_INTERRUPTED: Final = 130
EXIT_PERMISSION: Final = 4
EXIT_NOT_FOUND: Final = 6

PANELS: Final[dict[str, dict[str, str]]] = {
    "See what is": {
        "status": "status",
        "coverage": "coverage",
        "why": "causes",
        "row": "rows",
        "rows": "rows",
        "payload": "rows",
        "lineage": "causes",
        "export": "export",
        "symbols": "symbols",
        "sessions": "sessions",
        "report": "screens",
        "tui": "screens",
    },
    "Make it whole": {
        "refill": "refill",
        "wait": "refill",
        "clear": "ranges",
        "refresh": "ranges",
        "undo": "ranges",
        "accept": "ranges",
        "repair": "repair",
        "priority": "priority",
        "engines": "engines",
    },
    "Keep it well": {
        "verify": "upkeep",
        "digest": "sessions",
        "audit": "audit",
        "operation": "audit",
        "watch": "events",
        "metrics": "events",
        "backup": "upkeep",
        "gc": "upkeep",
        "doctor": "upkeep",
    },
}
"""Heading of `--help` to command to the module of `m17ctl.commands` that has it."""
MODULES: Final = {command: module for commands in PANELS.values() for command, module in commands.items()}
OPTIONAL: Final = {"tui": "m17ctl.tui"}
"""Commands that exist where their screen is installed."""

HELP: Final = """
See, order and repair what the ledger of M17 holds.

\b
Times are exchange-local unless they carry an offset:
2013-10-07T09:31, 2013-10-07, or 09:31 with --session.
A range is --session D [--from T] [--to T] [--symbols GLOB], the end not included.
Every command takes --json, before it or behind; --socket and --timeout go before it.

\b
  m17ctl status
  m17ctl coverage 2013-10-07
  m17ctl why trade_ref quote_ref --session 2013-10-07
  m17ctl refill trade_ref --session 2013-10-07 --from 10:15 --to 10:40 --symbols AIG --cause "gap"

Exit codes: 0 done, 1 failed or partly failed, 2 usage, 3 condition false, 4 permission denied, 5 conflict or refused,
6 not found or nothing selected, 7 daemon not reachable, 8 outcome unknown, 9 protocol too old or too new.
"""


def _set_json(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.find_root().obj, Invocation):
        context.find_root().obj.json = True
    return value


def _json_template(
    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, failures too.", expose_value=False, is_eager=True, callback=_set_json),
    ] = False,
) -> None:
    """Carries the option that every command has."""


class LazyGroup(TyperGroup):
    """The commands of `PANELS`, each built when it is asked for; ``--help`` lists them under their headings."""

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002
        """Names of the commands that exist here, in the order of the headings."""
        return [name for name in MODULES if name not in OPTIONAL or find_spec(OPTIONAL[name]) is not None]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """The command of that name, or None."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name not in MODULES or (cmd_name in OPTIONAL and find_spec(OPTIONAL[cmd_name]) is None):
            # The group suggests similar names, so it must know them all now.
            self.commands.update({name: _load(name) for name in self.list_commands(ctx)})
            return None
        command = _load(cmd_name)
        self.commands[cmd_name] = command
        return command

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the commands under their headings."""
        existing = self.list_commands(ctx)
        for heading, names in PANELS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names if name in existing]
            rows = [(name, _first_sentence(command.help or "")) for name, command in commands if command is not None]
            with formatter.section(heading):
                formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    return text.strip().split("\n\n", 1)[0].replace("\n", " ").split("; ", 1)[0].rstrip(".")


def _load(name: str) -> Command:
    module = importlib.import_module(f"m17ctl.commands.{MODULES[name]}")
    own: typer.Typer = getattr(module, f"{name}_app", None) or module.app
    for info in own.registered_commands:
        if info.name == name:
            command = get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
            break
    else:
        command = get_command(own)
        command.name = name
    _take_json(command)
    return command


def _take_json(command: Command) -> None:
    template = typer.models.CommandInfo(callback=_json_template)
    option = get_command_from_info(template, pretty_exceptions_short=False, rich_markup_mode=None).params[0]
    command.params.append(option)
    lighten(command)
    for child in getattr(command, "commands", {}).values():
        _take_json(child)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"m17ctl {version('m17')}")
        except PackageNotFoundError:
            typer.echo("m17ctl, not installed as a package")
        raise typer.Exit


def _root(
    context: typer.Context,
    socket: Annotated[
        str | None,
        typer.Option("--socket", envvar="M17_SOCKET", metavar="PATH", help="The daemon's socket."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long one request may take.  [default: 10]"),
    ] = None,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    invocation = context.obj
    if isinstance(invocation, Invocation):
        invocation.socket = socket
        invocation.timeout_s = timeout


def build() -> Command:
    """The command line as a click group whose commands are built when they are named."""
    app = typer.Typer(
        name="m17ctl",
        cls=LazyGroup,
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 120},
    )
    app.callback(cls=LazyGroup, help=HELP, no_args_is_help=True)(_root)
    command = get_command(app)
    _take_json(command)
    return command


def _connect(socket: str | None, timeout_s: float) -> Connection:
    return Client(socket, timeout_s)


def run(
    arguments: Sequence[str],
    *,
    terminal: Terminal | None = None,
    connect: Callable[[str | None, float], Connection] = _connect,
) -> int:
    """
    Run one command line and return its exit code; failures are written, never raised.

    Args:
        arguments: the words behind `m17ctl`.
        terminal: where the operator reads; the process's own streams where None.
        connect: makes the connection, see `Invocation`.
    """
    invocation = Invocation(terminal or Terminal(), connect, json="--json" in arguments)
    try:
        code = build().main(args=list(arguments), prog_name="m17ctl", standalone_mode=False, obj=invocation)
        invocation.terminal.flush()
        return code if isinstance(code, int) else 0
    except ClientError as error:
        invocation.fail(error.code, str(error), error.hint)
        return error.exit_code
    except typer.TyperException as error:
        _complain_of_usage(invocation, error)
        return EXIT_USAGE
    except BrokenPipeError:
        # The reader has what it wanted; what is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        invocation.fail("file", f"{error.strerror or error}{place}", "check the path and its permissions")
        return _exit_code_of_os_error(error)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    finally:
        invocation.terminal.end_progress()
        invocation.close()


def _exit_code_of_os_error(error: OSError) -> int:
    match error:
        case PermissionError():
            return EXIT_PERMISSION
        case FileNotFoundError():
            return EXIT_NOT_FOUND
        case _:
            return EXIT_FAILED


def _complain_of_usage(invocation: Invocation, error: typer.TyperException) -> None:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "m17ctl"
    message = error.format_message()
    if not message.strip() or type(error).__name__ == "NoArgsIsHelpError":
        invocation.terminal.complain(context.get_help() if context is not None else message)
        return
    hint = f"see: {path} --help"
    if "--socket" in message or "--timeout" in message:
        hint = "--socket and --timeout go before the command: m17ctl --socket PATH --timeout SECONDS COMMAND"
    invocation.fail("usage", message, hint)


def main() -> None:
    """Run the process's command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))
