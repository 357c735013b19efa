"""
What one connection is asked for and how it is treated, as a value; refused where the service would refuse it.

Apart from the client, because the daemon makes settings and the client runs elsewhere. This module must never let the key
into a message.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Final

from engines.feeds.minute_spool import FREE_BYTES_MIN, GRACE_NS

CONTRACTS_MAX: Final = 1_000
"""Option contracts with quotes on one connection, as the service allows; its owner saw 499 to be safe with trades too."""


@dataclass(frozen=True, slots=True)
class Topics:
    """What a connection is subscribed to, and what is kept of it; see :class:`StreamSettings`."""

    trades: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()
    wanted_trades: tuple[str, ...] = ()
    wanted_quotes: tuple[str, ...] = ()


def topics_of_later(before: Topics, after: Topics) -> tuple[str, ...]:
    """
    Whose events come from now on and did not before: topics such as ``T.AIG``, and globs such as ``T.A*``.

    A glob is one that a wildcard brought before and that was not kept. What a connection keeps of all it brings is said of
    all, although some of it was kept before.
    """
    found: list[str] = []
    for kind, had, has, kept, keeps in (
        ("T", before.trades, after.trades, before.wanted_trades, after.wanted_trades),
        ("Q", before.quotes, after.quotes, before.wanted_quotes, after.wanted_quotes),
    ):
        later = [each for each in has if each not in set(had)]
        if "*" in had and "*" in has and kept:
            later += [each for each in (keeps or ("*",)) if each not in set(kept)]
        found += [f"{kind}.{each}" for each in later]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """
    One connection; plain and picklable.

    Attributes:
        url: with the path of the asset class, such as ``wss://socket.massive.com/stocks``.
        key: sent in the auth message only.
        of_options: the asset class is options.
        trades, quotes: tickers to subscribe, or ``("*",)``.
        contracts_max: most option tickers of quotes and trades together; more are refused when the feed is made.
        wanted_trades, wanted_quotes: globs over tickers that a wildcard brings and that are kept; none keeps all.
        folder: where minutes are spooled; made where it is not there.
        batch_topics: topics of one subscribe message.
        handshake_seconds: from the connection to ``auth_success``.
        acknowledge_seconds: for the answers to all subscriptions; topics without one are a gap of their own.
        idle_seconds: longest silence of a connection that was busy before; 0 for any.
        ping_seconds: between pings, and for their answer.
        refused_seconds: first pause after ``auth_failed`` or ``max_connections``; doubled each time, up to ten minutes.
        backoff_max_seconds: longest pause after anything else.
        grace_ns, day, free_bytes_min: see :class:`engines.feeds.minute_spool.MinuteSpool`.
        resume_ns: see :class:`engines.feeds.stream_intake.StreamIntake`.
        seed: of the jitter.
    """

    url: str
    key: str
    of_options: bool
    trades: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()
    wanted_trades: tuple[str, ...] = ()
    wanted_quotes: tuple[str, ...] = ()
    folder: str = ""
    contracts_max: int = CONTRACTS_MAX
    batch_topics: int = 200
    handshake_seconds: float = 10.0
    acknowledge_seconds: float = 10.0
    idle_seconds: float = 60.0
    ping_seconds: float = 20.0
    refused_seconds: float = 60.0
    backoff_max_seconds: float = 30.0
    grace_ns: int = GRACE_NS
    day: tuple[int, int] | None = None
    free_bytes_min: int = FREE_BYTES_MIN
    resume_ns: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Refuse what the service would.

        Raises:
            ValueError: too many contracts, quotes of all options, or nothing to subscribe.
        """
        if not self.trades and not self.quotes:
            raise ValueError(f"{self.url}: nothing to subscribe: no trades and no quotes are named")
        if self.of_options:
            if "*" in self.quotes:
                raise ValueError(f"{self.url}: quotes of options have no wildcard; name the contracts")
            contracts = set(self.trades) | set(self.quotes)
            if len(contracts - {"*"}) > self.contracts_max:
                over = sorted(contracts - {"*"})[self.contracts_max :]
                raise ValueError(
                    f"{self.url}: {len(contracts - {'*'})} contracts, the connection takes {self.contracts_max}; over it "
                    f"are {', '.join(over[:5])}{' and more' if len(over) > 5 else ''}"
                )

    def __repr__(self) -> str:
        """Without the key."""
        return f"StreamSettings({self.url}, {len(self.trades)} trades, {len(self.quotes)} quotes)"

    @property
    def topics(self) -> tuple[str, ...]:
        """What is subscribed, such as ``T.AIG``, in order."""
        return tuple([f"T.{each}" for each in self.trades] + [f"Q.{each}" for each in self.quotes])

    @property
    def asked(self) -> Topics:
        """What it is subscribed to, and what is kept of it."""
        return Topics(self.trades, self.quotes, self.wanted_trades, self.wanted_quotes)

    def with_topics(self, topics: Topics) -> StreamSettings:
        """The same connection with other topics; raises ValueError as when it is made."""
        return replace(self, **asdict(topics))
