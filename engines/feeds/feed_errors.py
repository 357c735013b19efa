"""
The ways a remote source fails, for every feed alike.

::

    FeedError               .reason  .hint  .where      the message is "where: reason" and never holds a key
    ├─ SourceUnreachable    no name, no route, no TLS, no answer in time: after all attempts
    ├─ SourceBusy           429 after all attempts; ``retry_after_seconds`` is what the source asked for
    ├─ SourceFailing        5xx, or a reply cut short, after all attempts
    │  └─ ObjectDamaged         the object came whole and is damaged as it lies there
    ├─ SourceRefused        401 or 403: the credentials are wrong or do not cover the data; never retried
    ├─ SourceMissing        404: not there, perhaps not yet
    ├─ SourceReplaced       the object changed while it was read
    ├─ PageRepeated         the source's pages go in a circle
    └─ ReplyMalformed       the answer is not what the interface promises

All of them but SourceRefused may pass by themselves. This module must never import anything of the house.
"""

from __future__ import annotations

from typing import Any


class FeedError(Exception):
    """
    A source did not give what it should.

    Attributes:
        where: the address or object, without key.
        reason: what is wrong.
        hint: what the operator can do.
        retry_after_seconds: what the source asked to wait, or None.
    """

    def __init__(self, where: str, reason: str, hint: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> Any:
        """Keep all facts when a worker process sends the error home."""
        return (type(self), (self.where, self.reason, self.hint, self.retry_after_seconds))


class SourceUnreachable(FeedError):
    """No name, no route, no TLS, or no answer in time."""


class SourceBusy(FeedError):
    """The source answers 429 and did so until the attempts were used up."""


class SourceFailing(FeedError):
    """The source answers 5xx or cuts its replies short."""


class ObjectDamaged(SourceFailing):
    """The object came whole and is no whole gzip stream; only another object of the name can help."""


class SourceRefused(FeedError):
    """The credentials are wrong, or do not cover the data."""


class SourceMissing(FeedError):
    """It is not there."""


class SourceReplaced(FeedError):
    """The object is another one than when reading began."""


class PageRepeated(FeedError):
    """A page came twice."""


class ReplyMalformed(FeedError):
    """The answer is not what the interface promises."""
