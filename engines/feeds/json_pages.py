"""
Pages of JSON over HTTP: one request, its retries, and the way from page to page.

The key goes to the configured host and to no other: of a ``next_url`` only path and query are followed, absolute or
relative, with the key put back. A page that was seen before is asked for again and, when it stays, refused, because rows
that come twice cannot be told from identical rows. Meant for worker processes: it blocks. This module must never print
or raise the key.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import msgspec

from engines.feeds.feed_errors import (
    FeedError,
    PageRepeated,
    ReplyMalformed,
    SourceBusy,
    SourceFailing,
    SourceMissing,
    SourceRefused,
    SourceUnreachable,
)
from engines.feeds.retrying import RequestBudget, RetryPolicy, retry_after_seconds

KEY_VARIABLE: Final = "M17_API_KEY"
"""The environment variable that holds the key, where a config names no other."""
PAGE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Longest page that is read."""
PAGES_MAX: Final = 100_000
"""Pages of one answer at most; a source that never ends is broken."""


class _Envelope(msgspec.Struct):
    """What every page has in common."""

    results: msgspec.Raw = msgspec.Raw(b"[]")
    next_url: str | None = None
    status: str | None = None
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its number from 1, its address without key, and its results as JSON, an array."""

    number: int
    address: str
    results: bytes


@dataclass(slots=True)
class RequestCounts:
    """What it took: requests sent, and failures by kind that were tried again."""

    requests: int = 0
    retried: dict[str, int] = field(default_factory=dict)

    def retry(self, kind: str) -> None:
        """Count a failure that is tried again."""
        self.retried[kind] = self.retried.get(kind, 0) + 1


class PageSource:
    """
    A host that answers pages of JSON; close it, or use it in ``with``. Not for use by several threads at once.

    Args:
        base_url: ``https://host[:port][/prefix]``, or http.
        key: sent as ``apiKey``; '' sends none.
        timeout_seconds: for connecting and for every read.
        policy: attempts and pauses.
        budget: requests a minute.
        sleep: how to wait.
    """

    def __init__(
        self,
        base_url: str,
        key: str = "",
        *,
        timeout_seconds: float = 20.0,
        policy: RetryPolicy | None = None,
        budget: RequestBudget | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is no address: expected http(s)://host[:port]")
        self._base = parts
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._policy = policy or RetryPolicy()
        self._budget = budget or RequestBudget(None)
        self._sleep = sleep
        self._connection: http.client.HTTPConnection | None = None
        self.counts = RequestCounts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def pages(self, path: str, parameters: Mapping[str, str]) -> Iterator[Page]:
        """
        All pages of an answer, in order.

        Args:
            path: from the root of the service, such as ``/fed/v1/treasury-yields``.
            parameters: of the first request; the source's ``next_url`` carries those of the others.

        Raises:
            FeedError: see :mod:`engines.feeds.feed_errors`; pages handed out before it are not the whole answer.
        """
        target = f"{self._base.path.rstrip('/')}{path}"
        if parameters:
            target += "?" + urlencode(parameters)
        seen_targets, seen_results = {target}, set[bytes]()
        before = ""
        for number in range(1, PAGES_MAX + 1):
            target, envelope, digest = self._page(target, before, seen_targets, seen_results)
            seen_results.add(digest)
            yield Page(number, self._shown(target), bytes(envelope.results))
            if not envelope.next_url:
                return
            before, target = target, self._next(target, envelope.next_url)
            seen_targets |= {before, target}
        raise PageRepeated(self._shown(target), f"no end after {PAGES_MAX} pages", "tell the data service")

    def _page(
        self, target: str, before: str, seen_targets: set[str], seen_results: set[bytes]
    ) -> tuple[str, _Envelope, bytes]:
        """
        One page that was not seen before, and where it was.

        While it was, it is asked for again; where that does not help, the page before it may have named the wrong one,
        and is asked for the next one again.
        """
        repeats = 0
        while True:
            envelope = self._decoded(target, self._get(target))
            results = bytes(envelope.results)
            digest = hashlib.blake2b(results, digest_size=16).digest()
            circle = bool(envelope.next_url) and self._next(target, envelope.next_url or "") in seen_targets
            # One row may well come twice, and an empty page says nothing.
            again = digest in seen_results and results.count(b"{") > 1
            if not circle and not again:
                return target, envelope, digest
            repeats += 1
            if repeats >= self._policy.attempts:
                what = "the next page is one that was read" if circle else "the page has the rows of an earlier one"
                raise PageRepeated(self._shown(target), f"{what}, {repeats} times", "tried again later by itself")
            self.counts.retry("page_repeated")
            self._sleep(self._policy.pause_seconds(repeats - 1))
            if again and before and repeats > 1:
                named = self._decoded(before, self._get(before)).next_url
                if named is None:
                    return target, _Envelope(), digest
                target = self._next(before, named)

    def _decoded(self, target: str, body: bytes) -> _Envelope:
        try:
            envelope = msgspec.json.decode(body, type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ReplyMalformed(self._shown(target), f"not a page of JSON: {error}") from None
        if envelope.status is not None and envelope.status.upper() in ("ERROR", "NOT_AUTHORIZED"):
            kind = SourceRefused if envelope.status.upper() == "NOT_AUTHORIZED" else ReplyMalformed
            raise kind(self._shown(target), f"{envelope.status}: {envelope.error or envelope.message or 'no message'}")
        if bytes(envelope.results).strip() == b"null":
            envelope.results = msgspec.Raw(b"[]")
        if not bytes(envelope.results).lstrip().startswith(b"["):
            raise ReplyMalformed(self._shown(target), "results is not a list")
        return envelope

    def _next(self, target: str, next_url: str) -> str:
        """Path and query of the next page, without key; host and scheme of the source's own address are not followed."""
        parts = urlsplit(urljoin(f"http://host{target}", next_url))
        query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "apiKey"]
        return f"{parts.path}?{urlencode(query)}" if query else parts.path

    def _shown(self, target: str) -> str:
        return f"{self._base.scheme}://{self._base.netloc.rpartition('@')[2]}{target}"

    def _get(self, target: str) -> bytes:
        """One reply, after as many attempts as it takes and the policy allows."""
        for attempt in range(self._policy.attempts):
            last = attempt == self._policy.attempts - 1
            try:
                return self._once(target)
            except SourceBusy as error:
                asked = error.retry_after_seconds
                if last or (asked or 0.0) > self._policy.retry_after_max_seconds:
                    raise
                self.counts.retry("429")
                self._sleep(max(asked or 0.0, self._policy.pause_seconds(attempt)))
            except (SourceFailing, SourceUnreachable) as error:
                if last:
                    raise
                self.counts.retry("5xx" if isinstance(error, SourceFailing) else "unreachable")
                self._sleep(self._policy.pause_seconds(attempt))
        raise AssertionError("a policy has at least one attempt")

    def _once(self, target: str) -> bytes:
        shown = self._shown(target)
        keyed = target
        if self._key:
            keyed += ("&" if "?" in target else "?") + urlencode({"apiKey": self._key})
        self._budget.take()
        self.counts.requests += 1
        try:
            connection = self._connected()
            connection.request("GET", keyed, headers={"Accept": "application/json", "User-Agent": "m17"})
            reply = connection.getresponse()
            body = reply.read(PAGE_BYTES_MAX + 1)
            if reply.length and len(body) <= PAGE_BYTES_MAX:
                raise http.client.IncompleteRead(body, reply.length)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _unreachable(shown, error) from None
        if len(body) > PAGE_BYTES_MAX:
            self.close()
            raise ReplyMalformed(shown, f"a page of over {PAGE_BYTES_MAX} bytes")
        if reply.status == http.client.OK:
            return body
        raise _refusal(shown, reply.status, body, reply.getheader("Retry-After"))

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._base.hostname or "", self._base.port
            if self._base.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    host, port, timeout=self._timeout_seconds, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=self._timeout_seconds)
        return self._connection


