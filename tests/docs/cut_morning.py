"""
A morning that went wrong, small: 44 stocks, and a file of trades in which 40 of them have nothing from 10:15 to 10:40.

``python tests/docs/cut_morning.py FOLDER`` writes the files, the config and, beside them under ``repair/``, the whole file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engines.feeds.synthetic_files import HEADERS
from ledger.columns import Dataset
from tests.m17d import flat_files

SESSION = "2013-05-01"
STOCKS = [f"S{number:02d}" for number in range(44)]
CUT_STOCKS = STOCKS[:40]
CUT_FROM_MINUTE, CUT_TO_MINUTE = 45, 70
_MINUTE_NS = 60 * 10**9
_CONFIG = """\
state_dir = "ledger.state"
[runner]
workers = 2
[calendar]
year = 2013
[engines.trade_flatfile]
source = "flatfiles"
sessions = ["2013-05-01"]
symbols = ["S*"]
[engines.quote]
source = "flatfiles"
sessions = ["2013-05-01"]
symbols = ["S*"]
[engines.nbbo]
"""


def write(root: Path, *, engines: str = "") -> None:
    """Write the files with the gap, the whole file under ``repair/``, and ``m17.toml`` with further engine tables."""
    write_trades(root, cut=True)
    write_trades(root / "repair", cut=False)
    flat_files.write(root, SESSION, flat_files.packed(_quotes()), Dataset.STOCK_QUOTES.value)
    (root / "m17.toml").write_text(_CONFIG + engines)


def write_trades(root: Path, *, cut: bool) -> None:
    """The file of trades, with the gap or without; put in its place whole, as upstream does."""
    flat_files.write(root, SESSION, flat_files.packed(_trades(cut=cut)), Dataset.STOCK_TRADES.value)


def _trades(*, cut: bool) -> list[str]:
    start, lines, sequence = flat_files.open_ns(SESSION), [flat_files.HEADER], 0
    for at, ticker in enumerate(STOCKS):
        for minute in range(390):
            sequence += 1
            if cut and at < len(CUT_STOCKS) and CUT_FROM_MINUTE <= minute < CUT_TO_MINUTE:
                continue
            ts = start + minute * _MINUTE_NS + 30 * 10**9 + at
            price = 20 + at + minute % 7 / 100
            lines.append(flat_files.trade_line(ticker, minute, ts, price, sequence))
    return lines


def _quotes() -> list[str]:
    start, lines, sequence = flat_files.open_ns(SESSION), [HEADERS[Dataset.STOCK_QUOTES]], 0
    for at, ticker in enumerate(STOCKS):
        for minute in range(390):
            sequence += 1
            ts = start + minute * _MINUTE_NS + 29_500_000_000 + at
            bid = 20 + at + minute % 5 / 100
            lines.append(flat_files.quote_line(ticker, ts, bid, bid + 0.02, sequence))
    return lines


if __name__ == "__main__":
    write(Path(sys.argv[1]), engines="[engines.aggregation]\n")
