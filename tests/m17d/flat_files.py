"""Small flat files, good and damaged in every way, and the daemon run over them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HEADER = (
    "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape,"
    "trf_id,trf_timestamp"
)
DATASET = "us_stocks_sip/trades_v1"


def open_ns(session: str) -> int:
    """09:30 New York of a session, ns UTC."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    year, month, day = map(int, session.split("-"))
    return int(datetime(year, month, day, 9, 30, tzinfo=ZoneInfo("America/New_York")).timestamp()) * 10**9


def trade_line(ticker: str, name: object, ts: int, price: float, sequence: int) -> str:
    """A trade of 100 shares in the columns of `HEADER`."""
    return f"{ticker},,,11,{name},{ts},{price:.2f},{sequence},{ts},100,1,,0"


def quote_line(ticker: str, ts: int, bid: float, ask: float, sequence: int) -> str:
    """A stock's quote of three by two round lots."""
    return f"{ticker},11,{ask:.2f},3,12,{bid:.2f},2,1,,{ts},{sequence},{ts},1,"


def good_lines(session: str, tickers: tuple[str, ...] = ("AAA", "BBB")) -> list[str]:
    """A header and one trade every ten minutes for each ticker."""
    start = open_ns(session)
    lines = [HEADER]
    for ticker in tickers:
        for number in range(39):
            ts = start + number * 600 * 10**9 + 5
            lines.append(trade_line(ticker, number, ts, 10 + number / 100, number + 1))
    return lines


def packed(lines: list[str], newline: str = "\n") -> bytes:
    """A gzip of lines."""
    return gzip.compress((newline.join(lines) + newline).encode(), mtime=0)


def _replaced(lines: list[str], at: int, line: str) -> list[str]:
    return [*lines[:at], line, *lines[at + 1 :]]


def _without(lines: list[str], column: str) -> list[str]:
    index = lines[0].split(",").index(column)
    return [",".join(field for at, field in enumerate(line.split(",")) if at != index) for line in lines]


def _other_day(session: str) -> list[str]:
    shift = 40 * 86_400 * 10**9
    lines = good_lines(session)
    for at in range(1, len(lines)):
        fields = lines[at].split(",")
        fields[8] = str(int(fields[8]) + shift)
        lines[at] = ",".join(fields)
    return lines


DAMAGE: dict[str, Callable[[str], bytes]] = {
    "truncated gzip": lambda session: packed(good_lines(session))[:-60],
    "gzip without its trailer": lambda session: packed(good_lines(session))[:-8],
    "wrong CRC": lambda session: packed(good_lines(session))[:-8] + b"\1\2\3\4" + packed(good_lines(session))[-4:],
    "wrong length": lambda session: packed(good_lines(session))[:-4] + b"\1\2\3\4",
    "not a gzip": lambda session: "\n".join(good_lines(session)).encode(),
    "empty file": lambda session: b"",
    "gzip of nothing": lambda session: gzip.compress(b"", mtime=0),
    "garbage behind the gzip": lambda session: packed(good_lines(session)) + b"garbage that is no gzip member",
    "missing column": lambda session: packed(_without(good_lines(session), "price")),
    "missing time": lambda session: packed(_without(good_lines(session), "sip_timestamp")),
    "no header": lambda session: packed(good_lines(session)[1:]),
    "wrong delimiter": lambda session: packed([line.replace(",", ";") for line in good_lines(session)]),
    "UTF-16": lambda session: gzip.compress("\n".join(good_lines(session)).encode("utf-16"), mtime=0),
    "unterminated quote": lambda session: packed(_replaced(good_lines(session), 20, 'AAA,"12,37,,11,9,1,1,1,1,1,1,,0')),
    "a field of 2 MB": lambda session: packed(_replaced(good_lines(session), 20, "A" * 2_000_000)),
    "binary in the middle": lambda session: gzip.compress(
        "\n".join(good_lines(session)[:30]).encode() + bytes(range(256)) * 64 + b"\n", mtime=0
    ),
    "garbage lines": lambda session: packed([*good_lines(session), *["garbage"] * 11]),
    "only rows of another day": lambda session: packed(_other_day(session)),
}
"""What can be wrong with a whole file: name -> bytes for a session."""


def write(root: Path, session: str, data: bytes, dataset: str = DATASET) -> Path:
    """Put a file where upstream has it."""
    path = root / "flatfiles" / dataset / session[:4] / session[5:7] / f"{session}.csv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_config(
    root: Path, sessions: list[str], *, extra: str = "", engines: str = "trade_flatfile", keys: str = ""
) -> Path:
    """A config over the files of a folder."""
    lines = ['state_dir = "ledger.state"', keys, "[runner]", "workers = 2", "[calendar]", "year = 2013"]
    for engine in engines.split():
        lines += [f"[engines.{engine}]", 'source = "flatfiles"', f"sessions = {json.dumps(sessions)}", extra]
    path = root / "m17.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(root: Path, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """``m17d run --until-idle`` in a folder."""
    command = [sys.executable, "-m", "m17d", "run", "--config", str(root / "m17.toml"), "--until-idle", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=root)
