"""The replay server: plays files deterministically, speaks the feed's protocol, answers pages, and fails on request."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from engines.feeds.feed_messages import FEED_BEGAN, FeedMessage, FeedState, Gap, SpooledRows
from engines.feeds.flatfile import read_batches
from engines.feeds.json_pages import PageSource
from engines.feeds.option_chain import fetch_chain
from engines.feeds.pass_report import PassReport
from engines.feeds.rest_rows import fetch_rows
from engines.feeds.spooled_rows import Spooled
from engines.feeds.stream import StreamClient
from engines.feeds.stream_settings import StreamSettings
from engines.feeds.treasury_yields import fetch_yields
from ledger.columns import Dataset
from m17d.replay import ReplayServer, ReplaySettings
from m17d.replay_faults import FAULTS, Faults, parse_faults
from m17d.replay_market import NothingToPlay, file_of, session_of

SESSION = "2013-10-07"
WINDOW = session_of(SESSION)
MS = 1_000_000
HEADERS = {
    Dataset.STOCK_TRADES: "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
    "sip_timestamp,size,tape,trf_id,trf_timestamp",
    Dataset.STOCK_QUOTES: "Ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp",
    Dataset.OPTION_TRADES: "ticker,conditions,correction,exchange,participant_timestamp,price,sip_timestamp,size",
    Dataset.OPTION_QUOTES: "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,sequence_number,"
    "sip_timestamp",
}
CONTRACTS = ("O:AIG131019C00050000", "O:AIG131019P00050000", "O:SPXW131019C01700000")
VARIABLE = ("participant_timestamp", "correction", "id")
"""Columns that the websocket does not carry; a contract's trades get an id of their sequence."""


