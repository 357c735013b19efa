"""
`m17ctl symbols`: which symbols the year knows, by id.

This module must never allocate one: resolving does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from m17ctl.invocation import Invocation, invocation_of
from m17ctl.options import SymbolArgument, SymbolsOption
from m17ctl.render import table
from m17d.protocol import SymbolsListRequest, SymbolsResolveRequest
from m17d.replies import SymbolReply, SymbolsReply

symbols_app = typer.Typer(help="List the year's symbols, or find one's id.", no_args_is_help=True)


@symbols_app.command("list", epilog="Example: m17ctl symbols list --symbols 'O:TWX*'")
def list_(context: typer.Context, symbols: SymbolsOption = None) -> None:
    """List the symbols, by id."""
    invocation = invocation_of(context)
    reply = invocation.call(SymbolsListRequest(symbols=symbols), SymbolsReply)
    invocation.emit(reply.symbols, lambda: _lines(invocation, reply.symbols))


@symbols_app.command("resolve", epilog="Example: m17ctl symbols resolve AIG")
def resolve(context: typer.Context, symbol: SymbolArgument) -> None:
    """Find a symbol's id; exit 6 where the year does not know it."""
    invocation = invocation_of(context)
    reply = invocation.call(SymbolsResolveRequest(symbol=symbol), SymbolReply)
    invocation.emit(reply, lambda: _lines(invocation, [reply]))


def _lines(invocation: Invocation, symbols: Sequence[SymbolReply]) -> list[str]:
    rows = [[str(symbol.symbol_id), symbol.symbol, symbol.underlying] for symbol in symbols]
    return table(("id", "symbol", "underlying"), rows, width=invocation.terminal.width, right="r")
