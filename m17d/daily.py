"""
Daily: what the report of a session is made of, as far as the ledger knows it.

Coverage, sources, causes and operations as other requests answer them; beside these, read from the slots some symbols at a
time, when cells were filled, from what, and which are partial or wanted. This module must never read an artifact, nor
change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np

from ledger.audit import AuditRecord
from ledger.columns import WINDOW_NS, Column, Flag, Source, Status
from ledger.state import State
from m17d import outcomes, protocol, replies
from m17d.explaining import Explaining
from m17d.reading import Reading, source_reply
from m17d.verdict import verdict

_SYMBOLS_AT_ONCE: Final = 64
_AUDIT_TAIL: Final = 10_000
"""How many of the newest records are looked through."""
_AS_IT_SHOULD_BE: Final = ("filled", "not_applicable", "not_due")


def report(
    state: State, reading: Reading, explaining: Explaining, session: str
) -> Iterator[outcomes.ReportReply | None]:
    """The report of a session; yields None between steps."""
    coverage = reading.coverage(protocol.CoverageRequest(session=session, by="minute", quality=True))
    yield None
    causes: list[replies.Cause] = []
    if coverage.symbols:
        asked = protocol.WhyRequest(columns=list(Column), range=protocol.Range(session=session))
        for step in explaining.why(asked):
            causes = causes if step is None else step.groups
            yield None
    facts: dict[str, Any] = {}
    for found in filling(state, session):
        facts = facts if found is None else found
        yield None
    counts = {column: msgspec.to_builtins(one) for column, one in coverage.columns.items()}
    sources = list(state.sources.for_session(session))
    yield outcomes.ReportReply(
        session=session,
        verdict=verdict(state, explaining.runner, counts, sources),
        coverage=coverage,
        sources=[source_reply(record) for record in sources],
        causes=[cause for cause in causes if cause.cause not in _AS_IT_SHOULD_BE],
        operations=_operations(state, session),
        facts=facts,
    )


def _operations(state: State, session: str) -> list[dict[str, Any]]:
    """Audit records that name the session, or a span of time within it."""
    seq = state.calendar.session_seq(session)
    open_ns, close_ns = int(state.calendar.open_ns[seq]), state.calendar.close_ns(seq)
    found = []
    for record in state.audit.tail(_AUDIT_TAIL):
        begins = record.range.get("from")
        inside = isinstance(begins, int) and open_ns <= begins < close_ns
        if record.range.get("session") == session or inside:
            found.append(shown(record))
    return found


def shown(record: AuditRecord) -> dict[str, Any]:
    """An audit record as it goes over the wire."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    fields["ts"] = fields.pop("ts_ns")
    return fields


def filling(state: State, session: str) -> Iterator[dict[str, Any] | None]:
    """
    What the day report says of when and how cells were filled; yields None between steps.

    The last is ``{lags, by_source, partial, wanted}``, each by column and without columns that have nothing to say:
    ``lags`` = ``{cells, median_s, p95_s, max_s, first_ts, last_ts}`` of filled cells, a lag being the seconds from a
    window's end until its cell was last set and the times those of setting in ns UTC; ``by_source`` = source to filled
    cells; ``partial`` and ``wanted`` = cells with that flag.
    """
    facts: dict[str, Any] = {"lags": {}, "by_source": {}, "partial": {}, "wanted": {}}
    seq = state.calendar.session_seq(session)
    ends = state.calendar.start_ts_array(state.calendar.windows(seq)) + WINDOW_NS
    universe = state.universe(session)
    for column in Column:
        ledger = state.ledger_of(column)
        if not ledger.exists(seq):
            continue
        lags: list[np.ndarray] = []
        first_ts, last_ts, counted = 0, 0, np.zeros(len(Source), dtype=np.int64)
        flagged = {"partial": 0, "wanted": 0}
        for start in range(0, len(universe), _SYMBOLS_AT_ONCE):
            slots = ledger.session(seq).slots(column, universe[start : start + _SYMBOLS_AT_ONCE])
            filled = slots["status"] == Status.FILLED
            if filled.any():
                set_ns = slots["last_updated_ns"][filled]
                lags.append((set_ns - np.broadcast_to(ends, filled.shape)[filled]) // 1_000_000)
                first_ts = min(first_ts or int(set_ns.min()), int(set_ns.min()))
                last_ts = max(last_ts, int(set_ns.max()))
                counted += np.bincount(slots["source"][filled], minlength=len(Source))
                for word, flag in (("partial", Flag.PARTIAL), ("wanted", Flag.WANTED)):
                    flagged[word] += int((slots["flags"][filled] & np.uint8(flag) != 0).sum())
            yield None
        if not lags:
            continue
        facts["lags"][column.value] = _spread(np.concatenate(lags)) | {"first_ts": first_ts, "last_ts": last_ts}
        by_source = {source.word: int(counted[source]) for source in Source if counted[source] and source}
        for name, found in (("by_source", by_source), *flagged.items()):
            if found:
                facts[name][column.value] = found
    yield facts


def _spread(lags_ms: np.ndarray) -> dict[str, float | int]:
    """How many, and the middle, the last twentieth's first and the largest in seconds."""
    ordered = np.sort(lags_ms)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * share))]
        for name, share in (("median_s", 0.5), ("p95_s", 0.95))
    }
    return {"cells": len(ordered)} | {name: int(value) / 1000 for name, value in (*at.items(), ("max_s", ordered[-1]))}