def write_market(folder: Path) -> None:
    """Two stocks and three contracts, an hour long, times in ms, several at once."""
    lines: dict[Dataset, list[str]] = {dataset: [header] for dataset, header in HEADERS.items()}
    number = 0
    for ticker in ("AIG", "IBM"):
        for step in range(400):
            number += 1
            at = WINDOW.open_ns - 60_000_000_000 + step // 2 * 18_274 * MS
            lines[Dataset.STOCK_TRADES].append(
                f'{ticker},"12,37",,11,{number},{at},{40 + step / 100},{number},{at},{100 + step},1,,0'
            )
            lines[Dataset.STOCK_QUOTES].append(
                f"{ticker},12,{41 + step / 100},3,11,{40 + step / 100},2,1,604,{at},{number},{at},1,0"
            )
    for ticker in CONTRACTS:
        for step in range(100):
            number += 1
            at = WINDOW.open_ns + step // 2 * 70_000 * MS
            lines[Dataset.OPTION_TRADES].append(
                f"{ticker},,,314,{at},{1 + step // 3 / 100},{at},{1 + len(ticker) - 19}"
            )
            lines[Dataset.OPTION_QUOTES].append(f"{ticker},314,1.6,5,314,1.5,4,{number},{at}")
    for dataset, text in lines.items():
        path = file_of(folder, dataset, SESSION)
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(("\n".join(text) + "\n").encode(), mtime=0))
    (folder / "treasury").mkdir()
    curves = [{"date": f"2013-10-0{day}", "yield_10_year": day / 100} for day in (1, 2, 3, 4, 7)]
    (folder / "treasury" / "treasury-yields.json").write_text(json.dumps({"results": curves}))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small session."""
    folder = tmp_path_factory.mktemp("market")
    write_market(folder)
    return folder


@pytest.fixture
def settings(market: Path) -> ReplaySettings:
    """As fast as it goes, in small frames."""
    return ReplaySettings(market, SESSION, speed=None, frame_events=20, settle_seconds=0.05)


def from_file(market: Path, dataset: Dataset) -> pl.DataFrame:
    """The rows of a file."""
    frame = pl.concat(read_batches(file_of(market, dataset, SESSION), dataset, WINDOW, PassReport()))
    return frame.cast({pl.Categorical: pl.String})


async def played(settings: ReplaySettings, folder: Path, *, of_options: bool) -> list[FeedMessage]:
    """Everything a client of the server says, until all was played; its rows are spooled into a folder."""
    messages: list[FeedMessage] = []
    done = asyncio.Event()

    async def emit(message: FeedMessage) -> None:
        messages.append(message)

    async with ReplayServer(settings) as server:
        client = StreamClient(
            StreamSettings(
                f"ws://127.0.0.1:{server.port}/{'options' if of_options else 'stocks'}", "any-key", of_options,
                trades=("*",), quotes=CONTRACTS if of_options else ("*",), refused_seconds=0.05,
                backoff_max_seconds=0.05, folder=str(folder), free_bytes_min=0,
            ),
            emit,
        )  # fmt: skip
        obey = client._obey

        async def watch(socket: Any, status: Any) -> None:
            await obey(socket, status)
            if status.status == "end_of_session":
                done.set()

        client._obey = watch  # type: ignore[method-assign]
        task = asyncio.create_task(client.run())
        async with asyncio.timeout(120):
            await done.wait()
            await client.stop()
            await task
    return messages


def rows_of(messages: list[FeedMessage], dataset: Dataset) -> pl.DataFrame:
    """What the spooled minutes of a dataset add up to, late rows included, redelivered ones once."""
    paths = [Path(one.path) for one in messages if isinstance(one, SpooledRows) and one.dataset is dataset]
    spooled = Spooled(paths, dataset)
    return spooled.frame(np.ones(len(spooled.tickers), np.bool_))


def same(live: pl.DataFrame, file: pl.DataFrame) -> bool:
    """Equal in every column that both have, in any order."""
    names = [name for name in file.columns if name not in VARIABLE]
    return live.select(names).sort(names).equals(file.select(names).sort(names))


@pytest.mark.parametrize("of_options", [False, True])
@pytest.mark.parametrize(
    "faults",
    [
        "",
        "disconnect=600",
        "abort=700,duplicate=7",
        "late=5:200,garbage=2",
        "kick=900,stall=1000:0.05,disconnect=300,abort=450",
    ],
)
def test_live_equals_the_file_whatever_happens_on_the_way(
    market: Path, settings: ReplaySettings, tmp_path: Path, faults: str, of_options: bool
) -> None:
    """Cut, repeated, late, garbled: the minutes add up to the rows of the files."""
    messages = asyncio.run(played(replace(settings, faults=parse_faults(faults)), tmp_path, of_options=of_options))

    for dataset in (Dataset.OPTION_TRADES, Dataset.OPTION_QUOTES) if of_options else (
        Dataset.STOCK_TRADES, Dataset.STOCK_QUOTES
    ):  # fmt: skip
        assert same(rows_of(messages, dataset), from_file(market, dataset)), dataset
    last = [message for message in messages if isinstance(message, FeedState)][-1]
    assert (last.counts.trades.dropped, last.counts.quotes.dropped) == (0, 0)
    spooled = sum(one.rows for one in messages if isinstance(one, SpooledRows))
    kept = 600 if of_options else 1600
    assert spooled > kept if "duplicate" in faults else spooled >= kept


def test_a_cut_is_a_gap_that_rest_fills_to_the_uncut_day(
    market: Path, settings: ReplaySettings, tmp_path: Path
) -> None:
    """From 10:00 to 10:10 nothing comes, and the gap says so; with the rows over REST the day is whole."""
    cut = replace(settings, faults=parse_faults("cut=10:00-10:10"))
    messages = asyncio.run(played(cut, tmp_path, of_options=False))
    live = rows_of(messages, Dataset.STOCK_TRADES)
    whole = from_file(market, Dataset.STOCK_TRADES)
    assert live.height < whole.height
    gap = next(m for m in messages if isinstance(m, Gap) and m.reason != FEED_BEGAN and m.end_ns is not None)
    assert gap.end_ns is not None
    start, end = WINDOW.open_ns + 30 * 60 * 10**9, WINDOW.open_ns + 40 * 60 * 10**9
    assert gap.start_ns < start < end <= gap.end_ns
    begin, until = gap.start_ns - gap.start_ns % (60 * 10**9), gap.end_ns - gap.end_ns % (60 * 10**9) + 60 * 10**9

    refilled = asyncio.run(asked(settings, lambda source: [
        frame for ticker in ("AIG", "IBM")
        for frame in fetch_rows(source, Dataset.STOCK_TRADES, ticker, begin, until, WINDOW, PassReport(), limit=7)
    ]))  # fmt: skip
    kept = live.filter((pl.col("sip_timestamp") < begin) | (pl.col("sip_timestamp") >= until))

    assert same(pl.concat([kept, *refilled]).cast({pl.Categorical: pl.String}), whole)


async def asked(settings: ReplaySettings, ask: Any) -> Any:
    """What a question to the server's HTTP side gets."""

    def work(port: int) -> Any:
        with PageSource(f"http://127.0.0.1:{port}", "any-key", sleep=lambda _: None) as source:
            return ask(source)

    async with ReplayServer(settings) as server:
        return await asyncio.to_thread(work, server.port)


