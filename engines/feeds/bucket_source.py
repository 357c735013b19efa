"""
A bucket of an S3-compatible store as a source of files.

A download goes to a temporary file by ranges, remembers beside it which object it is a part of (ETag and size), and goes
on where it stopped, in this process or the next; an object that was replaced meanwhile starts anew. Two processes never
write one part: it is locked. Credentials, and what is not given, come from the environment. This module must never write
to a bucket.

Environment: ``M17_S3_ENDPOINT`` (or ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``), ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION`` (or ``AWS_DEFAULT_REGION``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from engines.feeds.feed_errors import (
    FeedError,
    SourceFailing,
    SourceMissing,
    SourceRefused,
    SourceReplaced,
    SourceUnreachable,
)
from engines.feeds.gzip_check import GzipCheck
from engines.feeds.object_store import READ_BYTES, ObjectFacts, Progress, TransferCounts, refuse_damaged
from engines.feeds.retrying import RetryPolicy

if TYPE_CHECKING:
    from obstore.store import S3Store

RANGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one request; what a cut costs at most."""
ENDPOINT_VARIABLES: Final = ("M17_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

Listing = list[Any]
_Answer = TypeVar("_Answer")


class _Partial(msgspec.Struct, frozen=True):
    """Of which object the partial file is a part; kept beside it."""

    address: str
    etag: str
    size: int


class BucketSource:
    """
    A bucket, or a prefix of it. Not for use by several threads at once.

    Args:
        address: ``s3://bucket[/prefix]``.
        endpoint: of the store; None takes the environment's, '' the provider's own.
        region: None takes the environment's.
        path_style: the bucket is part of the path; False makes it part of the host's name.
        policy: attempts in a row without a byte, and their pauses.
        range_bytes: bytes of one request.
        rate: bytes a second of the transfer at most, asked for after every piece; None for no cap. What it raises ends
            the download, and what came stays.
        timeout_seconds: without any byte.
        sleep, clock: how to wait and to measure the rate.

    Raises:
        ValueError: no bucket in the address.
    """

    def __init__(
        self,
        address: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        path_style: bool = True,
        policy: RetryPolicy | None = None,
        range_bytes: int = RANGE_BYTES,
        rate: Callable[[], float | None] = lambda: None,
        timeout_seconds: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"{address!r}: expected s3://bucket/prefix")
        self.address = address.rstrip("/")
        self.counts = TransferCounts()
        self._prefix = parts.path.strip("/")
        self._policy = policy or RetryPolicy()
        self._range_bytes = range_bytes
        self._rate = rate
        self._region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        self._path_style = path_style
        self._sleep = sleep
        self._clock = clock
        if endpoint is None:
            endpoint = next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), "")
        self._bucket = parts.netloc
        self._endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._opened: S3Store | None = None

    def local_path(self, name: str) -> Path | None:  # noqa: ARG002  (the interface of all sources)
        """None: an object has to be downloaded."""
        return None

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def stat(self, name: str) -> ObjectFacts:
        """
        Facts of one object.

        Raises:
            SourceMissing: there is none, or no such bucket.
            FeedError: refused, unreachable or failing; see :mod:`engines.feeds.feed_errors`.
        """
        import obstore

        meta = self._tried(name, lambda: obstore.head(self._store(), self._key(name)))
        return self._facts(name, meta)

    def exists(self, name: str) -> bool:
        """Whether there is such an object; other failures than its absence are raised."""
        try:
            self.stat(name)
        except SourceMissing:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectFacts]:
        """Objects below a folder of the source, in order of name; raises as :meth:`stat`."""
        import obstore

        top = self._key(prefix.strip("/")).strip("/") or None
        cut = len(self._prefix) + 1 if self._prefix else 0

        def listing() -> Listing:
            return [meta for piece in obstore.list(self._store(), top, chunk_size=1_000) for meta in piece]

        found = [self._facts(str(meta["path"])[cut:], meta) for meta in self._tried(prefix, listing)]
        yield from sorted(found, key=lambda facts: facts.name)

    def download(self, name: str, target: Path, *, progress: Progress | None = None) -> ObjectFacts:
        """
        Bring an object to ``target`` by way of ``target.part``, going on where an earlier download stopped.

        Args:
            target: its folder must exist; an older file of the name is replaced.
            progress: called with (bytes there, bytes in all) after every piece.

        Raises:
            SourceMissing: no such object.
            SourceReplaced: it was replaced again and again while it was read.
            ObjectDamaged: it came whole, and its gzip stream is damaged.
            SourceFailing: the transfer broke off too often without a byte between, or another process is at it.
            FeedError: refused or unreachable.
            OSError: writing failed. What came so far stays in ``target.part`` and serves the next download.
        """
        partial = target.with_name(target.name + ".part")
        with _locked(partial, f"{self.address}/{name}") as file:
            for attempt in range(self._policy.attempts):
                facts = self.stat(name)
                self._prepare(file, partial, name, facts)
                try:
                    self._fetch(name, facts, file, progress)
                except SourceReplaced:
                    if attempt == self._policy.attempts - 1:
                        raise
                    self._count("replaced")
                    continue
                check = GzipCheck(name)
                file.seek(0)
                while piece := file.read(READ_BYTES):
                    check.take(piece)
                _note(partial).unlink(missing_ok=True)
                refuse_damaged(check, f"{self.address}/{name}", partial)
                partial.replace(target)
                return facts
        raise AssertionError("a policy has at least one attempt")

    def _prepare(self, file: IO[bytes], partial: Path, name: str, facts: ObjectFacts) -> None:
        """Keep what the partial file holds if it is a part of this very object, else begin anew."""
        wanted = _Partial(f"{self.address}/{name}", facts.etag, facts.size)
        note = _note(partial)
        try:
            held = msgspec.json.decode(note.read_bytes(), type=_Partial)
        except (FileNotFoundError, msgspec.DecodeError):
            held = None
        have = file.seek(0, os.SEEK_END)
        if held == wanted and have <= facts.size:
            self.counts.bytes_resumed += have
            return
        file.truncate(0)
        note.write_bytes(msgspec.json.encode(wanted))

    def _fetch(self, name: str, facts: ObjectFacts, file: IO[bytes], progress: Progress | None) -> None:
        """Append ranges until the file has its length; attempts are counted anew after every byte."""
        failures = 0
        pace = _Pace(self._rate, self._clock, self._sleep)
        while (have := file.seek(0, os.SEEK_END)) < facts.size:
            try:
                for piece in self._pieces(name, facts, have):
                    file.write(piece)
                    self.counts.bytes_received += len(piece)
                    failures = 0
                    if progress is not None:
                        progress(file.tell(), facts.size)
                    pace.keep(len(piece))
            except (SourceFailing, SourceUnreachable) as error:
                file.flush()
                failures += 1
                if failures >= self._policy.attempts:
                    raise
                self._count("unreachable" if isinstance(error, SourceUnreachable) else "failing")
                self._sleep(self._policy.pause_seconds(failures - 1))
        file.flush()
        os.fsync(file.fileno())

    def _pieces(self, name: str, facts: ObjectFacts, start: int) -> Iterator[memoryview]:
        """The bytes of one range as they come."""
        import obstore
        from obstore.exceptions import BaseError

        end = min(start + self._range_bytes, facts.size)
        where = f"{self.address}/{name}"
        got = start
        try:
            answer = obstore.get(
                self._store(), self._key(name), options={"range": (start, end), "if_match": facts.etag or None}
            )
            etag = str(answer.meta["e_tag"] or "")
            if etag != facts.etag or answer.meta["size"] != facts.size or answer.range[0] != start:
                raise SourceReplaced(where, "the object was replaced while it was read", "it is read anew")
            for piece in answer.stream(min_chunk_size=1):  # what is buffered below a minimum is lost at a cut
                view = memoryview(piece)
                got += len(view)
                yield view
        except (BaseError, OSError) as error:
            raise _translated(where, error) from None
        if got != end:
            raise SourceFailing(where, f"the reply was cut short at byte {got} of {facts.size}")

    def _tried(self, name: str, call: Callable[[], _Answer]) -> _Answer:
        from obstore.exceptions import BaseError

        for attempt in range(self._policy.attempts):
            try:
                return call()
            except (BaseError, OSError) as error:
                found = _translated(f"{self.address}/{name}", error)
                retried = isinstance(found, SourceFailing | SourceUnreachable)
                if not retried or attempt == self._policy.attempts - 1:
                    raise found from None
                self._count("unreachable" if isinstance(found, SourceUnreachable) else "failing")
                self._sleep(self._policy.pause_seconds(attempt))
        raise AssertionError("a policy has at least one attempt")

    def _count(self, kind: str) -> None:
        self.counts.retried[kind] = self.counts.retried.get(kind, 0) + 1

    def _facts(self, name: str, meta: Any) -> ObjectFacts:
        modified_ns = round(meta["last_modified"].timestamp()) * 1_000_000_000
        return ObjectFacts(name, int(meta["size"]), str(meta["e_tag"] or ""), modified_ns)

    def _store(self) -> S3Store:
        if self._opened is None:
            self._opened = _open_store(
                self._bucket, self._endpoint, self._region, self._timeout_seconds, path_style=self._path_style
            )
        return self._opened


