"""
`m17ctl export`: exactly the rows that the cells of a range name, as one file.

The daemon says which rows of which artifacts; this side reads them. This module must never import polars at start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledger.columns import Column
from m17ctl.formats import format_bytes, format_count
from m17ctl.invocation import CommandFailed, invocation_of
from m17ctl.options import (
    ColumnArgument,
    ContractOption,
    FromOption,
    SessionOption,
    SymbolsOption,
    ToOption,
    make_range,
)
from m17d.protocol import ExportRequest
from m17d.replies import ExportReply

app = typer.Typer()


@app.command("export", epilog="Example: m17ctl export trade_ref --session 2013-10-07 --symbols AIG --out aig.parquet")
def export(
    context: typer.Context,
    column: ColumnArgument,
    session: SessionOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Ends in .parquet, .csv or .ndjson.")],
    from_: FromOption = None,
    to: ToOption = None,
    symbols: SymbolsOption = None,
    contract: ContractOption = None,
    extended: Annotated[bool, typer.Option("--extended", help="With the rows outside the session.")] = False,
) -> None:
    """Write the rows that the cells of a range name to a file, in the order of the cells."""
    from m17ctl.artifacts import SUFFIXES, Selection, write_rows

    if out.suffix not in SUFFIXES:
        raise typer.BadParameter(f"--out: {out.name!r} does not end in one of {', '.join(SUFFIXES)}")
    if not out.absolute().parent.is_dir():
        raise CommandFailed("not_found", f"no directory {out.absolute().parent}", "make it first")
    invocation = invocation_of(context)
    request = ExportRequest(
        column=Column(column), range=make_range(session, from_, to, symbols, contract), extended=extended
    )
    selection = Selection(extended=extended)
    for piece in invocation.stream(request, ExportReply):
        selection.add(piece)
    if not selection.ordered():
        hint = (
            f"see what is there with: m17ctl coverage {session}, and why with: m17ctl why {column} --session {session}"
        )
        raise CommandFailed("nothing_selected", "no cell of the range names a row", hint)
    written = write_rows(selection, out, contract=contract, on_progress=invocation.show_progress)
    invocation.terminal.end_progress()
    invocation.emit(
        written,
        lambda: [
            f"{written.out}: {format_count(written.rows)} rows of {format_count(written.cells)} cells, {format_bytes(written.bytes)}"
        ],
    )
