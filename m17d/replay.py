"""
``m17d replay``: a server on loopback that speaks as the data service does, and plays the flat files of one session.

Websocket, Treasury yields, trades, quotes and the option chain on one port, at the speed of the day or as fast as it is
taken, the same every time, with faults on request. So that anybody can see M17 live without an account. This module must
never listen anywhere but on loopback, and never know a ledger.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from m17d.replay_faults import Faults
from m17d.replay_market import NothingToPlay, Tape, load_tape, session_of
from m17d.replay_pages import PageServer, read_yields
from m17d.replay_socket import Channel, Clock

LOOPBACK: Final = "127.0.0.1"
CLOSE_SECONDS: Final = 60.0
"""A client that is told to go first reads what was sent before."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """
    What is played and how.

    Attributes:
        source: folder of flat files, or of ``flatfiles`` and ``treasury``.
        session: ``YYYY-MM-DD``.
        speed: market seconds a second; None as fast as it goes.
        port: 0 takes a free one.
        key: the only key taken; '' takes any that is not empty.
        symbols: globs over tickers; none takes all.
        treasury: a saved reply of the Treasury endpoint; None looks in and beside the source.
        start_minute: minute of the local day that the play begins at.
        milliseconds: times are cut to ms over REST too, as they are on the websocket.
        frame_events: events of one websocket frame.
        settle_seconds: quiet after the last subscription before the play goes on.
        faults: see :mod:`m17d.replay_faults`.
    """

    source: Path
    session: str
    speed: float | None = 1.0
    port: int = 0
    key: str = ""
    symbols: tuple[str, ...] = ()
    treasury: Path | None = None
    start_minute: int = 0
    milliseconds: bool = False
    frame_events: int = 100
    settle_seconds: float = 0.25
    faults: Faults = field(default_factory=Faults)


class ReplayServer:
    """
    A server for one session; ``async with`` it. Its files are read when it is made.

    Raises:
        NothingToPlay: no file of the session.
        SourceDamaged: a file is damaged.
        ValueError: not a date, or a Treasury file that is none.
        OSError: a file cannot be read, or the port is taken.
    """

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings
        window = session_of(settings.session)
        stocks, options = (self._tape(of_options=each) for each in (False, True))
        if not len(stocks) and not len(options):
            hint = f"{settings.source}: no flat file of {settings.session} with rows of the symbols wanted"
            raise NothingToPlay(hint)
        begin_ns = window.day_start_ns + settings.start_minute * 60_000_000_000
        tapes = [tape for tape in (stocks, options) if len(tape)]
        clock = Clock(max(begin_ns, min(int(tape.play_ns[0]) for tape in tapes)), settings.speed)
        cut = settings.faults.cut_minutes
        cut_ns = None
        if cut is not None:
            cut_ns = (window.day_start_ns + cut[0] * 60_000_000_000, window.day_start_ns + cut[1] * 60_000_000_000)
        self.channels = {
            f"/{name}": Channel(
                tape=tape, of_options=name == "options", clock=clock, key=settings.key, faults=settings.faults,
                cut_ns=cut_ns, frame_events=settings.frame_events, settle_seconds=settings.settle_seconds,
                first=int(tape.play_ns.searchsorted(begin_ns)),
            )
            for name, tape in (("stocks", stocks), ("options", options))
        }  # fmt: skip
        yields = read_yields(settings.source, settings.treasury)
        self.pages = PageServer(stocks, options, yields, settings.key, settings.faults)
        self._answering = asyncio.Lock()
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("the server does not listen yet")
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def __aenter__(self) -> Self:
        quiet = logging.getLogger("m17.replay")
        quiet.setLevel(logging.CRITICAL)
        self._server = await serve(
            self._serve, LOOPBACK, self.settings.port, process_request=self._request, compression=None,
            close_timeout=CLOSE_SECONDS, max_size=1024 * 1024, ping_interval=20, logger=quiet,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close(close_connections=True, code=1001)
            for connection in self._server.connections:
                connection.transport.abort()
            await self._server.wait_closed()

    def _tape(self, *, of_options: bool) -> Tape:
        settings = self.settings

        def wanted(ticker: str) -> bool:
            return any(fnmatchcase(ticker, glob) for glob in settings.symbols)

        return load_tape(
            settings.source, settings.session, of_options=of_options, faults=settings.faults,
            wanted=wanted if settings.symbols else None, milliseconds=settings.milliseconds,
        )  # fmt: skip

    async def _serve(self, socket: ServerConnection) -> None:
        request = socket.request
        if request is not None:
            await self.channels[urlsplit(request.path).path.rstrip("/")].serve(socket)

    async def _request(self, _: ServerConnection, request: Request) -> Response | None:
        """Websocket handshakes of known paths pass; everything else is answered here."""
        if "upgrade" in request.headers.get("Connection", "").lower():
            channel = self.channels.get(urlsplit(request.path).path.rstrip("/"))
            if channel is None:
                return _response(404, b'{"status":"ERROR","error":"no such asset class"}', {})
            return self._refused(channel)
        async with self._answering:
            reply = await asyncio.to_thread(self.pages.answer, request.path, dict(request.headers.raw_items()))
        return _response(reply.status, reply.body, reply.headers)

    @staticmethod
    def _refused(channel: Channel) -> Response | None:
        """Why a handshake is refused now, None where it is not."""
        if channel.is_cut:
            return _response(503, b"", {})
        channel.handshakes += 1
        faults = channel.faults
        if channel.handshakes % (faults.busy + 1):
            wait = {"Retry-After": f"{faults.busy_amount:.0f}"}
            return _response(429, b'{"status":"ERROR","error":"too many connection attempts"}', wait)
        return None


def _response(status: int, body: bytes, headers: dict[str, str]) -> Response:
    made = Headers(headers)
    made["Content-Type"] = "application/json"
    made["Content-Length"] = str(len(body))
    made["Connection"] = "close"
    return Response(status, http.HTTPStatus(status).phrase, made, body)


async def run(settings: ReplaySettings, told: Callable[[str], None]) -> None:
    """
    Serve until cancelled.

    Args:
        told: takes a line for the operator when the server listens.

    Raises:
        See :class:`ReplayServer`.
    """
    server = ReplayServer(settings)
    async with server:
        counts = ", ".join(f"{len(channel.tape)} events on {path}" for path, channel in server.channels.items())
        speed = "as fast as it goes" if settings.speed is None else f"at {settings.speed:g}x"
        told(f"replays {settings.session} {speed}: {counts}")
        told(f"ws://{LOOPBACK}:{server.port} and http://{LOOPBACK}:{server.port}")
        await asyncio.Event().wait()
