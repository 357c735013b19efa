"""A small market in flat files, times in milliseconds, and the data service's REST side over it."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

from ledger.columns import Dataset
from m17d.replay_faults import Faults
from m17d.replay_market import file_of, load_tape
from m17d.replay_pages import PageServer
from tests.engines.feeds.scripted_source import Answer, Asked, serving
from tests.m17d.flat_files import open_ns

SESSION = "2013-05-01"
MS = 1_000_000
CONTRACTS = ("O:AAA130518C00010000", "O:AAA130518P00010000", "O:AAA130622C00012000")
HEADERS = {
    Dataset.STOCK_TRADES: "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
    "sip_timestamp,size,tape,trf_id,trf_timestamp",
    Dataset.STOCK_QUOTES: "Ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp",
    Dataset.OPTION_TRADES: "ticker,conditions,correction,exchange,participant_timestamp,price,sip_timestamp,size",
    Dataset.OPTION_QUOTES: "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,sequence_number,"
    "sip_timestamp",
}


def stock(ticker: str, *, seed: int, every_ms: int = 7_300, minutes: int = 390) -> dict[Dataset, list[str]]:
    """Trades and quotes of a stock from a minute before the open on, pairs at the same millisecond, silent now and then."""
    found: dict[Dataset, list[str]] = {Dataset.STOCK_TRADES: [], Dataset.STOCK_QUOTES: []}
    start, number = open_ns(SESSION) - 50_000 * MS, 0
    for step in range((minutes * 60_000 + 50_000) // every_ms * 2):
        at = start + step // 2 * every_ms * MS
        if (step * 7 + seed) % 97 < 12 or (at // (300_000 * MS)) % 9 == seed % 9:
            continue
        number += 1
        price = 40 + seed + (step * 31 + seed) % 50 / 100
        found[Dataset.STOCK_TRADES].append(
            f'{ticker},"12,{37 if step % 3 else 41}",{(step % 11 == 5 and 1) or ""},{11 + step % 3},{number},{at},'
            f"{price},{number},{at},{100 + step % 7},1,,0"
        )
        found[Dataset.STOCK_QUOTES].append(
            f"{ticker},12,{price + 0.02:.2f},3,11,{price - 0.01:.2f},{1 + step % 5},1,604,{at},{number},{at},1,0"
        )
    return found


def contract(ticker: str, *, seed: int, every_ms: int = 31_000) -> dict[Dataset, list[str]]:
    """Trades and quotes of a contract, identical prints among them."""
    found: dict[Dataset, list[str]] = {Dataset.OPTION_TRADES: [], Dataset.OPTION_QUOTES: []}
    for step in range(390 * 60_000 // every_ms):
        at = open_ns(SESSION) + (step * every_ms + seed * 137) * MS
        if (step + seed) % 5 == 0:
            continue
        price = 1 + seed / 10 + step % 6 / 100
        line = f"{ticker},{209 if step % 4 else ''},,314,{at},{price:.2f},{at},{1 + step % 3}"
        found[Dataset.OPTION_TRADES] += [line, line] if step % 8 == 3 else [line]
        found[Dataset.OPTION_QUOTES].append(f"{ticker},314,{price + 0.1:.2f},5,314,{price - 0.1:.2f},4,{step + 1},{at}")
    return found


def write(folder: Path, parts: list[dict[Dataset, list[str]]], session: str = SESSION) -> dict[Dataset, list[str]]:
    """Write a session's files; the lines of each, header first."""
    lines: dict[Dataset, list[str]] = {}
    for part in parts:
        for dataset, rows in part.items():
            lines.setdefault(dataset, [HEADERS[dataset]]).extend(rows)
    for dataset, rows in lines.items():
        path = file_of(folder, dataset, session)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(("\n".join(rows) + "\n").encode(), mtime=0))
    return lines


@contextlib.contextmanager
def rest(
    folder: Path, faults: Faults | None = None, instead: Callable[[int, str], Answer | None] = lambda _n, _t: None
) -> Iterator[tuple[str, Asked]]:
    """The data service's REST side over the files of a folder; ``instead`` may answer a request in its place."""
    faults = faults or Faults()
    stocks, options = (
        load_tape(folder, SESSION, of_options=each, faults=faults, wanted=None, milliseconds=False)
        for each in (False, True)
    )
    server = PageServer(stocks, options, [], "", faults)

    def answer(number: int, target: str) -> Answer:
        other = instead(number, target)
        if other is not None:
            return other
        reply = server.answer(target, {"Host": "service"})
        return reply.status, reply.headers, reply.body

    with serving(answer) as served:
        yield served
