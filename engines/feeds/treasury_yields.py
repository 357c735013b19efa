"""
Treasury par yield curves: the JSON of ``/fed/v1/treasury-yields``, from a file or over HTTP, as curves of 12 tenors.

Yields come in percent with two decimals and are kept in basis points, so nothing is lost by rounding. A tenor that is
not there is None, never 0: the service names 11 of the 12 (no 2 months), and older curves have fewer. When a curve takes
effect is the engine's to say. This module must never interpolate, carry forward or drop a curve for its date.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from engines.feeds.feed_errors import ReplyMalformed, SourceMissing
from engines.feeds.json_pages import PageSource

TENORS: Final = ("1m", "2m", "3m", "6m", "1y", "2y", "3y", "5y", "7y", "10y", "20y", "30y")
"""Names of the 12 tenors, in order."""
PATH: Final = "/fed/v1/treasury-yields"
PAGE_LIMIT: Final = 5_000
"""Curves a page; the service's default is 100, its most 50,000."""
_PERCENT_MAX: Final = 1_000.0


@dataclass(frozen=True, slots=True)
class Curve:
    """
    One day's curve.

    Attributes:
        date: the day it is dated, ``YYYY-MM-DD``.
        tenor_bps: par yields in basis points, one per tenor of :data:`TENORS`; None where absent.
    """

    date: str
    tenor_bps: tuple[int | None, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the tenors that are absent."""
        return tuple(name for name, value in zip(TENORS, self.tenor_bps, strict=True) if value is None)


class _Row(msgspec.Struct):
    """One element of ``results``; percent."""

    date: str
    yield_1_month: float | None = None
    yield_2_month: float | None = None
    yield_3_month: float | None = None
    yield_6_month: float | None = None
    yield_1_year: float | None = None
    yield_2_year: float | None = None
    yield_3_year: float | None = None
    yield_5_year: float | None = None
    yield_7_year: float | None = None
    yield_10_year: float | None = None
    yield_20_year: float | None = None
    yield_30_year: float | None = None


class _FilePage(msgspec.Struct):
    """A saved reply."""

    results: list[msgspec.Raw]


_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ROW: Final = msgspec.json.Decoder(_Row)
_FILE: Final = msgspec.json.Decoder(_FilePage | list[_FilePage])


def read_yields(path: Path) -> list[Curve]:
    """
    The curves of a file: one reply of the service, or a list of replies (its pages).

    Returns:
        Curves in ascending order of date, one per date; of two for one date the later in the file holds.

    Raises:
        SourceMissing: there is no such file.
        ReplyMalformed: not that JSON; the message names the curve and what is wrong with it.
        OSError: the file cannot be read.
    """
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        raise SourceMissing(str(path), "no such file", "fetch the Treasury yields, or correct `source`") from None
    try:
        decoded = _FILE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReplyMalformed(str(path), f"not the JSON of {PATH}: {error}", "fetch the file again") from None
    pages = decoded if isinstance(decoded, list) else [decoded]
    return _by_date(curve for page in pages for curve in _curves(page.results, str(path)))


def fetch_yields(source: PageSource, *, date_from: str | None = None, date_to: str | None = None) -> list[Curve]:
    """
    The curves that the service has, all pages.

    Args:
        date_from: first date, ``YYYY-MM-DD`` (sent as ``date.gte``); None from 1962.
        date_to: last date, inclusive (``date.lte``).

    Returns:
        As :func:`read_yields`. A service that ignores the filters changes nothing: other dates are left out here too.

    Raises:
        FeedError: nothing was fetched; see :mod:`engines.feeds.feed_errors`.
    """
    parameters = {"limit": str(PAGE_LIMIT), "sort": "date.asc"}
    if date_from is not None:
        parameters["date.gte"] = date_from
    if date_to is not None:
        parameters["date.lte"] = date_to
    found: list[Curve] = []
    for page in source.pages(PATH, parameters):
        where = f"{page.address} (page {page.number})"
        try:
            rows = _ROWS.decode(page.results)
        except msgspec.DecodeError as error:
            raise ReplyMalformed(where, f"results: {error}") from None
        found += _curves(rows, where)
    wanted = (curve for curve in found if (date_from or "") <= curve.date <= (date_to or "9999-12-31"))
    return _by_date(wanted)


def _by_date(curves: Iterable[Curve]) -> list[Curve]:
    held = {curve.date: curve for curve in curves}
    return [held[date] for date in sorted(held)]


def _curves(rows: list[msgspec.Raw], where: str) -> Iterator[Curve]:
    for number, raw in enumerate(rows, start=1):
        try:
            row = _ROW.decode(raw)
            if len(row.date) != 10:
                raise ValueError(f"date {row.date!r} is not YYYY-MM-DD")
            datetime.date.fromisoformat(row.date)
            percents = [getattr(row, name) for name in _Row.__struct_fields__[1:]]
            yield Curve(row.date, tuple(None if percent is None else _bps(percent) for percent in percents))
        except (msgspec.DecodeError, ValueError) as error:
            raise ReplyMalformed(
                where, f"curve {number}: {error}", "fetch it again; one bad curve spoils all"
            ) from None


def _bps(percent: float) -> int:
    if not math.isfinite(percent) or abs(percent) > _PERCENT_MAX:
        raise ValueError(f"a yield of {percent} % cannot be")
    return round(percent * 100.0)