class _Pace:
    """Keeps a transfer to a rate that may change on the way."""

    def __init__(
        self, rate: Callable[[], float | None], clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._held: float | None = None
        self._since, self._bytes = clock(), 0

    def keep(self, received: int) -> None:
        """Wait for as long as the bytes since the rate's last change came too fast."""
        rate = self._rate()
        if rate != self._held:
            self._held, self._since, self._bytes = rate, self._clock(), 0
        self._bytes += received
        if rate is not None:
            ahead = self._bytes / rate - (self._clock() - self._since)
            if ahead > 0:
                self._sleep(ahead)


@contextlib.contextmanager
def _locked(partial: Path, where: str) -> Iterator[IO[bytes]]:
    """
    The partial file, open for reading and appending, with its lock; it is made where it is not there.

    A daemon that was killed may leave a process behind that still writes.

    Raises:
        SourceFailing: another process has the lock.
    """
    while True:
        with partial.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "a process of an earlier run ends by itself within a minute; tried again later"
                raise SourceFailing(where, "another process is downloading it", hint) from None
            # Whoever had the lock before may have given the file its name.
            if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                continue
            try:
                yield file
            finally:
                if not os.fstat(file.fileno()).st_size:
                    partial.unlink(missing_ok=True)
                    _note(partial).unlink(missing_ok=True)
            return


def _open_store(bucket: str, endpoint: str, region: str, timeout_seconds: float, *, path_style: bool) -> S3Store:
    """The store, with what the environment says of credentials and region."""
    from obstore.store import S3Store

    names = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    if not any(os.environ.get(name) for name in names):
        # Without any, the library would look for a cloud's metadata service and hang.
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise SourceRefused(f"s3://{bucket}", "no credentials in the environment", hint)
    settings: dict[str, Any] = {
        "region": region,
        "virtual_hosted_style_request": not path_style,
    }
    if endpoint:
        settings["endpoint"] = endpoint
    for setting, name in (("access_key_id", "AWS_ACCESS_KEY_ID"), ("secret_access_key", "AWS_SECRET_ACCESS_KEY")):
        if os.environ.get(name):
            settings[setting] = os.environ[name]
    if os.environ.get("AWS_SESSION_TOKEN"):
        settings["session_token"] = os.environ["AWS_SESSION_TOKEN"]
    return S3Store(
        bucket,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(timeout_seconds, 10.0)),
            "read_timeout": timedelta(seconds=timeout_seconds),
            # The whole of a range on a slow line; what counts is the time without a byte.
            "timeout": timedelta(hours=1),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        **settings,
    )


