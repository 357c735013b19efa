"""
A selection as ranges that the daemon takes: one a session and symbol pattern, with times where a session is cut.

Pure; this module must never ask for more symbols than were named.
"""

from __future__ import annotations

from collections.abc import Sequence

from m17ctl.formats import literal
from m17ctl.tui.axis import DAY, Axis, Span
from m17d.protocol import Range

_CONTRACT_TAIL = 15
"""Characters of an option's ticker behind its root: date, side, strike."""


def ranges_of(axis: Axis, span: Span, sessions: Sequence[str], symbols: Sequence[str] | None) -> tuple[Range, ...]:
    """
    The ranges of a span.

    Args:
        span: half-open positions; its ends may lie inside sessions.
        sessions: those of the span that are asked for.
        symbols: exactly these, contracts of a root together; None for all.
    """
    patterns = [None] if symbols is None else patterns_of(symbols)
    found = []
    for session in sessions:
        day = axis.index(session)
        assert day is not None
        first, last = max(span[0], day * DAY), min(span[1], (day + 1) * DAY)
        whole = first == day * DAY and last - day * DAY >= axis.days[day].windows
        start, end = axis.bounds_ns((first, last))
        for pattern in patterns:
            times = {} if whole else {"from_ts": start, "to_ts": end}
            found.append(Range(session=session, symbols=pattern, **times))  # type: ignore[arg-type]
    return tuple(found)


def patterns_of(symbols: Sequence[str]) -> list[str | None]:
    """Globs that name symbols: stocks and chains literally, contracts by their root."""
    found: dict[str, None] = {}
    for symbol in symbols:
        if symbol.startswith("O:") and len(symbol) > _CONTRACT_TAIL + 2:
            found[f"{literal(symbol[:-_CONTRACT_TAIL])}{'[0-9]' * 6}[CP]{'[0-9]' * 8}"] = None
        else:
            found[literal(symbol)] = None
    return list(found)
