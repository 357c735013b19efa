"""
Tracing: what a cell was made from, payload by payload, down to the source file and the rows of it.

Upstream payload ids stand in the records, so a cell tells what it was made from even when that has changed since. This
module must never change anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ledger.absence import dataset_of
from ledger.columns import AGGREGATE_MINUTES, MINUTES_PER_SESSION, RAW_COLUMNS, Column, Status
from ledger.errors import UnknownPayload
from ledger.records import NO_ROWS_ID
from ledger.rows import Slot
from ledger.state import State
from m17d import protocol, replies
from m17d.reading import Reading, source_reply

_INPUTS = {
    Column.AGGRESSOR_REF: (
        ("trade_payload_id", Column.TRADE_REF, 0, False),
        ("quote_payload_id", Column.QUOTE_REF, 0, False),
        ("previous_quote_payload_id", Column.QUOTE_REF, -1, False),
    ),
    Column.GREEKS_REF: (
        ("rf_rate_payload_id", Column.RF_RATE_REF, 0, False),
        ("trade_payload_id", Column.TRADE_REF, 0, False),
        ("quote_payload_id", Column.QUOTE_REF, 0, True),
        ("previous_quote_payload_id", Column.QUOTE_REF, -1, True),
    ),
}
"""Record field -> column, minute offset, and whether it is the underlying's cell."""


class Tracing:
    """Answers ``lineage`` over one state."""

    def __init__(self, state: State, reading: Reading) -> None:
        self.state = state
        self.reading = reading
        self._complete = True

    def lineage(self, request: protocol.LineageRequest) -> replies.LineageReply:
        """The tree of what one cell was made from; raises AddressError where there is no such cell."""
        symbol_id = self.state.symbols.resolve(request.symbol)
        minute_idx = self.state.calendar.minute_idx(self.reading.time_ns(request.at, request.session))
        self._complete = True
        cell = self._cell(request.column, symbol_id, minute_idx, None)
        return replies.LineageReply(cell=cell, complete=self._complete)

    def _slot(self, column: Column, symbol_id: int, minute_idx: int) -> Slot | None:
        ledger = self.state.ledger_of(column)
        if not ledger.exists(minute_idx // MINUTES_PER_SESSION):
            return None
        return ledger.slot(column, symbol_id, minute_idx)

    def _cell(self, column: Column, symbol_id: int, minute_idx: int, payload_id: int | None) -> replies.LineageCell:
        """One cell and its inputs; ``payload_id`` is what was used of it, None for what it holds now."""
        slot = self._slot(column, symbol_id, minute_idx)
        held = slot.payload_id if slot is not None and slot.status is Status.FILLED else 0
        used = held if payload_id is None else payload_id
        current = used == held
        self._complete &= current
        fields: dict[str, Any] = {}
        if used:
            fields = self._of_record(column, symbol_id, minute_idx, used)
        return replies.LineageCell(
            column=column,
            symbol=self.state.symbols.name(symbol_id),
            minute_idx=minute_idx,
            start_ts=self.state.calendar.start_ts(minute_idx),
            status="empty" if slot is None else slot.status.word,
            payload_id=used,
            version=0 if slot is None else slot.version,
            current=current,
            **fields,
        )

    def _of_record(self, column: Column, symbol_id: int, minute_idx: int, payload_id: int) -> dict[str, Any]:
        try:
            record = self.state.maps[column.payload_kind].get(payload_id)
        except UnknownPayload:
            self._complete = False
            return {}
        fields: dict[str, Any] = {"checksum": int(record["content_hash"]) >> 32}
        artifact_id, start, count = (int(record[name]) for name in ("artifact_id", "row_start", "row_count"))
        if artifact_id:
            fields["artifact_uri"] = f"{self.state.artifacts.get(artifact_id).uri}#rows={start}-{start + count}"
            fields["rows"] = (start, start + count)
        if column in RAW_COLUMNS:
            fields["source"] = self._source(column, symbol_id, minute_idx)
        elif column in _INPUTS:
            fields["inputs"] = self._inputs(column, symbol_id, minute_idx, record)
        elif payload_id != NO_ROWS_ID:
            fields["inputs"] = self._window(column, symbol_id, minute_idx)
        return fields

    def _source(self, column: Column, symbol_id: int, minute_idx: int) -> replies.SourceReply | None:
        dataset = dataset_of(column, self.state.class_of(symbol_id))
        session = self.state.calendar.date(minute_idx // MINUTES_PER_SESSION)
        record = self.state.sources.get(dataset.value, session) if dataset else None
        return None if record is None else source_reply(record)

    def _inputs(self, column: Column, symbol_id: int, minute_idx: int, record: np.void) -> list[replies.LineageCell]:
        """The cells whose payload ids the record carries; an id of 0 means that the cell had no rows, or was none."""
        found = []
        for name, source, offset, of_underlying in _INPUTS[column]:
            payload_id = int(record[name])
            if payload_id:
                owner = self.state.underlying_id(symbol_id) if of_underlying else symbol_id
                found.append(self._cell(source, owner, minute_idx + offset, payload_id))
        return found

    def _window(self, column: Column, symbol_id: int, minute_idx: int) -> list[replies.LineageCell]:
        """
        The cells with rows of an aggregate's window, of the underlying and its options, as they are now.

        Which payloads were read is a table in the artifact's footer; whether these cells are still those is what the
        print says, so an aggregate that is not stale was made from exactly these.
        """
        seq, minute = divmod(minute_idx, MINUTES_PER_SESSION)
        last = min(minute + AGGREGATE_MINUTES[column], int(self.state.calendar.minutes[seq]))
        session = self.state.calendar.date(seq)
        universe = self.state.universe(session)
        members = [int(one) for one in universe if self.state.underlying_id(int(one)) == symbol_id]
        found = []
        for source in (Column.TRADE_REF, Column.AGGRESSOR_REF, Column.GREEKS_REF):
            ledger = self.state.ledger_of(source)
            if not ledger.exists(seq):
                continue
            rows = ledger.session(seq)
            index = rows.column_index(source)
            for owner in members:
                status = rows.status[index, owner, minute:last]
                with_rows = (status == Status.FILLED) & (rows.flags[index, owner, minute:last] & 1 == 0)
                for offset in np.flatnonzero(with_rows):
                    found.append(self._cell(source, owner, minute_idx + int(offset), None))
        return found
