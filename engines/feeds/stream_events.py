"""
The websocket's events: how a frame is decoded, and how events become columns.

One tagged union decodes a frame at the speed of msgspec; columns are taken from the structs attribute by attribute, which
is faster than any row at a time. A frame that does not decode as a whole is taken apart, so that one bad event costs no
good one. Times on the wire are milliseconds, here nanoseconds UTC. This module must never wait or keep an event.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Millisecond: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=9_000_000_000_000)]
Small: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Sequence63: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

TICKER: Final = re.compile(r"[A-Z0-9][A-Za-z0-9./+=^$#_-]{0,31}", re.ASCII)
"""What a stock's ticker looks like; an event with another one is refused."""
CONTRACT: Final = re.compile(
    r"O:[A-Z][A-Z0-9.]{0,5}[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])[CP][0-9]{8}", re.ASCII
)
"""What a contract's ticker looks like, as in files; an event of options with another one is refused."""
CODES_MAX: Final = 64
ID_BYTES_MAX: Final = 64
TOO_LARGE: Final = 2.0**53
"""From here on a price or size counts as overflowing, as in files."""
KNOWN_EVENTS: Final = frozenset({"T", "Q", "status"})


class TradeEvent(msgspec.Struct, tag_field="ev", tag="T", gc=False):
    """A trade; ``t`` and ``trft`` in ms, ``s`` the size, ``q`` the sequence, ``x`` the exchange, ``z`` the tape."""

    sym: str
    t: Millisecond
    p: float
    s: float
    q: Sequence63 = 0
    x: Small = 0
    i: str = ""
    z: Small = 0
    c: tuple[int, ...] | None = None
    trfi: Small = 0
    trft: Millisecond = 0


class QuoteEvent(msgspec.Struct, tag_field="ev", tag="Q", gc=False):
    """A quote; ``t`` in ms, prices ``bp ap``, sizes ``bs as``, exchanges ``bx ax``, condition ``c``, indicators ``i``."""

    sym: str
    t: Millisecond
    bp: float = 0.0
    bs: float = 0.0
    ap: float = 0.0
    ask_size: float = msgspec.field(default=0.0, name="as")
    q: Sequence63 = 0
    bx: Small = 0
    ax: Small = 0
    z: Small = 0
    c: int | tuple[int, ...] | None = None
    i: tuple[int, ...] | None = None


class StatusEvent(msgspec.Struct, tag_field="ev", tag="status"):
    """What the server says of the connection."""

    status: str = ""
    message: str = ""


class _Kind(msgspec.Struct):
    ev: str = ""


Event: TypeAlias = TradeEvent | QuoteEvent | StatusEvent
FRAME: Final = msgspec.json.Decoder(list[Event])
"""Decodes a whole frame; reused, because making it costs more than using it."""
_EVENT: Final = msgspec.json.Decoder(Event)
_PARTS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_KIND: Final = msgspec.json.Decoder(_Kind)


@dataclass(slots=True)
class FrameCounts:
    """What came and what could not be used."""

    frames: int = 0
    events: int = 0
    frames_unreadable: int = 0
    events_unreadable: int = 0
    events_of_other_kinds: int = 0
    last_bad: str = ""


def decode_frame(frame: bytes | str, counts: FrameCounts) -> Sequence[Event]:
    """
    The events of a frame that can be read; the others are counted. Never raises on any input.

    Args:
        frame: a JSON array of events.
    """
    counts.frames += 1
    try:
        events = FRAME.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        events = _one_by_one(frame, counts)
    counts.events += len(events)
    return events


def _one_by_one(frame: bytes | str, counts: FrameCounts) -> list[Event]:
    try:
        parts = _PARTS.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        counts.frames_unreadable += 1
        counts.last_bad = f"frame {counts.frames}: {error}"[:200]
        return []
    events: list[Event] = []
    for part in parts:
        try:
            events.append(_EVENT.decode(part))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if _kind(part) not in KNOWN_EVENTS | {""}:
                counts.events_of_other_kinds += 1
                continue
            counts.events_unreadable += 1
            counts.last_bad = f"frame {counts.frames}: {error}"[:200]
    return events


def _kind(part: msgspec.Raw) -> str:
    try:
        return _KIND.decode(part).ev
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


class _Table(dict[Any, int]):
    """Numbers for the values of a column in order of first sight; ``texts[number]`` is the value as text."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def add(self, key: Any, text: str) -> int:
        number = self[key] = len(self.texts)
        self.texts.append(text)
        return number


class _Tickers(_Table):
    """Number 0 is what no ticker of the asset class looks like."""

    def __init__(self, *, of_options: bool) -> None:
        super().__init__()
        self.texts.append("")
        self.pattern = CONTRACT if of_options else TICKER
        self.refusal = "malformed_option_ticker" if of_options else "malformed_ticker"

    def __missing__(self, ticker: str) -> int:
        # A refused spelling gets no entry, so that garbage cannot fill the memory.
        return self.add(ticker, ticker) if self.pattern.fullmatch(ticker) else 0


class _Codes(_Table):
    """Lists of condition or indicator codes as comma lists; number 0 is the empty one, 1 what no code list looks like."""

    def __init__(self) -> None:
        super().__init__()
        self[None] = self.add((), "")
        self.texts.append("?")

    def __missing__(self, codes: int | tuple[int, ...]) -> int:
        values = (codes,) if isinstance(codes, int) else codes
        if len(values) > CODES_MAX or any(abs(value) > 999_999 for value in values):
            return 1
        return self.add(codes, ",".join(map(str, values)))


class Tables:
    """The numbering of tickers and code lists of one connection's rows; grows with what is new."""

    def __init__(self, *, of_options: bool) -> None:
        self.tickers = _Tickers(of_options=of_options)
        self.conditions = _Codes()
        self.indicators = _Codes()


