"""A connection without a daemon: a function answers requests, as a mock transport does. It must never open a socket."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ledger.columns import Column
from m17ctl.invocation import Connection
from m17ctl.main import run
from m17ctl.terminal import Terminal
from m17d.envelopes import ReplyEnvelope
from m17d.outcomes import Event, OperationReply, Progress, Refillable, SubscribeReply
from m17d.protocol import BulkRequest, HelloRequest, Request, SubscribeRequest
from m17d.replies import BulkReply, Counts, HelloReply, Operator, Reply, RowReply, SlotReply

Handler = Callable[[Request], Any]

OPEN_NS = 1_381_152_600_000_000_000
"""2013-10-07T09:30 New York."""
MINUTE_NS = 60_000_000_000
HELLO = HelloReply(
    version="0.1.0",
    protocol_min=1,
    protocol_max=1,
    pid=4711,
    state_dir="/srv/ledger.state",
    year=2013,
    exchange="XNYS",
    option_rows="chain",
    operator=Operator(uid=1000, gid=1000, pid=1, user="ana"),
    roles=["read", "operate"],
)


class Asked(NamedTuple):
    """One request as the fake got it."""

    request: Request
    key: str | None


class FakeConnection(Connection):
    """Answers with what ``handler`` returns for a request: a reply, a list of pieces, or an error to raise."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.asked: list[Asked] = []
        self.last_key = ""
        self.last_envelope: ReplyEnvelope | None = None
        self.closed = False

    def _pieces(self, request: Request, key: str | None) -> list[Any]:
        self.asked.append(Asked(request, key))
        answer = HELLO if isinstance(request, HelloRequest) else self.handler(request)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, list) else [answer]

    def call(
        self,
        request: Request,
        *,
        key: str | None = None,
        durable: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Any:
        return self._pieces(request, key)[0]

    def stream(
        self,
        request: Request,
        *,
        key: str | None = None,
        durable: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Reply]:
        yield from self._pieces(request, key)

    def slabs(self, request: Request, *, timeout_s: float | None = None) -> Iterator[tuple[BulkReply, bytes]]:
        assert isinstance(request, BulkRequest)
        yield from self._pieces(request, None)

    def subscribe(
        self,
        *topics: str,
        from_seq: int | None = None,
        epoch: str | None = None,
        lease_s: float = 30.0,
        idle_s: float | None = None,
    ) -> Iterator[SubscribeReply | Event]:
        request = SubscribeRequest(topics=list(topics), from_seq=from_seq, epoch=epoch)
        for one in self._pieces(request, None):
            if isinstance(one, BaseException):
                raise one
            yield one

    def close(self) -> None:
        self.closed = True


class Ran(NamedTuple):
    """What one command line did."""

    code: int
    out: str
    err: str
    connection: FakeConnection

    @property
    def asked(self) -> list[Request]:
        """The requests in order, the greeting left out."""
        return [asked.request for asked in self.connection.asked if not isinstance(asked.request, HelloRequest)]

    @property
    def keys(self) -> list[str | None]:
        """The idempotency key of each of them."""
        return [asked.key for asked in self.connection.asked if not isinstance(asked.request, HelloRequest)]


def m17ctl(
    handler: Handler | Reply | BaseException,
    *arguments: str,
    answers: str | None = None,
    width: int | None = None,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
) -> Ran:
    """
    Run one command line against a fake.

    Args:
        handler: answers requests; a reply or error answers every one.
        answers: what the operator types at questions; None: nobody is there to ask.
        width: of the terminal; None: output goes to a pipe.
        stdin: standard input.
        environment: variables that the terminal looks at.
    """
    answer = handler if callable(handler) else lambda request: handler
    connection = FakeConnection(answer)
    out, err = io.StringIO(), io.StringIO()
    source = io.TextIOWrapper(io.BytesIO(stdin or (answers or "").encode()), encoding="utf-8")
    terminal = Terminal(
        out,
        err,
        source,
        environment={} if environment is None else environment,
        is_terminal=width is not None,
        interactive=answers is not None,
        width=width,
        height=24,
    )
    code = run(arguments, terminal=terminal, connect=lambda socket, timeout_s: connection)
    return Ran(code, out.getvalue(), err.getvalue(), connection)


def counts(**given: int) -> Counts:
    """Counts with the rest zero."""
    return Counts(**given)


def slot(status: str = "filled", **given: Any) -> SlotReply:
    """A cell's answer with the rest as of a cell from a flat file."""
    fields = {
        "source": "flat_file",
        "flags": [],
        "payload_type": "trade",
        "payload_id": 17,
        "version": 1,
        "checksum": 0xCAFE0123,
        "inputs": 0,
        "last_updated_ns": OPEN_NS + 123_456,
    }
    return SlotReply(status=status, **{**fields, **given})


def row(minute: int = 1, **slots: SlotReply) -> RowReply:
    """A window of AIG; its columns are those given, or a filled trade_ref."""
    start = OPEN_NS + minute * MINUTE_NS
    return RowReply(
        symbol="AIG",
        symbol_id=3,
        minute_idx=74490 + minute,
        window_id=f"2013:191:{minute}",
        start_ts=start,
        end_ts=start + MINUTE_NS,
        slots={Column(name): value for name, value in (slots or {"trade_ref": slot()}).items()},
    )


def operation(cells: int = 25, *, dry_run: bool = False) -> OperationReply:
    """The answer to a clear or refresh that takes so many trade cells."""
    return OperationReply(
        operation="" if dry_run else "op-7",
        cleared={Column.TRADE_REF: cells},
        untouched={Column.TRADE_REF: 2},
        dependents={Column.AGGRESSOR_REF: cells},
        refillable=Refillable(flat_file=cells),
        dry_run=dry_run,
    )
