"""
The replay server's HTTP side: Treasury yields, trades, quotes and the option chain, in pages, with their key.

Requests are answered from the same rows that the websocket plays. Every answer has the shape of the data service's; a
request without key, or with another one, is refused. This module must never open a socket: bytes in, status and bytes
out.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import numpy as np

from ledger.roots import RootTable, option_root
from m17d.replay_faults import Faults
from m17d.replay_market import Rows, Tape

if TYPE_CHECKING:
    import polars

_LISTS: Final = ("conditions", "indicators")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer: status, body (JSON) and further headers."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class PageServer:
    """
    Answers requests. Not for several threads at once.

    Attributes:
        stocks, options: what is played.
        yields: Treasury curves as the service sends them, ascending by date.
        key: the only key that is taken; '' takes any.
        faults: what goes wrong.
        requests: requests so far.
        pages: pages with a next one so far.
        refused: targets that were answered 429 or 500 and not asked for again since.
    """

    stocks: Tape
    options: Tape
    yields: list[dict[str, Any]]
    key: str
    faults: Faults
    requests: int = 0
    pages: int = 0
    refused: set[str] = field(default_factory=set)

    def answer(self, target: str, headers: Mapping[str, str]) -> Reply:
        """
        Answer ``GET target``.

        Args:
            target: path and query.
            headers: by name; ``Host`` and ``Authorization`` are looked at.
        """
        self.requests += 1
        number, faults = self.requests, self.faults
        if target in self.refused:
            # Who waited and asks again is answered, as by the service; else two clients that take turns in the count
            # could refuse one request as often as it is sent.
            self.refused.discard(target)
        elif faults.too_many and number % faults.too_many == 0:
            self.refused.add(target)
            wait = {"Retry-After": f"{faults.too_many_amount:.0f}"}
            return Reply(429, _error("You've exceeded the maximum requests per minute"), wait)
        elif faults.broken and number % faults.broken == 0:
            self.refused.add(target)
            return Reply(500, _error("internal server error"))
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        given = query.pop("apiKey", "") or headers.get("Authorization", "").removeprefix("Bearer ")
        if not given or (self.key and given != self.key):
            return Reply(401, _error("Unknown API Key" if given else "API Key was not provided"))
        try:
            if "cursor" in query:
                query = _from_cursor(query["cursor"])
            results, after = self._results(unquote(parts.path), query)
        except _Refused as refused:
            return Reply(refused.status, _error(str(refused)))
        body: dict[str, Any] = {"status": "OK", "request_id": f"replay-{number}", "count": len(results)}
        if after is not None:
            self.pages += 1
            again = faults.repeat_page and self.pages % faults.repeat_page == 0
            cursor = _to_cursor(query if again else {**query, "offset": str(after)})
            body["next_url"] = f"http://{headers.get('Host', '127.0.0.1')}{parts.path}?cursor={cursor}"
        return Reply(200, msgspec.json.encode({**body, "results": results}))

    def _results(self, path: str, query: dict[str, str]) -> tuple[list[dict[str, Any]], int | None]:
        """A page, and the offset of the next one or None."""
        match path.strip("/").split("/"):
            case ["fed", "v1", "treasury-yields"]:
                return self._treasury(query)
            case ["v3", "trades", ticker]:
                return _rows((self.options if ticker.startswith("O:") else self.stocks).trades, ticker, query)
            case ["v3", "quotes", ticker]:
                return _rows((self.options if ticker.startswith("O:") else self.stocks).quotes, ticker, query)
            case ["v3", "snapshot", "options", underlying]:
                contracts = self._chain(underlying)
                return _page(contracts, query, default=10, most=250)
            case _:
                raise _Refused(404, f"no such endpoint: {path}")

    def _treasury(self, query: dict[str, str]) -> tuple[list[dict[str, Any]], int | None]:
        tests: dict[str, Callable[[str, str], bool]] = {
            "date": str.__eq__, "date.gte": str.__ge__, "date.gt": str.__gt__, "date.lte": str.__le__,
            "date.lt": str.__lt__,
        }  # fmt: skip
        limits = [(test, query[name]) for name, test in tests.items() if name in query]
        curves = [each for each in self.yields if all(test(each["date"], limit) for test, limit in limits)]
        if query.get("sort", "date.desc").endswith("desc"):
            curves.reverse()
        return _page(curves, query, default=100, most=50_000)

    def _chain(self, underlying: str) -> list[dict[str, Any]]:
        """Contracts of an underlying by ticker, with the volume of the day; files know no open interest."""
        roots, trades = RootTable.load(), self.options.trades
        sizes = trades.frame["size"].to_numpy()
        sums = np.add.reduceat(sizes, trades.first) if len(trades.first) else np.empty(0)
        volumes = dict(zip(trades.tickers, sums.tolist(), strict=True))
        times = trades.frame["sip_timestamp"].to_numpy()
        latest = np.maximum.reduceat(times, trades.first) if len(trades.first) else np.empty(0, dtype=np.int64)
        updated = dict(zip(trades.tickers, latest.tolist(), strict=True))
        tickers = sorted(set(trades.tickers) | set(self.options.quotes.tickers))
        return [
            {
                "details": {
                    "ticker": ticker,
                    "contract_type": "call" if ticker[-9] == "C" else "put",
                    "expiration_date": f"20{ticker[-15:-13]}-{ticker[-13:-11]}-{ticker[-11:-9]}",
                    "strike_price": int(ticker[-8:]) / 1000,
                },
                "day": {"volume": volumes.get(ticker, 0), "last_updated": updated.get(ticker, 0)},
                "open_interest": 0,
                "underlying_asset": {"ticker": underlying},
            }
            for ticker in tickers
            if roots.underlying(option_root(ticker)) == underlying
        ]


def read_yields(source: Path, treasury: Path | None) -> list[dict[str, Any]]:
    """
    Curves as they are in a saved reply: ``treasury``, or ``treasury/treasury-yields.json`` in or beside the source.

    Raises:
        OSError: ``treasury`` was given and cannot be read.
        ValueError: the file is not that JSON.
    """
    name = Path("treasury") / "treasury-yields.json"
    path = treasury or next((each for each in (source / name, source.parent / name) if each.exists()), None)
    if path is None:
        return []
    try:
        results: list[dict[str, Any]] = json.loads(path.read_bytes())["results"]
        return sorted(results, key=lambda curve: str(curve["date"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the JSON of /fed/v1/treasury-yields: {error!r}") from None


def _rows(rows: Rows, ticker: str, query: dict[str, str]) -> tuple[list[dict[str, Any]], int | None]:
    """Rows of a ticker as REST sends them; absent values are left out."""
    frame = rows.of_ticker(ticker)
    times = frame["sip_timestamp"].to_numpy()
    first, last = 0, len(times)
    for name, value in query.items():
        kind = name.removeprefix("timestamp").lstrip(".")
        if name.startswith("timestamp"):
            ns = _time(value)
            if kind in ("gte", "gt", ""):
                first = max(first, int(np.searchsorted(times, ns, "right" if kind == "gt" else "left")))
            if kind in ("lte", "lt", ""):
                last = min(last, int(np.searchsorted(times, ns, "left" if kind == "lt" else "right")))
    found = frame.slice(first, max(0, last - first))
    offset, limit = _bounds(query, default=1_000, most=50_000)
    if query.get("order", "desc") == "desc":
        found = found.reverse()
    after = offset + limit if found.height > offset + limit else None
    return _as_json(found.slice(offset, limit)), after


def _as_json(frame: polars.DataFrame) -> list[dict[str, Any]]:
    made = []
    for row in frame.drop("ticker").iter_rows(named=True):
        kept = {name: value for name, value in row.items() if value not in (0, "") or name.endswith(("price", "size"))}
        for name in _LISTS:
            if name in kept:
                kept[name] = [int(code) for code in kept[name].split(",")]
        made.append(kept)
    return made


def _page(
    everything: list[dict[str, Any]], query: dict[str, str], *, default: int, most: int
) -> tuple[list[dict[str, Any]], int | None]:
    offset, limit = _bounds(query, default=default, most=most)
    after = offset + limit if len(everything) > offset + limit else None
    return everything[offset : offset + limit], after


def _bounds(query: dict[str, str], *, default: int, most: int) -> tuple[int, int]:
    try:
        offset, limit = int(query.get("offset", "0")), int(query.get("limit", str(default)))
    except ValueError:
        raise _Refused(400, "limit is not a number") from None
    if not 1 <= limit <= most or offset < 0:
        raise _Refused(400, f"limit is from 1 to {most}")
    return offset, limit


def _time(text: str) -> int:
    """ns UTC of a number of ns, or of a date."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        day = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise _Refused(400, f"{text!r} is neither nanoseconds nor a date") from None
    return round(day.replace(tzinfo=day.tzinfo or datetime.UTC).timestamp()) * 1_000_000_000


def _to_cursor(query: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(query, sort_keys=True).encode()).decode().rstrip("=")


def _from_cursor(text: str) -> dict[str, str]:
    try:
        query: dict[str, str] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        raise _Refused(400, "the cursor is none of ours") from None
    return query


def _error(message: str) -> bytes:
    return msgspec.json.encode({"status": "ERROR", "error": message})