Columns: TypeAlias = dict[str, NDArray[Any]]
"""Columns of rows by their canonical names; ``ticker``, ``conditions`` and ``indicators`` as u32 numbers, ``id`` object."""

_FLOAT: Final = np.float64
_INT: Final = np.int64
_I32: Final = np.int32
_U32: Final = np.uint32


def trade_columns(events: Sequence[TradeEvent], tables: Tables, rejected: dict[str, int]) -> Columns:
    """
    Columns of trades, without rows that no file would have; those are counted by reason in ``rejected``.

    Returns:
        ``ticker`` u32, ``sip_timestamp`` i64 ns, ``sequence_number`` i64, ``price`` f64, ``size`` f64, ``exchange`` i32,
        ``conditions`` u32, ``id`` object, ``tape`` i32, ``trf_id`` i32, ``trf_timestamp`` i64 ns; each [rows].
    """
    n = len(events)
    columns: Columns = {
        "ticker": np.fromiter(map(tables.tickers.__getitem__, [e.sym for e in events]), _U32, n),
        "sip_timestamp": np.fromiter([e.t for e in events], _INT, n) * 1_000_000,
        "sequence_number": np.fromiter([e.q for e in events], _INT, n),
        "price": np.fromiter([e.p for e in events], _FLOAT, n),
        "size": np.fromiter([e.s for e in events], _FLOAT, n),
        "exchange": np.fromiter([e.x for e in events], _I32, n),
        "conditions": np.fromiter(map(tables.conditions.__getitem__, [e.c for e in events]), _U32, n),
        "id": np.array([e.i for e in events], np.object_),
        "tape": np.fromiter([e.z for e in events], _I32, n),
        "trf_id": np.fromiter([e.trfi for e in events], _I32, n),
        "trf_timestamp": np.fromiter([e.trft for e in events], _INT, n) * 1_000_000,
    }
    price, size = columns["price"], columns["size"]
    fair = (price > 0) & (size >= 0) & (price < TOO_LARGE) & (size < TOO_LARGE) & (columns["ticker"] != 0)
    fair &= columns["conditions"] != 1
    fair &= np.fromiter([len(e.i) <= ID_BYTES_MAX and _id_fits(e.i) for e in events], np.bool_, n)
    return columns if fair.all() else _only(fair, columns, {"price": True, "size": False}, tables, rejected)


def _id_fits(text: str) -> bool:
    return text.isascii() or len(text.encode(errors="replace")) <= ID_BYTES_MAX


def quote_columns(events: Sequence[QuoteEvent], tables: Tables, rejected: dict[str, int]) -> Columns:
    """
    Columns of quotes, as :func:`trade_columns`: ``ticker sip_timestamp sequence_number bid_price bid_size bid_exchange
    ask_price ask_size ask_exchange conditions indicators tape``.
    """
    n = len(events)
    columns: Columns = {
        "ticker": np.fromiter(map(tables.tickers.__getitem__, [e.sym for e in events]), _U32, n),
        "sip_timestamp": np.fromiter([e.t for e in events], _INT, n) * 1_000_000,
        "sequence_number": np.fromiter([e.q for e in events], _INT, n),
        "bid_price": np.fromiter([e.bp for e in events], _FLOAT, n),
        "bid_size": np.fromiter([e.bs for e in events], _FLOAT, n),
        "bid_exchange": np.fromiter([e.bx for e in events], _I32, n),
        "ask_price": np.fromiter([e.ap for e in events], _FLOAT, n),
        "ask_size": np.fromiter([e.ask_size for e in events], _FLOAT, n),
        "ask_exchange": np.fromiter([e.ax for e in events], _I32, n),
        "conditions": np.fromiter(map(tables.conditions.__getitem__, [e.c for e in events]), _U32, n),
        "indicators": np.fromiter(map(tables.indicators.__getitem__, [e.i for e in events]), _U32, n),
        "tape": np.fromiter([e.z for e in events], _I32, n),
    }
    values = dict.fromkeys(("bid_price", "bid_size", "ask_price", "ask_size"), False)
    fair = (columns["ticker"] != 0) & (columns["conditions"] != 1) & (columns["indicators"] != 1)
    for name in values:
        fair &= (columns[name] >= 0) & (columns[name] < TOO_LARGE)
    return columns if fair.all() else _only(fair, columns, values, tables, rejected)


def _only(
    fair: NDArray[np.bool_], columns: Columns, values: dict[str, bool], tables: Tables, rejected: dict[str, int]
) -> Columns:
    """The fair rows; the others counted under the first reason that fits, in the words of the file reader."""
    left = ~fair

    def count(reason: str, broken: NDArray[np.bool_]) -> None:
        nonlocal left
        rows = int((left & broken).sum())
        if rows:
            rejected[reason] = rejected.get(reason, 0) + rows
        left = left & ~broken

    count(tables.tickers.refusal, columns["ticker"] == 0)
    for name, positive in values.items():
        count(f"not_a_number_{name}", np.isnan(columns[name]))
        count(f"negative_{name}", columns[name] < 0)
        count(f"overflowing_{name}", columns[name] >= TOO_LARGE)
        if positive:
            count(f"zero_{name}", columns[name] == 0)
    count("malformed_codes_or_id", left)
    return {name: column[fair] for name, column in columns.items()}
