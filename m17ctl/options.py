"""
The options that several commands share, each spelled, explained and read in one place.

RANGE is ``--session D [--from T] [--to T] [--symbols GLOB]`` everywhere, half-open. What cannot be read is a usage error
that names the option. This module must never ask the daemon: completion and ``--help`` work while it is down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ledger.columns import Column
from m17ctl.formats import parse_date, parse_time
from m17d.protocol import Range

MISSING = "missing option '--session': a range is --session D [--from T] [--to T] [--symbols GLOB]"


def _read(parse: Callable[[str], int | str]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None:
            try:
                parse(value)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
        return value

    return check


def complete_column(incomplete: str) -> list[str]:
    """The columns that begin so; needs no daemon."""
    return [column.value for column in Column if column.value.startswith(incomplete)]


def check_date(value: str | None) -> str | None:
    """An option callback: the value, where it is a date."""
    return _read(parse_date)(value)


def check_time(value: str | None) -> str | None:
    """An option callback: the value, where it is a time."""
    return _read(parse_time)(value)


def check_column(value: str | None) -> str | None:
    """An argument callback: the value, where it is one column."""
    if value is None:
        return None
    columns = parse_columns([value])
    if len(columns) != 1:
        raise typer.BadParameter("name one column")
    return columns[0].value


def _check_columns(value: list[str] | None) -> list[str] | None:
    parse_columns(value or [])
    return value


SessionOption = Annotated[
    str,
    typer.Option("--session", metavar="DATE", help="The session, such as 2013-10-07.", callback=check_date),
]
OptionalSession = Annotated[
    str | None,
    typer.Option("--session", metavar="DATE", help="The session a bare clock time is of.", callback=check_date),
]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="Start, included; the open where absent.", callback=check_time),
]
ToOption = Annotated[
    str | None,
    typer.Option("--to", metavar="TIME", help="End, not included; the close where absent.", callback=check_time),
]
SymbolsOption = Annotated[
    str | None,
    typer.Option(
        "--symbols", metavar="GLOB,...", help="Tickers or globs, such as AIG or 'IBM,O:TWX*'; all where absent."
    ),
]
ContractOption = Annotated[
    str | None, typer.Option("--contract", metavar="GLOB", help="Contracts inside chains, such as 'O:TWX1406*'.")
]
CauseOption = Annotated[
    str, typer.Option("--cause", metavar="TEXT", help="Why; goes to the audit log beside your name.")
]
OptionalCause = Annotated[str, typer.Option("--cause", metavar="TEXT", help="Why; goes to the audit log.")]
ColumnsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="COLUMN...", help="Columns of the ledger.", autocompletion=complete_column, callback=_check_columns
    ),
]
AnyColumnsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[COLUMN...]",
        help="Columns of the ledger; all where absent.",
        autocompletion=complete_column,
        callback=_check_columns,
    ),
]
ColumnArgument = Annotated[
    str,
    typer.Argument(
        metavar="COLUMN", help="Column of the ledger.", autocompletion=complete_column, callback=check_column
    ),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="COLUMN,...",
        help="Columns, separated by commas or given again; all where absent.",
        autocompletion=complete_column,
        callback=_check_columns,
    ),
]
MoreColumns = Annotated[
    list[str] | None, typer.Argument(metavar="[COLUMN...]", hidden=True, autocompletion=complete_column)
]
SymbolArgument = Annotated[str, typer.Argument(metavar="SYMBOL", help="Ticker, such as AIG, O:TWX or a contract.")]
TimeArgument = Annotated[
    str, typer.Argument(metavar="TIME", help="Any time inside the window, exchange-local.", callback=check_time)
]
SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="The session's date, such as 2013-10-07.", callback=check_date)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ExpectOption = Annotated[
    int | None,
    typer.Option("--expect", metavar="N", min=0, help="Do it only if exactly N cells would go; asks nothing."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
ExitCodeOption = Annotated[bool, typer.Option("--exit-code", help="Exit 3 where something is not as it should be.")]


def parse_columns(words: Sequence[str]) -> list[Column]:
    """
    Columns from words, each perhaps several separated by commas; every column once, in the order given.

    Raises:
        typer.BadParameter: a word is no column.
    """
    columns: dict[Column, None] = {}
    for word in (part for text in words for part in text.split(",") if part):
        try:
            columns[Column(word)] = None
        except ValueError:
            raise typer.BadParameter(f"no column {word!r}: it is one of {', '.join(Column)}") from None
    return list(columns)


def make_range(
    session: str, from_text: str | None, to_text: str | None, symbols: str | None, contract: str | None = None
) -> Range:
    """The range that the options name, times as the daemon takes them."""
    return Range(
        session=session,
        from_ts=None if from_text is None else parse_time(from_text),
        to_ts=None if to_text is None else parse_time(to_text),
        symbols=symbols,
        contract=contract,
    )


def range_words(asked: Range) -> str:
    """The range as the options that name it, to be pasted."""
    words = [f"--session {asked.session}"]
    words.extend(
        f"--{name} {_quoted(value)}"
        for name, value in (
            ("from", asked.from_ts),
            ("to", asked.to_ts),
            ("symbols", asked.symbols),
            ("contract", asked.contract),
        )
        if value is not None
    )
    return " ".join(words)


def _quoted(value: int | str) -> str:
    text = str(value)
    return "'" + text.replace("'", "'\\''") + "'" if set(text) & set(" *?[]'\"$;&|<>()") else text