def _translated(where: str, error: Exception) -> FeedError:
    """An error of the library in our words; its messages may hold addresses, never keys."""
    from obstore import exceptions

    # Behind the sentence the library lays out its own structures, which say nothing to an operator.
    text = " ".join(str(error).partition("Debug source:")[0].split())[:300]
    lower = str(error).lower()
    if "<code>nosuchbucket<" in lower:
        return SourceMissing(where, "no such bucket", "correct `source` in the config")
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
        return SourceMissing(where, "no such object", "the file is not there yet, or bucket and prefix are wrong")
    if isinstance(error, exceptions.PreconditionError):
        return SourceReplaced(where, "the object was replaced while it was read", "it is read anew")
    denied = ("403 forbidden", "401 unauthorized", "accessdenied", "invalidaccesskeyid", "signaturedoesnotmatch")
    kinds = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
    if isinstance(error, kinds) or any(word in lower for word in denied):
        return SourceRefused(where, "the store refuses the credentials", "check AWS_ACCESS_KEY_ID and its secret")
    if "dns error" in lower or "failed to lookup" in lower:
        return SourceUnreachable(where, "no such host (DNS)", "check M17_S3_ENDPOINT and the resolver")
    if any(word in lower for word in ("certificate", "tls", "handshake")):
        why = re.search(r"InvalidCertificate\(\s*(\w+)", str(error))
        reason = f"TLS failed: {f'the certificate is refused ({why[1]})' if why else text}"
        return SourceUnreachable(where, reason, "check the certificates and the clock")
    if "connection refused" in lower:
        return SourceUnreachable(where, "nobody listens there", "check M17_S3_ENDPOINT")
    if "error sending request" in lower:
        return SourceUnreachable(where, "the connection failed", "check M17_S3_ENDPOINT and the network")
    return SourceFailing(where, text, "tried again later by itself")


def _note(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")
