"""
Tracing: what a cell was made from, payload by payload, down to the source file and the rows of it.

Upstream payload ids stand in the records, those of an aggregate in a table in its artifact's footer, so a cell tells what it
was made from even when that has changed since. This module must never change anything.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ledger.absence import dataset_of
from ledger.columns import MINUTES_PER_SESSION, RAW_COLUMNS, Column, Status
from ledger.errors import ChecksumMismatch, UnknownPayload
from ledger.input_tables import COLUMNS, read_table
from ledger.records import NO_ROWS_ID, RECORD_RETIRED
from ledger.rows import Slot
from ledger.state import State
from m17d import protocol, replies
from m17d.reading import Reading, source_reply

CELLS_MAX: Final = 4_000
"""Cells that one answer shows; a window of hours over a large chain has many times more."""
_INPUTS: Final = {
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
        self._shown = 0
        self._left_out = 0

    def lineage(self, request: protocol.LineageRequest) -> replies.LineageReply:
        """The tree of what one cell was made from; raises AddressError where there is no such cell."""
        symbol_id = self.state.symbols.resolve(request.symbol)
        minute_idx = self.state.calendar.minute_idx(self.reading.time_ns(request.at, request.session))
        self._complete, self._shown, self._left_out = True, 0, 0
        cell = self._cell(request.column, symbol_id, minute_idx, None)
        return replies.LineageReply(cell=cell, complete=self._complete, left_out=self._left_out)

    def _slot(self, column: Column, symbol_id: int, minute_idx: int) -> Slot | None:
        ledger = self.state.ledger_of(column)
        if not ledger.exists(minute_idx // MINUTES_PER_SESSION):
            return None
        return ledger.slot(column, symbol_id, minute_idx)

    def _cell(self, column: Column, symbol_id: int, minute_idx: int, payload_id: int | None) -> replies.LineageCell:
        """One cell and its inputs; ``payload_id`` is what was used of it, None for what it holds now."""
        self._shown += 1
        slot = self._slot(column, symbol_id, minute_idx)
        filled = slot is not None and slot.status is Status.FILLED
        held = slot.payload_id if slot is not None and filled else 0
        used = held if payload_id is None else payload_id
        fields: dict[str, Any] = {}
        if used:
            fields = self._of_record(column, symbol_id, minute_idx, used)
        # Cleared and filled again with equal content, it has another payload and is still what was used.
        equal = filled and slot is not None and fields.get("checksum") == slot.checksum
        current = used == held or equal
        self._complete &= current
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
        if artifact_id and int(record["record_flags"]) & RECORD_RETIRED:
            fields["retired"] = True
        elif artifact_id:
            fields["artifact_uri"] = f"{self.state.artifacts.get(artifact_id).uri}#rows={start}-{start + count}"
            fields["rows"] = (start, start + count)
        if column in RAW_COLUMNS:
            fields |= self._source_rows(column, record)
            fields["source"] = self._source(column, symbol_id, minute_idx)
            return fields
        made_by = int(record["batch_id"])
        if payload_id == NO_ROWS_ID:
            # The shared record knows no recipe; the print of a cell without rows is that of its recipe alone.
            slot = self._slot(column, symbol_id, minute_idx)
            made_by = 0 if slot is None else slot.inputs
        fields["recipe"] = self._recipe(column, symbol_id, minute_idx, made_by)
        if column in _INPUTS:
            fields["inputs"] = self._inputs(column, symbol_id, minute_idx, record)
        elif payload_id != NO_ROWS_ID:
            fields["inputs"] = self._window(symbol_id, minute_idx, record)
        return fields

    @staticmethod
    def _source_rows(column: Column, record: np.void) -> dict[str, Any]:
        """Which rows of its source a raw cell is made from."""
        if column is Column.RF_RATE_REF:
            day = str(int(record["curve_date"]))
            return {"curve_date": f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else ""}
        fields = {"first_ts": int(record["first_ts"]), "last_ts": int(record["last_ts"])}
        fields["record_count"] = int(record["row_count"])
        if column is Column.QUOTE_REF:
            fields["lead_rows"] = int(record["lead_count"])
        return fields

    def _source(self, column: Column, symbol_id: int, minute_idx: int) -> replies.SourceReply | None:
        dataset = dataset_of(column, self.state.class_of(symbol_id))
        session = self.state.calendar.date(minute_idx // MINUTES_PER_SESSION)
        record = self.state.sources.get(dataset.value, session) if dataset else None
        return None if record is None else source_reply(record)

    def _recipe(self, column: Column, symbol_id: int, minute_idx: int, made_by: int) -> str:
        """Engine and settings, where the recipe is the one of now; a record keeps no more than its print."""
        session = self.state.calendar.date(minute_idx // MINUTES_PER_SESSION)
        runner = self.reading.runner
        for name, engine in runner.deriving.items():
            if column in runner.engines[name].writes:
                now, words = engine.recipe(session, column, symbol_id)
                return f"{name}: {words}" if made_by == now else f"{name}: another recipe than that of now"
        return ""

    def _room(self, wanted: int) -> int:
        """How many of some cells may still be shown; the others are counted as left out."""
        room = max(0, min(wanted, CELLS_MAX - self._shown))
        self._left_out += wanted - room
        return room

    def _inputs(self, column: Column, symbol_id: int, minute_idx: int, record: np.void) -> list[replies.LineageCell]:
        """The cells whose payload ids the record carries; an id of 0 means that the cell had no rows, or was none."""
        wanted = [(*_INPUTS[column][at], int(record[name])) for at, (name, *_) in enumerate(_INPUTS[column])]
        wanted = [one for one in wanted if one[-1]]
        found = []
        for _, source, offset, of_underlying, payload_id in wanted[: self._room(len(wanted))]:
            owner = self.state.underlying_id(symbol_id) if of_underlying else symbol_id
            found.append(self._cell(source, owner, minute_idx + offset, payload_id))
        return found

    def _window(self, symbol_id: int, minute_idx: int, record: np.void) -> list[replies.LineageCell]:
        """
        The cells with rows that an aggregate was made from, by the table in its artifact's footer.

        Those of its own minutes, and the underlying's own of the minute before, from which an option trade of the first
        minute may have taken its spot.
        """
        artifact = self.state.artifacts.get(int(record["artifact_id"]))
        try:
            table = read_table(self.state.artifact_root / artifact.uri)
        except (UnknownPayload, ChecksumMismatch):
            self._complete = False
            return []
        start, count = int(record["inputs_start"]), int(record["inputs_count"])
        first = minute_idx % MINUTES_PER_SESSION
        own = self.state.symbols.name(symbol_id)
        mine = table.rows[start : start + count]
        is_own = np.array([name == own for name in table.symbols], dtype=bool)
        if (~is_own[mine["symbol"]] & (mine["minute"] == first)).any():
            before = table.rows[is_own[table.rows["symbol"]] & (table.rows["minute"] == first - 1)]
            mine = np.concatenate([before, mine])
        # The trades first: what was made from them names them again.
        mine = mine[np.lexsort((mine["symbol"], mine["minute"], mine["column"]))]
        session_start = minute_idx - first
        found = []
        for row in mine[: self._room(len(mine))]:
            owner = self.state.symbols.resolve(table.symbols[int(row["symbol"])])
            at, column = session_start + int(row["minute"]), COLUMNS[int(row["column"])]
            found.append(self._cell(column, owner, at, int(row["payload_id"])))
        return found
