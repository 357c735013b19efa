"""
A small market for the pages: three stocks and the options on one of them, one session, with a minute of sudden silence.

``python tests/docs/small_market.py FOLDER`` writes the files and the config. It must never read the shared data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from engines.feeds.synthetic_files import HEADERS
from ledger.columns import Dataset
from tests.m17d import flat_files

SESSIONS: Final = ("2013-10-07",)
STOCKS: Final = {"AIG": 48.0, "IBM": 182.0, "TWX": 70.0}
CONTRACTS: Final = ("O:TWX131019C00070000", "O:TWX131019P00070000")
BUSY: Final = range(30, 40)
SILENT: Final = 35
"""AIG trades 25 times in each minute of `BUSY` but not at all in this one."""
_MINUTE_NS: Final = 60 * 10**9

CONFIG: Final = """\
state_dir = "ledger.state"
[runner]
workers = 2
[calendar]
year = 2013
[engines.treasury]
source = "treasury.json"
[engines.trade_flatfile]
source = "flatfiles"
[engines.quote]
source = "flatfiles"
[engines.nbbo]
[engines.greeks]
[engines.aggregation]
"""


def write(root: Path, *, engines: str = "") -> None:
    """Write the files, and ``m17.toml`` with further engine tables."""
    for session in SESSIONS:
        for dataset, lines in _files(session).items():
            flat_files.write(root, session, flat_files.packed(lines), dataset.value)
    dates = ("2013-10-03", "2013-10-04", "2013-10-07")
    curves = [{"date": date, "yield_1_month": 0.03, "yield_10_year": 2.66} for date in dates]
    (root / "treasury.json").write_text(json.dumps({"count": len(curves), "results": curves}))
    (root / "m17.toml").write_text(CONFIG + engines)


def _files(session: str) -> dict[Dataset, list[str]]:
    lines = {dataset: [header] for dataset, header in HEADERS.items()}
    start, sequence = flat_files.open_ns(session), 0
    for ticker, price in STOCKS.items():
        for minute in range(390):
            sequence += 1
            ts, mid = start + minute * _MINUTE_NS, price + minute % 7 / 100
            lines[Dataset.STOCK_QUOTES].append(
                flat_files.quote_line(ticker, ts + 1000, mid - 0.01, mid + 0.01, sequence)
            )
            busy = ticker == "AIG" and minute in BUSY
            for number in range(0 if busy and minute == SILENT else 25 if busy else 1):
                at = ts + 1_000_000 * (number + 2)
                paid = mid + 0.01 * (-1) ** number
                lines[Dataset.STOCK_TRADES].append(
                    flat_files.trade_line(ticker, f"{minute}-{number}", at, paid, sequence)
                )
    for contract in CONTRACTS:
        for minute in range(0, 390, 5):
            sequence += 1
            ts, price = start + minute * _MINUTE_NS, 1.10 + minute % 3 / 100
            lines[Dataset.OPTION_QUOTES].append(
                f"{contract},314,{price + 0.05:.2f},10,314,{price - 0.05:.2f},10,{sequence},{ts + 2000}"
            )
            lines[Dataset.OPTION_TRADES].append(f"{contract},,,314,{ts + 3_000_000},{price:.2f},{ts + 3_000_000},5")
    return lines


if __name__ == "__main__":
    write(Path(sys.argv[1]))
