"""
The command ``m17d``: arguments, exit codes and the error line.

This module must never do what the daemon does; it calls it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ledger.columns import OptionRows
from ledger.errors import LedgerError
from m17d.config import ConfigError, read_config
from m17d.listening import ListeningError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The M17 daemon: owns the ledgers and the engines, and serves m17ctl.",
)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Say what went wrong in one line, with what to do, and exit 1 (2 for a bad config)."""
    try:
        yield
    except (LedgerError, ConfigError, ListeningError) as error:
        hint = f"; {error.hint}" if error.hint else ""
        print(f"m17d: {error}{hint}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
    except OSError as error:
        # Whatever the operating system refuses at start, such as a folder without permission, is a sentence too.
        print(f"m17d: {error.filename or ''}: {error.strerror} (errno {error.errno})", file=sys.stderr)
        raise typer.Exit(1) from error


_PROGRESS_S = 0.5
"""So often a long command says on a terminal how far it is."""


def _say_passing(text: str) -> None:
    """A line on a terminal's stderr that the next one takes the place of; empty takes the last one away."""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


ConfigOption = Annotated[Path, typer.Option("--config", help="The config file, TOML.", show_default=False)]


@app.command()
def init(
    state: Annotated[Path, typer.Option("--state", help="Directory to make.", show_default=False)],
    year: Annotated[int, typer.Option("--year", help="Year of the sessions.", show_default=False)],
    exchange: Annotated[str, typer.Option("--exchange", help="Any name that exchange_calendars knows.")] = "XNYS",
    option_rows: Annotated[OptionRows, typer.Option("--option-rows", help="How option tickers become symbols.")] = (
        OptionRows.CHAIN
    ),
) -> None:
    """Make a state directory for one year of one exchange."""
    from ledger.state import create_state

    with _errors():
        create_state(state, year=year, exchange=exchange, option_rows=option_rows)
    print(f"made {state} for {exchange} {year}")


@app.command()
def run(
    config: ConfigOption,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when no engine has work it could do.")] = False,
) -> None:
    """Run the daemon: engines and socket, until a signal (or until idle)."""
    from m17d.daemon import Daemon
    from m17d.logs import set_up

    logger = set_up()
    with _errors():
        daemon = Daemon(read_config(config), logger)
        try:
            ending = daemon.run(until_idle=until_idle)
        finally:
            daemon.close()
    for line in ending.lines:
        print(line)
    raise typer.Exit(ending.code)


@app.command("check-config")
def check_config(
    config: ConfigOption,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Also say how many files, bytes, rows, disk and hours it means.")
    ] = False,
) -> None:
    """Read the config, check every key and path, and say what would run."""
    from m17d.estimate import check, estimate_work

    with _errors():
        found = read_config(config)
        lines = check(found)
        if estimate:
            lines += estimate_work(found)
    for line in lines:
        print(line)


@app.command()
def roll(
    year: Annotated[int, typer.Option("--year", help="The new year.", show_default=False)],
    state: Annotated[Path, typer.Option("--state", help="Directory to make for it.", show_default=False)],
    old: Annotated[Path, typer.Option("--from", help="The state of the year before; it stays as it is.")] = Path(
        "ledger.state"
    ),
    keep_symbols: Annotated[
        str | None, typer.Option("--keep-symbols", help="Glob of symbols that get their ids at once, in the old order.")
    ] = None,
) -> None:
    """Make the state of a new year, of the same exchange and option rows as the old one."""
    from ledger.state import create_state, open_state

    with _errors():
        with open_state(old, readonly=True) as before:
            exchange, option_rows = before.exchange, before.option_rows
            names = [before.symbols.name(one) for one in before.symbols.glob(keep_symbols)] if keep_symbols else []
        create_state(state, year=year, exchange=exchange, option_rows=option_rows, symbols=names)
    print(f"made {state} for {exchange} {year}, with {len(names)} symbols of {old}")


@app.command()
def verify(
    state: Annotated[Path, typer.Option("--state", help="Directory to check.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a state directory that no daemon holds; exit 1 when something is wrong."""
    import time

    import msgspec

    from ledger.check import Checked, verify
    from ledger.state import open_state
    from m17d.upkeep import verify_reply

    checked, started_s = Checked(), time.monotonic()
    said_s = started_s
    with _errors(), open_state(state, readonly=True, lock=True) as opened, contextlib.ExitStack() as last:
        for _ in verify(opened, checked):
            if sys.stderr.isatty() and time.monotonic() - said_s >= _PROGRESS_S:
                if said_s == started_s:
                    last.callback(_say_passing, "")
                said_s = time.monotonic()
                _say_passing(f"{checked.bytes / 2**20:,.0f} of {checked.bytes_total / 2**20:,.0f} MiB checked")
    if json:
        print(msgspec.json.encode(verify_reply(checked, time.monotonic() - started_s)).decode())
    else:
        counts = f"{checked.slots:,} slots, {checked.payloads:,} payloads, {checked.artifacts:,} artifacts"
        print(f"{counts}: {checked.bytes / 2**20:,.1f} MiB in {time.monotonic() - started_s:.1f} s")
        for finding in checked.findings:
            print(f"{finding.code}: {finding.message} ({finding.where}); {finding.hint}")
    raise typer.Exit(1 if checked.findings else 0)


@app.command()
def replay(
    source: Annotated[Path, typer.Option("--source", help="Folder of flat files.", show_default=False)],
    session: Annotated[str, typer.Option("--session", help="YYYY-MM-DD.", show_default=False)],
    speed: Annotated[str, typer.Option("--speed", help="Market seconds a second, or max.")] = "1",
    port: Annotated[int, typer.Option("--port", help="On loopback; 0 takes a free one.")] = 8765,
    key: Annotated[str, typer.Option("--key", help="The only key taken; empty takes any.")] = "",
    symbols: Annotated[str, typer.Option("--symbols", help="Globs over tickers, with commas; empty takes all.")] = "",
    start: Annotated[str, typer.Option("--from", help="HH:MM that the play begins at.")] = "00:00",
    treasury: Annotated[Path | None, typer.Option("--treasury", help="A saved reply of the Treasury endpoint.")] = None,
    milliseconds: Annotated[bool, typer.Option("--milliseconds", help="Times in ms over REST too.")] = False,
    faults: Annotated[str, typer.Option("--faults", help="Such as disconnect=600,late=1000:5; ? lists them.")] = "",
) -> None:
    """Serve one session on loopback as the data service does: websocket, REST and Treasury yields."""
    from m17d.replay_command import replay_session

    raise typer.Exit(
        replay_session(
            source=source, session=session, speed=speed, port=port, key=key, symbols=symbols, start=start,
            treasury=treasury, milliseconds=milliseconds, faults=faults,
        )
    )  # fmt: skip


def main() -> None:
    """Entry point of ``m17d``."""
    if not __debug__:
        # Asserts state what our own code guarantees; a daemon without them would write on when they are false.
        print("m17d: refuses to run under python -O, which removes its checks", file=sys.stderr)
        sys.exit(1)
    os.umask(0o027)
    app()