def test_two_plays_are_the_same_to_the_byte(settings: ReplaySettings) -> None:
    """Every frame, faults and all."""

    async def frames() -> list[str | bytes]:
        heard: list[str | bytes] = []
        failing = replace(settings, faults=parse_faults("garbage=3,late=4,duplicate=5"))
        async with ReplayServer(failing) as server, connect(f"ws://127.0.0.1:{server.port}/stocks") as socket:
            await socket.send('{"action":"auth","params":"k"}')
            await socket.send('{"action":"subscribe","params":"T.*,Q.IBM"}')
            while not heard or "end_of_session" not in str(heard[-1]):
                heard.append(await asyncio.wait_for(socket.recv(), 10))
        return heard

    first = asyncio.run(frames())

    assert first == asyncio.run(frames())
    assert "this is no JSON" in first or any(isinstance(frame, bytes) for frame in first)


async def conversation(settings: ReplaySettings, path: str, *messages: str, answers: int) -> list[Any]:
    """What a client hears that says something; ends early where the server closes."""
    heard: list[Any] = []
    async with ReplayServer(settings) as server, connect(f"ws://127.0.0.1:{server.port}{path}") as socket:
        for message in messages:
            await socket.send(message)
        try:
            async with asyncio.timeout(120):
                while len(heard) < answers:
                    heard += json.loads(await socket.recv())
        except ConnectionClosed as closed:
            heard.append(closed.rcvd.code if closed.rcvd else None)
    return [each if not isinstance(each, dict) else (each["status"], each.get("message")) for each in heard]


def test_the_protocol_speaks_as_the_feed_does(settings: ReplaySettings) -> None:
    """Connected, authenticated, an answer per topic, errors in words."""
    slow = replace(settings, settle_seconds=60.0)
    heard = asyncio.run(
        conversation(
            slow, "/options", "not json", '{"action":"subscribe","params":"T.*"}', '{"action":"auth","params":"k"}',
            '{"action":"subscribe","params":"T.*,Q.*,X.Y"}', '{"action":"dance"}',
            '{"action":"unsubscribe","params":"T.*"}', answers=9,
        )
    )  # fmt: skip

    assert [status for status, _ in heard] == [
        "connected", "error", "error", "auth_success", "success", "error", "error", "error", "success",
    ]  # fmt: skip
    assert [message for _, message in heard][2:] == [
        "not authenticated", "authenticated", "subscribed to: T.*", "quotes of options have no wildcard",
        "invalid topic: X.Y", "unknown action 'dance'", "unsubscribed to: T.*",
    ]  # fmt: skip


