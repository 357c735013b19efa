"""
What is written down about a flat file: from the report of a pass to its record in ``sources``.

Pure but for the symbols' ids, which it looks up. This module must never decide whether a file is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from engines.raw_pass import PARSER_VERSION, PassArguments, PassResult
from ledger.columns import Dataset
from ledger.sources import BadRow, SourceRecord, SourceState, pack_symbols
from ledger.state import State

_REFUSED_NAMES_MAX: Final = 100


def complete_record(
    state: State,
    session: str,
    arguments: PassArguments,
    result: PassResult,
    spelled_ids: Iterable[int],
    start_number: int,
) -> SourceRecord:
    """
    The record of a file that was read to its end.

    Args:
        spelled_ids: symbols that the config spells; they belong to the session with or without rows.
    """
    report = result.report
    assert report is not None
    before = state.sources.get(arguments.dataset.value, session)
    known = {symbol: state.symbols.get(symbol) for symbol in report.symbols}
    rows = {
        known_id: (*report.symbols[name], result.volume_outside.get(name, 0.0))
        for name, known_id in known.items()
        if known_id is not None
    }
    for symbol_id in spelled_ids:
        rows.setdefault(symbol_id, (0, 0, 0.0))
    ids = sorted(rows)
    refused = sorted(name for name, known_id in known.items() if known_id is None)
    bad = [BadRow(line, reason) for line, reason in report.quarantined]
    return SourceRecord(
        dataset=arguments.dataset.value,
        session=session,
        state=SourceState.COMPLETE,
        name=arguments.name,
        size=arguments.size,
        etag=arguments.etag,
        header=list(report.header),
        globs=list(arguments.globs),
        parser_version=PARSER_VERSION,
        rows=report.rows,
        rows_in_session=report.rows_in_session,
        rejected=dict(sorted(report.rejected.items())),
        out_of_session={"rows": report.rows_outside, **result.outside},
        first_bad=bad[0] if bad else None,
        quarantined=bad,
        symbols=pack_symbols(
            ids, [rows[one][0] for one in ids], [rows[one][1] for one in ids], [rows[one][2] for one in ids]
        ),
        refused_symbols=len(refused),
        refused_names=refused[:_REFUSED_NAMES_MAX],
        accepted=before.accepted if before is not None and before.etag == arguments.etag else [],
        start_number=start_number,
    )


def damaged_record(
    dataset: Dataset, session: str, reason: str, *, name: str, size: int, etag: str, globs: Iterable[str]
) -> SourceRecord:
    """The record of a file that cannot be read whole, so that it is read again when it was replaced."""
    return SourceRecord(
        dataset=dataset.value, session=session, state=SourceState.DAMAGED, reason=reason, name=name, size=size, etag=etag,
        globs=list(globs), parser_version=PARSER_VERSION,
    )  # fmt: skip


def waiting_record(
    dataset: Dataset,
    session: str,
    *,
    name: str,
    globs: Iterable[str],
    spelled_ids: Iterable[int],
    before: SourceRecord | None,
) -> SourceRecord:
    """
    The record of a file that should be there and is not.

    Args:
        before: what was known, such as a live feed of the session; its symbols stay in the session's universe.
    """
    counts = {int(row["symbol_id"]): row for row in (before.symbol_rows() if before is not None else ())}
    ids = sorted({*spelled_ids, *counts})
    columns = [
        [counts[one][field].item() if one in counts else 0 for one in ids]
        for field in ("rows_in", "rows_outside", "volume_outside")
    ]
    waiting = SourceRecord(
        dataset=dataset.value, session=session, state=SourceState.WAITING, reason=f"{name} does not exist", name=name,
        globs=list(globs), symbols=pack_symbols(ids, *columns),
    )  # fmt: skip
    if before is None or not before.stream:
        return waiting
    return msgspec.structs.replace(
        waiting, stream=before.stream, rows=before.rows, rows_in_session=before.rows_in_session,
        out_of_session=before.out_of_session, refused_symbols=before.refused_symbols,
        refused_names=before.refused_names, accepted=before.accepted,
    )  # fmt: skip