def _unreachable(shown: str, error: Exception) -> FeedError:
    """The error of a request that got no whole answer."""
    if isinstance(error, socket.gaierror):
        return SourceUnreachable(shown, f"no such host (DNS): {error.strerror}", "check the address and the resolver")
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        return SourceUnreachable(shown, f"TLS failed: {why}", "check the certificates and the clock")
    if isinstance(error, TimeoutError):
        return SourceUnreachable(shown, "no answer in time", "check the network; a longer timeout_ms may help")
    if isinstance(error, http.client.IncompleteRead):
        return SourceFailing(shown, f"the reply was cut short after {len(error.partial)} bytes")
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return SourceFailing(shown, f"not an HTTP reply: {type(error).__name__}")
    return SourceUnreachable(shown, f"{type(error).__name__}: {error}", "check that the service runs at this address")


def _refusal(shown: str, status: int, body: bytes, retry_after: str | None) -> FeedError:
    """The error of an answer that is not 200."""
    said = _said(body)
    text = f"HTTP {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        return SourceRefused(shown, text, f"set {KEY_VARIABLE} to a key whose plan covers this data")
    if status == 404:
        return SourceMissing(shown, text, "check address and ticker")
    if status == 429:
        return SourceBusy(shown, text, "lower requests_per_minute", retry_after_seconds(retry_after))
    if status >= 500 or status == 408:
        return SourceFailing(shown, text, "tried again later by itself", retry_after_seconds(retry_after))
    return ReplyMalformed(shown, text, "check address and parameters")


def _said(body: bytes) -> str:
    """What the reply says in words, at most a line."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return " ".join((envelope.error or envelope.message or "").split())[:200]