def test_from_the_answer_on_every_event_of_a_topic_is_sent(
    settings: ReplaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that comes while a slice of the day is being sent is in the rest of it: no event after its answer lacks."""
    send = ServerConnection.send

    async def slowly(self: ServerConnection, *arguments: Any, **more: Any) -> None:
        await asyncio.sleep(0.005)
        await send(self, *arguments, **more)

    async def go() -> list[Any]:
        heard: list[Any] = []
        async with (
            ReplayServer(replace(settings, frame_events=2)) as server,
            connect(f"ws://127.0.0.1:{server.port}/stocks") as socket,
        ):
            await socket.send('{"action":"auth","params":"k"}')
            await socket.send('{"action":"subscribe","params":"T.AIG"}')
            while not any(each.get("status") == "end_of_session" for each in heard):
                if sum(each["ev"] == "T" for each in heard) == 20:
                    await socket.send('{"action":"subscribe","params":"T.IBM"}')
                heard += json.loads(await asyncio.wait_for(socket.recv(), 10))
        return heard

    monkeypatch.setattr(ServerConnection, "send", slowly)
    heard = asyncio.run(go())

    answer = next(at for at, each in enumerate(heard) if each.get("message") == "subscribed to: T.IBM")
    last = [each["t"] for each in heard[:answer] if each["ev"] == "T"][-1]
    found = [each["t"] for each in heard if each.get("sym") == "IBM"]
    everything = [(WINDOW.open_ns - 60_000_000_000) // MS + step // 2 * 18_274 for step in range(400)]
    assert found == [at for at in everything if at >= last]
    assert 0 < len(found) < 400


def test_a_wrong_key_fails_and_is_closed(settings: ReplaySettings) -> None:
    """auth_failed, then the close."""
    keyed = replace(settings, key="right")
    heard = asyncio.run(conversation(keyed, "/stocks", '{"action":"auth","params":"wrong"}', answers=9))

    assert heard[1:] == [("auth_failed", "authentication failed"), 1008]


def test_a_second_connection_of_a_key_is_refused(settings: ReplaySettings) -> None:
    """One per asset class; the first one stays."""

    async def go() -> list[Any]:
        slow = replace(settings, settle_seconds=60.0)
        async with ReplayServer(slow) as server:
            url = f"ws://127.0.0.1:{server.port}"
            async with (
                connect(f"{url}/stocks") as first,
                connect(f"{url}/stocks") as second,
                connect(f"{url}/options") as other,
            ):
                heard = []
                for socket in (first, second, other):
                    await socket.send('{"action":"auth","params":"k"}')
                    await socket.recv()
                    heard.append(json.loads(await socket.recv())[0]["status"])
                return heard

    assert asyncio.run(go()) == ["auth_success", "max_connections", "auth_success"]


def test_a_speed_is_kept(settings: ReplaySettings) -> None:
    """At 600x, a minute of market time takes a tenth of a second, and later events are not sent early."""

    async def go() -> float:
        fast = replace(settings, speed=600.0)
        async with ReplayServer(fast) as server, connect(f"ws://127.0.0.1:{server.port}/stocks") as socket:
            loop = asyncio.get_running_loop()
            await socket.send('{"action":"auth","params":"k"}')
            await socket.send('{"action":"subscribe","params":"T.AIG"}')
            began, first = 0.0, 0
            while True:
                for event in json.loads(await asyncio.wait_for(socket.recv(), 10)):
                    if event["ev"] == "T":
                        began, first = (began, first) if first else (loop.time(), event["t"])
                        if event["t"] - first >= 600_000:
                            return loop.time() - began

    assert 0.9 < asyncio.run(go()) < 3.0


@pytest.mark.parametrize("faults", ["", "429=3:0,500=4", "repeat_page=2"])
def test_pages_hold_the_rows_of_the_file(market: Path, settings: ReplaySettings, faults: str) -> None:
    """Trades, quotes, curves and the chain, in small pages, with every failure healed."""
    failing = replace(settings, faults=parse_faults(faults))
    start, end = WINDOW.day_start_ns, WINDOW.day_end_ns

    for dataset, ticker in ((Dataset.STOCK_QUOTES, "AIG"), (Dataset.OPTION_TRADES, CONTRACTS[0])):

        def rows(source: PageSource, dataset: Dataset = dataset, ticker: str = ticker) -> list[pl.DataFrame]:
            return list(fetch_rows(source, dataset, ticker, start, end, WINDOW, PassReport(), limit=60))

        got = pl.concat(asyncio.run(asked(failing, rows)))
        file = from_file(market, dataset).filter(pl.col("ticker") == ticker)
        assert got.sort(file.columns).equals(file.sort(file.columns))
    curves = asyncio.run(
        asked(failing, lambda source: fetch_yields(source, date_from="2013-10-02", date_to="2013-10-04"))
    )
    assert [(curve.date, curve.tenor_bps[9]) for curve in curves] == [
        ("2013-10-02", 2),
        ("2013-10-03", 3),
        ("2013-10-04", 4),
    ]
    chain = asyncio.run(asked(failing, lambda source: fetch_chain(source, "AIG")))
    assert {contract.ticker for contract in chain} == set(CONTRACTS[:2])
    index = asyncio.run(asked(failing, lambda source: fetch_chain(source, "SPX")))
    assert [contract.ticker for contract in index] == [CONTRACTS[2]]
    assert (
        index[0].volume
        == from_file(market, Dataset.OPTION_TRADES).filter(pl.col("ticker") == CONTRACTS[2])["size"].sum()
    )


def test_http_refuses_what_the_service_would(settings: ReplaySettings) -> None:
    """No key, a wrong one, no such endpoint, a limit beyond the most."""

    def look(port: int) -> list[int]:
        found = []
        for target in (
            "/v3/trades/AIG",
            "/v3/trades/AIG?apiKey=bad",
            "/v9?apiKey=k",
            "/v3/trades/AIG?limit=50001&apiKey=k",
        ):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{target}").close()
            except urllib.error.HTTPError as error:
                found.append(error.code)
                error.close()
        return found

    async def go() -> list[int]:
        async with ReplayServer(replace(settings, key="k")) as server:
            return await asyncio.to_thread(look, server.port)

    assert asyncio.run(go()) == [401, 401, 404, 400]


def test_symbols_and_a_start_limit_what_is_played(settings: ReplaySettings) -> None:
    """Globs over tickers; the play begins at a minute of the day."""
    server = ReplayServer(replace(settings, symbols=("AIG", "O:SPXW*"), start_minute=10 * 60))

    assert server.channels["/stocks"].tape.trades.tickers == ["AIG"]
    assert server.channels["/options"].tape.trades.tickers == [CONTRACTS[2]]
    first = server.channels["/stocks"].first
    assert int(server.channels["/stocks"].tape.play_ns[first]) >= WINDOW.open_ns + 30 * 60 * 10**9


def test_a_session_without_files_is_refused(settings: ReplaySettings) -> None:
    """In a line that names it."""
    with pytest.raises(NothingToPlay, match="2013-10-08"):
        ReplayServer(replace(settings, session="2013-10-08"))


@pytest.mark.parametrize(
    "text", ["earthquake=1", "late", "late=0", "late=x", "duplicate=1:5", "cut=10:00", "cut=11:00-10:00", "429=-1"]
)
def test_a_fault_that_cannot_be_read_is_named(text: str) -> None:
    """With what is known."""
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        parse_faults(text)


def test_all_faults_can_be_asked_for_at_once() -> None:
    """Names and amounts as in the help."""
    text = "disconnect=1,abort=2,kick=3,stall=4:5,cut=10:15-10:40,duplicate=6,late=7:8,garbage=9,429=10:11,500=12,repeat_page=13,busy=14:15"

    assert parse_faults(text) == Faults(1, 2, 3, 4, 5, (615, 640), 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    assert {part.partition("=")[0] for part in text.split(",")} == set(FAULTS)


@pytest.fixture
def command(market: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, running."""
    line = [sys.executable, "-m", "m17d", "replay", "--source", str(market), "--session", SESSION, "--port", "0"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_the_command_says_where_it_listens_and_ends_on_a_signal(command: subprocess.Popen[str]) -> None:
    """Two lines, then SIGTERM, then exit 0."""
    assert command.stdout is not None
    assert command.stdout.readline() == "replays 2013-10-07 at 1x: 1600 events on /stocks, 600 events on /options\n"
    assert command.stdout.readline().startswith("ws://127.0.0.1:")
    command.send_signal(signal.SIGTERM)

    assert command.wait(120) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--session", "2013-10-09"], 1, "no flat file of 2013-10-09"),
        (["--session", "yesterday"], 2, "isoformat"),
        (["--session", SESSION, "--speed", "0"], 2, "--speed"),
        (["--session", SESSION, "--from", "25:00"], 2, "--from"),
        (["--session", SESSION, "--faults", "flood=1"], 2, "flood"),
    ],
)
def test_the_command_refuses_in_a_line(market: Path, arguments: list[str], code: int, said: str) -> None:
    """Exit 2 for an argument, 1 for what is not there; never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "m17d", "replay", "--source", str(market), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (code, True, 1)
